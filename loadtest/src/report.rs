//! What came out: for programs as JSON, for people as a table.

use crate::stats::{Stats, Times};
use crate::{Options, Requirement};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The shape of a distribution, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Percentiles {
    /// Values behind it.
    pub count: u64,
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p99_9: f64,
    /// Longest.
    pub max: f64,
}

impl Percentiles {
    fn of(times: &Times) -> Option<Self> {
        let rounded = |ms: f64| (ms * 1e3).round() / 1e3;
        (times.count() > 0).then(|| Self {
            count: times.count(),
            mean: rounded(times.mean_ms()),
            p50: rounded(times.percentile_ms(50.0)),
            p90: rounded(times.percentile_ms(90.0)),
            p95: rounded(times.percentile_ms(95.0)),
            p99: rounded(times.percentile_ms(99.0)),
            p99_9: rounded(times.percentile_ms(99.9)),
            max: rounded(times.max_ms()),
        })
    }
}

/// A requirement with its outcome.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// As it was written.
    pub requirement: String,
    /// What was measured.
    pub value: Option<f64>,
    /// Whether it holds.
    pub met: bool,
}

/// The outcome of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// Version of this tool.
    pub version: &'static str,
    /// `chat` or `webhook`.
    pub workload: String,
    /// The server.
    pub target: String,
    /// `open` or `closed`.
    pub mode: &'static str,
    /// Open loop: `poisson` or `constant`.
    pub arrivals: Option<String>,
    /// Open loop: requests per second that were meant to be sent.
    pub rate: Option<f64>,
    /// Closed loop: senders.
    pub senders: Option<u32>,
    /// Seed of arrivals and prompts.
    pub seed: u64,
    /// From the first intended start to the last answer, without warm-up.
    pub elapsed_s: f64,
    /// Counted requests.
    pub requests: u64,
    /// Good ones.
    pub ok: u64,
    /// Good ones in percent.
    pub success_percent: f64,
    /// Good ones per second.
    pub ok_per_second: f64,
    /// Tokens of good answers.
    pub tokens: u64,
    /// Tokens per second of good answers.
    pub tokens_per_second: f64,
    /// From the intended start to the end of the answer.
    pub latency_ms: Option<Percentiles>,
    /// From the real start to the end of the answer: what a generator without correction would report.
    pub service_ms: Option<Percentiles>,
    /// From the intended start to the first token.
    pub ttft_ms: Option<Percentiles>,
    /// Between tokens of one answer.
    pub itl_ms: Option<Percentiles>,
    /// The generator's lateness in starting requests.
    pub dispatch_lag_ms: Option<Percentiles>,
    /// The generator's lateness in reading answers.
    pub loop_lag_ms: Option<Percentiles>,
    /// Failures by kind.
    pub errors: BTreeMap<String, u64>,
    /// What a few of the failures said.
    pub error_samples: Vec<String>,
    /// Idle connections that the server had closed.
    pub reconnects: u64,
    /// Whether the figures describe the server.
    pub valid: bool,
    /// Why they do not.
    pub invalid_because: Vec<String>,
    /// The requirements.
    pub requirements: Vec<Checked>,
}

impl Report {
    pub(crate) fn new(options: &Options, stats: &Stats, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64().max(1e-9);
        let invalid_because = stats.faults();
        let open = options.closed.is_none();
        let lower = |name: String| name.to_ascii_lowercase();
        let mut report = Self {
            version: env!("CARGO_PKG_VERSION"),
            workload: lower(format!("{:?}", options.workload)),
            target: options.target.clone(),
            mode: if open { "open" } else { "closed" },
            arrivals: open.then(|| lower(format!("{:?}", options.arrivals))),
            rate: open.then_some(options.rate),
            senders: options.closed,
            seed: options.seed,
            elapsed_s: (elapsed.as_secs_f64() * 1e3).round() / 1e3,
            requests: stats.requests,
            ok: stats.ok,
            success_percent: stats.ok as f64 * 100.0 / stats.requests.max(1) as f64,
            ok_per_second: stats.ok as f64 / seconds,
            tokens: stats.tokens,
            tokens_per_second: stats.tokens as f64 / seconds,
            latency_ms: Percentiles::of(&stats.latency),
            service_ms: Percentiles::of(&stats.service),
            ttft_ms: Percentiles::of(&stats.ttft),
            itl_ms: Percentiles::of(&stats.itl),
            dispatch_lag_ms: Percentiles::of(&stats.dispatch_lag),
            loop_lag_ms: Percentiles::of(&stats.loop_lag),
            errors: stats.errors.clone(),
            error_samples: stats.error_samples.clone(),
            reconnects: stats.reconnects,
            valid: invalid_because.is_empty(),
            invalid_because,
            requirements: Vec::new(),
        };
        report.requirements = options.require.iter().map(|requirement| report.check(requirement)).collect();
        report
    }

    fn check(&self, requirement: &Requirement) -> Checked {
        Checked { requirement: requirement.to_string(), value: requirement.value(self), met: requirement.is_met(self) }
    }

    /// Whether every requirement holds.
    pub fn requirements_met(&self) -> bool {
        self.requirements.iter().all(|checked| checked.met)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = match (&self.arrivals, self.rate, self.senders) {
            (Some(arrivals), Some(rate), _) => format!("open loop, {arrivals} arrivals, {rate} requests/s"),
            (_, _, senders) => format!("closed loop, {} senders", senders.unwrap_or(0)),
        };
        writeln!(f, "{} on {}: {load}, seed {}", self.workload, self.target, self.seed)?;
        writeln!(
            f,
            "{} requests in {:.1} s: {} good ({:.2} %), {:.2}/s",
            self.requests, self.elapsed_s, self.ok, self.success_percent, self.ok_per_second
        )?;
        if self.tokens > 0 {
            writeln!(f, "{} tokens, {:.1}/s", self.tokens, self.tokens_per_second)?;
        }
        writeln!(f, "{:<22}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}", "ms", "p50", "p90", "p95", "p99", "p99.9", "max")?;
        for (name, series) in [
            ("latency", &self.latency_ms),
            ("service (uncorrected)", &self.service_ms),
            ("first token", &self.ttft_ms),
            ("between tokens", &self.itl_ms),
            ("own lag, sending", &self.dispatch_lag_ms),
            ("own lag, reading", &self.loop_lag_ms),
        ] {
            if let Some(p) = series {
                writeln!(
                    f,
                    "{name:<22}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>10.1}{:>10.1}",
                    p.p50, p.p90, p.p95, p.p99, p.p99_9, p.max
                )?;
            }
        }
        for (kind, count) in &self.errors {
            writeln!(f, "failed: {count} x {kind}")?;
        }
        for sample in &self.error_samples {
            writeln!(f, "  e.g. {sample}")?;
        }
        for checked in &self.requirements {
            let found = checked.value.map_or("nothing measured".to_owned(), |value| format!("measured {value:.3}"));
            let mark = if checked.met { "✓" } else { "✗" };
            writeln!(f, "{mark} {} ({found})", checked.requirement)?;
        }
        for reason in &self.invalid_because {
            writeln!(f, "INVALID: {reason}")?;
        }
        Ok(())
    }
}
