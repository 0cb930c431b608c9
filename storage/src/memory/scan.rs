//! Inner products of one query with many rows of eight-bit codes, side by side here, scattered in `gather`.
//!
//! A row of 384 codes is 384 bytes, half of what half precision takes, and the loop is bound by
//! reading the rows. One product stands in `product` for each instruction set; the loops around it are
//! chosen once, at first use. Queries are moved up by [`QUERY_ZERO`], because the fast products are of unsigned by
//! signed numbers, and the caller takes that back with the sum of the row's codes.
#![allow(unsafe_code)]

use std::sync::OnceLock;

mod gather;
mod product;

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

/// Bytes between the row that is multiplied and the one that is asked for: the processor itself looks ahead no further
/// than a page, and two pages cover the way from the last cache.
const AHEAD_BYTES: usize = 8_192;

fn fetch_ahead(rows: &[i8], length: usize, at: usize) {
    let from = at * length + AHEAD_BYTES;
    (0..length).step_by(ROW_CODES).for_each(|line| prefetch(rows, from + line));
}

/// The reference: what every other kernel has to agree with.
pub(crate) fn scalar(query: &[u8], rows: &[i8], products: &mut [i32]) {
    check(query, rows, products);
    for (row, product) in rows.chunks_exact(query.len()).zip(products) {
        *product = product::scalar(query, row);
    }
}

#[cfg(target_arch = "x86_64")]
fn avx2(query: &[u8], rows: &[i8], products: &mut [i32]) {
    #[target_feature(enable = "avx2")]
    fn inner(query: &[u8], rows: &[i8], products: &mut [i32]) {
        for (at, (row, product)) in rows.chunks_exact(query.len()).zip(products).enumerate() {
            fetch_ahead(rows, query.len(), at);
            *product = product::avx2(query, row);
        }
    }
    check(query, rows, products);
    // SAFETY: handed out only after the processor was asked for AVX2.
    unsafe { inner(query, rows, products) }
}

#[cfg(target_arch = "x86_64")]
fn vnni(query: &[u8], rows: &[i8], products: &mut [i32]) {
    #[target_feature(enable = "avx512f,avx512vnni")]
    fn inner(query: &[u8], rows: &[i8], products: &mut [i32]) {
        for (at, (row, product)) in rows.chunks_exact(query.len()).zip(products).enumerate() {
            fetch_ahead(rows, query.len(), at);
            *product = product::vnni(query, row);
        }
    }
    check(query, rows, products);
    // SAFETY: handed out only after the processor was asked for AVX-512F and VNNI.
    unsafe { inner(query, rows, products) }
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
