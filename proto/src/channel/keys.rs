//! Public keys of platforms: JWKS documents and the certificates of Amazon SNS.
//!
//! The sets come from outside through [`KeySource`]; a caller that has none gets
//! [`Reject::KeysNeeded`](super::Reject) with the address, fetches it and hands the answer to [`parse`].

use super::{Account, ChannelKind, account, value};
use crate::digest::{self, RsaHash};
use std::sync::Arc;

/// Keys of one set; platforms publish two to a dozen.
const KEYS_MAX: usize = 64;
/// Longest document.
pub const DOCUMENT_BYTES_MAX: usize = 256 * 1024;
/// How long a set is good.
pub const KEYS_TTL_S: u64 = 24 * 3_600;
/// An unknown key id makes a set be fetched again, but not more often than this.
pub const REFETCH_PAUSE_S: u64 = 3_600;

/// One RSA public key.
#[derive(Clone, Debug)]
pub struct RsaKey {
    /// Its name in tokens; empty for a certificate.
    pub id: String,
    n: Vec<u8>,
    e: Vec<u8>,
    /// The Bot Framework channels that it may sign for; empty = all.
    pub endorsements: Vec<String>,
    /// Unix seconds in which a certificate is valid.
    pub valid_s: (u64, u64),
}

impl RsaKey {
    /// Whether the signature is this key's.
    pub fn verify(&self, hash: RsaHash, message: &[u8], signature: &[u8]) -> bool {
        digest::rsa_verify(hash, &self.n, &self.e, message, signature)
    }
}

/// The keys behind one address.
#[derive(Clone, Debug, Default)]
pub struct KeySet {
    /// In the order of the document.
    pub keys: Vec<RsaKey>,
}

impl KeySet {
    /// The key with this id.
    pub fn find(&self, id: &str) -> Option<&RsaKey> {
        self.keys.iter().find(|key| key.id == id)
    }
}

/// Where verified key sets come from.
pub trait KeySource {
    /// The set of an address, if it is at hand and not too old.
    fn keys(&self, url: &str) -> Option<Arc<KeySet>>;
}

/// A source without keys, for accounts of platforms that use none.
#[derive(Clone, Copy, Debug)]
pub struct NoKeys;

impl KeySource for NoKeys {
    fn keys(&self, _url: &str) -> Option<Arc<KeySet>> {
        None
    }
}

/// What a fetched document is.
#[derive(Debug)]
pub enum Parsed {
    /// The keys.
    Keys(KeySet),
    /// An OpenID configuration: the keys are there, on the same host.
    Next(String),
}

/// A document that holds no usable keys.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the document of {url} holds no usable keys: {why}")]
pub struct KeyError {
    /// Where it came from.
    pub url: String,
    /// What is wrong.
    pub why: &'static str,
}

/// Where the keys of an account lie, as far as that is known before its first event: worth a fetch at the start.
pub fn known_address(account: &Account) -> Option<&'static str> {
    match (account.kind, account.mode.as_deref()) {
        (ChannelKind::Teams, _) => Some(super::teams::KEYS),
        (ChannelKind::GoogleChat, Some("project_number")) => Some(super::googlechat::PROJECT_KEYS),
        (ChannelKind::GoogleChat, _) => Some(super::googlechat::GOOGLE_KEYS),
        _ => None,
    }
}

/// Reads a document that was fetched for `url`, which is the public address; `base` is the account's own source
/// of keys, if it has one.
pub fn parse(url: &str, base: Option<&str>, body: &[u8]) -> Result<Parsed, KeyError> {
    let error = |why| KeyError { url: url.to_owned(), why };
    if body.len() > DOCUMENT_BYTES_MAX {
        return Err(error("it is too long"));
    }
    if body.trim_ascii_start().starts_with(b"-----BEGIN") {
        let key = certificate(body).ok_or_else(|| error("it is no X.509 certificate with an RSA key"))?;
        return Ok(Parsed::Keys(KeySet { keys: vec![key] }));
    }
    let document = value::parse(body).map_err(|_| error("it is neither JSON nor PEM"))?;
    if let Some(next) = value::text(&document, "/jwks_uri") {
        // Who could change the document could otherwise send us anywhere.
        let same_host = host(next).is_some() && host(next) == host(url);
        return if next != url && (same_host || base.is_some_and(|base| account::on_base(next, base))) {
            Ok(Parsed::Next(next.to_owned()))
        } else {
            Err(error("it refers to another host"))
        };
    }
    let keys = value::list(&document, "/keys");
    if keys.len() > KEYS_MAX {
        return Err(error("it has too many keys"));
    }
    let keys: Vec<RsaKey> = keys.iter().filter_map(jwk).collect();
    if keys.is_empty() { Err(error("it lists no RSA key")) } else { Ok(Parsed::Keys(KeySet { keys })) }
}

/// The host of an HTTPS address without user, port or path.
pub(super) fn host(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://")?;
    let host = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    (!host.is_empty() && host.bytes().all(plain)).then_some(host)
}

fn jwk(key: &serde_json::Value) -> Option<RsaKey> {
    if value::text(key, "/kty") != Some("RSA") || value::text(key, "/use").is_some_and(|usage| usage != "sig") {
        return None;
    }
    let number = |name| value::text(key, name).and_then(digest::unbase64url);
    Some(RsaKey {
        id: value::text(key, "/kid").unwrap_or_default().to_owned(),
        n: number("/n")?,
        e: number("/e")?,
        endorsements: value::list(key, "/endorsements")
            .iter()
            .filter_map(|one| one.as_str().map(str::to_owned))
            .collect(),
        valid_s: (0, u64::MAX),
    })
}

/// The RSA key and the validity of a PEM certificate.
///
/// ```text
/// Certificate    ::= SEQUENCE { TBSCertificate, algorithm, signature }
/// TBSCertificate ::= SEQUENCE { [0] version?, serial, algorithm, issuer, validity, subject, SPKI, .. }
/// SPKI           ::= SEQUENCE { SEQUENCE { OID rsaEncryption, NULL }, BIT STRING { SEQUENCE { n, e } } }
/// ```
fn certificate(pem: &[u8]) -> Option<RsaKey> {
    const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let der = unpem(std::str::from_utf8(pem).ok()?, "CERTIFICATE")?;
    let mut whole = Der(&der);
    let mut certificate = Der(whole.take(SEQUENCE)?);
    let mut fields = Der(certificate.take(SEQUENCE)?);
    if fields.0.first() == Some(&0xa0) {
        fields.take(0xa0)?;
    }
    fields.take(INTEGER)?;
    fields.take(SEQUENCE)?;
    fields.take(SEQUENCE)?;
    let mut validity = Der(fields.take(SEQUENCE)?);
    let valid_s = (validity.time()?, validity.time()?);
    fields.take(SEQUENCE)?;
    let mut key_info = Der(fields.take(SEQUENCE)?);
    let mut algorithm = Der(key_info.take(SEQUENCE)?);
    if algorithm.take(0x06)? != RSA_ENCRYPTION {
        return None;
    }
    let (unused_bits, key) = key_info.take(0x03)?.split_first()?;
    let mut numbers = Der(Der(key).take(SEQUENCE)?);
    let (n, e) = (numbers.take(INTEGER)?.to_vec(), numbers.take(INTEGER)?.to_vec());
    (*unused_bits == 0).then_some(RsaKey { id: String::new(), n, e, endorsements: Vec::new(), valid_s })
}

/// The bytes of the first block with this label.
pub(super) fn unpem(text: &str, label: &str) -> Option<Vec<u8>> {
    let begin = format!("-----BEGIN {label}-----");
    let start = text.find(&begin)? + begin.len();
    let end = start + text[start..].find("-----END ")?;
    let base64: String = text[start..end].chars().filter(|c| !c.is_ascii_whitespace()).collect();
    digest::unbase64(&base64)
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;

/// A cursor over DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next value, which must have this tag.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, rest) = self.0.split_first()?;
        let (length, rest) = match rest.split_first()? {
            (short, rest) if *short < 0x80 => (usize::from(*short), rest),
            (long, rest) => {
                let (digits, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                if digits.is_empty() || digits.len() > 4 {
                    return None;
                }
                (digits.iter().fold(0, |sum, digit| sum << 8 | usize::from(*digit)), rest)
            }
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        (*found == tag).then_some(content)
    }

    /// `UTCTime` (two digits of the year) or `GeneralizedTime`, in Unix seconds.
    fn time(&mut self) -> Option<u64> {
        const UTC_TIME: u8 = 0x17;
        let tag = *self.0.first()?;
        let text = std::str::from_utf8(self.take(tag)?).ok()?;
        if !text.is_ascii() {
            return None;
        }
        let text = match (tag, text.get(..2)?) {
            // RFC 5280: 50 to 99 are of the last century.
            (UTC_TIME, year) => format!("{}{text}", if year >= "50" { "19" } else { "20" }),
            _ => text.to_owned(),
        };
        let part = |from: usize, to: usize| text.get(from..to);
        crate::date::parse_timestamp(&format!(
            "{}-{}-{}T{}:{}:{}{}",
            part(0, 4)?,
            part(4, 6)?,
            part(6, 8)?,
            part(8, 10)?,
            part(10, 12)?,
            part(12, 14)?,
            part(14, 15)?
        ))
    }
}
