//! From typed writes to rows: checks bounds, makes keys, seals values.
//!
//! Runs on the caller's thread. What needs the group's sequence number is left to
//! [`Prepared::add_to`], which the commit thread calls.

use crate::backend::{Cf, KvOp};
use crate::batch::{Batch, MemoryWrite, Op, SpaceWrite};
use crate::error::CommitError;
use crate::layout::{self, DocId};
use crate::memory::{self, Change, Derived};
use crate::seal::{Header, KeyRing, NO_USER, Owner, TenantKeys};
use crate::store::Shared;
use crate::{EMBEDDING_DIM_MAX, SPACE_TAG_BYTES_MAX, SPACE_TAGS_MAX, VALUE_BYTES_MAX};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use std::sync::Arc;

/// Sealed rows, and what follows from them in memory.
#[derive(Default)]
pub(crate) struct Prepared {
    ops: Vec<KvOp>,
    spaces: Vec<Change>,
    derived: Vec<Derived>,
    /// The keys that sealed, and how many users had been forgotten before.
    keys: Vec<Arc<TenantKeys>>,
    forgotten: u64,
}

impl Prepared {
    /// Adds the rows to a group.
    pub fn add_to(self, seq: u64, ops: &mut Vec<KvOp>, derived: &mut Vec<Derived>) {
        ops.extend(self.ops);
        derived.extend(self.derived);
        for change in self.spaces {
            ops.push(change.log_row(seq));
            derived.push(Derived::Space(change));
        }
    }

    /// Whether a key of this batch was erased while it waited. Its rows could never be opened.
    pub fn outlived_its_keys(&self, ring: &KeyRing) -> bool {
        let still = |keys: &Arc<TenantKeys>| {
            keys.owner().1 == NO_USER || ring.opened(keys.owner()).is_some_and(|now| Arc::ptr_eq(&now, keys))
        };
        ring.forgotten() != self.forgotten && !self.keys.iter().all(still)
    }
}

/// Prepares a batch with the keys that are open; gives it back when an owner has none yet.
pub(crate) fn prepare(shared: &Shared, batch: Batch) -> Result<Result<Prepared, Batch>, CommitError> {
    let forgotten = shared.keys.forgotten();
    let owners = owners(shared, &batch)?;
    let mut keys = Vec::with_capacity(owners.all.len());
    for owner in &owners.all {
        match shared.keys.opened(*owner) {
            Some(opened) => keys.push(opened),
            None => return Ok(Err(batch)),
        }
    }
    build(shared, batch, &owners, keys, forgotten).map(Ok)
}

/// Prepares a batch on the commit thread, making the keys of new owners first.
pub(crate) fn prepare_with_new_keys(shared: &Shared, batch: Batch) -> Result<Prepared, CommitError> {
    let forgotten = shared.keys.forgotten();
    let owners = owners(shared, &batch)?;
    let keys = shared.keys.find_or_make_all(&*shared.kv, &owners.all)?;
    build(shared, batch, &owners, keys, forgotten)
}

/// Whose keys a batch needs.
struct Owners {
    /// Ascending, each once.
    all: Vec<Owner>,
    conversations: Vec<((TenantId, ConversationId), UserId)>,
}

impl Owners {
    fn of(&self, tenant: TenantId, cf: Cf, key: &[u8]) -> Owner {
        let user = layout::conversation_of(cf, key).and_then(|id| self.user_of((tenant, id)).ok());
        (tenant, user.unwrap_or(NO_USER))
    }

    /// Conversations are sorted, each once: most batches have one, and a batch of many arrivals has many. The error is
    /// the place where the conversation would be.
    fn user_of(&self, conversation: (TenantId, ConversationId)) -> Result<UserId, usize> {
        self.conversations.binary_search_by_key(&conversation, |(known, _)| *known).map(|at| self.conversations[at].1)
    }
}

fn owners(shared: &Shared, batch: &Batch) -> Result<Owners, CommitError> {
    let known = batch.users.iter().map(|(tenant, conversation, user)| ((*tenant, *conversation), *user));
    let mut conversations: Vec<_> = known.rev().collect();
    // What was said last counts: the order of equals is kept, and the first of them stays.
    conversations.sort_by_key(|(conversation, _)| *conversation);
    conversations.dedup_by_key(|(conversation, _)| *conversation);
    let mut owners = Owners { all: Vec::with_capacity(batch.ops.len()), conversations };
    for op in &batch.ops {
        let owner = match op {
            Op::Put { tenant, cf, key, .. } => conversation_owner(shared, &mut owners, *tenant, *cf, key)?,
            Op::Finish { tenant, key, .. } => conversation_owner(shared, &mut owners, *tenant, Cf::Receipt, key)?,
            Op::Remember(write) => (write.tenant, write.user),
            Op::Forget { tenant, user, .. } => (*tenant, *user),
            Op::Extracted(write) => {
                // Before a key is made for a user who was forgotten meanwhile.
                memory::check_pending(&*shared.kv, write)?;
                (write.tenant, write.user)
            }
            Op::SpacePut(write) => {
                // The space's name is blinded by the tenant's keys, whoever owns the passage.
                owners.all.push((write.tenant, NO_USER));
                (write.tenant, write.owner.unwrap_or(NO_USER))
            }
            Op::Dedup { tenant, .. } | Op::SpaceRemove { tenant, .. } | Op::Corpus { tenant, .. } => (*tenant, NO_USER),
            Op::PutClear { .. } | Op::Delete { .. } | Op::Invalid(_) => continue,
        };
        owners.all.push(owner);
    }
    owners.all.sort_unstable();
    owners.all.dedup();
    Ok(owners)
}

/// The owner of what is written in a conversation. A batch that does not bring the session asks the stored one, whose
/// envelope says it in clear.
fn conversation_owner(
    shared: &Shared,
    owners: &mut Owners,
    tenant: TenantId,
    cf: Cf,
    key: &[u8],
) -> Result<Owner, CommitError> {
    let Some(conversation) = layout::conversation_of(cf, key) else { return Ok((tenant, NO_USER)) };
    let place = match owners.user_of((tenant, conversation)) {
        Ok(user) => return Ok((tenant, user)),
        Err(place) => place,
    };
    let stored = shared.kv.get(Cf::Sess, &layout::sess(tenant, conversation))?;
    let user = stored.and_then(|sealed| Header::read(&sealed).ok()).map_or(NO_USER, |header| header.stamp.owner);
    owners.conversations.insert(place, ((tenant, conversation), user));
    Ok((tenant, user))
}

fn build(
    shared: &Shared,
    batch: Batch,
    owners: &Owners,
    keys: Vec<Arc<TenantKeys>>,
    forgotten: u64,
) -> Result<Prepared, CommitError> {
    let mut prepared = Prepared { ops: Vec::with_capacity(batch.ops.len()), forgotten, ..Prepared::default() };
    let keys_of = |owner: Owner| -> &TenantKeys {
        let at = owners.all.binary_search(&owner).expect("every owner of the batch was listed");
        &keys[at]
    };
    for op in batch.ops {
        match op {
            Op::Put { tenant, cf, key, plain } => {
                check_size(plain.len())?;
                let sealed = keys_of(owners.of(tenant, cf, &key)).seal(cf, &key, &plain);
                prepared.ops.push(KvOp::Put(cf, key, sealed));
            }
            Op::PutClear { cf, key, value } => prepared.ops.push(KvOp::Put(cf, key, value)),
            Op::Delete { cf, key } => prepared.ops.push(KvOp::Delete(cf, key)),
            Op::Dedup { tenant, scope, key, expires_ms } => {
                let blind = keys_of((tenant, NO_USER)).blind("dedup", &[scope.as_bytes(), key.as_bytes()]);
                // 0 means "never" in these rows; a caller's 0 is long past and must stay so.
                let expires = expires_ms.max(1).to_be_bytes().to_vec();
                prepared.ops.push(KvOp::Put(Cf::Idem, layout::idem(tenant, blind), expires));
            }
            Op::Finish { tenant, key, receipt } => {
                let keys = keys_of(owners.of(tenant, Cf::Receipt, &key));
                let mut value = receipt.expires_ms.to_be_bytes().to_vec();
                value.extend(keys.seal(Cf::Receipt, &key, &receipt.to_bytes()));
                if receipt.expires_ms != 0 {
                    prepared.ops.push(KvOp::Delete(Cf::Outbox, key.clone()));
                }
                prepared.ops.push(KvOp::Put(Cf::Receipt, key, value));
            }
            Op::Remember(write) => {
                check_memory(&write)?;
                let keys = keys_of((write.tenant, write.user));
                memory::remember(shared, keys, write, &mut prepared.ops, &mut prepared.derived)?;
            }
            Op::Forget { tenant, user, conversation, seq } => {
                let keys = keys_of((tenant, user));
                let doc = DocId { conversation, seq };
                memory::forget(shared, keys, tenant, user, doc, &mut prepared.ops, &mut prepared.derived)?;
            }
            Op::Extracted(write) => {
                let keys = keys_of((write.tenant, write.user));
                memory::extracted(keys, write, &mut prepared.ops, &mut prepared.derived)?;
            }
            Op::SpacePut(write) => {
                check_space(&write)?;
                let space = memory::space_key(keys_of((write.tenant, NO_USER)), &write.space);
                let keys = keys_of((write.tenant, write.owner.unwrap_or(NO_USER)));
                let change = memory::put_passage(&*shared.kv, keys, space, write, &mut prepared.ops)?;
                prepared.spaces.push(change);
            }
            Op::SpaceRemove { tenant, space, id } => {
                let space = memory::space_key(keys_of((tenant, NO_USER)), &space);
                let change = memory::remove_passage(&*shared.kv, tenant, space, id, &mut prepared.ops)?;
                prepared.spaces.push(change);
            }
            Op::Corpus { tenant, corpus, op } => {
                let keys = keys_of((tenant, NO_USER));
                crate::corpus::prepare(keys, tenant, &corpus, op, &mut prepared.ops);
            }
            Op::Invalid(why) => return Err(CommitError::Invalid { why }),
        }
    }
    prepared.keys = keys;
    Ok(prepared)
}

fn check_size(bytes: usize) -> Result<(), CommitError> {
    if bytes > VALUE_BYTES_MAX {
        let why = format!("a value has {bytes} bytes, the bound is {VALUE_BYTES_MAX}");
        return Err(CommitError::Invalid { why });
    }
    Ok(())
}

fn check_embedding(embedding: &[f32]) -> Result<(), CommitError> {
    if embedding.len() > EMBEDDING_DIM_MAX {
        let why = format!("an embedding has {} numbers, the bound is {EMBEDDING_DIM_MAX}", embedding.len());
        return Err(CommitError::Invalid { why });
    }
    if let Some(at) = embedding.iter().position(|x| !x.is_finite()) {
        return Err(CommitError::Invalid { why: format!("number {at} of an embedding is {}", embedding[at]) });
    }
    if let Some(at) = embedding.iter().position(|x| x.abs() > f32::from(half::f16::MAX)) {
        let why = format!("number {at} of an embedding is {}, vectors hold numbers up to 65504", embedding[at]);
        return Err(CommitError::Invalid { why });
    }
    Ok(())
}

fn check_memory(write: &MemoryWrite) -> Result<(), CommitError> {
    check_size(write.text.len())?;
    check_embedding(&write.embedding)
}

fn check_space(write: &SpaceWrite) -> Result<(), CommitError> {
    check_size(write.text.len())?;
    check_embedding(&write.embedding)?;
    if write.embedding.is_empty() {
        let why = format!("passage {} of a shared space has no embedding", write.id);
        return Err(CommitError::Invalid { why });
    }
    if write.tags.len() > SPACE_TAGS_MAX || write.tags.iter().any(|tag| tag.len() > SPACE_TAG_BYTES_MAX) {
        let why = format!(
            "passage {} has more than {SPACE_TAGS_MAX} tags or one longer than {SPACE_TAG_BYTES_MAX} bytes",
            write.id
        );
        return Err(CommitError::Invalid { why });
    }
    Ok(())
}
