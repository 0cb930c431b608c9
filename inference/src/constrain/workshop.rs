//! The threads behind constraints: two that prepare jobs, some that compute masks, and short-lived ones that compile.
//!
//! A compilation cannot be interrupted, and what a schema costs cannot be known from its looks. So each runs on a
//! thread of its own with a generous stack, for which the preparing thread waits until a deadline. What is over it is
//! abandoned, and ends by the compiler's own limits; while too many are on their way new constraints are refused.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::check::check;
use super::compile::{Compiled, Compiler};
use super::guide::{Guide, MaskTask};
use super::{Constraint, ConstraintError};
use crate::batch::forecast::Newcomer;
use crate::batch::job::Job;
use crate::priority;
use crate::request::{FinishReason, Timings, Usage};
use crate::tokenizer::Tokenizer;
use crate::worker::{Message, Shared};

/// Threads that prepare jobs: one slow constraint does not hold up the next.
const PREPARERS: usize = 2;
/// Compilations at the same time, abandoned ones included.
const COMPILING_MAX: usize = 4;
/// How long a request waits for its constraint. Large schemas in use take 0.1 s.
const COMPILE_TIME_MAX: Duration = Duration::from_millis(1_500);
/// The compiler recurses over schemas and grammars of the depth that `check.rs` allows. Only pages that are used count.
const COMPILE_STACK_BYTES: usize = 32 << 20;
/// Mask threads: half as many as cores, at least two, so that one slow mask does not hold up all others. A mask takes a
/// small part of a step, so few serve a whole batch.
const MASK_THREADS: std::ops::RangeInclusive<usize> = 2..=8;

/// What all threads share.
struct Bench {
    tokenizer: Arc<Tokenizer>,
    compiler: OnceLock<Result<Compiler, ConstraintError>>,
    compiling: AtomicUsize,
    shared: Arc<Shared>,
    engine: Sender<Message>,
    masks: Sender<MaskTask>,
    nice: i32,
}

struct Running {
    jobs: Sender<Box<Job>>,
    preparers: Vec<JoinHandle<()>>,
}

/// The way of constrained requests into the engine. Its threads start with the first of them.
pub(crate) struct Workshop {
    tokenizer: Arc<Tokenizer>,
    shared: Arc<Shared>,
    engine: Sender<Message>,
    /// Most requests in the engine: bounds every queue here.
    requests_max: usize,
    nice: i32,
    running: Mutex<Option<Running>>,
}

impl Workshop {
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        shared: Arc<Shared>,
        engine: Sender<Message>,
        requests_max: usize,
        nice: i32,
    ) -> Self {
        Self { tokenizer, shared, engine, requests_max, nice, running: Mutex::default() }
    }

    /// Takes a job with a constraint; it reaches the engine once it is compiled, or ends. Gives the job back when the
    /// threads cannot be started.
    pub fn submit(&self, job: Box<Job>) -> Result<(), Box<Job>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.is_none() {
            *running = self.start().map_err(|error| tracing::error!(%error, "no thread for constraints")).ok();
        }
        match running.as_ref() {
            // Each job holds a place of the engine's queue, so there is room.
            Some(running) => running.jobs.try_send(job).map_err(|back| back.into_inner()),
            None => Err(job),
        }
    }

    /// Ends what waits to be compiled. Call it when the engine takes no more work.
    pub fn close(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Running { jobs, preparers }) = running {
            drop(jobs);
            let own = std::thread::current().id();
            for preparer in preparers.into_iter().filter(|preparer| preparer.thread().id() != own) {
                // Its panics were caught where they happened.
                let _ = preparer.join();
            }
        }
    }

    fn start(&self) -> std::io::Result<Running> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (masks, tasks) = bounded::<MaskTask>(self.requests_max);
        for index in 0..cores.div_ceil(2).clamp(*MASK_THREADS.start(), *MASK_THREADS.end()) {
            let (tasks, nice) = (tasks.clone(), self.nice);
            // They end when the last guide and the bench have let go of the queue.
            std::thread::Builder::new().name(format!("mask-{index}")).spawn(move || {
                priority::lower(nice);
                tasks.into_iter().for_each(MaskTask::run);
            })?;
        }
        let bench = Arc::new(Bench {
            tokenizer: Arc::clone(&self.tokenizer),
            compiler: OnceLock::new(),
            compiling: AtomicUsize::new(0),
            shared: Arc::clone(&self.shared),
            engine: self.engine.clone(),
            masks,
            nice: self.nice,
        });
        let (jobs, receiver) = bounded(self.requests_max);
        let mut preparers = Vec::with_capacity(PREPARERS);
        for index in 0..PREPARERS {
            let (bench, jobs): (_, Receiver<Box<Job>>) = (Arc::clone(&bench), receiver.clone());
            let thread = std::thread::Builder::new().name(format!("constrain-{index}"));
            preparers.push(thread.spawn(move || {
                priority::lower(bench.nice);
                jobs.into_iter().for_each(|job| bench.prepare(job));
            })?);
        }
        Ok(Running { jobs, preparers })
    }
}

impl Bench {
    fn prepare(self: &Arc<Self>, mut job: Box<Job>) {
        let Some(constraint) = job.request.constraint.take() else { return self.forward(job) };
        if self.shared.closing.load(Ordering::Acquire) || job.cancel.is_cancelled() {
            return self.end(job, FinishReason::Cancelled);
        }
        let begun = Instant::now();
        let compiled = self.compiled(constraint);
        let stats = &self.shared.stats;
        stats.constraints.add(1);
        stats.constraint_us.add(begun.elapsed().as_micros() as u64);
        match compiled {
            Ok(compiled) => {
                job.guide = Some(Guide::new(compiled, self.masks.clone()));
                self.forward(job);
            }
            Err(error) => self.end(job, FinishReason::Constraint(error)),
        }
    }

    fn forward(&self, job: Box<Job>) {
        // The job holds a place of the queue, so only an engine that has ended refuses it.
        if let Err(back) = self.engine.try_send(Message::Job(job))
            && let Message::Job(job) = back.into_inner()
        {
            self.end(job, FinishReason::Cancelled);
        }
    }

    fn end(&self, mut job: Box<Job>, reason: FinishReason) {
        self.shared.demand().dequeue(&Newcomer::of(&job.request));
        self.shared.stats.count_finish(&reason);
        let usage = Usage { prompt: job.request.prompt.len() as u32, ..Usage::default() };
        let timings = Timings { queue: job.submitted.elapsed(), ..Timings::default() };
        // An outlet that panics must not end the thread that serves the others.
        let told = catch_unwind(AssertUnwindSafe(|| {
            job.finish(reason, usage, timings);
            job.outlet().wake();
        }));
        if told.is_err() {
            tracing::error!("an outlet panicked while its request was being ended");
        }
    }

    fn compiled(self: &Arc<Self>, constraint: Constraint) -> Result<Compiled, ConstraintError> {
        check(&constraint)?;
        let compiler = self.compiler.get_or_init(|| Compiler::new(&self.tokenizer)).as_ref().map_err(Clone::clone)?;
        let key = format!("{constraint:?}");
        if let Some(compiled) = compiler.kept(&key) {
            return Ok(compiled);
        }
        let place = Place::take(self)?;
        let bench = Arc::clone(self);
        let (sender, receiver) = bounded(1);
        let thread = std::thread::Builder::new().name("compile".to_owned()).stack_size(COMPILE_STACK_BYTES);
        let spawned = thread.spawn(move || {
            let _place = place;
            priority::lower(bench.nice);
            let Some(Ok(compiler)) = bench.compiler.get() else { return };
            let compiled = catch_unwind(AssertUnwindSafe(|| compiler.compile(&key, constraint)));
            let panicked = |_| Err(ConstraintError::Invalid { why: "the compiler failed on it".to_owned() });
            // Nobody waits any more when the deadline has passed.
            let _ = sender.send(compiled.unwrap_or_else(panicked));
        });
        if spawned.is_err() {
            return Err(ConstraintError::Busy { compiling: self.compiling.load(Ordering::Acquire) });
        }
        receiver.recv_timeout(COMPILE_TIME_MAX).unwrap_or(Err(ConstraintError::Deadline { after: COMPILE_TIME_MAX }))
    }
}

/// One of [`COMPILING_MAX`] compilations.
struct Place(Arc<Bench>);

impl Place {
    fn take(bench: &Arc<Bench>) -> Result<Place, ConstraintError> {
        let more = |n: usize| (n < COMPILING_MAX).then_some(n + 1);
        match bench.compiling.fetch_update(Ordering::AcqRel, Ordering::Acquire, more) {
            Ok(_) => Ok(Place(Arc::clone(bench))),
            Err(compiling) => Err(ConstraintError::Busy { compiling }),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.compiling.fetch_sub(1, Ordering::AcqRel);
    }
}
