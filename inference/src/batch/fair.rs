//! Fair shares between tenants: who was served least, for its weight, goes first.
//!
//! Each tenant has a virtual time that advances by served tokens over weight (weighted fair queueing: A. Demers, S.
//! Keshav, S. Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", 1989). The common clock advances by
//! served tokens over the weights of all who want service; a tenant that comes back starts at the common clock at
//! least, so that silence earns no credit, and an endless stream of new tenants cannot hold an old one back for ever.

use std::collections::HashMap;

/// Tenants without requests that are remembered because they are ahead of the common clock.
const ABSENT_MAX: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Account {
    time: f64,
    weight: f64,
    /// Requests that wait or run.
    live: usize,
}

/// Virtual times of all tenants with requests.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    accounts: HashMap<u64, Account>,
    clock: f64,
    /// Weights of the tenants with requests.
    weights: f64,
}

impl Fair {
    /// One more request of this tenant; its latest weight counts.
    pub fn join(&mut self, tenant: u64, weight: u32) {
        let (clock, weight) = (self.clock, f64::from(weight.max(1)));
        let account = self.accounts.entry(tenant).or_insert(Account { time: clock, weight, live: 0 });
        if account.live == 0 {
            account.time = account.time.max(clock);
        } else {
            self.weights -= account.weight;
        }
        account.live += 1;
        account.weight = weight;
        self.weights += weight;
    }

    /// A request of this tenant is over.
    pub fn leave(&mut self, tenant: u64) {
        let account = self.accounts.get_mut(&tenant).expect("only who joined leaves");
        account.live -= 1;
        if account.live > 0 {
            return;
        }
        self.weights -= account.weight;
        let clock = self.clock;
        if account.time <= clock {
            self.accounts.remove(&tenant);
        } else if self.accounts.len() > ABSENT_MAX {
            self.accounts.retain(|_, a| a.live > 0 || a.time > clock);
            if self.accounts.values().filter(|a| a.live == 0).count() > ABSENT_MAX {
                self.accounts.retain(|_, a| a.live > 0);
            }
        }
        if self.accounts.values().all(|a| a.live == 0) {
            // No rounding error outlives a quiet moment.
            self.weights = 0.0;
        }
    }

    /// This many tokens were computed for this tenant.
    pub fn charge(&mut self, tenant: u64, tokens: usize) {
        let account = self.accounts.get_mut(&tenant).expect("only who joined is served");
        account.time += tokens as f64 / account.weight;
        self.clock += tokens as f64 / self.weights.max(1.0);
    }

    /// Virtual time and weight.
    pub fn share(&self, tenant: u64) -> (f64, f64) {
        self.accounts.get(&tenant).map_or((self.clock, 1.0), |a| (a.time, a.weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Always serving the smallest time gives everybody its weighted share.
        #[test]
        fn service_follows_weights(weights in proptest::collection::vec(1_u32..8, 2..8), sizes in proptest::collection::vec(1_usize..64, 500)) {
            let mut fair = Fair::default();
            (0..).zip(&weights).for_each(|(tenant, weight)| fair.join(tenant, *weight));
            let mut served = vec![0; weights.len()];
            for size in &sizes {
                let next = (0..weights.len()).min_by(|a, b| fair.share(*a as u64).0.total_cmp(&fair.share(*b as u64).0));
                let next = next.expect("some");
                fair.charge(next as u64, *size);
                served[next] += size;
            }
            let each = sizes.iter().sum::<usize>() as f64 / f64::from(weights.iter().sum::<u32>());
            for (served, weight) in served.iter().zip(&weights) {
                let due = each * f64::from(*weight);
                prop_assert!((*served as f64 - due).abs() <= 64.0 * f64::from(weights.iter().sum::<u32>()), "{served} {due}");
            }
        }

        /// A tenant far ahead of the clock is served again although new tenants keep coming.
        #[test]
        fn newcomers_hold_nobody_back_for_ever(ahead in 1_usize..5000, weight in 1_u32..5) {
            let mut fair = Fair::default();
            fair.join(0, weight);
            fair.join(1, 1);
            fair.charge(0, ahead);
            let mut newest = 1;
            for served in 0.. {
                prop_assert!(served <= 20 * ahead + 20, "still waiting after {served} newcomers");
                if fair.share(0).0 < fair.share(newest).0 {
                    break;
                }
                fair.charge(newest, 10);
                fair.leave(newest);
                newest += 1;
                fair.join(newest, 1);
            }
        }
    }

    #[test]
    fn silence_earns_no_credit_and_absence_is_forgotten() {
        let mut fair = Fair::default();
        fair.join(1, 1);
        fair.charge(1, 100);
        fair.join(2, 1);
        assert_eq!(fair.share(2).0, 100.0);
        fair.charge(2, 50);
        fair.leave(2);
        fair.charge(1, 500);
        fair.join(2, 1);
        assert!(fair.share(2).0 > 150.0);
        fair.leave(1);
        fair.leave(2);
        for tenant in 3..5000 {
            fair.join(tenant, 1);
            fair.join(0, 1);
            fair.charge(tenant, 10);
            fair.leave(tenant);
            fair.leave(0);
        }
        assert!(fair.accounts.len() <= ABSENT_MAX + 2);
    }
}
