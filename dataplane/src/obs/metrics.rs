//! The registry: one set of counters per shard, and sources that are read at scrape time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use millrace_proto::channel::ChannelKind;

use super::histogram::Latency;

/// What a request was for; the closed set keeps label cardinality bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Route {
    /// `/healthz` and `/readyz`.
    Health,
    /// The chat page and its files.
    Console,
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/completions`.
    Completions,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// `GET /v1/models`.
    Models,
    /// `POST /v1/echo`, and the same over `millrace/1`.
    Echo,
    /// `GET /v1/sessions...`.
    Sessions,
    /// The chat WebSocket.
    Socket,
    /// Signed webhooks of channels.
    Hook,
    /// `/v1/admin/...`.
    Admin,
    /// `/oauth/...` and its metadata.
    Oauth,
    /// Anything that has no route.
    Unknown,
}

impl Route {
    /// Every route, in label order.
    pub const ALL: [Self; 13] = [
        Self::Health,
        Self::Console,
        Self::Chat,
        Self::Completions,
        Self::Embeddings,
        Self::Models,
        Self::Echo,
        Self::Sessions,
        Self::Socket,
        Self::Hook,
        Self::Admin,
        Self::Oauth,
        Self::Unknown,
    ];

    /// The value of the `route` label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Console => "console",
            Self::Chat => "chat_completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Models => "models",
            Self::Echo => "echo",
            Self::Sessions => "sessions",
            Self::Socket => "chat_ws",
            Self::Hook => "hook",
            Self::Admin => "admin",
            Self::Oauth => "oauth",
            Self::Unknown => "unknown",
        }
    }
}

/// Why something was turned away before it became work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Rejection {
    /// Malformed or ambiguous HTTP.
    Protocol,
    /// Missing or wrong key.
    Unauthorized,
    /// Per-key rate limit.
    RateLimited,
    /// A bounded queue was full.
    Overloaded,
    /// The node is draining.
    Draining,
    /// Too many connections.
    Connections,
    /// A wrong webhook signature.
    Signature,
    /// A webhook outside its time window.
    Stale,
    /// A webhook whose body does not decode.
    Malformed,
    /// A webhook that was delivered before.
    Duplicate,
}

impl Rejection {
    /// Every reason, in label order.
    pub const ALL: [Self; 10] = [
        Self::Protocol,
        Self::Unauthorized,
        Self::RateLimited,
        Self::Overloaded,
        Self::Draining,
        Self::Connections,
        Self::Signature,
        Self::Stale,
        Self::Malformed,
        Self::Duplicate,
    ];

    /// The value of the `reason` label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Unauthorized => "unauthorized",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::Connections => "connections",
            Self::Signature => "signature",
            Self::Stale => "stale",
            Self::Malformed => "malformed",
            Self::Duplicate => "duplicate",
        }
    }
}

/// How a request for an answer was admitted, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Rung {
    /// With everything that it asked for.
    AsAsked,
    /// With the small model.
    SmallModel,
    /// With a shorter answer.
    Shorter,
    /// To be answered later.
    Later,
    /// Not at all.
    Refused,
}

impl Rung {
    /// Every rung, in label order.
    pub const ALL: [Self; 5] = [Self::AsAsked, Self::SmallModel, Self::Shorter, Self::Later, Self::Refused];

    /// The value of the `rung` label and of the header that tells the client.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AsAsked => "as_asked",
            Self::SmallModel => "small_model",
            Self::Shorter => "shorter",
            Self::Later => "async",
            Self::Refused => "refused",
        }
    }
}

/// Status codes kept apart; every other code counts as 0 and is shown as `other`.
pub(super) const STATUSES: [u16; 28] = [
    101, 200, 201, 202, 204, 304, 400, 401, 403, 404, 405, 408, 409, 411, 413, 414, 415, 417, 422, 426, 429, 431, 500,
    501, 502, 503, 504, 0,
];

/// Times of one finished model turn, as the bridge saw them.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Submission to last token.
    pub total: Duration,
    /// Waiting for a place in the batch.
    pub queue: Duration,
    /// Prompt processing.
    pub prefill: Duration,
    /// First to last generated token.
    pub decode: Duration,
}

/// Counters and histograms that exactly one shard writes.
#[derive(Debug, Default)]
pub struct ShardMetrics {
    requests: [[AtomicU64; STATUSES.len()]; Route::ALL.len()],
    rejections: [AtomicU64; Rejection::ALL.len()],
    admissions: [AtomicU64; Rung::ALL.len()],
    pub(super) request_seconds: [Latency; Route::ALL.len()],
    pub(super) first_token: Latency,
    pub(super) inter_token: Latency,
    pub(super) turn_total: Latency,
    pub(super) turn_queue: Latency,
    pub(super) turn_prefill: Latency,
    pub(super) turn_decode: Latency,
    pub(super) ack: Latency,
    pub(super) delivery: Latency,
    pub(super) connections_open: AtomicU64,
    pub(super) connections_total: AtomicU64,
    pub(super) streams_open: AtomicU64,
    pub(super) mailbox_messages: AtomicU64,
    pub(super) mailbox_full: AtomicU64,
    pub(super) channels: super::ChannelCounters,
    pub(super) inbound: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) delivery_retries: AtomicU64,
    pub(super) delivery_dead: AtomicU64,
    pub(super) delivery_unknown: AtomicU64,
    pub(super) notices: AtomicU64,
    pub(super) recalls: AtomicU64,
    pub(super) disk_reads: AtomicU64,
}

/// Counts a token stream among the open ones.
#[derive(Debug)]
pub struct OpenStream<'a>(&'a ShardMetrics);

impl Drop for OpenStream<'_> {
    fn drop(&mut self) {
        self.0.stream_closed();
    }
}

impl ShardMetrics {
    /// One answered HTTP request.
    pub fn http_requests(&self, route: Route, status: u16) {
        let last = STATUSES.len() - 1;
        let at = STATUSES[..last].binary_search(&status).unwrap_or(last);
        self.requests[route as usize][at].fetch_add(1, Relaxed);
    }

    /// Time from the first byte of a request to the last byte of its answer.
    pub fn request_seconds(&self, route: Route, elapsed: Duration) {
        self.request_seconds[route as usize].record(elapsed);
    }

    /// Something was turned away.
    pub fn rejected(&self, reason: Rejection) {
        self.rejections[reason as usize].fetch_add(1, Relaxed);
    }

    /// A request for an answer was admitted on this rung, or refused.
    pub fn admitted(&self, rung: Rung) {
        self.admissions[rung as usize].fetch_add(1, Relaxed);
    }

    /// Submission to first token of a turn.
    pub fn first_token(&self, elapsed: Duration) {
        self.first_token.record(elapsed);
    }

    /// The gap before `tokens` tokens that arrived together.
    pub fn inter_token(&self, gap: Duration, tokens: u32) {
        if tokens > 0 {
            self.inter_token.record_many(gap / tokens, tokens);
        }
    }

    /// A finished turn.
    pub fn turn(&self, turn: Turn) {
        self.turn_total.record(turn.total);
        self.turn_queue.record(turn.queue);
        self.turn_prefill.record(turn.prefill);
        self.turn_decode.record(turn.decode);
    }

    /// A request or event of a channel.
    pub fn channel(&self, kind: ChannelKind, outcome: super::ChannelOutcome) {
        self.channels.count(kind, outcome);
    }

    /// A webhook was accepted durably; `elapsed` is arrival to acknowledgement.
    pub fn webhook_accepted(&self, elapsed: Duration) {
        self.inbound.fetch_add(1, Relaxed);
        self.ack.record(elapsed);
    }

    /// A reply reached its platform; `elapsed` is creation to receipt.
    pub fn delivered(&self, elapsed: Duration) {
        self.delivered.fetch_add(1, Relaxed);
        self.delivery.record(elapsed);
    }

    /// A delivery failed and will be tried again.
    pub fn delivery_retried(&self) {
        self.delivery_retries.fetch_add(1, Relaxed);
    }

    /// A delivery was given up.
    pub fn delivery_dead(&self) {
        self.delivery_dead.fetch_add(1, Relaxed);
    }

    /// A delivery may or may not have happened.
    pub fn delivery_unknown(&self) {
        self.delivery_unknown.fetch_add(1, Relaxed);
    }

    /// A connection was accepted.
    pub fn connection_opened(&self) {
        self.connections_open.fetch_add(1, Relaxed);
        self.connections_total.fetch_add(1, Relaxed);
    }

    /// A connection ended.
    pub fn connection_closed(&self) {
        self.connections_open.fetch_sub(1, Relaxed);
    }

    /// Connections open on this shard now.
    pub fn connections_open(&self) -> u64 {
        self.connections_open.load(Relaxed)
    }

    /// A token stream began.
    pub fn stream_opened(&self) {
        self.streams_open.fetch_add(1, Relaxed);
    }

    /// A token stream ended.
    pub fn stream_closed(&self) {
        self.streams_open.fetch_sub(1, Relaxed);
    }

    /// A token stream that is open until this is dropped, be it because its peer has left.
    pub fn open_stream(&self) -> OpenStream<'_> {
        self.stream_opened();
        OpenStream(self)
    }

    /// `count` messages were taken from this shard's mailbox.
    pub fn mailbox_drained(&self, count: u64) {
        self.mailbox_messages.fetch_add(count, Relaxed);
    }

    /// A message found this shard's mailbox full.
    pub fn mailbox_full(&self) {
        self.mailbox_full.fetch_add(1, Relaxed);
    }

    /// A visible event such as "older messages were cut" was produced.
    pub fn notice(&self) {
        self.notices.fetch_add(1, Relaxed);
    }

    /// A conversation was not in memory and was read on a read thread.
    pub fn read_from_disk(&self) {
        self.disk_reads.fetch_add(1, Relaxed);
    }

    /// Memory was searched for a turn.
    pub fn recall(&self) {
        self.recalls.fetch_add(1, Relaxed);
    }

    pub(super) fn requests_of(&self, route: usize, status: usize) -> u64 {
        self.requests[route][status].load(Relaxed)
    }

    pub(super) fn admissions_of(&self, rung: usize) -> u64 {
        self.admissions[rung].load(Relaxed)
    }

    pub(super) fn rejections_of(&self, reason: usize) -> u64 {
        self.rejections[reason].load(Relaxed)
    }
}

/// What the engine says of itself at scrape time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineSnapshot {
    /// Value of the `model_name` label.
    pub model: String,
    /// Sequences in the batch.
    pub running: u64,
    /// Requests waiting for a place.
    pub waiting: u64,
    /// Share of KV blocks in use, 0..=1.
    pub kv_usage: f64,
    /// Prompt tokens processed.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub prompt_tokens_cached: u64,
    /// Tokens generated.
    pub generation_tokens: u64,
    /// Ended by end of text or a stop string.
    pub finished_stop: u64,
    /// Ended by the token limit.
    pub finished_length: u64,
    /// Ended because the client left.
    pub finished_cancelled: u64,
    /// Ended by their deadline.
    pub finished_deadline: u64,
    /// Ended by a failure.
    pub finished_error: u64,
    /// Requests refused by a full queue.
    pub refused: u64,
    /// Steps of the batch so far.
    pub steps: u64,
    /// Sequences thrown back to the queue for want of KV blocks.
    pub preemptions: u64,
    /// Guesses that were verified.
    pub drafts: u64,
    /// Tokens in them.
    pub draft_tokens: u64,
    /// Tokens of them that were right.
    pub accepted_tokens: u64,
    /// Requests with a predicted time to the first token that got one.
    pub forecasts: u64,
    /// Their predicted times together.
    pub forecast_seconds: f64,
    /// How far predictions were from what happened, together.
    pub forecast_error_seconds: f64,
    /// Predictions within a factor of two.
    pub forecast_good: u64,
    /// Constraints (schemas, grammars) prepared for requests.
    pub constraints: u64,
    /// Seconds until they were ready or refused.
    pub constraint_seconds: f64,
    /// Token masks computed for constrained requests.
    pub masks: u64,
    /// Seconds that mask threads spent on them.
    pub mask_seconds: f64,
    /// Seconds that the engine waited for them.
    pub mask_wait_seconds: f64,
    /// Bytes of the chat model's weights, packed in memory.
    pub weights_bytes: u64,
    /// Bytes of the encoder's weights in memory.
    pub encoder_bytes: u64,
    /// Bytes of the KV pool.
    pub kv_bytes: u64,
    /// Bytes of it that were used since the start.
    pub kv_resident_bytes: u64,
}

/// What the store says of itself at scrape time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StorageSnapshot {
    /// Batches committed.
    pub commits: u64,
    /// Groups, that is fsyncs.
    pub groups: u64,
    /// Commits that failed.
    pub failures: u64,
    /// Submissions refused by a full queue.
    pub refused: u64,
    /// Batches waiting now.
    pub waiting: u64,
    /// Seconds spent in the write and its fsync, all groups together.
    pub commit_seconds: f64,
}

/// What the extraction of statements says of itself at scrape time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtractSnapshot {
    /// Messages that were looked at.
    pub messages: u64,
    /// Messages that were given up: the model could not answer about them.
    pub skipped: u64,
    /// Statements that were added.
    pub added: u64,
    /// Statements that got an end.
    pub ended: u64,
    /// Tokens of prompts and replies.
    pub tokens: u64,
    /// Rounds that came to nothing and are tried again.
    pub retries: u64,
}

/// What the backups say of themselves at scrape time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BackupSnapshot {
    /// Backups made by this process.
    pub made: u64,
    /// Backups that failed.
    pub failed: u64,
    /// Bytes sent for them.
    pub bytes_sent: u64,
    /// Whether one is being made now.
    pub running: bool,
    /// When the last one was made, in Unix seconds; 0 = never.
    pub last_success_s: f64,
    /// Forgotten users whose keys may still be in copies.
    pub keys_waiting: u64,
}

impl BackupSnapshot {
    /// From the status of the service.
    pub fn of(status: &crate::backup::Status) -> Self {
        Self {
            made: status.made,
            failed: status.failed,
            bytes_sent: status.bytes_sent,
            running: status.running.is_some(),
            last_success_s: status.last.as_ref().map_or(0.0, |last| last.at_ms as f64 / 1e3),
            keys_waiting: status.keys_waiting as u64,
        }
    }
}

/// Facts that do not change while the process runs.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    /// `uring` or `epoll`.
    pub io: String,
    /// Instruction set of the kernels in use.
    pub kernel: String,
    /// Bytes the memory plan allows.
    pub memory_limit_bytes: u64,
    /// Bytes the memory plan reserves.
    pub memory_planned_bytes: u64,
}

type Source<T> = OnceLock<Box<dyn Fn() -> T + Send + Sync>>;

/// All metrics of one node.
pub struct Metrics {
    shards: Box<[ShardMetrics]>,
    engine: Source<EngineSnapshot>,
    storage: Source<StorageSnapshot>,
    extract: Source<ExtractSnapshot>,
    backups: Source<BackupSnapshot>,
    facts: OnceLock<NodeFacts>,
    started: Instant,
    pub(super) scrapes: AtomicU64,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("shards", &self.shards.len()).finish_non_exhaustive()
    }
}

impl Metrics {
    /// A registry for `shards` reactors.
    pub fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards.max(1)).map(|_| ShardMetrics::default()).collect(),
            engine: OnceLock::new(),
            storage: OnceLock::new(),
            extract: OnceLock::new(),
            backups: OnceLock::new(),
            facts: OnceLock::new(),
            started: Instant::now(),
            scrapes: AtomicU64::new(0),
        }
    }

    /// The counters of shard `index`; only that shard's thread writes them.
    pub fn shard(&self, index: usize) -> &ShardMetrics {
        &self.shards[index]
    }

    /// Where engine figures come from; the first call wins.
    pub fn set_engine(&self, source: impl Fn() -> EngineSnapshot + Send + Sync + 'static) {
        let _ = self.engine.set(Box::new(source));
    }

    /// Where storage figures come from; the first call wins.
    pub fn set_storage(&self, source: impl Fn() -> StorageSnapshot + Send + Sync + 'static) {
        let _ = self.storage.set(Box::new(source));
    }

    /// Where figures of the extraction come from; the first call wins.
    pub fn set_extract(&self, source: impl Fn() -> ExtractSnapshot + Send + Sync + 'static) {
        let _ = self.extract.set(Box::new(source));
    }

    /// Where figures of backups come from; the first call wins.
    pub fn set_backups(&self, source: impl Fn() -> BackupSnapshot + Send + Sync + 'static) {
        let _ = self.backups.set(Box::new(source));
    }

    /// Sets what is known once the node is assembled; the first call wins.
    pub fn set_facts(&self, facts: NodeFacts) {
        let _ = self.facts.set(facts);
    }

    /// The engine's figures now, if there is an engine yet.
    pub fn engine(&self) -> Option<EngineSnapshot> {
        self.engine.get().map(|source| source())
    }

    /// The store's figures now, if it is open.
    pub fn storage(&self) -> Option<StorageSnapshot> {
        self.storage.get().map(|source| source())
    }

    /// The figures of the extraction, if it runs.
    pub fn extract(&self) -> Option<ExtractSnapshot> {
        self.extract.get().map(|source| source())
    }

    /// The figures of backups now, if the node is assembled.
    pub fn backups(&self) -> Option<BackupSnapshot> {
        self.backups.get().map(|source| source())
    }

    /// Since when the process serves.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Open client connections over all shards.
    pub fn connections_open(&self) -> u64 {
        self.shards.iter().map(ShardMetrics::connections_open).sum()
    }

    /// Replies that reached their platforms since the start.
    pub fn delivered_total(&self) -> u64 {
        self.shards.iter().map(|shard| shard.delivered.load(Relaxed)).sum()
    }

    /// The whole registry as Prometheus text (version 0.0.4).
    pub fn render(&self, health: &super::Health) -> String {
        self.scrapes.fetch_add(1, Relaxed);
        super::prometheus::render(self, health)
    }

    pub(super) fn shards(&self) -> &[ShardMetrics] {
        &self.shards
    }

    pub(super) fn facts(&self) -> Option<&NodeFacts> {
        self.facts.get()
    }
}
