//! RocksDB behind the narrow seam.
//!
//! Sized for a small idle footprint: write buffers share one bound, arenas grow in small blocks,
//! the block cache starts empty and only its bound is configured, two background threads.
//!
//! After a full volume RocksDB refuses writes until it is opened again (its resume call is not in
//! the C interface). Reads go on meanwhile on the old handle; [`RocksBackend::recover`] first makes
//! sure that a reopen will have room, and only then swaps the handle.

use super::{Cf, Here, KvOp, KvStore, ScanRange, Visit};
use crate::error::KvError;
use crate::priority::patient_thread;
use rocksdb::checkpoint::Checkpoint;
use rocksdb::compaction_filter::Decision;
use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamilyDescriptor, CompactOptions, DB, DBCompressionType,
    DBRecoveryMode, Env, LogLevel, Options, ReadOptions, ReadTier, WriteBatch, WriteOptions,
};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, TryLockError};

/// Least and most bytes of all memtables together; between them it is as much as the block cache. Small memtables are
/// flushed often and their files merged often: at 100 MB a second of writes that takes a whole core.
const WRITE_BUFFERS_BYTES: std::ops::RangeInclusive<usize> = 16 << 20..=128 << 20;
/// One family's memtable, as a share of all: messages are most of what is written.
const WRITE_BUFFER_SHARE_MESSAGES: usize = 2;
/// The same for every other family.
const WRITE_BUFFER_SHARE: usize = 4;
/// Files of a family's first level that are merged together: each file is rewritten less often, and a read looks at
/// a few more of them, through their filters.
const FIRST_LEVEL_FILES: i32 = 8;
/// Step in which a memtable takes memory: 22 families at the default would cost 11 MiB when idle.
const ARENA_BLOCK_BYTES: usize = 64 << 10;
/// Bytes of a block of families with rows of about a kilobyte: at the usual 4 KiB each block would hold three of them.
const ROW_BLOCK_BYTES: usize = 16 << 10;
/// A memtable's filter, as a share of it: eleven bits for each row of a dedup key.
const MEMTABLE_FILTER_SHARE: f64 = 0.02;
/// Bytes of a new table after which writing them back begins: at the end of a table of many megabytes the syncs of the
/// log would wait for all of it.
const TABLE_SYNC_BYTES: u64 = 1 << 20;
/// Log bytes kept before the oldest memtables are flushed, as a multiple of the memtables: bounds the replay after a crash.
const WAL_PER_BUFFERS: u64 = 2;
/// Logs that are overwritten in place instead of made anew: a sync of a recycled file has no
/// metadata to write.
const WAL_RECYCLED: usize = 4;
/// Open table files. Each costs its index and filter in the block cache, not here.
const OPEN_FILES_MAX: i32 = 512;
/// What a row takes in a batch besides its key and value, at most: kind, family and two lengths.
const ROW_HEAD_BYTES: usize = 16;
/// Room that a reopen may need: log, manifest, options and flushed tables.
const REOPEN_BYTES: usize = 8 << 20;

/// See the module's text.
pub struct RocksBackend {
    path: PathBuf,
    cache: Cache,
    buffers_bytes: usize,
    /// For reads of single rows, anywhere and in memory only; the same for each of them.
    anywhere: ReadOptions,
    in_memory: ReadOptions,
    /// `None` only between closing and reopening in `recover`, or after a reopen failed.
    db: RwLock<Option<DB>>,
}

impl RocksBackend {
    /// Opens or creates the database. `cache_bytes` bounds the block cache, and within limits what is buffered for
    /// writing.
    pub fn open(path: &Path, cache_bytes: usize) -> Result<Self, KvError> {
        let cache = Cache::new_lru_cache(cache_bytes.max(1 << 20));
        let buffers_bytes = cache_bytes.clamp(*WRITE_BUFFERS_BYTES.start(), *WRITE_BUFFERS_BYTES.end());
        let db = open_patiently(path, &cache, buffers_bytes)?;
        Ok(Self {
            path: path.to_owned(),
            cache,
            buffers_bytes,
            anywhere: ReadOptions::default(),
            in_memory: in_memory(),
            db: RwLock::new(Some(db)),
        })
    }

    fn read(&self) -> Result<OpenDb<'_>, KvError> {
        OpenDb::of(self.db.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// [`RocksBackend::read`] that does not wait while the database is opened again.
    fn read_here(&self) -> Result<Here<OpenDb<'_>>, KvError> {
        match self.db.try_read() {
            Ok(guard) => OpenDb::of(guard).map(Here::Found),
            Err(TryLockError::Poisoned(poisoned)) => OpenDb::of(poisoned.into_inner()).map(Here::Found),
            Err(TryLockError::WouldBlock) => Ok(Here::Elsewhere),
        }
    }
}

/// A read guard that is known to hold a database.
struct OpenDb<'a>(RwLockReadGuard<'a, Option<DB>>);

impl<'a> OpenDb<'a> {
    fn of(guard: RwLockReadGuard<'a, Option<DB>>) -> Result<Self, KvError> {
        if guard.is_some() {
            Ok(Self(guard))
        } else {
            Err(KvError::Io(
                "the database could not be opened again after a write failure; it is tried twice a second".into(),
            ))
        }
    }
}

impl std::ops::Deref for OpenDb<'_> {
    type Target = DB;

    fn deref(&self) -> &DB {
        self.0.as_ref().expect("checked when the guard was made")
    }
}

/// RocksDB starts its background threads when it is opened, and they inherit how their starter is scheduled: nobody
/// waits for a flush or a merge, so they give way to whoever answers somebody.
fn open_patiently(path: &Path, cache: &Cache, buffers_bytes: usize) -> Result<DB, KvError> {
    let open = || {
        patient_thread();
        open_db(path, cache, buffers_bytes)
    };
    std::thread::scope(|scope| {
        let opening = std::thread::Builder::new().name("store-open".into()).spawn_scoped(scope, open);
        let opening = opening.map_err(|error| KvError::Io(format!("no thread to open the database: {error}")))?;
        opening.join().unwrap_or_else(|_| Err(KvError::Io("opening the database panicked".into())))
    })
}

fn open_db(path: &Path, cache: &Cache, buffers_bytes: usize) -> Result<DB, KvError> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_db_write_buffer_size(buffers_bytes);
    options.set_max_total_wal_size(buffers_bytes as u64 * WAL_PER_BUFFERS);
    options.set_recycle_log_file_num(WAL_RECYCLED);
    // With recycled logs the end of the log is found by checksum; a torn last record was never acknowledged.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(TABLE_SYNC_BYTES);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(1 << 20);
    let env = Env::new().map_err(kv_error)?;
    options.set_env(&env);
    let families =
        Cf::ALL.iter().map(|cf| ColumnFamilyDescriptor::new(cf.name(), family_options(*cf, cache, buffers_bytes)));
    DB::open_cf_descriptors(&options, path, families.chain([default_family(cache, buffers_bytes)])).map_err(kv_error)
}

/// RocksDB insists on a family named `default`; nothing is stored in it.
fn default_family(cache: &Cache, buffers_bytes: usize) -> ColumnFamilyDescriptor {
    ColumnFamilyDescriptor::new("default", family_options(Cf::Ctl, cache, buffers_bytes))
}

fn family_options(cf: Cf, cache: &Cache, buffers_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    match cf {
        // Read by ranges only, for which a filter of whole keys says nothing.
        Cf::Msg | Cf::Inbox => table.set_block_size(ROW_BLOCK_BYTES),
        _ => table.set_bloom_filter(10.0, false),
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    if cf == Cf::Idem {
        // Almost every key that is asked for is new: the filter says so without a search through the table.
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER_SHARE);
    }
    let share = if cf == Cf::Msg { WRITE_BUFFER_SHARE_MESSAGES } else { WRITE_BUFFER_SHARE };
    options.set_write_buffer_size(buffers_bytes / share);
    options.set_level_zero_file_num_compaction_trigger(FIRST_LEVEL_FILES);
    options.set_arena_block_size(ARENA_BLOCK_BYTES);
    options.set_max_write_buffer_number(3);
    options.set_level_compaction_dynamic_level_bytes(true);
    // Sealed values do not compress; keys share long prefixes that the block format already folds.
    options.set_compression_type(match cf {
        Cf::Post | Cf::EdgeOut | Cf::EdgeIn | Cf::UserSess | Cf::SpaceLog | Cf::Owned => DBCompressionType::Lz4,
        _ => DBCompressionType::None,
    });
    match cf {
        Cf::Idem => options.set_compaction_filter("expired dedup keys", drop_expired),
        Cf::Receipt => options.set_compaction_filter("expired receipts", drop_expired),
        _ => {}
    }
    options
}

/// Expired rows leave when their files are rewritten anyway; reads already ignore them.
fn drop_expired(_level: u32, _key: &[u8], value: &[u8]) -> Decision {
    if crate::queue::expired(value, crate::queue::now_ms()) { Decision::Remove } else { Decision::Keep }
}

/// RocksDB reports a status as text; its first words are the kind, the rest names file and cause.
fn kv_error(error: rocksdb::Error) -> KvError {
    let text = error.as_ref().to_owned();
    let has = |needle: &str| text.contains(needle);
    if has("No space left on device") || has("IO error: No space") || has("Disk quota exceeded") {
        return KvError::NoSpace(text);
    }
    if has("lock ") && (has("Resource temporarily unavailable") || has("lock hold by current process")) {
        return KvError::Locked(text);
    }
    match error.kind() {
        rocksdb::ErrorKind::Corruption => KvError::Corrupt(text),
        rocksdb::ErrorKind::ShutdownInProgress => KvError::Closed,
        _ => KvError::Io(text),
    }
}

fn family(db: &DB, cf: Cf) -> &rocksdb::ColumnFamily {
    db.cf_handle(cf.name()).expect("every family is opened at start")
}

/// Reads only what the memtables and the block cache hold.
fn in_memory() -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_read_tier(ReadTier::BlockCache);
    options
}

/// A read that would have to wait for the disk ends with the status "incomplete".
fn here<T>(read: Result<T, rocksdb::Error>) -> Result<Here<T>, KvError> {
    match read {
        Ok(found) => Ok(Here::Found(found)),
        Err(error) if error.kind() == rocksdb::ErrorKind::Incomplete => Ok(Here::Elsewhere),
        Err(error) => Err(kv_error(error)),
    }
}

fn walk(
    db: &DB,
    cf: Cf,
    range: ScanRange<'_>,
    mut options: ReadOptions,
    each: Visit<'_>,
) -> Result<(), rocksdb::Error> {
    if range.from >= range.to {
        return Ok(());
    }
    options.set_iterate_lower_bound(range.from);
    options.set_iterate_upper_bound(range.to);
    let mut rows = db.raw_iterator_cf_opt(family(db, cf), options);
    if range.reverse {
        rows.seek_to_last();
    } else {
        rows.seek_to_first();
    }
    while let Some((key, value)) = rows.item() {
        if each(key, value).is_break() {
            break;
        }
        if range.reverse {
            rows.prev();
        } else {
            rows.next();
        }
    }
    rows.status()
}

impl KvStore for RocksBackend {
    fn get(&self, cf: Cf, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let db = self.read()?;
        db.get_cf_opt(family(&db, cf), key, &self.anywhere).map_err(kv_error)
    }

    fn multi_get(&self, cf: Cf, keys: &[Vec<u8>]) -> Result<Vec<Option<Vec<u8>>>, KvError> {
        let db = self.read()?;
        let rows = db.batched_multi_get_cf(family(&db, cf), keys, false);
        rows.into_iter().map(|row| row.map(|value| value.map(|v| v.to_vec())).map_err(kv_error)).collect()
    }

    fn scan(&self, cf: Cf, range: ScanRange<'_>, each: Visit<'_>) -> Result<(), KvError> {
        let db = self.read()?;
        walk(&db, cf, range, ReadOptions::default(), each).map_err(kv_error)
    }

    fn get_here(&self, cf: Cf, key: &[u8]) -> Result<Here<Option<Vec<u8>>>, KvError> {
        let Here::Found(db) = self.read_here()? else { return Ok(Here::Elsewhere) };
        here(db.get_cf_opt(family(&db, cf), key, &self.in_memory))
    }

    fn scan_here(&self, cf: Cf, range: ScanRange<'_>, each: Visit<'_>) -> Result<Here<()>, KvError> {
        let Here::Found(db) = self.read_here()? else { return Ok(Here::Elsewhere) };
        here(walk(&db, cf, range, in_memory(), each))
    }

    fn apply(&self, ops: &[KvOp], sync: bool) -> Result<(), KvError> {
        let db = self.read()?;
        let bytes = ops.iter().map(KvOp::bytes).sum::<usize>() + ops.len() * ROW_HEAD_BYTES;
        let mut batch = WriteBatch::with_capacity_bytes(bytes);
        for op in ops {
            match op {
                KvOp::Put(cf, key, value) => batch.put_cf(family(&db, *cf), key, value),
                KvOp::Delete(cf, key) => batch.delete_cf(family(&db, *cf), key),
                KvOp::DeleteRange(cf, from, to) => batch.delete_range_cf(family(&db, *cf), from, to),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        db.write_opt(batch, &options).map_err(kv_error)
    }

    fn recover(&self) -> Result<(), KvError> {
        probe_space(&self.path)?;
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // The old handle must be gone before the new one can take the database's own lock.
        drop(slot.take());
        *slot = Some(open_patiently(&self.path, &self.cache, self.buffers_bytes)?);
        Ok(())
    }

    fn flush(&self) -> Result<(), KvError> {
        let db = self.read()?;
        for cf in Cf::ALL {
            db.flush_cf(family(&db, *cf)).map_err(kv_error)?;
        }
        Ok(())
    }

    fn compact(&self, cf: Cf) -> Result<(), KvError> {
        let db = self.read()?;
        let family = family(&db, cf);
        db.flush_cf(family).map_err(kv_error)?;
        let mut options = CompactOptions::default();
        // Without this a file of the last level would be left as it is.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        db.compact_range_cf_opt(family, None::<&[u8]>, None::<&[u8]>, &options);
        Ok(())
    }

    fn checkpoint(&self, path: &Path) -> Result<(), KvError> {
        let db = self.read()?;
        Checkpoint::new(&db).and_then(|checkpoint| checkpoint.create_checkpoint(path)).map_err(kv_error)
    }

    fn memory_bytes(&self) -> usize {
        let Ok(db) = self.read() else { return 0 };
        let tables: u64 = Cf::ALL
            .iter()
            .filter_map(|cf| db.property_int_value_cf(family(&db, *cf), "rocksdb.cur-size-all-mem-tables").ok()?)
            .sum();
        usize::try_from(tables).unwrap_or(usize::MAX) + self.cache.get_usage()
    }
}

/// Writes and removes a file as large as a reopen may need: the only honest way to know.
fn probe_space(folder: &Path) -> Result<(), KvError> {
    let path = folder.join("space.probe");
    let io = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => KvError::NoSpace(error.to_string()),
        _ => KvError::Io(format!("{}: {error}", path.display())),
    };
    let probe = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        let block = [0u8; 64 << 10];
        for _ in 0..REOPEN_BYTES / block.len() {
            file.write_all(&block)?;
        }
        file.sync_all()
    };
    let result = probe().map_err(io);
    let _ = fs::remove_file(&path);
    result
}
