//! Public keys as JSON (RFC 7517, 7518 section 6, 8037): our own key set, and those of other issuers.

use ring::signature;
use serde::{Deserialize, Serialize};

use super::jwt::Algorithm;
use crate::digest::{base64url, unbase64url};
use crate::limits::{JWKS_BYTES_MAX, JWKS_KEYS_MAX};

/// Shortest and longest RSA modulus in bytes: RFC 7518 section 3.3 demands 2048 bits, and longer than 8192
/// only costs time.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// A key that verifies signatures of exactly one algorithm: what a token's header says never chooses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    /// Its name in its set.
    pub kid: Option<String>,
    /// Its algorithm.
    pub algorithm: Algorithm,
    material: Material,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    /// Ed25519 point, or uncompressed P-256 point.
    Point(Vec<u8>),
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
}

impl VerifyingKey {
    /// An Ed25519 key from its 32 bytes.
    pub fn ed25519(kid: impl Into<String>, public: &[u8]) -> Option<Self> {
        let material = (public.len() == 32).then(|| Material::Point(public.to_vec()))?;
        Some(Self { kid: Some(kid.into()), algorithm: Algorithm::EdDsa, material })
    }

    /// A P-256 key from its uncompressed point (65 bytes, the first is 4).
    pub fn p256(kid: impl Into<String>, point: &[u8]) -> Option<Self> {
        let material = (point.len() == 65 && point[0] == 4).then(|| Material::Point(point.to_vec()))?;
        Some(Self { kid: Some(kid.into()), algorithm: Algorithm::Es256, material })
    }

    /// Whether `signature` over `message` is of this key.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match (&self.material, self.algorithm) {
            (Material::Point(point), Algorithm::EdDsa) => {
                signature::UnparsedPublicKey::new(&signature::ED25519, point).verify(message, signature).is_ok()
            }
            (Material::Point(point), Algorithm::Es256) => {
                let scheme = &signature::ECDSA_P256_SHA256_FIXED;
                signature::UnparsedPublicKey::new(scheme, point).verify(message, signature).is_ok()
            }
            (Material::Rsa { modulus, exponent }, Algorithm::Rs256) => {
                let key = signature::RsaPublicKeyComponents { n: modulus, e: exponent };
                key.verify(&signature::RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            // The constructors pair material and algorithm.
            (Material::Point(_), Algorithm::Rs256) | (Material::Rsa { .. }, _) => false,
        }
    }

    fn to_jwk(&self) -> Jwk {
        let mut jwk = Jwk {
            kid: self.kid.clone(),
            alg: Some(self.algorithm.as_str().to_owned()),
            usage: Some("sig".into()),
            ..Jwk::default()
        };
        match (&self.material, self.algorithm) {
            (Material::Point(point), Algorithm::EdDsa) => {
                (jwk.kty, jwk.crv, jwk.x) = ("OKP".into(), Some("Ed25519".into()), Some(base64url(point)));
            }
            (Material::Point(point), _) => {
                (jwk.kty, jwk.crv) = ("EC".into(), Some("P-256".into()));
                (jwk.x, jwk.y) = (Some(base64url(&point[1..33])), Some(base64url(&point[33..])));
            }
            (Material::Rsa { modulus, exponent }, _) => {
                (jwk.kty, jwk.n, jwk.e) = ("RSA".into(), Some(base64url(modulus)), Some(base64url(exponent)));
            }
        }
        jwk
    }

    fn of(jwk: &Jwk) -> Option<Self> {
        if jwk.usage.as_deref().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let bytes = |text: &Option<String>| unbase64url(text.as_deref()?);
        let (algorithm, material) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("OKP", Some("Ed25519")) => {
                let x = bytes(&jwk.x).filter(|x| x.len() == 32)?;
                (Algorithm::EdDsa, Material::Point(x))
            }
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes(&jwk.x)?, bytes(&jwk.y)?);
                let point = [&[4], x.as_slice(), &y].concat();
                (Algorithm::Es256, Material::Point((x.len() == 32 && y.len() == 32).then_some(point)?))
            }
            ("RSA", None) => {
                let modulus = bytes(&jwk.n).filter(|n| RSA_BYTES.contains(&n.len()))?;
                let exponent = bytes(&jwk.e).filter(|e| !e.is_empty() && e.len() <= 8)?;
                (Algorithm::Rs256, Material::Rsa { modulus, exponent })
            }
            _ => return None,
        };
        let named = jwk.alg.as_deref().is_none_or(|alg| alg == algorithm.as_str());
        named.then(|| Self { kid: jwk.kid.clone(), algorithm, material })
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Jwk {
    kty: String,
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    usage: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alg: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<String>,
}

/// The keys of one issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: Vec<VerifyingKey>,
}

/// A key set cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// It is larger than any key set.
    #[error("the key set has {bytes} bytes; at most {JWKS_BYTES_MAX} are read")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// It is not a key set.
    #[error("the key set cannot be read: {reason}")]
    Malformed {
        /// What the reader said.
        reason: String,
    },
    /// It holds no key that can be used here.
    #[error("the key set has no usable key; used are Ed25519, P-256 and RSA from 2048 bits on, for signatures")]
    Empty,
}

impl KeySet {
    /// A set of these keys.
    pub fn new(keys: Vec<VerifyingKey>) -> Self {
        Self { keys }
    }

    /// Reads a set. Keys of kinds that are not used here are left out (RFC 7517 section 5).
    pub fn parse(bytes: &[u8]) -> Result<Self, KeySetError> {
        #[derive(Deserialize)]
        struct Wire {
            keys: Vec<serde_json::Value>,
        }
        if bytes.len() > JWKS_BYTES_MAX {
            return Err(KeySetError::TooLong { bytes: bytes.len() });
        }
        let wire: Wire =
            serde_json::from_slice(bytes).map_err(|error| KeySetError::Malformed { reason: error.to_string() })?;
        let read = |value: serde_json::Value| VerifyingKey::of(&serde_json::from_value::<Jwk>(value).ok()?);
        let keys: Vec<_> = wire.keys.into_iter().take(JWKS_KEYS_MAX).filter_map(read).collect();
        if keys.is_empty() { Err(KeySetError::Empty) } else { Ok(Self { keys }) }
    }

    /// The set as JSON; public parts only.
    pub fn to_json(&self) -> Vec<u8> {
        let keys: Vec<Jwk> = self.keys.iter().map(VerifyingKey::to_jwk).collect();
        serde_json::json!({ "keys": keys }).to_string().into_bytes()
    }

    /// The keys that a token with this header may be signed with: of its algorithm, and of its name if both
    /// have one.
    pub fn candidates<'a>(
        &'a self,
        algorithm: Algorithm,
        kid: Option<&'a str>,
    ) -> impl Iterator<Item = &'a VerifyingKey> {
        self.keys.iter().filter(move |key| {
            let named = kid.zip(key.kid.as_deref()).is_none_or(|(wanted, own)| wanted == own);
            key.algorithm == algorithm && named
        })
    }

    /// Whether a key has this name.
    pub fn names(&self, kid: &str) -> bool {
        self.keys.iter().any(|key| key.kid.as_deref() == Some(kid))
    }
}
