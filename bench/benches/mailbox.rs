//! The ring into a shard: the cost of a message without a wake-up, and a round trip between two reactors.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace_dataplane::shard::mailbox::{Receiver, Sender, channel};
use millrace_dataplane::shard::reactor::{Preference, build, probe};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// About the size of a shard message.
type Message = [u64; 12];

/// Takes a message so that the compiler cannot leave it out.
fn see(message: Message) {
    black_box(&message);
}

fn one_thread(c: &mut Criterion) {
    let mut group = c.benchmark_group("mailbox, one thread");
    let (sender, receiver) = channel::<Message>(8192);
    group.throughput(Throughput::Elements(1));
    group.bench_function("send and take one", |b| {
        b.iter(|| {
            sender.send(black_box([7; 12])).expect("room");
            receiver.drain(1, see)
        });
    });
    group.throughput(Throughput::Elements(64));
    group.bench_function("push 64, wake once, drain", |b| {
        b.iter(|| {
            for n in 0..64 {
                sender.push(black_box([n; 12])).expect("room");
            }
            sender.wake();
            receiver.drain(1024, see)
        });
    });
    group.finish();
}

/// Answers every message with the same message until its sender is gone.
fn echo(inbox: Receiver<Message>, out: Sender<Message>) {
    let backend = probe(Preference::Auto).expect("a reactor works here").backend;
    build(backend).expect("the reactor starts").block_on(async {
        let mut open = true;
        while open {
            inbox.ready().await;
            inbox.drain(1024, |message| open &= message[0] != END && out.send(message).is_ok());
        }
    });
}

/// Ends the echo.
const END: u64 = u64::MAX;

fn round_trip(c: &mut Criterion) {
    let backend = probe(Preference::Auto).expect("a reactor works here").backend;
    let mut group = c.benchmark_group("mailbox, round trip between two reactors");
    for in_flight in [1u64, 64] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("{in_flight} in flight, {backend}"), |b| {
            b.iter_custom(|rounds| timed_round_trips(rounds, in_flight));
        });
    }
    group.finish();
}

/// The time of `rounds` round trips with `in_flight` messages under way.
fn timed_round_trips(rounds: u64, in_flight: u64) -> Duration {
    let (to_echo, echo_inbox) = channel::<Message>(8192);
    let (to_us, inbox) = channel::<Message>(8192);
    let echo = std::thread::spawn(move || echo(echo_inbox, to_us));
    let backend = probe(Preference::Auto).expect("a reactor works here").backend;
    let took = build(backend).expect("the reactor starts").block_on(async {
        let start = Instant::now();
        let (mut sent, mut back) = (0, 0);
        while back < rounds {
            while sent < rounds && sent - back < in_flight {
                to_echo.push([sent; 12]).expect("room for all that is in flight");
                sent += 1;
            }
            to_echo.wake();
            inbox.ready().await;
            back += inbox.drain(1024, see) as u64;
        }
        start.elapsed()
    });
    to_echo.send([END; 12]).expect("the echo lives");
    echo.join().expect("the echo ends");
    took
}

criterion_group!(benches, one_thread, round_trip);
criterion_main!(benches);
