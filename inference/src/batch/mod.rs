//! Continuous batching: who is admitted, what runs in the next step, and what becomes of its result.
//!
//! [`plan`] is a pure function over plain numbers, [`cost`] learns what steps take, `fair` and `queue` order who
//! waits, `forecast` tells a caller how long the first token will take, and `admit` holds the checks at submission. The
//! scheduler applies plans to real sequences and is the only owner of them.

pub(crate) mod admit;
pub mod cost;
mod fair;
pub(crate) mod forecast;
pub(crate) mod job;
pub mod plan;
mod pool;
mod queue;
pub(crate) mod scheduler;
mod sequence;
mod text;
