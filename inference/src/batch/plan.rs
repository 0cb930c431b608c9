//! Chooses what the next step computes: a pure function from numbers to numbers.
//!
//! Rules, in this order:
//! 1. Every running sequence that needs one more token gets it. When KV blocks run out, the sequence that is last in
//!    order gives its blocks up and is computed again later.
//! 2. A budget of prompt tokens goes to sequences in order: first those whose prompt is begun, then new ones.
//! 3. A new sequence enters only when its whole prompt fits beside what the running ones still need; the first that
//!    does not fit keeps its place and nobody overtakes it.
//!
//! Order is a number that callers derive from deadline and arrival. Because later arrivals get larger numbers in the
//! long run, a waiting sequence is first at some time and nothing starves.

use crate::kv::blocks_for;

/// What the planner knows of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Smaller goes first.
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
}

/// Bounds of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Blocks that can be taken now.
    pub free_blocks: usize,
    /// Most running sequences.
    pub sequences_max: usize,
    /// Most prompt tokens in one step.
    pub prefill_tokens: usize,
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
    order: Vec<usize>,
    busy: Vec<bool>,
}

impl Plan {
    /// Plans the next step over these sequences.
    pub fn fill(&mut self, views: &[View], bounds: &Bounds) {
        self.preempt.clear();
        self.admit.clear();
        self.slices.clear();
        self.busy.clear();
        self.busy.resize(views.len(), false);
        self.order.clear();
        self.order.extend(0..views.len());
        self.order.sort_unstable_by_key(|i| (views[*i].order, *i));

        let mut free = bounds.free_blocks;
        for at in 0..self.order.len() {
            let i = self.order[at];
            let view = &views[i];
            if view.running && view.known - view.computed == 1 && !self.preempt.contains(&i) {
                if self.make_room(views, at, missing(view, 1), &mut free) {
                    self.take(views, i, 1, &mut free);
                } else {
                    self.give_up(views, i, &mut free);
                }
            }
        }

        let mut budget = bounds.prefill_tokens;
        for at in 0..self.order.len() {
            let i = self.order[at];
            let view = &views[i];
            if !view.running || self.busy[i] || self.preempt.contains(&i) || budget == 0 {
                continue;
            }
            let mut count = (view.known - view.computed).min(budget);
            if !self.make_room(views, at, missing(view, count), &mut free) {
                count = count.min(fits(view, free));
            }
            if count > 0 {
                self.take(views, i, count, &mut free);
                budget -= count;
            }
        }
        self.admit_waiting(views, bounds, free, budget);
    }

    fn admit_waiting(&mut self, views: &[View], bounds: &Bounds, mut free: usize, mut budget: usize) {
        // Whoever just lost its blocks must not take them back in the same step.
        if !self.preempt.is_empty() {
            return;
        }
        let mut running = 0;
        let mut promised = 0;
        for view in views.iter().filter(|v| v.running) {
            running += 1;
            // What its known tokens need, and the block that it will want next.
            promised += blocks_for(view.known + 1).saturating_sub(view.blocks) + 1;
        }
        for slice in &self.slices {
            let view = &views[slice.index];
            promised -= missing(view, slice.count);
        }
        for at in 0..self.order.len() {
            let i = self.order[at];
            let view = &views[i];
            if view.running {
                continue;
            }
            let whole = blocks_for(view.known + 1).saturating_sub(view.blocks);
            let room = if running == 0 { free } else { free.saturating_sub(promised) };
            if running == bounds.sequences_max || budget == 0 || whole > room {
                return;
            }
            let count = (view.known - view.computed).min(budget);
            self.admit.push(i);
            self.take(views, i, count, &mut free);
            promised += whole - missing(view, count) + 1;
            budget -= count;
            running += 1;
        }
    }

    /// Frees blocks, from the end of the order, until `need` are there. Only sequences behind place `at` that have no
    /// part in this step give theirs up.
    fn make_room(&mut self, views: &[View], at: usize, need: usize, free: &mut usize) -> bool {
        let mut last = self.order.len();
        while *free < need {
            let victim = (at + 1..last).rev().find(|place| {
                let i = self.order[*place];
                views[i].running && !self.busy[i] && !self.preempt.contains(&i)
            });
            let Some(place) = victim else { return false };
            self.give_up(views, self.order[place], free);
            last = place;
        }
        true
    }

    fn give_up(&mut self, views: &[View], i: usize, free: &mut usize) {
        self.preempt.push(i);
        *free += views[i].returns;
    }

    fn take(&mut self, views: &[View], i: usize, count: usize, free: &mut usize) {
        let view = &views[i];
        *free -= missing(view, count);
        self.busy[i] = true;
        self.slices.push(Slice { index: i, count, samples: view.computed + count == view.known });
    }
}

/// Blocks to take from the pool before `count` more tokens can be computed.
fn missing(view: &View, count: usize) -> usize {
    blocks_for(view.computed + count).saturating_sub(view.blocks)
}

/// Tokens that can be computed with `free` more blocks.
fn fits(view: &View, free: usize) -> usize {
    ((view.blocks + free) * crate::kv::BLOCK_TOKENS).saturating_sub(view.computed)
}

#[cfg(test)]
mod tests;
