//! A shard: one pinned thread with its own reactor, listener, agent and bridge.
//!
//! Shards share nothing that one of them may change. Other threads reach a shard only
//! through its bounded [`mailbox`]; a shard reaches the others through their senders.

pub mod live;
pub mod mailbox;
pub mod reactor;
mod run;
mod shared;
pub mod topology;

pub use run::{DrainReport, Shards, StartError, StartOptions, TICK};
pub use shared::{Shared, Small};

use crate::bridge::ShardMessage;

/// The door into a shard.
pub type MailboxSender = mailbox::Sender<ShardMessage>;

/// The shard's end of its mailbox.
pub type MailboxReceiver = mailbox::Receiver<ShardMessage>;

/// One mailbox for each of `count` shards.
pub fn mailboxes(count: usize) -> (Vec<MailboxSender>, Vec<MailboxReceiver>) {
    (0..count).map(|_| mailbox::channel(mailbox::MAILBOX_SLOTS)).unzip()
}
