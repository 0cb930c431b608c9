//! What can be set.

use crate::Requirement;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WorkloadKind {
    /// Streaming chat completions: time to first token, inter-token latency, total, tokens per second.
    Chat,
    /// Signed Standard Webhooks events: time until the durable acknowledgement.
    Webhook,
    /// Signed Slack events, direct messages each: time until the durable acknowledgement.
    Slack,
}

/// How requests arrive in the open loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arrivals {
    /// Exponential gaps: what many independent senders look like.
    Poisson,
    /// Equal gaps.
    Constant,
}

/// Load generator with latency counted from the intended send time.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "millrace-load",
    version,
    after_help = "\
Latency, TTFT and their percentiles count from the intended start of a request. `service` counts from the
moment it was really sent. Exit codes: 0 all well, 1 a requirement was not met, 2 wrong usage or no server,
3 the report is invalid because the generator could not keep its own schedule.

Examples:
  millrace-load --target http://127.0.0.1:8080 --workload chat --rate 4 --duration 30s
  millrace-load --target http://127.0.0.1:8080 --workload webhook --account shop --rate 200 \\
                --require 'p99<500ms' --require 'success>=99.5%'"
)]
pub struct Options {
    /// Address of the server, for example http://127.0.0.1:8080.
    #[arg(long)]
    pub target: String,
    /// Load a host that is not this machine. Only with the consent of its owner.
    #[arg(long)]
    pub allow_remote: bool,
    /// What to send.
    #[arg(long, value_enum, default_value = "chat")]
    pub workload: WorkloadKind,
    /// Open loop: requests per second.
    #[arg(long, default_value_t = 1.0, value_parser = rate)]
    pub rate: f64,
    /// Open loop: how requests arrive.
    #[arg(long, value_enum, default_value = "poisson")]
    pub arrivals: Arrivals,
    /// Closed loop with this many senders instead: each sends its next request when the last is answered. Finds
    /// the highest throughput; its latencies hide stalls.
    #[arg(long, value_name = "SENDERS", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub closed: Option<u32>,
    /// How long to send. What is under way then is waited for.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// Stop after this many requests even if the duration is not over.
    #[arg(long)]
    pub requests: Option<u64>,
    /// Requests that start in this first part of the duration are not counted.
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub warmup: Duration,
    /// A request that takes longer, from its intended start, has failed.
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
    /// Requests under way at once; an arrival above it fails at once and is counted as such.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub in_flight_max: u32,
    /// Connections at once. A request waits for one when all are in use, and that counts as its time: so do senders with a
    /// pool, and a server that stalled is not flooded with new connections. [default: as many as requests are under way]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub connections_max: Option<u32>,
    /// Open a fresh connection for each request instead of keeping connections alive.
    #[arg(long)]
    pub fresh_connections: bool,
    /// Repeats prompts and arrivals exactly.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// API key (chat).
    #[arg(long, env = "MILLRACE_API_KEY", hide_env_values = true, default_value = "")]
    pub key: String,
    /// Model name (chat); empty takes the server's default.
    #[arg(long, default_value = "")]
    pub model: String,
    /// Longest answer in tokens (chat).
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_tokens: u32,
    /// Go on after the end of text, so that every answer has the same length (chat).
    #[arg(long)]
    pub ignore_eos: bool,
    /// Spread requests over this many remembered sessions; 0 sends requests without memory (chat).
    #[arg(long, default_value_t = 0)]
    pub sessions: u32,
    /// Channel account (webhook, slack).
    #[arg(long, default_value = "load")]
    pub account: String,
    /// Signing secret: `whsec_...` (webhook), or that of the Slack app (slack).
    #[arg(long, env = "MILLRACE_LOAD_SECRET", hide_env_values = true, default_value = "")]
    pub secret: String,
    /// Spread events over this many conversations (webhook, slack).
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub conversations: u32,
    /// What must hold, for example `p99<500ms`, `ttft.p95<=1s`, `success>=99.5%`, `rps>=50`; repeatable.
    #[arg(long, value_name = "CONDITION")]
    pub require: Vec<Requirement>,
    /// Write the report as JSON to a file; `-` writes it to standard output instead of the table.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1_000_000.0).contains(&rate) => Ok(rate),
        _ => Err("a rate is a number between 0.001 and 1000000 requests per second".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    millrace_proto::retry::parse_duration(text)
}
