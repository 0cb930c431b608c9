//! GHASH by wide carry-less multiplication, 16 blocks for one reduction.
//!
//! As the AVX2 set, whose form of the key it shares; four blocks are multiplied by one instruction.
#![allow(unsafe_code)]

use super::super::{BLOCK_BYTES, POWERS, Powers, avx2};
use std::arch::x86_64::*;

const GROUP_BYTES: usize = POWERS * BLOCK_BYTES;

/// The sum of the four 128-bit parts.
#[target_feature(enable = "avx512f")]
fn across(x: __m512i) -> __m128i {
    let half = _mm256_xor_si256(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
    _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half))
}

/// As the reduction of the AVX2 set.
#[target_feature(enable = "avx512f,pclmulqdq")]
fn reduce(low: __m128i, middle: __m128i, high: __m128i) -> __m128i {
    let polynomial = _mm_set_epi64x(0, 0xc200_0000_0000_0000_u64.cast_signed());
    let low = _mm_xor_si128(low, _mm_slli_si128::<8>(middle));
    let high = _mm_xor_si128(high, _mm_srli_si128::<8>(middle));
    let fold =
        |x: __m128i| _mm_xor_si128(_mm_shuffle_epi32::<0b01_00_11_10>(x), _mm_clmulepi64_si128::<0x00>(x, polynomial));
    _mm_xor_si128(high, fold(fold(low)))
}

#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq,pclmulqdq")]
fn groups(powers: &Powers, total: u128, groups: &[[u8; GROUP_BYTES]]) -> u128 {
    let reverse = _mm512_broadcast_i32x4(_mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    let mut keys = [_mm512_setzero_si512(); 4];
    for (at, key) in keys.iter_mut().enumerate() {
        // SAFETY: there are 16 powers of 16 bytes, and 4 * at + 4 <= 16.
        *key = unsafe { _mm512_loadu_si512(powers.0.as_ptr().add(4 * at).cast()) };
    }
    let mut total = _mm_set_epi64x(((total >> 64) as u64).cast_signed(), (total as u64).cast_signed());
    for group in groups {
        let zero = _mm512_setzero_si512();
        let (mut low, mut middle, mut high) = (zero, zero, zero);
        for (at, (bytes, key)) in group.as_chunks::<64>().0.iter().zip(keys).enumerate() {
            // SAFETY: the chunk has 64 bytes; an unaligned load needs no alignment.
            let mut x = _mm512_shuffle_epi8(unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }, reverse);
            if at == 0 {
                x = _mm512_xor_si512(x, _mm512_zextsi128_si512(total));
            }
            low = _mm512_xor_si512(low, _mm512_clmulepi64_epi128::<0x00>(x, key));
            high = _mm512_xor_si512(high, _mm512_clmulepi64_epi128::<0x11>(x, key));
            let cross = _mm512_clmulepi64_epi128::<0x01>(x, key);
            // The sum of three words as a truth table.
            middle = _mm512_ternarylogic_epi64::<0x96>(middle, cross, _mm512_clmulepi64_epi128::<0x10>(x, key));
        }
        total = reduce(across(low), across(middle), across(high));
    }
    let (low, high) = (_mm_extract_epi64::<0>(total).cast_unsigned(), _mm_extract_epi64::<1>(total).cast_unsigned());
    u128::from(high) << 64 | u128::from(low)
}

/// Hashes whole blocks into `sum`.
pub(crate) fn ghash(powers: &Powers, sum: &mut [u8; BLOCK_BYTES], data: &[u8]) {
    let (whole, rest) = data.as_chunks::<GROUP_BYTES>();
    let mut total = u128::from_be_bytes(*sum);
    if !whole.is_empty() {
        // SAFETY: this set is handed out only after `available` said yes.
        total = unsafe { groups(powers, total, whole) };
    }
    let (blocks, rest) = rest.as_chunks::<BLOCK_BYTES>();
    assert!(rest.is_empty(), "the hash takes whole blocks");
    *sum = avx2::multiply_blocks(powers, total, blocks).to_be_bytes();
}
