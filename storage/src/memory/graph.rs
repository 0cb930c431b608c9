//! The graph of a user's memory: which things are named where, and which are named together.
//!
//! Every edge stands twice, by source (`edge_out`) and by destination (`edge_in`):
//! `near24 relation2 inverted_valid_from8 far24` -> `valid_to 8, recorded_at 8, weight 4, memory 24,
//! ended 8`. Two times are kept: when a fact held (`valid_from`, `valid_to`), and when that was told
//! (`recorded_at`, and `ended` for its end), so a question "as of then" stays answerable: an edge that
//! no longer holds gets an end and is not deleted. Ids of things are keyed digests; an edge holds no text.

use super::entity;
use super::fuse::{Hit, SEEDS_MAX};
use super::text::best;
use super::walk::{AsOf, UserGraph};
use crate::backend::{Cf, KvOp};
use crate::layout::{self, DOC_BYTES, DocId, Vertex};
use crate::seal::TenantKeys;
use millrace_proto::id::{TenantId, UserId};

/// A memory names a thing: thing -> memory.
pub(crate) const MENTIONS: u16 = 1;
/// Two things are named in one memory: the smaller id -> the larger.
const TOGETHER: u16 = 2;
/// Things of one memory that are linked in pairs: six pairs, not 120.
const PAIRED_MAX: usize = 4;
/// Set in the relation of every statement (`statement.rs`); the rest is a digest of its word.
pub(crate) const STATEMENT_BIT: u16 = 1 << 15;
/// A fact that still holds.
pub(crate) const OPEN_END: u64 = u64::MAX;

/// Relevance of the best connected memory: connection alone is a weak sign.
const CONNECTED: f32 = 0.3;

pub(crate) const EDGE_BYTES: usize = 28 + DOC_BYTES;
/// Schema 1 knew no moment at which an end was told; none of its edges has an end.
const EDGE_BYTES_V1: usize = 20 + DOC_BYTES;

/// The value of an edge.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Edge {
    pub valid_to_ms: u64,
    pub recorded_ms: u64,
    pub weight: f32,
    /// The memory that says so.
    pub memory: DocId,
    /// When its end was told; 0 while it has none.
    pub ended_ms: u64,
}

/// What names an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EdgeId {
    pub from: Vertex,
    pub relation: u16,
    pub valid_from_ms: u64,
    pub to: Vertex,
}

/// What a batch does to an edge; applied to a hot user after the sync.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum EdgeChange {
    Put(EdgeId, Edge),
    Remove(EdgeId),
}

impl Edge {
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(EDGE_BYTES);
        bytes.extend_from_slice(&self.valid_to_ms.to_be_bytes());
        bytes.extend_from_slice(&self.recorded_ms.to_be_bytes());
        bytes.extend_from_slice(&self.weight.to_be_bytes());
        bytes.extend_from_slice(&self.memory.to_bytes());
        bytes.extend_from_slice(&self.ended_ms.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (old, ended_ms) = match bytes.len() {
            EDGE_BYTES_V1 => (bytes, 0),
            EDGE_BYTES => (&bytes[..EDGE_BYTES_V1], layout::tail_u64(bytes)?),
            _ => return None,
        };
        Some(Self {
            valid_to_ms: u64::from_be_bytes(*old.first_chunk()?),
            recorded_ms: u64::from_be_bytes(*old[8..].first_chunk()?),
            weight: f32::from_be_bytes(*old[16..].first_chunk()?),
            memory: DocId::at_end_of(old)?,
            ended_ms,
        })
    }
}

/// The vertex of a thing, named by its normal form.
pub(crate) fn thing(keys: &TenantKeys, user: UserId, entity: &str) -> Vertex {
    keys.blind("entity", &[&user.0, entity.as_bytes()])
}

/// The memory whose edges are meant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub tenant: TenantId,
    pub user: UserId,
    pub doc: DocId,
}

/// All edges that a memory makes.
fn edges(keys: &TenantKeys, owner: Owner, at_ms: u64, text: &str) -> Vec<EdgeId> {
    let things: Vec<Vertex> = entity::entities(text).iter().map(|entity| thing(keys, owner.user, entity)).collect();
    let memory = owner.doc.to_bytes();
    let edge = |from: Vertex, relation, to: Vertex| EdgeId { from, relation, valid_from_ms: at_ms, to };
    let mut edges: Vec<_> = things.iter().map(|from| edge(*from, MENTIONS, memory)).collect();
    let paired = &things[..things.len().min(PAIRED_MAX)];
    for (at, a) in paired.iter().enumerate() {
        for b in &paired[at + 1..] {
            edges.push(edge(*a.min(b), TOGETHER, *a.max(b)));
        }
    }
    edges
}

/// The keys of an edge in `edge_out` and `edge_in`.
pub(crate) fn row_keys(owner: Owner, id: &EdgeId) -> (Vec<u8>, Vec<u8>) {
    let key = |near, far| layout::edge(owner.tenant, owner.user, near, id.relation, id.valid_from_ms, far);
    (key(&id.from, &id.to), key(&id.to, &id.from))
}

/// The rows of a memory.
pub(crate) fn put_rows(
    keys: &TenantKeys,
    owner: Owner,
    at_ms: u64,
    recorded_ms: u64,
    text: &str,
    ops: &mut Vec<KvOp>,
) -> Vec<EdgeChange> {
    let edge = Edge { valid_to_ms: OPEN_END, recorded_ms, weight: 1.0, memory: owner.doc, ended_ms: 0 };
    let mut changes = Vec::new();
    for id in edges(keys, owner, at_ms, text) {
        let (out, back) = row_keys(owner, &id);
        ops.push(KvOp::Put(Cf::EdgeOut, out, edge.to_bytes()));
        ops.push(KvOp::Put(Cf::EdgeIn, back, edge.to_bytes()));
        changes.push(EdgeChange::Put(id, edge));
    }
    changes
}

/// Removes the rows of a memory.
pub(crate) fn delete_rows(
    keys: &TenantKeys,
    owner: Owner,
    at_ms: u64,
    text: &str,
    ops: &mut Vec<KvOp>,
) -> Vec<EdgeChange> {
    let mut changes = Vec::new();
    for id in edges(keys, owner, at_ms, text) {
        let (out, back) = row_keys(owner, &id);
        ops.push(KvOp::Delete(Cf::EdgeOut, out));
        ops.push(KvOp::Delete(Cf::EdgeIn, back));
        changes.push(EdgeChange::Remove(id));
    }
    changes
}

/// The vertices that a question starts from.
pub(crate) fn seeds(keys: &TenantKeys, user: UserId, text: &str) -> Vec<Vertex> {
    entity::seeds(text, SEEDS_MAX).iter().map(|entity| thing(keys, user, entity)).collect()
}

/// Reads an edge of the family `edge_out`.
pub(crate) fn read_row(key: &[u8], value: &[u8]) -> Option<(EdgeId, Edge)> {
    let (from, relation, valid_from_ms, to) = layout::edge_parts(key)?;
    // The words of a statement follow its edge.
    let edge = if relation & STATEMENT_BIT == 0 { value } else { value.get(..EDGE_BYTES)? };
    Some((EdgeId { from, relation, valid_from_ms, to }, Edge::from_bytes(edge)?))
}

/// Memories that are connected to what a text names.
pub(crate) fn search(graph: &UserGraph, seeds: &[Vertex], as_of: AsOf, wanted: impl Fn(DocId) -> bool) -> Vec<Hit> {
    let found = graph.walk(seeds, as_of).into_iter().filter_map(|(vertex, score)| {
        let doc = DocId::at_end_of(&vertex)?;
        wanted(doc).then_some(Hit { doc, score, relevance: 0.0 })
    });
    let mut hits = best(found.collect());
    let most = hits.first().map_or(1.0, |hit| hit.score);
    for hit in &mut hits {
        hit.relevance = CONNECTED * hit.score / most;
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::id::ConversationId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_edge_reads_back_and_noise_is_refused(
            times in any::<[u64; 4]>(), weight in 0.0f32..9.0, id in any::<[u8; 16]>(),
            noise in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let memory = DocId { conversation: ConversationId(id), seq: times[2] };
            let edge = Edge { valid_to_ms: times[0], recorded_ms: times[1], weight, memory, ended_ms: times[3] };
            prop_assert_eq!(Edge::from_bytes(&edge.to_bytes()), Some(edge));
            let first_schema = &edge.to_bytes()[..EDGE_BYTES_V1];
            prop_assert_eq!(Edge::from_bytes(first_schema), Some(Edge { ended_ms: 0, ..edge }));
            let whole = [EDGE_BYTES, EDGE_BYTES_V1].contains(&noise.len());
            prop_assert_eq!(Edge::from_bytes(&noise).is_some(), whole);
        }
    }
}
