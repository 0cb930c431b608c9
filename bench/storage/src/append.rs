//! Durable appends: 64 writers, each with one message of 1 KiB under way, driven from one thread as by a
//! reactor, beside what bare syncs of as many bytes cost on the same disk in the same minute.

use crate::{fresh, percentile, show};
use anyhow::{Context, Result};
use millrace_proto::id::{ConversationId, TenantId};
use millrace_proto::record::{Message, Role};
use millrace_storage::{Batch, Store, StoreOptions, reactor_thread};
use serde_json::json;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const WRITERS: usize = 64;
pub(crate) const TEXT_BYTES: usize = 1_024;
/// What a group of all writers puts into the log.
const GROUP_BYTES: usize = 72 << 10;
const SYNCS: u64 = 1_000;

pub fn measure(folder: &Path, duration: Duration) -> Result<()> {
    let path = fresh(folder, "append")?;
    let mut syncs = bare_syncs(folder)?;
    let store = Store::open(&StoreOptions::new(&path))?;
    run(&store, Duration::from_secs(1))?;
    let before = store.stats();
    let started = Instant::now();
    let mut waits = run(&store, duration)?;
    let took = started.elapsed().as_secs_f64();
    let after = store.stats();
    syncs.extend(bare_syncs(folder)?);
    let sync_p99 = percentile(&mut syncs, 0.99);
    let p99 = percentile(&mut waits, 0.99);
    let groups = (after.groups - before.groups).max(1);
    let about = json!({
        "writers": WRITERS, "text_bytes": TEXT_BYTES, "p50_us": percentile(&mut waits, 0.5).as_micros(), "p99_us": p99.as_micros(),
        "max_us": percentile(&mut waits, 1.0).as_micros(), "per_group": (after.batches - before.batches) as f64 / groups as f64,
        "group_us": (after.commit_ns - before.commit_ns) as f64 / groups as f64 / 1e3,
        "sync_72k_p50_us": percentile(&mut syncs, 0.5).as_micros(), "sync_72k_p99_us": sync_p99.as_micros(),
    });
    show("storage.append.per_s", waits.len() as f64 / took, about);
    show("storage.append.p99_over_fsync", p99.as_secs_f64() / sync_p99.as_secs_f64().max(1e-9), json!({}));
    store.shutdown();
    drop(store);
    std::fs::remove_dir_all(&path).context("the store of the measurement cannot be removed")
}

/// Appends for a while; how long each waited.
pub(crate) fn run(store: &Store, duration: Duration) -> Result<Vec<Duration>> {
    // As reactors do.
    reactor_thread();
    let text = "x".repeat(TEXT_BYTES);
    let conversations: Vec<ConversationId> =
        (0..WRITERS).map(|writer| ConversationId::of(TenantId::DEFAULT, &format!("writer {writer}"))).collect();
    let (done, answers) = mpsc::channel();
    let mut seqs = [0u64; WRITERS];
    let mut submit = |writer: usize| {
        let seq = seqs[writer];
        seqs[writer] += 1;
        let message = Message { seq, turn: seq, role: Role::User, text: text.clone(), at_ms: seq, tokens: 256 };
        let mut batch = Batch::new();
        batch.append_message(TenantId::DEFAULT, conversations[writer], &message);
        let started = Instant::now();
        let done = done.clone();
        store.submit(batch, Box::new(move |result| drop(done.send((writer, started.elapsed(), result)))))
    };
    for writer in 0..WRITERS {
        submit(writer).context("64 batches fit into the queue")?;
    }
    let end = Instant::now() + duration;
    let mut waits = Vec::with_capacity(1 << 20);
    let mut under_way = WRITERS;
    while under_way > 0 {
        let (writer, waited, result) = answers.recv().context("the commit thread answers")?;
        result.context("the disk takes it")?;
        waits.push(waited);
        if Instant::now() < end {
            submit(writer).context("64 batches fit into the queue")?;
        } else {
            under_way -= 1;
        }
    }
    Ok(waits)
}

/// Overwrites a file in place, as the recycled log does, with a sync after each write.
fn bare_syncs(folder: &Path) -> Result<Vec<Duration>> {
    let path = folder.join("sync.probe");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    file.write_all_at(&vec![1; GROUP_BYTES * 64], 0)?;
    file.sync_all()?;
    let block = vec![2; GROUP_BYTES];
    let mut waits = Vec::new();
    for n in 0..SYNCS {
        let started = Instant::now();
        file.write_all_at(&block, (n % 64) * GROUP_BYTES as u64)?;
        file.sync_data()?;
        waits.push(started.elapsed());
    }
    std::fs::remove_file(&path)?;
    Ok(waits)
}
