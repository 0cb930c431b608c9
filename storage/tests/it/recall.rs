//! Recall: a fact of an earlier conversation is found by meaning, by words and by what it names,
//! by its owner only.

use crate::common::{Random, T1, T2, conversation, message, over, recall, rocks, seed, user};
use millrace_proto::id::{TenantId, UserId};
use millrace_storage::{Batch, MemoryBackend, MemoryWrite, ReadError, RecallQuery, Store};
use std::sync::{Arc, mpsc};

fn write(tenant: TenantId, user: UserId, chat: &str, seq: u64, text: &str, embedding: Vec<f32>) -> MemoryWrite {
    MemoryWrite {
        tenant,
        user,
        conversation: conversation(tenant, chat),
        seq,
        text: text.into(),
        at_ms: 1_000 + seq,
        embedding,
    }
}

fn query(tenant: TenantId, user: UserId, text: &str) -> RecallQuery {
    RecallQuery {
        tenant,
        user,
        text: text.into(),
        embedding: None,
        limit: 5,
        exclude: None,
        now_ms: 1_000_000,
        from_ms: 0,
        relevance_min: 0.0,
    }
}

fn commit(store: &Store, writes: Vec<MemoryWrite>) {
    let mut batch = Batch::new();
    writes.into_iter().for_each(|write| batch.remember(write));
    store.commit(batch).unwrap();
}

fn texts(store: &Store, query: RecallQuery) -> Vec<String> {
    recall(store, query).into_iter().map(|found| found.text).collect()
}

#[test]
fn a_fact_is_found_by_words_across_conversations_and_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    commit(
        &store,
        vec![
            write(T1, alice, "monday", 1, "My sailing boat is called Seagull and lies in Kiel.", vec![]),
            write(T1, alice, "monday", 5, "I had soup for lunch.", vec![]),
            write(T1, alice, "tuesday", 1, "The weather is nice.", vec![]),
        ],
    );
    let ask = || query(T1, alice, "what is the name of my boat?");
    assert_eq!(texts(&store, ask())[0], "My sailing boat is called Seagull and lies in Kiel.");
    drop(store);
    let store = rocks(folder.path());
    let found = recall(&store, ask());
    assert_eq!(found[0].text, "My sailing boat is called Seagull and lies in Kiel.");
    assert_eq!((found[0].conversation, found[0].seq), (conversation(T1, "monday"), 1));
    assert!(found[0].why.text > 0.0 && found[0].why.vector == 0.0);
}

#[test]
fn chinese_is_found_without_spaces() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    commit(
        &store,
        vec![
            write(T1, alice, "c", 1, "我的猫叫小黑，今年三岁了。", vec![]),
            write(T1, alice, "c", 9, "昨天下午我们去了公园。", vec![]),
        ],
    );
    assert_eq!(texts(&store, query(T1, alice, "你记得我的猫叫什么吗"))[0], "我的猫叫小黑，今年三岁了。");
}

#[test]
fn meaning_alone_finds_what_no_word_does() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    let axis = |at: usize| (0..8).map(|i| if i == at { 1.0 } else { 0.0 }).collect::<Vec<f32>>();
    commit(
        &store,
        vec![
            write(T1, alice, "a", 1, "zebra", axis(0)),
            write(T1, alice, "b", 1, "yak", axis(1)),
            write(T1, alice, "c", 1, "another model", vec![1.0; 3]),
        ],
    );
    let mut ask = query(T1, alice, "striped horse");
    ask.embedding = Some(axis(0));
    let found = recall(&store, ask.clone());
    assert_eq!(found[0].text, "zebra");
    assert!(found[0].why.vector > 0.0 && found[0].why.text == 0.0);
    assert!(found.iter().all(|found| found.text != "another model"), "vectors of another length do not compare");
    ask.embedding = Some(vec![1.0; 5]);
    assert_eq!(recall(&store, ask), []);
}

#[test]
fn a_thing_leads_to_what_was_said_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    commit(
        &store,
        vec![
            write(T1, alice, "a", 1, "My cousin Rosalind works with Bartholomew.", vec![]),
            write(T1, alice, "b", 1, "Yesterday Bartholomew moved away.", vec![]),
            write(T1, alice, "c", 1, "The tea is cold.", vec![]),
        ],
    );
    let found = recall(&store, query(T1, alice, "rosalind?"));
    assert_eq!(found[0].text, "My cousin Rosalind works with Bartholomew.");
    assert!(found[0].why.graph > 0.0);
    let second = found.iter().find(|found| found.text.starts_with("Yesterday")).expect("over the second hop");
    assert!(second.why.graph > 0.0 && second.why.text == 0.0);
    assert!(found.iter().all(|found| !found.text.contains("tea")));
}

#[test]
fn the_turn_beside_a_hit_comes_along() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    commit(
        &store,
        vec![
            write(T1, alice, "a", 4, "Where do you keep the spare key of the cottage?", vec![]),
            write(T1, alice, "a", 5, "Under the blue pot.", vec![]),
            write(T1, alice, "b", 5, "Under the red pot.", vec![]),
        ],
    );
    let found = texts(&store, query(T1, alice, "cottage spare key"));
    assert_eq!(found, ["Where do you keep the spare key of the cottage?", "Under the blue pot."]);
}

#[test]
fn nobody_recalls_what_is_not_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let vector = vec![1.0, 0.0];
    let secret = "The secret word is Gondola.";
    // The same user id in two tenants: the ids alone must not be what separates them.
    let shared_id = user(T1, "alice");
    commit(&store, vec![write(T1, shared_id, "c", 1, secret, vector.clone())]);
    commit(&store, vec![write(T2, shared_id, "d", 1, "Something else.", vector.clone())]);
    let ask = |tenant, user| {
        let mut ask = query(tenant, user, "what is the secret word Gondola");
        ask.embedding = Some(vector.clone());
        texts(&store, ask)
    };
    assert_eq!(ask(T1, shared_id), [secret]);
    assert_eq!(ask(T2, shared_id), ["Something else."]);
    assert_eq!(ask(T1, user(T1, "bob")), Vec::<String>::new());
    assert_eq!(ask(TenantId(9), shared_id), Vec::<String>::new());
}

#[test]
fn a_written_memory_is_found_as_soon_as_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    // Hot first, so that the update and not the load has to bring it.
    assert_eq!(recall(&store, query(T1, alice, "anything")), []);
    for n in 0..50u64 {
        commit(&store, vec![write(T1, alice, "c", n * 10, &format!("token{n}q is here"), vec![n as f32, 1.0])]);
        assert_eq!(texts(&store, query(T1, alice, &format!("token{n}q")))[0], format!("token{n}q is here"));
    }
}

#[test]
fn rewriting_a_turn_replaces_it_and_forgetting_removes_it() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    for hot in [false, true] {
        let store = rocks(&folder.path().join(hot.to_string()));
        commit(&store, vec![write(T1, alice, "c", 1, "My colour is Crimson.", vec![1.0, 0.0])]);
        if hot {
            assert_eq!(texts(&store, query(T1, alice, "crimson")).len(), 1);
        }
        commit(&store, vec![write(T1, alice, "c", 1, "My colour is Turquoise.", vec![0.0, 1.0])]);
        assert_eq!(texts(&store, query(T1, alice, "crimson")), Vec::<String>::new(), "hot: {hot}");
        assert_eq!(texts(&store, query(T1, alice, "turquoise")), ["My colour is Turquoise."]);
        commit(&store, vec![write(T1, alice, "c", 1, "My colour is Turquoise.", vec![0.0, 1.0])]);
        assert_eq!(texts(&store, query(T1, alice, "turquoise")).len(), 1, "a replayed turn is there once");
        let mut batch = Batch::new();
        batch.forget(T1, alice, conversation(T1, "c"), 1);
        store.commit(batch).unwrap();
        let mut ask = query(T1, alice, "turquoise");
        ask.embedding = Some(vec![0.0, 1.0]);
        assert_eq!(texts(&store, ask), Vec::<String>::new(), "hot: {hot}");
    }
}

#[test]
fn the_going_conversation_and_the_future_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    commit(
        &store,
        vec![
            write(T1, alice, "now", 1, "My lucky number is 4711.", vec![1.0, 0.0]),
            write(T1, alice, "then", 1, "My lucky number was 1234.", vec![1.0, 0.0]),
            write(T1, alice, "later", 5_000_000, "My lucky number will be 9999.", vec![1.0, 0.0]),
        ],
    );
    let mut ask = query(T1, alice, "what is my lucky number");
    ask.embedding = Some(vec![1.0, 0.0]);
    ask.exclude = Some(conversation(T1, "now"));
    assert_eq!(texts(&store, ask), ["My lucky number was 1234."]);
}

#[test]
fn bad_questions_are_refused_or_empty() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    commit(&store, vec![write(T1, alice, "c", 1, "text", vec![1.0])]);
    let mut ask = query(T1, alice, "");
    assert_eq!(recall(&store, ask.clone()), []);
    ask.limit = 0;
    ask.text = "text".into();
    assert_eq!(recall(&store, ask.clone()), []);
    ask.embedding = Some(vec![f32::NAN]);
    let (sender, receiver) = mpsc::channel();
    store.recall(ask, Box::new(move |result| sender.send(result).unwrap())).unwrap();
    assert!(matches!(receiver.recv().unwrap(), Err(ReadError::Invalid { .. })));
    let mut batch = Batch::new();
    batch.remember(write(T1, alice, "c", 2, "text", vec![1.0, f32::INFINITY]));
    let error = store.commit(batch).unwrap_err().to_string();
    assert!(error.contains("number 1") && error.contains("inf"), "{error}");
}

#[test]
fn a_full_recall_queue_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    let (release, released) = mpsc::channel::<()>();
    let released = Arc::new(std::sync::Mutex::new(released));
    let mut refused = false;
    for _ in 0..millrace_storage::READ_QUEUE_MAX + millrace_storage::READ_THREADS + 1 {
        let released = Arc::clone(&released);
        let wait = Box::new(move |_| {
            // Ends when the sender is dropped below.
            let _ = released.lock().unwrap().recv();
        });
        refused |= store.recall(query(T1, alice, "x"), wait).is_err();
    }
    assert!(refused);
    drop(release);
}

#[test]
fn the_time_that_a_question_names_decides_between_equals() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    let day = 86_400_000;
    // Thursday, 15 June 2023.
    let now_ms = 1_686_830_400_000;
    let dentist = |chat: &str, days_ago: u64| {
        let mut write = write(T1, alice, chat, 1, &format!("I was at the dentist, visit {chat}."), vec![]);
        write.at_ms = now_ms - days_ago * day;
        write
    };
    commit(&store, vec![dentist("a", 400), dentist("b", 35), dentist("c", 8), dentist("d", 1)]);
    let first = |text: &str| {
        let mut ask = query(T1, alice, text);
        ask.now_ms = now_ms;
        texts(&store, ask)[0].clone()
    };
    assert!(first("my dentist visit of yesterday").ends_with("visit d."));
    assert!(first("the dentist visit last week").ends_with("visit c."));
    assert!(first("the dentist visit in May").ends_with("visit b."));
    assert!(first("dentist last year").ends_with("visit a."));
    let mut ask = query(T1, alice, "dentist");
    (ask.now_ms, ask.from_ms) = (now_ms, now_ms - 10 * day);
    assert_eq!(texts(&store, ask).len(), 2, "only what was said from then on");
}

#[test]
fn what_hardly_touches_the_question_is_left_out_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let alice = user(T1, "alice");
    let store = rocks(folder.path());
    commit(
        &store,
        vec![
            write(T1, alice, "a", 1, "The blue whale is the largest animal of the ocean.", vec![]),
            write(T1, alice, "b", 1, "Blue paint for the garden fence.", vec![]),
            write(T1, alice, "c", 1, "Blue is my colour.", vec![]),
        ],
    );
    let mut ask = query(T1, alice, "largest blue animal in the ocean");
    let all = recall(&store, ask.clone());
    assert_eq!(all.len(), 3);
    assert!(all[0].relevance > 0.9 && all[2].relevance < 0.3, "{all:?}");
    ask.relevance_min = 0.5;
    assert_eq!(texts(&store, ask), ["The blue whale is the largest animal of the ocean."]);
}

/// Random writes, rewrites, removals and restarts against a plain list: the nearest by vector must be
/// exactly the nearest of the list.
#[test]
fn vector_recall_is_exact_under_random_changes() {
    let seed = seed();
    let mut random = Random::new(seed);
    let folder = tempfile::tempdir().unwrap();
    let kv = Arc::new(MemoryBackend::new());
    let alice = user(T1, "alice");
    let mut store = over(folder.path(), &kv);
    let mut model: std::collections::BTreeMap<u64, Vec<f32>> = std::collections::BTreeMap::new();
    for step in 0..400 {
        // Far apart, so that no turn is another's neighbour.
        let seq = random.below(60) * 10;
        match random.below(8) {
            0 => {
                let mut batch = Batch::new();
                batch.forget(T1, alice, conversation(T1, "c"), seq);
                store.commit(batch).unwrap();
                model.remove(&seq);
            }
            1 if random.below(4) == 0 => {
                drop(store);
                store = over(folder.path(), &kv);
            }
            _ => {
                let row = random.unit(12);
                commit(&store, vec![write(T1, alice, "c", seq, &format!("memory {seq} {step}"), row.clone())]);
                model.insert(seq, row);
            }
        }
        let probe = random.unit(12);
        let mut ask = query(T1, alice, "");
        ask.embedding = Some(probe.clone());
        ask.now_ms = u64::MAX;
        let found: Vec<u64> = recall(&store, ask).into_iter().map(|found| found.seq).collect();
        let dot = |row: &Vec<f32>| row.iter().zip(&probe).map(|(a, b)| a * b).sum::<f32>();
        let mut expected: Vec<(u64, f32)> = model.iter().map(|(seq, row)| (*seq, dot(row))).collect();
        expected.sort_by(|a, b| b.1.total_cmp(&a.1));
        assert_eq!(found.len(), expected.len().min(5), "seed {seed}, step {step}");
        for (rank, seq) in found.iter().enumerate() {
            let score = dot(&model[seq]);
            // Halves keep eleven bits: ranks may swap within that error only.
            assert!((score - expected[rank].1).abs() < 4e-3, "seed {seed}, step {step}, rank {rank}");
        }
    }
}

/// A whole book in one message: kept to the last byte, found by its words, and the next question is as quick as before.
#[test]
fn a_message_of_ten_megabytes_is_kept_whole_and_found() {
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let ada = user(T1, "ada");
    let mut text = String::with_capacity(10 << 20);
    let mut n = 0u64;
    while text.len() < (10 << 20) - 64 {
        text.push_str(&format!("chapter {n} tells of Marigold and number {} again. ", n % 977));
        n += 1;
    }
    text.push_str("The last word is quixotry.");
    commit(
        &store,
        vec![
            write(T1, ada, "book", 0, &text, vec![1.0, 0.0]),
            write(T1, ada, "book", 1, "The cat sleeps on the sofa.", vec![0.0, 1.0]),
        ],
    );
    let mut batch = Batch::new();
    let chat = conversation(T1, "book");
    batch.append_message(T1, chat, &message(0, &text));
    store.commit(batch).unwrap();
    assert_eq!(store.messages(T1, chat, None, 1).unwrap()[0].text, text);
    assert_eq!(texts(&store, query(T1, ada, "where does the cat sleep"))[0], "The cat sleeps on the sofa.");
    let found = texts(&store, query(T1, ada, "Marigold in chapter 1"));
    assert!(found.contains(&text));
    // Replacing it removes all of its words again.
    commit(&store, vec![write(T1, ada, "book", 0, "Only a short note about tulips.", vec![1.0, 0.0])]);
    assert!(!texts(&store, query(T1, ada, "Marigold")).contains(&text));
    // Beyond the bound: refused with the reason, nothing is kept of it.
    let mut batch = Batch::new();
    batch.remember(write(T1, ada, "book", 2, &"x".repeat((16 << 20) + 1), Vec::new()));
    let error = store.commit(batch).unwrap_err().to_string();
    assert!(error.contains("bound"), "{error}");
}

/// The clock of a machine is set back by a day, then forward by two, then stands at the end of time: nothing is lost,
/// and what lies ahead of a question is found once its time has come.
#[test]
fn a_clock_that_jumps_loses_no_memory() {
    const DAY: u64 = 86_400_000;
    const NOON: u64 = 1_767_225_600_000;
    let folder = tempfile::tempdir().unwrap();
    let store = rocks(folder.path());
    let ada = user(T1, "ada");
    let at = |seq, text: &str, at_ms| MemoryWrite { at_ms, ..write(T1, ada, &format!("c{seq}"), seq, text, vec![1.0]) };
    let ask = |store: &Store, now_ms| {
        let mut found = texts(store, RecallQuery { now_ms, ..query(T1, ada, "the violet key") });
        found.sort();
        found
    };
    commit(&store, vec![at(1, "the violet key lies here", NOON)]);
    commit(&store, vec![at(2, "the violet key lies there", NOON - DAY)]);
    commit(&store, vec![at(3, "the violet key lies nowhere", NOON + DAY)]);
    commit(&store, vec![at(4, "the violet key was first", 0)]);
    commit(&store, vec![at(5, "the violet key is last", u64::MAX)]);
    let (first, there, here) = ("the violet key was first", "the violet key lies there", "the violet key lies here");
    let (nowhere, last) = ("the violet key lies nowhere", "the violet key is last");
    fn expect(mut texts: Vec<&str>) -> Vec<&str> {
        texts.sort_unstable();
        texts
    }
    assert_eq!(ask(&store, NOON - DAY), expect(vec![first, there]));
    assert_eq!(ask(&store, NOON), expect(vec![first, there, here]));
    assert_eq!(ask(&store, NOON + 2 * DAY), expect(vec![first, there, here, nowhere]));
    assert_eq!(ask(&store, u64::MAX), expect(vec![first, there, here, nowhere, last]));
    drop(store);
    let store = rocks(folder.path());
    assert_eq!(ask(&store, u64::MAX).len(), 5);
    assert_eq!(ask(&store, 0), [first]);
    // A turn that is written again under an older clock replaces itself.
    commit(&store, vec![at(1, "the violet key lies here", NOON - 5 * DAY)]);
    assert_eq!(ask(&store, NOON - 4 * DAY), expect(vec![first, here]));
}
