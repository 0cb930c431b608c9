//! The records that are stored, in rkyv form.
//!
//! Bytes that come back from a disk are outside data: [`Record::from_bytes`] validates them before it reads
//! them and answers with an error, never a panic.

use crate::document::{Document, Passage};
use crate::id::{ConversationId, EffectKey, TenantId, UserId};
#[doc(hidden)]
pub use rkyv;
use rkyv::{Archive, Deserialize, Serialize};

/// Who said a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Archive, Serialize, Deserialize)]
pub enum Role {
    /// Instructions of the operator.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
    /// A visible event of the platform, such as "older messages were left out".
    Notice,
}

impl Role {
    /// The name that the API and chat templates use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Notice => "notice",
        }
    }
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Message {
    /// Position in the conversation, from 0 without gaps.
    pub seq: u64,
    /// The turn that it belongs to.
    pub turn: u64,
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub text: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// Tokens of the text under the tokenizer that counted it; 0 when not counted.
    pub tokens: u32,
}

/// Where a reply goes.
#[derive(Clone, PartialEq, Eq, Hash, Archive, Serialize, Deserialize)]
pub struct ChatAddress {
    /// Channel id, for example `telegram`.
    pub channel: String,
    /// Account name in the configuration.
    pub account: String,
    /// Chat inside the account.
    pub chat: String,
    /// Thread inside the chat.
    pub thread: Option<String>,
    /// Platform id of the message that is answered.
    pub reply_to: Option<String>,
}

/// What a message is answered by can be a bearer address or token: it is not shown.
impl std::fmt::Debug for ChatAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatAddress")
            .field("channel", &self.channel)
            .field("account", &self.account)
            .field("chat", &self.chat)
            .field("thread", &self.thread)
            .field("reply_to", &self.reply_to.as_ref().map(|_| "(redacted)"))
            .finish()
    }
}

/// The head row of a conversation.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct SessionHead {
    /// Owning tenant.
    pub tenant: TenantId,
    /// Owning user.
    pub user: UserId,
    /// The conversation.
    pub conversation: ConversationId,
    /// The name that the client or channel gave it.
    pub name: String,
    /// A short text for lists.
    pub title: String,
    /// Unix milliseconds of the first message.
    pub created_ms: u64,
    /// Unix milliseconds of the newest message.
    pub updated_ms: u64,
    /// `seq` of the next message.
    pub next_seq: u64,
    /// Number of the next turn.
    pub next_turn: u64,
    /// Set when the conversation lives on a channel.
    pub address: Option<ChatAddress>,
}

/// A message that was accepted from a channel and has not been answered yet.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct InboxRecord {
    /// Owning tenant.
    pub tenant: TenantId,
    /// Who wrote it.
    pub user: UserId,
    /// Where it belongs.
    pub conversation: ConversationId,
    /// Its place among the waiting messages of its conversation: later messages have higher numbers.
    pub number: u64,
    /// Where the answer goes.
    pub address: ChatAddress,
    /// The text.
    pub text: String,
    /// Dedup key of the platform.
    pub event_key: String,
    /// Unix milliseconds of the arrival.
    pub received_ms: u64,
    /// Unix milliseconds after which an answer is of no use.
    pub deadline_ms: u64,
    /// How often the turn was started.
    pub attempt: u32,
}

/// What is known about the delivery of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Archive, Serialize, Deserialize)]
pub enum DeliveryState {
    /// Waiting for its due time.
    Pending,
    /// A call is under way. After a crash this means: perhaps delivered.
    Sending,
    /// The peer confirmed it.
    Delivered,
    /// The peer cannot tell and a resend could double it: a person or a reconciler decides.
    Unknown,
    /// Given up; listed, and can be resubmitted.
    Dead,
}

impl DeliveryState {
    /// The name in listings and in the admin API.
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryState::Pending => "pending",
            DeliveryState::Sending => "sending",
            DeliveryState::Delivered => "delivered",
            DeliveryState::Unknown => "unknown",
            DeliveryState::Dead => "dead",
        }
    }

    /// Reads the name that [`DeliveryState::as_str`] gives.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Pending, Self::Sending, Self::Delivered, Self::Unknown, Self::Dead]
            .into_iter()
            .find(|state| state.as_str() == name)
    }
}

/// An effect on its way out.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct OutboxJob {
    /// Deterministic name of the effect.
    pub key: EffectKey,
    /// Owning tenant.
    pub tenant: TenantId,
    /// Where it goes.
    pub address: ChatAddress,
    /// What is said.
    pub text: String,
    /// Unix milliseconds of its making.
    pub created_ms: u64,
    /// Unix milliseconds of the next attempt.
    pub due_ms: u64,
    /// Unix milliseconds after which it is dead.
    pub expires_ms: u64,
    /// Attempts so far.
    pub attempt: u32,
    /// What is known about it.
    pub state: DeliveryState,
    /// The last failure or the receipt, for people.
    pub detail: String,
}

/// Something to do later.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Timer {
    /// Owning tenant.
    pub tenant: TenantId,
    /// The conversation that is woken.
    pub conversation: ConversationId,
    /// Distinguishes timers of one conversation.
    pub id: u64,
    /// Unix milliseconds.
    pub due_ms: u64,
    /// What it is for.
    pub purpose: String,
}

/// May chat, complete and embed.
pub const SCOPE_CHAT: u32 = 1;
/// May manage keys, outbox and status.
pub const SCOPE_ADMIN: u32 = 1 << 1;
/// May read metrics.
pub const SCOPE_METRICS: u32 = 1 << 2;
/// May act for other users of the tenant (the `user` field of a request).
pub const SCOPE_IMPERSONATE: u32 = 1 << 3;

/// May see the node's status and act on undelivered messages. An admin may as well.
pub const SCOPE_OPERATE: u32 = 1 << 4;

/// May ask about the tokens of the whole tenant (RFC 7662): for resource servers.
pub const SCOPE_INTROSPECT: u32 = 1 << 5;

const SCOPE_NAMES: [(u32, &str); 6] = [
    (SCOPE_CHAT, "chat"),
    (SCOPE_ADMIN, "admin"),
    (SCOPE_METRICS, "metrics"),
    (SCOPE_IMPERSONATE, "impersonate"),
    (SCOPE_OPERATE, "operate"),
    (SCOPE_INTROSPECT, "introspect"),
];

/// Roles: names for the sets of scopes that people are usually given.
const ROLES: [(&str, u32); 3] = [
    ("user", SCOPE_CHAT),
    ("operator", SCOPE_CHAT | SCOPE_OPERATE | SCOPE_METRICS),
    ("admin", SCOPE_CHAT | SCOPE_ADMIN | SCOPE_METRICS | SCOPE_IMPERSONATE | SCOPE_OPERATE | SCOPE_INTROSPECT),
];

/// What a caller with these scopes may hand on to a key or client that it makes: what it has itself, and for
/// an admin also what being one includes. Never more, so that no chain of keys widens anybody's rights.
pub const fn grantable(scopes: u32) -> u32 {
    if scopes & SCOPE_ADMIN != 0 { scopes | SCOPE_OPERATE | SCOPE_INTROSPECT } else { scopes }
}

/// The scopes of a role.
pub fn role_scopes(name: &str) -> Option<u32> {
    ROLES.iter().find(|(known, _)| *known == name).map(|(_, scopes)| *scopes)
}

/// The names of the roles, from least to most.
pub fn role_names() -> impl Iterator<Item = &'static str> {
    ROLES.iter().map(|(name, _)| *name)
}

/// The names of the scopes in a set.
pub fn scope_names(scopes: u32) -> Vec<&'static str> {
    SCOPE_NAMES.iter().filter(|(bit, _)| scopes & bit != 0).map(|(_, name)| *name).collect()
}

/// The scope bit of a name.
pub fn scope_bit(name: &str) -> Option<u32> {
    SCOPE_NAMES.iter().find(|(_, known)| *known == name).map(|(bit, _)| *bit)
}

/// An API key, stored under the SHA-256 of its text.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Credential {
    /// Owning tenant.
    pub tenant: TenantId,
    /// The user that the key stands for.
    pub user_name: String,
    /// What the key is for, in the words of its maker.
    pub label: String,
    /// Bit set of `SCOPE_*`.
    pub scopes: u32,
    /// Unix milliseconds of its making.
    pub created_ms: u64,
    /// A revoked key stays listed and is refused.
    pub revoked: bool,
}

/// Stored bytes are not a valid record of the expected kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored bytes are not a valid {kind} record ({bytes} bytes): {reason}")]
pub struct RecordError {
    /// The record type that was expected.
    pub kind: &'static str,
    /// Length of the bytes.
    pub bytes: usize,
    /// What validation said.
    pub reason: String,
}

/// A type that can be written to and read from storage.
pub trait Record: Sized {
    /// The bytes to store.
    fn to_bytes(&self) -> Vec<u8>;
    /// Validates and reads stored bytes.
    fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError>;
}

/// Room that is made for the bytes of a record before they are known: most fit.
#[doc(hidden)]
pub const RECORD_BYTES_USUAL: usize = 512;

/// Makes types with rkyv's derives [`Record`](crate::record::Record)s.
#[macro_export]
macro_rules! records {
    ($($type:ident),*) => {$(
        impl $crate::record::Record for $type {
            fn to_bytes(&self) -> Vec<u8> {
                // Writing to memory fails only when memory itself does.
                let room = Vec::with_capacity($crate::record::RECORD_BYTES_USUAL);
                $crate::record::rkyv::api::high::to_bytes_in::<_, $crate::record::rkyv::rancor::Error>(self, room)
                    .expect("a record fits into memory")
            }

            fn from_bytes(bytes: &[u8]) -> Result<Self, $crate::record::RecordError> {
                $crate::record::rkyv::from_bytes::<Self, $crate::record::rkyv::rancor::Error>(bytes).map_err(|error| $crate::record::RecordError {
                    kind: stringify!($type),
                    bytes: bytes.len(),
                    reason: error.to_string(),
                })
            }
        }
    )*};
}

records!(Message, SessionHead, InboxRecord, OutboxJob, Timer, Credential, Document, Passage);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address() -> impl Strategy<Value = ChatAddress> {
        (".{0,20}", ".{0,20}", ".{0,20}", proptest::option::of(".{0,8}"), proptest::option::of(".{0,8}")).prop_map(
            |(channel, account, chat, thread, reply_to)| ChatAddress { channel, account, chat, thread, reply_to },
        )
    }

    proptest! {
        #[test]
        fn records_read_back(text in ".{0,200}", numbers in any::<[u64; 4]>(), at in address(), id in any::<[u8; 16]>()) {
            let message = Message { seq: numbers[0], turn: numbers[1], role: Role::Notice, text: text.clone(), at_ms: numbers[2], tokens: 5 };
            prop_assert_eq!(&Message::from_bytes(&message.to_bytes()).unwrap(), &message);
            let job = OutboxJob {
                key: EffectKey { conversation: ConversationId(id), turn: numbers[0], step: 1 },
                tenant: TenantId(3), address: at, text, created_ms: numbers[1], due_ms: numbers[2],
                expires_ms: numbers[3], attempt: 2, state: DeliveryState::Unknown, detail: String::new(),
            };
            prop_assert_eq!(&OutboxJob::from_bytes(&job.to_bytes()).unwrap(), &job);
        }

        /// A flipped, cut or random record is an error or another valid record, never a panic.
        #[test]
        fn damaged_bytes_never_panic(text in ".{0,60}", at in address(), flip in any::<(usize, u8)>(), cut in any::<usize>(), noise in proptest::collection::vec(any::<u8>(), 0..200)) {
            let record = InboxRecord {
                tenant: TenantId(1), user: UserId([1; 16]), conversation: ConversationId([2; 16]), number: 3, address: at,
                text, event_key: "k".into(), received_ms: 1, deadline_ms: 2, attempt: 0,
            };
            let mut bytes = record.to_bytes();
            let place = flip.0 % bytes.len();
            bytes[place] ^= flip.1;
            let _ = InboxRecord::from_bytes(&bytes);
            let _ = InboxRecord::from_bytes(&bytes[..cut % bytes.len()]);
            let _ = InboxRecord::from_bytes(&noise);
        }
    }

    #[test]
    fn an_error_names_the_record_and_its_size() {
        let error = Credential::from_bytes(b"xy").unwrap_err();
        assert_eq!((error.kind, error.bytes), ("Credential", 2));
    }

    #[test]
    fn names_read_back() {
        for (bit, name) in SCOPE_NAMES {
            assert_eq!(scope_bit(name), Some(bit));
            assert_eq!(scope_names(bit), [name]);
        }
        assert_eq!(scope_bit("root"), None);
        assert_eq!(DeliveryState::parse("dead"), Some(DeliveryState::Dead));
        assert_eq!(DeliveryState::parse("Dead"), None);
    }
}
