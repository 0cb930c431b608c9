//! Forgetting a user: the rows go, and so does the only key that opens what is left of them in logs, tables, checkpoints
//! and archives.
//!
//! Two syncs. The first batch removes every row of the user and notes which slots hold the keys; then the slots
//! are overwritten. A crash between the two is finished at the next start, before anything is read.

use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::error::{CommitError, ReadError};
use crate::layout::{self, ctl};
use crate::memory;
use crate::seal::{KeyRing, Owner};
use crate::store::Shared;
use millrace_proto::id::ConversationId;
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Families whose keys start with the user.
const BY_USER: [Cf; 8] = [Cf::Mem, Cf::Vec, Cf::Post, Cf::EdgeOut, Cf::EdgeIn, Cf::UserSess, Cf::Pending, Cf::Owned];
/// Families whose keys start with a conversation.
const BY_CONVERSATION: [Cf; 6] = [Cf::Sess, Cf::Msg, Cf::Inbox, Cf::Outbox, Cf::Receipt, Cf::Archive];

/// Forgets a user under the next sequence number. Runs on the commit thread, between two groups.
pub(crate) fn forget(shared: &Shared, seq: u64, owner: Owner) -> Result<(), CommitError> {
    let kv = &*shared.kv;
    let slots = shared.keys.slots_of(kv, owner).map_err(unreadable)?;
    let mut ops = removals(kv, owner).map_err(unreadable)?;
    let note = layout::forget_note(owner.0, owner.1);
    let numbers = slots.iter().flat_map(|slot| slot.to_be_bytes()).collect();
    ops.push(KvOp::Put(Cf::Ctl, note.clone(), numbers));
    ops.push(KvOp::Put(Cf::Ctl, ctl::SEQ.to_vec(), seq.to_be_bytes().to_vec()));
    kv.apply(&ops, true)?;
    shared.keys.close_user(owner);
    shared.memory.forget_user(owner);
    shared.keys.erase(&slots).map_err(|error| CommitError::Io { detail: format!("the file of user keys: {error}") })?;
    // When a crash loses this, the next start only erases the same slots again.
    Ok(kv.apply(&[KvOp::Delete(Cf::Ctl, note)], false)?)
}

/// Ends what a crash cut off.
pub(crate) fn finish(kv: &dyn KvStore, keys: &KeyRing) -> Result<usize, CommitError> {
    let mut notes = Vec::new();
    let to = layout::prefix_end(ctl::FORGET);
    kv.scan(Cf::Ctl, ScanRange::forward(ctl::FORGET, &to), &mut |key, value| {
        notes.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    for (note, value) in &notes {
        let slots: Vec<u64> = value.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect();
        keys.erase(&slots).map_err(|error| CommitError::Io { detail: format!("the file of user keys: {error}") })?;
        kv.apply(&[KvOp::Delete(Cf::Ctl, note.clone())], true)?;
    }
    Ok(notes.len())
}

/// The removal of every row of a user.
fn removals(kv: &dyn KvStore, (tenant, user): Owner) -> Result<Vec<KvOp>, ReadError> {
    let mut ops = Vec::new();
    let prefix = layout::user_prefix(tenant, user);
    let mut conversations: HashSet<ConversationId> = HashSet::new();
    kv.scan(Cf::UserSess, ScanRange::forward(&prefix, &layout::prefix_end(&prefix)), &mut |key, _| {
        conversations.extend(layout::user_sess_parts(key).map(|(_, _, conversation)| conversation));
        ControlFlow::Continue(())
    })?;
    for conversation in &conversations {
        let prefix = layout::sess(tenant, *conversation);
        for cf in BY_CONVERSATION {
            remove_prefix(kv, cf, &prefix, &mut ops)?;
        }
    }
    // Timers are ordered by time, so all of them are looked at; there are few.
    kv.scan(Cf::Timer, ScanRange::forward(&[], &layout::prefix_end(&[u8::MAX])), &mut |key, _| {
        let theirs = layout::tenant_of(Cf::Timer, key) == Some(tenant)
            && layout::conversation_of(Cf::Timer, key).is_some_and(|id| conversations.contains(&id));
        if theirs {
            ops.push(KvOp::Delete(Cf::Timer, key.to_vec()));
        }
        ControlFlow::Continue(())
    })?;
    // Before the list of them goes.
    memory::forget_passages(kv, (tenant, user), &mut ops)?;
    for cf in BY_USER {
        remove_prefix(kv, cf, &prefix, &mut ops)?;
    }
    let from = layout::data_key(tenant, user, 0);
    ops.push(KvOp::DeleteRange(Cf::Key, from, [&layout::data_key(tenant, user, u16::MAX)[..], &[0]].concat()));
    Ok(ops)
}

/// A range is removed by one mark; a mark where nothing lies would only slow later reads.
fn remove_prefix(kv: &dyn KvStore, cf: Cf, prefix: &[u8], ops: &mut Vec<KvOp>) -> Result<(), ReadError> {
    let to = layout::prefix_end(prefix);
    let mut any = false;
    kv.scan(cf, ScanRange::forward(prefix, &to), &mut |_, _| {
        any = true;
        ControlFlow::Break(())
    })?;
    if any {
        ops.push(KvOp::DeleteRange(cf, prefix.to_vec(), to));
    }
    Ok(())
}

fn unreadable(error: ReadError) -> CommitError {
    match error {
        ReadError::Backend(error) => error.into(),
        other => CommitError::Io { detail: other.to_string() },
    }
}
