//! The thread that embeds texts, so that reactors never compute.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};

use super::Encoder;
use crate::request::SubmitError;

/// Most texts in one call.
pub const TEXTS_MAX: usize = 256;
/// Advice to a caller that found the queue full; one call takes about this long.
const RETRY_AFTER: Duration = Duration::from_millis(250);

/// Why texts were not embedded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The worker stopped before the call's turn came.
    #[error("the embedding worker is shutting down")]
    Closed,
    /// The encoder failed.
    #[error("the encoder failed on this text: {0}")]
    Failed(String),
}

/// What is called with the vectors, on the worker's thread; it must be quick.
pub type EmbedDone = Box<dyn FnOnce(Result<Vec<Vec<f32>>, EmbedError>) + Send>;

/// Texts to embed and whom to tell.
pub struct EmbedRequest {
    /// 1 to [`TEXTS_MAX`] texts.
    pub texts: Vec<String>,
    /// Called exactly once if the request was accepted.
    pub done: EmbedDone,
}

impl std::fmt::Debug for EmbedRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbedRequest").field("texts", &self.texts.len()).finish_non_exhaustive()
    }
}

/// One thread that embeds calls in order.
pub struct EmbedWorker {
    encoder: Arc<Encoder>,
    /// Taken at shutdown; the thread ends when no sender is left and the queue is empty.
    sender: Mutex<Option<Sender<EmbedRequest>>>,
    closing: Arc<AtomicBool>,
    queue_max: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for EmbedWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbedWorker").field("queue_max", &self.queue_max).finish_non_exhaustive()
    }
}

impl EmbedWorker {
    /// Starts the thread; `nice` is its priority, 0 (as other threads) to 19.
    pub fn start(encoder: Arc<Encoder>, queue_max: usize, nice: i32) -> std::io::Result<EmbedWorker> {
        let (sender, receiver) = bounded(queue_max.max(1));
        let closing = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("embed".to_owned()).spawn({
            let (encoder, closing) = (Arc::clone(&encoder), Arc::clone(&closing));
            move || {
                crate::priority::lower(nice);
                serve(&encoder, &receiver, &closing);
            }
        })?;
        Ok(EmbedWorker {
            encoder,
            sender: Mutex::new(Some(sender)),
            closing,
            queue_max: queue_max.max(1),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Queues a call; `done` is called exactly once if this succeeds, and never if it fails. Never blocks for long.
    pub fn submit(&self, request: EmbedRequest) -> Result<(), SubmitError> {
        let texts = request.texts.len();
        if texts == 0 || texts > TEXTS_MAX {
            return Err(SubmitError::TooManyTexts { texts, max: TEXTS_MAX });
        }
        let sender = self.sender.lock().unwrap_or_else(|p| p.into_inner());
        let Some(sender) = sender.as_ref() else { return Err(SubmitError::Closed) };
        match sender.try_send(request) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                let (waiting, max) = (sender.len(), self.queue_max);
                Err(SubmitError::QueueFull { waiting, max, retry_after: RETRY_AFTER })
            }
            Err(TrySendError::Disconnected(_)) => Err(SubmitError::Closed),
        }
    }

    /// The encoder, for its sizes.
    pub fn encoder(&self) -> &Arc<Encoder> {
        &self.encoder
    }

    /// Calls that wait.
    pub fn waiting(&self) -> usize {
        self.sender.lock().unwrap_or_else(|p| p.into_inner()).as_ref().map_or(0, Sender::len)
    }

    /// Answers what waits with `Closed` and ends the thread.
    pub fn shutdown(&self) {
        self.closing.store(true, Ordering::Release);
        drop(self.sender.lock().unwrap_or_else(|p| p.into_inner()).take());
        let thread = self.thread.lock().unwrap_or_else(|p| p.into_inner()).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // The thread catches its panics; there is nothing to learn from the join.
            let _ = thread.join();
        }
    }
}

impl Drop for EmbedWorker {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn serve(encoder: &Encoder, receiver: &Receiver<EmbedRequest>, closing: &AtomicBool) {
    while let Ok(EmbedRequest { texts, done }) = receiver.recv() {
        let result = if closing.load(Ordering::Acquire) {
            Err(EmbedError::Closed)
        } else {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            catch_unwind(AssertUnwindSafe(|| encoder.embed(&texts)))
                .map_err(|_| EmbedError::Failed("the encoder panicked".to_owned()))
        };
        if let Err(EmbedError::Failed(reason)) = &result {
            tracing::error!(%reason, "the embedding worker failed on a text");
        }
        if catch_unwind(AssertUnwindSafe(|| done(result))).is_err() {
            // The fault is the receiver's; other calls go on.
            tracing::error!("the receiver of an embedding panicked");
        }
    }
}
