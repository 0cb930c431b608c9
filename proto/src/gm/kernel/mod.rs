//! The two loops of SM4-GCM, once for each instruction set, chosen once.
//!
//! Each set has the same two files: `sm4` (whole blocks under expanded round keys) and `ghash` (the
//! universal hash of GCM). [`scalar`] is the reference and the fall-back. No set looks up a secret in
//! memory and none branches on one: the S-box is computed ([`scalar`], [`avx512`] with GFNI) or comes from
//! the AES instruction of the processor between two affine maps ([`avx2`]).

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;

use std::sync::OnceLock;
use zeroize::{Zeroize as _, ZeroizeOnDrop};

/// Bytes of a block of the cipher and of the hash.
pub(crate) const BLOCK_BYTES: usize = 16;
/// Blocks whose products are summed before one reduction.
pub(crate) const POWERS: usize = 16;

/// The 32 round keys, in the order of use.
pub(crate) type RoundKeys = [u32; 32];

/// Powers of the hash key in the form that one instruction set wants, the highest first.
#[derive(Clone)]
pub(crate) struct Powers(pub [u128; POWERS]);

impl Drop for Powers {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Powers {}

/// The loops of one instruction set.
pub(crate) struct Kernel {
    /// For tests and logs.
    pub name: &'static str,
    /// The S-box on each of four bytes, for the key schedule.
    pub substitute: fn(u32) -> u32,
    /// Encrypts whole blocks in place; with reversed round keys it decrypts.
    pub blocks: fn(&RoundKeys, &mut [u8]),
    /// Prepares the hash key, the encrypted zero block.
    pub powers: fn(&[u8; BLOCK_BYTES]) -> Powers,
    /// Hashes whole blocks into a sum.
    pub ghash: fn(&Powers, &mut [u8; BLOCK_BYTES], &[u8]),
}

/// The fastest set of this processor.
pub(crate) fn chosen() -> &'static Kernel {
    static CHOSEN: OnceLock<&'static Kernel> = OnceLock::new();
    CHOSEN.get_or_init(|| all().last().expect("the scalar set is always there"))
}

/// Every set that this processor can run, the slowest first.
pub(crate) fn all() -> Vec<&'static Kernel> {
    let mut sets = vec![&scalar::KERNEL];
    #[cfg(target_arch = "x86_64")]
    {
        if avx2::available() {
            sets.push(&avx2::KERNEL);
        }
        if avx512::available() {
            sets.push(&avx512::KERNEL);
        }
    }
    sets
}
