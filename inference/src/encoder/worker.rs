//! The thread that embeds texts, so that reactors never compute.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};

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
    fault: Arc<OnceLock<String>>,
    queue_max: usize,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for EmbedWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbedWorker").field("queue_max", &self.queue_max).finish_non_exhaustive()
    }
}
