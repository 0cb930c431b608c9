//! Constrained decoding: a reply that a JSON schema, a regular expression or a grammar accepts, by construction.
//!
//! A [`Constraint`] is compiled into a parser over the model's tokens (crate `llguidance`). Before every token the
//! parser says which tokens may follow; all others are taken out of the distribution, and the end of turn is possible
//! only where the reply may end.
//!
//! Nothing of this runs on the engine's thread:
//!
//! * submission hands the job to a compile thread (`compile.rs`), which has limits, a deadline and a cache; the job
//!   reaches the scheduler with its first mask, or ends with a [`ConstraintError`];
//! * after each token a mask thread (`guide.rs`) takes the parser, advances it and computes the next mask while the
//!   backend computes the next step. The engine waits a few milliseconds for what is left of it then; a sequence
//!   whose mask takes longer leaves the batch until it is there, and after half a second the request ends.
//!
//! Sketch for 49,152 tokens: a mask takes 0.05 to 1 ms and is bounded by the limits in `compile.rs` (about 20 ms for
//! most hostile schemas); a step of the smallest model takes 4 ms. The tables for a vocabulary take about 10 MiB and 100 ms,
//! and are made when the first constraint comes. A request without a constraint touches nothing of this.

mod check;
mod compile;
mod guide;
#[cfg(test)]
mod tests;
mod trial;
mod vocabulary;
mod workshop;

use std::time::Duration;

use serde_json::{Value, json};

pub use trial::{Allowed, Trial};

pub(crate) use guide::{Guide, STEP_PATIENCE};
pub(crate) use workshop::Workshop;

/// Most bytes of a constraint in its written form; the largest schemas in public collections are about this long.
pub const CONSTRAINT_BYTES_MAX: usize = 256 << 10;
/// Most strings of [`Constraint::Choice`].
pub const CHOICES_MAX: usize = 4_096;

/// What a reply has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// A JSON document that this JSON Schema (draft 2020-12 or earlier) accepts.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A text that this regular expression (Rust syntax, anchored at both ends) matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this context-free grammar in Lark syntax, whose first rule is `start`.
    Grammar(String),
    /// JSON documents inside a frame, as tool calls are written.
    Framed(Frame),
}

/// One or more JSON documents, each between two texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// A control token that opens the reply; it is not part of the visible text.
    pub opening: Option<u32>,
    /// Text before each document.
    pub before: String,
    /// Schema of each document.
    pub schema: Value,
    /// Text after each document.
    pub after: String,
    /// Text between two frames.
    pub between: String,
    /// Most documents, at least one.
    pub documents_max: usize,
}

/// Why a constraint cannot be used. Its text is written for whoever sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// Longer than [`CONSTRAINT_BYTES_MAX`].
    #[error("it has {bytes} bytes, allowed are {max}; send a shorter one")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Nested too deeply to be compiled safely.
    #[error("it is nested more than {max} levels deep; flatten it, or name its parts and refer to them")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// Its alternatives multiply to more than can be compiled.
    #[error(
        "combining its alternatives gives more than {max} cases; use fewer anyOf, oneOf and allOf inside each other"
    )]
    TooManyCases {
        /// The limit.
        max: u64,
    },
    /// Not understood, contradictory, or beyond the compiler's limits; the text says which.
    #[error("it cannot be compiled: {why}")]
    Invalid {
        /// The reason in the compiler's words.
        why: String,
    },
    /// Compiling took too long.
    #[error("compiling it took longer than {} ms; send a simpler one", after.as_millis())]
    Deadline {
        /// The limit.
        after: Duration,
    },
    /// Earlier constraints are still being compiled.
    #[error("{compiling} other constraints are still being compiled; try again in a few seconds")]
    Busy {
        /// How many.
        compiling: usize,
    },
    /// While generating, a state was reached that is too complex or that no token continues.
    #[error("it cannot be followed any further after {tokens} tokens: {why}; send a simpler one")]
    Stuck {
        /// Tokens generated before.
        tokens: usize,
        /// The reason.
        why: String,
    },
    /// The model cannot be constrained.
    #[error("this model cannot be constrained: {why}; choose another model")]
    Model {
        /// What is missing.
        why: &'static str,
    },
}

impl ConstraintError {
    /// Whether the same constraint may work a little later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, ConstraintError::Busy { .. })
    }
}

impl Constraint {
    /// Bytes of the written form, without the syntax of a list or a frame.
    fn bytes(&self) -> usize {
        match self {
            Constraint::JsonObject => 0,
            Constraint::JsonSchema(schema) | Constraint::Framed(Frame { schema, .. }) => schema.to_string().len(),
            Constraint::Regex(text) | Constraint::Grammar(text) => text.len(),
            Constraint::Choice(texts) => texts.iter().map(String::len).sum(),
        }
    }

    /// The JSON schema in it, if any.
    fn schema(&self) -> Option<&Value> {
        match self {
            Constraint::JsonSchema(schema) | Constraint::Framed(Frame { schema, .. }) => Some(schema),
            _ => None,
        }
    }
}

/// The schema of [`Constraint::JsonObject`].
fn any_object() -> Value {
    json!({"type": "object"})
}
