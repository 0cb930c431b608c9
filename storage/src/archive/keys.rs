//! The keys of a line of backups.
//!
//! ```text
//! key of keys ──HKDF──▶ wrapping key      wraps the line's key into each manifest
//!             ──HKDF──▶ fingerprint 8     in each manifest, so that a wrong key is named and not guessed at
//! key of the line (random; a named value of the store, and wrapped in each manifest)
//!             ──HKDF──▶ content           HMAC-SHA-256: an object is named after what it holds
//!             ──HKDF──▶ sealing ──HKDF(id)──▶ one key for each object
//!             ──HKDF──▶ signing           Ed25519 seed: signs manifests
//! ```
//! The key of keys is in no backup. It may be renewed: the manifests made from then on wrap the same key of the line
//! under the new one, and nothing is sent again.

use super::ArchiveError;
use crate::seal::{DataKey, Kek, Suite};
use millrace_proto::backup::{Fingerprint, LineId, ObjectId, WRAPPED_BYTES};
use millrace_proto::digest;
use zeroize::Zeroizing;

const SALT: &[u8] = b"millrace backup";

/// The key of a line, expanded.
pub(crate) struct LineKey {
    secret: Zeroizing<[u8; 32]>,
    content: Zeroizing<[u8; 32]>,
    sealing: Zeroizing<[u8; 32]>,
    signing: Zeroizing<[u8; 32]>,
}

impl LineKey {
    pub fn new(secret: [u8; 32]) -> Self {
        let derive = |info: &[u8]| Zeroizing::new(digest::hkdf_sha256(SALT, &secret, info));
        Self {
            content: derive(b"content 1"),
            sealing: derive(b"sealing 1"),
            signing: derive(b"signing 1"),
            secret: Zeroizing::new(secret),
        }
    }

    pub fn random() -> Result<Self, ArchiveError> {
        random().map(Self::new)
    }

    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The name of an object that holds these bytes: the same bytes are sent once, and a key seals one content only.
    pub fn object_id(&self, kind: u8, plain: &[u8]) -> ObjectId {
        let mac = digest::hmac_sha256(&self.content[..], &[&[kind], plain]);
        *mac.first_chunk().expect("32 bytes hold 16")
    }

    pub fn object_key(&self, suite: Suite, id: &ObjectId) -> DataKey {
        let info = [&b"object 1 "[..], suite.as_str().as_bytes()].concat();
        DataKey::new(suite, &Zeroizing::new(digest::hkdf_sha256(id, &self.sealing[..], &info)))
    }

    /// The Ed25519 seed that signs manifests.
    pub fn signing(&self) -> &[u8; 32] {
        &self.signing
    }

    pub fn public(&self) -> [u8; 32] {
        digest::ed25519_public(&self.signing)
    }

    /// The key of the line under a key of keys, for a manifest of that line.
    pub fn wrap(&self, kek: &Kek, line: &LineId) -> Result<[u8; WRAPPED_BYTES], ArchiveError> {
        let mut wrapped = [0; WRAPPED_BYTES];
        let nonce: [u8; 12] = random()?;
        let (head, rest) = wrapped.split_at_mut(12);
        let (body, tag) = rest.split_at_mut(32);
        head.copy_from_slice(&nonce);
        body.copy_from_slice(&self.secret[..]);
        tag.copy_from_slice(&wrapping(kek).seal_piece(nonce, &place(line), body));
        Ok(wrapped)
    }

    /// `None` when another key of keys wrapped it, or it was changed.
    pub fn unwrap(kek: &Kek, line: &LineId, wrapped: &[u8; WRAPPED_BYTES]) -> Option<Self> {
        let (nonce, sealed) = wrapped.split_first_chunk::<12>()?;
        let mut plain = Zeroizing::new(sealed.to_vec());
        let length = wrapping(kek).open_piece(*nonce, &place(line), &mut plain)?;
        Some(Self::new(plain[..length].try_into().ok()?))
    }
}

fn wrapping(kek: &Kek) -> DataKey {
    DataKey::new(Suite::Intl, &Zeroizing::new(digest::hkdf_sha256(SALT, kek.bytes(), b"wrapping 1")))
}

fn place(line: &LineId) -> Vec<u8> {
    [&b"millrace key of a line 1"[..], line].concat()
}

pub(crate) fn fingerprint(kek: &Kek) -> Fingerprint {
    *digest::hkdf_sha256(SALT, kek.bytes(), b"fingerprint 1").first_chunk().expect("32 bytes hold 8")
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], ArchiveError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| ArchiveError::Io {
        act: "get random bytes for",
        path: "a backup".into(),
        source: std::io::Error::other(error.to_string()),
    })?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_a_line_opens_under_its_key_of_keys_and_for_its_line_only() {
        let (kek, other) = (Kek::ephemeral().unwrap(), Kek::ephemeral().unwrap());
        let key = LineKey::random().unwrap();
        let wrapped = key.wrap(&kek, &[1; 16]).unwrap();
        assert_eq!(LineKey::unwrap(&kek, &[1; 16], &wrapped).unwrap().secret(), key.secret());
        assert!(LineKey::unwrap(&other, &[1; 16], &wrapped).is_none());
        assert!(LineKey::unwrap(&kek, &[2; 16], &wrapped).is_none());
        for at in 0..WRAPPED_BYTES {
            let mut changed = wrapped;
            changed[at] ^= 1;
            assert!(LineKey::unwrap(&kek, &[1; 16], &changed).is_none(), "{at}");
        }
        assert_ne!(fingerprint(&kek), fingerprint(&other));
    }

    #[test]
    fn names_follow_the_content_and_the_key() {
        let (key, other) = (LineKey::new([1; 32]), LineKey::new([2; 32]));
        assert_eq!(key.object_id(1, b"a"), key.object_id(1, b"a"));
        assert_ne!(key.object_id(1, b"a"), key.object_id(1, b"b"));
        assert_ne!(key.object_id(1, b"a"), key.object_id(2, b"a"));
        assert_ne!(key.object_id(1, b"a"), other.object_id(1, b"a"));
        let signature = digest::ed25519_sign(key.signing(), b"m");
        assert!(digest::ed25519_verify(&key.public(), b"m", &signature));
        assert!(!digest::ed25519_verify(&other.public(), b"m", &signature));
    }
}
