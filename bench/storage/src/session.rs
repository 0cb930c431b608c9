//! Reading the head of a session that is in memory: found, opened, validated, decoded.

use crate::{Random, fresh, percentile, show};
use anyhow::{Context, Result};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{Message, Role, SessionHead};
use millrace_storage::{Batch, Store, StoreOptions};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

const SESSIONS: usize = 10_000;
const READS: usize = 200_000;
/// Messages that a context takes.
const CONTEXT: usize = 20;

pub fn measure(folder: &Path) -> Result<()> {
    let path = fresh(folder, "session")?;
    let store = Store::open(&StoreOptions::new(&path))?;
    let tenant = TenantId::DEFAULT;
    let conversations: Vec<ConversationId> =
        (0..SESSIONS).map(|n| ConversationId::of(tenant, &format!("chat {n}"))).collect();
    for (n, some) in conversations.chunks(500).enumerate() {
        let mut batch = Batch::new();
        for (at, conversation) in some.iter().enumerate() {
            let name = format!("chat {}", n * 500 + at);
            batch.put_session(&SessionHead {
                tenant,
                user: UserId::of(tenant, &name),
                conversation: *conversation,
                title: "What the printer on the second floor needs".into(),
                name,
                created_ms: 1,
                updated_ms: 2,
                next_seq: 40,
                next_turn: 20,
                address: None,
            });
        }
        store.commit(batch)?;
    }
    let mut batch = Batch::new();
    for seq in 0..CONTEXT as u64 {
        let text = "The printer on the second floor does not start since Monday, what should I check first? ".repeat(4);
        let message = Message { seq, turn: seq, role: Role::User, text, at_ms: seq, tokens: 90 };
        batch.append_message(tenant, conversations[0], &message);
    }
    store.commit(batch)?;
    store.flush()?;
    let mut random = Random(7);
    let mut waits = Vec::with_capacity(READS);
    // The first tenth brings everything into memory.
    for n in 0..READS + READS / 10 {
        let conversation = conversations[random.below(SESSIONS)];
        let started = Instant::now();
        let head = store.session(tenant, conversation)?.context("the session is there")?;
        let took = started.elapsed();
        anyhow::ensure!(head.conversation == conversation, "another session was read");
        if n >= READS / 10 {
            waits.push(took);
        }
    }
    let mut contexts = Vec::with_capacity(5_000);
    for _ in 0..5_000 {
        let started = Instant::now();
        anyhow::ensure!(store.messages(tenant, conversations[0], None, CONTEXT)?.len() == CONTEXT);
        contexts.push(started.elapsed());
    }
    let us = |share, waits: &mut [_]| percentile(waits, share).as_nanos() as f64 / 1e3;
    let about = json!({ "sessions": SESSIONS, "p50_us": us(0.5, &mut waits), "context_of_20_p50_us": us(0.5, &mut contexts), "context_of_20_p99_us": us(0.99, &mut contexts) });
    show("storage.session_read.p99_us", us(0.99, &mut waits), about);
    store.shutdown();
    drop(store);
    std::fs::remove_dir_all(&path).context("the store of the measurement cannot be removed")
}
