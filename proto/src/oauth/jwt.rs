//! JWT access tokens (RFC 7519, 9068), read the way RFC 8725 advises.
//!
//! A key has one algorithm and a token cannot choose another; there is no `none` and no shared-key
//! signature; headers that bring their own key (`jwk`, `jku`, `x5u`, `x5c`) or change the meaning of the rest
//! (`crit`, `b64`, `zip`) are refused; issuer, audience, type and times are always checked.

use ring::rand::SecureRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde::{Deserialize, Deserializer, Serialize};

use super::jwk::{KeySet, VerifyingKey};
use crate::digest::{base64url, sha256, unbase64url};
use crate::limits::{BEARER_BYTES_MAX, JWT_AUDIENCES_MAX};

/// A signature algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// Ed25519 (RFC 8037).
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSA PKCS #1 v1.5 with SHA-256: only verified, for other issuers.
    Rs256,
}

impl Algorithm {
    /// The name in a header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::EdDsa => "EdDSA",
            Self::Es256 => "ES256",
            Self::Rs256 => "RS256",
        }
    }

    /// Reads a name. `none` and the shared-key algorithms are not names of anything.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::EdDsa, Self::Es256, Self::Rs256].into_iter().find(|known| known.as_str() == name)
    }
}

/// A private key that signs tokens.
pub struct SigningKey {
    kid: String,
    pair: Pair,
}

enum Pair {
    Ed25519(Box<Ed25519KeyPair>),
    P256(Box<EcdsaKeyPair>),
}

/// A key document that is not a private key of the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a PKCS #8 private key for {}", .0.as_str())]
pub struct BadKey(pub Algorithm);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// Makes a key; returns its PKCS #8 document.
    pub fn generate(algorithm: Algorithm, random: &dyn SecureRandom) -> Result<Vec<u8>, BadKey> {
        let made = match algorithm {
            Algorithm::EdDsa => Ed25519KeyPair::generate_pkcs8(random),
            Algorithm::Es256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, random),
            Algorithm::Rs256 => return Err(BadKey(algorithm)),
        };
        made.map(|document| document.as_ref().to_vec()).map_err(|_| BadKey(algorithm))
    }

    /// Reads a PKCS #8 document. Its name is made of its public part, so it is the same on every node.
    pub fn from_pkcs8(algorithm: Algorithm, document: &[u8], random: &dyn SecureRandom) -> Result<Self, BadKey> {
        let bad = BadKey(algorithm);
        let pair = match algorithm {
            Algorithm::EdDsa => Pair::Ed25519(Box::new(Ed25519KeyPair::from_pkcs8(document).map_err(|_| bad)?)),
            Algorithm::Es256 => {
                let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document, random);
                Pair::P256(Box::new(pair.map_err(|_| bad)?))
            }
            Algorithm::Rs256 => return Err(bad),
        };
        let public = match &pair {
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
            Pair::P256(pair) => pair.public_key().as_ref(),
        };
        let kid = base64url(&sha256(public)[..12]);
        Ok(Self { kid, pair })
    }

    /// Its name.
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// Its algorithm.
    pub fn algorithm(&self) -> Algorithm {
        match self.pair {
            Pair::Ed25519(_) => Algorithm::EdDsa,
            Pair::P256(_) => Algorithm::Es256,
        }
    }

    /// The key that verifies what this one signs.
    pub fn verifying(&self) -> VerifyingKey {
        let key = match &self.pair {
            Pair::Ed25519(pair) => VerifyingKey::ed25519(&self.kid, pair.public_key().as_ref()),
            Pair::P256(pair) => VerifyingKey::p256(&self.kid, pair.public_key().as_ref()),
        };
        key.expect("a key pair has a public part of its algorithm's form")
    }

    fn sign(&self, message: &[u8], random: &dyn SecureRandom) -> Result<Vec<u8>, BadKey> {
        match &self.pair {
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::P256(pair) => {
                pair.sign(random, message).map(|made| made.as_ref().to_vec()).map_err(|_| BadKey(self.algorithm()))
            }
        }
    }
}

/// What an access token says (RFC 9068 section 2.2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Who made it.
    pub iss: String,
    /// Whom it stands for.
    pub sub: String,
    /// Whom it is for.
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    /// The client that it was given to. Other issuers may leave it out.
    #[serde(default)]
    pub client_id: String,
    /// Unix seconds of its end.
    pub exp: u64,
    /// Unix seconds of its making.
    #[serde(default)]
    pub iat: u64,
    /// Unix seconds before which it opens nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    /// Its name.
    #[serde(default)]
    pub jti: String,
    /// Scopes with spaces between them.
    #[serde(default)]
    pub scope: String,
    /// The tenant, in tokens of this server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<u32>,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

/// What a token must be.
#[derive(Clone, Copy, Debug)]
pub struct Expect<'a> {
    /// Its `iss`, byte for byte.
    pub issuer: &'a str,
    /// A member of its `aud`.
    pub audience: &'a str,
    /// Unix seconds.
    pub now_s: u64,
    /// How far clocks may differ.
    pub leeway_s: u64,
    /// Made by this server: the type must be `at+jwt` and every claim of RFC 9068 must be there. Other
    /// issuers often write `JWT` and leave some out.
    pub own: bool,
}

/// Why a token opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Not three parts of base64url, or longer than 8 KiB.
    #[error("the token is not a signed JWT")]
    Form,
    /// The header cannot be read, or holds what is not accepted.
    #[error("the token's header is not accepted")]
    Header,
    /// Not an access token.
    #[error("the token is not an access token")]
    Type,
    /// No known key, or the wrong algorithm for it.
    #[error("the token is signed with a key or algorithm that is not accepted")]
    Key,
    /// The signature is wrong.
    #[error("the token's signature is wrong")]
    Signature,
    /// The claims cannot be read, or some are missing.
    #[error("the token's claims are incomplete")]
    Claims,
    /// Another issuer.
    #[error("the token is of another issuer")]
    Issuer,
    /// For somebody else.
    #[error("the token is meant for another audience")]
    Audience,
    /// Over.
    #[error("the token has expired")]
    Expired,
    /// Not yet begun.
    #[error("the token is not valid yet")]
    NotYet,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    typ: Option<String>,
    kid: Option<String>,
    // What a header could use to bring its own key or change the meaning of the rest.
    jwk: Option<serde::de::IgnoredAny>,
    jku: Option<serde::de::IgnoredAny>,
    x5u: Option<serde::de::IgnoredAny>,
    x5c: Option<serde::de::IgnoredAny>,
    crit: Option<serde::de::IgnoredAny>,
    b64: Option<serde::de::IgnoredAny>,
    zip: Option<serde::de::IgnoredAny>,
    enc: Option<serde::de::IgnoredAny>,
}

impl Header {
    fn of(part: &str) -> Result<Self, JwtError> {
        let bytes = unbase64url(part).ok_or(JwtError::Form)?;
        let header: Self = serde_json::from_slice(&bytes).map_err(|_| JwtError::Header)?;
        let foreign =
            [&header.jwk, &header.jku, &header.x5u, &header.x5c, &header.crit, &header.b64, &header.zip, &header.enc];
        if foreign.iter().any(|field| field.is_some()) { Err(JwtError::Header) } else { Ok(header) }
    }

    fn is_access_token(&self, strict: bool) -> bool {
        let Some(typ) = self.typ.as_deref() else { return !strict };
        let name = typ.get(..12).filter(|start| start.eq_ignore_ascii_case("application/")).map_or(typ, |_| &typ[12..]);
        name.eq_ignore_ascii_case("at+jwt") || (!strict && name.eq_ignore_ascii_case("jwt"))
    }
}

/// Signs `claims` as an access token.
pub fn sign(claims: &Claims, key: &SigningKey, random: &dyn SecureRandom) -> Result<String, BadKey> {
    let header = serde_json::json!({"alg": key.algorithm().as_str(), "typ": "at+jwt", "kid": key.kid()});
    let body = serde_json::to_vec(claims).expect("claims are text and numbers");
    let mut token = format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(&body));
    let signature = key.sign(token.as_bytes(), random)?;
    token.push('.');
    token.push_str(&base64url(&signature));
    Ok(token)
}

/// Whether a bearer token has the outer form of a JWT; opaque tokens have no dot.
pub fn looks_like_one(token: &str) -> bool {
    token.len() <= BEARER_BYTES_MAX && token.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// The issuer that a token names, unverified: only to choose whose keys to verify it with.
pub fn issuer_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    let body = looks_like_one(token).then(|| token.split('.').nth(1))??;
    serde_json::from_slice::<Issuer>(&unbase64url(body)?).ok().map(|claims| claims.iss)
}

/// The name of the key that a token names, unverified: only to notice that a key set has grown.
pub fn kid_of(token: &str) -> Option<String> {
    Header::of(token.split('.').next()?).ok()?.kid
}

/// Verifies a token completely.
pub fn verify(token: &str, keys: &KeySet, expect: &Expect<'_>) -> Result<Claims, JwtError> {
    if !looks_like_one(token) {
        return Err(JwtError::Form);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Form)?;
    let (header, body) = signed.split_once('.').ok_or(JwtError::Form)?;
    let header = Header::of(header)?;
    if !header.is_access_token(expect.own) {
        return Err(JwtError::Type);
    }
    let algorithm = Algorithm::parse(&header.alg).ok_or(JwtError::Key)?;
    let signature = unbase64url(signature).ok_or(JwtError::Form)?;
    let mut candidates = keys.candidates(algorithm, header.kid.as_deref()).peekable();
    candidates.peek().ok_or(JwtError::Key)?;
    if !candidates.any(|key| key.verifies(signed.as_bytes(), &signature)) {
        return Err(JwtError::Signature);
    }
    let body = unbase64url(body).ok_or(JwtError::Form)?;
    let claims: Claims = serde_json::from_slice(&body).map_err(|_| JwtError::Claims)?;
    check(&claims, expect)?;
    Ok(claims)
}

fn check(claims: &Claims, expect: &Expect<'_>) -> Result<(), JwtError> {
    let complete = !claims.sub.is_empty()
        && (!expect.own || (!claims.client_id.is_empty() && !claims.jti.is_empty() && claims.iat > 0));
    if !complete || claims.aud.len() > JWT_AUDIENCES_MAX {
        return Err(JwtError::Claims);
    }
    if claims.iss != expect.issuer {
        return Err(JwtError::Issuer);
    }
    if !claims.aud.iter().any(|audience| audience == expect.audience) {
        return Err(JwtError::Audience);
    }
    if expect.now_s >= claims.exp.saturating_add(expect.leeway_s) {
        return Err(JwtError::Expired);
    }
    let begins = claims.nbf.unwrap_or(0).max(claims.iat);
    if begins > expect.now_s.saturating_add(expect.leeway_s) { Err(JwtError::NotYet) } else { Ok(()) }
}
