//! What every shard of a node may reach. Built once by the node before the shards start.

use std::sync::Arc;

use millrace_inference::model::Model;
use millrace_inference::{ChatTemplate, EmbedWorker, Engine, Tokenizer};
use millrace_storage::Store;

use super::MailboxSender;
use crate::config::Config;
use crate::control::Control;
use crate::control::platforms::Platforms;
use crate::obs::{Health, Metrics};

/// A model that answers when the main one would be late.
pub struct Small {
    /// Its name.
    pub name: String,
    /// Its engine.
    pub engine: Arc<Engine>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template.
    pub template: Arc<ChatTemplate>,
}

/// The node as its shards see it. Nothing in here is mutable by one shard alone: each field
/// is either immutable, or a thread-safe door to a subsystem with its own thread.
pub struct Shared {
    /// The checked configuration.
    pub config: Arc<Config>,
    /// The durable truth.
    pub store: Store,
    /// The batched model engine.
    pub engine: Arc<Engine>,
    /// The loaded model.
    pub model: Arc<Model>,
    /// Its tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template.
    pub template: Arc<ChatTemplate>,
    /// A small model for when the main one would be late, if one is configured.
    pub small: Option<Small>,
    /// The embedding worker, when an embedding model is configured.
    pub embedder: Option<Arc<EmbedWorker>>,
    /// Calls to other systems.
    pub control: Control,
    /// Documents on their way into corpora.
    pub corpora: Arc<crate::corpus::Corpora>,
    /// Copies of the store elsewhere.
    pub backups: Arc<crate::backup::Backups>,
    /// Published keys and access tokens of messengers.
    pub platforms: Platforms,
    /// How fast each account may send.
    pub pace: crate::bridge::Pace,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// Readiness and drain.
    pub health: Arc<Health>,
    /// OAuth clients, tokens and trusted issuers.
    pub authority: Arc<crate::identity::Authority>,
    /// Reads the configuration again.
    pub reloader: crate::reload::Reloader,
    /// Settings that may change while the node runs.
    pub live: super::live::Live,
    /// Who is who across channels, and how chats want to be answered.
    pub people: crate::bridge::Registry,
    /// What the shards' gateways share: the keys' epoch and rate meters.
    pub gateway: Arc<crate::gateway::Common>,
    /// Certificates of the TLS port, if there is one.
    pub tls: Option<Arc<crate::net::tls::Tls>>,
    /// One sender for each shard, in order.
    pub mailboxes: Vec<MailboxSender>,
}

impl Shared {
    /// How many shards the node has.
    pub fn shard_count(&self) -> usize {
        self.mailboxes.len()
    }

    /// The shard that owns a virtual shard (a stable hash of tenant and conversation).
    pub fn shard_of(&self, virtual_shard: u16) -> usize {
        usize::from(virtual_shard) % self.mailboxes.len()
    }
}
