//! Inner products of one query with many rows of eight-bit codes.
//!
//! A row of 384 codes is 384 bytes, half of what half precision takes, and the loop is bound by
//! reading the rows. Plain version first ([`scalar`]); AVX-512 with VNNI multiplies 64 unsigned by
//! 64 signed codes in one instruction, so the query is moved up by [`QUERY_ZERO`] and the caller
//! takes that back with the sum of the row's codes. AVX2 widens to 16 bits first, because its
//! unsigned by signed product saturates. The kernel is chosen once, at first use.
#![allow(unsafe_code)]

use std::sync::OnceLock;

mod gather;

pub(crate) use gather::{gather, prefetch};

/// Rows are padded with zero codes to a multiple of this, so that no kernel has a tail.
pub(crate) const ROW_CODES: usize = 64;
/// What stands for zero in a query's codes.
pub(crate) const QUERY_ZERO: i32 = 128;

/// Products of `query` with each row of `rows` (both in whole [`ROW_CODES`]), one number a row.
pub(crate) type Scan = fn(query: &[u8], rows: &[i8], products: &mut [i32]);

fn kernels() -> Vec<(&'static str, Scan)> {
    let mut found: Vec<(&'static str, Scan)> = vec![("scalar", scalar)];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            found.push(("avx2", avx2));
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
            found.push(("vnni", vnni));
        }
    }
    found
}

/// The fastest kernel of this processor.
pub(crate) fn scan() -> Scan {
    static CHOSEN: OnceLock<Scan> = OnceLock::new();
    *CHOSEN.get_or_init(|| kernels().last().expect("the scalar kernel runs everywhere").1)
}

fn check(query: &[u8], rows: &[i8], products: &[i32]) {
    assert!(query.len().is_multiple_of(ROW_CODES) && !query.is_empty(), "rows are padded");
    assert_eq!(rows.len(), query.len() * products.len(), "one number for each row");
}

/// The reference: what every other kernel has to agree with.
pub(crate) fn scalar(query: &[u8], rows: &[i8], products: &mut [i32]) {
    check(query, rows, products);
    for (row, product) in rows.chunks_exact(query.len()).zip(products) {
        *product = query.iter().zip(row).map(|(q, x)| i32::from(*q) * i32::from(*x)).sum();
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2(query: &[u8], rows: &[i8], products: &mut [i32]) {
    check(query, rows, products);
    // SAFETY: handed out only after the processor was asked; the lengths were checked.
    unsafe { avx2_inner(query, rows, products) }
}

/// # Safety
/// The processor has AVX2; the slices passed [`check`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn avx2_inner(query: &[u8], rows: &[i8], products: &mut [i32]) {
    use std::arch::x86_64::{
        __m128i, __m256i, _mm_loadu_si128, _mm256_add_epi32, _mm256_cvtepi8_epi16, _mm256_cvtepu8_epi16,
        _mm256_madd_epi16, _mm256_setzero_si256, _mm256_storeu_si256,
    };
    const LANES: usize = 16;
    const SUMS: usize = 4;
    for (row, product) in rows.chunks_exact(query.len()).zip(products) {
        let mut sums = [_mm256_setzero_si256(); SUMS];
        for at in (0..query.len()).step_by(LANES * SUMS) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let offset = at + lane * LANES;
                // SAFETY: rows are whole multiples of 64 codes, so offset + 16 <= the length of both.
                let (q, x) = unsafe {
                    (
                        _mm_loadu_si128(query.as_ptr().add(offset).cast::<__m128i>()),
                        _mm_loadu_si128(row.as_ptr().add(offset).cast::<__m128i>()),
                    )
                };
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_cvtepu8_epi16(q), _mm256_cvtepi8_epi16(x)));
            }
        }
        let total = _mm256_add_epi32(_mm256_add_epi32(sums[0], sums[1]), _mm256_add_epi32(sums[2], sums[3]));
        let mut lanes = [0i32; 8];
        // SAFETY: `lanes` has room for exactly eight numbers.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast::<__m256i>(), total) };
        *product = lanes.iter().sum();
    }
}

#[cfg(target_arch = "x86_64")]
fn vnni(query: &[u8], rows: &[i8], products: &mut [i32]) {
    check(query, rows, products);
    // SAFETY: handed out only after the processor was asked; the lengths were checked.
    unsafe { vnni_inner(query, rows, products) }
}

/// # Safety
/// The processor has AVX-512F and VNNI; the slices passed [`check`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn vnni_inner(query: &[u8], rows: &[i8], products: &mut [i32]) {
    use std::arch::x86_64::{
        __m512i, _mm512_add_epi32, _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_reduce_add_epi32,
        _mm512_setzero_si512,
    };
    let dim = query.len();
    for (row, product) in rows.chunks_exact(dim).zip(products) {
        // Two sums: the instruction's latency is longer than the distance of two loads.
        let mut sums = [_mm512_setzero_si512(); 2];
        for (at, offset) in (0..dim).step_by(ROW_CODES).enumerate() {
            // SAFETY: rows are whole multiples of 64 codes, so offset + 64 <= the length of both.
            let (q, x) = unsafe {
                (
                    _mm512_loadu_si512(query.as_ptr().add(offset).cast::<__m512i>()),
                    _mm512_loadu_si512(row.as_ptr().add(offset).cast::<__m512i>()),
                )
            };
            sums[at % 2] = _mm512_dpbusd_epi32(sums[at % 2], q, x);
        }
        *product = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_largest_codes_do_not_overflow() {
        let (query, rows) = (vec![u8::MAX; 4_096], vec![-127i8; 4_096 * 2]);
        for (name, kernel) in kernels() {
            let mut products = [0; 2];
            kernel(&query, &rows, &mut products);
            assert_eq!(products, [-127 * 255 * 4_096; 2], "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_kernel_agrees_with_the_plain_one(
            query in proptest::collection::vec(any::<u8>(), 1..7), rows in 0usize..9, seed in any::<u64>(),
        ) {
            // Few drawn numbers, spread over whole padded rows.
            let dim = query.len() * ROW_CODES;
            let query: Vec<u8> = (0..dim).map(|at| query[at % query.len()].wrapping_add((at / 5) as u8)).collect();
            let mut state = seed | 1;
            let rows: Vec<i8> = (0..dim * rows)
                .map(|_| {
                    state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    (state >> 56) as i8
                })
                .collect();
            let mut expected = vec![0; rows.len() / dim];
            scalar(&query, &rows, &mut expected);
            for (name, kernel) in kernels() {
                let mut found = vec![0; expected.len()];
                kernel(&query, &rows, &mut found);
                prop_assert_eq!(&found, &expected, "{}", name);
            }
        }
    }
}
