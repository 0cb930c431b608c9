//! `millrace channel verify`: recorded requests through the adapters.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use millrace_proto::channel::vectors::{self, Case};
use millrace_proto::channel::{self, ChannelKind};
use serde_json::{Value, json};

use crate::cli::print::{note, out};
use crate::trouble::Trouble;

pub(super) fn run(files: &[PathBuf], json: bool) -> Result<ExitCode, Trouble> {
    let mut failed = 0;
    for path in files {
        let tallies = vectors::run(&read(path)?).map_err(|why| no_vectors(path, why))?;
        if tallies.is_empty() {
            let what = format!("{} holds no vectors", path.display());
            return Err(Trouble::new(what, "the list is empty", "an empty list proves nothing; give another file"));
        }
        for tally in &tallies {
            failed += tally.failed.len();
            if json {
                let row = json!({"channel": tally.channel, "passed": tally.passed, "failed": tally.failed.len(), "why": tally.failed});
                out(&format!("{row}\n"));
            } else {
                out(&format!("{}: {} passed, {} failed\n", tally.channel, tally.passed, tally.failed.len()));
                for why in &tally.failed {
                    note(&format!("  {}/{why}", tally.channel));
                }
            }
        }
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(path: &Path) -> Result<String, Trouble> {
    std::fs::read_to_string(path).map_err(|error| {
        let what = format!("{} cannot be read", path.display());
        Trouble::new(what, error.to_string(), "give the path of a file with vectors")
    })
}

fn no_vectors(path: &Path, why: String) -> Trouble {
    let next = "a file of vectors is a JSON list of objects with `channel`, `secrets`, `headers`, `body` and `expect`";
    Trouble::new(format!("{} holds no vectors", path.display()), why, next)
}

/// How long one vector is repeated.
const SPAN: Duration = Duration::from_millis(20);
/// Repetitions between two looks at the clock.
const BATCH: u32 = 16;

/// What verifying costs: the median over the good requests of each channel, from the raw request to the
/// authenticated plaintext.
pub(super) fn time(files: &[PathBuf], json: bool) -> Result<ExitCode, Trouble> {
    let mut costs: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    for path in files {
        let list: Vec<Value> =
            serde_json::from_str(&read(path)?).map_err(|error| no_vectors(path, error.to_string()))?;
        for vector in list.iter().filter(|vector| vector["expect"] == "accept" && vector["layer"].is_null()) {
            let name = vector["channel"].as_str().and_then(ChannelKind::parse).map(ChannelKind::as_str);
            let (Some(name), Ok(case)) = (name, Case::read(vector)) else { continue };
            costs.entry(name).or_default().extend(cost_us(&case));
        }
    }
    for (channel, costs) in &mut costs {
        costs.sort_by(f64::total_cmp);
        let median = costs[costs.len() / 2];
        if json {
            out(&format!("{}\n", json!({"channel": channel, "verify_us": median, "vectors": costs.len()})));
        } else {
            out(&format!("{channel}: {median:.2} us (median of {} requests)\n", costs.len()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `None` when the request is not accepted: then there is nothing to measure.
fn cost_us(case: &Case) -> Option<f64> {
    case.with(|account, incoming, ambient| {
        channel::verify(account, incoming, ambient).ok()?;
        let mut best = f64::INFINITY;
        let began = Instant::now();
        while began.elapsed() < SPAN {
            let batch = Instant::now();
            for _ in 0..BATCH {
                let _ = black_box(channel::verify(black_box(account), black_box(incoming), ambient));
            }
            // Whatever disturbs a batch makes it longer, never shorter.
            best = best.min(batch.elapsed().as_secs_f64() * 1e6 / f64::from(BATCH));
        }
        Some(best)
    })
}
