//! Passages that belong to a user.
//!
//! They are sealed by their owner's key and never part of a segment file, so that forgetting the owner reaches
//! all that is left of them. In memory they lie apart, by owner, and are compared one by one: a search looks at those
//! of its own user only. The family `owned` lists them twice, for the two questions that are asked: by user
//! (forgetting) and by space (a start).

use super::facts::Group;
use super::row::{Change, read_space_row, space_row};
use super::{Key, Manifest, READ_ROWS, Slot, segment};
use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::batch::SpaceWrite;
use crate::error::{CommitError, KvError, ReadError};
use crate::layout::{self, SpaceKey};
use crate::seal::{Header, KeyRing, NO_USER, Owner, TenantKeys};
use crate::store::Shared;
use millrace_proto::id::{TenantId, UserId};
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::PoisonError;

/// Bytes of zeroes that are written at a time.
const WIPE_BYTES: usize = 64 << 10;

/// Who owns a stored passage, as its envelope says in clear.
pub(super) fn owner_of(sealed: &[u8]) -> Option<UserId> {
    Header::read(sealed).ok().map(|header| header.stamp.owner).filter(|owner| *owner != NO_USER)
}

/// The two rows that list a passage under its owner.
fn listing(tenant: TenantId, space: SpaceKey, owner: UserId, id: u64) -> [Vec<u8>; 2] {
    [layout::owned_by_user(tenant, owner, space, id), layout::owned_in_space(tenant, space, owner, id)]
}

/// Takes the passage that is stored under a number off its owner's list, unless it stays with this owner.
fn unlist(
    kv: &dyn KvStore,
    tenant: TenantId,
    space: SpaceKey,
    id: u64,
    keep: Option<UserId>,
    ops: &mut Vec<KvOp>,
) -> Result<(), KvError> {
    let stored = kv.get(Cf::Space, &layout::space(tenant, space, id))?;
    if let Some(owner) = stored.as_deref().and_then(owner_of).filter(|owner| keep != Some(*owner)) {
        ops.extend(listing(tenant, space, owner, id).map(|row| KvOp::Delete(Cf::Owned, row)));
    }
    Ok(())
}

/// The rows of a passage; `keys` are its owner's, or the tenant's.
pub(crate) fn put_passage(
    kv: &dyn KvStore,
    keys: &TenantKeys,
    space: SpaceKey,
    write: SpaceWrite,
    ops: &mut Vec<KvOp>,
) -> Result<Change, CommitError> {
    let (tenant, id, owner) = (write.tenant, write.id, write.owner);
    unlist(kv, tenant, space, id, owner, ops)?;
    let (row, change) = space_row(keys, space, write);
    ops.push(row);
    for row in owner.into_iter().flat_map(|owner| listing(tenant, space, owner, id)) {
        ops.push(KvOp::Put(Cf::Owned, row, Vec::new()));
    }
    Ok(change)
}

/// Removes the rows of a passage.
pub(crate) fn remove_passage(
    kv: &dyn KvStore,
    tenant: TenantId,
    space: SpaceKey,
    id: u64,
    ops: &mut Vec<KvOp>,
) -> Result<Change, CommitError> {
    unlist(kv, tenant, space, id, None, ops)?;
    ops.push(KvOp::Delete(Cf::Space, layout::space(tenant, space, id)));
    Ok(Change { tenant, space, vid: id, written: None })
}

/// Removes the rows of all passages of a user, but not the user's own list of them.
pub(crate) fn forget_passages(kv: &dyn KvStore, (tenant, user): Owner, ops: &mut Vec<KvOp>) -> Result<(), ReadError> {
    let prefix = layout::user_prefix(tenant, user);
    let mut listed = Vec::new();
    kv.scan(Cf::Owned, ScanRange::forward(&prefix, &layout::prefix_end(&prefix)), &mut |key, _| {
        listed.extend(layout::owned_parts(key));
        ControlFlow::Continue(())
    })?;
    for some in listed.chunks(READ_ROWS) {
        let rows: Vec<Vec<u8>> = some.iter().map(|(space, id)| layout::space(tenant, *space, *id)).collect();
        for (((space, id), row), stored) in some.iter().zip(&rows).zip(kv.multi_get(Cf::Space, &rows)?) {
            ops.push(KvOp::Delete(Cf::Owned, layout::owned_in_space(tenant, *space, user, *id)));
            if stored.as_deref().and_then(owner_of) == Some(user) {
                ops.push(KvOp::Delete(Cf::Space, row.clone()));
            }
        }
    }
    Ok(())
}

impl Shared {
    /// Brings the passages of users into the index of a space, apart from those that changed since the load began.
    pub(super) fn load_owned(&self, (tenant, space): Key, slot: &Slot) -> Result<(), ReadError> {
        let mut from = layout::space_prefix(tenant, space);
        let to = layout::prefix_end(&from);
        loop {
            let mut listed: Vec<(UserId, u64)> = Vec::new();
            let mut last = Vec::new();
            self.kv.scan(Cf::Owned, ScanRange::forward(&from, &to), &mut |key, _| {
                listed.extend(layout::owned_parts(key).map(|(user, id)| (UserId(user), id)));
                last = key.to_vec();
                if listed.len() < READ_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let rows: Vec<Vec<u8>> = listed.iter().map(|(_, id)| layout::space(tenant, space, *id)).collect();
            for (((user, id), row), sealed) in listed.iter().zip(&rows).zip(self.kv.multi_get(Cf::Space, &rows)?) {
                let Some(sealed) = sealed.filter(|sealed| owner_of(sealed) == Some(*user)) else { continue };
                let plain = match self.open(tenant, Cf::Space, row, sealed) {
                    Err(ReadError::Forgotten { .. }) => continue,
                    other => other?,
                };
                let indexed = read_space_row(&plain)?.indexed;
                let mut index = slot.index.write().unwrap_or_else(PoisonError::into_inner);
                if !index.changed.contains_key(id) {
                    index.put_owned(*user, *id, indexed);
                }
            }
            if listed.len() < READ_ROWS {
                return Ok(());
            }
            from = [&last[..], &[0]].concat();
        }
    }
}

/// Schema 5: passages with an owner get the owner's seal and their lists, and the segment files that hold their vectors are
/// overwritten and given up. Says how many were found under the tenant's seal. Done again from the beginning it
/// changes nothing twice: what has the owner's seal only names its space.
pub(crate) fn own_passages(kv: &dyn KvStore, keys: &KeyRing, segments: Option<&Path>) -> Result<usize, ReadError> {
    let mut spaces: HashSet<Key> = HashSet::new();
    let (mut count, mut from, to) = (0, Vec::new(), layout::prefix_end(&[u8::MAX]));
    loop {
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        kv.scan(Cf::Space, ScanRange::forward(&from, &to), &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            if rows.len() < READ_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let Some((last, _)) = rows.last() else { break };
        from = [&last[..], &[0]].concat();
        let mut ops = Vec::new();
        for (row, sealed) in rows {
            let corrupt = || ReadError::Corrupt { cf: Cf::Space.name(), why: "a key has the wrong length".into() };
            let tenant = layout::tenant_of(Cf::Space, &row).ok_or_else(corrupt)?;
            let space: SpaceKey = row.get(6..22).and_then(|id| id.try_into().ok()).ok_or_else(corrupt)?;
            let id = layout::tail_u64(&row).ok_or_else(corrupt)?;
            if owner_of(&sealed).is_some() {
                spaces.insert((tenant, space));
                continue;
            }
            let tenants = keys.find(kv, tenant)?.ok_or(ReadError::KeyGone { tenant: tenant.0, epoch: 0 })?;
            let plain = zeroize::Zeroizing::new(tenants.open(Cf::Space, &row, sealed)?);
            let Group { owner: Some(owner), .. } = read_space_row(&plain)?.indexed.group else { continue };
            spaces.insert((tenant, space));
            count += 1;
            let own = keys.find_or_make_user(kv, tenant, owner).map_err(unwritten)?;
            let sealed = own.seal(Cf::Space, &row, &plain);
            ops.push(KvOp::Put(Cf::Space, row, sealed));
            ops.extend(listing(tenant, space, owner, id).map(|row| KvOp::Put(Cf::Owned, row, Vec::new())));
        }
        kv.apply(&ops, true)?;
    }
    for (tenant, space) in spaces {
        let manifest = layout::segment_manifest(tenant, space);
        let named = kv.get(Cf::Ctl, &manifest)?.and_then(|bytes| Manifest::from_bytes(&bytes)).unwrap_or_default();
        for (file, _) in named.0 {
            if let Some(folder) = segments {
                wipe(&segment::path_of(folder, &file)).map_err(|error| {
                    ReadError::Backend(KvError::Io(format!("a segment file cannot be overwritten: {error}")))
                })?;
            }
        }
        // The rows are the truth: the space is searched exactly until its next segments are built.
        kv.apply(&[KvOp::Delete(Cf::Ctl, manifest)], true)?;
    }
    Ok(count)
}

fn unwritten(error: CommitError) -> ReadError {
    match error {
        CommitError::NoSpace { detail } => ReadError::Backend(KvError::NoSpace(detail)),
        other => ReadError::Backend(KvError::Io(other.to_string())),
    }
}

/// Overwrites a file with zeroes and removes it; one that is not there is fine.
fn wipe(path: &Path) -> io::Result<()> {
    let mut file: File = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut left = file.metadata()?.len();
    let zeroes = [0; WIPE_BYTES];
    while left > 0 {
        let some = left.min(WIPE_BYTES as u64);
        file.write_all(&zeroes[..some as usize])?;
        left -= some;
    }
    file.sync_all()?;
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{SpaceFilter, SpaceQuery};
    use crate::{Batch, MemoryBackend, Store, StoreOptions};
    use std::sync::Arc;

    const T: TenantId = TenantId(1);

    fn write(id: u64, owner: Option<UserId>) -> SpaceWrite {
        SpaceWrite {
            tenant: T,
            space: "notes".into(),
            id,
            text: format!("note {id}"),
            embedding: vec![1.0, 0.0],
            owner,
            tags: Vec::new(),
            at_ms: 1,
        }
    }

    /// A store of schema 4 kept passages with an owner under the tenant's key and in segment files.
    #[test]
    fn an_upgrade_gives_passages_to_their_owners_and_wipes_the_segments() {
        let folder = tempfile::tempdir().unwrap();
        let segments = folder.path().join("segments");
        std::fs::create_dir_all(&segments).unwrap();
        let kv = Arc::new(MemoryBackend::new());
        let options = StoreOptions::new(folder.path());
        let store = Store::open_on(&options, kv.clone()).unwrap();
        let ada = UserId::of(T, "ada");
        let mut batch = Batch::new();
        batch.put_space(write(1, None));
        store.commit(batch).unwrap();
        // As the older program wrote it.
        let shared = store.shared();
        let tenants = shared.keys.find(&*kv, T).unwrap().unwrap();
        let space = super::super::space_key(&tenants, "notes");
        let (KvOp::Put(cf, row, sealed), _) = space_row(&tenants, space, write(2, Some(ada))) else { panic!("a put") };
        kv.apply(&[KvOp::Put(cf, row.clone(), sealed)], true).unwrap();
        let file = [9; 16];
        std::fs::write(segment::path_of(&segments, &file), b"vectors of ada").unwrap();
        let manifest = layout::segment_manifest(T, space);
        kv.apply(&[KvOp::Put(Cf::Ctl, manifest.clone(), Manifest(vec![(file, 1)]).to_bytes())], true).unwrap();
        for _ in 0..2 {
            own_passages(&*kv, &shared.keys, Some(&segments)).unwrap();
            assert_eq!(owner_of(&kv.get(Cf::Space, &row).unwrap().unwrap()), Some(ada));
            assert_eq!(kv.get(Cf::Ctl, &manifest).unwrap(), None);
            assert!(!segment::path_of(&segments, &file).exists());
        }
        let found = |user: Option<UserId>| -> Vec<u64> {
            let filter = SpaceFilter { user, ..SpaceFilter::default() };
            let query = SpaceQuery { tenant: T, space: "notes".into(), embedding: vec![1.0, 0.0], limit: 9, filter };
            shared.search_space(&query).unwrap().into_iter().map(|hit| hit.id).collect()
        };
        assert_eq!((found(None), found(Some(ada))), (vec![1], vec![1, 2]));
    }
}
