//! Text encoders: sentences to vectors.

mod worker;

pub use worker::{EmbedError, EmbedRequest, EmbedWorker};
