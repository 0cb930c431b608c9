//! The bounded ring through which other threads reach a shard.
//!
//! Producers (engine worker, commit thread, control thread, other shards) push into a
//! crossbeam `ArrayQueue`; the shard drains it in bounded batches. A producer wakes the
//! shard only when the shard has said that it sleeps (`armed`), so one drain costs one
//! wake-up however many messages it takes: a burst of tokens does not become a burst of
//! eventfd writes.
//!
//! The lost-wake-up argument: the consumer arms, then looks at the queue once more; the
//! producer pushes, then reads `armed`. Both pairs are separated by a sequentially
//! consistent fence, so at least one side sees the other.

use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Poll, Waker};

use crossbeam::queue::ArrayQueue;

/// Messages that one mailbox holds before a sender is told that it is full. Sized for one
/// engine step over the largest batch plus a commit group, several times over; a slot is
/// one message (about 100 bytes), so raising it costs memory for every shard.
pub const MAILBOX_SLOTS: usize = 8192;

/// Messages taken in one drain before the shard looks at its sockets again.
pub const MAILBOX_DRAIN_MAX: usize = 1024;

/// The mailbox was full (or the shard is gone); the message comes back to the sender.
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full(..)")
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the shard's mailbox is full")
    }
}

struct Ring<T> {
    queue: ArrayQueue<T>,
    /// The shard sleeps (or is about to) and wants to be woken.
    armed: AtomicBool,
    closed: AtomicBool,
    refused: AtomicU64,
    /// Touched by a producer only in the step that disarms, by the shard only when it arms.
    waker: Mutex<Option<Waker>>,
}

/// The sending half; cheap to clone, usable from every thread.
pub struct Sender<T> {
    ring: Arc<Ring<T>>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { ring: self.ring.clone() }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("queued", &self.ring.queue.len()).finish()
    }
}

/// The receiving half; lives on the shard's thread.
pub struct Receiver<T> {
    ring: Arc<Ring<T>>,
}

/// A new mailbox of `slots` messages.
pub fn channel<T>(slots: usize) -> (Sender<T>, Receiver<T>) {
    let ring = Arc::new(Ring {
        queue: ArrayQueue::new(slots),
        armed: AtomicBool::new(false),
        closed: AtomicBool::new(false),
        refused: AtomicU64::new(0),
        waker: Mutex::new(None),
    });
    (Sender { ring: ring.clone() }, Receiver { ring })
}

impl<T> Sender<T> {
    /// Queues `message` and wakes the shard if it sleeps.
    pub fn send(&self, message: T) -> Result<(), Full<T>> {
        if self.ring.closed.load(Ordering::Acquire) {
            return Err(Full(message));
        }
        if let Err(message) = self.ring.queue.push(message) {
            self.ring.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Full(message));
        }
        self.wake();
        Ok(())
    }

    /// Queues `message` without waking: for a producer that pushes a batch and then calls
    /// [`Sender::wake`] once.
    pub fn push(&self, message: T) -> Result<(), Full<T>> {
        if self.ring.closed.load(Ordering::Acquire) {
            return Err(Full(message));
        }
        self.ring.queue.push(message).map_err(|message| {
            self.ring.refused.fetch_add(1, Ordering::Relaxed);
            Full(message)
        })
    }

    /// Wakes the shard if it sleeps and has not been woken yet.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.ring.armed.load(Ordering::Relaxed) && self.ring.armed.swap(false, Ordering::AcqRel) {
            let waker = self.ring.waker.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(waker) = waker.as_ref() {
                waker.wake_by_ref();
            }
        }
    }

    /// Messages waiting.
    pub fn len(&self) -> usize {
        self.ring.queue.len()
    }

    /// No message waits.
    pub fn is_empty(&self) -> bool {
        self.ring.queue.is_empty()
    }

    /// Messages refused because the ring was full.
    pub fn refused(&self) -> u64 {
        self.ring.refused.load(Ordering::Relaxed)
    }
}

impl<T> Receiver<T> {
    /// Takes at most `limit` messages; returns how many.
    pub fn drain(&self, limit: usize, mut take: impl FnMut(T)) -> usize {
        let mut taken = 0;
        while taken < limit {
            let Some(message) = self.ring.queue.pop() else { break };
            take(message);
            taken += 1;
        }
        taken
    }

    /// Messages are waiting.
    pub fn has_mail(&self) -> bool {
        !self.ring.queue.is_empty()
    }

    /// Resolves when a message waits. May resolve spuriously.
    pub async fn ready(&self) {
        let mut registered = false;
        poll_fn(|context| {
            if self.has_mail() {
                self.ring.armed.store(false, Ordering::Relaxed);
                return Poll::Ready(());
            }
            if registered && !self.ring.armed.load(Ordering::Relaxed) {
                return Poll::Ready(());
            }
            {
                let mut slot = self.ring.waker.lock().unwrap_or_else(PoisonError::into_inner);
                // The waker of one task stays the same, so it is cloned once in a shard's life.
                if !slot.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                    *slot = Some(context.waker().clone());
                }
            }
            registered = true;
            self.ring.armed.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.has_mail() {
                self.ring.armed.store(false, Ordering::Relaxed);
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}

impl<T> Drop for Receiver<T> {
    /// Later sends are refused; what still waits is dropped here, on the shard's thread.
    fn drop(&mut self) {
        self.ring.closed.store(true, Ordering::Release);
        self.ring.armed.store(false, Ordering::Relaxed);
        *self.ring.waker.lock().unwrap_or_else(PoisonError::into_inner) = None;
        while self.ring.queue.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct CountingWaker(AtomicUsize);

    impl Wake for CountingWaker {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_burst_of_messages_wakes_a_sleeping_shard_once() {
        let (sender, receiver) = channel(64);
        let counter = Arc::new(CountingWaker::default());
        let waker = Waker::from(counter.clone());
        let mut context = Context::from_waker(&waker);
        {
            let mut sleeping = pin!(receiver.ready());
            assert!(sleeping.as_mut().poll(&mut context).is_pending());
            for n in 0..50 {
                sender.send(n).expect("room");
            }
            assert_eq!(counter.0.load(Ordering::SeqCst), 1);
            assert!(sleeping.as_mut().poll(&mut context).is_ready());
        }
        let mut seen = Vec::new();
        assert_eq!(receiver.drain(20, |n| seen.push(n)), 20);
        assert!(receiver.has_mail(), "a drain stops at its limit");
        assert_eq!(receiver.drain(1000, |n| seen.push(n)), 30);
        assert_eq!(seen, (0..50).collect::<Vec<_>>(), "order is kept");
    }

    #[test]
    fn a_full_ring_returns_the_message_and_counts_it() {
        let (sender, receiver) = channel(2);
        sender.send(1).expect("room");
        sender.send(2).expect("room");
        let Err(Full(back)) = sender.send(3) else { panic!("the ring holds two") };
        assert_eq!((back, sender.refused()), (3, 1));
        receiver.drain(1, |_| ());
        sender.send(4).expect("room again");
    }

    #[test]
    fn a_closed_mailbox_refuses() {
        let (sender, receiver) = channel(2);
        drop(receiver);
        assert!(sender.send(()).is_err());
        assert!(sender.push(()).is_err());
    }

    #[test]
    fn no_wake_up_is_lost_between_threads() {
        // Four threads push while a consumer parks on a real thread waker: it must end.
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        const EACH: usize = 20_000;
        let (sender, receiver) = channel(256);
        let consumer = std::thread::spawn(move || {
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let mut context = Context::from_waker(&waker);
            let mut sum = 0usize;
            let mut count = 0;
            while count < 4 * EACH {
                {
                    let mut ready = pin!(receiver.ready());
                    while ready.as_mut().poll(&mut context).is_pending() {
                        std::thread::park();
                    }
                }
                count += receiver.drain(64, |n: usize| sum += n);
            }
            sum
        });
        let producers: Vec<_> = (0..4)
            .map(|_| {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    for n in 0..EACH {
                        let mut message = n;
                        while let Err(Full(back)) = sender.send(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        for producer in producers {
            producer.join().expect("producer");
        }
        assert_eq!(consumer.join().expect("consumer"), 4 * (EACH * (EACH - 1) / 2));
    }
}
