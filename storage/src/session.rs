//! Sessions, their messages, credentials and named values: the plain reads.

use crate::backend::{Cf, ScanRange};
use crate::error::ReadError;
use crate::layout;
use crate::seal::NODE;
use crate::store::{Store, decode};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{Credential, Message, SessionHead};
use std::ops::ControlFlow;

/// Sessions of one user that a listing looks at. A user with more sees the newest of these only;
/// reading the 16-byte rows of so many costs about 10 ms.
pub const USER_SESSIONS_MAX: usize = 50_000;

impl Store {
    /// The head of a session.
    pub fn session(&self, tenant: TenantId, conversation: ConversationId) -> Result<Option<SessionHead>, ReadError> {
        let plain = self.shared().get_sealed(tenant, Cf::Sess, &layout::sess(tenant, conversation))?;
        plain.map(|plain| decode::<SessionHead>(Cf::Sess, &plain)).transpose()
    }

    /// The last `limit` messages before `before_seq` (or the end), in ascending order.
    pub fn messages(
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
        self.shared().scan_sealed_range(Cf::Msg, ScanRange::backward(&from, &to), limit, |plain| {
            messages.push(decode::<Message>(Cf::Msg, plain)?);
            Ok(ControlFlow::Continue(()))
        })?;
        messages.reverse();
        Ok(messages)
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
        let mut heads = Vec::with_capacity(found.len());
        for (_, conversation) in found {
            heads.extend(self.session(tenant, conversation)?);
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
