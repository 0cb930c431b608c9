//! The scheduler on a backend without a network: its "keys and values" are the tokens themselves, kept in the blocks
//! that the plan names, and the next token is a function of everything found there. A reply is therefore right exactly
//! when every block table, every prefix hit and every recomputation was right.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_inference::backend::{Backend, BackendError, BackendLimits, LogitsBuf, LogitsWanted, StepPlan};
use millrace_inference::kv::{BLOCK_TOKENS, BlockId};
use millrace_inference::speculate::DRAFT_MAX;
use millrace_inference::tokenizer::TokenizerParts;
use millrace_inference::{
    Engine, EngineConfig, FinishReason, Outlet, Output, Request, Sampling, Speculation, SubmitError, Tokenizer,
};

use crate::support::{Listener, eventually, request};

/// Letters, then the end of turn.
const LETTERS: u32 = 26;
const END: u32 = LETTERS;
const VOCABULARY: usize = 28;

pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    let mut tokens: Vec<String> = ('a'..='z').map(String::from).collect();
    tokens.extend(["<|im_end|>".to_owned(), "<|pad|>".to_owned()]);
    let types = tokens.iter().map(|t| if t.len() > 1 { 3 } else { 1 }).collect();
    let parts = TokenizerParts { kind: "gpt2".into(), tokens, types, eos: Some(END), ..TokenizerParts::default() };
    Arc::new(Tokenizer::new(parts).expect("a complete vocabulary"))
}

/// How the backend goes on with a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Voice {
    /// Never twice the same way.
    #[default]
    Fresh,
    /// Mostly as after the last two tokens before, so that guesses from the text are often right.
    Habit,
}

fn hash(text: &[u32]) -> u64 {
    let mix = |h: u64, t: &u32| (h ^ u64::from(*t)).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    text.iter().fold(0xcbf2_9ce4_8422_2325, mix) >> 7
}

/// What follows a text; about one in 150 texts ends.
fn follow(text: &[u32], voice: Voice) -> u32 {
    let whole = hash(text);
    if whole.is_multiple_of(151) {
        return END;
    }
    let of_habit = voice == Voice::Habit && !whole.is_multiple_of(9);
    let from = if of_habit { hash(&text[text.len().saturating_sub(2)..]) } else { whole };
    (from % u64::from(LETTERS)) as u32
}

/// The reply that a request must get, whatever runs beside it.
pub(crate) fn expected(prompt: &[u32], max_tokens: u32) -> (String, FinishReason) {
    expected_of(prompt, max_tokens, Voice::Fresh)
}

pub(crate) fn expected_of(prompt: &[u32], max_tokens: u32, voice: Voice) -> (String, FinishReason) {
    let (mut text, mut reply) = (prompt.to_vec(), String::new());
    for _ in 0..max_tokens {
        let token = follow(&text, voice);
        if token == END {
            return (reply, FinishReason::Stop);
        }
        text.push(token);
        reply.push(char::from(b'a' + token as u8));
    }
    (reply, FinishReason::Length)
}

#[derive(Default)]
pub(crate) struct Script {
    /// Panic in this step.
    pub(crate) panic_at: Option<usize>,
    /// Give no finite logit in this step.
    pub(crate) silent_at: Option<usize>,
    /// Every step waits for one permit.
    pub(crate) permits: Option<Receiver<()>>,
    pub(crate) voice: Voice,
    /// Refuse every step.
    pub(crate) refuses: bool,
    /// Longer texts must have been computed as stretched ones from their beginning.
    pub(crate) stretch_from: Option<usize>,
}

struct Paper {
    limits: BackendLimits,
    memory: Vec<u32>,
    /// For each place of the memory, whether it was computed as stretched.
    stretched: Vec<bool>,
    script: Script,
    steps: usize,
    widest: Arc<Mutex<usize>>,
}

impl Backend for Paper {
    fn limits(&self) -> BackendLimits {
        self.limits
    }

    fn attach(&mut self) {}

    fn step(&mut self, plan: &StepPlan, logits: &mut LogitsBuf) -> Result<(), BackendError> {
        plan.check(&self.limits)?;
        if self.script.refuses {
            return Err(BackendError::Empty);
        }
        if let Some(permits) = &self.script.permits {
            // A test that went away lets the engine run on.
            let _ = permits.recv();
        }
        self.steps += 1;
        assert_ne!(Some(self.steps), self.script.panic_at, "a test wants this panic");
        let mut widest = self.widest.lock().expect("not poisoned");
        *widest = plan.slice_count().max(*widest);
        let place =
            |blocks: &[BlockId], at: usize| blocks[at / BLOCK_TOKENS].0 as usize * BLOCK_TOKENS + at % BLOCK_TOKENS;
        for (from, to) in plan.copies() {
            let from = from.0 as usize * BLOCK_TOKENS;
            self.memory.copy_within(from..from + BLOCK_TOKENS, to.0 as usize * BLOCK_TOKENS);
            self.stretched.copy_within(from..from + BLOCK_TOKENS, to.0 as usize * BLOCK_TOKENS);
        }
        // All writes come before all reads, as sequences run side by side.
        for slice in plan.slices() {
            for (at, token) in (slice.start..).zip(slice.tokens) {
                self.memory[place(slice.blocks, at)] = *token;
                self.stretched[place(slice.blocks, at)] = slice.stretched;
            }
            let end = slice.start + slice.tokens.len();
            let short = self.script.stretch_from.is_none_or(|from| end <= from);
            assert!(slice.stretched || short, "{end} tokens are not stretched");
            let alike = (0..end).all(|at| self.stretched[place(slice.blocks, at)] == slice.stretched);
            assert!(alike, "all keys of a text are turned alike");
        }
        let stride = logits.stride();
        let rows = logits.begin(plan.logits_rows());
        rows.fill(0.0);
        let sampled = plan.slices().flat_map(|slice| {
            let end = slice.start + slice.tokens.len();
            let first = match slice.logits {
                LogitsWanted::None => end,
                LogitsWanted::Last => end - 1,
                LogitsWanted::All => slice.start,
            };
            (first..end).map(move |last| (slice.blocks, last + 1))
        });
        for (row, (blocks, length)) in sampled.enumerate() {
            let text: Vec<u32> = (0..length).map(|at| self.memory[place(blocks, at)]).collect();
            let row = &mut rows[row * stride..][..VOCABULARY];
            // Others are possible too, for those who sample.
            (0..3).for_each(|other| row[(hash(&text) as usize >> (8 * other)) % VOCABULARY] = 3.0);
            row[follow(&text, self.script.voice) as usize] = 5.0;
            if Some(self.steps) == self.script.silent_at {
                row.fill(f32::NAN);
            }
        }
        Ok(())
    }
}

pub(crate) fn config(sequences_max: usize, prefill_chunk: usize) -> EngineConfig {
    let speculation = Speculation::Off;
    EngineConfig { sequences_max, prefill_chunk, queue_max: 64, speculation, ..EngineConfig::default() }
}

pub(crate) fn start(blocks: usize, config: &EngineConfig, script: Script) -> (Engine, Arc<Mutex<usize>>) {
    let (backend, widest) = paper(blocks, config, script);
    (Engine::start_on(backend, None, tokenizer(), config).expect("starts"), widest)
}

/// With a draft model that speaks with a voice of its own.
pub(crate) fn start_with_draft(
    blocks: [usize; 2],
    config: &EngineConfig,
    scripts: [Script; 2],
) -> (Engine, Arc<Mutex<usize>>) {
    let [script, draft_script] = scripts;
    let (backend, _) = paper(blocks[0], config, script);
    let (draft, widest) = paper(blocks[1], config, draft_script);
    (Engine::start_on(backend, Some(draft), tokenizer(), config).expect("starts"), widest)
}

fn paper(blocks: usize, config: &EngineConfig, script: Script) -> (Box<dyn Backend>, Arc<Mutex<usize>>) {
    let logits = config.sequences_max.max(1 + DRAFT_MAX);
    let limits = BackendLimits {
        blocks,
        step_tokens_max: logits + config.prefill_chunk,
        step_logits_max: logits,
        context_max: 400,
        vocab: VOCABULARY,
        stretch_from: script.stretch_from,
    };
    let widest = Arc::new(Mutex::new(0));
    let (memory, stretched) = (vec![u32::MAX; blocks * BLOCK_TOKENS], vec![false; blocks * BLOCK_TOKENS]);
    (Box::new(Paper { limits, memory, stretched, script, steps: 0, widest: Arc::clone(&widest) }), widest)
}

/// An engine whose steps wait for permits.
fn start_stepwise(config: &EngineConfig) -> (Engine, Sender<()>) {
    let (sender, permits) = channel();
    (start(64, config, Script { permits: Some(permits), ..Script::default() }).0, sender)
}

pub(crate) fn prompt(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|i| (i * 7 + seed * 13 + i * i * seed) % LETTERS).collect()
}

pub(crate) fn submit(engine: &Engine, prompt: Vec<u32>, max_tokens: u32) -> Listener {
    let (request, listener) = request(prompt, max_tokens);
    engine.submit(request).expect("accepted");
    listener
}

/// A prompt whose reply is long.
pub(crate) fn talkative() -> Vec<u32> {
    let long = |p: &Vec<u32>| expected(p, 100).0.len() == 100;
    (1..10_000).map(|seed| prompt(seed, 5)).find(long).expect("one of them goes on")
}

#[test]
fn many_requests_side_by_side_get_what_each_gets_alone() {
    for (blocks, sequences, chunk) in [(400, 16, 64), (26, 4, 7), (25, 64, 1), (60, 12, 300)] {
        let config = config(sequences, chunk);
        let (engine, widest) = start(blocks, &config, Script::default());
        // Prompts come in families with a common beginning, so that prefixes are found and shared.
        let prompts: Vec<Vec<u32>> = (0..48)
            .map(|i| [prompt(i % 3, 20 + 15 * (i as usize % 4)), prompt(i, 1 + i as usize * 5 % 60)].concat())
            .collect();
        // Two tenants with equal prompts: neither may see a block of the other.
        let ask = |(i, p): (usize, &Vec<u32>)| {
            let (mut request, listener) = request(p.clone(), 90);
            (request.cache_salt, request.tenant) = (i as u64 % 2, i as u64 % 2);
            engine.submit(request).expect("accepted");
            listener
        };
        let listeners: Vec<Listener> = prompts.iter().enumerate().map(ask).collect();
        for (prompt, listener) in prompts.iter().zip(listeners) {
            let reply = listener.finish();
            let (text, reason) = expected(prompt, 90);
            assert_eq!((reply.text.as_str(), reply.reason()), (text.as_str(), &reason), "{blocks} blocks");
            let usage = reply.usage();
            let end = u32::from(reason == FinishReason::Stop);
            assert_eq!((usage.prompt, usage.completion), (prompt.len() as u32, text.len() as u32 + end));
        }
        assert!(*widest.lock().expect("not poisoned") > 1, "they ran side by side");
        let stats = engine.stats();
        assert!(stats.cached_tokens.get() > 0, "common beginnings were found");
        if blocks < 30 {
            assert!(stats.preemptions.get() > 0, "the pool was too small for all");
        }
        eventually("the batch is empty", || stats.running.get() == 0 && stats.kv_blocks_used.get() == 0);
        assert!(stats.finished().map(|(_, n)| n).sum::<u64>() >= 48);
        engine.shutdown();
    }
}

/// Texts of all lengths around the one beyond which rotations change: prompts that are longer, replies that grow beyond
/// it, beginnings that both kinds share. The backend checks every step.
#[test]
fn a_text_that_outgrows_its_rotation_is_computed_again() {
    for (blocks, speculation) in [(400, Speculation::Off), (400, Speculation::Always), (26, Speculation::Always)] {
        let config = EngineConfig { speculation, ..config(8, 32) };
        let script = Script { stretch_from: Some(100), voice: Voice::Habit, ..Script::default() };
        let (engine, _) = start(blocks, &config, script);
        let prompts: Vec<Vec<u32>> = (0..32).map(|i| [prompt(1, 60), prompt(i, 1 + 3 * i as usize)].concat()).collect();
        let listeners: Vec<Listener> = prompts.iter().map(|p| submit(&engine, p.clone(), 90)).collect();
        for (prompt, listener) in prompts.iter().zip(listeners) {
            let (text, reason) = expected_of(prompt, 90, Voice::Habit);
            let reply = listener.finish();
            assert_eq!(
                (reply.text.as_str(), reply.reason()),
                (text.as_str(), &reason),
                "{blocks} blocks, {speculation:?}"
            );
        }
        let stats = engine.stats();
        assert!(stats.cached_tokens.get() > 0, "beginnings were shared");
        eventually("the batch is empty", || stats.running.get() == 0 && stats.kv_blocks_used.get() == 0);
    }
}

/// Three long requests in a pool that hardly holds one of them, beside a stream of short ones from other tenants that
/// never ends: each short one that is done is followed by another.
#[test]
fn a_full_pool_starves_nobody() {
    const SHORT_BESIDE: usize = 24;
    let (engine, _) = start(26, &config(6, 16), Script::default());
    let long: Vec<Vec<u32>> =
        (1..).map(|seed| prompt(seed, 250)).filter(|p| expected(p, 80).0.len() == 80).take(3).collect();
    let done = Arc::new(Mutex::new(0));
    let waiting: Vec<_> = long
        .iter()
        .map(|prompt| {
            let (listener, prompt, done) = (submit(&engine, prompt.clone(), 80), prompt.clone(), Arc::clone(&done));
            std::thread::spawn(move || {
                let reply = listener.finish();
                assert_eq!(reply.text, expected(&prompt, 80).0);
                *done.lock().expect("not poisoned") += 1;
            })
        })
        .collect();
    let ask = |seed: u32| {
        let (mut request, listener) = request(prompt(seed, 20 + seed as usize % 40), 40);
        (request.tenant, request.cache_salt) = (u64::from(1 + seed % 5), u64::from(seed));
        engine.submit(request).expect("accepted");
        (seed, listener)
    };
    let mut short: std::collections::VecDeque<(u32, Listener)> = (0..SHORT_BESIDE as u32).map(ask).collect();
    let mut answered = 0_u32;
    while *done.lock().expect("not poisoned") < long.len() {
        let (seed, listener) = short.pop_front().expect("there are always some");
        assert_eq!(listener.finish().text, expected(&prompt(seed, 20 + seed as usize % 40), 40).0);
        answered += 1;
        assert!(answered < 2_000, "{answered} short requests went before the long ones");
        short.push_back(ask(SHORT_BESIDE as u32 + answered));
    }
    waiting.into_iter().for_each(|thread| thread.join().expect("the long ones got their replies"));
    for (seed, listener) in short {
        assert_eq!(listener.finish().text, expected(&prompt(seed, 20 + seed as usize % 40), 40).0);
    }
    let stats = engine.stats();
    assert!(stats.preemptions.get() > 0, "the pool was too small for all");
    println!("{answered} short replies beside, {} preemptions, {} steps", stats.preemptions.get(), stats.steps.get());
}

#[test]
fn a_salt_keeps_prefixes_apart() {
    let (engine, _) = start(64, &config(4, 64), Script::default());
    let ask = |salt: u64| {
        let (mut request, listener) = request(prompt(3, 50), 4);
        request.cache_salt = salt;
        engine.submit(request).expect("accepted");
        listener.finish().started.expect("started")
    };
    assert_eq!((ask(1), ask(1), ask(2), ask(1)), (0, 49, 0, 49));
}

#[test]
fn a_conversation_that_goes_on_computes_only_what_is_new() {
    let (engine, _) = start(64, &config(4, 64), Script::default());
    let mut text = talkative();
    for _ in 0..4 {
        let reply = submit(&engine, text.clone(), 9).finish();
        assert_eq!(reply.text, expected(&text, 9).0);
        text.extend(reply.text.bytes().map(|b| u32::from(b - b'a')));
        let known = text.len() - 1;
        text.extend(prompt(5, 3));
        let (request, listener) = request(text.clone(), 1);
        engine.submit(request).expect("accepted");
        // The last token of the reply was never fed back; everything before it is there, to the token.
        assert_eq!(listener.finish().started, Some(known as u32));
    }
}

#[test]
fn a_new_prefix_that_many_share_is_computed_once() {
    let (engine, permits) = start_stepwise(&config(16, 256));
    let blocker = submit(&engine, talkative(), 90);
    permits.send(()).expect("the engine steps");
    blocker.until_text();
    let system = prompt(3, 60);
    let prompts: Vec<Vec<u32>> = (0..8).map(|i| [system.clone(), prompt(20 + i, 30)].concat()).collect();
    let listeners: Vec<Listener> = prompts.iter().map(|p| submit(&engine, p.clone(), 5)).collect();
    drop(permits);
    let replies: Vec<_> = listeners.into_iter().map(Listener::finish).collect();
    for (prompt, reply) in prompts.iter().zip(&replies) {
        assert_eq!(reply.text, expected(prompt, 5).0);
    }
    let mut cached: Vec<u32> = replies.iter().map(|r| r.started.expect("started")).collect();
    cached.sort_unstable();
    assert_eq!(cached[0], 0);
    assert!(cached[1..].iter().all(|n| *n >= 60), "the others share all 60 tokens: {cached:?}");
}

#[test]
fn requests_join_and_leave_between_steps() {
    let (engine, permits) = start_stepwise(&config(8, 64));
    let first = submit(&engine, talkative(), 60);
    permits.send(()).expect("the engine steps");
    assert_eq!(first.until_text().text.len(), 1);
    // The second one comes in the middle and ends before the first.
    let second = submit(&engine, talkative(), 3);
    for _ in 0..70 {
        let _ = permits.send(());
    }
    assert_eq!(second.finish().text, expected(&talkative(), 3).0);
    assert_eq!(first.finish().text.len(), 59);
}

#[test]
fn cancel_ends_a_request_within_a_step() {
    let (engine, permits) = start_stepwise(&config(1, 64));
    let (running, listener) = request(talkative(), 90);
    let cancel = engine.submit(running).expect("accepted");
    let (queued, behind) = request(talkative(), 2);
    let cancel_queued = engine.submit(queued).expect("accepted");
    permits.send(()).expect("the engine steps");
    listener.until_text();
    cancel.cancel();
    cancel_queued.cancel();
    // The step that may be waiting for its permit, and no other.
    permits.send(()).expect("the engine steps");
    let reply = listener.finish();
    assert_eq!(reply.reason(), &FinishReason::Cancelled);
    assert!(reply.usage().completion <= 2);
    let reply = behind.finish();
    assert_eq!((reply.reason(), reply.started), (&FinishReason::Cancelled, None));
    assert!(cancel.is_cancelled());
}

#[test]
fn a_deadline_ends_a_request_in_the_queue_and_in_the_batch() {
    let (engine, permits) = start_stepwise(&config(1, 64));
    let with_deadline = |in_ms: u64| {
        let (mut request, listener) = request(talkative(), 90);
        request.deadline = Some(Instant::now() + Duration::from_millis(in_ms));
        engine.submit(request).expect("accepted");
        listener
    };
    let late = with_deadline(0);
    assert_eq!(late.finish().reason(), &FinishReason::Deadline);
    let deadline = Instant::now() + Duration::from_millis(100);
    let running = with_deadline(100);
    permits.send(()).expect("the engine steps");
    let mut reply = running.until_text();
    assert_eq!(reply.text.len(), 1);
    // The engine waits inside its second step until the clock has passed the deadline.
    while Instant::now() <= deadline + Duration::from_millis(1) {
        std::thread::yield_now();
    }
    permits.send(()).expect("the engine steps");
    while !running.step(&mut reply) {}
    assert_eq!((reply.reason(), reply.usage().completion), (&FinishReason::Deadline, 2));
}

/// Notes in which order requests end.
struct Order(Arc<Mutex<Vec<u64>>>, Sender<()>);

impl Outlet for Order {
    fn push(&self, ticket: u64, output: Output) {
        if matches!(output, Output::Done { .. }) {
            self.0.lock().expect("not poisoned").push(ticket);
            let _ = self.1.send(());
        }
    }

    fn wake(&self) {}
}

/// What makes a request of [`order_of`] different from the others.
type Change = Box<dyn Fn(&mut Request)>;

/// The order in which requests of one token end that wait behind a running one of tenant 1.
fn order_of(changes: Vec<Change>) -> Vec<u64> {
    let (engine, permits) = start_stepwise(&config(1, 64));
    let (mut blocker, listener) = request(talkative(), 30);
    blocker.tenant = 1;
    engine.submit(blocker).expect("accepted");
    permits.send(()).expect("the engine steps");
    listener.until_text();
    let order = Arc::new(Mutex::new(Vec::new()));
    let (sender, over) = channel();
    let count = changes.len();
    for (ticket, change) in (1..).zip(changes) {
        let (mut request, _) = request(prompt(1, 3), 1);
        request.ticket = ticket;
        request.outlet = Arc::new(Order(Arc::clone(&order), sender.clone()));
        change(&mut request);
        engine.submit(request).expect("accepted");
    }
    for _ in 0..80 {
        let _ = permits.send(());
    }
    for _ in 0..count {
        over.recv_timeout(Duration::from_secs(60)).expect("all end");
    }
    let order = order.lock().expect("not poisoned");
    order.clone()
}

#[test]
fn the_nearest_deadline_goes_first() {
    let deadline = |seconds: Option<u64>| -> Change {
        Box::new(move |r| r.deadline = seconds.map(|s| Instant::now() + Duration::from_secs(s)))
    };
    assert_eq!(order_of(vec![deadline(None), deadline(Some(8)), deadline(Some(5))]), [3, 2, 1]);
}

#[test]
fn tenants_take_turns_and_background_goes_last() {
    let of = |tenant: u64, background: bool| -> Change {
        Box::new(move |r| (r.tenant, r.background) = (tenant, background))
    };
    // Tenant 1 is served while the others wait, so tenant 2 is first, although it came last.
    let changes = vec![of(2, true), of(1, false), of(1, false), of(2, false), of(2, false)];
    assert_eq!(order_of(changes), [4, 5, 2, 3, 1]);
}

#[test]
fn a_first_token_that_would_come_too_late_is_refused_with_the_prediction() {
    let limit = Duration::from_nanos(1);
    let (engine, _) = start(64, &EngineConfig { first_token_max: Some(limit), ..config(4, 64) }, Script::default());
    // Nothing is known of speeds yet.
    assert_eq!(submit(&engine, talkative(), 20).finish().text.len(), 20);
    let (late, _) = request(talkative(), 20);
    match engine.submit(late) {
        Err(SubmitError::TooSlow { predicted, limit: of, retry_after }) => {
            assert!(predicted > limit && of == limit && retry_after > Duration::ZERO);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(engine.stats().refused.get(), 1);
    // The same for the deadline of a request itself.
    let (engine, _) = start(64, &config(4, 64), Script::default());
    assert_eq!(submit(&engine, talkative(), 20).finish().text.len(), 20);
    let (mut late, _) = request(talkative(), 20);
    late.deadline = Some(Instant::now());
    assert!(matches!(engine.submit(late), Err(SubmitError::TooSlow { .. })));
    assert_eq!(submit(&engine, talkative(), 20).finish().text.len(), 20);
    assert!(engine.stats().forecast.snapshot().count >= 1, "predictions are compared with what happened");
}

#[test]
fn a_full_queue_and_a_long_prompt_are_refused_with_numbers() {
    let mut config = config(1, 64);
    config.queue_max = 2;
    let (engine, permits) = start_stepwise(&config);
    let running = submit(&engine, talkative(), 90);
    permits.send(()).expect("the engine steps");
    running.until_text();
    let queued = [submit(&engine, talkative(), 2), submit(&engine, talkative(), 2)];
    let (over, _) = request(talkative(), 2);
    match engine.submit(over) {
        Err(SubmitError::QueueFull { waiting: 2, max: 2, retry_after }) => assert!(retry_after > Duration::ZERO),
        other => panic!("{other:?}"),
    }
    let (long, _) = request(vec![1; 380], 21);
    let error = engine.submit(long).expect_err("does not fit");
    assert_eq!(error, SubmitError::PromptTooLong { prompt: 380, max: 21, limit: 400 });
    assert_eq!(engine.stats().refused.get(), 2);
    drop(permits);
    for listener in queued {
        assert_eq!(listener.finish().text, expected(&talkative(), 2).0);
    }
}

#[test]
fn a_request_that_the_pool_can_never_hold_is_refused() {
    let (engine, _) = start(4, &config(2, 64), Script::default());
    let (request, _) = request(vec![1; 60], 5);
    let error = engine.submit(request).expect_err("64 tokens at most");
    assert_eq!(error, SubmitError::PromptTooLong { prompt: 60, max: 5, limit: 64 });
    let (request, listener) = crate::support::request(talkative(), 59);
    engine.submit(request).expect("exactly fits");
    assert_eq!(listener.finish().text.len(), 59);
}

#[test]
fn a_panic_ends_every_request_and_marks_the_engine() {
    let script = Script { panic_at: Some(3), ..Script::default() };
    let (engine, _) = start(64, &config(2, 64), script);
    let listeners: Vec<Listener> = (0..6)
        .filter_map(|_| {
            let (request, listener) = request(talkative(), 90);
            // The fault may come while we are still submitting; then this is refused, which is also an answer.
            engine.submit(request).ok().map(|_| listener)
        })
        .collect();
    assert!(!listeners.is_empty());
    for listener in listeners {
        match listener.finish().reason() {
            FinishReason::Error(text) => assert!(text.contains("a test wants this panic"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert!(engine.fault().is_some_and(|f| f.contains("panicked")));
    let (request, _) = request(talkative(), 1);
    assert!(matches!(engine.submit(request), Err(SubmitError::Unhealthy { .. })));
    engine.shutdown();
}

#[test]
fn a_model_without_a_finite_logit_fails_its_request_only() {
    let script = Script { silent_at: Some(2), ..Script::default() };
    let (engine, _) = start(64, &config(2, 64), script);
    let reply = submit(&engine, talkative(), 90).finish();
    assert!(matches!(reply.reason(), FinishReason::Error(text) if text.contains("finite")), "{reply:?}");
    assert_eq!(submit(&engine, talkative(), 20).finish().text.len(), 20);
}

#[test]
fn shutdown_ends_what_runs_and_what_waits() {
    let (engine, permits) = start_stepwise(&config(1, 64));
    let listeners = [submit(&engine, talkative(), 90), submit(&engine, talkative(), 90)];
    drop(permits);
    engine.shutdown();
    for listener in listeners {
        let reply = listener.finish();
        assert!(matches!(reply.reason(), FinishReason::Cancelled | FinishReason::Length), "{reply:?}");
    }
    let (request, _) = request(talkative(), 1);
    assert_eq!(engine.submit(request).err(), Some(SubmitError::Closed));
}

#[test]
fn stop_strings_end_the_text_before_them() {
    let (engine, _) = start(64, &config(2, 64), Script::default());
    let whole = expected(&talkative(), 50).0;
    for length in [1, 2, 5] {
        let (mut request, listener) = request(talkative(), 50);
        let stop = whole[20..20 + length].to_owned();
        let end = whole.find(&stop).expect("it is part of the reply");
        request.stop = vec!["<never>".to_owned(), stop];
        request.top_logprobs = Some(2);
        engine.submit(request).expect("accepted");
        let reply = listener.finish();
        assert_eq!((reply.text.as_str(), reply.reason()), (&whole[..end], &FinishReason::Stop));
        assert_eq!(reply.tokens.len(), end, "tokens of the stop string are left out");
        assert!(reply.tokens.iter().all(|t| t.top.len() == 2 && t.top[0] == (t.id, t.logprob)));
    }
}

#[test]
fn ignoring_the_end_of_turn_goes_on_to_the_length() {
    let (engine, _) = start(64, &config(2, 64), Script::default());
    let short = (1..).map(|seed| prompt(seed, 5)).find(|p| expected(p, 30).1 == FinishReason::Stop).expect("exists");
    let (mut request, listener) = request(short, 30);
    request.ignore_eos = true;
    engine.submit(request).expect("accepted");
    let reply = listener.finish();
    assert_eq!((reply.reason(), reply.usage().completion), (&FinishReason::Length, 30));
    assert!(reply.text.len() < 30 && !reply.text.contains('<'), "the end of turn has no text: {}", reply.text);
}

#[test]
fn outlets_are_woken_once_per_step() {
    struct Counting(Mutex<(usize, usize)>, Sender<()>);
    impl Outlet for Counting {
        fn push(&self, _: u64, output: Output) {
            self.0.lock().expect("not poisoned").0 += 1;
            if matches!(output, Output::Done { .. }) {
                let _ = self.1.send(());
            }
        }
        fn wake(&self) {
            self.0.lock().expect("not poisoned").1 += 1;
        }
    }
    let (engine, permits) = start_stepwise(&config(8, 256));
    let (sender, over) = channel();
    let counting = Arc::new(Counting(Mutex::new((0, 0)), sender));
    let outlet: Arc<dyn Outlet> = Arc::<Counting>::clone(&counting);
    for ticket in 0..8 {
        let sampling = Sampling::greedy();
        engine
            .submit(Request { ticket, sampling, outlet: Arc::clone(&outlet), ..request(talkative(), 20).0 })
            .expect("accepted");
    }
    drop(permits);
    for _ in 0..8 {
        over.recv_timeout(Duration::from_secs(60)).expect("all end");
    }
    engine.shutdown();
    let (pushes, wakes) = *counting.0.lock().expect("not poisoned");
    assert!(pushes >= 8 * 21, "{pushes} outputs");
    // The first may have begun alone before the other seven came.
    assert!(wakes <= 2 * 21 + 2, "{wakes} wake-ups for {pushes} outputs");
}
