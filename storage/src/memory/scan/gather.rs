//! Inner products of one query with rows that lie scattered: what a walk through a graph computes.
//!
//! A row is a record of `stride` bytes that begins with its codes; the query is padded with zeroes to
//! whole [`ROW_CODES`], so what a kernel reads beyond a row's codes (its facts, the next record) counts
//! nothing. The walk is bound by the latency of memory, not by the products: rows are fetched ahead.

use super::{ROW_CODES, product};
use std::sync::OnceLock;

/// Products of `query` (whole [`ROW_CODES`], unsigned) with the records of `rows`, each at `row * stride` of `bytes`.
pub(crate) type Gather = fn(query: &[u8], bytes: &[i8], stride: usize, rows: &[u32], products: &mut [i32]);

/// Bytes of records that are on their way while one is multiplied.
const AHEAD_BYTES: usize = 1_024;
/// Bytes that one fetch brings.
const LINE_BYTES: usize = 64;

fn kernels() -> Vec<(&'static str, Gather)> {
    let mut found: Vec<(&'static str, Gather)> = vec![("scalar", scalar)];
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
pub(crate) fn gather() -> Gather {
    static CHOSEN: OnceLock<Gather> = OnceLock::new();
    *CHOSEN.get_or_init(|| kernels().last().expect("the scalar kernel runs everywhere").1)
}

/// Asks for the line of `bytes` at `at`; a place outside is harmless.
pub(crate) fn prefetch<T>(bytes: &[T], at: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint that reads nothing and cannot fault; the pointer is computed without claiming to lie inside.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(at).cast::<i8>()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (bytes, at);
}

fn check(query: &[u8], bytes: &[i8], stride: usize, rows: &[u32], products: &[i32]) {
    assert!(query.len().is_multiple_of(ROW_CODES) && !query.is_empty(), "the query is padded");
    assert_eq!(rows.len(), products.len(), "one number for each row");
    if let Some(last) = rows.iter().max() {
        assert!(*last as usize * stride + query.len() <= bytes.len(), "the rows lie inside");
    }
}

fn fetch_ahead(bytes: &[i8], stride: usize, rows: &[u32], at: usize) {
    if let Some(row) = rows.get(at) {
        let from = *row as usize * stride;
        for line in (0..stride).step_by(LINE_BYTES) {
            prefetch(bytes, from + line);
        }
    }
}

/// How many records lie ahead of the one that is multiplied.
fn distance(stride: usize) -> usize {
    (AHEAD_BYTES / stride.max(1)).clamp(2, 16)
}

/// The reference: what every other kernel has to agree with.
fn scalar(query: &[u8], bytes: &[i8], stride: usize, rows: &[u32], products: &mut [i32]) {
    check(query, bytes, stride, rows, products);
    for (row, product) in rows.iter().zip(products) {
        *product = product::scalar(query, &bytes[*row as usize * stride..][..query.len()]);
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2(query: &[u8], bytes: &[i8], stride: usize, rows: &[u32], products: &mut [i32]) {
    #[target_feature(enable = "avx2")]
    fn inner(query: &[u8], bytes: &[i8], stride: usize, rows: &[u32], products: &mut [i32]) {
        let ahead = distance(stride);
        (0..ahead).for_each(|at| fetch_ahead(bytes, stride, rows, at));
        for (at, (row, product)) in rows.iter().zip(products).enumerate() {
            fetch_ahead(bytes, stride, rows, at + ahead);
            *product = product::avx2(query, &bytes[*row as usize * stride..][..query.len()]);
        }
    }
    check(query, bytes, stride, rows, products);
    // SAFETY: handed out only after the processor was asked for AVX2.
    unsafe { inner(query, bytes, stride, rows, products) }
}

#[cfg(target_arch = "x86_64")]
fn vnni(query: &[u8], bytes: &[i8], stride: usize, rows: &[u32], products: &mut [i32]) {
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn inner(query: &[u8], bytes: &[i8], stride: usize, rows: &[u32], products: &mut [i32]) {
        let ahead = distance(stride);
        (0..ahead).for_each(|at| fetch_ahead(bytes, stride, rows, at));
        for (at, (row, product)) in rows.iter().zip(products).enumerate() {
            fetch_ahead(bytes, stride, rows, at + ahead);
            *product = product::vnni(query, &bytes[*row as usize * stride..][..query.len()]);
        }
    }
    check(query, bytes, stride, rows, products);
    // SAFETY: handed out only after the processor was asked for AVX-512F and VNNI.
    unsafe { inner(query, bytes, stride, rows, products) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_kernel_agrees_with_the_plain_one(
            dim in 1usize..300, records in 1usize..20, picks in proptest::collection::vec(any::<u32>(), 0..40), seed in any::<u64>(),
        ) {
            let stride = (dim + 8).next_multiple_of(16);
            let padded = dim.next_multiple_of(ROW_CODES);
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (state >> 56) as u8
            };
            let query: Vec<u8> = (0..padded).map(|at| if at < dim { next() } else { 0 }).collect();
            let bytes: Vec<i8> = (0..stride * records + padded).map(|_| (next() as i8).max(-127)).collect();
            let rows: Vec<u32> = picks.iter().map(|pick| pick % records as u32).collect();
            let mut expected = vec![0; rows.len()];
            scalar(&query, &bytes, stride, &rows, &mut expected);
            for (name, kernel) in kernels() {
                let mut found = vec![0; rows.len()];
                kernel(&query, &bytes, stride, &rows, &mut found);
                prop_assert_eq!(&found, &expected, "{}", name);
            }
        }
    }
}
