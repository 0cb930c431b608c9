//! The commit thread on a real disk: every figure includes the sync.
//!
//! The store lies under the build folder, because a temporary folder in memory would make the sync free.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use millrace_bench::inbox_record;
use millrace_proto::channel::ChannelKind;
use millrace_proto::record::{Message, Role};
use millrace_storage::{Batch, Store, StoreOptions};
use std::sync::mpsc;

/// What one accepted channel message writes: its inbox record, its dedup key, and the session's message.
fn accepted_message(n: u64) -> Batch {
    let mut record = inbox_record();
    record.number = n;
    record.event_key = n.to_string();
    let mut batch = Batch::new();
    batch.put_dedup(
        record.tenant,
        "telegram/shop",
        &record.event_key,
        record.received_ms + ChannelKind::Telegram.dedup_ttl_ms(),
    );
    batch.append_message(
        record.tenant,
        record.conversation,
        &Message {
            seq: n,
            turn: n,
            role: Role::User,
            text: record.text.clone(),
            at_ms: record.received_ms,
            tokens: 18,
        },
    );
    batch.put_inbox(&record);
    batch
}

fn commit(c: &mut Criterion) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder for the store");
    let store = Store::open(&StoreOptions::new(folder.path().join("store"))).expect("the store opens");
    let mut n = 0;
    let mut group = c.benchmark_group("durable acceptance of messages");
    group.sample_size(20);
    for waiting in [1, 16, 64, 256] {
        group.throughput(Throughput::Elements(waiting));
        group.bench_function(BenchmarkId::new("waiting at once", waiting), |b| {
            b.iter(|| {
                let (done, answers) = mpsc::channel();
                for _ in 0..waiting {
                    n += 1;
                    let done = done.clone();
                    let answered = Box::new(move |result| drop(done.send(result)));
                    store.submit(accepted_message(n), answered).expect("the queue has room");
                }
                for _ in 0..waiting {
                    answers.recv().expect("an answer").expect("durable");
                }
            });
        });
    }
    group.finish();
}

criterion_group!(benches, commit);
criterion_main!(benches);
