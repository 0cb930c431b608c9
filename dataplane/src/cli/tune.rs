//! `millrace tune`: measures this machine with the model and proposes engine settings, with the arithmetic.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use millrace_inference::kv::KvFormat;
use millrace_inference::measure::{Extent, Meter};
use millrace_inference::model::Model;
use serde_json::json;

use super::SettingFlags;
use super::bench::{failed, load};
use super::print::{note, out};
use crate::config::{self, Config, EngineOptions};
use crate::models;
use crate::plan::Plan;
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct TuneArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Tokens of a typical request, prompt and reply
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(32..=1_000_000))]
    request_tokens: u32,
    /// Longest gap between two tokens of a running reply while a prompt is being read, in milliseconds
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    gap_ms: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Sequences that are measured together: enough that weights are read once for many.
const BATCH: usize = 16;
const CONTEXT: usize = 128;
const STEPS: usize = 8;
const PREFILL: usize = 256;
const REPEATS: usize = 3;
/// More threads must bring so much to be worth their interference with the rest of the machine.
const GAIN_MIN: f64 = 1.03;
/// Prompt tokens are handed out in whole KV blocks; bounds of the setting.
const CHUNK_STEP: usize = 16;
const CHUNK_MAX: usize = 4096;
/// Least value of the setting.
const KV_MIB_MIN: usize = 16;
/// Larger batches make every reply slower and bring hardly more in total.
const SEQUENCES_MAX: usize = 256;

/// What was measured with some number of threads, in tokens a second.
#[derive(Clone, Copy, Debug)]
struct Speed {
    threads: usize,
    alone: f64,
    batch: f64,
    prefill: f64,
}

/// Proposed settings.
#[derive(Debug, PartialEq, Eq)]
struct Proposal {
    threads: usize,
    prefill_chunk: usize,
    kv_mib: usize,
    sequences_max: usize,
}

pub(super) fn run(args: &TuneArgs) -> Result<ExitCode, Trouble> {
    let config = config::load(&args.settings.flags)?.config;
    let (model, name) = load(&config)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let speeds = candidates(cores)
        .map(|threads| measure(&model, threads, config.engine.kv_type))
        .collect::<Result<Vec<_>, Trouble>>()?;
    let speed = choose(&speeds);
    let chunk = chunk(&speed, args);
    let memory = Memory::of(&config, &model, chunk, args)?;
    let proposal = propose(&speed, chunk, &memory);
    if args.json {
        let measured: Vec<_> = speeds
            .iter()
            .map(|s| json!({"threads": s.threads, "alone": s.alone, "batch": s.batch, "prefill": s.prefill}))
            .collect();
        let line = json!({
            "model": name, "measured": measured,
            "engine": {
                "threads": proposal.threads, "prefill_chunk": proposal.prefill_chunk,
                "kv_mib": proposal.kv_mib, "sequences_max": proposal.sequences_max,
            },
        });
        out(&format!("{line}\n"));
    } else {
        out(&explain(&proposal, &speed, &memory, args));
    }
    Ok(ExitCode::SUCCESS)
}

/// 1, 2, 4, ... and all cores.
fn candidates(cores: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |threads| Some(threads * 2))
        .take_while(move |&threads| threads < cores)
        .chain([cores])
}

fn measure(model: &Arc<Model>, threads: usize, kv_format: KvFormat) -> Result<Speed, Trouble> {
    let extent = Extent { prefill_max: PREFILL, sequences_max: BATCH, context: CONTEXT, steps: STEPS, kv_format };
    let mut meter = Meter::new(Arc::clone(model), threads, &extent).map_err(|error| failed(&error))?;
    let mut decode = |sequences| meter.decode(sequences, CONTEXT, STEPS, REPEATS).map_err(|error| failed(&error));
    let (alone, batch) = (decode(1)?.best_per_second(), decode(BATCH)?.best_per_second());
    let prefill = meter.prefill(PREFILL, REPEATS).map_err(|error| failed(&error))?.best_per_second();
    note(&format!("{threads} threads: alone {alone:.0}, {BATCH} together {batch:.0}, prompt {prefill:.0} tokens/s"));
    Ok(Speed { threads, alone, batch, prefill })
}

/// The fewest threads that are about as fast as any.
fn choose(speeds: &[Speed]) -> Speed {
    let mut chosen = speeds[0];
    for speed in &speeds[1..] {
        if speed.batch >= chosen.batch * GAIN_MIN {
            chosen = *speed;
        }
    }
    chosen
}

/// Prompt tokens that fit between two tokens of a running reply.
fn chunk(speed: &Speed, args: &TuneArgs) -> usize {
    let step_s = BATCH as f64 / speed.batch;
    let left_s = (f64::from(args.gap_ms) / 1e3 - step_s).max(0.0);
    ((left_s * speed.prefill) as usize / CHUNK_STEP * CHUNK_STEP).clamp(CHUNK_STEP, CHUNK_MAX)
}

/// Bytes, as the memory plan counts them.
#[derive(Clone, Copy, Debug)]
struct Memory {
    limit: u64,
    /// Everything but sequences.
    others: u64,
    /// Keys and values of one request.
    request: u64,
    /// Scratch of one sequence.
    scratch: u64,
}

impl Memory {
    fn of(config: &Config, model: &Model, chunk: usize, args: &TuneArgs) -> Result<Memory, Trouble> {
        let encoder = models::encoder(config)?.map_or(0, |found| found.bytes);
        let total = |sequences_max: usize| {
            let mut config = config.clone();
            config.engine = EngineOptions { kv_mib: 0, sequences_max, prefill_chunk: chunk, ..config.engine };
            Plan::new(&config, model.weights_bytes() as u64, encoder).total()
        };
        Ok(Memory {
            limit: config.memory_limit,
            others: total(0),
            request: u64::from(args.request_tokens) * model.info().kv_token_bytes(config.engine.kv_type) as u64,
            scratch: total(1) - total(0),
        })
    }

    fn room(&self) -> u64 {
        self.limit.saturating_sub(self.others)
    }
}

fn propose(speed: &Speed, chunk: usize, memory: &Memory) -> Proposal {
    let sequences = memory.room() / (memory.request + memory.scratch);
    let sequences = usize::try_from(sequences).unwrap_or(SEQUENCES_MAX).clamp(1, SEQUENCES_MAX);
    let kv = (sequences as u64 * memory.request).next_multiple_of(1 << 20);
    Proposal {
        threads: speed.threads,
        prefill_chunk: chunk,
        kv_mib: usize::try_from(kv >> 20).unwrap_or(usize::MAX).max(KV_MIB_MIN),
        sequences_max: sequences,
    }
}

fn explain(proposal: &Proposal, speed: &Speed, memory: &Memory, args: &TuneArgs) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let step_ms = BATCH as f64 / speed.batch * 1e3;
    let mut text = format!(
        "threads        {} give {:.0} tokens/s in a batch of {BATCH}, {:.0} alone\n",
        speed.threads, speed.batch, speed.alone
    );
    let _ = writeln!(
        text,
        "prefill_chunk  (gap {} ms - step {step_ms:.1} ms) x {:.0} prompt tokens/s, in blocks of {CHUNK_STEP}",
        args.gap_ms, speed.prefill
    );
    let _ = writeln!(
        text,
        "sequences_max  (limit {:.0} MiB - other parts of the plan {:.0} MiB) / (request of {} tokens {:.1} MiB + \
         scratch {:.1} MiB), at most {SEQUENCES_MAX}",
        mib(memory.limit),
        mib(memory.others),
        args.request_tokens,
        mib(memory.request),
        mib(memory.scratch)
    );
    let _ = writeln!(text, "kv_mib         {} x {:.1} MiB", proposal.sequences_max, mib(memory.request));
    if memory.room() < memory.request + memory.scratch {
        let _ = writeln!(text, "\nThe memory limit does not hold one such request: raise MEMORY_LIMIT.");
    }
    let _ = write!(
        text,
        "\nFor millrace.toml:\n\n[engine]\nthreads = {}\nprefill_chunk = {}\nkv_mib = {}\nsequences_max = {}\n",
        proposal.threads, proposal.prefill_chunk, proposal.kv_mib, proposal.sequences_max
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(request_tokens: u32, gap_ms: u32) -> TuneArgs {
        TuneArgs { settings: SettingFlags::default(), request_tokens, gap_ms, json: false }
    }

    fn speed(threads: usize, batch: f64) -> Speed {
        Speed { threads, alone: 100.0, batch, prefill: 1000.0 }
    }

    #[test]
    fn a_thread_that_brings_nothing_is_not_proposed() {
        assert_eq!(choose(&[speed(1, 400.0), speed(2, 800.0), speed(4, 810.0)]).threads, 2);
        assert_eq!(choose(&[speed(1, 400.0), speed(2, 390.0), speed(3, 1000.0)]).threads, 3);
        assert_eq!(candidates(6).collect::<Vec<_>>(), [1, 2, 4, 6]);
        assert_eq!(candidates(1).collect::<Vec<_>>(), [1]);
    }

    fn memory(room: u64) -> Memory {
        Memory { limit: room + 100, others: 100, request: 3 << 20, scratch: 1 << 20 }
    }

    #[test]
    fn the_chunk_fills_what_the_gap_leaves() {
        // A step of 16 sequences takes 20 ms, so 80 ms are left for 80 prompt tokens.
        assert_eq!(chunk(&speed(2, 800.0), &args(2048, 100)), 80);
        assert_eq!(chunk(&speed(2, 800.0), &args(2048, 5)), CHUNK_STEP);
    }

    #[test]
    fn memory_is_given_to_whole_requests() {
        let proposal = propose(&speed(2, 800.0), 80, &memory(401 << 20));
        assert_eq!(proposal, Proposal { threads: 2, prefill_chunk: 80, kv_mib: 300, sequences_max: 100 });
        let least = propose(&speed(2, 800.0), 80, &memory(0));
        assert_eq!((least.sequences_max, least.kv_mib), (1, KV_MIB_MIN));
    }
}
