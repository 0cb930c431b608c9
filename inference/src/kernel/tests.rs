//! One body per function, run over every instruction set present and compared with the plain versions and with
//! double-precision products of decoded weights.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::gguf::TensorType;
use crate::kv::{BLOCK_TOKENS, BlockId, KvFormat, blocks_for};
use crate::quant;

/// Largest difference between two sets, relative to the sum of magnitudes: different order of float additions.
const SETS_TOLERANCE: f64 = 2e-6;
/// Largest difference from a product with unquantised activations, relative to the norm of both: 8-bit activations.
const QUANTISED_TOLERANCE: f64 = 0.01;
/// Largest absolute difference in attention outputs of magnitude 1.
const ATTEND_TOLERANCE: f32 = 2e-5;

const TYPES: [TensorType; 14] = [
    TensorType::F32,
    TensorType::F16,
    TensorType::BF16,
    TensorType::Q4_0,
    TensorType::Q4_1,
    TensorType::Q5_0,
    TensorType::Q5_1,
    TensorType::Q8_0,
    TensorType::IQ4_NL,
    TensorType::Q2_K,
    TensorType::Q3_K,
    TensorType::Q4_K,
    TensorType::Q5_K,
    TensorType::Q6_K,
];

/// The generator of a test; its seed is printed when the test fails.
fn random(test: &str) -> SmallRng {
    let seed = std::env::var("MILLRACE_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(clock);
    println!("{test}: repeat with MILLRACE_SEED={seed}");
    SmallRng::seed_from_u64(seed)
}

fn clock() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as u64)
}

fn floats(random: &mut SmallRng, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.random_range(-1.0f32..1.0)).collect()
}

/// Random valid blocks: any bits for quants, moderate scales.
fn weights(random: &mut SmallRng, kind: TensorType, rows: usize, columns: usize) -> Vec<u8> {
    let blocks = rows * columns / kind.block_elements();
    let mut bytes = Vec::new();
    for _ in 0..blocks {
        let mut block: Vec<u8> = (0..kind.block_bytes()).map(|_| random.random()).collect();
        let mut put_half = |at: usize, value: f32| {
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(value).to_le_bytes());
        };
        match kind {
            TensorType::F32 => block = random.random_range(-1.0f32..1.0).to_le_bytes().to_vec(),
            TensorType::F16 => put_half(0, random.random_range(-1.0..1.0)),
            TensorType::BF16 => {
                block = half::bf16::from_f32(random.random_range(-1.0..1.0)).to_le_bytes().to_vec();
            }
            TensorType::Q6_K => put_half(208, random.random_range(-0.01..0.01)),
            TensorType::Q2_K => {
                put_half(80, random.random_range(-0.02..0.02));
                put_half(82, random.random_range(-0.02..0.02));
            }
            TensorType::Q3_K => put_half(108, random.random_range(-0.01..0.01)),
            TensorType::Q4_K | TensorType::Q5_K => {
                put_half(0, random.random_range(-0.005..0.005));
                put_half(2, random.random_range(-0.005..0.005));
            }
            TensorType::IQ4_NL => put_half(0, random.random_range(-0.01..0.01)),
            _ => {
                put_half(0, random.random_range(-0.1..0.1));
                if matches!(kind, TensorType::Q4_1 | TensorType::Q5_1) {
                    put_half(2, random.random_range(-0.5..0.5));
                }
            }
        }
        bytes.extend(block);
    }
    bytes
}

/// Owned activations.
struct ActsOwned {
    q: Vec<i8>,
    d: Vec<f32>,
    s: Vec<f32>,
    f: Vec<f32>,
    columns: usize,
}

impl ActsOwned {
    fn new(rows: usize, columns: usize) -> ActsOwned {
        let blocks = rows * columns / BLOCK;
        let (q, f) = (vec![0; rows * columns], vec![0.0; rows * columns]);
        ActsOwned { q, d: vec![0.0; blocks], s: vec![0.0; blocks], f, columns }
    }

    fn view(&mut self) -> Acts {
        Acts {
            q: self.q.as_mut_ptr(),
            d: self.d.as_mut_ptr(),
            s: self.s.as_mut_ptr(),
            f: self.f.as_mut_ptr(),
            columns: self.columns,
        }
    }

    fn quantised(x: &[f32], columns: usize) -> ActsOwned {
        let mut acts = ActsOwned::new(x.len() / columns, columns);
        for row in 0..x.len() / columns {
            let (x, acts) = (x[row * columns..].as_ptr(), acts.view());
            // SAFETY: the row has `columns` elements; a null weight quantises it as it is.
            unsafe { (scalar::KERNELS.norm_quantize)(&NormArgs { x, weight: std::ptr::null(), eps: 0.0, acts, row }) };
        }
        acts
    }
}

fn aligned_tiles(kind: TensorType, source: &[u8], rows: usize, columns: usize) -> Vec<u64> {
    let tile = TileKind::of(kind).expect("a supported type");
    let mut tiles = vec![0u64; columns / BLOCK * tile.bytes() / 8];
    pack_rows(kind, source, rows, columns, bytemuck::cast_slice_mut(&mut tiles));
    tiles
}

#[test]
fn packing_keeps_every_weight() {
    let mut random = random("packing_keeps_every_weight");
    for kind in TYPES {
        for rows in [1, 7, 16] {
            let columns = 512;
            let source = weights(&mut random, kind, rows, columns);
            let tiles = aligned_tiles(kind, &source, rows, columns);
            let mut expected = vec![0.0; rows * columns];
            assert!(quant::dequantize(kind, &source, &mut expected));
            for (row, expected) in expected.chunks_exact(columns).enumerate() {
                let mut got = vec![0.0; columns];
                unpack_row(TileKind::of(kind).expect("supported"), bytemuck::cast_slice(&tiles), row, &mut got);
                assert_eq!(got, expected, "{kind:?} row {row}");
            }
        }
    }
}

#[test]
fn every_set_multiplies_like_the_plain_version_and_like_decoded_weights() {
    let mut random = random("every_set_multiplies");
    for kind in TYPES {
        for columns in [256, 768] {
            let rows = random.random_range(1..=16);
            let source = weights(&mut random, kind, rows, columns);
            let tiles = aligned_tiles(kind, &source, rows, columns);
            let x = floats(&mut random, 33 * columns);
            let mut acts = ActsOwned::quantised(&x, columns);
            for count in [1, 2, 3, 4, 5, 7, 11, 12, 13, 31] {
                let first = random.random_range(0..=33 - count);
                let add = random.random();
                let run = |set: &Kernels, acts: Acts| {
                    let mut out = vec![0.25f32; count * 20];
                    let args = GemmArgs {
                        tiles: tiles.as_ptr().cast(),
                        blocks: columns / BLOCK,
                        acts,
                        first,
                        count,
                        out: out.as_mut_ptr(),
                        stride: 20,
                        add,
                    };
                    let kind = TileKind::of(kind).expect("supported");
                    // SAFETY: tiles, rows and outputs were sized for these arguments.
                    unsafe { (set.gemm[kind as usize])(&args) };
                    out
                };
                let plain = run(&scalar::KERNELS, acts.view());
                for set in available() {
                    let got = run(set, acts.view());
                    for t in 0..count {
                        let x = &x[(first + t) * columns..][..columns];
                        let norm = x.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                        for row in 0..rows {
                            let bytes = &source[row * source.len() / rows..][..source.len() / rows];
                            let mut w = vec![0.0; columns];
                            assert!(quant::dequantize(kind, bytes, &mut w));
                            let size = w.iter().map(|w| f64::from(w * w)).sum::<f64>().sqrt() * norm + 1.0;
                            let (value, plain) = (f64::from(got[t * 20 + row]), f64::from(plain[t * 20 + row]));
                            let exact =
                                quant::dot_reference(kind, bytes, x).expect("supported") + if add { 0.25 } else { 0.0 };
                            let name = set.name;
                            assert!((value - plain).abs() <= SETS_TOLERANCE * size, "{name} {kind:?}: {value} {plain}");
                            assert!(
                                (value - exact).abs() <= QUANTISED_TOLERANCE * size,
                                "{name} {kind:?}: {value} {exact}"
                            );
                        }
                        assert!(
                            got[t * 20 + 16..t * 20 + 20].iter().all(|&x| x == 0.25),
                            "only 16 outputs are written"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_token_s_product_does_not_depend_on_its_neighbours() {
    let mut random = random("a_token_s_product");
    let columns = 576;
    for kind in [TensorType::Q4_1, TensorType::Q8_0, TensorType::F16] {
        let source = weights(&mut random, kind, 16, columns);
        let tiles = aligned_tiles(kind, &source, 16, columns);
        let mut acts = ActsOwned::quantised(&floats(&mut random, 29 * columns), columns);
        for set in available() {
            let mut run = |first: usize, count: usize| {
                let mut out = vec![0.0f32; count * 16];
                let args = GemmArgs {
                    tiles: tiles.as_ptr().cast(),
                    blocks: columns / BLOCK,
                    acts: acts.view(),
                    first,
                    count,
                    out: out.as_mut_ptr(),
                    stride: 16,
                    add: false,
                };
                // SAFETY: tiles, rows and outputs were sized for these arguments.
                unsafe { (set.gemm[TileKind::of(kind).expect("supported") as usize])(&args) };
                out
            };
            let together = run(0, 29);
            for t in 0..29 {
                assert_eq!(run(t, 1), together[16 * t..][..16], "{} {kind:?} token {t}", set.name);
            }
        }
    }
}

#[test]
fn extreme_quants_do_not_saturate() {
    let columns = 64;
    for (kind, fill) in [(TensorType::Q4_1, 0xFF), (TensorType::Q8_0, 0x80), (TensorType::Q8_0, 0x7F)] {
        let mut source = vec![fill; 16 * columns / 32 * kind.block_bytes()];
        for block in source.chunks_exact_mut(kind.block_bytes()) {
            block[..2].copy_from_slice(&half::f16::ONE.to_le_bytes());
            if kind == TensorType::Q4_1 {
                block[2..4].copy_from_slice(&half::f16::ZERO.to_le_bytes());
            }
        }
        let tiles = aligned_tiles(kind, &source, 16, columns);
        for sign in [1.0, -1.0] {
            let x = vec![sign; columns];
            let expected = quant::dot_reference(kind, &source[..source.len() / 16], &x).expect("supported");
            let mut acts = ActsOwned::quantised(&x, columns);
            for set in available() {
                let mut out = [0.0f32; 16];
                let args = GemmArgs {
                    tiles: tiles.as_ptr().cast(),
                    blocks: columns / BLOCK,
                    acts: acts.view(),
                    first: 0,
                    count: 1,
                    out: out.as_mut_ptr(),
                    stride: 16,
                    add: false,
                };
                // SAFETY: tiles, rows and outputs were sized for these arguments.
                unsafe { (set.gemm[TileKind::of(kind).expect("supported") as usize])(&args) };
                assert!(out.iter().all(|&x| (f64::from(x) - expected).abs() < 0.01), "{} {kind:?} {out:?}", set.name);
            }
        }
    }
}

#[test]
fn every_set_normalises_and_quantises_alike() {
    let mut random = random("every_set_normalises");
    for columns in [32, 96, 576, 1536] {
        let mut x = floats(&mut random, columns);
        x[..32].fill(0.0); // a block of zeros has no scale
        let weight = floats(&mut random, columns);
        for weight in [weight.as_ptr(), std::ptr::null()] {
            let run = |set: &Kernels| {
                let mut acts = ActsOwned::new(2, columns);
                let args = NormArgs { x: x.as_ptr(), weight, eps: 1e-5, acts: acts.view(), row: 1 };
                // SAFETY: rows have `columns` elements.
                unsafe { (set.norm_quantize)(&args) };
                acts
            };
            let plain = run(&scalar::KERNELS);
            for set in available() {
                let got = run(set);
                let close = |a: &[f32], b: &[f32], most: f32| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= most);
                assert!(close(&got.f, &plain.f, 1e-5) && close(&got.d, &plain.d, 1e-6), "{}", set.name);
                // A quant may round the other way where the scaled value is near a half; sums follow.
                let most = plain.d.iter().fold(0.0f32, |most, &d| most.max(d));
                assert!(close(&got.s, &plain.s, 8.0 * most + 1e-6), "{}", set.name);
                assert!(got.q.iter().zip(&plain.q).all(|(a, b)| a.abs_diff(*b) <= 1), "{}", set.name);
                for (b, quants) in got.q.chunks_exact(BLOCK).enumerate() {
                    let sum: i32 = quants.iter().map(|&q| i32::from(q)).sum();
                    assert_eq!(got.s[b], got.d[b] * sum as f32, "{} block {b}", set.name);
                }
            }
        }
    }
}

#[test]
fn every_set_bounds_values_alike() {
    let mut random = random("every_set_bounds_values");
    let mut values: Vec<f32> = floats(&mut random, 16).iter().map(|x| x * 100.0).collect();
    (values[0], values[1], values[2]) = (0.0, 1e30, -1e30);
    for set in available() {
        let mut got = values.clone();
        // SAFETY: there are 16 values.
        unsafe { (set.soft_cap)(got.as_mut_ptr(), 30.0) };
        for (got, value) in got.iter().zip(&values) {
            let expected = 30.0 * (value / 30.0).tanh();
            assert!((got - expected).abs() <= 1e-5, "{} {value}: {got} {expected}", set.name);
        }
    }
}

#[test]
fn every_set_computes_gates_alike() {
    let mut random = random("every_set_computes_gates");
    let mut gate: Vec<f32> = floats(&mut random, 3 * 40).iter().map(|x| x * 20.0).collect();
    (gate[0], gate[1], gate[2]) = (-200.0, 200.0, 0.0);
    let up = floats(&mut random, 3 * 40);
    let run = |set: &Kernels, gelu: bool| {
        let mut acts = ActsOwned::new(4, 96);
        let args = SwigluArgs {
            gate: gate.as_ptr(),
            up: up.as_ptr(),
            stride: 40,
            acts: acts.view(),
            first: 1,
            count: 3,
            block: 2,
        };
        // SAFETY: three tokens of 32 values each, 40 apart; the destination has that block.
        unsafe { if gelu { (set.geglu)(&args) } else { (set.swiglu)(&args) } };
        acts.f
    };
    for gelu in [false, true] {
        let plain = run(&scalar::KERNELS, gelu);
        for set in available() {
            for (got, plain) in run(set, gelu).iter().zip(&plain) {
                assert!((got - plain).abs() <= 1e-6 * (1.0 + plain.abs()), "{} {gelu}: {got} {plain}", set.name);
            }
        }
    }
}

#[test]
fn every_set_attends_alike_and_independently_of_chunks() {
    let mut random = random("every_set_attends");
    let all = usize::MAX;
    for (group, dim, window, cap) in
        [(3, 64, all, 0.0), (1, 32, all, 1.5), (8, 128, all, 0.0), (2, 32, 1, 0.0), (3, 32, 21, 0.0), (1, 64, 32, 1.5)]
    {
        let context = 75;
        let keys = floats(&mut random, context * dim);
        let values = floats(&mut random, context * dim);
        let queries: Vec<f32> = floats(&mut random, context * group * dim).iter().map(|x| x * 4.0).collect();
        let shape = Heads { group, dim, window, cap };
        let exact = shape.attend_exactly(&keys, &values, &queries);
        for (format, tolerance) in [(KvFormat::F16, 0.004), (KvFormat::Q8_0, 0.04)] {
            let cache = Cache::of(format, dim, &keys, &values);
            let plain = shape.attend(&scalar::KERNELS, &cache, &queries, 0, context);
            for (got, exact) in plain.iter().zip(&exact) {
                assert!((got - exact).abs() <= tolerance, "{format}: {got} {exact}");
            }
            for set in available() {
                let whole = shape.attend(set, &cache, &queries, 0, context);
                for (got, plain) in whole.iter().zip(&plain) {
                    assert!((got - plain).abs() <= ATTEND_TOLERANCE, "{} {format}: {got} {plain}", set.name);
                }
                let mut position = 0;
                while position < context {
                    let tokens = random.random_range(1..=16).min(context - position);
                    let part = shape.attend(set, &cache, &queries, position, tokens);
                    let whole = &whole[position * group * dim..][..part.len()];
                    assert_eq!(part, whole, "{} {format} from {position}", set.name);
                    position += tokens;
                }
            }
        }
    }
}

/// Keys and values of one sequence in blocks that lie in any order. Each block holds two heads; the second is used.
struct Cache {
    format: KvFormat,
    blocks: Vec<BlockId>,
    bytes: Vec<u8>,
    stride: usize,
}

impl Cache {
    fn of(format: KvFormat, dim: usize, keys: &[f32], values: &[f32]) -> Self {
        let context = keys.len() / dim;
        let blocks: Vec<BlockId> = (0..blocks_for(context) as u32).rev().map(BlockId).collect();
        let stride = 2 * format.block_bytes(dim);
        // Slots past the context hold what an earlier owner of the block left, here the worst case.
        let mut bytes = vec![0xff; blocks.len() * stride];
        for (token, (key, value)) in keys.chunks(dim).zip(values.chunks(dim)).enumerate() {
            let block = blocks[token / BLOCK_TOKENS].0 as usize;
            let head = bytes[block * stride + stride / 2..][..stride / 2].as_mut_ptr();
            // SAFETY: the head's memory has its format's size.
            unsafe { store_kv(format, head, token % BLOCK_TOKENS, key, value) };
        }
        Self { format, blocks, bytes, stride }
    }
}

struct Heads {
    group: usize,
    dim: usize,
    window: usize,
    cap: f32,
}

impl Heads {
    fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }

    fn attend(&self, set: &Kernels, cache: &Cache, queries: &[f32], position: usize, tokens: usize) -> Vec<f32> {
        let stride = self.group * self.dim;
        let mut out = vec![0.0f32; tokens * stride];
        let mut scratch = vec![f32::NAN; AttendArgs::scratch_len(tokens * self.group, self.dim)];
        let args = AttendArgs {
            q: queries[position * stride..].as_ptr(),
            q_stride: stride,
            out: out.as_mut_ptr(),
            out_stride: stride,
            position,
            tokens,
            group: self.group,
            head_dim: self.dim,
            scale: self.scale(),
            cap: self.cap,
            window: self.window,
            blocks: &cache.blocks,
            kv: cache.bytes[cache.stride / 2..].as_ptr(),
            kv_stride: cache.stride,
            format: cache.format,
            scratch: scratch.as_mut_ptr(),
        };
        // SAFETY: all views were sized for these arguments.
        unsafe { (set.attend)(&args) };
        out
    }

    /// Attention by its definition, in double precision and on keys and values as they are.
    fn attend_exactly(&self, keys: &[f32], values: &[f32], queries: &[f32]) -> Vec<f32> {
        let Self { dim, group, window, cap, .. } = *self;
        let row = |(row, query): (usize, &[f32])| -> Vec<f32> {
            let position = row / group;
            let visible = (position + 1).saturating_sub(window)..position + 1;
            let score = |token: usize| {
                let key = &keys[token * dim..][..dim];
                let score = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum::<f64>();
                let score = score * f64::from(self.scale());
                if cap > 0.0 { f64::from(cap) * (score / f64::from(cap)).tanh() } else { score }
            };
            let weights: Vec<f64> = visible.clone().map(|token| score(token).exp()).collect();
            let total: f64 = weights.iter().sum();
            let value =
                |i: usize| visible.clone().zip(&weights).map(|(t, w)| w * f64::from(values[t * dim + i])).sum::<f64>();
            (0..dim).map(|i| (value(i) / total) as f32).collect()
        };
        queries.chunks(dim).enumerate().flat_map(row).collect()
    }
}
