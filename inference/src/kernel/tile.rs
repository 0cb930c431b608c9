//! The packed layout of weights: tiles of 16 output rows × 32 input elements.
//!
//! | tile | for | bytes | content |
//! |---|---|---|---|
//! | `Q4` | Q4_0, Q4_1 | 320 | 4 lanes of 64 bytes, 16 half scales, 16 half minima |
//! | `Q4K` | Q4_K | 384 | as `Q4`, scales and minima as floats |
//! | `Q2K` | Q2_K, Q3_K | 512 | as `Q4`, 2 × 16 scales and minima (each for 16 elements), floats |
//! | `Q8` | Q8_0, IQ4_NL | 544 | 8 lanes of 64 bytes, 16 half scales |
//! | `Wide` | Q5_0, Q5_1, Q5_K, Q6_K | 704 | 8 lanes of 64 bytes, 2 × 16 scales (each for 16 elements), 16 minima, floats |
//! | `F16` | F16 | 1024 | 32 lanes of 16 half floats |
//! | `F32` | F32, BF16 | 2048 | 32 lanes of 16 floats |
//!
//! A lane of bytes holds 4 consecutive elements of 16 rows: byte 4 × row + c of lane i is element 4 × i + c. In `Q4` the
//! low nibbles are elements 0 to 15 and the high nibbles 16 to 31. So one 32-bit broadcast of 4 activations meets 8 (or
//! 16) rows in one vector, and the results of a tile are 16 rows side by side, without a horizontal sum.
//!
//! The layout is also that of the second operand of AMX's byte products (Intel's Architecture Instruction Set Extensions,
//! TDPBSUD and TDPBSSD): there, row i of a tile holds 4 consecutive elements of each of 16 columns, which is one lane
//! here. The 8 lanes of a `Q8` or `Wide` block, or of a `Q4` block after its nibbles were spread to bytes, load as a
//! tile of 8 × 64 bytes; 16 tokens' bytes of the block, as they lie in [`super::Acts`], load as the first operand with
//! the activations' width as stride; and one product gives 16 tokens × 16 rows of 32-bit sums, to which scales and minima
//! are applied as ever. Blocks are 32 deep and a tile could be 64, so half of the unit's depth would stay unused: the
//! price of one packed form for all sets. No such kernel is written: none of the processors that this was built on
//! reports `amx_int8`, and a kernel that never ran is no kernel.

use bytemuck::{Pod, Zeroable};
use half::f16;

use super::{BLOCK, TILE_ROWS};
use crate::gguf::TensorType;
use crate::quant::{self, BlockQ4_0, BlockQ4_1, BlockQ8_0};

/// Layout of a packed matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum TileKind {
    Q4,
    Q4K,
    Q2K,
    Q8,
    Wide,
    F16,
    F32,
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TileQ4 {
    pub(crate) q: [u8; 256],
    pub(crate) d: [u16; 16],
    pub(crate) m: [u16; 16],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TileQ4K {
    pub(crate) q: [u8; 256],
    pub(crate) d: [f32; 16],
    pub(crate) m: [f32; 16],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TileQ2K {
    pub(crate) q: [u8; 256],
    pub(crate) d: [[f32; 16]; 2],
    pub(crate) m: [[f32; 16]; 2],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TileQ8 {
    pub(crate) q: [i8; 512],
    pub(crate) d: [u16; 16],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TileWide {
    pub(crate) q: [i8; 512],
    pub(crate) d: [[f32; 16]; 2],
    pub(crate) m: [f32; 16],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TileF16 {
    pub(crate) w: [[u16; 16]; 32],
}

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct TileF32 {
    pub(crate) w: [[f32; 16]; 32],
}

const _: () = assert!(size_of::<TileQ4>() == 320);
const _: () = assert!(size_of::<TileQ4K>() == 384);
const _: () = assert!(size_of::<TileQ2K>() == 512);
const _: () = assert!(size_of::<TileQ8>() == 544);
const _: () = assert!(size_of::<TileWide>() == 704);
const _: () = assert!(size_of::<TileF16>() == 1024);
const _: () = assert!(size_of::<TileF32>() == 2048);

impl TileKind {
    /// Number of kinds.
    pub(crate) const COUNT: usize = 7;

    /// The layout for tensors of `kind`; `None` when there is none.
    pub(crate) fn of(kind: TensorType) -> Option<TileKind> {
        match kind {
            TensorType::Q4_0 | TensorType::Q4_1 => Some(TileKind::Q4),
            TensorType::Q4_K => Some(TileKind::Q4K),
            TensorType::Q2_K | TensorType::Q3_K => Some(TileKind::Q2K),
            TensorType::Q8_0 | TensorType::IQ4_NL => Some(TileKind::Q8),
            TensorType::Q5_0 | TensorType::Q5_1 | TensorType::Q5_K | TensorType::Q6_K => Some(TileKind::Wide),
            TensorType::F16 => Some(TileKind::F16),
            TensorType::F32 | TensorType::BF16 => Some(TileKind::F32),
            _ => None,
        }
    }

    /// Bytes of one tile.
    pub(crate) fn bytes(self) -> usize {
        match self {
            TileKind::Q4 => size_of::<TileQ4>(),
            TileKind::Q4K => size_of::<TileQ4K>(),
            TileKind::Q2K => size_of::<TileQ2K>(),
            TileKind::Q8 => size_of::<TileQ8>(),
            TileKind::Wide => size_of::<TileWide>(),
            TileKind::F16 => size_of::<TileF16>(),
            TileKind::F32 => size_of::<TileF32>(),
        }
    }

    /// True when the product reads plain activations instead of quantised ones.
    pub(crate) fn needs_plain_activations(self) -> bool {
        matches!(self, TileKind::F16 | TileKind::F32)
    }
}

/// A packed matrix: where it lies in the arena of weights. Rows beyond `rows` in the last tile are zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix {
    pub(crate) kind: TileKind,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// First byte in the arena.
    pub(crate) offset: usize,
}

impl Matrix {
    /// Tiles along the rows.
    pub(crate) fn row_tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Tiles along the columns.
    pub(crate) fn blocks(&self) -> usize {
        self.columns / BLOCK
    }

    /// Bytes of one row of tiles.
    pub(crate) fn row_tile_bytes(&self) -> usize {
        self.blocks() * self.kind.bytes()
    }

    /// Bytes of the matrix.
    pub(crate) fn bytes(&self) -> usize {
        self.row_tiles() * self.row_tile_bytes()
    }
}

/// Packs 16 rows (fewer at the end of a matrix) of `source` into one row of tiles.
///
/// `source` holds `rows` ≤ 16 whole rows of `columns` elements in format `kind`; `out` is `blocks × tile bytes`, zeroed.
pub(crate) fn pack_rows(kind: TensorType, source: &[u8], rows: usize, columns: usize, out: &mut [u8]) {
    let row_bytes = columns / kind.block_elements() * kind.block_bytes();
    assert!(rows <= TILE_ROWS && source.len() == rows * row_bytes, "a tile row has at most 16 whole rows");
    for (row, source) in source.chunks_exact(row_bytes).enumerate() {
        match kind {
            TensorType::Q4_0 => tiles(out, source, |tile: &mut TileQ4, block: &BlockQ4_0| {
                // −8 × d is exact in half precision unless d is near the top of its range, where it becomes infinite
                // and so visible; real scales are below 1.
                put_nibbles(&mut tile.q, row, |i| block.quant(i));
                tile.d[row] = block.d;
                tile.m[row] = f16::from_f32(-8.0 * quant::half(block.d)).to_bits();
            }),
            TensorType::Q4_1 => tiles(out, source, |tile: &mut TileQ4, block: &BlockQ4_1| {
                put_nibbles(&mut tile.q, row, |i| block.quant(i));
                tile.d[row] = block.d;
                tile.m[row] = block.m;
            }),
            TensorType::Q8_0 => tiles(out, source, |tile: &mut TileQ8, block: &BlockQ8_0| {
                put_bytes(&mut tile.q, row, &block.q);
                tile.d[row] = block.d;
            }),
            TensorType::Q5_0 => tiles(out, source, |tile: &mut TileWide, block: &quant::BlockQ5_0| {
                put_wide(tile, row, |i| block.quant(i) as i8 - 16, [quant::half(block.d); 2], 0.0);
            }),
            TensorType::Q5_1 => tiles(out, source, |tile: &mut TileWide, block: &quant::BlockQ5_1| {
                put_wide(tile, row, |i| block.quant(i) as i8, [quant::half(block.d); 2], quant::half(block.m));
            }),
            TensorType::IQ4_NL => tiles(out, source, |tile: &mut TileQ8, block: &BlockQ4_0| {
                put_bytes(&mut tile.q, row, &std::array::from_fn(|i| quant::IQ4_NL[usize::from(block.quant(i))]));
                tile.d[row] = block.d;
            }),
            TensorType::Q2_K => super_tiles(out, source, |tile: &mut TileQ2K, block: &quant::BlockQ2K, at| {
                put_nibbles(&mut tile.q, row, |i| block.quant(BLOCK * at + i));
                for half in 0..2 {
                    let (scale, min) = block.scale(2 * at + half);
                    (tile.d[half][row], tile.m[half][row]) = (scale, -min);
                }
            }),
            TensorType::Q3_K => super_tiles(out, source, |tile: &mut TileQ2K, block: &quant::BlockQ3K, at| {
                put_nibbles(&mut tile.q, row, |i| block.quant(BLOCK * at + i));
                for half in 0..2 {
                    let scale = block.scale(2 * at + half);
                    (tile.d[half][row], tile.m[half][row]) = (scale, -4.0 * scale);
                }
            }),
            TensorType::Q4_K => super_tiles(out, source, |tile: &mut TileQ4K, block: &quant::BlockQ4K, at| {
                put_nibbles(&mut tile.q, row, |i| block.quant(BLOCK * at + i));
                let (scale, min) = block.scale(at);
                (tile.d[row], tile.m[row]) = (scale, -min);
            }),
            TensorType::Q5_K => super_tiles(out, source, |tile: &mut TileWide, block: &quant::BlockQ5K, at| {
                let (scale, min) = block.scale(at);
                put_wide(tile, row, |i| block.quant(BLOCK * at + i) as i8, [scale; 2], -min);
            }),
            TensorType::Q6_K => super_tiles(out, source, |tile: &mut TileWide, block: &quant::BlockQ6K, at| {
                let scale = |half: usize| quant::half(block.d) * f32::from(block.scales[2 * at + half]);
                put_wide(tile, row, |i| block.quant(BLOCK * at + i) as i8 - 32, [scale(0), scale(1)], 0.0);
            }),
            TensorType::F16 => tiles(out, source, |tile: &mut TileF16, block: &[u16; 32]| {
                for (lane, &value) in tile.w.iter_mut().zip(block) {
                    lane[row] = value;
                }
            }),
            TensorType::F32 | TensorType::BF16 => {
                let mut values = vec![0.0; columns];
                assert!(quant::dequantize(kind, source, &mut values), "plain formats are always decodable");
                tiles(out, bytemuck::cast_slice(&values), |tile: &mut TileF32, block: &[f32; 32]| {
                    for (lane, &value) in tile.w.iter_mut().zip(block) {
                        lane[row] = value;
                    }
                });
            }
            _ => unreachable!("the loader packs only formats that have a tile kind"),
        }
    }
}

fn tiles<T: Pod, B: Pod>(out: &mut [u8], source: &[u8], put: impl Fn(&mut T, &B)) {
    let tiles: &mut [T] = bytemuck::cast_slice_mut(out);
    for (tile, block) in tiles.iter_mut().zip(source.chunks_exact(size_of::<B>())) {
        put(tile, &bytemuck::pod_read_unaligned(block));
    }
}

/// For formats with 256 elements to a block: `put` fills tile `at` of 8.
fn super_tiles<T: Pod, B: Pod>(out: &mut [u8], source: &[u8], put: impl Fn(&mut T, &B, usize)) {
    let tiles: &mut [T] = bytemuck::cast_slice_mut(out);
    for (tiles, block) in tiles.chunks_exact_mut(8).zip(source.chunks_exact(size_of::<B>())) {
        let block = bytemuck::pod_read_unaligned(block);
        for (at, tile) in tiles.iter_mut().enumerate() {
            put(tile, &block, at);
        }
    }
}

fn put_nibbles(lanes: &mut [u8; 256], row: usize, quant: impl Fn(usize) -> u8) {
    for i in 0..16 {
        lanes[64 * (i / 4) + 4 * row + i % 4] = quant(i) | quant(i + 16) << 4;
    }
}

fn put_bytes(lanes: &mut [i8; 512], row: usize, q: &[i8; 32]) {
    for (i, four) in q.chunks_exact(4).enumerate() {
        lanes[64 * i + 4 * row..][..4].copy_from_slice(four);
    }
}

fn put_wide(tile: &mut TileWide, row: usize, quant: impl Fn(usize) -> i8, d: [f32; 2], m: f32) {
    put_bytes(&mut tile.q, row, &std::array::from_fn(quant));
    tile.d[0][row] = d[0];
    tile.d[1][row] = d[1];
    tile.m[row] = m;
}

/// Quant of element `i` of a row in lanes of nibbles.
pub(super) fn nibble(lanes: &[u8; 256], row: usize, i: usize) -> u8 {
    let byte = lanes[64 * (i % 16 / 4) + 4 * row + i % 4];
    if i < 16 { byte & 15 } else { byte >> 4 }
}

/// Decodes one row out of a row of tiles (embedding look-up).
pub(crate) fn unpack_row(kind: TileKind, row_tile: &[u8], row: usize, out: &mut [f32]) {
    let out = out.chunks_exact_mut(BLOCK);
    match kind {
        TileKind::Q4 => {
            for (tile, out) in bytemuck::cast_slice::<u8, TileQ4>(row_tile).iter().zip(out) {
                let (d, m) = (quant::half(tile.d[row]), quant::half(tile.m[row]));
                for (i, out) in out.iter_mut().enumerate() {
                    *out = d * f32::from(nibble(&tile.q, row, i)) + m;
                }
            }
        }
        TileKind::Q4K => {
            for (tile, out) in bytemuck::cast_slice::<u8, TileQ4K>(row_tile).iter().zip(out) {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = tile.d[row] * f32::from(nibble(&tile.q, row, i)) + tile.m[row];
                }
            }
        }
        TileKind::Q2K => {
            for (tile, out) in bytemuck::cast_slice::<u8, TileQ2K>(row_tile).iter().zip(out) {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = tile.d[i / 16][row] * f32::from(nibble(&tile.q, row, i)) + tile.m[i / 16][row];
                }
            }
        }
        TileKind::Q8 => {
            for (tile, out) in bytemuck::cast_slice::<u8, TileQ8>(row_tile).iter().zip(out) {
                let d = quant::half(tile.d[row]);
                for (i, out) in out.iter_mut().enumerate() {
                    *out = d * f32::from(tile.q[64 * (i / 4) + 4 * row + i % 4]);
                }
            }
        }
        TileKind::Wide => {
            for (tile, out) in bytemuck::cast_slice::<u8, TileWide>(row_tile).iter().zip(out) {
                for (i, out) in out.iter_mut().enumerate() {
                    let q = f32::from(tile.q[64 * (i / 4) + 4 * row + i % 4]);
                    *out = tile.d[i / 16][row] * q + tile.m[row];
                }
            }
        }
        TileKind::F16 => {
            for (tile, out) in bytemuck::cast_slice::<u8, TileF16>(row_tile).iter().zip(out) {
                for (out, lane) in out.iter_mut().zip(&tile.w) {
                    *out = quant::half(lane[row]);
                }
            }
        }
        TileKind::F32 => {
            for (tile, out) in bytemuck::cast_slice::<u8, TileF32>(row_tile).iter().zip(out) {
                for (out, lane) in out.iter_mut().zip(&tile.w) {
                    *out = lane[row];
                }
            }
        }
    }
}
