//! Hot users: the vectors of users who are being asked, in memory, bounded.
//!
//! The rows of the family `vec` are the truth; this is derived. A user is loaded by one scan at the
//! first question (10,000 memories take some 20 ms) and kept up to date by the commit thread after
//! each sync. The slot stands in the table before the scan starts, so a write that commits during
//! the scan is not missed: it goes into the slot, and the scan does not overwrite it.

use super::graph::{self, EdgeChange, EdgeId};
use super::text::Term;
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
const DOC_BYTES: usize = 96;
/// Bytes of a word's entry besides its postings.
const TERM_BYTES: usize = 64;
/// Numbers without a memory that are left alone.
const NUMBERS_SPARE: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DocMeta {
    pub at_ms: u64,
    pub words: u32,
}

/// Postings of one word: number of the memory, how often.
type Postings = Arc<Vec<(u32, u16)>>;

/// One user's memories without their texts.
#[derive(Default)]
pub(crate) struct UserIndex {
    /// The number of each memory. A memory that is written again gets another number, so what was known of the older one
    /// falls away with its number.
    docs: IdMap<DocId, u32>,
    numbered: Vec<Option<(DocId, DocMeta)>>,
    words: u64,
    /// No memory is newer than this.
    newest_ms: u64,
    /// Of the words that were asked for since the load, kept up to date.
    postings: Mutex<IdMap<Term, Postings>>,
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
        self.numbered(*self.docs.get(&doc)?).map(|(_, meta)| meta)
    }

    /// No memory is newer than this, in Unix milliseconds.
    pub fn newest_ms(&self) -> u64 {
        self.newest_ms
    }

    /// Every number is below this.
    pub fn numbers(&self) -> usize {
        self.numbered.len()
    }

    /// The memory of a number, while it is there.
    pub fn numbered(&self, number: u32) -> Option<(DocId, DocMeta)> {
        self.numbered[number as usize]
    }

    /// The postings of a word; `read` gets them from the rows when the word was not asked for yet.
    ///
    /// A row may be read whose memory is not in the index yet: its write is durable and about to be applied, which adds
    /// it. Applying waits while a search holds the index.
    pub fn postings(
        &self,
        term: Term,
        read: impl FnOnce() -> Result<Vec<(DocId, u16)>, ReadError>,
    ) -> Result<Postings, ReadError> {
        let lock = || self.postings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&term) {
            return Ok(Arc::clone(known));
        }
        let rows = read()?.into_iter();
        let numbers = rows.filter_map(|(doc, count)| Some((*self.docs.get(&doc)?, count)));
        let postings = Arc::new(numbers.collect::<Vec<_>>());
        // Words that no memory holds are without number; they are looked up again.
        if !postings.is_empty() {
            lock().insert(term, Arc::clone(&postings));
        }
        Ok(postings)
    }

    pub fn block(&self, dim: usize) -> Option<&Block<DocId>> {
        self.blocks.get(&dim)
    }

    /// Adds or replaces a memory; `terms` are its words, as far as some may have been asked for already.
    pub fn put(&mut self, doc: DocId, row: &VectorRow, terms: &[(Term, u16)]) {
        self.remove(doc);
        self.words += u64::from(row.words);
        self.newest_ms = self.newest_ms.max(row.at_ms);
        let number = u32::try_from(self.numbered.len()).expect("a user has fewer than 2^32 memories");
        self.numbered.push(Some((doc, DocMeta { at_ms: row.at_ms, words: row.words })));
        self.docs.insert(doc, number);
        let postings = self.postings.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (term, count) in terms {
            if let Some(known) = postings.get_mut(term) {
                Arc::make_mut(known).push((number, *count));
            }
        }
        if !row.vector.is_empty() {
            let dim = row.vector.len();
            self.blocks.entry(dim).or_insert_with(|| Block::new(dim)).put(doc, &row.vector);
        }
    }

    pub fn remove(&mut self, doc: DocId) {
        if let Some(number) = self.docs.remove(&doc)
            && let Some((_, meta)) = self.numbered[number as usize].take()
        {
            self.words -= u64::from(meta.words);
            for block in self.blocks.values_mut() {
                block.remove(doc);
            }
        }
        if self.numbered.len() > 2 * self.docs.len() + NUMBERS_SPARE {
            self.number_again();
        }
    }

    /// Forgets numbers without a memory, and with them the postings, which are read again when they are asked for.
    fn number_again(&mut self) {
        self.numbered.retain(Option::is_some);
        for (number, (doc, _)) in (0..).zip(self.numbered.iter().flatten()) {
            self.docs.insert(*doc, number);
        }
        self.postings.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
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
        let postings = self.postings.lock().unwrap_or_else(PoisonError::into_inner);
        let postings = postings.values().map(|known| known.capacity() * size_of::<(u32, u16)>() + TERM_BYTES);
        postings.sum::<usize>()
            + self.graph.bytes()
            + self.docs.len() * DOC_BYTES
            + self.blocks.values().map(Block::bytes).sum::<usize>()
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
    pub fn put(&self, key: Key, doc: DocId, (row, terms): (&VectorRow, &[(Term, u16)]), edges: &[EdgeChange]) {
        self.update(key, |index, loaded| {
            index.put(doc, row, terms);
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

    /// Durable statements.
    pub fn state(&self, key: Key, edges: &[EdgeChange]) {
        self.update(key, |index, loaded| index.change(edges, loaded));
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
                index.put(doc, &row, &[]);
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
        index.put(doc(1), &VectorRow::new(5, 10, &[1.0, 0.0]), &[]);
        index.put(doc(2), &VectorRow::new(6, 20, &[]), &[]);
        index.put(doc(1), &VectorRow::new(7, 30, &[1.0, 0.0, 0.0]), &[]);
        assert_eq!((index.docs(), index.words()), (2, 50));
        assert_eq!(index.get(doc(1)), Some(DocMeta { at_ms: 7, words: 30 }));
        assert_eq!(index.block(2).map(Block::len), Some(0), "the vector of the old model is gone");
        assert_eq!(index.block(3).map(Block::len), Some(1));
        index.remove(doc(1));
        index.remove(doc(9));
        assert_eq!((index.docs(), index.words()), (1, 20));
    }

    /// Words that were asked for stay right through writes, replacements and removals, and through numbering anew.
    #[test]
    fn postings_that_were_asked_for_follow_every_change() {
        let doc = |seq| DocId { conversation: ConversationId([1; 16]), seq };
        let row = VectorRow::new(1, 1, &[]);
        let (cat, dog) = (*b"cat     ", *b"dog     ");
        let mut index = UserIndex::default();
        index.put(doc(1), &row, &[(cat, 1)]);
        // Of document 9 the row is durable, but it is not applied yet.
        let known = index.postings(cat, || Ok(vec![(doc(1), 1), (doc(9), 4)])).unwrap();
        assert_eq!(*known, [(0, 1)]);
        drop(known);
        let of = |index: &UserIndex, term| -> Vec<(u64, u16)> {
            let known = index.postings(term, || panic!("it was read before")).unwrap();
            known.iter().filter_map(|(number, count)| Some((index.numbered(*number)?.0.seq, *count))).collect()
        };
        index.put(doc(9), &row, &[(cat, 4), (dog, 1)]);
        index.put(doc(1), &row, &[(dog, 2)]);
        assert_eq!(of(&index, cat), [(9, 4)], "document 1 says dog now");
        index.put(doc(1), &row, &[(cat, 3)]);
        index.remove(doc(9));
        assert_eq!(of(&index, cat), [(1, 3)]);
        for _ in 0..2 * NUMBERS_SPARE {
            index.put(doc(1), &row, &[(cat, 5)]);
        }
        assert!(index.numbers() <= NUMBERS_SPARE + 3);
        let again = index.postings(cat, || Ok(vec![(doc(1), 5)])).unwrap();
        let live: Vec<_> = again.iter().filter(|(number, _)| index.numbered(*number).is_some()).collect();
        assert_eq!((live.len(), live[0].1), (1, 5));
        assert_eq!(index.get(doc(1)), Some(DocMeta { at_ms: 1, words: 1 }));
    }
}
