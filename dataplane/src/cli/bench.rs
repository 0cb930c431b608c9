//! `millrace bench engine`: how fast the engine computes on this machine, beside what its memory allows.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Subcommand};
use millrace_inference::kernel::instruction_set;
use millrace_inference::measure::{Extent, Meter, Sample, read_bandwidth};
use millrace_inference::model::Model;
use serde_json::json;

use super::SettingFlags;
use super::print::{note, out, table};
use crate::config;
use crate::models;
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Prompt and decoding speed of the model, alone and in batches, without server and sampling
    Engine(Box<EngineArgs>),
    /// How well memory finds what was said, by the questions of a LoCoMo file
    Memory(Box<super::bench_memory::MemoryArgs>),
}

#[derive(Debug, Args)]
struct EngineArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Prompt lengths
    #[arg(long, value_name = "TOKENS,...", value_delimiter = ',', default_value = "128,512",
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    prefill: Vec<u32>,
    /// Numbers of sequences that decode together
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1,2,4,8,16,32,64",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    decode: Vec<u32>,
    /// Tokens that each sequence has when decoding starts
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(0..=65_536))]
    context: u32,
    /// Tokens that each sequence decodes in one run
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4096))]
    steps: u32,
    /// Runs of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeats: u32,
    /// Print a line of JSON for each measurement
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode, Trouble> {
    let args = match &args.command {
        BenchCommand::Engine(args) => args,
        BenchCommand::Memory(args) => return super::bench_memory::run(args),
    };
    let config = config::load(&args.settings.flags)?.config;
    let (model, name) = load(&config)?;
    let threads = config.engine.threads;
    let largest = |numbers: &[u32]| numbers.iter().copied().max().unwrap_or(1) as usize;
    let extent = Extent {
        prefill_max: largest(&args.prefill),
        sequences_max: largest(&args.decode),
        context: args.context as usize,
        steps: args.steps as usize,
        kv_format: config.engine.kv_type,
    };
    let (needed, limit) = (extent.kv_bytes(model.info()) as u64, config.memory_limit);
    if needed > limit {
        let what = format!("{} sequences of {} tokens", extent.sequences_max, extent.context + extent.steps);
        let why = format!("keys and values would take {} MiB, MEMORY_LIMIT is {} MiB", needed >> 20, limit >> 20);
        return Err(Trouble::new(format!("{what} cannot be measured"), why, "ask for fewer, or raise --memory-limit"));
    }
    let mut meter = Meter::new(Arc::clone(&model), threads, &extent).map_err(|error| failed(&error))?;
    let mut report = Report { rows: Vec::new(), json: args.json };
    for &tokens in &args.prefill {
        let sample = meter.prefill(tokens as usize, args.repeats as usize).map_err(|error| failed(&error))?;
        report.add("prefill", tokens, 1, &sample);
    }
    let mut alone = None;
    for &sequences in &args.decode {
        let sample = meter.decode(sequences as usize, extent.context, extent.steps, args.repeats as usize);
        let sample = sample.map_err(|error| failed(&error))?;
        report.add("decode", sequences, extent.steps, &sample);
        alone = alone.or_else(|| (sequences == 1).then(|| sample.best_per_second()));
    }
    let bandwidth = read_bandwidth(threads);
    let floor = bandwidth / model.weights_bytes() as f64;
    if args.json {
        let line = json!({
            "test": "memory", "threads": threads, "read_bytes_s": bandwidth.round(),
            "weights_bytes": model.weights_bytes(), "decode_alone_at_most": floor,
        });
        out(&format!("{line}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{name}, {threads} threads, {}\n\n", instruction_set());
    text.push_str(&table(&["test", "tokens/s", "median", "ms a step"], &report.rows));
    let _ = writeln!(
        text,
        "\nMemory gives {threads} threads {:.1} GB/s; {:.1} MB of weights a step allow one sequence {floor:.0} tokens/s.",
        bandwidth / 1e9,
        model.weights_bytes() as f64 / 1e6,
    );
    if let Some(alone) = alone {
        let _ = writeln!(text, "Reached: {:.0} %.", 100.0 * alone / floor);
    }
    out(&text);
    Ok(ExitCode::SUCCESS)
}

struct Report {
    rows: Vec<Vec<String>>,
    json: bool,
}

impl Report {
    /// JSON lines appear as they are measured, the table at the end.
    fn add(&mut self, test: &str, size: u32, steps: usize, sample: &Sample) {
        let step_ms = sample.best.as_secs_f64() * 1e3 / steps as f64;
        let (best, median) = (sample.best_per_second(), sample.median_per_second());
        if self.json {
            let line = json!({
                "test": test, "size": size, "tokens_s": best, "median_tokens_s": median, "step_ms": step_ms,
            });
            out(&format!("{line}\n"));
        } else {
            note(&format!("{test} {size}: {best:.0} tokens/s"));
        }
        let cells = [format!("{test} {size}"), format!("{best:.1}"), format!("{median:.1}"), format!("{step_ms:.2}")];
        self.rows.push(cells.to_vec());
    }
}

/// The chat model of a configuration, and its name.
pub(super) fn load(config: &config::Config) -> Result<(Arc<Model>, String), Trouble> {
    let found = models::chat_model(config)?;
    let model = Model::load(&found.path).map_err(|error| {
        let what = format!("the model {} cannot be loaded", found.path.display());
        Trouble::new(what, error.to_string(), "`millrace doctor` looks at the file")
    })?;
    Ok((model, found.name))
}

/// A measurement that cannot be made.
pub(super) fn failed(error: &dyn std::error::Error) -> Trouble {
    Trouble::new("the engine cannot be measured", error.to_string(), "ask for fewer tokens or sequences")
}
