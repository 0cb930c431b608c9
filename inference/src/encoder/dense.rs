//! Dense layers of the encoder, `y = x W^T + b`, over the engine's own tiles and kernels.
//!
//! Weights are packed once into tiles of 16 outputs, as half floats or as bytes with a scale for every 32 (Q8_0). A
//! product is one job of a crew of threads: each takes the next row of tiles until none is left, multiplies it with all
//! rows while it is in its cache, and finishes the 16 columns (bias, activation, residual) before it lets go of them.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};

use bytemuck::{Pod, Zeroable};
use half::f16;

use crate::backend::Crew;
use crate::gguf::TensorType;
use crate::kernel::{Acts, BLOCK, GemmArgs, Kernels, Matrix, NormArgs, TILE_ROWS, TileKind, pack_rows};
use crate::math::gelu;
use crate::quant::BlockQ8_0;

/// Rows whose results are finished at a time; a multiple of every kernel's group of tokens, small beside the cache.
const PANEL_ROWS: usize = 48;
/// Rows that a thread quantises at a time.
const QUANTIZE_ROWS: usize = 16;

/// How weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Half floats, multiplied with plain activations: 2 bytes a weight.
    #[default]
    Half,
    /// Bytes with a scale for every 32, multiplied with activations rounded likewise: 1.06 bytes a weight. Projections to
    /// queries, keys and values stay half floats.
    Int8,
}

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It replaces what is there.
    Keep,
    /// Its GELU replaces what is there.
    Gelu,
    /// It is added to what is there.
    Add,
}

/// The weights hold a number that f16 cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfRange;

/// A cache line, so that tiles begin at one.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A packed dense layer.
#[derive(Debug)]
pub(super) struct Dense {
    matrix: Matrix,
    tiles: Vec<Line>,
    /// Padded to whole tiles.
    bias: Vec<f32>,
}

/// Activations rounded to bytes; buffers that are used again.
#[derive(Debug, Default)]
pub(super) struct Quants {
    q: Vec<i8>,
    d: Vec<f32>,
    s: Vec<f32>,
}

/// A place that all threads of a job write to, each its own part.
struct Place(*mut f32);

// SAFETY: whoever dereferences it says why no other thread touches the same part.
unsafe impl Sync for Place {}

/// Views of activations that all threads of a job share.
struct Shared(Acts);

// SAFETY: as for `Place`.
unsafe impl Sync for Shared {}

impl Dense {
    /// Packs weights of shape `[outputs][inputs]`; `inputs` is a multiple of 32.
    pub fn new(weights: &[f16], bias: &[f32], inputs: usize, precision: Precision) -> Result<Self, OutOfRange> {
        let outputs = bias.len();
        assert!(weights.len() == inputs * outputs && inputs.is_multiple_of(BLOCK), "weights and bias fit together");
        if weights.iter().any(|weight| !weight.is_finite()) {
            return Err(OutOfRange);
        }
        let (tensor, kind) = match precision {
            Precision::Half => (TensorType::F16, TileKind::F16),
            Precision::Int8 => (TensorType::Q8_0, TileKind::Q8),
        };
        let matrix = Matrix { kind, rows: outputs, columns: inputs, offset: 0 };
        let mut tiles = vec![Line::zeroed(); matrix.bytes().div_ceil(size_of::<Line>())];
        let bytes: &mut [u8] = &mut bytemuck::cast_slice_mut(&mut tiles)[..matrix.bytes()];
        let rows = weights.chunks(TILE_ROWS * inputs);
        for (out, rows) in bytes.chunks_exact_mut(matrix.row_tile_bytes()).zip(rows) {
            let count = rows.len() / inputs;
            match precision {
                Precision::Half => pack_rows(tensor, bytemuck::cast_slice(rows), count, inputs, out),
                Precision::Int8 => pack_rows(tensor, bytemuck::cast_slice(&quantize(rows)), count, inputs, out),
            }
        }
        let mut padded = bias.to_vec();
        padded.resize(matrix.row_tiles() * TILE_ROWS, 0.0);
        Ok(Self { matrix, tiles, bias: padded })
    }

    /// Bytes of weights and bias.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.tiles[..]) + size_of_val(&self.bias[..])
    }

    /// Multiplications for one row.
    pub fn products(&self) -> usize {
        self.matrix.rows * self.matrix.columns
    }

    /// Applies the layer to rows `x` of `inputs` numbers; `out` holds as many rows of `outputs`.
    pub fn apply(
        &self,
        kernels: &Kernels,
        crew: &mut dyn Crew,
        x: &[f32],
        quants: &mut Quants,
        out: &mut [f32],
        then: Then,
    ) {
        let Matrix { kind, rows: outputs, columns: inputs, .. } = self.matrix;
        let rows = x.len() / inputs;
        assert!(x.len() == rows * inputs && out.len() == rows * outputs, "rows of the layer's own widths");
        let acts = match kind.needs_plain_activations() {
            // Kernels read activations through pointers that could also be written; these are only read.
            true => Acts {
                q: std::ptr::null_mut(),
                d: std::ptr::null_mut(),
                s: std::ptr::null_mut(),
                f: x.as_ptr().cast_mut(),
                columns: inputs,
            },
            false => quants.take(kernels, crew, x, inputs),
        };
        let (acts, place, next) = (Shared(acts), Place(out.as_mut_ptr()), AtomicUsize::new(0));
        let tiles: &[u8] = bytemuck::cast_slice(&self.tiles);
        crew.run(&|| {
            // The whole wrappers are captured, not the pointers in them.
            let (Shared(acts), Place(place)) = (&acts, &place);
            loop {
                let tile = next.fetch_add(1, Ordering::Relaxed);
                if tile >= self.matrix.row_tiles() {
                    return;
                }
                let first_column = tile * TILE_ROWS;
                let columns = TILE_ROWS.min(outputs - first_column);
                let bias: &[f32; TILE_ROWS] = self.bias[first_column..].first_chunk().expect("the bias is padded");
                let row_tile = &tiles[tile * self.matrix.row_tile_bytes()..][..self.matrix.row_tile_bytes()];
                for first in (0..rows).step_by(PANEL_ROWS) {
                    let count = PANEL_ROWS.min(rows - first);
                    let mut panel = [0.0_f32; PANEL_ROWS * TILE_ROWS];
                    let args = GemmArgs {
                        tiles: row_tile.as_ptr(),
                        blocks: self.matrix.blocks(),
                        acts: *acts,
                        first,
                        count,
                        out: panel.as_mut_ptr(),
                        stride: TILE_ROWS,
                        add: false,
                    };
                    // SAFETY: the kernel belongs to this processor; it reads one row of tiles of its kind and rows
                    // `first..first + count` of activations, which nobody writes meanwhile, and writes to `panel`.
                    unsafe { kernels.gemm[kind as usize](&args) };
                    let panel = &mut panel.as_chunks_mut::<TILE_ROWS>().0[..count];
                    finish(panel, bias, then);
                    for (row, done) in panel.iter().enumerate() {
                        // SAFETY: `out` is borrowed for the whole job and has these columns of this row; they belong to
                        // this tile, which one thread alone has taken.
                        let to = unsafe {
                            std::slice::from_raw_parts_mut(place.add((first + row) * outputs + first_column), columns)
                        };
                        match then {
                            Then::Add => to.iter_mut().zip(done).for_each(|(to, done)| *to += done),
                            Then::Keep | Then::Gelu => to.copy_from_slice(&done[..columns]),
                        }
                    }
                }
            }
        });
    }
}

/// Adds the bias and applies the activation. A loop of its own over fixed sizes, which the compiler turns into vectors.
fn finish(panel: &mut [[f32; TILE_ROWS]], bias: &[f32; TILE_ROWS], then: Then) {
    for row in panel {
        for (value, bias) in row.iter_mut().zip(bias) {
            *value += bias;
        }
        if then == Then::Gelu {
            for value in row {
                *value = gelu(*value);
            }
        }
    }
}

impl Quants {
    /// Rounds rows of `columns` numbers to bytes; the view is good until the next call.
    fn take(&mut self, kernels: &Kernels, crew: &mut dyn Crew, x: &[f32], columns: usize) -> Acts {
        self.q.resize(x.len(), 0);
        self.d.resize(x.len() / BLOCK, 0.0);
        self.s.resize(x.len() / BLOCK, 0.0);
        let acts = Acts {
            q: self.q.as_mut_ptr(),
            d: self.d.as_mut_ptr(),
            s: self.s.as_mut_ptr(),
            f: std::ptr::null_mut(),
            columns,
        };
        let (shared, next) = (Shared(acts), AtomicUsize::new(0));
        crew.run(&|| {
            let Shared(acts) = &shared;
            loop {
                let first = next.fetch_add(QUANTIZE_ROWS, Ordering::Relaxed);
                let rows = x.chunks_exact(columns).enumerate().skip(first).take(QUANTIZE_ROWS);
                if rows.len() == 0 {
                    return;
                }
                for (row, x) in rows {
                    let args = NormArgs { x: x.as_ptr(), weight: std::ptr::null(), eps: 0.0, acts: *acts, row };
                    // SAFETY: the kernel belongs to this processor; it reads one row and writes the same row of the
                    // buffers, which were sized above and which one thread alone has taken.
                    unsafe { (kernels.norm_quantize)(&args) };
                }
            }
        });
        acts
    }
}

/// Rounds numbers to bytes with a scale for every 32, as Q8_0 has them.
pub(super) fn quantize(values: &[f16]) -> Vec<BlockQ8_0> {
    let block = |values: &[f16; BLOCK]| {
        let values = values.map(f16::to_f32);
        let magnitude = values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let inverse = if magnitude > 0.0 { 127.0 / magnitude } else { 0.0 };
        let d = f16::from_f32(magnitude / 127.0).to_bits();
        BlockQ8_0 { d, q: values.map(|value| (value * inverse).round() as i8) }
    };
    values.as_chunks::<BLOCK>().0.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Solo;
    use crate::kernel::available;
    use proptest::prelude::*;

    /// Multiples of 1/64 below 2 are exact in f16, and their sums in f32.
    fn number(i: usize, seed: u32) -> f32 {
        (((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as f32 - 128.0) / 64.0
    }

    fn layer(inputs: usize, outputs: usize, seed: u32, precision: Precision) -> (Dense, Vec<f32>, Vec<f32>) {
        let weights: Vec<f32> = (0..inputs * outputs).map(|i| number(i, seed)).collect();
        let bias: Vec<f32> = (0..outputs).map(|i| number(i + 7, seed)).collect();
        let half: Vec<f16> = weights.iter().map(|weight| f16::from_f32(*weight)).collect();
        (Dense::new(&half, &bias, inputs, precision).expect("in range"), weights, bias)
    }

    proptest! {
        #[test]
        fn equals_the_plain_product(rows in 1_usize..60, blocks in 1_usize..4, outputs in 1_usize..40, seed in any::<u32>()) {
            let inputs = blocks * BLOCK;
            let x: Vec<f32> = (0..rows * inputs).map(|i| number(i + 1000, seed)).collect();
            let sum = |weights: &[f32], r: usize, o: usize| -> f32 {
                (0..inputs).map(|k| x[r * inputs + k] * weights[o * inputs + k]).sum()
            };
            for kernels in available() {
                for precision in [Precision::Half, Precision::Int8] {
                    let (layer, weights, bias) = layer(inputs, outputs, seed, precision);
                    let mut out = vec![1.0; rows * outputs];
                    layer.apply(kernels, &mut Solo, &x, &mut Quants::default(), &mut out, Then::Add);
                    for (r, out) in out.chunks_exact(outputs).enumerate() {
                        for (o, out) in out.iter().enumerate() {
                            let expected = 1.0 + bias[o] + sum(&weights, r, o);
                            // Bytes round weights and activations, at most 2 each, by at most 1/254 of that.
                            let bound = if precision == Precision::Half { 0.0 } else { inputs as f32 * 0.033 };
                            prop_assert!((out - expected).abs() <= bound, "{} {precision:?}: {out}, {expected}", kernels.name);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_result_is_kept_bent_or_added() {
        let (layer, weights, bias) = layer(32, 5, 3, Precision::Half);
        let x: Vec<f32> = (0..32).map(|i| number(i, 9) / 16.0).collect();
        let product: Vec<f32> =
            (0..5).map(|o| bias[o] + (0..32).map(|k| x[k] * weights[o * 32 + k]).sum::<f32>()).collect();
        for (then, expected) in [
            (Then::Keep, product.clone()),
            (Then::Gelu, product.iter().map(|v| gelu(*v)).collect()),
            (Then::Add, product.iter().map(|v| v + 2.0).collect()),
        ] {
            let mut out = vec![2.0; 5];
            layer.apply(crate::kernel::kernels(), &mut Solo, &x, &mut Quants::default(), &mut out, then);
            for (out, expected) in out.iter().zip(&expected) {
                assert!((out - expected).abs() < 1e-5, "{then:?}: {out}, {expected}");
            }
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        for bad in [f16::from_f32(1e6), f16::NAN] {
            for precision in [Precision::Half, Precision::Int8] {
                assert_eq!(Dense::new(&[bad; 32], &[0.0], 32, precision).err(), Some(OutOfRange));
            }
        }
    }
}
