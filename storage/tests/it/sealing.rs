//! Nothing that a user said can be read from the disk, and nothing that was moved is believed.

use crate::common::{T1, conversation, head, job, message, over, user};
use millrace_proto::record::{Credential, DeliveryState, InboxRecord, Timer};
use millrace_storage::{Batch, Cf, MemoryBackend, MemoryWrite, ReadError, SpaceWrite, Store, StoreOptions};
use std::fs;
use std::path::Path;
use std::sync::Arc;

const PLANTED: &str = "xylophone-7391-planted";

/// Every place that text can enter the store by.
fn everything() -> Batch {
    let alice = user(T1, "alice");
    let mut batch = Batch::new();
    let mut session = head(T1, alice, "c", 1);
    session.name = PLANTED.into();
    session.title = PLANTED.into();
    batch.put_session(&session);
    batch.append_message(T1, session.conversation, &message(1, PLANTED));
    let mut effect = job(T1, "c", 1, PLANTED);
    effect.address.chat = PLANTED.into();
    batch.put_outbox(&effect);
    let done = job(T1, "c", 2, PLANTED);
    batch.put_outbox(&done);
    batch.finish_outbox(T1, &done.key, DeliveryState::Dead, PLANTED);
    batch.put_inbox(&InboxRecord {
        tenant: T1,
        user: alice,
        conversation: session.conversation,
        number: 1,
        address: effect.address,
        text: PLANTED.into(),
        event_key: PLANTED.into(),
        received_ms: 1,
        deadline_ms: 2,
        attempt: 0,
    });
    batch.put_dedup(T1, PLANTED, PLANTED, u64::MAX);
    batch.put_timer(&Timer {
        tenant: T1,
        conversation: session.conversation,
        id: 1,
        due_ms: 1,
        purpose: PLANTED.into(),
    });
    batch.put_credential(
        [1; 32],
        &Credential {
            tenant: T1,
            user_name: PLANTED.into(),
            label: PLANTED.into(),
            scopes: 1,
            created_ms: 1,
            revoked: false,
        },
    );
    batch.put_meta("name", PLANTED.as_bytes());
    batch.remember(MemoryWrite {
        tenant: T1,
        user: alice,
        conversation: session.conversation,
        seq: 1,
        text: format!("{PLANTED} said Xylophone Planted"),
        at_ms: 1,
        embedding: vec![PLANTED_NUMBER; 16],
    });
    batch.put_space(SpaceWrite {
        tenant: T1,
        space: PLANTED.into(),
        id: 1,
        text: PLANTED.into(),
        embedding: vec![PLANTED_NUMBER; 16],
        owner: Some(alice),
        tags: vec![PLANTED.into()],
        at_ms: 1,
    });
    batch
}

/// Exact in half precision too, so both forms can be looked for.
const PLANTED_NUMBER: f32 = 0.123_046_875;

fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle))
}

#[test]
fn no_file_holds_planted_text_or_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&StoreOptions::new(folder.path())).unwrap();
    store.commit(everything()).unwrap();
    let half = [0xe0u8, 0x2f].repeat(8);
    let single: Vec<u8> = PLANTED_NUMBER.to_le_bytes().repeat(4);
    let look = |when: &str| {
        let mut all = Vec::new();
        files(folder.path(), &mut all);
        assert!(all.len() > 3);
        for path in all {
            let bytes = fs::read(&path).unwrap();
            for needle in [PLANTED.as_bytes(), b"xylophone", &half, &single] {
                assert!(!contains(&bytes, needle), "{when}: {} holds planted data", path.display());
            }
        }
    };
    look("in the log");
    store.flush().unwrap();
    look("after a flush");
    store.shutdown();
    look("after the end");
}

#[test]
fn the_search_for_planted_data_would_find_it() {
    // The check above is only worth something if these forms are what a leak would look like.
    let half = half::f16::from_f32(PLANTED_NUMBER).to_le_bytes();
    assert_eq!(half, [0xe0, 0x2f]);
    assert!(contains(b"..XYLOPHONE..", b"xylophone"));
}

#[test]
fn a_changed_or_moved_value_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let store = over(folder.path(), &kv);
    let chat = conversation(T1, "c");
    let mut batch = Batch::new();
    batch.append_message(T1, chat, &message(1, "one"));
    batch.append_message(T1, chat, &message(2, "two"));
    store.commit(batch).unwrap();
    let rows: Vec<_> = kv.dump().into_iter().filter(|(cf, ..)| *cf == Cf::Msg).collect();
    let (first, second) = (&rows[0], &rows[1]);

    let corrupt = |what: &str| {
        let error = store.messages(T1, chat, None, 10).unwrap_err();
        assert!(matches!(error, ReadError::Corrupt { cf: "msg", .. }), "{what}: {error}");
    };
    // Every single-bit flip; those in epoch and owner name a key that there is not.
    for at in 0..first.2.len() {
        kv.tamper(Cf::Msg, &first.1, |value| value[at] ^= 1);
        let error = store.messages(T1, chat, None, 10).unwrap_err();
        match at {
            2 | 3 | 16..32 => assert!(matches!(error, ReadError::KeyGone { .. }), "byte {at}: {error}"),
            _ => assert!(matches!(error, ReadError::Corrupt { .. }), "byte {at}: {error}"),
        }
        kv.tamper(Cf::Msg, &first.1, |value| value[at] ^= 1);
    }
    kv.tamper(Cf::Msg, &first.1, |value| value.clone_from(&second.2));
    corrupt("a row copied over another");
    kv.tamper(Cf::Msg, &first.1, |value| *value = first.2[..first.2.len() / 2].to_vec());
    corrupt("a torn row");
    kv.tamper(Cf::Msg, &first.1, Vec::clear);
    corrupt("an empty row");
    kv.tamper(Cf::Msg, &first.1, |value| value.clone_from(&first.2));
    assert_eq!(store.messages(T1, chat, None, 10).unwrap().len(), 2);
}
