//! Rows in eight bits, each a record that a few cache lines hold: its codes and what scales them.
//!
//! ```text
//! offset  width  field
//! 0       dim    codes, signed
//! dim     4      scale (single precision): number = scale * code
//! dim+4   4      sum of the codes (takes back that a query's codes are moved up)
//! ```
//! Records are padded to 16 bytes, 50 numbers to exactly one line of 64 bytes. A product read from
//! codes is off by some thousandths of the lengths; the caller compares the best with the stored rows.

use super::super::pages;
use super::super::scan::{QUERY_ZERO, ROW_CODES, gather};
use bytemuck::{Pod, Zeroable};

/// A cache line: keeps records from straddling two.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([i8; LINE_BYTES]);

const LINE_BYTES: usize = 64;
const FACTS_BYTES: usize = 8;
const CODE_MAX: f32 = 127.0;

/// Many rows of one length.
pub(crate) struct CodedRows {
    dim: usize,
    len: usize,
    lines: Vec<Line>,
    /// Sum over all rows of the squared length of what the codes leave out.
    error_squares: f64,
}

/// A query, or a row that is compared with others.
#[derive(Debug, Default)]
pub(crate) struct CodedQuery {
    codes: Vec<u8>,
    scale: f32,
}

/// Writes the codes of `row`; gives the scale, the sum and the squared length of what is left out.
fn encode(row: &[f32], mut put: impl FnMut(usize, i8)) -> (f32, i32, f32) {
    let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let scale = largest / CODE_MAX;
    let inverse = if scale > 0.0 { CODE_MAX / largest } else { 0.0 };
    let (mut sum, mut error) = (0, 0.0);
    for (at, x) in row.iter().enumerate() {
        let code = (x * inverse).round().clamp(-CODE_MAX, CODE_MAX);
        put(at, code as i8);
        sum += code as i32;
        error += (x - scale * code) * (x - scale * code);
    }
    (scale, sum, error)
}

impl CodedRows {
    pub fn new(dim: usize) -> Self {
        assert!(dim > 0, "a vector has at least one number");
        Self { dim, len: 0, lines: Vec::new(), error_squares: 0.0 }
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn bytes(&self) -> usize {
        self.lines.capacity() * LINE_BYTES
    }

    fn stride(&self) -> usize {
        (self.dim + FACTS_BYTES).next_multiple_of(16)
    }

    /// Lines of so many rows, with room for a kernel that reads whole [`ROW_CODES`] of the last.
    fn lines_for(&self, rows: usize) -> usize {
        (rows * self.stride() + self.dim.next_multiple_of(ROW_CODES)).div_ceil(LINE_BYTES)
    }

    pub fn reserve(&mut self, rows: usize) {
        let lines = self.lines_for(self.len + rows);
        if self.lines.is_empty() {
            self.lines = pages::with_capacity(lines);
        } else {
            self.lines.reserve_exact(lines.saturating_sub(self.lines.len()));
        }
    }

    pub fn push(&mut self, row: &[f32]) {
        assert_eq!(row.len(), self.dim, "rows of one length");
        let (dim, from) = (self.dim, self.len * self.stride());
        self.lines.resize(self.lines_for(self.len + 1), Line::zeroed());
        let record = &mut bytemuck::cast_slice_mut::<Line, i8>(&mut self.lines)[from..];
        let (scale, sum, error) = encode(row, |at, code| record[at] = code);
        bytemuck::cast_slice_mut::<i8, u8>(&mut record[dim..dim + 4]).copy_from_slice(&scale.to_le_bytes());
        bytemuck::cast_slice_mut::<i8, u8>(&mut record[dim + 4..dim + 8]).copy_from_slice(&sum.to_le_bytes());
        self.error_squares += f64::from(error);
        self.len += 1;
    }

    /// Adds a row of other rows of this length.
    pub fn push_copy(&mut self, other: &Self, at: u32) {
        assert_eq!(other.dim, self.dim, "rows of one length");
        let (stride, from) = (self.stride(), self.len * self.stride());
        self.lines.resize(self.lines_for(self.len + 1), Line::zeroed());
        let record = &other.record_bytes()[at as usize * stride..][..stride];
        bytemuck::cast_slice_mut::<Line, i8>(&mut self.lines)[from..from + stride].copy_from_slice(record);
        self.len += 1;
    }

    pub fn record_bytes(&self) -> &[i8] {
        bytemuck::cast_slice(&self.lines)
    }

    /// The root of the mean squared error of a row: how far codes and rows are apart.
    pub fn error(&self) -> f32 {
        (self.error_squares / self.len.max(1) as f64).sqrt() as f32
    }

    fn facts(&self, at: u32) -> (f32, i32) {
        let from = at as usize * self.stride() + self.dim;
        let facts: &[u8; FACTS_BYTES] =
            bytemuck::cast_slice::<i8, u8>(&self.record_bytes()[from..from + FACTS_BYTES]).try_into().expect("eight");
        let (scale, sum) = facts.split_at(4);
        (f32::from_le_bytes(scale.try_into().expect("four")), i32::from_le_bytes(sum.try_into().expect("four")))
    }

    /// Squared length of a row as its codes tell it.
    pub fn square(&self, at: u32) -> f32 {
        let from = at as usize * self.stride();
        let codes = &self.record_bytes()[from..from + self.dim];
        let squares: i32 = codes.iter().map(|code| i32::from(*code) * i32::from(*code)).sum();
        let scale = self.facts(at).0;
        scale * scale * squares as f32
    }

    pub fn query(&self, query: &[f32]) -> CodedQuery {
        assert_eq!(query.len(), self.dim, "the query has the rows' length");
        let mut codes = vec![0u8; self.dim.next_multiple_of(ROW_CODES)];
        let (scale, _, _) = encode(query, |at, code| codes[at] = (i32::from(code) + QUERY_ZERO) as u8);
        CodedQuery { codes, scale }
    }

    /// A row in the place of a query.
    pub fn query_of(&self, at: u32, query: &mut CodedQuery) {
        let from = at as usize * self.stride();
        query.codes.clear();
        let codes = &self.record_bytes()[from..from + self.dim];
        query.codes.extend(codes.iter().map(|code| (i32::from(*code) + QUERY_ZERO) as u8));
        query.codes.resize(self.dim.next_multiple_of(ROW_CODES), 0);
        query.scale = self.facts(at).0;
    }

    /// Inner products of the query with some rows; `products` is room to work in.
    pub fn scores(&self, query: &CodedQuery, rows: &[u32], products: &mut Vec<i32>, scores: &mut Vec<f32>) {
        products.resize(rows.len(), 0);
        gather()(&query.codes, self.record_bytes(), self.stride(), rows, products);
        scores.clear();
        scores.extend(rows.iter().zip(products.iter()).map(|(row, product)| {
            let (scale, sum) = self.facts(*row);
            query.scale * scale * (*product - QUERY_ZERO * sum) as f32
        }));
    }

    /// The stream form: what follows the counts.
    pub fn parts(&self) -> (&[u8], f64) {
        let whole = self.lines_for(self.len);
        (bytemuck::cast_slice(&self.lines[..whole.min(self.lines.len())]), self.error_squares)
    }

    /// Bytes of [`CodedRows::parts`] for so many rows of so many numbers.
    pub fn parts_bytes(dim: usize, rows: usize) -> usize {
        if rows == 0 { 0 } else { Self::new(dim).lines_for(rows) * LINE_BYTES }
    }

    /// Rows whose record bytes `fill` reads.
    pub fn read(
        dim: usize,
        rows: usize,
        error_squares: f64,
        fill: impl FnOnce(&mut [u8]) -> std::io::Result<()>,
    ) -> std::io::Result<Self> {
        let count = Self::parts_bytes(dim, rows) / LINE_BYTES;
        let mut lines = pages::with_capacity(count);
        lines.resize(count, Line::zeroed());
        fill(bytemuck::cast_slice_mut(&mut lines))?;
        Ok(Self { dim, len: rows, lines, error_squares })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// By Cauchy and Schwarz a product is off by no more than what both sides leave out.
        #[test]
        fn products_of_codes_are_near_those_of_the_rows(
            dim in 1usize..140, rows in 1usize..9, seed in any::<u64>(), size in -2i32..4,
        ) {
            let mut state = seed | 1;
            let mut next = || {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            let mut coded = CodedRows::new(dim);
            let plain: Vec<Vec<f32>> =
                (0..rows).map(|_| (0..dim).map(|_| next() * 10f32.powi(size)).collect()).collect();
            plain.iter().for_each(|row| coded.push(row));
            let query: Vec<f32> = (0..dim).map(|_| next()).collect();
            let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
            let all: Vec<u32> = (0..rows as u32).collect();
            let (mut products, mut scores) = (Vec::new(), Vec::new());
            coded.scores(&coded.query(&query), &all, &mut products, &mut scores);
            for (row, score) in plain.iter().zip(&scores) {
                let exact: f32 = row.iter().zip(&query).map(|(a, b)| a * b).sum();
                let step = |row: &[f32]| row.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 254.0 * (dim as f32).sqrt();
                let reach = step(row) * norm(&query) + step(&query) * norm(row) + step(row) * step(&query);
                prop_assert!((exact - score).abs() <= reach * 1.01 + 1e-6, "{exact} {score} {reach}");
            }
            let mut as_query = CodedQuery::default();
            coded.query_of(0, &mut as_query);
            coded.scores(&as_query, &[0], &mut products, &mut scores);
            let square = coded.square(0);
            prop_assert!((scores[0] - square).abs() <= square.abs() * 1e-4 + 1e-6);
            let (bytes, error) = coded.parts();
            prop_assert_eq!(bytes.len(), CodedRows::parts_bytes(dim, rows));
            let again = CodedRows::read(dim, rows, error, |out| { out.copy_from_slice(bytes); Ok(()) }).unwrap();
            again.scores(&as_query, &all, &mut products, &mut scores);
            let first = scores.clone();
            coded.scores(&as_query, &all, &mut products, &mut scores);
            prop_assert_eq!(first, scores);
        }
    }
}
