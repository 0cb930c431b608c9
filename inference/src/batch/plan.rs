//! Chooses what the next step computes: a pure function from numbers to numbers.
//!
//! Rules, in this order:
//! 1. Every running sequence that needs one more token gets it. When KV blocks run out, the sequence that is last in
//!    rank gives its blocks up and is computed again later. (Spilling them to memory instead would save that work, but
//!    costs a copy of everything in each direction; prompts are computed at a good part of the speed of such a copy.)
//! 2. A budget of prompt rows goes, chunk by chunk, to interactive before background sequences, there to the tenant
//!    that was served least for its weight, and within a tenant to the earliest deadline.
//! 3. A waiting sequence enters only when its whole prompt fits beside what the running ones still need; the first
//!    that does not fit keeps its place and nobody who waits overtakes it. Who waits for another one's prefix does not
//!    count.
//! 4. Guessed tokens of replies get rows last, the likeliest first, as long as a row brings more tokens for its time
//!    than the step as a whole, and while time, blocks and rows of logits are left. Where rows cost little beside what
//!    the step costs anyway (few replies, no prompts) that goes far; in a full batch it ends at once.
//!
//! While replies are running the budget is the time that is left of the target for a step, by measured costs; the
//! first chunk has a block at least, so that prompts get on however slow the machine is. Without running replies only
//! the bound on rows holds.
//!
//! Nothing starves: the first in rank is never preempted, ranks come from deadlines that later arrivals cannot undercut
//! for ever, virtual times of others pass any fixed one, and background sequences become interactive with age.

use super::cost::{Rates, Work};
use crate::kv::{BLOCK_TOKENS, blocks_for};
use crate::speculate::{Chances, DRAFT_MAX, Speculation};

/// What a guessed row must bring, in tokens for its time, relative to the step without it: costs are estimates.
const DRAFT_GAIN_MIN: f64 = 1.1;
/// How much longer they may make a step that is over its target already: on a slow machine they gain most.
const DRAFT_STRETCH_MAX: f64 = 1.5;

/// What the planner knows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct View {
    /// Gives way to all that are not background.
    pub background: bool,
    /// Index of its tenant in the shares.
    pub tenant: usize,
    /// Within tenant and class, smaller goes first.
    pub order: u64,
    /// Tokens of prompt and reply so far.
    pub known: usize,
    /// Tokens whose keys and values exist; less than `known`. For a waiting sequence: found in the prefix cache.
    pub computed: usize,
    /// Blocks that it has without taking one from the pool.
    pub blocks: usize,
    /// Blocks that return to the pool if it gives everything up.
    pub returns: usize,
    /// Whether it has a place in the batch.
    pub running: bool,
    /// Stays in the queue for this step, because another one is computing what it could share.
    pub waits: bool,
    /// The guessed tokens that could be computed behind the known ones.
    pub chances: Chances,
}

impl View {
    /// Whether it is a running reply that needs one more token.
    fn decodes(&self) -> bool {
        self.running && self.known - self.computed == 1
    }
}

/// What a tenant got so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// Served tokens over weight; the smallest goes first.
    pub time: f64,
    /// How much of the machine it gets beside others.
    pub weight: f64,
}

/// How long a step may take while replies are running.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Measured costs.
    pub rates: Rates,
    /// Target for the time between two tokens of a reply, in nanoseconds.
    pub target_ns: f64,
}

/// Bounds of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// Blocks that can be taken now.
    pub free_blocks: usize,
    /// Most running sequences.
    pub sequences_max: usize,
    /// Most prompt tokens in one step.
    pub prefill_tokens: usize,
    /// Most rows of logits in one step; at least one for each running sequence.
    pub logits_rows: usize,
    /// When guessed tokens are computed.
    pub speculation: Speculation,
    /// Bound on time; `None` before costs are known.
    pub pace: Option<Pace>,
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Index of the sequence in the views.
    pub index: usize,
    /// How many tokens after `computed`.
    pub count: usize,
    /// Whether these are its last known tokens, so that the next one can be sampled.
    pub samples: bool,
    /// How many guessed tokens follow them.
    pub drafts: usize,
}

impl Slice {
    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.count + self.drafts
    }

    /// Rows of logits: the last known token and each guessed one.
    pub fn sampled(&self) -> usize {
        if self.samples { 1 + self.drafts } else { 0 }
    }
}

/// How many tokens to guess for a reply whose guesses are this likely right, by a drafter that takes `price` nanoseconds
/// for one token of each of so many replies; `work` is the step without guesses.
pub fn worth_guessing(rates: &Rates, work: &Work, replies: usize, odds: f64, price: f64) -> usize {
    let (mut time, mut tokens, mut chance) = (rates.of(work), work.sampled as f64, 1.0);
    let round = rates.sampled * replies as f64 + price;
    for count in 0..DRAFT_MAX {
        chance *= odds;
        let gain = chance * replies as f64;
        if gain * time <= DRAFT_GAIN_MIN * round * tokens {
            return count;
        }
        tokens += gain;
        time += round;
    }
    DRAFT_MAX
}

/// What to do. Kept and reused, so that planning does not allocate.
#[derive(Debug, Default)]
pub struct Plan {
    /// Sequences that give up their blocks; to be applied first.
    pub preempt: Vec<usize>,
    /// Sequences that get a place in the batch.
    pub admit: Vec<usize>,
    /// The step.
    pub slices: Vec<Slice>,
    /// Indices by rank: the last one loses its blocks first.
    rank: Vec<usize>,
    state: Vec<State>,
    /// Virtual times as they will be after the step.
    times: Vec<f64>,
    /// Blocks that running sequences will still want.
    promised: usize,
    free: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// May get a part of this step.
    Open,
    /// Has its part.
    Planned,
    /// Loses its blocks.
    Preempted,
    /// Gets nothing in this step.
    Passed,
}

impl Plan {
    /// Plans the next step over these sequences, whose tenants have these shares.
    pub fn fill(&mut self, views: &[View], shares: &[Share], bounds: &Bounds) {
        self.preempt.clear();
        self.admit.clear();
        self.slices.clear();
        self.state.clear();
        self.state.resize(views.len(), State::Open);
        self.rank.clear();
        self.rank.extend(0..views.len());
        self.rank.sort_unstable_by_key(|i| (views[*i].background, views[*i].order, *i));
        self.times.clear();
        self.times.extend(shares.iter().map(|share| share.time));
        self.free = bounds.free_blocks;
        // What the known tokens of running sequences need, and the block that each will want next.
        let wants = |v: &View| blocks_for(v.known + 1).saturating_sub(v.blocks) + 1;
        self.promised = views.iter().filter(|v| v.running).map(wants).sum();
        self.plan_replies(views, shares);
        self.plan_prompts(views, shares, bounds);
        self.plan_drafts(views, bounds);
    }

    /// One more token for every running reply.
    fn plan_replies(&mut self, views: &[View], shares: &[Share]) {
        for place in 0..self.rank.len() {
            let i = self.rank[place];
            let view = &views[i];
            if view.decodes() && self.state[i] == State::Open {
                if self.make_room(views, place, missing(view, 1)) {
                    self.take(views, shares, i, 1);
                } else {
                    self.give_up(views, i);
                }
            }
        }
    }

    fn plan_prompts(&mut self, views: &[View], shares: &[Share], bounds: &Bounds) {
        let mut budget = Budget::new(bounds, views, &self.slices);
        let mut running = views.iter().filter(|v| v.running).count();
        // Whoever just lost its blocks must not take them back in the same step.
        let mut enter = self.preempt.is_empty();
        while let Some(i) = self.next(views, enter) {
            let view = &views[i];
            let most = budget.rows(view);
            if most == 0 {
                return;
            }
            if view.running {
                let place = self.rank.iter().position(|other| *other == i).expect("every view has a rank");
                let fits = self.make_room(views, place, missing(view, most));
                let count = if fits { most } else { most.min(room(view, self.free)) };
                enter &= self.preempt.is_empty();
                if count == 0 {
                    self.state[i] = State::Passed;
                    continue;
                }
                budget.spend(view, count);
                self.take(views, shares, i, count);
                continue;
            }
            let whole = blocks_for(view.known + 1).saturating_sub(view.blocks);
            let left = if running == 0 { self.free } else { self.free.saturating_sub(self.promised) };
            if running >= bounds.sequences_max || whole > left {
                enter = false;
                continue;
            }
            running += 1;
            self.promised += whole + 1;
            self.admit.push(i);
            budget.spend(view, most);
            self.take(views, shares, i, most);
        }
    }

    /// The sequence with a prompt to compute whose turn it is.
    fn next(&self, views: &[View], enter: bool) -> Option<usize> {
        let may_run = |v: &View| v.running || enter && !v.waits;
        let open = |i: &usize| self.state[*i] == State::Open && may_run(&views[*i]);
        (0..views.len()).filter(open).min_by(|a, b| {
            let (x, y) = (&views[*a], &views[*b]);
            let time = |v: &View| self.times[v.tenant];
            (x.background.cmp(&y.background))
                .then_with(|| time(x).total_cmp(&time(y)))
                .then_with(|| (x.order, a).cmp(&(y.order, b)))
        })
    }

    /// Frees blocks, from the end of the ranks, until `need` are there. Only sequences behind `place` that have no
    /// part in this step give theirs up.
    fn make_room(&mut self, views: &[View], place: usize, need: usize) -> bool {
        let mut last = self.rank.len();
        while self.free < need {
            let victim = (place + 1..last).rev().find(|place| {
                let i = self.rank[*place];
                views[i].running && matches!(self.state[i], State::Open | State::Passed)
            });
            let Some(place) = victim else { return false };
            self.give_up(views, self.rank[place]);
            last = place;
        }
        true
    }

    fn give_up(&mut self, views: &[View], i: usize) {
        self.preempt.push(i);
        self.state[i] = State::Preempted;
        self.free += views[i].returns;
    }

    fn take(&mut self, views: &[View], shares: &[Share], i: usize, count: usize) {
        let view = &views[i];
        let blocks = missing(view, count);
        self.free -= blocks;
        self.promised -= blocks;
        self.state[i] = State::Planned;
        self.times[view.tenant] += count as f64 / shares[view.tenant].weight;
        self.slices.push(Slice { index: i, count, samples: view.computed + count == view.known, drafts: 0 });
    }

    /// Guessed tokens behind the replies of this step.
    fn plan_drafts(&mut self, views: &[View], bounds: &Bounds) {
        let always = bounds.speculation == Speculation::Always;
        let pace = match (bounds.speculation, bounds.pace) {
            (Speculation::Off, _) | (Speculation::Auto, None) => return,
            (_, pace) => pace,
        };
        let mut work = Work::default();
        self.slices.iter().for_each(|slice| work.add(views[slice.index].computed, slice.count, slice.sampled()));
        // A prompt's rows bring it nearer to its reply just as decoding does.
        let mut tokens = (work.sampled + work.plain) as f64;
        let mut time = pace.map_or(0.0, |pace| pace.rates.of(&work));
        let latest = pace.map_or(0.0, |pace| pace.target_ns.max(DRAFT_STRETCH_MAX * time));
        for _ in work.sampled..bounds.logits_rows {
            let Some((at, chance)) = self.likeliest(views) else { return };
            let slice = self.slices[at];
            let view = &views[slice.index];
            let price = pace.map_or(0.0, |Pace { rates, .. }| {
                rates.sampled + rates.attended * (view.computed + slice.rows() + 1) as f64
            });
            let pays = chance * time > DRAFT_GAIN_MIN * price * tokens;
            let late = time + price > latest;
            let blocks = missing(view, slice.rows() + 1) - missing(view, slice.rows());
            // Blocks of wrong guesses come back, but nobody gives its own up for them.
            if !always && (!pays || late) || blocks > self.free {
                return;
            }
            self.free -= blocks;
            self.slices[at].drafts += 1;
            tokens += chance;
            time += price;
        }
    }

    /// The slice whose next guessed token is most likely right, and how likely that is.
    fn likeliest(&self, views: &[View]) -> Option<(usize, f64)> {
        let next = |(at, slice): (usize, &Slice)| {
            let view = &views[slice.index];
            let chance = view.chances.get(slice.drafts).filter(|_| view.decodes())?;
            Some((at, chance))
        };
        self.slices.iter().enumerate().filter_map(next).max_by(|(a, x), (b, y)| x.total_cmp(y).then(b.cmp(a)))
    }
}

/// What is left of a step for prompts.
struct Budget {
    rows: usize,
    /// Time left, where there is a bound on it.
    time: Option<(Rates, f64)>,
    untouched: bool,
}

impl Budget {
    /// `replies` are the slices planned so far.
    fn new(bounds: &Bounds, views: &[View], replies: &[Slice]) -> Self {
        let mut work = Work::default();
        replies.iter().for_each(|slice| work.add(views[slice.index].computed, slice.count, 1));
        let time = bounds.pace.filter(|_| !replies.is_empty());
        let time = time.map(|pace| (pace.rates, pace.target_ns - pace.rates.of(&work)));
        Self { rows: bounds.prefill_tokens, time, untouched: true }
    }

    /// The next chunk of this sequence: whole blocks unless its known tokens or the budget end before.
    fn rows(&self, view: &View) -> usize {
        let most = (view.known - view.computed).min(self.rows);
        let Some((rates, left)) = &self.time else { return to_block_end(view, most) };
        let least = if self.untouched { BLOCK_TOKENS.min(most) } else { 0 };
        to_block_end(view, rates.prompt_rows(view.computed, most, *left)).max(least)
    }

    fn spend(&mut self, view: &View, count: usize) {
        self.rows -= count;
        self.untouched = false;
        if let Some((rates, left)) = &mut self.time {
            *left -= rates.prompt(view.computed, count);
            if view.computed + count == view.known {
                *left -= rates.sampled - rates.plain;
            }
        }
    }
}

/// Shortens a chunk that would end inside a block although it crosses one: full blocks can be shared at once.
fn to_block_end(view: &View, count: usize) -> usize {
    let end = view.computed + count;
    let aligned = end - end % BLOCK_TOKENS;
    if end < view.known && aligned > view.computed { aligned - view.computed } else { count }
}

/// Blocks to take from the pool before `count` more tokens can be computed.
fn missing(view: &View, count: usize) -> usize {
    blocks_for(view.computed + count).saturating_sub(view.blocks)
}

/// Tokens that can be computed with `free` more blocks.
fn room(view: &View, free: usize) -> usize {
    ((view.blocks + free) * BLOCK_TOKENS).saturating_sub(view.computed)
}

#[cfg(test)]
mod tests;
