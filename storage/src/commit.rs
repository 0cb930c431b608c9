//! The commit thread: everything that waits becomes one atomic write and one sync.
//!
//! Cost sketch: a sync costs 40 to 150 microseconds on the disks we know; a 32 KiB group costs
//! little more than a 512-byte one. So nothing waits for company: whatever arrived while the last
//! group was being synced is the next group, and throughput grows with load by itself. (Measured with 64
//! writers: waiting 10 or 30 microseconds for the next one makes groups of 43 or 53 instead of 38, and 85 to
//! 111 thousand appends a second instead of 107 to 112.)
//!
//! A failed group fails all its batches. The thread then tries at intervals to make the back end
//! writable again; until it succeeds, new batches fail at once with the reason, and reads go on.

use crate::backend::{Cf, KvOp};
use crate::batch::Batch;
use crate::crash;
use crate::error::{Busy, CommitError, KvError};
use crate::forget::forget;
use crate::layout::ctl;
use crate::memory::Derived;
use crate::prepare::{Prepared, prepare, prepare_with_new_keys};
use crate::priority::commit_thread;
use crate::reseal::Guarded;
use crate::seal::Owner;
use crate::store::Shared;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Batches that may wait. At the speed of a slow disk (1,000 syncs a second) this is a few groups.
pub const QUEUE_JOBS_MAX: usize = 8_192;
/// Bytes that may wait; bounds the memory of the queue when batches are large.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Batches of one group: bounds the time until the first of them is answered.
pub const GROUP_JOBS_MAX: usize = 1_024;
/// Bytes of one group.
pub const GROUP_BYTES_MAX: usize = 4 << 20;
/// Rows for which the thread keeps room between two groups: those of a full group of messages. One batch may hold many more.
const ROWS_KEPT_MAX: usize = 4 * GROUP_JOBS_MAX;
/// Pause between two attempts to write again after a failure.
const RECOVER_EVERY: Duration = Duration::from_millis(500);

/// Called once with the sequence number of the group, or with the reason of the failure.
pub type Done = Box<dyn FnOnce(Result<u64, CommitError>) + Send>;

enum Work {
    Ready(Prepared),
    /// A tenant of this batch has no key yet; making one is a write, so the commit thread does it.
    NeedsKeys(Batch),
    Refused(CommitError),
    /// Writes that hold only where nothing came between: rows under newer keys, messages on their way to the archive.
    Guarded(Vec<Guarded>),
    /// A user is forgotten between two groups.
    Forget(Owner),
}

struct Job {
    work: Work,
    bytes: usize,
    done: Done,
}

impl Job {
    /// Seals on the caller's core, so that the one commit thread does not become the bound.
    fn new(shared: &Shared, batch: Batch, done: Done) -> Self {
        let bytes = batch.bytes;
        let work = match prepare(shared, batch) {
            Ok(Ok(prepared)) => Work::Ready(prepared),
            Ok(Err(batch)) => Work::NeedsKeys(batch),
            Err(error) => Work::Refused(error),
        };
        Self::of(shared, work, bytes, done)
    }

    fn of(shared: &Shared, work: Work, bytes: usize, done: Done) -> Self {
        shared.stats.waiting_jobs.fetch_add(1, Relaxed);
        shared.stats.waiting_bytes.fetch_add(bytes, Relaxed);
        Self { work, bytes, done }
    }

    fn leave(&self, shared: &Shared) {
        shared.stats.waiting_jobs.fetch_sub(1, Relaxed);
        shared.stats.waiting_bytes.fetch_sub(self.bytes, Relaxed);
    }

    fn refuse(self, shared: &Shared, error: CommitError) {
        self.leave(shared);
        (self.done)(Err(error));
    }
}

pub(crate) struct Committer {
    sender: RwLock<Option<Sender<Job>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    pub fn start(shared: Arc<Shared>, seq: u64) -> std::io::Result<Self> {
        let (sender, receiver) = bounded(QUEUE_JOBS_MAX);
        let thread = std::thread::Builder::new().name("store-commit".into()).spawn(move || {
            commit_thread();
            CommitLoop { shared, seq, ops: Vec::new(), waiting: Vec::new(), failed: None }.run(&receiver);
        })?;
        Ok(Self { sender: RwLock::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    pub fn submit(&self, shared: &Shared, batch: Batch, done: Done) -> Result<(), Busy> {
        let waiting = shared.stats.waiting_bytes.load(Relaxed);
        // A single batch above the bound may still go through an empty queue.
        if waiting > 0 && waiting.saturating_add(batch.bytes) > QUEUE_BYTES_MAX {
            shared.stats.busy.fetch_add(1, Relaxed);
            return Err(Busy { waiting, bound: QUEUE_BYTES_MAX });
        }
        self.try_send(shared, Job::new(shared, batch, done))
    }

    /// Forgets a user after everything that waits now.
    pub fn forget(&self, shared: &Shared, owner: Owner, done: Done) -> Result<(), Busy> {
        self.try_send(shared, Job::of(shared, Work::Forget(owner), 0, done))
    }

    fn try_send(&self, shared: &Shared, job: Job) -> Result<(), Busy> {
        let sender = self.sender.read().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = sender.as_ref() else {
            job.refuse(shared, CommitError::Closed);
            return Ok(());
        };
        match sender.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(job)) => {
                job.leave(shared);
                shared.stats.busy.fetch_add(1, Relaxed);
                Err(Busy { waiting: QUEUE_JOBS_MAX, bound: QUEUE_JOBS_MAX })
            }
            Err(TrySendError::Disconnected(job)) => {
                job.refuse(shared, CommitError::Closed);
                Ok(())
            }
        }
    }

    /// The blocking form waits for room instead of refusing: its caller has nothing else to do.
    pub fn commit(&self, shared: &Shared, batch: Batch) -> Result<u64, CommitError> {
        self.wait(shared, |done| Job::new(shared, batch, done))
    }

    /// Writes what still holds and waits: a sweep takes the place of one waiting batch at most.
    pub fn guarded(&self, shared: &Shared, rows: Vec<Guarded>) -> Result<u64, CommitError> {
        let bytes = rows.iter().map(Guarded::bytes).sum();
        self.wait(shared, |done| Job::of(shared, Work::Guarded(rows), bytes, done))
    }

    fn wait(&self, shared: &Shared, job: impl FnOnce(Done) -> Job) -> Result<u64, CommitError> {
        let (reply, receiver) = bounded(1);
        let Some(sender) = self.sender.read().unwrap_or_else(PoisonError::into_inner).clone() else {
            return Err(CommitError::Closed);
        };
        let job = job(Box::new(move |result| drop(reply.try_send(result))));
        if let Err(unsent) = sender.send(job) {
            unsent.into_inner().leave(shared);
            return Err(CommitError::Closed);
        }
        drop(sender);
        receiver.recv().unwrap_or(Err(CommitError::Closed))
    }

    /// Finishes what was taken and joins the thread. True for the call that did it.
    pub fn close(&self) -> bool {
        drop(self.sender.write().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread {
            // The last handle may be dropped inside a completion, which runs on that thread.
            Some(thread) if thread.thread().id() != std::thread::current().id() => thread.join().is_ok(),
            Some(_) => true,
            None => false,
        }
    }
}

struct CommitLoop {
    shared: Arc<Shared>,
    seq: u64,
    /// Rows of a group and who waits for it, empty between two groups: their memory is used again.
    ops: Vec<KvOp>,
    waiting: Vec<Done>,
    failed: Option<(KvError, Instant)>,
}

impl CommitLoop {
    fn run(mut self, jobs: &Receiver<Job>) {
        loop {
            let first = if self.failed.is_some() {
                match jobs.recv_timeout(RECOVER_EVERY) {
                    Ok(job) => Some(job),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                match jobs.recv() {
                    Ok(job) => Some(job),
                    Err(_) => return,
                }
            };
            self.try_recover();
            if let Some(first) = first {
                self.group(first, jobs);
            }
        }
    }

    fn group(&mut self, first: Job, jobs: &Receiver<Job>) {
        let (mut ops, mut waiting) = (std::mem::take(&mut self.ops), std::mem::take(&mut self.waiting));
        let mut derived = Vec::new();
        let mut guarded = Vec::new();
        let mut forget = None;
        let (mut bytes, mut count) = (0, 0);
        let seq = self.seq + 1;
        let mut next = Some(first);
        while let Some(job) = next.take() {
            job.leave(&self.shared);
            bytes += job.bytes;
            count += 1;
            match job.work {
                // Ends the group: what came before is written first, what comes later is sealed anew.
                Work::Forget(owner) => {
                    forget = Some((owner, job.done));
                    break;
                }
                Work::Guarded(rows) => {
                    guarded.extend(rows);
                    waiting.push(job.done);
                }
                work => match self.ready(work) {
                    Ok(prepared) => {
                        prepared.add_to(seq, &mut ops, &mut derived);
                        waiting.push(job.done);
                    }
                    Err(error) => finish(job.done, Err(error)),
                },
            }
            if count < GROUP_JOBS_MAX && bytes < GROUP_BYTES_MAX {
                next = jobs.try_recv().ok();
            }
        }
        if !waiting.is_empty() {
            let kv = &*self.shared.kv;
            let mut unchanged = Vec::new();
            for row in guarded {
                let reseals = row.reseals;
                let Some(writes) = row.into_ops_if_unchanged(kv, &ops) else { continue };
                self.shared.stats.rows_resealed.fetch_add(u64::from(reseals), Relaxed);
                unchanged.extend(writes);
            }
            ops.extend(unchanged);
            self.write(seq, &mut ops, derived, &mut waiting);
        }
        ops.clear();
        ops.shrink_to(ROWS_KEPT_MAX);
        (self.ops, self.waiting) = (ops, waiting);
        if let Some((owner, done)) = forget {
            self.forget(owner, done);
        }
    }

    fn forget(&mut self, owner: Owner, done: Done) {
        let seq = self.seq + 1;
        let result = match &self.failed {
            Some((error, _)) => Err(error.clone().into()),
            None => forget(&self.shared, seq, owner),
        };
        match result {
            Ok(()) => {
                self.seq = seq;
                self.shared.stats.seq.store(seq, Relaxed);
                self.shared.stats.users_forgotten.fetch_add(1, Relaxed);
                finish(done, Ok(seq));
            }
            Err(error) => {
                if let (CommitError::NoSpace { detail }, None) = (&error, &self.failed) {
                    self.note_failure(KvError::NoSpace(detail.clone()));
                }
                // Its batch may have become durable before the failure: that number must not be given twice.
                if let Err(error) = self.reread_seq() {
                    tracing::warn!(%error, "the sequence number could not be read again");
                }
                finish(done, Err(error));
            }
        }
    }

    fn ready(&mut self, work: Work) -> Result<Prepared, CommitError> {
        match work {
            Work::Ready(prepared) if prepared.outlived_its_keys(&self.shared.keys) => Err(CommitError::Forgotten),
            Work::Ready(prepared) => Ok(prepared),
            Work::Refused(error) => Err(error),
            Work::Guarded(_) | Work::Forget(_) => unreachable!("the group handles them itself"),
            Work::NeedsKeys(batch) => {
                if let Some((error, _)) = &self.failed {
                    return Err(error.clone().into());
                }
                prepare_with_new_keys(&self.shared, batch).inspect_err(|error| {
                    if let CommitError::NoSpace { detail } = error {
                        self.note_failure(KvError::NoSpace(detail.clone()));
                    }
                })
            }
        }
    }

    fn write(&mut self, seq: u64, ops: &mut Vec<KvOp>, derived: Vec<Derived>, waiting: &mut Vec<Done>) {
        let stats = &self.shared.stats;
        ops.push(KvOp::Put(Cf::Ctl, ctl::SEQ.to_vec(), seq.to_be_bytes().to_vec()));
        let started = Instant::now();
        let result = match &self.failed {
            Some((error, _)) => Err(error.clone()),
            None => {
                crash::point("commit.before_write");
                let applied = self.shared.kv.apply(ops, true);
                crash::point("commit.after_write");
                applied
            }
        };
        match result {
            Ok(()) => {
                let took = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
                stats.commit_ns.fetch_add(took, Relaxed);
                stats.commit_ns_max.fetch_max(took, Relaxed);
                stats.groups.fetch_add(1, Relaxed);
                stats.batches.fetch_add(waiting.len() as u64, Relaxed);
                stats.rows.fetch_add(ops.len() as u64, Relaxed);
                stats.row_bytes.fetch_add(ops.iter().map(KvOp::bytes).sum::<usize>() as u64, Relaxed);
                stats.seq.store(seq, Relaxed);
                self.seq = seq;
                // Before `done`: whoever was answered finds what was written.
                self.shared.memory.applied(&self.shared, seq, derived);
                for done in waiting.drain(..) {
                    finish(done, Ok(seq));
                }
            }
            Err(error) => {
                let counter =
                    if matches!(error, KvError::NoSpace(_)) { &stats.failed_no_space } else { &stats.failed_io };
                counter.fetch_add(waiting.len() as u64, Relaxed);
                if self.failed.is_none() {
                    self.note_failure(error.clone());
                }
                for done in waiting.drain(..) {
                    finish(done, Err(error.clone().into()));
                }
            }
        }
    }

    fn note_failure(&mut self, error: KvError) {
        tracing::error!(%error, "the store cannot write; reading goes on, writing is tried again twice a second");
        self.shared.stats.not_writable.store(true, Relaxed);
        self.failed = Some((error, Instant::now()));
    }

    fn try_recover(&mut self) {
        let Some((_, since)) = &self.failed else { return };
        if since.elapsed() < RECOVER_EVERY {
            return;
        }
        match self.shared.kv.recover().and_then(|()| self.reread_seq()) {
            Ok(()) => {
                tracing::info!("the store writes again");
                self.shared.stats.recoveries.fetch_add(1, Relaxed);
                self.shared.stats.not_writable.store(false, Relaxed);
                self.failed = None;
            }
            Err(error) => self.failed = Some((error, Instant::now())),
        }
    }

    /// The group that failed may have reached the log after all; its number must not be given twice.
    fn reread_seq(&mut self) -> Result<(), KvError> {
        let row = self.shared.kv.get(Cf::Ctl, ctl::SEQ)?;
        let stored = row.and_then(|bytes| bytes.as_slice().try_into().ok()).map_or(0, u64::from_be_bytes);
        self.seq = self.seq.max(stored);
        Ok(())
    }
}

/// A completion that panics must not take the commit thread with it.
fn finish(done: Done, result: Result<u64, CommitError>) {
    if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
        tracing::error!("a completion of a commit panicked");
    }
}
