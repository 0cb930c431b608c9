//! One pass of some texts through the network, in slices.
//!
//! Texts lie one after the other as rows of tokens, without padding. A slice is a part of one layer for a bounded number
//! of rows, so that whoever owns the threads can do something else after a few milliseconds. Only attention looks
//! beyond its own row, so a layer has three phases, each of which goes through all rows: projection to queries, keys
//! and values; attention; and the rest.

use std::sync::Mutex;

use super::bert::{Encoder, Layer, Norm};
use super::dense::{Quants, Then};
use super::files::Pooling;
use crate::backend::Crew;
use crate::math::{exp_nonpositive, sum, sum_of_squares};

/// Multiplications of one slice: about 4 ms of one core, 2 of two.
const SLICE_PRODUCTS: usize = 200 << 20;
/// Least rows of a slice: with fewer, reading the weights would take longer than multiplying.
const SLICE_ROWS_MIN: usize = 24;
/// Rows that a thread takes at a time for what is done row by row.
const PART_ROWS: usize = 16;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Project,
    Attend,
    Transform,
}

/// A pass; its buffers are used again by the next.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// First row of each text, and the number of rows.
    starts: Vec<usize>,
    x: Vec<f32>,
    heads: Vec<f32>,
    mixed: Vec<f32>,
    wide: Vec<f32>,
    quants: Quants,
    // Where the next slice begins.
    layer: usize,
    phase: Phase,
    row: usize,
}

impl Pass {
    /// Begins with these texts, each of which has 1 to `tokens_max` tokens.
    pub fn begin<'a>(&mut self, encoder: &Encoder, texts: impl Iterator<Item = &'a [u32]>) {
        (self.layer, self.phase, self.row) = (0, Phase::Project, 0);
        self.starts.clear();
        self.starts.push(0);
        self.x.clear();
        for ids in texts {
            for (position, id) in ids.iter().enumerate() {
                let start = self.x.len();
                self.x.resize(start + encoder.width, 0.0);
                encoder.look_up(*id, position, &mut self.x[start..]);
            }
            self.starts.push(self.x.len() / encoder.width);
        }
        encoder.norm.apply(&mut self.x);
        let rows = self.rows();
        self.heads.resize(rows * 3 * encoder.width, 0.0);
        self.mixed.resize(rows * encoder.width, 0.0);
    }

    /// Token rows of all texts.
    pub fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Computes one slice; true when it was the last.
    pub fn advance(&mut self, encoder: &Encoder, crew: &mut dyn Crew) -> bool {
        let Some(layer) = encoder.layers.get(self.layer) else { return true };
        let end = match self.phase {
            Phase::Project => self.project(encoder, layer, crew),
            Phase::Attend => self.attend(encoder, crew),
            Phase::Transform => self.transform(encoder, layer, crew),
        };
        self.row = end;
        if end == self.rows() {
            self.row = 0;
            self.phase = match self.phase {
                Phase::Project => Phase::Attend,
                Phase::Attend => Phase::Transform,
                Phase::Transform => {
                    self.layer += 1;
                    Phase::Project
                }
            };
        }
        self.layer == encoder.layers.len()
    }

    /// The vectors of the texts, of length one.
    pub fn vectors<'a>(&'a self, encoder: &'a Encoder) -> impl Iterator<Item = Vec<f32>> + 'a {
        let width = encoder.width;
        self.starts.windows(2).map(move |text| pool(&self.x[text[0] * width..text[1] * width], width, encoder.pooling))
    }

    /// Where a slice of rows ends that each take so many multiplications.
    fn end(&self, products: usize) -> usize {
        (self.row + (SLICE_PRODUCTS / products.max(1)).max(SLICE_ROWS_MIN)).min(self.rows())
    }

    fn project(&mut self, encoder: &Encoder, layer: &Layer, crew: &mut dyn Crew) -> usize {
        let (width, end) = (encoder.width, self.end(layer.query_key_value.products()));
        let out = &mut self.heads[self.row * 3 * width..end * 3 * width];
        let x = &self.x[self.row * width..end * width];
        layer.query_key_value.apply(encoder.kernels, crew, x, &mut self.quants, out, Then::Keep);
        end
    }

    fn transform(&mut self, encoder: &Encoder, layer: &Layer, crew: &mut dyn Crew) -> usize {
        let width = encoder.width;
        let end = self.end(layer.output.products() + layer.up.products() + layer.down.products());
        let (kernels, quants) = (encoder.kernels, &mut self.quants);
        let x = &mut self.x[self.row * width..end * width];
        let mixed = &self.mixed[self.row * width..end * width];
        layer.output.apply(kernels, crew, mixed, quants, x, Then::Add);
        parts(crew, x, PART_ROWS * width, |_, rows| layer.output_norm.apply(rows));
        self.wide.resize((end - self.row) * encoder.wide, 0.0);
        layer.up.apply(kernels, crew, x, quants, &mut self.wide, Then::Gelu);
        layer.down.apply(kernels, crew, &self.wide, quants, x, Then::Add);
        parts(crew, x, PART_ROWS * width, |_, rows| layer.down_norm.apply(rows));
        end
    }

    /// Attention of every text to itself, head by head: `heads` holds query, key and value of each row.
    fn attend(&mut self, encoder: &Encoder, crew: &mut dyn Crew) -> usize {
        let width = encoder.width;
        let longest = self.starts.windows(2).map(|text| text[1] - text[0]).max().unwrap_or(1);
        let end = self.end(2 * longest * width);
        let (first, starts, heads) = (self.row, &self.starts, &self.heads);
        let mixed = &mut self.mixed[first * width..end * width];
        parts(crew, mixed, PART_ROWS * width, |part, out| {
            let rows = first + part * PART_ROWS..first + part * PART_ROWS + out.len() / width;
            let mut text = starts.partition_point(|start| *start <= rows.start) - 1;
            let mut scratch = (Vec::new(), Vec::new());
            let mut out = out;
            let mut row = rows.start;
            while row < rows.end {
                let (begin, until) = (starts[text], starts[text + 1].min(rows.end));
                let (head, tail) = std::mem::take(&mut out).split_at_mut((until - row) * width);
                let own = &heads[begin * 3 * width..starts[text + 1] * 3 * width];
                attend(own, row - begin, encoder.heads, head, width, &mut scratch);
                (out, row, text) = (tail, until, text + 1);
            }
        });
        end
    }
}

/// Attention of rows `first..` of a text, as many as `out` holds, to all of it.
fn attend(
    text: &[f32],
    first: usize,
    heads: usize,
    out: &mut [f32],
    width: usize,
    (keys, scores): &mut (Vec<f32>, Vec<f32>),
) {
    let (size, stride) = (width / heads, 3 * width);
    let n = text.len() / stride;
    let scale = 1.0 / (size as f32).sqrt();
    keys.resize(size * n, 0.0);
    out.fill(0.0);
    for head in 0..heads {
        let at = |row: usize, part: usize| row * stride + part * width + head * size;
        // Keys with the position innermost, so that scores of a row are sums of long vectors.
        for row in 0..n {
            for (d, value) in text[at(row, 1)..][..size].iter().enumerate() {
                keys[d * n + row] = value * scale;
            }
        }
        for (row, out) in out.chunks_exact_mut(width).enumerate() {
            scores.clear();
            scores.resize(n, 0.0);
            let query = &text[at(first + row, 0)..][..size];
            for (q, keys) in query.iter().zip(keys.chunks_exact(n)) {
                for (score, key) in scores.iter_mut().zip(keys) {
                    *score = q.mul_add(*key, *score);
                }
            }
            softmax(scores);
            let out = &mut out[head * size..][..size];
            for (other, p) in scores.iter().enumerate() {
                for (o, v) in out.iter_mut().zip(&text[at(other, 2)..][..size]) {
                    *o = p.mul_add(*v, *o);
                }
            }
        }
    }
}

/// Gives parts of some rows to the threads, each part once, with its number.
fn parts(crew: &mut dyn Crew, rows: &mut [f32], part: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    if rows.len() <= part {
        return work(0, rows);
    }
    let left = Mutex::new(rows.chunks_mut(part).enumerate());
    crew.run(&|| {
        loop {
            // The lock is let go of before the work.
            let next = left.lock().unwrap_or_else(|p| p.into_inner()).next();
            let Some((index, rows)) = next else { return };
            work(index, rows);
        }
    });
}

impl Norm {
    pub(super) fn apply(&self, x: &mut [f32]) {
        let n = self.scale.len() as f32;
        for row in x.chunks_exact_mut(self.scale.len()) {
            let mean = sum(row) / n;
            for v in row.iter_mut() {
                *v -= mean;
            }
            let inverse = 1.0 / (sum_of_squares(row) / n + self.epsilon).sqrt();
            for ((v, scale), shift) in row.iter_mut().zip(&self.scale).zip(&self.shift) {
                *v = (*v * inverse).mul_add(*scale, *shift);
            }
        }
    }
}

fn softmax(scores: &mut [f32]) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for score in scores.iter_mut() {
        *score = exp_nonpositive(*score - max);
    }
    let scale = 1.0 / sum(scores);
    for score in scores {
        *score *= scale;
    }
}

/// One vector of length one from those of the tokens.
fn pool(rows: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let mut vector = rows[..width].to_vec();
    for row in rows.chunks_exact(width).skip(1) {
        for (v, x) in vector.iter_mut().zip(row) {
            match pooling {
                Pooling::First => {}
                // The mean and the sum have the same direction.
                Pooling::Mean => *v += x,
                Pooling::Greatest => *v = v.max(*x),
            }
        }
    }
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    vector.iter_mut().for_each(|v| *v /= length);
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_takes_the_first_row_the_mean_or_the_greatest() {
        let rows = [3.0, 0.0, 0.0, 4.0, 3.0, -1.0];
        assert_eq!(pool(&rows, 2, Pooling::First), [1.0, 0.0]);
        let length = 45.0_f32.sqrt();
        assert_eq!(pool(&rows, 2, Pooling::Mean), [6.0 / length, 3.0 / length]);
        assert_eq!(pool(&rows, 2, Pooling::Greatest), [0.6, 0.8]);
    }
}
