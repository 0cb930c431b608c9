//! The language-model engine: GGUF models, quantised CPU kernels, paged KV and continuous batching.
//!
//! This crate knows tensors and tokens. It never knows a session, a tenant, a URL or a socket.

pub mod backend;
pub mod batch;
pub mod constrain;
pub mod encoder;
pub mod gguf;
pub mod kernel;
pub mod kv;
mod math;
pub mod measure;
pub mod model;
mod priority;
pub mod quant;
pub mod request;
pub mod sample;
pub mod speculate;
pub mod stats;
pub mod template;
pub mod tokenizer;
pub mod worker;

pub use constrain::{Constraint, ConstraintError, Frame};
pub use encoder::{EmbedError, EmbedPriority, EmbedRequest, EmbedWorker, Encoder, EncoderError, Precision};
pub use request::{
    CancelHandle, FinishReason, Outlet, Output, ParameterError, Request, Sampling, SubmitError, Timings, TokenOut,
    Usage,
};
pub use speculate::Speculation;
pub use stats::Stats;
pub use template::{ChatTemplate, TemplateError, TemplateMessage, ToolFormat};
pub use tokenizer::{StreamDecoder, Tokenizer, TokenizerError};
pub use worker::{Engine, EngineConfig, EngineError, Forecast};
