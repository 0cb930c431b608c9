//! One request in the engine: its tokens, its KV blocks and its reply so far.

use std::time::{Duration, Instant};

use super::forecast::{Newcomer, Running};
use super::job::Job;
use super::plan::View;
use super::pool::{Salt, Table};
use super::queue::Queued;
use super::text::TextGate;
use crate::kv::BLOCK_TOKENS;
use crate::request::{FinishReason, Output, Timings, TokenOut, Usage};
use crate::speculate::{Chances, Draft, Odds};

/// A request without a deadline is treated as if it had this one: those in a hurry go first, but not for ever.
const PATIENCE: Duration = Duration::from_secs(10);
/// Added per prompt token. Short prompts therefore go first, and a long one is overtaken only for about as long as its
/// own computation takes.
const PATIENCE_PER_PROMPT_TOKEN: Duration = Duration::from_millis(1);
/// A background request that has waited for so long is interactive from then on.
const BACKGROUND_AGE: Duration = Duration::from_secs(30);

/// A request in the queue or in the batch.
pub(crate) struct Sequence {
    pub job: Job,
    /// Names it to the drafter.
    pub id: u64,
    /// Smaller goes first: nanoseconds since the engine started.
    pub order: u64,
    /// Gives way to interactive requests until this time, in the unit of `order`.
    background_until: u64,
    /// Prompt and reply.
    pub tokens: Vec<u32>,
    pub prompt: usize,
    /// Tokens whose keys and values are in `table`.
    pub computed: usize,
    pub table: Table,
    /// Whether it is longer than `BackendLimits::stretch_from`.
    pub stretched: bool,
    pub running: bool,
    pub gate: TextGate,
    /// Set when the last token ended the request.
    pub ended: Option<FinishReason>,
    /// Tokens that may follow `tokens`, and how often such guesses were right.
    pub draft: Draft,
    pub odds: Odds,
    cached: u32,
    started: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
}

impl Sequence {
    pub fn new(mut job: Job, id: u64, epoch: Instant) -> Self {
        let request = &mut job.request;
        let prompt = request.prompt.len();
        let mut tokens = std::mem::take(&mut request.prompt);
        // Reserved now, so that generating does not allocate.
        tokens.reserve_exact(request.max_tokens as usize);
        let patience = PATIENCE + PATIENCE_PER_PROMPT_TOKEN * u32::try_from(prompt).unwrap_or(u32::MAX);
        let fair = job.submitted + patience;
        let order = request.deadline.map_or(fair, |deadline| deadline.min(fair));
        let gate = TextGate::new(std::mem::take(&mut request.stop));
        let background_until = if request.background { ns_since(epoch, job.submitted + BACKGROUND_AGE) } else { 0 };
        Self {
            order: ns_since(epoch, order),
            background_until,
            tokens,
            prompt,
            computed: 0,
            table: Table::default(),
            stretched: false,
            running: false,
            gate,
            ended: None,
            draft: Draft::with_room(),
            odds: Odds::default(),
            cached: 0,
            started: None,
            first_token: None,
            last_token: None,
            id,
            job,
        }
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Most tokens that it is worth guessing: the last token of a reply is never fed back.
    pub fn guessable(&self, stretch_from: Option<usize>) -> usize {
        if self.tokens.len() - self.computed != 1 {
            return 0;
        }
        let left = (self.job.request.max_tokens as usize - self.generated()).saturating_sub(1);
        // Guesses are turned like the text before them, so none reaches beyond the length at which that changes.
        let alike = stretch_from.filter(|_| !self.stretched).map(|from| from.saturating_sub(self.tokens.len()));
        alike.map_or(left, |alike| left.min(alike))
    }

    /// Sequences share cached blocks only under an equal salt.
    pub fn salt(&self) -> Salt {
        Salt { caller: self.job.request.cache_salt, stretched: self.stretched }
    }

    /// Takes the length into account that it has come to: true when all of it has to be computed again, turned otherwise.
    /// What it has of blocks must have been given back.
    pub fn stretches(&self, from: Option<usize>) -> bool {
        !self.stretched && from.is_some_and(|from| self.tokens.len() > from)
    }

    /// Tokens that may come from the cache: at least one has to be computed, or there would be no logits.
    pub fn cacheable(&self) -> usize {
        self.tokens.len() - 1
    }

    /// Whether this one, whose first `blocks` blocks are cached, should let `leader` compute the next one for both.
    pub fn awaits(&self, blocks: usize, leader: &Sequence) -> bool {
        let shared = (blocks + 1) * BLOCK_TOKENS;
        let both = self.cacheable().min(leader.tokens.len()) >= shared && self.salt() == leader.salt();
        // Nobody in a hurry waits for somebody who gives way to others.
        both && leader.background_until <= self.background_until && self.tokens[..shared] == leader.tokens[..shared]
    }

    /// Whether it ever left the queue.
    pub fn was_started(&self) -> bool {
        self.started.is_some()
    }

    /// What the planner may know; time, index of the tenant and block numbers come from the caller.
    pub fn view(&self, now: u64, tenant: usize, computed: usize, blocks: usize, returns: usize) -> View {
        let (order, known, running, waits) = (self.order, self.tokens.len(), self.running, false);
        View {
            background: self.background_until > now,
            tenant,
            order,
            known,
            computed,
            blocks,
            returns,
            running,
            waits,
            chances: Chances::default(),
        }
    }

    /// What a forecast may know of it while it runs.
    pub fn load(&self) -> Running {
        let prompt = if self.first_token.is_some() { 0 } else { self.tokens.len() - self.computed };
        let max_tokens = self.job.request.max_tokens as usize;
        Running { prompt, context: self.tokens.len(), generated: self.generated(), max_tokens }
    }

    /// How it was entered into the demand.
    pub fn newcomer(&self) -> Newcomer {
        Newcomer { prompt: self.prompt, ..Newcomer::of(&self.job.request) }
    }

    /// Predicted and actual time to the first token, when there are both.
    pub fn forecast(&self) -> Option<(Duration, Duration)> {
        let actual = self.first_token?.saturating_duration_since(self.job.submitted);
        self.job.forecast.map(|predicted| (predicted, actual))
    }

    /// Whether the request must end now for a reason from outside.
    pub fn interrupted(&self, now: Instant, closing: bool) -> Option<FinishReason> {
        if closing || self.job.cancel.is_cancelled() {
            return Some(FinishReason::Cancelled);
        }
        self.job.request.deadline.filter(|deadline| *deadline <= now).map(|_| FinishReason::Deadline)
    }

    /// Notes the first start; returns the time in the queue, or `None` when it was running before.
    pub fn start(&mut self, now: Instant, cached: usize) -> Option<Duration> {
        self.running = true;
        if self.started.is_some() {
            return None;
        }
        self.started = Some(now);
        self.cached = cached as u32;
        self.job.push(Output::Started { cached_tokens: self.cached });
        Some(now.saturating_duration_since(self.job.submitted))
    }

    /// Notes a generated token; returns whether it is the first, and the time since submission for the first one, else
    /// since the last one: nothing where both came with the same step.
    pub fn note_token(&mut self, id: u32, now: Instant) -> (bool, Duration) {
        self.tokens.push(id);
        let first = self.first_token.is_none();
        let since = if first { self.job.submitted } else { self.last_token.unwrap_or(now) };
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
        (first, now.saturating_duration_since(since))
    }

    /// Sends what may be shown; returns whether there was anything.
    pub fn flush(&mut self) -> bool {
        let mut text = String::new();
        let mut tokens: Vec<TokenOut> = Vec::new();
        self.gate.release(&mut text, &mut tokens);
        if text.is_empty() && tokens.is_empty() {
            return false;
        }
        self.job.push(Output::Delta { text, tokens });
        true
    }

    /// Sends the rest of the text and `Done`; returns the time since submission.
    pub fn finish(&mut self, reason: FinishReason, now: Instant) -> Duration {
        self.gate.finish();
        self.flush();
        let generated = self.generated() as u32;
        let usage = Usage { prompt: self.prompt as u32, completion: generated, cached: self.cached };
        let submitted = self.job.submitted;
        let started = self.started.unwrap_or(now);
        let first = self.first_token.unwrap_or(now);
        let timings = Timings {
            queue: started.saturating_duration_since(submitted),
            prefill: first.saturating_duration_since(started),
            decode: now.saturating_duration_since(first),
        };
        self.job.finish(reason, usage, timings);
        now.saturating_duration_since(submitted)
    }
}

impl Queued for Sequence {
    fn tenant(&self) -> u64 {
        self.job.request.tenant
    }

    fn order(&self) -> u64 {
        self.order
    }

    fn background_until(&self) -> u64 {
        self.background_until
    }

    fn tokens(&self) -> usize {
        self.tokens.len()
    }
}

/// Nanoseconds from `epoch` to `at`; the clock of orders.
pub(crate) fn ns_since(epoch: Instant, at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX)
}
