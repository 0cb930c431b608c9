//! Rate meters: one for each key, client, tenant, address and channel account, shared by all shards.
//!
//! A meter is a word of GCRA state for requests and one for tokens. A shard changes it by compare-and-swap, so
//! a limit is exact for the whole node, whichever shards its requests come in on, and no shard waits for
//! another. Meters live in memory: a restart forgives what was used.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use millrace_proto::digest::sha256;
use millrace_proto::gcra::{self, Limit, State};
use millrace_proto::id::TenantId;

/// Meters that are kept. Beyond it the idle ones are dropped, then all: a dropped meter only forgives its last
/// burst.
const METERS_MAX: usize = 65_536;

/// Whose rate is counted.
pub type Subject = [u8; 32];

/// The subject of a tenant: all its keys and clients together.
pub fn tenant(tenant: TenantId) -> Subject {
    sha256(format!("tenant {}", tenant.0).as_bytes())
}

/// The subject of an address.
pub fn address(ip: IpAddr) -> Subject {
    sha256(format!("address {ip}").as_bytes())
}

/// The subject of a channel account.
pub fn channel(kind: &str, name: &str) -> Subject {
    sha256(format!("channel {kind} {name}").as_bytes())
}

/// Which time tokens are counted over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// A minute: the rate.
    Minute,
    /// A day: the budget.
    Day,
}

/// The meter of one subject.
#[derive(Debug, Default)]
pub struct Meter {
    requests: AtomicU64,
    tokens: AtomicU64,
    tokens_day: AtomicU64,
}

impl Meter {
    /// Admits one request at `now_ns`, or says after how many seconds to come back.
    pub fn admit(&self, now_ns: u64, limit: &Limit) -> Result<(), u32> {
        charge(&self.requests, now_ns, 1, limit).map_err(seconds)
    }

    /// Requests that would be admitted at once, and seconds until the whole burst is there again.
    pub fn room(&self, now_ns: u64, limit: &Limit) -> (u32, u64) {
        room(&self.requests, now_ns, limit)
    }

    fn word(&self, span: Span) -> &AtomicU64 {
        match span {
            Span::Minute => &self.tokens,
            Span::Day => &self.tokens_day,
        }
    }

    /// Reserves tokens at admission, or says after how many nanoseconds the same call would be admitted;
    /// `u64::MAX` = never.
    pub fn reserve(&self, span: Span, now_ns: u64, tokens: u32, limit: &Limit) -> Result<(), u64> {
        charge(self.word(span), now_ns, tokens, limit)
    }

    /// Corrects a reservation by what was used.
    pub fn settle(&self, span: Span, now_ns: u64, reserved: u32, used: u32, limit: &Limit) {
        let _ = self.word(span).fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
            Some(State::from_bits(bits).settled(now_ns, reserved, used, limit).to_bits())
        });
    }

    /// Tokens that could be reserved at once, and seconds until the whole burst is there again.
    pub fn token_room(&self, span: Span, now_ns: u64, limit: &Limit) -> (u32, u64) {
        room(self.word(span), now_ns, limit)
    }

    /// Nanoseconds until the day's budget is whole again: what a restart must not forget.
    pub fn day_debt_ns(&self, now_ns: u64) -> u64 {
        State::from_bits(self.tokens_day.load(Ordering::Acquire)).full_in_ns(now_ns)
    }

    /// Takes up a debt that an earlier process has stored.
    pub fn resume_day_debt(&self, now_ns: u64, debt_ns: u64) {
        self.tokens_day.fetch_max(now_ns.saturating_add(debt_ns), Ordering::AcqRel);
    }
}

fn charge(word: &AtomicU64, now_ns: u64, cost: u32, limit: &Limit) -> Result<(), u64> {
    let mut wait_ns = 0;
    let changed = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |bits| {
        let mut state = State::from_bits(bits);
        match gcra::check(&mut state, now_ns, cost, limit) {
            Ok(()) => Some(state.to_bits()),
            Err(wait) => {
                wait_ns = wait;
                None
            }
        }
    });
    changed.map(|_| ()).map_err(|_| wait_ns)
}

fn room(word: &AtomicU64, now_ns: u64, limit: &Limit) -> (u32, u64) {
    let state = State::from_bits(word.load(Ordering::Acquire));
    (state.room(now_ns, limit), state.full_in_ns(now_ns).div_ceil(1_000_000_000))
}

/// Whole seconds to wait, at least one.
pub fn seconds(wait_ns: u64) -> u32 {
    u32::try_from(wait_ns.div_ceil(1_000_000_000)).unwrap_or(u32::MAX).max(1)
}

/// All meters of the node.
#[derive(Debug, Default)]
pub struct Meters(Mutex<HashMap<Subject, Arc<Meter>>>);

impl Meters {
    /// Every subject that has spent of its day's budget, with what [`Meter::day_debt_ns`] says.
    pub fn day_debts(&self, now_ns: u64) -> Vec<(Subject, u64)> {
        let meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let debts = meters.iter().map(|(subject, meter)| (*subject, meter.day_debt_ns(now_ns)));
        debts.filter(|(_, debt_ns)| *debt_ns > 0).collect()
    }

    /// The meter of a subject. A shard keeps what it uses often, so this lock is rarely taken.
    pub fn of(&self, subject: &Subject) -> Arc<Meter> {
        let mut meters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = meters.get(subject) {
            return meter.clone();
        }
        if meters.len() >= METERS_MAX {
            // A shard's cache holds the meters that are in use.
            meters.retain(|_, meter| Arc::strong_count(meter) > 1 || meter.tokens_day.load(Ordering::Relaxed) > 0);
            if meters.len() >= METERS_MAX {
                meters.clear();
            }
        }
        meters.entry(*subject).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_meter_counts_exactly_for_all_threads() {
        let meters = Arc::new(Meters::default());
        let limit = Limit::per_minute(60, 500);
        let admitted = std::thread::scope(|scope| {
            let count = || {
                let meter = meters.of(&tenant(TenantId(7)));
                (0..400).filter(|_| meter.admit(1_000_000_000, &limit).is_ok()).count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(count)).collect();
            threads.into_iter().map(|thread| thread.join().expect("counted")).sum::<usize>()
        });
        assert_eq!(admitted, 500);
        let meter = meters.of(&tenant(TenantId(7)));
        assert_eq!(meter.admit(1_000_000_000, &limit), Err(1));
        assert_eq!(meter.room(1_000_000_000, &limit).0, 0);
    }

    #[test]
    fn tokens_are_reserved_and_settled_apart_from_requests() {
        let (meter, limit, now) = (Meter::default(), Limit::per_minute(600, 600), 1_000_000_000);
        let span = Span::Minute;
        meter.reserve(span, now, 500, &limit).expect("room");
        assert_eq!(meter.reserve(span, now, 500, &limit), Err(40_000_000_000));
        meter.settle(span, now, 500, 100, &limit);
        meter.reserve(span, now, 500, &limit).expect("four hundred came back");
        assert_eq!(meter.reserve(span, now, 601, &limit), Err(u64::MAX), "more than the limit ever gives");
        assert_eq!((meter.token_room(span, now, &limit).0, meter.room(now, &limit).0), (0, 600));
        assert_eq!(meter.token_room(Span::Day, now, &limit).0, 600, "the day's budget is another word");
    }

    #[test]
    fn a_days_debt_is_taken_up_by_the_next_process() {
        let (limit, before, after) = (Limit::per_minute(60, 600), Meters::default(), Meters::default());
        let subject = tenant(TenantId(1));
        before.of(&subject).reserve(Span::Day, 1_000, 90, &limit).expect("room");
        before.of(&tenant(TenantId(2)));
        let debts = before.day_debts(1_000);
        assert_eq!(debts, [(subject, 90_000_000_000)]);
        after.of(&subject).resume_day_debt(5_000, debts[0].1);
        assert_eq!(after.of(&subject).token_room(Span::Day, 5_000, &limit).0, 510);
    }

    #[test]
    fn subjects_of_different_kinds_never_meet() {
        let subjects = [
            tenant(TenantId(1)),
            tenant(TenantId(2)),
            address(IpAddr::from([0, 0, 0, 1])),
            channel("telegram", "a"),
            channel("telegram", "b"),
        ];
        for (at, one) in subjects.iter().enumerate() {
            assert!(subjects[at + 1..].iter().all(|other| one != other));
        }
    }
}
