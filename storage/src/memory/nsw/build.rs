//! Building the graph: rows enter one after the other, each linked to what a walk finds around it.
//!
//! Links are chosen by the rule of HNSW: a candidate is taken only if it is nearer to the new row than
//! to every row taken before it, so links point in different directions instead of all into the
//! nearest cluster. Distances are those of the codes; rows enter in a scattered order, because
//! documents come sorted and a graph grown from one end is worse.

use super::beam::{Scratch, best_pivots, walk};
use super::codes::{CodedQuery, CodedRows};
use super::{COMPARED_MAX, Graph, LINKS, Links, NONE, PIVOTS_MAX, Pivots, ROWS_PER_PIVOT, no_links};

/// Rows that the walk keeps for a new row: more make better links and a slower build.
const BUILD_EFFORT: usize = 128;
/// Links that a new row begins with; the other half is left for rows that come later.
const LINKS_NEW: usize = LINKS / 2;
/// Rows between two calls of the caller's `pace`.
const PACE_ROWS: usize = 64;
/// Pivots that a walk of the build starts from.
const BUILD_STARTS: usize = 2;

/// Links all rows, unless they are so few that all are compared anyway. `pace` is called every few milliseconds; it may pause, and ends the work by saying no.
pub(crate) fn build(rows: CodedRows, pace: &mut dyn FnMut() -> bool) -> Option<Graph> {
    if rows.len() <= COMPARED_MAX {
        let pivots = Pivots::none(rows.dim());
        return Some(Graph { rows, links: Vec::new(), pivots });
    }
    link(rows, pace)
}

/// [`build`] of any number of rows.
pub(super) fn link(rows: CodedRows, pace: &mut dyn FnMut() -> bool) -> Option<Graph> {
    let count = rows.len();
    assert!(count < 1 << 31, "rows are numbered in 31 bits");
    let squares = (0..count as u32).map(|at| rows.square(at)).collect();
    let pivots_max = (count / ROWS_PER_PIVOT).clamp(1, PIVOTS_MAX).min(count);
    let mut growing = Growing {
        squares,
        links: no_links(count),
        pivots: Pivots::none(rows.dim()),
        scratch: Scratch::default(),
        query: CodedQuery::default(),
        near: Near::default(),
        rows: &rows,
    };
    for (entered, row) in scattered(count).enumerate() {
        if entered > 0 {
            growing.enter(row);
        }
        if growing.pivots.rows.len() < pivots_max {
            growing.pivots.push(growing.rows, row);
        }
        if entered % PACE_ROWS == 0 && !pace() {
            return None;
        }
    }
    let Growing { links, pivots, .. } = growing;
    Some(Graph { rows, links, pivots })
}

/// Every number below `count` once, far from the one before.
fn scattered(count: usize) -> impl Iterator<Item = u32> {
    let common = |mut a: usize, mut b: usize| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    // The golden section spreads any number of first places evenly; a step without common divisor meets every place.
    let mut step = ((count as f64 * 0.618_034) as usize).max(1);
    while common(step, count) > 1 {
        step += 1;
    }
    (0..count as u64).map(move |at| ((at * step as u64) % count as u64) as u32)
}

/// Room for choosing links.
#[derive(Default)]
struct Near {
    candidates: Vec<(f32, u32)>,
    chosen: Vec<u32>,
    query: CodedQuery,
    products: Vec<i32>,
    scores: Vec<f32>,
}

struct Growing<'a> {
    rows: &'a CodedRows,
    squares: Vec<f32>,
    links: Vec<Links>,
    pivots: Pivots,
    scratch: Scratch,
    query: CodedQuery,
    near: Near,
}

impl Growing<'_> {
    fn enter(&mut self, row: u32) {
        self.rows.query_of(row, &mut self.query);
        best_pivots(&self.pivots, self.rows.len(), &self.query, BUILD_STARTS, &mut self.scratch);
        let squares = &self.squares;
        // Grows as the squared distance to the new row falls.
        let rate = |other: u32, product: f32| 2.0 * product - squares[other as usize];
        walk(self.rows, &self.links, &self.query, BUILD_EFFORT, &mut self.scratch, rate);
        let square = self.squares[row as usize];
        self.near.candidates.clear();
        self.near.candidates.extend(self.scratch.found().map(|(other, rating)| (square - rating, other)));
        self.near.choose(self.rows, &self.squares, LINKS_NEW);
        let chosen = std::mem::take(&mut self.near.chosen);
        self.links[row as usize].0[..chosen.len()].copy_from_slice(&chosen);
        for other in &chosen {
            self.link_back(*other, row);
        }
        self.near.chosen = chosen;
    }

    /// Adds the link `from` -> `to`; a node that is full chooses anew.
    fn link_back(&mut self, from: u32, to: u32) {
        let links = &mut self.links[from as usize].0;
        if let Some(free) = links.iter_mut().find(|link| **link == NONE) {
            *free = to;
            return;
        }
        let near = &mut self.near;
        let mut others = links.to_vec();
        others.push(to);
        self.rows.query_of(from, &mut near.query);
        self.rows.scores(&near.query, &others, &mut near.products, &mut near.scores);
        let square = self.squares[from as usize];
        near.candidates.clear();
        near.candidates.extend(
            others
                .iter()
                .zip(&near.scores)
                .map(|(other, product)| (square + self.squares[*other as usize] - 2.0 * product, *other)),
        );
        near.candidates.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let kept = std::mem::take(&mut near.chosen);
        near.choose(self.rows, &self.squares, LINKS);
        let links = &mut self.links[from as usize].0;
        links.fill(NONE);
        links[..near.chosen.len()].copy_from_slice(&near.chosen);
        near.chosen = kept;
    }
}

impl Near {
    /// Chooses among `candidates`, the nearest first.
    fn choose(&mut self, rows: &CodedRows, squares: &[f32], count: usize) {
        self.chosen.clear();
        for (distance, candidate) in &self.candidates {
            if self.chosen.len() >= count {
                break;
            }
            rows.query_of(*candidate, &mut self.query);
            rows.scores(&self.query, &self.chosen, &mut self.products, &mut self.scores);
            let square = squares[*candidate as usize];
            let nearer_to_one = self
                .chosen
                .iter()
                .zip(&self.scores)
                .any(|(taken, product)| square + squares[*taken as usize] - 2.0 * product < *distance);
            if !nearer_to_one {
                self.chosen.push(*candidate);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scattered_order_meets_every_row_once() {
        for count in [1usize, 2, 3, 10, 64, 1_000, 4_097] {
            let mut met: Vec<u32> = scattered(count).collect();
            met.sort_unstable();
            assert_eq!(met, (0..count as u32).collect::<Vec<_>>(), "{count}");
        }
        assert_eq!(scattered(0).count(), 0);
    }
}
