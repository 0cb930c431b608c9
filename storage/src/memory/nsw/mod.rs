//! A graph of near neighbours over eight-bit rows: the search structure of large sealed segments.
//!
//! Every row is a node with up to [`LINKS`] links to rows around it. A search starts from the best of
//! some fixed rows (the pivots), follows links to whatever is nearer to the query, and keeps the best
//! `effort` rows that it met. This is the lowest layer of an HNSW graph; its upper layers only find a
//! place to start, which comparing the pivots does in a few microseconds and without their memory.
//!
//! Why not FAISS's HNSW over eight-bit rows: it decodes every row to single precision through a virtual
//! call for each distance; here a product is one VNNI instruction per cache line, and the next rows are fetched
//! meanwhile. On 100,000 rows of GloVe with 50 numbers, one thread, over several runs on two cores that builds used too
//! (they show an order, not a speed): FAISS (`HNSW16,SQ8`) 3,300 questions a second at a recall of .953, built in 53 s
//! with two threads; this graph 8,900 to 13,500 at up to .959, built in 11 to 14 s with one.
//! `bench/figures/peers.py` and `storage-figures ann-walk` print both again.
//!
//! Cost sketch for 1,000,000 rows of 384: 400 bytes of codes and 128 of links a row. A search with
//! effort 128 computes some 2,500 products.

mod beam;
mod build;
mod codes;
mod measure;

pub(crate) use beam::Scratch;
pub(crate) use build::build;
pub(crate) use codes::CodedRows;
pub use measure::MeasuredGraph;

use super::pages;
use bytemuck::{Pod, Zeroable};
use std::io::{self, Read, Write};

/// Up to so many rows are compared in full, which takes no longer than a walk and misses nothing: they get no links.
pub(crate) const COMPARED_MAX: usize = 16_384;
/// Links of a node; 128 bytes, two cache lines.
pub(crate) const LINKS: usize = 32;
/// Stands for "no further link".
const NONE: u32 = u32::MAX;
/// Rows at which a search may start. Comparing so many costs about as much as expanding 30 nodes.
const PIVOTS_MAX: usize = 1_024;
/// Rows for each pivot in small graphs.
const ROWS_PER_PIVOT: usize = 64;
/// Pivots that a search starts from.
const STARTS: usize = 6;

/// The links of a node, in cache lines of their own.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(128))]
struct Links([u32; LINKS]);

/// A complete graph. Searching takes `&self`.
pub(crate) struct Graph {
    rows: CodedRows,
    /// None where all rows are compared.
    links: Vec<Links>,
    /// None where there are no links.
    pivots: Pivots,
}

/// The rows at which searches start, once more side by side: comparing all of them is one run over memory.
struct Pivots {
    rows: Vec<u32>,
    copies: CodedRows,
    /// The places of the copies: 0 and up.
    places: Vec<u32>,
}

impl Pivots {
    fn none(dim: usize) -> Self {
        Self { rows: Vec::new(), copies: CodedRows::new(dim), places: Vec::new() }
    }

    fn push(&mut self, rows: &CodedRows, row: u32) {
        self.places.push(self.rows.len() as u32);
        self.rows.push(row);
        self.copies.push_copy(rows, row);
    }

    fn bytes(&self) -> usize {
        self.copies.bytes() + (self.rows.capacity() + self.places.capacity()) * 4
    }
}

impl Graph {
    pub fn dim(&self) -> usize {
        self.rows.dim()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn bytes(&self) -> usize {
        self.rows.bytes() + self.links.capacity() * LINKS * 4 + self.pivots.bytes()
    }

    /// The usual distance between a score read from codes and the product of the rows themselves, for a query of
    /// length one. Errors of many numbers point in any direction, so a product sees only the part that lies in
    /// the query's.
    pub fn score_error(&self) -> f32 {
        self.rows.error() * std::f32::consts::SQRT_2 / (self.dim() as f32).sqrt()
    }

    /// Up to `count` rows of the largest inner products among those that are `wanted`, the best first, from a walk that
    /// keeps `effort` rows. Rows that are not wanted are walked over.
    pub fn search(
        &self,
        query: &[f32],
        count: usize,
        effort: usize,
        scratch: &mut Scratch,
        wanted: impl Fn(u32) -> bool,
    ) -> Vec<(u32, f32)> {
        if self.links.is_empty() {
            return self.search_among(query, count, (0..self.len() as u32).filter(|row| wanted(*row)), scratch);
        }
        let query = self.rows.query(query);
        beam::best_pivots(&self.pivots, self.len(), &query, STARTS, scratch);
        beam::walk(&self.rows, &self.links, &query, effort.max(count), scratch, |_, score| score);
        scratch.found().filter(|(row, _)| wanted(*row)).take(count).collect()
    }

    /// The same among given rows only, all of them compared.
    pub fn search_among(
        &self,
        query: &[f32],
        count: usize,
        rows: impl Iterator<Item = u32>,
        scratch: &mut Scratch,
    ) -> Vec<(u32, f32)> {
        let query = self.rows.query(query);
        beam::compare_all(&self.rows, &query, rows, count, scratch)
    }

    /// dim 4, rows 8, error 8, pivots 4, then records, links (little-endian) and pivots.
    pub fn write_to<W: Write>(&self, mut out: W) -> io::Result<W> {
        let (records, error) = self.rows.parts();
        out.write_all(&(self.dim() as u32).to_le_bytes())?;
        out.write_all(&(self.len() as u64).to_le_bytes())?;
        out.write_all(&error.to_le_bytes())?;
        out.write_all(&(self.pivots.rows.len() as u32).to_le_bytes())?;
        out.write_all(records)?;
        out.write_all(bytemuck::cast_slice(&self.links))?;
        out.write_all(bytemuck::cast_slice(&self.pivots.rows))?;
        Ok(out)
    }

    /// Reads what [`Graph::write_to`] wrote: authentic bytes of a graph with `rows` rows. Links are checked all the
    /// same, because a place outside would end a search with a panic.
    pub fn read_from<R: Read>(mut source: R, rows: usize) -> io::Result<Self> {
        let mut head = [0; 24];
        source.read_exact(&mut head)?;
        let (dim, rest) = head.split_at(4);
        let (stored, rest) = rest.split_at(8);
        let (error, pivots) = rest.split_at(8);
        let dim = u32::from_le_bytes(dim.try_into().expect("four")) as usize;
        let stored = u64::from_le_bytes(stored.try_into().expect("eight"));
        let pivots = u32::from_le_bytes(pivots.try_into().expect("four")) as usize;
        if stored != rows as u64 || !(1..=crate::EMBEDDING_DIM_MAX).contains(&dim) || pivots > PIVOTS_MAX {
            return Err(damaged("the graph's counts are not those of its rows"));
        }
        let error = f64::from_le_bytes(error.try_into().expect("eight"));
        let coded = CodedRows::read(dim, rows, error, |bytes| source.read_exact(bytes))?;
        let mut links = no_links(if pivots == 0 { 0 } else { rows });
        source.read_exact(bytemuck::cast_slice_mut(&mut links))?;
        let mut pivot_rows = vec![0u32; pivots];
        source.read_exact(bytemuck::cast_slice_mut(&mut pivot_rows))?;
        let inside = |row: u32| (row as usize) < rows;
        if !links.iter().flat_map(|links| links.0).all(|row| row == NONE || inside(row))
            || !pivot_rows.iter().all(|row| inside(*row))
        {
            return Err(damaged("a link of the graph leads outside"));
        }
        let mut pivots = Pivots::none(dim);
        pivot_rows.into_iter().for_each(|row| pivots.push(&coded, row));
        Ok(Self { rows: coded, links, pivots })
    }
}

// The stream holds numbers as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "segment files are little-endian");

/// Nodes without links.
fn no_links(rows: usize) -> Vec<Links> {
    let mut links = pages::with_capacity(rows);
    links.resize(rows, Links([NONE; LINKS]));
    links
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clustered rows of length one: neighbours that a graph can be wrong about.
    fn rows(count: usize, dim: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut state = seed | 1;
        let mut next = move || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let centres: Vec<Vec<f32>> = (0..count.div_ceil(50)).map(|_| (0..dim).map(|_| next()).collect()).collect();
        (0..count)
            .map(|at| {
                let row: Vec<f32> = centres[at % centres.len()].iter().map(|x| x + 0.6 * next()).collect();
                let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
                row.iter().map(|x| x / norm).collect()
            })
            .collect()
    }

    fn built(data: &[Vec<f32>]) -> Graph {
        let mut coded = CodedRows::new(data[0].len());
        data.iter().for_each(|row| coded.push(row));
        build::link(coded, &mut || true).expect("nobody ends it")
    }

    fn exact(data: &[Vec<f32>], query: &[f32], k: usize, wanted: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut scored: Vec<(f32, u32)> = (0u32..)
            .zip(data)
            .filter(|(at, _)| wanted(*at))
            .map(|(at, row)| (row.iter().zip(query).map(|(a, b)| a * b).sum(), at))
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0));
        scored.into_iter().take(k).map(|(_, at)| at).collect()
    }

    fn recall(found: &[(u32, f32)], exact: &[u32]) -> f32 {
        exact.iter().filter(|row| found.iter().any(|(at, _)| at == *row)).count() as f32 / exact.len() as f32
    }

    #[test]
    fn a_walk_finds_what_a_full_comparison_finds() {
        let data = rows(6_000, 40, 3);
        let graph = built(&data);
        let mut scratch = Scratch::default();
        let (mut plain, mut half, mut few) = (0.0, 0.0, 0.0);
        let queries = rows(50, 40, 77);
        for query in &queries {
            plain += recall(&graph.search(query, 20, 100, &mut scratch, |_| true), &exact(&data, query, 10, |_| true));
            let odd = |row: u32| row % 2 == 1;
            half += recall(&graph.search(query, 20, 200, &mut scratch, odd), &exact(&data, query, 10, odd));
            let some = |row: u32| row % 100 == 7;
            let among = graph.search_among(query, 20, (0..6_000).filter(|row| some(*row)), &mut scratch);
            assert!(among.is_sorted_by(|a, b| a.1 >= b.1));
            few += recall(&among, &exact(&data, query, 10, some));
        }
        let count = queries.len() as f32;
        assert!(plain / count > 0.97 && half / count > 0.97, "{} {}", plain / count, half / count);
        assert!(few / count > 0.99, "{}", few / count);
    }

    #[test]
    fn a_graph_reads_back_and_a_damaged_stream_does_not() {
        let data = rows(700, 17, 9);
        let graph = built(&data);
        let stream = graph.write_to(Vec::new()).unwrap();
        let again = Graph::read_from(stream.as_slice(), 700).unwrap();
        let mut scratch = Scratch::default();
        for query in rows(5, 17, 1) {
            let ask = |graph: &Graph, scratch: &mut Scratch| graph.search(&query, 10, 50, scratch, |_| true);
            assert_eq!(ask(&graph, &mut scratch), ask(&again, &mut scratch));
        }
        assert!(Graph::read_from(stream.as_slice(), 699).is_err());
        for cut in [0, 3, 23, 24, stream.len() / 2, stream.len() - 1] {
            assert!(Graph::read_from(&stream[..cut], 700).is_err(), "{cut}");
        }
        let mut outside = stream.clone();
        let links_at = stream.len() - graph.pivots.rows.len() * 4 - 700 * LINKS * 4;
        outside[links_at..links_at + 4].copy_from_slice(&700u32.to_le_bytes());
        assert!(Graph::read_from(outside.as_slice(), 700).is_err());
    }

    #[test]
    fn few_rows_get_no_links_and_are_all_compared() {
        let data = rows(500, 8, 21);
        let mut coded = CodedRows::new(8);
        data.iter().for_each(|row| coded.push(row));
        let graph = build(coded, &mut || true).expect("nobody ends it");
        assert!(graph.links.is_empty());
        let stream = graph.write_to(Vec::new()).unwrap();
        let again = Graph::read_from(stream.as_slice(), 500).unwrap();
        let mut scratch = Scratch::default();
        for query in rows(20, 8, 22) {
            let odd = |row: u32| row % 2 == 1;
            let found = again.search(&query, 15, 1, &mut scratch, odd);
            assert!(recall(&found, &exact(&data, &query, 10, odd)) > 0.95);
        }
    }

    #[test]
    fn a_build_ends_when_it_is_told_to() {
        let mut coded = CodedRows::new(4);
        rows(500, 4, 5).iter().for_each(|row| coded.push(row));
        let mut calls = 0;
        let ended = build::link(coded, &mut || {
            calls += 1;
            calls < 3
        });
        assert!(ended.is_none() && calls == 3);
    }

    #[test]
    fn small_and_equal_rows_are_no_trouble() {
        let mut scratch = Scratch::default();
        let one = built(&[vec![1.0, 0.0]]);
        assert_eq!(one.search(&[1.0, 0.0], 5, 5, &mut scratch, |_| true).len(), 1);
        assert_eq!(one.search(&[1.0, 0.0], 5, 5, &mut scratch, |_| false), []);
        let same = built(&vec![vec![0.5, 0.5, 0.0]; 300]);
        assert_eq!(same.search(&[1.0, 0.0, 0.0], 10, 64, &mut scratch, |_| true).len(), 10);
        let zero = built(&vec![vec![0.0; 3]; 40]);
        assert_eq!(zero.search(&[1.0, 0.0, 0.0], 10, 64, &mut scratch, |_| true).len(), 10);
    }
}
