//! Shared spaces: sealed segments answer like an exact search, and a damaged one costs no answer.

use crate::common::{Random, T1, T2, seed};
use millrace_proto::id::TenantId;
use millrace_storage::{Batch, SpaceHit, SpaceQuery, SpaceWrite, Store, StoreOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const DIM: usize = 48;
/// Enough rows for a segment (it is built at 8,192).
const ROWS: u64 = 9_000;

fn search(store: &Store, tenant: TenantId, space: &str, embedding: &[f32], limit: usize) -> Vec<SpaceHit> {
    let (sender, receiver) = mpsc::channel();
    let query = SpaceQuery { tenant, space: space.into(), embedding: embedding.to_vec(), limit };
    store.search_space(query, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().expect("the space answers")
}

fn write(id: u64, embedding: Vec<f32>) -> SpaceWrite {
    SpaceWrite { tenant: T1, space: "handbook".into(), id, text: format!("passage {id}"), embedding }
}

fn fill(store: &Store, random: &mut Random, ids: std::ops::Range<u64>, model: &mut BTreeMap<u64, Vec<f32>>) {
    for some in ids.collect::<Vec<_>>().chunks(500) {
        let mut batch = Batch::new();
        for id in some {
            let row = random.unit(DIM);
            batch.put_space(write(*id, row.clone()));
            model.insert(*id, row);
        }
        store.commit(batch).unwrap();
    }
}

/// Share of the true ten nearest that are found, over some queries.
fn recall_at_10(store: &Store, random: &mut Random, model: &BTreeMap<u64, Vec<f32>>) -> f32 {
    let (mut found, mut all) = (0, 0);
    for _ in 0..40 {
        let probe = random.unit(DIM);
        let mut exact: Vec<(f32, u64)> =
            model.iter().map(|(id, row)| (row.iter().zip(&probe).map(|(a, b)| a * b).sum(), *id)).collect();
        exact.sort_by(|a, b| b.0.total_cmp(&a.0));
        let hits = search(store, T1, "handbook", &probe, 10);
        assert_eq!(hits.len(), 10);
        assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
        assert!(hits.iter().all(|hit| hit.text == format!("passage {}", hit.id)));
        all += 10;
        found += exact[..10].iter().filter(|(_, id)| hits.iter().any(|hit| hit.id == *id)).count();
    }
    found as f32 / all as f32
}

fn wait_for_segments(store: &Store, count: u64) {
    let started = Instant::now();
    while store.stats().segments_sealed < count {
        assert!(started.elapsed() < Duration::from_secs(120), "no segment was built");
        std::thread::yield_now();
    }
}

fn segment_files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder.join("segments"))
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default()
}

#[test]
fn a_segment_is_built_published_survives_and_is_replaced_when_damaged() {
    let seed = seed();
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(folder.path());
    let mut model = BTreeMap::new();

    let store = Store::open(&options).unwrap();
    assert_eq!(search(&store, T1, "handbook", &[1.0; DIM], 10), []);
    fill(&store, &mut random, 0..ROWS, &mut model);
    // A space is loaded, and its segment built, when it is first asked.
    assert_eq!(search(&store, T1, "handbook", &[1.0; DIM], 10).len(), 10);
    wait_for_segments(&store, 1);
    assert_eq!(segment_files(folder.path()).len(), 1);
    assert!(recall_at_10(&store, &mut random, &model) >= 0.97, "seed {seed}");

    // Changes on top of the segment: replaced, removed and new rows.
    let replaced = random.unit(DIM);
    let mut batch = Batch::new();
    batch.put_space(write(7, replaced.clone()));
    batch.remove_space(T1, "handbook", 8);
    store.commit(batch).unwrap();
    let old = model.insert(7, replaced.clone()).unwrap();
    let removed = model.remove(&8).unwrap();
    fill(&store, &mut random, ROWS..ROWS + 100, &mut model);
    let check = |store: &Store, when: &str| {
        assert_eq!(search(store, T1, "handbook", &replaced, 1)[0].id, 7, "{when}");
        assert_ne!(search(store, T1, "handbook", &removed, 1)[0].id, 8, "{when}");
        let hits = search(store, T1, "handbook", &old, 256);
        assert_eq!(hits.iter().filter(|hit| hit.id == 7).count().min(1), hits.iter().filter(|hit| hit.id == 7).count());
    };
    check(&store, "after changes");
    assert!(recall_at_10(&store, &mut random, &model) >= 0.97, "seed {seed}");
    drop(store);

    // What a crash leaves behind while a segment is being written.
    let left_over = [folder.path().join("segments/00.part"), folder.path().join("segments/00.seg")];
    left_over.iter().for_each(|path| std::fs::write(path, b"x").unwrap());
    let store = Store::open(&options).unwrap();
    assert_eq!(segment_files(folder.path()).len(), 1, "left-over files are removed, the segment stays");
    check(&store, "after a restart");
    assert!(recall_at_10(&store, &mut random, &model) >= 0.97, "seed {seed}");
    assert_eq!(store.stats().segments_rejected, 0);
    drop(store);

    // A flipped bit, a cut end, a missing file: refused, answered exactly, built again.
    for damage in ["flip", "cut", "missing"] {
        let file = segment_files(folder.path()).pop().expect("a segment file");
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        match damage {
            "flip" => bytes[middle] ^= 1,
            "cut" => bytes.truncate(middle),
            _ => {}
        }
        if damage == "missing" {
            std::fs::remove_file(&file).unwrap();
        } else {
            std::fs::write(&file, bytes).unwrap();
        }
        let store = Store::open(&options).unwrap();
        check(&store, damage);
        assert!(recall_at_10(&store, &mut random, &model) >= 0.97, "seed {seed}, {damage}");
        assert_eq!(store.stats().segments_rejected, 1, "{damage}");
        wait_for_segments(&store, 1);
        check(&store, damage);
        assert!(recall_at_10(&store, &mut random, &model) >= 0.97, "seed {seed}, {damage}");
    }
}

#[test]
fn spaces_and_tenants_are_apart() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreOptions::new(folder.path())).unwrap();
    let mut batch = Batch::new();
    batch.put_space(SpaceWrite { tenant: T1, space: "a".into(), id: 1, text: "one".into(), embedding: vec![1.0, 0.0] });
    batch.put_space(SpaceWrite { tenant: T1, space: "b".into(), id: 1, text: "two".into(), embedding: vec![1.0, 0.0] });
    batch.put_space(SpaceWrite {
        tenant: T2,
        space: "a".into(),
        id: 1,
        text: "three".into(),
        embedding: vec![1.0, 0.0],
    });
    store.commit(batch).unwrap();
    let text = |tenant, space| -> Vec<String> {
        search(&store, tenant, space, &[1.0, 0.0], 10).into_iter().map(|hit| hit.text).collect()
    };
    assert_eq!(text(T1, "a"), ["one"]);
    assert_eq!(text(T1, "b"), ["two"]);
    assert_eq!(text(T2, "a"), ["three"]);
    assert_eq!(text(T2, "b"), Vec::<String>::new());
    assert_eq!(text(TenantId(5), "a"), Vec::<String>::new());
}
