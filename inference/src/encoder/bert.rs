//! BERT-style sentence encoders such as all-MiniLM-L6-v2: token embeddings, transformer layers, one vector of length one.
//!
//! Cost sketch for MiniLM (10.6 M multiplications per token): a sentence of 10 tokens streams 21 MB of weights (14 MB
//! with bytes) and takes about 2 ms of two cores; 256 tokens take about 35. Several texts of one pass share every pass over the
//! weights.

use std::path::{Path, PathBuf};

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::dense::{Dense, Precision, quantize};
use super::files::{Config, Description, EncoderError, Pooling, describe};
use super::pass::Pass;
use super::safetensors::Safetensors;
use crate::backend::{Crew, Solo};
use crate::gguf::TensorType;
use crate::kernel::{BLOCK, Kernels, kernels};
use crate::quant::{self, BlockQ8_0};
use crate::tokenizer::WordPiece;

/// Token rows of one pass of many texts. Bounds the work buffers to about 6 MiB for MiniLM.
pub(super) const ROWS_MAX: usize = 512;

pub(super) struct Norm {
    pub scale: Vec<f32>,
    pub shift: Vec<f32>,
    pub epsilon: f32,
}

pub(super) struct Layer {
    pub query_key_value: Dense,
    pub output: Dense,
    pub output_norm: Norm,
    pub up: Dense,
    pub down: Dense,
    pub down_norm: Norm,
}

/// The table of token embeddings.
enum Words {
    Half(Vec<f16>),
    Int8(Vec<BlockQ8_0>),
}

/// A loaded sentence encoder. Immutable, shared between threads.
pub struct Encoder {
    tokenizer: WordPiece,
    tokens_max: usize,
    pub(super) kernels: &'static Kernels,
    pub(super) width: usize,
    pub(super) wide: usize,
    pub(super) heads: usize,
    pub(super) pooling: Pooling,
    words: Words,
    /// Position and token-type embeddings added up: every text is of type 0.
    positions: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) layers: Vec<Layer>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder")
            .field("width", &self.width)
            .field("layers", &self.layers.len())
            .field("pooling", &self.pooling)
            .finish_non_exhaustive()
    }
}

impl Encoder {
    /// Loads a model folder.
    pub fn load(folder: &Path, precision: Precision) -> Result<Encoder, EncoderError> {
        let description = describe(folder)?;
        Weights::open(folder, precision)?.encoder(description)
    }

    /// Bytes of the weights in memory.
    pub fn weights_bytes(&self) -> usize {
        let layer = |layer: &Layer| {
            layer.query_key_value.bytes() + layer.output.bytes() + layer.up.bytes() + layer.down.bytes()
        };
        let words = match &self.words {
            Words::Half(words) => size_of_val(&words[..]),
            Words::Int8(blocks) => size_of_val(&blocks[..]),
        };
        words + size_of_val(&self.positions[..]) + self.layers.iter().map(layer).sum::<usize>()
    }

    /// Length of a vector.
    pub fn dimensions(&self) -> usize {
        self.width
    }

    /// Most tokens of a text that count; the rest is left out, as in the reference.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// Tokens of a text, start and end included.
    pub fn count_tokens(&self, text: &str) -> usize {
        self.encode(text).len()
    }

    /// One vector of length one for each text, on this thread alone.
    pub fn embed(&self, texts: &[&str]) -> Vec<Vec<f32>> {
        self.embed_with(&mut Solo, texts)
    }

    fn embed_with(&self, crew: &mut dyn Crew, texts: &[&str]) -> Vec<Vec<f32>> {
        let ids: Vec<Vec<u32>> = texts.iter().map(|text| self.encode(text)).collect();
        let (mut pass, mut vectors, mut rest) = (Pass::default(), Vec::with_capacity(texts.len()), &ids[..]);
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = rest.iter().take_while(|ids| {
                rows += ids.len();
                rows <= ROWS_MAX
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            pass.begin(self, now.iter().map(Vec::as_slice));
            while !pass.advance(self, crew) {}
            vectors.extend(pass.vectors(self));
            rest = later;
        }
        vectors
    }

    /// Ids of a text, start and end included.
    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text, self.tokens_max)
    }

    /// Writes the embedding of a token at a position, before its norm.
    pub(super) fn look_up(&self, id: u32, position: usize, row: &mut [f32]) {
        let first = id as usize * self.width;
        match &self.words {
            Words::Half(words) => words[first..][..self.width].convert_to_f32_slice(row),
            Words::Int8(blocks) => {
                let blocks = &blocks[first / BLOCK..][..self.width / BLOCK];
                let known = quant::dequantize(TensorType::Q8_0, bytemuck::cast_slice(blocks), row);
                assert!(known, "the format is one of the known ones");
            }
        }
        for (x, y) in row.iter_mut().zip(&self.positions[position * self.width..]) {
            *x += y;
        }
    }
}

/// The weights file while an encoder is made from it.
struct Weights {
    path: PathBuf,
    file: Safetensors<std::fs::File>,
    /// Some exports put this before every name.
    prefix: &'static str,
    precision: Precision,
}

impl Weights {
    fn open(folder: &Path, precision: Precision) -> Result<Weights, EncoderError> {
        let path = folder.join("model.safetensors");
        if let Err(source) = std::fs::metadata(&path) {
            return Err(EncoderError::Io { path, source });
        }
        match Safetensors::open(&path) {
            Ok(file) => {
                let prefix = if file.contains("bert.embeddings.LayerNorm.weight") { "bert." } else { "" };
                Ok(Weights { path, file, prefix, precision })
            }
            Err(source) => Err(EncoderError::Weights { path, source }),
        }
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, EncoderError> {
        let name = format!("{}{name}", self.prefix);
        self.file.read(&name, shape).map_err(|source| EncoderError::Weights { path: self.path.clone(), source })
    }

    fn read_half(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f16>, EncoderError> {
        let name = format!("{}{name}", self.prefix);
        self.file.read_half(&name, shape).map_err(|source| EncoderError::Weights { path: self.path.clone(), source })
    }

    fn dense(
        &mut self,
        names: &[String],
        inputs: usize,
        outputs: usize,
        precision: Precision,
    ) -> Result<Dense, EncoderError> {
        let (mut weights, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            weights.extend(self.read_half(&format!("{name}.weight"), &[outputs, inputs])?);
            bias.extend(self.read(&format!("{name}.bias"), &[outputs])?);
        }
        Dense::new(&weights, &bias, inputs, precision).map_err(|_| EncoderError::Range(names.join(", ")))
    }

    fn norm(&mut self, name: &str, config: &Config) -> Result<Norm, EncoderError> {
        let scale = self.read(&format!("{name}.weight"), &[config.hidden_size])?;
        let shift = self.read(&format!("{name}.bias"), &[config.hidden_size])?;
        Ok(Norm { scale, shift, epsilon: config.layer_norm_eps })
    }

    fn words(&mut self, config: &Config) -> Result<Words, EncoderError> {
        let name = "embeddings.word_embeddings.weight";
        let words = self.read_half(name, &[config.vocab_size, config.hidden_size])?;
        if words.iter().any(|w| !w.is_finite()) {
            return Err(EncoderError::Range(name.to_owned()));
        }
        Ok(match self.precision {
            Precision::Half => Words::Half(words),
            Precision::Int8 => Words::Int8(quantize(&words)),
        })
    }

    fn layer(&mut self, at: usize, config: &Config) -> Result<Layer, EncoderError> {
        let (width, wide) = (config.hidden_size, config.intermediate_size);
        let name = |part: &str| format!("encoder.layer.{at}.{part}");
        let parts = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(Layer {
            // Queries and keys decide where to look: rounding them to bytes costs more of the vectors than all else.
            query_key_value: self.dense(&parts, width, width, Precision::Half)?,
            output: self.dense(&[name("attention.output.dense")], width, width, self.precision)?,
            output_norm: self.norm(&name("attention.output.LayerNorm"), config)?,
            up: self.dense(&[name("intermediate.dense")], width, wide, self.precision)?,
            down: self.dense(&[name("output.dense")], wide, width, self.precision)?,
            down_norm: self.norm(&name("output.LayerNorm"), config)?,
        })
    }

    fn encoder(mut self, description: Description) -> Result<Encoder, EncoderError> {
        let Description { config, tokenizer, tokens_max, pooling } = description;
        let (width, wide) = (config.hidden_size, config.intermediate_size);
        let shape = [config.max_position_embeddings, width];
        let mut positions = self.read("embeddings.position_embeddings.weight", &shape)?;
        let types = self.read("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, width])?;
        for row in positions.chunks_exact_mut(width) {
            row.iter_mut().zip(&types).for_each(|(x, y)| *x += y);
        }
        Ok(Encoder {
            tokenizer,
            tokens_max,
            kernels: kernels(),
            width,
            wide,
            heads: config.num_attention_heads,
            pooling,
            words: self.words(&config)?,
            positions,
            norm: self.norm("embeddings.LayerNorm", &config)?,
            layers: (0..config.num_hidden_layers).map(|at| self.layer(at, &config)).collect::<Result<_, _>>()?,
        })
    }
}
