//! Guesses of a second, smaller model with the same vocabulary, which reads along.
//!
//! It has a backend with its own KV memory. A call first feeds what is new of each text (one or two tokens after the
//! call before; a prompt in pieces, over several calls), then the likeliest token of each, round by round. All wishes of
//! a call share its steps.
//!
//! Its guesses are its most probable tokens whatever the request's temperature is: a sampled token is the most
//! probable one more often than it is any other.

use std::collections::HashMap;

use super::{Draft, Drafter, Ground, Wish};
use crate::backend::{Backend, LogitsBuf, LogitsWanted, StepPlan};
use crate::batch::cost::{Meter, Work};
use crate::kv::{BlockAllocator, BlockId, blocks_for};
use crate::sample::best;

/// The drafter over a backend.
pub struct DraftModel {
    backend: Box<dyn Backend>,
    logits: LogitsBuf,
    plan: StepPlan,
    allocator: BlockAllocator,
    readers: HashMap<u64, Reader>,
    meter: Meter,
    calls: u64,
    /// Tokens that targets know; the model's logits may be padded beyond them.
    vocabulary: usize,
    /// Places in `wishes` of those that guess on, in the order of their rows.
    going: Vec<usize>,
    /// Set when the backend failed: nothing is guessed any more.
    broken: bool,
}

/// What the model has read of one text.
#[derive(Debug, Default)]
struct Reader {
    /// Tokens of the text whose keys and values are there.
    read: usize,
    /// Guesses behind them whose keys and values are there too.
    guessed: Vec<u32>,
    blocks: Vec<BlockId>,
    /// The last call that asked for it.
    asked: u64,
}

impl Reader {
    /// Keeps what turned out right of the guesses: the text has grown.
    fn settle(&mut self, text: &[u32]) {
        // The last token is fed in any case: its row tells what follows.
        self.read = self.read.min(text.len() - 1);
        let new = &text[self.read..text.len() - 1];
        self.read += new.iter().zip(&self.guessed).take_while(|(a, b)| a == b).count();
        self.guessed.clear();
    }
}

impl DraftModel {
    /// A drafter on this backend for targets with so many tokens. The backend's thread is the one that drafts.
    pub fn new(backend: Box<dyn Backend>, vocabulary: usize) -> Self {
        let limits = backend.limits();
        Self {
            logits: LogitsBuf::new(&limits),
            plan: StepPlan::new(),
            allocator: BlockAllocator::new(limits.blocks),
            readers: HashMap::new(),
            meter: Meter::default(),
            calls: 0,
            vocabulary: vocabulary.min(limits.vocab),
            going: Vec::new(),
            broken: false,
            backend,
        }
    }

    /// Feeds every text up to its last token, within one step; those that are complete go on.
    fn read(&mut self, wishes: &[Wish<'_>]) -> Work {
        let limits = self.backend.limits();
        let (mut left, mut work) = (limits.step_tokens_max, Work::default());
        for (at, wish) in wishes.iter().enumerate() {
            let text = wish.history;
            // The last guess is not fed, so this is as far as positions go.
            if wish.most == 0 || text.is_empty() || text.len() + wish.most - 1 > limits.context_max {
                continue;
            }
            let reader = self.readers.entry(wish.sequence).or_default();
            reader.asked = self.calls;
            reader.settle(text);
            let count = (text.len() - reader.read).min(left);
            let complete = reader.read + count == text.len();
            let complete_fits = !complete || self.plan.logits_rows() < limits.step_logits_max;
            let end = reader.read + count + if complete { wish.most - 1 } else { 0 };
            if count == 0 || !complete_fits || !self.make_room(wish.sequence, end) {
                continue;
            }
            let reader = self.readers.get_mut(&wish.sequence).expect("it was just used");
            let tokens = &text[reader.read..reader.read + count];
            let wanted = if complete { LogitsWanted::Last } else { LogitsWanted::None };
            self.plan.push(tokens, reader.read, &reader.blocks, wanted);
            work.add(reader.read, count, usize::from(complete));
            left -= count;
            reader.read += count;
            if complete {
                self.going.push(at);
            }
        }
        work
    }

    /// Feeds the last guess of those that go on.
    fn read_guesses(&mut self, wishes: &[Wish<'_>]) -> Work {
        let mut work = Work::default();
        self.going.retain(|at| wishes[*at].draft.tokens.len() < wishes[*at].most);
        for at in &self.going {
            let wish = &wishes[*at];
            let reader = self.readers.get_mut(&wish.sequence).expect("who goes on is read");
            let last = wish.draft.tokens.last().expect("every round guesses a token");
            let start = reader.read + reader.guessed.len();
            self.plan.push(&[*last], start, &reader.blocks, LogitsWanted::Last);
            work.add(start, 1, 1);
            reader.guessed.push(*last);
        }
        work
    }

    /// Gives a reader blocks for so many tokens, if need be those of who was not asked for longest.
    fn make_room(&mut self, sequence: u64, tokens: usize) -> bool {
        loop {
            let reader = self.readers.get_mut(&sequence).expect("it was just used");
            while reader.blocks.len() < blocks_for(tokens) {
                let Some(block) = self.allocator.alloc() else { break };
                reader.blocks.push(block);
            }
            if reader.blocks.len() >= blocks_for(tokens) {
                return true;
            }
            let others = self.readers.iter().filter(|(_, reader)| reader.asked < self.calls);
            let Some((&idle, _)) = others.min_by_key(|(id, reader)| (reader.asked, **id)) else { return false };
            self.forget(idle);
        }
    }

    /// One step; false when there is nothing to compute or the backend failed.
    fn step(&mut self, work: &Work) -> bool {
        if self.plan.tokens().is_empty() {
            return false;
        }
        let begun = std::time::Instant::now();
        if let Err(error) = self.backend.step(&self.plan, &mut self.logits) {
            tracing::error!(%error, "the draft model failed; the engine goes on without it");
            self.broken = true;
            return false;
        }
        self.meter.note(work, begun.elapsed());
        true
    }

    fn guess_from_rows(&mut self, wishes: &mut [Wish<'_>]) {
        let Self { going, logits, vocabulary, .. } = self;
        let mut row = 0;
        going.retain(|at| {
            let token = best(&logits.row(row)[..*vocabulary]);
            row += 1;
            wishes[*at].draft.tokens.extend(token);
            token.is_some()
        });
    }
}

impl Drafter for DraftModel {
    fn attach(&mut self) {
        self.backend.attach();
    }

    fn draft(&mut self, wishes: &mut [Wish<'_>]) {
        self.calls += 1;
        self.going.clear();
        self.plan.clear();
        if self.broken {
            return;
        }
        let mut work = self.read(wishes);
        for at in &self.going {
            // Of the others, what is there stays.
            let Draft { tokens, ground } = &mut *wishes[*at].draft;
            tokens.clear();
            *ground = Ground::Model;
        }
        while self.step(&work) {
            self.guess_from_rows(wishes);
            self.plan.clear();
            work = self.read_guesses(wishes);
        }
    }

    fn forget(&mut self, sequence: u64) {
        let Some(reader) = self.readers.remove(&sequence) else { return };
        for block in reader.blocks {
            self.allocator.release(block);
        }
    }

    fn price(&self, wishes: usize) -> Option<f64> {
        let one = Work { sampled: wishes, ..Work::default() };
        Some(self.meter.rates().map_or(0.0, |rates| rates.of(&one)))
    }
}
