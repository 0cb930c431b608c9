//! From sequences to a plan, and from the plan to a step for the backend.

use std::time::Instant;

use super::{Scheduler, StepBounds, note_outlet};
use crate::backend::LogitsWanted;
use crate::batch::cost::Work;
use crate::batch::plan::{Bounds, Pace, Share, View};
use crate::batch::queue::Queued as _;
use crate::batch::sequence::{Sequence, ns_since};
use crate::kv::blocks_for;

/// Waiting requests that one step considers; more than a prompt budget ever admits at once.
const CANDIDATES_MAX: usize = 32;

impl Scheduler {
    /// Fills the plan from the running sequences and the first of those that wait.
    pub(super) fn plan_step(&mut self, now: Instant) {
        let now = ns_since(self.epoch, now);
        self.waiting.promote(now, &mut self.candidates);
        let free_blocks = self.pool.available();
        // Each running sequence takes at most one block for its next token and one where its prompt chunk begins.
        let wanted = 2 * self.running.len() + blocks_for(self.bounds.prefill_tokens);
        let tight = free_blocks < wanted;
        self.views.clear();
        self.tenants.clear();
        for sequence in &self.running {
            let returns = if tight { self.pool.returns(&sequence.table) } else { 0 };
            let tenant = index_of(&mut self.tenants, sequence.tenant());
            let view = sequence.view(now, tenant, sequence.computed, sequence.table.blocks.len(), returns);
            let chances = sequence.odds.chances(&self.odds, &sequence.draft);
            self.views.push(View { chances, ..view });
        }
        let places = self.bounds.sequences_max.saturating_sub(self.running.len()).min(CANDIDATES_MAX);
        self.waiting.next(&self.fair, places, &mut self.candidates);
        let free_blocks = self.view_candidates(now, free_blocks, wanted);
        self.shares.clear();
        let shares = self.tenants.iter().map(|tenant| self.fair.share(*tenant));
        self.shares.extend(shares.map(|(time, weight)| Share { time, weight }));
        let StepBounds { sequences_max, prefill_tokens, logits_rows, speculation, target_ns, .. } = self.bounds;
        let target_ns = self.embedding.as_ref().map_or(target_ns, |embedding| embedding.leaves_of(target_ns));
        let pace = self.meter.rates().map(|rates| Pace { rates, target_ns });
        let bounds = Bounds { free_blocks, sequences_max, prefill_tokens, logits_rows, speculation, pace };
        self.plan.fill(&self.views, &self.shares, &bounds);
        let idle = self.plan.slices.is_empty() && self.plan.preempt.is_empty();
        assert!(!idle || self.views.is_empty(), "a plan always gets on: {:?}", self.views);
    }

    /// Adds the views of the candidates; gives back the free blocks without those that will be held for copies.
    fn view_candidates(&mut self, now: u64, free_blocks: usize, wanted: usize) -> usize {
        let waiting = self.candidates.iter().map(|key| self.waiting.get(key).expect("candidates wait"));
        // Holding a block to copy it takes it from the pool for a step; that is done only where there is plenty.
        let largest = waiting.clone().map(|s| blocks_for(s.tokens.len() + 1)).max().unwrap_or(0);
        self.copies = free_blocks >= wanted + largest + self.candidates.len();
        let mut held = 0;
        // Whose prompt is being computed: who shares more of it than is cached lets it go first.
        let mut leaders: Vec<&Sequence> = self.running.iter().filter(|s| s.computed + 1 < s.tokens.len()).collect();
        for sequence in waiting {
            let mut found = self.pool.peek(sequence.salt(), &sequence.tokens, sequence.cacheable());
            found.part *= usize::from(self.copies);
            held += usize::from(found.part > 0);
            let tenant = index_of(&mut self.tenants, sequence.tenant());
            let waits = leaders.iter().any(|leader| sequence.awaits(found.blocks, leader));
            if !waits {
                leaders.push(sequence);
            }
            self.views.push(View { waits, ..sequence.view(now, tenant, found.tokens(), found.in_use, 0) });
        }
        free_blocks - held.min(free_blocks)
    }

    /// Moves sequences between queue and batch and writes the step for the backend.
    pub(super) fn apply_plan(&mut self, now: Instant) {
        // Slices name views by index: running ones first, then candidates. Admitting appends, so that the indices of
        // the running ones hold until preempted ones are taken out at the end.
        let running = self.running.len();
        for at in 0..self.plan.preempt.len() {
            self.retire(self.plan.preempt[at]);
            self.shared.stats.preemptions.add(1);
        }
        for at in 0..self.plan.admit.len() {
            let key = self.candidates[self.plan.admit[at] - running];
            let mut sequence = self.waiting.remove(&key).expect("candidates wait");
            let (most, salt) = (sequence.cacheable(), sequence.salt());
            let cached = self.pool.adopt(&mut sequence.table, salt, &sequence.tokens, most, self.copies);
            sequence.computed = cached;
            self.start(&mut sequence, cached, now);
            self.running.push(sequence);
        }
        self.step.clear();
        self.work = Work::default();
        for at in 0..self.plan.slices.len() {
            let slice = self.plan.slices[at];
            let place = self.place_of(slice.index, running);
            let sequence = &mut self.running[place];
            let (start, end) = (sequence.computed, sequence.computed + slice.count);
            assert!(self.pool.grow(&mut sequence.table, end + slice.drafts), "the plan counted the blocks");
            if let Some((from, to)) = self.pool.copy_due(&mut sequence.table) {
                self.step.copy(from, to);
            }
            if let Some(guide) = sequence.job.guide.as_mut().filter(|_| slice.samples) {
                guide.look_at(&sequence.draft.tokens[..slice.drafts]);
            }
            self.work.add(start, slice.rows(), slice.sampled());
            let wanted = match (slice.samples, slice.drafts) {
                (false, _) => LogitsWanted::None,
                (true, 0) => LogitsWanted::Last,
                (true, _) => LogitsWanted::All,
            };
            let parts = [&sequence.tokens[start..end], &sequence.draft.tokens[..slice.drafts]];
            self.step.push_parts(parts, start, &sequence.table.blocks, wanted);
            if sequence.stretched {
                self.step.stretch();
            }
        }
    }

    /// Where a planned view stands in `running`: candidates follow in the order of their admission.
    pub(super) fn place_of(&self, index: usize, running: usize) -> usize {
        if index < running {
            return index;
        }
        let admitted = self.plan.admit.iter().position(|i| *i == index).expect("only admitted candidates run");
        running + admitted
    }

    /// Tells callers what will be when this step is done, and how long that will take.
    pub(super) fn publish_step(&mut self) {
        self.publish_load();
        let Some(rates) = self.meter.rates() else { return };
        self.loads.clear();
        self.loads.extend(self.running.iter().map(Sequence::load));
        let planned = self.running.len() - self.plan.admit.len();
        for slice in &self.plan.slices {
            let place = self.place_of(slice.index, planned);
            let load = &mut self.loads[place];
            load.prompt = load.prompt.saturating_sub(slice.count);
            load.generated += usize::from(slice.samples);
        }
        self.shared.demand().publish(Some(rates), self.habits, rates.of(&self.work), self.loads.iter().copied());
    }

    fn start(&mut self, sequence: &mut Sequence, cached: usize, now: Instant) {
        if let Some(queued) = sequence.start(now, cached) {
            let stats = &self.shared.stats;
            stats.queue.record(queued);
            stats.prompt_tokens.add(sequence.prompt as u64);
            stats.cached_tokens.add(cached as u64);
            let mut demand = self.shared.demand();
            demand.dequeue(&sequence.newcomer());
            demand.note_start(sequence.prompt, cached);
            note_outlet(&mut self.wake, &sequence.job);
        }
    }
}

/// Place of a tenant in the list of this step.
fn index_of(tenants: &mut Vec<u64>, tenant: u64) -> usize {
    tenants.iter().position(|other| *other == tenant).unwrap_or_else(|| {
        tenants.push(tenant);
        tenants.len() - 1
    })
}
