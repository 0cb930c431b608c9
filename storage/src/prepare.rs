//! From typed writes to rows: checks bounds, makes keys, seals values.
//!
//! Runs on the caller's thread. What needs the group's sequence number is left to
//! [`Prepared::add_to`], which the commit thread calls.

use crate::backend::{Cf, KvOp};
use crate::batch::{Batch, MemoryWrite, Op, SpaceWrite};
use crate::error::CommitError;
use crate::layout::{self, DocId};
use crate::memory::{self, Change, Derived};
use crate::seal::TenantKeys;
use crate::store::Shared;
use crate::{EMBEDDING_DIM_MAX, SPACE_TAG_BYTES_MAX, SPACE_TAGS_MAX, VALUE_BYTES_MAX};
use millrace_proto::id::TenantId;
use std::sync::Arc;

/// Sealed rows, and what follows from them in memory.
#[derive(Default)]
pub(crate) struct Prepared {
    ops: Vec<KvOp>,
    spaces: Vec<Change>,
    derived: Vec<Derived>,
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
}

/// Prepares a batch with the keys that are open; gives it back when a tenant has none yet.
pub(crate) fn prepare(shared: &Shared, batch: Batch) -> Result<Result<Prepared, Batch>, CommitError> {
    for tenant in tenants(&batch) {
        if shared.keys.opened(tenant).is_none() {
            return Ok(Err(batch));
        }
    }
    build(shared, batch).map(Ok)
}

/// Prepares a batch on the commit thread, making the keys of new tenants first.
pub(crate) fn prepare_with_new_keys(shared: &Shared, batch: Batch) -> Result<Prepared, CommitError> {
    for tenant in tenants(&batch) {
        shared.keys.find_or_make(&*shared.kv, tenant)?;
    }
    build(shared, batch)
}

fn tenants(batch: &Batch) -> Vec<TenantId> {
    let mut tenants: Vec<TenantId> = batch
        .ops
        .iter()
        .filter_map(|op| match op {
            Op::Put { tenant, .. }
            | Op::Dedup { tenant, .. }
            | Op::Finish { tenant, .. }
            | Op::Forget { tenant, .. }
            | Op::SpaceRemove { tenant, .. }
            | Op::Corpus { tenant, .. } => Some(*tenant),
            Op::Remember(write) => Some(write.tenant),
            Op::SpacePut(write) => Some(write.tenant),
            Op::PutClear { .. } | Op::Delete { .. } | Op::Invalid(_) => None,
        })
        .collect();
    tenants.sort_unstable();
    tenants.dedup();
    tenants
}

fn build(shared: &Shared, batch: Batch) -> Result<Prepared, CommitError> {
    let mut prepared = Prepared { ops: Vec::with_capacity(batch.ops.len()), ..Prepared::default() };
    let mut last: Option<(TenantId, Arc<TenantKeys>)> = None;
    let mut keys_of = |tenant: TenantId| -> Result<Arc<TenantKeys>, CommitError> {
        if let Some((known, keys)) = &last
            && *known == tenant
        {
            return Ok(Arc::clone(keys));
        }
        // Opened a moment ago; it can only be missing if the table of open tenants was just cleared.
        let keys = match shared.keys.opened(tenant) {
            Some(keys) => keys,
            None => shared.keys.find_or_make(&*shared.kv, tenant)?,
        };
        last = Some((tenant, Arc::clone(&keys)));
        Ok(keys)
    };
    for op in batch.ops {
        match op {
            Op::Put { tenant, cf, key, plain } => {
                check_size(plain.len())?;
                let sealed = keys_of(tenant)?.seal(cf, &key, &plain);
                prepared.ops.push(KvOp::Put(cf, key, sealed));
            }
            Op::PutClear { cf, key, value } => prepared.ops.push(KvOp::Put(cf, key, value)),
            Op::Delete { cf, key } => prepared.ops.push(KvOp::Delete(cf, key)),
            Op::Dedup { tenant, scope, key, expires_ms } => {
                let blind = keys_of(tenant)?.blind("dedup", &[scope.as_bytes(), key.as_bytes()]);
                // 0 means "never" in these rows; a caller's 0 is long past and must stay so.
                let expires = expires_ms.max(1).to_be_bytes().to_vec();
                prepared.ops.push(KvOp::Put(Cf::Idem, layout::idem(tenant, blind), expires));
            }
            Op::Finish { tenant, key, receipt } => {
                let keys = keys_of(tenant)?;
                let mut value = receipt.expires_ms.to_be_bytes().to_vec();
                value.extend(keys.seal(Cf::Receipt, &key, &receipt.to_bytes()));
                if receipt.expires_ms != 0 {
                    prepared.ops.push(KvOp::Delete(Cf::Outbox, key.clone()));
                }
                prepared.ops.push(KvOp::Put(Cf::Receipt, key, value));
            }
            Op::Remember(write) => {
                check_memory(&write)?;
                let keys = keys_of(write.tenant)?;
                memory::remember(shared, &keys, write, &mut prepared.ops, &mut prepared.derived)?;
            }
            Op::Forget { tenant, user, conversation, seq } => {
                let keys = keys_of(tenant)?;
                let doc = DocId { conversation, seq };
                memory::forget(shared, &keys, tenant, user, doc, &mut prepared.ops, &mut prepared.derived)?;
            }
            Op::SpacePut(write) => {
                check_space(&write)?;
                let keys = keys_of(write.tenant)?;
                let space = memory::space_key(&keys, &write.space);
                let (row, change) = memory::space_row(&keys, space, write);
                prepared.ops.push(row);
                prepared.spaces.push(change);
            }
            Op::SpaceRemove { tenant, space, id } => {
                let space = memory::space_key(&*keys_of(tenant)?, &space);
                prepared.ops.push(KvOp::Delete(Cf::Space, layout::space(tenant, space, id)));
                prepared.spaces.push(Change { tenant, space, vid: id, written: None });
            }
            Op::Corpus { tenant, corpus, op } => {
                let keys = keys_of(tenant)?;
                crate::corpus::prepare(&keys, tenant, &corpus, op, &mut prepared.ops);
            }
            Op::Invalid(why) => return Err(CommitError::Invalid { why }),
        }
    }
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
