//! Attention, once for all vector instruction sets; see `generic` for how sets use it.

// Indices with constant bounds unroll into registers; iterators over two arrays at once do not always.
#![allow(clippy::needless_range_loop)]

use super::args::AttendArgs;
use super::cache::{Format, Half, Q8};
use super::generic::{exp, soft_cap};
use super::vector::Vector;
use crate::kv::{BLOCK_TOKENS, KvFormat};

/// Query rows that go through a block of keys together.
const ATTEND_ROWS: usize = 6;

/// A call for each number of rows up to [`ATTEND_ROWS`], so that their sums stay in registers.
macro_rules! by_count {
    ($count:expr, $rows:ident => $call:expr) => {
        match $count {
            6 => by_count!(@ 6, $rows, $call),
            5 => by_count!(@ 5, $rows, $call),
            4 => by_count!(@ 4, $rows, $call),
            3 => by_count!(@ 3, $rows, $call),
            2 => by_count!(@ 2, $rows, $call),
            _ => by_count!(@ 1, $rows, $call),
        }
    };
    (@ $number:literal, $rows:ident, $call:expr) => {{
        const $rows: usize = $number;
        $call
    }};
}

/// [`attend_blocks`] over the format of the keys and values.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn attend<V: Vector>(args: &AttendArgs<'_>) {
    // SAFETY: the caller's duties are passed on.
    unsafe {
        match args.format {
            KvFormat::F16 => attend_blocks::<V, Half>(args),
            KvFormat::Q8_0 => attend_blocks::<V, Q8>(args),
        }
    }
}

/// Attention with online softmax, one block of 16 tokens after the other. Blocks always begin at multiples of 16
/// positions, so a row's result does not depend on how its prompt was cut into steps.
///
/// # Safety
/// As for [`Vector`]; `args` names existing rows and blocks, and keys and values are written up to each row's position.
#[inline(always)]
unsafe fn attend_blocks<V: Vector, K: Format<V>>(args: &AttendArgs<'_>) {
    let (rows, dim) = (args.tokens * args.group, args.head_dim);
    // SAFETY: the work space is laid out as `AttendArgs::scratch_len` says; the caller keeps the rest.
    unsafe {
        let q = args.scratch;
        let o = q.add(rows * dim);
        let scores = o.add(rows * dim);
        let maximum = scores.add(rows * BLOCK_TOKENS);
        let total = maximum.add(rows);
        for row in 0..rows {
            let from = args.q.add(row / args.group * args.q_stride + row % args.group * dim);
            K::query(from, args.scale, dim, q.add(row * dim));
            for at in (0..dim).step_by(V::ROWS) {
                V::store(o.add(row * dim + at), V::zero());
            }
            *maximum.add(row) = f32::NEG_INFINITY;
            *total.add(row) = 0.0;
        }
        let first = (args.position + 1).saturating_sub(args.window) / BLOCK_TOKENS;
        let last = (args.position + args.tokens - 1) / BLOCK_TOKENS;
        for index in first..=last {
            let begin = index * BLOCK_TOKENS;
            let block = args.kv.add(args.blocks[index].0 as usize * args.kv_stride);
            // Earlier rows of a chunk may end before this block, and the windows of later ones may begin behind it.
            let skip = begin.saturating_sub(args.position) * args.group;
            let reach = (begin + BLOCK_TOKENS - 1).saturating_add(args.window) - args.position;
            let rows = reach.min(args.tokens) * args.group;
            let mut row = skip;
            while row < rows {
                let count = (rows - row).min(ATTEND_ROWS);
                let s = scores.add(row * BLOCK_TOKENS);
                let queries = q.add(row * dim).cast_const();
                by_count!(count, R => K::scores::<R>(dim, queries, block, s));
                let mut visible_most = 0;
                for r in row..row + count {
                    let end = args.position + r / args.group + 1;
                    let visible = (end - begin).min(BLOCK_TOKENS);
                    let hidden = end.saturating_sub(args.window).saturating_sub(begin);
                    visible_most = visible_most.max(visible);
                    let s = scores.add(r * BLOCK_TOKENS);
                    if args.cap > 0.0 {
                        soft_cap::<V>(s, args.cap);
                    }
                    if hidden > 0 {
                        hide::<V>(s, hidden);
                    }
                    softmax_block::<V>(s, visible, &mut *maximum.add(r), &mut *total.add(r), o.add(r * dim), dim);
                }
                let results = o.add(row * dim);
                by_count!(count, R => K::weigh::<R>(dim, visible_most, s, block, results));
                row += count;
            }
        }
        for row in 0..rows {
            let to = args.out.add(row / args.group * args.out_stride + row % args.group * dim);
            let inverse = V::splat(1.0 / *total.add(row));
            for at in (0..dim).step_by(V::ROWS) {
                V::store(to.add(at), V::mul(V::load(o.add(row * dim + at)), inverse));
            }
        }
    }
}

/// Scores in front of a window: so low that their weight is 0.
#[inline(always)]
unsafe fn hide<V: Vector>(s: *mut f32, hidden: usize) {
    // SAFETY: 16 scores, as the caller laid them out.
    unsafe {
        for part in 0..V::PARTS {
            let at = part * V::ROWS;
            let low = V::splat(f32::NEG_INFINITY);
            V::store(s.add(at), V::first_lanes(hidden.saturating_sub(at), low, V::load(s.add(at))));
        }
    }
}

/// Turns 16 scores into weights relative to the running maximum, and rescales what was summed under an older one.
#[inline(always)]
unsafe fn softmax_block<V: Vector>(
    s: *mut f32,
    visible: usize,
    maximum: &mut f32,
    total: &mut f32,
    o: *mut f32,
    dim: usize,
) {
    // SAFETY: 16 scores and `dim` results, as the caller laid them out.
    unsafe {
        let mut greatest = V::splat(f32::NEG_INFINITY);
        for part in 0..V::PARTS {
            let at = part * V::ROWS;
            let x = V::load(s.add(at));
            let x = V::first_lanes(visible.saturating_sub(at), x, V::splat(f32::NEG_INFINITY));
            greatest = V::max(greatest, x);
        }
        let greatest = V::greatest(greatest);
        if greatest > *maximum {
            if *maximum > f32::NEG_INFINITY {
                let shrink = (*maximum - greatest).exp();
                *total *= shrink;
                let shrink = V::splat(shrink);
                for at in (0..dim).step_by(V::ROWS) {
                    V::store(o.add(at), V::mul(V::load(o.add(at)), shrink));
                }
            }
            *maximum = greatest;
        }
        let mut sum = V::zero();
        for part in 0..V::PARTS {
            let at = part * V::ROWS;
            let x = exp::<V>(V::add(V::load(s.add(at)), V::splat(-*maximum)));
            let x = V::first_lanes(visible.saturating_sub(at), x, V::zero());
            V::store(s.add(at), x);
            sum = V::add(sum, x);
        }
        *total += V::total(sum);
    }
}
