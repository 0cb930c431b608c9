//! SM4 (GB/T 32907-2016) as it is written, with a computed S-box.
//!
//! `S(x) = A(inverse(A(x) + 0xd3)) + 0xd3` over GF(2^8) modulo `x^8+x^7+x^6+x^5+x^4+x^2+1`, where `A` adds the
//! rotations of a byte by 0, 1, 3, 6 and 7. Four bytes of a word are computed side by side, and eight
//! blocks at a time so that a compiler may use vectors.

use super::super::{BLOCK_BYTES, RoundKeys};

const EACH_BYTE: u32 = 0x0101_0101;
/// The field's polynomial without `x^8`, in each byte.
const POLYNOMIAL: u32 = 0xf5 * EACH_BYTE;
const CONSTANT: u32 = 0xd3 * EACH_BYTE;
/// Words computed side by side.
const LANES: usize = 8;

type Words = [u32; LANES];

/// All ones in each byte whose lowest bit is set.
fn spread(bits: u32) -> u32 {
    let bits = bits & EACH_BYTE;
    (bits << 8).wrapping_sub(bits)
}

/// Rotates each byte of a word.
fn rotate_bytes(x: u32, by: u32) -> u32 {
    let kept = (0xff >> by) * EACH_BYTE;
    ((x & kept) << by) | ((x >> (8 - by)) & (((1 << by) - 1) * EACH_BYTE))
}

fn affine(words: Words) -> Words {
    words.map(|x| x ^ rotate_bytes(x, 1) ^ rotate_bytes(x, 3) ^ rotate_bytes(x, 6) ^ rotate_bytes(x, 7) ^ CONSTANT)
}

/// Multiplies the bytes of words in the field.
fn multiply(mut a: Words, b: Words) -> Words {
    let mut product = [0; LANES];
    for bit in 0..8 {
        for ((product, a), b) in product.iter_mut().zip(&mut a).zip(&b) {
            *product ^= *a & spread(b >> bit);
            *a = ((*a & (0x7f * EACH_BYTE)) << 1) ^ (spread(*a >> 7) & POLYNOMIAL);
        }
    }
    product
}

fn square(words: Words, times: u32) -> Words {
    (0..times).fold(words, |words, _| multiply(words, words))
}

/// `x^254`, which is the inverse and maps zero to zero.
fn inverse(x: Words) -> Words {
    let x2 = square(x, 1);
    let x3 = multiply(x2, x);
    let x12 = square(x3, 2);
    let x15 = multiply(x12, x3);
    let x240 = square(x15, 4);
    multiply(multiply(x240, x12), x2)
}

/// The S-box on each byte of words.
fn substitute_all(words: Words) -> Words {
    affine(inverse(affine(words)))
}

/// The S-box on each byte of a word.
pub(crate) fn substitute(x: u32) -> u32 {
    substitute_all([x; LANES])[0]
}

fn linear(x: u32) -> u32 {
    x ^ x.rotate_left(2) ^ x.rotate_left(10) ^ x.rotate_left(18) ^ x.rotate_left(24)
}

/// Encrypts whole blocks in place.
pub(crate) fn blocks(keys: &RoundKeys, data: &mut [u8]) {
    assert!(data.len().is_multiple_of(BLOCK_BYTES), "the cipher takes whole blocks");
    for group in data.chunks_mut(LANES * BLOCK_BYTES) {
        let mut x = [[0u32; LANES]; 4];
        for (lane, block) in group.chunks_exact(BLOCK_BYTES).enumerate() {
            for (word, bytes) in block.as_chunks().0.iter().enumerate() {
                x[word][lane] = u32::from_be_bytes(*bytes);
            }
        }
        for (round, key) in keys.iter().enumerate() {
            let at = |word: usize| (round + word) % 4;
            let (b, c, d) = (x[at(1)], x[at(2)], x[at(3)]);
            let mixed = substitute_all(std::array::from_fn(|lane| b[lane] ^ c[lane] ^ d[lane] ^ key));
            for (word, mixed) in x[at(0)].iter_mut().zip(mixed) {
                *word ^= linear(mixed);
            }
        }
        for (lane, block) in group.chunks_exact_mut(BLOCK_BYTES).enumerate() {
            for (word, bytes) in block.as_chunks_mut().0.iter_mut().enumerate() {
                *bytes = x[3 - word][lane].to_be_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first row of the table in the standard.
    #[test]
    fn the_computed_box_is_that_of_the_standard() {
        let row = [0xd6, 0x90, 0xe9, 0xfe, 0xcc, 0xe1, 0x3d, 0xb7, 0x16, 0xb6, 0x14, 0xc2, 0x28, 0xfb, 0x2c, 0x05];
        for (x, wanted) in (0u32..).zip(row) {
            assert_eq!(substitute(x * EACH_BYTE), wanted * EACH_BYTE, "S({x})");
        }
        let all: std::collections::HashSet<u32> = (0..256).map(|x| substitute(x) & 0xff).collect();
        assert_eq!(all.len(), 256, "a box is a permutation");
    }
}
