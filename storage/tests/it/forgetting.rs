//! A forgotten user is gone: from every read at once, from the memory, and from what old files still hold.

use crate::common::{Random, T1, conversation, copy_folder, holding, over, remembered, rocks, say, seed, user};
use millrace_storage::{
    Batch, Cf, CommitError, Fault, KvOp, KvStore, MemoryBackend, ReadError, RocksBackend, SpaceFilter, SpaceQuery,
    SpaceWrite, Store,
};
use std::fs;
use std::path::Path;
use std::sync::{Arc, mpsc};

const SECRET: &str = "the marmalade treaty of 1887";

/// The sealed rows of a copied database that are under a user's key.
fn rows_of(copy: &Path, cf: Cf, name: &str) -> Vec<Vec<u8>> {
    let engine = RocksBackend::open(copy, 1 << 20).unwrap();
    let mut rows = Vec::new();
    engine
        .scan(cf, millrace_storage::ScanRange::forward(&[], &[0xff; 64]), &mut |_, value| {
            rows.extend((value[16..32] == user(T1, name).0).then(|| value.to_vec()));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

fn forget(store: &Store, name: &str) -> Result<u64, CommitError> {
    let (sender, receiver) = mpsc::channel();
    store.forget_user(T1, user(T1, name), Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap()
}

fn assert_gone(store: &Store, name: &str) {
    let chat = conversation(T1, name);
    assert!(store.session(T1, chat).unwrap().is_none());
    assert!(store.sessions(T1, user(T1, name), 10).unwrap().is_empty());
    assert!(store.messages(T1, chat, None, 10).unwrap().is_empty());
    assert!(store.outbox_list(Some(T1), None, 10).unwrap().iter().all(|job| job.key.conversation != chat));
    assert_eq!(remembered(store, name, SECRET), Vec::<String>::new());
}

fn assert_there(store: &Store, name: &str, text: &str) {
    let chat = conversation(T1, name);
    assert_eq!(store.session(T1, chat).unwrap().unwrap().title, text);
    assert_eq!(store.messages(T1, chat, None, 10).unwrap()[0].text, text);
    assert_eq!(remembered(store, name, text), [text]);
}

/// The slot of the file of user keys in which the sealed key of the only user so far lies.
fn sealed_key(folder: &Path) -> Vec<u8> {
    let bytes = fs::read(folder.join("user-keys")).unwrap();
    assert_eq!(bytes.len(), 256, "a head and one slot");
    // Without the state byte and the zeros behind: what somebody would have to find again.
    bytes[129..129 + 114].to_vec()
}

#[test]
fn a_forgotten_user_is_gone_from_every_read_and_the_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    say(&store, "alice", SECRET);
    say(&store, "bob", "a boat called Windhover");
    // Hot before, so that the drop of the index is what is tested.
    assert_eq!(remembered(&store, "alice", SECRET), [SECRET]);
    forget(&store, "alice").unwrap();
    assert_gone(&store, "alice");
    assert_there(&store, "bob", "a boat called Windhover");
    assert_eq!(store.stats().users_forgotten, 1);
    forget(&store, "alice").unwrap();
    forget(&store, "never seen").unwrap();
    drop(store);
    let store = rocks(folder.path());
    assert_gone(&store, "alice");
    assert_there(&store, "bob", "a boat called Windhover");
    say(&store, "alice", "I am new here");
    assert_there(&store, "alice", "I am new here");
}

/// Log, tables, vector checkpoint and an older copy of the database: none holds the text, none the key, and
/// the ciphertext that the copy holds opens no more.
#[test]
fn what_old_files_still_hold_cannot_be_opened_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let (data, copy) = (folder.path().join("data"), folder.path().join("copy"));
    let store = rocks(&data);
    say(&store, "alice", SECRET);
    let key = sealed_key(&data);
    say(&store, "bob", "a boat called Windhover");
    store.flush().unwrap();
    store.checkpoint(&copy).unwrap();
    let ciphertext = rows_of(&copy, Cf::Mem, "alice").swap_remove(0);
    assert!(!holding(&data, &key).is_empty(), "the search would find the key");
    assert!(!holding(&data, &ciphertext[32..]).is_empty(), "the search would find the ciphertext");

    forget(&store, "alice").unwrap();
    let look = |when: &str| {
        assert_eq!(holding(&data, SECRET.as_bytes()), Vec::<std::path::PathBuf>::new(), "{when}");
        assert_eq!(holding(&data, &key), Vec::<std::path::PathBuf>::new(), "{when}");
    };
    look("at once");
    store.flush().unwrap();
    look("after a flush");
    store.shutdown();
    drop(store);
    look("after the end");

    // Somebody brings the older tables back: the rows are there again, and nobody opens them.
    fs::remove_dir_all(data.join("db")).unwrap();
    copy_folder(&copy, &data.join("db"));
    fs::remove_file(data.join("db/user-keys")).unwrap();
    let store = rocks(&data);
    let chat = conversation(T1, "alice");
    let error = store.session(T1, chat).unwrap_err();
    assert!(matches!(error, ReadError::Forgotten { tenant: 1 }), "{error}");
    assert!(store.messages(T1, chat, None, 10).unwrap().is_empty());
    assert_eq!(store.outbox_list(Some(T1), None, 10).unwrap().len(), 1, "lists pass over what nobody can read");
    assert_eq!(remembered(&store, "alice", SECRET), Vec::<String>::new());
    assert_there(&store, "bob", "a boat called Windhover");
}

/// The database was written and the process died before the key was overwritten.
#[test]
fn a_start_finishes_what_a_crash_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    say(&store, "alice", SECRET);
    let key = sealed_key(folder.path());
    let keys_before = fs::read(folder.path().join("user-keys")).unwrap();
    forget(&store, "alice").unwrap();
    drop(store);
    fs::write(folder.path().join("user-keys"), keys_before).unwrap();
    let note = [&b"f/"[..], &1u32.to_be_bytes(), &user(T1, "alice").0].concat();
    kv.apply(&[KvOp::Put(Cf::Ctl, note.clone(), 1u64.to_be_bytes().to_vec())], true).unwrap();
    assert!(!holding(folder.path(), &key).is_empty());
    let store = over(folder.path(), &kv);
    assert_eq!(holding(folder.path(), &key), Vec::<std::path::PathBuf>::new());
    assert_eq!(kv.get(Cf::Ctl, &note).unwrap(), None);
    assert_gone(&store, "alice");
}

#[test]
fn a_full_disk_forgets_nobody_in_part() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    say(&store, "alice", SECRET);
    kv.inject(Fault::NoSpace);
    let error = forget(&store, "alice").unwrap_err();
    assert!(matches!(error, CommitError::NoSpace { .. }), "{error}");
    assert_there(&store, "alice", SECRET);
}

#[test]
fn a_write_that_was_sealed_before_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    say(&store, "alice", SECRET);
    let (entered, blocked) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let mut hold = Batch::new();
    hold.put_meta("hold", b"1");
    let holding = Box::new(move |_| {
        entered.send(()).unwrap();
        released.recv().unwrap();
    });
    store.submit(hold, holding).unwrap();
    blocked.recv().unwrap();
    // Both wait behind the held group; the write is sealed with keys that the forgetting erases.
    let (sender, answers) = mpsc::channel();
    let tell = sender.clone();
    store.forget_user(T1, user(T1, "alice"), Box::new(move |result| tell.send(result).unwrap())).unwrap();
    let mut late = Batch::new();
    late.put_session(&crate::common::head(T1, user(T1, "alice"), "alice", 9));
    store.submit(late, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    release.send(()).unwrap();
    assert!(answers.recv().unwrap().is_ok());
    let error = answers.recv().unwrap().unwrap_err();
    assert!(matches!(error, CommitError::Forgotten) && !error.retryable(), "{error}");
    assert_gone(&store, "alice");
    say(&store, "alice", "I am new here");
    assert_there(&store, "alice", "I am new here");
}

fn passages(store: &Store, embedding: &[f32], who: Option<&str>) -> Vec<String> {
    let (sender, receiver) = mpsc::channel();
    let filter = SpaceFilter { user: who.map(|name| user(T1, name)), ..SpaceFilter::default() };
    let query = SpaceQuery { tenant: T1, space: "notes".into(), embedding: embedding.to_vec(), limit: 1, filter };
    store.search_space(query, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().unwrap().into_iter().map(|hit| hit.text).collect()
}

/// Passages of a shared space that belong to a user: their rows are under the user's key and their vectors in no segment
/// file, so that neither the files nor an older copy of the database bring them back.
#[test]
fn passages_of_a_forgotten_user_are_in_no_row_and_no_segment() {
    const ROWS: u64 = 9_000;
    let folder = tempfile::tempdir().unwrap();
    let (data, copy) = (folder.path().join("data"), folder.path().join("copy"));
    let store = rocks(&data);
    let mut random = Random::new(7);
    let (hers, his) = (random.unit(16), random.unit(16));
    let write = |id, text: &str, embedding: &[f32], owner: Option<&str>| SpaceWrite {
        tenant: T1,
        space: "notes".into(),
        id,
        text: text.into(),
        embedding: embedding.to_vec(),
        owner: owner.map(|name| user(T1, name)),
        tags: vec!["note".into()],
        at_ms: 1,
    };
    say(&store, "alice", "hello");
    let key = sealed_key(&data);
    let mut batch = Batch::new();
    batch.put_space(write(1, SECRET, &hers, Some("alice")));
    batch.put_space(write(2, "a boat called Windhover", &his, Some("bob")));
    // Hers once, everybody's now; and the other way round.
    batch.put_space(write(3, "the old treaty", &hers, Some("alice")));
    store.commit(batch).unwrap();
    for ids in (4..ROWS).collect::<Vec<_>>().chunks(1_000) {
        let mut batch = Batch::new();
        for id in ids {
            batch.put_space(write(*id, "of no interest", &random.unit(16), None));
        }
        batch.put_space(write(3, "the new treaty", &his, None));
        store.commit(batch).unwrap();
    }
    let started = std::time::Instant::now();
    assert_eq!(passages(&store, &hers, Some("alice")), [SECRET]);
    while store.stats().segments_sealed == 0 {
        assert!(started.elapsed() < std::time::Duration::from_secs(120), "no segment is built");
        std::thread::yield_now();
    }
    // A passage that is in a segment becomes hers.
    let mut batch = Batch::new();
    batch.put_space(write(5, "another secret", &hers.iter().map(|x| -x).collect::<Vec<_>>(), Some("alice")));
    store.commit(batch).unwrap();
    let other: Vec<f32> = hers.iter().map(|x| -x).collect();
    assert_eq!(passages(&store, &other, Some("alice")), ["another secret"]);
    assert_ne!(passages(&store, &other, None), ["another secret"]);
    store.flush().unwrap();
    store.checkpoint(&copy).unwrap();
    assert_eq!(rows_of(&copy, Cf::Space, "alice").len(), 2, "both of hers are under her key");

    forget(&store, "alice").unwrap();
    assert_ne!(passages(&store, &hers, Some("alice")), [SECRET]);
    assert_ne!(passages(&store, &other, Some("alice")), ["another secret"]);
    assert_eq!(passages(&store, &his, Some("bob")), ["a boat called Windhover"]);
    assert_eq!(holding(&data, SECRET.as_bytes()), Vec::<std::path::PathBuf>::new());
    assert_eq!(holding(&data, &key), Vec::<std::path::PathBuf>::new());
    store.shutdown();
    drop(store);

    // Somebody brings the older tables back, beside the segment files of today: her rows are there and do not open, and no
    // vector of hers is found through a segment.
    fs::remove_dir_all(data.join("db")).unwrap();
    copy_folder(&copy, &data.join("db"));
    fs::remove_file(data.join("db/user-keys")).unwrap();
    let store = rocks(&data);
    assert_eq!(store.stats().segments_rejected, 0);
    for near in [&hers, &other] {
        let found = passages(&store, near, Some("alice"));
        assert!(found == ["of no interest"] || found == ["the new treaty"], "{found:?}");
    }
    assert_eq!(passages(&store, &his, Some("bob")), ["a boat called Windhover"]);
    let stats = store.space_stats(T1, "notes").unwrap();
    // Numbers 3 to 8,999 are everybody's but for 5, and 2 is bob's.
    assert_eq!(stats.passages as u64, ROWS - 3 - 1 + 1, "{stats:?}");
}

/// The child of the kill test: writes users and forgets every second one, until it is killed.
#[test]
#[ignore = "run by the kill test in a process of its own"]
fn child_that_is_killed() {
    use std::io::Write;
    let Ok(folder) = std::env::var("MILLRACE_KILL_FOLDER") else { return };
    let store = rocks(Path::new(&folder));
    let start = store.meta("next").unwrap().map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
    for n in start.. {
        let mut batch = Batch::new();
        batch.put_meta("next", &(n + 1).to_be_bytes());
        store.commit(batch).unwrap();
        say(&store, &format!("user {n}"), SECRET);
        println!("said {n}");
        if n % 2 == 0 {
            forget(&store, &format!("user {n}")).unwrap();
            println!("forgot {n}");
        }
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn a_kill_leaves_every_user_whole_or_gone() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let folder = tempfile::tempdir().unwrap();
    let seed = seed();
    let mut random = Random::new(seed);
    let (mut said, mut forgot) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "forgetting::child_that_is_killed", "--ignored", "--nocapture"])
            .env("MILLRACE_KILL_FOLDER", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let wanted = usize::try_from(3 + random.below(60)).unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        for line in lines.filter(|line| line.starts_with("said ") || line.starts_with("forgot ")).take(wanted) {
            let (what, n) = line.split_once(' ').unwrap();
            if what == "said" { &mut said } else { &mut forgot }.push(n.parse::<u64>().unwrap());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let store = rocks(folder.path());
        for n in &said {
            let name = format!("user {n}");
            if forgot.contains(n) {
                assert_gone(&store, &name);
            } else if n % 2 == 1 {
                assert_there(&store, &name, SECRET);
            } else {
                // Being forgotten when the process died: whole or gone, never in part.
                match store.session(T1, conversation(T1, &name)) {
                    Ok(Some(_)) => assert_there(&store, &name, SECRET),
                    Ok(None) => assert_gone(&store, &name),
                    Err(error) => panic!("seed {seed}, round {round}, {name}: {error}"),
                }
            }
        }
    }
    assert!(!forgot.is_empty());
}
