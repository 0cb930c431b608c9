//! How long a new request will wait for its first token, from what is queued, what runs and what steps cost.
//!
//! The forecast plays the engine's next steps forward in numbers: running replies take their rows, the prompts that
//! are before the new one take what the pace leaves, places in the batch become free as replies end. What it cannot
//! know is how long replies will be (it takes the recent mean) and who comes later with a nearer deadline. Guesses
//! make replies end sooner for as long as no more of them run than now; texts that are embedded between steps take
//! their share of the time ([`Habits`]).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use super::cost::{Rates, Work};
use crate::kv::BLOCK_TOKENS;
use crate::request::Request;

/// Steps that a forecast plays one by one at most; what is left then is extrapolated.
const STEPS_MAX: usize = 2_000;
/// Weight of the latest request in the means.
const LATEST: f64 = 0.05;
/// Time over which the rate of arrivals is reckoned, and for how many tenants.
const ARRIVALS_OVER: Duration = Duration::from_secs(10);
const TENANTS_MAX: usize = 256;

/// One running sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Running {
    /// Prompt tokens still to compute.
    pub prompt: usize,
    /// Tokens of context.
    pub context: usize,
    pub generated: usize,
    pub max_tokens: usize,
}

/// What waits in one lane of the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Lane {
    requests: usize,
    tokens: usize,
    weight: f64,
}

/// How steps went lately, beyond what they cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Habits {
    /// Rows that a running reply has in a step, those of guesses included, and tokens that it gets from it.
    pub rows: f64,
    pub tokens: f64,
    /// The part of the time that goes to texts to embed; 0 while there are none.
    pub background: f64,
}

impl Default for Habits {
    fn default() -> Self {
        Self { rows: 1.0, tokens: 1.0, background: 0.0 }
    }
}

/// Weight of the latest step in [`Habits`]: about the last twenty count.
const LATEST_STEP: f64 = 0.1;
/// The most that can be true of the share of other work; beyond it a forecast would only say "never".
const BACKGROUND_MAX: f64 = 0.9;

impl Habits {
    /// A step gave so many replies these rows and tokens.
    pub fn note_replies(&mut self, replies: usize, rows: usize, tokens: usize) {
        if replies > 0 {
            let mean = |mean: &mut f64, sum: usize| *mean += LATEST_STEP * (sum as f64 / replies as f64 - *mean);
            mean(&mut self.rows, rows);
            mean(&mut self.tokens, tokens);
        }
    }

    /// Behind a step that took `step`, `other` went to other work; `waits` when there is more of that.
    pub fn note_background(&mut self, step: Duration, other: Duration, waits: bool) {
        let share = other.as_secs_f64() / (step + other).as_secs_f64().max(1e-9);
        self.background = match waits || !other.is_zero() {
            true => (self.background + LATEST_STEP * (share - self.background)).min(BACKGROUND_MAX),
            false => 0.0,
        };
    }
}

/// Bounds of the engine that do not change.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub sequences_max: usize,
    pub prefill_tokens: usize,
    pub target_ns: f64,
    pub blocks: usize,
}

/// Demand and speed: callers add what they queue, the engine's thread publishes what it does.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    pub limits: Limits,
    /// Requests that wait.
    pub waiting: usize,
    lanes: HashMap<(bool, u64), Lane>,
    rates: Option<Rates>,
    running: Vec<Running>,
    habits: Habits,
    /// Mean length of recent replies.
    reply: Option<f64>,
    /// Prompt tokens per second that each tenant sends, and until when that was reckoned.
    arrivals: HashMap<u64, (f64, Duration)>,
    /// Predicted nanoseconds of the present step.
    step_ns: f64,
    /// Mean share of a prompt that was not found in the cache.
    fresh: Option<f64>,
}

/// What a forecast has to know of the new request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Newcomer {
    pub background: bool,
    pub tenant: u64,
    pub weight: u32,
    pub prompt: usize,
    pub max_tokens: usize,
}

impl Newcomer {
    /// Of a request whose prompt is still in it.
    pub fn of(request: &Request) -> Self {
        let Request { background, tenant, weight, ref prompt, max_tokens, .. } = *request;
        Self { background, tenant, weight, prompt: prompt.len(), max_tokens: max_tokens as usize }
    }
}

impl Demand {
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// A request was queued, so long after the engine's start.
    pub fn enqueue(&mut self, new: &Newcomer, now: Duration) {
        self.waiting += 1;
        if self.arrivals.len() >= TENANTS_MAX {
            self.arrivals.retain(|_, (_, since)| now.saturating_sub(*since) < ARRIVALS_OVER);
        }
        let rate = self.arrival_rate(new.tenant, now) + new.prompt as f64 / ARRIVALS_OVER.as_secs_f64();
        if self.arrivals.len() < TENANTS_MAX || self.arrivals.contains_key(&new.tenant) {
            self.arrivals.insert(new.tenant, (rate, now));
        }
        let lane = self.lanes.entry((new.background, new.tenant)).or_default();
        lane.requests += 1;
        lane.tokens += new.prompt;
        lane.weight = f64::from(new.weight.max(1));
    }

    /// It started, or ended before.
    pub fn dequeue(&mut self, new: &Newcomer) {
        self.waiting -= 1;
        let key = (new.background, new.tenant);
        let lane = self.lanes.get_mut(&key).expect("only what was queued leaves the queue");
        lane.requests -= 1;
        lane.tokens -= new.prompt;
        if lane.requests == 0 {
            self.lanes.remove(&key);
        }
    }

    /// Prompt tokens per second of a tenant, older ones counting less.
    fn arrival_rate(&self, tenant: u64, now: Duration) -> f64 {
        let Some((rate, since)) = self.arrivals.get(&tenant) else { return 0.0 };
        rate * (-(now.saturating_sub(*since).as_secs_f64() / ARRIVALS_OVER.as_secs_f64())).exp()
    }

    /// The engine's state after the present step, which is predicted to take so long; 0 between steps.
    pub fn publish(
        &mut self,
        rates: Option<Rates>,
        habits: Habits,
        step_ns: f64,
        running: impl Iterator<Item = Running>,
    ) {
        self.rates = rates;
        self.habits = habits;
        self.step_ns = step_ns;
        self.running.clear();
        self.running.extend(running);
    }

    /// A prompt began with so many of its tokens cached.
    pub fn note_start(&mut self, prompt: usize, cached: usize) {
        let fresh = (prompt - cached) as f64 / prompt.max(1) as f64;
        self.fresh = Some(self.fresh.map_or(fresh, |mean| mean + LATEST * (fresh - mean)));
    }

    /// A reply ended with so many tokens.
    pub fn note_reply(&mut self, tokens: usize) {
        let tokens = tokens as f64;
        self.reply = Some(self.reply.map_or(tokens, |mean| mean + LATEST * (tokens - mean)));
    }

    /// Time until the first token of this request if it were queued now; `None` before anything was measured.
    pub fn first_token(&self, new: &Newcomer, now: Duration) -> Option<Duration> {
        let rates = self.rates?;
        let queued = self.play(new, rates, self.ahead(new, now, Duration::ZERO));
        // While it waits, tenants that got less than their share send more.
        let wait = Duration::from_nanos(queued as u64);
        let ns = if self.arrivals.len() > 1 { self.play(new, rates, self.ahead(new, now, wait)) } else { queued };
        // Of the present step, half is left on average.
        Some(Duration::from_nanos((self.step_ns / 2.0 + ns) as u64))
    }

    /// Time between two tokens of this request once it runs, beside what runs and waits now; `None` before anything was
    /// measured.
    pub fn token_pause(&self, new: &Newcomer) -> Option<Duration> {
        let rates = self.rates?;
        let replies = (self.running.len() + 1).min(self.limits.sequences_max.max(1));
        let running: usize = self.running.iter().map(|running| running.context).sum();
        let context = (running + new.prompt) / (self.running.len() + 1);
        let guesses = if replies <= self.running.len() { self.habits } else { Habits::default() };
        let sampled = (replies as f64 * guesses.rows.max(1.0)).round() as usize;
        let step = rates.of(&Work { sampled, plain: 0, attended: sampled * context });
        // While prompts are computed beside replies, steps are as long as the pace allows.
        let prompts = self.waiting > 0 || self.running.iter().any(|running| running.prompt > 0);
        let step = if prompts { step.max(self.limits.target_ns) } else { step };
        Some(Duration::from_nanos((step / guesses.tokens.max(1.0) / (1.0 - self.habits.background)) as u64))
    }

    /// Tokens that a reply of at most `max_tokens` is expected to have.
    pub fn reply_tokens(&self, max_tokens: usize) -> f64 {
        self.reply.unwrap_or(max_tokens as f64).min(max_tokens as f64).max(1.0)
    }

    /// Nanoseconds until these requests with these prompt tokens and then the new one have their first token.
    fn play(&self, new: &Newcomer, rates: Rates, (requests, tokens): (usize, usize)) -> f64 {
        let fresh = self.fresh.unwrap_or(1.0);
        let reply = |max_tokens: usize| self.reply_tokens(max_tokens);
        let each = ((tokens as f64 + new.prompt as f64) / (requests + 1) as f64 * fresh).max(1.0);
        let whole = (tokens as f64 + new.prompt as f64) / (requests + 1) as f64;
        // A place in the batch is also room in the KV pool.
        let blocks = (whole + reply(new.max_tokens)) / BLOCK_TOKENS as f64 + 1.0;
        let used: usize = self.running.iter().map(|r| r.context.div_ceil(BLOCK_TOKENS)).sum();
        let room = (self.limits.blocks.saturating_sub(used) as f64 / blocks) as usize;
        let replies = self.running.iter().filter(|r| r.prompt == 0).count();
        let mut limits = self.limits;
        // The pace leaves room for what follows a step.
        limits.target_ns *= 1.0 - self.habits.background;
        let mut play = Play {
            rates,
            limits,
            habits: Habits { rows: self.habits.rows.max(1.0), tokens: self.habits.tokens.max(1.0), ..self.habits },
            guessing: replies,
            ends: BinaryHeap::new(),
            progress: 0,
            ns: 0.0,
            prompts: self.running.iter().map(|r| r.prompt as f64).sum(),
            unfinished: self.running.iter().filter(|r| r.prompt > 0).count() as f64,
            waiting: requests + 1,
            places: self.limits.sequences_max.min(self.running.len() + room).max(1),
            each,
            context: whole + reply(new.max_tokens) / 2.0,
            reply: reply(new.max_tokens) as usize,
        };
        for running in self.running.iter().filter(|r| r.prompt == 0) {
            let left = (reply(running.max_tokens) as usize).saturating_sub(running.generated).max(1);
            play.ends.push(Reverse(PARTS * left.min(running.max_tokens.saturating_sub(running.generated).max(1))));
        }
        play.run() / (1.0 - self.habits.background)
    }

    /// Requests and prompt tokens that will be served before the new one: its own lane, from every other lane what
    /// fair shares give it meanwhile, and all of the interactive class when the new one is background. What comes
    /// within `wait` is reckoned from the rate at which each tenant sends.
    fn ahead(&self, new: &Newcomer, now: Duration, wait: Duration) -> (usize, usize) {
        let own = self.lanes.get(&(new.background, new.tenant)).copied().unwrap_or_default();
        let virtual_time = (own.tokens + new.prompt) as f64 / f64::from(new.weight.max(1));
        let (mut requests, mut tokens) = (own.requests, own.tokens);
        for ((background, tenant), lane) in &self.lanes {
            if *tenant == new.tenant && *background == new.background {
                continue;
            }
            let coming = self.arrival_rate(*tenant, now) * wait.as_secs_f64();
            let due = match (new.background, background) {
                (true, false) => lane.tokens as f64 + coming,
                (false, true) => 0.0,
                _ => (virtual_time * lane.weight).min(lane.tokens as f64 + coming),
            };
            tokens += due as usize;
            requests += (lane.requests as f64 * due / lane.tokens.max(1) as f64).ceil() as usize;
        }
        if !wait.is_zero() {
            // Tenants with nothing queued at this moment.
            let silent = self.arrivals.keys().filter(|t| **t != new.tenant && !self.lanes.contains_key(&(false, **t)));
            for tenant in silent {
                let due = virtual_time.min(self.arrival_rate(*tenant, now) * wait.as_secs_f64());
                tokens += due as usize;
                requests += (due / (new.prompt.max(1) as f64)).ceil() as usize;
            }
        }
        (requests, tokens)
    }
}

/// Progress of replies is counted in parts of a token: with guesses, a step does not bring whole ones on average.
const PARTS: usize = 256;

/// The engine in numbers.
struct Play {
    rates: Rates,
    limits: Limits,
    habits: Habits,
    /// Guesses are computed beside so many replies at most: more were not seen.
    guessing: usize,
    /// Progress at which running replies end.
    ends: BinaryHeap<Reverse<usize>>,
    progress: usize,
    ns: f64,
    /// Tokens of begun prompts, and how many prompts that is.
    prompts: f64,
    unfinished: f64,
    waiting: usize,
    places: usize,
    /// Tokens to compute of one waiting prompt.
    each: f64,
    /// Mean context of a running reply.
    context: f64,
    /// Length of a reply.
    reply: usize,
}

impl Play {
    /// Nanoseconds until nothing of the prompts is left.
    fn run(mut self) -> f64 {
        let prompts = self.prompts + self.waiting as f64 * self.each;
        for _ in 0..STEPS_MAX {
            if self.waiting == 0 && self.prompts <= 0.0 {
                return self.ns;
            }
            self.one_step();
        }
        let left = self.prompts + self.waiting as f64 * self.each;
        self.ns * prompts / (prompts - left).max(1.0)
    }

    fn one_step(&mut self) {
        while self.ends.peek().is_some_and(|Reverse(end)| *end <= self.progress) {
            self.ends.pop();
        }
        let replies = self.ends.len();
        let Habits { rows, tokens, .. } = if replies <= self.guessing { self.habits } else { Habits::default() };
        let stride = (tokens * PARTS as f64) as usize;
        let free = self.places.saturating_sub(replies + self.unfinished.ceil() as usize).min(self.waiting);
        let sampled = replies as f64 * rows;
        let decode = Work { sampled: sampled.round() as usize, plain: 0, attended: (sampled * self.context) as usize };
        // While every place is taken by a reply, nothing changes until the next one ends.
        if let (0, true, Some(Reverse(end))) = (free, self.prompts <= 0.0, self.ends.peek()) {
            let steps = (end - self.progress).div_ceil(stride);
            self.ns += steps as f64 * self.rates.of(&decode);
            self.progress += steps * stride;
            return;
        }
        // Only as many as the step can begin are admitted; whether more are makes no difference to the time.
        self.waiting -= free;
        self.unfinished += free as f64;
        self.prompts += free as f64 * self.each;
        let rows = (self.prompts.ceil() as usize).min(self.limits.prefill_tokens);
        let rows = if replies == 0 {
            rows
        } else {
            let left = self.limits.target_ns - self.rates.of(&decode);
            self.rates.prompt_rows(0, rows, left).max(BLOCK_TOKENS.min(rows))
        };
        self.progress += stride;
        self.ns += self.rates.of(&decode) + self.rates.prompt(0, rows.min(self.each as usize * 2));
        self.ns += self.rates.plain * rows.saturating_sub(self.each as usize * 2) as f64;
        // Prompts are computed one after the other; each that is complete becomes a reply.
        let before = self.unfinished;
        self.prompts = (self.prompts - rows as f64).max(0.0);
        let left = if self.prompts > 0.0 { (self.prompts / self.each).ceil().min(before) } else { 0.0 };
        let complete = (before - left) as usize;
        self.ns += complete as f64 * (self.rates.sampled - self.rates.plain).max(0.0);
        for _ in 0..complete {
            self.ends.push(Reverse(self.progress + PARTS * self.reply));
        }
        self.unfinished = left;
    }
}

#[cfg(test)]
mod tests;
