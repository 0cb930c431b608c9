//! Text encoders: sentences to vectors.
//!
//! `files` says what a model folder holds, `bert` is the network that is made from it, `pass` takes some texts through
//! it in slices of bounded work. `worker` takes calls in, and `batcher` joins those that wait into passes and runs their
//! slices on the threads of the language model between its steps, or on threads of their own.

mod batcher;
mod bert;
mod dense;
mod files;
mod pass;
mod safetensors;
mod worker;

pub(crate) use batcher::Batcher;
pub use bert::Encoder;
pub use dense::Precision;
pub use files::EncoderError;
pub use safetensors::{Safetensors, SafetensorsError};
pub use worker::{EmbedDone, EmbedError, EmbedPriority, EmbedRequest, EmbedWorker, TEXTS_MAX};
