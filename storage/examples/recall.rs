//! What recall costs: a user with 10,000 memories of 384 numbers, one question at a time, and the
//! resident memory of an idle store. Prints JSON lines.
//!
//! ```text
//! cargo run --release -p millrace-storage --example recall -- [FOLDER] [MEMORIES]
//! ```

use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_storage::{Batch, MemoryWrite, RecallQuery, Store, StoreOptions};
use std::error::Error;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Instant;

const DIM: usize = 384;
/// Different words; a few are frequent and most are rare, as in any language.
const VOCABULARY: f64 = 5_000.0;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().map_or_else(|| std::env::temp_dir().join("millrace-recall"), PathBuf::from);
    let memories: u64 = args.next().map_or(Ok(10_000), |text| text.parse())?;
    let _ = std::fs::remove_dir_all(&folder);
    let store = Store::open(&StoreOptions::new(&folder))?;
    println!("{{\"figure\":\"storage.idle_rss\",\"value\":{},\"unit\":\"KiB\"}}", resident_kib()?);
    let (tenant, user) = (TenantId::DEFAULT, UserId::of(TenantId::DEFAULT, "user"));
    let mut random = 7u64;
    let started = Instant::now();
    for first in (0..memories).step_by(200) {
        let mut batch = Batch::new();
        for n in first..(first + 200).min(memories) {
            batch.remember(MemoryWrite {
                tenant,
                user,
                conversation: ConversationId::of(tenant, &format!("talk {}", n / 40)),
                seq: n % 40,
                text: sentence(&mut random, n),
                at_ms: n,
                embedding: unit(&mut random),
            });
        }
        store.commit(batch)?;
    }
    let rate = memories as f64 / started.elapsed().as_secs_f64();
    println!("{{\"figure\":\"storage.remember\",\"value\":{rate:.0},\"unit\":\"memories/s\",\"dim\":{DIM}}}");
    let cold = ask(&store, tenant, user, &mut random)?;
    let mut waits = Vec::new();
    for _ in 0..500 {
        waits.push(ask(&store, tenant, user, &mut random)?);
    }
    waits.sort_unstable();
    println!(
        "{{\"figure\":\"storage.recall\",\"memories\":{memories},\"dim\":{DIM},\"unit\":\"us\",\"cold\":{cold},\"best\":{},\"p50\":{},\"p99\":{},\"rss_kib\":{}}}",
        waits[0],
        waits[waits.len() / 2],
        waits[waits.len() * 99 / 100],
        resident_kib()?
    );
    store.shutdown();
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn ask(store: &Store, tenant: TenantId, user: UserId, random: &mut u64) -> Result<u64, Box<dyn Error>> {
    let (sender, receiver) = mpsc::channel();
    let query = RecallQuery {
        tenant,
        user,
        text: format!(
            "what about {}, {} and {} of Person{}?",
            pick(random),
            pick(random),
            pick(random),
            next(random) % 300
        ),
        embedding: Some(unit(random)),
        limit: 10,
        exclude: None,
        now_ms: u64::MAX,
        from_ms: 0,
        relevance_min: 0.0,
    };
    let started = Instant::now();
    store.recall(query, Box::new(move |result| drop(sender.send(result))))?;
    let found = receiver.recv()??;
    assert_eq!(found.len(), 10);
    Ok(u64::try_from(started.elapsed().as_micros())?)
}

fn sentence(random: &mut u64, n: u64) -> String {
    let words: Vec<String> = (0..12).map(|_| pick(random)).collect();
    format!("On day {n} we spoke with Person{} about {}.", next(random) % 300, words.join(" and the "))
}

/// A word by Zipf's law: rank r is drawn with a probability in proportion to 1 / r.
fn pick(random: &mut u64) -> String {
    let share = (next(random) >> 11) as f64 / (1u64 << 53) as f64;
    format!("w{}", VOCABULARY.powf(share) as u64)
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

fn unit(random: &mut u64) -> Vec<f32> {
    let mut row: Vec<f32> = (0..DIM).map(|_| (next(random) >> 40) as f32 / (1u64 << 24) as f32 - 0.5).collect();
    let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
    row.iter_mut().for_each(|x| *x /= norm);
    row
}

fn resident_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number in VmRSS")?.parse()?)
}
