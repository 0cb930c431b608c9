//! The keys that sign access tokens of this node: one in use, and earlier ones that still verify.

use std::fmt;

use millrace_proto::digest::{base64, unbase64};
use millrace_proto::oauth::jwk::KeySet;
use millrace_proto::oauth::jwt::{Algorithm, SigningKey};
use ring::rand::SystemRandom;
use serde::{Deserialize, Serialize};

/// How long a key verifies after it was replaced: longer than any token lives.
pub const RETIRED_KEEP_S: u64 = super::LIFETIME_S_MAX + 3_600;

/// Keys that are kept at most; a further rotation drops the oldest.
const KEYS_MAX: usize = 16;

/// A key as it is stored, inside a sealed value.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredKey {
    algorithm: String,
    pkcs8: String,
    /// Unix seconds of its making.
    pub created_s: u64,
    /// Unix seconds of its replacement.
    pub retired_s: Option<u64>,
}

impl fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// What a list of the keys shows.
#[derive(Debug, Serialize)]
pub struct KeyFacts {
    /// Its name in tokens and in the key set.
    pub kid: String,
    /// Its algorithm.
    pub algorithm: &'static str,
    /// Unix seconds of its making.
    pub created_s: u64,
    /// Unix seconds after which it verifies no more; `None` for the one in use.
    pub verifies_until_s: Option<u64>,
}

/// The keys, ready for use.
#[derive(Debug)]
pub struct Signing {
    /// Oldest first; the last one is in use.
    stored: Vec<StoredKey>,
    keys: Vec<SigningKey>,
    set: KeySet,
}

/// The keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The system's random numbers are not available.
    #[error("a signing key cannot be made")]
    Random,
    /// What is stored is not a list of keys.
    #[error("the stored signing keys cannot be read: {0}")]
    Stored(String),
}

impl Signing {
    /// Reads stored keys; makes a first one when there is none, and a new one when the wanted algorithm is
    /// another than that of the key in use. Says whether the result must be stored.
    pub fn open(stored: Option<&[u8]>, wanted: Algorithm, now_s: u64) -> Result<(Self, bool), SigningError> {
        let keys: Vec<StoredKey> = match stored {
            None => Vec::new(),
            Some(bytes) => serde_json::from_slice(bytes).map_err(|error| SigningError::Stored(error.to_string()))?,
        };
        match keys.last() {
            Some(last) if last.algorithm == wanted.as_str() => Ok((Self::of(keys)?, false)),
            _ => Ok((Self::of(rotated(keys, wanted, now_s)?)?, true)),
        }
    }

    /// The same keys with a new one in use.
    pub fn rotate(&self, wanted: Algorithm, now_s: u64) -> Result<Self, SigningError> {
        Self::of(rotated(self.stored.clone(), wanted, now_s)?)
    }

    fn of(stored: Vec<StoredKey>) -> Result<Self, SigningError> {
        let random = SystemRandom::new();
        let read = |key: &StoredKey| {
            let algorithm = Algorithm::parse(&key.algorithm)
                .ok_or_else(|| SigningError::Stored(format!("unknown algorithm {}", key.algorithm)))?;
            let document = unbase64(&key.pkcs8).ok_or_else(|| SigningError::Stored("not base64".into()))?;
            SigningKey::from_pkcs8(algorithm, &document, &random)
                .map_err(|error| SigningError::Stored(error.to_string()))
        };
        let keys = stored.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let set = KeySet::new(keys.iter().rev().map(SigningKey::verifying).collect());
        Ok(Self { stored, keys, set })
    }

    /// What to store, for a sealed place.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(&self.stored).expect("keys are text and numbers")
    }

    /// The key in use.
    pub fn current(&self) -> &SigningKey {
        self.keys.last().expect("there is always a key")
    }

    /// The public parts of all keys that verify.
    pub fn set(&self) -> &KeySet {
        &self.set
    }

    /// The keys for a list.
    pub fn facts(&self) -> Vec<KeyFacts> {
        let fact = |(key, stored): (&SigningKey, &StoredKey)| KeyFacts {
            kid: key.kid().to_owned(),
            algorithm: key.algorithm().as_str(),
            created_s: stored.created_s,
            verifies_until_s: stored.retired_s.map(|at| at.saturating_add(RETIRED_KEEP_S)),
        };
        self.keys.iter().zip(&self.stored).rev().map(fact).collect()
    }
}

fn rotated(mut keys: Vec<StoredKey>, wanted: Algorithm, now_s: u64) -> Result<Vec<StoredKey>, SigningError> {
    let document = SigningKey::generate(wanted, &SystemRandom::new()).map_err(|_| SigningError::Random)?;
    if let Some(last) = keys.last_mut() {
        last.retired_s.get_or_insert(now_s);
    }
    keys.retain(|key| key.retired_s.is_none_or(|at| now_s < at.saturating_add(RETIRED_KEEP_S)));
    if keys.len() >= KEYS_MAX {
        keys.drain(..=keys.len() - KEYS_MAX);
    }
    keys.push(StoredKey {
        algorithm: wanted.as_str().to_owned(),
        pkcs8: base64(&document),
        created_s: now_s,
        retired_s: None,
    });
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_is_made_and_read_back_and_earlier_ones_go_on_verifying() {
        let (first, made) = Signing::open(None, Algorithm::EdDsa, 1_000).expect("a key");
        assert!(made);
        let (again, made) = Signing::open(Some(&first.to_bytes()), Algorithm::EdDsa, 2_000).expect("the same key");
        assert!(!made && again.current().kid() == first.current().kid());
        let second = again.rotate(Algorithm::Es256, 3_000).expect("another");
        assert_eq!(second.current().algorithm(), Algorithm::Es256);
        assert!(second.set().names(first.current().kid()) && second.set().names(second.current().kid()));
        let later = second.rotate(Algorithm::Es256, 3_000 + RETIRED_KEEP_S).expect("a third");
        assert!(!later.set().names(first.current().kid()), "retired for good");
        assert!(later.set().names(second.current().kid()));
        let facts = later.facts();
        assert_eq!((facts.len(), facts[0].verifies_until_s), (2, None), "the one in use comes first");
    }

    #[test]
    fn another_algorithm_makes_another_key_and_their_number_is_bounded() {
        let (mut signing, _) = Signing::open(None, Algorithm::EdDsa, 1).expect("a key");
        let (other, made) = Signing::open(Some(&signing.to_bytes()), Algorithm::Es256, 2).expect("a key");
        assert!(made && other.current().algorithm() == Algorithm::Es256);
        for now_s in 0..40 {
            signing = signing.rotate(Algorithm::EdDsa, now_s).expect("a key");
        }
        assert_eq!(signing.facts().len(), KEYS_MAX);
    }

    #[test]
    fn damaged_keys_are_an_error_and_nothing_shows_them() {
        for damaged in ["", "{}", "[{}]", r#"[{"algorithm":"none","pkcs8":"","created_s":1,"retired_s":null}]"#] {
            assert!(Signing::open(Some(damaged.as_bytes()), Algorithm::EdDsa, 1).is_err() || damaged.contains("none"));
        }
        let (signing, _) = Signing::open(None, Algorithm::EdDsa, 1).expect("a key");
        let stored = String::from_utf8(signing.to_bytes()).expect("text");
        let secret = stored.split("pkcs8\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a document");
        assert!(!format!("{signing:?}").contains(secret));
    }
}
