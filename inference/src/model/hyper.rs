//! Sizes and variants of a network, read from metadata and checked.

use super::arch::{Activation, Architecture, Mixture, SUPPORTED, Windows};
use super::keys::{Keys, checked, shape, variant};
use super::rope::Rope;
use crate::backend::LoadError;
use crate::gguf::{Gguf, GgufError, Value};

/// Bounds on sizes; far above any model that this engine could run, low enough that products cannot overflow.
const LAYERS_MAX: u64 = 1024;
const WIDTH_MAX: u64 = 1 << 17;
const HEADS_MAX: u64 = 1024;
const HEAD_DIM_MAX: u64 = 256;
const VOCAB_MAX: u64 = 1 << 21;
const CONTEXT_MAX: u64 = 1 << 24;
const EXPERTS_MAX: u64 = 1024;

/// Sizes and variants of a network of the llama family.
#[derive(Clone, Debug, PartialEq)]
pub struct Hyper {
    /// Architecture name: the prefix of the metadata keys.
    pub arch: &'static str,
    /// Transformer layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the feed-forward part, of one expert where there are experts.
    pub ff: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Rotation by position.
    pub rope: Rope,
    /// Epsilon of the norms.
    pub norm_eps: f32,
    /// Longest context the model was trained for.
    pub context_max: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// What the gate goes through.
    pub activation: Activation,
    /// Factor of embeddings.
    pub embedding_scale: f32,
    /// Factor of attention scores.
    pub attention_scale: f32,
    /// Soft bound of attention scores.
    pub attention_cap: Option<f32>,
    /// Soft bound of logits.
    pub logit_cap: Option<f32>,
    /// Positions that each layer sees, its own included; `usize::MAX` without a window.
    pub windows: Vec<usize>,
    /// Experts, where each token goes through a few of many feed-forward parts.
    pub experts: Option<Experts>,
    pub(super) head_norms: bool,
    pub(crate) post_norms: bool,
    pub(super) fused_gate: bool,
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that a token goes through.
    pub used: usize,
    /// Whether the weights of the used ones are scaled to the sum 1.
    pub normalised: bool,
}

impl Hyper {
    pub(super) fn read(gguf: &Gguf, wrap: &impl Fn(GgufError) -> LoadError) -> Result<Hyper, LoadError> {
        let name = gguf.str("general.architecture").map_err(wrap)?;
        let arch = Architecture::by_name(name)
            .ok_or_else(|| LoadError::Architecture { arch: name.to_owned(), supported: SUPPORTED })?;
        let keys = Keys::new(gguf, arch.name, wrap);
        let layers = keys.size("block_count", LAYERS_MAX, 1)?;
        // 32 is the length of a quantisation block of activations.
        let width = keys.size("embedding_length", WIDTH_MAX, 32)?;
        let heads = keys.size("attention.head_count", HEADS_MAX, 1)?;
        let kv_heads = keys.size_or("attention.head_count_kv", heads, HEADS_MAX, 1)?;
        if heads % kv_heads != 0 {
            return Err(shape("attention.head_count_kv", kv_heads, format!("a divisor of head_count {heads}")));
        }
        let head_dim = keys.size_or("attention.key_length", width / heads, HEAD_DIM_MAX, 16)?;
        checked("head dimension", head_dim as u64, HEAD_DIM_MAX, 16)?;
        let value_dim = keys.size_or("attention.value_length", head_dim, HEAD_DIM_MAX, 16)?;
        if value_dim != head_dim {
            return Err(shape("attention.value_length", value_dim, format!("{head_dim}, the length of a key")));
        }
        // Rows of the attention output feed the next product, which reads blocks of 32.
        checked("attention width", (heads * head_dim) as u64, WIDTH_MAX, 32)?;
        let vocab = gguf.require_tensor("token_embd.weight").map_err(wrap)?.rows;
        let vocab = checked("vocabulary", vocab as u64, VOCAB_MAX, 1)?;
        let norm_eps = keys.positive("attention.layer_norm_rms_epsilon")?.ok_or_else(|| {
            let key = format!("{}.attention.layer_norm_rms_epsilon", arch.name);
            wrap(GgufError::MissingKey { key })
        })?;
        let context_max = keys.size("context_length", CONTEXT_MAX, 1)?;
        let rope = Rope::read(&keys, (arch.pairs, head_dim, context_max), arch.local_theta)?;
        let (experts, ff) = read_experts(&keys, arch)?;
        let windows = read_windows(&keys, arch, layers)?;
        if !keys.flag("attention.causal", true)? {
            return Err(variant("attention.causal", false, "true: this engine runs language models"));
        }
        let scale_dim = if arch.wide_scale_layers == Some(layers) { width / heads } else { head_dim };
        let default_scale = 1.0 / (scale_dim as f64).sqrt();
        let attention_scale = keys.cap("attention.scale")?.unwrap_or(default_scale) as f32;
        let (mut attention_cap, mut logit_cap) = (None, None);
        if arch.soft_caps {
            attention_cap = keys.cap("attn_logit_softcapping")?.map(|cap| cap as f32);
            logit_cap = keys.cap("final_logit_softcapping")?.map(|cap| cap as f32);
        }
        keys.all_understood()?;
        Ok(Hyper {
            arch: arch.name,
            layers,
            width,
            ff,
            heads,
            kv_heads,
            head_dim,
            rope,
            norm_eps: norm_eps as f32,
            context_max,
            vocab,
            activation: arch.activation,
            embedding_scale: if arch.scaled_embedding { (width as f32).sqrt() } else { 1.0 },
            attention_scale,
            attention_cap,
            logit_cap,
            windows,
            experts,
            head_norms: arch.head_norms,
            post_norms: arch.post_norms,
            fused_gate: arch.fused_gate,
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

    /// Elements of the keys (or the values) of one token over all layers. Layers with a window keep all of them too:
    /// their blocks are shared with the layers that need them.
    pub fn kv_elements(&self) -> usize {
        self.layers * self.kv_width()
    }

    /// Which of the rotation's tables a layer uses.
    pub(crate) fn rope_table(&self, layer: usize) -> usize {
        usize::from(self.rope.local_theta.is_some() && self.windows[layer] != usize::MAX)
    }
}

/// Experts, and the width of the feed-forward part of a token.
fn read_experts<W: Fn(GgufError) -> LoadError>(
    keys: &Keys<'_, W>,
    arch: &Architecture,
) -> Result<(Option<Experts>, usize), LoadError> {
    let ff_max = WIDTH_MAX * 4;
    let count = match arch.experts {
        Mixture::Never => None,
        Mixture::IfNamed => keys.count("expert_count", EXPERTS_MAX)?,
        Mixture::Always => Some(keys.size("expert_count", EXPERTS_MAX, 1)?),
    };
    let Some(count) = count else {
        if arch.experts != Mixture::Never {
            keys.get("expert_used_count");
        }
        return Ok((None, keys.size("feed_forward_length", ff_max, 32)?));
    };
    let used = keys.size("expert_used_count", count as u64, 1)?;
    let normalised = keys.flag("expert_weights_norm", true)?;
    // 1 is softmax over all experts, the only rule of the architectures here; 0 means that the file does not say.
    if let Some(rule) = keys.count("expert_gating_func", u64::MAX)?.filter(|&rule| rule != 1) {
        return Err(variant("expert_gating_func", rule, "1 (softmax)"));
    }
    if let Some(scale) = keys.number("expert_weights_scale")?.filter(|&scale| scale != 0.0 && scale != 1.0) {
        return Err(variant("expert_weights_scale", scale, "1"));
    }
    if let Some(shared) = keys.count("expert_shared_count", EXPERTS_MAX)? {
        return Err(variant("expert_shared_count", shared, "0: shared experts are not supported"));
    }
    // The width of layers without experts may stand beside that of an expert; here all layers have experts.
    keys.get("feed_forward_length");
    let ff = match keys.get("expert_feed_forward_length") {
        Some(_) => keys.size("expert_feed_forward_length", ff_max, 32)?,
        None => keys.size("feed_forward_length", ff_max, 32)?,
    };
    Ok((Some(Experts { count, used, normalised }), ff))
}

/// The window of each layer.
fn read_windows<W: Fn(GgufError) -> LoadError>(
    keys: &Keys<'_, W>,
    arch: &Architecture,
    layers: usize,
) -> Result<Vec<usize>, LoadError> {
    const PATTERN: &str = "attention.sliding_window_pattern";
    let window = match keys.get("attention.sliding_window") {
        None => arch.default_window,
        Some(_) => keys.count("attention.sliding_window", u64::from(u32::MAX))?,
    };
    let mut pattern = arch.windows;
    let mut windowed: Option<Vec<bool>> = None;
    match keys.get(PATTERN) {
        None => {}
        Some(Value::Array(array)) => {
            let flags = array.flags().filter(|flags| flags.len() == layers);
            let expected = || variant(PATTERN, "an array", format!("{layers} flags, one for each layer"));
            windowed = Some(flags.ok_or_else(expected)?);
        }
        Some(_) => pattern = Windows::AllButLastOf(keys.size(PATTERN, LAYERS_MAX, 1)?),
    }
    let has_window = |layer: usize| match (&windowed, pattern) {
        (Some(flags), _) => flags[layer],
        (None, Windows::All) => true,
        (None, Windows::AllButLastOf(period)) => layer % period != period - 1,
    };
    Ok((0..layers).map(|layer| window.filter(|_| has_window(layer)).unwrap_or(usize::MAX)).collect())
}
