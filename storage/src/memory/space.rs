//! Shared spaces: passages that a tenant's users search together, too many to compare one by one.
//!
//! Truth: rows of the family `space`. On top of it a sealed segment (FAISS, immutable, a file) that
//! covers everything up to a sequence number, an exact delta for what came later, and marks on the
//! segment's rows that were replaced or removed. The family `space_log` lists what the segment does
//! not cover, so a start reads the file and that list and nothing else. A file that is missing or
//! damaged costs speed, not answers: the rows are searched exactly while it is built again.
//!
//! An index that grows in place was no option: FAISS's graph cannot remove, and adding one row
//! costs time in proportion to all rows.

use super::faiss::FaissIndex;
use super::segment::{self, FileId, Segment};
use super::vector::{Block, VectorRow, to_f32};
use super::{SpaceHit, SpaceQuery};
use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::batch::SpaceWrite;
use crate::error::{KvError, ReadError};
use crate::layout::{self, SpaceKey};
use crate::seal::TenantKeys;
use crate::store::Shared;
use crossbeam::channel::{Sender, bounded};
use half::f16;
use millrace_proto::id::TenantId;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;

/// Rows outside the segment at which a new one is built. Comparing so many costs below a millisecond.
const DELTA_MAX: usize = 8_192;
/// Share of marked rows at which a new segment is built: each mark wastes a candidate of every search.
const DEAD_SHARE_MAX: f32 = 0.2;
/// Candidates per wanted passage that the segment gives to the exact comparison.
const OVERSAMPLE: usize = 4;
/// Rows that teach the segment the range of each number.
const TRAIN_ROWS: usize = 20_000;
/// Rows added to a segment at a time: bounds the memory of a build beyond the segment itself.
const ADD_ROWS: usize = 4_096;
/// Rows copied per step of a scan.
const SCAN_ROWS: usize = 1_024;
/// Spaces that may wait for a build.
const BUILDS_MAX: usize = 64;
/// Most passages that one search returns.
const SPACE_LIMIT_MAX: usize = 256;

const LOG_PUT: u8 = 1;
const LOG_REMOVE: u8 = 2;

/// A passage was written (`Some`) or removed (`None`).
pub(crate) struct Change {
    pub tenant: TenantId,
    pub space: SpaceKey,
    pub vid: u64,
    pub vector: Option<Vec<f16>>,
}

impl Change {
    /// The row of the change log, keyed by the group's number.
    pub fn log_row(&self, seq: u64) -> KvOp {
        let key = layout::space_log(self.tenant, self.space, seq, self.vid);
        KvOp::Put(Cf::SpaceLog, key, vec![if self.vector.is_some() { LOG_PUT } else { LOG_REMOVE }])
    }
}

/// The blind id of a space's name.
pub(crate) fn space_key(keys: &TenantKeys, name: &str) -> SpaceKey {
    keys.blind("space", &[name.as_bytes()])
}

/// The row of a passage: vector length 4, vector row, then the text.
pub(crate) fn space_row(keys: &TenantKeys, space: SpaceKey, write: &SpaceWrite) -> (KvOp, Vec<f16>) {
    let key = layout::space(write.tenant, space, write.id);
    let row = VectorRow::new(0, 0, &write.embedding);
    let bytes = row.to_bytes();
    let length = u32::try_from(bytes.len()).expect("embeddings are checked against EMBEDDING_DIM_MAX");
    let plain = [&length.to_be_bytes()[..], &bytes, write.text.as_bytes()].concat();
    let sealed = keys.seal(Cf::Space, &key, &plain);
    (KvOp::Put(Cf::Space, key, sealed), row.vector)
}

fn read_space_row(plain: &[u8]) -> Result<(Vec<f16>, &str), ReadError> {
    let corrupt = || ReadError::Corrupt { cf: Cf::Space.name(), why: "a passage has the wrong layout".into() };
    let (length, rest) = plain.split_first_chunk().ok_or_else(corrupt)?;
    let (row, text) = rest.split_at_checked(u32::from_be_bytes(*length) as usize).ok_or_else(corrupt)?;
    let row = VectorRow::from_bytes(row).ok_or_else(corrupt)?;
    Ok((row.vector, std::str::from_utf8(text).map_err(|_| corrupt())?))
}

/// What the control family says about a space's segment: file 16, applied_seq 8.
struct Manifest {
    file: FileId,
    applied_seq: u64,
}

impl Manifest {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.file[..], &self.applied_seq.to_be_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 24] = bytes.try_into().ok()?;
        Some(Self { file: *bytes.first_chunk()?, applied_seq: u64::from_be_bytes(*bytes.last_chunk()?) })
    }
}

/// One space in memory.
#[derive(Default)]
struct SpaceIndex {
    segment: Option<Arc<Segment>>,
    /// One bit per row of the segment: set = not replaced and not removed.
    alive: Vec<u8>,
    dead: usize,
    /// By length of the vectors.
    delta: BTreeMap<usize, Block<u64>>,
    /// Everything changed since the segment, with the number of the group that changed it.
    changed: HashMap<u64, u64>,
    /// After a build that came to nothing: changes to wait for before the next one.
    hold_until: usize,
}

impl SpaceIndex {
    fn apply(&mut self, seq: u64, vid: u64, vector: Option<&[f16]>) {
        self.mark_dead(vid);
        for block in self.delta.values_mut() {
            block.remove(vid);
        }
        if let Some(vector) = vector {
            self.delta.entry(vector.len()).or_insert_with(|| Block::new(vector.len())).put(vid, vector);
        }
        self.changed.insert(vid, seq);
    }

    fn mark_dead(&mut self, vid: u64) {
        if let Some(row) = self.segment.as_ref().and_then(|segment| segment.row(vid)) {
            let bit = 1 << (row % 8);
            if self.alive[row / 8] & bit != 0 {
                self.alive[row / 8] &= !bit;
                self.dead += 1;
            }
        }
    }

    /// Takes a segment that covers everything up to `applied_seq`.
    fn install(&mut self, segment: Segment, applied_seq: u64) {
        self.alive = vec![u8::MAX; segment.ids.len().div_ceil(8)];
        self.dead = 0;
        self.segment = Some(Arc::new(segment));
        let (later, covered): (HashMap<u64, u64>, HashMap<u64, u64>) =
            std::mem::take(&mut self.changed).into_iter().partition(|(_, seq)| *seq > applied_seq);
        for vid in covered.into_keys() {
            for block in self.delta.values_mut() {
                block.remove(vid);
            }
        }
        for vid in later.keys() {
            self.mark_dead(*vid);
        }
        self.changed = later;
        self.hold_until = 0;
    }

    fn delta_len(&self) -> usize {
        self.delta.values().map(Block::len).sum()
    }

    fn wants_segment(&self) -> bool {
        if self.changed.len() < self.hold_until {
            return false;
        }
        let rows = self.segment.as_ref().map_or(0, |segment| segment.ids.len());
        self.delta_len() >= DELTA_MAX
            || self.changed.len() >= 2 * DELTA_MAX
            || (rows > 0 && self.dead as f32 > rows as f32 * DEAD_SHARE_MAX)
    }
}

/// Removes segment files that no manifest names: what a crash left between writing and publishing.
pub(crate) fn remove_orphans(kv: &dyn KvStore, folder: &Path) -> Result<(), KvError> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    let mut named = HashSet::new();
    let to = layout::prefix_end(layout::ctl::SEGMENT);
    kv.scan(Cf::Ctl, ScanRange::forward(layout::ctl::SEGMENT, &to), &mut |_, value| {
        if let Some(manifest) = Manifest::from_bytes(value) {
            named.insert(segment::path_of(folder, &manifest.file));
        }
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
        index.apply(seq, change.vid, change.vector.as_deref());
        if slot.loaded.load(Relaxed) && index.wants_segment() {
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
            let thread = std::thread::Builder::new().name("store-segments".into()).spawn(move || {
                super::quiet_math_threads();
                for build in receiver {
                    let Some(shared) = build.shared.upgrade() else { return };
                    shared.build_segment(build.key, &build.slot);
                    build.slot.building.store(false, Ordering::Release);
                }
            });
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

    /// Ends building and waits for the build that is running.
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
            let wants = slot.index.read().unwrap_or_else(PoisonError::into_inner).wants_segment();
            if wants {
                self.ask_for_segment(shared, key, &slot);
            }
        }
        drop(loading);
        Ok(slot)
    }
}

impl Shared {
    /// Answers a search of a shared space on the calling thread.
    pub fn search_space(self: &Arc<Self>, query: &SpaceQuery) -> Result<Vec<SpaceHit>, ReadError> {
        if query.embedding.is_empty() || query.embedding.iter().any(|x| !x.is_finite()) {
            return Err(ReadError::Invalid {
                why: "the query's embedding is empty or has a number that is not finite".into(),
            });
        }
        let limit = query.limit.min(SPACE_LIMIT_MAX);
        let Some(keys) = self.keys.find(&*self.kv, query.tenant)? else { return Ok(Vec::new()) };
        let space = space_key(&keys, &query.space);
        let slot = self.memory.spaces.slot(self, &keys, (query.tenant, space))?;
        let candidates = {
            let index = slot.index.read().unwrap_or_else(PoisonError::into_inner);
            let mut candidates: Vec<u64> = match index.delta.get(&query.embedding.len()) {
                Some(block) => {
                    block.nearest(&query.embedding, limit, |_| true).into_iter().map(|(vid, _)| vid).collect()
                }
                None => Vec::new(),
            };
            if let Some(segment) = index.segment.as_ref().filter(|segment| segment.index.dim() == query.embedding.len())
            {
                let found = segment.index.search(&query.embedding, limit * OVERSAMPLE, &index.alive);
                let found = found.map_err(|error| ReadError::Invalid { why: error.to_string() })?;
                candidates.extend(found.into_iter().filter_map(|(row, _)| segment.ids.get(row)));
            }
            candidates
        };
        self.rescore(query, &keys, space, candidates, limit)
    }

    /// Compares the candidates' stored vectors with the query and reads their texts.
    fn rescore(
        &self,
        query: &SpaceQuery,
        keys: &TenantKeys,
        space: SpaceKey,
        mut candidates: Vec<u64>,
        limit: usize,
    ) -> Result<Vec<SpaceHit>, ReadError> {
        candidates.sort_unstable();
        candidates.dedup();
        let rows: Vec<Vec<u8>> = candidates.iter().map(|vid| layout::space(query.tenant, space, *vid)).collect();
        let mut hits = Vec::with_capacity(candidates.len());
        for ((id, key), sealed) in candidates.iter().zip(&rows).zip(self.kv.multi_get(Cf::Space, &rows)?) {
            // Removed between the search and now.
            let Some(sealed) = sealed else { continue };
            let plain = keys.open(Cf::Space, key, sealed)?;
            let (vector, text) = read_space_row(&plain)?;
            if vector.len() == query.embedding.len() {
                let score = super::kernel::dot()(&query.embedding, &vector);
                hits.push(SpaceHit { id: *id, text: text.to_owned(), score });
            }
        }
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
        hits.truncate(limit);
        Ok(hits)
    }

    /// Segment and change log, or every row when there is no good segment.
    fn load_space(
        &self,
        folder: Option<&Path>,
        keys: &Arc<TenantKeys>,
        (tenant, space): Key,
        slot: &Slot,
    ) -> Result<(), ReadError> {
        let manifest = self.kv.get(Cf::Ctl, &layout::segment_manifest(tenant, space))?;
        let segment = match (manifest, folder) {
            (Some(bytes), Some(folder)) => Manifest::from_bytes(&bytes)
                .ok_or_else(|| "the manifest has the wrong length".to_owned())
                .and_then(|manifest| {
                    let segment = segment::read(folder, &manifest.file, keys).map_err(|error| error.to_string())?;
                    Ok((segment, manifest.applied_seq))
                })
                .inspect_err(|why| {
                    self.stats.segments_rejected.fetch_add(1, Relaxed);
                    tracing::error!(%why, "a vector segment is not usable; its space is searched exactly and the segment is built again");
                })
                .ok(),
            _ => None,
        };
        let Some((segment, applied_seq)) = segment else {
            return self.each_passage(keys, (tenant, space), |vid, vector| {
                let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
                if !index.changed.contains_key(&vid) {
                    // Number 0: any segment covers it.
                    index.apply(0, vid, Some(&vector));
                }
                Ok(())
            });
        };
        slot.index.write().unwrap_or_else(PoisonError::into_inner).install(segment, applied_seq);
        for (seq, vid) in self.logged(tenant, space, applied_seq)? {
            let key = layout::space(tenant, space, vid);
            let vector = match self.kv.get(Cf::Space, &key)? {
                Some(sealed) => Some(read_space_row(&keys.open(Cf::Space, &key, sealed)?)?.0),
                None => None,
            };
            let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
            if index.changed.get(&vid).is_none_or(|known| *known < seq) {
                index.apply(seq, vid, vector.as_deref());
            }
        }
        Ok(())
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

    /// Every passage of a space in ascending order of its number.
    fn each_passage(
        &self,
        keys: &TenantKeys,
        (tenant, space): Key,
        mut each: impl FnMut(u64, Vec<f16>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut from = layout::space_prefix(tenant, space);
        let to = layout::prefix_end(&from);
        loop {
            let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            self.kv.scan(Cf::Space, ScanRange::forward(&from, &to), &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                if rows.len() < SCAN_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let full = rows.len() == SCAN_ROWS;
            if let Some((last, _)) = rows.last() {
                from.clone_from(last);
                from.push(0);
            }
            for (key, sealed) in rows {
                let vid = layout::tail_u64(&key)
                    .ok_or_else(|| ReadError::Corrupt { cf: Cf::Space.name(), why: "a key is too short".into() })?;
                each(vid, read_space_row(&keys.open(Cf::Space, &key, sealed)?)?.0)?;
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// Builds, publishes and installs a segment. A failure is logged; searching stays exact.
    fn build_segment(self: &Arc<Self>, key: Key, slot: &Slot) {
        let Some(folder) = self.memory.spaces.folder.clone() else { return };
        match self.try_build_segment(&folder, key, slot) {
            Ok(true) => {
                self.stats.segments_sealed.fetch_add(1, Relaxed);
            }
            Ok(false) => slot.hold(),
            Err(error) => {
                slot.hold();
                tracing::error!(%error, "a vector segment could not be built; its space is searched exactly");
            }
        }
    }

    fn try_build_segment(&self, folder: &Path, key: Key, slot: &Slot) -> Result<bool, String> {
        let (tenant, space) = key;
        let text = |error: ReadError| error.to_string();
        let Some(keys) = self.keys.find(&*self.kv, tenant).map_err(text)? else { return Ok(false) };
        // Read before the scan: what commits during it is in the log after this number and is applied on top.
        let applied_seq = self.stats.seq.load(Ordering::Acquire);
        let Some(segment) = self.collect_segment(&keys, key)? else { return Ok(false) };
        let file = segment::new_file_id(&keys, &space, applied_seq);
        segment::write(folder, &file, &keys, &segment).map_err(|error| error.to_string())?;
        let row = layout::segment_manifest(tenant, space);
        let old = self.kv.get(Cf::Ctl, &row).map_err(|error| error.to_string())?;
        let manifest = Manifest { file, applied_seq };
        let log_from = layout::space_log(tenant, space, 0, 0);
        let log_to = layout::space_log(tenant, space, applied_seq.saturating_add(1), 0);
        let publish = [KvOp::Put(Cf::Ctl, row, manifest.to_bytes()), KvOp::DeleteRange(Cf::SpaceLog, log_from, log_to)];
        if let Err(error) = self.kv.apply(&publish, true) {
            let _ = std::fs::remove_file(segment::path_of(folder, &file));
            return Err(error.to_string());
        }
        slot.index.write().unwrap_or_else(PoisonError::into_inner).install(segment, applied_seq);
        if let Some(old) = old.as_deref().and_then(Manifest::from_bytes)
            && old.file != file
        {
            let _ = std::fs::remove_file(segment::path_of(folder, &old.file));
        }
        Ok(true)
    }

    /// Trains on the first rows and adds all rows.
    fn collect_segment(&self, keys: &TenantKeys, key: Key) -> Result<Option<Segment>, String> {
        let mut count: BTreeMap<usize, usize> = BTreeMap::new();
        self.each_passage(keys, key, |_, vector| {
            *count.entry(vector.len()).or_default() += 1;
            Ok(())
        })
        .map_err(|error| error.to_string())?;
        // Two embedding models side by side: until one has replaced the other, searching stays exact.
        if count.len() > 1 {
            return Ok(None);
        }
        let Some((dim, rows)) = count.into_iter().next() else { return Ok(None) };
        let kind = segment::kind_for(rows);
        let mut index = FaissIndex::new(kind, dim).map_err(|error| error.to_string())?;
        let mut build = Builder { index: &mut index, dim, pending: Vec::new(), trained: false, failure: None };
        let mut ids = Vec::with_capacity(rows);
        self.each_passage(keys, key, |vid, vector| {
            // A row of another length came in since the count; it is in the log and stays in the delta.
            if vector.len() == dim {
                ids.push(vid);
                build.push(&vector);
            }
            Ok(())
        })
        .map_err(|error| error.to_string())?;
        build.finish()?;
        index.tune_search(kind).map_err(|error| error.to_string())?;
        if index.len() != ids.len() {
            return Err("the index does not have one row for each passage".into());
        }
        Ok(Some(Segment { index, ids }))
    }
}

struct Builder<'a> {
    index: &'a mut FaissIndex,
    dim: usize,
    pending: Vec<f32>,
    trained: bool,
    failure: Option<String>,
}

impl Builder<'_> {
    fn push(&mut self, vector: &[f16]) {
        self.pending.extend(to_f32(vector));
        let rows = if self.trained { ADD_ROWS } else { TRAIN_ROWS };
        if self.pending.len() >= rows * self.dim {
            self.add_pending();
        }
    }

    fn add_pending(&mut self) {
        if self.failure.is_some() || self.pending.is_empty() {
            return;
        }
        let trained = if self.trained { Ok(()) } else { self.index.train(&self.pending) };
        self.trained = true;
        if let Err(error) = trained.and_then(|()| self.index.add(&self.pending)) {
            self.failure = Some(error.to_string());
        }
        self.pending.clear();
    }

    fn finish(mut self) -> Result<(), String> {
        self.add_pending();
        self.failure.map_or(Ok(()), Err)
    }
}
