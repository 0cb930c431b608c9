//! A store that an older program wrote opens, keeps everything and answers like a new one.
//!
//! `tests/data/store-v1` was written by the program of schema 1: one session of three messages that are remembered
//! too, one passage of a shared space, a deduplication key and a named value.

use crate::common::{T1, conversation, recall, user};
use millrace_storage::{
    Batch, Cf, KvOp, KvStore, MemoryBackend, RecallQuery, SpaceFilter, SpaceQuery, Store, StoreOptions,
};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, mpsc};

fn copy_of_v1(to: &Path) {
    copy_of("store-v1", to);
}

fn copy_of(name: &str, to: &Path) {
    let from = Path::new("tests/data").join(name);
    fs::create_dir_all(to.join("db")).unwrap();
    for entry in fs::read_dir(from.join("db")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join("db").join(entry.file_name())).unwrap();
    }
    fs::copy(from.join("store.key"), to.join("store.key")).unwrap();
    // A checkout does not keep the mode.
    fs::set_permissions(to.join("store.key"), fs::Permissions::from_mode(0o600)).unwrap();
}

fn ask(store: &Store, text: &str) -> Vec<String> {
    let query = RecallQuery {
        tenant: T1,
        user: user(T1, "alice"),
        text: text.into(),
        embedding: None,
        limit: 1,
        exclude: None,
        now_ms: 1_000_000,
        from_ms: 0,
        relevance_min: 0.0,
    };
    recall(store, query).into_iter().map(|found| found.text).collect()
}

fn check(store: &Store) {
    let chat = conversation(T1, "old chat");
    assert_eq!(store.session(T1, chat).unwrap().unwrap().title, "painting");
    assert_eq!(store.messages(T1, chat, None, 10).unwrap().len(), 3);
    assert_eq!(store.meta("note").unwrap().as_deref(), Some(&b"written by schema 1"[..]));
    assert!(store.dedup_seen(T1, "telegram", "event-1", 5).unwrap());
    // By its stem, which schema 1 did not index; by what it names; without spaces.
    assert_eq!(ask(store, "who painted"), ["I was painting the fence of Greenfield Cottage."]);
    assert_eq!(ask(store, "greenfield?"), ["I was painting the fence of Greenfield Cottage."]);
    assert_eq!(ask(store, "我的猫叫什么"), ["我的猫叫小黑，今年三岁了。"]);
    let (sender, receiver) = mpsc::channel();
    let query = SpaceQuery {
        tenant: T1,
        space: "handbook".into(),
        embedding: vec![0.5; 4],
        limit: 1,
        filter: SpaceFilter::default(),
    };
    store.search_space(query, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    assert_eq!(receiver.recv().unwrap().unwrap()[0].text, "Holidays are asked for in March.");
}

#[test]
fn a_store_of_the_first_schema_opens_and_stays_open_for_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    copy_of_v1(folder.path());
    let options = StoreOptions::new(folder.path());
    let store = Store::open(&options).unwrap();
    check(&store);
    let mut batch = Batch::new();
    batch.forget(T1, user(T1, "alice"), conversation(T1, "old chat"), 1);
    store.commit(batch).unwrap();
    assert_eq!(ask(&store, "who painted"), Vec::<String>::new(), "nothing of the old index is left behind");
    drop(store);
    assert_eq!(Store::open(&options).unwrap().messages(T1, conversation(T1, "old chat"), None, 10).unwrap().len(), 3);
}

#[test]
fn an_upgrade_that_was_cut_off_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    copy_of_v1(folder.path());
    let options = StoreOptions::new(folder.path());
    drop(Store::open(&options).unwrap());
    let engine = millrace_storage::RocksBackend::open(&folder.path().join("db"), 1 << 20).unwrap();
    // As if it had stopped after removing the old index: no postings, the old number.
    let old = [
        KvOp::DeleteRange(Cf::Post, vec![], vec![u8::MAX; 80]),
        KvOp::Put(Cf::Ctl, b"schema".to_vec(), 1u32.to_be_bytes().to_vec()),
    ];
    engine.apply(&old, true).unwrap();
    drop(engine);
    check(&Store::open(&options).unwrap());
}

#[test]
fn a_new_store_has_the_newest_schema() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    drop(crate::common::over(folder.path(), &kv));
    assert_eq!(kv.get(Cf::Ctl, b"schema").unwrap(), Some(5u32.to_be_bytes().to_vec()));
}

/// `tests/data/store-v2` was written by the program of schema 2: of alice and bob each a session of three messages that are
/// remembered too, an open and a dead reply, an open inbox record and a timer; a passage, a credential, a named value.
fn check_v2(store: &Store, names: &[&str]) {
    for (name, memory) in
        [("alice", "I was painting the fence of Greenfield Cottage."), ("bob", "My boat is called Windhover.")]
    {
        let (owner, chat) = (user(T1, name), conversation(T1, &format!("old chat of {name}")));
        let jobs = store.outbox_list(Some(T1), None, 10).unwrap();
        let jobs: Vec<&str> = jobs.iter().filter(|job| job.key.conversation == chat).map(|job| &*job.text).collect();
        let inbox = store.inbox_open().unwrap();
        let inbox: Vec<&str> = inbox.iter().filter(|row| row.conversation == chat).map(|row| &*row.text).collect();
        if names.contains(&name) {
            assert_eq!(store.session(T1, chat).unwrap().unwrap().title, format!("talk of {name}"));
            assert_eq!(store.sessions(T1, owner, 10).unwrap().len(), 1);
            assert_eq!(store.messages(T1, chat, None, 10).unwrap().len(), 3);
            assert_eq!(crate::common::remembered(store, name, memory)[0], memory);
            assert_eq!(jobs.len(), 2, "{jobs:?}");
            assert_eq!(inbox, [format!("still open from {name}")]);
        } else {
            assert!(store.session(T1, chat).unwrap().is_none());
            assert!(store.messages(T1, chat, None, 10).unwrap().is_empty());
            assert!(crate::common::remembered(store, name, memory).is_empty());
            assert!(jobs.is_empty() && inbox.is_empty());
        }
    }
    assert_eq!(store.meta("note").unwrap().as_deref(), Some(&b"written by schema 2"[..]));
    assert_eq!(store.credential(&[9; 32]).unwrap().unwrap().label, "old");
    assert!(store.dedup_seen(T1, "telegram", "event-1", 5).unwrap());
}

#[test]
fn a_store_of_the_second_schema_is_sealed_by_user_and_forgets_like_a_new_one() {
    let folder = tempfile::tempdir().unwrap();
    copy_of("store-v2", folder.path());
    let options = StoreOptions::new(folder.path());
    let store = Store::open(&options).unwrap();
    check_v2(&store, &["alice", "bob"]);
    drop(store);
    // Nothing is left under the tenant's key that belongs to a user, in any file.
    let engine = millrace_storage::RocksBackend::open(&folder.path().join("db"), 1 << 20).unwrap();
    let users = [user(T1, "alice").0, user(T1, "bob").0];
    for (cf, offset) in [
        (Cf::Sess, 0),
        (Cf::Msg, 0),
        (Cf::Inbox, 0),
        (Cf::Outbox, 0),
        (Cf::Receipt, 8),
        (Cf::Timer, 0),
        (Cf::Mem, 0),
        (Cf::Vec, 0),
    ] {
        let mut rows = 0;
        engine
            .scan(cf, millrace_storage::ScanRange::forward(&[], &[0xff; 80]), &mut |_, value| {
                rows += 1;
                assert!(
                    value[offset] == 2 && users.iter().any(|id| value[offset + 16..offset + 32] == *id),
                    "{}",
                    cf.name()
                );
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        assert!(rows >= 2, "{}: {rows}", cf.name());
    }
    drop(engine);
    let store = Store::open(&options).unwrap();
    let (sender, receiver) = mpsc::channel();
    store.forget_user(T1, user(T1, "alice"), Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().unwrap();
    check_v2(&store, &["bob"]);
    drop(store);
    check_v2(&Store::open(&options).unwrap(), &["bob"]);
}

/// A kill in the middle of the upgrade: some rows are of the new form, the number is the old one.
#[test]
fn an_upgrade_of_the_second_schema_that_was_cut_off_is_done_again() {
    let folder = tempfile::tempdir().unwrap();
    copy_of("store-v2", folder.path());
    let options = StoreOptions::new(folder.path());
    let engine = millrace_storage::RocksBackend::open(&folder.path().join("db"), 1 << 20).unwrap();
    let mut old = Vec::new();
    engine
        .scan(Cf::Msg, millrace_storage::ScanRange::forward(&[], &[0xff; 80]), &mut |key, value| {
            old.push(KvOp::Put(Cf::Msg, key.to_vec(), value.to_vec()));
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    drop(engine);
    drop(Store::open(&options).unwrap());
    let engine = millrace_storage::RocksBackend::open(&folder.path().join("db"), 1 << 20).unwrap();
    old.push(KvOp::Put(Cf::Ctl, b"schema".to_vec(), 2u32.to_be_bytes().to_vec()));
    engine.apply(&old, true).unwrap();
    drop(engine);
    check_v2(&Store::open(&options).unwrap(), &["alice", "bob"]);
}
