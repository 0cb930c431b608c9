//! The walk: keeps the best rows it met, and looks at the links of the best that it has not looked at.

use super::codes::{CodedQuery, CodedRows};
use super::{LINKS, Links, NONE, Pivots};
use crate::memory::scan::prefetch;
use crate::memory::vector::TopK;

/// Rows compared at a time where all are compared.
const COMPARED: usize = 256;
/// Marks a kept row whose links were looked at; rows are numbered below it.
const LOOKED_AT: u32 = 1 << 31;

/// Room to work in, kept between searches so that none of it is made anew.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Per row the number of the walk that met it; numbers start again after 255 walks.
    met: Vec<u8>,
    walk: u8,
    /// The best rows, the best first. The top bit of a row says that its links were looked at.
    kept: Vec<(f32, u32)>,
    fresh: Vec<u32>,
    products: Vec<i32>,
    scores: Vec<f32>,
}

impl Scratch {
    fn begin(&mut self, rows: usize) {
        if self.met.len() < rows {
            self.met.resize(rows, 0);
        }
        if self.walk == u8::MAX {
            self.met.fill(0);
            self.walk = 0;
        }
        self.walk += 1;
        self.kept.clear();
    }

    /// What the last walk kept, the best first.
    pub fn found(&self) -> impl Iterator<Item = (u32, f32)> {
        self.kept.iter().map(|(score, row)| (row & !LOOKED_AT, *score))
    }
}

/// Begins a walk over so many rows with the best `count` pivots.
pub(super) fn best_pivots(pivots: &Pivots, rows: usize, query: &CodedQuery, count: usize, scratch: &mut Scratch) {
    scratch.begin(rows);
    pivots.copies.scores(query, &pivots.places, &mut scratch.products, &mut scratch.scores);
    let mut best = TopK::new(count);
    for (row, score) in pivots.rows.iter().zip(&scratch.scores) {
        best.offer(*score, *row);
    }
    for (score, row) in best.into_sorted() {
        scratch.met[row as usize] = scratch.walk;
        scratch.kept.push((score, row));
    }
}

/// Walks on from what `scratch` keeps. `rate` makes a number to compare by of a row's inner product.
pub(super) fn walk(
    rows: &CodedRows,
    links: &[Links],
    query: &CodedQuery,
    effort: usize,
    scratch: &mut Scratch,
    rate: impl Fn(u32, f32) -> f32,
) {
    for (score, row) in &mut scratch.kept {
        *score = rate(*row, *score);
    }
    scratch.kept.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut next = 0;
    while let Some((_, row)) = scratch.kept.get_mut(next) {
        next += 1;
        if *row & LOOKED_AT != 0 {
            continue;
        }
        let node = *row;
        *row |= LOOKED_AT;
        // The links of the row that will probably come next.
        if let Some((_, likely)) = scratch.kept.get(next) {
            let likely = (likely & !LOOKED_AT) as usize;
            prefetch(links, likely);
            prefetch(&links[likely].0, LINKS / 2);
        }
        scratch.fresh.clear();
        for link in links[node as usize].0.iter().take_while(|link| **link != NONE) {
            let met = &mut scratch.met[*link as usize];
            if *met != scratch.walk {
                *met = scratch.walk;
                scratch.fresh.push(*link);
            }
        }
        rows.scores(query, &scratch.fresh, &mut scratch.products, &mut scratch.scores);
        for (row, score) in scratch.fresh.iter().zip(&scratch.scores) {
            let score = rate(*row, *score);
            let full = scratch.kept.len() >= effort;
            if full && scratch.kept.last().is_some_and(|(worst, _)| score <= *worst) {
                continue;
            }
            if full {
                scratch.kept.pop();
            }
            let at = scratch.kept.partition_point(|(kept, _)| *kept >= score);
            scratch.kept.insert(at, (score, *row));
            next = next.min(at);
        }
    }
}

/// The `count` best of given rows, the best first.
pub(super) fn compare_all(
    rows: &CodedRows,
    query: &CodedQuery,
    given: impl Iterator<Item = u32>,
    count: usize,
    scratch: &mut Scratch,
) -> Vec<(u32, f32)> {
    let mut best = TopK::new(count);
    let mut given = given.fuse();
    loop {
        scratch.fresh.clear();
        scratch.fresh.extend(given.by_ref().take(COMPARED));
        if scratch.fresh.is_empty() {
            break;
        }
        rows.scores(query, &scratch.fresh, &mut scratch.products, &mut scratch.scores);
        for (row, score) in scratch.fresh.iter().zip(&scratch.scores) {
            best.offer(*score, *row);
        }
    }
    best.into_sorted().into_iter().map(|(score, row)| (row, score)).collect()
}
