//! SM4 by the field instructions, 32 blocks at a time.
//!
//! Plain version: [`super::super::scalar`]. As the AVX2 set, with two departures: GFNI inverts in AES's field and
//! applies an affine map in one instruction each, so the S-box is two instructions; and words rotate
//! in one.
#![allow(unsafe_code)]

use super::super::{BLOCK_BYTES, RoundKeys};
use std::arch::x86_64::*;

const SET_BLOCKS: usize = 16;
const SETS: usize = 2;

/// SM4's first affine map and the way into AES's field: row of the highest output bit in the lowest byte.
const BEFORE: i64 = 0x4c28_7db9_1a22_505d;
const BEFORE_CONSTANT: i32 = 0x3e;
/// The way back and SM4's second affine map.
const AFTER: i64 = 0xf3ab_34a9_74a6_b589_u64.cast_signed();
const AFTER_CONSTANT: i32 = 0xd3;
/// The sum of three words as a truth table.
const XOR3: i32 = 0x96;

#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn substitute_all(x: __m512i) -> __m512i {
    let mapped = _mm512_gf2p8affine_epi64_epi8::<BEFORE_CONSTANT>(x, _mm512_set1_epi64(BEFORE));
    _mm512_gf2p8affineinv_epi64_epi8::<AFTER_CONSTANT>(mapped, _mm512_set1_epi64(AFTER))
}

#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn mix(x: __m512i) -> __m512i {
    let s = substitute_all(x);
    let near = _mm512_ternarylogic_epi32::<XOR3>(s, _mm512_rol_epi32::<2>(s), _mm512_rol_epi32::<10>(s));
    _mm512_ternarylogic_epi32::<XOR3>(near, _mm512_rol_epi32::<18>(s), _mm512_rol_epi32::<24>(s))
}

/// Turns four registers of blocks into four registers of words, and back.
#[target_feature(enable = "avx512f")]
fn turn(x: [__m512i; 4]) -> [__m512i; 4] {
    let (a, b) = (_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
    let (c, d) = (_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
    [_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d), _mm512_unpackhi_epi64(b, d)]
}

#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn sets<const N: usize>(keys: &RoundKeys, data: &mut [u8]) {
    assert_eq!(data.len(), N * SET_BLOCKS * BLOCK_BYTES, "the caller cuts whole sets");
    let swap = _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
    let mut x = [[_mm512_setzero_si512(); 4]; N];
    for (set, bytes) in x.iter_mut().zip(data.as_chunks::<{ SET_BLOCKS * BLOCK_BYTES }>().0) {
        let mut rows = [_mm512_setzero_si512(); 4];
        for (row, bytes) in rows.iter_mut().zip(bytes.as_chunks::<64>().0) {
            // SAFETY: the chunk has 64 bytes; an unaligned load needs no alignment.
            *row = _mm512_shuffle_epi8(unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }, swap);
        }
        *set = turn(rows);
    }
    for four in keys.as_chunks::<4>().0 {
        for (at, key) in four.iter().enumerate() {
            let key = _mm512_set1_epi32(key.cast_signed());
            for set in &mut x {
                let (b, c, d) = (set[(at + 1) % 4], set[(at + 2) % 4], set[(at + 3) % 4]);
                let sum = _mm512_xor_si512(_mm512_ternarylogic_epi32::<XOR3>(b, c, d), key);
                set[at] = _mm512_xor_si512(set[at], mix(sum));
            }
        }
    }
    for (set, bytes) in x.iter().zip(data.as_chunks_mut::<{ SET_BLOCKS * BLOCK_BYTES }>().0) {
        let rows = turn([set[3], set[2], set[1], set[0]]);
        for (row, bytes) in rows.into_iter().zip(bytes.as_chunks_mut::<64>().0) {
            // SAFETY: the chunk has 64 bytes; an unaligned store needs no alignment.
            unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), _mm512_shuffle_epi8(row, swap)) };
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
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    fn inner(x: u32) -> u32 {
        let s = substitute_all(_mm512_set1_epi32(x.cast_signed()));
        _mm_cvtsi128_si32(_mm512_castsi512_si128(s)).cast_unsigned()
    }
    // SAFETY: this set is handed out only after `available` said yes.
    unsafe { inner(x) }
}
