//! What proves that a request comes from the platform: shared words, MACs in headers, and fresh timestamps.
//!
//! Everything fails closed: an account without a usable secret verifies nothing, and a missing or empty
//! header is a wrong one.

use super::event::Request;
use super::{Account, Reject, Secret};
use crate::digest;

/// Tries a check with every usable secret, without an early exit.
pub(super) fn with_any<'s>(
    secrets: impl IntoIterator<Item = &'s [u8]>,
    mut fits: impl FnMut(&[u8]) -> bool,
) -> Result<(), Reject> {
    let (mut usable, mut valid) = (false, false);
    for secret in secrets {
        usable = true;
        valid |= fits(secret);
    }
    match (usable, valid) {
        (false, _) => Err(Reject::Misconfigured("no usable secret")),
        (true, false) => Err(Reject::Unauthorized("no secret fits")),
        (true, true) => Ok(()),
    }
}

/// The given word is one of the account's secrets.
pub(super) fn shared_word(account: &Account, given: &[u8]) -> Result<(), Reject> {
    with_any(Account::usable(&account.secrets), |secret| digest::constant_time_eq(secret, given))
}

/// The given word is this one; a word that is not configured fits nothing.
pub(super) fn this_word(word: Option<&Secret>, given: &[u8]) -> bool {
    word.is_some_and(|word| !word.bytes().is_empty() && digest::constant_time_eq(word.bytes(), given))
}

/// A header holds the MAC of the body: `encode` makes the text of the MAC from a secret.
pub(super) fn header_mac(
    request: &Request<'_>,
    header: &'static str,
    encode: impl Fn(&[u8]) -> String,
) -> Result<(), Reject> {
    let given = request.incoming.needed(header)?;
    with_any(Account::usable(&request.account.secrets), |secret| {
        digest::constant_time_eq(encode(secret).as_bytes(), given)
    })
}

/// `X-Hub-Signature-256` of Meta and GitHub. The older SHA-1 header is never looked at.
pub(super) fn hub_signature(request: &Request<'_>) -> Result<(), Reject> {
    header_mac(request, "x-hub-signature-256", |secret| {
        ["sha256=", &digest::hex(&digest::hmac_sha256(secret, &[request.incoming.body]))].concat()
    })
}

/// The unit of a timestamp.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Clock {
    Seconds,
    Millis,
}

/// A timestamp of ASCII digits that is close enough to now.
pub(super) fn fresh(request: &Request<'_>, timestamp: &[u8], clock: Clock) -> Result<(), Reject> {
    let number = whole(timestamp).ok_or(Reject::Unauthorized("malformed timestamp"))?;
    fresh_seconds(request, if clock == Clock::Millis { number / 1_000 } else { number })
}

/// A time that is close enough to now.
pub(super) fn fresh_seconds(request: &Request<'_>, sent_s: u64) -> Result<(), Reject> {
    let skew_s = sent_s.abs_diff(request.ambient.now_s);
    if skew_s > request.account.skew_s() { Err(Reject::Stale { skew_s }) } else { Ok(()) }
}

/// ASCII digits as a number; up to 19 of them fit without a check for overflow.
pub(super) fn whole(digits: &[u8]) -> Option<u64> {
    let valid = (1..=19).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    valid.then(|| digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))
}

/// The 64 bytes of an Ed25519 signature in hex of either case.
pub(super) fn ed25519_hex(given: &[u8]) -> Result<Vec<u8>, Reject> {
    std::str::from_utf8(given)
        .ok()
        .and_then(digest::unhex)
        .filter(|bytes| bytes.len() == 64)
        .ok_or(Reject::Unauthorized("malformed signature"))
}

/// The token of `Authorization: SCHEME token`.
pub(super) fn authorization<'a>(request: &Request<'a>, scheme: &str) -> Result<Option<&'a str>, Reject> {
    let Some(value) = request.incoming.single("authorization")? else { return Ok(None) };
    let text = std::str::from_utf8(value).map_err(|_| Reject::Unauthorized("malformed authorization"))?;
    let (given, token) = text.split_once(' ').ok_or(Reject::Unauthorized("malformed authorization"))?;
    if given.eq_ignore_ascii_case(scheme) { Ok(Some(token)) } else { Err(Reject::Unauthorized("another scheme")) }
}
