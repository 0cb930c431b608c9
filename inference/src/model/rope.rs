//! Rotation by position (RoPE, arXiv 2104.09864) and the ways in which files stretch it over longer contexts.
//!
//! NTK-aware scaling needs nothing of its own: converters store the base that it leads to.

use super::arch::Pairs;
use super::keys::{Keys, variant};
use crate::backend::LoadError;
use crate::gguf::GgufError;

const CONTEXT_MAX: u64 = 1 << 24;

/// How a model rotates queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Which elements turn together.
    pub pairs: Pairs,
    /// Leading elements of a head that are rotated.
    pub dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// Base in layers with a window, where it is another one. Those layers are never stretched.
    pub local_theta: Option<f64>,
    /// How frequencies are stretched.
    pub scaling: Scaling,
    /// Factor of sines and cosines.
    pub magnitude: f64,
    /// Context the model was trained for before it was stretched, in tokens.
    pub original_context: usize,
}

/// How frequencies are stretched.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not, or by the file's factors for each pair alone (Llama 3, LongRoPE).
    None,
    /// All frequencies are divided by a factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071): low frequencies are divided by a factor, high ones kept, with a ramp between.
    Yarn {
        /// The divisor of the lowest frequencies.
        factor: f64,
        /// Weight of keeping frequencies.
        extrapolation: f64,
        /// Turns over the original context from which on a pair is kept.
        beta_fast: f64,
        /// Turns below which a pair is stretched whole.
        beta_slow: f64,
    },
}

/// Divisors of the frequencies that a file stores, one for each pair; empty where there are none.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RopeFactors {
    /// For every context (Llama 3).
    pub(crate) always: Vec<f32>,
    /// For contexts up to the original one (LongRoPE, arXiv 2402.13753).
    pub(crate) short: Vec<f32>,
    /// For longer contexts.
    pub(crate) long: Vec<f32>,
}

/// Angle per position of each pair, and the factor of sines and cosines.
#[derive(Clone, Debug)]
pub(crate) struct RopeTable {
    frequencies: Vec<f64>,
    magnitude: f64,
}

impl Rope {
    pub(super) fn read<W: Fn(GgufError) -> LoadError>(
        keys: &Keys<'_, W>,
        (pairs, head_dim, context): (Pairs, usize, usize),
        default_local_theta: Option<f64>,
    ) -> Result<Rope, LoadError> {
        let dim = keys.size_or("rope.dimension_count", head_dim, head_dim as u64, 2)?;
        let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
        let local_theta = match default_local_theta {
            Some(default) => Some(keys.positive("rope.freq_base_swa")?.unwrap_or(default)),
            None => None,
        };
        let original_context = keys.size_or("rope.scaling.original_context_length", context, CONTEXT_MAX, 1)?;
        // Files of before 2023-09 have only the factor, under an older name.
        let old_factor = keys.positive("rope.scale_linear")?;
        let factor = keys.cap("rope.scaling.factor")?.or(old_factor).unwrap_or(1.0);
        let mut magnitude = keys.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let scaling = match keys.text("rope.scaling.type")? {
            None if factor != 1.0 => Scaling::Linear { factor },
            None | Some("none" | "longrope") => Scaling::None,
            Some("linear") => Scaling::Linear { factor },
            Some("yarn") => {
                magnitude *= match keys.positive("rope.scaling.yarn_attn_factor")? {
                    Some(factor) => factor,
                    None => 1.0 + 0.1 * factor.max(1.0).ln(),
                };
                Scaling::Yarn {
                    factor,
                    extrapolation: keys.number("rope.scaling.yarn_ext_factor")?.unwrap_or(1.0),
                    beta_fast: keys.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    beta_slow: keys.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                }
            }
            Some(kind) => return Err(variant("rope.scaling.type", kind, "none, linear, yarn or longrope")),
        };
        Ok(Rope { pairs, dim, theta, local_theta, scaling, magnitude, original_context })
    }

    /// The length beyond which a sequence is turned by the factors for long contexts, if the file has such and sequences
    /// of `context` tokens at most can be so long. All keys of a sequence must be turned alike, so one that grows
    /// beyond it is computed again, as the reference implementation does (transformers, `modeling_phi3.py`).
    pub(crate) fn stretch_from(&self, factors: &RopeFactors, context: usize) -> Option<usize> {
        (!factors.long.is_empty() && context > self.original_context).then_some(self.original_context)
    }

    /// Tables for sequences up to that length or for longer ones: for layers without a window, and for those with one
    /// where they differ.
    pub(crate) fn tables(&self, factors: &RopeFactors, long: bool) -> Vec<RopeTable> {
        let factors = match (&factors.always, long) {
            (always, _) if !always.is_empty() => always,
            (_, true) => &factors.long,
            (_, false) => &factors.short,
        };
        let stretched = |i: usize| {
            let frequency = self.frequency(self.theta, i) / factors.get(i).map_or(1.0, |&factor| f64::from(factor));
            match self.scaling {
                Scaling::None => frequency,
                Scaling::Linear { factor } => frequency / factor,
                Scaling::Yarn { factor, extrapolation, .. } => {
                    let keep = self.yarn_keep(i) * extrapolation;
                    frequency / factor * (1.0 - keep) + frequency * keep
                }
            }
        };
        let pairs = 0..self.dim / 2;
        let global = RopeTable { frequencies: pairs.clone().map(stretched).collect(), magnitude: self.magnitude };
        let local = self
            .local_theta
            .map(|theta| RopeTable { frequencies: pairs.map(|i| self.frequency(theta, i)).collect(), magnitude: 1.0 });
        std::iter::once(global).chain(local).collect()
    }

    fn frequency(&self, theta: f64, pair: usize) -> f64 {
        theta.powf(-2.0 * pair as f64 / self.dim as f64)
    }

    /// 1 for pairs that turn often over the original context, 0 for those that hardly turn, a ramp between.
    fn yarn_keep(&self, pair: usize) -> f64 {
        let Scaling::Yarn { beta_fast, beta_slow, .. } = self.scaling else { return 1.0 };
        let dim = self.dim as f64;
        let pair_of_turns = |turns: f64| {
            let context = self.original_context as f64;
            dim * (context / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
        };
        let low = pair_of_turns(beta_fast).floor().max(0.0);
        let high = pair_of_turns(beta_slow).ceil().min(dim - 1.0);
        1.0 - ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0)
    }
}

impl RopeTable {
    /// Cosine and sine of each pair at one position. Angles are computed in double precision, because at large
    /// positions single precision loses the fraction of a turn.
    pub(crate) fn turns(&self, position: u32, out: &mut [f32]) {
        for (pair, frequency) in out.chunks_exact_mut(2).zip(&self.frequencies) {
            let (sin, cos) = (f64::from(position) * frequency).sin_cos();
            pair[0] = (cos * self.magnitude) as f32;
            pair[1] = (sin * self.magnitude) as f32;
        }
    }
}
