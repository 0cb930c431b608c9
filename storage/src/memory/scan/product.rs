//! One inner product of codes: unsigned of the query, signed of the row, both of one length in whole [`ROW_CODES`].
//!
//! Plain version first ([`scalar`]). AVX-512 with VNNI multiplies 64 by 64 codes in one instruction. AVX2 widens to 16
//! bits first, because its unsigned by signed product saturates.
#![allow(unsafe_code)]

use super::ROW_CODES;

/// The reference: what every other one has to agree with.
pub(super) fn scalar(query: &[u8], row: &[i8]) -> i32 {
    query.iter().zip(row).map(|(q, x)| i32::from(*q) * i32::from(*x)).sum()
}

/// [`scalar`] on AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn avx2(query: &[u8], row: &[i8]) -> i32 {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16,
        _mm256_madd_epi16, _mm256_setzero_si256, _mm256_storeu_si256,
    };
    const LANES: usize = 16;
    let mut sums = [_mm256_setzero_si256(); ROW_CODES / LANES];
    for (query, row) in query.as_chunks::<ROW_CODES>().0.iter().zip(row.as_chunks::<ROW_CODES>().0) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            // SAFETY: both chunks have 64 codes, and lane * 16 + 16 is at most 64; unaligned loads need no alignment.
            let (q, x) = unsafe {
                (
                    _mm_loadu_si128(query.as_ptr().add(lane * LANES).cast::<__m128i>()),
                    _mm_loadu_si128(row.as_ptr().add(lane * LANES).cast::<__m128i>()),
                )
            };
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_cvtepu8_epi16(q), _mm256_cvtepi8_epi16(x)));
        }
    }
    let total = _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3]));
    let mut lanes = [0i32; 8];
    // SAFETY: `lanes` has room for exactly eight numbers.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast::<__m256i>(), total) };
    lanes.iter().sum()
}

/// [`scalar`] on AVX-512 with VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
pub(super) fn vnni(query: &[u8], row: &[i8]) -> i32 {
    use std::arch::x86_64::{
        __m512i, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_reduce_add_epi32,
        _mm512_setzero_si512,
    };
    // Two sums: the instruction's latency is longer than the distance of two loads.
    let mut sums = [_mm512_setzero_si512(); 2];
    for (at, (query, row)) in query.as_chunks::<ROW_CODES>().0.iter().zip(row.as_chunks::<ROW_CODES>().0).enumerate() {
        // SAFETY: both chunks have 64 codes, one register; unaligned loads need no alignment.
        let (q, x) = unsafe {
            (_mm512_loadu_si512(query.as_ptr().cast::<__m512i>()), _mm512_loadu_si512(row.as_ptr().cast::<__m512i>()))
        };
        sums[at % 2] = _mm512_dpbusd_epi32(sums[at % 2], q, x);
    }
    _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]))
}
