//! Overload in degrees: connections stop being kept alive, then work is shed by its priority, before anything
//! has to be refused at the door.
//!
//! Pressure is what the shard itself can see: how late its timer comes, how full its connections and the
//! engine's queue are. Health, administration and signed events of messengers are never shed here: the first
//! two are needed most in bad times, and the third is accepted in milliseconds and answered later.

use std::cell::Cell;
use std::time::{Duration, Instant};

use millrace_proto::api::ApiError;

use super::Gateway;
use super::routes::Row;
use crate::net::Net;
use crate::obs::Route;
use crate::shard::TICK;

/// A timer that comes this late: what can wait is shed.
const LATE: Duration = Duration::from_millis(500);
/// A timer that comes this late: ordinary work is shed too.
const VERY_LATE: Duration = Duration::from_secs(2);
/// Weight of the newest tick in the smoothed lateness is one part of this.
const SMOOTHING: u32 = 4;
/// Seconds after which shed work should come back.
const RETRY_AFTER_S: u32 = 1;

/// Which work goes first when not all can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Lists, pages and bulk work.
    Low,
    /// Conversations.
    Normal,
    /// Never shed.
    High,
}

/// The priority of a route.
pub fn priority(route: Route) -> Priority {
    match route {
        Route::Embeddings | Route::Models | Route::Sessions | Route::Console | Route::Unknown => Priority::Low,
        Route::Health | Route::Admin | Route::Hook => Priority::High,
        _ => Priority::Normal,
    }
}

/// What one shard knows about its own pressure.
#[derive(Debug)]
pub struct Overload {
    last_tick: Cell<Instant>,
    late: Cell<Duration>,
}

impl Default for Overload {
    fn default() -> Self {
        Self { last_tick: Cell::new(Instant::now()), late: Cell::new(Duration::ZERO) }
    }
}

impl Overload {
    /// The shard's timer has fired.
    pub fn tick(&self) {
        let now = Instant::now();
        let late = now.saturating_duration_since(self.last_tick.replace(now)).saturating_sub(TICK);
        self.late.set(smoothed(self.late.get(), late));
    }

    /// Nearly all connections are taken: an answer ends its connection, so that others get in.
    pub fn crowded(&self, net: &Net) -> bool {
        is_crowded(net.lines.len(), net.limits.connections_max)
    }

    /// Sheds what is not urgent enough for the present pressure.
    pub(super) fn admit(&self, row: &Row, gateway: &Gateway) -> Result<(), ApiError> {
        let needed = needed(self.late.get());
        let priority = priority(row.metric);
        if priority < needed {
            return Err(shed("This node is busier than it can keep up with."));
        }
        // Bulk work waits when people wait.
        let nearly_full = || {
            let waiting = gateway.shared.engine.stats().waiting.get();
            waiting * 4 >= gateway.shared.config.engine.queue_max as u64 * 3
        };
        if row.metric == Route::Embeddings && nearly_full() {
            return Err(shed("The engine's queue is nearly full; bulk work has to wait."));
        }
        Ok(())
    }
}

fn shed(why: &str) -> ApiError {
    ApiError::overloaded(why, RETRY_AFTER_S)
}

fn smoothed(before: Duration, newest: Duration) -> Duration {
    (before * (SMOOTHING - 1) + newest) / SMOOTHING
}

/// The lowest priority that is still served.
fn needed(late: Duration) -> Priority {
    if late >= VERY_LATE {
        Priority::High
    } else if late >= LATE {
        Priority::Normal
    } else {
        Priority::Low
    }
}

fn is_crowded(open: usize, max: usize) -> bool {
    open * 10 >= max * 9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::routes::ROUTES;

    #[test]
    fn one_late_tick_sheds_nothing_and_lasting_lateness_does_by_priority() {
        let mut late = smoothed(Duration::ZERO, Duration::from_secs(1));
        assert_eq!(needed(late), Priority::Low, "a single hiccup");
        for _ in 0..10 {
            late = smoothed(late, Duration::from_secs(1));
        }
        assert_eq!(needed(late), Priority::Normal);
        for _ in 0..20 {
            late = smoothed(late, Duration::from_secs(4));
        }
        assert_eq!(needed(late), Priority::High);
        for _ in 0..20 {
            late = smoothed(late, Duration::ZERO);
        }
        assert_eq!(needed(late), Priority::Low, "a second of calm is enough");
    }

    #[test]
    fn health_administration_and_signed_events_are_never_shed() {
        for row in ROUTES {
            let spared = priority(row.metric) == Priority::High;
            let path = row.path;
            let wanted = path == "/healthz"
                || path == "/readyz"
                || path.starts_with("/v1/admin/")
                || path.starts_with("/hooks/");
            assert_eq!(spared, wanted, "{path}");
        }
    }

    #[test]
    fn keeping_alive_ends_at_nine_tenths() {
        assert!(!is_crowded(89, 100) && is_crowded(90, 100) && is_crowded(8, 8) && !is_crowded(7, 8));
    }
}
