//! SM4-GCM (RFC 8998, NIST SP 800-38D): authenticated encryption in place.
//!
//! Counters are encrypted 32 blocks at a time, which fills the widest set, and the mask of the tag is
//! simply the first of them. Long data is encrypted and hashed in windows that stay in the first-level cache.

use super::kernel::{self, BLOCK_BYTES, Kernel, Powers};
use super::sm4::Sm4;
use crate::digest::constant_time_eq;
use zeroize::ZeroizeOnDrop;

/// Bytes of a tag.
const TAG_BYTES: usize = 16;
/// Bytes of counters encrypted at a time.
const STREAM_BYTES: usize = 32 * BLOCK_BYTES;
/// Bytes encrypted before they are hashed.
const WINDOW_BYTES: usize = 8 << 10;
/// GCM's bound on one message: its counter has 32 bits, two values of which are taken.
const DATA_BYTES_MAX: u64 = (1 << 36) - 32;

/// A sealed text was changed, or belongs to another key, nonce or place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed text is not authentic: it was changed, or sealed with another key, nonce or associated data")]
pub struct NotAuthentic;

/// A key for sealing. Wiped when dropped.
#[derive(Debug)]
pub struct Sm4Gcm {
    cipher: Sm4,
    powers: Secret,
}

/// Hash-key powers that never show in Debug.
struct Secret(Powers);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl ZeroizeOnDrop for Sm4Gcm {}

impl Sm4Gcm {
    /// Prepares a key.
    #[must_use]
    pub fn new(key: &[u8; 16]) -> Self {
        Self::on(kernel::chosen(), key)
    }

    pub(super) fn on(kernel: &'static Kernel, key: &[u8; 16]) -> Self {
        let cipher = Sm4::on(kernel, key);
        let mut hash_key = [0; BLOCK_BYTES];
        cipher.encrypt_blocks(&mut hash_key);
        Self { powers: Secret((kernel.powers)(&hash_key)), cipher }
    }

    /// Encrypts `data` in place and gives its tag. A nonce must never be used twice under one key; it
    /// has 12 bytes in all our uses (other lengths, at least one byte, are hashed as the standard says).
    ///
    /// # Panics
    /// When `nonce` is empty or `data` exceeds GCM's bound of 64 GiB.
    pub fn seal_in_place(&self, nonce: &[u8], aad: &[u8], data: &mut [u8]) -> [u8; TAG_BYTES] {
        assert!(data.len() as u64 <= DATA_BYTES_MAX, "GCM seals at most 64 GiB at once");
        let mut stream = Stream::new(&self.cipher, self.first_counter(nonce), data.len());
        let mask = stream.mask();
        let mut hash = Hash::new(self, aad);
        for window in data.chunks_mut(WINDOW_BYTES) {
            stream.apply(window);
            hash.padded(window);
        }
        hash.tag(aad.len(), data.len(), &mask)
    }

    /// Checks the tag, then decrypts `data` in place; on an error `data` is left as it was.
    pub fn open_in_place(&self, nonce: &[u8], aad: &[u8], data: &mut [u8], tag: &[u8]) -> Result<(), NotAuthentic> {
        if nonce.is_empty() || data.len() as u64 > DATA_BYTES_MAX {
            return Err(NotAuthentic);
        }
        let mut stream = Stream::new(&self.cipher, self.first_counter(nonce), data.len());
        let mask = stream.mask();
        let mut hash = Hash::new(self, aad);
        hash.padded(data);
        if !constant_time_eq(&hash.tag(aad.len(), data.len(), &mask), tag) {
            return Err(NotAuthentic);
        }
        stream.apply(data);
        Ok(())
    }

    fn first_counter(&self, nonce: &[u8]) -> [u8; BLOCK_BYTES] {
        assert!(!nonce.is_empty(), "a nonce has at least one byte");
        let mut counter = [0; BLOCK_BYTES];
        if nonce.len() == 12 {
            counter[..12].copy_from_slice(nonce);
            counter[15] = 1;
            return counter;
        }
        let mut hash = Hash { key: self, sum: counter };
        hash.padded(nonce);
        hash.lengths(0, nonce.len());
        hash.sum
    }
}

/// The key stream, from the counter of the tag's mask on.
struct Stream<'a> {
    cipher: &'a Sm4,
    next: [u8; BLOCK_BYTES],
    ready: [u8; STREAM_BYTES],
    /// Used and valid bytes of `ready`.
    at: usize,
    end: usize,
    /// Blocks that will still be asked for: a short message must not pay for 32.
    wanted: usize,
}

impl<'a> Stream<'a> {
    fn new(cipher: &'a Sm4, first: [u8; BLOCK_BYTES], data_bytes: usize) -> Self {
        let wanted = 1 + data_bytes.div_ceil(BLOCK_BYTES);
        Self { cipher, next: first, ready: [0; STREAM_BYTES], at: 0, end: 0, wanted }
    }

    fn refill(&mut self) {
        let blocks = self.wanted.min(STREAM_BYTES / BLOCK_BYTES);
        self.wanted -= blocks;
        let mut count = u32::from_be_bytes(*self.next.last_chunk().expect("a counter has 16 bytes"));
        for block in self.ready.as_chunks_mut::<BLOCK_BYTES>().0.iter_mut().take(blocks) {
            *block = self.next;
            block[12..].copy_from_slice(&count.to_be_bytes());
            count = count.wrapping_add(1);
        }
        self.next[12..].copy_from_slice(&count.to_be_bytes());
        (self.at, self.end) = (0, blocks * BLOCK_BYTES);
        self.cipher.encrypt_blocks(&mut self.ready[..self.end]);
    }

    /// The first block.
    fn mask(&mut self) -> [u8; BLOCK_BYTES] {
        self.refill();
        self.at = BLOCK_BYTES;
        *self.ready.first_chunk().expect("a stream is longer than a block")
    }

    fn apply(&mut self, mut data: &mut [u8]) {
        while !data.is_empty() {
            if self.at == self.end {
                self.refill();
            }
            let (now, later) = data.split_at_mut(data.len().min(self.end - self.at));
            for (byte, key) in now.iter_mut().zip(&self.ready[self.at..self.end]) {
                *byte ^= key;
            }
            self.at += now.len();
            data = later;
        }
    }
}

struct Hash<'a> {
    key: &'a Sm4Gcm,
    sum: [u8; BLOCK_BYTES],
}

impl<'a> Hash<'a> {
    fn new(key: &'a Sm4Gcm, aad: &[u8]) -> Self {
        let mut hash = Self { key, sum: [0; BLOCK_BYTES] };
        hash.padded(aad);
        hash
    }

    fn blocks(&mut self, data: &[u8]) {
        (self.key.cipher.kernel.ghash)(&self.key.powers.0, &mut self.sum, data);
    }

    /// Adds data and zeros up to a whole block.
    fn padded(&mut self, data: &[u8]) {
        let (whole, rest) = data.split_at(data.len() / BLOCK_BYTES * BLOCK_BYTES);
        self.blocks(whole);
        if !rest.is_empty() {
            let mut block = [0; BLOCK_BYTES];
            block[..rest.len()].copy_from_slice(rest);
            self.blocks(&block);
        }
    }

    fn lengths(&mut self, aad_bytes: usize, data_bytes: usize) {
        let mut block = [0; BLOCK_BYTES];
        block[..8].copy_from_slice(&(aad_bytes as u64 * 8).to_be_bytes());
        block[8..].copy_from_slice(&(data_bytes as u64 * 8).to_be_bytes());
        self.blocks(&block);
    }

    fn tag(mut self, aad_bytes: usize, data_bytes: usize, mask: &[u8; BLOCK_BYTES]) -> [u8; TAG_BYTES] {
        self.lengths(aad_bytes, data_bytes);
        std::array::from_fn(|at| self.sum[at] ^ mask[at])
    }
}
