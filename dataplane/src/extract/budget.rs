//! Tokens that may be used in an hour. They come back evenly.

use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3_600);

/// A bucket that holds an hour's tokens. A round may overdraw it by what that round used; the next one waits for it.
#[derive(Debug)]
pub(super) struct Budget {
    per_hour: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    pub fn new(per_hour: u32, now: Instant) -> Self {
        let per_hour = f64::from(per_hour.max(1));
        Self { per_hour, left: per_hour, at: now }
    }

    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.at);
        self.left = (self.left + self.per_hour * since.as_secs_f64() / HOUR.as_secs_f64()).min(self.per_hour);
        self.at = now;
    }

    /// How long until there is something to spend; `None` = now.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        (self.left < 1.0).then(|| HOUR.mul_f64((1.0 - self.left) / self.per_hour))
    }

    pub fn spend(&mut self, tokens: u64, now: Instant) {
        self.refill(now);
        self.left -= tokens as f64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_overdrawn_is_waited_for() {
        let start = Instant::now();
        let mut budget = Budget::new(3_600, start);
        assert_eq!(budget.wait(start), None);
        budget.spend(3_659, start);
        let wait = budget.wait(start).expect("nothing is left");
        assert!((wait.as_secs_f64() - 60.0).abs() < 0.01, "{wait:?}");
        assert_eq!(budget.wait(start + Duration::from_secs(61)), None);
        // Unused hours do not add up.
        budget.spend(3_600, start + HOUR * 10);
        assert!(budget.wait(start + HOUR * 10).is_some());
    }
}
