//! The forward pass against a naive double-precision network, and its independence of how steps are cut.

mod architectures;

use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::gguf::TensorType;
use crate::gguf::testing::{Writer, string};
use crate::kernel;
use crate::kv::{BLOCK_TOKENS, BlockId, KvFormat};
use crate::model::Model;
use crate::quant;

/// Most difference of a logit from the naive network: keys and values are stored as half floats.
const LOGIT_TOLERANCE: f64 = 4e-3;

const LAYERS: usize = 2;
const WIDTH: usize = 64;
const FF: usize = 96;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
/// Not a multiple of 16, so that the last tile of the head is partly empty.
const VOCAB: usize = 50;
const EPS: f32 = 1e-5;
const THETA: f32 = 10_000.0;

/// A random network: its file, and its weights decoded.
struct Network {
    writer: Writer,
    tensors: std::collections::HashMap<String, Vec<f32>>,
}

impl Network {
    fn random(seed: u64, kind: TensorType) -> Network {
        let mut random = SmallRng::seed_from_u64(seed);
        let number = |value: usize| (value as u32).to_le_bytes();
        let writer = Writer::default()
            .entry("general.architecture", 8, &string("llama"))
            .entry("general.name", 8, &string("random"))
            .entry("llama.block_count", 4, &number(LAYERS))
            .entry("llama.embedding_length", 4, &number(WIDTH))
            .entry("llama.feed_forward_length", 4, &number(FF))
            .entry("llama.attention.head_count", 4, &number(HEADS))
            .entry("llama.attention.head_count_kv", 4, &number(KV_HEADS))
            .entry("llama.context_length", 4, &number(256))
            .entry("llama.rope.freq_base", 6, &THETA.to_le_bytes())
            .entry("llama.attention.layer_norm_rms_epsilon", 6, &EPS.to_le_bytes());
        let mut network = Network { writer, tensors: std::collections::HashMap::new() };
        network.add(&mut random, "token_embd", VOCAB, WIDTH, kind);
        network.add(&mut random, "output_norm", 1, WIDTH, TensorType::F32);
        for layer in 0..LAYERS {
            let q = HEADS * HEAD_DIM;
            let kv = KV_HEADS * HEAD_DIM;
            let parts = [
                ("attn_q", q, WIDTH),
                ("attn_k", kv, WIDTH),
                ("attn_v", kv, WIDTH),
                ("attn_output", WIDTH, q),
                ("ffn_gate", FF, WIDTH),
                ("ffn_up", FF, WIDTH),
                ("ffn_down", WIDTH, FF),
            ];
            for (part, rows, columns) in parts {
                network.add(&mut random, &format!("blk.{layer}.{part}"), rows, columns, kind);
            }
            for norm in ["attn_norm", "ffn_norm"] {
                network.add(&mut random, &format!("blk.{layer}.{norm}"), 1, WIDTH, TensorType::F32);
            }
        }
        network
    }

    fn add(&mut self, random: &mut SmallRng, name: &str, rows: usize, columns: usize, kind: TensorType) {
        let name = format!("{name}.weight");
        let mut bytes = Vec::new();
        for _ in 0..rows * columns / kind.block_elements() {
            let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| random.random()).collect();
            let scale = match kind {
                TensorType::F32 => {
                    block = random.random_range(-0.3f32..0.3).to_le_bytes().to_vec();
                    None
                }
                TensorType::Q4_1 => {
                    block[2..4].copy_from_slice(&half::f16::from_f32(-0.3).to_le_bytes());
                    Some(0.04)
                }
                _ => Some(0.003),
            };
            if let Some(scale) = scale {
                block[..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
            }
            bytes.extend(block);
        }
        let mut values = vec![0.0; rows * columns];
        assert!(quant::dequantize(kind, &bytes, &mut values));
        let dimensions: &[u64] = if rows == 1 { &[columns as u64] } else { &[columns as u64, rows as u64] };
        self.writer = std::mem::take(&mut self.writer).tensor_with(&name, dimensions, kind, &bytes);
        self.tensors.insert(name, values);
    }

    fn model(&self) -> Arc<Model> {
        Model::from_bytes(self.writer.build()).expect("the network is complete")
    }

    fn get(&self, name: &str) -> &[f32] {
        &self.tensors[&format!("{name}.weight")]
    }

    fn multiply(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let rows = self.get(name).chunks_exact(x.len());
        rows.map(|row| row.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + f64::from(EPS)).sqrt();
        x.iter().zip(self.get(name)).map(|(x, &w)| x * factor * f64::from(w)).collect()
    }

    /// Logits of every token of a sequence, straight from the definition.
    fn logits(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let mut past: Vec<Vec<(Vec<f64>, Vec<f64>)>> = vec![Vec::new(); LAYERS];
        let embed = self.get("token_embd");
        let step = |(position, &token): (usize, &u32)| {
            let row = &embed[token as usize * WIDTH..][..WIDTH];
            let mut x: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
            for (layer, past) in past.iter_mut().enumerate() {
                let name = |part: &str| format!("blk.{layer}.{part}");
                let h = self.norm(&name("attn_norm"), &x);
                let mut q = self.multiply(&name("attn_q"), &h);
                let mut k = self.multiply(&name("attn_k"), &h);
                let v = self.multiply(&name("attn_v"), &h);
                q.chunks_exact_mut(HEAD_DIM).chain(k.chunks_exact_mut(HEAD_DIM)).for_each(|head| turn(head, position));
                past.push((k, v));
                let attended: Vec<f64> = (0..HEADS).flat_map(|head| attend(&q, past, head)).collect();
                add(&mut x, &self.multiply(&name("attn_output"), &attended));
                let h = self.norm(&name("ffn_norm"), &x);
                let gate = self.multiply(&name("ffn_gate"), &h);
                let up = self.multiply(&name("ffn_up"), &h);
                let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(&mut x, &self.multiply(&name("ffn_down"), &inner));
            }
            self.multiply("token_embd", &self.norm("output_norm", &x))
        };
        tokens.iter().enumerate().map(step).collect()
    }
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn turn(head: &mut [f64], position: usize) {
    for (i, pair) in head.chunks_exact_mut(2).enumerate() {
        let angle = position as f64 * f64::from(THETA).powf(-2.0 * i as f64 / HEAD_DIM as f64);
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * angle.cos() - b * angle.sin();
        pair[1] = a * angle.sin() + b * angle.cos();
    }
}

fn attend(q: &[f64], past: &[(Vec<f64>, Vec<f64>)], head: usize) -> Vec<f64> {
    let q = &q[head * HEAD_DIM..][..HEAD_DIM];
    let kv = head / (HEADS / KV_HEADS) * HEAD_DIM;
    let score = |k: &[f64]| q.iter().zip(&k[kv..]).map(|(q, k)| q * k).sum::<f64>() / (HEAD_DIM as f64).sqrt();
    let weights: Vec<f64> = past.iter().map(|(k, _)| score(k).exp()).collect();
    let total: f64 = weights.iter().sum();
    (0..HEAD_DIM).map(|i| weights.iter().zip(past).map(|(w, (_, v))| w * v[kv + i]).sum::<f64>() / total).collect()
}

fn backend(model: &Arc<Model>, threads: usize, set: &'static kernel::Kernels) -> CpuBackend {
    backend_for(model, threads, set, 256, KvFormat::F16)
}

fn backend_for(
    model: &Arc<Model>,
    threads: usize,
    set: &'static kernel::Kernels,
    context_max: usize,
    kv_format: KvFormat,
) -> CpuBackend {
    let config = CpuConfig {
        threads,
        cpus: None,
        nice: 0,
        kv_format,
        kv_bytes_max: kv_format.bytes(32 * BLOCK_TOKENS * model.info().kv_elements),
        context_max,
        step_tokens_max: 128,
        step_logits_max: 128,
    };
    CpuBackend::with_kernels(model.clone(), &config, set).expect("the backend starts")
}

/// One sequence whose blocks lie in `blocks`; runs it in the given chunks and returns the logits of every token.
fn run(backend: &mut CpuBackend, tokens: &[u32], blocks: &[BlockId], chunks: &[usize]) -> Vec<Vec<f32>> {
    let mut logits = LogitsBuf::new(&backend.limits());
    let (mut plan, mut start, mut out) = (StepPlan::new(), 0, Vec::new());
    for &chunk in chunks {
        plan.clear();
        plan.push(&tokens[start..start + chunk], start, blocks, LogitsWanted::All);
        if is_stretched(backend, tokens.len()) {
            plan.stretch();
        }
        backend.step(&plan, &mut logits).expect("the plan is within limits");
        out.extend((0..chunk).map(|row| logits.row(row).to_vec()));
        start += chunk;
    }
    assert_eq!(start, tokens.len());
    out
}

/// Whether a text of so many tokens is turned by the factors for long ones.
fn is_stretched(backend: &CpuBackend, tokens: usize) -> bool {
    backend.limits().stretch_from.is_some_and(|from| tokens > from)
}

fn some_tokens(seed: u64, count: usize) -> Vec<u32> {
    let mut random = SmallRng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(0..VOCAB as u32)).collect()
}

#[test]
fn logits_equal_the_naive_network() {
    let network = Network::random(1, TensorType::F32);
    let model = network.model();
    let tokens = some_tokens(2, 40);
    let expected = network.logits(&tokens);
    for set in kernel::available() {
        let got = run(&mut backend(&model, 2, set), &tokens, &[5, 1, 7].map(BlockId), &[40]);
        for (position, (got, expected)) in got.iter().zip(&expected).enumerate() {
            for (got, expected) in got.iter().zip(expected) {
                let apart = (f64::from(*got) - expected).abs();
                assert!(apart < LOGIT_TOLERANCE, "{} position {position}: {got} {expected}", set.name);
            }
        }
    }
}

#[test]
fn quantised_networks_are_close_to_their_decoded_weights() {
    for kind in [TensorType::Q4_1, TensorType::Q8_0] {
        let network = Network::random(3, kind);
        let tokens = some_tokens(4, 20);
        let expected = network.logits(&tokens);
        let size = expected.iter().flatten().map(|x| x * x).sum::<f64>().sqrt();
        for set in kernel::available() {
            let got = run(&mut backend(&network.model(), 1, set), &tokens, &[0, 1].map(BlockId), &[20]);
            let apart: f64 =
                got.iter().flatten().zip(expected.iter().flatten()).map(|(g, e)| (f64::from(*g) - e).powi(2)).sum();
            assert!(apart.sqrt() / size < 0.05, "{} {kind:?}: {}", set.name, apart.sqrt() / size);
        }
    }
}

#[test]
fn threads_chunks_and_neighbours_change_no_bit() {
    let network = Network::random(5, TensorType::Q4_1);
    let model = network.model();
    let tokens = some_tokens(6, 60);
    for set in kernel::available() {
        let expected = run(&mut backend(&model, 1, set), &tokens, &[0, 1, 2, 3].map(BlockId), &[60]);
        for (threads, chunks) in [(1, vec![1; 60]), (2, vec![17, 1, 16, 26]), (3, vec![60]), (4, vec![1, 59])] {
            let got = run(&mut backend(&model, threads, set), &tokens, &[9, 4, 8, 2].map(BlockId), &chunks);
            assert_eq!(got, expected, "{} {threads} threads, chunks {chunks:?}", set.name);
        }
        // The same sequence decoding beside a prompt and another decoding sequence.
        let mut backend = backend(&model, 2, set);
        let (mut plan, mut logits) = (StepPlan::new(), LogitsBuf::new(&backend.limits()));
        let blocks = [3, 2, 1, 0].map(BlockId);
        let other = some_tokens(7, 60);
        run(&mut backend, &tokens[..59], &blocks, &[59]);
        run(&mut backend, &other[..20], &[10, 11].map(BlockId), &[20]);
        plan.push(&other[..33], 0, &[20, 21, 22].map(BlockId), LogitsWanted::None);
        plan.push(&tokens[59..], 59, &blocks, LogitsWanted::Last);
        plan.push(&other[20..21], 20, &[10, 11].map(BlockId), LogitsWanted::Last);
        backend.step(&plan, &mut logits).expect("the plan is within limits");
        assert_eq!((logits.rows(), logits.row(0)), (2, &expected[59][..]), "{}", set.name);
    }
}

#[test]
fn a_sequence_goes_on_from_a_copied_block_as_from_its_own() {
    let model = Network::random(11, TensorType::Q4_1).model();
    let (first, mut second) = (some_tokens(12, 40), some_tokens(13, 40));
    second[..25].copy_from_slice(&first[..25]);
    let expected = run(&mut backend(&model, 1, kernel::kernels()), &second, &[0, 1, 2].map(BlockId), &[40]);
    let mut backend = backend(&model, 2, kernel::kernels());
    let before = run(&mut backend, &first, &[3, 4, 5].map(BlockId), &[40]);
    let (mut plan, mut logits) = (StepPlan::new(), LogitsBuf::new(&backend.limits()));
    plan.copy(BlockId(4), BlockId(7));
    plan.push(&second[25..], 25, &[3, 7, 8].map(BlockId), LogitsWanted::All);
    backend.step(&plan, &mut logits).expect("the plan is within limits");
    (25..40).for_each(|at| assert_eq!(logits.row(at - 25), expected[at], "token {at}"));
    // The first sequence still finds its own.
    plan.clear();
    plan.push(&first[39..], 39, &[3, 4, 5].map(BlockId), LogitsWanted::Last);
    backend.step(&plan, &mut logits).expect("the plan is within limits");
    assert_eq!(logits.row(0), before[39]);
    for (from, to) in [(32, 1), (1, 32), (6, 6)] {
        plan.copy(BlockId(from), BlockId(to));
        let error = backend.step(&plan, &mut logits).expect_err("the copy is wrong");
        assert!(matches!(error, BackendError::Copy { .. }));
        plan.clear();
        plan.push(&first[39..], 39, &[3, 4, 5].map(BlockId), LogitsWanted::Last);
    }
}

#[test]
fn plans_outside_the_limits_are_refused() {
    let model = Network::random(8, TensorType::F32).model();
    let mut backend = backend(&model, 1, kernel::kernels());
    let mut logits = LogitsBuf::new(&backend.limits());
    let mut refuse = |tokens: &[u32], start: usize, blocks: &[u32]| {
        let mut plan = StepPlan::new();
        let blocks: Vec<BlockId> = blocks.iter().copied().map(BlockId).collect();
        plan.push(tokens, start, &blocks, LogitsWanted::Last);
        backend.step(&plan, &mut logits).expect_err("the plan is wrong")
    };
    assert!(matches!(refuse(&[], 0, &[0]), BackendError::Empty));
    assert!(matches!(refuse(&[50], 0, &[0]), BackendError::Token { token: 50, vocab: 50 }));
    assert!(matches!(refuse(&[1], 16, &[0]), BackendError::Blocks { slice: 0 }));
    assert!(matches!(refuse(&[1], 0, &[32]), BackendError::Blocks { slice: 0 }));
    assert!(matches!(refuse(&[1], usize::MAX, &[0]), BackendError::TooLarge { what: "positions", .. }));
    assert!(matches!(refuse(&[1; 129], 0, &[0; 9]), BackendError::TooLarge { what: "tokens", .. }));
}

#[test]
fn impossible_settings_are_refused() {
    let model = Network::random(9, TensorType::F32).model();
    let good = CpuConfig {
        threads: 1,
        cpus: None,
        nice: 0,
        kv_format: KvFormat::F16,
        kv_bytes_max: 1 << 20,
        context_max: 64,
        step_tokens_max: 8,
        step_logits_max: 8,
    };
    let start = |config: CpuConfig| CpuBackend::new(model.clone(), &config).err().expect("the setting is wrong");
    assert!(matches!(
        start(CpuConfig { threads: 0, ..good.clone() }),
        BackendStartError::Setting { name: "threads", .. }
    ));
    assert!(matches!(start(CpuConfig { kv_bytes_max: 100, ..good.clone() }), BackendStartError::KvBudget { .. }));
    assert!(matches!(start(CpuConfig { step_logits_max: 9, ..good }), BackendStartError::Setting { .. }));
}

#[test]
fn incomplete_or_foreign_models_are_refused() {
    let network = Network::random(10, TensorType::F32);
    let load = |writer: &Writer| Model::from_bytes(writer.build()).expect_err("the model is wrong");
    let mut foreign = network.writer.clone();
    foreign.metadata[0] = Writer::default().entry("general.architecture", 8, &string("other")).metadata[0].clone();
    assert!(matches!(load(&foreign), LoadError::Architecture { .. }));
    let mut incomplete = network.writer.clone();
    incomplete.tensors.pop();
    assert!(matches!(load(&incomplete), LoadError::Gguf { .. }));
    let mut wide = network.writer.clone();
    wide.metadata[4] =
        Writer::default().entry("llama.feed_forward_length", 4, &128u32.to_le_bytes()).metadata[0].clone();
    assert!(matches!(load(&wide), LoadError::Shape { .. }));
    let mut odd = network.writer.clone();
    odd.metadata[6] =
        Writer::default().entry("llama.attention.head_count_kv", 4, &3u32.to_le_bytes()).metadata[0].clone();
    assert!(matches!(load(&odd), LoadError::Shape { .. }));
}
