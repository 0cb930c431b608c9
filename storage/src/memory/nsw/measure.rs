//! The graph by itself, for measuring it beside other libraries.

use super::{CodedRows, Graph, Scratch, build};

/// A graph over rows of one length, without the store around it.
pub struct MeasuredGraph {
    graph: Graph,
    scratch: Scratch,
}

impl MeasuredGraph {
    /// Builds a graph on this thread.
    ///
    /// # Panics
    /// When `rows` is not made of whole rows of `dim` numbers.
    #[must_use]
    pub fn build(dim: usize, rows: &[f32]) -> Self {
        assert!(dim > 0 && rows.len().is_multiple_of(dim), "whole rows");
        let mut coded = CodedRows::new(dim);
        coded.reserve(rows.len() / dim);
        rows.chunks_exact(dim).for_each(|row| coded.push(row));
        let graph = build(coded, &mut || true).expect("nobody ends it");
        Self { graph, scratch: Scratch::default() }
    }

    /// Up to `count` rows with about the largest inner products, the best first, from a walk that keeps `effort`.
    pub fn search(&mut self, query: &[f32], count: usize, effort: usize) -> Vec<(u32, f32)> {
        self.graph.search(query, count, effort, &mut self.scratch, |_| true)
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.graph.bytes()
    }
}

impl std::fmt::Debug for MeasuredGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeasuredGraph").field("rows", &self.graph.len()).finish_non_exhaustive()
    }
}
