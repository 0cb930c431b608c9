//! Inbox, outbox, deduplication, timers.

use crate::common::{T1, T2, address, conversation, head, job, rocks, user};
use millrace_proto::record::{DeliveryState, InboxRecord, Timer};
use millrace_storage::{Batch, Store};

fn commit(store: &Store, fill: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::new();
    fill(&mut batch);
    store.commit(batch).unwrap();
}

#[test]
fn an_accepted_message_stays_open_until_its_turn_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let record = |name: &str, number| InboxRecord {
        tenant: T1,
        user: user(T1, "alice"),
        conversation: conversation(T1, name),
        number,
        address: address(),
        text: "hello".into(),
        event_key: "e1".into(),
        received_ms: 1,
        deadline_ms: 2,
        attempt: 0,
    };
    commit(&store, |batch| {
        batch.put_inbox(&record("a", 1));
        batch.put_inbox(&record("a", 2));
        batch.put_inbox(&record("b", 1));
    });
    assert_eq!(store.inbox_open().unwrap().len(), 3);
    commit(&store, |batch| batch.close_inbox(T1, conversation(T1, "a"), 1));
    let mut open = store.inbox_open().unwrap();
    open.sort_by_key(|record| record.number);
    assert_eq!(open, [record("b", 1), record("a", 2)]);
    let first = |name: &str| store.inbox_first(T1, conversation(T1, name)).unwrap().record;
    assert_eq!((first("a"), first("b"), first("c")), (Some(record("a", 2)), Some(record("b", 1)), None));
    let mut places = Vec::new();
    let each = &mut |tenant, conversation, number| {
        places.push((tenant, conversation, number));
        std::ops::ControlFlow::Continue(())
    };
    store.inbox_places(each).unwrap();
    places.sort_by_key(|(_, _, number)| *number);
    assert_eq!(places, [(T1, conversation(T1, "b"), 1), (T1, conversation(T1, "a"), 2)]);
}

#[test]
fn a_waiting_message_of_a_forgotten_user_is_named_and_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    // A group: the conversation is alice's, the first message that waits in it is bob's.
    let session = head(T1, user(T1, "alice"), "group", 1);
    let record = |name: &str, number| InboxRecord {
        tenant: T1,
        user: user(T1, name),
        conversation: session.conversation,
        number,
        address: address(),
        text: format!("hello from {name}"),
        event_key: number.to_string(),
        received_ms: 1,
        deadline_ms: 2,
        attempt: 1,
    };
    commit(&store, |batch| batch.put_session(&session));
    commit(&store, |batch| batch.put_inbox(&record("bob", 1)));
    commit(&store, |batch| batch.put_inbox(&record("alice", 2)));
    let (done, forgotten) = std::sync::mpsc::channel();
    store.forget_user(T1, user(T1, "bob"), Box::new(move |result| drop(done.send(result)))).unwrap();
    forgotten.recv().unwrap().unwrap();
    let first = store.inbox_first(T1, session.conversation).unwrap();
    assert_eq!((first.record, first.forgotten), (Some(record("alice", 2)), vec![1]));
}

#[test]
fn an_event_is_seen_once_per_tenant_and_scope_until_it_expires() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let seen = |tenant, scope, key, now| store.dedup_seen(tenant, scope, key, now).unwrap();
    assert!(!seen(T1, "telegram/main", "42", 0), "nothing was stored yet");
    commit(&store, |batch| batch.put_dedup(T1, "telegram/main", "42", 1_000));
    assert!(seen(T1, "telegram/main", "42", 999));
    assert!(!seen(T1, "telegram/main", "42", 1_000), "expired");
    assert!(!seen(T1, "telegram/other", "42", 0));
    assert!(!seen(T1, "telegram/main4", "2", 0), "parts do not run together");
    assert!(!seen(T2, "telegram/main", "42", 0));
    store.flush().unwrap();
    assert!(seen(T1, "telegram/main", "42", 999), "the compaction filter goes by the wall clock of the node");
}

#[test]
fn an_effect_lives_until_it_is_delivered_and_leaves_a_receipt() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let mut job = job(T1, "c", 4, "the reply");
    commit(&store, |batch| batch.put_outbox(&job));
    job.state = DeliveryState::Sending;
    job.attempt = 1;
    commit(&store, |batch| batch.put_outbox(&job));
    assert_eq!(store.outbox_open().unwrap(), [job.clone()], "the same key replaces the older row");
    commit(&store, |batch| batch.finish_outbox(T1, &job.key, DeliveryState::Delivered, "message 77"));
    assert_eq!(store.outbox_open().unwrap(), []);
    assert_eq!(store.outbox_job(T1, &job.key).unwrap(), None);
    let receipt = store.receipt(T1, &job.key, 0).unwrap().expect("a receipt");
    assert_eq!((receipt.state, receipt.detail.as_str()), (DeliveryState::Delivered, "message 77"));
    assert!(receipt.expires_ms > receipt.at_ms);
    assert_eq!(store.receipt(T1, &job.key, receipt.expires_ms).unwrap(), None);
}

#[test]
fn a_dead_letter_stays_listed_and_can_be_submitted_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let (dead, unknown, open) = (job(T1, "a", 1, "x"), job(T1, "b", 1, "y"), job(T2, "c", 1, "z"));
    commit(&store, |batch| {
        batch.put_outbox(&dead);
        batch.put_outbox(&unknown);
        batch.put_outbox(&open);
        batch.finish_outbox(T1, &dead.key, DeliveryState::Dead, "blocked by the user");
        batch.finish_outbox(T1, &unknown.key, DeliveryState::Unknown, "no answer");
    });
    assert_eq!(store.outbox_open().unwrap(), std::slice::from_ref(&open));
    let listed = store.outbox_list(None, Some(DeliveryState::Dead), 10).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].text.as_str(), listed[0].detail.as_str()), ("x", "blocked by the user"));
    assert_eq!(store.outbox_list(Some(T1), None, 10).unwrap().len(), 2);
    assert_eq!(store.outbox_list(None, None, 1).unwrap().len(), 1);
    commit(&store, |batch| batch.put_outbox(&dead));
    assert_eq!(store.outbox_job(T1, &dead.key).unwrap().unwrap().state, DeliveryState::Pending);
    assert_eq!(store.outbox_open().unwrap().len(), 2);
    commit(&store, |batch| batch.remove_outbox(T1, &unknown.key));
    assert_eq!(store.outbox_job(T1, &unknown.key).unwrap(), None);
}

#[test]
fn an_effect_cannot_end_half_way() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let mut batch = Batch::new();
    batch.finish_outbox(T1, &job(T1, "a", 1, "x").key, DeliveryState::Sending, "");
    assert!(store.commit(batch).unwrap_err().to_string().contains("sending"));
}

#[test]
fn timers_are_due_in_order_over_all_tenants() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let timer = |tenant, due_ms, id| Timer {
        tenant,
        conversation: conversation(tenant, "c"),
        id,
        due_ms,
        purpose: "wake".into(),
    };
    commit(&store, |batch| {
        batch.put_timer(&timer(T1, 300, 1));
        batch.put_timer(&timer(T2, 100, 2));
        batch.put_timer(&timer(T1, 200, 3));
    });
    assert_eq!(store.timers_due(99, 10).unwrap(), []);
    assert_eq!(store.timers_due(200, 10).unwrap(), [timer(T2, 100, 2), timer(T1, 200, 3)]);
    assert_eq!(store.timers_due(u64::MAX, 2).unwrap().len(), 2);
    commit(&store, |batch| batch.remove_timer(&timer(T2, 100, 2)));
    assert_eq!(store.timers_due(250, 10).unwrap(), [timer(T1, 200, 3)]);
}
