//! What is counted while a run goes on.

use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Duration;

/// When the generator's own lateness at P99 is above this, its figures are its own and not the server's.
pub const LAG_P99_MS_MAX: f64 = 10.0;
/// Longest time that a histogram distinguishes: one hour in microseconds.
const TIME_US_MAX: u64 = 3_600_000_000;
const ERROR_SAMPLES_MAX: usize = 5;

/// A histogram of times.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, TIME_US_MAX, 3).expect("constant bounds are valid"))
    }
}

impl Times {
    /// Counts a time; longer than an hour counts as an hour.
    pub fn record(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX).clamp(1, TIME_US_MAX));
    }

    /// Times counted.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// A percentile in milliseconds.
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        self.0.value_at_percentile(percentile) as f64 / 1e3
    }

    /// The mean in milliseconds.
    pub fn mean_ms(&self) -> f64 {
        self.0.mean() / 1e3
    }

    /// The longest in milliseconds.
    pub fn max_ms(&self) -> f64 {
        self.0.max() as f64 / 1e3
    }
}

/// The counters of a run.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Counted requests, good and bad.
    pub requests: u64,
    /// Good ones.
    pub ok: u64,
    /// Tokens of good answers.
    pub tokens: u64,
    /// From the intended start to the end of the answer, good ones only.
    pub latency: Times,
    /// From the real start to the end of the answer, good ones only.
    pub service: Times,
    /// From the intended start to the first token.
    pub ttft: Times,
    /// Between tokens.
    pub itl: Times,
    /// From the intended to the real start: the generator's own lateness.
    pub dispatch_lag: Times,
    /// How late a timer of the generator fires: lateness in reading answers.
    pub loop_lag: Times,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// What a few of the failures said.
    pub error_samples: Vec<String>,
    /// Connections that the server had closed while they were idle.
    pub reconnects: u64,
}

impl Stats {
    /// Counts a failure.
    pub fn fail(&mut self, kind: &str, detail: &str) {
        *self.errors.entry(kind.to_owned()).or_default() += 1;
        let sample = if detail.is_empty() { kind.to_owned() } else { format!("{kind}: {detail}") };
        if self.error_samples.len() < ERROR_SAMPLES_MAX && !self.error_samples.contains(&sample) {
            self.error_samples.push(sample);
        }
    }

    /// Why the figures do not describe the server; empty when they do.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (what, times) in [("starting requests", &self.dispatch_lag), ("reading answers", &self.loop_lag)] {
            let lag_ms = times.percentile_ms(99.0);
            if times.count() > 0 && lag_ms > LAG_P99_MS_MAX {
                faults.push(format!(
                    "the generator itself was late in {what}: P99 {lag_ms:.1} ms, at most {LAG_P99_MS_MAX} ms is tolerable; \
                     lower the rate or give it a processor of its own"
                ));
            }
        }
        if self.errors.contains_key(IN_FLIGHT_LIMIT) {
            faults.push("requests were dropped at --in-flight-max: the offered load was not delivered".to_owned());
        }
        if self.requests == 0 {
            faults.push("nothing was counted: the run was shorter than its warm-up or its first arrival".to_owned());
        }
        faults
    }
}

/// The failure kind of an arrival above `--in-flight-max`.
pub const IN_FLIGHT_LIMIT: &str = "in-flight limit";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_generator_invalidates_its_report() {
        let mut stats = Stats { requests: 1, ..Stats::default() };
        for _ in 0..1_000 {
            stats.dispatch_lag.record(Duration::from_micros(900));
            stats.loop_lag.record(Duration::from_micros(900));
        }
        assert_eq!(stats.faults(), [] as [String; 0]);
        for _ in 0..20 {
            stats.dispatch_lag.record(Duration::from_millis(30));
        }
        let faults = stats.faults();
        assert!(faults.len() == 1 && faults[0].contains("starting requests: P99 30."), "{faults:?}");
        stats.fail(IN_FLIGHT_LIMIT, "");
        assert_eq!(stats.faults().len(), 2);
        assert_eq!(Stats::default().faults().len(), 1);
    }

    #[test]
    fn times_keep_three_digits_and_saturate() {
        let mut times = Times::default();
        times.record(Duration::from_millis(500));
        assert!((499.5..=500.5).contains(&times.percentile_ms(50.0)));
        times.record(Duration::from_secs(100_000));
        assert!((3_599_000.0..=3_601_000.0 * 1.001).contains(&times.max_ms()));
        times.record(Duration::ZERO);
        assert_eq!(times.count(), 3);
    }
}
