//! Exact search: every vector of a user is compared with the query.
//!
//! Cost sketch: a row of 384 halves is 768 bytes; 10,000 rows are 7.7 MB and take well under a
//! millisecond to read. Up to that size a graph index saves nothing and costs exactness,
//! filtering and deletion.

use super::kernel;
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
    ids: Vec<Id>,
    row_of: IdMap<Id, u32>,
}

/// Bytes that one row takes besides its numbers: id, table entry, slack.
const ROW_BYTES: usize = 64;

impl<Id: Copy + Eq + Hash> Block<Id> {
    pub fn new(dim: usize) -> Self {
        assert!(dim > 0, "a vector has at least one number");
        Self { dim, rows: Vec::new(), ids: Vec::new(), row_of: IdMap::default() }
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn bytes(&self) -> usize {
        self.rows.capacity() * 2 + self.ids.len() * (ROW_BYTES + size_of::<Id>())
    }

    /// Adds or replaces a row.
    pub fn put(&mut self, id: Id, row: &[f16]) {
        assert_eq!(row.len(), self.dim, "a block holds rows of one length");
        if let Some(at) = self.row_of.get(&id) {
            let at = *at as usize * self.dim;
            self.rows[at..at + self.dim].copy_from_slice(row);
            return;
        }
        let at = u32::try_from(self.ids.len()).expect("a block holds fewer than 2^32 rows");
        self.row_of.insert(id, at);
        self.ids.push(id);
        self.rows.extend_from_slice(row);
    }

    /// Removes a row; the last one takes its place.
    pub fn remove(&mut self, id: Id) -> bool {
        let Some(at) = self.row_of.remove(&id) else { return false };
        let (at, last) = (at as usize, self.ids.len() - 1);
        self.ids.swap_remove(at);
        if at != last {
            self.rows.copy_within(last * self.dim..(last + 1) * self.dim, at * self.dim);
            self.row_of.insert(self.ids[at], at as u32);
        }
        self.rows.truncate(last * self.dim);
        debug_assert_eq!(self.rows.len(), self.ids.len() * self.dim);
        true
    }

    /// The `k` rows with the largest inner product, the best first. `wanted` filters by id.
    pub fn nearest(&self, query: &[f32], k: usize, wanted: impl Fn(&Id) -> bool) -> Vec<(Id, f32)> {
        assert_eq!(query.len(), self.dim, "the caller picks the block by the query's length");
        let dot = kernel::dot();
        let mut best = TopK::new(k);
        for (at, (row, id)) in self.rows.chunks_exact(self.dim).zip(&self.ids).enumerate() {
            let score = dot(query, row);
            // Asking about an id is a table look-up, so only the few that could enter are asked about.
            if best.takes(score) && wanted(id) {
                best.offer(score, at as u32);
            }
        }
        best.into_sorted().into_iter().map(|(score, at)| (self.ids[at as usize], score)).collect()
    }
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
            self.heap.pop();
            self.heap.push(Worst { score, at });
        }
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
