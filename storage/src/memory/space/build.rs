//! Building segments in the background: sealing what changed, merging what is of like size, clearing
//! out what is dead.
//!
//! One thread works through what the spaces ask for. It reads the rows of the truth, never the other
//! segments, so a merge carries no damage on. While questions or writes come in it works half of the
//! time only, in steps of a few milliseconds.

use super::facts::FactsBuilder;
use super::index::Plan;
use super::owned::owner_of;
use super::row::{Passage, read_space_row};
use super::segment::{self, Index, Segment};
use super::{Build, Key, Manifest, READ_ROWS, Slot};
use crate::backend::{Cf, KvOp};
use crate::error::ReadError;
use crate::layout;
use crate::memory::faiss::{FaissIndex, Kind};
use crate::memory::nsw::{self, CodedRows};
use crate::memory::vector::to_f32;
use crate::seal::TenantKeys;
use crate::store::Shared;
use crossbeam::channel::Receiver;
use half::f16;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{Ordering, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Rows from which a segment is of our own structure and not of FAISS's flat rows.
const GRAPH_FROM_ROWS: usize = 4_096;
/// Rows from which a segment is an inverted file: a graph of more takes minutes to build.
const LISTS_FROM_ROWS: usize = 4_000_000;
/// Rows for each list that teach an inverted file its lists.
const TRAIN_ROWS_PER_LIST: usize = 40;
/// Rows added to a FAISS index at a time: bounds the memory of a build beyond the segment itself.
const ADD_ROWS: usize = 4_096;
/// Work between two looks at what else is going on.
const STEP: Duration = Duration::from_millis(4);
/// Share of the time that building takes while the store is asked and written.
const BUSY_SHARE: f64 = 0.5;

/// Why a build gave no segment.
enum Ended {
    /// Nothing to build for now: two lengths of vectors side by side, or nothing there.
    NotNow,
    /// The store closes.
    Closing,
    Failed(String),
}

impl From<ReadError> for Ended {
    fn from(error: ReadError) -> Self {
        Self::Failed(error.to_string())
    }
}

fn failed(error: impl std::fmt::Display) -> Ended {
    Ended::Failed(error.to_string())
}

/// The thread that builds.
pub(super) fn run(builds: Receiver<Build>) {
    crate::memory::quiet_math_threads();
    for Build { shared, key, slot } in builds {
        let Some(shared) = shared.upgrade() else { return };
        while let Some(plan) = slot.plan() {
            if !shared.build_segment(key, &slot, &plan) {
                break;
            }
        }
        slot.building.store(false, Ordering::Release);
    }
}

/// Keeps building from taking the processor from those who wait for an answer.
struct Pace<'a> {
    shared: &'a Shared,
    since: Instant,
    seen: u64,
}

impl<'a> Pace<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, since: Instant::now(), seen: Self::foreground(shared) }
    }

    fn foreground(shared: &Shared) -> u64 {
        let stats = &shared.stats;
        stats.recalls.load(Relaxed) + stats.space_searches.load(Relaxed) + stats.batches.load(Relaxed)
    }

    /// False when the work shall end.
    fn go_on(&mut self) -> bool {
        let worked = self.since.elapsed();
        if worked >= STEP {
            let now = Self::foreground(self.shared);
            if now != self.seen {
                std::thread::sleep(worked.min(STEP * 4).mul_f64((1.0 - BUSY_SHARE) / BUSY_SHARE));
                self.seen = now;
            }
            self.since = Instant::now();
        }
        !self.shared.memory.spaces.closed.load(Relaxed)
    }
}

impl Shared {
    /// Builds, publishes and installs a segment. A failure is logged; searching stays as it is. True when there may be more
    /// to do.
    fn build_segment(&self, key: Key, slot: &Slot, plan: &Plan) -> bool {
        let Some(folder) = self.memory.spaces.folder.clone() else { return false };
        match self.try_build_segment(&folder, key, slot, plan) {
            Ok(()) => {
                self.stats.segments_sealed.fetch_add(1, Relaxed);
                return true;
            }
            Err(Ended::Closing) => {}
            Err(Ended::NotNow) => slot.hold(),
            Err(Ended::Failed(why)) => {
                slot.hold();
                tracing::error!(%why, "a vector segment could not be built; what it would hold is searched exactly");
            }
        }
        false
    }

    fn try_build_segment(&self, folder: &Path, key: Key, slot: &Slot, plan: &Plan) -> Result<(), Ended> {
        let (tenant, space) = key;
        let Some(keys) = self.keys.find(&*self.kv, tenant)? else { return Err(Ended::NotNow) };
        let mut pace = Pace::new(self);
        // Read before the rows are: what commits meanwhile is in the log after this number and is applied on top.
        let now_seq = self.stats.seq.load(Ordering::Acquire);
        let parts = {
            let index = slot.index.read().unwrap_or_else(PoisonError::into_inner);
            index.parts.iter().map(|part| part.applied_seq).collect::<Vec<_>>()
        };
        let last_seq = parts.last().copied().unwrap_or(0);
        let (run, applied_seq) = match plan {
            Plan::Everything | Plan::Changes => (parts.len()..parts.len(), now_seq),
            Plan::Merge(run) => (run.clone(), parts[run.end - 1]),
        };
        let (vids, mut gone) = match plan {
            Plan::Everything => (None, BTreeSet::new()),
            Plan::Changes => {
                let logged = self.logged(tenant, space, last_seq)?;
                let changed: BTreeSet<u64> =
                    logged.into_iter().filter(|(seq, _)| *seq <= now_seq).map(|(_, vid)| vid).collect();
                (Some(changed.iter().copied().collect()), changed)
            }
            Plan::Merge(run) => {
                let (vids, gone) = slot.index.read().unwrap_or_else(PoisonError::into_inner).merged(run);
                (Some(vids), gone)
            }
        };
        let expected = match &vids {
            Some(vids) => vids.len(),
            None => slot.index.read().unwrap_or_else(PoisonError::into_inner).delta_len(),
        };
        let mut gathered = Gathered { expected, ..Gathered::default() };
        let mut take = |vid: u64, plain: &[u8]| -> Result<(), Ended> {
            gone.remove(&vid);
            gathered.push(vid, read_space_row(plain)?)?;
            if pace.go_on() { Ok(()) } else { Err(Ended::Closing) }
        };
        match vids {
            None => self.each_passage(key, false, &mut take)?,
            Some(vids) => self.these_passages(&keys, key, &vids, &mut take)?,
        }
        // Without an older segment there is nothing that would have to be told of a removal.
        let removed = if run.start == 0 { Vec::new() } else { gone.into_iter().collect() };
        let segment = gathered.build(removed, &mut pace)?;
        self.publish(folder, &keys, key, slot, (run, segment, applied_seq))
    }

    /// Writes the file, then names it in the manifest in one batch with what the manifest makes unnecessary.
    fn publish(
        &self,
        folder: &Path,
        keys: &Arc<TenantKeys>,
        (tenant, space): Key,
        slot: &Slot,
        (run, segment, applied_seq): (Range<usize>, Segment, u64),
    ) -> Result<(), Ended> {
        let file = segment::new_file_id().map_err(failed)?;
        segment::write(folder, &file, keys, &segment).map_err(failed)?;
        let row = layout::segment_manifest(tenant, space);
        let stored = self.kv.get(Cf::Ctl, &row).map_err(failed)?.unwrap_or_default();
        let mut manifest = Manifest::from_bytes(&stored).unwrap_or_default();
        // Nothing installed although files are named: they were not usable, and this one replaces them all.
        let unusable = slot.index.read().unwrap_or_else(PoisonError::into_inner).parts.is_empty();
        let over = if unusable { 0..manifest.0.len() } else { run.clone() };
        let replaced: Vec<_> = manifest.0.splice(over, [(file, applied_seq)]).collect();
        let newest = manifest.0.last().map_or(0, |(_, seq)| *seq);
        let log_from = layout::space_log(tenant, space, 0, 0);
        let log_to = layout::space_log(tenant, space, newest.saturating_add(1), 0);
        let publish = [KvOp::Put(Cf::Ctl, row, manifest.to_bytes()), KvOp::DeleteRange(Cf::SpaceLog, log_from, log_to)];
        if let Err(error) = self.kv.apply(&publish, true) {
            let _ = std::fs::remove_file(segment::path_of(folder, &file));
            return Err(failed(error));
        }
        slot.index.write().unwrap_or_else(PoisonError::into_inner).install(run, segment, applied_seq);
        for (old, _) in replaced {
            let _ = std::fs::remove_file(segment::path_of(folder, &old));
        }
        Ok(())
    }
}

/// Rows on their way into a segment.
#[derive(Default)]
struct Gathered {
    /// About how many rows will come: decides what is made of them.
    expected: usize,
    ids: Vec<u64>,
    facts: FactsBuilder,
    dim: usize,
    /// For a graph.
    coded: Option<CodedRows>,
    /// For FAISS.
    plain: Vec<f16>,
}

impl Gathered {
    fn push(&mut self, vid: u64, passage: Passage<'_>) -> Result<(), Ended> {
        let indexed = passage.indexed;
        if self.ids.is_empty() {
            self.dim = indexed.vector.len();
            if (GRAPH_FROM_ROWS..LISTS_FROM_ROWS).contains(&self.expected) {
                let mut coded = CodedRows::new(self.dim);
                coded.reserve(self.expected);
                self.coded = Some(coded);
            }
        }
        // Two embedding models side by side: until one has replaced the other, searching stays exact.
        if indexed.vector.len() != self.dim {
            return Err(Ended::NotNow);
        }
        self.ids.push(vid);
        self.facts.push(indexed.at_ms, indexed.group);
        match &mut self.coded {
            Some(coded) => coded.push(&to_f32(&indexed.vector)),
            None => self.plain.extend(indexed.vector),
        }
        Ok(())
    }

    fn build(self, removed: Vec<u64>, pace: &mut Pace<'_>) -> Result<Segment, Ended> {
        let Self { mut ids, facts, dim, coded, plain, .. } = self;
        ids.shrink_to_fit();
        let index = match (coded, ids.len()) {
            (Some(coded), _) => Index::Graph(nsw::build(coded, &mut || pace.go_on()).ok_or(Ended::Closing)?),
            (None, 0) => Index::Empty,
            (None, rows) if rows < LISTS_FROM_ROWS => Index::Flat(faiss_index(Kind::Sq8, dim, &plain, rows, pace)?),
            (None, rows) => {
                let lists = rows.isqrt();
                let taught_by = lists * TRAIN_ROWS_PER_LIST;
                Index::Lists(faiss_index(Kind::IvfSq8(lists), dim, &plain, taught_by, pace)?, lists)
            }
        };
        Ok(Segment { index, ids, facts: facts.finish(), removed })
    }
}

/// A FAISS index over the rows, taught by rows that are spread over all.
fn faiss_index(
    kind: Kind,
    dim: usize,
    rows: &[f16],
    taught_by: usize,
    pace: &mut Pace<'_>,
) -> Result<FaissIndex, Ended> {
    let mut index = FaissIndex::new(kind, dim).map_err(failed)?;
    let every = (rows.len() / dim).div_ceil(taught_by);
    let sample: Vec<f32> = rows.chunks_exact(dim).step_by(every).flat_map(to_f32).collect();
    index.train(&sample).map_err(failed)?;
    drop(sample);
    for some in rows.chunks(ADD_ROWS * dim) {
        index.add(&to_f32(some)).map_err(failed)?;
        if !pace.go_on() {
            return Err(Ended::Closing);
        }
    }
    index.tune_search(kind).map_err(failed)?;
    Ok(index)
}

impl Shared {
    /// Given passages in ascending order, as far as they are there.
    fn these_passages(
        &self,
        keys: &TenantKeys,
        (tenant, space): Key,
        vids: &[u64],
        each: &mut impl FnMut(u64, &[u8]) -> Result<(), Ended>,
    ) -> Result<(), Ended> {
        for some in vids.chunks(READ_ROWS) {
            let rows: Vec<Vec<u8>> = some.iter().map(|vid| layout::space(tenant, space, *vid)).collect();
            let values = self.kv.multi_get(Cf::Space, &rows).map_err(failed)?;
            for ((vid, row), sealed) in some.iter().zip(&rows).zip(values) {
                // A passage that belongs to a user now is gone, as far as segments are concerned.
                if let Some(sealed) = sealed.filter(|sealed| owner_of(sealed).is_none()) {
                    each(*vid, &keys.open(Cf::Space, row, sealed)?)?;
                }
            }
        }
        Ok(())
    }
}
