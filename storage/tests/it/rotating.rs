//! Keys change while the store serves: nothing is lost, nothing stays under the old ones, and the wrong key is named.

use crate::common::{T1, conversation, message, over, remembered, rocks, say, user};
use millrace_storage::{
    BackendKind, Batch, Cf, KeySource, KvStore, MemoryBackend, OpenError, RotateError, RotationDone, ScanRange, Store,
    StoreOptions, Suite,
};
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(60);

fn rotate(store: &Store, suite: Option<Suite>) -> RotationDone {
    let (sender, receiver) = mpsc::channel();
    store.rotate_keys(T1, suite, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv_timeout(WAIT).unwrap().unwrap()
}

fn rotate_master(store: &Store) -> Result<RotationDone, RotateError> {
    let (sender, receiver) = mpsc::channel();
    store.rotate_master_key(Box::new(move |result| sender.send(result).unwrap()))?;
    receiver.recv_timeout(WAIT).unwrap()
}

/// Waits for the end of the sweep.
fn settled(store: &Store) {
    let started = Instant::now();
    while store.stats().rotations_running > 0 {
        assert!(started.elapsed() < WAIT, "the sweep does not end");
        std::thread::yield_now();
    }
}

/// Algorithm and epoch of every sealed row of tenant 1 in a family.
fn stamps(kv: &dyn KvStore, cf: Cf) -> Vec<(u8, u16)> {
    let mut stamps = Vec::new();
    kv.scan(cf, ScanRange::forward(&[], &[0xff; 80]), &mut |_, value| {
        stamps.push((value[1], u16::from_be_bytes([value[2], value[3]])));
        ControlFlow::Continue(())
    })
    .unwrap();
    stamps
}

const FAMILIES: [Cf; 6] = [Cf::Sess, Cf::Msg, Cf::Outbox, Cf::Timer, Cf::Mem, Cf::Vec];

#[test]
fn every_row_comes_to_the_new_keys_while_others_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    let names: Vec<String> = (0..20).map(|n| format!("user {n}")).collect();
    for name in &names {
        say(&store, name, &format!("{name} likes plums"));
    }
    for cf in FAMILIES {
        assert!(stamps(&*kv, cf).iter().all(|stamp| *stamp == (1, 1)));
    }
    for (round, suite, wanted) in [(1, None, (1, 2)), (2, Some(Suite::Gm), (2, 3)), (3, Some(Suite::Intl), (1, 4))] {
        let writer = {
            let store = store.clone();
            std::thread::spawn(move || {
                for seq in 0..200 {
                    let mut batch = Batch::new();
                    batch.append_message(T1, conversation(T1, "user 3"), &message(round * 1_000 + seq, "meanwhile"));
                    store.commit(batch).unwrap();
                }
            })
        };
        assert_eq!(rotate(&store, suite), RotationDone { keys: 21 });
        writer.join().unwrap();
        settled(&store);
        // What was sealed just before the new key and stored after the sweep had passed is of the last epoch.
        for cf in FAMILIES {
            let stamps = stamps(&*kv, cf);
            let old = stamps.iter().filter(|stamp| **stamp != wanted).count();
            assert!(old <= 1, "{}: {old} of {} rows are old", cf.name(), stamps.len());
        }
        for name in &names {
            assert_eq!(remembered(&store, name, "plums"), [format!("{name} likes plums")]);
        }
    }
    assert_eq!(store.messages(T1, conversation(T1, "user 3"), None, 1_000).unwrap().len(), 601);
    drop(store);
    let store = over(folder.path(), &kv);
    assert_eq!(remembered(&store, "user 7", "plums"), ["user 7 likes plums"]);
}

#[test]
fn a_sweep_that_was_cut_off_goes_on_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    say(&store, "alice", "plums");
    let before = kv.dump();
    rotate(&store, None);
    settled(&store);
    drop(store);
    // As if it had died right after the new keys: the rows are the old ones, the note is there.
    for (cf, key, value) in before.into_iter().filter(|(cf, ..)| FAMILIES.contains(cf)) {
        kv.apply(&[millrace_storage::KvOp::Put(cf, key, value)], true).unwrap();
    }
    let note = [&b"r/"[..], &1u32.to_be_bytes()].concat();
    kv.apply(&[millrace_storage::KvOp::Put(Cf::Ctl, note.clone(), vec![])], true).unwrap();
    let store = over(folder.path(), &kv);
    let started = Instant::now();
    while kv.get(Cf::Ctl, &note).unwrap().is_some() {
        assert!(started.elapsed() < WAIT, "the sweep does not end");
        std::thread::yield_now();
    }
    for cf in FAMILIES {
        assert!(stamps(&*kv, cf).iter().all(|stamp| *stamp == (1, 2)), "{}", cf.name());
    }
    assert_eq!(remembered(&store, "alice", "plums"), ["plums"]);
}

#[test]
fn a_store_of_the_gm_suite_keeps_every_promise() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new(folder.path());
    options.suite = Suite::Gm;
    let store = Store::open(&options).unwrap();
    say(&store, "alice", "plums");
    assert_eq!(remembered(&store, "alice", "plums"), ["plums"]);
    drop(store);
    // The suite of the settings is for new tenants only: this one goes on as it was made.
    let store = rocks(folder.path());
    assert_eq!(remembered(&store, "alice", "plums"), ["plums"]);
    say(&store, "bob", "pears");
    drop(store);
    let engine = millrace_storage::RocksBackend::open(&folder.path().join("db"), 1 << 20).unwrap();
    for cf in FAMILIES {
        assert!(stamps(&engine, cf).iter().all(|stamp| *stamp == (2, 1)), "{}", cf.name());
    }
}

#[test]
fn a_new_master_key_opens_everything_and_the_old_one_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("store.key");
    let store = rocks(folder.path());
    say(&store, "alice", "plums");
    let old = fs::read(&key_file).unwrap();
    // Two tenants: the node itself has none yet, tenant 1 has one.
    assert_eq!(rotate_master(&store).unwrap(), RotationDone { keys: 1 });
    assert_eq!(remembered(&store, "alice", "plums"), ["plums"], "while serving");
    say(&store, "bob", "pears");
    drop(store);
    let new = fs::read(&key_file).unwrap();
    assert_ne!(new, old);
    assert_eq!(fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!folder.path().join("store.key.next").exists());
    let store = rocks(folder.path());
    assert_eq!(remembered(&store, "alice", "plums"), ["plums"]);
    drop(store);

    fs::write(&key_file, &old).unwrap();
    let error = Store::open(&StoreOptions::new(folder.path())).unwrap_err();
    assert!(matches!(error, OpenError::WrongKey { .. }), "{error}");
    // Cut off between the store and the rename: the next start ends it.
    write_key(&folder.path().join("store.key.next"), &new);
    let store = rocks(folder.path());
    assert_eq!(remembered(&store, "bob", "pears"), ["pears"]);
    drop(store);
    assert_eq!(fs::read(&key_file).unwrap(), new);
    // Cut off before the store was brought to it: the unused key goes.
    write_key(&folder.path().join("store.key.next"), &old);
    drop(rocks(folder.path()));
    assert!(!folder.path().join("store.key.next").exists());
}

fn write_key(path: &Path, line: &[u8]) {
    fs::write(path, line).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_command_gives_the_key_and_later_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let vault = folder.path().join("vault");
    let mut options = StoreOptions::new(folder.path().join("data"));
    options.key_source = KeySource::Command(format!("cat '{}'", vault.display()));
    let error = Store::open(&options).unwrap_err();
    assert!(matches!(error, OpenError::KeySource { .. }), "{error}");
    fs::write(&vault, "11".repeat(32)).unwrap();
    let store = Store::open(&options).unwrap();
    say(&store, "alice", "plums");
    let error = rotate_master(&store).unwrap_err();
    assert!(error.to_string().contains("still prints"), "{error}");
    fs::write(&vault, "22".repeat(32)).unwrap();
    assert_eq!(rotate_master(&store).unwrap(), RotationDone { keys: 1 });
    drop(store);
    assert_eq!(remembered(&Store::open(&options).unwrap(), "alice", "plums"), ["plums"]);
    fs::write(&vault, "11".repeat(32)).unwrap();
    let error = Store::open(&options).unwrap_err();
    assert!(matches!(error, OpenError::WrongKey { .. }), "{error}");
    assert!(!format!("{options:?}").contains("vault"), "a command may hold a token: {options:?}");
    assert!(!folder.path().join("data/store.key").exists());
}

/// Opens a store by the environment, in a process of its own, and says what came of it.
#[test]
#[ignore = "run by another test in a process of its own"]
fn child_with_a_key_in_its_environment() {
    let Ok(folder) = std::env::var("MILLRACE_TEST_FOLDER") else { return };
    let mut options = StoreOptions::new(folder);
    options.key_source = KeySource::Environment("MILLRACE_TEST_KEK".into());
    match Store::open(&options) {
        Ok(store) => {
            if remembered(&store, "alice", "plums").is_empty() {
                say(&store, "alice", "plums");
            }
            println!("opened: {:?}", remembered(&store, "alice", "plums"));
            println!("rotating: {}", rotate_master(&store).unwrap_err());
        }
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn the_environment_gives_the_key_and_the_one_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = |now: Option<&str>, before: Option<&str>| {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "rotating::child_with_a_key_in_its_environment", "--ignored", "--nocapture"]);
        child.env("MILLRACE_TEST_FOLDER", folder.path().join("data"));
        now.map(|digit| child.env("MILLRACE_TEST_KEK", digit.repeat(64)));
        before.map(|digit| child.env("MILLRACE_TEST_KEK_PREVIOUS", digit.repeat(64)));
        String::from_utf8(child.output().unwrap().stdout).unwrap()
    };
    assert!(run(None, None).contains("MILLRACE_TEST_KEK: it is not set"));
    let first = run(Some("1"), None);
    assert!(first.contains("opened: [\"plums\"]") && first.contains("_PREVIOUS"), "{first}");
    assert!(run(Some("2"), None).contains("does not belong to the store"));
    assert!(run(Some("2"), Some("1")).contains("opened: [\"plums\"]"));
    assert!(run(Some("2"), None).contains("opened: [\"plums\"]"));
    assert!(run(Some("1"), None).contains("does not belong to the store"));
    assert!(run(Some("x"), None).contains("not hexadecimal"));
}

#[test]
fn a_store_without_its_user_keys_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    say(&store, "alice", "plums");
    drop(store);
    fs::rename(folder.path().join("user-keys"), folder.path().join("away")).unwrap();
    let error = Store::open(&StoreOptions::new(folder.path())).unwrap_err();
    assert!(matches!(error, OpenError::UserKeysMissing { .. }), "{error}");
    fs::rename(folder.path().join("away"), folder.path().join("user-keys")).unwrap();
    assert_eq!(remembered(&rocks(folder.path()), "alice", "plums"), ["plums"]);
}

#[test]
fn a_checkpoint_carries_its_user_keys() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(&folder.path().join("a"));
    say(&store, "alice", "plums");
    fs::create_dir(folder.path().join("b")).unwrap();
    store.checkpoint(&folder.path().join("b/db")).unwrap();
    let mut options = StoreOptions::new(folder.path().join("b"));
    options.key_file = folder.path().join("a/store.key");
    assert_eq!(remembered(&Store::open(&options).unwrap(), "alice", "plums"), ["plums"]);
    assert!(folder.path().join("b/user-keys").exists());
}

#[test]
fn a_store_in_memory_rotates_and_forgets_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::new(folder.path().join("none"));
    options.backend = BackendKind::Memory;
    let store = Store::open(&options).unwrap();
    say(&store, "alice", "plums");
    rotate(&store, Some(Suite::Gm));
    settled(&store);
    assert_eq!(remembered(&store, "alice", "plums"), ["plums"]);
    let (sender, receiver) = mpsc::channel();
    store.forget_user(T1, user(T1, "alice"), Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().unwrap();
    assert!(remembered(&store, "alice", "plums").is_empty());
    assert!(!folder.path().join("none").exists(), "a store in memory leaves no files");
}
