//! A constraint without an engine: whether it can be used, and what it lets a text be.

use std::sync::Arc;

use crossbeam::channel::bounded;

use super::check::check;
use super::compile::Compiler;
use super::guide::{Guide, MaskTask, STEP_PATIENCE};
use super::{Constraint, ConstraintError};
use crate::stats::Stats;
use crate::tokenizer::Tokenizer;

/// Follows constraints for one vocabulary, on the calling thread.
///
/// The engine compiles with a deadline; here a hostile constraint takes as long as the limits in `compile.rs` allow.
pub struct Trial {
    compiler: Compiler,
    tokenizer: Arc<Tokenizer>,
}

/// The tokens that may come next.
pub struct Allowed<'a>(&'a [u32]);

impl Allowed<'_> {
    /// Whether this one may.
    pub fn has(&self, token: u32) -> bool {
        self.0.get(token as usize / 32).is_some_and(|bits| bits >> (token % 32) & 1 == 1)
    }

    /// All of them, in order.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        let bits = |at: usize| (0..32_u32).map(move |bit| at as u32 * 32 + bit);
        (0..self.0.len()).flat_map(bits).filter(|token| self.has(*token))
    }
}

impl Trial {
    /// Prepares the vocabulary, which takes some ten milliseconds.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Trial, ConstraintError> {
        Ok(Trial { compiler: Compiler::new(&tokenizer)?, tokenizer })
    }

    /// Writes a text of at most `most` tokens that the constraint accepts so far; it ends where `choose` gives an end
    /// of turn. `choose` sees the tokens before and those that may follow, and must take one of these; `guess` sees the
    /// tokens before and says what may follow, which changes nothing but the number of masks that are computed at once.
    pub fn write(
        &self,
        constraint: Constraint,
        most: usize,
        mut choose: impl FnMut(&[u32], Allowed<'_>) -> u32,
        mut guess: impl FnMut(&[u32]) -> Vec<u32>,
    ) -> Result<Vec<u32>, ConstraintError> {
        check(&constraint)?;
        let compiled = self.compiler.compile(&format!("{constraint:?}"), constraint)?;
        let (tasks, work) = bounded::<MaskTask>(1);
        let (mut guide, stats, mut text) = (Guide::new(compiled, tasks), Stats::default(), Vec::new());
        while text.len() < most {
            let mask =
                guide.mask(&mut STEP_PATIENCE.clone(), &stats)?.expect("masks are computed before they are asked for");
            let allowed = |token: u32| Allowed(mask).has(token);
            let token = choose(&text, Allowed(mask));
            assert!(allowed(token), "token {token} is not allowed here");
            text.push(token);
            if self.tokenizer.is_end(token) {
                break;
            }
            guide.accept(token);
            if !guide.goes_on(&stats) {
                guide.look_at(&guess(&text));
                work.try_iter().for_each(MaskTask::run);
            }
        }
        Ok(text)
    }
}
