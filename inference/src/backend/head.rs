//! Work on single heads and rows between the products: norms and rotation.

use crate::model::Pairs;

/// Sums that run side by side, so that additions need not wait for each other.
const LANES: usize = 8;

/// 1 / root of the mean square.
fn rms_inverse(x: &[f32], eps: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|x| x * x).sum();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let total = sums.iter().sum::<f32>() + rest;
    1.0 / (total / x.len() as f32 + eps).sqrt()
}

/// RMS norm of one head, in place.
pub(super) fn normalise_head(head: &mut [f32], weight: &[f32], eps: f32) {
    let factor = rms_inverse(head, eps);
    for (x, w) in head.iter_mut().zip(weight) {
        *x *= factor * w;
    }
}

/// x += RMS norm of `branch`.
pub(super) fn add_normalised(x: &mut [f32], branch: &[f32], weight: &[f32], eps: f32) {
    let factor = rms_inverse(branch, eps);
    for ((x, y), w) in x.iter_mut().zip(branch).zip(weight) {
        *x += y * factor * w;
    }
}

/// Rotates the leading elements of a head by the angles whose cosines and sines follow each other in `rope`.
pub(super) fn rotate(pairs: Pairs, head: &mut [f32], rope: &[f32]) {
    let turn = |a: f32, b: f32, turn: &[f32]| (a * turn[0] - b * turn[1], a * turn[1] + b * turn[0]);
    match pairs {
        Pairs::Adjacent => {
            for (x, angle) in head.chunks_exact_mut(2).zip(rope.chunks_exact(2)) {
                (x[0], x[1]) = turn(x[0], x[1], angle);
            }
        }
        Pairs::Halves => {
            let (low, high) = head[..rope.len()].split_at_mut(rope.len() / 2);
            for ((a, b), angle) in low.iter_mut().zip(high).zip(rope.chunks_exact(2)) {
                (*a, *b) = turn(*a, *b, angle);
            }
        }
    }
}
