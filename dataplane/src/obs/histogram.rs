//! Latency histograms: lossless HDR inside, Prometheus buckets outside.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;

/// Upper bucket edges in seconds of `vllm:time_to_first_token_seconds`.
pub(super) const EDGES_FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Upper bucket edges in seconds of `vllm:inter_token_latency_seconds`.
pub(super) const EDGES_INTER_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// Upper bucket edges in seconds of vLLM's request-latency family (end to end, queue, prefill, decode).
pub(super) const EDGES_REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// Upper bucket edges in seconds for our own HTTP and delivery times, which start well below a millisecond.
pub(super) const EDGES_HTTP: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    120.0, 300.0,
];

/// Longest latency kept apart; longer ones count as this (about two hours, vLLM's last edge).
const MICROS_MAX: u64 = 7_680_000_000;

/// One latency series of one shard. Recording is one uncontended lock: only the shard records, only a
/// scrape reads. The buckets are allocated at the first record, so that idle series cost nothing.
#[derive(Debug, Default)]
pub struct Latency(Mutex<Option<Box<Recorded>>>);

#[derive(Debug)]
struct Recorded {
    micros: Histogram<u32>,
    sum_seconds: f64,
}

impl Latency {
    /// Records one observation.
    pub fn record(&self, elapsed: Duration) {
        self.record_many(elapsed, 1);
    }

    /// Records the same observation `count` times (tokens of one step share their gap).
    pub fn record_many(&self, elapsed: Duration, count: u32) {
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(MICROS_MAX).clamp(1, MICROS_MAX);
        let mut slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let recorded = slot.get_or_insert_with(|| Box::new(Recorded { micros: histogram(), sum_seconds: 0.0 }));
        recorded.micros.saturating_record_n(micros, count);
        recorded.sum_seconds += elapsed.as_secs_f64() * f64::from(count);
    }

    pub(super) fn merge_into(&self, merged: &mut Merged) {
        let slot = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(recorded) = slot.as_ref() {
            merged.sum_seconds += recorded.sum_seconds;
            let all = merged.micros.get_or_insert_with(wide);
            for step in recorded.micros.iter_recorded() {
                all.saturating_record_n(step.value_iterated_to(), u64::from(step.count_at_value()));
            }
        }
    }
}

/// The sum of one series over all shards.
#[derive(Default)]
pub(super) struct Merged {
    micros: Option<Histogram<u64>>,
    sum_seconds: f64,
}

impl Merged {
    pub(super) fn count(&self) -> u64 {
        self.micros.as_ref().map_or(0, Histogram::len)
    }

    /// Writes `_bucket`, `_sum` and `_count` lines; `labels` is empty or `name="value",...`.
    pub(super) fn write(&self, out: &mut String, name: &str, labels: &str, edges: &[f64]) {
        let comma = if labels.is_empty() { "" } else { "," };
        for edge in edges {
            let below = self.micros.as_ref().map_or(0, |all| below_or_at(all, *edge));
            let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{edge:?}\"}} {below}");
        }
        let count = self.count();
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        let _ = writeln!(out, "{name}_sum{braces} {}", self.sum_seconds);
        let _ = writeln!(out, "{name}_count{braces} {count}");
    }

    /// The value in seconds below which `quantile` (0..=1) of the observations lie.
    pub(super) fn quantile_seconds(&self, quantile: f64) -> Option<f64> {
        let all = self.micros.as_ref().filter(|all| !all.is_empty())?;
        Some(all.value_at_quantile(quantile) as f64 / 1e6)
    }
}

fn below_or_at(all: &Histogram<u64>, edge_seconds: f64) -> u64 {
    let edge = ((edge_seconds * 1e6).round() as u64).min(MICROS_MAX);
    // `count_between` includes the whole bucket around `edge`: at most 1 part in 1,000 too wide.
    all.count_between(0, edge)
}

fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("the bounds are constants that hdrhistogram accepts")
}

fn wide() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MICROS_MAX, 3).expect("the bounds are constants that hdrhistogram accepts")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_merge_and_buckets_are_cumulative() {
        let (one, two) = (Latency::default(), Latency::default());
        one.record(Duration::from_micros(900));
        one.record_many(Duration::from_millis(30), 3);
        two.record(Duration::from_secs(3));
        let mut merged = Merged::default();
        one.merge_into(&mut merged);
        two.merge_into(&mut merged);
        assert_eq!(merged.count(), 5);
        let mut text = String::new();
        merged.write(&mut text, "t_seconds", "route=\"chat\"", EDGES_FIRST_TOKEN);
        for line in [
            "t_seconds_bucket{route=\"chat\",le=\"0.001\"} 1\n",
            "t_seconds_bucket{route=\"chat\",le=\"0.02\"} 1\n",
            "t_seconds_bucket{route=\"chat\",le=\"0.04\"} 4\n",
            "t_seconds_bucket{route=\"chat\",le=\"2.5\"} 4\n",
            "t_seconds_bucket{route=\"chat\",le=\"5.0\"} 5\n",
            "t_seconds_bucket{route=\"chat\",le=\"+Inf\"} 5\n",
            "t_seconds_count{route=\"chat\"} 5\n",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        assert!((merged.quantile_seconds(0.5).unwrap() - 0.03).abs() < 0.0001);
    }

    #[test]
    fn an_untouched_series_is_all_zero_and_extremes_saturate() {
        let latency = Latency::default();
        let mut merged = Merged::default();
        latency.merge_into(&mut merged);
        assert_eq!((merged.count(), merged.quantile_seconds(0.99)), (0, None));
        latency.record(Duration::MAX);
        latency.record(Duration::ZERO);
        latency.merge_into(&mut merged);
        assert_eq!(merged.count(), 2);
    }
}
