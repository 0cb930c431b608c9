//! GHASH by carry-less multiplication, eight blocks for one reduction.
//!
//! Plain version: [`super::super::scalar`]. Departures:
//! - The hash is computed as POLYVAL (RFC 8452, appendix A), whose bits run in the processor's order: the key is
//!   multiplied by `x` once, blocks are read byte-reversed, and no product has to be shifted.
//! - `a1 k^n + a2 k^(n-1) + ...` needs one reduction for `n` blocks instead of `n`.
#![allow(unsafe_code)]

use super::super::{BLOCK_BYTES, POWERS, Powers};
use std::arch::x86_64::*;

/// `x^127 + x^126 + x^121 + 1`.
const POLYNOMIAL: u128 = 0xc200_0000_0000_0000_0000_0000_0000_0001;
/// Blocks multiplied before one reduction.
const GROUP_BLOCKS: usize = 8;

#[target_feature(enable = "avx2")]
fn vector(x: u128) -> __m128i {
    _mm_set_epi64x(((x >> 64) as u64).cast_signed(), (x as u64).cast_signed())
}

#[target_feature(enable = "avx2")]
fn number(x: __m128i) -> u128 {
    let (low, high) = (_mm_extract_epi64::<0>(x).cast_unsigned(), _mm_extract_epi64::<1>(x).cast_unsigned());
    u128::from(high) << 64 | u128::from(low)
}

/// A product of 256 bits that is not reduced yet: low, middle (shifted by 64) and high.
#[derive(Clone, Copy)]
struct Wide {
    low: __m128i,
    middle: __m128i,
    high: __m128i,
}

impl Wide {
    #[target_feature(enable = "avx2")]
    fn zero() -> Self {
        let zero = _mm_setzero_si128();
        Self { low: zero, middle: zero, high: zero }
    }

    #[target_feature(enable = "avx2,pclmulqdq")]
    fn add_product(&mut self, a: __m128i, b: __m128i) {
        let cross = _mm_xor_si128(_mm_clmulepi64_si128::<0x01>(a, b), _mm_clmulepi64_si128::<0x10>(a, b));
        self.low = _mm_xor_si128(self.low, _mm_clmulepi64_si128::<0x00>(a, b));
        self.middle = _mm_xor_si128(self.middle, cross);
        self.high = _mm_xor_si128(self.high, _mm_clmulepi64_si128::<0x11>(a, b));
    }

    /// Divides by `x^128`: twice, the lowest word is cancelled by a multiple of the polynomial.
    #[target_feature(enable = "avx2,pclmulqdq")]
    fn reduce(self) -> __m128i {
        let polynomial = vector(POLYNOMIAL >> 64);
        let low = _mm_xor_si128(self.low, _mm_slli_si128::<8>(self.middle));
        let high = _mm_xor_si128(self.high, _mm_srli_si128::<8>(self.middle));
        let fold = |x: __m128i| {
            _mm_xor_si128(_mm_shuffle_epi32::<0b01_00_11_10>(x), _mm_clmulepi64_si128::<0x00>(x, polynomial))
        };
        _mm_xor_si128(high, fold(fold(low)))
    }
}

/// The product of POLYVAL: `a * b / x^128`.
#[target_feature(enable = "avx2,pclmulqdq")]
fn multiply(a: u128, b: u128) -> u128 {
    let mut product = Wide::zero();
    product.add_product(vector(a), vector(b));
    number(product.reduce())
}

/// The powers of the key, the highest first.
pub(crate) fn powers(key: &[u8; BLOCK_BYTES]) -> Powers {
    let key = u128::from_be_bytes(*key);
    let first = (key << 1) ^ (POLYNOMIAL & (key >> 127).wrapping_neg());
    let mut powers = Powers([first; POWERS]);
    for at in (0..POWERS - 1).rev() {
        // SAFETY: the sets that use this are handed out only after `available` said yes.
        powers.0[at] = unsafe { multiply(powers.0[at + 1], first) };
    }
    powers
}

#[target_feature(enable = "avx2,pclmulqdq")]
fn sum_blocks(powers: &Powers, total: u128, blocks: &[[u8; BLOCK_BYTES]]) -> u128 {
    let mut total = vector(total);
    for group in blocks.chunks(GROUP_BLOCKS) {
        let mut product = Wide::zero();
        for (at, block) in group.iter().enumerate() {
            let mut block = vector(u128::from_be_bytes(*block));
            if at == 0 {
                block = _mm_xor_si128(block, total);
            }
            product.add_product(block, vector(powers.0[POWERS - group.len() + at]));
        }
        total = product.reduce();
    }
    number(total)
}

/// Adds blocks to a sum in the processor's order. Only called after the processor was asked.
pub(crate) fn multiply_blocks(powers: &Powers, total: u128, blocks: &[[u8; BLOCK_BYTES]]) -> u128 {
    // SAFETY: the sets that call this are handed out only after `available` said yes.
    unsafe { sum_blocks(powers, total, blocks) }
}

/// Hashes whole blocks into `sum`.
pub(crate) fn ghash(powers: &Powers, sum: &mut [u8; BLOCK_BYTES], data: &[u8]) {
    let (blocks, rest) = data.as_chunks::<BLOCK_BYTES>();
    assert!(rest.is_empty(), "the hash takes whole blocks");
    *sum = multiply_blocks(powers, u128::from_be_bytes(*sum), blocks).to_be_bytes();
}
