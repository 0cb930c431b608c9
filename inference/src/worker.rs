//! The engine: one thread that owns the model's KV memory and runs step after step, and the handle that feeds it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Sender, bounded};

use crate::backend::{Backend, BackendStartError, CpuBackend, CpuConfig};
use crate::batch::admit::{self, RequestBounds};
use crate::batch::forecast::{Demand, Limits, Newcomer};
use crate::batch::job::Job;
use crate::batch::scheduler::{Scheduler, StepBounds};
use crate::constrain::Workshop;
use crate::encoder::Batcher;
use crate::kv::{BLOCK_TOKENS, KvFormat};
use crate::model::Model;
use crate::request::{CancelHandle, Request, SubmitError};
use crate::speculate::{DRAFT_MAX, DraftModel, Drafter, Lookup, Speculation};
use crate::stats::Stats;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// How much the engine may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Threads that compute; more than the machine has cores makes every step slower.
    pub threads: usize,
    /// CPUs to pin the threads to; `None` leaves it to the system.
    pub cpus: Option<Vec<usize>>,
    /// Priority of the threads, 0 (as other threads) to 19 (only when nobody else wants the core).
    pub nice: i32,
    /// How keys and values are kept.
    pub kv_format: KvFormat,
    /// Memory for keys and values. A request needs it for prompt and reply while it runs.
    pub kv_bytes_max: usize,
    /// How much of that memory may hold what is kept of finished requests, for others that begin alike. Memory that
    /// running requests had to have once stays in use beyond it. More makes conversations that come back start sooner.
    pub kv_kept_bytes_max: usize,
    /// Most tokens of prompt and reply of one request; 0 takes the model's own limit.
    pub context_max: usize,
    /// Most requests that generate at the same time. Each one makes a step longer for all.
    pub sequences_max: usize,
    /// Most requests that wait; more are refused at once.
    pub queue_max: usize,
    /// Most prompt tokens per step. Work buffers grow with it. While replies run, `inter_token_target` cuts steps shorter.
    pub prefill_chunk: usize,
    /// How long a step may take while replies run, by measured costs. Less makes replies smoother and first tokens later.
    pub inter_token_target: Duration,
    /// Refuse requests whose first token is predicted later than this; `None` only refuses what would miss its own
    /// deadline.
    pub first_token_max: Option<Duration>,
    /// Whether tokens are guessed and verified beside others; replies are the same either way.
    pub speculation: Speculation,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            cpus: None,
            nice: 5,
            kv_format: KvFormat::F16,
            kv_bytes_max: 512 << 20,
            kv_kept_bytes_max: usize::MAX,
            context_max: 0,
            sequences_max: 64,
            queue_max: 1024,
            prefill_chunk: 256,
            inter_token_target: Duration::from_millis(100),
            first_token_max: None,
            speculation: Speculation::Auto,
        }
    }
}

impl EngineConfig {
    /// Rows of logits for which a backend needs room. Guesses use those that running sequences leave, so that a batch
    /// that is not full needs no more memory for them than a full one without.
    fn logits_rows(&self) -> usize {
        match self.speculation {
            Speculation::Off => self.sequences_max,
            _ => self.sequences_max.max(1 + DRAFT_MAX),
        }
    }

    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let ranges: [(&'static str, usize, usize, usize); 6] = [
            ("threads", self.threads, 1, 1024),
            ("sequences_max", self.sequences_max, 1, 4096),
            ("queue_max", self.queue_max, 1, 1 << 20),
            ("prefill_chunk", self.prefill_chunk, 1, 1 << 16),
            ("inter_token_target (ms)", self.inter_token_target.as_millis() as usize, 1, 60_000),
            ("nice", usize::try_from(self.nice).unwrap_or(usize::MAX), 0, 19),
        ];
        match ranges.into_iter().find(|(_, value, low, high)| !(low..=high).contains(&value)) {
            Some((name, value, min, max)) => Err(EngineError::Setting { name, value, min, max }),
            None => Ok(()),
        }
    }
}

/// Why the engine cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A setting is outside its range.
    #[error("engine setting {name} is {value}, it must be from {min} to {max}")]
    Setting {
        /// Name of the setting.
        name: &'static str,
        /// Its value.
        value: usize,
        /// Least allowed.
        min: usize,
        /// Greatest allowed.
        max: usize,
    },
    /// The backend refused the model or the settings.
    #[error(transparent)]
    Backend(#[from] BackendStartError),
    /// The thread could not be started.
    #[error("cannot start the engine's thread; check the limit on threads")]
    Thread(#[source] std::io::Error),
    /// The draft model's file has no usable tokenizer.
    #[error("the draft model's vocabulary cannot be read; choose another draft model")]
    DraftTokenizer(#[source] TokenizerError),
    /// The draft model speaks of other tokens.
    #[error(
        "the draft model has another vocabulary than the model ({draft} tokens, not {tokens}, or another one at {differs}); \
         choose a smaller model of the same family"
    )]
    DraftVocabulary {
        /// Tokens of the draft model.
        draft: usize,
        /// Tokens of the model.
        tokens: usize,
        /// The first token in which they differ.
        differs: u32,
    },
}

/// The part of the memory for keys and values that a draft model gets: it serves a few replies at a time, and needs less
/// for a token.
const DRAFT_KV_SHARE: usize = 8;

/// Guesses are token numbers, so both models must mean the same by them.
fn check_vocabulary(tokenizer: &Tokenizer, draft: &Model) -> Result<(), EngineError> {
    let other = Tokenizer::from_gguf(draft.gguf()).map_err(EngineError::DraftTokenizer)?;
    let (tokens, draft) = (tokenizer.vocabulary(), other.vocabulary());
    let same = |id: &u32| tokenizer.token_bytes(*id) == other.token_bytes(*id);
    match (0..tokens.min(draft) as u32).find(|id| !same(id)) {
        None if tokens == draft => Ok(()),
        differs => {
            let differs = differs.unwrap_or(tokens.min(draft) as u32);
            Err(EngineError::DraftVocabulary { draft, tokens, differs })
        }
    }
}

/// What the handle and the engine's thread share.
#[derive(Default)]
pub(crate) struct Shared {
    pub stats: Stats,
    demand: Mutex<Demand>,
    pub closing: AtomicBool,
    pub fault: OnceLock<String>,
}

impl Shared {
    /// What is queued and how fast the engine is. Held for a few reads and writes, never across a step.
    pub fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) enum Message {
    Job(Box<Job>),
    /// Texts to embed between steps.
    Embed(Box<Batcher>),
    /// Look at `Shared::closing` and at what is to be embedded.
    Wake,
}

/// What a request would have to expect if it were submitted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// Time to its first token.
    pub first_token: Duration,
    /// Time to its last one, for a reply of the usual length.
    pub complete: Duration,
}

/// A running engine. Shared between threads; dropping the last handle shuts it down.
pub struct Engine {
    shared: Arc<Shared>,
    sender: Sender<Message>,
    thread: Mutex<Option<JoinHandle<()>>>,
    tokenizer: Arc<Tokenizer>,
    workshop: Workshop,
    bounds: RequestBounds,
    queue_max: usize,
    first_token_max: Option<Duration>,
    started: Instant,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("bounds", &self.bounds)
            .field("queue_max", &self.queue_max)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts the engine's threads on a model, whose tokenizer the caller has built.
    pub fn start(model: Arc<Model>, tokenizer: Arc<Tokenizer>, config: EngineConfig) -> Result<Engine, EngineError> {
        Self::start_with_draft(model, None, tokenizer, config)
    }

    /// Starts the engine's threads on a model, with a smaller one that guesses its tokens. Both must have the same
    /// vocabulary. The smaller one gets a part of the memory for keys and values.
    pub fn start_with_draft(
        model: Arc<Model>,
        draft: Option<Arc<Model>>,
        tokenizer: Arc<Tokenizer>,
        config: EngineConfig,
    ) -> Result<Engine, EngineError> {
        config.check()?;
        let draft = draft.filter(|_| config.speculation != Speculation::Off);
        let context_max = match config.context_max {
            0 => model.info().context_max,
            n => n.min(model.info().context_max),
        };
        let mut cpu = CpuConfig {
            threads: config.threads,
            cpus: config.cpus.clone(),
            nice: config.nice,
            kv_format: config.kv_format,
            kv_bytes_max: config.kv_bytes_max,
            context_max,
            step_tokens_max: config.logits_rows() + config.prefill_chunk,
            step_logits_max: config.logits_rows(),
        };
        let mut drafting: Option<Box<dyn Backend>> = None;
        if let Some(draft) = draft {
            check_vocabulary(&tokenizer, &draft)?;
            let kv_bytes_max = config.kv_bytes_max / DRAFT_KV_SHARE;
            // Guesses are for batches that are not full, so it computes one row for each of them at most.
            let step_logits_max = config.sequences_max;
            let small = CpuConfig { kv_bytes_max, step_logits_max, ..cpu.clone() };
            drafting = Some(Box::new(CpuBackend::new(draft, &small)?));
            cpu.kv_bytes_max -= kv_bytes_max;
        }
        let backend = CpuBackend::new(model, &cpu)?;
        Self::start_on(Box::new(backend), drafting, tokenizer, &config)
    }

    /// Starts the engine's thread on a backend, with one for a model that guesses.
    pub fn start_on(
        backend: Box<dyn Backend>,
        draft: Option<Box<dyn Backend>>,
        tokenizer: Arc<Tokenizer>,
        config: &EngineConfig,
    ) -> Result<Engine, EngineError> {
        config.check()?;
        let limits = backend.limits();
        // The last token of a reply is never fed back, so a pool that holds all but one token is enough; keep it whole.
        let context_max = limits.context_max.min(limits.blocks * BLOCK_TOKENS);
        let bounds = RequestBounds { context_max, vocabulary: limits.vocab };
        let sequences_max = config.sequences_max.min(limits.step_logits_max);
        let prefill_tokens =
            config.prefill_chunk.min(limits.step_tokens_max.saturating_sub(config.sequences_max)).max(1);
        let target_ns = config.inter_token_target.as_nanos() as f64;
        // A share, since only the backend knows what a block takes.
        let kept = config.kv_kept_bytes_max as f64 / config.kv_bytes_max.max(1) as f64;
        let step = StepBounds {
            kept_blocks: (kept.min(1.0) * limits.blocks as f64) as usize,
            sequences_max,
            prefill_tokens,
            // What rows of logits and prompt rows together leave of a step's tokens.
            logits_rows: limits.step_logits_max.min(limits.step_tokens_max - prefill_tokens).max(sequences_max),
            speculation: config.speculation,
            target_ns,
            stretch_from: limits.stretch_from,
        };
        let demand = Demand::new(Limits { sequences_max, prefill_tokens, target_ns, blocks: limits.blocks });
        let shared = Arc::new(Shared { demand: Mutex::new(demand), ..Shared::default() });
        // More than the queue, so that a batcher and wake-ups find a place.
        let (sender, receiver) = bounded(config.queue_max + 4);
        let mut drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Lookup::default())];
        if let Some(draft) = draft {
            drafters.push(Box::new(DraftModel::new(draft, tokenizer.vocabulary())));
        }
        let scheduler = Scheduler::new(backend, Arc::clone(&tokenizer), Arc::clone(&shared), receiver, step, drafters);
        let thread = std::thread::Builder::new().name("engine".to_owned());
        let thread = thread.spawn(move || scheduler.run()).map_err(EngineError::Thread)?;
        let workshop = Workshop::new(
            Arc::clone(&tokenizer),
            Arc::clone(&shared),
            sender.clone(),
            config.queue_max + config.sequences_max,
            config.nice,
        );
        let EngineConfig { queue_max, first_token_max, .. } = *config;
        let (thread, started) = (Mutex::new(Some(thread)), Instant::now());
        Ok(Engine { shared, sender, thread, tokenizer, workshop, bounds, queue_max, first_token_max, started })
    }

    /// The tokenizer of the model.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Queues a request; its outlet hears from it until `Output::Done`. Never blocks.
    pub fn submit(&self, request: Request) -> Result<CancelHandle, SubmitError> {
        let refuse = |error| {
            self.shared.stats.refused.add(1);
            Err(error)
        };
        if let Err(error) = self.check_open().and_then(|()| admit::check(&request, &self.bounds)) {
            return refuse(error);
        }
        let newcomer = Newcomer::of(&request);
        let forecast = match self.reserve_place(&newcomer, request.deadline) {
            Ok(forecast) => forecast,
            Err(error) => return refuse(error),
        };
        let cancel = CancelHandle::default();
        let job = Box::new(Job::new(request, cancel.clone(), forecast));
        let sent = match job.request.constraint {
            Some(_) => self.workshop.submit(job).map_err(Message::Job),
            None => self.sender.try_send(Message::Job(job)).map_err(crossbeam::channel::TrySendError::into_inner),
        };
        match sent {
            Ok(()) => Ok(cancel),
            Err(back) => {
                self.shared.demand().dequeue(&newcomer);
                if let Message::Job(mut job) = back {
                    job.disarm();
                }
                refuse(self.check_open().err().unwrap_or(SubmitError::Closed))
            }
        }
    }

    /// Gives the engine's threads something to embed between steps.
    pub(crate) fn adopt(&self, batcher: Box<Batcher>) -> Result<(), SubmitError> {
        self.check_open()?;
        self.sender.try_send(Message::Embed(batcher)).map_err(|_| SubmitError::Closed)
    }

    /// Wakes the engine's thread when it sleeps; a full queue keeps it awake by itself.
    pub(crate) fn waker(&self) -> impl Fn() + Send + Sync + 'static {
        let sender = self.sender.clone();
        move || _ = sender.try_send(Message::Wake)
    }

    /// What a request of `tenant` would have to expect now; `None` before anything was measured.
    pub fn forecast(&self, tenant: u64, prompt_tokens: usize, max_tokens: usize) -> Option<Forecast> {
        let new = Newcomer { background: false, tenant, weight: 1, prompt: prompt_tokens, max_tokens };
        let demand = self.shared.demand();
        let first_token = demand.first_token(&new, self.started.elapsed())?;
        let rest = demand.token_pause(&new)?.mul_f64(demand.reply_tokens(max_tokens) - 1.0);
        Some(Forecast { first_token, complete: first_token + rest })
    }

    /// The longest predicted time to the first token that is accepted, if there is a limit.
    pub fn first_token_max(&self) -> Option<Duration> {
        self.first_token_max
    }

    /// Live counters.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Most tokens of prompt and reply of one request.
    pub fn context_max(&self) -> usize {
        self.bounds.context_max
    }

    /// What went wrong, once the engine has failed; `None` while it is healthy.
    pub fn fault(&self) -> Option<&str> {
        self.shared.fault.get().map(String::as_str)
    }

    /// Ends every request with `Cancelled` and waits for the thread. Later submissions are refused.
    pub fn shutdown(&self) {
        self.shared.closing.store(true, Ordering::Release);
        // What is still being compiled ends; what it had time to hand over is ended by the engine.
        self.workshop.close();
        // A full queue wakes the thread by itself.
        let _ = self.sender.try_send(Message::Wake);
        let thread = self.thread.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic of the thread was already turned into a fault; there is nothing to learn from it here.
            let _ = thread.join();
        }
    }

    fn check_open(&self) -> Result<(), SubmitError> {
        if let Some(reason) = self.shared.fault.get() {
            return Err(SubmitError::Unhealthy { reason: reason.clone() });
        }
        if self.shared.closing.load(Ordering::Acquire) { Err(SubmitError::Closed) } else { Ok(()) }
    }

    /// A place in the queue, and the predicted time to the first token.
    fn reserve_place(&self, new: &Newcomer, deadline: Option<Instant>) -> Result<Option<Duration>, SubmitError> {
        let mut demand = self.shared.demand();
        let (waiting, max) = (demand.waiting, self.queue_max);
        if waiting >= max {
            let stats = &self.shared.stats;
            let service = stats.request.mean().map(|all| all.saturating_sub(stats.queue.mean().unwrap_or_default()));
            let retry_after = admit::retry_after(service, stats.running.get());
            return Err(SubmitError::QueueFull { waiting, max, retry_after });
        }
        let now = self.started.elapsed();
        let forecast = demand.first_token(new, now);
        let until_deadline = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // What gives way to others has agreed to wait.
        let first_token_max = self.first_token_max.filter(|_| !new.background);
        admit::check_wait(forecast, until_deadline, first_token_max)?;
        demand.enqueue(new, now);
        Ok(forecast)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shutdown();
    }
}
