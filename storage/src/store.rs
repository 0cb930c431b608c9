//! The store: opening, submitting, shutting down, and the sealed reads that the rest is made of.

use crate::backend::memory::MemoryBackend;
use crate::backend::rocks::RocksBackend;
use crate::backend::{Cf, Here, KvOp, KvStore, ScanRange};
use crate::batch::Batch;
use crate::commit::{Committer, Done};
use crate::error::{Busy, CommitError, KvError, OpenError, ReadError};
use crate::layout::{self, ctl};
use crate::lock::FolderLock;
use crate::memory::{
    Memory, PendingFrom, PendingMessages, RecallQuery, Recalled, SpaceHit, SpaceQuery, SpaceStats, StatementQuery,
};
use crate::migrate::migrate;
use crate::pool::ReadPool;
use crate::rotate::Rotations;
use crate::seal::{self, Header, KeyRing, KeySource, NO_USER, Slots, Suite};
use crate::stats::{Stats, StatsSnapshot};
use millrace_proto::id::{TenantId, UserId};
use millrace_proto::record::Record;
use millrace_proto::statement::Statement;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Which engine holds the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendKind {
    /// RocksDB in the data folder.
    #[default]
    Rocks,
    /// Memory only: everything is gone at exit. For trials.
    Memory,
}

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The data folder; made when missing.
    pub path: PathBuf,
    /// The key file; made when missing and the store is new.
    pub key_file: PathBuf,
    /// Bound of the memory that the store may use for caches and hot vectors. Little of it is used
    /// before there is data; a larger bound keeps more users' memories ready.
    pub memory_bytes: usize,
    /// The engine.
    pub backend: BackendKind,
    /// Where the key of keys comes from.
    pub key_source: KeySource,
    /// What seals the data of tenants that have no key yet; [`Store::rotate_keys`] changes it for others.
    pub suite: Suite,
}

impl StoreOptions {
    /// A store in `path` with its key beside the data and 256 MiB of memory.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let key_file = path.join("store.key");
        Self {
            path,
            key_file,
            memory_bytes: 256 << 20,
            backend: BackendKind::Rocks,
            key_source: KeySource::File,
            suite: Suite::Intl,
        }
    }
}

/// The store. Cheap to clone; the last one dropped shuts it down.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) shared: Arc<Shared>,
    pub(crate) commit: Committer,
    reads: ReadPool,
    pub(crate) rotations: Rotations,
    pub(crate) archive: crate::archive::Runs,
    pub(crate) options: StoreOptions,
    _lock: Option<FolderLock>,
}

/// What the threads of a store share.
pub(crate) struct Shared {
    pub kv: Arc<dyn KvStore>,
    pub keys: KeyRing,
    pub memory: Memory,
    pub stats: Stats,
}

impl Store {
    /// Opens or creates a store.
    pub fn open(options: &StoreOptions) -> Result<Self, OpenError> {
        if options.backend == BackendKind::Memory {
            return Self::open_on(options, Arc::new(MemoryBackend::new()));
        }
        std::fs::create_dir_all(&options.path)
            .map_err(|source| OpenError::io("create the data folder", &options.path, source))?;
        let lock = FolderLock::take(&options.path)?;
        let database = options.path.join("db");
        let kv = RocksBackend::open(&database, options.memory_bytes / 4).map_err(|error| open_error(options, error))?;
        Self::start(options, Arc::new(kv), Some(lock))
    }

    /// Opens a store over an engine that the caller made: another engine, or one that fails on request.
    pub fn open_on(options: &StoreOptions, kv: Arc<dyn KvStore>) -> Result<Self, OpenError> {
        Self::start(options, kv, None)
    }

    fn start(options: &StoreOptions, kv: Arc<dyn KvStore>, lock: Option<FolderLock>) -> Result<Self, OpenError> {
        let failed = |error: KvError| open_error(options, error);
        let schema = check_schema(options, &*kv)?;
        let keys = open_keys(options, &*kv)?;
        let unfinished = |source| OpenError::Unfinished { path: options.path.clone(), source };
        let forgotten = crate::forget::finish(&*kv, &keys).map_err(unfinished)?;
        if forgotten > 0 {
            tracing::info!(
                users = forgotten,
                "users who were being forgotten when the last process ended are forgotten"
            );
        }
        let segments = lock.is_some().then(|| options.path.join("segments"));
        migrate(&*kv, &keys, schema, segments.as_deref()).map_err(|source| OpenError::Migrate {
            path: options.path.clone(),
            from: schema,
            source,
        })?;
        let seq = match kv.get(Cf::Ctl, ctl::SEQ).map_err(failed)? {
            None => 0,
            Some(bytes) => bytes.as_slice().try_into().map(u64::from_be_bytes).map_err(|_| OpenError::Corrupt {
                path: options.path.clone(),
                detail: "the sequence number does not have eight bytes".into(),
            })?,
        };
        let thread = |source| OpenError::Io { act: "start the threads of", path: options.path.clone(), source };
        if let Some(folder) = &segments {
            crate::memory::remove_orphans(&*kv, folder).map_err(failed)?;
        }
        let shared = Arc::new(Shared {
            kv,
            keys,
            memory: Memory::new(options.memory_bytes / 2, segments),
            stats: Stats::default(),
        });
        shared.stats.seq.store(seq, Relaxed);
        let reads = ReadPool::start().map_err(thread)?;
        let commit = Committer::start(Arc::clone(&shared), seq).map_err(thread)?;
        let inner = Inner {
            shared,
            commit,
            reads,
            rotations: Rotations::default(),
            archive: crate::archive::Runs::default(),
            options: options.clone(),
            _lock: lock,
        };
        let store = Self { inner: Arc::new(inner) };
        store.resume_rotations().map_err(thread)?;
        Ok(store)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }

    /// Hands a batch to the commit thread. `done` is called once, on the commit thread, after the
    /// batch is durable and recall sees it, or with the reason why not; it must be quick.
    /// When this answers [`Busy`], nothing was taken and `done` is dropped. After
    /// [`Store::shutdown`] `done` is called at once with [`CommitError::Closed`].
    pub fn submit(&self, batch: Batch, done: Done) -> Result<(), Busy> {
        self.inner.commit.submit(&self.inner.shared, batch, done)
    }

    /// [`Store::submit`] that waits. Not for a reactor.
    pub fn commit(&self, batch: Batch) -> Result<u64, CommitError> {
        self.inner.commit.commit(&self.inner.shared, batch)
    }

    /// Forgets a user for good: sessions, messages, memory, waiting replies, and the keys that open what is left of them
    /// in logs, old files, checkpoints and archives. `done` is called on the commit thread after the keys
    /// are overwritten on the disk; from then on nothing of the user opens any more. What is written for this user
    /// later starts afresh.
    pub fn forget_user(&self, tenant: TenantId, user: UserId, done: Done) -> Result<(), Busy> {
        self.inner.commit.forget(&self.inner.shared, (tenant, user), done)
    }

    /// Finds what a user's memory holds about a text. `done` is called on a read thread.
    pub fn recall(
        &self,
        query: RecallQuery,
        done: Box<dyn FnOnce(Result<Vec<Recalled>, ReadError>) + Send>,
    ) -> Result<(), Busy> {
        let shared = Arc::clone(&self.inner.shared);
        self.on_pool(done, move || shared.recall(&query))
    }

    /// What was extracted from a user's messages. `done` is called on a read thread.
    pub fn statements(
        &self,
        query: StatementQuery,
        done: Box<dyn FnOnce(Result<Vec<Statement>, ReadError>) + Send>,
    ) -> Result<(), Busy> {
        let shared = Arc::clone(&self.inner.shared);
        self.on_pool(done, move || shared.statements(&query))
    }

    /// [`Store::statements`] on the calling thread, which may wait for the disk: not for a reactor.
    pub fn statements_here(&self, query: &StatementQuery) -> Result<Vec<Statement>, ReadError> {
        self.inner.shared.statements(query)
    }

    /// Statements that hold now about the speaker and what a text names, those that cover more of its words first, each
    /// with the share that it covers. For callers that are on a read thread already.
    pub fn statements_about_here(
        &self,
        owner: (TenantId, UserId),
        text: &str,
        now_ms: u64,
        limit: usize,
    ) -> Result<Vec<(Statement, f32)>, ReadError> {
        self.inner.shared.statements_about(owner, text, now_ms, limit)
    }

    /// The oldest messages that wait for an extraction, of one conversation of the first user at or after `from`; `None` =
    /// nobody's after it. Not for a reactor.
    pub fn pending_messages(&self, from: &PendingFrom, most: usize) -> Result<Option<PendingMessages>, ReadError> {
        self.inner.shared.pending_messages(from, most)
    }

    /// Finds the nearest passages of a shared space. `done` is called on a read thread.
    pub fn search_space(
        &self,
        query: SpaceQuery,
        done: Box<dyn FnOnce(Result<Vec<SpaceHit>, ReadError>) + Send>,
    ) -> Result<(), Busy> {
        let shared = Arc::clone(&self.inner.shared);
        self.on_pool(done, move || shared.search_space(&query))
    }

    /// How large a shared space is. Loads a space that was not asked since the start, which may take
    /// seconds: not for a reactor.
    pub fn space_stats(&self, tenant: TenantId, space: &str) -> Result<SpaceStats, ReadError> {
        self.inner.shared.space_stats(tenant, space)
    }

    pub(crate) fn on_pool<T: 'static>(
        &self,
        done: Box<dyn FnOnce(Result<T, ReadError>) + Send>,
        read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
    ) -> Result<(), Busy> {
        // Only a queued job owns `done`; a refused one drops it, and a closed pool answers nothing more.
        match self.inner.reads.submit(Box::new(move || done(read()))) {
            Ok(()) => Ok(()),
            Err(busy) => {
                self.inner.shared.stats.recall_busy.fetch_add(1, Relaxed);
                Err(busy.unwrap_or(Busy { waiting: 0, bound: 0 }))
            }
        }
    }

    /// The counters.
    #[must_use]
    pub fn stats(&self) -> StatsSnapshot {
        self.inner.shared.stats.snapshot(self.inner.shared.kv.memory_bytes())
    }

    /// Makes a consistent copy of the database in a new folder, with the wrapped user keys beside it in the file
    /// `user-keys`. The key file is not in it: keep that apart. Whoever is forgotten later can still be read from
    /// this copy while the key file lives, so keep copies for a short time only.
    pub fn checkpoint(&self, path: &Path) -> Result<(), ReadError> {
        self.inner.shared.kv.checkpoint(path)?;
        // Later than the rows: every row of the copy finds its slot, unless its user was forgotten meanwhile.
        let copied = self.inner.shared.keys.copy_slots(&path.join(seal::SLOTS_FILE));
        copied.map_err(|error| KvError::Io(format!("the file of user keys: {error}")).into())
    }

    /// Writes memory tables to disk files.
    pub fn flush(&self) -> Result<(), ReadError> {
        Ok(self.inner.shared.kv.flush()?)
    }

    /// Finishes what was taken, flushes and joins the threads. Later writes answer `Closed`.
    pub fn shutdown(&self) {
        self.inner.close();
    }
}

impl Inner {
    fn close(&self) {
        self.rotations.close();
        self.reads.close();
        self.shared.memory.close();
        if self.commit.close()
            && let Err(error) = self.shared.kv.flush()
        {
            // Nothing is lost: the log holds it, the next start replays it.
            tracing::warn!(%error, "the last flush failed");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

fn no_space(path: &Path, detail: &str) -> OpenError {
    OpenError::NoSpace { path: path.to_owned(), detail: detail.to_owned() }
}

fn open_error(options: &StoreOptions, error: KvError) -> OpenError {
    let path = options.path.clone();
    match error {
        KvError::NoSpace(detail) => no_space(&path, &detail),
        KvError::Locked(_) => OpenError::Locked { path, holder: String::new() },
        KvError::Corrupt(detail) => OpenError::Corrupt { path, detail },
        source => OpenError::Backend { path, source },
    }
}

/// The schema of the store. Refuses one of a newer program before anything is written to it.
fn check_schema(options: &StoreOptions, kv: &dyn KvStore) -> Result<u32, OpenError> {
    let failed = |error: KvError| open_error(options, error);
    match kv.get(Cf::Ctl, ctl::SCHEMA).map_err(failed)? {
        None => {
            let row = KvOp::Put(Cf::Ctl, ctl::SCHEMA.to_vec(), layout::SCHEMA.to_be_bytes().to_vec());
            kv.apply(&[row], true).map_err(failed)?;
            Ok(layout::SCHEMA)
        }
        Some(bytes) => match bytes.as_slice().try_into().map(u32::from_be_bytes) {
            Ok(found) if found > layout::SCHEMA => {
                Err(OpenError::NewerSchema { path: options.path.clone(), found, supported: layout::SCHEMA })
            }
            Ok(found @ 1..) => Ok(found),
            _ => Err(OpenError::Corrupt { path: options.path.clone(), detail: "the schema number is damaged".into() }),
        },
    }
}

/// Opens the key of keys against the store's key check; makes both for a new store.
fn open_keys(options: &StoreOptions, kv: &dyn KvStore) -> Result<KeyRing, OpenError> {
    let failed = |error: KvError| open_error(options, error);
    let check = kv.get(Cf::Ctl, ctl::KEY_CHECK).map_err(failed)?;
    let found = seal::find_kek(options, check.as_deref())?;
    let slots = open_slots(options, kv)?;
    let keys = KeyRing::new(found.opens, slots, options.suite).map_err(|error| seal::no_random(options, error))?;
    let unfinished = |source| OpenError::Unfinished { path: options.path.clone(), source };
    if check.is_none() {
        kv.apply(&[KvOp::Put(Cf::Ctl, ctl::KEY_CHECK.to_vec(), keys.check_value())], true).map_err(failed)?;
    }
    let secrets = |error: seal::VaultError| {
        let source = std::io::Error::other(error.to_string());
        OpenError::io("bring to the key of keys", &options.path.join(seal::VAULT_FILE), source)
    };
    if let Some(new) = found.rewrap_to {
        seal::admit_key(&options.path, &keys.master(), &new).map_err(secrets)?;
        let count = keys.rewrap(kv, new).map_err(unfinished)?;
        tracing::info!(keys = count, "the store was brought to a new key of keys");
    }
    if options.backend != BackendKind::Memory {
        seal::keep_key(&options.path, &keys.master()).map_err(secrets)?;
    }
    Ok(keys)
}

/// The file of user keys. A checkpoint carries it inside its own folder: it is put in its place then.
fn open_slots(options: &StoreOptions, kv: &dyn KvStore) -> Result<Slots, OpenError> {
    if options.backend == BackendKind::Memory {
        return Ok(Slots::in_memory());
    }
    let path = options.path.join(seal::SLOTS_FILE);
    let io = |source| OpenError::io("open the file of user keys", &path, source);
    if !path.exists() {
        let carried = options.path.join("db").join(seal::SLOTS_FILE);
        if carried.exists() {
            std::fs::rename(&carried, &path).and_then(|()| seal::sync_folder(&path)).map_err(io)?;
        } else if seal::has_user_keys(kv).map_err(|source| OpenError::Migrate {
            path: options.path.clone(),
            from: layout::SCHEMA,
            source,
        })? {
            return Err(OpenError::UserKeysMissing { file: path });
        }
    }
    std::fs::create_dir_all(&options.path).map_err(io)?;
    Slots::open(&path).map_err(io)
}

/// Decodes an opened record.
pub(crate) fn decode<T: Record>(cf: Cf, plain: &[u8]) -> Result<T, ReadError> {
    T::from_bytes(plain).map_err(|error| ReadError::Corrupt { cf: cf.name(), why: error.to_string() })
}

/// Rows fetched before they are opened: a scan holds an engine's view only while it copies.
const SCAN_PAGE_ROWS: usize = 256;

impl Shared {
    /// Opens a value with the keys of the owner that its envelope names. They exist, or the value could not have been
    /// written, unless its user was forgotten.
    pub fn open(&self, tenant: TenantId, cf: Cf, key: &[u8], sealed: Vec<u8>) -> Result<Vec<u8>, ReadError> {
        // What has no readable envelope is refused by the tenant's keys, with the reason.
        let stamp = Header::read(&sealed).map(|header| header.stamp).ok();
        let user = stamp.map_or(NO_USER, |stamp| stamp.owner);
        let keys = self.keys.find_user(&*self.kv, tenant, user)?;
        let Some(keys) = keys else {
            // A user whose keys are named and erased was forgotten; one without any is damage.
            let forgotten = user != NO_USER && !self.keys.slots_of(&*self.kv, (tenant, user))?.is_empty();
            return Err(match forgotten {
                true => ReadError::Forgotten { tenant: tenant.0 },
                false => ReadError::KeyGone { tenant: tenant.0, epoch: stamp.map_or(0, |stamp| stamp.epoch) },
            });
        };
        keys.open(cf, key, sealed)
    }

    /// [`Shared::open`] that never waits for a disk, which a key that is not open yet would be read from.
    pub fn open_here(&self, tenant: TenantId, cf: Cf, key: &[u8], sealed: Vec<u8>) -> Result<Here<Vec<u8>>, ReadError> {
        let user = Header::read(&sealed).map_or(NO_USER, |header| header.stamp.owner);
        match self.keys.opened((tenant, user)) {
            Some(keys) => keys.open(cf, key, sealed).map(Here::Found),
            None => Ok(Here::Elsewhere),
        }
    }

    /// [`Shared::get_sealed`] that never waits for a disk.
    pub fn get_sealed_here(&self, tenant: TenantId, cf: Cf, key: &[u8]) -> Result<Here<Option<Vec<u8>>>, ReadError> {
        Ok(match self.kv.get_here(cf, key)? {
            Here::Found(Some(sealed)) => match self.open_here(tenant, cf, key, sealed)? {
                Here::Found(plain) => Here::Found(Some(plain)),
                Here::Elsewhere => Here::Elsewhere,
            },
            Here::Found(None) => Here::Found(None),
            Here::Elsewhere => Here::Elsewhere,
        })
    }

    pub fn get_sealed(&self, tenant: TenantId, cf: Cf, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        match self.kv.get(cf, key)? {
            Some(sealed) => self.open(tenant, cf, key, sealed).map(Some),
            None => Ok(None),
        }
    }

    /// Opens every row under a prefix, in key order.
    pub fn scan_sealed(
        &self,
        cf: Cf,
        prefix: &[u8],
        limit: usize,
        each: impl FnMut(&[u8]) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        let to = layout::prefix_end(prefix);
        self.scan_sealed_range(cf, ScanRange::forward(prefix, &to), limit, each)
    }

    /// Opens the first `limit` rows of a range. The tenant of each row is read from its key.
    pub fn scan_sealed_range(
        &self,
        cf: Cf,
        range: ScanRange<'_>,
        limit: usize,
        mut each: impl FnMut(&[u8]) -> Result<ControlFlow<()>, ReadError>,
    ) -> Result<(), ReadError> {
        let (mut from, mut to) = (range.from.to_vec(), range.to.to_vec());
        let mut left = limit;
        while left > 0 {
            let page = left.min(SCAN_PAGE_ROWS);
            let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            let view = ScanRange { from: &from, to: &to, reverse: range.reverse };
            self.kv.scan(cf, view, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                if rows.len() < page { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            if range.reverse {
                to.clone_from(last);
            } else {
                from.clone_from(last);
                from.push(0);
            }
            let full = rows.len() == page;
            left -= rows.len();
            for (key, sealed) in rows {
                let tenant = layout::tenant_of(cf, &key)
                    .ok_or_else(|| ReadError::Corrupt { cf: cf.name(), why: "a key is too short".into() })?;
                let plain = match self.open(tenant, cf, &key, sealed) {
                    // Rows that came back with an older database: nobody reads them, and nobody is held up by them.
                    Err(ReadError::Forgotten { .. }) => continue,
                    other => other?,
                };
                if each(&plain)?.is_break() {
                    return Ok(());
                }
            }
            if !full {
                return Ok(());
            }
        }
        Ok(())
    }
}
