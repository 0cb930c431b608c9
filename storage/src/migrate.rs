//! Bringing a store of an older schema to this one, when it is opened.
//!
//! A step may be cut off at any point: the schema number changes last, so the next start does the
//! step again from its beginning, and every step gives the same rows however often it runs.

use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::error::{CommitError, KvError, ReadError};
use crate::layout::{self, ctl};
use crate::memory;
use crate::reseal::{self, Sweep};
use crate::seal::KeyRing;
use std::ops::ControlFlow;
use std::path::Path;

/// Rows that are read and rewritten at a time.
const STEP_ROWS: usize = 256;

/// Runs every step from `found` to this program's schema.
pub(crate) fn migrate(kv: &dyn KvStore, keys: &KeyRing, found: u32, segments: Option<&Path>) -> Result<(), ReadError> {
    if found < 2 {
        tracing::info!(from = found, to = 2, "the words of all memories are indexed again by their stems");
        index_words_again(kv, keys)?;
    }
    // Schema 3 puts owner, tags and time before a passage's text and reads passages without them; segments of
    // schema 2 are told by their first bytes and built again. So nothing is rewritten, but an older program
    // must not read what this one writes.
    // It also has the family of corpora.
    if found < 4 {
        tracing::info!(from = found, to = 4, "everything is sealed again under keys of its users");
        seal_by_user(kv, keys)?;
    }
    // Schema 5 adds statements and the messages that wait for them, which older stores do not have; passages of shared
    // spaces that belong to a user are sealed by the user's key and kept out of segment files.
    if found < 5 {
        let passages = memory::own_passages(kv, keys, segments)?;
        if passages > 0 {
            tracing::info!(from = found, to = 5, passages, "passages with an owner are sealed by their owner's key");
            // The old rows would outlive the owner, under a key that stays.
            kv.compact(Cf::Space)?;
        }
    }
    // It also has the family of archived messages: a program that does not know it would take what is in it for lost.
    if found < layout::SCHEMA {
        let row = KvOp::Put(Cf::Ctl, ctl::SCHEMA.to_vec(), layout::SCHEMA.to_be_bytes().to_vec());
        kv.apply(&[row], true)?;
    }
    Ok(())
}

/// Schema 2 indexes stems, schema 1 words without their plural: all of `post` follows from `mem`.
fn index_words_again(kv: &dyn KvStore, keys: &KeyRing) -> Result<(), ReadError> {
    kv.apply(&[KvOp::DeleteRange(Cf::Post, Vec::new(), layout::prefix_end(&[u8::MAX]))], true)?;
    let (mut from, to) = (Vec::new(), layout::prefix_end(&[u8::MAX]));
    loop {
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        kv.scan(Cf::Mem, ScanRange::forward(&from, &to), &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            if rows.len() < STEP_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        from.clone_from(last);
        from.push(0);
        let mut ops = Vec::new();
        for (key, sealed) in rows {
            let (tenant, user, doc) = layout::memory_parts(&key)
                .ok_or_else(|| ReadError::Corrupt { cf: Cf::Mem.name(), why: "a key has the wrong length".into() })?;
            // After a cut-off upgrade some users have keys of their own already; their ids are made as before.
            let keys = match keys.find_user(kv, tenant, user)? {
                Some(keys) => keys,
                None => keys.find(kv, tenant)?.ok_or(ReadError::KeyGone { tenant: tenant.0, epoch: 0 })?,
            };
            let plain = keys.open(Cf::Mem, &key, sealed)?;
            memory::put_words(&keys, (tenant, user, doc), &plain, &mut ops)?;
        }
        kv.apply(&ops, true).map_err(|error: KvError| ReadError::from(error))?;
    }
}

/// Schema 4 seals what a user said by the user's own key; before, the tenant's sealed everything.
fn seal_by_user(kv: &dyn KvStore, keys: &KeyRing) -> Result<(), ReadError> {
    let users = reseal::users_of_conversations(kv)?;
    let sweep = Sweep { kv, keys, tenant: None, users: Some(users) };
    let swept = sweep.run(|rows| {
        let ops: Vec<KvOp> = rows.into_iter().flat_map(|row| row.ops).collect();
        kv.apply(&ops, true)?;
        Ok(ControlFlow::Continue(()))
    });
    let swept = swept.map_err(|error| match error {
        CommitError::NoSpace { detail } => ReadError::Backend(KvError::NoSpace(detail)),
        other => ReadError::Backend(KvError::Io(other.to_string())),
    })?;
    // The old rows would outlive a user who is forgotten, under a key that stays: they leave the files now.
    for cf in reseal::families() {
        kv.compact(cf)?;
    }
    tracing::info!(rows = swept.resealed, "everything is sealed by its user's key");
    Ok(())
}
