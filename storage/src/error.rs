//! Typed errors, one enum per stage. Each text says what happened, why, and what to do next.

use std::io;
use std::path::PathBuf;

/// Why a key-value back end could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum KvError {
    /// The volume is full.
    #[error("no space left on the data volume: {0}")]
    NoSpace(String),
    /// The device or file system failed.
    #[error("input/output error on the data volume: {0}")]
    Io(String),
    /// Stored bytes do not match their checksum.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
    /// Another process holds the database.
    #[error("the database is held by another process: {0}")]
    Locked(String),
    /// The back end was shut down.
    #[error("the database is closed")]
    Closed,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process (or another `Store` in this one) holds the folder.
    #[error(
        "the data folder {path} is in use by another process{holder}. Two processes must never write one store. \
         Stop the other one, or start this one with another data folder"
    )]
    Locked {
        /// The data folder.
        path: PathBuf,
        /// " (process 1234)" when it could be read, otherwise empty.
        holder: String,
    },
    /// The volume has no room for the files a start needs.
    #[error(
        "no free space at {path}, so the store cannot start ({detail}). \
         Free some space on that volume (64 MiB are enough to start), then start again"
    )]
    NoSpace {
        /// The data folder, or the file that could not be written.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// The key file does not open this store.
    #[error(
        "the key file {key_file} does not belong to the store in {path}: its key does not open the store's key check. \
         Put back the key file that was made with this store; without it the data cannot be read"
    )]
    WrongKey {
        /// The key file.
        key_file: PathBuf,
        /// The data folder.
        path: PathBuf,
    },
    /// The store exists and its key file does not.
    #[error(
        "the store in {path} is sealed and its key file {key_file} is missing. A new key could not read it, so none was made. \
         Restore the key file from your backup"
    )]
    KeyMissing {
        /// The key file that was looked for.
        key_file: PathBuf,
        /// The data folder.
        path: PathBuf,
    },
    /// Others on this machine may read or change the key file.
    #[error(
        "the key file {key_file} has mode {mode:04o}, so other users of this machine could read it. \
         Run `chmod 600 {key_file}` (and consider the key known if others had access)"
    )]
    KeyExposed {
        /// The key file.
        key_file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file holds something else than a key.
    #[error(
        "the key file {key_file} is not a Millrace key ({why}). Restore it from your backup, or name the right file"
    )]
    KeyMalformed {
        /// The key file.
        key_file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The key of keys cannot be had from where it is said to be.
    #[error(
        "the key of keys cannot be read from {what}: {why}. Set it to `millrace-key-1 ` and 64 hexadecimal digits \
         (the line of a key file), or change `storage.key_source`"
    )]
    KeySource {
        /// Where it was looked for.
        what: String,
        /// What is wrong there.
        why: String,
    },
    /// The file of wrapped user keys is not there, and rows need it.
    #[error(
        "the file {file} is missing, and the store holds data that only its keys open. \
         Restore it from the same backup as the database; an older one lacks the users that came later"
    )]
    UserKeysMissing {
        /// The file.
        file: PathBuf,
    },
    /// A user who was being forgotten when the last process ended could not be forgotten for good.
    #[error("the store in {path} could not finish what a rotation or a forgotten user left to do")]
    Unfinished {
        /// The data folder.
        path: PathBuf,
        /// What stopped it.
        #[source]
        source: CommitError,
    },
    /// The data was written by a newer program.
    #[error(
        "the store in {path} has schema {found}; this program knows schemas up to {supported}. \
         It was written by a newer version: start that version, or restore a backup made before the upgrade"
    )]
    NewerSchema {
        /// The data folder.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version this program knows.
        supported: u32,
    },
    /// The data could not be brought from an older schema to this one.
    #[error(
        "the store in {path} could not be brought from schema {from} to this program's. Nothing is lost: \
         free space or restore the damaged part, then start again and it goes on"
    )]
    Migrate {
        /// The data folder.
        path: PathBuf,
        /// The version found.
        from: u32,
        /// What stopped it.
        #[source]
        source: ReadError,
    },
    /// Stored bytes are damaged.
    #[error(
        "the store in {path} is damaged: {detail}. Restore the last checkpoint; \
         keep the damaged folder, since parts of it may still be readable"
    )]
    Corrupt {
        /// The data folder.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// A file or folder could not be used.
    #[error("cannot {act} {path}. Check that the folder exists, is writable by this user and lies on a healthy disk")]
    Io {
        /// What was tried, as a verb.
        act: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The database engine refused.
    #[error("the database in {path} cannot be opened. Check the folder's owner, its disk and the log file LOG in it")]
    Backend {
        /// The data folder.
        path: PathBuf,
        /// What the engine said.
        #[source]
        source: KvError,
    },
}

impl OpenError {
    /// A failed file operation; a full volume gets its own error, since its next step is another.
    pub(crate) fn io(act: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.to_owned(), detail: source.to_string() }
            }
            _ => Self::Io { act, path: path.to_owned(), source },
        }
    }
}

/// Why a batch was not made durable.
///
/// After [`CommitError::NoSpace`] and [`CommitError::Io`] the batch may still appear after a
/// restart (the sync failed, not necessarily the write): retry it with the same keys.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// The volume is full; reads go on, and commits work again when space returns.
    #[error(
        "the data volume is full, nothing was stored ({detail}). Reading goes on; free space and writing resumes by itself"
    )]
    NoSpace {
        /// What the system said.
        detail: String,
    },
    /// The device failed.
    #[error("the data volume failed, nothing was stored ({detail}). Check the disk and the system log")]
    Io {
        /// What the system said.
        detail: String,
    },
    /// A value in the batch exceeds a bound or cannot be encoded.
    #[error("the batch cannot be stored: {why}")]
    Invalid {
        /// What and which bound.
        why: String,
    },
    /// A user of this batch was forgotten while it waited.
    #[error("the user was forgotten while this write waited, and with it the key that sealed it: nothing was stored")]
    Forgotten,
    /// The store is shutting down.
    #[error("the store is shutting down and takes no more writes")]
    Closed,
}

/// Why a read gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// A record does not authenticate or decode: it is damaged, moved or sealed under another key.
    #[error("a record in {cf} is damaged or was moved ({why}). It was not used; restore it from a checkpoint")]
    Corrupt {
        /// The column family.
        cf: &'static str,
        /// What was found.
        why: String,
    },
    /// The data key of the tenant, or of the user whom the record names, is not there.
    #[error("a data key of tenant {tenant} (epoch {epoch}) is not in the store, so the record cannot be opened")]
    KeyGone {
        /// The tenant.
        tenant: u32,
        /// The key epoch asked for.
        epoch: u16,
    },
    /// The user whose key sealed the record was forgotten.
    #[error("the record belongs to a user of tenant {tenant} who was forgotten; nobody can read it any more")]
    Forgotten {
        /// The tenant.
        tenant: u32,
    },
    /// The question itself is out of range.
    #[error("the read cannot be answered: {why}")]
    Invalid {
        /// What and which bound.
        why: String,
    },
    /// The back end failed.
    #[error("the store could not be read")]
    Backend(#[source] KvError),
    /// The store is shutting down.
    #[error("the store is shutting down")]
    Closed,
}

/// A bounded queue is full. Nothing was taken; try again after other work has finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the storage queue is full ({waiting} waiting, bound {bound}); try again shortly")]
pub struct Busy {
    /// How many were waiting.
    pub waiting: usize,
    /// The bound of the queue (entries, or bytes when the byte bound was hit).
    pub bound: usize,
}

impl From<KvError> for ReadError {
    fn from(error: KvError) -> Self {
        match error {
            KvError::Closed => Self::Closed,
            other => Self::Backend(other),
        }
    }
}

impl From<KvError> for CommitError {
    fn from(error: KvError) -> Self {
        match error {
            KvError::NoSpace(detail) => Self::NoSpace { detail },
            KvError::Io(detail) | KvError::Corrupt(detail) | KvError::Locked(detail) => Self::Io { detail },
            KvError::Closed => Self::Closed,
        }
    }
}

impl CommitError {
    /// True when the same batch may succeed later without any change.
    #[must_use]
    pub fn retryable(&self) -> bool {
        matches!(self, Self::NoSpace { .. } | Self::Io { .. })
    }
}
