//! What embedding costs and gets, alone and beside chats: for judging changes by hand.
//!
//! `cargo run --release -p millrace-inference --example embed_load -- ENCODER_FOLDER [MODEL.gguf] [--int8]`

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_inference::model::Model;
use millrace_inference::{
    EmbedPriority, EmbedRequest, EmbedWorker, Encoder, Engine, EngineConfig, Outlet, Output, Precision, Request,
    Sampling, Tokenizer,
};

const CHATS: u64 = 32;
const REPLY_TOKENS: u32 = 200;
const THREADS: usize = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (options, plain): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let precision = if options.iter().any(|option| option == "--int8") { Precision::Int8 } else { Precision::Half };
    let mut args = plain.into_iter();
    let folder = args.next().ok_or("usage: embed_load ENCODER_FOLDER [MODEL.gguf] [--int8]")?;
    let encoder = Arc::new(Encoder::load(Path::new(&folder), precision)?);
    let texts: Vec<String> =
        (0..64).map(|i| format!("Note {i}: the river by the mill rose {} cm last night.", i * 7 % 31)).collect();
    let tokens: usize = texts.iter().map(|text| encoder.count_tokens(text)).sum();
    println!("64 texts of {:.1} tokens, weights {} MiB", tokens as f64 / 64.0, encoder.weights_bytes() >> 20);

    let worker = Arc::new(EmbedWorker::start(Arc::clone(&encoder), 256, THREADS, 5)?);
    for callers in [1, 8] {
        let rate = bulk(&worker, &texts, callers, Duration::from_secs(4));
        println!("alone, {callers} callers: {rate:.0} embeddings/s");
    }
    println!("alone, one query: {}", percentiles(queries(&worker, 100, Duration::ZERO)));
    drop(worker);
    let Some(model) = args.next() else { return Ok(()) };

    let file = millrace_inference::gguf::Gguf::open(Path::new(&model))?;
    let tokenizer = Arc::new(Tokenizer::from_gguf(&file)?);
    let config = EngineConfig { threads: THREADS, ..EngineConfig::default() };
    let engine = Arc::new(Engine::start(Model::load(Path::new(&model))?, Arc::clone(&tokenizer), config)?);
    let worker = Arc::new(EmbedWorker::beside(&engine, encoder, 256)?);
    chats(&engine, &tokenizer, "warm-up", || ());
    chats(&engine, &tokenizer, "32 chats, no embedding", || ());
    let queried = || println!("  one query: {}", percentiles(queries(&worker, 25, Duration::from_millis(100))));
    chats(&engine, &tokenizer, "32 chats and 10 queries/s", queried);
    let loaded = || println!("  {:.0} embeddings/s", bulk(&worker, &texts[..8], 8, Duration::from_secs(3)));
    chats(&engine, &tokenizer, "32 chats and 8 bulk callers", loaded);
    let both = || {
        std::thread::scope(|scope| {
            scope.spawn(loaded);
            queried();
        });
    };
    chats(&engine, &tokenizer, "32 chats, 8 bulk callers and 10 queries/s", both);
    Ok(())
}

/// Embeddings a second of so many callers that each send the texts again and again.
fn bulk(worker: &EmbedWorker, texts: &[String], callers: usize, time: Duration) -> f64 {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    call(worker, EmbedPriority::Bulk, texts.to_vec());
                    if !stop.load(Ordering::Relaxed) {
                        done.fetch_add(texts.len() as u64, Ordering::Relaxed);
                    }
                }
            });
        }
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    done.load(Ordering::Relaxed) as f64 / begun.elapsed().min(time).as_secs_f64()
}

fn queries(worker: &EmbedWorker, count: usize, pause: Duration) -> Vec<f64> {
    let one = |i| {
        std::thread::sleep(pause);
        let begun = Instant::now();
        call(worker, EmbedPriority::Query, vec![format!("What did I say about the mill on day {i}?")]);
        begun.elapsed().as_secs_f64() * 1e3
    };
    (0..count).map(one).collect()
}

fn call(worker: &EmbedWorker, priority: EmbedPriority, texts: Vec<String>) {
    let (sender, receiver) = channel();
    let done = Box::new(move |result| sender.send(result).expect("the caller waits"));
    worker.submit(EmbedRequest { texts, priority, done }).expect("there is room");
    receiver.recv().expect("answered").expect("embedded");
}

fn percentiles(mut ms: Vec<f64>) -> String {
    ms.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| ms[((ms.len() - 1) as f64 * share) as usize];
    format!("p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms of {}", at(0.5), at(0.9), at(0.99), ms.len())
}

/// Notes when each reply's tokens come.
#[derive(Default)]
struct Clock {
    last: Mutex<Vec<Option<Instant>>>,
    gaps: Mutex<Vec<f64>>,
    left: AtomicU64,
}

impl Outlet for Clock {
    fn push(&self, ticket: u64, output: Output) {
        let last = &mut self.last.lock().expect("not poisoned")[ticket as usize];
        match output {
            Output::Delta { .. } => {
                if let Some(before) = last.replace(Instant::now()) {
                    self.gaps.lock().expect("not poisoned").push(before.elapsed().as_secs_f64() * 1e3);
                }
            }
            Output::Done { .. } => _ = self.left.fetch_sub(1, Ordering::Relaxed),
            Output::Started { .. } => {}
        }
    }

    fn wake(&self) {}
}

/// Lets chats reply while `meanwhile` runs; prints their pace until it ends.
fn chats(engine: &Engine, tokenizer: &Tokenizer, what: &str, meanwhile: impl FnOnce()) {
    let clock = Arc::new(Clock::default());
    clock.last.lock().expect("not poisoned").resize(CHATS as usize, None);
    clock.left.store(CHATS, Ordering::Relaxed);
    let begun = Instant::now();
    for ticket in 0..CHATS {
        let outlet: Arc<dyn Outlet> = Arc::<Clock>::clone(&clock);
        let request = Request {
            ticket,
            prompt: tokenizer.encode(&format!("{ticket} mills stood along the river, and"), false),
            sampling: Sampling::greedy(),
            max_tokens: REPLY_TOKENS,
            stop: Vec::new(),
            ignore_eos: true,
            constraint: None,
            top_logprobs: None,
            deadline: None,
            cache_salt: 0,
            tenant: ticket,
            weight: 1,
            background: false,
            outlet,
        };
        engine.submit(request).expect("there is room");
    }
    println!("{what}:");
    meanwhile();
    while clock.left.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    let rate = (CHATS * u64::from(REPLY_TOKENS)) as f64 / begun.elapsed().as_secs_f64();
    let gaps = std::mem::take(&mut *clock.gaps.lock().expect("not poisoned"));
    println!("  {rate:.0} tokens/s; between tokens {}", percentiles(gaps));
}
