//! The graph of a user's memory: which things are named where, and which are named together.
//!
//! Every edge stands twice, by source (`edge_out`) and by destination (`edge_in`):
//! `near24 relation2 inverted_valid_from8 far24` -> `valid_to 8, recorded_at 8, weight 4, memory 24`.
//! Two times are kept: when a fact held (`valid_from`, `valid_to`) and when it was recorded, so a
//! question "as of then" stays answerable. Ids of things are keyed digests; an edge holds no text.

use super::entity;
use super::fuse::{HOP_MENTIONS_MAX, HOP_SHARE, HOP_THINGS_MAX, MENTIONS_MAX, SEEDS_MAX};
use super::text::best;
use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::error::ReadError;
use crate::layout::{self, DOC_BYTES, DocId, IdMap, Vertex};
use crate::seal::TenantKeys;
use millrace_proto::id::{TenantId, UserId};
use std::collections::HashMap;
use std::ops::ControlFlow;

/// A memory names a thing: thing -> memory.
const MENTIONS: u16 = 1;
/// Two things are named in one memory: the smaller id -> the larger.
const TOGETHER: u16 = 2;
/// Things of one memory that are linked in pairs: six pairs, not 120.
const PAIRED_MAX: usize = 4;
/// A fact that still holds.
const OPEN_END: u64 = u64::MAX;

const EDGE_BYTES: usize = 20 + DOC_BYTES;

/// The value of an edge.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Edge {
    valid_to_ms: u64,
    recorded_ms: u64,
    weight: f32,
    /// The memory that says so.
    memory: DocId,
}

impl Edge {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(EDGE_BYTES);
        bytes.extend_from_slice(&self.valid_to_ms.to_be_bytes());
        bytes.extend_from_slice(&self.recorded_ms.to_be_bytes());
        bytes.extend_from_slice(&self.weight.to_be_bytes());
        bytes.extend_from_slice(&self.memory.to_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; EDGE_BYTES] = bytes.try_into().ok()?;
        Some(Self {
            valid_to_ms: u64::from_be_bytes(*bytes.first_chunk()?),
            recorded_ms: u64::from_be_bytes(*bytes[8..].first_chunk()?),
            weight: f32::from_be_bytes(*bytes[16..].first_chunk()?),
            memory: DocId::at_end_of(bytes)?,
        })
    }
}

fn thing(keys: &TenantKeys, user: UserId, entity: &str) -> Vertex {
    keys.blind("entity", &[&user.0, entity.as_bytes()])
}

/// The memory whose edges are meant.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub tenant: TenantId,
    pub user: UserId,
    pub doc: DocId,
}

/// The keys of all edges that a memory makes, in pairs (out, in).
fn edge_keys(keys: &TenantKeys, owner: Owner, at_ms: u64, text: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Owner { tenant, user, doc } = owner;
    let things: Vec<Vertex> = entity::entities(text).iter().map(|entity| thing(keys, user, entity)).collect();
    let memory = doc.to_bytes();
    let both = |from: &Vertex, relation: u16, to: &Vertex| {
        (layout::edge(tenant, user, from, relation, at_ms, to), layout::edge(tenant, user, to, relation, at_ms, from))
    };
    let mut edges: Vec<_> = things.iter().map(|from| both(from, MENTIONS, &memory)).collect();
    let paired = &things[..things.len().min(PAIRED_MAX)];
    for (at, a) in paired.iter().enumerate() {
        for b in &paired[at + 1..] {
            edges.push(both(a.min(b), TOGETHER, a.max(b)));
        }
    }
    edges
}

/// The rows of a memory.
pub(crate) fn put_rows(keys: &TenantKeys, owner: Owner, at_ms: u64, recorded_ms: u64, text: &str, ops: &mut Vec<KvOp>) {
    let value = Edge { valid_to_ms: OPEN_END, recorded_ms, weight: 1.0, memory: owner.doc }.to_bytes();
    for (out, back) in edge_keys(keys, owner, at_ms, text) {
        ops.push(KvOp::Put(Cf::EdgeOut, out, value.clone()));
        ops.push(KvOp::Put(Cf::EdgeIn, back, value.clone()));
    }
}

/// Removes the rows of a memory.
pub(crate) fn delete_rows(keys: &TenantKeys, owner: Owner, at_ms: u64, text: &str, ops: &mut Vec<KvOp>) {
    for (out, back) in edge_keys(keys, owner, at_ms, text) {
        ops.push(KvOp::Delete(Cf::EdgeOut, out));
        ops.push(KvOp::Delete(Cf::EdgeIn, back));
    }
}

/// A user's graph as of a moment.
pub(crate) struct Graph<'a> {
    pub kv: &'a dyn KvStore,
    pub keys: &'a TenantKeys,
    pub tenant: TenantId,
    pub user: UserId,
    pub now_ms: u64,
}

impl Graph<'_> {
    /// Memories that name what the text names (first hop), or things named beside it (second hop).
    pub fn search(&self, text: &str, wanted: impl Fn(DocId) -> bool) -> Result<Vec<DocId>, ReadError> {
        let seeds: Vec<Vertex> =
            entity::seeds(text, SEEDS_MAX).iter().map(|entity| thing(self.keys, self.user, entity)).collect();
        let mut scores: IdMap<DocId, f32> = IdMap::default();
        let mut neighbours: HashMap<Vertex, f32> = HashMap::new();
        for seed in &seeds {
            let mentions = self.far(Cf::EdgeOut, seed, MENTIONS, MENTIONS_MAX)?;
            if mentions.is_empty() {
                continue;
            }
            let rarity = rarity(mentions.len());
            for vertex in mentions {
                add(&mut scores, &vertex, rarity, &wanted);
            }
            for side in [Cf::EdgeOut, Cf::EdgeIn] {
                for neighbour in self.far(side, seed, TOGETHER, HOP_THINGS_MAX)? {
                    if !seeds.contains(&neighbour) {
                        *neighbours.entry(neighbour).or_default() += rarity * HOP_SHARE;
                    }
                }
            }
        }
        for (neighbour, weight) in strongest(neighbours) {
            let mentions = self.far(Cf::EdgeOut, &neighbour, MENTIONS, HOP_MENTIONS_MAX)?;
            let weight = weight * rarity(mentions.len());
            for vertex in mentions {
                add(&mut scores, &vertex, weight, &wanted);
            }
        }
        Ok(best(scores))
    }

    /// The far ends of the edges that hold now, the newest first, each once.
    fn far(&self, cf: Cf, near: &Vertex, relation: u16, max: usize) -> Result<Vec<Vertex>, ReadError> {
        let from = layout::edge_prefix(self.tenant, self.user, near, relation);
        let to = layout::prefix_end(&from);
        let mut found: Vec<Vertex> = Vec::new();
        let mut damaged = false;
        self.kv.scan(cf, ScanRange::forward(&from, &to), &mut |key, value| {
            match (layout::edge_far(key), Edge::from_bytes(value)) {
                (Some((far, valid_from_ms)), Some(edge)) => {
                    let holds = valid_from_ms <= self.now_ms && self.now_ms < edge.valid_to_ms;
                    if holds && !found.contains(&far) {
                        found.push(far);
                    }
                }
                _ => damaged = true,
            }
            if found.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if damaged {
            return Err(ReadError::Corrupt { cf: cf.name(), why: "an edge has the wrong length".into() });
        }
        Ok(found)
    }
}

/// A thing that is named everywhere leads nowhere in particular.
fn rarity(mentions: usize) -> f32 {
    1.0 / (1.0 + mentions as f32).ln().max(0.5)
}

fn add(scores: &mut IdMap<DocId, f32>, vertex: &Vertex, weight: f32, wanted: &impl Fn(DocId) -> bool) {
    if let Some(doc) = DocId::at_end_of(vertex)
        && wanted(doc)
    {
        *scores.entry(doc).or_default() += weight;
    }
}

fn strongest(neighbours: HashMap<Vertex, f32>) -> Vec<(Vertex, f32)> {
    let mut sorted: Vec<_> = neighbours.into_iter().collect();
    sorted.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    sorted.truncate(HOP_THINGS_MAX);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::id::ConversationId;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_edge_reads_back_and_noise_is_refused(
            times in any::<[u64; 3]>(), weight in 0.0f32..9.0, id in any::<[u8; 16]>(),
            noise in proptest::collection::vec(any::<u8>(), 0..60),
        ) {
            let memory = DocId { conversation: ConversationId(id), seq: times[2] };
            let edge = Edge { valid_to_ms: times[0], recorded_ms: times[1], weight, memory };
            prop_assert_eq!(Edge::from_bytes(&edge.to_bytes()), Some(edge));
            prop_assert_eq!(Edge::from_bytes(&noise).is_some(), noise.len() == EDGE_BYTES);
        }
    }
}
