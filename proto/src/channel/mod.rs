//! Channels: the messengers and webhooks that people and programs talk through.
//!
//! Each platform is one file with three duties: verify and read what comes in (over the raw bytes, before
//! anything parses them), write what goes out, and classify the answer of the platform. What several
//! platforms share (HMAC headers, AES envelopes, JWTs, forms, mail) is in small modules beside them. Nothing
//! here opens a socket, reads a clock or draws a random number.
//!
//! ```text
//! bytes ─▶ open: size, headers, time, signature, decryption ─▶ read: parse, tenant, handshake ─▶ Decoded
//! ```

pub mod access;
mod account;
pub mod cadence;
mod envelope;
mod event;
mod form;
mod jwt;
pub mod keycache;
pub mod keys;
mod kind;
mod mail;
mod multipart;
mod outbound;
mod proof;
pub mod rates;
pub mod sample;
mod value;
pub mod vectors;
mod xml;

mod dingtalk;
mod dingtalk_callback;
mod discord;
mod email_mailgun;
mod email_sendgrid;
mod email_sns;
mod feishu;
mod github;
mod googlechat;
mod line;
mod matrix;
mod mattermost;
mod messenger;
mod meta;
mod qqbot;
mod rocketchat;
mod slack;
pub mod standard_webhooks;
mod teams;
mod teams_outgoing;
mod telegram;
mod twilio;
mod viber;
mod wechat_mp;
mod wecom;
mod wecom_aibot;
mod whatsapp;
mod zulip;

#[cfg(test)]
mod tests;

pub use account::{Account, Secret};
pub use event::{Ambient, Answer, Attachment, Decoded, EventKind, InboundEvent, Incoming, Reject};
pub use keys::{KeySet, KeySource, NoKeys};
pub use kind::{ChannelKind, Need, Origin, Spec, Streaming};
pub use outbound::{Answered, Button, Delivery, EncodeError, OutboundCall, Outgoing, StreamPart};

use crate::record::{ChatAddress, OutboxJob};
use crate::split;
use event::Request;
use std::borrow::Cow;

/// One platform.
trait Platform: Sync {
    /// What it demands.
    fn spec(&self) -> &'static Spec;

    /// Verifies everything that can be verified and gives the authenticated plaintext.
    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject>;

    /// Reads a plaintext that [`Platform::open`] gave for the same request.
    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject>;

    /// The call that says something.
    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError>;

    /// The call that replaces the text of an earlier message; `None` where the platform cannot.
    fn edit(&self, _out: &Outgoing<'_>, _message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        None
    }

    /// The call that shows that we are writing; `None` where the platform cannot.
    fn typing(&self, _out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
        None
    }

    /// What an answer to a call means.
    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        answered.by_status(None, "")
    }

    /// Whether the answer to a message to this address holds the id of the message.
    fn names_messages(&self, _address: &ChatAddress) -> bool {
        true
    }

    /// Whether a message to this address that is sent twice is recognised.
    fn recognises_repetition(&self, _address: &ChatAddress) -> bool {
        self.spec().recognises_repetition
    }

    /// The name under which the platform asks for the text of a reply to this address; `None` where it never asks.
    fn stream_of<'a>(&self, _address: &'a ChatAddress) -> Option<&'a str> {
        None
    }

    /// The answer to such a question; `None` where the platform never asks.
    fn stream_part(
        &self,
        _account: &Account,
        _part: &StreamPart<'_>,
        _now_s: u64,
        _entropy: [u8; 16],
    ) -> Option<Result<Answer, Reject>> {
        None
    }

    /// How to get an access token, for platforms with short-lived ones.
    fn access(
        &self,
        _account: &Account,
        _now_s: u64,
        _random: &dyn ring::rand::SecureRandom,
    ) -> Option<Result<OutboundCall, EncodeError>> {
        None
    }
}

/// Verifies and reads a request of a channel.
///
/// The order is that of a careful receiver: size, required headers, timestamp, signature over the raw bytes,
/// and only then the body.
pub fn decode(account: &Account, incoming: &Incoming<'_>, ambient: &Ambient<'_>) -> Result<Decoded, Reject> {
    let platform = account.kind.platform();
    let request = Request { account, incoming: *incoming, ambient: *ambient };
    let plain = open(&request)?;
    platform.read(&request, &plain).map(|decoded| without_our_own(account, decoded))
}

/// The last guard against answering ourselves, whatever a platform reports.
fn without_our_own(account: &Account, decoded: Decoded) -> Decoded {
    match (account.bot_id.as_deref().filter(|us| !us.is_empty()), decoded) {
        (Some(us), Decoded::Events { mut events, ack }) => {
            events.retain(|event| event.user != us);
            if events.is_empty() {
                Decoded::Ignore { why: "written by us", ack }
            } else {
                Decoded::Events { events, ack }
            }
        }
        (_, decoded) => decoded,
    }
}

/// Verifies only: the authenticated plaintext of a request.
pub fn verify<'a>(
    account: &'a Account,
    incoming: &Incoming<'a>,
    ambient: &Ambient<'a>,
) -> Result<Cow<'a, [u8]>, Reject> {
    open(&Request { account, incoming: *incoming, ambient: *ambient })
}

/// Reads only: what a plaintext means that [`verify`] gave for the same request. Nothing is verified here.
pub fn read_verified(
    account: &Account,
    incoming: &Incoming<'_>,
    ambient: &Ambient<'_>,
    plain: &[u8],
) -> Result<Decoded, Reject> {
    account.kind.platform().read(&Request { account, incoming: *incoming, ambient: *ambient }, plain)
}

fn open<'a>(request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
    let platform = request.account.kind.platform();
    if request.incoming.body.len() > platform.spec().body_bytes_max {
        return Err(Reject::TooLarge("webhook body"));
    }
    platform.open(request)
}

/// Splits a reply into texts that the channel accepts, one outbox job each.
pub fn split_text(kind: ChannelKind, text: &str) -> Vec<String> {
    let (unit, max) = kind.spec().text_max;
    split::split(text, unit, max)
}

/// The call that delivers an outbox job. `token` is the access token of platforms that need one (see
/// [`access`]), `now_s` Unix time in seconds (part of signatures).
pub fn encode_reply(
    account: &Account,
    job: &OutboxJob,
    token: Option<&str>,
    now_s: u64,
) -> Result<OutboundCall, EncodeError> {
    send(&job_outgoing(account, job, token, now_s))
}

/// The call that brings an outbox job into a message that is there already. An error where the platform cannot.
pub fn encode_edit(
    account: &Account,
    job: &OutboxJob,
    message_id: &str,
    token: Option<&str>,
    now_s: u64,
) -> Result<OutboundCall, EncodeError> {
    let out = job_outgoing(account, job, token, now_s);
    edit(&out, message_id).unwrap_or_else(|| Err(out.missing("messages of this platform cannot be changed")))
}

fn job_outgoing<'a>(account: &'a Account, job: &'a OutboxJob, token: Option<&'a str>, now_s: u64) -> Outgoing<'a> {
    Outgoing {
        account,
        address: &job.address,
        key: &job.key,
        text: &job.text,
        buttons: &[],
        created_ms: job.created_ms,
        now_s,
        token,
    }
}

/// The call that says something.
pub fn send(out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
    out.account.kind.platform().send(out)
}

/// The call that replaces the text of an earlier message of ours; `None` where the platform cannot.
pub fn edit(out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
    out.account.kind.platform().edit(out, message_id)
}

/// Whether a message to this address can grow: it can be changed, and the platform names it when it is sent.
pub fn shows_growth(out: &Outgoing<'_>) -> bool {
    let platform = out.account.kind.platform();
    platform.names_messages(out.address) && matches!(platform.edit(out, "0"), Some(Ok(_)))
}

/// The call that shows that we are writing; `None` where the platform cannot.
pub fn typing(out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
    out.account.kind.platform().typing(out)
}

/// Whether the platform recognises a reply to this address that it has seen. The delivery has to know before
/// the first call is made; it says the same as [`OutboundCall::idempotent`] of that call.
pub fn recognises_repetition(kind: ChannelKind, address: &ChatAddress) -> bool {
    kind.platform().recognises_repetition(address)
}

/// The name under which the platform asks for the text of a reply to this address (see [`Streaming::Polled`]);
/// `None` when it does not ask.
pub fn stream_of(kind: ChannelKind, address: &ChatAddress) -> Option<&str> {
    kind.platform().stream_of(address)
}

/// The answer to a question for the text so far, `None` where the platform never asks. `now_s` is Unix time in
/// seconds; `entropy` is fresh for every answer.
pub fn stream_part(
    account: &Account,
    part: &StreamPart<'_>,
    now_s: u64,
    entropy: [u8; 16],
) -> Option<Result<Answer, Reject>> {
    account.kind.platform().stream_part(account, part, now_s, entropy)
}

/// What the platform's answer means.
pub fn classify(kind: ChannelKind, answered: &Answered<'_>) -> Delivery {
    kind.platform().classify(answered)
}
