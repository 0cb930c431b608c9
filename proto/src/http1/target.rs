//! The request target: one reading of it for authentication and routing alike.

use super::{HttpError, Method};
use crate::limits::URI_BYTES_MAX;

/// Checks the target and gives its path-and-query part.
///
/// Accepted are the origin form and, since RFC 9112 section 3.2.2 demands it of servers, the absolute form
/// when its authority is the `Host`; `*` only for OPTIONS.
pub(super) fn check<'a>(target: &'a str, method: Method, host: &str) -> Result<&'a str, HttpError> {
    if target.len() > URI_BYTES_MAX {
        return Err(HttpError::new(414, "request target is longer than 8 KiB"));
    }
    if !target.bytes().all(|byte| (0x21..=0x7e).contains(&byte) && byte != b'#') {
        return Err(HttpError::bad("malformed request target"));
    }
    if target.starts_with('/') || (target == "*" && method == Method::Options) {
        return Ok(target);
    }
    let rest = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    let rest = rest.ok_or(HttpError::bad("malformed request target"))?;
    let Some(slash) = rest.find('/') else { return Err(HttpError::bad("absolute request target without a path")) };
    let (authority, path) = rest.split_at(slash);
    if authority.eq_ignore_ascii_case(host) { Ok(path) } else { Err(HttpError::bad("request target and Host differ")) }
}

/// Decodes `%XX`. `None` for a broken escape, for NUL and for bytes that are not UTF-8.
pub fn percent_decode(text: &str) -> Option<String> {
    decode(text, false)
}

/// Decodes `%XX` and `+` as space: a name or value of a form. `None` as for [`percent_decode`].
pub fn form_decode(text: &str) -> Option<String> {
    decode(text, true)
}

/// The pairs of a query string, decoded with `+` as space. Pairs that do not decode are left out.
pub fn query_pairs(query: &str) -> impl Iterator<Item = (String, String)> {
    query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decode(name, true)?, decode(value, true)?))
    })
}

fn decode(text: &str, plus_is_space: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        bytes.push(match first {
            b'%' => {
                let (high, low) = (*tail.first()?, *tail.get(1)?);
                rest = &tail[2..];
                let digit = |byte: u8| char::from(byte).to_digit(16);
                (digit(high)? << 4 | digit(low)?) as u8
            }
            b'+' if plus_is_space => b' ',
            other => *other,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}
