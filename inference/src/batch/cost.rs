//! What a step costs on this machine with this model, learned from the steps themselves.
//!
//! The model is linear: a fixed part (the weights are read once), a part for each row with and without logits, and a
//! part for each token of context that a row attends to. Four numbers are tracked by a Kalman filter (R. E. Kalman, "A
//! New Approach to Linear Filtering and Prediction Problems", 1960): what steps do not exercise is remembered, what
//! they do exercise follows the machine, and a step that was disturbed by another process moves the estimate little.

use std::time::Duration;

/// What one step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Rows whose logits are wanted: decoding, ends of prompts, drafts under verification.
    pub sampled: usize,
    /// Other rows.
    pub plain: usize,
    /// Context tokens over all rows, the row's own token included.
    pub attended: usize,
}

impl Work {
    /// Adds `count` rows of a sequence that has `start` tokens already; the last `sampled` of them want logits.
    pub fn add(&mut self, start: usize, count: usize, sampled: usize) {
        self.sampled += sampled;
        self.plain += count - sampled;
        self.attended += attended(start, count);
    }
}

/// Tokens that `count` rows after `start` tokens attend to.
fn attended(start: usize, count: usize) -> usize {
    count * start + count * (count + 1) / 2
}

/// Costs in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// A step without any row.
    pub step: f64,
    /// One row with logits, sampling included.
    pub sampled: f64,
    /// One row without logits.
    pub plain: f64,
    /// One token of context under one row.
    pub attended: f64,
}

impl Rates {
    /// Predicted nanoseconds of a step.
    pub fn of(&self, work: &Work) -> f64 {
        let Work { sampled, plain, attended } = *work;
        self.step + self.sampled * sampled as f64 + self.plain * plain as f64 + self.attended * attended as f64
    }

    /// Predicted nanoseconds that `count` rows of a prompt add to a step.
    pub fn prompt(&self, start: usize, count: usize) -> f64 {
        self.plain * count as f64 + self.attended * attended(start, count) as f64
    }

    /// Most rows of a prompt, up to `most`, that add no more than this many nanoseconds.
    pub fn prompt_rows(&self, start: usize, most: usize, ns: f64) -> usize {
        let (mut fits, mut over) = (0, most + 1);
        while over - fits > 1 {
            let middle = fits + (over - fits) / 2;
            if self.prompt(start, middle) <= ns { fits = middle } else { over = middle }
        }
        fits
    }
}

/// Shares of a first step: the fixed part in rows, a row with logits in rows, a context token in rows. They hold
/// roughly for llama networks of any size and only until steps of several shapes were seen.
const FIRST_GUESS: [f64; 4] = [8.0, 1.3, 1.0, 1.0 / 3000.0];
/// Standard deviation of one measurement, as a share of the prediction.
const NOISE: f64 = 0.2;
/// How far one measurement may pull, as a share of the prediction: beyond it, something else had the processor.
const PULL_MAX: f64 = 0.5;
/// How much each number may wander per step, and how unsure of it we can get, as shares of its first guess.
const WANDER: f64 = 0.01;
const DOUBT_MAX: f64 = 1.0;

/// Learns [`Rates`] from measured steps.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    rates: [f64; 4],
    covariance: [[f64; 4]; 4],
    /// The first guess; zero before the first step.
    scale: [f64; 4],
}

impl Meter {
    /// Present rates; `None` before the first step.
    pub fn rates(&self) -> Option<Rates> {
        let [step, sampled, plain, attended] = self.rates;
        (self.scale[0] > 0.0).then_some(Rates { step, sampled, plain, attended })
    }

    /// Takes in one step.
    pub fn note(&mut self, work: &Work, took: Duration) {
        let took = (took.as_nanos() as f64).max(1.0);
        let x = [1.0, work.sampled as f64, work.plain as f64, work.attended as f64];
        if self.scale[0] <= 0.0 {
            return self.begin(&x, took);
        }
        for i in 0..4 {
            self.covariance[i][i] += (WANDER * self.scale[i]).powi(2);
            let doubt = self.covariance[i][i].sqrt() / (DOUBT_MAX * self.scale[i]);
            if doubt > 1.0 {
                (0..4).for_each(|j| self.covariance[i][j] /= doubt);
                (0..4).for_each(|j| self.covariance[j][i] /= doubt);
            }
        }
        // A step says nothing about what it does not exercise, also not by what was learned of both together.
        for i in (0..4).filter(|i| x[*i] == 0.0) {
            for j in (0..4).filter(|j| i != *j) {
                self.covariance[i][j] = 0.0;
                self.covariance[j][i] = 0.0;
            }
        }
        let predicted = dot(&self.rates, &x);
        let spread = self.covariance.map(|row| dot(&row, &x));
        let variance = dot(&spread, &x) + (NOISE * predicted).powi(2);
        let surprise = (took - predicted).clamp(-PULL_MAX * predicted, PULL_MAX * predicted);
        for i in 0..4 {
            let gain = spread[i] / variance;
            self.rates[i] = (self.rates[i] + gain * surprise).max(0.01 * self.scale[i]);
            (0..4).for_each(|j| self.covariance[i][j] -= gain * spread[j]);
        }
    }

    fn begin(&mut self, x: &[f64; 4], took: f64) {
        let row = took / dot(&FIRST_GUESS, x);
        self.scale = FIRST_GUESS.map(|share| share * row);
        self.rates = self.scale;
        (0..4).for_each(|i| self.covariance[i][i] = (DOUBT_MAX * self.scale[i]).powi(2));
    }
}

fn dot(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests;
