//! The durable half of Millrace: sessions, queues, memory and keys, on RocksDB.
//!
//! [`Store`] is the only door. Writes go in as a typed [`Batch`]; one commit thread puts everything
//! that waits into one atomic write and one sync, and only then says so. Reads run on the caller's
//! thread, recall on a small pool. Every value that holds user text or vectors is sealed
//! (AES-256-GCM or SM4-GCM, bound to its place and its user), every key of a tenant carries the tenant.
//!
//! What it never does: it opens no socket, knows no HTTP, runs no model, and makes no decision about
//! what to do next. `DESIGN.md` beside this crate shows every key and value byte by byte.

mod archive;
mod backend;
mod batch;
mod commit;
mod corpus;
pub mod crash;
mod error;
mod forget;
mod layout;
mod lock;
mod memory;
mod migrate;
mod pool;
mod prepare;
mod priority;
mod queue;
mod reseal;
mod rotate;
mod seal;
mod session;
mod stats;
mod store;

pub use archive::{
    ArchiveDone, ArchiveError, ArchiveFilter, ArchiveRule, Archived, BackupChecked, BackupDone, BackupListed,
    BackupReader, BackupSummary, Budget, Folder, KeysDue, Object, OpenPlace, Stopped, Target, TargetError,
};
pub use backend::memory::{Fault, MemoryBackend};
pub use backend::rocks::RocksBackend;
pub use backend::{Cf, Here, KvOp, KvStore, ScanRange, Visit};
pub use batch::{Batch, MemoryWrite, SpaceWrite};
pub use commit::{Done, GROUP_BYTES_MAX, GROUP_JOBS_MAX, QUEUE_BYTES_MAX, QUEUE_JOBS_MAX};
pub use corpus::{Begun, CorpusError, CorpusHead, CorpusHit, CorpusQuery, CorpusWriter, DocumentRecord, NewDocument};
pub use corpus::{
    CORPORA_MAX, CORPUS_DOCUMENTS_MAX, CORPUS_NAME_BYTES_MAX, DOCUMENT_NAME_BYTES_MAX, DOCUMENT_TAG_BYTES_MAX,
    DOCUMENT_TAGS_MAX,
};
pub use error::{Busy, CommitError, KvError, OpenError, ReadError};
pub use memory::MeasuredGraph;
pub use memory::{Extracted, PendingFrom, PendingMessage, PendingMessages, STATEMENT_PART_BYTES_MAX, StatementQuery};
pub use memory::{RECALL_LIMIT_MAX, RELEVANCE_MIN, RecallQuery, Recalled, Why};
pub use memory::{SPACE_TAG_BYTES_MAX, SPACE_TAGS_MAX, SpaceFilter, SpaceHit, SpaceQuery, SpaceStats};
pub use pool::{READ_QUEUE_MAX, READ_THREADS};
pub use priority::reactor_thread;
pub use queue::{InboxFirst, RECEIPT_TTL_MS, Receipt};
pub use rotate::{RotateError, RotationDone};
pub use seal::{
    KeySource, Suite, VAULT_FILE, VAULT_NAME_BYTES_MAX, VAULT_SECRET_BYTES_MAX, Vault, VaultError, measure_seal,
};
pub use session::{LoadedSession, USER_SESSIONS_MAX};
pub use stats::StatsSnapshot;
pub use store::{BackendKind, Store, StoreOptions};

/// Longest name of a named value (it is part of a key).
pub const META_NAME_BYTES_MAX: usize = 200;
/// Longest single value: larger ones belong into files.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// Longest embedding.
pub const EMBEDDING_DIM_MAX: usize = 4_096;
