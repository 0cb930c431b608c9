//! Where sealed objects lie: the seam to a folder or an object store.
//!
//! Nothing above it knows paths, buckets or sockets. Names are relative and ours: letters, digits, `-`, `.` and `/`.

use super::budget::{Budget, PIECE_BYTES, Stopped};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a target did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is no such object.
    #[error("it is not there")]
    NotFound,
    /// An object of this name is there already.
    #[error("it is there already")]
    Exists,
    /// The target is full.
    #[error("the target has no space left ({0})")]
    NoSpace(String),
    /// It was asked to stop.
    #[error("it was asked to stop")]
    Stopped,
    /// Anything else, in the words of the target.
    #[error("{0}")]
    Failed(String),
}

impl From<Stopped> for TargetError {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its whole name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// Holds objects. What a call answers with `Ok` is durable.
pub trait Target: Send + Sync {
    /// Where it is, for people and for finding it again: a URL without secrets.
    fn place(&self) -> String;

    /// Writes an object whole, in the place of an older one.
    fn put(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError>;

    /// Writes an object whole, or says [`TargetError::Exists`].
    fn put_new(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError>;

    /// Reads an object of at most `bytes_max`.
    fn get(&self, name: &str, bytes_max: u64, budget: &Budget) -> Result<Vec<u8>, TargetError>;

    /// Reads a part of an object.
    fn get_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, TargetError>;

    /// Everything below a folder (its name without a `/` at the end), in no order.
    fn list(&self, folder: &str) -> Result<Vec<Object>, TargetError>;

    /// Removes an object; one that is not there is no error.
    fn remove(&self, name: &str) -> Result<(), TargetError>;
}

/// Ends the name of a file that is not written to its end yet. What a crash leaves is written over or removed later.
const UNFINISHED: &str = ".part";
/// Written bytes are pushed to the disk in steps of this size, so that the sync at the end is short.
const SYNC_EVERY: usize = 1 << 20;

/// A folder, on this machine or mounted.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The target in `root`, which is made with the first object.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Writes the file beside its place and syncs it.
    fn write(&self, name: &str, bytes: &[u8], budget: &Budget) -> Result<(PathBuf, PathBuf), TargetError> {
        let path = self.root.join(name);
        let unfinished = self.root.join(format!("{name}{UNFINISHED}"));
        let folder = path.parent().expect("an object lies below the root");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let written = write_synced(&unfinished, bytes, budget);
        if written.is_err() {
            // A full target gets its space back.
            let _ = fs::remove_file(&unfinished);
        }
        written.map(|()| (unfinished, path))
    }
}

fn write_synced(path: &Path, bytes: &[u8], budget: &Budget) -> Result<(), TargetError> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    for step in bytes.chunks(SYNC_EVERY) {
        for piece in step.chunks(PIECE_BYTES) {
            budget.spend(piece.len() as u64)?;
            file.write_all(piece).map_err(failed)?;
        }
        file.sync_data().map_err(failed)?;
    }
    file.sync_all().map_err(failed)?;
    // Nobody reads it soon: the page cache is for the database.
    let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    Ok(())
}

fn failed(error: io::Error) -> TargetError {
    match error.kind() {
        ErrorKind::NotFound => TargetError::NotFound,
        ErrorKind::AlreadyExists => TargetError::Exists,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => TargetError::NoSpace(error.to_string()),
        _ => TargetError::Failed(error.to_string()),
    }
}

fn sync_folder_of(path: &Path) -> Result<(), TargetError> {
    crate::seal::sync_folder(path).map_err(failed)
}

impl Target for Folder {
    fn place(&self) -> String {
        format!("file://{}", self.root.display())
    }

    fn put(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError> {
        let (unfinished, path) = self.write(name, &bytes, budget)?;
        fs::rename(&unfinished, &path).map_err(failed)?;
        sync_folder_of(&path)
    }

    fn put_new(&self, name: &str, bytes: Vec<u8>, budget: &Budget) -> Result<(), TargetError> {
        let (unfinished, path) = self.write(name, &bytes, budget)?;
        // A link never replaces, which a rename would. File systems without links get the next best.
        match fs::hard_link(&unfinished, &path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists && !path.exists() => {
                fs::rename(&unfinished, &path).map_err(failed)?;
            }
            linked => {
                let _ = fs::remove_file(&unfinished);
                linked.map_err(failed)?;
            }
        }
        sync_folder_of(&path)
    }

    fn get(&self, name: &str, bytes_max: u64, budget: &Budget) -> Result<Vec<u8>, TargetError> {
        let file = File::open(self.root.join(name)).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length > bytes_max {
            return Err(TargetError::Failed(format!("it has {length} bytes, at most {bytes_max} are expected")));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let mut at = 0;
        for piece in bytes.chunks_mut(PIECE_BYTES) {
            budget.spend(piece.len() as u64)?;
            file.read_exact_at(piece, at).map_err(failed)?;
            at += piece.len() as u64;
        }
        Ok(bytes)
    }

    fn get_range(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>, TargetError> {
        let file = File::open(self.root.join(name)).map_err(failed)?;
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
        Ok(bytes)
    }

    fn list(&self, folder: &str) -> Result<Vec<Object>, TargetError> {
        let mut found = Vec::new();
        let mut open = vec![folder.to_owned()];
        while let Some(name) = open.pop() {
            let entries = match fs::read_dir(self.root.join(&name)) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                other => other.map_err(failed)?,
            };
            for entry in entries {
                let entry = entry.map_err(failed)?;
                // A name that is not text is none of ours.
                let Ok(own) = entry.file_name().into_string() else { continue };
                let name = format!("{name}/{own}");
                let about = match entry.metadata() {
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    other => other.map_err(failed)?,
                };
                if about.is_dir() {
                    open.push(name);
                } else {
                    found.push(Object { name, bytes: about.len() });
                }
            }
        }
        Ok(found)
    }

    fn remove(&self, name: &str) -> Result<(), TargetError> {
        match fs::remove_file(self.root.join(name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_whole_private_and_listed() {
        let folder = tempfile::tempdir().unwrap();
        let target = Folder::new(folder.path().join("target"));
        let budget = Budget::new(0);
        assert_eq!(target.list("a").unwrap(), []);
        assert_eq!(target.get("a/b", 10, &budget), Err(TargetError::NotFound));
        target.put("a/b/one", vec![1; PIECE_BYTES + 1], &budget).unwrap();
        target.put("a/b/one", vec![2; 3], &budget).unwrap();
        target.put_new("a/two", b"two".to_vec(), &budget).unwrap();
        assert_eq!(target.put_new("a/two", b"other".to_vec(), &budget), Err(TargetError::Exists));
        assert_eq!(target.get("a/b/one", 3, &budget).unwrap(), [2; 3]);
        assert!(matches!(target.get("a/b/one", 2, &budget), Err(TargetError::Failed(_))));
        assert_eq!(target.get_range("a/two", 1..3).unwrap(), b"wo");
        assert!(target.get_range("a/two", 1..9).is_err());
        let mut listed = target.list("a").unwrap();
        listed.sort_by(|one, other| one.name.cmp(&other.name));
        let listed: Vec<(&str, u64)> = listed.iter().map(|object| (object.name.as_str(), object.bytes)).collect();
        assert_eq!(listed, [("a/b/one", 3), ("a/two", 3)], "nothing unfinished is left");
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(folder.path().join("target/a/two")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        target.remove("a/two").unwrap();
        target.remove("a/two").unwrap();
        assert_eq!(target.list("a").unwrap().len(), 1);
    }

    #[test]
    fn a_stop_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = Folder::new(folder.path());
        let budget = Budget::new(0);
        budget.stop();
        assert_eq!(target.put("a/b", vec![0; 9], &budget), Err(TargetError::Stopped));
        assert_eq!(target.list("a").unwrap(), []);
    }
}
