//! Measures the engine on a model: prefill, decoding of one stream, decoding of batches. Prints JSON lines.
//!
//! `decode MODEL.gguf [--threads N] [--repeats N] [--only pp|tg|batch] [--size N]`
//!
//! `cpu` figures count only the time that the first thread really ran: on a machine shared with others they tell how
//! good the code is, the wall-clock figures tell what was left of the machine.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use millrace_inference::backend::{Backend, CpuBackend, CpuConfig, LogitsBuf, LogitsWanted, StepPlan};
use millrace_inference::kernel::instruction_set;
use millrace_inference::kv::{BlockId, blocks_for};
use millrace_inference::model::Model;

/// Tokens already in each sequence of a batch when decoding starts.
const BATCH_CONTEXT: usize = 128;
const BATCH_STEPS: usize = 24;
const BATCHES: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

fn main() {
    let mut args = std::env::args().skip(1);
    let (mut path, mut threads, mut repeats, mut only, mut size) = (None, 2, 3, None, 0);
    while let Some(arg) = args.next() {
        let mut number = || args.next().and_then(|value| value.parse().ok()).expect("a number follows the flag");
        match arg.as_str() {
            "--threads" => threads = number(),
            "--repeats" => repeats = number(),
            "--size" => size = number(),
            "--only" => only = args.next(),
            _ => path = Some(arg),
        }
    }
    let path = path.expect("usage: decode MODEL.gguf [--threads N] [--repeats N] [--only pp|tg|batch]");
    let started = Instant::now();
    let model = Model::load(Path::new(&path)).expect("the model loads");
    println!(
        "{{\"model\":{:?},\"set\":{:?},\"threads\":{threads},\"load_ms\":{:.0}}}",
        model.info().name,
        instruction_set(),
        started.elapsed().as_secs_f64() * 1e3
    );
    let mut bench = Bench::new(model, threads, repeats);
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    let sized = |sizes: &[usize]| -> Vec<usize> { if size > 0 { vec![size] } else { sizes.to_vec() } };
    if wanted("pp") {
        sized(&[128, 512]).into_iter().for_each(|tokens| bench.prefill(tokens));
    }
    if wanted("tg") {
        sized(&[128]).into_iter().for_each(|tokens| bench.decode(tokens));
    }
    if wanted("batch") {
        sized(&BATCHES).into_iter().for_each(|batch| bench.batch(batch));
    }
}

struct Bench {
    backend: CpuBackend,
    logits: LogitsBuf,
    plan: StepPlan,
    repeats: usize,
}

impl Bench {
    fn new(model: Arc<Model>, threads: usize, repeats: usize) -> Bench {
        let batch_most = BATCHES[BATCHES.len() - 1];
        let blocks = batch_most * blocks_for(BATCH_CONTEXT + BATCH_STEPS);
        let config = CpuConfig {
            threads,
            cpus: None,
            nice: 0,
            kv_bytes_max: blocks * 16 * model.info().kv_token_bytes,
            context_max: 2048,
            step_tokens_max: 512,
            step_logits_max: batch_most,
        };
        let mut backend = CpuBackend::new(model, &config).expect("the backend starts");
        backend.attach();
        let logits = LogitsBuf::new(&backend.limits());
        Bench { backend, logits, plan: StepPlan::new(), repeats }
    }

    fn step(&mut self) -> Time {
        let started = Clock::start();
        self.backend.step(&self.plan, &mut self.logits).expect("the plan is within limits");
        started.elapsed()
    }

    fn prefill(&mut self, tokens: usize) {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| 100 + i * 37 % 40_000).collect();
        let blocks: Vec<BlockId> = (0..blocks_for(tokens) as u32).map(BlockId).collect();
        self.plan.clear();
        self.plan.push(&ids, 0, &blocks, LogitsWanted::Last);
        let times: Vec<Time> = (0..=self.repeats).map(|_| self.step()).skip(1).collect();
        report("prefill", tokens, tokens, &times);
    }

    /// One stream: every step from an empty context to `tokens` tokens.
    fn decode(&mut self, tokens: usize) {
        let blocks: Vec<BlockId> = (0..blocks_for(tokens) as u32).map(BlockId).collect();
        let mut times = Vec::new();
        for _ in 0..self.repeats {
            let started = Clock::start();
            for position in 0..tokens {
                self.plan.clear();
                self.plan.push(&[100 + position as u32], position, &blocks, LogitsWanted::Last);
                self.step();
            }
            times.push(started.elapsed());
        }
        report("decode", tokens, tokens, &times);
    }

    fn batch(&mut self, batch: usize) {
        let each = blocks_for(BATCH_CONTEXT + BATCH_STEPS) as u32;
        let tables: Vec<Vec<BlockId>> =
            (0..batch as u32).map(|b| (b * each..(b + 1) * each).map(BlockId).collect()).collect();
        let mut times = Vec::new();
        for step in 0..BATCH_STEPS {
            self.plan.clear();
            for (b, table) in tables.iter().enumerate() {
                self.plan.push(&[100 + b as u32], BATCH_CONTEXT + step, table, LogitsWanted::Last);
            }
            times.push(self.step());
        }
        report("batch", batch, batch, &times);
    }
}

/// Seconds of one run: on the wall, and on the processor for this thread.
#[derive(Clone, Copy)]
struct Time {
    wall: f64,
    cpu: f64,
}

struct Clock {
    wall: Instant,
    cpu: f64,
}

impl Clock {
    fn start() -> Clock {
        Clock { wall: Instant::now(), cpu: cpu_seconds() }
    }

    fn elapsed(&self) -> Time {
        Time { wall: self.wall.elapsed().as_secs_f64(), cpu: cpu_seconds() - self.cpu }
    }
}

/// Time that this thread has run, from the kernel's scheduler statistics; 0 where there are none.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) * 1e-9
}

/// Best and median of several runs that each gave `tokens` tokens. On a shared machine the best is the cleanest.
fn report(what: &str, size: usize, tokens: usize, times: &[Time]) {
    let sorted = |pick: fn(&Time) -> f64| {
        let mut times: Vec<f64> = times.iter().map(pick).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let (wall, cpu) = (sorted(|time| time.wall), sorted(|time| time.cpu));
    let (best, median, cpu) = (wall[0], wall[wall.len() / 2], cpu[0]);
    println!(
        "{{\"{what}\":{size},\"best_ms\":{:.3},\"median_ms\":{:.3},\"best_tok_s\":{:.1},\"median_tok_s\":{:.1},\"cpu_tok_s\":{:.1}}}",
        best * 1e3,
        median * 1e3,
        tokens as f64 / best,
        tokens as f64 / median,
        tokens as f64 / cpu
    );
}
