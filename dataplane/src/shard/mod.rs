//! A shard: one pinned thread with its own reactor, listener, agent and bridge.
//!
//! Shards share nothing that one of them may change. Other threads reach a shard only
//! through its bounded [`mailbox`]; a shard reaches the others through their senders.

pub mod mailbox;
pub mod reactor;
pub mod topology;
