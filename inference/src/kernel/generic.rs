//! The algorithms, once for all vector instruction sets.
//!
//! Every function is `inline(always)` so that it is compiled inside a function that enables the set's instructions.
//! Loops over tokens have constant bounds: each token's chain of operations is the same whatever the bound, so results
//! do not depend on how tokens were grouped.

// Indices with constant bounds unroll into registers; iterators over two arrays at once do not always.
#![allow(clippy::needless_range_loop)]

use std::array::from_fn;

use super::args::{Acts, GemmArgs, NormArgs, SwigluArgs};
use super::tile::{TileF16, TileF32, TileQ2K, TileQ4, TileQ4K, TileQ8, TileWide};
use super::vector::Vector;
use super::{BLOCK, GELU_CUBE, GELU_SCALE};

/// Results of one token: `N` registers of rows.
type Rows<V, const N: usize> = [<V as Vector>::F; N];

/// How one kind of tile, whose rows `N` registers cover, is multiplied with `T` tokens. `at` is the first token and the block.
trait TileProduct<V: Vector> {
    type Tile;
    /// Adds the product of `tile` with block `b` of `T` tokens to `acc`.
    ///
    /// # Safety
    /// As for [`Vector`]; `acts` holds the rows and the block.
    unsafe fn product<const T: usize, const N: usize>(
        tile: &Self::Tile,
        acts: &Acts,
        at: (usize, usize),
        acc: &mut [Rows<V, N>; T],
    );
}

pub(super) struct Q4;
pub(super) struct Q4K;
pub(super) struct Q2K;
pub(super) struct Q8;
pub(super) struct Wide;
pub(super) struct F16;
pub(super) struct F32;

/// Quants of block `b` of each token.
#[inline(always)]
unsafe fn quants<const T: usize>(acts: &Acts, t: usize, b: usize) -> [*const i8; T] {
    // SAFETY: the caller names rows and a block of `acts`.
    unsafe { from_fn(|i| acts.q.add((t + i) * acts.columns + b * BLOCK).cast_const()) }
}

/// Place of block `b`'s scales, for each token.
#[inline(always)]
fn scales<const T: usize>(acts: &Acts, t: usize, b: usize) -> [usize; T] {
    from_fn(|i| (t + i) * (acts.columns / BLOCK) + b)
}

/// Sums over all 32 elements of tiles of nibbles.
#[inline(always)]
unsafe fn sum_nibble_lanes<V: Vector, const T: usize, const N: usize>(
    q: &[u8; 256],
    a: &[*const i8; T],
) -> [[V::Sum; N]; T] {
    // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
    unsafe {
        let mut sums = [[V::sum_zero(); N]; T];
        for lane in 0..4 {
            let bytes: [V::I; N] = from_fn(|part| V::load_bytes(q.as_ptr().add(64 * lane + part * V::ROWS * 4)));
            let low = bytes.map(|bytes| V::low_nibbles(bytes));
            for i in 0..T {
                // One broadcast serves all registers.
                let a = V::splat_bytes(a[i].add(4 * lane));
                for part in 0..N {
                    sums[i][part] = V::sum_nibbles(sums[i][part], low[part], a);
                }
            }
            let high = bytes.map(|bytes| V::high_nibbles(bytes));
            for i in 0..T {
                let a = V::splat_bytes(a[i].add(4 * lane + 16));
                for part in 0..N {
                    sums[i][part] = V::sum_nibbles(sums[i][part], high[part], a);
                }
            }
        }
        sums
    }
}

/// Product of a tile of nibbles whose scale and minimum hold for all 32 elements of a row; `scale` loads both of them
/// for one register of rows.
#[inline(always)]
unsafe fn nibble_product<V: Vector, const T: usize, const N: usize>(
    q: &[u8; 256],
    scale: impl Fn(usize) -> (V::F, V::F),
    acts: &Acts,
    (t, b): (usize, usize),
    acc: &mut [Rows<V, N>; T],
) {
    // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
    unsafe {
        let sums = sum_nibble_lanes::<V, T, N>(q, &quants(acts, t, b));
        let at: [usize; T] = scales(acts, t, b);
        for part in 0..N {
            let (d, m) = scale(part);
            for i in 0..T {
                let acc = &mut acc[i][part];
                let scale = V::mul(d, V::splat(*acts.d.add(at[i])));
                *acc = V::fmadd(V::float(V::sum_finish(sums[i][part])), scale, *acc);
                *acc = V::fmadd(m, V::splat(*acts.s.add(at[i])), *acc);
            }
        }
    }
}

impl<V: Vector> TileProduct<V> for Q4 {
    type Tile = TileQ4;
    #[inline(always)]
    unsafe fn product<const T: usize, const N: usize>(
        tile: &TileQ4,
        acts: &Acts,
        (t, b): (usize, usize),
        acc: &mut [Rows<V, N>; T],
    ) {
        // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
        unsafe {
            let load = |from: &[u16; 16], part: usize| V::load_half(from.as_ptr().add(part * V::ROWS));
            nibble_product::<V, T, N>(&tile.q, |part| (load(&tile.d, part), load(&tile.m, part)), acts, (t, b), acc);
        }
    }
}

impl<V: Vector> TileProduct<V> for Q4K {
    type Tile = TileQ4K;
    #[inline(always)]
    unsafe fn product<const T: usize, const N: usize>(
        tile: &TileQ4K,
        acts: &Acts,
        (t, b): (usize, usize),
        acc: &mut [Rows<V, N>; T],
    ) {
        // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
        unsafe {
            let load = |from: &[f32; 16], part: usize| V::load(from.as_ptr().add(part * V::ROWS));
            nibble_product::<V, T, N>(&tile.q, |part| (load(&tile.d, part), load(&tile.m, part)), acts, (t, b), acc);
        }
    }
}

impl<V: Vector> TileProduct<V> for Q2K {
    type Tile = TileQ2K;
    #[inline(always)]
    unsafe fn product<const T: usize, const N: usize>(
        tile: &TileQ2K,
        acts: &Acts,
        (t, b): (usize, usize),
        acc: &mut [Rows<V, N>; T],
    ) {
        // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
        unsafe {
            let a: [*const i8; T] = quants(acts, t, b);
            let at: [usize; T] = scales(acts, t, b);
            let ones = V::splat_bytes([1i8; 4].as_ptr());
            for half in 0..2 {
                let mut sums = [[V::sum_zero(); N]; T];
                // Minima belong to 16 elements, so the token's sum over these is needed; it is the same in all lanes.
                let mut totals = [V::sum_zero(); T];
                for lane in 0..4 {
                    let w: [V::I; N] = from_fn(|part| {
                        let bytes = V::load_bytes(tile.q.as_ptr().add(64 * lane + part * V::ROWS * 4));
                        if half == 0 { V::low_nibbles(bytes) } else { V::high_nibbles(bytes) }
                    });
                    for i in 0..T {
                        let a = V::splat_bytes(a[i].add(16 * half + 4 * lane));
                        totals[i] = V::sum_nibbles(totals[i], ones, a);
                        for part in 0..N {
                            sums[i][part] = V::sum_nibbles(sums[i][part], w[part], a);
                        }
                    }
                }
                for part in 0..N {
                    let d = V::load(tile.d[half].as_ptr().add(part * V::ROWS));
                    let m = V::load(tile.m[half].as_ptr().add(part * V::ROWS));
                    for i in 0..T {
                        let value = V::mul(d, V::float(V::sum_finish(sums[i][part])));
                        let value = V::fmadd(m, V::float(V::sum_finish(totals[i])), value);
                        acc[i][part] = V::fmadd(value, V::splat(*acts.d.add(at[i])), acc[i][part]);
                    }
                }
            }
        }
    }
}

/// Adds the products of lanes `lanes` (4 elements each) of byte tiles.
#[inline(always)]
unsafe fn sum_lanes<V: Vector, const T: usize, const N: usize>(
    q: &[i8; 512],
    lanes: std::ops::Range<usize>,
    a: &[*const i8; T],
) -> [[V::I; N]; T] {
    // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
    unsafe {
        let mut sums = [[V::int_zero(); N]; T];
        for lane in lanes {
            let w: [V::I; N] = from_fn(|part| V::load_bytes(q.as_ptr().add(64 * lane + part * V::ROWS * 4).cast()));
            for i in 0..T {
                let a = V::splat_bytes(a[i].add(4 * lane));
                for part in 0..N {
                    sums[i][part] = V::sum_bytes(sums[i][part], w[part], a);
                }
            }
        }
        sums
    }
}

impl<V: Vector> TileProduct<V> for Q8 {
    type Tile = TileQ8;
    #[inline(always)]
    unsafe fn product<const T: usize, const N: usize>(
        tile: &TileQ8,
        acts: &Acts,
        (t, b): (usize, usize),
        acc: &mut [Rows<V, N>; T],
    ) {
        // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
        unsafe {
            let sums = sum_lanes::<V, T, N>(&tile.q, 0..8, &quants(acts, t, b));
            let at: [usize; T] = scales(acts, t, b);
            for part in 0..N {
                let d = V::load_half(tile.d.as_ptr().add(part * V::ROWS));
                for i in 0..T {
                    let scale = V::mul(d, V::splat(*acts.d.add(at[i])));
                    acc[i][part] = V::fmadd(V::float(sums[i][part]), scale, acc[i][part]);
                }
            }
        }
    }
}

impl<V: Vector> TileProduct<V> for Wide {
    type Tile = TileWide;
    #[inline(always)]
    unsafe fn product<const T: usize, const N: usize>(
        tile: &TileWide,
        acts: &Acts,
        (t, b): (usize, usize),
        acc: &mut [Rows<V, N>; T],
    ) {
        // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
        unsafe {
            let a: [*const i8; T] = quants(acts, t, b);
            let at: [usize; T] = scales(acts, t, b);
            for half in 0..2 {
                let sums = sum_lanes::<V, T, N>(&tile.q, 4 * half..4 * half + 4, &a);
                for part in 0..N {
                    let d = V::load(tile.d[half].as_ptr().add(part * V::ROWS));
                    for i in 0..T {
                        let scale = V::mul(d, V::splat(*acts.d.add(at[i])));
                        acc[i][part] = V::fmadd(V::float(sums[i][part]), scale, acc[i][part]);
                    }
                }
            }
            for part in 0..N {
                let m = V::load(tile.m.as_ptr().add(part * V::ROWS));
                for i in 0..T {
                    acc[i][part] = V::fmadd(m, V::splat(*acts.s.add(at[i])), acc[i][part]);
                }
            }
        }
    }
}

impl<V: Vector> TileProduct<V> for F16 {
    type Tile = TileF16;
    #[inline(always)]
    unsafe fn product<const T: usize, const N: usize>(
        tile: &TileF16,
        acts: &Acts,
        (t, b): (usize, usize),
        acc: &mut [Rows<V, N>; T],
    ) {
        // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
        unsafe {
            for (k, lane) in tile.w.iter().enumerate() {
                let w = from_fn(|part| V::load_half(lane.as_ptr().add(part * V::ROWS)));
                add_column::<V, T, N>(w, acts, t, b * BLOCK + k, acc);
            }
        }
    }
}

impl<V: Vector> TileProduct<V> for F32 {
    type Tile = TileF32;
    #[inline(always)]
    unsafe fn product<const T: usize, const N: usize>(
        tile: &TileF32,
        acts: &Acts,
        (t, b): (usize, usize),
        acc: &mut [Rows<V, N>; T],
    ) {
        // SAFETY: lanes lie inside the tile, blocks inside the rows; the caller keeps the rest.
        unsafe {
            for (k, lane) in tile.w.iter().enumerate() {
                let w = from_fn(|part| V::load(lane.as_ptr().add(part * V::ROWS)));
                add_column::<V, T, N>(w, acts, t, b * BLOCK + k, acc);
            }
        }
    }
}

/// Adds the products of a column of weights with plain activation `k` of each token.
#[inline(always)]
unsafe fn add_column<V: Vector, const T: usize, const N: usize>(
    w: Rows<V, N>,
    acts: &Acts,
    t: usize,
    k: usize,
    acc: &mut [Rows<V, N>; T],
) {
    // SAFETY: the caller names an element of existing rows.
    unsafe {
        for i in 0..T {
            let x = V::splat(*acts.f.add((t + i) * acts.columns + k));
            for part in 0..N {
                acc[i][part] = V::fmadd(w[part], x, acc[i][part]);
            }
        }
    }
}

/// One row of tiles times `args.count` tokens.
///
/// # Safety
/// As for [`Vector`]; `args` names whole tiles of the product's kind, rows of activations that exist, and outputs that
/// nobody else touches.
#[inline(always)]
#[allow(private_bounds)]
pub(super) unsafe fn gemm<V: Vector, P: TileProduct<V>>(args: &GemmArgs) {
    let mut t = 0;
    // SAFETY: each call handles tokens below `count`; the caller keeps the rest.
    unsafe {
        if V::MANY_REGISTERS {
            while t + 12 <= args.count {
                gemm_tokens::<V, P, 12>(args, t);
                t += 12;
            }
        }
        while t + 4 <= args.count {
            gemm_tokens::<V, P, 4>(args, t);
            t += 4;
        }
        match args.count - t {
            3 => gemm_tokens::<V, P, 3>(args, t),
            2 => gemm_tokens::<V, P, 2>(args, t),
            1 => gemm_tokens::<V, P, 1>(args, t),
            _ => {}
        }
    }
}

/// `T` tokens from `t` on, all 16 rows at once: each broadcast of activations serves every register of rows.
#[inline(always)]
unsafe fn gemm_tokens<V: Vector, P: TileProduct<V>, const T: usize>(args: &GemmArgs, t: usize) {
    // SAFETY: the caller's duties are passed on.
    unsafe {
        match V::PARTS {
            1 => gemm_parts::<V, P, T, 1>(args, t),
            _ => gemm_parts::<V, P, T, 2>(args, t),
        }
    }
}

/// How far ahead of use weights are fetched when a step has one token and waits for memory: the processor's own
/// prefetchers stop at each page.
const PREFETCH_BYTES: usize = 2048;

#[inline(always)]
unsafe fn gemm_parts<V: Vector, P: TileProduct<V>, const T: usize, const N: usize>(args: &GemmArgs, t: usize) {
    // SAFETY: `blocks` tiles follow each other from `tiles` on, and outputs are 16 wide; the caller keeps both.
    unsafe {
        let tiles = args.tiles.cast::<P::Tile>();
        let mut acc = [[V::zero(); N]; T];
        for b in 0..args.blocks {
            let tile = tiles.add(b);
            if T == 1 {
                for line in (0..size_of::<P::Tile>()).step_by(64) {
                    V::prefetch(tile.cast::<u8>().wrapping_add(PREFETCH_BYTES + line));
                }
            }
            P::product::<T, N>(&*tile, &args.acts, (args.first + t, b), &mut acc);
        }
        for (i, acc) in acc.into_iter().enumerate() {
            for part in 0..N {
                let out = args.out.add((t + i) * args.stride + part * V::ROWS);
                V::store(out, if args.add { V::add(V::load(out), acc[part]) } else { acc[part] });
            }
        }
    }
}

/// RMS norm of one row (or the row as it is), quantised block by block.
///
/// # Safety
/// As for [`Vector`]; all rows named by `args` have `acts.columns` elements, a multiple of 32.
#[inline(always)]
pub(super) unsafe fn norm_quantize<V: Vector>(args: &NormArgs) {
    let columns = args.acts.columns;
    // SAFETY: all offsets are below `columns`; the caller keeps the rest.
    unsafe {
        let mut factor = 1.0;
        if !args.weight.is_null() {
            // Four sums hide the latency of the additions.
            let mut sums = [V::zero(); 4];
            for at in (0..columns).step_by(BLOCK) {
                for i in 0..BLOCK / V::ROWS {
                    let x = V::load(args.x.add(at + i * V::ROWS));
                    sums[i % 4] = V::fmadd(x, x, sums[i % 4]);
                }
            }
            let total = V::total(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
            factor = 1.0 / (total / columns as f32 + args.eps).sqrt();
        }
        for b in 0..columns / BLOCK {
            let mut x = V::block_load(args.x.add(b * BLOCK));
            if !args.weight.is_null() {
                x = V::block_mul(V::block_scale(x, factor), V::block_load(args.weight.add(b * BLOCK)));
            }
            put_block::<V>(&args.acts, args.row, b, x);
        }
    }
}

/// Quantises one block to bytes with scale = greatest magnitude / 127.
#[inline(always)]
unsafe fn put_block<V: Vector>(acts: &Acts, row: usize, b: usize, x: V::Block) {
    // SAFETY: the caller names a block inside `acts` that nobody else touches.
    unsafe {
        let magnitude = V::block_magnitude(x);
        let inverse = if magnitude > 0.0 { 127.0 / magnitude } else { 0.0 };
        let d = magnitude / 127.0;
        let sum = V::block_quantize(x, inverse, acts.q.add(row * acts.columns + b * BLOCK));
        let at = row * (acts.columns / BLOCK) + b;
        *acts.d.add(at) = d;
        *acts.s.add(at) = d * sum as f32;
        if !acts.f.is_null() {
            V::block_store(acts.f.add(row * acts.columns + b * BLOCK), x);
        }
    }
}

/// e to the power of each lane; 0 below −87.3, relative error below 2e-7 (a degree-6 polynomial after range reduction).
#[inline(always)]
pub(super) unsafe fn exp<V: Vector>(x: V::F) -> V::F {
    // SAFETY: the caller keeps the duties of `Vector`.
    unsafe {
        let x = V::min(V::max(x, V::splat(-87.3)), V::splat(88.0));
        let n = V::round(V::mul(x, V::splat(std::f32::consts::LOG2_E)));
        let whole = V::float(n);
        // ln 2 in two parts, so that the difference keeps its low bits.
        let r = V::fmadd(whole, V::splat(-355.0 / 512.0), x);
        let r = V::fmadd(whole, V::splat(2.121_944_4e-4), r);
        let mut p = V::splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = V::fmadd(p, r, V::splat(c));
        }
        let p = V::fmadd(p, V::mul(r, r), V::add(r, V::splat(1.0)));
        V::mul(p, V::power_of_two(n))
    }
}

/// SiLU(gate) × up, or GELU(gate) × up, for one block of each token, quantised.
///
/// # Safety
/// As for [`Vector`]; `args` names 32 gate and up values of each token and a block of each destination row.
#[inline(always)]
pub(super) unsafe fn gated<V: Vector, const GELU: bool>(args: &SwigluArgs) {
    // SAFETY: offsets are those named by the caller.
    unsafe {
        for t in 0..args.count {
            let mut h = [0.0f32; BLOCK];
            for at in (0..BLOCK).step_by(V::ROWS) {
                let gate = V::load(args.gate.add(t * args.stride + at));
                let up = V::load(args.up.add(t * args.stride + at));
                // 0.5 × (1 + tanh(z)) is the sigmoid of 2 z.
                let inner = if GELU {
                    let cube = V::mul(V::mul(gate, gate), gate);
                    V::mul(V::fmadd(cube, V::splat(GELU_CUBE), gate), V::splat(-2.0 * GELU_SCALE))
                } else {
                    V::mul(gate, V::splat(-1.0))
                };
                let one_plus = V::add(V::splat(1.0), exp::<V>(inner));
                V::store(h.as_mut_ptr().add(at), V::mul(V::div(gate, one_plus), up));
            }
            put_block::<V>(&args.acts, args.first + t, args.block, V::block_load(h.as_ptr()));
        }
    }
}

/// cap × tanh(value / cap) for 16 values.
///
/// # Safety
/// As for [`Vector`]; 16 values lie there.
#[inline(always)]
pub(super) unsafe fn soft_cap<V: Vector>(values: *mut f32, cap: f32) {
    // SAFETY: the parts together are 16 values.
    unsafe {
        for part in 0..V::PARTS {
            let at = values.add(part * V::ROWS);
            // tanh(z) = 1 − 2 / (e^2z + 1); its error, about 1e-7, counts relative to the cap.
            let e = exp::<V>(V::mul(V::load(at), V::splat(2.0 / cap)));
            let ratio = V::div(V::splat(-2.0), V::add(e, V::splat(1.0)));
            V::store(at, V::mul(V::add(ratio, V::splat(1.0)), V::splat(cap)));
        }
    }
}

/// Writes the table of one instruction set: `functions!(Set, "features", NAME, "name")`.
macro_rules! functions {
    ($set:ty, $features:literal, $table:ident, $name:literal) => {
        pub(crate) static $table: super::Kernels = {
            #[target_feature(enable = $features)]
            unsafe fn gemm_q4(args: &super::GemmArgs) {
                // SAFETY: this function enables the set; the caller keeps the rest.
                unsafe { super::generic::gemm::<$set, super::generic::Q4>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn gemm_q4k(args: &super::GemmArgs) {
                // SAFETY: as above.
                unsafe { super::generic::gemm::<$set, super::generic::Q4K>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn gemm_q2k(args: &super::GemmArgs) {
                // SAFETY: as above.
                unsafe { super::generic::gemm::<$set, super::generic::Q2K>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn gemm_q8(args: &super::GemmArgs) {
                // SAFETY: as above.
                unsafe { super::generic::gemm::<$set, super::generic::Q8>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn gemm_wide(args: &super::GemmArgs) {
                // SAFETY: as above.
                unsafe { super::generic::gemm::<$set, super::generic::Wide>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn gemm_f16(args: &super::GemmArgs) {
                // SAFETY: as above.
                unsafe { super::generic::gemm::<$set, super::generic::F16>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn gemm_f32(args: &super::GemmArgs) {
                // SAFETY: as above.
                unsafe { super::generic::gemm::<$set, super::generic::F32>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn norm_quantize(args: &super::NormArgs) {
                // SAFETY: as above.
                unsafe { super::generic::norm_quantize::<$set>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn swiglu(args: &super::SwigluArgs) {
                // SAFETY: as above.
                unsafe { super::generic::gated::<$set, false>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn geglu(args: &super::SwigluArgs) {
                // SAFETY: as above.
                unsafe { super::generic::gated::<$set, true>(args) }
            }
            #[target_feature(enable = $features)]
            unsafe fn soft_cap(values: *mut f32, cap: f32) {
                // SAFETY: as above.
                unsafe { super::generic::soft_cap::<$set>(values, cap) }
            }
            #[target_feature(enable = $features)]
            unsafe fn attend(args: &super::AttendArgs<'_>) {
                // SAFETY: as above.
                unsafe { super::attend::attend::<$set>(args) }
            }
            super::Kernels {
                name: $name,
                gemm: [gemm_q4, gemm_q4k, gemm_q2k, gemm_q8, gemm_wide, gemm_f16, gemm_f32],
                norm_quantize,
                swiglu,
                geglu,
                soft_cap,
                attend,
            }
        };
    };
}
pub(super) use functions;
