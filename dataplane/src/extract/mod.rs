//! The deferred extraction: while nothing else runs, a model reads what users said and statements are kept of it.
//!
//! One thread. It takes the oldest waiting messages of one user, asks the extractor, lets the agent's rules decide
//! what changes ([`millrace_agent::extract`]) and writes that in one batch with the note that these messages are
//! done. A process that ends in between does the round again; a user who is forgotten in between makes the store
//! refuse the batch. Users take turns. What the model cannot answer about is tried with fewer messages, then skipped and
//! counted, so one message never holds up the rest.

mod budget;
mod model;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use millrace_agent::extract::{self, ASKED_MESSAGES_MAX, ExtractError, Extractor, Findings, Said};
use millrace_proto::id::{TenantId, UserId};
use millrace_proto::statement::{MessageId, Statement};
use millrace_storage::{Batch, CommitError, Extracted, PendingFrom, PendingMessages, ReadError, StatementQuery, Store};

use crate::clock::unix_ms;
use crate::obs::ExtractSnapshot;
use budget::Budget;
pub use model::{ModelExtractor, Quiet};

/// Pause while nothing waits or something else runs.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest pause after failures.
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Statements of one subject and relation that are looked at.
const KNOWN_MAX: usize = 256;

/// Says whether the machine has nothing better to do.
pub trait Idle: Send {
    /// Asked before every round.
    fn is_idle(&mut self) -> bool;
}

/// Counters, read by anybody.
#[derive(Debug, Default)]
struct Counters {
    messages: AtomicU64,
    skipped: AtomicU64,
    added: AtomicU64,
    ended: AtomicU64,
    tokens: AtomicU64,
    retries: AtomicU64,
}

/// The running extraction. Dropping it ends the thread after the round it is at.
pub struct Extraction {
    counters: Arc<Counters>,
    stop: Mutex<Option<Sender<()>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Extraction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Extraction").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl Extraction {
    /// Starts the thread.
    pub fn start(
        store: Store,
        extractor: Box<dyn Extractor>,
        idle: Box<dyn Idle>,
        tokens_per_hour: u32,
    ) -> std::io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let (stop, stopped) = bounded(0);
        let budget = Budget::new(tokens_per_hour, Instant::now());
        let mut worker = Worker::new(store, extractor, Arc::clone(&counters));
        let thread =
            std::thread::Builder::new().name("extract".into()).spawn(move || worker.run(idle, budget, &stopped))?;
        Ok(Self { counters, stop: Mutex::new(Some(stop)), thread: Mutex::new(Some(thread)) })
    }

    /// The counters now.
    pub fn snapshot(&self) -> impl Fn() -> ExtractSnapshot + Send + Sync + use<> {
        let counters = Arc::clone(&self.counters);
        move || {
            let Counters { messages, skipped, added, ended, tokens, retries } = &*counters;
            let read = |counter: &AtomicU64| counter.load(Relaxed);
            ExtractSnapshot {
                messages: read(messages),
                skipped: read(skipped),
                added: read(added),
                ended: read(ended),
                tokens: read(tokens),
                retries: read(retries),
            }
        }
    }

    /// Ends the thread. The engine must be shut down or running, so that a round in progress ends.
    pub fn shutdown(&self) {
        drop(self.stop.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the extraction thread panicked");
        }
    }
}

impl Drop for Extraction {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// What a round came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// Messages were looked at; these tokens were used.
    Done(u64),
    /// Nobody's messages wait.
    Nothing,
    /// It is tried again later.
    Failed,
    /// It will never work.
    GiveUp,
}

struct Worker {
    store: Store,
    extractor: Box<dyn Extractor>,
    counters: Arc<Counters>,
    from: PendingFrom,
    /// Messages of the next round: fewer after too much was asked.
    most: usize,
}

impl Worker {
    fn new(store: Store, extractor: Box<dyn Extractor>, counters: Arc<Counters>) -> Self {
        Self { store, extractor, counters, from: PendingFrom::default(), most: ASKED_MESSAGES_MAX }
    }

    fn run(&mut self, mut idle: Box<dyn Idle>, mut budget: Budget, stopped: &Receiver<()>) {
        let mut pause = PAUSE;
        // The sender never sends: the channel ends when it is dropped.
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            pause = match budget.wait(Instant::now()) {
                Some(wait) => wait.min(PAUSE_MAX),
                None if !idle.is_idle() => PAUSE,
                None => {
                    let round = self.round();
                    let wasted = self.extractor.wasted();
                    self.counters.tokens.fetch_add(wasted, Relaxed);
                    budget.spend(wasted, Instant::now());
                    match round {
                        Round::Done(tokens) => {
                            budget.spend(tokens, Instant::now());
                            Duration::ZERO
                        }
                        Round::Nothing => PAUSE,
                        Round::Failed => (pause.max(PAUSE) * 2).min(PAUSE_MAX),
                        Round::GiveUp => return,
                    }
                }
            };
        }
    }

    /// Looks at the waiting messages of one user.
    fn round(&mut self) -> Round {
        let pending = match self.next() {
            Ok(Some(pending)) => pending,
            Ok(None) => return Round::Nothing,
            Err(error) => {
                tracing::error!(%error, "messages that wait for extraction cannot be read");
                return Round::Failed;
            }
        };
        let mut said = Vec::with_capacity(pending.messages.len());
        for message in &pending.messages {
            if let Some(text) = message.text.as_ref().filter(|text| !text.trim().is_empty()) {
                said.push(Said { id: message.id, text: text.clone(), at_ms: message.at_ms });
            }
        }
        let found = match said.is_empty() {
            true => Ok(Findings::default()),
            false => self.extractor.extract(&said),
        };
        match found {
            Ok(findings) => self.write(&pending, &findings),
            Err(ExtractError::TooMuch { .. }) if said.len() > 1 => {
                self.most = said.len() / 2;
                Round::Done(0)
            }
            Err(error @ (ExtractError::TooMuch { .. } | ExtractError::Useless { .. })) => {
                // Asked about one by one, the others are not lost with it.
                if said.len() > 1 {
                    self.most = 1;
                    return Round::Done(0);
                }
                tracing::info!(%error, "a message is passed over by the extraction");
                self.counters.skipped.fetch_add(1, Relaxed);
                self.write(&pending, &Findings::default())
            }
            Err(error @ ExtractError::Later { .. }) => {
                tracing::debug!(%error, "the extraction waits");
                self.counters.retries.fetch_add(1, Relaxed);
                Round::Failed
            }
            Err(error @ ExtractError::Never { .. }) => {
                tracing::error!(%error, "the extraction stops: choose another model, or set memory.extract = \"off\"");
                Round::GiveUp
            }
        }
    }

    /// The next user's messages; after the last user the first one is next.
    fn next(&mut self) -> Result<Option<PendingMessages>, ReadError> {
        if let Some(pending) = self.store.pending_messages(&self.from, self.most)? {
            return Ok(Some(pending));
        }
        self.from = PendingFrom::default();
        self.store.pending_messages(&self.from, self.most)
    }

    fn write(&mut self, pending: &PendingMessages, findings: &Findings) -> Round {
        let (tenant, user) = (pending.tenant, pending.user);
        let settled = match self.known(tenant, user, findings) {
            Ok(known) => extract::settle(&findings.claims, known, unix_ms()),
            Err(error) => {
                tracing::error!(%error, "the statements of a user cannot be read");
                return Round::Failed;
            }
        };
        let messages: Vec<MessageId> = pending.messages.iter().map(|message| message.id).collect();
        let looked_at = messages.len() as u64;
        let mut batch = Batch::new();
        batch.extracted(Extracted { tenant, user, messages, statements: settled.statements });
        match self.store.commit(batch) {
            Ok(_) => {
                self.counters.messages.fetch_add(looked_at, Relaxed);
                self.counters.added.fetch_add(settled.added as u64, Relaxed);
                self.counters.ended.fetch_add(settled.ended as u64, Relaxed);
            }
            // The user was forgotten while the model read: nothing of it is kept.
            Err(CommitError::Forgotten) => {}
            Err(error) => {
                tracing::warn!(%error, "what was extracted could not be written");
                self.counters.retries.fetch_add(1, Relaxed);
                return Round::Failed;
            }
        }
        self.counters.tokens.fetch_add(findings.tokens, Relaxed);
        self.from = pending.next();
        self.most = ASKED_MESSAGES_MAX;
        Round::Done(findings.tokens)
    }

    /// What is known of the things that claims are about.
    fn known(&self, tenant: TenantId, user: UserId, findings: &Findings) -> Result<Vec<Statement>, ReadError> {
        let mut known = Vec::new();
        for (subject, relation) in extract::subjects(&findings.claims) {
            let (subject, relation) = (Some(subject), Some(relation.to_owned()));
            let query = StatementQuery { tenant, user, subject, relation, as_of: None, limit: KNOWN_MAX };
            known.extend(self.store.statements_here(&query)?);
        }
        Ok(known)
    }
}

#[cfg(test)]
mod tests;
