//! Arithmetic of the engine: one table of functions per instruction set, chosen once at start.
//!
//! Every function has a plain twin in `scalar`, which is both the fall-back and the reference of the tests. The fast
//! sets share one algorithm text (`generic`) over the primitives of `vector::Vector`; a set is one implementation
//! of those primitives. Weights are packed into one layout for all sets (`tile`).
//!
//! A result of any function depends only on the operands of its own row and token, never on how many tokens are
//! computed together: batching cannot change a reply.
#![allow(unsafe_code)]

mod args;
mod attend;
mod avx2;
mod avx512;
mod cache;
mod generic;
mod scalar;
mod tile;
mod vector;

#[cfg(test)]
mod tests;

pub(crate) use args::{Acts, AttendArgs, GemmArgs, NormArgs, SwigluArgs};
pub(crate) use cache::store as store_kv;
pub(crate) use tile::{Matrix, TileKind, pack_rows, unpack_row};

use std::sync::OnceLock;

/// Output rows of one weight tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Elements of one quantisation block: the depth of one weight tile.
pub(crate) const BLOCK: usize = 32;

/// GELU's tanh approximation (arXiv 1606.08415): x / 2 × (1 + tanh(√(2/π) × (x + 0.044715 x³))).
pub(crate) const GELU_SCALE: f32 = 0.797_884_6;
pub(crate) const GELU_CUBE: f32 = 0.044_715;

/// The functions of one instruction set. All are unsafe: their arguments are raw views whose validity the caller keeps.
pub(crate) struct Kernels {
    /// Name for logs and tests.
    pub(crate) name: &'static str,
    /// Product of one row of tiles with tokens, by [`TileKind`].
    pub(crate) gemm: [unsafe fn(&GemmArgs); TileKind::COUNT],
    /// Normalises (or takes as it is) one row and quantises it.
    pub(crate) norm_quantize: unsafe fn(&NormArgs),
    /// SiLU(gate) × up, quantised, for one block of each token.
    pub(crate) swiglu: unsafe fn(&SwigluArgs),
    /// GELU(gate) × up, likewise; GELU in its tanh approximation.
    pub(crate) geglu: unsafe fn(&SwigluArgs),
    /// Bounds 16 values softly: cap × tanh(value / cap).
    pub(crate) soft_cap: unsafe fn(*mut f32, f32),
    /// Attention of a few query rows over the blocks of a sequence.
    pub(crate) attend: unsafe fn(&AttendArgs<'_>),
}

/// The best set that this processor has.
pub(crate) fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<&'static Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let chosen = *available().last().expect("the scalar set is always there");
        tracing::info!(set = chosen.name, "kernels chosen");
        chosen
    })
}

/// Name of the instruction set in use.
pub fn instruction_set() -> &'static str {
    kernels().name
}

/// Every set that this processor can run, the slowest first.
pub(crate) fn available() -> Vec<&'static Kernels> {
    let mut sets = vec![&scalar::KERNELS];
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let avx512 = avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        if avx2 {
            sets.push(&avx2::KERNELS);
        }
        if avx512 {
            sets.push(&avx512::KERNELS);
        }
        if avx512 && is_x86_feature_detected!("avx512vnni") {
            sets.push(&avx512::KERNELS_VNNI);
        }
    }
    sets
}
