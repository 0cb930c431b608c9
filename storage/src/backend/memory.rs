//! The in-memory engine: the model of what a disk may do to us.
//!
//! It keeps what was synced apart from what was only written, so that a test can pull the plug
//! ([`MemoryBackend::lose_unsynced`]), and it fails on request. It is also the `memory` storage
//! type for trials, where losing everything at exit is what was asked for.

use super::{Cf, Here, KvOp, KvStore, ScanRange, Visit};
use crate::error::KvError;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

type Tables = BTreeMap<Cf, BTreeMap<Vec<u8>, Vec<u8>>>;

/// What the next writes shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    /// Work.
    #[default]
    None,
    /// Fail as a full volume until the fault is cleared.
    NoSpace,
    /// Fail as a broken device until the fault is cleared.
    Io,
    /// Write without making durable: a disk that lies about its sync.
    LostSync,
}

#[derive(Default)]
struct State {
    live: Tables,
    durable: Tables,
    /// Batches applied since `durable` was last equal to `live`.
    unsynced: Vec<Vec<KvOp>>,
    fault: Fault,
    /// After a failed write nothing is taken until `recover`, as RocksDB does.
    broken: bool,
}

/// See the module's text. Share it by `Arc` to reopen a store over the same "disk".
#[derive(Default)]
pub struct MemoryBackend {
    state: Mutex<State>,
}

impl MemoryBackend {
    /// An empty engine.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A power cut: everything that was not synced is gone.
    pub fn lose_unsynced(&self) {
        let mut state = self.lock();
        state.live = state.durable.clone();
        state.unsynced.clear();
    }

    /// A power cut that kept the first `kept` unsynced batches (a log survives as a prefix).
    pub fn lose_unsynced_after(&self, kept: usize) {
        let mut state = self.lock();
        let batches = std::mem::take(&mut state.unsynced);
        let mut tables = state.durable.clone();
        for batch in batches.iter().take(kept) {
            apply_to(&mut tables, batch);
        }
        state.durable = tables.clone();
        state.live = tables;
    }

    /// Says what the next writes shall do.
    pub fn inject(&self, fault: Fault) {
        self.lock().fault = fault;
    }

    /// Changes stored bytes behind the store's back.
    pub fn tamper(&self, cf: Cf, key: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut state = self.lock();
        let Some(mut value) = state.live.get(&cf).and_then(|t| t.get(key)).cloned() else {
            return false;
        };
        change(&mut value);
        let op = [KvOp::Put(cf, key.to_vec(), value)];
        let State { live, durable, .. } = &mut *state;
        apply_to(live, &op);
        apply_to(durable, &op);
        true
    }

    /// Every row, for tests that look at raw bytes.
    #[must_use]
    pub fn dump(&self) -> Vec<(Cf, Vec<u8>, Vec<u8>)> {
        let state = self.lock();
        let mut rows = Vec::new();
        for (cf, table) in &state.live {
            rows.extend(table.iter().map(|(k, v)| (*cf, k.clone(), v.clone())));
        }
        rows
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole batches only, so the data is still consistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn apply_to(tables: &mut Tables, ops: &[KvOp]) {
    for op in ops {
        match op {
            KvOp::Put(cf, key, value) => {
                tables.entry(*cf).or_default().insert(key.clone(), value.clone());
            }
            KvOp::Delete(cf, key) => {
                tables.entry(*cf).or_default().remove(key);
            }
            KvOp::DeleteRange(cf, from, to) => {
                if from < to {
                    let table = tables.entry(*cf).or_default();
                    let doomed: Vec<_> = table
                        .range::<[u8], _>((Bound::Included(&from[..]), Bound::Excluded(&to[..])))
                        .map(|(key, _)| key.clone())
                        .collect();
                    for key in doomed {
                        table.remove(&key);
                    }
                }
            }
        }
    }
}

impl KvStore for MemoryBackend {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.lock().live.get(&cf).and_then(|table| table.get(key)).cloned())
    }

    fn multi_get(&self, cf: Cf, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, KvError> {
        let state = self.lock();
        let table = state.live.get(&cf);
        Ok(keys.iter().map(|key| table.and_then(|t| t.get(key)).cloned()).collect())
    }

    fn scan(&self, cf: Cf, range: ScanRange<'_>, each: Visit<'_>) -> Result<(), KvError> {
        if range.from >= range.to {
            return Ok(());
        }
        let state = self.lock();
        let Some(table) = state.live.get(&cf) else { return Ok(()) };
        let bounds = (Bound::Included(range.from), Bound::Excluded(range.to));
        let rows = table.range::<[u8], _>(bounds);
        let _ = if range.reverse {
            rows.rev().try_for_each(|(key, value)| each(key, value))
        } else {
            let mut rows = rows;
            rows.try_for_each(|(key, value)| each(key, value))
        };
        Ok(())
    }

    fn get_here(&self, cf: Cf, key: &[u8]) -> Result<Here<Option<Vec<u8>>>, KvError> {
        self.get(cf, key).map(Here::Found)
    }

    fn scan_here(&self, cf: Cf, range: ScanRange<'_>, each: Visit<'_>) -> Result<Here<()>, KvError> {
        self.scan(cf, range, each).map(Here::Found)
    }

    fn apply(&self, ops: &[KvOp], sync: bool) -> Result<(), KvError> {
        let mut state = self.lock();
        match state.fault {
            Fault::NoSpace => {
                state.broken = true;
                return Err(KvError::NoSpace("injected: no space left on device".into()));
            }
            Fault::Io => {
                state.broken = true;
                return Err(KvError::Io("injected: input/output error".into()));
            }
            Fault::None | Fault::LostSync => {}
        }
        if state.broken {
            return Err(KvError::Io("not writable until recovered".into()));
        }
        apply_to(&mut state.live, ops);
        if sync && state.fault != Fault::LostSync {
            let State { durable, unsynced, .. } = &mut *state;
            for batch in unsynced.drain(..) {
                apply_to(durable, &batch);
            }
            apply_to(durable, ops);
        } else {
            state.unsynced.push(ops.to_vec());
        }
        Ok(())
    }

    fn recover(&self) -> Result<(), KvError> {
        let mut state = self.lock();
        match state.fault {
            Fault::NoSpace => Err(KvError::NoSpace("injected: no space left on device".into())),
            Fault::Io => Err(KvError::Io("injected: input/output error".into())),
            Fault::None | Fault::LostSync => {
                state.broken = false;
                Ok(())
            }
        }
    }

    fn flush(&self) -> Result<(), KvError> {
        Ok(())
    }

    fn compact(&self, _cf: Cf) -> Result<(), KvError> {
        Ok(())
    }

    fn checkpoint(&self, _path: &Path) -> Result<(), KvError> {
        Err(KvError::Io("the memory storage type has no files to copy; use the rocks storage type".into()))
    }

    fn memory_bytes(&self) -> usize {
        let state = self.lock();
        state.live.values().flat_map(|table| table.iter()).map(|(k, v)| k.len() + v.len()).sum()
    }
}
