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
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/store-v1");
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
    assert_eq!(kv.get(Cf::Ctl, b"schema").unwrap(), Some(3u32.to_be_bytes().to_vec()));
}
