//! Corpora: takes files in on a thread of its own.
//!
//! A file is read by a process of its own (`reader.rs`), cut into passages, embedded in the engine's
//! background class and stored. One thread does one thing after the other, so that a corpus has one
//! writer; what waits is bounded in number and bytes, and whoever asks later sees how far a job is.

pub mod reader;

use std::collections::{BTreeMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use millrace_inference::{EmbedPriority, EmbedRequest, EmbedWorker, SubmitError};
use millrace_proto::digest::sha256;
use millrace_proto::document::{Passage, passages};
use millrace_proto::id::TenantId;
use millrace_storage::{Begun, CorpusError, DocumentRecord, NewDocument, Store};

use reader::Refusal;

/// Jobs that may wait.
const JOBS_MAX: usize = 256;
/// Bytes of files that may wait.
const WAITING_BYTES_MAX: usize = 128 << 20;
/// Jobs whose end is remembered.
const JOBS_KEPT: usize = 2_048;
/// Passages that are embedded together: a call that replies wait behind for a short time only.
const EMBED_PASSAGES: usize = 16;
/// Tokens of a passage, whatever the encoder could take: longer passages blur what they are about.
const PASSAGE_TOKENS_MAX: usize = 256;
/// Taken off what the encoder takes: it counts its own two marks with every piece, and cuts what is longer.
const PASSAGE_TOKENS_MARGIN: usize = 4;
/// How long passages may wait for their vectors. The background class gets an eighth of a busy engine.
const EMBED_WITHIN: Duration = Duration::from_secs(600);

/// Tokens of a text.
type Counter = Box<dyn Fn(&str) -> usize>;

/// What is to be done.
#[derive(Debug)]
pub enum Task {
    /// Take a file in.
    Add {
        /// Its name in the corpus.
        name: String,
        /// What it is filed under.
        tags: Vec<String>,
        /// The file.
        bytes: Vec<u8>,
    },
    /// Remove one document.
    RemoveDocument {
        /// Its name.
        name: String,
    },
    /// Remove a whole corpus.
    RemoveCorpus,
}

impl Task {
    fn bytes(&self) -> usize {
        match self {
            Task::Add { bytes, .. } => bytes.len(),
            Task::RemoveDocument { .. } | Task::RemoveCorpus => 0,
        }
    }
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Others are before it.
    Waiting,
    /// Text is taken out of the file.
    Reading,
    /// Passages get their vectors and are stored.
    Storing {
        /// Passages that are through.
        done: usize,
        /// All passages.
        total: usize,
    },
    /// The document is in the corpus.
    Added {
        /// It.
        document: DocumentRecord,
        /// It was there before, with the same bytes.
        unchanged: bool,
    },
    /// It was removed, or there was nothing to remove.
    Removed {
        /// Whether there was something.
        found: bool,
    },
    /// Nothing was changed.
    Failed {
        /// For programs.
        code: &'static str,
        /// For people: what, why and what to do next.
        message: String,
    },
}

/// A job as others see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Job {
    /// Whose corpus.
    pub tenant: TenantId,
    /// Which corpus.
    pub corpus: String,
    /// Which document, if it is about one.
    pub document: Option<String>,
    /// How far it is.
    pub phase: Phase,
}

/// Why a job was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Too many.
    #[error("{JOBS_MAX} corpus jobs are waiting already")]
    Jobs,
    /// Too large together.
    #[error("files of {} MiB are waiting already", WAITING_BYTES_MAX >> 20)]
    Bytes,
    /// The node is stopping.
    #[error("the node is stopping")]
    Closed,
}

struct Work {
    id: u64,
    tenant: TenantId,
    corpus: String,
    task: Task,
}

#[derive(Default)]
struct Jobs {
    next: u64,
    jobs: BTreeMap<u64, Job>,
}

struct Inner {
    store: Store,
    embedder: Option<Arc<EmbedWorker>>,
    /// Name of the embedding model; empty without one.
    model: String,
    jobs: Mutex<Jobs>,
    waiting_bytes: AtomicUsize,
    closed: AtomicBool,
}

/// The service. Dropping it ends the thread.
pub struct Corpora {
    inner: Arc<Inner>,
    sender: Mutex<Option<Sender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Corpora {
    /// Starts the thread.
    pub fn start(store: Store, embedder: Option<Arc<EmbedWorker>>, model: &str) -> std::io::Result<Self> {
        let inner = Arc::new(Inner {
            store,
            embedder,
            model: model.to_owned(),
            jobs: Mutex::default(),
            waiting_bytes: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        let (sender, receiver) = bounded(JOBS_MAX);
        let thread = std::thread::Builder::new().name("corpora".into()).spawn({
            let inner = Arc::clone(&inner);
            move || inner.run(&receiver)
        })?;
        Ok(Self { inner, sender: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Queues a job and returns its number.
    pub fn submit(&self, tenant: TenantId, corpus: &str, task: Task) -> Result<u64, Full> {
        let bytes = task.bytes();
        let waiting = self.inner.waiting_bytes.load(Ordering::Relaxed);
        if waiting > 0 && waiting + bytes > WAITING_BYTES_MAX {
            return Err(Full::Bytes);
        }
        let document = match &task {
            Task::Add { name, .. } | Task::RemoveDocument { name } => Some(name.clone()),
            Task::RemoveCorpus => None,
        };
        let id = self.inner.open_job(Job { tenant, corpus: corpus.to_owned(), document, phase: Phase::Waiting });
        let work = Work { id, tenant, corpus: corpus.to_owned(), task };
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.inner.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let refused = match sender.map(|sender| sender.try_send(work)) {
            Some(Ok(())) => return Ok(id),
            Some(Err(TrySendError::Full(_))) => Full::Jobs,
            Some(Err(TrySendError::Disconnected(_))) | None => Full::Closed,
        };
        self.inner.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.inner.jobs().jobs.remove(&id);
        Err(refused)
    }

    /// A job by its number.
    pub fn job(&self, id: u64) -> Option<Job> {
        self.inner.jobs().jobs.get(&id).cloned()
    }

    /// Ends the thread after the batch it is at; what waits is dropped, and unfinished documents stay invisible.
    pub fn shutdown(&self) {
        self.inner.closed.store(true, Ordering::Relaxed);
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the corpus thread panicked");
        }
    }
}

impl Drop for Corpora {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for Corpora {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Corpora").finish_non_exhaustive()
    }
}

impl Inner {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_job(&self, job: Job) -> u64 {
        let mut jobs = self.jobs();
        jobs.next += 1;
        let id = jobs.next;
        jobs.jobs.insert(id, job);
        while jobs.jobs.len() > JOBS_KEPT {
            jobs.jobs.pop_first();
        }
        id
    }

    fn set(&self, id: u64, phase: Phase) {
        if let Some(job) = self.jobs().jobs.get_mut(&id) {
            job.phase = phase;
        }
    }

    fn run(&self, work: &Receiver<Work>) {
        let mut swept = HashSet::new();
        for Work { id, tenant, corpus, task } in work {
            self.waiting_bytes.fetch_sub(task.bytes(), Ordering::Relaxed);
            if self.closed.load(Ordering::Relaxed) {
                return;
            }
            let done = catch_unwind(AssertUnwindSafe(|| {
                // What an earlier process left half done goes before the first change.
                if swept.insert((tenant, corpus.clone())) {
                    let left = self.store.sweep_corpus(tenant, &corpus)?;
                    if left > 0 {
                        tracing::info!(corpus, documents = left, "documents that were left unfinished are removed");
                    }
                }
                self.carry_out(id, tenant, &corpus, task)
            }));
            let phase = match done {
                Ok(Ok(phase)) => phase,
                Ok(Err(refusal)) => {
                    tracing::warn!(corpus, code = refusal.code, message = %refusal.message, "a corpus job failed");
                    Phase::Failed { code: refusal.code, message: refusal.message }
                }
                Err(_) => Phase::Failed { code: "internal", message: "the job failed; the log has the place".into() },
            };
            self.set(id, phase);
        }
    }

    fn carry_out(&self, id: u64, tenant: TenantId, corpus: &str, task: Task) -> Result<Phase, Refusal> {
        match task {
            Task::Add { name, tags, bytes } => self.add(id, tenant, corpus, name, tags, &bytes),
            Task::RemoveDocument { name } => {
                Ok(Phase::Removed { found: self.store.remove_document(tenant, corpus, &name)? })
            }
            Task::RemoveCorpus => Ok(Phase::Removed { found: self.store.remove_corpus(tenant, corpus)? }),
        }
    }

    fn add(
        &self,
        id: u64,
        tenant: TenantId,
        corpus: &str,
        name: String,
        tags: Vec<String>,
        bytes: &[u8],
    ) -> Result<Phase, Refusal> {
        let hash = sha256(bytes);
        let known = self.store.document(tenant, corpus, &name).map_err(CorpusError::from)?;
        if let Some(document) = known.filter(|known| known.hash == hash && known.tags == tags) {
            return Ok(Phase::Added { document, unchanged: true });
        }
        self.set(id, Phase::Reading);
        let read = reader::read(&name, bytes)?;
        let (tokens_max, count) = self.counter();
        let cut = passages(&read.blocks, tokens_max, &*count);
        drop(read.blocks);
        let total = cut.len();
        self.set(id, Phase::Storing { done: 0, total });
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let new = NewDocument {
            name,
            hash,
            kind: read.kind.as_str().to_owned(),
            bytes: bytes.len() as u64,
            tags,
            notes: read.notes,
            added_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        };
        let mut writer = match self.store.begin_document(tenant, corpus, &self.model, new)? {
            Begun::Unchanged(document) => return Ok(Phase::Added { document, unchanged: true }),
            Begun::Writer(writer) => writer,
        };
        let mut done = 0;
        let mut left = cut.into_iter().peekable();
        while left.peek().is_some() {
            if self.closed.load(Ordering::Relaxed) {
                return Err(Refusal::stopping());
            }
            let part: Vec<Passage> = left.by_ref().take(EMBED_PASSAGES).collect();
            let texts = part.iter().map(|passage| passage.searchable(tokens_max, &*count)).collect();
            let vectors = self.embed(texts)?;
            done += part.len();
            for (passage, vector) in part.into_iter().zip(vectors) {
                writer.put(passage, vector)?;
            }
            self.set(id, Phase::Storing { done, total });
        }
        Ok(Phase::Added { document: writer.finish()?, unchanged: false })
    }

    /// Room of a passage and how it is measured.
    fn counter(&self) -> (usize, Counter) {
        match &self.embedder {
            Some(embedder) => {
                let encoder = Arc::clone(embedder.encoder());
                let most = encoder.tokens_max().min(PASSAGE_TOKENS_MAX).saturating_sub(PASSAGE_TOKENS_MARGIN);
                (most.max(16), Box::new(move |text| encoder.count_tokens(text)))
            }
            // About four bytes of text are a token; only the size of passages depends on it.
            None => (PASSAGE_TOKENS_MAX, Box::new(|text| text.len().div_ceil(4))),
        }
    }

    /// Vectors of texts, empty ones without an embedding model. Waits while the engine has no room.
    fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, Refusal> {
        let Some(embedder) = &self.embedder else { return Ok(vec![Vec::new(); texts.len()]) };
        let until = Instant::now() + EMBED_WITHIN;
        let (told, answer) = mpsc::channel();
        loop {
            let told = told.clone();
            let request = EmbedRequest {
                texts: texts.clone(),
                priority: EmbedPriority::Bulk,
                done: Box::new(move |result| drop(told.send(result))),
            };
            match embedder.submit(request) {
                Ok(_) => break,
                Err(SubmitError::QueueFull { retry_after, .. }) if Instant::now() + retry_after < until => {
                    std::thread::sleep(retry_after);
                }
                Err(error) => return Err(Refusal::embedding(&error)),
            }
        }
        match answer.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(Ok(vectors)) => Ok(vectors),
            Ok(Err(error)) => Err(Refusal::embedding(&error)),
            Err(_) => Err(Refusal::embedding(&format!("no vectors within {} s", EMBED_WITHIN.as_secs()))),
        }
    }
}

#[cfg(test)]
mod tests;
