//! What goes out: calls to a platform, and what its answers mean.

use super::{Account, ChannelKind};
use crate::digest;
use crate::id::EffectKey;
use crate::limits::RETRY_DELAY_S_MAX;
use crate::record::ChatAddress;
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// An HTTP call to make.
#[derive(Clone, PartialEq, Eq)]
pub struct OutboundCall {
    /// HTTP method.
    pub method: &'static str,
    /// Absolute address. May hold a secret (Telegram): `Debug` shows scheme and host only.
    pub url: String,
    /// Header fields.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
    /// Whether the peer recognises a repetition. When it does not and the answer is lost, the delivery is
    /// unknown and must not be repeated blindly.
    pub idempotent: bool,
}

impl OutboundCall {
    /// A call with a JSON body.
    pub(super) fn json(method: &'static str, url: String, body: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json; charset=utf-8".to_owned())];
        Self { method, url, headers, body: body.to_string().into_bytes(), idempotent: false }
    }

    /// A call with a form body.
    pub(super) fn form(method: &'static str, url: String, fields: &[(&str, &str)]) -> Self {
        let headers = vec![("content-type".to_owned(), "application/x-www-form-urlencoded".to_owned())];
        Self { method, url, headers, body: super::form::encode(fields).into_bytes(), idempotent: false }
    }

    /// A call without a body.
    pub(super) fn get(url: String) -> Self {
        Self { method: "GET", url, headers: Vec::new(), body: Vec::new(), idempotent: true }
    }

    /// Adds a header.
    pub(super) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Adds `Authorization: Bearer`.
    pub(super) fn bearer(self, token: &str) -> Self {
        self.header("authorization", format!("Bearer {token}"))
    }

    /// Adds `Authorization: Basic`.
    pub(super) fn basic(self, user: &str, password: &str) -> Self {
        self.header("authorization", format!("Basic {}", digest::base64(format!("{user}:{password}").as_bytes())))
    }

    /// The peer recognises a repetition of this call.
    pub(super) fn repeatable(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Scheme and host of the address: what may appear in logs.
    pub fn origin(&self) -> &str {
        let host = self.url.find("://").map_or(0, |at| at + 3);
        let end = self.url[host..].find(['/', '?', '#']).map_or(self.url.len(), |at| host + at);
        &self.url[..end]
    }
}

impl fmt::Debug for OutboundCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboundCall")
            .field("method", &self.method)
            .field("origin", &self.origin())
            .field("body_bytes", &self.body.len())
            .field("idempotent", &self.idempotent)
            .finish_non_exhaustive()
    }
}

/// A choice that a person can make by pressing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Button {
    /// What it says.
    pub label: String,
    /// What we get back when it is pressed.
    pub value: String,
}

/// What a platform is told when it asks for the text of a reply that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPart<'a> {
    /// The name of the reply.
    pub id: &'a str,
    /// The whole text so far.
    pub text: &'a str,
    /// Whether nothing will follow. The platform asks no more.
    pub finished: bool,
}

/// Something to say, with all that an adapter may need to say it.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    /// In whose name.
    pub account: &'a Account,
    /// To whom.
    pub address: &'a ChatAddress,
    /// The name of the effect: the same for every repetition.
    pub key: &'a EffectKey,
    /// What is said.
    pub text: &'a str,
    /// Choices to offer. Platforms without buttons get them as lines of text.
    pub buttons: &'a [Button],
    /// Unix milliseconds of its making.
    pub created_ms: u64,
    /// Unix time in seconds.
    pub now_s: u64,
    /// The access token, for platforms whose tokens are short-lived (see [`super::access`]).
    pub token: Option<&'a str>,
}

impl<'a> Outgoing<'a> {
    pub(super) fn missing(&self, missing: &'static str) -> EncodeError {
        EncodeError { channel: self.account.kind, account: self.account.name.clone(), missing }
    }

    /// The static token of the account.
    pub(super) fn bot_token(&self) -> Result<&'a str, EncodeError> {
        let token = self.account.bot_token.as_ref().and_then(|token| token.text());
        token.filter(|token| !token.is_empty()).ok_or_else(|| self.missing("no bot_token is configured"))
    }

    /// The short-lived token, or the static one of those who bring their own.
    pub(super) fn access_token(&self) -> Result<&'a str, EncodeError> {
        match self.token {
            Some(token) => Ok(token),
            None => self.bot_token().map_err(|_| self.missing("no access token is at hand")),
        }
    }

    pub(super) fn app_id(&self) -> Result<&'a str, EncodeError> {
        self.account.app_id.as_deref().ok_or_else(|| self.missing("no app_id is configured"))
    }

    pub(super) fn sender(&self) -> Result<&'a str, EncodeError> {
        self.account.sender.as_deref().ok_or_else(|| self.missing("no sender is configured"))
    }

    /// Where an account that only reports posts its answers.
    pub(super) fn reply_url(&self) -> Result<&'a str, EncodeError> {
        let url = self.account.reply_url.as_ref().and_then(|url| url.text());
        url.ok_or_else(|| self.missing("no reply_url is configured"))
    }

    pub(super) fn handle(&self) -> Option<&'a str> {
        self.address.reply_to.as_deref()
    }

    /// The text with the choices as lines, for platforms without buttons.
    pub(super) fn text_with_choices(&self) -> String {
        let mut text = self.text.to_owned();
        for button in self.buttons {
            text.push_str("\n- ");
            text.push_str(&button.label);
        }
        text
    }

    /// The effect as a UUID: the form that several platforms demand of repetition keys.
    pub(super) fn uuid(&self) -> String {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest::sha256(&self.key.to_bytes())[..16]);
        // Version 8 (RFC 9562): the bits are ours.
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex = digest::hex(&bytes);
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

/// A reply that cannot be made from the account's configuration. No retry helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("account {account} ({channel}) cannot reply: {missing}")]
pub struct EncodeError {
    /// The platform.
    pub channel: ChannelKind,
    /// The account.
    pub account: String,
    /// What is missing and where to set it.
    pub missing: &'static str,
}

/// What the platform's answer means for the delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Accepted.
    Delivered {
        /// The platform's id for it, if it gave one.
        receipt: Option<String>,
    },
    /// Try again: after `after` if the platform said so, else as the retry policy says.
    Retry {
        /// The pause that the platform asked for.
        after: Option<Duration>,
        /// What the platform said.
        why: String,
    },
    /// The access token is not valid (any more): make a new one and try again.
    TokenRefused {
        /// What the platform said.
        why: String,
    },
    /// No retry helps.
    Dead {
        /// What the platform said.
        why: String,
    },
    /// The peer cannot tell and a repetition could double it.
    Unknown {
        /// What is known.
        why: String,
    },
}

/// A platform's answer to a call.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// HTTP status.
    pub status: u16,
    /// The `Retry-After` header.
    pub retry_after: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

impl Answered<'_> {
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(self.body).unwrap_or(Value::Null)
    }

    /// The pause that the platform asks for, in the header or in `seconds` of its body.
    pub(super) fn pause(&self, seconds: Option<f64>) -> Option<Duration> {
        let body = seconds.filter(|s| s.is_finite() && *s >= 0.0).map(|s| s.min(RETRY_DELAY_S_MAX as f64));
        retry_after(self.retry_after).or_else(|| body.map(Duration::from_secs_f64))
    }

    /// What the status alone says; `receipt` is taken when it is a success, `said` explains a failure.
    pub(super) fn by_status(&self, receipt: Option<String>, said: &str) -> Delivery {
        let why = || {
            let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
            format!("the platform answered {}{}{said}", self.status, if said.is_empty() { "" } else { ": " })
        };
        match self.status {
            200..=299 => Delivery::Delivered { receipt },
            401 => Delivery::TokenRefused { why: why() },
            429 => Delivery::Retry { after: self.pause(None), why: why() },
            408 | 425 | 500.. => Delivery::Retry { after: self.pause(None), why: why() },
            _ => Delivery::Dead { why: why() },
        }
    }

    /// For platforms that say in the body how it went, with HTTP 200: `code` 0 is success.
    pub(super) fn by_code(
        &self,
        code: Option<i64>,
        verdicts: Codes<'_>,
        receipt: Option<String>,
        said: &str,
    ) -> Delivery {
        let said: String = said.chars().filter(|c| !c.is_control()).take(200).collect();
        match code {
            Some(0) if self.status < 300 => Delivery::Delivered { receipt },
            Some(code) if verdicts.token.contains(&code) => {
                Delivery::TokenRefused { why: format!("the platform answered code {code}: {said}") }
            }
            Some(code) if verdicts.busy.contains(&code) || self.status == 429 => {
                Delivery::Retry { after: self.pause(None), why: format!("the platform answered code {code}: {said}") }
            }
            Some(code) if self.status < 500 => {
                Delivery::Dead { why: format!("the platform refused it with code {code}: {said}") }
            }
            _ if self.status < 300 => {
                Delivery::Unknown { why: "the answer does not say whether the message was sent".to_owned() }
            }
            _ => self.by_status(None, &said),
        }
    }
}

/// Codes of a platform with a meaning for deliveries.
#[derive(Clone, Copy)]
pub(super) struct Codes<'a> {
    /// The access token is not valid.
    pub token: &'a [i64],
    /// Too many calls; later is fine.
    pub busy: &'a [i64],
}

/// Seconds of a `Retry-After` header. The date form is left to the retry policy: no clock here.
fn retry_after(value: Option<&str>) -> Option<Duration> {
    let digits = value?.trim();
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| Duration::from_secs(digits.parse::<u64>().unwrap_or(u64::MAX).min(RETRY_DELAY_S_MAX)))
}

/// At most `max` characters of a text, for labels with a bound.
pub(super) fn clip(text: &str, max: usize) -> &str {
    text.char_indices().nth(max).map_or(text, |(at, _)| &text[..at])
}
