//! Taking statements out of what users said: what a model is asked, what its answer means, and what follows for what
//! was known.
//!
//! The model only chooses: from a closed list of relations, with a schema that its answer satisfies by construction.
//! What contradicts what is decided here by a rule, not by the model ([`settle`]). Nothing is deleted; what is no
//! longer so gets an end, with the message that says so.

mod answer;
mod ask;
mod relation;
mod settle;

use millrace_proto::statement::MessageId;

pub use answer::{Claim, WrongAnswer, claims};
pub use ask::{ASKED_MESSAGES_MAX, questions, schema};
pub use relation::{RELATIONS, Relation};
pub use settle::{Settled, settle, subjects};

/// A message of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Where it stands.
    pub id: MessageId,
    /// What was said.
    pub text: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
}

/// What an extractor found, and what it took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// In the order of the messages, as far as the extractor keeps it.
    pub claims: Vec<Claim>,
    /// Tokens of prompt and answer.
    pub tokens: u64,
}

/// Why an extractor gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExtractError {
    /// Not now; the same messages may work later.
    #[error("the model has no time for it now: {why}")]
    Later {
        /// What is in the way.
        why: String,
    },
    /// Too much at once: fewer or shorter messages may work.
    #[error("too much was asked at once: {why}")]
    TooMuch {
        /// What was too much.
        why: String,
    },
    /// The answer is of no use, and asking again would give the same.
    #[error("the model's answer is of no use: {why}")]
    Useless {
        /// What is wrong with it.
        why: String,
    },
    /// It will never work with this model.
    #[error("this model cannot be used for it: {why}")]
    Never {
        /// What it cannot do.
        why: String,
    },
}

/// Whatever finds statements in messages of one user. It may take minutes and runs on a thread of its own.
pub trait Extractor: Send {
    /// Finds statements in messages of one conversation, in the order in which they were said.
    fn extract(&mut self, said: &[Said]) -> Result<Findings, ExtractError>;

    /// Tokens that answers without findings have taken since this was last asked.
    fn wasted(&mut self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests;
