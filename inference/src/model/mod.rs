//! Models: hyperparameters and weights read from a GGUF file.
//!
//! Loading checks every size against every other before a weight is touched, so that computing needs no checks.

mod arch;
mod hyper;
mod keys;
mod packed;
mod rope;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

pub use arch::{Activation, Pairs};
pub use hyper::{Experts, Hyper};
pub use rope::{Rope, Scaling};

pub(crate) use rope::RopeTable;
pub(crate) use weights::{FeedForward, Gated, Layer, Weights};

use crate::backend::LoadError;
use crate::gguf::{Gguf, GgufError};
use crate::kv::KvFormat;

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
    /// Elements of the keys (or the values) of a token over all layers.
    pub kv_elements: usize,
}

impl ModelInfo {
    /// Bytes of keys and values of a token over all layers.
    pub fn kv_token_bytes(&self, format: KvFormat) -> usize {
        format.bytes(self.kv_elements)
    }
}

/// A model ready to run. Shared by all that read it; never changes.
#[derive(Debug)]
pub struct Model {
    info: ModelInfo,
    hyper: Hyper,
    gguf: Gguf,
    weights: Weights,
}

impl Model {
    /// Loads a model file and packs its weights. The file must not be shortened while it is being read.
    pub fn load(path: &Path) -> Result<Arc<Model>, LoadError> {
        Self::load_file(path, None)
    }

    /// As [`Model::load`], but keeps the packed weights in a folder and reads them from there the next time.
    pub fn load_cached(path: &Path, folder: &Path) -> Result<Arc<Model>, LoadError> {
        Self::load_file(path, Some(folder))
    }

    fn load_file(path: &Path, folder: Option<&Path>) -> Result<Arc<Model>, LoadError> {
        let wrap = |source| LoadError::Gguf { path: path.to_owned(), source };
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        // A file whose time is unknown cannot be told from its successor.
        let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        Self::from_gguf(Gguf::open(path).map_err(wrap)?, &stem, wrap, folder.zip(modified))
    }

    /// Loads a model that is already in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Arc<Model>, LoadError> {
        let wrap = |source| LoadError::Gguf { path: PathBuf::new(), source };
        Self::from_gguf(Gguf::from_bytes(bytes).map_err(wrap)?, "", wrap, None)
    }

    fn from_gguf(
        gguf: Gguf,
        stem: &str,
        wrap: impl Fn(GgufError) -> LoadError,
        cache: Option<(&Path, SystemTime)>,
    ) -> Result<Arc<Model>, LoadError> {
        let hyper = Hyper::read(&gguf, &wrap)?;
        let info = ModelInfo {
            name: gguf.str("general.name").map_or_else(|_| stem.to_owned(), str::to_owned),
            arch: hyper.arch.to_owned(),
            parameters: gguf.tensors().map(|tensor| tensor.rows as u64 * tensor.columns as u64).sum(),
            context_max: hyper.context_max,
            vocab: hyper.vocab,
            layers: hyper.layers,
            file_bytes: gguf.len_bytes() as u64,
            kv_elements: hyper.kv_elements(),
        };
        let weights = Weights::load(&gguf, &hyper, &wrap, cache)?;
        tracing::info!(model = info.name, bytes = weights.bytes(), "weights packed");
        Ok(Arc::new(Model { info, hyper, gguf, weights }))
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// The model file: tokenizer and chat template read their metadata from it.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Bytes of the packed weights in memory.
    pub fn weights_bytes(&self) -> usize {
        self.weights.bytes()
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Sizes of the network.
    pub fn hyper(&self) -> &Hyper {
        &self.hyper
    }
}
