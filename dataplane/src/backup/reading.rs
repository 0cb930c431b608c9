//! Archived messages for those who ask for them: a thread of its own, since a target may be slow.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam::channel::{Sender, TrySendError, bounded};
use millrace_proto::id::{ConversationId, TenantId};
use millrace_proto::record::Message;
use millrace_storage::{ArchiveError, Store, Target, TargetError};

use super::chain;
use super::place::Place;
use crate::control::Control;

/// Readings that may wait.
const QUEUE_MAX: usize = 64;

type Work = Box<dyn FnOnce(&Reader) + Send>;

/// Called on the reading thread with what was found, or with what, why and what next.
pub type Read<T> = Box<dyn FnOnce(Result<T, String>) + Send>;

/// The queue is full, or the node is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{QUEUE_MAX} readings of archived messages are waiting already")]
pub struct Busy;

struct Reader {
    store: Store,
    control: Control,
    stopped: Arc<AtomicBool>,
}

impl Reader {
    fn open(&self, url: &str) -> Result<Box<dyn Target>, TargetError> {
        let place = Place::parse(url, false).map_err(TargetError::Failed)?;
        place.open(&self.control, Arc::clone(&self.stopped)).map_err(TargetError::Failed)
    }
}

/// The door to the reading thread.
pub struct Reading {
    work: Mutex<Option<Sender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Reading {
    pub(super) fn start(store: Store, control: Control, stopped: Arc<AtomicBool>) -> std::io::Result<Self> {
        let reader = Reader { store, control, stopped };
        let (sender, receiver) = bounded::<Work>(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("archive-read".into()).spawn(move || {
            for work in receiver {
                if reader.stopped.load(Relaxed) {
                    return;
                }
                if catch_unwind(AssertUnwindSafe(|| work(&reader))).is_err() {
                    tracing::error!("the answer to a reading of archived messages panicked");
                }
            }
        })?;
        Ok(Self { work: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// The last `limit` messages of a conversation before `before_seq`, archived ones included.
    pub fn messages(
        &self,
        conversation: (TenantId, ConversationId),
        before_seq: Option<u64>,
        limit: usize,
        done: Read<Vec<Message>>,
    ) -> Result<(), Busy> {
        self.submit(done, move |reader| {
            let open = |url: &str| reader.open(url);
            reader.store.messages_with_archived(&open, conversation, before_seq, limit)
        })
    }

    /// Brings the archived messages of a conversation back into the store.
    pub fn bring_back(&self, tenant: TenantId, conversation: ConversationId, done: Read<u64>) -> Result<(), Busy> {
        self.submit(done, move |reader| reader.store.unarchive(&|url: &str| reader.open(url), tenant, conversation))
    }

    fn submit<T: 'static>(
        &self,
        done: Read<T>,
        read: impl FnOnce(&Reader) -> Result<T, ArchiveError> + Send + 'static,
    ) -> Result<(), Busy> {
        let work: Work = Box::new(move |reader| {
            // Whoever waits has no deadline of its own: it is told whatever becomes of the reading.
            done(match catch_unwind(AssertUnwindSafe(|| read(reader))) {
                Ok(result) => result.map_err(|error| chain(&error)),
                Err(_) => Err("the reading panicked; the log says where".to_owned()),
            });
        });
        let sender = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        match sender.as_ref().ok_or(Busy)?.try_send(work) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Busy),
        }
    }

    pub(super) fn shutdown(&self) {
        drop(self.work.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reads archived messages panicked");
        }
    }
}
