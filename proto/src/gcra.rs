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
    /// The state as one word, for a caller that keeps it in an atomic.
    pub const fn to_bits(self) -> u64 {
        self.arrival_ns
    }

    /// The state that [`State::to_bits`] gave.
    pub const fn from_bits(bits: u64) -> Self {
        Self { arrival_ns: bits }
    }

    /// Units that would be admitted at once.
    pub fn room(self, now_ns: u64, limit: &Limit) -> u32 {
        let debt_ns = self.arrival_ns.saturating_sub(now_ns);
        let tolerance = limit.interval_ns.saturating_mul(u64::from(limit.burst));
        let units = tolerance.saturating_sub(debt_ns) / limit.interval_ns;
        u32::try_from(units).unwrap_or(u32::MAX).min(limit.burst)
    }

    /// Nanoseconds until the whole burst is there again.
    pub fn full_in_ns(self, now_ns: u64) -> u64 {
        self.arrival_ns.saturating_sub(now_ns)
    }

    /// Corrects an admitted estimate: `reserved` units were charged, `used` were needed. What was too much
    /// comes back; what was too little is charged whatever the limit says, and delays who comes next.
    #[must_use]
    pub fn settled(self, now_ns: u64, reserved: u32, used: u32, limit: &Limit) -> Self {
        let ns = |units: u32| limit.interval_ns.saturating_mul(u64::from(units));
        let arrival_ns = if used <= reserved {
            self.arrival_ns.saturating_sub(ns(reserved - used))
        } else {
            self.arrival_ns.max(now_ns).saturating_add(ns(used - reserved))
        };
        Self { arrival_ns }
    }

    /// The state that admits one unit at `until_ns` and none before, whatever was left of the burst.
    #[must_use]
    pub fn held(self, until_ns: u64, limit: &Limit) -> Self {
        let rest = limit.interval_ns.saturating_mul(u64::from(limit.burst.saturating_sub(1)));
        Self { arrival_ns: self.arrival_ns.max(until_ns.saturating_add(rest)) }
    }

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

    #[test]
    fn a_held_bucket_admits_one_unit_when_the_hold_ends() {
        let limit = Limit::per_minute(60, 3);
        let (now, until) = (5_000_000_000, 9_000_000_000);
        let mut state = State::default().held(until, &limit);
        assert_eq!(check(&mut state, now, 1, &limit), Err(until - now));
        assert_eq!(check(&mut state, until, 1, &limit), Ok(()));
        assert_eq!(check(&mut state, until, 1, &limit), Err(limit.interval_ns));
        assert_eq!(state.held(now, &limit), state, "a hold never shortens a wait");
    }

    #[test]
    fn a_reservation_is_settled_by_what_was_used() {
        let limit = Limit::per_minute(60, 10);
        let (mut state, now) = (State::default(), 5_000_000_000);
        check(&mut state, now, 8, &limit).expect("room for eight");
        assert_eq!((state.room(now, &limit), state.full_in_ns(now)), (2, 8_000_000_000));
        let less = state.settled(now, 8, 3, &limit);
        assert_eq!(less.room(now, &limit), 7, "five come back");
        let more = state.settled(now, 8, 30, &limit);
        assert_eq!((more.room(now, &limit), more.full_in_ns(now)), (0, 30_000_000_000), "the debt is waited off");
        assert_eq!(State::from_bits(more.to_bits()), more);
    }

    proptest! {
        /// Whatever was reserved, after settling the state is that of having charged what was used.
        #[test]
        fn settling_equals_having_known(reserved in 1u32..50, used in 0u32..200, burst in 50u32..100) {
            let limit = Limit { interval_ns: 1_000, burst };
            let now = 1_000_000_000u64;
            let mut state = State::default();
            check(&mut state, now, reserved, &limit).expect("within the burst");
            let known = State::from_bits(now + 1_000 * u64::from(used));
            prop_assert_eq!(state.settled(now, reserved, used, &limit), known);
        }

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
