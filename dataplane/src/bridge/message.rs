//! What travels through the mailboxes of the shards.
//!
//! Completions of storage, engine, encoder and outbound calls do not travel here: they wait in the shard's
//! inlet and one [`ShardMessage::Doorbell`] says so. A full mailbox therefore cannot lose a completion.

use std::pin::Pin;

use millrace_agent::{Arrival, Inbound, Reply, Ticket};
use millrace_proto::api::ApiError;
use millrace_proto::channel::ChannelKind;
use millrace_proto::id::{EffectKey, TenantId, UserId};
use millrace_proto::record::OutboxJob;

use super::state::Progress;
use super::stream::Once;

/// One message from another thread to a shard.
#[derive(Debug)]
pub enum ShardMessage {
    /// Completions wait in the inlet of this shard.
    Doorbell,
    /// A turn of an API connection whose conversation belongs to this shard.
    Turn(Box<Arrival>),
    /// A channel event whose conversation belongs to this shard.
    Ingest(Box<Inbound>),
    /// Nobody waits for this turn any more.
    Cancel {
        /// Whose turn.
        ticket: Ticket,
    },
    /// The owner answers a turn of a connection of this shard.
    Reply {
        /// Whose turn.
        ticket: Ticket,
        /// The answer or a part of it.
        reply: Box<Reply>,
    },
    /// The owner has stored a channel event or refused it.
    Ingested {
        /// Who waits.
        ticket: Ticket,
        /// How it went.
        result: Result<Ingested, ApiError>,
    },
    /// A user was forgotten: what is in memory goes.
    Forgotten {
        /// The user's tenant.
        tenant: TenantId,
        /// The user.
        user: UserId,
    },
    /// The durable answer to a command in a chat that belongs to this shard.
    Deliver(Box<OutboxJob>),
    /// A delivery is to be tried again.
    Resubmit {
        /// Who waits.
        ticket: Ticket,
        /// Owner of the job.
        tenant: TenantId,
        /// Which job.
        key: EffectKey,
    },
    /// The answer to [`ShardMessage::Resubmit`].
    Resubmitted {
        /// Who waits.
        ticket: Ticket,
        /// How it went.
        result: Result<(), ApiError>,
    },
    /// A platform asks for the text of a reply of a conversation of this shard.
    Progress {
        /// Who waits.
        ticket: Ticket,
        /// Kind and name of the account, and the platform's name of the reply.
        stream: (ChannelKind, String, String),
    },
    /// The answer to [`ShardMessage::Progress`].
    Progressed {
        /// Who waits.
        ticket: Ticket,
        /// The text so far.
        progress: Progress,
    },
}

/// A channel event on its way to the disk, or what is known of it at once.
pub enum Ingest<'a> {
    /// It is not stored, for this reason.
    Known(IngestResult),
    /// Told when it is durable.
    Storing(Once<IngestResult>),
    /// Few events are commands: what carries one out is not kept by all of them.
    Command(Pin<Box<dyn Future<Output = IngestResult> + 'a>>),
}

/// What became of a channel event, or why it must be sent again.
pub type IngestResult = Result<Ingested, ApiError>;

/// What became of a channel event. The platform gets the same success for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ingested {
    /// Durable; an answer will follow.
    Accepted,
    /// It was here before; nothing was done.
    Duplicate,
    /// It asks for nothing.
    Ignored {
        /// For the log.
        why: &'static str,
    },
}
