//! Continuous batching: who is admitted, what runs in the next step, and what becomes of its result.
//!
//! [`plan`] is a pure function over plain numbers; `admit` holds the checks at submission; the scheduler applies
//! plans to real sequences and is the only owner of them.

pub(crate) mod admit;
pub(crate) mod job;
pub mod plan;
mod pool;
pub(crate) mod scheduler;
mod sequence;
mod text;
