//! Sizes of a network, read from metadata and checked.

use crate::backend::LoadError;
use crate::gguf::{Gguf, GgufError};

/// Bounds on sizes; far above any model that this engine could run, low enough that products cannot overflow.
const LAYERS_MAX: u64 = 1024;
const WIDTH_MAX: u64 = 1 << 17;
const HEADS_MAX: u64 = 1024;
const HEAD_DIM_MAX: u64 = 256;
const VOCAB_MAX: u64 = 1 << 21;
const CONTEXT_MAX: u64 = 1 << 24;

/// Sizes of a network of the llama family.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyper {
    /// Architecture name: the prefix of the metadata keys.
    pub arch: String,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the feed-forward part.
    pub ff: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Leading elements of a head that are rotated by position.
    pub rope_dim: usize,
    /// Base of the rotation frequencies.
    pub rope_theta: f64,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Longest context the model was trained for.
    pub context_max: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
}

impl Hyper {
    pub(super) fn read(gguf: &Gguf, wrap: &impl Fn(GgufError) -> LoadError) -> Result<Hyper, LoadError> {
        let arch = gguf.str("general.architecture").map_err(wrap)?.to_owned();
        if arch != "llama" {
            return Err(LoadError::Architecture { arch, supported: "llama" });
        }
        let key = |name: &str| format!("{arch}.{name}");
        let size = |name: &str, max: u64, multiple: u64| -> Result<usize, LoadError> {
            let value = gguf.u64(&key(name)).map_err(wrap)?;
            checked(name, value, max, multiple)
        };
        let optional = |name: &str, default: usize, max: u64, multiple: u64| -> Result<usize, LoadError> {
            if gguf.get(&key(name)).is_some() { size(name, max, multiple) } else { Ok(default) }
        };
        let layers = size("block_count", LAYERS_MAX, 1)?;
        // 32 is the length of a quantisation block of activations.
        let width = size("embedding_length", WIDTH_MAX, 32)?;
        let ff = size("feed_forward_length", WIDTH_MAX * 4, 32)?;
        let heads = size("attention.head_count", HEADS_MAX, 1)?;
        let kv_heads = optional("attention.head_count_kv", heads, HEADS_MAX, 1)?;
        if heads % kv_heads != 0 {
            return Err(shape("head_count_kv", kv_heads, format!("a divisor of head_count {heads}")));
        }
        let head_dim = optional("attention.key_length", width / heads, HEAD_DIM_MAX, 16)?;
        checked("head dimension", head_dim as u64, HEAD_DIM_MAX, 16)?;
        let value_dim = optional("attention.value_length", head_dim, HEAD_DIM_MAX, 16)?;
        if value_dim != head_dim {
            return Err(shape("attention.value_length", value_dim, format!("{head_dim}, the length of a key")));
        }
        // Rows of the attention output feed the next product, which reads blocks of 32.
        checked("attention width", (heads * head_dim) as u64, WIDTH_MAX, 32)?;
        let rope_dim = optional("rope.dimension_count", head_dim, head_dim as u64, 2)?;
        let vocab = gguf.require_tensor("token_embd.weight").map_err(wrap)?.rows;
        let vocab = checked("vocabulary", vocab as u64, VOCAB_MAX, 1)?;
        let float = |name: &str, default: Option<f64>| match (gguf.f64(&key(name)), default) {
            (Err(GgufError::MissingKey { .. }), Some(default)) => Ok(default),
            (value, _) => value.map_err(wrap),
        };
        let rope_theta = float("rope.freq_base", Some(10_000.0))?;
        if !(rope_theta.is_finite() && rope_theta > 0.0) {
            return Err(shape("rope.freq_base", 0, "a positive number".into()));
        }
        let norm_eps = float("attention.layer_norm_rms_epsilon", None)? as f32;
        if !(norm_eps.is_finite() && norm_eps > 0.0) {
            return Err(shape("attention.layer_norm_rms_epsilon", 0, "a positive number".into()));
        }
        refuse_rope_scaling(gguf, &key("rope.scaling.type"))?;
        let context_max = size("context_length", CONTEXT_MAX, 1)?;
        Ok(Hyper {
            arch: arch.clone(),
            layers,
            width,
            ff,
            heads,
            kv_heads,
            head_dim,
            rope_dim,
            rope_theta,
            norm_eps,
            context_max,
            vocab,
        })
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Bytes of keys and values of one token over all layers, stored as half floats.
    pub fn kv_token_bytes(&self) -> usize {
        self.layers * 2 * self.kv_width() * 2
    }
}

fn refuse_rope_scaling(gguf: &Gguf, key: &str) -> Result<(), LoadError> {
    match gguf.str(key) {
        Ok(kind) if kind != "none" => {
            Err(shape(&format!("rope scaling ({kind})"), 1, "no scaling: position scaling is not implemented".into()))
        }
        _ => Ok(()),
    }
}

fn checked(what: &str, value: u64, max: u64, multiple: u64) -> Result<usize, LoadError> {
    if value == 0 || value > max || !value.is_multiple_of(multiple) {
        let expected = match multiple {
            1 => format!("from 1 to {max}"),
            _ => format!("a multiple of {multiple} up to {max}"),
        };
        return Err(LoadError::Shape { what: what.to_owned(), value, expected });
    }
    Ok(value as usize)
}

fn shape(what: &str, value: usize, expected: String) -> LoadError {
    LoadError::Shape { what: what.to_owned(), value: value as u64, expected }
}
