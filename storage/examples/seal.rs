//! What sealing and forgetting cost: one JSON line for each.
//!
//! ```text
//! cargo run --release -p millrace-storage --example seal -- [FOLDER]
//! ```

use millrace_proto::gm;
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{Message, Role, SessionHead};
use millrace_storage::{Batch, MemoryWrite, Store, StoreOptions, Suite, measure_seal};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Instant;

/// Appends a second at which the share of a core is told.
const APPENDS_S: f64 = 120_000.0;
const RECORD_BYTES: usize = 1_024;
/// Users who are forgotten, each with so many messages and memories of so many numbers.
const USERS: usize = 200;
const MEMORIES: u64 = 200;
const NUMBERS: usize = 384;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).map_or_else(|| std::env::temp_dir().join("millrace-seal"), PathBuf::from);
    for suite in [Suite::Intl, Suite::Gm] {
        let ns = ns_of(suite, RECORD_BYTES)?;
        println!(
            "{{\"test\":\"record\",\"suite\":\"{}\",\"bytes\":{RECORD_BYTES},\"ns\":{ns:.0},\"core_pct\":{:.2}}}",
            suite.as_str(),
            ns * APPENDS_S / 1e9 * 100.0
        );
    }
    for bytes in [RECORD_BYTES, 16 << 10, 64 << 10] {
        let mb_s = bytes as f64 / ns_of(Suite::Gm, bytes)? * 1e3;
        let set = gm::instruction_set();
        println!("{{\"test\":\"sm4_gcm\",\"bytes\":{bytes},\"mb_s\":{mb_s:.0},\"instruction_set\":\"{set}\"}}");
    }
    let _ = std::fs::remove_dir_all(&folder);
    let mut waits = forget(&folder)?;
    waits.sort_unstable();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    println!(
        "{{\"test\":\"shred\",\"users\":{USERS},\"memories\":{MEMORIES},\"p50_ms\":{:.3},\"p99_ms\":{:.3},\"max_ms\":{:.3}}}",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// The best of some runs: what the processor needs when nobody disturbs it.
fn ns_of(suite: Suite, bytes: usize) -> Result<f64, Box<dyn Error>> {
    let rounds = u32::try_from((32 << 20) / bytes)?;
    let mut best = f64::MAX;
    for _ in 0..7 {
        best = best.min(measure_seal(suite, bytes, rounds)?.as_nanos() as f64 / f64::from(rounds));
    }
    Ok(best)
}

/// Microseconds from asking until nothing of a user can be read any more.
fn forget(folder: &Path) -> Result<Vec<u64>, Box<dyn Error>> {
    let store = Store::open(&StoreOptions::new(folder))?;
    let tenant = TenantId::DEFAULT;
    let users: Vec<UserId> = (0..USERS).map(|n| UserId::of(tenant, &format!("user {n}"))).collect();
    for (n, user) in users.iter().enumerate() {
        let conversation = ConversationId::of(tenant, &format!("chat {n}"));
        let mut batch = Batch::new();
        batch.put_session(&SessionHead {
            tenant,
            user: *user,
            conversation,
            name: format!("chat {n}"),
            title: "a chat".into(),
            created_ms: 1,
            updated_ms: 1,
            next_seq: MEMORIES,
            next_turn: 1,
            address: None,
        });
        for seq in 0..MEMORIES {
            let text = format!("On day {seq} user {n} spoke of apples, ships and sealing wax to Mr {}.", seq % 17);
            let message = Message { seq, turn: seq, role: Role::User, text: text.clone(), at_ms: seq, tokens: 20 };
            batch.append_message(tenant, conversation, &message);
            let embedding = (0..NUMBERS).map(|at| ((at as u64 * 31 + seq) % 101) as f32 / 101.0 - 0.5).collect();
            batch.remember(MemoryWrite { tenant, user: *user, conversation, seq, text, at_ms: seq, embedding });
        }
        store.commit(batch)?;
    }
    let mut waits = Vec::with_capacity(users.len());
    for user in users {
        let (sender, receiver) = mpsc::channel();
        let started = Instant::now();
        store.forget_user(tenant, user, Box::new(move |result| drop(sender.send(result))))?;
        receiver.recv()??;
        waits.push(u64::try_from(started.elapsed().as_micros())?);
    }
    store.shutdown();
    Ok(waits)
}
