//! Load over QUIC in a closed loop: HTTP/3 requests, or echoes of `millrace/1`. Prints one JSON object.

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use millrace_loadtest::quic::{Dialer, H3Client, H3Request, NativeClient};
use millrace_proto::http3;
use millrace_proto::native::{self, Echo, ServerFrame};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// A request on each stream.
    H3,
    /// Echo frames on streams that stay open.
    Native,
}

/// Load over QUIC in a closed loop.
#[derive(Debug, Parser)]
#[command(name = "millrace-quic-load", version)]
struct Options {
    /// Address of the server's TLS port, for example 127.0.0.1:8443. Only this machine is loaded.
    #[arg(long)]
    target: SocketAddr,
    /// Name in the server's certificate.
    #[arg(long, default_value = "localhost")]
    server_name: String,
    /// PEM file with the certificates to trust.
    #[arg(long)]
    trust: PathBuf,
    /// API key.
    #[arg(long, env = "MILLRACE_API_KEY", hide_env_values = true, default_value = "")]
    key: String,
    /// What to speak.
    #[arg(long, value_enum)]
    protocol: Protocol,
    /// Path of the HTTP/3 requests.
    #[arg(long, default_value = "/v1/echo")]
    path: String,
    /// Text of the echoes; with HTTP/3 on another path than /v1/echo nothing is sent.
    #[arg(long, default_value = "The quick brown fox jumps over the lazy dog.")]
    text: String,
    /// Connections.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    connections: u32,
    /// Streams at once on each connection.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=100))]
    streams: u32,
    /// Echoes under way on each stream.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    depth: u32,
    /// How long to measure.
    #[arg(long, default_value = "5s", value_parser = millrace_proto::retry::parse_duration)]
    duration: Duration,
    /// What is sent before and not counted.
    #[arg(long, default_value = "1s", value_parser = millrace_proto::retry::parse_duration)]
    warmup: Duration,
}

/// Longest latency kept apart; longer ones count as this.
const LATENCY_US_MAX: u64 = 60_000_000;

/// What one sender counts for all.
struct Tally {
    from: Instant,
    until: Instant,
    times_us: RefCell<Histogram<u64>>,
}

impl Tally {
    fn count(&self, began: Instant) {
        let now = Instant::now();
        if began >= self.from && now <= self.until {
            let took = u64::try_from((now - began).as_micros()).unwrap_or(u64::MAX);
            self.times_us.borrow_mut().saturating_record(took);
        }
    }

    fn over(&self) -> bool {
        Instant::now() >= self.until
    }
}

fn main() -> anyhow::Result<()> {
    let options = Rc::new(Options::parse());
    if !options.target.ip().is_loopback() {
        bail!("{} is not this machine", options.target);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::task::LocalSet::new().run_until(load(options)))
}

async fn load(options: Rc<Options>) -> anyhow::Result<()> {
    let protocol = match options.protocol {
        Protocol::H3 => http3::ALPN,
        Protocol::Native => native::ALPN,
    };
    let dialer = Dialer::new(options.target, &options.server_name, &options.trust, protocol)?;
    let mut connections = Vec::new();
    for _ in 0..options.connections {
        connections.push(dialer.dial().await?);
    }
    let from = Instant::now() + options.warmup;
    let times_us = RefCell::new(Histogram::new_with_max(LATENCY_US_MAX, 3).context("a histogram")?);
    let tally = Rc::new(Tally { from, until: from + options.duration, times_us });
    let mut senders = Vec::new();
    for connection in connections {
        match options.protocol {
            Protocol::H3 => {
                let client = Rc::new(H3Client::start(connection).await?);
                for _ in 0..options.streams {
                    senders.push(tokio::task::spawn_local(requests(client.clone(), options.clone(), tally.clone())));
                }
            }
            Protocol::Native => {
                let client = Rc::new(NativeClient::introduce(connection, &options.key, "millrace-quic-load").await?);
                for _ in 0..options.streams {
                    senders.push(tokio::task::spawn_local(echoes(client.clone(), options.clone(), tally.clone())));
                }
            }
        }
    }
    for sender in senders {
        sender.await??;
    }
    let times_us = tally.times_us.borrow();
    let report = serde_json::json!({
        "messages": times_us.len(),
        "per_s": times_us.len() as f64 / options.duration.as_secs_f64(),
        "p50_us": times_us.value_at_quantile(0.5),
        "p99_us": times_us.value_at_quantile(0.99),
    });
    println!("{report}");
    Ok(())
}

async fn requests(client: Rc<H3Client>, options: Rc<Options>, tally: Rc<Tally>) -> anyhow::Result<()> {
    let echo = options.path == "/v1/echo";
    let body = if echo { serde_json::json!({"id": 7, "text": options.text}).to_string() } else { String::new() };
    let request = H3Request::new(&options.server_name, &options.path, &options.key, body.as_bytes());
    while !tally.over() {
        let began = Instant::now();
        let (status, answer) = client.exchange(&request).await?;
        if status != 200 || (echo && answer != body.as_bytes()) {
            bail!("{} was answered with {status}: {}", options.path, String::from_utf8_lossy(&answer));
        }
        tally.count(began);
    }
    Ok(())
}

async fn echoes(client: Rc<NativeClient>, options: Rc<Options>, tally: Rc<Tally>) -> anyhow::Result<()> {
    let mut stream = client.open().await?;
    let mut under_way = VecDeque::new();
    let mut next_id = 0;
    while !tally.over() {
        while under_way.len() < options.depth as usize {
            stream.put(&Echo { id: next_id, text: options.text.clone() });
            under_way.push_back((next_id, Instant::now()));
            next_id += 1;
        }
        stream.flush().await?;
        // Half of them at a time, so that the answers and the next echoes share datagrams.
        for _ in 0..options.depth.div_ceil(2) {
            let (id, began) = under_way.pop_front().context("something is under way")?;
            let same = stream
                .next(|frame| match frame {
                    ServerFrame::Echoed(echo) => Ok(echo.id.to_native() == id && echo.text.as_str() == options.text),
                    ServerFrame::Fault(fault) => bail!("{}", fault.message),
                    _ => bail!("not an echo"),
                })
                .await??;
            if !same {
                bail!("echo {id} came back changed");
            }
            tally.count(began);
        }
    }
    Ok(())
}
