//! Speculation: guess how a text goes on, compute several rows in one step, keep what the model would have written.
//!
//! A step of few rows mostly waits for the weights, so rows beside them are cheap. A [`Drafter`] guesses the tokens
//! that follow a running reply; the scheduler computes them in the same step as the reply's last token, samples a token
//! from each row as always, and goes on from row to row for as long as the sampled token is the one that was guessed.
//! What was computed for wrong guesses is given back.
//!
//! The reply is exactly the one without speculation, greedy or sampled: every token is drawn from the model's own row,
//! after the constraint, penalties and temperature, with the random number of its place in the reply, and a row's
//! values do not depend on what is computed beside it. A guess decides only whether a token's row was computed early.
//! (The rejection sampling of Leviathan et al., "Fast Inference from Transformers via Speculative Decoding", 2023, keeps
//! the distribution too, but not the reply that a seed gives.)
//!
//! How many guesses are computed is the planner's choice (`batch/plan.rs`), from measured costs and from [`Odds`]:
//! how often such guesses were right. Beside a full batch a row costs its full price, and nothing is guessed.

mod lookup;
mod model;
mod odds;

pub use lookup::Lookup;
pub use model::DraftModel;
pub use odds::{Chances, Ground, Odds};

/// Most guesses for one sequence in one step. Copying reaches this; each costs a row of logits.
pub const DRAFT_MAX: usize = 12;

/// Whether the engine speculates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Speculation {
    /// Never.
    Off,
    /// Where it is predicted to make the engine faster.
    #[default]
    Auto,
    /// Wherever there is a guess and room for it: for tests and measurements.
    Always,
}

/// Guesses how texts go on. One thread owns a drafter; what it keeps for a sequence is bounded by the sequence.
pub trait Drafter: Send {
    /// To be called once on the thread that will draft.
    fn attach(&mut self) {}

    /// Puts its guess in the draft of every wish, in place of what is there: at most as many tokens as are wanted. Where
    /// it has none it leaves the draft as it is.
    fn draft(&mut self, wishes: &mut [Wish<'_>]);

    /// The sequence has left the batch. It may come back, and is then new.
    fn forget(&mut self, sequence: u64);

    /// Nanoseconds that one more token for each of so many wishes costs; `None` where that is next to nothing. Zero
    /// before it is known.
    fn price(&self, wishes: usize) -> Option<f64>;
}

/// What a drafter is asked for one sequence.
#[derive(Debug)]
pub struct Wish<'a> {
    /// Names the sequence as long as it is in the batch.
    pub sequence: u64,
    /// Prompt and reply so far. Between two calls for the same sequence it only grows.
    pub history: &'a [u32],
    /// Most tokens wanted, at most [`DRAFT_MAX`].
    pub most: usize,
    /// Where the guess goes.
    pub draft: &'a mut Draft,
}

/// A guess: the tokens that may follow, and what makes it likely.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draft {
    /// The tokens, in order.
    pub tokens: Vec<u32>,
    /// What the first of them rests on.
    pub ground: Ground,
}

impl Draft {
    /// A draft with room for all tokens that it may get.
    pub fn with_room() -> Self {
        Self { tokens: Vec::with_capacity(DRAFT_MAX), ground: Ground::default() }
    }
}
