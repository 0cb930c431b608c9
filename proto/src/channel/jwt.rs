//! Signed tokens in `Authorization: Bearer` (RFC 7519, as RFC 8725 wants them read).
//!
//! Only RSA signatures are known here, so `none` and a MAC keyed with the public key cannot pass. Issuer and
//! audience are the caller's to check, before it looks for keys.

use super::event::Request;
use super::keys::RsaKey;
use super::proof;
use super::{Reject, value};
use crate::digest::{self, RsaHash};
use serde_json::Value;

/// Longest token.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// A token that was taken apart and is not verified yet.
pub(super) struct Token<'a> {
    hash: RsaHash,
    key_id: String,
    pub claims: Value,
    signed: &'a str,
    signature: Vec<u8>,
}

impl<'a> Token<'a> {
    /// The bearer token of a request.
    pub fn of(request: &Request<'a>) -> Result<Self, Reject> {
        let token = proof::authorization(request, "Bearer")?.ok_or(Reject::Unauthorized("no token"))?;
        Self::parse(token).ok_or(Reject::Unauthorized("malformed token"))
    }

    fn parse(token: &'a str) -> Option<Self> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let json = |part: &str| value::parse_object(&digest::unbase64url(part)?).ok();
        let (header, claims) = (json(header)?, json(claims)?);
        let hash = match value::text(&header, "/alg")? {
            "RS256" => RsaHash::Sha256,
            "RS384" => RsaHash::Sha384,
            "RS512" => RsaHash::Sha512,
            _ => return None,
        };
        // Extensions that must be understood, and are not.
        if header.get("crit").is_some() {
            return None;
        }
        let key_id = value::filled(&header, "/kid")?.to_owned();
        Some(Self { hash, key_id, claims, signed, signature: digest::unbase64url(signature)? })
    }

    /// A claim that is a text.
    pub fn claim(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str)
    }

    /// Whether the token is for this audience (one text or a list).
    pub fn is_for(&self, audience: &str) -> bool {
        match &self.claims["aud"] {
            Value::String(one) => one == audience,
            Value::Array(list) => list.iter().any(|one| one.as_str() == Some(audience)),
            _ => false,
        }
    }

    /// Whether it is valid now: `exp` is demanded, `nbf` and `iat` may not lie in the future.
    pub fn check_time(&self, request: &Request<'_>) -> Result<(), Reject> {
        let (now_s, leeway_s) = (request.ambient.now_s, request.account.skew_s());
        let time = |name: &str| match self.claims.get(name) {
            None => Ok(None),
            Some(value) => {
                let seconds = value.as_u64().or_else(|| value.as_f64().filter(|s| *s >= 0.0).map(|s| s as u64));
                seconds.map(Some).ok_or(Reject::Unauthorized("malformed time in a token"))
            }
        };
        let expires_s = time("exp")?.ok_or(Reject::Unauthorized("a token without end"))?;
        if now_s > expires_s.saturating_add(leeway_s) {
            return Err(Reject::Stale { skew_s: now_s - expires_s });
        }
        for start_s in [time("nbf")?, time("iat")?].into_iter().flatten() {
            if start_s > now_s.saturating_add(leeway_s) {
                return Err(Reject::Stale { skew_s: start_s - now_s });
            }
        }
        Ok(())
    }

    /// Verifies the signature with the key that the token names, found behind `url`.
    pub fn verify(&self, request: &Request<'_>, url: &str) -> Result<RsaKey, Reject> {
        let needed = |unknown_key| Reject::KeysNeeded { url: url.to_owned(), unknown_key };
        let set = request.ambient.keys.keys(url).ok_or_else(|| needed(false))?;
        let key = set.find(&self.key_id).ok_or_else(|| needed(true))?;
        if key.verify(self.hash, self.signed.as_bytes(), &self.signature) {
            Ok(key.clone())
        } else {
            Err(Reject::Unauthorized("the token's signature"))
        }
    }
}
