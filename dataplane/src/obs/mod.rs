//! What an operator sees of a running node: metrics, health and logs.
//!
//! Hot paths only bump relaxed atomics or record into a histogram of their own shard; everything that
//! costs time (merging, formatting, serving) happens on the metrics thread when somebody scrapes.

mod channels;
mod histogram;
pub mod logs;
mod metrics;
mod process;
mod prometheus;
pub mod server;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

pub use channels::{ChannelCounters, ChannelOutcome};
pub use histogram::Latency;
pub use metrics::{
    BackupSnapshot, EngineSnapshot, ExtractSnapshot, Metrics, NodeFacts, OpenStream, Rejection, Route, Rung,
    ShardMetrics, StorageSnapshot, Turn,
};
pub use process::ProcessSnapshot;

/// Whether the node may be given traffic, and if not, why.
#[derive(Debug)]
pub struct Health {
    /// True once models are loaded and reactors accept.
    pub ready: AtomicBool,
    /// True from the first termination signal on.
    pub draining: AtomicBool,
    reason: Mutex<String>,
}

impl Default for Health {
    fn default() -> Self {
        Self { ready: AtomicBool::new(false), draining: AtomicBool::new(false), reason: Mutex::new("starting".into()) }
    }
}

impl Health {
    /// A node that has just started and is not ready yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the node for traffic.
    pub fn set_ready(&self) {
        self.set_reason("ready");
        self.ready.store(true, Ordering::Release);
    }

    /// Takes the node out of rotation and says why.
    pub fn set_unready(&self, reason: &str) {
        self.ready.store(false, Ordering::Release);
        self.set_reason(reason);
    }

    /// Readiness fails from here on; running work still ends properly.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
        self.set_unready("draining");
    }

    /// May new work be sent here?
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.is_draining()
    }

    /// Has a termination signal arrived?
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// One word or sentence about the present state.
    pub fn reason(&self) -> String {
        self.reason.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set_reason(&self, reason: &str) {
        let mut slot = self.reason.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        reason.clone_into(&mut slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_only_between_start_and_drain() {
        let health = Health::new();
        assert!(!health.is_ready());
        assert_eq!(health.reason(), "starting");
        health.set_ready();
        assert!(health.is_ready());
        health.start_draining();
        assert!(!health.is_ready() && health.is_draining());
        assert_eq!(health.reason(), "draining");
    }
}
