//! Backups and archives of the running node: on a schedule and on demand, and the copies of user keys in every place.
//!
//! Three threads. One makes backups and moves old messages, one after the other, under the IO budget. One reads archived
//! messages for those who ask for them (`reading`). The third overwrites the copies of the
//! user keys after somebody was forgotten, whether or not a backup is under way, until each place has taken them. When
//! the last backup was made stands in the store, so a restart does not begin the schedule anew.

pub mod place;
pub mod reading;
mod s3;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use millrace_storage::{ArchiveDone, ArchiveError, ArchiveRule, BackupDone, Batch, Budget, KeysDue, Store, Target};
use serde::{Deserialize, Serialize};

use crate::clock::unix_ms;
use crate::config::BackupOptions;
use crate::control::Control;
use place::Place;

/// Backups that may wait behind a running one.
const QUEUE_MAX: usize = 4;
/// Outcomes that are remembered for whoever asked for them.
const OUTCOMES_KEPT: usize = 16;
/// The first backup of a node comes this long after its start: starting has the disk first.
const FIRST_AFTER: Duration = Duration::from_secs(60);
/// Pause after a backup that failed, at most; a shorter schedule keeps its own.
const RETRY_AFTER: Duration = Duration::from_secs(600);
/// Pause between two tries to overwrite copies of user keys.
const KEYS_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Name of the durable note of the last backup.
const LAST: &str = "backup/last";
/// Pause between two looks for messages that may leave the store.
const ARCHIVE_EVERY: Duration = Duration::from_secs(24 * 3_600);
/// Name of the durable note of when that was last done, in Unix milliseconds.
const ARCHIVED_AT: &str = "archive/last";

/// A backup that was made: the durable note of the last one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Its name.
    pub id: String,
    /// Where it is.
    pub place: String,
    /// When it was finished, in Unix milliseconds.
    pub at_ms: u64,
    /// How long it took.
    pub took_ms: u64,
    /// Bytes of the files in it.
    pub bytes: u64,
    /// Bytes that were sent for it.
    pub bytes_sent: u64,
    /// Older backups that were removed.
    pub removed: usize,
}

/// How one run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The number that [`Backups::submit`] gave.
    pub run: u64,
    /// What was done, or what, why and what next.
    pub result: Result<Ended, String>,
}

/// What a run did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It made a backup.
    Backup(Made),
    /// It moved old messages.
    Archive(ArchiveDone),
}

/// What is going on.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The place that a backup is being sent to, since when (Unix milliseconds), and bytes read and written for it.
    pub running: Option<(String, u64, u64)>,
    /// The last backup that was made, also by an earlier process.
    pub last: Option<Made>,
    /// When the next one is due, in Unix milliseconds, if there is a schedule.
    pub next_ms: Option<u64>,
    /// Ended runs of this process, the newest last.
    pub outcomes: Vec<Outcome>,
    /// Forgotten users whose keys may still be in copies in some place.
    pub keys_waiting: usize,
    /// Why the last try to overwrite copies failed.
    pub keys_error: Option<String>,
    /// Backups made by this process.
    pub made: u64,
    /// Backups that failed.
    pub failed: u64,
    /// Bytes that were sent for them.
    pub bytes_sent: u64,
    /// Messages that this process moved out of the store.
    pub messages_archived: u64,
}

/// Why a backup is not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Others wait already.
    #[error("{QUEUE_MAX} backups are waiting already")]
    Full,
    /// Nothing says which messages are old.
    #[error("archive.idle_days is 0, so no message is old")]
    NoRule,
    /// No place was named, here or in the configuration.
    #[error("no place is named, and backup.target is not set")]
    NoPlace,
    /// The node is stopping.
    #[error("the node is stopping")]
    Closed,
}

struct Job {
    run: u64,
    place: Place,
    act: Act,
}

#[derive(Clone, Copy)]
enum Act {
    Backup { keep: usize },
    Archive(ArchiveRule),
}

#[derive(Default)]
struct State {
    running: Option<(String, u64, Arc<Budget>)>,
    last: Option<Made>,
    outcomes: VecDeque<Outcome>,
    due: Vec<KeysDue>,
    keys_error: Option<String>,
    /// When a failed schedule is tried again.
    retry_at: Option<Instant>,
    /// When old messages were last moved, in Unix milliseconds.
    archived_ms: u64,
}

struct Inner {
    store: Store,
    control: Control,
    options: BackupOptions,
    started: Instant,
    stopped: Arc<AtomicBool>,
    state: Mutex<State>,
    runs: AtomicU64,
    made: AtomicU64,
    failed: AtomicU64,
    bytes_sent: AtomicU64,
    messages_archived: AtomicU64,
}

/// The service. Its threads end with [`Backups::shutdown`].
pub struct Backups {
    inner: Arc<Inner>,
    jobs: Mutex<Option<Sender<Job>>>,
    keys: Mutex<Option<Sender<()>>>,
    reading: reading::Reading,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Backups {
    /// Starts the threads. What an earlier process left undone is taken up.
    pub fn start(store: Store, control: Control, options: BackupOptions) -> std::io::Result<Self> {
        let state = State { last: last(&store), archived_ms: archived_at(&store), ..State::default() };
        let stopped = Arc::new(AtomicBool::new(false));
        let reading = reading::Reading::start(store.clone(), control.clone(), Arc::clone(&stopped))?;
        let inner = Arc::new(Inner {
            store,
            control,
            options,
            started: Instant::now(),
            stopped,
            state: Mutex::new(state),
            runs: AtomicU64::new(0),
            made: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            messages_archived: AtomicU64::new(0),
        });
        let (jobs, waiting) = bounded(QUEUE_MAX);
        // One bell is enough: whoever wakes looks at everything that is due.
        let (keys, bell) = bounded(1);
        let mut threads = Vec::new();
        let maker = Arc::clone(&inner);
        threads.push(std::thread::Builder::new().name("backup".into()).spawn(move || maker.run(&waiting))?);
        let renewer = Arc::clone(&inner);
        threads.push(std::thread::Builder::new().name("backup-keys".into()).spawn(move || renewer.renew_keys(&bell))?);
        Ok(Self {
            inner,
            jobs: Mutex::new(Some(jobs)),
            keys: Mutex::new(Some(keys)),
            reading,
            threads: Mutex::new(threads),
        })
    }

    /// Queues a backup and says its number. `None` takes what the configuration says.
    pub fn submit(&self, place: Option<Place>, keep: Option<usize>) -> Result<u64, Refused> {
        let keep = keep.unwrap_or(self.inner.options.keep);
        self.queue(place, Act::Backup { keep })
    }

    /// Queues a move of old messages, as the configuration says, and says its number.
    pub fn submit_archive(&self) -> Result<u64, Refused> {
        let rule = self.inner.rule().ok_or(Refused::NoRule)?;
        self.queue(None, Act::Archive(rule))
    }

    /// Reads archived messages.
    pub fn reading(&self) -> &reading::Reading {
        &self.reading
    }

    fn queue(&self, place: Option<Place>, act: Act) -> Result<u64, Refused> {
        let place = place.or_else(|| self.inner.options.target.clone()).ok_or(Refused::NoPlace)?;
        let run = self.inner.runs.fetch_add(1, Relaxed) + 1;
        let job = Job { run, place, act };
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        match jobs.as_ref().ok_or(Refused::Closed)?.try_send(job) {
            Ok(()) => Ok(run),
            Err(TrySendError::Full(_)) => Err(Refused::Full),
            Err(TrySendError::Disconnected(_)) => Err(Refused::Closed),
        }
    }

    /// A note in `batch`, to be made durable before a user is forgotten, and how many places hold copies of keys. The
    /// note is made where there are none as well: the first backup may begin at this moment.
    pub fn forgetting(&self, batch: &mut Batch) -> Result<(KeysDue, usize), ArchiveError> {
        let places = self.inner.store.backup_places()?.len();
        let mut salt = [0; 16];
        getrandom::fill(&mut salt).map_err(|error| ArchiveError::Io {
            act: "get random bytes for",
            path: "a note".into(),
            source: std::io::Error::other(error.to_string()),
        })?;
        Ok((Store::backup_keys_due(batch, salt), places))
    }

    /// The user of this note is forgotten, or it failed: the copies are overwritten with what is there now.
    pub fn forgotten(&self, note: KeysDue) {
        self.inner.state().due.push(note);
        if let Some(keys) = self.keys.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            // A bell that is ringing already will do.
            let _ = keys.try_send(());
        }
    }

    /// What is going on.
    pub fn status(&self) -> Status {
        let inner = &self.inner;
        let next_ms = inner.until_due().map(|wait| unix_ms() + wait.as_millis() as u64);
        let state = inner.state();
        let running = state.running.as_ref();
        Status {
            running: running.map(|(place, since, budget)| (place.clone(), *since, budget.spent())),
            last: state.last.clone(),
            next_ms,
            outcomes: state.outcomes.iter().cloned().collect(),
            keys_waiting: state.due.len(),
            keys_error: state.keys_error.clone(),
            made: inner.made.load(Relaxed),
            failed: inner.failed.load(Relaxed),
            bytes_sent: inner.bytes_sent.load(Relaxed),
            messages_archived: inner.messages_archived.load(Relaxed),
        }
    }

    /// Cuts a running backup off and ends the threads. What it has sent is not sent again by the next one.
    pub fn shutdown(&self) {
        self.inner.stopped.store(true, Relaxed);
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        drop(self.keys.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some((_, _, budget)) = &self.inner.state().running {
            budget.stop();
        }
        self.reading.shutdown();
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            if thread.join().is_err() {
                tracing::error!("a thread of the backups panicked");
            }
        }
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, jobs: &Receiver<Job>) {
        if let Err(error) = self.store.clear_backup_leftovers() {
            tracing::warn!(error = %chain(&error), "what an earlier backup left in the data folder stays there");
        }
        loop {
            let due = [
                self.until_due().map(|wait| (wait, Act::Backup { keep: self.options.keep })),
                self.until_archive().and_then(|wait| Some((wait, Act::Archive(self.rule()?)))),
            ];
            let job = match due.into_iter().flatten().min_by_key(|(wait, _)| *wait) {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some((wait, act)) => jobs.recv_timeout(wait).or_else(|error| match error {
                    RecvTimeoutError::Disconnected => Err(error),
                    RecvTimeoutError::Timeout => {
                        let place = self.options.target.clone().expect("a schedule has a place");
                        Ok(Job { run: self.runs.fetch_add(1, Relaxed) + 1, place, act })
                    }
                }),
            };
            match job {
                Ok(job) => self.work(job),
                Err(_) => return,
            }
            if self.stopped.load(Relaxed) {
                return;
            }
        }
    }

    /// How long until the schedule wants a backup; `None` without one.
    fn until_due(&self) -> Option<Duration> {
        let every = self.options.every.filter(|_| self.options.target.is_some())?;
        let state = self.state();
        let now = unix_ms();
        // A clock that was set back must not put the next backup off for as long as it was wrong.
        let since = state.last.as_ref().map(|last| Duration::from_millis(now.saturating_sub(last.at_ms)));
        let by_last = since.map_or(Duration::ZERO, |since| every.saturating_sub(since));
        let by_start = FIRST_AFTER.min(every).saturating_sub(self.started.elapsed());
        let by_retry = state.retry_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        Some(by_last.max(by_start).max(by_retry))
    }

    /// What may leave the store now.
    fn rule(&self) -> Option<ArchiveRule> {
        let idle = self.options.archive_idle.filter(|_| self.options.target.is_some())?;
        let before_ms = unix_ms().saturating_sub(idle.as_millis() as u64);
        Some(ArchiveRule { before_ms, window: self.options.archive_window })
    }

    /// How long until old messages are looked for; `None` when none are to leave.
    fn until_archive(&self) -> Option<Duration> {
        self.rule()?;
        let since = Duration::from_millis(unix_ms().saturating_sub(self.state().archived_ms));
        let by_start = FIRST_AFTER.saturating_sub(self.started.elapsed());
        Some(ARCHIVE_EVERY.saturating_sub(since).max(by_start))
    }

    fn work(&self, job: Job) {
        let budget = Arc::new(Budget::new(self.options.bytes_per_s));
        let (url, began) = (job.place.url(), Instant::now());
        self.state().running = Some((url.clone(), unix_ms(), Arc::clone(&budget)));
        if self.stopped.load(Relaxed) {
            budget.stop();
        }
        let target = job.place.open(&self.control, Arc::clone(&self.stopped));
        let target = target.map_err(|why| format!("{url} cannot be used: {why}"));
        let act = |target: Box<dyn Target>| -> Result<Ended, String> {
            match job.act {
                Act::Backup { keep } => {
                    tracing::info!(place = url, run = job.run, "a backup begins");
                    let done = self.store.backup(&*target, keep, &budget).map_err(|error| chain(&error))?;
                    Ok(Ended::Backup(self.made(done, url, began)))
                }
                Act::Archive(rule) => {
                    let done = self.store.archive(&*target, rule, &budget).map_err(|error| chain(&error))?;
                    self.archived(done, &url);
                    Ok(Ended::Archive(done))
                }
            }
        };
        // One run must not end the thread of all later ones.
        let caught = target.and_then(|target| {
            let panicked = |_| "it panicked; the log says where".to_owned();
            catch_unwind(AssertUnwindSafe(|| act(target))).map_err(panicked)
        });
        self.end(job.run, job.act, caught.and_then(|result| result));
    }

    fn archived(&self, done: ArchiveDone, place: &str) {
        let ArchiveDone { messages, conversations, bytes_sent, objects_removed } = done;
        tracing::info!(place, messages, conversations, bytes_sent, objects_removed, "old messages were archived");
        self.messages_archived.fetch_add(messages, Relaxed);
    }

    fn made(&self, done: BackupDone, place: String, began: Instant) -> Made {
        let took_ms = began.elapsed().as_millis() as u64;
        let BackupDone { id, bytes, bytes_sent, files, seq, removed } = done;
        tracing::info!(id, place, files, bytes, bytes_sent, seq, removed, took_ms, "a backup is made");
        let made = Made { id, place, at_ms: unix_ms(), took_ms, bytes, bytes_sent, removed };
        let mut batch = Batch::new();
        batch.put_meta(LAST, &serde_json::to_vec(&made).expect("numbers and texts are JSON"));
        if let Err(error) = self.store.commit(batch) {
            // The backup stands; after a restart the next one comes sooner than it had to.
            tracing::warn!(%error, "the time of the last backup could not be noted");
        }
        made
    }

    fn end(&self, run: u64, act: Act, result: Result<Ended, String>) {
        if let Act::Archive(_) = act {
            // Also after a failure: the next look comes in a day, and what could not be moved stays where it is read.
            let now_ms = unix_ms();
            self.state().archived_ms = now_ms;
            let mut batch = Batch::new();
            batch.put_meta(ARCHIVED_AT, &now_ms.to_be_bytes());
            if let Err(error) = self.store.commit(batch) {
                tracing::warn!(%error, "the time of the last archive could not be noted");
            }
        }
        let mut state = self.state();
        state.running = None;
        match &result {
            Ok(Ended::Archive(_)) => {}
            Ok(Ended::Backup(made)) => {
                self.made.fetch_add(1, Relaxed);
                self.bytes_sent.fetch_add(made.bytes_sent, Relaxed);
                state.last = Some(made.clone());
                state.retry_at = None;
            }
            Err(why) => {
                self.failed.fetch_add(1, Relaxed);
                let what = if let Act::Archive(_) = act { "archive" } else { "backup" };
                let pause = self.options.every.unwrap_or(RETRY_AFTER).min(RETRY_AFTER);
                state.retry_at = Some(Instant::now() + pause);
                tracing::error!(run, what, why, "a copy of the store failed");
            }
        }
        if state.outcomes.len() == OUTCOMES_KEPT {
            state.outcomes.pop_front();
        }
        state.outcomes.push_back(Outcome { run, result });
    }

    /// Overwrites copies of the user keys whenever the bell rings, until nothing is due.
    fn renew_keys(&self, bell: &Receiver<()>) {
        match self.store.backup_keys_noted() {
            Ok(notes) => self.state().due.extend(notes),
            Err(error) => tracing::error!(error = %chain(&error), "copies of user keys that are due cannot be found"),
        }
        loop {
            let due = self.state().due.clone();
            let mut pause = None;
            if !due.is_empty() {
                let renewed = self.renew(&due);
                let mut state = self.state();
                match renewed {
                    Ok(()) => {
                        state.due.retain(|note| !due.contains(note));
                        state.keys_error = None;
                        tracing::info!(users = due.len(), "keys of forgotten users are erased in all copies");
                    }
                    Err(why) => {
                        tracing::warn!(why, "copies of user keys could not be overwritten yet; it is tried again");
                        state.keys_error = Some(why);
                        pause = Some(KEYS_RETRY_AFTER);
                    }
                }
            }
            let rung = match pause {
                None => bell.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(pause) => bell.recv_timeout(pause),
            };
            if matches!(rung, Err(RecvTimeoutError::Disconnected)) || self.stopped.load(Relaxed) {
                return;
            }
        }
    }

    fn renew(&self, due: &[KeysDue]) -> Result<(), String> {
        let places = self.store.backup_places().map_err(|error| chain(&error))?;
        // A place that cannot be reached holds up no other.
        let failed: Vec<String> = places.iter().filter_map(|url| self.renew_at(url).err()).collect();
        if !failed.is_empty() {
            return Err(failed.join("; "));
        }
        self.store.backup_keys_renewed(due).map_err(|error| chain(&error))
    }

    fn renew_at(&self, url: &str) -> Result<(), String> {
        let place = Place::parse(url, false).map_err(|why| format!("{url}: {why}"))?;
        let target = place.open(&self.control, Arc::clone(&self.stopped)).map_err(|why| format!("{url}: {why}"))?;
        self.store.renew_backup_keys(&*target, &Budget::new(0)).map_err(|error| chain(&error))
    }
}

/// The note of the last backup. One that cannot be read only brings the next one sooner.
fn last(store: &Store) -> Option<Made> {
    let stored = store.meta(LAST).ok().flatten()?;
    serde_json::from_slice(&stored).ok()
}

fn archived_at(store: &Store) -> u64 {
    let stored = store.meta(ARCHIVED_AT).ok().flatten();
    stored.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// An error with its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text} ({cause_text})");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
