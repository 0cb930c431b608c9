//! Guesses before a step, and what became of them after it.

use std::time::Instant;

use super::Scheduler;
use crate::batch::cost::Work;
use crate::batch::plan::worth_guessing;
use crate::batch::queue::Queued as _;
use crate::speculate::{DRAFT_MAX, Draft, Ground, Speculation, Wish};

impl Scheduler {
    /// Has the drafters guess what follows the running replies: the free ones for all, those that take time where that
    /// pays and where they are likelier right.
    pub(super) fn guess(&mut self) {
        let begun = Instant::now();
        for sequence in &mut self.running {
            sequence.draft.tokens.clear();
        }
        if self.bounds.speculation != Speculation::Off && self.bounds.logits_rows > self.running.len() {
            for at in 0..self.drafters.len() {
                self.guess_with(at);
            }
            self.guess_forced();
        }
        for sequence in self.running.iter_mut().filter(|sequence| !sequence.job.request.ignore_eos) {
            // Nothing follows the end of a turn.
            let Draft { tokens, .. } = &mut sequence.draft;
            if let Some(end) = tokens.iter().position(|id| self.tokenizer.is_end(*id)) {
                tokens.truncate(end + 1);
            }
        }
        self.guessing = begun.elapsed();
    }

    /// What a constraint forces is right in any case, so it takes the place of guesses that differ from it.
    fn guess_forced(&mut self) {
        for sequence in &mut self.running {
            let most = sequence.guessable(self.bounds.stretch_from).min(DRAFT_MAX);
            let Some(guide) = &sequence.job.guide else { continue };
            let forced = &guide.forced()[..guide.forced().len().min(most)];
            if !sequence.draft.tokens.starts_with(forced) {
                sequence.draft.tokens.clear();
                sequence.draft.tokens.extend_from_slice(forced);
                sequence.draft.ground = Ground::Forced;
            }
        }
    }

    fn guess_with(&mut self, drafter: usize) {
        let stretch_from = self.bounds.stretch_from;
        let drafter = &mut self.drafters[drafter];
        let replies = self.running.iter().filter(|sequence| sequence.guessable(stretch_from) > 0).count();
        let price = drafter.price(replies);
        let (always, rates) = (self.bounds.speculation == Speculation::Always, self.meter.rates());
        // Guesses get no part of a step that computes prompts.
        let prompts = !self.waiting.is_empty() || self.running.iter().any(|s| s.computed + 1 < s.tokens.len());
        if price.is_some() && prompts && !always {
            return;
        }
        let mut work = Work::default();
        self.running.iter().for_each(|s| work.add(s.computed, 1, 1));
        let mut wishes: Vec<Wish<'_>> = Vec::with_capacity(replies);
        for sequence in self.running.iter_mut().filter(|sequence| sequence.guessable(stretch_from) > 0) {
            let mut most = sequence.guessable(stretch_from).min(DRAFT_MAX);
            if let Some(price) = price {
                let odds = sequence.odds.of(&self.odds, Ground::Model);
                let present = sequence.odds.chances(&self.odds, &sequence.draft).get(0);
                if present.is_some_and(|chance| chance >= odds) {
                    continue;
                }
                most = match rates {
                    _ if always => most,
                    None => 0,
                    Some(rates) => most.min(worth_guessing(&rates, &work, replies, odds, price)),
                };
                if most == 0 {
                    sequence.odds.note(Ground::Model, 0, 0);
                    self.odds.note(Ground::Model, 0, 0);
                    continue;
                }
            }
            wishes.push(Wish { sequence: sequence.id, history: &sequence.tokens, most, draft: &mut sequence.draft });
        }
        if !wishes.is_empty() {
            drafter.draft(&mut wishes);
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
