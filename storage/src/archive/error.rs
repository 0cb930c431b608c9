//! What can go wrong between a store and its target, said for whoever has to act.

use super::target::TargetError;
use crate::error::{CommitError, OpenError, ReadError};
use std::io;
use std::path::PathBuf;

/// Why a backup, a check, a restore or an archive did not work.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The target did not do what was asked.
    #[error(
        "cannot {act} {object} in {place}. Check that the target is reachable, writable and not full, then try again"
    )]
    Target {
        /// What was tried, as a verb.
        act: &'static str,
        /// On which object.
        object: String,
        /// Where.
        place: String,
        /// What the target said.
        #[source]
        source: TargetError,
    },
    /// An object of a backup is not there.
    #[error(
        "{object} is missing in {place}. Restore from another backup, and check who removes objects from the target"
    )]
    Missing {
        /// Which.
        object: String,
        /// Where.
        place: String,
    },
    /// An object was damaged or changed.
    #[error("{object} in {place} is damaged: {why}. It was not used; restore from another backup")]
    Damaged {
        /// Which.
        object: String,
        /// Where.
        place: String,
        /// What was found.
        why: &'static str,
    },
    /// The key of keys does not open this backup.
    #[error(
        "the backup {id} needs another key of keys: one with the fingerprint {needed}, and this one has {found}. \
         The key of keys is in no backup; give the one that the store had when the backup was made"
    )]
    WrongKey {
        /// The backup.
        id: String,
        /// Its fingerprint.
        needed: String,
        /// That of the key that was tried.
        found: String,
    },
    /// There is no key of keys to open a backup with.
    #[error("there is no key of keys at {0}. It is in no backup: put it there, or name its place")]
    NoKey(PathBuf),
    /// The key of keys could not be read.
    #[error("the key of keys cannot be read")]
    Key(#[source] OpenError),
    /// The backup was made by a newer program.
    #[error(
        "the backup {id} has schema {found}; this program knows schemas up to {supported}. \
         Use the version of the program that made it, or a newer one"
    )]
    NewerSchema {
        /// The backup.
        id: String,
        /// Its schema.
        found: u32,
        /// The newest that this program knows.
        supported: u32,
    },
    /// The target holds no backup, or not this one.
    #[error("{place} holds no backup{which}. `millrace backup ls` lists what it holds")]
    NoBackup {
        /// Where.
        place: String,
        /// ` ID`, or empty.
        which: String,
    },
    /// It is not clear which backup is meant.
    #[error("{place} holds backups of several data folders: {ids}. Say which one with --at")]
    Ambiguous {
        /// Where.
        place: String,
        /// The newest of each.
        ids: String,
    },
    /// The folder to restore into holds something.
    #[error("{0} is not empty. A restore never overwrites: name a new folder")]
    NotEmpty(PathBuf),
    /// A file of this machine could not be used.
    #[error("cannot {act} {path}. Check that the folder is writable and has space")]
    Io {
        /// What was tried, as a verb.
        act: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A store in memory has nothing to copy.
    #[error("a store in memory has no files to copy. Use the rocksdb storage type")]
    NoFiles,
    /// Another run has not ended.
    #[error("a backup is running already. Wait for its end")]
    Running,
    /// A target that held copies of user keys holds none: it is not the one that it was.
    #[error(
        "{place} held copies of user keys and holds none now, so what lies elsewhere may still open what was forgotten. \
         Mount it; or, if it is gone for good, make a backup there"
    )]
    Away {
        /// Where.
        place: String,
    },
    /// The key of keys was renewed while a backup was made, each time anew.
    #[error("the key of keys is being renewed. Try again when that is done")]
    KeyRenewed,
    /// It was asked to stop.
    #[error("it was asked to stop. Start it again: what was sent already is not sent again")]
    Stopped,
    /// The store could not be read.
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    /// The store could not be written.
    #[error("the store cannot be written")]
    Write(#[from] CommitError),
}

impl ArchiveError {
    pub(crate) fn io(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { act, path, source }
    }
}
