//! A bounded cache of public key sets, and the rule when a set is fetched, used and thrown away.
//!
//! ```text
//! 0 ............ 90 % ............ 100 % of its life
//! used           used, and one     not used: requests are refused until a fetch succeeds
//!                fetch runs
//! ```
//!
//! A set is served while its successor is fetched, and never beyond its life: a platform that cannot be
//! reached for that long makes requests fail closed. One fetch runs for each address at a time; after a
//! failure the next one waits. A key id that a set does not hold lets the set be fetched again, but not more
//! often than [`REFETCH_PAUSE_S`], so that forged ids cause no traffic.

use super::keys::{KEYS_TTL_S, KeySet, REFETCH_PAUSE_S};
use std::collections::HashMap;
use std::sync::Arc;

/// Sets of one node. There are three public ones, and one for each certificate and region of Amazon SNS.
pub const KEY_SETS_MAX: usize = 64;
/// Shortest life that is believed: a document with `max-age=0` is not fetched for each request.
const LIFE_S_MIN: u64 = 300;
/// First and longest pause after a failed fetch.
const PAUSE_S: (u64, u64) = (1, 60);

#[derive(Default)]
struct Entry {
    set: Option<Arc<KeySet>>,
    fetched_s: u64,
    renew_s: u64,
    ends_s: u64,
    used_s: u64,
    fetching: bool,
    failures: u32,
    retry_s: u64,
}

/// What a lookup gives.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The set, if it is at hand and within its life.
    pub set: Option<Arc<KeySet>>,
    /// The caller fetches the address and reports to [`KeyCache::fetched`].
    pub fetch: bool,
}

/// The key sets of one node by address.
#[derive(Default)]
pub struct KeyCache(HashMap<String, Entry>);

impl KeyCache {
    /// The set behind an address. At most one caller at a time is told to fetch.
    pub fn get(&mut self, address: &str, now_s: u64) -> Lookup {
        if !self.0.contains_key(address) && !self.make_room() {
            return Lookup { set: None, fetch: false };
        }
        let entry = self.0.entry(address.to_owned()).or_default();
        entry.used_s = now_s;
        let set = entry.set.clone().filter(|_| now_s < entry.ends_s);
        let wanted = set.is_none() || now_s >= entry.renew_s;
        let fetch = wanted && !entry.fetching && now_s >= entry.retry_s;
        entry.fetching |= fetch;
        Lookup { set, fetch }
    }

    /// A token names a key that the set at hand does not hold: whether the caller fetches the set again.
    pub fn unknown_key(&mut self, address: &str, now_s: u64) -> bool {
        let Some(entry) = self.0.get_mut(address) else { return false };
        let due_s = entry.retry_s.max(entry.fetched_s.saturating_add(REFETCH_PAUSE_S));
        let fetch = !entry.fetching && now_s >= due_s;
        entry.fetching |= fetch;
        fetch
    }

    /// Whether a fetch of this address runs.
    pub fn fetching(&self, address: &str) -> bool {
        self.0.get(address).is_some_and(|entry| entry.fetching)
    }

    /// How a fetch went: the set and the seconds that its document may be kept, if it says so.
    pub fn fetched(&mut self, address: &str, result: Option<(KeySet, Option<u64>)>, now_s: u64) {
        let Some(entry) = self.0.get_mut(address) else { return };
        entry.fetching = false;
        match result {
            Some((set, life_s)) => {
                let life_s = life_s.unwrap_or(KEYS_TTL_S).clamp(LIFE_S_MIN, KEYS_TTL_S);
                entry.set = Some(Arc::new(set));
                entry.fetched_s = now_s;
                entry.renew_s = now_s + life_s * 9 / 10;
                entry.ends_s = now_s + life_s;
                (entry.failures, entry.retry_s) = (0, 0);
            }
            None => {
                let pause_s = (PAUSE_S.0 << entry.failures.min(16)).min(PAUSE_S.1);
                entry.failures = entry.failures.saturating_add(1);
                entry.retry_s = now_s + pause_s;
            }
        }
    }

    /// Takes out an entry when all places are taken: first one that never held keys (a sender may name any
    /// address of SNS), then the one that was not used for longest. What is being fetched stays.
    fn make_room(&mut self) -> bool {
        if self.0.len() < KEY_SETS_MAX {
            return true;
        }
        let idle = self.0.iter().filter(|(_, entry)| !entry.fetching);
        let victim = idle.min_by_key(|(_, entry)| (entry.set.is_some(), entry.used_s)).map(|(name, _)| name.clone());
        victim.is_some_and(|name| self.0.remove(&name).is_some())
    }
}

/// The seconds of `max-age` in a `Cache-Control` header.
pub fn max_age_s(cache_control: &str) -> Option<u64> {
    cache_control.split(',').find_map(|part| {
        let (name, value) = part.trim().split_once('=')?;
        if name.eq_ignore_ascii_case("max-age") { value.trim().parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600;

    fn fetched(life_s: Option<u64>) -> Option<(KeySet, Option<u64>)> {
        Some((KeySet::default(), life_s))
    }

    #[test]
    fn a_set_is_fetched_once_renewed_in_time_and_not_used_beyond_its_life() {
        let mut cache = KeyCache::default();
        let first = cache.get("a", 0);
        assert!(first.set.is_none() && first.fetch);
        assert!(!cache.get("a", 0).fetch && cache.fetching("a"), "one fetch at a time");
        cache.fetched("a", fetched(Some(10 * HOUR)), 0);
        assert!(!cache.get("a", 9 * HOUR - 1).fetch);
        let renewed = cache.get("a", 9 * HOUR);
        assert!(renewed.set.is_some() && renewed.fetch, "the old one is used while the new one comes");
        cache.fetched("a", None, 9 * HOUR);
        assert!(cache.get("a", 10 * HOUR - 1).set.is_some(), "a failure does not end its life");
        assert!(cache.get("a", 10 * HOUR).set.is_none(), "and nothing prolongs it");
    }

    #[test]
    fn failures_back_off_and_documents_do_not_choose_absurd_lives() {
        let mut cache = KeyCache::default();
        let mut now = 0;
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert!(cache.get("a", now).fetch);
            cache.fetched("a", None, now);
            assert!(!cache.get("a", now + pause - 1).fetch);
            now += pause;
        }
        for (life, ends) in [(Some(0), LIFE_S_MIN), (Some(u64::MAX), KEYS_TTL_S), (None, KEYS_TTL_S)] {
            let mut cache = KeyCache::default();
            cache.get("a", 0);
            cache.fetched("a", fetched(life), 0);
            assert!(cache.get("a", ends - 1).set.is_some() && cache.get("a", ends).set.is_none(), "{life:?}");
        }
    }

    #[test]
    fn an_unknown_key_id_causes_one_fetch_an_hour_at_most() {
        let mut cache = KeyCache::default();
        assert!(!cache.unknown_key("a", 0), "an address that nobody asked for");
        cache.get("a", 0);
        cache.fetched("a", fetched(None), 0);
        assert!(!cache.unknown_key("a", HOUR - 1));
        assert!(cache.unknown_key("a", HOUR));
        assert!(!cache.unknown_key("a", HOUR), "it runs already");
    }

    #[test]
    fn a_flood_of_addresses_does_not_push_out_good_sets() {
        let mut cache = KeyCache::default();
        cache.get("good", 0);
        cache.fetched("good", fetched(None), 0);
        for number in 0..10 * KEY_SETS_MAX {
            let address = format!("bad-{number}");
            assert!(cache.get(&address, 1).fetch);
            cache.fetched(&address, None, 1);
            assert!(cache.0.len() <= KEY_SETS_MAX);
        }
        assert!(cache.get("good", 2).set.is_some());
        let mut busy = KeyCache::default();
        for number in 0..KEY_SETS_MAX {
            assert!(busy.get(&format!("{number}"), 0).fetch);
        }
        assert!(!busy.get("one more", 0).fetch, "all places are being fetched");
    }

    #[test]
    fn max_age_is_read_from_the_header() {
        assert_eq!(max_age_s("public, max-age=19800, must-revalidate"), Some(19_800));
        assert_eq!(max_age_s("Max-Age = 5"), None, "RFC 9111 has no white space there");
        assert_eq!(max_age_s("no-store"), None);
        assert_eq!(max_age_s("max-age=-1"), None);
    }

    proptest! {
        #[test]
        fn any_header_is_a_number_or_nothing(text in ".{0,60}") {
            let _ = max_age_s(&text);
        }

        /// Whatever happens in whatever order, nothing is served beyond its life and the bound holds.
        #[test]
        fn bounds_hold(steps in proptest::collection::vec((0u8..4, 0u64..90, 0u64..20_000), 0..300)) {
            let mut cache = KeyCache::default();
            let mut now = 0;
            let mut ends = HashMap::new();
            for (what, address, later) in steps {
                now += later;
                let address = address.to_string();
                match what {
                    0 => {
                        let lookup = cache.get(&address, now);
                        prop_assert!(lookup.set.is_none() || ends.get(&address).is_some_and(|end| now < *end));
                    }
                    1 => {
                        cache.fetched(&address, fetched(Some(later)), now);
                        ends.insert(address, now + later.clamp(LIFE_S_MIN, KEYS_TTL_S));
                    }
                    2 => cache.fetched(&address, None, now),
                    _ => { cache.unknown_key(&address, now); }
                }
                prop_assert!(cache.0.len() <= KEY_SETS_MAX);
            }
        }
    }
}
