//! Sessions, messages, credentials, named values.

use crate::common::{T1, T2, conversation, head, message, rocks, user};
use millrace_proto::record::{Credential, SCOPE_ADMIN};
use millrace_storage::{Batch, Here};
use std::sync::mpsc;

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let (alice, chat) = (user(T1, "alice"), conversation(T1, "c"));
    let store = rocks(folder.path());
    let mut batch = Batch::new();
    batch.put_session(&head(T1, alice, "c", 5));
    for seq in 0..5 {
        batch.append_message(T1, chat, &message(seq, &format!("text {seq}")));
    }
    let first = store.commit(batch).unwrap();
    store.shutdown();
    drop(store);

    let store = rocks(folder.path());
    assert_eq!(store.session(T1, chat).unwrap(), Some(head(T1, alice, "c", 5)));
    let texts: Vec<_> = store.messages(T1, chat, None, 3).unwrap().into_iter().map(|m| m.text).collect();
    assert_eq!(texts, ["text 2", "text 3", "text 4"], "the newest, in ascending order");
    let before: Vec<_> = store.messages(T1, chat, Some(2), 10).unwrap().into_iter().map(|m| m.seq).collect();
    assert_eq!(before, [0, 1]);
    assert_eq!(store.messages(T1, chat, Some(0), 10).unwrap(), []);
    let mut batch = Batch::new();
    batch.put_meta("a", b"b");
    assert!(store.commit(batch).unwrap() > first, "sequence numbers go on after a restart");
}

#[test]
fn long_histories_are_paged_completely() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let chat = conversation(T1, "c");
    let mut batch = Batch::new();
    for seq in 0..600 {
        batch.append_message(T1, chat, &message(seq, "x"));
    }
    store.commit(batch).unwrap();
    let all: Vec<_> = store.messages(T1, chat, None, usize::MAX).unwrap().into_iter().map(|m| m.seq).collect();
    assert_eq!(all, (0..600).collect::<Vec<_>>());
    assert_eq!(store.messages(T1, chat, None, 0).unwrap(), []);
}

#[test]
fn a_users_sessions_come_newest_first_and_nobody_elses() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let (alice, bob) = (user(T1, "alice"), user(T1, "bob"));
    let mut batch = Batch::new();
    batch.put_session(&head(T1, alice, "one", 10));
    batch.put_session(&head(T1, alice, "two", 30));
    batch.put_session(&head(T1, alice, "three", 20));
    batch.put_session(&head(T1, bob, "four", 40));
    batch.put_session(&head(T2, alice, "five", 50));
    store.commit(batch).unwrap();
    let names = |limit| -> Vec<String> {
        store.sessions(T1, alice, limit).unwrap().into_iter().map(|head| head.name).collect()
    };
    assert_eq!(names(10), ["two", "three", "one"]);
    assert_eq!(names(1), ["two"]);
    assert_eq!(store.sessions(T2, bob, 10).unwrap(), []);
    assert_eq!(store.session(T2, conversation(T1, "one")).unwrap(), None, "the id of another tenant's session");
}

#[test]
fn credentials_and_named_values_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let credential = Credential {
        tenant: T1,
        user_name: "root".into(),
        label: "first".into(),
        scopes: SCOPE_ADMIN,
        created_ms: 5,
        revoked: false,
    };
    let mut batch = Batch::new();
    batch.put_credential([7; 32], &credential);
    batch.put_meta("boot", b"42");
    store.commit(batch).unwrap();
    assert_eq!(store.credential(&[7; 32]).unwrap(), Some(credential.clone()));
    assert_eq!(store.credential(&[8; 32]).unwrap(), None);
    assert_eq!(store.credentials().unwrap(), [([7; 32], credential)]);
    assert_eq!(store.meta("boot").unwrap().as_deref(), Some(&b"42"[..]));
    assert_eq!(store.meta("other").unwrap(), None);
}

#[test]
fn an_invalid_batch_is_refused_whole_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let mut batch = Batch::new();
    batch.put_meta("good", b"1");
    batch.put_meta(&"n".repeat(500), b"1");
    let error = store.commit(batch).unwrap_err().to_string();
    assert!(error.contains("500") && error.contains("200"), "{error}");
    assert_eq!(store.meta("good").unwrap(), None);
}

/// A reactor never waits for a disk: what is cold is said to be elsewhere, comes from a read thread, and is here then.
#[test]
fn a_cold_session_is_elsewhere_until_it_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let (alice, chat) = (user(T1, "alice"), conversation(T1, "c"));
    {
        let store = rocks(folder.path());
        let mut batch = Batch::new();
        batch.put_session(&head(T1, alice, "c", 5));
        for seq in 0..40 {
            batch.append_message(T1, chat, &message(seq, &format!("text {seq}")));
        }
        store.commit(batch).unwrap();
        let Here::Found((warm, messages)) = store.load_here(T1, chat, 3).unwrap() else {
            panic!("it was just written")
        };
        assert_eq!((warm.unwrap().title, messages.len(), messages[0].seq), ("about c".into(), 3, 37));
        store.flush().unwrap();
        store.shutdown();
    }
    let store = rocks(folder.path());
    assert_eq!(store.load_here(T1, chat, 3).unwrap(), Here::Elsewhere);
    let (sender, receiver) = mpsc::channel();
    store.load(T1, chat, 3, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    let read = receiver.recv().unwrap().unwrap();
    assert_eq!(read.1.iter().map(|message| message.seq).collect::<Vec<_>>(), [37, 38, 39]);
    assert_eq!(store.load_here(T1, chat, 3).unwrap(), Here::Found(read));
    let (head, messages) = match store.load_here(T1, chat, 0).unwrap() {
        Here::Found(found) => found,
        Here::Elsewhere => panic!("the head is here"),
    };
    assert!(head.is_some() && messages.is_empty());
    // Nobody's session: the filters say so without the disk, once they are in memory.
    let (sender, receiver) = mpsc::channel();
    let nobody = conversation(T1, "nobody");
    store.load(T1, nobody, 3, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    assert_eq!(receiver.recv().unwrap().unwrap(), (None, Vec::new()));
    assert_eq!(store.load_here(T1, nobody, 3).unwrap(), Here::Found((None, Vec::new())));
}
