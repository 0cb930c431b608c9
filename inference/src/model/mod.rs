//! Models: hyperparameters and weights read from a GGUF file.
//!
//! Loading checks every size against every other before a weight is touched, so that computing needs no checks.

mod hyper;

use std::path::Path;
use std::sync::Arc;

pub use hyper::Hyper;

use crate::backend::LoadError;
use crate::gguf::{Gguf, GgufError};

/// What a loaded model is, for listings and limits.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelInfo {
    /// Name from the file, or the file's stem.
    pub name: String,
    /// Architecture name from the file.
    pub arch: String,
    /// Weights, counted.
    pub parameters: u64,
    /// Longest context the model was trained for, in tokens.
    pub context_max: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Transformer layers.
    pub layers: usize,
    /// Bytes of the model file.
    pub file_bytes: u64,
    /// Bytes of keys and values per token over all layers.
    pub kv_token_bytes: usize,
}

/// A model ready to run. Shared by all that read it; never changes.
#[derive(Debug)]
pub struct Model {
    info: ModelInfo,
    hyper: Hyper,
    gguf: Gguf,
}

impl Model {
    /// Loads a model file.
    pub fn load(path: &Path) -> Result<Arc<Model>, LoadError> {
        let wrap = |source| LoadError::Gguf { path: path.to_owned(), source };
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Self::from_gguf(Gguf::open(path).map_err(wrap)?, &stem, wrap)
    }

    fn from_gguf(gguf: Gguf, stem: &str, wrap: impl Fn(GgufError) -> LoadError) -> Result<Arc<Model>, LoadError> {
        let hyper = Hyper::read(&gguf, &wrap)?;
        let info = ModelInfo {
            name: gguf.str("general.name").map_or_else(|_| stem.to_owned(), str::to_owned),
            arch: hyper.arch.clone(),
            parameters: gguf.tensors().map(|tensor| tensor.rows as u64 * tensor.columns as u64).sum(),
            context_max: hyper.context_max,
            vocab: hyper.vocab,
            layers: hyper.layers,
            file_bytes: gguf.len_bytes() as u64,
            kv_token_bytes: hyper.kv_token_bytes(),
        };
        Ok(Arc::new(Model { info, hyper, gguf }))
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The model file: tokenizer and chat template read their metadata from it.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Sizes of the network.
    pub fn hyper(&self) -> &Hyper {
        &self.hyper
    }
}
