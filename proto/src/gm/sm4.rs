//! An SM4 key (GB/T 32907-2016) and the raw block cipher.

use super::kernel::{self, Kernel, RoundKeys};
use zeroize::{Zeroize as _, ZeroizeOnDrop};

const SYSTEM: [u32; 4] = [0xa3b1_bac6, 0x56aa_3350, 0x677d_9197, 0xb270_22dc];

/// An expanded key. Wiped when dropped.
pub struct Sm4 {
    pub(super) keys: RoundKeys,
    pub(super) kernel: &'static Kernel,
}

impl Sm4 {
    /// Expands a key for the fastest instruction set of this processor.
    #[must_use]
    pub fn new(key: &[u8; 16]) -> Self {
        Self::on(kernel::chosen(), key)
    }

    pub(super) fn on(kernel: &'static Kernel, key: &[u8; 16]) -> Self {
        let mut k = [0u32; 4];
        for ((word, bytes), system) in k.iter_mut().zip(key.as_chunks::<4>().0).zip(SYSTEM) {
            *word = u32::from_be_bytes(*bytes) ^ system;
        }
        let mut keys = [0; 32];
        for (round, key) in (0u32..).zip(&mut keys) {
            // Byte j of the constant of round i is 7 (4 i + j).
            let constant = u32::from_be_bytes(std::array::from_fn(|j| (7 * (4 * round + j as u32)) as u8));
            let at = round as usize;
            let s = (kernel.substitute)(k[(at + 1) % 4] ^ k[(at + 2) % 4] ^ k[(at + 3) % 4] ^ constant);
            k[at % 4] ^= s ^ s.rotate_left(13) ^ s.rotate_left(23);
            *key = k[at % 4];
        }
        k.zeroize();
        Self { keys, kernel }
    }

    /// Encrypts whole blocks in place, each for itself (ECB): the piece that modes are made of.
    ///
    /// # Panics
    /// When `data` is not a multiple of 16 bytes.
    pub fn encrypt_blocks(&self, data: &mut [u8]) {
        (self.kernel.blocks)(&self.keys, data);
    }

    /// Decrypts whole blocks in place.
    ///
    /// # Panics
    /// When `data` is not a multiple of 16 bytes.
    pub fn decrypt_blocks(&self, data: &mut [u8]) {
        let mut reversed = self.keys;
        reversed.reverse();
        (self.kernel.blocks)(&reversed, data);
        reversed.zeroize();
    }
}

impl Drop for Sm4 {
    fn drop(&mut self) {
        self.keys.zeroize();
    }
}

impl ZeroizeOnDrop for Sm4 {}

impl std::fmt::Debug for Sm4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sm4").field("kernel", &self.kernel.name).finish_non_exhaustive()
    }
}
