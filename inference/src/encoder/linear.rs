//! A dense layer for the encoder: `y = x W^T + b` over a handful to a thousand rows.
//!
//! Weights are packed into panels of 16 outputs and kept in f16, which halves the memory that a short text has to
//! stream. A panel is widened to f32 once per call, stays in the first-level cache, and then serves all rows in tiles
//! of 6: twelve vectors of sums, two of weights and one of input fill the sixteen registers of AVX2. The inner loop is
//! written on fixed-size arrays, from which the compiler makes exactly these instructions.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Outputs per panel: two AVX2 vectors.
const PANEL: usize = 16;
/// Rows per tile.
const TILE: usize = 6;

/// A packed dense layer.
#[derive(Debug)]
pub(super) struct Linear {
    inputs: usize,
    outputs: usize,
    /// Panel after panel, each `inputs * 16`.
    weights: Vec<f16>,
    /// Padded to whole panels.
    bias: Vec<f32>,
}

/// The weights hold a number that f16 cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OutOfRange;

impl Linear {
    /// Bytes of weights and bias.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.weights[..]) + size_of_val(&self.bias[..])
    }

    /// Packs weights of shape `[outputs][inputs]`.
    pub fn new(weights: &[f16], bias: &[f32], inputs: usize) -> Result<Self, OutOfRange> {
        let outputs = bias.len();
        assert_eq!(weights.len(), inputs * outputs, "weights and bias fit together");
        if weights.iter().any(|weight| !weight.is_finite()) {
            return Err(OutOfRange);
        }
        let panels = outputs.div_ceil(PANEL);
        let mut packed = vec![f16::ZERO; panels * inputs * PANEL];
        for (output, row) in weights.chunks_exact(inputs).enumerate() {
            let panel = &mut packed[output / PANEL * inputs * PANEL..][..inputs * PANEL];
            for (k, weight) in row.iter().enumerate() {
                panel[k * PANEL + output % PANEL] = *weight;
            }
        }
        let mut padded = bias.to_vec();
        padded.resize(panels * PANEL, 0.0);
        Ok(Self { inputs, outputs, weights: packed, bias: padded })
    }

    /// Applies the layer to rows of `inputs` numbers and `activation` to each result. `panel` is scratch memory.
    pub fn apply(&self, x: &[f32], y: &mut Vec<f32>, panel: &mut Vec<f32>, activation: impl Fn(f32) -> f32) {
        let rows = x.len() / self.inputs;
        y.resize(rows * self.outputs, 0.0);
        panel.resize(self.inputs * PANEL, 0.0);
        for (at, packed) in self.weights.chunks_exact(self.inputs * PANEL).enumerate() {
            packed.convert_to_f32_slice(panel);
            let first = at * PANEL;
            let width = PANEL.min(self.outputs - first);
            let bias: &[f32; PANEL] = self.bias[first..].first_chunk().expect("bias is padded to whole panels");
            let mut row = 0;
            while row < rows {
                let count = TILE.min(rows - row);
                let x = &x[row * self.inputs..][..count * self.inputs];
                let sums = match count {
                    6 => tile::<6>(x, self.inputs, panel),
                    5 => tile::<5>(x, self.inputs, panel),
                    4 => tile::<4>(x, self.inputs, panel),
                    3 => tile::<3>(x, self.inputs, panel),
                    2 => tile::<2>(x, self.inputs, panel),
                    _ => tile::<1>(x, self.inputs, panel),
                };
                for (r, sums) in sums[..count].iter().enumerate() {
                    let mut done = [0.0; PANEL];
                    for ((d, s), b) in done.iter_mut().zip(sums).zip(bias) {
                        *d = activation(s + b);
                    }
                    y[(row + r) * self.outputs + first..][..width].copy_from_slice(&done[..width]);
                }
                row += count;
            }
        }
    }
}

/// `ROWS` rows times one panel.
#[inline(always)]
fn tile<const ROWS: usize>(x: &[f32], inputs: usize, panel: &[f32]) -> [[f32; PANEL]; TILE] {
    let mut sums = [[0.0_f32; PANEL]; ROWS];
    let rows: [&[f32]; ROWS] = std::array::from_fn(|r| &x[r * inputs..][..inputs]);
    for (k, weights) in panel.as_chunks::<PANEL>().0.iter().enumerate().take(inputs) {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let value = row[k];
            for (sum, weight) in sums.iter_mut().zip(weights) {
                *sum = value.mul_add(*weight, *sum);
            }
        }
    }
    let mut out = [[0.0; PANEL]; TILE];
    out[..ROWS].copy_from_slice(&sums);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_the_plain_product(rows in 1_usize..15, inputs in 1_usize..40, outputs in 1_usize..40, seed in any::<u32>()) {
            // Multiples of 1/64 below 2 are exact in f16, and their sums in f32.
            let number = |i: usize| (((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as f32 - 128.0) / 64.0;
            let weights: Vec<f32> = (0..inputs * outputs).map(number).collect();
            let bias: Vec<f32> = (0..outputs).map(|i| number(i + 7)).collect();
            let x: Vec<f32> = (0..rows * inputs).map(|i| number(i + 1000)).collect();
            let half: Vec<f16> = weights.iter().map(|weight| f16::from_f32(*weight)).collect();
            let layer = Linear::new(&half, &bias, inputs).expect("in range");
            let (mut y, mut panel) = (Vec::new(), Vec::new());
            layer.apply(&x, &mut y, &mut panel, |v| v * 2.0);
            for r in 0..rows {
                for o in 0..outputs {
                    let sum: f32 = (0..inputs).map(|k| x[r * inputs + k] * weights[o * inputs + k]).sum();
                    prop_assert_eq!(y[r * outputs + o], 2.0 * (sum + bias[o]));
                }
            }
        }
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        assert_eq!(Linear::new(&[f16::from_f32(1e6)], &[0.0], 1).err(), Some(OutOfRange));
        assert_eq!(Linear::new(&[f16::NAN], &[0.0], 1).err(), Some(OutOfRange));
    }
}
