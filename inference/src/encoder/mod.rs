//! Text encoders: sentences to vectors.

mod bert;
mod linear;
mod safetensors;
mod worker;

pub use bert::{Encoder, EncoderError};
pub use safetensors::SafetensorsError;
pub use worker::{EmbedDone, EmbedError, EmbedRequest, EmbedWorker, TEXTS_MAX};
