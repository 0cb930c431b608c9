//! Rate arithmetic: the generic cell rate algorithm with one `u64` of state.
//!
//! A limit of N per period with a burst of B behaves like a bucket of B tokens that refills continuously,
//! without timers and without a background task.

/// A rate and the burst it tolerates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Nanoseconds that one unit of cost takes at the sustained rate; at least 1.
    pub interval_ns: u64,
    /// Units that may come at once; at least 1.
    pub burst: u32,
}

impl Limit {
    /// `units` a minute with the given burst. Zero is read as one: a limit that admits nothing is a
    /// misconfiguration that the configuration layer refuses.
    pub fn per_minute(units: u32, burst: u32) -> Self {
        Self { interval_ns: (60_000_000_000 / u64::from(units.max(1))).max(1), burst: burst.max(1) }
    }

    /// `units` a second with the given burst.
    pub fn per_second(units: u32, burst: u32) -> Self {
        Self { interval_ns: (1_000_000_000 / u64::from(units.max(1))).max(1), burst: burst.max(1) }
    }
}

/// The theoretical arrival time of the next unit, in nanoseconds of the caller's monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    arrival_ns: u64,
}

impl State {
    /// Whether the bucket is full again: such a state says no more than a new one.
    pub fn is_idle(&self, now_ns: u64) -> bool {
        self.arrival_ns <= now_ns
    }
}

/// Admits `cost` units at `now_ns`, or says after how many nanoseconds the same call would be admitted.
/// A refused call changes nothing. A cost above the burst can never be admitted and answers `u64::MAX`.
pub fn check(state: &mut State, now_ns: u64, cost: u32, limit: &Limit) -> Result<(), u64> {
    if cost > limit.burst {
        return Err(u64::MAX);
    }
    let tolerance = limit.interval_ns.saturating_mul(u64::from(limit.burst));
    let arrival = state.arrival_ns.max(now_ns);
    let next = arrival.saturating_add(limit.interval_ns.saturating_mul(u64::from(cost)));
    let earliest = next.saturating_sub(tolerance);
    if earliest > now_ns {
        return Err(earliest - now_ns);
    }
    state.arrival_ns = next;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let limit = Limit::per_minute(60, 3);
        let mut state = State::default();
        let start = 5_000_000_000;
        for _ in 0..3 {
            assert_eq!(check(&mut state, start, 1, &limit), Ok(()));
        }
        assert_eq!(check(&mut state, start, 1, &limit), Err(1_000_000_000));
        assert_eq!(check(&mut state, start + 999_999_999, 1, &limit), Err(1));
        assert_eq!(check(&mut state, start + 1_000_000_000, 1, &limit), Ok(()));
        assert_eq!(check(&mut state, start, 4, &limit), Err(u64::MAX));
    }

    proptest! {
        /// Over any schedule, no window admits more than burst + rate x length.
        #[test]
        fn never_admits_more_than_the_rate_allows(gaps in proptest::collection::vec(0u64..3_000_000_000, 1..200), burst in 1u32..10) {
            let limit = Limit { interval_ns: 1_000_000_000, burst };
            let mut state = State::default();
            let mut now = 0u64;
            let mut admitted = 0u64;
            for gap in gaps {
                now += gap;
                match check(&mut state, now, 1, &limit) {
                    Ok(()) => admitted += 1,
                    Err(wait) => {
                        let mut later = state;
                        prop_assert_eq!(check(&mut later, now + wait, 1, &limit), Ok(()));
                    }
                }
            }
            prop_assert!(admitted <= u64::from(burst) + now / limit.interval_ns);
        }

        #[test]
        fn extremes_do_not_overflow(arrival in any::<u64>(), now in any::<u64>(), cost in any::<u32>(), interval in 1u64.., burst in 1u32..) {
            let mut state = State { arrival_ns: arrival };
            let _ = check(&mut state, now, cost, &Limit { interval_ns: interval, burst });
        }
    }
}
