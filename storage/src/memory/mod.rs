//! Memory: what was said, found again by meaning, by words and by the things it names.

mod entity;
mod faiss;
mod fuse;
mod graph;
mod kernel;
mod nsw;
mod pages;
mod recall;
mod scan;
mod space;
mod statement;
mod text;
mod user;
mod vector;
mod walk;
mod when;
mod words;

pub(crate) use faiss::quiet_math_threads;
pub use fuse::{RECALL_LIMIT_MAX, RELEVANCE_MIN};
pub(crate) use graph::EDGE_BYTES;
pub use nsw::MeasuredGraph;
pub(crate) use recall::{forget, put_words, remember};
pub(crate) use space::{Change, forget_passages, own_passages, put_passage, remove_orphans, remove_passage, space_key};
pub use space::{SPACE_TAG_BYTES_MAX, SPACE_TAGS_MAX, SpaceFilter};
pub use statement::{
    Extracted, PendingFrom, PendingMessage, PendingMessages, STATEMENT_PART_BYTES_MAX, StatementQuery,
};
pub(crate) use statement::{check_pending, extracted, pending_row};
pub(crate) use text::{counts, length, term};

use crate::layout::DocId;
use crate::store::Shared;
use millrace_proto::id::{ConversationId, TenantId, UserId};
use std::path::PathBuf;
use std::sync::Arc;

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
    /// Now, in Unix milliseconds: what lies in the future is not recalled, and "last week" is seen from here.
    pub now_ms: u64,
    /// Only what was said from here on, in Unix milliseconds; 0 = everything.
    pub from_ms: u64,
    /// Memories of less [`Recalled::relevance`] are left out; [`RELEVANCE_MIN`] is a tried value, 0 keeps all.
    pub relevance_min: f32,
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
    /// How much of the question the memory covers, 0 to 1, by words or by meaning, or as much of it as the
    /// turn beside it lends. Comparable between answers.
    pub relevance: f32,
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
    /// Which passages may be returned.
    pub filter: SpaceFilter,
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
    /// Its time, in Unix milliseconds, as it was written.
    pub at_ms: u64,
    /// Its tags, in order.
    pub tags: Vec<String>,
}

/// How large a shared space is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceStats {
    /// Passages in it.
    pub passages: usize,
    /// Those of them that no sealed segment covers yet. What belongs to a user never gets into one and is not counted.
    pub unsealed: usize,
    /// Sealed segments.
    pub segments: usize,
    /// Bytes of memory that searching it takes.
    pub bytes: usize,
    /// A segment is being built, or waits for it.
    pub building: bool,
}

/// What follows in memory from a durable write.
pub(crate) enum Derived {
    Remembered {
        tenant: TenantId,
        user: UserId,
        doc: DocId,
        row: vector::VectorRow,
        terms: Vec<(text::Term, u16)>,
        edges: Vec<graph::EdgeChange>,
    },
    Forgotten {
        tenant: TenantId,
        user: UserId,
        doc: DocId,
        edges: Vec<graph::EdgeChange>,
    },
    Stated {
        tenant: TenantId,
        user: UserId,
        edges: Vec<graph::EdgeChange>,
    },
    Space(space::Change),
}

/// Everything that is derived from rows and kept in memory.
pub(crate) struct Memory {
    users: user::HotUsers,
    spaces: space::Spaces,
}

impl Memory {
    /// `bytes_max` bounds what hot users may take; `segments` is the folder of sealed segments.
    pub fn new(bytes_max: usize, segments: Option<PathBuf>) -> Self {
        Self { users: user::HotUsers::new(bytes_max), spaces: space::Spaces::new(segments) }
    }

    /// Brings what is hot up to date. Runs on the commit thread after the sync and before the answers.
    pub fn applied(&self, shared: &Arc<Shared>, seq: u64, derived: Vec<Derived>) {
        for change in derived {
            match change {
                Derived::Remembered { tenant, user, doc, row, terms, edges } => {
                    self.users.put((tenant, user), doc, (&row, &terms), &edges);
                }
                Derived::Forgotten { tenant, user, doc, edges } => self.users.remove((tenant, user), doc, &edges),
                Derived::Stated { tenant, user, edges } => self.users.state((tenant, user), &edges),
                Derived::Space(change) => self.spaces.applied(shared, seq, change),
            }
        }
    }

    /// Drops everything of a user. A search that is under way finds no rows any more.
    pub fn forget_user(&self, owner: (TenantId, UserId)) {
        self.users.forget(owner);
        self.spaces.forget_user(owner);
    }

    /// Ends background work and waits for it.
    pub fn close(&self) {
        self.spaces.close();
    }
}
