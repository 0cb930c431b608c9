//! Exact search: every vector of a user is compared with the query, in two passes.
//!
//! The first pass reads eight-bit codes, half the bytes of the rows themselves. A code is off by at
//! most half a step, and how much a whole row is off is known when it is written; by Cauchy and
//! Schwarz the true product therefore lies within `error * |query| + |row| * query error` of the one
//! of the codes. The second pass compares the rows themselves, but only those that could still be
//! among the best by that bound: some tens of 10,000. The answer is that of a full comparison.
//!
//! Cost sketch: 10,000 rows of 384 are 3.8 MB of codes, which a cache holds and a core reads in some
//! 0.2 ms. Up to that size a graph index saves nothing and costs exactness, filtering and deletion.

use super::kernel;
use super::scan::{self, QUERY_ZERO, ROW_CODES};
use crate::layout::IdMap;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::hash::Hash;

/// Rows of one length, contiguous, each with an id.
pub(crate) struct Block<Id> {
    dim: usize,
    rows: Vec<f16>,
    /// The rows again in eight bits, padded to [`Block::stride`].
    codes: Vec<i8>,
    facts: Vec<CodeFacts>,
    ids: Vec<Id>,
    row_of: IdMap<Id, u32>,
}

/// What is known of a row's codes.
#[derive(Debug, Clone, Copy)]
struct CodeFacts {
    /// One step of a code.
    scale: f32,
    /// Sum of the codes: takes back that a query's zero is 128.
    sum: i32,
    /// Length of the row.
    norm: f32,
    /// Length of what the codes leave out; infinite for a row that codes cannot hold.
    error: f32,
}

/// Largest code in magnitude.
const CODE_MAX: f32 = 127.0;
/// Rows whose products are computed at a time: they stay in the first-level cache.
const SCAN_ROWS: usize = 256;
/// Rows of the second pass that are on their way while one is multiplied.
const ROWS_AHEAD: usize = 4;
/// Halves of a cache line.
const LINE_HALVES: usize = 32;
/// Share of `|row| * |query|` that summing in single precision may be off by.
const ROUNDING: f32 = 1e-5;
/// Bytes that one row takes besides its numbers: id, facts, table entry, slack.
const ROW_BYTES: usize = 80;

fn norm(row: impl Iterator<Item = f32>) -> f32 {
    row.map(|x| x * x).sum::<f32>().sqrt()
}

/// A sum in several parts, which do not wait for each other.
fn sum(numbers: impl Iterator<Item = f32>) -> f32 {
    let mut parts = [0.0; 16];
    for (at, number) in numbers.enumerate() {
        parts[at % 16] += number;
    }
    parts.iter().sum()
}

/// Codes of `row` into `codes`, which is zero where the padding is.
fn encode(row: &[f32], codes: &mut [i8]) -> CodeFacts {
    let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let length = norm(row.iter().copied());
    if !length.is_finite() {
        codes.fill(0);
        return CodeFacts { scale: 0.0, sum: 0, norm: 0.0, error: f32::INFINITY };
    }
    let scale = largest / CODE_MAX;
    let inverse = if scale > 0.0 { CODE_MAX / largest } else { 0.0 };
    let mut sum = 0;
    for (x, code) in row.iter().zip(codes.iter_mut()) {
        *code = (x * inverse).round().clamp(-CODE_MAX, CODE_MAX) as i8;
        sum += i32::from(*code);
    }
    let error = norm(row.iter().zip(codes.iter()).map(|(x, code)| x - scale * f32::from(*code)));
    CodeFacts { scale, sum, norm: length, error }
}

impl<Id: Copy + Eq + Hash> Block<Id> {
    pub fn new(dim: usize) -> Self {
        assert!(dim > 0, "a vector has at least one number");
        Self { dim, rows: Vec::new(), codes: Vec::new(), facts: Vec::new(), ids: Vec::new(), row_of: IdMap::default() }
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    fn stride(&self) -> usize {
        self.dim.next_multiple_of(ROW_CODES)
    }

    pub fn bytes(&self) -> usize {
        self.rows.capacity() * 2 + self.codes.capacity() + self.ids.len() * (ROW_BYTES + size_of::<Id>())
    }

    /// Adds or replaces a row.
    pub fn put(&mut self, id: Id, row: &[f16]) {
        assert_eq!(row.len(), self.dim, "a block holds rows of one length");
        let stride = self.stride();
        let at = match self.row_of.get(&id) {
            Some(at) => *at as usize,
            None => {
                let at = self.ids.len();
                self.row_of.insert(id, u32::try_from(at).expect("a block holds fewer than 2^32 rows"));
                self.ids.push(id);
                self.rows.resize(self.rows.len() + self.dim, f16::ZERO);
                self.codes.resize(self.codes.len() + stride, 0);
                self.facts.push(CodeFacts { scale: 0.0, sum: 0, norm: 0.0, error: 0.0 });
                at
            }
        };
        self.rows[at * self.dim..][..self.dim].copy_from_slice(row);
        self.facts[at] = encode(&to_f32(row), &mut self.codes[at * stride..][..self.dim]);
    }

    /// Removes a row; the last one takes its place.
    pub fn remove(&mut self, id: Id) -> bool {
        let Some(at) = self.row_of.remove(&id) else { return false };
        let (at, last) = (at as usize, self.ids.len() - 1);
        let stride = self.stride();
        self.ids.swap_remove(at);
        self.facts.swap_remove(at);
        if at != last {
            self.rows.copy_within(last * self.dim..(last + 1) * self.dim, at * self.dim);
            self.codes.copy_within(last * stride..(last + 1) * stride, at * stride);
            self.row_of.insert(self.ids[at], at as u32);
        }
        self.rows.truncate(last * self.dim);
        self.codes.truncate(last * stride);
        debug_assert_eq!(self.rows.len(), self.ids.len() * self.dim);
        true
    }

    /// The `k` rows with the largest inner product, the best first. `wanted` filters by id.
    pub fn nearest(&self, query: &[f32], k: usize, wanted: impl Fn(&Id) -> bool) -> Vec<(Id, f32)> {
        self.nearest_and_mean(query, k, wanted).0
    }

    /// [`Block::nearest`], and about what the product with all rows is in the mean.
    pub fn nearest_and_mean(&self, query: &[f32], k: usize, wanted: impl Fn(&Id) -> bool) -> (Vec<(Id, f32)>, f32) {
        assert_eq!(query.len(), self.dim, "the caller picks the block by the query's length");
        let estimates = self.estimates(query);
        // What is infinite on both sides has no middle.
        let middle = |e: &Estimate| if e.highest == f32::INFINITY { 0.0 } else { (e.lowest + e.highest) / 2.0 };
        let mean = sum(estimates.iter().map(middle)) / estimates.len().max(1) as f32;
        let mut floor = TopK::new(k);
        for (at, (estimate, id)) in estimates.iter().zip(&self.ids).enumerate() {
            // Asking about an id is a table look-up, so only the few that could enter are asked about.
            if floor.takes(estimate.lowest) && wanted(id) {
                floor.offer(estimate.lowest, at as u32);
            }
        }
        let floor = floor.full_worst().unwrap_or(f32::NEG_INFINITY);
        let near = (0u32..).zip(&estimates).filter(|(_, estimate)| estimate.highest >= floor);
        let near: Vec<usize> = near.map(|(at, _)| at as usize).collect();
        let dot = kernel::dot();
        let mut best = TopK::new(k);
        for (n, at) in near.iter().enumerate() {
            // The rows lie anywhere: the next ones come from memory while this one is multiplied.
            if let Some(next) = near.get(n + ROWS_AHEAD) {
                (0..self.dim).step_by(LINE_HALVES).for_each(|x| scan::prefetch(&self.rows, next * self.dim + x));
            }
            let score = dot(query, &self.rows[at * self.dim..][..self.dim]);
            // Numbers beyond half precision are refused when written; an older row may hold them.
            if !score.is_nan() && best.takes(score) && wanted(&self.ids[*at]) {
                best.offer(score, *at as u32);
            }
        }
        (best.into_sorted().into_iter().map(|(score, at)| (self.ids[at as usize], score)).collect(), mean)
    }

    /// Between which two numbers the product of each row lies.
    fn estimates(&self, query: &[f32]) -> Vec<Estimate> {
        let stride = self.stride();
        let mut codes = vec![0i8; stride];
        let about = encode(query, &mut codes[..self.dim]);
        let codes: Vec<u8> = codes.iter().map(|code| (i32::from(*code) + QUERY_ZERO) as u8).collect();
        let coded_norm = about.norm + about.error;
        let scan = scan::scan();
        let mut products = [0i32; SCAN_ROWS];
        let mut estimates = Vec::with_capacity(self.ids.len());
        for (rows, facts) in self.codes.chunks(SCAN_ROWS * stride).zip(self.facts.chunks(SCAN_ROWS)) {
            let products = &mut products[..facts.len()];
            scan(&codes, rows, products);
            estimates.extend(facts.iter().zip(products).map(|(row, product)| {
                let middle = about.scale * row.scale * (*product - QUERY_ZERO * row.sum) as f32;
                let reach = row.error * coded_norm + row.norm * (about.error + ROUNDING * about.norm);
                if reach.is_finite() {
                    Estimate { lowest: middle - reach, highest: middle + reach }
                } else {
                    Estimate { lowest: f32::NEG_INFINITY, highest: f32::INFINITY }
                }
            }));
        }
        estimates
    }
}

#[derive(Debug, Clone, Copy)]
struct Estimate {
    lowest: f32,
    highest: f32,
}

/// Keeps the `k` largest scores; equal scores prefer the smaller index, so answers are repeatable.
pub(crate) struct TopK {
    k: usize,
    heap: BinaryHeap<Worst>,
}

struct Worst {
    score: f32,
    at: u32,
}

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed: the heap's top is the entry that leaves first.
        other.score.total_cmp(&self.score).then(self.at.cmp(&other.at))
    }
}

impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Worst {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Worst {}

impl TopK {
    pub fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k.min(1_024) + 1) }
    }

    /// Whether a score would enter.
    pub fn takes(&self, score: f32) -> bool {
        self.heap.len() < self.k || self.heap.peek().is_some_and(|worst| score > worst.score)
    }

    pub fn offer(&mut self, score: f32, at: u32) {
        if self.heap.len() < self.k {
            self.heap.push(Worst { score, at });
        } else if let Some(top) = self.heap.peek()
            && score > top.score
        {
            // One way down the heap, not one up and one down.
            if let Some(mut top) = self.heap.peek_mut() {
                *top = Worst { score, at };
            }
        }
    }

    /// The smallest of the kept scores, once there are `k`.
    pub fn full_worst(&self) -> Option<f32> {
        if self.heap.len() < self.k { None } else { self.heap.peek().map(|worst| worst.score) }
    }

    pub fn into_sorted(self) -> Vec<(f32, u32)> {
        self.heap.into_sorted_vec().into_iter().map(|entry| (entry.score, entry.at)).collect()
    }
}

/// A stored vector: at_ms 8, words 4, dim 2 (big-endian), then the halves (little-endian).
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VectorRow {
    pub at_ms: u64,
    pub words: u32,
    pub vector: Vec<f16>,
}

const ROW_HEADER_BYTES: usize = 14;

impl VectorRow {
    pub fn new(at_ms: u64, words: u32, embedding: &[f32]) -> Self {
        let mut vector = vec![f16::ZERO; embedding.len()];
        vector.convert_from_f32_slice(embedding);
        Self { at_ms, words, vector }
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let dim = u16::try_from(self.vector.len()).expect("embeddings are checked against EMBEDDING_DIM_MAX");
        let mut bytes = Vec::with_capacity(ROW_HEADER_BYTES + self.vector.len() * 2);
        bytes.extend_from_slice(&self.at_ms.to_be_bytes());
        bytes.extend_from_slice(&self.words.to_be_bytes());
        bytes.extend_from_slice(&dim.to_be_bytes());
        bytes.extend(self.vector.iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (at_ms, rest) = bytes.split_first_chunk()?;
        let (words, rest) = rest.split_first_chunk()?;
        let (dim, rest) = rest.split_first_chunk()?;
        if rest.len() != usize::from(u16::from_be_bytes(*dim)) * 2 {
            return None;
        }
        let vector = rest.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]])).collect();
        Some(Self { at_ms: u64::from_be_bytes(*at_ms), words: u32::from_be_bytes(*words), vector })
    }
}

/// Halves as single precision, for rescoring and training.
pub(crate) fn to_f32(row: &[f16]) -> Vec<f32> {
    let mut out = vec![0.0; row.len()];
    row.convert_to_f32_slice(&mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn halves(row: &[f32]) -> Vec<f16> {
        VectorRow::new(0, 0, row).vector
    }

    proptest! {
        #[test]
        fn a_vector_row_reads_back_and_noise_is_refused(
            at_ms in any::<u64>(), words in any::<u32>(),
            row in proptest::collection::vec(-1.0f32..1.0, 0..50),
            noise in proptest::collection::vec(any::<u8>(), 0..60), cut in any::<usize>(),
        ) {
            let row = VectorRow::new(at_ms, words, &row);
            let bytes = row.to_bytes();
            prop_assert_eq!(VectorRow::from_bytes(&bytes), Some(row));
            prop_assert_eq!(VectorRow::from_bytes(&bytes[..cut % bytes.len()]), None);
            let _ = VectorRow::from_bytes(&noise);
        }

        /// Rows close together, rows of very different lengths, rows beyond half precision: always the answer of
        /// a full comparison.
        #[test]
        fn two_passes_answer_what_one_full_pass_answers(
            seed in any::<u64>(), dim in 1usize..150, rows in 1usize..400, spread in 0.0f32..1.0, size in -3i32..6, k in 1usize..12,
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            let base: Vec<f32> = (0..dim).map(|_| next()).collect();
            let mut block = Block::new(dim);
            let mut model: Vec<Vec<f16>> = Vec::new();
            for at in 0..rows {
                let length = 10f32.powi(size * i32::from(at % 3 == 0));
                let row: Vec<f32> = base.iter().map(|x| (x + spread * next()) * length).collect();
                model.push(halves(&row));
                block.put(at, &halves(&row));
            }
            let query: Vec<f32> = base.iter().map(|x| x + spread * next()).collect();
            let mut expected: Vec<(f32, usize)> =
                model.iter().enumerate().map(|(at, row)| (kernel::dot()(&query, row), at)).collect();
            expected.retain(|(score, _)| !score.is_nan());
            expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            expected.truncate(k);
            let found = block.nearest(&query, k, |_| true);
            prop_assert_eq!(found.iter().map(|(at, score)| (*score, *at)).collect::<Vec<_>>(), expected);
        }

        /// The block against a plain map: any mixture of writes and removals, then the same answer.
        #[test]
        fn a_block_finds_what_a_full_sort_finds(
            ops in proptest::collection::vec((0u64..20, proptest::option::of(proptest::collection::vec(-1.0f32..1.0, 5))), 1..60),
            query in proptest::collection::vec(-1.0f32..1.0, 5), k in 1usize..8,
        ) {
            let mut block = Block::new(5);
            let mut model = std::collections::BTreeMap::new();
            for (id, row) in ops {
                match row {
                    Some(row) => { block.put(id, &halves(&row)); model.insert(id, halves(&row)); }
                    None => { prop_assert_eq!(block.remove(id), model.remove(&id).is_some()); }
                }
            }
            prop_assert_eq!(block.len(), model.len());
            let odd = |id: &u64| id % 2 == 1;
            let mut expected: Vec<f32> =
                model.iter().filter(|(id, _)| odd(id)).map(|(_, row)| kernel::dot()(&query, row)).collect();
            expected.sort_by(|a, b| b.total_cmp(a));
            expected.truncate(k);
            let found = block.nearest(&query, k, odd);
            prop_assert_eq!(found.iter().map(|(_, score)| *score).collect::<Vec<_>>(), expected);
            for (id, score) in found {
                prop_assert_eq!(kernel::dot()(&query, &model[&id]), score);
            }
        }
    }
}
