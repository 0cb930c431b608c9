//! Every architecture against transformers, on tiny random models that `tests/tools/tiny_models.py` made.
//!
//! Weights are stored in half and single precision, so that activations are not quantised and the logits must agree.
//! One prompt of each model is longer than its window and than the context before scaling.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::gguf::Gguf;

/// Root of the mean square of the logits' differences, relative to their spread; below 2e-4 is measured. It is not
/// smaller because a key or value at the middle between two half floats may be rounded the other way.
const TOLERANCE: f32 = 1e-3;
/// The same for the worst single logit.
const WORST_TOLERANCE: f32 = 1e-2;
/// Seed of the models that are made anew; the committed ones have another.
const SEED: &str = "7";
/// The variable that names an interpreter with torch, transformers and gguf: models are then made anew as well.
const PYTHON: &str = "MILLRACE_REFERENCE_PYTHON";

struct Prompt {
    tokens: Vec<u32>,
    context: usize,
}

fn here(path: &str) -> PathBuf {
    Path::new("tests").join(path)
}

fn prompts(folder: &Path) -> BTreeMap<String, Vec<Prompt>> {
    let text = std::fs::read_to_string(folder.join("models.json")).expect("the index lies beside the models");
    let index: BTreeMap<String, Vec<serde_json::Value>> = serde_json::from_str(&text).expect("the index is JSON");
    let prompt = |value: serde_json::Value| Prompt {
        tokens: serde_json::from_value(value["tokens"].clone()).expect("a list of tokens"),
        context: serde_json::from_value(value["context"].clone()).expect("a number of tokens"),
    };
    index.into_iter().map(|(name, prompts)| (name, prompts.into_iter().map(prompt).collect())).collect()
}

fn load(folder: &Path, name: &str) -> Arc<Model> {
    Model::load(&folder.join(format!("{name}.gguf"))).expect("the architecture is supported")
}

/// Root of the mean square of the deviations from the mean.
fn spread(values: &[f32]) -> f32 {
    let mean = values.iter().sum::<f32>() / values.len() as f32;
    (values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt()
}

fn compare(folder: &Path) {
    for (name, prompts) in prompts(folder) {
        let model = load(folder, &name);
        let bytes = std::fs::read(folder.join(format!("{name}.logits"))).expect("expected logits");
        let expected: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let spread = spread(&expected);
        for set in kernel::available() {
            let mut apart = Vec::new();
            let context = prompts.iter().map(|prompt| prompt.context).max().expect("two prompts");
            for Prompt { tokens, .. } in &prompts {
                // Its own length decides how a text is turned, not what the backend could hold.
                let mut backend = backend_for(&model, 2, set, context, KvFormat::F16);
                let got = run(&mut backend, tokens, &[5, 1, 7, 2].map(BlockId), &[tokens.len()]);
                let expected = &expected[apart.len()..];
                apart.extend(got.iter().flatten().zip(expected).map(|(got, expected)| (got - expected).abs() / spread));
            }
            assert_eq!(apart.len(), expected.len(), "{name}: a row of logits for each token");
            let mean = (apart.iter().map(|x| x * x).sum::<f32>() / apart.len() as f32).sqrt();
            let worst = apart.iter().copied().fold(0.0, f32::max);
            println!("{name} {}: {mean:.1e} of the spread, at worst {worst:.1e}", set.name);
            assert!(mean <= TOLERANCE && worst <= WORST_TOLERANCE, "{name} {}: {mean}, {worst}", set.name);
        }
    }
}

#[test]
fn every_architecture_computes_what_transformers_does() {
    compare(&here("data/architectures"));
}

#[test]
fn new_random_models_agree_too() {
    let Some(python) = std::env::var_os(PYTHON) else {
        println!("SKIPPED: {PYTHON} names no interpreter with torch, transformers and gguf");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let status = Command::new(python)
        .arg(here("tools/tiny_models.py"))
        .arg(folder.path())
        .args(["--seed", SEED])
        .status()
        .expect("the interpreter starts");
    assert!(status.success(), "the models are made");
    compare(folder.path());
}

#[test]
fn no_architecture_lets_threads_chunks_or_neighbours_change_a_bit() {
    let folder = here("data/architectures");
    for (name, prompts) in prompts(&folder) {
        let model = load(&folder, &name);
        let tokens = &prompts.last().expect("two prompts").tokens;
        let n = tokens.len();
        for set in kernel::available() {
            let expected = run(&mut backend(&model, 1, set), tokens, &[0, 1, 2, 3].map(BlockId), &[n]);
            for (threads, chunks) in [(1, vec![1; n]), (2, vec![17, 1, 16, n - 34]), (3, vec![n]), (2, vec![1, n - 1])]
            {
                let got = run(&mut backend(&model, threads, set), tokens, &[9, 4, 8, 2].map(BlockId), &chunks);
                assert_eq!(got, expected, "{name} {} {threads} threads, chunks {chunks:?}", set.name);
            }
            let mut backend = backend(&model, 2, set);
            let (mut plan, mut logits) = (StepPlan::new(), LogitsBuf::new(&backend.limits()));
            let (blocks, beside) = ([3, 2, 1, 0].map(BlockId), [10, 11].map(BlockId));
            let other: Vec<u32> = tokens.iter().rev().copied().collect();
            run(&mut backend, &tokens[..n - 1], &blocks, &[n - 1]);
            run(&mut backend, &other[..20], &beside, &[20]);
            plan.push(&other[..33], 0, &[20, 21, 22].map(BlockId), LogitsWanted::None);
            plan.push(&tokens[n - 1..], n - 1, &blocks, LogitsWanted::Last);
            if is_stretched(&backend, n) {
                plan.stretch();
            }
            plan.push(&other[20..21], 20, &beside, LogitsWanted::Last);
            backend.step(&plan, &mut logits).expect("the plan is within limits");
            assert_eq!(logits.row(0), &expected[n - 1][..], "{name} {}", set.name);
        }
    }
}

/// The file of a tiny model with one more tensor or key.
fn with(name: &str, change: impl FnOnce(Writer) -> Writer) -> LoadError {
    let path = here("data/architectures").join(format!("{name}.gguf"));
    let file = Writer::of(&Gguf::open(&path).expect("the file is whole"));
    Model::from_bytes(change(file).build()).expect_err("the change is not supported")
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let ones = [1.0f32; 32].map(f32::to_le_bytes).concat();
    for name in ["blk.0.ffn_up.bias", "blk.1.attn_sinks.weight", "cls.output.weight", "rope_factors.weight"] {
        let error = with("llama", |file| file.tensor_with(name, &[32], TensorType::F32, &ones));
        assert!(matches!(&error, LoadError::Unknown { what: "tensor", name: found } if found == name), "{error}");
    }
    for (model, key) in [
        ("llama", "llama.logit_scale"),
        ("llama", "llama.rope.scaling.alpha"),
        ("llama", "llama.attn_logit_softcapping"),
        ("qwen2", "qwen2.expert_count"),
        ("qwen3moe", "qwen3moe.leading_dense_block_count"),
        ("mixtral", "llama.expert_group_count"),
    ] {
        let error = with(model, |file| file.entry(key, 4, &1u32.to_le_bytes()));
        assert!(matches!(&error, LoadError::Unknown { name: found, .. } if found == key), "{error}");
    }
    for (model, key, kind, value) in [
        ("qwen2", "qwen2.rope.scaling.type", 8, string("dynamic")),
        ("qwen2", "qwen2.attention.causal", 7, vec![0]),
        ("mixtral", "llama.expert_gating_func", 4, 2u32.to_le_bytes().to_vec()),
        ("mixtral", "llama.expert_shared_count", 4, 1u32.to_le_bytes().to_vec()),
        ("gemma3", "gemma3.rope.freq_base_swa", 6, f32::NAN.to_le_bytes().to_vec()),
    ] {
        let error = with(model, |file| file.entry(key, kind, &value));
        let setting = key.split_once('.').expect("a prefix").1;
        assert!(matches!(&error, LoadError::Variant { what, .. } if what == setting), "{error}");
    }
}
