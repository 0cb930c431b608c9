//! Inner products over half-precision rows: the one loop that exact search spends its time in.
//!
//! Plain version first ([`scalar`]). The AVX2 version converts eight halves at a time (F16C) and
//! keeps four sums in flight, because one fused multiply-add has a latency of four cycles; it is
//! bound by reading the rows, about 10 GB/s a core. The function is chosen once, at first use.
#![allow(unsafe_code)]

use half::f16;
use std::sync::OnceLock;

/// Inner product of a query and one stored row of the same length.
pub(crate) type Dot = fn(&[f32], &[f16]) -> f32;

/// The fastest kernel of this processor.
pub(crate) fn dot() -> Dot {
    static CHOSEN: OnceLock<Dot> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        if has_avx2() {
            return avx2;
        }
        scalar
    })
}

/// The reference: what every other kernel has to agree with.
pub(crate) fn scalar(query: &[f32], row: &[f16]) -> f32 {
    assert_eq!(query.len(), row.len(), "a block holds rows of one length");
    query.iter().zip(row).map(|(q, x)| q * x.to_f32()).sum()
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// [`scalar`] on AVX2. Only chosen after the processor was asked.
#[cfg(target_arch = "x86_64")]
fn avx2(query: &[f32], row: &[f16]) -> f32 {
    assert_eq!(query.len(), row.len(), "a block holds rows of one length");
    // SAFETY: `dot` and the tests hand this function out only after `has_avx2` said yes, and the lengths are equal.
    unsafe { avx2_inner(query, row) }
}

/// # Safety
/// The processor has AVX2, FMA and F16C, and both slices have the same length.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_inner(query: &[f32], row: &[f16]) -> f32 {
    use std::arch::x86_64::{
        __m128i, _mm_loadu_si128, _mm256_add_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };
    const LANES: usize = 8;
    const SUMS: usize = 4;
    let mut sums = [_mm256_setzero_ps(); SUMS];
    let whole = query.len() / (LANES * SUMS) * (LANES * SUMS);
    let mut at = 0;
    while at < whole {
        for (lane, sum) in sums.iter_mut().enumerate() {
            let offset = at + lane * LANES;
            // SAFETY: offset + 8 <= whole <= the length of both slices; unaligned loads need no alignment.
            let (q, x) = unsafe {
                (
                    _mm256_loadu_ps(query.as_ptr().add(offset)),
                    _mm_loadu_si128(row.as_ptr().add(offset).cast::<__m128i>()),
                )
            };
            *sum = _mm256_fmadd_ps(q, _mm256_cvtph_ps(x), *sum);
        }
        at += LANES * SUMS;
    }
    let total = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let mut lanes = [0.0f32; LANES];
    // SAFETY: `lanes` has room for exactly eight numbers.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), total) };
    lanes.iter().sum::<f32>() + scalar(&query[whole..], &row[whole..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sums are taken in another order: the difference grows with the length and the magnitudes.
    const RELATIVE_ERROR_MAX: f32 = 1e-5;

    proptest! {
        #[test]
        fn the_fast_kernel_agrees_with_the_plain_one(
            pairs in proptest::collection::vec((-1.0f32..1.0, -1.0f32..1.0), 0..900)
        ) {
            let query: Vec<f32> = pairs.iter().map(|(q, _)| *q).collect();
            let row: Vec<f16> = pairs.iter().map(|(_, x)| f16::from_f32(*x)).collect();
            let (plain, fast) = (scalar(&query, &row), dot()(&query, &row));
            let size: f32 = pairs.iter().map(|(q, x)| (q * x).abs()).sum();
            prop_assert!((plain - fast).abs() <= RELATIVE_ERROR_MAX * size.max(1.0), "{plain} {fast}");
        }
    }
}
