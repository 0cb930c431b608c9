//! The read pool: few threads for reads that may wait for the disk or compute for a while.

use crate::error::Busy;
use crossbeam::channel::{Sender, TrySendError, bounded};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

/// Threads of the pool. Recall is bound by memory bandwidth, which two threads nearly use up.
pub const READ_THREADS: usize = 2;
/// Reads that may wait; at 2 ms each this is a quarter of a second of work.
pub const READ_QUEUE_MAX: usize = 256;

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct ReadPool {
    sender: Mutex<Option<Sender<Job>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl ReadPool {
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = bounded::<Job>(READ_QUEUE_MAX);
        let mut threads = Vec::with_capacity(READ_THREADS);
        for index in 0..READ_THREADS {
            let receiver = receiver.clone();
            let thread = std::thread::Builder::new().name(format!("store-read-{index}")).spawn(move || {
                crate::memory::quiet_math_threads();
                for job in receiver {
                    // A read that panics is our bug; it must not take the pool with it.
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        tracing::error!("a read on the storage pool panicked");
                    }
                }
            })?;
            threads.push(thread);
        }
        Ok(Self { sender: Mutex::new(Some(sender)), threads: Mutex::new(threads) })
    }

    /// Queues a job, or says that the queue is full. `Err(None)` = the pool is closed.
    pub fn submit(&self, job: Job) -> Result<(), Option<Busy>> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = sender.as_ref() else { return Err(None) };
        sender.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Some(Busy { waiting: READ_QUEUE_MAX, bound: READ_QUEUE_MAX }),
            TrySendError::Disconnected(_) => None,
        })
    }

    /// Finishes what is queued and joins the threads.
    pub fn close(&self) {
        drop(self.sender.lock().unwrap_or_else(PoisonError::into_inner).take());
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // The pool may be closed from one of its own callbacks, which cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
