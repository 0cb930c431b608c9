//! Failed tries to name a client's secret, counted by client and by address (RFC 6749 section 2.3.1 demands
//! protection against guessing).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use millrace_proto::gcra;

/// Failures of one client id: thirty at once, then one every two seconds. A secret has 256 bits, so this is
/// about load and noise rather than about luck.
const PER_CLIENT: gcra::Limit = gcra::Limit { interval_ns: 2_000_000_000, burst: 30 };

/// Failures of one address other than this machine's own, behind which any number of clients may sit.
const PER_ADDRESS: gcra::Limit = gcra::Limit { interval_ns: 2_000_000_000, burst: 60 };

/// Names that are remembered. Beyond it those without a recent failure go, then all.
const NAMES_MAX: usize = 16_384;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    Client(String),
    Address(IpAddr),
}

/// The counters.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<HashMap<Name, gcra::State>>);

impl Attempts {
    /// Seconds to wait when this client or this address has failed too often; asked before anything is hashed.
    pub fn blocked(&self, client: &str, ip: IpAddr, now_ns: u64) -> Option<u32> {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait_of = |(name, limit): &(Name, gcra::Limit)| {
            let mut state = *names.get(name)?;
            gcra::check(&mut state, now_ns, 1, limit).err()
        };
        let wait_ns = subjects(client, ip).iter().filter_map(wait_of).max()?;
        Some(u32::try_from(wait_ns.div_ceil(1_000_000_000)).unwrap_or(u32::MAX).max(1))
    }

    /// A try has failed.
    pub fn failed(&self, client: &str, ip: IpAddr, now_ns: u64) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES_MAX {
            names.retain(|_, state| state.full_in_ns(now_ns) > 0);
            if names.len() >= NAMES_MAX {
                names.clear();
            }
        }
        for (name, limit) in subjects(client, ip) {
            let state = names.entry(name).or_default();
            // Tries that were on their way when the limit was reached need no further punishment.
            let _ = gcra::check(state, now_ns, 1, &limit);
        }
    }
}

fn subjects(client: &str, ip: IpAddr) -> Vec<(Name, gcra::Limit)> {
    let mut subjects = vec![(Name::Client(client.to_owned()), PER_CLIENT)];
    if !ip.is_loopback() {
        subjects.push((Name::Address(ip), PER_ADDRESS));
    }
    subjects
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn guessing_is_slowed_down_and_others_go_on() {
        let attempts = Attempts::default();
        let (guesser, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut tried = 0;
        while attempts.blocked("mc-a", guesser, SECOND).is_none() {
            attempts.failed("mc-a", guesser, SECOND);
            tried += 1;
        }
        assert_eq!(tried, PER_CLIENT.burst);
        assert_eq!(attempts.blocked("mc-b", other, SECOND), None);
        assert_eq!(attempts.blocked("mc-b", guesser, SECOND), None, "the address has not failed often enough yet");
        assert_eq!(attempts.blocked("mc-a", other, SECOND), Some(2), "the client is what is guessed");
        assert_eq!(attempts.blocked("mc-a", other, 3 * SECOND), None, "after a while it may be tried again");
    }

    #[test]
    fn an_address_that_tries_many_names_is_blocked_unless_it_is_this_machine() {
        for (ip, blocked) in [(IpAddr::from([192, 0, 2, 9]), true), (IpAddr::from([127, 0, 0, 1]), false)] {
            let attempts = Attempts::default();
            for number in 0..PER_ADDRESS.burst {
                attempts.failed(&format!("mc-{number}"), ip, SECOND);
            }
            assert_eq!(attempts.blocked("mc-new", ip, SECOND).is_some(), blocked);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let attempts = Attempts::default();
        for number in 0..NAMES_MAX + 10 {
            attempts.failed(&format!("mc-{number}"), IpAddr::from([127, 0, 0, 1]), SECOND);
        }
        assert!(attempts.0.lock().expect("alive").len() <= NAMES_MAX);
    }
}
