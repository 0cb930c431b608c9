//! From rows of logits to the tokens of a reply.

use std::time::Instant;

use super::{Scheduler, note_outlet};
use crate::request::{FinishReason, TokenOut};
use crate::sample::{self, best_log_probs, log_prob, log_sum};

impl Scheduler {
    /// Samples a token from the row of the last known one, and from those of guesses for as long as they are right.
    pub(super) fn next_tokens(&mut self, place: usize, row: usize, drafts: usize, now: Instant) {
        let mut right = 0;
        let ended = loop {
            let ended = self.next_token(place, row + right, now);
            let sequence = &mut self.running[place];
            if !sequence.running {
                // Nothing was sampled: it waits for its mask elsewhere, and its guesses were neither right nor wrong.
                return;
            }
            let guessed = sequence.draft.tokens[..drafts].get(right);
            if ended.is_some() || guessed.is_none() || guessed != sequence.tokens.last() {
                break ended;
            }
            if sequence.job.guide.as_mut().is_some_and(|guide| !guide.goes_on(&self.shared.stats)) {
                break None;
            }
            // The token's own row was computed in this step.
            sequence.computed += 1;
            right += 1;
        };
        self.note_guesses(place, drafts, right);
        let sequence = &mut self.running[place];
        sequence.ended = ended;
        if sequence.ended.is_none() && sequence.flush() {
            note_outlet(&mut self.wake, &sequence.job);
        }
    }

    /// Samples the next token of a sequence; returns why it is over, if it is.
    fn next_token(&mut self, place: usize, row: usize, now: Instant) -> Option<FinishReason> {
        let sequence = &mut self.running[place];
        let request = &sequence.job.request;
        let logits = self.logits.row_mut(row);
        let mask = match &mut sequence.job.guide {
            None => None,
            Some(guide) => match guide.mask(&mut self.patience, &self.shared.stats) {
                Ok(Some(mask)) => Some(mask),
                Ok(None) => {
                    self.retire(place);
                    return None;
                }
                Err(error) => return Some(FinishReason::Constraint(error)),
            },
        };
        // Log-probabilities are those of the model's own distribution, and penalties change the row.
        let best = request.top_logprobs.map(|n| {
            self.unmodified.clear();
            self.unmodified.extend_from_slice(logits);
            let log_sum = log_sum(logits);
            (log_sum, best_log_probs(logits, log_sum, usize::from(n)))
        });
        if let Some(mask) = mask {
            sample::restrict(logits, mask);
        }
        let id = match self.sampler.pick(logits, &request.sampling, &sequence.tokens, sequence.prompt) {
            Ok(id) => id,
            Err(error) => return Some(FinishReason::Error(error.to_string())),
        };
        let end = !request.ignore_eos && self.tokenizer.is_end(id);
        let bytes = if end { &[] } else { self.tokenizer.visible_bytes(id) };
        let out = best.filter(|_| !end).map(|(log_sum, top)| {
            let logprob = log_prob(self.unmodified[id as usize], log_sum);
            TokenOut { id, logprob, text: bytes.to_vec(), top }
        });
        let (first, since) = sequence.note_token(id, now);
        let stats = &self.shared.stats;
        stats.generated_tokens.add(1);
        if first {
            stats.time_to_first_token.record(since);
            if let Some((predicted, actual)) = sequence.forecast() {
                stats.count_forecast(predicted, actual);
            }
        } else if !since.is_zero() {
            // What came with the token before it, because it was guessed, had no time of its own.
            stats.inter_token.record(since)
        }
        if end {
            return Some(FinishReason::Stop);
        }
        if sequence.gate.push(bytes, out) {
            return Some(FinishReason::Stop);
        }
        let full = sequence.generated() >= sequence.job.request.max_tokens as usize;
        if full {
            return Some(FinishReason::Length);
        }
        if let Some(guide) = &mut sequence.job.guide {
            guide.accept(id);
        }
        None
    }
}
