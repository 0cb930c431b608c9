//! Backups: how fast one goes by itself, and what durable appends of 64 writers wait for while one is made under the
//! default budget into a folder of the same disk, which is the worst place.

use crate::append::{TEXT_BYTES, run};
use crate::{fresh, percentile, show};
use anyhow::{Context, Result};
use millrace_proto::id::{ConversationId, TenantId};
use millrace_proto::record::{Message, Role};
use millrace_storage::{Batch, Budget, Folder, Store, StoreOptions};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The default of `backup.bytes_per_s`.
const BYTES_PER_S: u64 = 64 << 20;
/// Messages of 1 KiB in the store whose copying is timed.
const ROWS: u64 = 400_000;
const BATCH_ROWS: u64 = 500;
/// Turns of both, so that a slow minute of the disk meets both.
const TURNS: u32 = 4;
/// Appends before each turn, so that both begin in the same state.
const WARM: Duration = Duration::from_secs(1);
/// How soon the appends of a turn notice that it is over.
const SLICE: Duration = Duration::from_millis(200);

/// `duration`: of the appends that are measured beside backups; as long without.
pub fn measure(folder: &Path, duration: Duration) -> Result<()> {
    let (path, store) = filled(folder, ROWS)?;
    let copies = fresh(folder, "backup.target")?;
    let started = Instant::now();
    let done = store.backup(&Folder::new(&copies), 1, &Budget::new(0))?;
    let mb_s = done.bytes_sent as f64 / 1e6 / started.elapsed().as_secs_f64();
    show("storage.backup.mb_s", mb_s, json!({"bytes": done.bytes, "files": done.files}));
    remove(&path, store)?;

    // Each byte is read and written, and both are paid for: so many rows make a backup last as long as a turn.
    let rows = duration.as_secs() * BYTES_PER_S / (2 * u64::from(TURNS) * TEXT_BYTES as u64);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let (mut took, mut moved) = (Duration::ZERO, 0);
    for _ in 0..TURNS {
        let (target, budget) = (Folder::new(fresh(folder, "backup.target")?), Budget::new(BYTES_PER_S));
        let (path, store) = filled(folder, rows)?;
        run(&store, WARM)?;
        let began = Instant::now();
        std::thread::scope(|scope| -> Result<()> {
            let copying = scope.spawn(|| store.backup(&target, 1, &budget));
            // A whole backup, from the checkpoint to the manifest.
            while !copying.is_finished() {
                beside.extend(run(&store, SLICE)?);
            }
            copying.join().expect("the copying thread does not panic")?;
            Ok(())
        })?;
        let turn = began.elapsed();
        remove(&path, store)?;
        took += turn;
        moved += budget.spent();

        // A store of its own: what the other appends left to be merged would be this one's work.
        let (path, store) = filled(folder, rows)?;
        run(&store, WARM)?;
        let began = Instant::now();
        while began.elapsed() < turn {
            alone.extend(run(&store, SLICE)?);
        }
        remove(&path, store)?;
    }
    let (p99, p99_alone) = (percentile(&mut beside, 0.99), percentile(&mut alone, 0.99));
    let about = json!({
        "bytes_per_s_max": BYTES_PER_S, "bytes_read_and_written": moved, "backups": TURNS, "s": took.as_secs_f64(),
        "p50_us": percentile(&mut beside, 0.5).as_micros(), "p50_alone_us": percentile(&mut alone, 0.5).as_micros(),
        "p99_us": p99.as_micros(), "p99_alone_us": p99_alone.as_micros(),
        "appends": beside.len(), "appends_alone": alone.len(),
    });
    show("storage.backup.foreground_p99_ratio", p99.as_secs_f64() / p99_alone.as_secs_f64().max(1e-9), about);
    std::fs::remove_dir_all(&copies).context("the copies cannot be removed")
}

fn filled(folder: &Path, rows: u64) -> Result<(PathBuf, Store)> {
    let path = fresh(folder, "backup")?;
    let store = Store::open(&StoreOptions::new(&path))?;
    fill(&store, rows)?;
    Ok((path, store))
}

fn remove(path: &Path, store: Store) -> Result<()> {
    store.shutdown();
    drop(store);
    std::fs::remove_dir_all(path).context("what was measured cannot be removed")
}

fn fill(store: &Store, rows: u64) -> Result<()> {
    let conversation = ConversationId::of(TenantId::DEFAULT, "filled");
    let text = "y".repeat(TEXT_BYTES);
    for first in (0..rows).step_by(BATCH_ROWS as usize) {
        let mut batch = Batch::new();
        for seq in first..first + BATCH_ROWS {
            let message = Message { seq, turn: seq, role: Role::User, text: text.clone(), at_ms: seq, tokens: 256 };
            batch.append_message(TenantId::DEFAULT, conversation, &message);
        }
        store.commit(batch)?;
    }
    store.flush().context("the tables are written")
}
