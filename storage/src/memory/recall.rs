//! Writing and reading a user's memory.
//!
//! A memory is four kinds of rows in one batch: its text (`mem`), its vector (`vec`), its words
//! (`post`) and its things (`edge_out`, `edge_in`). Nothing is read to write them, except when the
//! same turn is written again with another text: then the rows of the old text are removed.

use super::fuse::{self, DEPTH, Fused, Hit, RECALL_LIMIT_MAX, Rankings};
use super::graph::EdgeChange;
use super::text;
use super::user::{DocMeta, UserIndex};
use super::vector::VectorRow;
use super::walk::AsOf;
use super::{Derived, RecallQuery, Recalled, graph, statement, when::when};
use crate::backend::{Cf, KvOp};
use crate::batch::MemoryWrite;
use crate::error::{CommitError, ReadError};
use crate::layout::{self, DocId};
use crate::queue::now_ms;
use crate::seal::TenantKeys;
use crate::store::Shared;
use millrace_proto::id::{TenantId, UserId};
use std::collections::HashSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// A stored text: at_ms 8, then the text.
fn text_row(at_ms: u64, text: &str) -> Vec<u8> {
    [&at_ms.to_be_bytes()[..], text.as_bytes()].concat()
}

pub(super) fn read_text_row(plain: &[u8]) -> Result<(u64, String), ReadError> {
    let corrupt = |why: &str| ReadError::Corrupt { cf: Cf::Mem.name(), why: why.to_owned() };
    let (at_ms, text) = plain.split_first_chunk().ok_or_else(|| corrupt("shorter than its time"))?;
    let text = std::str::from_utf8(text).map_err(|_| corrupt("its text is not UTF-8"))?;
    Ok((u64::from_be_bytes(*at_ms), text.to_owned()))
}

/// The rows of a memory.
pub(crate) fn remember(
    shared: &Shared,
    keys: &TenantKeys,
    write: MemoryWrite,
    ops: &mut Vec<KvOp>,
    derived: &mut Vec<Derived>,
) -> Result<(), CommitError> {
    let MemoryWrite { tenant, user, conversation, seq, text, at_ms, embedding } = write;
    let doc = DocId { conversation, seq };
    let mut edges = remove_old_rows(shared, keys, tenant, user, doc, Some((at_ms, &text)), ops)?;
    let key = layout::memory(tenant, user, doc);
    let counts = text::counts(&text);
    let row = VectorRow::new(at_ms, text::length(&counts), &embedding);
    ops.push(KvOp::Put(Cf::Mem, key.clone(), keys.seal(Cf::Mem, &key, &text_row(at_ms, &text))));
    let sealed = keys.seal(Cf::Vec, &key, &row.to_bytes());
    ops.push(KvOp::Put(Cf::Vec, key, sealed));
    let terms = text::put_rows(keys, tenant, user, doc, &counts, ops);
    edges.extend(graph::put_rows(keys, graph::Owner { tenant, user, doc }, at_ms, now_ms(), &text, ops));
    derived.push(Derived::Remembered { tenant, user, doc, row, terms, edges });
    Ok(())
}

/// The postings of a stored text, for a migration.
pub(crate) fn put_words(
    keys: &TenantKeys,
    (tenant, user, doc): (TenantId, UserId, DocId),
    plain: &[u8],
    ops: &mut Vec<KvOp>,
) -> Result<(), ReadError> {
    let (_, text) = read_text_row(plain)?;
    text::put_rows(keys, tenant, user, doc, &text::counts(&text), ops);
    Ok(())
}

/// Removes a memory with everything derived from it.
pub(crate) fn forget(
    shared: &Shared,
    keys: &TenantKeys,
    tenant: TenantId,
    user: UserId,
    doc: DocId,
    ops: &mut Vec<KvOp>,
    derived: &mut Vec<Derived>,
) -> Result<(), CommitError> {
    let edges = remove_old_rows(shared, keys, tenant, user, doc, None, ops)?;
    let key = layout::memory(tenant, user, doc);
    ops.push(KvOp::Delete(Cf::Mem, key.clone()));
    ops.push(KvOp::Delete(Cf::Vec, key));
    derived.push(Derived::Forgotten { tenant, user, doc, edges });
    Ok(())
}

/// Removes the words and things of what stood here before. `same` = what is written now: equal rows
/// would only be deleted and written again.
fn remove_old_rows(
    shared: &Shared,
    keys: &TenantKeys,
    tenant: TenantId,
    user: UserId,
    doc: DocId,
    same: Option<(u64, &str)>,
    ops: &mut Vec<KvOp>,
) -> Result<Vec<EdgeChange>, CommitError> {
    let key = layout::memory(tenant, user, doc);
    let Some(sealed) = shared.kv.get(Cf::Mem, &key)? else { return Ok(Vec::new()) };
    let unreadable = |error: ReadError| CommitError::Invalid {
        why: format!("the memory that it would replace cannot be read ({error}), so its words cannot be removed"),
    };
    let plain = keys.open(Cf::Mem, &key, sealed).map_err(unreadable)?;
    let (at_ms, text) = read_text_row(&plain).map_err(unreadable)?;
    if same == Some((at_ms, &text)) {
        return Ok(Vec::new());
    }
    text::delete_rows(keys, tenant, user, doc, &text::counts(&text), ops);
    let owner = graph::Owner { tenant, user, doc };
    let mut changes = graph::delete_rows(keys, owner, at_ms, &text, ops);
    changes.extend(statement::delete_of(&*shared.kv, owner, ops)?);
    Ok(changes)
}

impl Shared {
    /// Answers a recall on the calling thread.
    pub fn recall(&self, query: &RecallQuery) -> Result<Vec<Recalled>, ReadError> {
        let started = Instant::now();
        let result = self.recall_inner(query);
        let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.stats.recalls.fetch_add(1, Relaxed);
        self.stats.recall_ns.fetch_add(took, Relaxed);
        self.stats.recall_ns_max.fetch_max(took, Relaxed);
        if result.is_err() {
            self.stats.recall_failed.fetch_add(1, Relaxed);
        }
        result
    }

    fn recall_inner(&self, query: &RecallQuery) -> Result<Vec<Recalled>, ReadError> {
        let (tenant, user) = (query.tenant, query.user);
        if let Some(at) = query.embedding.iter().flatten().position(|x| !x.is_finite()) {
            return Err(ReadError::Invalid { why: format!("number {at} of the query's embedding is not finite") });
        }
        // A user without a key never stored anything, or was forgotten.
        let Some(keys) = self.keys.find_user(&*self.kv, tenant, user)? else { return Ok(Vec::new()) };
        let slot = self.memory.users.get(self, tenant, user)?;
        let ranked = {
            let index = slot.index.read().unwrap_or_else(PoisonError::into_inner);
            let may_see = |doc: DocId, meta: DocMeta| {
                query.exclude != Some(doc.conversation) && (query.from_ms..=query.now_ms).contains(&meta.at_ms)
            };
            let visible = |doc: DocId| index.get(doc).is_some_and(|meta| may_see(doc, meta));
            // Mostly everything may be seen: then what was found needs no look at its time.
            let everything = query.exclude.is_none() && query.from_ms == 0 && index.newest_ms() <= query.now_ms;
            if index.docs() == 0 {
                return Ok(Vec::new());
            }
            let (vector, vector_mean) = nearest(&index, query, |doc| everything || visible(doc));
            let rankings = Rankings {
                vector,
                vector_mean,
                text: text::search(&*self.kv, &keys, (tenant, user), &query.text, &index, may_see)?,
                graph: {
                    let as_of = AsOf { valid_ms: query.now_ms, known_ms: u64::MAX };
                    graph::search(index.graph(), &graph::seeds(&keys, user, &query.text), as_of, visible)
                },
            };
            let time = when(&query.text, query.now_ms);
            let in_time = |doc: DocId| {
                time.as_ref().is_some_and(|time| index.get(doc).is_some_and(|meta| time.contains(&meta.at_ms)))
            };
            let mut ranked = fuse::fuse(&rankings, visible, in_time);
            ranked.retain(|(_, fused)| fused.relevance >= query.relevance_min);
            ranked
        };
        self.fetch(query, &keys, ranked)
    }

    /// Reads the texts of the best; the same text said twice is returned once.
    fn fetch(
        &self,
        query: &RecallQuery,
        keys: &TenantKeys,
        ranked: Vec<(DocId, Fused)>,
    ) -> Result<Vec<Recalled>, ReadError> {
        let limit = query.limit.min(RECALL_LIMIT_MAX);
        let mut found: Vec<Recalled> = Vec::with_capacity(limit);
        let mut seen: HashSet<String> = HashSet::new();
        for some in ranked.chunks(limit.max(1)) {
            let rows: Vec<Vec<u8>> =
                some.iter().map(|(doc, _)| layout::memory(query.tenant, query.user, *doc)).collect();
            let values = self.kv.multi_get(Cf::Mem, &rows)?;
            for (((doc, fused), key), sealed) in some.iter().zip(&rows).zip(values) {
                if found.len() >= limit {
                    return Ok(found);
                }
                // Forgotten between the search and now.
                let Some(sealed) = sealed else { continue };
                let (at_ms, text) = read_text_row(&keys.open(Cf::Mem, key, sealed)?)?;
                if seen.insert(text.clone()) {
                    let DocId { conversation, seq } = *doc;
                    let Fused { score, relevance, why } = *fused;
                    found.push(Recalled { conversation, seq, text, at_ms, score, relevance, why });
                }
            }
        }
        Ok(found)
    }
}

fn nearest(index: &UserIndex, query: &RecallQuery, visible: impl Fn(DocId) -> bool) -> (Vec<Hit>, f32) {
    let embedding = query.embedding.as_deref().unwrap_or_default();
    let Some(block) = index.block(embedding.len()) else { return (Vec::new(), 0.0) };
    let (found, mean) = block.nearest_and_mean(embedding, DEPTH, |doc| visible(*doc));
    // Embedding models give vectors of length one, so the product is the cosine.
    (found.into_iter().map(|(doc, score)| Hit { doc, score, relevance: score }).collect(), mean)
}
