//! When requests are meant to start.

use crate::Arrivals;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// The intended start times of an open loop, as offsets from its beginning. Depends on its seed only.
#[derive(Clone, Debug)]
pub struct Schedule {
    arrivals: Arrivals,
    rate: f64,
    count: u64,
    at_s: f64,
    random: SmallRng,
}

impl Schedule {
    /// `rate` requests per second.
    pub fn new(arrivals: Arrivals, rate: f64, seed: u64) -> Self {
        Self { arrivals, rate, count: 0, at_s: 0.0, random: SmallRng::seed_from_u64(seed) }
    }
}

impl Iterator for Schedule {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.at_s = match self.arrivals {
            // From the count, not by summing gaps: rounding must not change the rate of a long run.
            Arrivals::Constant => self.count as f64 / self.rate,
            // `1 - u` is in (0, 1], so the logarithm is finite.
            Arrivals::Poisson => self.at_s - (1.0 - self.random.random::<f64>()).ln() / self.rate,
        };
        self.count += 1;
        Some(Duration::from_secs_f64(self.at_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_are_evenly_spaced() {
        let times: Vec<_> = Schedule::new(Arrivals::Constant, 4.0, 1).take(4).map(|at| at.as_millis()).collect();
        assert_eq!(times, [0, 250, 500, 750]);
        let late = Schedule::new(Arrivals::Constant, 3.0, 1).nth(3_000_000).unwrap();
        assert_eq!(late.as_millis(), 1_000_000_000);
    }

    #[test]
    fn poisson_arrivals_repeat_with_their_seed_and_keep_the_rate() {
        let times = |seed| Schedule::new(Arrivals::Poisson, 100.0, seed).take(10_000).collect::<Vec<_>>();
        assert_eq!(times(7), times(7));
        assert_ne!(times(7), times(8));
        let times = times(7);
        assert!(times.is_sorted());
        let total = times.last().unwrap().as_secs_f64();
        assert!((95.0..105.0).contains(&total), "10,000 arrivals at 100/s took {total} s");
        // Exponential gaps have a standard deviation equal to their mean.
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((0.95..1.05).contains(&(deviation / mean)), "{}", deviation / mean);
    }
}
