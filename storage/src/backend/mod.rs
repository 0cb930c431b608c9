//! The narrow seam to an ordered key-value engine.
//!
//! Everything above it speaks in column families, byte keys and atomic batches; nothing above
//! it knows RocksDB. A batch is atomic; `apply` with `sync` returns after it is durable.

pub mod memory;
pub mod rocks;

use crate::error::KvError;
use std::ops::ControlFlow;
use std::path::Path;

macro_rules! column_families {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal;)*) => {
        /// A column family. The number is part of every sealed record's associated data, so it
        /// never changes and is never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Cf { $($(#[$doc])* $variant = $id,)* }

        impl Cf {
            /// Every column family, in the order of their numbers.
            pub const ALL: &'static [Cf] = &[$(Cf::$variant,)*];

            /// The name on disk.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Cf::$variant => $name,)* }
            }
        }
    };
}

column_families! {
    /// Schema, sequence number, key check, manifests, named values.
    Ctl = 1, "ctl";
    /// Wrapped data keys.
    Key = 2, "key";
    /// Session heads.
    Sess = 3, "sess";
    /// Sessions of a user.
    UserSess = 4, "user_sess";
    /// Messages.
    Msg = 5, "msg";
    /// Accepted inbound messages whose turn is not finished.
    Inbox = 6, "inbox";
    /// Deduplication keys with an expiry.
    Idem = 7, "idem";
    /// Outbound effects.
    Outbox = 8, "outbox";
    /// Final states of outbound effects.
    Receipt = 9, "receipt";
    /// Timers by due time.
    Timer = 10, "timer";
    /// API credentials by hash.
    Cred = 11, "cred";
    /// Memory texts (truth).
    Mem = 12, "mem";
    /// Memory vectors (truth).
    Vec = 13, "vec";
    /// Text postings (derived in the same batch).
    Post = 14, "post";
    /// Graph edges by source.
    EdgeOut = 15, "edge_out";
    /// Graph edges by destination.
    EdgeIn = 16, "edge_in";
    /// Vectors of shared spaces (truth).
    Space = 17, "space";
    /// Changes of shared spaces that no sealed segment covers yet.
    SpaceLog = 18, "space_log";
    /// Corpora: their documents and passages (truth).
    Corpus = 19, "corpus";
    /// Remembered messages that no extraction has looked at yet.
    Pending = 20, "pending";
    /// Which passages of shared spaces belong to a user, by user and by space.
    Owned = 21, "owned";
    /// Where archived messages are.
    Archive = 22, "archive";
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvOp {
    /// Set a key.
    Put(Cf, Vec<u8>, Vec<u8>),
    /// Remove a key; removing an absent key is fine.
    Delete(Cf, Vec<u8>),
    /// Remove every key in `[from, to)`.
    DeleteRange(Cf, Vec<u8>, Vec<u8>),
}

impl KvOp {
    /// Bytes of keys and values: the unit of the queue's byte bound.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Put(_, key, value) => key.len() + value.len(),
            Self::Delete(_, key) => key.len(),
            Self::DeleteRange(_, from, to) => from.len() + to.len(),
        }
    }
}

/// A half-open key range and the direction to walk it.
#[derive(Debug, Clone, Copy)]
pub struct ScanRange<'a> {
    /// First key (inclusive).
    pub from: &'a [u8],
    /// End (exclusive).
    pub to: &'a [u8],
    /// Walk from the end to the start.
    pub reverse: bool,
}

impl<'a> ScanRange<'a> {
    /// `[from, to)` in ascending order.
    #[must_use]
    pub fn forward(from: &'a [u8], to: &'a [u8]) -> Self {
        Self { from, to, reverse: false }
    }

    /// `[from, to)` in descending order.
    #[must_use]
    pub fn backward(from: &'a [u8], to: &'a [u8]) -> Self {
        Self { from, to, reverse: true }
    }
}

/// Gets each row of a scan as (key, value) and says whether to go on.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// What a read found without waiting for a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Here<T> {
    /// The answer: all of it lies in memory.
    Found(T),
    /// Some of it would have to be read from a disk.
    Elsewhere,
}

/// What the store needs of an engine. Reads may run on any thread at any time.
pub trait KvStore: Send + Sync {
    /// The value of one key.
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// The values of several keys, in the order asked.
    fn multi_get(&self, cf: Cf, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, KvError>;

    /// Walks a range over one consistent view; `each` says when to stop.
    fn scan(&self, cf: Cf, range: ScanRange<'_>, each: Visit<'_>) -> Result<(), KvError>;

    /// [`KvStore::get`] that never waits for a disk.
    fn get_here(&self, cf: Cf, key: &[u8]) -> Result<Here<Option<Vec<u8>>>, KvError>;

    /// [`KvStore::scan`] that never waits for a disk. After [`Here::Elsewhere`], `each` has seen a part of the range.
    fn scan_here(&self, cf: Cf, range: ScanRange<'_>, each: Visit<'_>) -> Result<Here<()>, KvError>;

    /// Writes all operations or none. With `sync` it returns after they are durable.
    fn apply(&self, ops: &[KvOp], sync: bool) -> Result<(), KvError>;

    /// Tries to make a back end writable again after a failed `apply`.
    fn recover(&self) -> Result<(), KvError>;

    /// Writes memory tables to disk files.
    fn flush(&self) -> Result<(), KvError>;

    /// Rewrites the files of a family, so that rows which were replaced or removed leave them.
    fn compact(&self, cf: Cf) -> Result<(), KvError>;

    /// Makes a consistent copy of the database in a new folder.
    fn checkpoint(&self, path: &Path) -> Result<(), KvError>;

    /// Bytes of memory the engine holds (tables and cache).
    fn memory_bytes(&self) -> usize;
}
