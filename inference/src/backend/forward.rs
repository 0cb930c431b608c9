//! The forward pass of the llama family, run by all members of the team together.
//!
//! Every phase splits its output among the members and ends at a barrier, so that within a phase no two threads touch
//! the same element and none reads what another writes. Each output element is computed by one thread in a fixed order
//! of operations: neither the number of threads nor the other rows of the step change a result.
//!
//! | phase | split by | reads | writes |
//! |---|---|---|---|
//! | embed | token | plan, embedding | x, rope |
//! | norm | token | x | acts_x |
//! | q, k, v | 16 outputs | acts_x | qkv |
//! | rotate, store | token and kv head | qkv, rope | qkv (queries), kv |
//! | attend | unit, taken from a counter | qkv, kv | attended |
//! | quantise | token | attended | acts_o |
//! | output | 16 outputs | acts_o | x |
//! | norm | token | x | acts_x |
//! | gate, up, activation | 32 elements | acts_x | acts_ff |
//! | down | 16 outputs | acts_ff | x |
//! | head | 16 outputs | acts_x | logits |
//!
//! Architectures differ only in data: `Hyper` and the vectors that a layer has. Where results are normalised before they
//! are added, output and down write `branch` and a phase split by token adds it to x; experts have the phases of `moe`.
//!
//! A step of a single token has nothing to split in norm and quantise: each thread computes them for itself, into a
//! row of its own, and saves the barrier.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::StepPlan;
use super::cpu::{Place, Work};
use super::head::{add_normalised, normalise_head, rotate};
use super::moe::MixtureView;
use super::team::Barrier;
use crate::kernel::{Acts, AttendArgs, BLOCK, GemmArgs, Kernels, Matrix, NormArgs, SwigluArgs, TILE_ROWS, store_kv};
use crate::kv::{BLOCK_TOKENS, KvFormat};
use crate::model::{Activation, FeedForward, Gated, Hyper, Layer, Model, RopeTable};

/// Query rows of one attention unit: enough to use each block of keys several times, few enough to stay in the cache.
pub(super) const ATTEND_ROWS_MAX: usize = 48;
/// Tokens of one gate/up unit between product and SiLU.
pub(super) const FF_TOKENS: usize = 64;

/// A piece of attention: some consecutive tokens of a slice, for the query heads of one key/value head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    pub(super) slice: usize,
    pub(super) from: usize,
    pub(super) tokens: usize,
    pub(super) kv_head: usize,
    pub(super) cost: usize,
}

/// Everything that a step needs, as raw views that all members share.
pub(super) struct Frame<'a> {
    model: &'a Model,
    pub(super) hyper: &'a Hyper,
    kernels: &'static Kernels,
    /// Activation of the gate times up.
    gate: unsafe fn(&SwigluArgs),
    plan: &'a StepPlan,
    members: usize,
    pub(super) places: &'a [Place],
    logits_rows: &'a [u32],
    units: &'a [Unit],
    taken: &'a [AtomicUsize],
    /// First of the rows of `acts_x` and `acts_o` that belong to one member each.
    private_row: usize,
    pub(super) x: *mut f32,
    /// Where results wait for their norm; null without such norms.
    branch: *mut f32,
    pub(super) acts_x: Acts,
    acts_o: Acts,
    pub(super) acts_ff: Acts,
    pub(super) mixture: Option<MixtureView>,
    qkv: *mut f32,
    attended: *mut f32,
    rope: *mut f32,
    rope_tables: &'a [Vec<RopeTable>],
    scratch: *mut f32,
    scratch_len: usize,
    kv: *mut u8,
    kv_format: KvFormat,
    logits: *mut f32,
    logits_stride: usize,
}

// SAFETY: the views stay valid for `'a`, during which `Frame::new` holds the exclusive borrows, and the phases split
// what they write as the table above says.
unsafe impl Sync for Frame<'_> {}

impl<'a> Frame<'a> {
    /// Views of a step. `work` has room for the plan (checked against the limits it was made for).
    pub(super) fn new(
        model: &'a Model,
        kernels: &'static Kernels,
        plan: &'a StepPlan,
        work: &'a mut Work,
        (kv, kv_format): (&'a mut [u8], KvFormat),
        (logits, logits_stride): (&'a mut [f32], usize),
    ) -> Frame<'a> {
        let hyper = model.hyper();
        work.prepare(plan, hyper.kv_heads, hyper.heads / hyper.kv_heads);
        Frame {
            model,
            hyper,
            kernels,
            gate: match hyper.activation {
                Activation::Silu => kernels.swiglu,
                Activation::Gelu => kernels.geglu,
            },
            plan,
            members: work.threads,
            private_row: work.x.len() / hyper.width,
            x: work.x.as_mut_ptr(),
            branch: if work.branch.is_empty() { std::ptr::null_mut() } else { work.branch.as_mut_ptr() },
            acts_x: work.acts_x.view(),
            acts_o: work.acts_o.view(),
            acts_ff: work.acts_ff.view(),
            mixture: work.mixture.as_mut().zip(hyper.experts).map(|(mixture, experts)| mixture.view(experts)),
            qkv: work.qkv.as_mut_ptr(),
            attended: work.attended.as_mut_ptr(),
            rope: work.rope.as_mut_ptr(),
            rope_tables: &work.rope_tables,
            scratch: work.scratch.as_mut_ptr(),
            scratch_len: work.scratch_len,
            places: &work.places,
            logits_rows: &work.logits_rows,
            units: &work.units,
            taken: &work.taken,
            kv: kv.as_mut_ptr(),
            kv_format,
            logits: logits.as_mut_ptr(),
            logits_stride,
        }
    }

    /// The whole pass, as one member of the team.
    pub(super) fn run(&self, member: usize, barrier: &Barrier) {
        let weights = self.model.weights();
        let count = self.places.len();
        self.embed(self.share(member, count));
        barrier.wait();
        for (index, layer) in weights.layers.iter().enumerate() {
            let first = self.normalise(member, barrier, &layer.attention_norm);
            self.qkv(member, layer, first);
            barrier.wait();
            self.rotate_and_store(index, layer, self.share(member, count * self.hyper.kv_heads));
            barrier.wait();
            self.attend(index, member);
            barrier.wait();
            let first = self.quantise_attended(member, barrier);
            self.residual(member, &layer.o, &layer.biases[3], self.acts_o, first);
            barrier.wait();
            self.add_branch(member, barrier, &layer.post_attention_norm);
            let first = self.normalise(member, barrier, &layer.ff_norm);
            match &layer.feed_forward {
                FeedForward::Dense(gated) => {
                    self.feed_forward(member, gated, first);
                    barrier.wait();
                    self.residual(member, &gated.down, &[], self.acts_ff, 0);
                }
                FeedForward::Experts { router, experts } => self.experts(member, barrier, router, experts, first),
            }
            barrier.wait();
            self.add_branch(member, barrier, &layer.post_ff_norm);
        }
        if !self.logits_rows.is_empty() {
            let rows = self.share(member, self.logits_rows.len());
            for row in rows {
                self.norm_row(&weights.output_norm, self.logits_rows[row] as usize, row);
            }
            barrier.wait();
            self.head(member, &weights.head);
        }
    }

    /// The part of `0..count` that a member computes: contiguous, so that weights are read in order.
    pub(super) fn share(&self, member: usize, count: usize) -> Range<usize> {
        count * member / self.members..count * (member + 1) / self.members
    }

    fn embed(&self, rows: Range<usize>) {
        let (weights, width, scale) = (self.model.weights(), self.hyper.width, self.hyper.embedding_scale);
        let rope_len = self.rope_len();
        for row in rows {
            // SAFETY: each row of `x` and `rope` belongs to one member in this phase.
            let (x, rope) = unsafe {
                let rope = self.rope.add(row * rope_len);
                let x = std::slice::from_raw_parts_mut(self.x.add(row * width), width);
                (x, std::slice::from_raw_parts_mut(rope, rope_len))
            };
            weights.embed(self.plan.tokens()[row], x);
            if scale != 1.0 {
                x.iter_mut().for_each(|x| *x *= scale);
            }
            let Place { position, turned, .. } = self.places[row];
            let tables = &self.rope_tables[turned as usize];
            for (table, rope) in tables.iter().zip(rope.chunks_exact_mut(self.hyper.rope.dim)) {
                table.turns(position, rope);
            }
        }
    }

    /// Cosines and sines of one token over all tables.
    fn rope_len(&self) -> usize {
        self.rope_tables[0].len() * self.hyper.rope.dim
    }

    /// Normalises and quantises all rows of `x`; returns the row of `acts_x` where this member finds the first.
    fn normalise(&self, member: usize, barrier: &Barrier, weight: &[f32]) -> usize {
        let count = self.places.len();
        if count == 1 {
            self.norm_row(weight, 0, self.private_row + member);
            return self.private_row + member;
        }
        for row in self.share(member, count) {
            self.norm_row(weight, row, row);
        }
        barrier.wait();
        0
    }

    fn norm_row(&self, weight: &[f32], from: usize, to: usize) {
        let (width, eps) = (self.hyper.width, self.hyper.norm_eps);
        // SAFETY: row `from` of `x` is not written in this phase; row `to` of `acts_x` belongs to this member.
        unsafe {
            let x = self.x.add(from * width).cast_const();
            (self.kernels.norm_quantize)(&NormArgs { x, weight: weight.as_ptr(), eps, acts: self.acts_x, row: to });
        }
    }

    fn quantise_attended(&self, member: usize, barrier: &Barrier) -> usize {
        let count = self.places.len();
        let quantise = |from: usize, row: usize| {
            // SAFETY: `attended` is not written in this phase; `row` of `acts_o` belongs to this member.
            unsafe {
                let x = self.attended.add(from * self.hyper.q_width()).cast_const();
                let weight = std::ptr::null();
                (self.kernels.norm_quantize)(&NormArgs { x, weight, eps: 0.0, acts: self.acts_o, row });
            }
        };
        if count == 1 {
            quantise(0, self.private_row + member);
            return self.private_row + member;
        }
        for row in self.share(member, count) {
            quantise(row, row);
        }
        barrier.wait();
        0
    }

    fn qkv(&self, member: usize, layer: &Layer, first: usize) {
        let stride = self.hyper.q_width() + 2 * self.hyper.kv_width();
        let tiles = [&layer.q, &layer.k, &layer.v].map(Matrix::row_tiles);
        for tile in self.share(member, tiles.iter().sum()) {
            let (matrix, bias, inner, column) = if tile < tiles[0] {
                (&layer.q, &layer.biases[0], tile, 0)
            } else if tile < tiles[0] + tiles[1] {
                (&layer.k, &layer.biases[1], tile - tiles[0], self.hyper.q_width())
            } else {
                let column = self.hyper.q_width() + self.hyper.kv_width();
                (&layer.v, &layer.biases[2], tile - tiles[0] - tiles[1], column)
            };
            // SAFETY: the columns of this tile belong to this member; head widths are multiples of 16.
            unsafe {
                let out = (self.qkv.add(column + inner * TILE_ROWS), stride);
                let add = self.put_bias(bias, inner, out, false);
                self.product(matrix, inner, (self.acts_x, first), self.places.len(), out, add);
            }
        }
    }

    /// Adds a product to the residual stream, or leaves it in `branch` where a norm comes between.
    fn residual(&self, member: usize, matrix: &Matrix, bias: &[f32], acts: Acts, first: usize) {
        let (base, add) = if self.branch.is_null() { (self.x, true) } else { (self.branch, false) };
        for tile in self.share(member, matrix.row_tiles()) {
            // SAFETY: the columns of this tile belong to this member; the width is a multiple of 16.
            unsafe {
                let out = (base.add(tile * TILE_ROWS), self.hyper.width);
                let add = self.put_bias(bias, tile, out, add);
                self.product(matrix, tile, (acts, first), self.places.len(), out, add);
            }
        }
    }

    /// Puts a tile's biases where its product will be added; returns whether the product is to be added.
    ///
    /// # Safety
    /// As for [`Frame::product`].
    unsafe fn put_bias(&self, bias: &[f32], tile: usize, (out, stride): (*mut f32, usize), add: bool) -> bool {
        let Some(bias) = bias.get(tile * TILE_ROWS..(tile + 1) * TILE_ROWS) else { return add };
        for row in 0..self.places.len() {
            // SAFETY: 16 floats of each row, as the caller says.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(row * stride), TILE_ROWS) };
            for (out, bias) in out.iter_mut().zip(bias) {
                *out = if add { *out + bias } else { *bias };
            }
        }
        true
    }

    /// Where results are normalised before they are added to the residual stream: does both.
    fn add_branch(&self, member: usize, barrier: &Barrier, weight: &[f32]) {
        if weight.is_empty() {
            return;
        }
        let width = self.hyper.width;
        for row in self.share(member, self.places.len()) {
            // SAFETY: the rows belong to this member in this phase.
            unsafe {
                let x = std::slice::from_raw_parts_mut(self.x.add(row * width), width);
                let branch = std::slice::from_raw_parts(self.branch.add(row * width).cast_const(), width);
                add_normalised(x, branch, weight, self.hyper.norm_eps);
            }
        }
        barrier.wait();
    }

    fn head(&self, member: usize, matrix: &Matrix) {
        let count = self.logits_rows.len();
        for tile in self.share(member, matrix.row_tiles()) {
            // SAFETY: the columns of this tile belong to this member; rows are padded to a multiple of 16.
            unsafe {
                let out = (self.logits.add(tile * TILE_ROWS), self.logits_stride);
                self.product(matrix, tile, (self.acts_x, 0), count, out, false);
                if let Some(cap) = self.hyper.logit_cap {
                    (0..count).for_each(|row| (self.kernels.soft_cap)(out.0.add(row * out.1), cap));
                }
            }
        }
    }

    /// One row of tiles times `count` rows of activations.
    ///
    /// # Safety
    /// `out` and its stride name 16 floats per row that no other member touches, and `acts` holds the rows.
    pub(super) unsafe fn product(
        &self,
        matrix: &Matrix,
        tile: usize,
        (acts, first): (Acts, usize),
        count: usize,
        (out, stride): (*mut f32, usize),
        add: bool,
    ) {
        let tiles = self.model.weights().row_tile(matrix, tile).as_ptr();
        let args = GemmArgs { tiles, blocks: matrix.blocks(), acts, first, count, out, stride, add };
        // SAFETY: `row_tile` gives whole tiles of the matrix' kind; the caller keeps the rest.
        unsafe { (self.kernels.gemm[matrix.kind as usize])(&args) }
    }

    fn rotate_and_store(&self, index: usize, layer: &Layer, units: Range<usize>) {
        let Hyper { head_dim, kv_heads, heads, norm_eps, .. } = *self.hyper;
        let (group, q_width, kv_width) = (heads / kv_heads, self.hyper.q_width(), self.hyper.kv_width());
        let (pairs, rope_dim) = (self.hyper.rope.pairs, self.hyper.rope.dim);
        let table = self.hyper.rope_table(index) * rope_dim;
        let turn = |head: &mut [f32], norm: &[f32], rope: &[f32]| {
            if !norm.is_empty() {
                normalise_head(head, norm, norm_eps);
            }
            rotate(pairs, head, rope);
        };
        for unit in units {
            let (row, kv_head) = (unit / kv_heads, unit % kv_heads);
            let Place { block, slot, .. } = self.places[row];
            // SAFETY: in this phase a token's heads of one kv head, and their slot in the block, belong to one member.
            // The plan was checked: blocks exist.
            unsafe {
                let rope = self.rope.add(row * self.rope_len() + table).cast_const();
                let rope = std::slice::from_raw_parts(rope, rope_dim);
                let base = self.qkv.add(row * (q_width + 2 * kv_width));
                let head = |offset: usize| std::slice::from_raw_parts_mut(base.add(offset), head_dim);
                for q in 0..group {
                    turn(head((kv_head * group + q) * head_dim), &layer.q_norm, rope);
                }
                let key = head(q_width + kv_head * head_dim);
                turn(key, &layer.k_norm, rope);
                let value = head(q_width + kv_width + kv_head * head_dim);
                store_kv(self.kv_format, self.kv_head(block as usize, index, kv_head), slot as usize, key, value);
            }
        }
    }

    /// Bytes of one block over all layers.
    fn block_bytes(&self) -> usize {
        self.kv_format.bytes(self.hyper.kv_elements() * BLOCK_TOKENS)
    }

    /// Keys and values of one block, layer and head. Memory order: block, layer, head.
    fn kv_head(&self, block: usize, layer: usize, head: usize) -> *mut u8 {
        let head_bytes = self.kv_format.block_bytes(self.hyper.head_dim);
        // SAFETY: callers name existing blocks, layers and heads.
        unsafe { self.kv.add(block * self.block_bytes() + (layer * self.hyper.kv_heads + head) * head_bytes) }
    }

    fn attend(&self, layer: usize, member: usize) {
        let Hyper { head_dim, kv_heads, heads, .. } = *self.hyper;
        let (group, q_width) = (heads / kv_heads, self.hyper.q_width());
        let q_stride = q_width + 2 * self.hyper.kv_width();
        // Which member takes a unit changes nothing in its result.
        while let Some(unit) = self.units.get(self.taken[layer].fetch_add(1, Ordering::Relaxed)) {
            let slice = self.plan.slice(unit.slice);
            let (row, column) = (slice.row + unit.from, unit.kv_head * group * head_dim);
            // SAFETY: queries and keys are complete after the last barrier; a unit's results belong to its taker, and
            // the scratch part to this member.
            unsafe {
                (self.kernels.attend)(&AttendArgs {
                    q: self.qkv.add(row * q_stride + column),
                    q_stride,
                    out: self.attended.add(row * q_width + column),
                    out_stride: q_width,
                    position: slice.start + unit.from,
                    tokens: unit.tokens,
                    group,
                    head_dim,
                    scale: self.hyper.attention_scale,
                    cap: self.hyper.attention_cap.unwrap_or(0.0),
                    window: self.hyper.windows[layer],
                    blocks: slice.blocks,
                    kv: self.kv_head(0, layer, unit.kv_head),
                    kv_stride: self.block_bytes(),
                    format: self.kv_format,
                    scratch: self.scratch(member),
                });
            }
        }
    }

    fn feed_forward(&self, member: usize, gated: &Gated, first: usize) {
        for block in self.share(member, self.hyper.ff / BLOCK) {
            // SAFETY: block `block` of `acts_ff` belongs to this member.
            unsafe { self.gated_block(member, gated, block, (self.acts_x, first), 0, self.places.len()) };
        }
    }

    /// Gate and up products, activation(gate) × up, quantised: 32 elements of the feed-forward width for `count` rows
    /// of `source` from its row on, written to `acts_ff` from row `to` on.
    ///
    /// # Safety
    /// The rows exist, and the block of those of `acts_ff` belongs to this member.
    pub(super) unsafe fn gated_block(
        &self,
        member: usize,
        gated: &Gated,
        block: usize,
        (source, first): (Acts, usize),
        to: usize,
        count: usize,
    ) {
        let gate = self.scratch(member);
        // SAFETY: the scratch holds two panels.
        let up = unsafe { gate.add(FF_TOKENS * BLOCK) };
        for from in (0..count).step_by(FF_TOKENS) {
            let tokens = FF_TOKENS.min(count - from);
            // SAFETY: panels are 32 wide, two tiles; the caller keeps the rest.
            unsafe {
                for (matrix, panel) in [(&gated.gate, gate), (&gated.up, up)] {
                    for half in 0..2 {
                        let out = (panel.add(half * TILE_ROWS), BLOCK);
                        self.product(matrix, 2 * block + half, (source, first + from), tokens, out, false);
                    }
                }
                let (stride, acts) = (BLOCK, self.acts_ff);
                (self.gate)(&SwigluArgs { gate, up, stride, acts, first: to + from, count: tokens, block });
            }
        }
    }

    /// The work space of a member, `scratch_len` floats.
    pub(super) fn scratch(&self, member: usize) -> *mut f32 {
        // SAFETY: there is one for each member.
        unsafe { self.scratch.add(member * self.scratch_len) }
    }
}
