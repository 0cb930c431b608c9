//! Memory: what was said, found again by meaning, by words and by the things it names.

use crate::backend::{Cf, KvOp};
use crate::batch::{MemoryWrite, SpaceWrite};
use crate::error::{CommitError, ReadError};
use crate::layout::{self, DocId, SpaceKey};
use crate::seal::TenantKeys;
use crate::store::Shared;
use millrace_proto::id::{ConversationId, TenantId, UserId};
use std::path::PathBuf;

/// Kind of a row of the change log of shared spaces.
pub(crate) const LOG_PUT: u8 = 1;
pub(crate) const LOG_REMOVE: u8 = 2;

/// A question to a user's memory.
#[derive(Debug, Clone, PartialEq)]
pub struct RecallQuery {
    /// Owning tenant.
    pub tenant: TenantId,
    /// The user whose memory is asked.
    pub user: UserId,
    /// The text to find memories for.
    pub text: String,
    /// Its embedding, when there is an embedding model.
    pub embedding: Option<Vec<f32>>,
    /// Most memories to return.
    pub limit: usize,
    /// A conversation to leave out: the one that is going on, which the context holds anyway.
    pub exclude: Option<ConversationId>,
    /// Now, in Unix milliseconds: what lies in the future is not recalled.
    pub now_ms: u64,
}

/// What each way of searching contributed to a score; 0 = it did not find the memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Why {
    /// Nearness of meaning.
    pub vector: f32,
    /// Shared words.
    pub text: f32,
    /// Shared people, places, numbers, dates.
    pub graph: f32,
}

/// A memory that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Recalled {
    /// Where it was said.
    pub conversation: ConversationId,
    /// Its message in that conversation.
    pub seq: u64,
    /// What was said.
    pub text: String,
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// Fused score; comparable within one answer only.
    pub score: f32,
    /// Where the score comes from.
    pub why: Why,
}

/// A question to a shared space.
#[derive(Debug, Clone, PartialEq)]
pub struct SpaceQuery {
    /// Owning tenant.
    pub tenant: TenantId,
    /// Name of the space.
    pub space: String,
    /// The embedding to find neighbours of.
    pub embedding: Vec<f32>,
    /// Most passages to return.
    pub limit: usize,
}

/// A passage that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct SpaceHit {
    /// The caller's number.
    pub id: u64,
    /// The passage.
    pub text: String,
    /// Inner product with the query.
    pub score: f32,
}

/// What follows in memory from a durable write.
pub(crate) enum Derived {
    Remembered { tenant: TenantId, user: UserId, doc: DocId, at_ms: u64, length: u32, vector: Vec<f32> },
    Forgotten { tenant: TenantId, user: UserId, doc: DocId },
    Space { tenant: TenantId, space: SpaceKey, vid: u64, vector: Option<Vec<f32>> },
}

pub(crate) struct Memory {
    _bytes_max: usize,
    _segments: Option<PathBuf>,
}

impl Memory {
    pub fn new(bytes_max: usize, segments: Option<PathBuf>) -> Self {
        Self { _bytes_max: bytes_max, _segments: segments }
    }

    pub fn applied(&self, _shared: &Shared, _seq: u64, _derived: &[Derived]) {}

    pub fn close(&self) {}
}

impl Shared {
    pub fn recall(&self, _query: &RecallQuery) -> Result<Vec<Recalled>, ReadError> {
        Ok(Vec::new())
    }

    pub fn search_space(&self, _query: &SpaceQuery) -> Result<Vec<SpaceHit>, ReadError> {
        Ok(Vec::new())
    }
}

pub(crate) fn remember(
    _shared: &Shared,
    keys: &TenantKeys,
    write: MemoryWrite,
    ops: &mut Vec<KvOp>,
    _derived: &mut Vec<Derived>,
) -> Result<(), CommitError> {
    let doc = DocId { conversation: write.conversation, seq: write.seq };
    let key = layout::memory(write.tenant, write.user, doc);
    let sealed = keys.seal(Cf::Mem, &key, write.text.as_bytes());
    ops.push(KvOp::Put(Cf::Mem, key, sealed));
    Ok(())
}

pub(crate) fn forget(
    _shared: &Shared,
    _keys: &TenantKeys,
    tenant: TenantId,
    user: UserId,
    doc: DocId,
    ops: &mut Vec<KvOp>,
    _derived: &mut Vec<Derived>,
) -> Result<(), CommitError> {
    ops.push(KvOp::Delete(Cf::Mem, layout::memory(tenant, user, doc)));
    Ok(())
}

pub(crate) fn space_key(keys: &TenantKeys, name: &str) -> SpaceKey {
    keys.blind("space", &[name.as_bytes()])
}

pub(crate) fn space_row(keys: &TenantKeys, space: SpaceKey, write: &SpaceWrite) -> KvOp {
    let key = layout::space(write.tenant, space, write.id);
    let sealed = keys.seal(Cf::Space, &key, write.text.as_bytes());
    KvOp::Put(Cf::Space, key, sealed)
}

pub(crate) fn quiet_math_threads() {}
