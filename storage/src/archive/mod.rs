//! Backups: a store's files as sealed objects in a folder or an object store.
//!
//! Sans-network: the target is a trait ([`Target`]), a folder is here, other targets are the shell's. One run at a time
//! copies, under a budget of bytes a second; it may be stopped or killed at any point, and the next run goes on.
//!
//! ```text
//! manifests/LINE/NUMBER    one for each backup, signed; the last object of a backup
//! objects/LINE/ID          sealed parts of files, named after their content, shared by backups
//! keys/LINE/NNNNN          the copy of the user keys, overwritten (see `user_keys`)
//! archive/LINE/ID          messages that have left the store (see `messages` and `index`)
//! ```
//! The key of keys is in none of them. Sealed vector segments are not copied: they are derived, and a restored store
//! answers by comparing all rows until they are built again.

mod budget;
mod create;
mod error;
mod index;
mod keys;
mod line;
mod messages;
mod object;
mod read;
mod restore;
mod source;
mod target;
mod user_keys;
mod wal;

pub use budget::{Budget, Stopped};
pub use create::BackupDone;
pub use error::ArchiveError;
pub use messages::{ArchiveDone, ArchiveRule};
pub use read::{ArchiveFilter, Archived, OpenPlace};
pub use restore::{BackupChecked, BackupListed, BackupReader, BackupSummary};
pub use target::{Folder, Object, Target, TargetError};

use crate::batch::Batch;
use crate::error::ReadError;
use crate::layout;
use crate::seal::NODE;
use crate::store::{Shared, Store};
use keys::LineKey;
use line::LineFile;
use millrace_proto::backup::{LineId, MANIFEST_BYTES_MAX, Manifest, ObjectId};
use millrace_proto::digest::{hex, unhex};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Named values that say that a target's copy of the user keys may hold a key that was erased.
const DUE: &str = "backup/due/";

/// What may be under way once.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    running: AtomicBool,
    /// Held from the reading of the user keys until they are in the target: an older state never overwrites a newer
    /// one.
    keys: Mutex<()>,
}

/// Ends the run when it is dropped.
struct Run<'a>(&'a Runs);

impl Runs {
    fn begin(&self) -> Result<Run<'_>, ArchiveError> {
        if self.running.swap(true, SeqCst) { Err(ArchiveError::Running) } else { Ok(Run(self)) }
    }

    fn copy_keys(&self) -> MutexGuard<'_, ()> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.0.running.store(false, SeqCst);
    }
}

impl Shared {
    /// A named value of the node.
    fn meta(&self, name: &str) -> Result<Option<Vec<u8>>, ReadError> {
        self.get_sealed(NODE, crate::Cf::Ctl, &layout::meta(name))
    }
}

/// A note that a user is being forgotten; see [`Store::backup_keys_due`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct KeysDue(String);

impl Store {
    /// Every place that holds copies of this store's user keys, as [`Target::place`] named it: where it was backed up
    /// to, and what it was restored from.
    pub fn backup_places(&self) -> Result<Vec<String>, ArchiveError> {
        let stored = self.metas(create::PLACE)?;
        let own = stored.into_iter().filter_map(|(_, place)| String::from_utf8(place).ok());
        let ancestors = LineFile::read(&self.inner().options.path)?.ancestors.into_iter();
        let all: BTreeSet<String> = own.chain(ancestors.map(|ancestor| ancestor.place)).collect();
        Ok(all.into_iter().collect())
    }

    /// Adds to a batch the note that a user is about to be forgotten. Commit it before [`Store::forget_user`], and
    /// once that has ended, give the note to [`Store::renew_backup_keys`]; a start finds notes that were left in
    /// [`Store::backup_keys_noted`]. `salt` tells two notes apart.
    pub fn backup_keys_due(batch: &mut Batch, salt: [u8; 16]) -> KeysDue {
        let name = format!("{DUE}{}", hex(&salt));
        batch.put_meta(&name, b"");
        KeysDue(name)
    }

    /// Notes whose copies were not overwritten before the process ended.
    pub fn backup_keys_noted(&self) -> Result<Vec<KeysDue>, ArchiveError> {
        Ok(self.metas(DUE)?.into_iter().map(|(name, _)| KeysDue(name)).collect())
    }

    /// Overwrites a target's copies of the user keys with what they are now: this store's own, and in those of the
    /// stores that it was restored from whatever is erased here. Blocks while it writes.
    pub fn renew_backup_keys(&self, target: &dyn Target, budget: &Budget) -> Result<(), ArchiveError> {
        let inner = self.inner();
        let file = LineFile::read(&inner.options.path)?;
        let _copying = inner.archive.copy_keys();
        let slots = create::slots(inner)?;
        let place = target.place();
        // Where this store has never been, nothing is to be overwritten.
        let known = inner.shared.meta(&create::place_name(&place))?.is_some();
        let own = file.line.filter(|_| known);
        let ancestors: Vec<_> = file.ancestors.iter().filter(|ancestor| ancestor.place == place).collect();
        if (own.is_some() || !ancestors.is_empty()) && !user_keys::any(target)? {
            return Err(ArchiveError::Away { place });
        }
        if let Some(line) = own {
            user_keys::write(target, &line, &slots, budget)?;
        }
        for ancestor in ancestors {
            user_keys::erase(target, &ancestor.line, ancestor.slots, &slots, budget)?;
        }
        Ok(())
    }

    /// Removes notes, after all places were renewed that [`Store::backup_places`] names.
    pub fn backup_keys_renewed(&self, notes: &[KeysDue]) -> Result<(), ArchiveError> {
        let mut batch = Batch::new();
        notes.iter().for_each(|note| batch.remove_meta(&note.0));
        self.commit(batch)?;
        Ok(())
    }

    /// Removes what a backup that was cut off left in the data folder. For the start of a process.
    pub fn clear_backup_leftovers(&self) -> Result<(), ArchiveError> {
        let _run = self.inner().archive.begin()?;
        create::clear(&self.inner().options.path)
    }
}

/// A target's error, with what was tried on which object.
fn at<'a>(target: &'a dyn Target, act: &'static str, object: &'a str) -> impl FnOnce(TargetError) -> ArchiveError + 'a {
    move |source| match source {
        TargetError::Stopped => ArchiveError::Stopped,
        TargetError::NotFound => ArchiveError::Missing { object: object.to_owned(), place: target.place() },
        source => ArchiveError::Target { act, object: object.to_owned(), place: target.place(), source },
    }
}

/// What is wrong with an object.
fn damaged<'a>(target: &'a dyn Target, object: &'a str) -> impl FnOnce(&'static str) -> ArchiveError + 'a {
    move |why| ArchiveError::Damaged { object: object.to_owned(), place: target.place(), why }
}

fn manifest_name(line: &LineId, number: u64) -> String {
    // Wide enough that names sort as numbers.
    format!("{MANIFESTS}/{}/{number:08}", hex(line))
}

const MANIFESTS: &str = "manifests";

fn object_folder(line: &LineId) -> String {
    format!("objects/{}", hex(line))
}

fn object_name(line: &LineId, id: &ObjectId) -> String {
    format!("{}/{}", object_folder(line), hex(id))
}

/// Line and number of every manifest in a target, in order.
fn list_manifests(target: &dyn Target) -> Result<Vec<(LineId, u64)>, ArchiveError> {
    let objects = target.list(MANIFESTS).map_err(at(target, "list", MANIFESTS))?;
    let mut found: Vec<(LineId, u64)> = objects.iter().filter_map(|object| parse_name(&object.name)).collect();
    found.sort_unstable();
    Ok(found)
}

fn parse_name(name: &str) -> Option<(LineId, u64)> {
    let (line, number) = name.strip_prefix(MANIFESTS)?.strip_prefix('/')?.split_once('/')?;
    let line = unhex(line)?.try_into().ok()?;
    let number = number.parse().ok()?;
    (manifest_name(&line, number) == name).then_some((line, number))
}

/// Reads the manifest that a name promises.
fn read_manifest(target: &dyn Target, line: &LineId, number: u64, budget: &Budget) -> Result<Manifest, ArchiveError> {
    let name = manifest_name(line, number);
    let bytes = target.get(&name, MANIFEST_BYTES_MAX, budget).map_err(at(target, "read", &name))?;
    let manifest = Manifest::read(&bytes).map_err(damaged(target, &name))?;
    if manifest.line != *line || manifest.number != number {
        return Err(damaged(target, &name)("it is the manifest of another backup"));
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_manifests_read_back_and_others_are_none() {
        let name = manifest_name(&[0xab; 16], 42);
        assert_eq!(parse_name(&name), Some(([0xab; 16], 42)));
        for other in ["manifests/x/1", "manifests/", "other", &format!("{name}.part"), &name.replace("00000042", "42")]
        {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }

    #[test]
    fn one_run_at_a_time() {
        let runs = Runs::default();
        let run = runs.begin().unwrap();
        assert!(matches!(runs.begin(), Err(ArchiveError::Running)));
        drop(run);
        assert!(runs.begin().is_ok());
    }
}
