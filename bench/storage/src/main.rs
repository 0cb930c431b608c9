//! Measures the store through its public face, on a real disk. Prints one JSON object for each figure:
//! `{"figure": name, "value": number, ...}`; what stands beside the value says how it came about.
//!
//! `bench/figures/storage.py` runs it and sets peers beside it.

/// The heap of the product: the store is measured as it runs there.
#[global_allocator]
static HEAP: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

mod ann;
mod append;
mod backup;
mod data;
mod memory;
mod session;
mod walk;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Measures the store.
#[derive(Parser)]
#[command(name = "storage-figures")]
struct Options {
    /// Folder on the disk to measure. What a command leaves there, the next run of it replaces or uses again.
    #[arg(long)]
    folder: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Durable appends of 1 KiB, 64 writers, beside bare syncs of the same disk.
    Append {
        /// How long.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
    },
    /// Backups: their speed, and what appends wait for meanwhile.
    Backup {
        /// About how long appends are measured beside backups; as long without.
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Reading a hot session's head.
    Session,
    /// A user's memory: exact search, full recall, how soon a write is found.
    Memory,
    /// Writes the rows, the questions and the true answers that `ann` and the peers work on.
    AnnData {
        /// A NumPy file of real vectors (little-endian single precision, two dimensions).
        #[arg(long)]
        vectors: PathBuf,
        /// Rows to make of them.
        #[arg(long, default_value_t = 1_000_000)]
        rows: usize,
    },
    /// Fills a shared space with the rows, unless it is there, and waits for its segments.
    AnnBuild,
    /// Asks the space: recall, speed, filters, memory, restart.
    Ann,
    /// Builds and asks the graph of sealed segments alone: recall and speed by effort.
    AnnWalk {
        /// The first rows only.
        #[arg(long)]
        rows: Option<usize>,
    },
}

/// Processor time that this process has used, in steps of a hundredth of a second. A machine that is busy with other work
/// makes waits longer, and this not.
fn processor_s() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name of the program stands in brackets and may hold spaces; user and system time are the 12th and 13th after it.
    let fields = stat.rsplit_once(')').context("/proc/self/stat has a name")?.1;
    let ticks = fields.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap_or(0));
    Ok(ticks.sum::<u64>() as f64 / 100.0)
}

fn main() -> Result<()> {
    let Options { folder, command } = Options::parse();
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    match command {
        Command::Append { seconds } => append::measure(&folder, Duration::from_secs(seconds)),
        Command::Backup { seconds } => backup::measure(&folder, Duration::from_secs(seconds)),
        Command::Session => session::measure(&folder),
        Command::Memory => memory::measure(&folder),
        Command::AnnData { vectors, rows } => data::write(&folder, &vectors, rows),
        Command::AnnBuild => ann::build(&folder),
        Command::Ann => ann::measure(&folder),
        Command::AnnWalk { rows } => walk::measure(&folder, rows),
    }
}

/// Prints a figure with what else is worth knowing about it.
pub(crate) fn show(figure: &str, value: f64, more: serde_json::Value) {
    println!("{}", serde_json::json!({ "figure": figure, "value": value, "about": more }));
}

/// The value below which `share` of the sorted waits lie.
pub(crate) fn percentile(waits: &mut [Duration], share: f64) -> Duration {
    waits.sort_unstable();
    let at = ((waits.len() as f64 * share) as usize).min(waits.len().saturating_sub(1));
    waits.get(at).copied().unwrap_or_default()
}

/// An empty folder for a store that nobody needs afterwards.
pub(crate) fn fresh(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if path.exists() {
        std::fs::remove_dir_all(&path).with_context(|| format!("{} cannot be removed", path.display()))?;
    }
    Ok(path)
}

/// A repeatable generator (SplitMix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Between 0 and 1.
    pub fn share(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }
}

/// The row with length one.
pub(crate) fn unit(mut row: Vec<f32>) -> Vec<f32> {
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-9);
    row.iter_mut().for_each(|x| *x /= norm);
    row
}
