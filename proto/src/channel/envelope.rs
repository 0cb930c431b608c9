//! The AES envelopes of Chinese platforms: WeCom, WeChat and DingTalk share one, Feishu has its own.
//!
//! ```text
//! shared:  base64( AES-256-CBC( key, iv = key[..16],
//!            random 16 ‖ length of message u32 big-endian ‖ message ‖ receiver ‖ PKCS#7 with block 32 ) )
//! Feishu:  base64( iv 16 ‖ AES-256-CBC( SHA-256(key text), iv, message ‖ PKCS#7 with block 16 ) )
//! signature of the shared one: hex SHA-1 of the sorted list [token, timestamp, nonce, envelope]
//! ```
//!
//! Every failure is the same refusal: who sends must not learn whether the padding was right.

use super::event::Request;
use super::form::Form;
use super::proof::{self, Clock};
use super::{Account, Reject};
use crate::digest;

/// Blocks of 32 bytes are padded, although AES itself works on 16.
const PADDING_BLOCK: usize = 32;

/// The proof fields of a request in its query.
pub(super) struct Proof<'q> {
    pub signature: &'q str,
    pub timestamp: &'q str,
    pub nonce: &'q str,
}

impl<'q> Proof<'q> {
    /// Reads the fields, the signature from the first of `names` that is there.
    pub fn read(query: &'q Form, names: &[&str]) -> Result<Self, Reject> {
        let name = names.iter().find(|name| query.get(name).is_some()).unwrap_or(&names[0]);
        Ok(Self {
            signature: query.needed(name)?,
            timestamp: query.needed("timestamp")?,
            nonce: query.needed("nonce")?,
        })
    }

    /// Fresh, and signed together with `content` under one of the account's tokens.
    pub fn check(&self, request: &Request<'_>, clock: Clock, content: Option<&str>) -> Result<(), Reject> {
        proof::fresh(request, self.timestamp.as_bytes(), clock)?;
        proof::with_any(Account::usable(&request.account.secrets), |token| {
            let expected = sorted_sha1(token, self.timestamp, self.nonce, content);
            digest::constant_time_eq(expected.as_bytes(), self.signature.as_bytes())
        })
    }
}

/// The signature of the shared envelope.
pub(super) fn sorted_sha1(token: &[u8], timestamp: &str, nonce: &str, content: Option<&str>) -> String {
    let mut parts: Vec<&[u8]> = vec![token, timestamp.as_bytes(), nonce.as_bytes()];
    parts.extend(content.map(str::as_bytes));
    parts.sort_unstable();
    digest::hex(&digest::sha1(&parts.concat()))
}

/// Opens the shared envelope with any key of the account and checks for whom it was made.
pub(super) fn open(account: &Account, sealed: &str, receiver: &str) -> Result<Vec<u8>, Reject> {
    let sealed = digest::unbase64(sealed).ok_or(Reject::Unauthorized("malformed envelope"))?;
    let mut usable = false;
    let mut opened = None;
    for key in Account::usable(&account.encryption_keys).filter_map(aes_key) {
        usable = true;
        opened = opened.or_else(|| open_with(&key, &sealed, receiver));
    }
    match (usable, opened) {
        (false, _) => Err(Reject::Misconfigured("no usable encryption key")),
        (true, None) => Err(Reject::Unauthorized("the envelope does not open")),
        (true, Some(plain)) => Ok(plain),
    }
}

/// Reads an `EncodingAESKey`: 43 characters of base64 whose last one may carry stray bits.
pub(super) fn aes_key(text: &[u8]) -> Option<[u8; 32]> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 43)?;
    digest::unbase64_lenient(text)?.try_into().ok()
}

fn iv_of(key: &[u8; 32]) -> [u8; 16] {
    let mut iv = [0; 16];
    iv.copy_from_slice(&key[..16]);
    iv
}

fn open_with(key: &[u8; 32], sealed: &[u8], receiver: &str) -> Option<Vec<u8>> {
    let padded = digest::aes256_cbc_decrypt(key, &iv_of(key), sealed)?;
    let plain = unpad(&padded, PADDING_BLOCK)?;
    let (length, rest) = plain.get(16..)?.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (message, made_for) = rest.split_at_checked(length)?;
    (made_for == receiver.as_bytes()).then(|| message.to_vec())
}

/// PKCS#7: the last byte says how many bytes of its own value are padding.
fn unpad(padded: &[u8], block: usize) -> Option<&[u8]> {
    let count = usize::from(*padded.last()?);
    if count == 0 || count > block || count > padded.len() {
        return None;
    }
    let (plain, padding) = padded.split_at(padded.len() - count);
    padding.iter().all(|byte| usize::from(*byte) == count).then_some(plain)
}

/// An encrypted and signed answer.
pub(super) struct SealedAnswer {
    pub envelope: String,
    pub signature: String,
    pub timestamp: String,
    pub nonce: String,
}

/// Seals an answer under the account's current key and token. Randomness comes from the request's entropy.
pub(super) fn seal_answer(
    request: &Request<'_>,
    message: &[u8],
    receiver: &str,
    clock: Clock,
) -> Result<SealedAnswer, Reject> {
    seal(request.account, request.ambient.now_s, request.ambient.entropy, message, receiver, clock)
}

/// Seals a message under the account's current key and token.
pub(super) fn seal(
    account: &Account,
    now_s: u64,
    entropy: [u8; 16],
    message: &[u8],
    receiver: &str,
    clock: Clock,
) -> Result<SealedAnswer, Reject> {
    let key = Account::usable(&account.encryption_keys).find_map(aes_key);
    let key = key.ok_or(Reject::Misconfigured("no usable encryption key"))?;
    let token = Account::usable(&account.secrets).next().ok_or(Reject::Misconfigured("no usable secret"))?;
    let length = u32::try_from(message.len()).map_err(|_| Reject::TooLarge("answer"))?;
    let mut plain = [&entropy[..], &length.to_be_bytes(), message, receiver.as_bytes()].concat();
    pad(&mut plain, PADDING_BLOCK);
    let sealed = digest::aes256_cbc_encrypt(&key, &iv_of(&key), &plain).expect("padded to whole blocks");
    let envelope = digest::base64(&sealed);
    let timestamp = if clock == Clock::Millis { now_s.saturating_mul(1_000) } else { now_s }.to_string();
    // The nonce may be known; hashing keeps the random bytes of the plaintext to ourselves.
    let nonce = digest::hex(&digest::sha256(&entropy)[..8]);
    let signature = sorted_sha1(token, &timestamp, &nonce, Some(&envelope));
    Ok(SealedAnswer { envelope, signature, timestamp, nonce })
}

/// PKCS#7: as many bytes as are missing to a whole block (a whole one when none is), each with their count.
fn pad(plain: &mut Vec<u8>, block: usize) {
    let padding = block - plain.len() % block;
    plain.resize(plain.len() + padding, padding as u8);
}

/// Seals a Feishu envelope.
pub(super) fn seal_feishu(key: &[u8], iv: &[u8; 16], message: &[u8]) -> String {
    let mut plain = message.to_vec();
    pad(&mut plain, 16);
    let sealed = digest::aes256_cbc_encrypt(&digest::sha256(key), iv, &plain).expect("padded to whole blocks");
    digest::base64(&[&iv[..], &sealed].concat())
}

/// Opens a Feishu envelope with any key of the account.
pub(super) fn open_feishu(account: &Account, sealed: &str) -> Result<Vec<u8>, Reject> {
    let sealed = digest::unbase64(sealed).ok_or(Reject::Unauthorized("malformed envelope"))?;
    let mut opened = None;
    for key in Account::usable(&account.encryption_keys) {
        opened = opened.or_else(|| {
            let (iv, sealed) = sealed.split_first_chunk::<16>()?;
            let padded = digest::aes256_cbc_decrypt(&digest::sha256(key), iv, sealed)?;
            unpad(&padded, 16).map(<[u8]>::to_vec)
        });
    }
    opened.ok_or(Reject::Unauthorized("the envelope does not open"))
}
