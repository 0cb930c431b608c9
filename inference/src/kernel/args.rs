//! Arguments of the kernel functions: raw views, because threads write disjoint parts of shared buffers.

use crate::kv::{BlockId, KvFormat};

/// Quantised rows of activations, token after token.
///
/// For each token: `columns` signed bytes, and for each 32 of them a scale and scale × sum (the factor of a weight
/// block's minimum). Models with unquantised weights also need the plain values.
#[derive(Clone, Copy)]
pub(crate) struct Acts {
    /// Quants, −127 to 127.
    pub(crate) q: *mut i8,
    /// Scales.
    pub(crate) d: *mut f32,
    /// Scale × sum of the block's quants.
    pub(crate) s: *mut f32,
    /// Plain values; null when no weight needs them.
    pub(crate) f: *mut f32,
    /// Elements of a row.
    pub(crate) columns: usize,
}

/// One row of tiles (16 outputs) times `count` tokens from `first` on.
pub(crate) struct GemmArgs {
    /// First tile of the row.
    pub(crate) tiles: *const u8,
    /// Tiles of the row.
    pub(crate) blocks: usize,
    /// Activations.
    pub(crate) acts: Acts,
    /// First token.
    pub(crate) first: usize,
    /// Tokens.
    pub(crate) count: usize,
    /// Where the 16 outputs of token `first` go.
    pub(crate) out: *mut f32,
    /// Distance between tokens in `out`.
    pub(crate) stride: usize,
    /// Add to what is there instead of replacing it.
    pub(crate) add: bool,
}

/// One row to normalise and quantise.
pub(crate) struct NormArgs {
    /// The row.
    pub(crate) x: *const f32,
    /// Norm weights; null quantises the row as it is.
    pub(crate) weight: *const f32,
    /// Epsilon of the norm.
    pub(crate) eps: f32,
    /// Destination rows.
    pub(crate) acts: Acts,
    /// Destination row.
    pub(crate) row: usize,
}

/// One block of 32 feed-forward elements for `count` tokens.
pub(crate) struct SwigluArgs {
    /// Gate values, token after token, `stride` apart.
    pub(crate) gate: *const f32,
    /// Up values, likewise.
    pub(crate) up: *const f32,
    /// Distance between tokens in `gate` and `up`.
    pub(crate) stride: usize,
    /// Destination rows.
    pub(crate) acts: Acts,
    /// First destination row.
    pub(crate) first: usize,
    /// Tokens.
    pub(crate) count: usize,
    /// Destination block within a row.
    pub(crate) block: usize,
}

/// Attention of the query heads that share one key/value head, for `tokens` consecutive tokens of one sequence.
pub(crate) struct AttendArgs<'a> {
    /// Rotated queries of the first token's first head; heads follow each other.
    pub(crate) q: *const f32,
    /// Distance between tokens in `q`.
    pub(crate) q_stride: usize,
    /// Where results go, laid out like the queries.
    pub(crate) out: *mut f32,
    /// Distance between tokens in `out`.
    pub(crate) out_stride: usize,
    /// Position of the first token.
    pub(crate) position: usize,
    /// Consecutive tokens.
    pub(crate) tokens: usize,
    /// Query heads per key/value head.
    pub(crate) group: usize,
    /// Elements of a head.
    pub(crate) head_dim: usize,
    /// Factor of scores.
    pub(crate) scale: f32,
    /// Soft bound of scores; 0 means none.
    pub(crate) cap: f32,
    /// Positions that a token sees, its own included.
    pub(crate) window: usize,
    /// Blocks of the sequence.
    pub(crate) blocks: &'a [BlockId],
    /// Keys and values of block 0 of this layer and head, laid out as [`KvFormat`] says.
    pub(crate) kv: *const u8,
    /// Distance between blocks in bytes.
    pub(crate) kv_stride: usize,
    /// Format of keys and values.
    pub(crate) format: KvFormat,
    /// Work space of this thread: [`AttendArgs::scratch_len`] floats.
    pub(crate) scratch: *mut f32,
}

impl AttendArgs<'_> {
    /// Floats of work space for `rows` query rows: queries, results, scores of one block, maximum and sum.
    pub(crate) const fn scratch_len(rows: usize, head_dim: usize) -> usize {
        rows * (2 * head_dim + 16 + 2)
    }
}
