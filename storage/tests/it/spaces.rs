//! Shared spaces: sealed segments answer like an exact search, and a damaged one costs no answer.

use crate::common::{Random, T1, T2, seed, user};
use millrace_proto::id::TenantId;
use millrace_storage::{Batch, SpaceFilter, SpaceHit, SpaceQuery, SpaceWrite, Store, StoreOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const DIM: usize = 48;
/// Enough rows for a segment, which is built at 8,192, even where every fifth belongs to a user and gets into none.
const ROWS: u64 = 11_000;

fn search(store: &Store, tenant: TenantId, space: &str, embedding: &[f32], limit: usize) -> Vec<SpaceHit> {
    search_with(store, tenant, space, embedding, limit, SpaceFilter::default())
}

fn search_with(
    store: &Store,
    tenant: TenantId,
    space: &str,
    embedding: &[f32],
    limit: usize,
    filter: SpaceFilter,
) -> Vec<SpaceHit> {
    let (sender, receiver) = mpsc::channel();
    let query = SpaceQuery { tenant, space: space.into(), embedding: embedding.to_vec(), limit, filter };
    store.search_space(query, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().expect("the space answers")
}

fn write(id: u64, embedding: Vec<f32>) -> SpaceWrite {
    passage(T1, "handbook", id, &format!("passage {id}"), embedding)
}

/// A row near one of some centres, as sentences lie: uniformly spread rows have no neighbourhoods to search in.
fn row(random: &mut Random) -> Vec<f32> {
    let mut centre = Random::new(random.below(300));
    let (centre, noise) = (centre.unit(DIM), random.unit(DIM));
    let row: Vec<f32> = centre.iter().zip(&noise).map(|(a, b)| a + 0.6 * b).collect();
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
    row.iter().map(|x| x / norm).collect()
}

fn passage(tenant: TenantId, space: &str, id: u64, text: &str, embedding: Vec<f32>) -> SpaceWrite {
    SpaceWrite {
        tenant,
        space: space.into(),
        id,
        text: text.into(),
        embedding,
        owner: None,
        tags: Vec::new(),
        at_ms: 0,
    }
}

fn fill(store: &Store, random: &mut Random, ids: std::ops::Range<u64>, model: &mut BTreeMap<u64, Vec<f32>>) {
    for some in ids.collect::<Vec<_>>().chunks(500) {
        let mut batch = Batch::new();
        for id in some {
            let embedding = row(random);
            batch.put_space(write(*id, embedding.clone()));
            model.insert(*id, embedding);
        }
        store.commit(batch).unwrap();
    }
}

/// Share of the true ten nearest that are found, over some queries.
fn recall_at_10(store: &Store, random: &mut Random, model: &BTreeMap<u64, Vec<f32>>) -> f32 {
    let (mut found, mut all) = (0, 0);
    for _ in 0..40 {
        let probe = row(random);
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
    let replaced = row(&mut random);
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
    batch.put_space(passage(T1, "a", 1, "one", vec![1.0, 0.0]));
    batch.put_space(passage(T1, "b", 1, "two", vec![1.0, 0.0]));
    batch.put_space(passage(T2, "a", 1, "three", vec![1.0, 0.0]));
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

/// Passages with owners, tags and times, whose meaning a plain map knows.
fn sorted_passage(id: u64, embedding: Vec<f32>) -> SpaceWrite {
    let mut tags = vec![format!("doc:{}", id / 40)];
    tags.extend((id % 100 == 7).then(|| "rare".to_owned()));
    tags.extend((id % 10 == 3).then(|| "some".to_owned()));
    tags.extend(id.is_multiple_of(2).then(|| "half".to_owned()));
    let owner = (id % 5 == 4).then(|| user(T1, if id % 10 == 4 { "ada" } else { "bob" }));
    let (text, space) = (format!("passage {id}"), "handbook".to_owned());
    SpaceWrite { tenant: T1, space, id, text, embedding, owner, tags, at_ms: id }
}

fn lets(filter: &SpaceFilter, id: u64) -> bool {
    let SpaceWrite { owner, tags, at_ms, .. } = sorted_passage(id, Vec::new());
    owner.is_none_or(|owner| filter.user == Some(owner))
        && filter.tags_all.iter().all(|tag| tags.contains(tag))
        && (filter.tags_any.is_empty() || filter.tags_any.iter().any(|tag| tags.contains(tag)))
        && at_ms >= filter.from_ms
        && filter.until_ms.is_none_or(|until| at_ms < until)
}

fn filters() -> Vec<SpaceFilter> {
    let tags = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    vec![
        SpaceFilter::default(),
        SpaceFilter { user: Some(user(T1, "ada")), ..SpaceFilter::default() },
        SpaceFilter { tags_all: tags(&["rare"]), ..SpaceFilter::default() },
        SpaceFilter { tags_all: tags(&["some"]), user: Some(user(T1, "bob")), ..SpaceFilter::default() },
        SpaceFilter { tags_any: tags(&["rare", "half"]), ..SpaceFilter::default() },
        SpaceFilter { tags_all: tags(&["doc:11"]), ..SpaceFilter::default() },
        SpaceFilter { from_ms: 4_000, until_ms: Some(9_500), tags_all: tags(&["half"]), ..SpaceFilter::default() },
        SpaceFilter { tags_all: tags(&["nothing has this"]), ..SpaceFilter::default() },
    ]
}

/// Every filter: only what it lets through, and of the nearest ten at least 95 %.
fn check_filters(store: &Store, random: &mut Random, model: &BTreeMap<u64, Vec<f32>>, when: &str) {
    for filter in filters() {
        let (mut found, mut all) = (0, 0);
        for _ in 0..20 {
            let probe = row(random);
            let mut exact: Vec<(f32, u64)> = model
                .iter()
                .filter(|(id, _)| lets(&filter, **id))
                .map(|(id, row)| (row.iter().zip(&probe).map(|(a, b)| a * b).sum(), *id))
                .collect();
            exact.sort_by(|a, b| b.0.total_cmp(&a.0));
            exact.truncate(10);
            let hits = search_with(store, T1, "handbook", &probe, 10, filter.clone());
            assert_eq!(hits.len(), exact.len(), "{when}: {filter:?}");
            for hit in &hits {
                assert!(lets(&filter, hit.id), "{when}: {filter:?} let {} through", hit.id);
                assert_eq!(hit.at_ms, hit.id);
                assert!(hit.tags.contains(&format!("doc:{}", hit.id / 40)));
            }
            all += exact.len();
            found += exact.iter().filter(|(_, id)| hits.iter().any(|hit| hit.id == *id)).count();
        }
        assert!(found as f32 >= 0.95 * all as f32, "{when}: {found} of {all} with {filter:?}");
    }
}

/// A space that grows by several segments, which are merged, with removals and replacements throughout.
#[test]
fn filters_hold_while_a_space_grows_is_merged_and_restarts() {
    let seed = seed();
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(folder.path());
    let mut model = BTreeMap::new();
    let store = Store::open(&options).unwrap();
    let mut sealed = 0;
    for round in 0..5u64 {
        for some in (round * ROWS..(round + 1) * ROWS).collect::<Vec<_>>().chunks(500) {
            let mut batch = Batch::new();
            for id in some {
                let embedding = row(&mut random);
                batch.put_space(sorted_passage(*id, embedding.clone()));
                model.insert(*id, embedding);
            }
            store.commit(batch).unwrap();
        }
        if round > 0 {
            // A few of the round before are replaced and removed.
            let mut batch = Batch::new();
            for id in (round - 1) * ROWS..(round - 1) * ROWS + 60 {
                if id % 2 == 0 {
                    batch.remove_space(T1, "handbook", id);
                    model.remove(&id);
                } else {
                    let embedding = row(&mut random);
                    batch.put_space(sorted_passage(id, embedding.clone()));
                    model.insert(id, embedding);
                }
            }
            store.commit(batch).unwrap();
        }
        check_filters(&store, &mut random, &model, &format!("seed {seed}, round {round}, before sealing"));
        sealed += 1;
        wait_for_segments(&store, sealed);
    }
    wait_until_built(&store);
    let stats = store.space_stats(T1, "handbook").unwrap();
    assert!(stats.segments < 5 && store.stats().segments_sealed > 5, "segments are merged: {stats:?}");
    assert_eq!(stats.passages, model.len());
    assert_eq!(segment_files(folder.path()).len(), stats.segments, "replaced files are gone");
    check_filters(&store, &mut random, &model, &format!("seed {seed}, after merging"));
    drop(store);
    let store = Store::open(&options).unwrap();
    assert_eq!(store.space_stats(T1, "handbook").unwrap().passages, model.len());
    check_filters(&store, &mut random, &model, &format!("seed {seed}, after a restart"));
    assert_eq!(store.stats().segments_rejected, 0);
}

fn wait_until_built(store: &Store) {
    let started = Instant::now();
    while store.space_stats(T1, "handbook").unwrap().building {
        assert!(started.elapsed() < Duration::from_secs(120), "building does not end");
        std::thread::yield_now();
    }
}

#[test]
fn passages_with_too_many_or_too_long_tags_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreOptions::new(folder.path())).unwrap();
    for tags in [vec!["x".to_owned(); 33], vec!["x".repeat(129)]] {
        let mut batch = Batch::new();
        batch.put_space(SpaceWrite { tags: tags.clone(), ..write(1, vec![1.0]) });
        let error = store.commit(batch).unwrap_err().to_string();
        assert!(error.contains("tags"), "{error}");
    }
    let filter = SpaceFilter { tags_any: vec!["x".to_owned(); 33], ..SpaceFilter::default() };
    let query = SpaceQuery { tenant: T1, space: "handbook".into(), embedding: vec![1.0], limit: 1, filter };
    let (sender, receiver) = mpsc::channel();
    store.search_space(query, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    assert!(receiver.recv().unwrap().is_err());
}

/// Checkpoints of yesterday in the place of today's: under the name of a newer one they are refused, and without the
/// newer one the rows themselves answer.
#[test]
fn a_stale_checkpoint_is_refused_and_never_answers() {
    let seed = seed();
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(folder.path());
    let mut model = BTreeMap::new();
    let store = Store::open(&options).unwrap();
    fill(&store, &mut random, 0..ROWS, &mut model);
    assert_eq!(search(&store, T1, "handbook", &[1.0; DIM], 10).len(), 10);
    wait_for_segments(&store, 1);
    wait_until_built(&store);
    let [old] = &segment_files(folder.path())[..] else { panic!("one segment") };
    let old_bytes = std::fs::read(old).unwrap();
    // Every passage changes: the old segment tells nothing that still holds.
    fill(&store, &mut random, 0..ROWS, &mut model);
    wait_for_segments(&store, 2);
    wait_until_built(&store);
    drop(store);
    for file in segment_files(folder.path()) {
        std::fs::write(file, &old_bytes).unwrap();
    }
    let store = Store::open(&options).unwrap();
    assert!(recall_at_10(&store, &mut random, &model) >= 0.97, "seed {seed}");
    assert_eq!(store.stats().segments_rejected, 1);
    wait_for_segments(&store, 1);
    wait_until_built(&store);
    assert!(recall_at_10(&store, &mut random, &model) >= 0.97, "seed {seed}");
}

/// Runs only as the child of the test below: writes, asks, and is killed at some moment of building.
#[test]
fn builds_until_it_is_killed() {
    let Ok(folder) = std::env::var("MILLRACE_KILL_SPACE_FOLDER") else { return };
    let store = Store::open(&StoreOptions::new(&folder)).unwrap();
    search(&store, T1, "handbook", &[1.0; DIM], 1);
    println!("asked");
    wait_until_built(&store);
    println!("built");
    std::thread::park();
}

#[test]
fn a_kill_while_segments_are_built_costs_no_answer() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let seed = seed();
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(folder.path());
    let mut model = BTreeMap::new();
    let store = Store::open(&options).unwrap();
    fill(&store, &mut random, 0..2 * ROWS, &mut model);
    drop(store);
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["spaces::builds_until_it_is_killed", "--exact", "--nocapture"])
            .env("MILLRACE_KILL_SPACE_FOLDER", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("asked")), "the child opens the store");
        // From right at the start of the build to about its end.
        let started = Instant::now();
        let wait = Duration::from_millis(random.below(150) * round);
        while started.elapsed() < wait && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&options).unwrap();
        assert!(recall_at_10(&store, &mut random, &model) >= 0.95, "seed {seed}, round {round}");
        assert_eq!(store.stats().segments_rejected, 0, "a half-written segment is not published");
        assert_eq!(store.space_stats(T1, "handbook").unwrap().passages, model.len());
        if round == 3 {
            wait_until_built(&store);
            fill(&store, &mut random, 0..ROWS, &mut model);
        }
    }
}
