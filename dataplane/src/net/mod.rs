//! Sockets: listeners, the accept gate and the connection loop on completion IO.
//!
//! Cost sketch of a small request on a kept-alive connection: one read and one write
//! operation, one head parse in place, no allocation beyond the response's own body; the
//! answers of pipelined requests leave in one write. Deadlines cost a store to a cell.

pub mod accept;
pub mod connection;
pub mod date;
mod http2;
pub mod line;
pub mod listener;
pub mod outgoing;
pub mod quic;
pub mod tls;
pub mod wire;

#[cfg(test)]
mod tests;

use std::cell::{Cell, Ref, RefCell};
use std::os::fd::RawFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::io::Canceller;

pub use connection::{Admitted, Arrival, Next, Refused, Request, Service};
pub use line::Peer;
pub use listener::{ListenError, Listeners, listen};
pub use outgoing::{Body, Gone, Outgoing, Response};
pub use quic::{QuicSockets, bind as bind_quic};

use crate::obs::{Metrics, ShardMetrics};
use date::DateCache;
use line::Lines;

/// Bounds of one shard's connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections of one shard; the next one is refused with 503. Each costs a
    /// descriptor and some 8 KiB.
    pub connections_max: usize,
    /// From the first byte (or the accept) to the end of a request's head.
    pub head: Duration,
    /// From the end of the head to the end of the body.
    pub body: Duration,
    /// Between two requests of a connection.
    pub idle: Duration,
    /// Without any progress of a write.
    pub write: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            head: Duration::from_secs(15),
            body: Duration::from_secs(60),
            idle: Duration::from_secs(75),
            write: Duration::from_secs(30),
        }
    }
}

/// What the connections of one shard share. Lives on the shard's thread.
pub struct Net {
    /// Index of the shard.
    pub shard: usize,
    /// Bounds.
    pub limits: Limits,
    /// Open connections.
    pub lines: Rc<Lines>,
    /// What tells clients of the TLS port that the same is served over HTTP/3 (RFC 7838); empty = it is not.
    pub alt_svc: String,
    /// New work is refused and connections close after their answer.
    pub draining: Cell<bool>,
    metrics: Arc<Metrics>,
    stopped_accepting: Cell<bool>,
    /// The listeners stay open for the process that follows; requests under way are still taken.
    handing_over: Cell<bool>,
    accepting: RefCell<Canceller>,
    listener_fds: RefCell<Vec<RawFd>>,
    refusals: Cell<usize>,
    started: Instant,
    now_ms: Cell<u64>,
    date: RefCell<DateCache>,
    request_ids: Cell<u64>,
}

impl Net {
    /// State for shard `shard`.
    pub fn new(shard: usize, limits: Limits, metrics: Arc<Metrics>, alt_svc: String) -> Rc<Self> {
        let mut seed = [0u8; 8];
        // Request ids only need to differ; without randomness they start from the shard's number.
        if getrandom::fill(&mut seed).is_err() {
            seed = (shard as u64).to_le_bytes();
        }
        Rc::new(Self {
            shard,
            limits,
            lines: Rc::default(),
            alt_svc,
            draining: Cell::new(false),
            metrics,
            stopped_accepting: Cell::new(false),
            handing_over: Cell::new(false),
            accepting: RefCell::default(),
            listener_fds: RefCell::default(),
            refusals: Cell::new(0),
            started: Instant::now(),
            now_ms: Cell::new(0),
            date: RefCell::default(),
            request_ids: Cell::new(u64::from_le_bytes(seed)),
        })
    }

    /// The shard's counters.
    pub fn metrics(&self) -> &ShardMetrics {
        self.metrics.shard(self.shard)
    }

    /// Milliseconds since the shard started, as of the last tick: coarse and free.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// The coarse time `after` from now.
    pub fn deadline(&self, after: Duration) -> u64 {
        self.now_ms.get().saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
    }

    /// Advances the coarse clock and cuts what is overdue. Called by the shard's timer.
    pub fn tick(&self) {
        self.now_ms.set(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.date.borrow_mut().refresh();
        self.lines.sweep(self.now_ms.get(), self.draining.get());
    }

    /// From here on: no new connections, idle ones close, busy ones close after their answer.
    pub fn drain(&self) {
        self.draining.set(true);
        accept::stop_accepting(self);
        self.lines.tell_draining();
    }

    /// The same for a process whose listeners live on in another one: who connects now waits there, and a
    /// request that comes on an open connection is answered as its last.
    pub fn hand_over(&self) {
        self.draining.set(true);
        self.handing_over.set(true);
        accept::leave_listeners_open(self);
        self.lines.tell_draining();
    }

    /// New work is refused: the node ends, and nobody follows.
    pub fn refuses_work(&self) -> bool {
        self.draining.get() && !self.handing_over.get()
    }

    /// A number that is unlikely to repeat, for a request without an id of its own.
    pub fn next_request_id(&self) -> u64 {
        // Splitmix64: consecutive ids share no visible digits.
        let state = self.request_ids.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.request_ids.set(state);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The text of the `Date` header.
    fn date(&self) -> Ref<'_, DateCache> {
        self.date.borrow()
    }
}
