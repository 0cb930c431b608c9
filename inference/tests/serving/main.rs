//! What a caller of the engine can rely on: the tokenizer and template against recorded references, the encoder
//! against another implementation, the scheduler on a backend that checks it, and all of it on the real model.
//!
//! Tests on real models look for them in `MILLRACE_MODELS`, else in `~/.cache/millrace/models`; without them they say
//! so and pass.

mod constrain;
mod encoder;
mod model;
mod scheduler;
mod speculation;
mod support;
mod tokenizer;
