//! Day budgets outlive a restart: what was spent is stored about once a minute and at the end.
//!
//! A crash forgives what was spent since the last time. Rates of a minute are not stored: a restart takes a
//! good part of one.

use millrace_proto::digest::{hex, unhex};
use millrace_storage::{Batch, Store};
use serde::{Deserialize, Serialize};

use super::Common;
use crate::clock::unix_ms;

/// Name of the stored value.
const ROW: &str = "limits/day";

/// Subjects that are stored; with more the most spent ones are.
const SUBJECTS_MAX: usize = 20_000;

#[derive(Serialize, Deserialize)]
struct Debt {
    subject: String,
    /// Unix milliseconds at which the budget is whole again.
    whole_ms: u64,
}

/// Takes up what an earlier process has stored.
pub fn resume(store: &Store, common: &Common) {
    let stored = match store.meta(ROW) {
        Ok(stored) => stored,
        Err(error) => return tracing::warn!(%error, "what was spent of day budgets cannot be read: it is forgiven"),
    };
    let debts: Vec<Debt> = stored.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let (now_ms, now_ns) = (unix_ms(), common.now_ns());
    for debt in debts {
        let Some(subject) = unhex(&debt.subject).and_then(|bytes| bytes.try_into().ok()) else { continue };
        let left_ms = debt.whole_ms.saturating_sub(now_ms);
        if left_ms > 0 {
            common.meters.of(&subject).resume_day_debt(now_ns, left_ms.saturating_mul(1_000_000));
        }
    }
}

/// Stores what is spent. Waits for the disk.
pub fn save(store: &Store, common: &Common) {
    let (now_ms, now_ns) = (unix_ms(), common.now_ns());
    let mut debts = common.meters.day_debts(now_ns);
    if debts.is_empty() && !matches!(store.meta(ROW), Ok(Some(_))) {
        return;
    }
    debts.sort_by_key(|(_, debt_ns)| std::cmp::Reverse(*debt_ns));
    debts.truncate(SUBJECTS_MAX);
    let debt =
        |(subject, debt_ns): &([u8; 32], u64)| Debt { subject: hex(subject), whole_ms: now_ms + debt_ns / 1_000_000 };
    let debts: Vec<Debt> = debts.iter().map(debt).collect();
    let mut batch = Batch::new();
    batch.put_meta(ROW, &serde_json::to_vec(&debts).expect("debts are text and numbers"));
    if let Err(error) = store.commit(batch) {
        tracing::warn!(%error, "what was spent of day budgets is not stored");
    }
}

#[cfg(test)]
mod tests {
    use millrace_proto::gcra::Limit;
    use millrace_storage::{BackendKind, StoreOptions};

    use super::*;
    use crate::gateway::meter::Span;

    #[test]
    fn what_was_spent_is_spent_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let options = StoreOptions { backend: BackendKind::Memory, ..StoreOptions::new(folder.path()) };
        let store = Store::open(&options).expect("a store");
        let day = Limit { interval_ns: 1_000_000_000, burst: 1_000 };
        let before = Common::default();
        save(&store, &before);
        assert!(store.meta(ROW).expect("readable").is_none(), "nothing was spent");
        before.meters.of(&[7; 32]).reserve(Span::Day, before.now_ns(), 400, &day).expect("room");
        save(&store, &before);
        let after = Common::default();
        resume(&store, &after);
        let (room, _) = after.meters.of(&[7; 32]).token_room(Span::Day, after.now_ns(), &day);
        assert!((600..=602).contains(&room), "{room}");
        assert_eq!(after.meters.of(&[8; 32]).token_room(Span::Day, after.now_ns(), &day).0, 1_000);
    }
}
