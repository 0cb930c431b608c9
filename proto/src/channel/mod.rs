//! Channels: the messengers and webhooks that people and programs talk through.
//!
//! Each platform is one file with three duties: verify and decode what comes in (over the raw bytes, before
//! anything parses them), encode what goes out, and classify the answer of the platform.

pub mod standard_webhooks;
mod telegram;
#[cfg(test)]
mod tests;

use crate::limits::{DEDUP_TTL_MS, RETRY_DELAY_S_MAX};
use crate::record::OutboxJob;
use crate::split::{self, Unit};
use std::fmt;
use std::time::Duration;
use zeroize::Zeroizing;

/// The platforms that this build knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChannelKind {
    /// Standard Webhooks 1.0: signed JSON in, signed JSON out.
    StandardWebhooks,
    /// Telegram Bot API.
    Telegram,
}

impl ChannelKind {
    /// All of them.
    pub const ALL: [ChannelKind; 2] = [ChannelKind::StandardWebhooks, ChannelKind::Telegram];

    /// The id in addresses and configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            ChannelKind::StandardWebhooks => "standard_webhooks",
            ChannelKind::Telegram => "telegram",
        }
    }

    /// Reads the id.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The longest text of one message, and what it is counted in.
    pub fn text_max(self) -> (Unit, usize) {
        match self {
            // No platform limit; receivers of webhooks are advised to expect bodies below 20 kB.
            ChannelKind::StandardWebhooks => (Unit::Bytes, 16 * 1024),
            ChannelKind::Telegram => (Unit::Utf16, 4_096),
        }
    }

    /// How long a dedup key of this channel must be remembered.
    pub fn dedup_ttl_ms(self) -> u64 {
        DEDUP_TTL_MS
    }
}

impl fmt::Display for ChannelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A secret: wiped when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The secret as text, if it is text.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// One configured account of a channel.
#[derive(Clone, Debug)]
pub struct Account {
    /// The platform.
    pub kind: ChannelKind,
    /// The name in addresses and configuration.
    pub name: String,
    /// Tenant that owns it.
    pub tenant: crate::id::TenantId,
    /// Secrets for verification, current first, then earlier ones during a rotation. Standard Webhooks:
    /// `whsec_...` or `whpk_...`; Telegram: the `secret_token` of `setWebhook`.
    pub secrets: Vec<Secret>,
    /// Token for calls to the platform.
    pub bot_token: Option<Secret>,
    /// Base address of the platform's API, when it is not the public one.
    pub api_base: Option<String>,
    /// Where replies go (Standard Webhooks).
    pub reply_url: Option<String>,
    /// Our own name on the platform, to recognise mentions.
    pub bot_username: Option<String>,
}

/// What arrived, before verification.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// Header fields in order, names in any case, values byte for byte.
    pub headers: &'a [(&'a str, &'a [u8])],
    /// The body as it was received.
    pub body: &'a [u8],
}

impl<'a> Incoming<'a> {
    /// The only value of a header: `None` when it is missing, an error when it appears twice.
    pub fn single(&self, name: &str) -> Result<Option<&'a [u8]>, Reject> {
        let mut values = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        let first = values.next().map(|(_, value)| *value);
        if values.next().is_some() { Err(Reject::Malformed("a signature header appears twice")) } else { Ok(first) }
    }
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A person wrote.
    Message,
    /// A person changed what they wrote.
    Edited,
    /// A person pressed a button.
    Action,
    /// Another system reports a change.
    DataChange,
}

impl EventKind {
    /// The name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Message => "message",
            EventKind::Edited => "edited",
            EventKind::Action => "action",
            EventKind::DataChange => "data_change",
        }
    }
}

/// A verified event in the form that the agent reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundEvent {
    /// Dedup key, unique per account.
    pub event_key: String,
    /// Who caused it.
    pub user: String,
    /// The chat.
    pub chat: String,
    /// The thread inside the chat.
    pub thread: Option<String>,
    /// The platform's id of the message.
    pub message_id: Option<String>,
    /// The text without a mention of us, trimmed.
    pub text: String,
    /// What it is about.
    pub kind: EventKind,
    /// Whether we were addressed: by mention, reply, command, or because the chat is private.
    pub mentioned: bool,
}

/// What a verified request means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Something to act on.
    Event(InboundEvent),
    /// The platform tests the address; answer with this.
    Handshake(HandshakeResponse),
    /// Authentic, but nothing to act on: acknowledge it.
    Ignore {
        /// The reason, for the log.
        why: &'static str,
    },
}

/// The answer to a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeResponse {
    /// HTTP status.
    pub status: u16,
    /// Content type.
    pub content_type: &'static str,
    /// Body.
    pub body: Vec<u8>,
}

/// Why a request is refused. The sender only sees the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// No signature or a wrong one.
    #[error("signature missing or wrong: {0}")]
    Unauthorized(&'static str),
    /// The timestamp is too far from now.
    #[error("timestamp is {skew_s} s away, at most {} s are allowed", crate::limits::WEBHOOK_SKEW_S)]
    Stale {
        /// Distance in seconds.
        skew_s: u64,
    },
    /// Authentic or not, it cannot be read.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// Longer than we accept.
    #[error("too large: {0}")]
    TooLarge(&'static str),
    /// The account's own configuration does not allow verification.
    #[error("account is not configured for this: {0}")]
    Misconfigured(&'static str),
}

impl Reject {
    /// The HTTP status for the sender.
    pub fn status(&self) -> u16 {
        match self {
            Reject::Unauthorized(_) | Reject::Stale { .. } => 401,
            Reject::Malformed(_) => 400,
            Reject::TooLarge(_) => 413,
            Reject::Misconfigured(_) => 503,
        }
    }

    /// The label of the reject counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Reject::Unauthorized(_) => "unauthorized",
            Reject::Stale { .. } => "stale",
            Reject::Malformed(_) => "malformed",
            Reject::TooLarge(_) => "too_large",
            Reject::Misconfigured(_) => "misconfigured",
        }
    }
}

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

/// Verifies and reads a request of a channel. `now_s` is Unix time in seconds.
///
/// The order is that of a careful receiver: size, required headers, timestamp, signature over the raw bytes,
/// and only then the body.
pub fn decode(account: &Account, incoming: &Incoming<'_>, now_s: u64) -> Result<Decoded, Reject> {
    match account.kind {
        ChannelKind::StandardWebhooks => standard_webhooks::decode(account, incoming, now_s),
        ChannelKind::Telegram => telegram::decode(account, incoming),
    }
}

/// Splits a reply into texts that the channel accepts, one outbox job each.
pub fn split_text(kind: ChannelKind, text: &str) -> Vec<String> {
    let (unit, max) = kind.text_max();
    split::split(text, unit, max)
}

/// The call that delivers an outbox job. `now_s` is Unix time in seconds (part of signatures).
pub fn encode_reply(account: &Account, job: &OutboxJob, now_s: u64) -> Result<OutboundCall, EncodeError> {
    match account.kind {
        ChannelKind::StandardWebhooks => standard_webhooks::encode_reply(account, job, now_s),
        ChannelKind::Telegram => telegram::encode_reply(account, job),
    }
}

/// What the platform's answer means. `retry_after` is the value of its `Retry-After` header.
pub fn classify(kind: ChannelKind, status: u16, retry_after: Option<&str>, body: &[u8]) -> Delivery {
    match kind {
        ChannelKind::StandardWebhooks => standard_webhooks::classify(status, retry_after),
        ChannelKind::Telegram => telegram::classify(status, body),
    }
}

/// Seconds of a `Retry-After` header. The date form is left to the retry policy: no clock here.
fn retry_after(value: Option<&str>) -> Option<Duration> {
    let digits = value?.trim();
    let valid = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    valid.then(|| Duration::from_secs(digits.parse::<u64>().unwrap_or(u64::MAX).min(RETRY_DELAY_S_MAX)))
}
