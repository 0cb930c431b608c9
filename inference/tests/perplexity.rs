//! Perplexity beside llama.cpp's, and beside that of the network itself.
//!
//! `data/perplexity.json` holds the first 8 chunks of 512 tokens of a text, the perplexity that llama.cpp
//! (ggml-org/llama.cpp@0c1e57098, CPU) printed after each of them, and the sum of the negative log-probabilities in each
//! from the same weights walked in 64-bit floats (`tools/exact_reference.py`). As there, the second half of each chunk
//! counts: 255 tokens, each with at least 256 before it.
//!
//! Measured, running perplexity after each chunk, and how far each engine is from the exact network:
//!
//! | chunk | exact | ours | llama.cpp | ours to llama.cpp |
//! |---|---|---|---|---|
//! | 1 | 16.2659 | 16.4669 (+1.24 %) | 16.5546 (+1.78 %) | -0.53 % |
//! | 2 | 17.6866 | 17.8479 (+0.91 %) | 17.8938 (+1.17 %) | -0.26 % |
//! | 3 | 16.2911 | 16.3343 (+0.27 %) | 16.4097 (+0.73 %) | -0.46 % |
//! | 4 | 18.1994 | 18.2786 (+0.44 %) | 18.3363 (+0.75 %) | -0.31 % |
//! | 5 | 18.2312 | 18.3176 (+0.47 %) | 18.3746 (+0.79 %) | -0.31 % |
//! | 6 | 18.0679 | 18.1407 (+0.40 %) | 18.2237 (+0.86 %) | -0.46 % |
//! | 7 | 18.0715 | 18.1275 (+0.31 %) | 18.2284 (+0.87 %) | -0.55 % |
//! | 8 | 18.3418 | 18.4092 (+0.37 %) | 18.4942 (+0.83 %) | -0.46 % |
//!
//! Over the whole text we are within 0.5 % of llama.cpp and of the network; after single chunks the distance to llama.cpp
//! reaches 0.55 %, because llama.cpp is farther from the network than that. So what is judged after each chunk is who
//! is closer to the network. Both engines' distance comes from rounding activations to 8 bits.

use std::path::PathBuf;

use millrace_inference::backend::{Backend, CpuBackend, CpuConfig, LogitsBuf, LogitsWanted, StepPlan};
use millrace_inference::kv::{BlockId, KvFormat, blocks_for};
use millrace_inference::model::Model;

const MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// Greatest distance of the whole text's perplexity from llama.cpp's, as a share of it.
const DISTANCE_MAX: f64 = 0.005;
/// The same from the exact one: measured 0.0037 with keys and values as f16, 0.0058 as bytes; llama.cpp (f16) 0.0083.
const EXACT_DISTANCE_MAX: f64 = 0.005;
const EXACT_DISTANCE_BYTES_MAX: f64 = 0.007;

#[test]
fn perplexity_is_that_of_the_network_and_closer_than_the_reference() {
    judge(KvFormat::F16, EXACT_DISTANCE_MAX);
}

/// Half the memory for keys and values costs 0.2 %, and is still closer to the network than the reference.
#[test]
fn with_keys_and_values_as_bytes_it_stays_close() {
    judge(KvFormat::Q8_0, EXACT_DISTANCE_BYTES_MAX);
}

fn judge(format: KvFormat, from_exact_max: f64) {
    let Some(path) = model_path() else { return };
    let record: serde_json::Value = serde_json::from_str(include_str!("data/perplexity.json")).expect("JSON");
    let list = |name: &str| record[name].as_array().expect("a list").clone();
    let number = |value: &serde_json::Value| value.as_f64().expect("a number");
    let ids: Vec<u32> = list("ids").iter().map(|id| number(id) as u32).collect();
    let chunk = record["chunk"].as_u64().expect("a size") as usize;
    let (exact, reference) = (list("exact_nll"), list("llama_cpp_perplexity"));
    let mut chunks = Chunks::new(&path, chunk, format);
    let (mut ours_sum, mut exact_sum, mut count) = (0.0, 0.0, 0);
    let mut distances = (f64::MAX, f64::MAX);
    for (at, ids) in ids.chunks_exact(chunk).enumerate() {
        let (sum, tokens) = chunks.nll(ids);
        ours_sum += sum;
        exact_sum += number(&exact[at]);
        count += tokens;
        let running = |sum: f64| (sum / count as f64).exp();
        let (ours, exact, theirs) = (running(ours_sum), running(exact_sum), number(&reference[at]));
        let (our_distance, their_distance) = (ours / exact - 1.0, theirs / exact - 1.0);
        println!(
            "{format}, chunk {}: exact {exact:.4}, ours {ours:.4} ({:+.2} %), llama.cpp {theirs:.4} ({:+.2} %), ours to it {:+.2} %",
            at + 1,
            our_distance * 100.0,
            their_distance * 100.0,
            (ours / theirs - 1.0) * 100.0
        );
        assert!(our_distance.abs() <= their_distance.abs(), "farther from the network than the reference");
        distances = (our_distance.abs(), (ours / theirs - 1.0).abs());
    }
    assert!(distances.0 <= from_exact_max && distances.1 <= DISTANCE_MAX, "over the whole text: {distances:?}");
}

/// Walks chunks through the engine.
struct Chunks {
    backend: CpuBackend,
    logits: LogitsBuf,
    blocks: Vec<BlockId>,
}

/// Tokens of one step.
const STEP: usize = 128;

impl Chunks {
    fn new(path: &std::path::Path, chunk: usize, kv_format: KvFormat) -> Chunks {
        let config = CpuConfig {
            threads: 2,
            cpus: None,
            nice: 0,
            kv_format,
            kv_bytes_max: 64 << 20,
            context_max: chunk,
            step_tokens_max: STEP,
            step_logits_max: STEP,
        };
        let mut backend = CpuBackend::new(Model::load(path).expect("the model loads"), &config).expect("it starts");
        backend.attach();
        let logits = LogitsBuf::new(&backend.limits());
        Chunks { backend, logits, blocks: (0..blocks_for(chunk) as u32).map(BlockId).collect() }
    }

    /// Sum of the negative log-probabilities of what follows each token of the second half, and their number.
    fn nll(&mut self, ids: &[u32]) -> (f64, usize) {
        let first = ids.len() / 2;
        let (mut sum, mut count) = (0.0, 0);
        for start in (0..ids.len()).step_by(STEP) {
            let tokens = &ids[start..(start + STEP).min(ids.len())];
            let wanted = if start >= first { LogitsWanted::All } else { LogitsWanted::None };
            let mut plan = StepPlan::new();
            plan.push(tokens, start, &self.blocks, wanted);
            self.backend.step(&plan, &mut self.logits).expect("the plan is within limits");
            if start < first {
                continue;
            }
            for row in 0..tokens.len() {
                if let Some(next) = ids.get(start + row + 1) {
                    sum -= log_probability(self.logits.row(row), *next as usize);
                    count += 1;
                }
            }
        }
        (sum, count)
    }
}

fn log_probability(logits: &[f32], id: usize) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&x| f64::from((x - greatest).exp())).sum();
    f64::from(logits[id] - greatest) - total.ln()
}

/// The model from `MILLRACE_MODELS` or `$HOME/.cache/millrace/models`.
fn model_path() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/millrace/models"));
    let path = std::env::var_os("MILLRACE_MODELS").map(PathBuf::from).or_else(home)?.join(MODEL);
    if !path.exists() {
        println!("SKIPPED: {} is missing; set MILLRACE_MODELS to the folder that holds it", path.display());
        return None;
    }
    Some(path)
}
