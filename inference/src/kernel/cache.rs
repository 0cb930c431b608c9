//! Keys and values in their two formats: written, and multiplied with queries and weights.
//!
//! The layouts are those of [`KvFormat`]. A slot is a token's place in its block; slots that were not written yet may hold
//! anything.

#![allow(clippy::needless_range_loop)]

use std::array::from_fn;

use half::f16;

use super::vector::Vector;
use crate::kv::{BLOCK_TOKENS, GROUP, KvFormat};
use crate::quant;

/// Writes the key and the value of one token and head.
///
/// # Safety
/// `block` names the memory of a block, layer and head; nobody else touches the slot.
pub(crate) unsafe fn store(format: KvFormat, block: *mut u8, slot: usize, key: &[f32], value: &[f32]) {
    let dim = key.len();
    // SAFETY: all offsets lie in the block as its format lays it out.
    unsafe {
        match format {
            KvFormat::F16 => {
                let keys = block.cast::<u16>().add(slot);
                let values = block.cast::<u16>().add(dim * BLOCK_TOKENS + slot * dim);
                for i in 0..dim {
                    *keys.add(i * BLOCK_TOKENS) = f16::from_f32(key[i]).to_bits();
                    *values.add(i) = f16::from_f32(value[i]).to_bits();
                }
            }
            KvFormat::Q8_0 => {
                let q8 = Q8Block::new(block, dim);
                for group in 0..dim / GROUP {
                    let (quants, scale) = quantise(&key[group * GROUP..][..GROUP]);
                    *q8.key_scales.cast_mut().add(group * BLOCK_TOKENS + slot) = scale;
                    for (four, quants) in quants.as_chunks::<4>().0.iter().enumerate() {
                        let at = (group * GROUP / 4 + four) * 4 * BLOCK_TOKENS + 4 * slot;
                        q8.keys.cast_mut().add(at).cast::<[i8; 4]>().write_unaligned(*quants);
                    }
                    let (quants, scale) = quantise(&value[group * GROUP..][..GROUP]);
                    *q8.value_scales.cast_mut().add(group * BLOCK_TOKENS + slot) = scale;
                    let at = slot * dim + group * GROUP;
                    q8.values.cast_mut().add(at).cast::<[i8; GROUP]>().write_unaligned(quants);
                }
            }
        }
    }
}

/// Bytes and a half-precision scale of 32 elements.
fn quantise(x: &[f32]) -> ([i8; GROUP], u16) {
    let greatest = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let scale = f16::from_f32(greatest / 127.0);
    let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
    // The scale may have been rounded down.
    (from_fn(|i| (x[i] * inverse).round_ties_even().clamp(-127.0, 127.0) as i8), scale.to_bits())
}

/// Parts of a block in `Q8_0`.
#[derive(Clone, Copy)]
struct Q8Block {
    keys: *const i8,
    values: *const i8,
    key_scales: *const u16,
    value_scales: *const u16,
}

impl Q8Block {
    /// # Safety
    /// `block` names a whole block.
    #[inline(always)]
    unsafe fn new(block: *const u8, dim: usize) -> Self {
        let bytes = dim * BLOCK_TOKENS;
        // SAFETY: all parts lie in the block.
        unsafe {
            let key_scales = block.add(2 * bytes).cast::<u16>();
            let value_scales = key_scales.add(dim / GROUP * BLOCK_TOKENS);
            Self { keys: block.cast(), values: block.add(bytes).cast(), key_scales, value_scales }
        }
    }
}

/// Element `i` of a token's key.
///
/// # Safety
/// The slot of the block was written.
pub(super) unsafe fn key(format: KvFormat, block: *const u8, dim: usize, slot: usize, i: usize) -> f32 {
    // SAFETY: as the caller says.
    unsafe {
        match format {
            KvFormat::F16 => quant::half(*block.cast::<u16>().add(i * BLOCK_TOKENS + slot)),
            KvFormat::Q8_0 => {
                let q8 = Q8Block::new(block, dim);
                let scale = quant::half(*q8.key_scales.add(i / GROUP * BLOCK_TOKENS + slot));
                scale * f32::from(*q8.keys.add(i / 4 * 4 * BLOCK_TOKENS + 4 * slot + i % 4))
            }
        }
    }
}

/// Element `i` of a token's value.
///
/// # Safety
/// The slot of the block was written.
pub(super) unsafe fn value(format: KvFormat, block: *const u8, dim: usize, slot: usize, i: usize) -> f32 {
    // SAFETY: as the caller says.
    unsafe {
        match format {
            KvFormat::F16 => quant::half(*block.cast::<u16>().add(dim * BLOCK_TOKENS + slot * dim + i)),
            KvFormat::Q8_0 => {
                let q8 = Q8Block::new(block, dim);
                let scale = quant::half(*q8.value_scales.add(i / GROUP * BLOCK_TOKENS + slot));
                scale * f32::from(*q8.values.add(slot * dim + i))
            }
        }
    }
}

/// Products with blocks of one format. Query rows take `dim` floats each of the work space.
///
/// # Safety
/// All functions: as for [`Vector`]; pointers name whole rows, 16 scores for each row, and a block of the format.
pub(super) trait Format<V: Vector> {
    /// Prepares a query, times `scale`.
    unsafe fn query(from: *const f32, scale: f32, dim: usize, to: *mut f32);
    /// Scores of `R` queries with all slots.
    unsafe fn scores<const R: usize>(dim: usize, q: *const f32, block: *const u8, s: *mut f32);
    /// Adds the weighted values of the first `slots` slots to `R` results.
    unsafe fn weigh<const R: usize>(dim: usize, slots: usize, s: *const f32, block: *const u8, o: *mut f32);
}

pub(super) struct Half;
pub(super) struct Q8;

impl<V: Vector> Format<V> for Half {
    #[inline(always)]
    unsafe fn query(from: *const f32, scale: f32, dim: usize, to: *mut f32) {
        // SAFETY: the caller's duties are passed on.
        unsafe {
            for at in (0..dim).step_by(V::ROWS) {
                V::store(to.add(at), V::mul(V::load(from.add(at)), V::splat(scale)));
            }
        }
    }

    #[inline(always)]
    unsafe fn scores<const R: usize>(dim: usize, q: *const f32, block: *const u8, s: *mut f32) {
        // SAFETY: the caller's duties are passed on.
        unsafe {
            let keys = block.cast::<u16>();
            let key = |i: usize, part: usize| V::load_half(keys.add(i * BLOCK_TOKENS + part * V::ROWS));
            panel::<V, false, R>(dim, (q, dim), key, (s, BLOCK_TOKENS));
        }
    }

    #[inline(always)]
    unsafe fn weigh<const R: usize>(dim: usize, slots: usize, s: *const f32, block: *const u8, o: *mut f32) {
        // SAFETY: the caller's duties are passed on.
        unsafe {
            let values = block.cast::<u16>().add(dim * BLOCK_TOKENS);
            for at in (0..dim).step_by(super::TILE_ROWS) {
                let value = |slot: usize, part: usize| V::load_half(values.add(slot * dim + at + part * V::ROWS));
                panel::<V, true, R>(slots, (s, BLOCK_TOKENS), value, (o.add(at), dim));
            }
        }
    }
}

/// Floats of a query row that hold its bytes; the scale of each group follows.
#[inline(always)]
fn query_scales(dim: usize) -> usize {
    dim / 4
}

impl<V: Vector> Format<V> for Q8 {
    /// Queries are quantised too: a byte for each element, then a scale for each group.
    #[inline(always)]
    unsafe fn query(from: *const f32, scale: f32, dim: usize, to: *mut f32) {
        // SAFETY: bytes and scales take 5/16 of the row at most; the caller keeps the rest.
        unsafe {
            for group in 0..dim / GROUP {
                let x = V::block_load(from.add(group * GROUP));
                let magnitude = V::block_magnitude(x);
                let inverse = if magnitude > 0.0 { 127.0 / magnitude } else { 0.0 };
                V::block_quantize(x, inverse, to.cast::<i8>().add(group * GROUP));
                *to.add(query_scales(dim) + group) = magnitude / 127.0 * scale;
            }
        }
    }

    #[inline(always)]
    unsafe fn scores<const R: usize>(dim: usize, q: *const f32, block: *const u8, s: *mut f32) {
        // SAFETY: the caller's duties are passed on. At most two registers cover 16 slots.
        unsafe {
            let q8 = Q8Block::new(block, dim);
            let mut acc = [[V::zero(); 2]; R];
            for group in 0..dim / GROUP {
                for part in 0..V::PARTS {
                    let mut sums = [V::int_zero(); R];
                    for lane in 0..GROUP / 4 {
                        let at = (group * GROUP / 4 + lane) * 4 * BLOCK_TOKENS + part * V::ROWS * 4;
                        let keys = V::load_bytes(q8.keys.add(at).cast());
                        for r in 0..R {
                            let bytes = q.add(r * dim).cast::<i8>().add(group * GROUP + 4 * lane);
                            sums[r] = V::sum_bytes(sums[r], keys, V::splat_bytes(bytes));
                        }
                    }
                    let scale = V::load_half(q8.key_scales.add(group * BLOCK_TOKENS + part * V::ROWS));
                    for r in 0..R {
                        let scale = V::mul(scale, V::splat(*q.add(r * dim + query_scales(dim) + group)));
                        acc[r][part] = V::fmadd(V::float(sums[r]), scale, acc[r][part]);
                    }
                }
            }
            for (r, acc) in acc.iter().enumerate() {
                for part in 0..V::PARTS {
                    V::store(s.add(r * BLOCK_TOKENS + part * V::ROWS), acc[part]);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<const R: usize>(dim: usize, slots: usize, s: *const f32, block: *const u8, o: *mut f32) {
        // SAFETY: the caller's duties are passed on.
        unsafe {
            let q8 = Q8Block::new(block, dim);
            let mut weights = [[0.0_f32; BLOCK_TOKENS]; R];
            for group in 0..dim / GROUP {
                // A value's scale goes into its weight. Those of slots behind `slots` are not read.
                for part in 0..V::PARTS {
                    let scale = V::load_half(q8.value_scales.add(group * BLOCK_TOKENS + part * V::ROWS));
                    for (r, weights) in weights.iter_mut().enumerate() {
                        let weight = V::load(s.add(r * BLOCK_TOKENS + part * V::ROWS));
                        V::store(weights.as_mut_ptr().add(part * V::ROWS), V::mul(weight, scale));
                    }
                }
                for at in (group * GROUP..(group + 1) * GROUP).step_by(super::TILE_ROWS) {
                    let value =
                        |slot: usize, part: usize| V::load_signed(q8.values.add(slot * dim + at + part * V::ROWS));
                    panel::<V, true, R>(slots, (weights.as_ptr().cast(), BLOCK_TOKENS), value, (o.add(at), dim));
                }
            }
        }
    }
}

/// C (R × 16) = A (R × n) × B (n × 16), or added to C; A and C with the distance between their rows.
#[inline(always)]
unsafe fn panel<V: Vector, const ADD: bool, const R: usize>(
    n: usize,
    (a, a_stride): (*const f32, usize),
    b: impl Fn(usize, usize) -> V::F,
    (c, c_stride): (*mut f32, usize),
) {
    // SAFETY: the caller names whole panels. At most two registers cover 16 columns.
    unsafe {
        let mut acc = [[V::zero(); 2]; R];
        for k in 0..n {
            for part in 0..V::PARTS {
                let b = b(k, part);
                for r in 0..R {
                    acc[r][part] = V::fmadd(b, V::splat(*a.add(r * a_stride + k)), acc[r][part]);
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for part in 0..V::PARTS {
                let c = c.add(r * c_stride + part * V::ROWS);
                V::store(c, if ADD { V::add(V::load(c), acc[part]) } else { acc[part] });
            }
        }
    }
}
