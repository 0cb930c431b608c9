//! Hot users: the vectors of users who are being asked, in memory, bounded.
//!
//! The rows of the family `vec` are the truth; this is derived. A user is loaded by one scan at the
//! first question (10,000 memories take some 20 ms) and kept up to date by the commit thread after
//! each sync. The slot stands in the table before the scan starts, so a write that commits during
//! the scan is not missed: it goes into the slot, and the scan does not overwrite it.

use super::graph::{self, EdgeChange, EdgeId};
use super::vector::{Block, VectorRow};
use super::walk::UserGraph;
use crate::backend::{Cf, ScanRange};
use crate::error::ReadError;
use crate::layout::{self, DocId, IdMap};
use crate::store::Shared;
use millrace_proto::id::{TenantId, UserId};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Rows copied per step of a load: the engine's view is held no longer than that takes.
const LOAD_ROWS: usize = 1_024;
/// Bytes of one memory's entry besides its vector.
const DOC_BYTES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DocMeta {
    pub at_ms: u64,
    pub words: u32,
}

/// One user's memories without their texts.
#[derive(Default)]
pub(crate) struct UserIndex {
    docs: IdMap<DocId, DocMeta>,
    words: u64,
    /// By length of the vectors: after a change of the embedding model both kinds exist.
    blocks: BTreeMap<usize, Block<DocId>>,
    /// Forgotten while the load was still running: the load must not bring them back.
    forgotten: HashSet<DocId>,
    graph: UserGraph,
    /// As `forgotten`, for edges.
    removed: HashSet<EdgeId>,
}

impl UserIndex {
    pub fn docs(&self) -> usize {
        self.docs.len()
    }

    pub fn words(&self) -> u64 {
        self.words
    }

    pub fn get(&self, doc: DocId) -> Option<DocMeta> {
        self.docs.get(&doc).copied()
    }

    pub fn block(&self, dim: usize) -> Option<&Block<DocId>> {
        self.blocks.get(&dim)
    }

    pub fn put(&mut self, doc: DocId, row: &VectorRow) {
        self.remove(doc);
        self.words += u64::from(row.words);
        self.docs.insert(doc, DocMeta { at_ms: row.at_ms, words: row.words });
        if !row.vector.is_empty() {
            let dim = row.vector.len();
            self.blocks.entry(dim).or_insert_with(|| Block::new(dim)).put(doc, &row.vector);
        }
    }

    pub fn remove(&mut self, doc: DocId) {
        if let Some(meta) = self.docs.remove(&doc) {
            self.words -= u64::from(meta.words);
            for block in self.blocks.values_mut() {
                block.remove(doc);
            }
        }
    }

    pub fn graph(&self) -> &UserGraph {
        &self.graph
    }

    fn change(&mut self, changes: &[EdgeChange], loaded: bool) {
        for change in changes {
            match change {
                EdgeChange::Put(id, edge) => {
                    self.removed.remove(id);
                    self.graph.put(id, *edge);
                }
                EdgeChange::Remove(id) => {
                    self.graph.remove(id);
                    if !loaded {
                        self.removed.insert(*id);
                    }
                }
            }
        }
    }

    fn bytes(&self) -> usize {
        self.graph.bytes() + self.docs.len() * DOC_BYTES + self.blocks.values().map(Block::bytes).sum::<usize>()
    }
}

pub(crate) struct UserSlot {
    pub index: RwLock<UserIndex>,
    loaded: AtomicBool,
    loading: Mutex<()>,
    used: AtomicU64,
    bytes: AtomicUsize,
}

impl UserSlot {
    fn new() -> Self {
        Self {
            index: RwLock::default(),
            loaded: AtomicBool::new(false),
            loading: Mutex::new(()),
            used: AtomicU64::new(0),
            bytes: AtomicUsize::new(0),
        }
    }
}

type Key = (TenantId, UserId);

pub(crate) struct HotUsers {
    bytes_max: usize,
    slots: Mutex<HashMap<Key, Arc<UserSlot>>>,
    tick: AtomicU64,
}

impl HotUsers {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, slots: Mutex::default(), tick: AtomicU64::new(0) }
    }

    /// The loaded slot of a user; loads it when it is cold.
    pub fn get(&self, shared: &Shared, tenant: TenantId, user: UserId) -> Result<Arc<UserSlot>, ReadError> {
        let key = (tenant, user);
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(key).or_insert_with(|| Arc::new(UserSlot::new())))
        };
        slot.used.store(self.tick.fetch_add(1, Relaxed) + 1, Relaxed);
        if !slot.loaded.load(std::sync::atomic::Ordering::Acquire) {
            let _loading = slot.loading.lock().unwrap_or_else(PoisonError::into_inner);
            if !slot.loaded.load(std::sync::atomic::Ordering::Acquire) {
                if let Err(error) = load(shared, key, &slot) {
                    self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                    return Err(error);
                }
                self.make_room(shared, key);
            }
        }
        Ok(slot)
    }

    /// A durable write: updates the user if it is hot.
    pub fn put(&self, key: Key, doc: DocId, row: &VectorRow, edges: &[EdgeChange]) {
        self.update(key, |index, loaded| {
            index.put(doc, row);
            index.change(edges, loaded);
        });
    }

    /// A durable removal.
    pub fn remove(&self, key: Key, doc: DocId, edges: &[EdgeChange]) {
        self.update(key, |index, loaded| {
            index.remove(doc);
            index.change(edges, loaded);
            if !loaded {
                index.forgotten.insert(doc);
            }
        });
    }

    /// Drops a user with all vectors, counts and edges.
    pub fn forget(&self, key: Key) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    fn update(&self, key: Key, change: impl FnOnce(&mut UserIndex, bool)) {
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(slot) = slot {
            let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
            change(&mut index, slot.loaded.load(Relaxed));
            slot.bytes.store(index.bytes(), Relaxed);
        }
    }

    /// Drops the users that were asked longest ago until the rest fits. The one just asked stays.
    fn make_room(&self, shared: &Shared, keep: Key) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let mut total: usize = slots.values().map(|slot| slot.bytes.load(Relaxed)).sum();
        while total > self.bytes_max {
            let coldest = slots
                .iter()
                .filter(|(key, slot)| **key != keep && slot.loaded.load(Relaxed))
                .min_by_key(|(_, slot)| slot.used.load(Relaxed))
                .map(|(key, slot)| (*key, slot.bytes.load(Relaxed)));
            let Some((key, bytes)) = coldest else { break };
            slots.remove(&key);
            total -= bytes;
        }
        shared.stats.hot_users.store(slots.len(), Relaxed);
        shared.stats.hot_bytes.store(total, Relaxed);
    }
}

/// Copies the rows of a user in steps, so that the engine's view is held no longer than a step takes.
fn each_step(
    shared: &Shared,
    cf: Cf,
    (tenant, user): Key,
    mut each: impl FnMut(Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let mut from = layout::user_prefix(tenant, user);
    let to = layout::prefix_end(&from);
    loop {
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        shared.kv.scan(cf, ScanRange::forward(&from, &to), &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            if rows.len() < LOAD_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let full = rows.len() == LOAD_ROWS;
        if let Some((last, _)) = rows.last() {
            from.clone_from(last);
            from.push(0);
        }
        each(rows)?;
        if !full {
            return Ok(());
        }
    }
}

fn load(shared: &Shared, key: Key, slot: &UserSlot) -> Result<(), ReadError> {
    let corrupt = |cf: Cf, why: &str| ReadError::Corrupt { cf: cf.name(), why: why.to_owned() };
    let mut edges = Vec::new();
    each_step(shared, Cf::EdgeOut, key, |rows| {
        for (row, value) in rows {
            let edge =
                graph::read_row(&row, &value).ok_or_else(|| corrupt(Cf::EdgeOut, "an edge has the wrong length"))?;
            edges.push(edge);
        }
        Ok(())
    })?;
    each_step(shared, Cf::Vec, key, |rows| {
        let mut opened = Vec::with_capacity(rows.len());
        for (row, sealed) in rows {
            let doc = DocId::at_end_of(&row).ok_or_else(|| corrupt(Cf::Vec, "a key is too short"))?;
            let plain = shared.open(key.0, Cf::Vec, &row, sealed)?;
            let row = VectorRow::from_bytes(&plain).ok_or_else(|| corrupt(Cf::Vec, "a vector has the wrong length"))?;
            opened.push((doc, row));
        }
        let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
        for (doc, row) in opened {
            if index.get(doc).is_none() && !index.forgotten.contains(&doc) {
                index.put(doc, &row);
            }
        }
        Ok(())
    })?;
    let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
    let removed = std::mem::take(&mut index.removed);
    index.graph.load(edges.into_iter().filter(|(id, _)| !removed.contains(id)));
    index.forgotten = HashSet::new();
    slot.bytes.store(index.bytes(), Relaxed);
    // Published under the write lock: the commit thread sees either "loading" or the whole index.
    slot.loaded.store(true, std::sync::atomic::Ordering::Release);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::id::ConversationId;

    #[test]
    fn replacing_and_removing_keep_the_sums_right() {
        let doc = |seq| DocId { conversation: ConversationId([1; 16]), seq };
        let mut index = UserIndex::default();
        index.put(doc(1), &VectorRow::new(5, 10, &[1.0, 0.0]));
        index.put(doc(2), &VectorRow::new(6, 20, &[]));
        index.put(doc(1), &VectorRow::new(7, 30, &[1.0, 0.0, 0.0]));
        assert_eq!((index.docs(), index.words()), (2, 50));
        assert_eq!(index.get(doc(1)), Some(DocMeta { at_ms: 7, words: 30 }));
        assert_eq!(index.block(2).map(Block::len), Some(0), "the vector of the old model is gone");
        assert_eq!(index.block(3).map(Block::len), Some(1));
        index.remove(doc(1));
        index.remove(doc(9));
        assert_eq!((index.docs(), index.words()), (1, 20));
    }
}
