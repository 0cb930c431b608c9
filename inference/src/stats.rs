//! Counters and latency histograms of the engine: written by its thread, read by anybody at any time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::request::FinishReason;

/// Bucket bounds in seconds, about a factor of 1.5 to 2 apart, from half a millisecond to five minutes.
pub const BUCKET_SECONDS: [f64; 26] = [
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0,
];

/// A latency histogram with fixed buckets; recording is two relaxed additions.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One more than the bounds: the last holds everything beyond them.
    buckets: [AtomicU64; BUCKET_SECONDS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Counts one value.
    pub fn record(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        let index = BUCKET_SECONDS.partition_point(|bound| *bound < seconds);
        self.buckets[index].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Mean of all values; `None` before the first.
    pub fn mean(&self) -> Option<Duration> {
        let count: u64 = self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum();
        self.sum_ns.load(Ordering::Relaxed).checked_div(count).map(Duration::from_nanos)
    }

    /// A copy of the present state.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut cumulative = Vec::with_capacity(BUCKET_SECONDS.len());
        let mut count = 0;
        for (bound, bucket) in BUCKET_SECONDS.iter().zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            cumulative.push((*bound, count));
        }
        count += self.buckets[BUCKET_SECONDS.len()].load(Ordering::Relaxed);
        HistogramSnapshot { cumulative, count, sum_seconds: self.sum_ns.load(Ordering::Relaxed) as f64 * 1e-9 }
    }
}

/// A histogram in Prometheus form.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramSnapshot {
    /// Upper bound in seconds and how many values were at or below it.
    pub cumulative: Vec<(f64, u64)>,
    /// All values.
    pub count: u64,
    /// Their sum in seconds.
    pub sum_seconds: f64,
}

impl HistogramSnapshot {
    /// Upper bound of the bucket that holds this share (0 to 1) of the values; 0 when there are none.
    pub fn quantile_seconds(&self, share: f64) -> f64 {
        let rank = (self.count as f64 * share).ceil() as u64;
        if self.count == 0 {
            return 0.0;
        }
        self.cumulative.iter().find(|(_, n)| *n >= rank).map_or(f64::INFINITY, |(bound, _)| *bound)
    }
}

/// A number that goes up and down or only up.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    /// Present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }
}

/// Everything the engine counts.
#[derive(Debug, Default)]
pub struct Stats {
    /// Requests that wait for a place in the batch.
    pub waiting: Number,
    /// Requests in the batch.
    pub running: Number,
    /// KV blocks in use.
    pub kv_blocks_used: Number,
    /// KV blocks whose memory was used since the start: the part of the pool that is resident.
    pub kv_blocks_touched: Number,
    /// All KV blocks.
    pub kv_blocks_total: Number,
    /// Prompt tokens computed or found in the cache.
    pub prompt_tokens: Number,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: Number,
    /// Generated tokens.
    pub generated_tokens: Number,
    /// Steps of the model.
    pub steps: Number,
    /// Token rows over all steps; divided by `steps` it is the mean batch.
    pub rows: Number,
    /// Guesses that were computed: at most one per reply and step.
    pub drafts: Number,
    /// Guessed tokens that were computed.
    pub draft_tokens: Number,
    /// Guessed tokens that became part of a reply.
    pub accepted_tokens: Number,
    /// Sequences that lost their KV blocks and had to be recomputed.
    pub preemptions: Number,
    /// Requests refused at submission.
    pub refused: Number,
    /// Time the model spent in steps, in microseconds.
    pub step_us: Number,
    /// Time spent outside the model between steps that had work, in microseconds.
    pub overhead_us: Number,
    /// Constraints prepared for requests, those that were refused included.
    pub constraints: Number,
    /// Time until they were ready or refused, in microseconds.
    pub constraint_us: Number,
    /// Token masks that mask threads computed.
    pub masks: Number,
    /// Time they took on those threads, in microseconds.
    pub mask_us: Number,
    /// Time that the engine's thread waited for them, in microseconds.
    pub mask_wait_us: Number,
    finished: [Number; FINISH_NAMES.len()],
    /// Predicted time to the first token, of requests that had a prediction and got one.
    pub forecast: Histogram,
    /// How far those predictions were from what happened.
    pub forecast_error: Histogram,
    /// How many of them were within a factor of two of what happened.
    pub forecast_good: Number,
    /// From submission to the first token.
    pub time_to_first_token: Histogram,
    /// Between tokens of one request.
    pub inter_token: Histogram,
    /// From submission to the end.
    pub request: Histogram,
    /// From submission to the start of the prompt.
    pub queue: Histogram,
}

const FINISH_NAMES: [&str; 5] = ["stop", "length", "abort", "deadline", "error"];

impl Stats {
    /// Finished requests by reason name.
    pub fn finished(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        FINISH_NAMES.iter().zip(&self.finished).map(|(name, n)| (*name, n.get()))
    }

    /// Share of KV blocks in use, 0 to 1.
    pub fn kv_usage(&self) -> f64 {
        self.kv_share(&self.kv_blocks_used)
    }

    /// The share of the KV pool whose memory was used since the start.
    pub fn kv_touched(&self) -> f64 {
        self.kv_share(&self.kv_blocks_touched)
    }

    fn kv_share(&self, blocks: &Number) -> f64 {
        let total = self.kv_blocks_total.get();
        if total == 0 { 0.0 } else { blocks.get() as f64 / total as f64 }
    }

    pub(crate) fn count_forecast(&self, predicted: Duration, actual: Duration) {
        self.forecast.record(predicted);
        self.forecast_error.record(predicted.abs_diff(actual));
        let good = predicted <= actual * 2 && actual <= predicted * 2;
        self.forecast_good.add(u64::from(good));
    }

    pub(crate) fn count_finish(&self, reason: &FinishReason) {
        let index = FINISH_NAMES.iter().position(|name| *name == reason.name()).expect("every reason has a name");
        self.finished[index].add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lands_in_the_bucket_of_its_upper_bound() {
        let h = Histogram::default();
        h.record(Duration::from_millis(1));
        h.record(Duration::from_micros(1001));
        h.record(Duration::from_secs(1000));
        let s = h.snapshot();
        assert_eq!(s.cumulative[1], (0.001, 1));
        assert_eq!(s.cumulative[2], (0.002, 2));
        assert_eq!(s.cumulative.last(), Some(&(300.0, 2)));
        assert_eq!(s.count, 3);
        assert!((s.sum_seconds - 1_000.002_001).abs() < 1e-6);
        assert_eq!(s.quantile_seconds(0.3), 0.001);
        assert_eq!(h.mean(), Some(Duration::from_nanos(1_000_002_001_000 / 3)));
        assert_eq!(s.quantile_seconds(1.0), f64::INFINITY);
    }

    #[test]
    fn a_forecast_within_a_factor_of_two_is_good() {
        let stats = Stats::default();
        for (predicted, actual) in [(100, 199), (100, 51), (100, 201), (100, 49)] {
            stats.count_forecast(Duration::from_millis(predicted), Duration::from_millis(actual));
        }
        assert_eq!((stats.forecast_good.get(), stats.forecast.snapshot().count), (2, 4));
    }

    #[test]
    fn every_reason_is_counted_under_its_own_name() {
        let stats = Stats::default();
        for reason in [
            FinishReason::Stop,
            FinishReason::Length,
            FinishReason::Cancelled,
            FinishReason::Deadline,
            FinishReason::Error("x".into()),
        ] {
            stats.count_finish(&reason);
        }
        assert!(stats.finished().all(|(_, n)| n == 1));
    }
}
