//! Sessions, their messages, credentials and named values: the plain reads.

use crate::backend::{Cf, Here, ScanRange};
use crate::error::{Busy, ReadError};
use crate::layout;
use crate::seal::NODE;
use crate::store::{Shared, Store, decode};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{Credential, Message, SessionHead};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Sessions of one user that a listing looks at. A user with more sees the newest of these only;
/// reading the 16-byte rows of so many costs about 10 ms.
pub const USER_SESSIONS_MAX: usize = 50_000;

/// What a turn needs of its session: the head, if there is one, and the newest messages in ascending order.
pub type LoadedSession = (Option<SessionHead>, Vec<Message>);

impl Store {
    /// A session with its newest `limit` messages, if all of it lies in memory: never waits for a disk.
    pub fn load_here(
        &self,
        tenant: TenantId,
        conversation: ConversationId,
        limit: usize,
    ) -> Result<Here<LoadedSession>, ReadError> {
        let shared = self.shared();
        let head = match shared.get_sealed_here(tenant, Cf::Sess, &layout::sess(tenant, conversation))? {
            Here::Found(Some(plain)) => decode::<SessionHead>(Cf::Sess, &plain)?,
            Here::Found(None) => return Ok(Here::Found((None, Vec::new()))),
            Here::Elsewhere => return Ok(Here::Elsewhere),
        };
        let from = layout::msg(tenant, conversation, 0);
        let to = layout::prefix_end(&layout::sess(tenant, conversation));
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let scanned = shared.kv.scan_here(Cf::Msg, ScanRange::backward(&from, &to), &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            if rows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if scanned == Here::Elsewhere {
            return Ok(Here::Elsewhere);
        }
        let mut messages = Vec::with_capacity(rows.len());
        for (key, sealed) in rows.into_iter().rev().take(limit) {
            match shared.open_here(tenant, Cf::Msg, &key, sealed)? {
                Here::Found(plain) => messages.push(decode::<Message>(Cf::Msg, &plain)?),
                // Also what a forgotten user said, whose key nobody opens: a read thread passes over it.
                Here::Elsewhere => return Ok(Here::Elsewhere),
            }
        }
        Ok(Here::Found((Some(head), messages)))
    }

    /// A session with its newest `limit` messages. `done` is called on a read thread.
    pub fn load(
        &self,
        tenant: TenantId,
        conversation: ConversationId,
        limit: usize,
        done: Box<dyn FnOnce(Result<LoadedSession, ReadError>) + Send>,
    ) -> Result<(), Busy> {
        // The pool ends before the store does, so a job holds what is shared and not the store itself.
        let shared = Arc::clone(self.shared());
        self.on_pool(done, move || match shared.session(tenant, conversation)? {
            Some(head) => Ok((Some(head), shared.messages(tenant, conversation, None, limit)?)),
            None => Ok((None, Vec::new())),
        })
    }

    /// The head of a session.
    pub fn session(&self, tenant: TenantId, conversation: ConversationId) -> Result<Option<SessionHead>, ReadError> {
        self.shared().session(tenant, conversation)
    }

    /// The last `limit` messages before `before_seq` (or the end), in ascending order.
    pub fn messages(
        &self,
        tenant: TenantId,
        conversation: ConversationId,
        before_seq: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Message>, ReadError> {
        self.shared().messages(tenant, conversation, before_seq, limit)
    }

    /// A user's sessions, the most recently used first.
    pub fn sessions(&self, tenant: TenantId, user: UserId, limit: usize) -> Result<Vec<SessionHead>, ReadError> {
        let shared = self.shared();
        let from = layout::user_prefix(tenant, user);
        let to = layout::prefix_end(&from);
        let mut found: Vec<(u64, ConversationId)> = Vec::new();
        shared.kv.scan(Cf::UserSess, ScanRange::forward(&from, &to), &mut |key, value| {
            if let (Some(conversation), Some(updated)) = (key.last_chunk(), value.first_chunk()) {
                found.push((u64::from_be_bytes(*updated), ConversationId(*conversation)));
            }
            if found.len() < USER_SESSIONS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.truncate(limit);
        let rows: Vec<Vec<u8>> = found.iter().map(|(_, conversation)| layout::sess(tenant, *conversation)).collect();
        let mut heads = Vec::with_capacity(rows.len());
        for (row, sealed) in rows.iter().zip(shared.kv.multi_get(Cf::Sess, &rows)?) {
            let Some(sealed) = sealed else { continue };
            heads.push(decode::<SessionHead>(Cf::Sess, &shared.open(tenant, Cf::Sess, row, sealed)?)?);
        }
        Ok(heads)
    }

    /// The credential whose secret has this SHA-256.
    pub fn credential(&self, hash: &[u8; 32]) -> Result<Option<Credential>, ReadError> {
        let plain = self.shared().get_sealed(NODE, Cf::Cred, &layout::cred(hash))?;
        plain.map(|plain| decode::<Credential>(Cf::Cred, &plain)).transpose()
    }

    /// Every credential with its hash.
    pub fn credentials(&self) -> Result<Vec<([u8; 32], Credential)>, ReadError> {
        let shared = self.shared();
        let mut rows: Vec<([u8; 32], Vec<u8>)> = Vec::new();
        let to = [u8::MAX; 33];
        shared.kv.scan(Cf::Cred, ScanRange::forward(&[], &to), &mut |key, value| {
            if let Some(hash) = key.last_chunk() {
                rows.push((*hash, value.to_vec()));
            }
            ControlFlow::Continue(())
        })?;
        let mut credentials = Vec::with_capacity(rows.len());
        for (hash, sealed) in rows {
            let plain = shared.open(NODE, Cf::Cred, &layout::cred(&hash), sealed)?;
            credentials.push((hash, decode::<Credential>(Cf::Cred, &plain)?));
        }
        Ok(credentials)
    }

    /// A named value of the node.
    pub fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, ReadError> {
        if name.is_empty() || name.len() > crate::META_NAME_BYTES_MAX {
            return Ok(None);
        }
        self.shared().get_sealed(NODE, Cf::Ctl, &layout::meta(name))
    }

    /// The named values of the node whose names start with `prefix`, ordered by name.
    pub fn metas(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, ReadError> {
        let shared = self.shared();
        let from = layout::meta(prefix);
        let to = layout::prefix_end(&from);
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        shared.kv.scan(Cf::Ctl, ScanRange::forward(&from, &to), &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        let open = |(key, sealed): (Vec<u8>, Vec<u8>)| {
            let name = String::from_utf8_lossy(&key[layout::meta("").len()..]).into_owned();
            Ok((name, shared.open(NODE, Cf::Ctl, &key, sealed)?))
        };
        rows.into_iter().map(open).collect()
    }
}

impl Shared {
    fn session(&self, tenant: TenantId, conversation: ConversationId) -> Result<Option<SessionHead>, ReadError> {
        let plain = self.get_sealed(tenant, Cf::Sess, &layout::sess(tenant, conversation))?;
        plain.map(|plain| decode::<SessionHead>(Cf::Sess, &plain)).transpose()
    }

    fn messages(
        &self,
        tenant: TenantId,
        conversation: ConversationId,
        before_seq: Option<u64>,
        limit: usize,
    ) -> Result<Vec<Message>, ReadError> {
        let from = layout::msg(tenant, conversation, 0);
        let to = match before_seq {
            Some(seq) => layout::msg(tenant, conversation, seq),
            None => layout::prefix_end(&layout::sess(tenant, conversation)),
        };
        let mut messages = Vec::new();
        self.scan_sealed_range(Cf::Msg, ScanRange::backward(&from, &to), limit, |plain| {
            messages.push(decode::<Message>(Cf::Msg, plain)?);
            Ok(ControlFlow::Continue(()))
        })?;
        messages.reverse();
        Ok(messages)
    }
}
