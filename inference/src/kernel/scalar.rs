//! Plain versions of every kernel: the reference of the tests, and the fall-back.

use super::args::{Acts, AttendArgs, GemmArgs, NormArgs, SwigluArgs};
use super::tile::{TileF16, TileF32, TileQ2K, TileQ4, TileQ4K, TileQ8, TileWide, nibble};
use super::{BLOCK, GELU_CUBE, GELU_SCALE, Kernels, TILE_ROWS, cache};
use crate::kv::{BLOCK_TOKENS, GROUP, KvFormat};
use crate::quant::half;

pub(super) static KERNELS: Kernels = Kernels {
    name: "scalar",
    gemm: [
        gemm::<TileQ4>,
        gemm::<TileQ4K>,
        gemm::<TileQ2K>,
        gemm::<TileQ8>,
        gemm::<TileWide>,
        gemm::<TileF16>,
        gemm::<TileF32>,
    ],
    norm_quantize,
    swiglu: gated::<false>,
    geglu: gated::<true>,
    soft_cap,
    attend,
};

/// One block of one token as the tiles see it.
struct ActBlock<'a> {
    q: &'a [i8],
    d: f32,
    s: f32,
    f: &'a [f32],
}

trait Tile {
    /// Product of row `row` of the tile with a block.
    fn product(&self, row: usize, block: &ActBlock<'_>) -> f32;
}

/// Sum of products of some elements of a row of nibbles.
fn nibble_sum(lanes: &[u8; 256], row: usize, block: &ActBlock<'_>, range: std::ops::Range<usize>) -> f32 {
    range.map(|k| i32::from(nibble(lanes, row, k)) * i32::from(block.q[k])).sum::<i32>() as f32
}

impl Tile for TileQ4 {
    fn product(&self, row: usize, block: &ActBlock<'_>) -> f32 {
        let sum = nibble_sum(&self.q, row, block, 0..BLOCK);
        half(self.d[row]) * block.d * sum + half(self.m[row]) * block.s
    }
}

impl Tile for TileQ4K {
    fn product(&self, row: usize, block: &ActBlock<'_>) -> f32 {
        self.d[row] * block.d * nibble_sum(&self.q, row, block, 0..BLOCK) + self.m[row] * block.s
    }
}

impl Tile for TileQ2K {
    fn product(&self, row: usize, block: &ActBlock<'_>) -> f32 {
        let part = |half: usize| {
            let range = 16 * half..16 * half + 16;
            let sum = block.q[range.clone()].iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
            self.d[half][row] * nibble_sum(&self.q, row, block, range) + self.m[half][row] * sum
        };
        (part(0) + part(1)) * block.d
    }
}

impl Tile for TileQ8 {
    fn product(&self, row: usize, block: &ActBlock<'_>) -> f32 {
        let sum: i32 = (0..BLOCK).map(|k| i32::from(byte_quant(&self.q, row, k)) * i32::from(block.q[k])).sum();
        half(self.d[row]) * block.d * sum as f32
    }
}

impl Tile for TileWide {
    fn product(&self, row: usize, block: &ActBlock<'_>) -> f32 {
        let sum = |range: std::ops::Range<usize>| -> i32 {
            range.map(|k| i32::from(byte_quant(&self.q, row, k)) * i32::from(block.q[k])).sum()
        };
        let (low, high) = (sum(0..16) as f32, sum(16..32) as f32);
        (self.d[0][row] * low + self.d[1][row] * high) * block.d + self.m[row] * block.s
    }
}

impl Tile for TileF16 {
    fn product(&self, row: usize, block: &ActBlock<'_>) -> f32 {
        self.w.iter().zip(block.f).map(|(lane, x)| half(lane[row]) * x).sum()
    }
}

impl Tile for TileF32 {
    fn product(&self, row: usize, block: &ActBlock<'_>) -> f32 {
        self.w.iter().zip(block.f).map(|(lane, x)| lane[row] * x).sum()
    }
}

fn byte_quant(lanes: &[i8; 512], row: usize, k: usize) -> i8 {
    lanes[64 * (k / 4) + 4 * row + k % 4]
}

/// # Safety
/// `args` names whole tiles of kind `T`, existing rows of activations, and outputs that nobody else touches.
unsafe fn gemm<T: Tile>(args: &GemmArgs) {
    // SAFETY: offsets are those named by the caller.
    unsafe {
        let tiles = std::slice::from_raw_parts(args.tiles.cast::<T>(), args.blocks);
        for t in 0..args.count {
            for row in 0..TILE_ROWS {
                let product = |(b, tile): (usize, &T)| tile.product(row, &block(&args.acts, args.first + t, b));
                let value: f32 = tiles.iter().enumerate().map(product).sum();
                let out = &mut *args.out.add(t * args.stride + row);
                *out = if args.add { *out + value } else { value };
            }
        }
    }
}

unsafe fn block<'a>(acts: &Acts, row: usize, b: usize) -> ActBlock<'a> {
    let start = row * acts.columns + b * BLOCK;
    let at = row * (acts.columns / BLOCK) + b;
    // Weights that are not quantised come with plain values alone, all others with quants.
    // SAFETY: the caller names a block inside `acts`, which outlives the product; what is null is left alone.
    unsafe {
        let f = if acts.f.is_null() { &[][..] } else { std::slice::from_raw_parts(acts.f.add(start), BLOCK) };
        if acts.q.is_null() {
            return ActBlock { q: &[], d: 0.0, s: 0.0, f };
        }
        ActBlock { q: std::slice::from_raw_parts(acts.q.add(start), BLOCK), d: *acts.d.add(at), s: *acts.s.add(at), f }
    }
}

/// # Safety
/// All rows named by `args` have `acts.columns` elements, a multiple of 32.
unsafe fn norm_quantize(args: &NormArgs) {
    let columns = args.acts.columns;
    // SAFETY: offsets are below `columns`.
    unsafe {
        let x = std::slice::from_raw_parts(args.x, columns);
        let mean = x.iter().map(|x| x * x).sum::<f32>() / columns as f32;
        let factor = 1.0 / (mean + args.eps).sqrt();
        for b in 0..columns / BLOCK {
            let value = |k: usize| {
                let at = b * BLOCK + k;
                if args.weight.is_null() { x[at] } else { x[at] * factor * *args.weight.add(at) }
            };
            put_block(&args.acts, args.row, b, &std::array::from_fn(value));
        }
    }
}

unsafe fn put_block(acts: &Acts, row: usize, b: usize, x: &[f32; BLOCK]) {
    // SAFETY: the caller names a block inside `acts` that nobody else touches.
    unsafe {
        let magnitude = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        let inverse = if magnitude > 0.0 { 127.0 / magnitude } else { 0.0 };
        let mut sum = 0;
        for (k, x) in x.iter().enumerate() {
            let q = (x * inverse).round_ties_even() as i32;
            sum += q;
            *acts.q.add(row * acts.columns + b * BLOCK + k) = q as i8;
            if !acts.f.is_null() {
                *acts.f.add(row * acts.columns + b * BLOCK + k) = *x;
            }
        }
        let at = row * (acts.columns / BLOCK) + b;
        *acts.d.add(at) = magnitude / 127.0;
        *acts.s.add(at) = magnitude / 127.0 * sum as f32;
    }
}

/// # Safety
/// `args` names 32 gate and up values of each token and a block of each destination row.
unsafe fn gated<const GELU: bool>(args: &SwigluArgs) {
    // SAFETY: offsets are those named by the caller.
    unsafe {
        for t in 0..args.count {
            let value = |k: usize| {
                let gate = *args.gate.add(t * args.stride + k);
                // 0.5 × (1 + tanh(z)) is the sigmoid of 2 z.
                let inner = if GELU { 2.0 * GELU_SCALE * (gate + GELU_CUBE * gate.powi(3)) } else { gate };
                gate / (1.0 + (-inner).exp()) * *args.up.add(t * args.stride + k)
            };
            put_block(&args.acts, args.first + t, args.block, &std::array::from_fn(value));
        }
    }
}

/// # Safety
/// 16 values lie there.
unsafe fn soft_cap(values: *mut f32, cap: f32) {
    // SAFETY: as the caller says.
    let values = unsafe { std::slice::from_raw_parts_mut(values, TILE_ROWS) };
    values.iter_mut().for_each(|value| *value = cap * (*value / cap).tanh());
}

/// What quantising leaves of a row.
fn rounded(row: &[f32]) -> Vec<f32> {
    let group = |x: &[f32]| {
        let magnitude = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let inverse = if magnitude > 0.0 { 127.0 / magnitude } else { 0.0 };
        x.iter().map(|x| (x * inverse).round_ties_even() * (magnitude / 127.0)).collect::<Vec<_>>()
    };
    row.chunks(GROUP).flat_map(group).collect()
}

/// # Safety
/// `args` names existing rows and blocks; keys and values are written up to each row's position.
unsafe fn attend(args: &AttendArgs<'_>) {
    let dim = args.head_dim;
    // SAFETY: offsets are those named by the caller.
    unsafe {
        let place = |token: usize| {
            let block = args.blocks[token / BLOCK_TOKENS].0 as usize;
            (args.kv.add(block * args.kv_stride), token % BLOCK_TOKENS)
        };
        let value = |token: usize, i: usize| {
            let (block, slot) = place(token);
            cache::value(args.format, block, dim, slot, i)
        };
        for row in 0..args.tokens * args.group {
            let (token, head) = (row / args.group, row % args.group);
            let q = std::slice::from_raw_parts(args.q.add(token * args.q_stride + head * dim), dim);
            let q = if args.format == KvFormat::Q8_0 { rounded(q) } else { q.to_vec() };
            let score = |other: usize| {
                let (block, slot) = place(other);
                let key = |i: usize| cache::key(args.format, block, dim, slot, i);
                let score = (0..dim).map(|i| q[i] * key(i)).sum::<f32>() * args.scale;
                if args.cap > 0.0 { args.cap * (score / args.cap).tanh() } else { score }
            };
            let position = args.position + token;
            let visible = (position + 1).saturating_sub(args.window)..=position;
            let greatest = visible.clone().map(score).fold(f32::NEG_INFINITY, f32::max);
            let total: f32 = visible.clone().map(|other| (score(other) - greatest).exp()).sum();
            for i in 0..dim {
                let sum: f32 = visible.clone().map(|other| (score(other) - greatest).exp() * value(other, i)).sum();
                *args.out.add(token * args.out_stride + head * dim + i) = sum / total;
            }
        }
    }
}
