//! Mixtures of experts: each token goes through the few of many feed-forward parts that a router chooses for it.
//!
//! | phase | split by | reads | writes |
//! |---|---|---|---|
//! | route | token | acts_x | picks |
//! | group | one member | picks | slots |
//! | gather | slot | acts_x | acts |
//! | gate, up, activation | expert and 32 elements | acts | acts_ff |
//! | down | expert and 16 outputs | acts_ff | out |
//! | combine | token | out, picks | x |
//!
//! A slot is one token at one of its experts. Slots of an expert lie together, so that its weights are read once for all
//! tokens of the step. A product's result does not depend on its neighbours, and a token adds its experts' results in
//! the order of its picks, so grouping changes no bit.
#![allow(unsafe_code)]

use super::cpu::ActsBuf;
use super::forward::Frame;
use super::team::Barrier;
use crate::kernel::{Acts, BLOCK, Matrix, TILE_ROWS};
use crate::model::{Experts, Gated, Hyper};

/// Buffers of the experts' phases, for the most tokens of a step.
pub(super) struct Mixture {
    picks: Vec<Pick>,
    groups: Vec<Group>,
    group_count: usize,
    sources: Vec<u32>,
    next: Vec<u32>,
    acts: ActsBuf,
    out: Vec<f32>,
}

/// An expert of a token: its number, its weight, and the slot of its result.
#[derive(Clone, Copy, Default)]
struct Pick {
    expert: u32,
    weight: f32,
    slot: u32,
}

/// The slots of one expert.
#[derive(Clone, Copy, Default)]
struct Group {
    expert: u32,
    first: u32,
    count: u32,
}

/// [`Mixture`] as all members share it.
pub(super) struct MixtureView {
    experts: Experts,
    picks: *mut Pick,
    groups: *mut Group,
    group_count: *mut usize,
    /// Row of each slot.
    sources: *mut u32,
    /// Next free slot of each expert, while slots are given out.
    next: *mut u32,
    acts: Acts,
    out: *mut f32,
}

impl Mixture {
    pub(super) fn new(hyper: &Hyper, tokens: usize, plain: bool) -> Option<Mixture> {
        let experts = hyper.experts?;
        let slots = tokens * experts.used;
        Some(Mixture {
            picks: vec![Pick::default(); slots],
            groups: vec![Group::default(); experts.count],
            group_count: 0,
            sources: vec![0; slots],
            next: vec![0; experts.count],
            acts: ActsBuf::new(slots, hyper.width, plain),
            out: vec![0.0; slots * hyper.width],
        })
    }

    pub(super) fn view(&mut self, experts: Experts) -> MixtureView {
        MixtureView {
            experts,
            picks: self.picks.as_mut_ptr(),
            groups: self.groups.as_mut_ptr(),
            group_count: &raw mut self.group_count,
            sources: self.sources.as_mut_ptr(),
            next: self.next.as_mut_ptr(),
            acts: self.acts.view(),
            out: self.out.as_mut_ptr(),
        }
    }
}

impl Frame<'_> {
    /// Adds to each row of x what its experts make of the normalised row; `first` is where this member finds the rows.
    pub(super) fn experts(&self, member: usize, barrier: &Barrier, router: &Matrix, experts: &[Gated], first: usize) {
        let mixture = self.mixture.as_ref().expect("a model with experts has their buffers");
        let rows = self.places.len();
        for row in self.share(member, rows) {
            // SAFETY: the row's picks belong to this member in this phase.
            unsafe { self.route(mixture, member, router, first, row) };
        }
        barrier.wait();
        if member == 0 {
            // SAFETY: only this member works in this phase.
            unsafe { mixture.group(rows) };
        }
        barrier.wait();
        // SAFETY: groups are complete after the barrier and are not written until the next layer.
        let groups = unsafe { std::slice::from_raw_parts(mixture.groups.cast_const(), *mixture.group_count) };
        let slots = rows * mixture.experts.used;
        // The only row of a step is in every slot: its experts read it where it is.
        let gathered = rows > 1;
        if gathered {
            for slot in self.share(member, slots) {
                // SAFETY: the slot belongs to this member in this phase, and its source is a row.
                unsafe { copy_row(&self.acts_x, *mixture.sources.add(slot) as usize, &mixture.acts, slot) };
            }
            barrier.wait();
        }
        let blocks = self.hyper.ff / BLOCK;
        for unit in self.share(member, groups.len() * blocks) {
            let (group, block) = (groups[unit / blocks], unit % blocks);
            let (to, count) = (group.first as usize, group.count as usize);
            let source = if gathered { (mixture.acts, to) } else { (self.acts_x, first) };
            // SAFETY: the block of this expert's slots belongs to this member in this phase.
            unsafe { self.gated_block(member, &experts[group.expert as usize], block, source, to, count) };
        }
        barrier.wait();
        let tiles = self.hyper.width / TILE_ROWS;
        for unit in self.share(member, groups.len() * tiles) {
            let (group, tile) = (groups[unit / tiles], unit % tiles);
            let (to, count) = (group.first as usize, group.count as usize);
            let down = &experts[group.expert as usize].down;
            // SAFETY: the tile of this expert's slots belongs to this member in this phase.
            unsafe {
                let out = mixture.out.add(to * self.hyper.width + tile * TILE_ROWS);
                self.product(down, tile, (self.acts_ff, to), count, (out, self.hyper.width), false);
            }
        }
        barrier.wait();
        for row in self.share(member, rows) {
            // SAFETY: the row belongs to this member in this phase; results are complete.
            unsafe { self.combine(mixture, row) };
        }
    }

    /// Softmax over all experts, and the best of them (Shazeer et al., arXiv 1701.06538; Mixtral, arXiv 2401.04088).
    ///
    /// # Safety
    /// The row exists and its picks belong to this member.
    unsafe fn route(&self, mixture: &MixtureView, member: usize, router: &Matrix, first: usize, row: usize) {
        let Experts { count, used, normalised } = mixture.experts;
        let logits = self.scratch(member);
        // SAFETY: the scratch holds whole tiles of logits; the caller keeps the rest.
        let (logits, picks) = unsafe {
            for tile in 0..router.row_tiles() {
                let out = (logits.add(tile * TILE_ROWS), TILE_ROWS);
                self.product(router, tile, (self.acts_x, first + row), 1, out, false);
            }
            let logits = std::slice::from_raw_parts_mut(logits, count);
            (logits, std::slice::from_raw_parts_mut(mixture.picks.add(row * used), used))
        };
        let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter_mut().for_each(|x| *x = (*x - greatest).exp());
        let mut total: f32 = logits.iter().sum();
        for pick in &mut *picks {
            // The first of equals, so that the choice is one and the same everywhere.
            let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
            let expert = (1..count).fold(0, better);
            *pick = Pick { expert: expert as u32, weight: logits[expert], slot: 0 };
            logits[expert] = f32::NEG_INFINITY;
        }
        if normalised {
            total = picks.iter().map(|pick| pick.weight).sum();
        }
        picks.iter_mut().for_each(|pick| pick.weight /= total);
    }

    /// Adds the weighted results of a row's experts to the residual stream.
    ///
    /// # Safety
    /// The row belongs to this member and its experts' results are complete.
    unsafe fn combine(&self, mixture: &MixtureView, row: usize) {
        let (width, used) = (self.hyper.width, mixture.experts.used);
        // SAFETY: as the caller says.
        unsafe {
            let x = std::slice::from_raw_parts_mut(self.x.add(row * width), width);
            let picks = std::slice::from_raw_parts(mixture.picks.add(row * used).cast_const(), used);
            for pick in picks {
                let out = mixture.out.add(pick.slot as usize * width).cast_const();
                let out = std::slice::from_raw_parts(out, width);
                for (x, y) in x.iter_mut().zip(out) {
                    *x += pick.weight * y;
                }
            }
        }
    }
}

impl MixtureView {
    /// Gives each pick a slot, expert after expert and row after row within one.
    ///
    /// # Safety
    /// Nobody else touches the view, and the picks of `rows` rows are written.
    unsafe fn group(&self, rows: usize) {
        let slots = rows * self.experts.used;
        // SAFETY: lengths as in `Mixture::new`.
        let (picks, next, sources, groups) = unsafe {
            (
                std::slice::from_raw_parts_mut(self.picks, slots),
                std::slice::from_raw_parts_mut(self.next, self.experts.count),
                std::slice::from_raw_parts_mut(self.sources, slots),
                std::slice::from_raw_parts_mut(self.groups, self.experts.count),
            )
        };
        next.fill(0);
        picks.iter().for_each(|pick| next[pick.expert as usize] += 1);
        let (mut first, mut group_count) = (0, 0);
        for (expert, next) in (0..).zip(next.iter_mut()) {
            let count = std::mem::replace(next, first);
            if count > 0 {
                groups[group_count] = Group { expert, first, count };
                group_count += 1;
                first += count;
            }
        }
        for (i, pick) in picks.iter_mut().enumerate() {
            pick.slot = next[pick.expert as usize];
            next[pick.expert as usize] += 1;
            sources[pick.slot as usize] = (i / self.experts.used) as u32;
        }
        // SAFETY: as the caller says.
        unsafe { *self.group_count = group_count };
    }
}

/// Copies a row of activations.
///
/// # Safety
/// Both rows exist, have the same length, and the destination belongs to the caller.
unsafe fn copy_row(from: &Acts, row: usize, to: &Acts, slot: usize) {
    let (columns, scales) = (from.columns, from.columns / BLOCK);
    // SAFETY: as the caller says.
    unsafe {
        std::ptr::copy_nonoverlapping(from.q.add(row * columns), to.q.add(slot * columns), columns);
        std::ptr::copy_nonoverlapping(from.d.add(row * scales), to.d.add(slot * scales), scales);
        std::ptr::copy_nonoverlapping(from.s.add(row * scales), to.s.add(slot * scales), scales);
        if !from.f.is_null() {
            std::ptr::copy_nonoverlapping(from.f.add(row * columns), to.f.add(slot * columns), columns);
        }
    }
}
