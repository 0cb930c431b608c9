//! GHASH (NIST SP 800-38D, algorithm 1): one bit at a time, without a branch.

use super::super::{BLOCK_BYTES, POWERS, Powers};

/// The field's polynomial in GCM's reflected order.
const POLYNOMIAL: u128 = 0xe1 << 120;

/// Only the key itself is used; it stands last, as the first power does in every set.
pub(crate) fn powers(key: &[u8; BLOCK_BYTES]) -> Powers {
    let mut powers = [0; POWERS];
    powers[POWERS - 1] = u128::from_be_bytes(*key);
    Powers(powers)
}

/// All ones when the lowest bit is set.
fn mask(bit: u128) -> u128 {
    (bit & 1).wrapping_neg()
}

fn multiply(a: u128, mut b: u128) -> u128 {
    let mut product = 0;
    for at in (0..128).rev() {
        product ^= b & mask(a >> at);
        b = (b >> 1) ^ (POLYNOMIAL & mask(b));
    }
    product
}

/// Hashes whole blocks into `sum`.
pub(crate) fn ghash(powers: &Powers, sum: &mut [u8; BLOCK_BYTES], data: &[u8]) {
    let (blocks, rest) = data.as_chunks::<BLOCK_BYTES>();
    assert!(rest.is_empty(), "the hash takes whole blocks");
    let mut total = u128::from_be_bytes(*sum);
    for block in blocks {
        total = multiply(total ^ u128::from_be_bytes(*block), powers.0[POWERS - 1]);
    }
    *sum = total.to_be_bytes();
}
