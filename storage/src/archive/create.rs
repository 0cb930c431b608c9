//! Making a backup of a store that is in use.
//!
//! A checkpoint (hard links, a second folder inside the data folder) holds still what is copied. Files of the database
//! never change once they are closed, so a table that the last backup has is not read again; of a log only its own
//! records are read (see `wal`); parts are named after their content, so what a run that was cut off has sent is not
//! sent again. The manifest comes last and makes everything before it a backup. Then older backups go, and after them
//! what no manifest names.

use super::budget::Budget;
use super::keys;
use super::line::Line;
use super::object::{self, Kind};
use super::source::Source;
use super::target::Target;
use super::{
    ArchiveError, at, list_manifests, manifest_name, messages, object_folder, object_name, read_manifest, user_keys,
    wal,
};
use crate::backend::Cf;
use crate::batch::Batch;
use crate::error::ReadError;
use crate::layout::{self, ctl};
use crate::seal::{Kek, Suite};
use crate::store::{BackendKind, Inner, Store};
use millrace_proto::backup::{File, Manifest, OBJECT_BYTES_MAX, ObjectId, Part, TAIL_BYTES, VAULT_FILE, backup_id};
use millrace_proto::digest::{hex, sha256, unhex};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Folder in the data folder for the checkpoint of a running backup.
pub(crate) const CHECKPOINT_FOLDER: &str = "backup.tmp";
/// How often a backup begins anew because the key of keys was renewed meanwhile.
const KEY_TRIES_MAX: u32 = 3;
/// Named values that remember where backups of this store are.
pub(crate) const PLACE: &str = "backup/place/";

/// What a backup did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupDone {
    /// Its name.
    pub id: String,
    /// Bytes of the files in it.
    pub bytes: u64,
    /// Bytes that were sent for it; the rest was in the target already.
    pub bytes_sent: u64,
    /// Files in it.
    pub files: usize,
    /// Every group of writes up to this number is in it.
    pub seq: u64,
    /// Older backups that were removed.
    pub removed: usize,
}

impl Store {
    /// Copies the store to a target while it is in use, and keeps the newest `keep` backups of this data folder there
    /// (0 = all). Blocks for as long as it takes: not for a reactor.
    pub fn backup(&self, target: &dyn Target, keep: usize, budget: &Budget) -> Result<BackupDone, ArchiveError> {
        let inner = self.inner();
        if inner.options.backend == BackendKind::Memory {
            return Err(ArchiveError::NoFiles);
        }
        let _run = inner.archive.begin()?;
        let run = Run {
            inner,
            target,
            budget,
            line: Line::of(inner)?,
            suite: inner.options.suite,
            folder: inner.options.path.join(CHECKPOINT_FOLDER),
        };
        let done = run.make(keep);
        clear(&inner.options.path)?;
        done
    }
}

/// One run.
struct Run<'a> {
    inner: &'a Inner,
    target: &'a dyn Target,
    budget: &'a Budget,
    line: Line,
    suite: Suite,
    folder: PathBuf,
}

/// What is in the target already.
struct There {
    /// Objects of the line and their sizes.
    objects: HashMap<ObjectId, u64>,
    /// Tables of the newest backup.
    tables: HashMap<String, File>,
    /// Its number.
    number: u64,
}

impl Run<'_> {
    fn make(&self, keep: usize) -> Result<BackupDone, ArchiveError> {
        let there = self.look()?;
        let (kek, seq) = self.checkpoint()?;
        let mut sent = 0;
        let mut files = Vec::new();
        let vault = self.inner.options.path.join(VAULT_FILE);
        if vault.exists() {
            files.push(self.file(VAULT_FILE.to_owned(), &vault, &there, &mut sent)?);
        }
        for (name, path) in self.checkpoint_files()? {
            files.push(self.file(name, &path, &there, &mut sent)?);
        }
        // The run holds the archive still: what the checkpoint names is what is named now.
        // Only what lies in this target: what lies elsewhere is read there, and is missed here by every check.
        let (line, place) = (self.line.id, messages::place_id(&self.target.place()));
        let named = messages::named(self.inner, |block| block.line == line && block.place == place)?;
        let mut named: Vec<ObjectId> = named.into_iter().collect();
        named.sort_unstable();
        // First the note: whoever is forgotten from then on is erased there as well.
        self.remember_place()?;
        let slots = self.user_keys()?;
        let manifest = Manifest {
            line: self.line.id,
            number: there.number + 1,
            made_ms: crate::queue::now_ms(),
            schema: layout::SCHEMA,
            seq,
            slots,
            key: keys::fingerprint(&kek),
            wrapped: self.line.key.wrap(&kek, &self.line.id)?,
            public: self.line.key.public(),
            ancestors: self.line.ancestors.clone(),
            files,
            keep: named,
        };
        let name = manifest_name(&self.line.id, manifest.number);
        let bytes = manifest.to_bytes(self.line.key.signing());
        sent += bytes.len() as u64;
        self.target.put_new(&name, bytes, self.budget).map_err(at(self.target, "write", &name))?;
        let removed = self.thin_out(keep, &manifest)?;
        Ok(BackupDone {
            id: manifest.id(),
            bytes: manifest.bytes(),
            bytes_sent: sent,
            files: manifest.files.len(),
            seq,
            removed,
        })
    }

    fn look(&self) -> Result<There, ArchiveError> {
        let numbers = self.numbers()?;
        let objects = self.objects()?.into_iter().filter_map(|(name, bytes)| Some((object_of(&name)?, bytes)));
        let mut there = There {
            objects: objects.collect(),
            tables: HashMap::new(),
            number: numbers.iter().copied().max().unwrap_or(0),
        };
        if there.number > 0 {
            match self.manifest(there.number) {
                Ok(newest) => {
                    let tables = newest.files.into_iter().filter(|file| file.name.ends_with(".sst"));
                    there.tables = tables.map(|file| (file.name.clone(), file)).collect();
                }
                Err(error @ ArchiveError::Damaged { .. }) => {
                    tracing::warn!(%error, "the newest backup is damaged: this one reads every file again");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(there)
    }

    /// Numbers of this line's backups.
    fn numbers(&self) -> Result<Vec<u64>, ArchiveError> {
        let all = list_manifests(self.target)?;
        Ok(all.into_iter().filter(|(line, _)| *line == self.line.id).map(|(_, number)| number).collect())
    }

    fn objects(&self) -> Result<Vec<(String, u64)>, ArchiveError> {
        let folder = object_folder(&self.line.id);
        let objects = self.target.list(&folder).map_err(at(self.target, "list", &folder))?;
        Ok(objects.into_iter().map(|object| (object.name, object.bytes)).collect())
    }

    /// A manifest of this line, signed by its key.
    fn manifest(&self, number: u64) -> Result<Manifest, ArchiveError> {
        let manifest = read_manifest(self.target, &self.line.id, number, self.budget)?;
        if manifest.public != self.line.key.public() {
            return Err(ArchiveError::Damaged {
                object: manifest_name(&self.line.id, number),
                place: self.target.place(),
                why: "it is signed by another key than this store's",
            });
        }
        Ok(manifest)
    }

    /// Makes the checkpoint. Answers with the key of keys that opens it, the same before and after it, and with the
    /// number of the last group before it: all groups up to that are in it.
    fn checkpoint(&self) -> Result<(Kek, u64), ArchiveError> {
        let kv = &self.inner.shared.kv;
        for _ in 0..KEY_TRIES_MAX {
            clear(&self.inner.options.path)?;
            fs::create_dir_all(&self.folder).map_err(ArchiveError::io("make", &self.folder))?;
            let kek = self.inner.shared.keys.master();
            let seq = kv.get(Cf::Ctl, ctl::SEQ).map_err(ReadError::from)?;
            kv.checkpoint(&self.folder.join("db")).map_err(ReadError::from)?;
            if self.inner.shared.keys.is_master(&kek) {
                return Ok((kek, seq.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)));
            }
        }
        Err(ArchiveError::KeyRenewed)
    }

    /// Files of the checkpoint, by the names that they have in a data folder, in order.
    fn checkpoint_files(&self) -> Result<Vec<(String, PathBuf)>, ArchiveError> {
        let folder = self.folder.join("db");
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).map_err(ArchiveError::io("list", &folder))? {
            let path = entry.map_err(ArchiveError::io("list", &folder))?.path();
            let own = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
            files.push((format!("db/{own}"), path));
        }
        files.sort();
        Ok(files)
    }

    /// Sends what is not in the target of a file.
    fn file(&self, name: String, path: &Path, there: &There, sent: &mut u64) -> Result<File, ArchiveError> {
        let used = wal::number(&name).map(|number| wal::used_bytes(path, number)).transpose();
        let used = used.map_err(ArchiveError::io("read", path))?;
        let (bytes, tail) = tail(path, used).map_err(ArchiveError::io("read", path))?;
        if let Some(known) = there.tables.get(&name)
            && (known.bytes, known.tail) == (bytes, tail)
            && known.parts.iter().all(|part| there.holds(part))
        {
            return Ok(known.clone());
        }
        let mut source = Source::open(path, used)?;
        let mut parts = Vec::new();
        loop {
            let plain = source.next(OBJECT_BYTES_MAX, self.budget)?;
            if plain.is_empty() {
                break;
            }
            parts.push(self.part(&plain, there, sent)?);
        }
        Ok(File { name, bytes: source.bytes(), tail, parts })
    }

    fn part(&self, plain: &[u8], there: &There, sent: &mut u64) -> Result<Part, ArchiveError> {
        let id = self.line.key.object_id(Kind::Part as u8, plain);
        let object = object::seal(&self.line.key, self.suite, Kind::Part, &id, plain);
        let part = Part { id, bytes: plain.len() as u64, sha256: sha256(&object) };
        if !there.holds(&part) {
            let name = object_name(&self.line.id, &id);
            *sent += object.len() as u64;
            self.target.put(&name, object, self.budget).map_err(at(self.target, "write", &name))?;
        }
        Ok(part)
    }

    /// Overwrites the target's copy of the user keys and says how many slots it has. Later than the checkpoint, so
    /// every row in that finds its slot, unless its user was forgotten meanwhile.
    fn user_keys(&self) -> Result<u64, ArchiveError> {
        let _copying = self.inner.archive.copy_keys();
        let file = slots(self.inner)?;
        user_keys::write(self.target, &self.line.id, &file, self.budget)?;
        Ok((file.len() / crate::seal::SLOT_BYTES) as u64)
    }

    fn remember_place(&self) -> Result<(), ArchiveError> {
        let place = self.target.place();
        let name = place_name(&place);
        if self.inner.shared.meta(&name)?.is_none() {
            let mut batch = Batch::new();
            batch.put_meta(&name, place.as_bytes());
            self.inner.commit.commit(&self.inner.shared, batch)?;
        }
        Ok(())
    }

    /// Removes backups beyond the newest `keep`, then objects that no manifest of this line names. If a manifest
    /// cannot be read, nobody knows what it names, and no object goes.
    fn thin_out(&self, keep: usize, newest: &Manifest) -> Result<usize, ArchiveError> {
        let mut numbers = self.numbers()?;
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        let kept = if keep == 0 { numbers.len() } else { keep.min(numbers.len()) };
        let (kept, old) = numbers.split_at(kept);
        for number in old {
            let name = manifest_name(&self.line.id, *number);
            self.target.remove(&name).map_err(at(self.target, "remove", &name))?;
        }
        let mut named: HashSet<ObjectId> = newest.parts().map(|part| part.id).collect();
        for number in kept.iter().filter(|number| **number != newest.number) {
            match self.manifest(*number) {
                Ok(manifest) => named.extend(manifest.parts().map(|part| part.id)),
                Err(ArchiveError::Stopped) => return Err(ArchiveError::Stopped),
                Err(error) => {
                    let id = backup_id(&self.line.id, *number);
                    tracing::warn!(%error, id, "an older backup cannot be read: nothing is removed from the target");
                    return Ok(old.len());
                }
            }
        }
        for (name, _) in self.objects()? {
            if object_of(&name).is_none_or(|id| !named.contains(&id)) {
                self.target.remove(&name).map_err(at(self.target, "remove", &name))?;
            }
        }
        Ok(old.len())
    }
}

impl There {
    fn holds(&self, part: &Part) -> bool {
        self.objects.get(&part.id) == Some(&object::sealed_bytes(part.bytes as usize))
    }
}

/// Removes the checkpoint of a run.
pub(crate) fn clear(data: &Path) -> Result<(), ArchiveError> {
    let folder = data.join(CHECKPOINT_FOLDER);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(ArchiveError::io("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// The named value that remembers a place.
pub(crate) fn place_name(place: &str) -> String {
    format!("{PLACE}{}", hex(&sha256(place.as_bytes())[..16]))
}

/// The file of user keys as it is now.
pub(crate) fn slots(inner: &Inner) -> Result<Vec<u8>, ArchiveError> {
    let path = inner.options.path.join(crate::seal::SLOTS_FILE);
    inner.shared.keys.slots_snapshot().map_err(ArchiveError::io("read", path))
}

/// The object that a name in a listing means; `None` for what a crash left unfinished.
pub(crate) fn object_of(name: &str) -> Option<ObjectId> {
    unhex(name.rsplit('/').next()?)?.try_into().ok()
}

/// Size of a file, or of the part up to `end`, and the digest of its last bytes.
fn tail(path: &Path, end: Option<u64>) -> std::io::Result<(u64, [u8; 32])> {
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let bytes = end.map_or(length, |end| end.min(length));
    let start = bytes.saturating_sub(TAIL_BYTES);
    let mut last = vec![0; (bytes - start) as usize];
    file.read_exact_at(&mut last, start)?;
    Ok((bytes, sha256(&last)))
}
