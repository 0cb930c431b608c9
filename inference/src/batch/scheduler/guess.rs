//! Guesses before a step, and what became of them after it.

use super::Scheduler;
use crate::batch::queue::Queued as _;
use crate::speculate::{DRAFT_MAX, Draft, Speculation, Wish};

impl Scheduler {
    /// Has the drafter guess what follows the running replies.
    pub(super) fn guess(&mut self) {
        for sequence in &mut self.running {
            sequence.draft.tokens.clear();
        }
        if self.bounds.speculation == Speculation::Off || self.bounds.logits_rows <= self.running.len() {
            return;
        }
        let wishes = self.running.iter_mut().filter(|sequence| sequence.guessable() > 0).map(|sequence| {
            let most = sequence.guessable().min(DRAFT_MAX);
            Wish { sequence: sequence.id, history: &sequence.tokens, most, draft: &mut sequence.draft }
        });
        let mut wishes: Vec<Wish<'_>> = wishes.collect();
        self.drafter.draft(&mut wishes);
        for sequence in &mut self.running {
            // Nothing follows the end of a turn.
            let Draft { tokens, .. } = &mut sequence.draft;
            let end = tokens.iter().position(|id| self.tokenizer.is_end(*id));
            if let Some(end) = end.filter(|_| !sequence.job.request.ignore_eos) {
                tokens.truncate(end + 1);
            }
        }
    }

    /// Counts the guesses of a sequence that were computed and right, makes what was right findable and takes the
    /// blocks of the others back.
    pub(super) fn note_guesses(&mut self, place: usize, drafts: usize, right: usize) {
        let sequence = &mut self.running[place];
        if sequence.draft.tokens.is_empty() {
            return;
        }
        let ground = sequence.draft.ground;
        sequence.odds.note(ground, drafts, right);
        self.odds.note(ground, drafts, right);
        if drafts == 0 {
            return;
        }
        let stats = &self.shared.stats;
        stats.drafts.add(1);
        stats.draft_tokens.add(drafts as u64);
        stats.accepted_tokens.add(right as u64);
        self.fair.charge(sequence.tenant(), right);
        let (salt, computed) = (sequence.salt(), sequence.computed);
        self.pool.shrink(&mut sequence.table, computed);
        self.pool.publish(&mut sequence.table, salt, &sequence.tokens, computed);
    }
}
