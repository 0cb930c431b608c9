//! One user's memory: exact search over 10,000 vectors, full recall over as many turns as all LoCoMo conversations
//! have, and how soon after its acknowledgement a write is found.

use crate::data::dot;
use crate::{Random, fresh, percentile, show, unit};
use anyhow::{Context, Result, ensure};
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_storage::{Batch, MemoryWrite, RELEVANCE_MIN, RecallQuery, Recalled, SpaceFilter, SpaceHit};
use millrace_storage::{SpaceQuery, SpaceWrite, Store, StoreOptions};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const DIM: usize = 384;
const EXACT_ROWS: usize = 10_000;
/// All turns of the ten LoCoMo conversations; one of its users has a tenth of them.
const TURNS: usize = 5_882;
const TURNS_PER_CONVERSATION: usize = 30;
const QUESTIONS: usize = 2_000;
const INSERTS: usize = 1_000;
const TENANT: TenantId = TenantId::DEFAULT;
const NOW_MS: u64 = 1_780_000_000_000;

pub fn measure(folder: &Path) -> Result<()> {
    let path = fresh(folder, "memory")?;
    let store = Store::open(&StoreOptions::new(&path))?;
    exact(&store)?;
    hybrid(&store)?;
    visible(&store)?;
    store.shutdown();
    drop(store);
    std::fs::remove_dir_all(&path).context("the store of the measurement cannot be removed")
}

fn recall(store: &Store, query: RecallQuery) -> Result<Vec<Recalled>> {
    let (done, answer) = mpsc::sync_channel(1);
    store.recall(query, Box::new(move |result| drop(done.send(result)))).context("the queue has room")?;
    Ok(answer.recv().context("an answer comes")??)
}

fn query(user: UserId, text: &str, embedding: Vec<f32>, relevance_min: f32) -> RecallQuery {
    RecallQuery {
        tenant: TENANT,
        user,
        text: text.into(),
        embedding: Some(embedding),
        limit: 10,
        exclude: None,
        now_ms: NOW_MS,
        from_ms: 0,
        relevance_min,
    }
}

fn ms(wait: Duration) -> f64 {
    wait.as_secs_f64() * 1e3
}

/// Rows around common centres, as sentences have them.
fn clustered(random: &mut Random, centres: &[Vec<f32>]) -> Vec<f32> {
    let centre = &centres[random.below(centres.len())];
    unit(centre.iter().map(|x| x + 0.9 * (random.share() - 0.5)).collect())
}

fn centres(random: &mut Random) -> Vec<Vec<f32>> {
    (0..100).map(|_| (0..DIM).map(|_| random.share() - 0.5).collect()).collect()
}

fn exact(store: &Store) -> Result<()> {
    let user = UserId::of(TENANT, "exact");
    let mut random = Random(1);
    let centres = centres(&mut random);
    let rows: Vec<Vec<f32>> = (0..EXACT_ROWS).map(|_| clustered(&mut random, &centres)).collect();
    for (n, some) in rows.chunks(500).enumerate() {
        let mut batch = Batch::new();
        for (at, row) in some.iter().enumerate() {
            let number = n * 500 + at;
            batch.remember(MemoryWrite {
                tenant: TENANT,
                user,
                // A conversation each: neighbours would lend their scores.
                conversation: ConversationId::of(TENANT, &format!("exact {number}")),
                seq: 0,
                text: format!("{number}"),
                at_ms: number as u64,
                embedding: row.clone(),
            });
        }
        store.commit(batch)?;
    }
    let ask = |row: &[f32]| recall(store, query(user, "", row.to_vec(), 0.0));
    ask(&rows[0])?;
    let mut waits = Vec::with_capacity(QUESTIONS);
    let (mut found, mut all) = (0, 0);
    for n in 0..QUESTIONS {
        let question = clustered(&mut random, &centres);
        let started = Instant::now();
        let hits = ask(&question)?;
        waits.push(started.elapsed());
        ensure!(hits.len() == 10, "a question found {} of 10", hits.len());
        if n % 40 == 0 {
            let got: BTreeSet<usize> = hits.iter().filter_map(|hit| hit.text.parse().ok()).collect();
            // Stored numbers are halves: what differs by less than that is a tie.
            let mut scores: Vec<(f32, usize)> =
                rows.iter().enumerate().map(|(at, row)| (dot(row, &question), at)).collect();
            scores.sort_by(|a, b| b.0.total_cmp(&a.0));
            let floor = scores[9].0 - 1e-3;
            found += got.iter().filter(|at| dot(&rows[**at], &question) >= floor).count();
            all += 10;
        }
    }
    let about = json!({ "p50_ms": ms(percentile(&mut waits, 0.5)), "recall": found as f64 / f64::from(all), "includes": "pool, fusion, reading 10 texts" });
    show("storage.exact.10k.p99_ms", ms(percentile(&mut waits, 0.99)), about);
    Ok(())
}

/// Words with the frequencies of a language: the n-th is 1/n as frequent as the first.
fn word(random: &mut Random) -> usize {
    (4_000f32.powf(random.share()) - 1.0) as usize
}

const NAMES: [&str; 12] =
    ["Caroline", "Melanie", "Jon", "Gina", "Nate", "Joanna", "Tim", "John", "Audrey", "Andrew", "Berlin", "Lake Tahoe"];

fn sentence(random: &mut Random, words: usize) -> (String, Vec<usize>) {
    let ids: Vec<usize> = (0..words).map(|_| word(random)).collect();
    let mut text: Vec<String> = ids.iter().map(|id| spelled(*id)).collect();
    if random.below(2) == 0 {
        text.insert(random.below(text.len()), NAMES[random.below(NAMES.len())].into());
    }
    if random.below(12) == 0 {
        text.push(format!("on {} May 2023", 1 + random.below(28)));
    }
    (text.join(" "), ids)
}

/// A pronounceable word of a number.
fn spelled(mut id: usize) -> String {
    const SYLLABLES: [&str; 20] = [
        "ba", "ko", "ri", "mo", "te", "su", "la", "ne", "di", "po", "ga", "vi", "zu", "fa", "he", "jo", "cu", "wa",
        "ye", "xi",
    ];
    let mut text = String::new();
    loop {
        text.push_str(SYLLABLES[id % 20]);
        id /= 20;
        if id == 0 {
            return text + "n";
        }
    }
}

/// The meaning of a text, as if by a model: the sum of one direction a word.
fn meaning(ids: &[usize]) -> Vec<f32> {
    let mut sum = vec![0.0; DIM];
    for id in ids {
        let mut random = Random(*id as u64);
        let weight = (2.0 + *id as f32).ln();
        sum.iter_mut().for_each(|x| *x += weight * (random.share() - 0.5));
    }
    unit(sum)
}

fn hybrid(store: &Store) -> Result<()> {
    let user = UserId::of(TENANT, "hybrid");
    let mut random = Random(2);
    let mut turns = Vec::with_capacity(TURNS);
    let mut batch = Batch::new();
    for n in 0..TURNS {
        let words = 8 + random.below(30);
        let (text, ids) = sentence(&mut random, words);
        batch.remember(MemoryWrite {
            tenant: TENANT,
            user,
            conversation: ConversationId::of(TENANT, &format!("talk {}", n / TURNS_PER_CONVERSATION)),
            seq: (n % TURNS_PER_CONVERSATION) as u64,
            text,
            at_ms: NOW_MS - (TURNS - n) as u64 * 600_000,
            embedding: meaning(&ids),
        });
        turns.push(ids);
        if batch.len() >= 100 {
            store.commit(std::mem::take(&mut batch))?;
        }
    }
    store.commit(batch)?;
    let mut waits = Vec::with_capacity(QUESTIONS);
    let mut load = Duration::ZERO;
    let mut hits_total = 0;
    for n in 0..=QUESTIONS {
        let about = &turns[random.below(TURNS)];
        let mut ids: Vec<usize> = (0..6).map(|_| about[random.below(about.len())]).collect();
        ids.extend((0..3).map(|_| word(&mut random)));
        let mut text: Vec<String> = ids.iter().map(|id| spelled(*id)).collect();
        text.insert(0, format!("When did {}", NAMES[random.below(NAMES.len())]));
        let query = query(user, &text.join(" "), meaning(&ids), RELEVANCE_MIN);
        let started = Instant::now();
        let hits = recall(store, query)?;
        let took = started.elapsed();
        if n == 0 {
            load = took;
        } else {
            waits.push(took);
            hits_total += hits.len();
        }
    }
    ensure!(hits_total > QUESTIONS, "the questions find something");
    let about = json!({ "turns": TURNS, "cold_ms": ms(load), "hits_mean": hits_total as f64 / QUESTIONS as f64 });
    show("storage.recall.p50_ms", ms(percentile(&mut waits, 0.5)), about);
    show(
        "storage.recall.p99_ms",
        ms(percentile(&mut waits, 0.99)),
        json!({ "max_ms": ms(percentile(&mut waits, 1.0)) }),
    );
    Ok(())
}

/// From the acknowledgement to an answer that holds what was written: a memory and a passage by turns.
fn visible(store: &Store) -> Result<()> {
    let user = UserId::of(TENANT, "hybrid");
    let mut random = Random(3);
    let mut waits = Vec::with_capacity(INSERTS);
    for n in 0..INSERTS {
        let row = unit((0..DIM).map(|_| random.share() - 0.5).collect());
        let text = format!("inserted {n}");
        let mut batch = Batch::new();
        let as_memory = n % 2 == 0;
        if as_memory {
            batch.remember(MemoryWrite {
                tenant: TENANT,
                user,
                conversation: ConversationId::of(TENANT, "inserts"),
                seq: n as u64,
                text: text.clone(),
                at_ms: NOW_MS - 1,
                embedding: row.clone(),
            });
        } else {
            let (space, tags, embedding) = ("inserts".to_owned(), vec!["figures".to_owned()], row.clone());
            let (tenant, text) = (TENANT, text.clone());
            batch.put_space(SpaceWrite { tenant, space, id: n as u64, text, embedding, owner: None, tags, at_ms: 1 });
        }
        store.commit(batch)?;
        let acknowledged = Instant::now();
        loop {
            let seen = if as_memory {
                recall(store, query(user, &text, row.clone(), 0.0))?.iter().any(|hit| hit.text == text)
            } else {
                search(store, &row)?.iter().any(|hit| hit.id == n as u64)
            };
            if seen {
                break;
            }
            ensure!(acknowledged.elapsed() < Duration::from_secs(10), "a write is not found after ten seconds");
        }
        waits.push(acknowledged.elapsed());
    }
    let about = json!({ "p50_ms": ms(percentile(&mut waits, 0.5)), "beside": format!("{TURNS} memories") });
    show("storage.insert_visible.p99_ms", ms(percentile(&mut waits, 0.99)), about);
    Ok(())
}

fn search(store: &Store, row: &[f32]) -> Result<Vec<SpaceHit>> {
    let (done, answer) = mpsc::sync_channel(1);
    let query = SpaceQuery {
        tenant: TENANT,
        space: "inserts".into(),
        embedding: row.to_vec(),
        limit: 1,
        filter: SpaceFilter::default(),
    };
    store.search_space(query, Box::new(move |result| drop(done.send(result)))).context("the queue has room")?;
    Ok(answer.recv().context("an answer comes")??)
}
