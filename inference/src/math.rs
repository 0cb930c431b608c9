//! Elementary functions written so that the compiler computes eight values at a time.

/// Arguments at or below this give 0: the result would be denormal.
pub(crate) const EXP_ARGUMENT_MIN: f32 = -87.0;

/// `exp(x)` for `x <= 0`; 0 below [`EXP_ARGUMENT_MIN`] and for NaN. No branches and no calls; relative error below 3e-7.
#[inline(always)]
pub(crate) fn exp_nonpositive(x: f32) -> f32 {
    const WHOLE: f32 = 12_582_912.0;
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with so few bits that `n` times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > EXP_ARGUMENT_MIN { x } else { EXP_ARGUMENT_MIN };
    // Adding 1.5 * 2^23 leaves the nearest whole number in the low bits of the mantissa: rounding and conversion to an
    // integer in one addition, where a cast would have to handle values that cannot come.
    let shifted = clamped.mul_add(LOG2_E, WHOLE);
    let n = shifted - WHOLE;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let p = r.mul_add(1.0 / 5040.0, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(WHOLE.to_bits()).wrapping_add(127) << 23);
    if x > EXP_ARGUMENT_MIN { p * power } else { 0.0 }
}

/// Sum in sixteen lanes, which the compiler may keep in vectors; a plain sum has to add one number after the other.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [0.0_f32; 16];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value;
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().sum::<f32>()
}

/// Sum of squares, in lanes like [`sum`].
#[inline(always)]
pub(crate) fn sum_of_squares(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut lanes = [0.0_f32; 16];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = value.mul_add(*value, *lane);
        }
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>()
}

/// Gaussian error linear unit, `x * Phi(x)`, by the error-function approximation 7.1.26 of Abramowitz and Stegun
/// (absolute error below 1.5e-7).
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / 0.327_591_1_f32.mul_add(z, 1.0);
    let p = 1.061_405_4_f32.mul_add(t, -1.453_152_1);
    let p = p.mul_add(t, 1.421_413_8);
    let p = p.mul_add(t, -0.284_496_72);
    let p = p.mul_add(t, 0.254_829_6);
    let erf = 1.0 - p * t * exp_nonpositive(-z * z);
    0.5 * x * (1.0 + if x < 0.0 { -erf } else { erf })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_exponential_is_close(x in -86.9_f32..=0.0) {
            let exact = f64::from(x).exp();
            prop_assert!((f64::from(exp_nonpositive(x)) / exact - 1.0).abs() < 4e-7, "{x}");
        }
    }

    #[test]
    fn a_sum_takes_every_number_once() {
        for n in [0, 1, 15, 16, 17, 100] {
            let values: Vec<f32> = (1..=n).map(|i| i as f32).collect();
            assert_eq!(sum(&values), (n * (n + 1) / 2) as f32);
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-100.0), 0.0);
        assert_eq!(exp_nonpositive(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_nonpositive(f32::NAN), 0.0);
    }

    #[test]
    fn gelu_at_known_points() {
        // Values of x * (1 + erf(x / sqrt 2)) / 2 computed with 16 digits.
        let known: [(f32, f64); 5] =
            [(0.0, 0.0), (1.0, 0.841_344_746), (-1.0, -0.158_655_254), (3.0, 2.995_950_3), (-4.0, -0.000_126_685)];
        for (x, expected) in known {
            assert!((f64::from(gelu(x)) - expected).abs() < 1e-6, "{x}: {}", gelu(x));
        }
    }
}
