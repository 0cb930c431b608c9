//! Bringing rows to the newest keys: after a rotation while serving, and once when an old store is opened.
//!
//! The sweep reads pages of rows, seals again what is not under its owner's newest key, and hands that on. While
//! serving, the commit thread writes it, and only where the row is still the one that was read: the sweep never
//! undoes a write that came meanwhile. It may be cut off at any point and starts again from the beginning; rows that
//! are done already cost a look at their header.

use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::error::{CommitError, ReadError};
use crate::layout;
use crate::memory::EDGE_BYTES;
use crate::seal::{Header, KeyRing, NO_USER, NODE, Owner, TenantKeys};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Families whose values are sealed, and where the sealed part starts.
const SEALED: [(Cf, usize); 13] = [
    (Cf::Ctl, 0),
    (Cf::Sess, 0),
    (Cf::Msg, 0),
    (Cf::Inbox, 0),
    (Cf::Outbox, 0),
    (Cf::Receipt, 8),
    (Cf::Timer, 0),
    (Cf::Cred, 0),
    (Cf::Mem, 0),
    (Cf::Vec, 0),
    (Cf::Space, 0),
    (Cf::Corpus, 0),
    // The words of a statement; other edges hold none.
    (Cf::EdgeOut, EDGE_BYTES),
];
/// Rows looked at in one step; the engine's view is held no longer than copying them takes.
const STEP_ROWS: usize = 256;
/// Bytes copied in one step.
const STEP_BYTES: usize = 1 << 20;

/// Key and value.
type Row = (Vec<u8>, Vec<u8>);

/// Writes that hold only as long as a row is what it was when it was read.
pub(crate) struct Guarded {
    pub cf: Cf,
    pub key: Vec<u8>,
    /// The row as it was read.
    pub old: Vec<u8>,
    pub ops: Vec<KvOp>,
    /// Whether this is a row brought to newer keys, for the counter of those.
    pub reseals: bool,
}

impl Guarded {
    /// A row that was sealed again.
    fn reseal(cf: Cf, key: Vec<u8>, old: Vec<u8>, new: Vec<u8>) -> Self {
        let ops = vec![KvOp::Put(cf, key.clone(), new)];
        Self { cf, key, old, ops, reseals: true }
    }

    pub fn bytes(&self) -> usize {
        self.ops.iter().map(KvOp::bytes).sum()
    }

    /// The writes, if the row is still the one that was read and nothing in `ops` touches it.
    pub fn into_ops_if_unchanged(self, kv: &dyn KvStore, ops: &[KvOp]) -> Option<Vec<KvOp>> {
        let touched = ops.iter().any(|op| match op {
            KvOp::Put(cf, key, _) | KvOp::Delete(cf, key) => *cf == self.cf && *key == self.key,
            KvOp::DeleteRange(cf, from, to) => *cf == self.cf && *from <= self.key && self.key < *to,
        });
        let unchanged = || kv.get(self.cf, &self.key).is_ok_and(|now| now.as_ref() == Some(&self.old));
        (!touched && unchanged()).then_some(self.ops)
    }
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    pub looked_at: u64,
    pub resealed: u64,
}

/// Whose rows are swept, and how an owner's keys are found.
pub(crate) struct Sweep<'a> {
    pub kv: &'a dyn KvStore,
    pub keys: &'a KeyRing,
    /// `None` = everybody's.
    pub tenant: Option<TenantId>,
    /// Users of conversations, for rows of schemas 1 to 3, which do not say whose they are.
    pub users: Option<HashMap<(TenantId, ConversationId), UserId>>,
}

impl Sweep<'_> {
    /// Walks all sealed families. `write` gets what was sealed again, page by page, and says whether to go on.
    pub fn run(
        &self,
        mut write: impl FnMut(Vec<Guarded>) -> Result<ControlFlow<()>, CommitError>,
    ) -> Result<Swept, CommitError> {
        let mut swept = Swept::default();
        for (cf, offset) in SEALED {
            let mut from = Vec::new();
            loop {
                let rows = self.page(cf, &from)?;
                let Some((last, _)) = rows.last() else { break };
                from.clone_from(last);
                from.push(0);
                swept.looked_at += rows.len() as u64;
                let mut done = Vec::new();
                for (key, old) in rows {
                    done.extend(self.row(cf, offset, key, old)?);
                }
                swept.resealed += done.len() as u64;
                if write(done)?.is_break() {
                    return Ok(swept);
                }
            }
        }
        Ok(swept)
    }

    fn page(&self, cf: Cf, from: &[u8]) -> Result<Vec<Row>, CommitError> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let to = layout::prefix_end(&[u8::MAX]);
        self.kv.scan(cf, ScanRange::forward(from, &to), &mut |key, value| {
            bytes += key.len() + value.len();
            rows.push((key.to_vec(), value.to_vec()));
            if rows.len() < STEP_ROWS && bytes < STEP_BYTES {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(rows)
    }

    fn row(&self, cf: Cf, offset: usize, key: Vec<u8>, old: Vec<u8>) -> Result<Option<Guarded>, CommitError> {
        let tenant = match cf {
            Cf::Ctl if !key.starts_with(layout::ctl::META) => return Ok(None),
            Cf::Ctl | Cf::Cred => Some(NODE),
            Cf::EdgeOut if old.len() <= EDGE_BYTES => return Ok(None),
            _ => layout::tenant_of(cf, &key),
        };
        let Some(tenant) = tenant.filter(|tenant| self.tenant.is_none_or(|wanted| wanted == *tenant)) else {
            return Ok(None);
        };
        // A damaged row stays as it is: whoever reads it is told, and a sweep must not stop at it.
        let (Some((before, sealed)), Ok(header)) =
            (old.split_at_checked(offset), Header::read(old.get(offset..).unwrap_or_default()))
        else {
            tracing::warn!(family = cf.name(), "a row has no envelope and was left as it is");
            return Ok(None);
        };
        let user = if header.version == 1 { self.user_of(cf, tenant, &key) } else { header.stamp.owner };
        let Some(keys) = self.keys_of((tenant, user))? else { return Ok(None) };
        if header.is_current(keys.suite(), keys.stamp()) {
            return Ok(None);
        }
        match keys.open(cf, &key, sealed.to_vec()) {
            Ok(plain) => {
                let plain = zeroize::Zeroizing::new(plain);
                let new = [before, &keys.seal(cf, &key, &plain)].concat();
                Ok(Some(Guarded::reseal(cf, key, old, new)))
            }
            Err(error) => {
                tracing::warn!(family = cf.name(), %error, "a row does not open and was left as it is");
                Ok(None)
            }
        }
    }

    fn keys_of(&self, (tenant, user): Owner) -> Result<Option<Arc<TenantKeys>>, CommitError> {
        if self.users.is_some() && user != NO_USER {
            return self.keys.adopt_user(self.kv, tenant, user).map(Some);
        }
        self.keys.find_user(self.kv, tenant, user).map_err(|error| match error {
            ReadError::Backend(error) => error.into(),
            other => CommitError::Io { detail: other.to_string() },
        })
    }

    fn user_of(&self, cf: Cf, tenant: TenantId, key: &[u8]) -> UserId {
        if matches!(cf, Cf::Mem | Cf::Vec) {
            return layout::memory_parts(key).map_or(NO_USER, |(_, user, _)| user);
        }
        let conversation = layout::conversation_of(cf, key);
        let known = |conversation| self.users.as_ref()?.get(&(tenant, conversation)).copied();
        conversation.and_then(known).unwrap_or(NO_USER)
    }
}

/// Which user each listed conversation belongs to.
pub(crate) fn users_of_conversations(
    kv: &dyn KvStore,
) -> Result<HashMap<(TenantId, ConversationId), UserId>, ReadError> {
    let mut users = HashMap::new();
    let to = layout::prefix_end(&[u8::MAX]);
    kv.scan(Cf::UserSess, ScanRange::forward(&[], &to), &mut |key, _| {
        if let Some((tenant, user, conversation)) = layout::user_sess_parts(key) {
            users.insert((tenant, conversation), user);
        }
        ControlFlow::Continue(())
    })?;
    Ok(users)
}

/// Families that a sweep rewrites, to be compacted when the old rows must leave the files.
pub(crate) fn families() -> impl Iterator<Item = Cf> {
    SEALED.into_iter().map(|(cf, _)| cf)
}
