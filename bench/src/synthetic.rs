//! Models of any size and format with made-up weights, so that benches of the engine need no download. Speed
//! does not depend on the values of the weights, only on their format and on the sizes of the network.

use millrace_inference::gguf::TensorType;
use millrace_inference::model::Model;
use std::sync::Arc;

/// Where tensor data begins and each tensor starts (GGUF's default alignment).
const ALIGNMENT: usize = 32;
/// GGUF's numbers for value types.
const TYPE_U32: u32 = 4;
const TYPE_F32: u32 = 6;
const TYPE_STRING: u32 = 8;

/// The sizes of a network.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Width of the feed-forward part.
    pub ff: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Vocabulary.
    pub vocab: usize,
}

impl Sizes {
    /// SmolLM2-135M, the default model.
    pub const SMOL_135M: Sizes = Sizes { layers: 30, width: 576, ff: 1536, heads: 9, kv_heads: 3, vocab: 49_152 };
    /// One layer of it with hardly any vocabulary: the matrix products and the attention, and little else.
    pub const ONE_LAYER: Sizes = Sizes { layers: 1, vocab: 32, ..Sizes::SMOL_135M };

    /// Weights of the matrices of one layer: each is multiplied once for every token.
    pub fn layer_weights(&self) -> usize {
        let head = self.width / self.heads;
        self.width * (2 * self.heads * head + 2 * self.kv_heads * head) + 3 * self.width * self.ff
    }
}

/// A model whose matrices are stored as `kind`.
pub fn model(sizes: Sizes, kind: TensorType) -> Arc<Model> {
    Model::from_bytes(file(sizes, kind)).expect("a synthetic model is well formed")
}

fn file(sizes: Sizes, kind: TensorType) -> Vec<u8> {
    let Sizes { layers, width, ff, heads, kv_heads, vocab } = sizes;
    let kv_width = width / heads * kv_heads;
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), width, vocab, kind),
        ("output_norm.weight".to_owned(), width, 1, TensorType::F32),
    ];
    for layer in 0..layers {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        tensors.extend([
            (name("attn_norm"), width, 1, TensorType::F32),
            (name("attn_q"), width, width, kind),
            (name("attn_k"), width, kv_width, kind),
            (name("attn_v"), width, kv_width, kind),
            (name("attn_output"), width, width, kind),
            (name("ffn_norm"), width, 1, TensorType::F32),
            (name("ffn_gate"), width, ff, kind),
            (name("ffn_up"), width, ff, kind),
            (name("ffn_down"), ff, width, kind),
        ]);
    }
    let numbers = [
        ("llama.block_count", layers),
        ("llama.embedding_length", width),
        ("llama.feed_forward_length", ff),
        ("llama.attention.head_count", heads),
        ("llama.attention.head_count_kv", kv_heads),
        ("llama.context_length", 2048),
    ];
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((numbers.len() as u64 + 2).to_le_bytes());
    string(&mut out, "general.architecture");
    out.extend(TYPE_STRING.to_le_bytes());
    string(&mut out, "llama");
    string(&mut out, "llama.attention.layer_norm_rms_epsilon");
    out.extend(TYPE_F32.to_le_bytes());
    out.extend(1e-5f32.to_le_bytes());
    for (key, value) in numbers {
        string(&mut out, key);
        out.extend(TYPE_U32.to_le_bytes());
        out.extend((value as u32).to_le_bytes());
    }
    let mut offset = 0;
    for (name, columns, rows, kind) in &tensors {
        string(&mut out, name);
        let dimensions: &[usize] = if *rows == 1 { &[*columns] } else { &[*columns, *rows] };
        out.extend((dimensions.len() as u32).to_le_bytes());
        dimensions.iter().for_each(|size| out.extend((*size as u64).to_le_bytes()));
        out.extend(kind.number().to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = (offset + tensor_bytes(*columns * rows, *kind)).next_multiple_of(ALIGNMENT);
    }
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    for (_, columns, rows, kind) in &tensors {
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        weights(&mut out, columns * rows, *kind, &mut random);
    }
    out
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn tensor_bytes(elements: usize, kind: TensorType) -> usize {
    elements / kind.block_elements() * kind.block_bytes()
}

/// Blocks of random quants whose scales are small and finite.
fn weights(out: &mut Vec<u8>, elements: usize, kind: TensorType, random: &mut u64) {
    /// 0.001 as a half float.
    const SCALE: [u8; 2] = 0x1419u16.to_le_bytes();
    let mut next = || {
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        *random
    };
    for _ in 0..elements / kind.block_elements() {
        let start = out.len();
        match kind {
            TensorType::F32 => out.extend(1.0f32.to_le_bytes()),
            TensorType::F16 => out.extend(SCALE),
            _ => {
                while out.len() < start + kind.block_bytes() {
                    out.extend(next().to_le_bytes());
                }
                out.truncate(start + kind.block_bytes());
            }
        }
        let block = &mut out[start..];
        match kind {
            TensorType::Q4_0 | TensorType::Q8_0 => block[..2].copy_from_slice(&SCALE),
            TensorType::Q4_1 => {
                block[..2].copy_from_slice(&SCALE);
                block[2..4].copy_from_slice(&SCALE);
            }
            TensorType::Q6_K => {
                let end = block.len();
                block[end - 2..].copy_from_slice(&SCALE);
            }
            _ => {}
        }
    }
}
