//! Shared spaces: passages that a tenant's users search together, too many to compare one by one.
//!
//! Truth: rows of the family `space`. On top of it sealed segments (immutable files, oldest first) that
//! cover everything up to a sequence number, an exact delta for what came later, and marks on rows of
//! segments that were replaced or removed. The family `space_log` lists what no segment covers, so a
//! start reads the files and that list and nothing else. A file that is missing or damaged costs
//! speed, not answers: the rows are searched exactly while it is built again.
//!
//! Segments grow as the levels of a log-structured tree: 8,192 changes are sealed, four of like size
//! are merged, one with a fifth of dead rows is built anew. An index that grows in place was no option:
//! FAISS's graph cannot remove, and adding one row to it costs time in proportion to all rows.
//!
//! **Filters.** A passage may have an owner, tags and a time ([`crate::SpaceWrite`]), a search a
//! [`SpaceFilter`]. Owners are enforced, not asked for: a passage with an owner is found by nobody else, and it
//! never enters a segment (`owned.rs`).
//! The rows that a filter leaves of a segment are a bitmap, which is kept for the next question. Few rows
//! are compared one by one; among many the graph is walked with more effort, and wherever that finds too
//! little, they are compared after all.

mod build;
mod facts;
mod index;
mod owned;
mod row;
mod segment;

pub use facts::{SPACE_TAG_BYTES_MAX, SPACE_TAGS_MAX, SpaceFilter};
pub(crate) use owned::{forget_passages, own_passages, put_passage, remove_passage};
pub(crate) use row::{Change, space_key};

use super::nsw::Scratch;
use super::{SpaceHit, SpaceQuery, SpaceStats};
use crate::backend::{Cf, KvStore, ScanRange};
use crate::error::{KvError, ReadError};
use crate::layout::{self, SpaceKey};
use crate::seal::{Owner, TenantKeys};
use crate::store::Shared;
use crossbeam::channel::{Sender, bounded};
use index::{Candidate, Plan, SpaceIndex};
use millrace_proto::id::TenantId;
use row::read_space_row;
use segment::FileId;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;

/// Rows outside the segments at which a new one is built. Comparing so many costs below a millisecond.
const DELTA_MAX: usize = 8_192;
/// Share of marked rows at which a segment is built again: each mark wastes a candidate of every search.
const DEAD_SHARE_MAX: f32 = 0.2;
/// Rows read per step.
const READ_ROWS: usize = 1_024;
/// Spaces that may wait for a build.
const BUILDS_MAX: usize = 64;
/// Most passages that one search returns.
const SPACE_LIMIT_MAX: usize = 256;
/// Segments of one space; merging keeps them to some 4 for each fourfold of rows.
const SEGMENTS_MAX: usize = 4_096;

/// What the control family says about a space's segments, the oldest first: file 16, applied_seq 8 each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Manifest(Vec<(FileId, u64)>);

impl Manifest {
    fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(file, seq)| [&file[..], &seq.to_be_bytes()].concat()).collect()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (entries, []) = bytes.as_chunks::<24>() else { return None };
        if entries.len() > SEGMENTS_MAX {
            return None;
        }
        let entry =
            |entry: &[u8; 24]| Some((*entry.first_chunk::<16>()?, u64::from_be_bytes(*entry.last_chunk::<8>()?)));
        let entries: Vec<_> = entries.iter().filter_map(entry).collect();
        entries.is_sorted_by_key(|(_, seq)| *seq).then_some(Self(entries))
    }
}

/// Removes segment files that no manifest names: what a crash left between writing and publishing.
pub(crate) fn remove_orphans(kv: &dyn KvStore, folder: &Path) -> Result<(), KvError> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut named = HashSet::new();
    let to = layout::prefix_end(layout::ctl::SEGMENT);
    kv.scan(Cf::Ctl, ScanRange::forward(layout::ctl::SEGMENT, &to), &mut |_, value| {
        let manifest = Manifest::from_bytes(value).unwrap_or_default();
        named.extend(manifest.0.iter().map(|(file, _)| segment::path_of(folder, file)));
        ControlFlow::Continue(())
    })?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let ours = path.extension().is_some_and(|kind| kind == "seg" || kind == "part");
        if ours
            && !named.contains(&path)
            && let Err(error) = std::fs::remove_file(&path)
        {
            tracing::warn!(%error, path = %path.display(), "a left-over segment file could not be removed");
        }
    }
    Ok(())
}

struct Slot {
    index: RwLock<SpaceIndex>,
    loaded: AtomicBool,
    loading: Mutex<()>,
    building: AtomicBool,
}

impl Slot {
    fn hold(&self) {
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        index.hold_until = index.changed.len() + DELTA_MAX;
    }

    fn plan(&self) -> Option<Plan> {
        self.index.read().unwrap_or_else(PoisonError::into_inner).plan()
    }
}

type Key = (TenantId, SpaceKey);

/// All spaces that were asked or written since the start.
pub(crate) struct Spaces {
    folder: Option<PathBuf>,
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
    builder: Mutex<Option<(Sender<Build>, JoinHandle<()>)>>,
    closed: AtomicBool,
}

struct Build {
    shared: Weak<Shared>,
    key: Key,
    slot: Arc<Slot>,
}

impl Spaces {
    pub fn new(folder: Option<PathBuf>) -> Self {
        Self { folder, slots: Mutex::default(), builder: Mutex::new(None), closed: AtomicBool::new(false) }
    }

    /// A durable change: runs on the commit thread.
    pub fn applied(&self, shared: &Arc<Shared>, seq: u64, change: Change) {
        let key = (change.tenant, change.space);
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let Some(slot) = slot else { return };
        let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
        index.apply(seq, change.vid, change.written);
        if slot.loaded.load(Relaxed) && index.plan().is_some() {
            drop(index);
            self.ask_for_segment(shared, key, &slot);
        }
    }

    /// Queues a build; when the queue is full, the next change asks again.
    fn ask_for_segment(&self, shared: &Arc<Shared>, key: Key, slot: &Arc<Slot>) {
        if self.folder.is_none() || self.closed.load(Relaxed) || slot.building.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut builder = self.builder.lock().unwrap_or_else(PoisonError::into_inner);
        if builder.is_none() {
            let (sender, receiver) = bounded::<Build>(BUILDS_MAX);
            let thread = std::thread::Builder::new().name("store-segments".into()).spawn(move || build::run(receiver));
            match thread {
                Ok(thread) => *builder = Some((sender, thread)),
                Err(error) => tracing::error!(%error, "no thread for building vector segments; searching stays exact"),
            }
        }
        let build = Build { shared: Arc::downgrade(shared), key, slot: Arc::clone(slot) };
        let queued = builder.as_ref().is_some_and(|(sender, _)| sender.try_send(build).is_ok());
        if !queued {
            slot.building.store(false, Ordering::Release);
        }
    }

    /// Drops what a user owns, in every space of the tenant.
    pub fn forget_user(&self, (tenant, user): Owner) {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs: Vec<Arc<Slot>> =
            slots.iter().filter(|((of, _), _)| *of == tenant).map(|(_, slot)| Arc::clone(slot)).collect();
        drop(slots);
        for slot in theirs {
            slot.index.write().unwrap_or_else(PoisonError::into_inner).forget_user(user);
        }
    }

    /// Ends building: what is half done is given up and done again after the next start.
    pub fn close(&self) {
        self.closed.store(true, Relaxed);
        let builder = self.builder.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((sender, thread)) = builder {
            drop(sender);
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("the thread that builds vector segments panicked");
            }
        }
    }

    fn slot(&self, shared: &Arc<Shared>, keys: &Arc<TenantKeys>, key: Key) -> Result<Arc<Slot>, ReadError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(key).or_insert_with(|| {
                Arc::new(Slot {
                    index: RwLock::default(),
                    loaded: AtomicBool::new(false),
                    loading: Mutex::new(()),
                    building: AtomicBool::new(false),
                })
            }))
        };
        if slot.loaded.load(Ordering::Acquire) {
            return Ok(slot);
        }
        let loading = slot.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.loaded.load(Ordering::Acquire) {
            if let Err(error) = shared.load_space(self.folder.as_deref(), keys, key, &slot) {
                self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                return Err(error);
            }
            slot.loaded.store(true, Ordering::Release);
            if slot.plan().is_some() {
                self.ask_for_segment(shared, key, &slot);
            }
        }
        drop(loading);
        Ok(slot)
    }
}

thread_local! {
    /// Room for walks, one a read thread.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Shared {
    /// Answers a search of a shared space on the calling thread.
    pub fn search_space(self: &Arc<Self>, query: &SpaceQuery) -> Result<Vec<SpaceHit>, ReadError> {
        if query.embedding.is_empty() || query.embedding.iter().any(|x| !x.is_finite()) {
            return Err(ReadError::Invalid {
                why: "the query's embedding is empty or has a number that is not finite".into(),
            });
        }
        query.filter.check()?;
        self.stats.space_searches.fetch_add(1, Relaxed);
        let limit = query.limit.min(SPACE_LIMIT_MAX);
        let Some(keys) = self.keys.find(&*self.kv, query.tenant)? else { return Ok(Vec::new()) };
        let space = space_key(&keys, &query.space);
        let slot = self.memory.spaces.slot(self, &keys, (query.tenant, space))?;
        let candidates = SCRATCH.with_borrow_mut(|scratch| {
            let index = slot.index.read().unwrap_or_else(PoisonError::into_inner);
            index.candidates(&query.embedding, limit, &query.filter, scratch)
        });
        let candidates = candidates.map_err(|error| ReadError::Invalid { why: error.to_string() })?;
        self.compare_stored(query, space, &candidates, limit)
    }

    /// How large a space is, as far as it is in memory; loads it when it is cold.
    pub fn space_stats(self: &Arc<Self>, tenant: TenantId, space: &str) -> Result<SpaceStats, ReadError> {
        let Some(keys) = self.keys.find(&*self.kv, tenant)? else { return Ok(SpaceStats::default()) };
        let slot = self.memory.spaces.slot(self, &keys, (tenant, space_key(&keys, space)))?;
        let index = slot.index.read().unwrap_or_else(PoisonError::into_inner);
        Ok(SpaceStats {
            passages: index.rows(),
            unsealed: index.delta_len(),
            segments: index.parts.len(),
            bytes: index.bytes(),
            building: slot.building.load(Relaxed),
        })
    }

    /// Compares the candidates' stored vectors with the query and reads their texts.
    fn compare_stored(
        &self,
        query: &SpaceQuery,
        space: SpaceKey,
        candidates: &[Candidate],
        limit: usize,
    ) -> Result<Vec<SpaceHit>, ReadError> {
        let mut vids: Vec<u64> = candidates.iter().map(|candidate| candidate.vid).collect();
        vids.sort_unstable();
        vids.dedup();
        let rows: Vec<Vec<u8>> = vids.iter().map(|vid| layout::space(query.tenant, space, *vid)).collect();
        let mut hits = Vec::with_capacity(vids.len());
        for ((id, key), sealed) in vids.iter().zip(&rows).zip(self.kv.multi_get(Cf::Space, &rows)?) {
            // Removed between the search and now.
            let Some(sealed) = sealed else { continue };
            let plain = match self.open(query.tenant, Cf::Space, key, sealed) {
                Err(ReadError::Forgotten { .. }) => continue,
                other => other?,
            };
            let passage = read_space_row(&plain)?;
            let indexed = passage.indexed;
            // Replaced between the search and now: it may have another owner.
            let wanted = query.filter.lets(&indexed.group) && query.filter.in_time(indexed.at_ms);
            if wanted && indexed.vector.len() == query.embedding.len() {
                let score = super::kernel::dot()(&query.embedding, &indexed.vector);
                let (text, at_ms, tags) = (passage.text.to_owned(), indexed.at_ms, indexed.group.tags);
                hits.push(SpaceHit { id: *id, text, score, at_ms, tags });
            }
        }
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
        hits.truncate(limit);
        Ok(hits)
    }

    /// Segments and change log, or every row when the segments are not all good.
    fn load_space(
        &self,
        folder: Option<&Path>,
        keys: &Arc<TenantKeys>,
        (tenant, space): Key,
        slot: &Slot,
    ) -> Result<(), ReadError> {
        let manifest = self.kv.get(Cf::Ctl, &layout::segment_manifest(tenant, space))?;
        let segments = match (manifest, folder) {
            (Some(bytes), Some(folder)) => read_segments(&bytes, folder, keys)
                .inspect_err(|why| {
                    self.stats.segments_rejected.fetch_add(1, Relaxed);
                    tracing::error!(%why, "a vector segment is not usable; its space is searched exactly and the segment is built again");
                })
                .unwrap_or_default(),
            _ => Vec::new(),
        };
        if segments.is_empty() {
            return self.each_passage((tenant, space), true, &mut |vid, plain| {
                let indexed = read_space_row(plain)?.indexed;
                let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
                if !index.changed.contains_key(&vid) {
                    // Number 0: any segment covers it.
                    index.apply(0, vid, Some(indexed));
                }
                Ok::<(), ReadError>(())
            });
        }
        let mut applied_seq = 0;
        for (segment, seq) in segments {
            let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
            let end = index.parts.len();
            index.install(end..end, segment, seq);
            applied_seq = seq;
        }
        for (seq, vid) in self.logged(tenant, space, applied_seq)? {
            let key = layout::space(tenant, space, vid);
            let written = match self.kv.get(Cf::Space, &key)? {
                Some(sealed) => match self.open(tenant, Cf::Space, &key, sealed) {
                    Err(ReadError::Forgotten { .. }) => None,
                    plain => Some(read_space_row(&plain?)?.indexed),
                },
                None => None,
            };
            let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
            if index.changed.get(&vid).is_none_or(|known| *known < seq) {
                index.apply(seq, vid, written);
            }
        }
        self.load_owned((tenant, space), slot)
    }

    /// The change log after a number, in order.
    fn logged(&self, tenant: TenantId, space: SpaceKey, after_seq: u64) -> Result<Vec<(u64, u64)>, ReadError> {
        let from = layout::space_log(tenant, space, after_seq.saturating_add(1), 0);
        let to = layout::prefix_end(&layout::space_prefix(tenant, space));
        let mut changes = Vec::new();
        self.kv.scan(Cf::SpaceLog, ScanRange::forward(&from, &to), &mut |key, _| {
            if let (Some(vid), Some(seq)) =
                (layout::tail_u64(key), layout::tail_u64(&key[..key.len().saturating_sub(8)]))
            {
                changes.push((seq, vid));
            }
            ControlFlow::Continue(())
        })?;
        Ok(changes)
    }

    /// Every passage of a space in ascending order of its number, opened; those of users only `with_owned`.
    fn each_passage<E: From<ReadError>>(
        &self,
        (tenant, space): Key,
        with_owned: bool,
        each: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut from = layout::space_prefix(tenant, space);
        let to = layout::prefix_end(&from);
        loop {
            let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            let scanned = self.kv.scan(Cf::Space, ScanRange::forward(&from, &to), &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                if rows.len() < READ_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            scanned.map_err(ReadError::from)?;
            let full = rows.len() == READ_ROWS;
            if let Some((last, _)) = rows.last() {
                from.clone_from(last);
                from.push(0);
            }
            for (key, sealed) in rows {
                let vid = layout::tail_u64(&key)
                    .ok_or_else(|| ReadError::Corrupt { cf: Cf::Space.name(), why: "a key is too short".into() })?;
                if !with_owned && owned::owner_of(&sealed).is_some() {
                    continue;
                }
                match self.open(tenant, Cf::Space, &key, sealed) {
                    Err(ReadError::Forgotten { .. }) => continue,
                    plain => each(vid, &plain?)?,
                }
            }
            if !full {
                return Ok(());
            }
        }
    }
}

fn read_segments(
    manifest: &[u8],
    folder: &Path,
    keys: &Arc<TenantKeys>,
) -> Result<Vec<(segment::Segment, u64)>, String> {
    let manifest = Manifest::from_bytes(manifest).ok_or_else(|| "the manifest is malformed".to_owned())?;
    let read = |(file, seq): (FileId, u64)| {
        segment::read(folder, &file, keys).map(|segment| (segment, seq)).map_err(|error| error.to_string())
    };
    manifest.0.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back_and_disorder_is_refused() {
        let manifest = Manifest(vec![([1; 16], 5), ([2; 16], 9)]);
        assert_eq!(Manifest::from_bytes(&manifest.to_bytes()), Some(manifest.clone()));
        assert_eq!(Manifest::from_bytes(&[]), Some(Manifest::default()));
        assert_eq!(Manifest::from_bytes(&manifest.to_bytes()[1..]), None);
        assert_eq!(Manifest::from_bytes(&Manifest(vec![([1; 16], 9), ([2; 16], 5)]).to_bytes()), None);
    }
}
