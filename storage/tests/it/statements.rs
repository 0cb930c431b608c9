//! Statements with two times: kept, asked for as of then, sealed again under new keys, gone with their message and their user.

use crate::common::{T1, T2, conversation, holding, over, rocks, say, user};
use millrace_proto::statement::{SPEAKER, Statement};
use millrace_storage::{
    Batch, Cf, CommitError, Extracted, KvStore, MemoryBackend, PendingFrom, ScanRange, StatementQuery, Store,
};
use std::ops::ControlFlow;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

fn statement(relation: &str, object: &str, valid_from_ms: u64, seq: u64) -> Statement {
    Statement {
        subject: SPEAKER.into(),
        relation: relation.into(),
        object: object.into(),
        valid_from_ms,
        valid_to_ms: None,
        recorded_ms: valid_from_ms + 5,
        ended_ms: None,
        source: (conversation(T1, "alice"), seq),
        ended_by: None,
    }
}

/// `say` of common, with a message that waits.
fn say_and_wait(store: &Store, name: &str, text: &str) {
    say(store, name, text);
    let mut batch = Batch::new();
    batch.let_extract(T1, user(T1, name), conversation(T1, name), 1);
    store.commit(batch).unwrap();
}

fn extracted(name: &str, statements: Vec<Statement>) -> Batch {
    let messages = vec![(conversation(T1, name), 1)];
    let mut batch = Batch::new();
    batch.extracted(Extracted { tenant: T1, user: user(T1, name), messages, statements });
    batch
}

fn all(name: &str) -> StatementQuery {
    StatementQuery { tenant: T1, user: user(T1, name), subject: None, relation: None, as_of: None, limit: 100 }
}

fn objects(store: &Store, query: &StatementQuery) -> Vec<String> {
    let mut found: Vec<String> = store.statements_here(query).unwrap().into_iter().map(|s| s.object).collect();
    found.sort_unstable();
    found
}

#[test]
fn statements_are_asked_for_by_subject_relation_and_time() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    say_and_wait(&store, "alice", "I lived in Paris, then Rome, and like tea");
    let pending = store.pending_messages(&PendingFrom::default(), 10).unwrap().unwrap();
    assert_eq!((pending.messages.len(), pending.messages[0].at_ms), (1, 1_000));
    let paris = Statement {
        valid_to_ms: Some(200),
        ended_ms: Some(300),
        ended_by: Some((conversation(T1, "alice"), 7)),
        ..statement("lives_in", "Paris", 100, 1)
    };
    let statements = vec![paris.clone(), statement("lives_in", "Rome", 200, 1), statement("likes", "tea", 150, 1)];
    store.commit(extracted("alice", statements)).unwrap();
    assert_eq!(store.pending_messages(&PendingFrom::default(), 10).unwrap(), None);
    let check = |store: &Store| {
        assert_eq!(objects(store, &all("alice")), ["Paris", "Rome", "tea"]);
        let of = |relation: &str, as_of| StatementQuery {
            subject: Some("USER ".into()),
            relation: Some(relation.into()),
            as_of,
            ..all("alice")
        };
        let then = store.statements_here(&of("lives_in", Some((150, 1_000)))).unwrap();
        assert_eq!(then, std::slice::from_ref(&paris));
        assert_eq!(objects(store, &of("lives_in", Some((250, 1_000)))), ["Rome"]);
        assert_eq!(objects(store, &of("lives_in", Some((250, 250)))), ["Paris", "Rome"], "the end was not known yet");
        assert_eq!(objects(store, &of("likes", Some((100, 1_000)))), Vec::<String>::new());
        assert_eq!(objects(store, &StatementQuery { tenant: T2, ..all("alice") }), Vec::<String>::new());
        assert_eq!(objects(store, &all("bob")), Vec::<String>::new());
        let about = store.statements_about_here((T1, user(T1, "alice")), "Where do I live?", 1_000, 3).unwrap();
        assert_eq!(about.iter().map(|(s, share)| (s.object.as_str(), *share)).collect::<Vec<_>>(), [("Rome", 1.0)]);
    };
    check(&store);
    store.flush().unwrap();
    assert_eq!(holding(folder.path(), b"lives_in"), Vec::<std::path::PathBuf>::new(), "no word is in clear");
    drop(store);
    check(&rocks(folder.path()));
}

#[test]
fn what_does_not_wait_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    say_and_wait(&store, "alice", "I live in Paris");
    store.commit(extracted("alice", vec![statement("lives_in", "Paris", 100, 1)])).unwrap();
    let again = store.commit(extracted("alice", vec![statement("lives_in", "Rome", 200, 1)])).unwrap_err();
    assert!(matches!(again, CommitError::Forgotten), "{again}");
    assert_eq!(objects(&store, &all("alice")), ["Paris"]);
    // Nor for a user who never was: no key is made for one.
    let nobody = store.commit(extracted("nobody", Vec::new())).unwrap_err();
    assert!(matches!(nobody, CommitError::Forgotten), "{nobody}");
    say_and_wait(&store, "bob", "hello");
    for wrong in
        [statement("lives_in", "  ", 1, 1), statement("", "Paris", 1, 1), statement("lives_in", &"x".repeat(300), 1, 1)]
    {
        let error = store.commit(extracted("bob", vec![wrong])).unwrap_err();
        assert!(matches!(error, CommitError::Invalid { .. }), "{error}");
    }
}

#[test]
fn statements_go_with_their_message_and_with_their_user() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    for name in ["alice", "bob"] {
        say_and_wait(&store, name, "I live in Paris");
        let source = (conversation(T1, name), 1);
        let own = Statement { source, ..statement("lives_in", "Paris", 100, 1) };
        let other = Statement { source: (conversation(T1, name), 2), ..statement("likes", "tea", 100, 2) };
        store.commit(extracted(name, vec![own, other])).unwrap();
    }
    let mut batch = Batch::new();
    batch.forget(T1, user(T1, "alice"), conversation(T1, "alice"), 1);
    store.commit(batch).unwrap();
    assert_eq!(
        (objects(&store, &all("alice")), objects(&store, &all("bob"))),
        (vec!["tea".into()], vec!["Paris".into(), "tea".into()])
    );
    let (sender, receiver) = mpsc::channel();
    store.forget_user(T1, user(T1, "bob"), Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().unwrap();
    assert_eq!(objects(&store, &all("bob")), Vec::<String>::new());
    for cf in [Cf::EdgeOut, Cf::EdgeIn, Cf::Pending] {
        kv.scan(cf, ScanRange::forward(&[], &[0xff; 90]), &mut |key, _| {
            assert_ne!(&key[6..22], &user(T1, "bob").0[..], "{}", cf.name());
            ControlFlow::Continue(())
        })
        .unwrap();
    }
}

#[test]
fn new_keys_reach_the_words_of_statements() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    say_and_wait(&store, "alice", "I met Bob in Paris");
    store.commit(extracted("alice", vec![statement("lives_in", "Paris", 100, 1)])).unwrap();
    let epochs = || {
        let mut epochs = Vec::new();
        kv.scan(Cf::EdgeOut, ScanRange::forward(&[], &[0xff; 90]), &mut |_, value| {
            epochs.extend(value.get(54..56).map(|epoch| u16::from_be_bytes(epoch.try_into().unwrap())));
            ControlFlow::Continue(())
        })
        .unwrap();
        epochs
    };
    assert_eq!(epochs(), [1]);
    let (sender, receiver) = mpsc::channel();
    store.rotate_keys(T1, None, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    receiver.recv().unwrap().unwrap();
    let started = Instant::now();
    while store.stats().rotations_running > 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "the sweep does not end");
        std::thread::yield_now();
    }
    assert_eq!(epochs(), [2]);
    assert_eq!(objects(&store, &all("alice")), ["Paris"]);
}
