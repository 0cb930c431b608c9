//! Backups: how fast one goes by itself, and what durable appends of 64 writers wait for while one is made under the
//! default budget into a folder of the same disk, which is the worst place.

use crate::append::{TEXT_BYTES, run};
use crate::{fresh, percentile, show};
use anyhow::{Context, Result};
use millrace_proto::id::{ConversationId, TenantId};
use millrace_proto::record::{Message, Role};
use millrace_storage::{ArchiveError, Batch, Budget, Folder, Store, StoreOptions};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// The default of `backup.bytes_per_s`.
const BYTES_PER_S: u64 = 64 << 20;
/// Messages of 1 KiB in the store that is copied.
const ROWS: u64 = 400_000;
const BATCH_ROWS: u64 = 500;
/// Turns of both, so that a slow minute of the disk meets both.
const TURNS: u32 = 4;

pub fn measure(folder: &Path, duration: Duration) -> Result<()> {
    let (path, copies) = (fresh(folder, "backup")?, fresh(folder, "backup.target")?);
    let store = Store::open(&StoreOptions::new(&path))?;
    fill(&store)?;
    let target = Folder::new(&copies);
    let started = Instant::now();
    let done = store.backup(&target, 1, &Budget::new(0))?;
    let mb_s = done.bytes_sent as f64 / 1e6 / started.elapsed().as_secs_f64();
    show("storage.backup.mb_s", mb_s, json!({"bytes": done.bytes, "files": done.files}));

    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let (mut backups, mut moved) = (0, 0);
    run(&store, Duration::from_secs(1))?;
    for _ in 0..TURNS {
        alone.extend(run(&store, duration / TURNS)?);
        // Everything is sent again, so that the copy lasts as long as the appends.
        std::fs::remove_dir_all(&copies)?;
        let budget = Budget::new(BYTES_PER_S);
        let waits = std::thread::scope(|scope| -> Result<Vec<Duration>> {
            let copying = scope.spawn(|| {
                loop {
                    match store.backup(&target, 1, &budget) {
                        Ok(_) => backups += 1,
                        Err(ArchiveError::Stopped) => return Ok(()),
                        Err(error) => return Err(error),
                    }
                    if let Err(error) = std::fs::remove_dir_all(&copies) {
                        eprintln!("the copies cannot be removed: {error}");
                    }
                }
            });
            let waits = run(&store, duration / TURNS);
            budget.stop();
            copying.join().expect("the copying thread does not panic")?;
            waits
        })?;
        beside.extend(waits);
        moved += budget.spent();
    }
    let (p99, p99_alone) = (percentile(&mut beside, 0.99), percentile(&mut alone, 0.99));
    let about = json!({
        "bytes_per_s_max": BYTES_PER_S, "bytes_read_and_written": moved, "backups": backups,
        "p50_us": percentile(&mut beside, 0.5).as_micros(), "p50_alone_us": percentile(&mut alone, 0.5).as_micros(),
        "p99_us": p99.as_micros(), "p99_alone_us": p99_alone.as_micros(),
        "appends": beside.len(), "appends_alone": alone.len(),
    });
    show("storage.backup.foreground_p99_ratio", p99.as_secs_f64() / p99_alone.as_secs_f64().max(1e-9), about);
    store.shutdown();
    drop(store);
    for path in [path, copies] {
        std::fs::remove_dir_all(&path).context("what was measured cannot be removed")?;
    }
    Ok(())
}

fn fill(store: &Store) -> Result<()> {
    let conversation = ConversationId::of(TenantId::DEFAULT, "filled");
    let text = "y".repeat(TEXT_BYTES);
    for first in (0..ROWS).step_by(BATCH_ROWS as usize) {
        let mut batch = Batch::new();
        for seq in first..first + BATCH_ROWS {
            let message = Message { seq, turn: seq, role: Role::User, text: text.clone(), at_ms: seq, tokens: 256 };
            batch.append_message(TenantId::DEFAULT, conversation, &message);
        }
        store.commit(batch)?;
    }
    store.flush().context("the tables are written")
}
