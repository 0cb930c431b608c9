//! A shared space of a million passages: recall, speed, filters, memory, restart.

use crate::data::{Data, NEAREST, nearest};
use crate::{Random, percentile, processor_s, show};
use anyhow::{Context, Result};
use millrace_proto::id::TenantId;
use millrace_storage::{Batch, SpaceFilter, SpaceHit, SpaceQuery, SpaceWrite, Store, StoreOptions};
use serde_json::json;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const TENANT: TenantId = TenantId::DEFAULT;
const SPACE: &str = "figures";
/// Questions with each filter.
const FILTERED: usize = 300;
const BATCH_ROWS: usize = 1_000;
/// How often all questions are asked.
const ROUNDS: usize = 5;
/// Longest wait for the segments.
const BUILD_MAX: Duration = Duration::from_secs(1_800);
/// Shares of the passages, and the tag of each.
const SHARES: [(usize, &str); 3] = [(1, "one in a hundred"), (10, "one in ten"), (50, "one in two")];

fn open(folder: &Path) -> Result<Store> {
    let mut options = StoreOptions::new(folder.join("ann"));
    // Room for the rows that answers are read from.
    options.memory_bytes = 2 << 30;
    Ok(Store::open(&options)?)
}

/// A number from 0 to 99 that has nothing to do with where the row lies.
fn lot(row: usize) -> usize {
    Random(row as u64 ^ 0x5bd1_e995).below(100)
}

fn tags(row: usize) -> Vec<String> {
    SHARES.iter().filter(|(share, _)| lot(row) < *share).map(|(_, tag)| (*tag).to_owned()).collect()
}

pub fn build(folder: &Path) -> Result<()> {
    let data = Data::read(folder)?;
    let store = open(folder)?;
    let started = Instant::now();
    let there = store.space_stats(TENANT, SPACE)?.passages;
    if there != data.rows() {
        store.shutdown();
        drop(store);
        std::fs::remove_dir_all(folder.join("ann"))?;
        let store = open(folder)?;
        for (n, some) in data.base.chunks(BATCH_ROWS * data.dim).enumerate() {
            let mut batch = Batch::new();
            for (at, row) in some.chunks_exact(data.dim).enumerate() {
                let id = n * BATCH_ROWS + at;
                batch.put_space(SpaceWrite {
                    tenant: TENANT,
                    space: SPACE.into(),
                    id: id as u64,
                    text: format!("passage {id}"),
                    embedding: row.to_vec(),
                    owner: None,
                    tags: tags(id),
                    at_ms: id as u64,
                });
            }
            store.commit(batch)?;
        }
        eprintln!("{} passages written in {:.1} s", data.rows(), started.elapsed().as_secs_f64());
        return wait(&store);
    }
    wait(&store)
}

/// Until nothing is left to build.
fn wait(store: &Store) -> Result<()> {
    let started = Instant::now();
    loop {
        let stats = store.space_stats(TENANT, SPACE)?;
        if !stats.building && stats.unsealed == 0 && stats.segments > 0 {
            eprintln!("sealed in {:.1} s: {stats:?}", started.elapsed().as_secs_f64());
            store.shutdown();
            return Ok(());
        }
        anyhow::ensure!(started.elapsed() < BUILD_MAX, "the segments are not finished: {stats:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn search(store: &Store, embedding: &[f32], tag: Option<&str>) -> Result<Vec<SpaceHit>> {
    let (done, answer) = mpsc::sync_channel(1);
    let query = SpaceQuery {
        tenant: TENANT,
        space: SPACE.into(),
        embedding: embedding.to_vec(),
        limit: NEAREST,
        filter: SpaceFilter { tags_all: tag.map(str::to_owned).into_iter().collect(), ..SpaceFilter::default() },
    };
    store.search_space(query, Box::new(move |result| drop(done.send(result)))).context("the queue has room")?;
    Ok(answer.recv().context("an answer comes")??)
}

/// How many of the true nearest were found, and how long each question took.
fn ask_all(store: &Store, questions: &[&[f32]], truth: &[u32], tag: Option<&str>) -> Result<(usize, Vec<Duration>)> {
    let (mut right, mut waits) = (0, Vec::with_capacity(questions.len()));
    for (question, truth) in questions.iter().zip(truth.chunks_exact(NEAREST)) {
        let started = Instant::now();
        let hits = search(store, question, tag)?;
        waits.push(started.elapsed());
        right += truth.iter().filter(|at| hits.iter().any(|hit| hit.id == u64::from(**at))).count();
    }
    Ok((right, waits))
}

pub fn measure(folder: &Path) -> Result<()> {
    let data = Data::read(folder)?;
    let questions: Vec<&[f32]> = data.questions.chunks_exact(data.dim).collect();
    let started = Instant::now();
    let store = open(folder)?;
    search(&store, questions[0], None)?;
    let restart = started.elapsed();
    show("storage.restart.1m_s", restart.as_secs_f64(), json!({ "rows": data.rows(), "until": "the first answer" }));
    let stats = store.space_stats(TENANT, SPACE)?;
    let bytes = stats.bytes as f64 / stats.passages.max(1) as f64;
    let about = json!({ "dim": data.dim, "segments": stats.segments, "unsealed": stats.unsealed });
    show("storage.ann.1m.bytes_per_vector", bytes, about);
    // The first round brings the rows of the answers into the cache.
    ask_all(&store, &questions, &data.truth, None)?;
    let before_s = processor_s()?;
    let (mut right, mut waits) = (0, Vec::new());
    for _ in 0..ROUNDS {
        let (found, took) = ask_all(&store, &questions, &data.truth, None)?;
        right = found;
        waits.extend(took);
    }
    let took_s = (processor_s()? - before_s).max(0.01);
    let wall: Duration = waits.iter().sum();
    let about = json!({
        "rows": data.rows(), "dim": data.dim, "one_at_a_time": true, "includes": "pool, opening 10 texts and more vectors",
        "p50_us": percentile(&mut waits, 0.5).as_micros(), "p99_us": percentile(&mut waits, 0.99).as_micros(),
        "by": "processor time of all threads", "by_wall": waits.len() as f64 / wall.as_secs_f64(),
    });
    show("storage.ann.1m.qps_per_core", waits.len() as f64 / took_s, about);
    show("storage.ann.1m.recall", right as f64 / (questions.len() * NEAREST) as f64, json!({}));
    for (share, tag) in SHARES {
        let count = questions.len().min(FILTERED);
        let truth = nearest(&data.base, &data.questions[..count * data.dim], data.dim, |row| lot(row) < share);
        let (right, mut waits) = ask_all(&store, &questions[..count], &truth, Some(tag))?;
        let about = json!({ "p50_us": percentile(&mut waits, 0.5).as_micros(), "p99_us": percentile(&mut waits, 0.99).as_micros() });
        show(&format!("storage.filtered.recall_{share}pct"), right as f64 / (count * NEAREST) as f64, about);
    }
    store.shutdown();
    Ok(())
}
