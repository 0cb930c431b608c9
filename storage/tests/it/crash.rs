//! Power cuts and kills: what was acknowledged is there afterwards, whole batches or none.

use crate::common::{Random, T1, conversation, message, over, rocks, seed};
use millrace_storage::{Batch, Fault, MemoryBackend, Store};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// Random batches against a map, with power cuts, failed writes and restarts in between. After each cut
/// every acknowledged write must be there; a write that failed may be there or not, but never in part.
#[test]
fn acknowledged_writes_survive_any_sequence_of_cuts() {
    let seed = seed();
    let mut random = Random::new(seed);
    for round in 0..20 {
        let folder = tempfile::tempdir().unwrap();
        let kv = Arc::new(MemoryBackend::new());
        let mut store = over(folder.path(), &kv);
        let mut model: BTreeMap<String, u64> = BTreeMap::new();
        for step in 0..60u64 {
            let mut batch = Batch::new();
            let pair = random.below(8);
            let value = random.next();
            for half in ["left", "right"] {
                batch.put_meta(&format!("{half}{pair}"), &value.to_be_bytes());
            }
            match random.below(10) {
                0 => {
                    kv.inject(Fault::NoSpace);
                    assert!(store.commit(batch).is_err());
                    kv.inject(Fault::None);
                    drop(store);
                    kv.lose_unsynced();
                    millrace_storage::KvStore::recover(&*kv).unwrap();
                    store = over(folder.path(), &kv);
                }
                1 => {
                    kv.lose_unsynced_after(random.below(3) as usize);
                    drop(store);
                    store = over(folder.path(), &kv);
                }
                _ => {
                    store.commit(batch).unwrap();
                    for half in ["left", "right"] {
                        model.insert(format!("{half}{pair}"), value);
                    }
                }
            }
            for (name, value) in &model {
                let stored = store.meta(name).unwrap();
                assert_eq!(
                    stored.as_deref(),
                    Some(&value.to_be_bytes()[..]),
                    "seed {seed}, round {round}, step {step}: {name}"
                );
            }
        }
    }
}

/// The test above must be able to fail: with a disk that lies about its sync, writes do get lost.
#[test]
fn a_disk_that_lies_is_caught_by_this_kind_of_test() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    let mut batch = Batch::new();
    batch.put_meta("first", b"1");
    store.commit(batch).unwrap();
    kv.inject(Fault::LostSync);
    let mut batch = Batch::new();
    batch.put_meta("second", b"2");
    store.commit(batch).unwrap();
    drop(store);
    kv.lose_unsynced();
    let store = over(folder.path(), &kv);
    assert!(store.meta("first").unwrap().is_some());
    assert!(store.meta("second").unwrap().is_none());
}

#[test]
fn waiting_batches_share_a_sync_and_keep_their_order() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let answers = Arc::new(Mutex::new(Vec::new()));
    let (sender, receiver) = mpsc::channel();
    let chat = conversation(T1, "c");
    for seq in 0..500u64 {
        let mut batch = Batch::new();
        batch.append_message(T1, chat, &message(seq, "x"));
        let (answers, sender, reader) = (Arc::clone(&answers), sender.clone(), store.clone());
        let done = move |result: Result<u64, _>| {
            let group = result.expect("durable");
            // Whoever is answered finds what was written.
            let newest = reader.messages(T1, chat, None, 1).unwrap();
            assert!(newest[0].seq >= seq);
            answers.lock().unwrap().push((seq, group));
            sender.send(()).unwrap();
        };
        store.submit(batch, Box::new(done)).unwrap();
    }
    (0..500).for_each(|_| receiver.recv().unwrap());
    let answers = answers.lock().unwrap();
    assert!(answers.is_sorted(), "first come, first durable");
    let stats = store.stats();
    assert!(stats.groups < 500, "{} groups for 500 batches", stats.groups);
    assert_eq!(stats.waiting_jobs, 0);
    assert_eq!(stats.waiting_bytes, 0);
}

#[test]
fn a_full_queue_says_so_and_loses_nothing_it_took() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    // The first completion blocks the commit thread until it is released.
    let (release, released) = mpsc::channel::<()>();
    let (entered, blocked) = mpsc::channel::<()>();
    let hold = Box::new(move |_| {
        entered.send(()).unwrap();
        released.recv().unwrap();
    });
    let mut batch = Batch::new();
    batch.put_meta("first", b"1");
    store.submit(batch, hold).unwrap();
    blocked.recv().unwrap();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut taken = 0;
    let busy = loop {
        let mut batch = Batch::new();
        batch.put_meta("n", &[0; 1_000]);
        let answered = Arc::clone(&answered);
        match store.submit(
            batch,
            Box::new(move |_| {
                answered.fetch_add(1, Ordering::Relaxed);
            }),
        ) {
            Ok(()) => taken += 1,
            Err(busy) => break busy,
        }
        assert!(taken <= millrace_storage::QUEUE_JOBS_MAX, "the queue is bounded");
    };
    assert!(busy.to_string().contains("full"), "{busy}");
    assert_eq!(store.stats().busy, 1);
    release.send(()).unwrap();
    store.shutdown();
    assert_eq!(answered.load(Ordering::Relaxed), taken, "everything that was taken was answered");
}

#[test]
fn large_batches_are_bounded_by_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let (release, released) = mpsc::channel::<()>();
    let (entered, blocked) = mpsc::channel::<()>();
    let mut batch = Batch::new();
    batch.put_meta("first", b"1");
    let hold = Box::new(move |_| {
        entered.send(()).unwrap();
        released.recv().unwrap();
    });
    store.submit(batch, hold).unwrap();
    blocked.recv().unwrap();
    let mut taken = 0;
    loop {
        let mut batch = Batch::new();
        batch.put_meta("n", &vec![0; 8 << 20]);
        if store.submit(batch, Box::new(|_| ())).is_err() {
            break;
        }
        taken += 1;
    }
    assert!((7..=8).contains(&taken), "{taken} batches of 8 MiB fit into the 64 MiB of the queue");
    release.send(()).unwrap();
}

#[test]
fn after_shutdown_writes_answer_closed_and_reads_still_work() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let mut batch = Batch::new();
    batch.put_meta("a", b"b");
    store.commit(batch).unwrap();
    store.shutdown();
    store.shutdown();
    let error = store.commit(Batch::new()).unwrap_err();
    assert!(error.to_string().contains("shutting down"), "{error}");
    let (sender, receiver) = mpsc::channel();
    store.submit(Batch::new(), Box::new(move |result| sender.send(result.is_err()).unwrap())).unwrap();
    assert!(receiver.recv().unwrap());
    assert!(store.meta("a").unwrap().is_some());
}

#[test]
fn a_panicking_completion_harms_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let mut batch = Batch::new();
    batch.put_meta("a", b"1");
    store.submit(batch, Box::new(|_| panic!("a completion that panics on purpose"))).unwrap();
    let mut batch = Batch::new();
    batch.put_meta("b", b"1");
    store.commit(batch).unwrap();
    assert!(store.meta("a").unwrap().is_some());
}

/// The child of the kill test: writes and says so, until it is killed.
#[test]
#[ignore = "run by the kill test in a process of its own"]
fn child_that_is_killed() {
    use std::io::Write;
    let Ok(folder) = std::env::var("MILLRACE_KILL_FOLDER") else { return };
    let store: Store = rocks(std::path::Path::new(&folder));
    let start = store.meta("next").unwrap().map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
    for n in start.. {
        let mut batch = Batch::new();
        batch.append_message(T1, conversation(T1, "c"), &message(n, "payload"));
        batch.put_meta("next", &(n + 1).to_be_bytes());
        store.commit(batch).unwrap();
        println!("acknowledged {n}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn a_killed_process_loses_nothing_it_acknowledged() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let seed = seed();
    let mut random = Random::new(seed);
    let mut last = None;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::child_that_is_killed", "--ignored", "--nocapture"])
            .env("MILLRACE_KILL_FOLDER", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let wanted = 20 + random.below(300);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let acknowledged = lines.filter_map(|line| line.ok()?.strip_prefix("acknowledged ")?.parse::<u64>().ok());
        for n in acknowledged.take(usize::try_from(wanted).unwrap()) {
            last = Some(n);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = rocks(folder.path());
        let newest = store.messages(T1, conversation(T1, "c"), None, usize::MAX).unwrap();
        let last = last.expect("the child acknowledged something");
        assert!(newest.len() as u64 > last, "seed {seed}, round {round}: {} stored, {last} acknowledged", newest.len());
        assert!(newest.iter().enumerate().all(|(at, m)| m.seq == at as u64), "no gap");
        let next = u64::from_be_bytes(store.meta("next").unwrap().unwrap().try_into().unwrap());
        assert_eq!(next, newest.len() as u64, "both halves of the last batch or none");
    }
}
