//! Executes one planned step of a model: ragged rows of tokens in, logits out.
//!
//! The scheduler above decides what runs; a [`Backend`] computes it. It knows block numbers, never sequences, and keeps
//! no state between steps but the KV memory. A row's result depends only on its own sequence: not on its neighbours in
//! the step, not on how a prompt was cut into chunks, not on the number of threads.

mod cpu;
mod forward;
mod head;
mod moe;
mod plan;
mod team;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use cpu::{CpuBackend, CpuConfig};
pub use plan::{LogitsBuf, LogitsWanted, SliceView, StepPlan};
pub use team::{Crew, Solo};
pub(crate) use team::{Team, TeamConfig};

/// What a backend can hold; fixed when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendLimits {
    /// KV blocks; block numbers are `0..blocks`. Each holds [`crate::kv::BLOCK_TOKENS`] tokens of all layers.
    pub blocks: usize,
    /// Most tokens in one step, over all slices.
    pub step_tokens_max: usize,
    /// Most rows of one step that may ask for logits.
    pub step_logits_max: usize,
    /// Highest position + 1 of a token.
    pub context_max: usize,
    /// Length of one row of logits.
    pub vocab: usize,
    /// Sequences of more tokens are turned by other factors (LongRoPE), all their tokens alike: who grows beyond it has
    /// to be computed again. `None` where length makes no difference.
    pub stretch_from: Option<usize>,
}

/// A step was refused or failed. The scheduler's own bookkeeping should make all but the last impossible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The plan holds more than [`BackendLimits`] allows.
    #[error("a step asks for {value} {what}, the backend was made for {max}; plan smaller steps")]
    TooLarge {
        /// What was counted.
        what: &'static str,
        /// The number asked for.
        value: usize,
        /// The limit.
        max: usize,
    },
    /// A token number outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab}; check the tokenizer")]
    Token {
        /// The number.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A slice whose positions need more blocks than its table has, or a block that does not exist.
    #[error("slice {slice} has a block table that does not cover its positions; allocate blocks before planning")]
    Blocks {
        /// Index of the slice in the plan.
        slice: usize,
    },
    /// A slice is said to be stretched, and the model knows nothing of it.
    #[error("slice {slice} is planned as a stretched sequence, which this model does not have")]
    Stretch {
        /// Index of the slice in the plan.
        slice: usize,
    },
    /// A copy from or to a block that does not exist, or of a block onto itself.
    #[error("block {from} cannot be copied to block {to}; allocate blocks before planning")]
    Copy {
        /// Source.
        from: u32,
        /// Destination.
        to: u32,
    },
    /// The plan has no token.
    #[error("a step without tokens was submitted; plan at least one")]
    Empty,
}

/// A backend could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendStartError {
    /// The KV budget does not hold one block.
    #[error(
        "a KV budget of {bytes} bytes holds {blocks} blocks of {block_bytes} bytes, at least {min} are needed; raise the budget"
    )]
    KvBudget {
        /// The budget.
        bytes: usize,
        /// Bytes of one block over all layers.
        block_bytes: usize,
        /// Blocks in the budget.
        blocks: usize,
        /// The least that is useful.
        min: usize,
    },
    /// Keys and values of this model cannot be kept so.
    #[error(
        "keys and values cannot be kept as {format}: a head has {head_dim} elements, no multiple of 32; choose f16"
    )]
    KvFormat {
        /// The format.
        format: crate::kv::KvFormat,
        /// Elements of a head.
        head_dim: usize,
    },
    /// A number in the configuration is outside its range.
    #[error("backend setting {name} is {value}, it must be from {min} to {max}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: usize,
        /// Least allowed.
        min: usize,
        /// Greatest allowed.
        max: usize,
    },
    /// Memory for the KV blocks or the work buffers was refused.
    #[error("the system refused {bytes} bytes of memory for {what}; lower the budget")]
    Memory {
        /// For what.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// A worker thread could not be started.
    #[error("cannot start worker thread {index}; check the limit on threads")]
    Thread {
        /// Which.
        index: usize,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// A model could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file is not a usable GGUF file, or lacks something.
    #[error("cannot load model {}", path.display())]
    Gguf {
        /// The file, empty when it came from memory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: crate::gguf::GgufError,
    },
    /// An architecture without an implementation.
    #[error("model architecture {arch:?} is not supported (supported: {supported}); choose another model")]
    Architecture {
        /// The architecture of the file.
        arch: String,
        /// What is supported.
        supported: &'static str,
    },
    /// A tensor in a format without a kernel.
    #[error(
        "tensor {name:?} is stored as {kind}, which has no kernel (supported: {supported}); use another quantisation"
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// Its format.
        kind: String,
        /// What is supported.
        supported: &'static str,
    },
    /// A size that contradicts another or is outside what the kernels handle.
    #[error("the model's {what} is {value}, expected {expected}; the file is damaged or of an unsupported variant")]
    Shape {
        /// What.
        what: String,
        /// The value found.
        value: u64,
        /// What would have been right.
        expected: String,
    },
    /// A setting with a value that this engine does not know.
    #[error("the model's {what} is {value}, supported is {expected}; choose another variant of the model")]
    Variant {
        /// What.
        what: String,
        /// The value found.
        value: String,
        /// What is supported.
        expected: String,
    },
    /// Something that this engine would have to pass over, so that replies would be wrong without a word.
    #[error(
        "the model file has the {what} {name:?}, which this engine does not know; choose another variant of the model"
    )]
    Unknown {
        /// A tensor or a metadata key.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Memory for the weights was refused.
    #[error("the system refused {bytes} bytes of memory for the weights; free memory or choose a smaller model")]
    Memory {
        /// How much.
        bytes: usize,
    },
}

/// Computes steps. One thread owns a backend and calls it; the backend may use more threads inside.
pub trait Backend: Send {
    /// What this backend can hold.
    fn limits(&self) -> BackendLimits;

    /// To be called once on the thread that will call [`Backend::step`], so that the backend can pin it and set its
    /// priority like its own threads.
    fn attach(&mut self);

    /// The threads that compute steps, for other work between these; `None` when they are not the processor's.
    fn crew(&mut self) -> Option<&mut dyn Crew> {
        None
    }

    /// Runs one step: makes the planned copies of blocks, then writes keys and values of every planned token into its sequence's blocks and one row of logits
    /// for each token that asked, in plan order. On an error nothing was computed.
    fn step(&mut self, plan: &StepPlan, logits: &mut LogitsBuf) -> Result<(), BackendError>;
}
