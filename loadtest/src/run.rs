//! The run: starts requests when the schedule says so and counts what comes back.
//!
//! Everything happens on one thread. That keeps the clock readings comparable, and the lag of that thread is
//! itself measured: a report whose generator was late is invalid.

use crate::client::{Connections, Failure};
use crate::stats::{IN_FLIGHT_LIMIT, Stats};
use crate::{Options, Report, Schedule, Target, Workload};
use millrace_proto::sse;
use serde::Deserialize;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until, timeout_at};

/// How often the lag of the thread is probed.
const LAG_PROBE: Duration = Duration::from_millis(5);
/// How much of a refusal is kept for the report.
const REFUSAL_BYTES_MAX: usize = 300;

/// Runs the load that `options` describe and reports what came out. Fails only when it cannot start.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let target = Target::resolve(&options.target, options.allow_remote)?;
    let run_id = unix_time().as_millis() as u64;
    let workload = Workload::new(options, &target, run_id)?;
    tokio::net::TcpStream::connect(target.address)
        .await
        .map_err(|error| anyhow::anyhow!("no server answers at {} ({error}); start it first", options.target))?;
    let start = Instant::now();
    let load = Rc::new(Load {
        connections: Connections::new(target, !options.fresh_connections, options.connections_max),
        workload,
        stats: RefCell::default(),
        in_flight: Cell::new(0),
        start,
        counted_from: start + options.warmup,
        last_end: Cell::new(start),
        options: options.clone(),
    });
    let local = LocalSet::new();
    local
        .run_until(async {
            let probe = tokio::task::spawn_local(probe_lag(Rc::clone(&load)));
            match options.closed {
                Some(senders) => closed_loop(&load, senders).await,
                None => open_loop(&load).await,
            }
            probe.abort();
        })
        .await;
    let mut stats = load.stats.borrow().clone();
    stats.reconnects = load.connections.reconnects();
    Ok(Report::new(options, &stats, load.last_end.get().saturating_duration_since(load.counted_from)))
}

struct Load {
    connections: Connections,
    workload: Workload,
    stats: RefCell<Stats>,
    in_flight: Cell<u32>,
    start: Instant,
    counted_from: Instant,
    last_end: Cell<Instant>,
    options: Options,
}

async fn open_loop(load: &Rc<Load>) {
    let options = &load.options;
    let schedule = Schedule::new(options.arrivals, options.rate, options.seed).take_while(|at| *at < options.duration);
    let mut tasks = JoinSet::new();
    for (n, at) in (0..options.requests.unwrap_or(u64::MAX)).zip(schedule) {
        let intended = load.start + at;
        sleep_until(intended).await;
        if load.in_flight.get() >= options.in_flight_max {
            if intended >= load.counted_from {
                let mut stats = load.stats.borrow_mut();
                stats.requests += 1;
                stats.fail(IN_FLIGHT_LIMIT, "");
            }
            continue;
        }
        load.in_flight.set(load.in_flight.get() + 1);
        let load = Rc::clone(load);
        tasks.spawn_local(async move {
            one(&load, n, intended).await;
            load.in_flight.set(load.in_flight.get() - 1);
        });
        // What has ended is forgotten at once; looking through all that is under way would make a stall longer.
        while let Some(ended) = tasks.try_join_next() {
            ended.expect("a request task does not panic");
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a request task does not panic");
    }
}

async fn closed_loop(load: &Rc<Load>, senders: u32) {
    let next = Rc::new(Cell::new(0));
    let end = load.start + load.options.duration;
    let tasks: Vec<_> = (0..senders)
        .map(|_| {
            let (load, next) = (Rc::clone(load), Rc::clone(&next));
            tokio::task::spawn_local(async move {
                while Instant::now() < end && next.get() < load.options.requests.unwrap_or(u64::MAX) {
                    let n = next.get();
                    next.set(n + 1);
                    one(&load, n, Instant::now()).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a sender task does not panic");
    }
}

/// Sends request `n` and counts its outcome, if it does not belong to the warm-up.
async fn one(load: &Load, n: u64, intended: Instant) {
    let started = Instant::now();
    let request = load.workload.request(n, unix_time().as_secs());
    let mut answer = Answer::new(load.workload.streams_tokens(), intended);
    let mut read = |status: u16, bytes: &[u8], at: Instant| answer.read(status, bytes, at);
    let exchange = load.connections.exchange(&request, &mut read);
    let result = match timeout_at(intended + load.options.timeout, exchange).await {
        Ok(result) => result.and_then(|head| answer.check(head.status)),
        Err(_) => Err(Failure::new("timeout", format!("no full answer within {:?}", load.options.timeout))),
    };
    let end = Instant::now();
    if intended < load.counted_from {
        return;
    }
    load.last_end.set(load.last_end.get().max(end));
    let mut stats = load.stats.borrow_mut();
    stats.requests += 1;
    stats.dispatch_lag.record(started - intended);
    match result {
        Ok(tokens) => {
            stats.ok += 1;
            stats.tokens += tokens;
            stats.latency.record(end - intended);
            stats.service.record(end - started);
            if let Some(at) = answer.first_token {
                stats.ttft.record(at - intended);
            }
            for gap in &answer.gaps {
                stats.itl.record(*gap);
            }
        }
        Err(failure) => stats.fail(&failure.kind, &failure.detail),
    }
}

/// Measures how late a timer fires: as late as this thread reads answers.
async fn probe_lag(load: Rc<Load>) {
    loop {
        let due = Instant::now() + LAG_PROBE;
        sleep_until(due).await;
        if due >= load.counted_from {
            load.stats.borrow_mut().loop_lag.record(Instant::now() - due);
        }
    }
}

/// What is read of an answer.
struct Answer {
    streams_tokens: bool,
    decoder: sse::Decoder,
    intended: Instant,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    gaps: Vec<Duration>,
    chunks: u64,
    usage_tokens: Option<u64>,
    finished: bool,
    done: bool,
    error: Option<Failure>,
    refusal: Vec<u8>,
}

/// The parts of a stream event that are measured. Other fields are skipped.
#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<EventUsage>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct EventUsage {
    completion_tokens: u64,
}

impl Answer {
    fn new(streams_tokens: bool, intended: Instant) -> Self {
        Self {
            streams_tokens,
            decoder: sse::Decoder::default(),
            intended,
            first_token: None,
            last_token: None,
            gaps: Vec::new(),
            chunks: 0,
            usage_tokens: None,
            finished: false,
            done: false,
            error: None,
            refusal: Vec::new(),
        }
    }

    fn read(&mut self, status: u16, bytes: &[u8], at: Instant) {
        if !(200..300).contains(&status) || !self.streams_tokens {
            let room = REFUSAL_BYTES_MAX.saturating_sub(self.refusal.len());
            self.refusal.extend_from_slice(&bytes[..bytes.len().min(room)]);
            return;
        }
        let mut decoder = std::mem::take(&mut self.decoder);
        if let Err(error) = decoder.feed(bytes, |data| self.event(data, at)) {
            self.error.get_or_insert(Failure::new("malformed answer", error.to_string()));
        }
        self.decoder = decoder;
    }

    fn event(&mut self, data: &str, at: Instant) {
        if data == "[DONE]" {
            self.done = true;
            return;
        }
        let event: Event = match serde_json::from_str(data) {
            Ok(event) => event,
            Err(error) => {
                self.error.get_or_insert(Failure::new("malformed answer", format!("stream event: {error}")));
                return;
            }
        };
        if let Some(error) = event.error {
            let text = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            self.error.get_or_insert(Failure::new("stream error", text));
        }
        if let Some(usage) = event.usage {
            self.usage_tokens = Some(usage.completion_tokens);
        }
        for choice in event.choices {
            self.finished |= choice.finish_reason.is_some();
            if choice.delta.content.is_some_and(|content| !content.is_empty()) {
                self.chunks += 1;
                debug_assert!(at >= self.intended);
                match self.last_token.replace(at) {
                    Some(before) => self.gaps.push(at - before),
                    None => self.first_token = Some(at),
                }
            }
        }
    }

    /// The number of tokens of a good answer.
    fn check(&mut self, status: u16) -> Result<u64, Failure> {
        if !(200..300).contains(&status) {
            let text = String::from_utf8_lossy(&self.refusal).trim().to_owned();
            return Err(Failure::new(format!("status {status}"), text));
        }
        if !self.streams_tokens {
            return Ok(0);
        }
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        match (self.done && self.finished, self.first_token) {
            (false, _) => Err(Failure::new("stream cut", "the stream ended without finish_reason and [DONE]")),
            (true, None) => Err(Failure::new("empty answer", "the stream had no text")),
            (true, Some(_)) => Ok(self.usage_tokens.unwrap_or(self.chunks)),
        }
    }
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
