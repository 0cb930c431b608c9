//! The IO budget of background copying: bytes a second, and a way to stop.
//!
//! Every byte that is read from the disk and every byte that is handed to the target is spent first, in pieces of a
//! quarter of a MiB, so that a copy never takes the disk for longer than a piece takes.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that are read, written and paid for together.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// What an idle time may be made up for: more would let a copy run at full speed after each pause.
const BURST: Duration = Duration::from_millis(50);

/// Somebody asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was asked to stop")]
pub struct Stopped;

/// When the next byte may move. Virtual time: each byte takes its share of a second.
#[derive(Debug, Default)]
struct Schedule {
    free_at: Duration,
}

impl Schedule {
    /// Books `bytes` at `now` and says how long to wait before they may move.
    fn book(&mut self, now: Duration, bytes: u64, bytes_per_s: u64) -> Duration {
        let begin = self.free_at.max(now.saturating_sub(BURST));
        self.free_at = begin + Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
        begin.saturating_sub(now)
    }
}

/// See the module's text. Shared by the copying thread and whoever may stop it.
#[derive(Debug)]
pub struct Budget {
    bytes_per_s: u64,
    started: Instant,
    schedule: Mutex<Schedule>,
    stopped: Mutex<bool>,
    woken: Condvar,
    spent: AtomicU64,
}

impl Budget {
    /// A budget of `bytes_per_s`; 0 = as fast as it goes.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Self {
        Self {
            bytes_per_s,
            started: Instant::now(),
            schedule: Mutex::default(),
            stopped: Mutex::new(false),
            woken: Condvar::new(),
            spent: AtomicU64::new(0),
        }
    }

    /// Waits until `bytes` may move.
    pub fn spend(&self, bytes: u64) -> Result<(), Stopped> {
        self.spent.fetch_add(bytes, Relaxed);
        let wait = match self.bytes_per_s {
            0 => Duration::ZERO,
            rate => {
                let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
                schedule.book(self.started.elapsed(), bytes, rate)
            }
        };
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let (stopped, _) =
            self.woken.wait_timeout_while(stopped, wait, |stopped| !*stopped).unwrap_or_else(PoisonError::into_inner);
        if *stopped { Err(Stopped) } else { Ok(()) }
    }

    /// Bytes that were spent so far.
    pub fn spent(&self) -> u64 {
        self.spent.load(Relaxed)
    }

    /// Makes every wait, now and later, end with [`Stopped`].
    pub fn stop(&self) {
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.woken.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn bytes_move_at_the_rate_and_a_pause_buys_a_short_burst_only() {
        let mut schedule = Schedule::default();
        let ms = Duration::from_millis;
        assert_eq!(schedule.book(ms(0), 1_000, 10_000), ms(0));
        assert_eq!(schedule.book(ms(0), 1_000, 10_000), ms(100));
        assert_eq!(schedule.book(ms(150), 1_000, 10_000), ms(50));
        // Ten seconds of nothing are worth 50 ms.
        assert_eq!(schedule.book(ms(10_000), 1_000, 10_000), ms(0));
        assert_eq!(schedule.book(ms(10_000), 1_000, 10_000), ms(50));
    }

    #[test]
    fn a_stop_ends_a_wait_at_once() {
        let budget = Arc::new(Budget::new(1));
        budget.spend(3_600).unwrap();
        let other = Arc::clone(&budget);
        let waiting = std::thread::spawn(move || other.spend(1));
        budget.stop();
        assert_eq!(waiting.join().unwrap(), Err(Stopped));
        assert_eq!(budget.spend(1), Err(Stopped));
        assert_eq!(budget.spent(), 3_602);
    }
}
