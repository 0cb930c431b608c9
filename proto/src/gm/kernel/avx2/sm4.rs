//! SM4 by the AES instruction, 16 blocks at a time.
//!
//! Plain version: [`super::super::scalar`]. Departures:
//! - Eight blocks are turned so that a register holds the same word of each; two such sets are in
//!   flight, because one alone waits for its own results.
//! - The S-boxes of SM4 and AES invert in isomorphic fields: an affine map, `AESENCLAST` with a zero key, and
//!   another affine map. A map of a byte is the sum of a 16-entry table of each half, which `PSHUFB` looks
//!   up in a register. (The maps follow from the root 0x23 of SM4's polynomial in AES's field.)
//! - `AESENCLAST` also shifts rows; the shuffles of the linear layer undo that at no cost.
#![allow(unsafe_code)]

use super::super::{BLOCK_BYTES, RoundKeys};
use std::arch::x86_64::*;

/// Blocks in one set of registers.
const SET_BLOCKS: usize = 8;
const SETS: usize = 2;

/// A table for both halves of a register.
#[repr(C, align(32))]
struct Table([u8; 32]);

const fn both(half: [u8; 16]) -> Table {
    let mut all = [0; 32];
    let mut at = 0;
    while at < 32 {
        all[at] = half[at % 16];
        at += 1;
    }
    Table(all)
}

static BEFORE_LOW: Table =
    both([0x3e, 0xb2, 0x0e, 0x82, 0xbb, 0x37, 0x8b, 0x07, 0xa1, 0x2d, 0x91, 0x1d, 0x24, 0xa8, 0x14, 0x98]);
static BEFORE_HIGH: Table =
    both([0x00, 0xdc, 0x2e, 0xf2, 0xc5, 0x19, 0xeb, 0x37, 0x08, 0xd4, 0x26, 0xfa, 0xcd, 0x11, 0xe3, 0x3f]);
static AFTER_LOW: Table =
    both([0x6c, 0xd4, 0xa6, 0x1e, 0x52, 0xea, 0x98, 0x20, 0x0b, 0xb3, 0xc1, 0x79, 0x35, 0x8d, 0xff, 0x47]);
static AFTER_HIGH: Table =
    both([0x00, 0xe0, 0x50, 0xb0, 0x9d, 0x7d, 0xcd, 0x2d, 0xc0, 0x20, 0x90, 0x70, 0x5d, 0xbd, 0x0d, 0xed]);

/// Undoes the row shift of AES, then rotates each word left by so many bytes.
const fn unshift(rotate: usize) -> Table {
    let mut half = [0u8; 16];
    let mut at = 0;
    while at < 16 {
        let wanted = 4 * (at / 4) + (at + 4 - rotate) % 4;
        let (column, row) = (wanted / 4, wanted % 4);
        half[at] = (4 * ((column + 4 - row) % 4) + row) as u8;
        at += 1;
    }
    both(half)
}

static UNSHIFT: [Table; 4] = [unshift(0), unshift(1), unshift(2), unshift(3)];
static SWAP: Table = both([3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8, 15, 14, 13, 12]);

#[target_feature(enable = "avx2")]
fn load(table: &Table) -> __m256i {
    // SAFETY: a table is 32 bytes long and aligned to 32.
    unsafe { _mm256_load_si256(table.0.as_ptr().cast()) }
}

struct Tables {
    before: [__m256i; 2],
    after: [__m256i; 2],
    unshift: [__m256i; 4],
    nibble: __m256i,
    zero: __m128i,
}

impl Tables {
    #[target_feature(enable = "avx2")]
    fn load() -> Self {
        Self {
            before: [load(&BEFORE_LOW), load(&BEFORE_HIGH)],
            after: [load(&AFTER_LOW), load(&AFTER_HIGH)],
            unshift: [load(&UNSHIFT[0]), load(&UNSHIFT[1]), load(&UNSHIFT[2]), load(&UNSHIFT[3])],
            nibble: _mm256_set1_epi8(0x0f),
            zero: _mm_setzero_si128(),
        }
    }

    #[target_feature(enable = "avx2")]
    fn map(&self, maps: &[__m256i; 2], x: __m256i) -> __m256i {
        let low = _mm256_and_si256(x, self.nibble);
        let high = _mm256_and_si256(_mm256_srli_epi32::<4>(x), self.nibble);
        _mm256_xor_si256(_mm256_shuffle_epi8(maps[0], low), _mm256_shuffle_epi8(maps[1], high))
    }

    /// The S-box on every byte, with the bytes of each half left in AES's shifted order.
    #[target_feature(enable = "avx2,aes")]
    fn substitute(&self, x: __m256i) -> __m256i {
        let x = self.map(&self.before, x);
        let low = _mm_aesenclast_si128(_mm256_castsi256_si128(x), self.zero);
        let high = _mm_aesenclast_si128(_mm256_extracti128_si256::<1>(x), self.zero);
        self.map(&self.after, _mm256_set_m128i(high, low))
    }

    /// S-box and linear layer: `s + (s <<< 24) + ((s + (s <<< 8) + (s <<< 16)) <<< 2)`.
    #[target_feature(enable = "avx2,aes")]
    fn mix(&self, x: __m256i) -> __m256i {
        let s = self.substitute(x);
        let turned = self.unshift.map(|order| _mm256_shuffle_epi8(s, order));
        let sum = _mm256_xor_si256(_mm256_xor_si256(turned[0], turned[1]), turned[2]);
        let by_two = _mm256_or_si256(_mm256_slli_epi32::<2>(sum), _mm256_srli_epi32::<30>(sum));
        _mm256_xor_si256(_mm256_xor_si256(turned[0], turned[3]), by_two)
    }
}

/// Turns four registers of blocks into four registers of words, and back.
#[target_feature(enable = "avx2")]
fn turn(x: [__m256i; 4]) -> [__m256i; 4] {
    let (a, b) = (_mm256_unpacklo_epi32(x[0], x[1]), _mm256_unpackhi_epi32(x[0], x[1]));
    let (c, d) = (_mm256_unpacklo_epi32(x[2], x[3]), _mm256_unpackhi_epi32(x[2], x[3]));
    [_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c), _mm256_unpacklo_epi64(b, d), _mm256_unpackhi_epi64(b, d)]
}

#[target_feature(enable = "avx2,aes")]
fn sets<const N: usize>(keys: &RoundKeys, data: &mut [u8]) {
    assert_eq!(data.len(), N * SET_BLOCKS * BLOCK_BYTES, "the caller cuts whole sets");
    let tables = Tables::load();
    let swap = load(&SWAP);
    let mut x = [[_mm256_setzero_si256(); 4]; N];
    for (set, bytes) in x.iter_mut().zip(data.as_chunks::<{ SET_BLOCKS * BLOCK_BYTES }>().0) {
        let mut rows = [_mm256_setzero_si256(); 4];
        for (row, bytes) in rows.iter_mut().zip(bytes.as_chunks::<32>().0) {
            // SAFETY: the chunk has 32 bytes; an unaligned load needs no alignment.
            *row = _mm256_shuffle_epi8(unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }, swap);
        }
        *set = turn(rows);
    }
    for four in keys.as_chunks::<4>().0 {
        for (at, key) in four.iter().enumerate() {
            let key = _mm256_set1_epi32(key.cast_signed());
            for set in &mut x {
                let others = _mm256_xor_si256(set[(at + 1) % 4], set[(at + 2) % 4]);
                let sum = _mm256_xor_si256(_mm256_xor_si256(others, set[(at + 3) % 4]), key);
                set[at] = _mm256_xor_si256(set[at], tables.mix(sum));
            }
        }
    }
    for (set, bytes) in x.iter().zip(data.as_chunks_mut::<{ SET_BLOCKS * BLOCK_BYTES }>().0) {
        let rows = turn([set[3], set[2], set[1], set[0]]);
        for (row, bytes) in rows.into_iter().zip(bytes.as_chunks_mut::<32>().0) {
            // SAFETY: the chunk has 32 bytes; an unaligned store needs no alignment.
            unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), _mm256_shuffle_epi8(row, swap)) };
        }
    }
}

/// Encrypts whole blocks in place.
pub(crate) fn blocks(keys: &RoundKeys, data: &mut [u8]) {
    assert!(data.len().is_multiple_of(BLOCK_BYTES), "the cipher takes whole blocks");
    const ALL: usize = SETS * SET_BLOCKS * BLOCK_BYTES;
    const ONE: usize = SET_BLOCKS * BLOCK_BYTES;
    for group in data.chunks_mut(ALL) {
        if group.len() == ALL {
            // SAFETY: this set is handed out only after `available` said yes.
            unsafe { sets::<SETS>(keys, group) };
            continue;
        }
        let mut padded = [0; ALL];
        padded[..group.len()].copy_from_slice(group);
        if group.len() <= ONE {
            // SAFETY: as above.
            unsafe { sets::<1>(keys, &mut padded[..ONE]) };
        } else {
            // SAFETY: as above.
            unsafe { sets::<SETS>(keys, &mut padded) };
        }
        group.copy_from_slice(&padded[..group.len()]);
    }
}

/// The S-box on each byte of a word.
pub(crate) fn substitute(x: u32) -> u32 {
    #[target_feature(enable = "avx2,aes")]
    fn inner(x: u32) -> u32 {
        let tables = Tables::load();
        let s = tables.substitute(_mm256_set1_epi32(x.cast_signed()));
        _mm256_extract_epi32::<0>(_mm256_shuffle_epi8(s, tables.unshift[0])).cast_unsigned()
    }
    // SAFETY: this set is handed out only after `available` said yes.
    unsafe { inner(x) }
}
