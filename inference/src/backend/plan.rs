//! The plan of one step, and the buffer for its result.

use std::ops::Range;

use super::{BackendError, BackendLimits};
use crate::kv::{BLOCK_TOKENS, BlockId};

/// Which tokens of a slice need logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None: a chunk of a prompt that is not its end.
    None,
    /// Only the last token: decoding, and the end of a prompt.
    Last,
    /// Every token: guesses under verification, scoring of a given text.
    All,
}

/// One step: slices of several sequences, each with its new tokens, its first position and its block table.
/// The plan owns flat arrays so that it can be filled again without allocating.
#[derive(Debug, Default)]
pub struct StepPlan {
    tokens: Vec<u32>,
    blocks: Vec<BlockId>,
    slices: Vec<Slice>,
    copies: Vec<(BlockId, BlockId)>,
    logits_rows: usize,
}

#[derive(Clone, Debug)]
struct Slice {
    tokens: Range<usize>,
    blocks: Range<usize>,
    start: usize,
    logits: LogitsWanted,
    stretched: bool,
}

/// A slice as a backend reads it.
#[derive(Clone, Copy, Debug)]
pub struct SliceView<'a> {
    /// New tokens, in order; never empty.
    pub tokens: &'a [u32],
    /// Row of the first of them among all rows of the step.
    pub row: usize,
    /// Position of the first of them in its sequence.
    pub start: usize,
    /// Blocks of the sequence from position 0 on, including those for the new tokens.
    pub blocks: &'a [BlockId],
    /// Which tokens need logits.
    pub logits: LogitsWanted,
    /// Whether the sequence is longer than [`BackendLimits::stretch_from`]; the same for all tokens in its blocks.
    pub stretched: bool,
}

impl StepPlan {
    /// An empty plan.
    pub fn new() -> StepPlan {
        StepPlan::default()
    }

    /// Empties the plan and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.blocks.clear();
        self.slices.clear();
        self.copies.clear();
        self.logits_rows = 0;
    }

    /// Copies all keys and values of block `from` to block `to` before any row is computed. A sequence that goes on
    /// from the middle of a block which others may read gets a copy of its own in this way. No block that is written
    /// in the step, by a copy or by rows, may be a source.
    pub fn copy(&mut self, from: BlockId, to: BlockId) {
        self.copies.push((from, to));
    }

    /// The copies, in the order in which they were added.
    pub fn copies(&self) -> &[(BlockId, BlockId)] {
        &self.copies
    }

    /// Adds `tokens` of one sequence, whose first new token has position `start` and whose blocks from position 0 on
    /// are `blocks`. A sequence may appear once in a plan.
    pub fn push(&mut self, tokens: &[u32], start: usize, blocks: &[BlockId], logits: LogitsWanted) {
        self.push_parts([tokens, &[]], start, blocks, logits);
    }

    /// [`StepPlan::push`] for tokens that lie in two places: known ones and guessed ones.
    pub fn push_parts(&mut self, tokens: [&[u32]; 2], start: usize, blocks: &[BlockId], logits: LogitsWanted) {
        let (first_token, first_block) = (self.tokens.len(), self.blocks.len());
        tokens.iter().for_each(|part| self.tokens.extend_from_slice(part));
        self.blocks.extend_from_slice(blocks);
        let count = self.tokens.len() - first_token;
        self.logits_rows += match logits {
            LogitsWanted::None => 0,
            LogitsWanted::Last => count.min(1),
            LogitsWanted::All => count,
        };
        self.slices.push(Slice {
            tokens: first_token..self.tokens.len(),
            blocks: first_block..self.blocks.len(),
            start,
            logits,
            stretched: false,
        });
    }

    /// The sequence of the slice that was added last is longer than [`BackendLimits::stretch_from`]. That must have been
    /// said with all its tokens.
    pub fn stretch(&mut self) {
        if let Some(slice) = self.slices.last_mut() {
            slice.stretched = true;
        }
    }

    /// Tokens of the step, over all slices.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Rows of logits that the step will give.
    pub fn logits_rows(&self) -> usize {
        self.logits_rows
    }

    /// Number of slices.
    pub fn slice_count(&self) -> usize {
        self.slices.len()
    }

    /// The slices in the order in which they were added.
    pub fn slices(&self) -> impl Iterator<Item = SliceView<'_>> {
        (0..self.slices.len()).map(|index| self.slice(index))
    }

    /// One slice.
    pub fn slice(&self, index: usize) -> SliceView<'_> {
        let slice = &self.slices[index];
        SliceView {
            tokens: &self.tokens[slice.tokens.clone()],
            row: slice.tokens.start,
            start: slice.start,
            blocks: &self.blocks[slice.blocks.clone()],
            logits: slice.logits,
            stretched: slice.stretched,
        }
    }

    /// Checks the plan against a backend's limits, so that computing it needs no further checks.
    pub fn check(&self, limits: &BackendLimits) -> Result<(), BackendError> {
        let bound = |what, value, max| {
            if value > max { Err(BackendError::TooLarge { what, value, max }) } else { Ok(()) }
        };
        bound("tokens", self.tokens.len(), limits.step_tokens_max)?;
        bound("rows of logits", self.logits_rows, limits.step_logits_max)?;
        if self.tokens.is_empty() || self.slices.iter().any(|slice| slice.tokens.is_empty()) {
            return Err(BackendError::Empty);
        }
        if let Some(&token) = self.tokens.iter().find(|&&token| token as usize >= limits.vocab) {
            return Err(BackendError::Token { token, vocab: limits.vocab });
        }
        let unknown = |block: BlockId| block.0 as usize >= limits.blocks;
        if let Some((from, to)) = self.copies.iter().find(|(from, to)| unknown(*from) || unknown(*to) || from == to) {
            return Err(BackendError::Copy { from: from.0, to: to.0 });
        }
        for (index, slice) in self.slices().enumerate() {
            if slice.stretched && limits.stretch_from.is_none() {
                return Err(BackendError::Stretch { slice: index });
            }
            let end = slice.start.saturating_add(slice.tokens.len());
            bound("positions", end, limits.context_max)?;
            let covered = slice.blocks.len().saturating_mul(BLOCK_TOKENS) >= end;
            if !covered || slice.blocks.iter().any(|block| block.0 as usize >= limits.blocks) {
                return Err(BackendError::Blocks { slice: index });
            }
        }
        Ok(())
    }
}

/// Rows of logits of one step. Made once with room for the most rows that a step may ask for.
#[derive(Debug)]
pub struct LogitsBuf {
    values: Vec<f32>,
    stride: usize,
    vocab: usize,
    rows: usize,
}

impl LogitsBuf {
    /// A buffer for `limits.step_logits_max` rows.
    pub fn new(limits: &BackendLimits) -> LogitsBuf {
        // Backends compute whole tiles of 16 outputs, so a row is stored at the next multiple of 16.
        let stride = limits.vocab.next_multiple_of(16);
        LogitsBuf { values: vec![0.0; limits.step_logits_max * stride], stride, vocab: limits.vocab, rows: 0 }
    }

    /// Rows that the last step gave.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// One row: a value for every token of the vocabulary.
    pub fn row(&self, index: usize) -> &[f32] {
        assert!(index < self.rows, "the step gave {} rows", self.rows);
        &self.values[index * self.stride..][..self.vocab]
    }

    /// One row, for samplers that work in place.
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows, "the step gave {} rows", self.rows);
        &mut self.values[index * self.stride..][..self.vocab]
    }

    /// For backends: the storage of `rows` rows of [`LogitsBuf::stride`] values.
    pub fn begin(&mut self, rows: usize) -> &mut [f32] {
        self.rows = rows;
        &mut self.values[..rows * self.stride]
    }

    /// Distance between rows in values.
    pub fn stride(&self) -> usize {
        self.stride
    }
}
