//! Sealing of values: authenticated encryption bound to the place of the value.
//!
//! ```text
//! offset  width  field
//! 0       1      version of the record's schema
//! 1       1      algorithm (1 = AES-256-GCM)
//! 2       2      key epoch
//! 4       12     nonce
//! 16      n      ciphertext
//! 16+n    16     tag
//! ```
//! Associated data: column family (1) || schema version (1) || the whole key. A value that is
//! moved to another key, family or tenant, or rolled to another schema, does not open.

mod keyfile;
mod keyring;
mod vault;

pub(crate) use keyfile::{Kek, sync_folder};
pub(crate) use keyring::{KeyRing, NODE, TenantKeys};
pub use vault::{VAULT_NAME_BYTES_MAX, VAULT_SECRET_BYTES_MAX, Vault, VaultError};

use crate::backend::Cf;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes before the ciphertext.
pub(crate) const HEADER_BYTES: usize = 16;
/// Bytes that sealing adds to a value.
pub(crate) const OVERHEAD_BYTES: usize = HEADER_BYTES + 16;

const ALG_AES_256_GCM: u8 = 1;
const RECORD_SCHEMA: u8 = 1;
/// Longest key that sealed families use, with room; keys are ours, so a longer one is our mistake.
const KEY_BYTES_MAX: usize = 254;

/// Draws nonces that never repeat under one key.
///
/// Six random bytes are drawn once per opened store, six bytes count records. Random nonces alone
/// would reach the collision bound of GCM (2^32 records a key) within weeks on a busy node; a
/// counter that is kept on disk would repeat when a copy of the folder is started twice.
pub(crate) struct NonceSource {
    prefix: [u8; 6],
    next: AtomicU64,
}

impl NonceSource {
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut prefix = [0; 6];
        getrandom::fill(&mut prefix)?;
        Ok(Self { prefix, next: AtomicU64::new(0) })
    }

    fn draw(&self) -> [u8; NONCE_LEN] {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(count < 1 << 48, "a store seals fewer than 2^48 records between two starts");
        let mut nonce = [0; NONCE_LEN];
        nonce[..6].copy_from_slice(&self.prefix);
        nonce[6..].copy_from_slice(&count.to_be_bytes()[2..]);
        nonce
    }
}

/// Why a sealed value did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenFailure {
    /// Too short, or of an unknown algorithm or schema.
    Malformed(&'static str),
    /// The epoch's key is not known.
    NoKey(u16),
    /// Wrong key, moved or changed bytes.
    NotAuthentic,
}

/// One data key.
pub(crate) struct DataKey(LessSafeKey);

impl DataKey {
    pub fn new(bytes: &[u8; 32]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes).expect("AES-256 takes exactly 32 bytes");
        Self(LessSafeKey::new(key))
    }

    /// Seals `plain` for its place.
    pub fn seal(&self, nonces: &NonceSource, epoch: u16, cf: Cf, key: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce = nonces.draw();
        let mut out = Vec::with_capacity(plain.len() + OVERHEAD_BYTES);
        out.extend_from_slice(&[RECORD_SCHEMA, ALG_AES_256_GCM]);
        out.extend_from_slice(&epoch.to_be_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(plain);
        let place = Place::new(cf, RECORD_SCHEMA, key);
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(place.as_slice()),
                &mut out[HEADER_BYTES..],
            )
            .expect("a record is shorter than the 64 GiB bound of GCM");
        out.extend_from_slice(tag.as_ref());
        out
    }

    /// Opens in place and returns the plain bytes.
    pub fn open(&self, cf: Cf, key: &[u8], mut sealed: Vec<u8>) -> Result<Vec<u8>, OpenFailure> {
        let header = Header::read(&sealed)?;
        let place = Place::new(cf, RECORD_SCHEMA, key);
        let plain = self
            .0
            .open_within(
                Nonce::assume_unique_for_key(header.nonce),
                Aad::from(place.as_slice()),
                &mut sealed,
                HEADER_BYTES..,
            )
            .map_err(|_| OpenFailure::NotAuthentic)?
            .len();
        sealed.truncate(plain);
        Ok(sealed)
    }
}

/// The clear part of a sealed value.
pub(crate) struct Header {
    pub epoch: u16,
    nonce: [u8; NONCE_LEN],
}

impl Header {
    pub fn read(sealed: &[u8]) -> Result<Self, OpenFailure> {
        if sealed.len() < OVERHEAD_BYTES {
            return Err(OpenFailure::Malformed("shorter than an empty sealed record"));
        }
        if sealed[0] != RECORD_SCHEMA {
            return Err(OpenFailure::Malformed("unknown record schema"));
        }
        if sealed[1] != ALG_AES_256_GCM {
            return Err(OpenFailure::Malformed("unknown algorithm"));
        }
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&sealed[4..HEADER_BYTES]);
        Ok(Self { epoch: u16::from_be_bytes([sealed[2], sealed[3]]), nonce })
    }
}

/// The associated data, on the stack.
struct Place {
    bytes: [u8; 2 + KEY_BYTES_MAX],
    len: usize,
}

impl Place {
    fn new(cf: Cf, schema: u8, key: &[u8]) -> Self {
        assert!(key.len() <= KEY_BYTES_MAX, "keys of sealed families are at most {KEY_BYTES_MAX} bytes");
        let mut bytes = [0; 2 + KEY_BYTES_MAX];
        bytes[0] = cf as u8;
        bytes[1] = schema;
        bytes[2..2 + key.len()].copy_from_slice(key);
        Self { bytes, len: 2 + key.len() }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> DataKey {
        DataKey::new(&[7; 32])
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_at_its_place_only(
            plain in proptest::collection::vec(any::<u8>(), 0..300),
            place in proptest::collection::vec(any::<u8>(), 1..60),
            other in proptest::collection::vec(any::<u8>(), 1..60),
        ) {
            let nonces = NonceSource::new().unwrap();
            let sealed = key().seal(&nonces, 3, Cf::Msg, &place, &plain);
            prop_assert_eq!(sealed.len(), plain.len() + OVERHEAD_BYTES);
            prop_assert_eq!(key().open(Cf::Msg, &place, sealed.clone()), Ok(plain));
            prop_assert_eq!(key().open(Cf::Inbox, &place, sealed.clone()), Err(OpenFailure::NotAuthentic));
            if other != place {
                prop_assert_eq!(key().open(Cf::Msg, &other, sealed.clone()), Err(OpenFailure::NotAuthentic));
            }
            prop_assert_eq!(DataKey::new(&[8; 32]).open(Cf::Msg, &place, sealed), Err(OpenFailure::NotAuthentic));
        }

        #[test]
        fn any_change_or_noise_is_an_error_and_never_a_panic(
            plain in proptest::collection::vec(any::<u8>(), 0..100),
            at in any::<usize>(), flip in 1..=255u8, cut in any::<usize>(),
            noise in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let nonces = NonceSource::new().unwrap();
            let sealed = key().seal(&nonces, 3, Cf::Msg, b"k", &plain);
            let mut flipped = sealed.clone();
            let place = at % flipped.len();
            flipped[place] ^= flip;
            // The epoch only picks the key; the key ring answers for it.
            if !(2..4).contains(&place) {
                prop_assert!(key().open(Cf::Msg, b"k", flipped).is_err());
            }
            prop_assert!(key().open(Cf::Msg, b"k", sealed[..cut % sealed.len()].to_vec()).is_err());
            prop_assert!(key().open(Cf::Msg, b"k", noise).is_err());
        }
    }

    #[test]
    fn nonces_never_repeat_within_a_store() {
        let nonces = NonceSource::new().unwrap();
        let drawn: std::collections::HashSet<_> = (0..10_000).map(|_| nonces.draw()).collect();
        assert_eq!(drawn.len(), 10_000);
    }
}
