//! The loop of the engine's thread: take requests in, plan a step, compute it, turn logits into replies.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;

use super::cost::{Meter, Work};
use super::fair::Fair;
use super::forecast::{Habits, Running};
use super::job::Job;
use super::plan::{Plan, Share, View};
use super::pool::Pool;
use super::queue::{Key, Queue, Queued as _};
use super::sequence::{Sequence, ns_since};
use crate::backend::{Backend, LogitsBuf, Solo, StepPlan};
use crate::constrain::STEP_PATIENCE;
use crate::encoder::Batcher;
use crate::request::{FinishReason, Outlet};
use crate::sample::Sampler;
use crate::speculate::{Drafter, Odds, Speculation};
use crate::tokenizer::Tokenizer;
use crate::worker::{Message, Shared};

mod apply;
mod guess;
mod reply;

/// How soon an engine without other work looks again at sequences that wait for a mask.
const PARKED_LOOK: Duration = Duration::from_millis(2);

/// The numbers of `EngineConfig` that steps depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepBounds {
    /// Blocks that may be used for what is kept of finished sequences.
    pub kept_blocks: usize,
    pub sequences_max: usize,
    pub prefill_tokens: usize,
    /// Most rows of logits; at least `sequences_max`.
    pub logits_rows: usize,
    pub speculation: Speculation,
    /// Longest step while replies run.
    pub target_ns: f64,
    /// Longer sequences are computed otherwise.
    pub stretch_from: Option<usize>,
}

/// Everything the engine's thread owns.
pub(crate) struct Scheduler {
    backend: Box<dyn Backend>,
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    receiver: Receiver<Message>,
    bounds: StepBounds,
    epoch: Instant,
    pool: Pool,
    running: Vec<Sequence>,
    waiting: Queue<Sequence>,
    fair: Fair,
    meter: Meter,
    /// Constrained sequences that wait for a slow mask: without blocks, outside batch and queue.
    parked: Vec<Sequence>,
    /// What is embedded between steps, on the same threads.
    embedding: Option<Box<Batcher>>,
    /// What is left in this step of the time to wait for masks.
    patience: Duration,
    sampler: Sampler,
    logits: LogitsBuf,
    /// The cheapest first.
    drafters: Vec<Box<dyn Drafter>>,
    /// Time that guessing took in this step.
    guessing: Duration,
    /// How steps went, for forecasts.
    habits: Habits,
    /// How often guesses were right, over all sequences.
    odds: Odds,
    /// Sequences that came so far; names the next one.
    sequences: u64,
    // Buffers that are filled again in every step.
    plan: Plan,
    views: Vec<View>,
    tenants: Vec<u64>,
    shares: Vec<Share>,
    candidates: Vec<Key>,
    step: StepPlan,
    work: Work,
    /// Whether this step shares parts of blocks by copying them.
    copies: bool,
    loads: Vec<Running>,
    unmodified: Vec<f32>,
    wake: Vec<Arc<dyn Outlet>>,
}

impl Scheduler {
    pub fn new(
        backend: Box<dyn Backend>,
        tokenizer: Arc<Tokenizer>,
        shared: Arc<Shared>,
        receiver: Receiver<Message>,
        bounds: StepBounds,
        drafters: Vec<Box<dyn Drafter>>,
    ) -> Self {
        let limits = backend.limits();
        shared.stats.kv_blocks_total.set(limits.blocks as u64);
        Self {
            pool: Pool::new(limits.blocks, bounds.kept_blocks),
            sampler: Sampler::new(limits.vocab),
            logits: LogitsBuf::new(&limits),
            drafters,
            guessing: Duration::ZERO,
            habits: Habits::default(),
            odds: Odds::default(),
            sequences: 0,
            backend,
            tokenizer,
            shared,
            receiver,
            bounds,
            epoch: Instant::now(),
            running: Vec::with_capacity(bounds.sequences_max),
            waiting: Queue::new(),
            fair: Fair::default(),
            meter: Meter::default(),
            parked: Vec::new(),
            embedding: None,
            patience: STEP_PATIENCE,
            plan: Plan::default(),
            views: Vec::new(),
            tenants: Vec::new(),
            shares: Vec::new(),
            candidates: Vec::new(),
            step: StepPlan::new(),
            work: Work::default(),
            copies: false,
            loads: Vec::new(),
            unmodified: Vec::new(),
            wake: Vec::new(),
        }
    }

    /// Runs until shutdown or failure. Whatever happens, every request hears its end.
    pub fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            self.backend.attach();
            self.drafters.iter_mut().for_each(|drafter| drafter.attach());
            self.steps()
        }));
        let reason = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(fault)) => Some(fault),
            Err(panic) => Some(panic_text(&*panic)),
        };
        if let Some(reason) = &reason {
            tracing::error!(%reason, "the engine failed and takes no more work");
            // Before the requests end, so that whoever asks again sees why.
            let _ = self.shared.fault.set(reason.clone());
        }
        let reason = reason.map_or(FinishReason::Cancelled, FinishReason::Error);
        self.end_everything(&reason);
    }

    fn steps(&mut self) -> Result<(), String> {
        loop {
            if !self.receive() {
                return Ok(());
            }
            let begun = Instant::now();
            self.interrupt(begun);
            self.guess();
            self.plan_step(begun);
            self.apply_plan(begun);
            if self.plan.slices.is_empty() {
                self.leave_batch(begun);
                self.publish_load();
                self.wake_outlets();
                self.embed(None);
                continue;
            }
            self.publish_step();
            let computing = Instant::now();
            self.backend.step(&self.step, &mut self.logits).map_err(|error| chain(&error))?;
            let computed = Instant::now();
            self.step.copies().iter().for_each(|(from, _)| self.pool.copied(*from));
            self.take_results(computed);
            self.publish_load();
            self.wake_outlets();
            let stats = &self.shared.stats;
            stats.steps.add(1);
            stats.rows.add(self.step.tokens().len() as u64);
            stats.step_us.add((computed - computing).as_micros() as u64);
            stats.overhead_us.add(((computing - begun) + computed.elapsed()).as_micros() as u64);
            let took = begun.elapsed();
            self.meter.note(&self.work, took.saturating_sub(self.guessing));
            self.embed(Some(took));
        }
    }

    /// Computes what is due of the texts to embed after a step that took so long, or a slice when there was no step.
    fn embed(&mut self, step: Option<Duration>) {
        let Some(embedding) = &mut self.embedding else { return };
        let mut solo = Solo;
        let crew = self.backend.crew().unwrap_or(&mut solo);
        match step {
            Some(step) => {
                let begun = Instant::now();
                embedding.after_step(crew, step, Duration::from_nanos(self.bounds.target_ns as u64));
                let other = if embedding.is_busy() { begun.elapsed() } else { Duration::ZERO };
                self.habits.note_background(step, other, embedding.is_busy());
            }
            None => embedding.when_idle(crew),
        }
    }

    /// Takes in what was submitted; sleeps while there is nothing to do. False when it is time to end.
    fn receive(&mut self) -> bool {
        if self.running.is_empty() && self.waiting.is_empty() {
            if self.shared.closing.load(Ordering::Acquire) && self.parked.is_empty() {
                return false;
            }
            if self.embedding.as_mut().is_some_and(|embedding| embedding.has_work()) {
                // It is looked for requests after each slice.
            } else if self.parked.is_empty() {
                match self.receiver.recv() {
                    Ok(message) => self.accept(message),
                    Err(_) => return false,
                }
            } else if let Ok(message) = self.receiver.recv_timeout(PARKED_LOOK) {
                self.accept(message);
            }
        }
        while let Ok(message) = self.receiver.try_recv() {
            self.accept(message);
        }
        self.unpark();
        true
    }

    fn accept(&mut self, message: Message) {
        match message {
            Message::Job(job) => {
                self.sequences += 1;
                let mut sequence = Sequence::new(*job, self.sequences, self.epoch);
                sequence.stretched = sequence.stretches(self.bounds.stretch_from);
                self.fair.join(sequence.tenant(), sequence.job.request.weight);
                self.enqueue(sequence, Instant::now());
            }
            Message::Embed(batcher) => self.embedding = Some(batcher),
            Message::Wake => {}
        }
    }

    fn enqueue(&mut self, sequence: Sequence, now: Instant) {
        self.waiting.insert(sequence, ns_since(self.epoch, now));
    }

    /// Sequences whose mask has come go back to the queue.
    fn unpark(&mut self) {
        let mut at = 0;
        while at < self.parked.len() {
            match self.parked[at].job.guide.as_mut().is_some_and(|guide| guide.is_away(&self.shared.stats)) {
                true => at += 1,
                false => {
                    let sequence = self.parked.swap_remove(at);
                    self.enqueue(sequence, Instant::now());
                }
            }
        }
    }

    /// Ends what was cancelled or is too late.
    fn interrupt(&mut self, now: Instant) {
        let closing = self.shared.closing.load(Ordering::Acquire);
        let mut at = 0;
        while at < self.running.len() {
            match self.running[at].interrupted(now, closing) {
                Some(reason) => self.end_running(at, reason, now),
                None => at += 1,
            }
        }
        let mut at = 0;
        while at < self.parked.len() {
            match self.parked[at].interrupted(now, closing) {
                Some(reason) => {
                    let mut sequence = self.parked.swap_remove(at);
                    self.finish(&mut sequence, reason, now);
                }
                None => at += 1,
            }
        }
        self.candidates.clear();
        let over = |s: &Sequence| s.interrupted(now, closing).is_some();
        self.candidates.extend(self.waiting.iter().filter(|(_, s)| over(s)).map(|(key, _)| key));
        let over = std::mem::take(&mut self.candidates);
        for key in &over {
            let Some(mut sequence) = self.waiting.remove(key) else { continue };
            let reason = sequence.interrupted(now, closing).unwrap_or(FinishReason::Cancelled);
            if !sequence.was_started() {
                self.shared.demand().dequeue(&sequence.newcomer());
            }
            self.finish(&mut sequence, reason, now);
        }
        // Its memory is used again by the plan.
        self.candidates = over;
    }

    /// Notes what was computed, samples where a row of logits came, and ends what is complete.
    fn take_results(&mut self, now: Instant) {
        let planned = self.running.len() - self.plan.admit.len();
        let (mut row, mut replies, mut rows, mut tokens) = (0, 0, 0, 0);
        self.patience = STEP_PATIENCE;
        for at in 0..self.plan.slices.len() {
            let slice = self.plan.slices[at];
            let place = self.place_of(slice.index, planned);
            let sequence = &mut self.running[place];
            sequence.computed += slice.count;
            self.fair.charge(sequence.tenant(), slice.count);
            let (salt, computed) = (sequence.salt(), sequence.computed);
            self.pool.publish(&mut sequence.table, salt, &sequence.tokens, computed);
            if slice.samples {
                let known = self.running[place].tokens.len();
                self.next_tokens(place, row, slice.drafts, now);
                row += slice.sampled();
                if slice.count == 1 {
                    (replies, rows) = (replies + 1, rows + slice.rows());
                    tokens += self.running[place].tokens.len() - known;
                }
            }
        }
        self.habits.note_replies(replies, rows, tokens);
        for place in 0..self.running.len() {
            let sequence = &self.running[place];
            if sequence.running && sequence.ended.is_none() && sequence.stretches(self.bounds.stretch_from) {
                self.retire(place);
                self.running[place].stretched = true;
            }
        }
        self.leave_batch(now);
    }

    /// Takes ended and preempted sequences out of the batch.
    fn leave_batch(&mut self, now: Instant) {
        let mut at = 0;
        while at < self.running.len() {
            if let Some(reason) = self.running[at].ended.take() {
                self.end_running(at, reason, now);
            } else if !self.running[at].running {
                let mut sequence = self.running.remove(at);
                match sequence.job.guide.as_mut().is_some_and(|guide| guide.is_away(&self.shared.stats)) {
                    true => self.parked.push(sequence),
                    false => self.enqueue(sequence, now),
                }
            } else {
                at += 1;
            }
        }
    }

    /// Takes a sequence's blocks, so that it leaves the batch and comes back through the queue. What it computed stays
    /// findable.
    fn retire(&mut self, place: usize) {
        let sequence = &mut self.running[place];
        let (salt, computed) = (sequence.salt(), sequence.computed);
        self.pool.retire(&mut sequence.table, salt, &sequence.tokens, computed);
        self.drafters.iter_mut().for_each(|drafter| drafter.forget(sequence.id));
        (sequence.computed, sequence.running) = (0, false);
    }

    fn end_running(&mut self, at: usize, reason: FinishReason, now: Instant) {
        let mut sequence = self.running.remove(at);
        let (salt, computed) = (sequence.salt(), sequence.computed);
        self.pool.retire(&mut sequence.table, salt, &sequence.tokens, computed);
        self.finish(&mut sequence, reason, now);
    }

    fn finish(&mut self, sequence: &mut Sequence, reason: FinishReason, now: Instant) {
        self.shared.stats.count_finish(&reason);
        self.drafters.iter_mut().for_each(|drafter| drafter.forget(sequence.id));
        note_outlet(&mut self.wake, &sequence.job);
        self.fair.leave(sequence.tenant());
        if matches!(reason, FinishReason::Stop | FinishReason::Length) {
            self.shared.demand().note_reply(sequence.generated());
        }
        let total = sequence.finish(reason, now);
        self.shared.stats.request.record(total);
    }

    fn wake_outlets(&mut self) {
        for outlet in self.wake.drain(..) {
            outlet.wake();
        }
    }

    fn publish_load(&self) {
        let stats = &self.shared.stats;
        stats.waiting.set((self.waiting.len() + self.receiver.len()) as u64);
        stats.running.set((self.running.len() + self.parked.len()) as u64);
        stats.kv_blocks_used.set(self.pool.used() as u64);
        stats.kv_blocks_touched.set(self.pool.touched() as u64);
        self.shared.demand().publish(self.meter.rates(), self.habits, 0.0, self.running.iter().map(Sequence::load));
    }

    /// Ends every request that is known. An outlet that panics must not keep the others from hearing.
    fn end_everything(&mut self, reason: &FinishReason) {
        let now = Instant::now();
        let waiting = std::mem::replace(&mut self.waiting, Queue::new()).into_items();
        let begun = std::mem::take(&mut self.running).into_iter().chain(std::mem::take(&mut self.parked));
        let live: Vec<Sequence> = begun.chain(waiting).collect();
        for mut sequence in live {
            let told = catch_unwind(AssertUnwindSafe(|| self.finish(&mut sequence, reason.clone(), now)));
            let dropped = catch_unwind(AssertUnwindSafe(|| drop(sequence)));
            if told.is_err() || dropped.is_err() {
                tracing::error!("an outlet panicked while its request was being ended");
            }
        }
        while let Ok(message) = self.receiver.try_recv() {
            if let Message::Job(job) = message {
                let mut sequence = Sequence::new(*job, 0, self.epoch);
                self.fair.join(sequence.tenant(), 1);
                let _ = catch_unwind(AssertUnwindSafe(|| self.finish(&mut sequence, reason.clone(), now)));
            }
        }
        let _ = catch_unwind(AssertUnwindSafe(|| self.wake_outlets()));
        let stats = &self.shared.stats;
        for number in [&stats.waiting, &stats.running, &stats.kv_blocks_used] {
            number.set(0);
        }
    }
}

/// Remembers whom to wake after the step, each outlet once.
fn note_outlet(wake: &mut Vec<Arc<dyn Outlet>>, job: &Job) {
    if !wake.iter().any(|other| Arc::ptr_eq(other, job.outlet())) {
        wake.push(Arc::clone(job.outlet()));
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the engine's thread panicked: {}", text.unwrap_or("without a message"))
}
