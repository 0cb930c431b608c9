//! Reading backups: what a target holds, whether it is whole, and a data folder made of it.

use super::budget::Budget;
use super::keys::{self, LineKey};
use super::line::{LINE_FILE, LineFile};
use super::object::{self, Kind};
use super::target::Target;
use super::{
    ArchiveError, at, damaged, list_manifests, manifest_name, messages, object_name, read_manifest, user_keys,
};
use crate::layout;
use crate::seal::{Kek, KeySource, SLOTS_FILE, sync_folder};
use millrace_proto::backup::{ANCESTORS_MAX, Ancestor, File, LineId, Manifest, OBJECT_BYTES_MAX, Part, backup_id};
use millrace_proto::digest::{hex, sha256};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a manifest says of its backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSummary {
    /// Its name.
    pub id: String,
    /// When it was made, in Unix milliseconds.
    pub made_ms: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Its files.
    pub files: usize,
    /// Layout of its rows.
    pub schema: u32,
    /// Every group of writes up to this number is in it.
    pub seq: u64,
    /// Fingerprint of the key of keys that it needs.
    pub key: String,
}

impl BackupSummary {
    fn of(manifest: &Manifest) -> Self {
        Self {
            id: manifest.id(),
            made_ms: manifest.made_ms,
            bytes: manifest.bytes(),
            files: manifest.files.len(),
            schema: manifest.schema,
            seq: manifest.seq,
            key: hex(&manifest.key),
        }
    }
}

/// A backup in a listing.
#[derive(Debug)]
pub struct BackupListed {
    /// Its name.
    pub id: String,
    /// What it says, or why it cannot be read.
    pub state: Result<BackupSummary, ArchiveError>,
}

/// What a check or a restore went through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupChecked {
    /// The backup.
    pub summary: BackupSummary,
    /// Sealed objects that were read and opened.
    pub objects: usize,
}

/// Reads the backups of a target with the key of keys.
pub struct BackupReader<'a> {
    target: &'a dyn Target,
    keks: Vec<Kek>,
}

impl<'a> BackupReader<'a> {
    /// Every backup that a target holds, by data folder and number. Needs no key: what is said is as true as the
    /// target is honest, until it is verified.
    pub fn list(target: &dyn Target) -> Result<Vec<BackupListed>, ArchiveError> {
        let budget = Budget::new(0);
        let read = |(line, number): (LineId, u64)| {
            let state = read_manifest(target, &line, number, &budget);
            BackupListed { id: backup_id(&line, number), state: state.map(|manifest| BackupSummary::of(&manifest)) }
        };
        Ok(list_manifests(target)?.into_iter().map(read).collect())
    }

    /// Reads with the key of keys from `source`.
    pub fn new(target: &'a dyn Target, source: &KeySource, key_file: &Path) -> Result<Self, ArchiveError> {
        let found = source.read(key_file).map_err(ArchiveError::Key)?;
        let (kek, other) = found.ok_or_else(|| ArchiveError::NoKey(key_file.to_owned()))?;
        Ok(Self { target, keks: [Some(kek), other].into_iter().flatten().collect() })
    }

    /// Reads every object of a backup and writes nothing.
    pub fn verify(&self, wanted: Option<&str>, budget: &Budget) -> Result<BackupChecked, ArchiveError> {
        let (manifest, key) = self.open(wanted, budget)?;
        user_keys::read(self.target, &manifest.line, manifest.slots, budget)?;
        let mut seen = HashSet::new();
        for part in manifest.parts() {
            if seen.insert(part.id) {
                self.part(&manifest, &key, part, budget)?;
            }
        }
        for id in &manifest.keep {
            let name = messages::name(&manifest.line, id);
            let bytes_max = object::sealed_bytes(OBJECT_BYTES_MAX);
            let object = self.target.get(&name, bytes_max, budget).map_err(at(self.target, "read", &name))?;
            object::open(&key, Kind::Messages, id, object)
                .map_err(|object::Damaged(why)| damaged(self.target, &name)(why))?;
        }
        Ok(BackupChecked { summary: BackupSummary::of(&manifest), objects: seen.len() + manifest.keep.len() })
    }

    /// Makes a data folder of a backup. `into` must be empty or not there; until everything is written and synced
    /// the folder has another name beside it.
    pub fn restore(&self, wanted: Option<&str>, into: &Path, budget: &Budget) -> Result<BackupChecked, ArchiveError> {
        check_empty(into)?;
        let (manifest, key) = self.open(wanted, budget)?;
        let slots = user_keys::read(self.target, &manifest.line, manifest.slots, budget)?;
        let folder = unfinished(into)?;
        let written = self.write(&manifest, &key, &slots, &folder, budget).and_then(|objects| {
            fs::rename(&folder, into).map_err(ArchiveError::io("put the restored folder in the place of", into))?;
            sync_folder(into).map_err(ArchiveError::io("sync the folder of", into))?;
            Ok(objects)
        });
        if written.is_err() {
            // A full disk gets its space back; what is left of a killed restore has a name that says so.
            let _ = fs::remove_dir_all(&folder);
        }
        Ok(BackupChecked { summary: BackupSummary::of(&manifest), objects: written? })
    }

    fn write(
        &self,
        manifest: &Manifest,
        key: &LineKey,
        slots: &[u8],
        folder: &Path,
        budget: &Budget,
    ) -> Result<usize, ArchiveError> {
        let database = folder.join("db");
        fs::DirBuilder::new().mode(0o700).create(&database).map_err(ArchiveError::io("make", &database))?;
        let mut objects = 0;
        for file in &manifest.files {
            self.write_file(manifest, key, file, &folder.join(&file.name), budget)?;
            objects += file.parts.len();
        }
        write_new(&folder.join(SLOTS_FILE), |out| out.write_all(slots))?;
        let mut ancestors = vec![Ancestor {
            line: manifest.line,
            slots: (slots.len() / crate::seal::SLOT_BYTES) as u64,
            place: self.target.place(),
        }];
        ancestors.extend(manifest.ancestors.iter().cloned());
        ancestors.truncate(ANCESTORS_MAX);
        LineFile { line: None, ancestors }.write(folder)?;
        sync_folder(&database.join("CURRENT")).map_err(ArchiveError::io("sync", &database))?;
        sync_folder(&folder.join(LINE_FILE)).map_err(ArchiveError::io("sync", folder))?;
        Ok(objects)
    }

    fn write_file(
        &self,
        manifest: &Manifest,
        key: &LineKey,
        file: &File,
        path: &Path,
        budget: &Budget,
    ) -> Result<(), ArchiveError> {
        let mut failed = None;
        let written = write_new(path, |out| {
            for part in &file.parts {
                match self.part(manifest, key, part, budget) {
                    Ok(plain) => out.write_all(&plain)?,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                }
            }
            Ok(())
        });
        failed.map_or(written, Err)
    }

    /// A part, checked in every way: size and digest of the object, its seal, its name.
    fn part(&self, manifest: &Manifest, key: &LineKey, part: &Part, budget: &Budget) -> Result<Vec<u8>, ArchiveError> {
        let name = object_name(&manifest.line, &part.id);
        let expected = object::sealed_bytes(part.bytes as usize);
        let object = self.target.get(&name, expected, budget).map_err(at(self.target, "read", &name))?;
        if object.len() as u64 != expected {
            return Err(damaged(self.target, &name)("it was cut off"));
        }
        if sha256(&object) != part.sha256 {
            return Err(damaged(self.target, &name)("its digest does not fit: it was changed"));
        }
        object::open(key, Kind::Part, &part.id, object).map_err(|object::Damaged(why)| damaged(self.target, &name)(why))
    }

    /// The manifest of a backup (`None` = the newest) and the key that opens its objects.
    fn open(&self, wanted: Option<&str>, budget: &Budget) -> Result<(Manifest, LineKey), ArchiveError> {
        let (line, number) = self.choose(wanted)?;
        let manifest = read_manifest(self.target, &line, number, budget)?;
        let id = manifest.id();
        if manifest.schema > layout::SCHEMA {
            return Err(ArchiveError::NewerSchema { id, found: manifest.schema, supported: layout::SCHEMA });
        }
        let key = self.keks.iter().find_map(|kek| LineKey::unwrap(kek, &manifest.line, &manifest.wrapped));
        let Some(key) = key else {
            let found = keys::fingerprint(&self.keks[0]);
            if self.keks.iter().any(|kek| keys::fingerprint(kek) == manifest.key) {
                return Err(damaged(self.target, &manifest_name(&line, number))("its key does not open"));
            }
            return Err(ArchiveError::WrongKey { id, needed: hex(&manifest.key), found: hex(&found) });
        };
        if key.public() != manifest.public {
            let forged = "it is not signed by the key of its line: it was forged";
            return Err(damaged(self.target, &manifest_name(&line, number))(forged));
        }
        Ok((manifest, key))
    }

    fn choose(&self, wanted: Option<&str>) -> Result<(LineId, u64), ArchiveError> {
        let all = list_manifests(self.target)?;
        let place = || self.target.place();
        if let Some(wanted) = wanted {
            let mut same = all.into_iter().filter(|(line, number)| backup_id(line, *number) == wanted);
            let found =
                same.next().ok_or_else(|| ArchiveError::NoBackup { place: place(), which: format!(" {wanted}") })?;
            return match same.next() {
                None => Ok(found),
                Some(other) => Err(ArchiveError::Ambiguous {
                    place: place(),
                    ids: format!("{} and {}", hex(&found.0), hex(&other.0)),
                }),
            };
        }
        let newest: BTreeMap<LineId, u64> = all.into_iter().collect();
        match newest.len() {
            0 => Err(ArchiveError::NoBackup { place: place(), which: String::new() }),
            1 => Ok(newest.into_iter().next().expect("there is one")),
            _ => {
                let ids: Vec<String> = newest.iter().map(|(line, number)| backup_id(line, *number)).collect();
                Err(ArchiveError::Ambiguous { place: place(), ids: ids.join(", ") })
            }
        }
    }
}

fn check_empty(folder: &Path) -> Result<(), ArchiveError> {
    let mut entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(ArchiveError::io("look into", folder))?,
    };
    if entries.next().is_none() { Ok(()) } else { Err(ArchiveError::NotEmpty(folder.to_owned())) }
}

/// An empty folder beside `into`, on the same file system.
fn unfinished(into: &Path) -> Result<PathBuf, ArchiveError> {
    let mut name = into.file_name().map(|name| name.to_owned()).unwrap_or_else(|| "data".into());
    name.push(format!(".restoring-{}", std::process::id()));
    let folder = into.parent().unwrap_or(Path::new("")).join(name);
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.map_err(ArchiveError::io("make", &folder))?;
    check_empty(&folder)?;
    Ok(folder)
}

/// Writes a private file durably.
fn write_new(path: &Path, content: impl FnOnce(&mut fs::File) -> std::io::Result<()>) -> Result<(), ArchiveError> {
    let written = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        content(&mut file)?;
        file.sync_all()
    };
    written().map_err(ArchiveError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Folder;
    use crate::archive::line::Line;
    use crate::{Store, StoreOptions};

    /// A backup whose manifest was changed and signed again, by its own key or another.
    fn changed(change: impl FnOnce(&mut Manifest), signed_by: Option<LineKey>) -> ArchiveError {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(folder.path().join("data"));
        let store = Store::open(&options).unwrap();
        let target = Folder::new(folder.path().join("target"));
        let budget = Budget::new(0);
        store.backup(&target, 0, &budget).unwrap();
        let line = Line::of(store.inner()).unwrap();
        let mut manifest = read_manifest(&target, &line.id, 1, &budget).unwrap();
        let reader = BackupReader::new(&target, &KeySource::File, &options.key_file).unwrap();
        reader.verify(None, &budget).unwrap();
        change(&mut manifest);
        let bytes = manifest.to_bytes(signed_by.unwrap_or(line.key).signing());
        target.put(&manifest_name(&line.id, 1), bytes, &budget).unwrap();
        let into = folder.path().join("restored");
        let error = reader.restore(None, &into, &budget).unwrap_err();
        assert!(!into.exists());
        assert_eq!(reader.verify(None, &budget).unwrap_err().to_string(), error.to_string());
        error
    }

    #[test]
    fn a_newer_schema_is_refused_before_anything_is_written() {
        let error = changed(|manifest| manifest.schema = layout::SCHEMA + 1, None);
        assert!(matches!(error, ArchiveError::NewerSchema { found, .. } if found == layout::SCHEMA + 1), "{error}");
    }

    #[test]
    fn a_manifest_of_another_signer_is_forged() {
        let other = || LineKey::new([9; 32]);
        let error = changed(|manifest| manifest.public = other().public(), Some(other()));
        assert!(error.to_string().contains("forged"), "{error}");
        let error = changed(|_| {}, Some(other()));
        assert!(error.to_string().contains("signature"), "{error}");
        let error = changed(|manifest| manifest.number = 2, None);
        assert!(error.to_string().contains("another backup"), "{error}");
    }

    #[test]
    fn more_slots_than_the_copy_has_are_missing() {
        let error = changed(|manifest| manifest.slots += 1, None);
        assert!(matches!(error, ArchiveError::Missing { .. }), "{error}");
    }
}
