//! Takes embedding calls in, so that reactors never compute.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Batcher, Encoder};
use crate::backend::{Team, TeamConfig};
use crate::request::SubmitError;
use crate::worker::{Engine, EngineError};

/// Most texts in one call.
pub const TEXTS_MAX: usize = 256;
/// Most token rows of all calls that are not answered yet, beside those of the call that passes this bound: about half a
/// minute of work.
const ROWS_MAX: usize = 1 << 18;
/// Advice to a caller that found the queue full lies between these.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(60));

/// Why texts were not embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The worker stopped before the call was done.
    #[error("the embedding worker is shutting down")]
    Closed,
}

/// What is called with the vectors, on a computing thread; it must be quick.
pub type EmbedDone = Box<dyn FnOnce(Result<Vec<Vec<f32>>, EmbedError>) + Send>;

/// Who waits for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbedPriority {
    /// A reply does: it goes first and may cost running replies a little.
    Query,
    /// Nobody in particular: it gets what is left, and a minimum while replies run.
    Bulk,
}

/// Texts to embed and whom to tell.
pub struct EmbedRequest {
    /// 1 to [`TEXTS_MAX`] texts.
    pub texts: Vec<String>,
    /// How it ranks.
    pub priority: EmbedPriority,
    /// Called exactly once if the request was accepted.
    pub done: EmbedDone,
}

impl std::fmt::Debug for EmbedRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("EmbedRequest");
        f.field("texts", &self.texts.len()).field("priority", &self.priority).finish_non_exhaustive()
    }
}

/// An accepted call. One that is dropped without an answer is told that the worker closed.
pub(super) struct Call {
    pub texts: Vec<Vec<u32>>,
    pub priority: EmbedPriority,
    done: Option<EmbedDone>,
}

impl Call {
    pub fn rows(&self) -> usize {
        self.texts.iter().map(Vec::len).sum()
    }

    pub fn answer(mut self, result: Result<Vec<Vec<f32>>, EmbedError>) {
        self.tell(result);
    }

    fn tell(&mut self, result: Result<Vec<Vec<f32>>, EmbedError>) {
        if let Some(done) = self.done.take()
            && catch_unwind(AssertUnwindSafe(|| done(result))).is_err()
        {
            // The fault is the receiver's; other calls go on.
            tracing::error!("the receiver of an embedding panicked");
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.tell(Err(EmbedError::Closed));
    }
}

/// What the handle and the batcher share.
#[derive(Default)]
pub(super) struct Queue {
    /// Calls that the batcher has not seen.
    pub incoming: VecDeque<Call>,
    /// Calls of which no text was taken yet, those that the batcher has seen included.
    pub waiting: usize,
    /// Token rows of all calls without an answer.
    pub rows: usize,
    /// A wake-up is under way, or the batcher is awake.
    pub awake: bool,
    pub closed: bool,
}

pub(super) struct Shared {
    queue: Mutex<Queue>,
    /// Time per row while embedding, as measured.
    pub row_ns: AtomicU64,
}

impl Shared {
    /// Held for a few reads and writes, never while something is computed or told.
    pub fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Embeds calls on the threads of an engine, or on its own. Shared between threads; dropping it answers what waits.
pub struct EmbedWorker {
    encoder: Arc<Encoder>,
    shared: Arc<Shared>,
    queue_max: usize,
    wake: Box<dyn Fn() + Send + Sync>,
    /// Without an engine.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for EmbedWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbedWorker").field("queue_max", &self.queue_max).finish_non_exhaustive()
    }
}

impl EmbedWorker {
    /// Embeds on the threads of `engine`, between the steps of its replies.
    pub fn beside(engine: &Engine, encoder: Arc<Encoder>, queue_max: usize) -> Result<EmbedWorker, SubmitError> {
        let (shared, batcher) = parts(&encoder);
        engine.adopt(batcher)?;
        let wake = Box::new(engine.waker());
        Ok(EmbedWorker { encoder, shared, queue_max: queue_max.max(1), wake, thread: Mutex::default() })
    }

    /// Embeds on so many threads of its own; `nice` is their priority, 0 (as other threads) to 19.
    pub fn start(
        encoder: Arc<Encoder>,
        queue_max: usize,
        threads: usize,
        nice: i32,
    ) -> Result<EmbedWorker, EngineError> {
        let (shared, mut batcher) = parts(&encoder);
        let mut team = Team::start(TeamConfig { threads: threads.max(1), cpus: None, nice })?;
        let thread = std::thread::Builder::new().name("embed".to_owned()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                team.attach();
                loop {
                    while batcher.has_work() {
                        batcher.when_idle(&mut team);
                    }
                    // Looked at after the work: a receiver that blocks may have used up the wake-up.
                    if shared.queue().closed {
                        return;
                    }
                    std::thread::park();
                }
            }
        });
        let thread = thread.map_err(EngineError::Thread)?;
        let sleeper = thread.thread().clone();
        let wake = Box::new(move || sleeper.unpark());
        Ok(EmbedWorker { encoder, shared, queue_max: queue_max.max(1), wake, thread: Mutex::new(Some(thread)) })
    }

    /// Queues a call and says how many tokens it has; `done` is called exactly once if this succeeds, and never if it
    /// fails. Never blocks for long.
    pub fn submit(&self, request: EmbedRequest) -> Result<usize, SubmitError> {
        let EmbedRequest { texts, priority, done } = request;
        if texts.is_empty() || texts.len() > TEXTS_MAX {
            return Err(SubmitError::TooManyTexts { texts: texts.len(), max: TEXTS_MAX });
        }
        self.check_room(&self.shared.queue())?;
        let texts = texts.iter().map(|text| self.encoder.encode(text)).collect();
        let mut call = Call { texts, priority, done: Some(done) };
        let rows = call.rows();
        let mut queue = self.shared.queue();
        if let Err(error) = self.check_room(&queue) {
            // A refused call is not answered.
            call.done = None;
            return Err(error);
        }
        queue.incoming.push_back(call);
        queue.waiting += 1;
        queue.rows += rows;
        let asleep = !std::mem::replace(&mut queue.awake, true);
        drop(queue);
        if asleep {
            (self.wake)();
        }
        Ok(rows)
    }

    /// The encoder, for its sizes.
    pub fn encoder(&self) -> &Arc<Encoder> {
        &self.encoder
    }

    /// Calls that wait.
    pub fn waiting(&self) -> usize {
        self.shared.queue().waiting
    }

    /// Answers what waits with `Closed`, and ends the thread if there is one.
    pub fn shutdown(&self) {
        let left = {
            let mut queue = self.shared.queue();
            queue.closed = true;
            std::mem::take(&mut queue.incoming)
        };
        drop(left);
        (self.wake)();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the thread has answered all calls; there is nothing to learn from the join.
            let _ = thread.join();
        }
    }

    fn check_room(&self, queue: &Queue) -> Result<(), SubmitError> {
        if queue.closed {
            return Err(SubmitError::Closed);
        }
        if queue.waiting < self.queue_max && queue.rows < ROWS_MAX {
            return Ok(());
        }
        let ahead = Duration::from_nanos(queue.rows as u64 * self.shared.row_ns.load(Ordering::Relaxed));
        let retry_after = ahead.clamp(RETRY_AFTER.0, RETRY_AFTER.1);
        Err(SubmitError::QueueFull { waiting: queue.waiting, max: self.queue_max, retry_after })
    }
}

impl Drop for EmbedWorker {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn parts(encoder: &Arc<Encoder>) -> (Arc<Shared>, Box<Batcher>) {
    let shared = Arc::new(Shared { queue: Mutex::default(), row_ns: AtomicU64::new(0) });
    (Arc::clone(&shared), Box::new(Batcher::new(Arc::clone(encoder), shared)))
}
