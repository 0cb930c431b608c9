//! Stores for tests: on a disk of their own, or over a memory engine that can be made to fail.

use millrace_proto::id::{ConversationId, EffectKey, TenantId, UserId};
use millrace_proto::record::{ChatAddress, DeliveryState, Message, OutboxJob, Role, SessionHead, Timer};
use millrace_storage::{Batch, MemoryBackend, MemoryWrite, RecallQuery, Recalled, Store, StoreOptions};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;

pub const T1: TenantId = TenantId(1);
pub const T2: TenantId = TenantId(2);

pub fn rocks(path: &Path) -> Store {
    let mut options = StoreOptions::new(path);
    options.memory_bytes = 32 << 20;
    Store::open(&options).expect("a store opens")
}

/// A store over a shared memory engine; `path` only holds the key file.
pub fn over(path: &Path, kv: &Arc<MemoryBackend>) -> Store {
    let kv: Arc<MemoryBackend> = Arc::clone(kv);
    Store::open_on(&StoreOptions::new(path), kv).expect("a store opens")
}

pub fn user(tenant: TenantId, name: &str) -> UserId {
    UserId::of(tenant, name)
}

pub fn conversation(tenant: TenantId, name: &str) -> ConversationId {
    ConversationId::of(tenant, name)
}

pub fn message(seq: u64, text: &str) -> Message {
    Message { seq, turn: seq / 2, role: Role::User, text: text.into(), at_ms: 1_000 + seq, tokens: 3 }
}

pub fn head(tenant: TenantId, user: UserId, name: &str, updated_ms: u64) -> SessionHead {
    SessionHead {
        tenant,
        user,
        conversation: conversation(tenant, name),
        name: name.into(),
        title: format!("about {name}"),
        created_ms: 1,
        updated_ms,
        next_seq: 7,
        next_turn: 3,
        address: None,
    }
}

pub fn address() -> ChatAddress {
    ChatAddress {
        channel: "telegram".into(),
        account: "main".into(),
        chat: "4711".into(),
        thread: None,
        reply_to: Some("12".into()),
    }
}

pub fn job(tenant: TenantId, name: &str, turn: u64, text: &str) -> OutboxJob {
    OutboxJob {
        key: EffectKey { conversation: conversation(tenant, name), turn, step: 0 },
        tenant,
        address: address(),
        text: text.into(),
        created_ms: 1,
        due_ms: 2,
        expires_ms: 3,
        attempt: 0,
        state: DeliveryState::Pending,
        detail: String::new(),
    }
}

pub fn recall(store: &Store, query: RecallQuery) -> Vec<Recalled> {
    let (sender, receiver) = mpsc::channel();
    store.recall(query, Box::new(move |result| sender.send(result).unwrap())).expect("the queue has room");
    receiver.recv().expect("an answer comes").expect("recall answers")
}

/// A repeatable generator for tests; the seed is printed by the test that uses it.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// A unit vector.
    pub fn unit(&mut self, dim: usize) -> Vec<f32> {
        let mut row: Vec<f32> = (0..dim).map(|_| (self.next() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).collect();
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-6);
        row.iter_mut().for_each(|x| *x /= norm);
        row
    }
}

/// Writes a session with a message, a memory, a waiting reply and a timer of a user of tenant 1.
pub fn say(store: &Store, name: &str, text: &str) {
    let (owner, chat) = (user(T1, name), conversation(T1, name));
    let mut batch = Batch::new();
    let mut session = head(T1, owner, name, 1);
    session.title = text.into();
    batch.put_session(&session);
    batch.append_message(T1, chat, &message(1, text));
    batch.put_outbox(&job(T1, name, 1, text));
    batch.put_timer(&Timer { tenant: T1, conversation: chat, id: 1, due_ms: 5, purpose: text.into() });
    batch.remember(MemoryWrite {
        tenant: T1,
        user: owner,
        conversation: chat,
        seq: 1,
        text: text.into(),
        at_ms: 1_000,
        embedding: vec![0.5; 8],
    });
    store.commit(batch).expect("durable");
}

/// What the memory of a user of tenant 1 finds about a text.
pub fn remembered(store: &Store, name: &str, text: &str) -> Vec<String> {
    let query = RecallQuery {
        tenant: T1,
        user: user(T1, name),
        text: text.into(),
        embedding: Some(vec![0.5; 8]),
        limit: 10,
        exclude: None,
        now_ms: 2_000_000,
        from_ms: 0,
        relevance_min: 0.0,
    };
    recall(store, query).into_iter().map(|found| found.text).collect()
}

/// Every file below a folder.
pub fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Files that hold some bytes.
pub fn holding(folder: &Path, needle: &[u8]) -> Vec<std::path::PathBuf> {
    let holds = |path: &std::path::PathBuf| {
        std::fs::read(path).expect("a file").windows(needle.len()).any(|window| window == needle)
    };
    files(folder).into_iter().filter(holds).collect()
}

/// Copies a folder with everything in it.
pub fn copy_folder(from: &Path, to: &Path) {
    for path in files(from) {
        let target = to.join(path.strip_prefix(from).expect("below the folder"));
        std::fs::create_dir_all(target.parent().expect("a file has a folder")).expect("a folder");
        std::fs::copy(&path, target).expect("copied");
    }
}

/// A seed that differs between runs unless `MILLRACE_TEST_SEED` pins it.
pub fn seed() -> u64 {
    let seed = std::env::var("MILLRACE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    });
    println!("MILLRACE_TEST_SEED={seed}");
    seed
}
