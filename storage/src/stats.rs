//! Plain counters; the shell exports them.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub batches: AtomicU64,
    pub groups: AtomicU64,
    pub rows: AtomicU64,
    pub row_bytes: AtomicU64,
    pub commit_ns: AtomicU64,
    pub commit_ns_max: AtomicU64,
    pub busy: AtomicU64,
    pub failed_no_space: AtomicU64,
    pub failed_io: AtomicU64,
    pub recoveries: AtomicU64,
    pub not_writable: AtomicBool,
    pub seq: AtomicU64,
    pub waiting_jobs: AtomicUsize,
    pub waiting_bytes: AtomicUsize,
    pub recalls: AtomicU64,
    pub recall_ns: AtomicU64,
    pub recall_ns_max: AtomicU64,
    pub recall_busy: AtomicU64,
    pub recall_failed: AtomicU64,
    pub space_searches: AtomicU64,
    pub hot_users: AtomicUsize,
    pub hot_bytes: AtomicUsize,
    pub segments_sealed: AtomicU64,
    pub segments_rejected: AtomicU64,
    pub users_forgotten: AtomicU64,
    pub rows_resealed: AtomicU64,
    pub rotations_running: AtomicUsize,
}

/// The counters at one moment. Totals count from the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatsSnapshot {
    /// Batches made durable.
    pub batches: u64,
    /// Groups written, each with one sync.
    pub groups: u64,
    /// Rows written.
    pub rows: u64,
    /// Bytes of keys and values written.
    pub row_bytes: u64,
    /// Time spent in group writes, in nanoseconds.
    pub commit_ns: u64,
    /// The longest group write, in nanoseconds.
    pub commit_ns_max: u64,
    /// Batches refused because the queue was full.
    pub busy: u64,
    /// Batches that failed because the volume was full.
    pub failed_no_space: u64,
    /// Batches that failed by a device error.
    pub failed_io: u64,
    /// How often writing worked again after a failure.
    pub recoveries: u64,
    /// False while the volume is full or failing.
    pub writable: bool,
    /// Sequence number of the last durable group.
    pub seq: u64,
    /// Batches waiting now.
    pub waiting_jobs: usize,
    /// Their bytes.
    pub waiting_bytes: usize,
    /// Recalls answered.
    pub recalls: u64,
    /// Time spent in recalls, in nanoseconds.
    pub recall_ns: u64,
    /// The longest recall, in nanoseconds.
    pub recall_ns_max: u64,
    /// Recalls refused because the queue was full.
    pub recall_busy: u64,
    /// Recalls that ended in an error.
    pub recall_failed: u64,
    /// Searches of shared spaces.
    pub space_searches: u64,
    /// Users whose vectors are in memory.
    pub hot_users: usize,
    /// Bytes of those vectors.
    pub hot_bytes: usize,
    /// Sealed vector segments published.
    pub segments_sealed: u64,
    /// Sealed vector segments that were damaged or missing and were rebuilt.
    pub segments_rejected: u64,
    /// Users who were forgotten.
    pub users_forgotten: u64,
    /// Rows that were brought to newer keys.
    pub rows_resealed: u64,
    /// Tenants whose rows are being brought to newer keys now.
    pub rotations_running: usize,
    /// Bytes that the database engine holds in memory.
    pub engine_bytes: usize,
}

impl Stats {
    pub fn snapshot(&self, engine_bytes: usize) -> StatsSnapshot {
        StatsSnapshot {
            batches: self.batches.load(Relaxed),
            groups: self.groups.load(Relaxed),
            rows: self.rows.load(Relaxed),
            row_bytes: self.row_bytes.load(Relaxed),
            commit_ns: self.commit_ns.load(Relaxed),
            commit_ns_max: self.commit_ns_max.load(Relaxed),
            busy: self.busy.load(Relaxed),
            failed_no_space: self.failed_no_space.load(Relaxed),
            failed_io: self.failed_io.load(Relaxed),
            recoveries: self.recoveries.load(Relaxed),
            writable: !self.not_writable.load(Relaxed),
            seq: self.seq.load(Relaxed),
            waiting_jobs: self.waiting_jobs.load(Relaxed),
            waiting_bytes: self.waiting_bytes.load(Relaxed),
            recalls: self.recalls.load(Relaxed),
            recall_ns: self.recall_ns.load(Relaxed),
            recall_ns_max: self.recall_ns_max.load(Relaxed),
            recall_busy: self.recall_busy.load(Relaxed),
            recall_failed: self.recall_failed.load(Relaxed),
            space_searches: self.space_searches.load(Relaxed),
            hot_users: self.hot_users.load(Relaxed),
            hot_bytes: self.hot_bytes.load(Relaxed),
            segments_sealed: self.segments_sealed.load(Relaxed),
            segments_rejected: self.segments_rejected.load(Relaxed),
            users_forgotten: self.users_forgotten.load(Relaxed),
            rows_resealed: self.rows_resealed.load(Relaxed),
            rotations_running: self.rotations_running.load(Relaxed),
            engine_bytes,
        }
    }
}
