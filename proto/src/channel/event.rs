//! What comes in: the raw request, the verified event, and the answers to the platform.

use super::{Account, ChannelKind, KeySource, OutboundCall, Secret};
use crate::digest;
use crate::limits::{CHANNEL_TEXT_BYTES_MAX, EVENT_KEY_BYTES_MAX, NAME_BYTES_MAX};

/// What arrived, before verification.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// HTTP method in capitals.
    pub method: &'a str,
    /// The path as it was received, still percent-encoded.
    pub path: &'a str,
    /// The query as it was received, without the question mark.
    pub query: &'a str,
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

    /// A header without which nothing can be verified.
    pub(super) fn needed(&self, name: &'static str) -> Result<&'a [u8], Reject> {
        match self.single(name)? {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(Reject::Unauthorized("a signature header is missing")),
        }
    }

    /// Whether the body is a form, by its content type.
    pub(super) fn is_form(&self) -> bool {
        self.content_type().is_some_and(|kind| {
            kind.get(..33).is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/x-www-form-urlencoded"))
        })
    }

    /// The content type, parameters included.
    pub(super) fn content_type(&self) -> Option<&'a [u8]> {
        self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type")).map(|(_, value)| *value)
    }
}

/// What surrounds a request: clock, keys and fresh random bytes, all from the caller.
#[derive(Clone, Copy)]
pub struct Ambient<'a> {
    /// Unix time in seconds.
    pub now_s: u64,
    /// Public keys of platforms that sign with them.
    pub keys: &'a dyn KeySource,
    /// Fresh random bytes for encrypted answers; never used for two requests.
    pub entropy: [u8; 16],
}

/// One request with all that an adapter may look at.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub account: &'a Account,
    pub incoming: Incoming<'a>,
    pub ambient: Ambient<'a>,
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
    /// A person called one of our commands.
    Command,
    /// The platform asks for the text of a reply that is being written.
    StreamPoll,
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
            EventKind::Command => "command",
            EventKind::StreamPoll => "stream_poll",
            EventKind::DataChange => "data_change",
        }
    }
}

/// A file that came with a message: where it is, not what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// The platform's word for its kind (`image`, `document`, a media type).
    pub kind: String,
    /// The platform's id or address of it.
    pub reference: String,
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
    /// What the adapter needs to answer this event, when that is not the id of the message: a reply token,
    /// an address, or several of them in the adapter's own form. Who holds it can write to the chat.
    pub reply_handle: Option<Secret>,
    /// The text without a mention of us, trimmed.
    pub text: String,
    /// The command that was called.
    pub command: Option<String>,
    /// The reply that a [`EventKind::StreamPoll`] asks for.
    pub stream: Option<String>,
    /// The object and the kind of a [`EventKind::DataChange`].
    pub change: Option<(String, String)>,
    /// Files that came along.
    pub attachments: Vec<Attachment>,
    /// What it is about.
    pub kind: EventKind,
    /// Whether we were addressed: by mention, reply, command, or because the chat is private.
    pub mentioned: bool,
    /// Whether nobody but this user reads the chat. Unknown is no.
    pub private: bool,
}

impl InboundEvent {
    /// An event with its ids; the rest is empty.
    pub(super) fn new(
        kind: EventKind,
        key: impl Into<String>,
        user: impl Into<String>,
        chat: impl Into<String>,
    ) -> Self {
        Self {
            event_key: key.into(),
            user: user.into(),
            chat: chat.into(),
            thread: None,
            message_id: None,
            reply_handle: None,
            text: String::new(),
            command: None,
            stream: None,
            change: None,
            attachments: Vec::new(),
            kind,
            mentioned: true,
            private: false,
        }
    }

    /// Checks every length that an outside system chose.
    pub(super) fn checked(mut self) -> Result<Self, Reject> {
        if self.text.len() > CHANNEL_TEXT_BYTES_MAX {
            return Err(Reject::TooLarge("text"));
        }
        if self.event_key.is_empty() || self.user.is_empty() || self.chat.is_empty() {
            return Err(Reject::Malformed("an id is empty"));
        }
        // Some platforms have ids without a bound (mail threads); the digest is as unique.
        if self.event_key.len() > EVENT_KEY_BYTES_MAX {
            self.event_key = digest::hex(&digest::sha256(self.event_key.as_bytes()));
        }
        let names = [Some(&self.user), Some(&self.chat), self.thread.as_ref(), self.message_id.as_ref()];
        let fits = |name: &&String| name.len() <= 4 * NAME_BYTES_MAX && !name.chars().any(char::is_control);
        if names.iter().flatten().all(fits) {
            Ok(self)
        } else {
            Err(Reject::Malformed("an id is too long or has control characters"))
        }
    }
}

/// What a verified request means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Things to act on, in their order. The acknowledgement goes out when all of them are durable.
    Events {
        /// At least one.
        events: Vec<InboundEvent>,
        /// The platform's form of success.
        ack: Answer,
    },
    /// The platform tests the address; answer with this.
    Handshake(Answer),
    /// The platform wants its subscription confirmed by a call.
    Confirm {
        /// The call to make.
        call: OutboundCall,
        /// The answer to this request.
        answer: Answer,
    },
    /// Authentic, but nothing to act on: acknowledge it.
    Ignore {
        /// The reason, for the log.
        why: &'static str,
        /// The platform's form of success.
        ack: Answer,
    },
}

impl Decoded {
    /// One event, acknowledged in the platform's form.
    pub(super) fn event(event: InboundEvent, ack: Answer) -> Result<Self, Reject> {
        Ok(Self::Events { events: vec![event.checked()?], ack })
    }

    /// Events, or `why` there are none.
    pub(super) fn events(events: Vec<InboundEvent>, why: &'static str, ack: Answer) -> Result<Self, Reject> {
        if events.is_empty() {
            return Ok(Self::Ignore { why, ack });
        }
        let events = events.into_iter().map(InboundEvent::checked).collect::<Result<_, _>>()?;
        Ok(Self::Events { events, ack })
    }

    /// Nothing to do.
    pub(super) fn ignore(why: &'static str) -> Result<Self, Reject> {
        Ok(Self::Ignore { why, ack: Answer::ok() })
    }
}

/// An answer to the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Content type.
    pub content_type: &'static str,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// 200 without a body.
    pub fn ok() -> Self {
        Self::text("")
    }

    /// 200 with plain text.
    pub fn text(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, content_type: "text/plain; charset=utf-8", body: body.into() }
    }

    /// 200 with JSON.
    pub fn json(value: &serde_json::Value) -> Self {
        Self { status: 200, content_type: "application/json", body: value.to_string().into_bytes() }
    }

    /// 200 with XML.
    pub fn xml(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, content_type: "text/xml; charset=utf-8", body: body.into() }
    }
}

/// Why a request is refused. The sender only sees the status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// No signature or a wrong one.
    #[error("signature missing or wrong: {0}")]
    Unauthorized(&'static str),
    /// A wrong word where the platform expects 403 (Meta's address check, Matrix tokens).
    #[error("forbidden: {0}")]
    Forbidden(&'static str),
    /// The timestamp is too far from now.
    #[error("timestamp is {skew_s} s away")]
    Stale {
        /// Distance in seconds.
        skew_s: u64,
    },
    /// Authentic or not, it cannot be read.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// A method or path that the platform's protocol does not have.
    #[error("no such address: {0}")]
    NotFound(&'static str),
    /// Longer than we accept.
    #[error("too large: {0}")]
    TooLarge(&'static str),
    /// The account's own configuration does not allow verification.
    #[error("account is not configured for this: {0}")]
    Misconfigured(&'static str),
    /// The platform's public keys are not at hand (or do not hold the one that signed): fetch them from this
    /// address and decode once more.
    #[error("public keys of {url} are needed")]
    KeysNeeded {
        /// Where they are; always on a host of the platform.
        url: String,
        /// Whether an earlier set was there that lacks the key.
        unknown_key: bool,
    },
}

impl Reject {
    /// The HTTP status for the sender.
    pub fn status(&self) -> u16 {
        match self {
            Reject::Unauthorized(_) | Reject::Stale { .. } | Reject::KeysNeeded { unknown_key: true, .. } => 401,
            Reject::Forbidden(_) => 403,
            Reject::Malformed(_) => 400,
            Reject::NotFound(_) => 404,
            Reject::TooLarge(_) => 413,
            Reject::Misconfigured(_) | Reject::KeysNeeded { .. } => 503,
        }
    }

    /// The answer for the sender: a status, and a body that says no more than the status.
    pub fn answer(&self, kind: ChannelKind) -> Answer {
        let body: &[u8] = match (kind, self) {
            (ChannelKind::Matrix, Reject::Unauthorized(_)) => b"{\"errcode\":\"M_MISSING_TOKEN\"}",
            (ChannelKind::Matrix, Reject::Forbidden(_)) => b"{\"errcode\":\"M_FORBIDDEN\"}",
            (ChannelKind::Matrix, Reject::NotFound(_)) => b"{\"errcode\":\"M_NOT_FOUND\"}",
            _ => b"{\"ok\":false}",
        };
        Answer { status: self.status(), content_type: "application/json", body: body.to_vec() }
    }

    /// The label of the reject counter.
    pub fn reason(&self) -> &'static str {
        match self {
            Reject::Unauthorized(_) => "signature",
            Reject::Forbidden(_) => "forbidden",
            Reject::Stale { .. } => "stale",
            Reject::Malformed(_) => "malformed",
            Reject::NotFound(_) => "not_found",
            Reject::TooLarge(_) => "too_large",
            Reject::Misconfigured(_) => "misconfigured",
            Reject::KeysNeeded { .. } => "keys",
        }
    }
}
