//! A running node: everything that `millrace serve` starts, and how it ends again.
//!
//! Order of the start: sockets first (a taken port is the commonest mistake and must be told at once), then
//! the store and the models side by side, then engine, control and shards. Readiness comes last. The end
//! runs the other way round: readiness first, shards, engine, store.

mod doors;
mod engines;

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millrace_inference::encoder::{Encoder, Precision};
use millrace_inference::model::Model;
use millrace_inference::{ChatTemplate, Tokenizer};
use millrace_proto::id::TenantId;
use millrace_proto::record::{Credential, SCOPE_ADMIN, role_scopes};
use millrace_storage::{BackendKind, Batch, Store, StoreOptions, crash};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::backup::Backups;
use crate::bridge::Pace;
use crate::config::{self, Config, IoMode, Loaded, StorageType, human_bytes};
use crate::control::Control;
use crate::control::platforms::Platforms;
use crate::corpus::Corpora;
use crate::extract::Extraction;
use crate::gateway::{Common, auth, budgets};
use crate::handover::{Doorkeeper, Inherited};
use crate::identity::issuers::Issuers;
use crate::identity::{self, Authority};
use crate::models::{self, Found};
use crate::net;
use crate::obs::{self, BackupSnapshot, Health, Metrics, NodeFacts};
use crate::plan::Plan;
use crate::reload::Reloader;
use crate::shard::live::{Live, Settings};
use crate::shard::reactor::{self, Preference};
use crate::shard::{self, Shards, Shared, StartOptions};
use crate::sys;
use crate::trouble::Trouble;

use self::doors::{Doors, Secure, open_tls, tell_certificate};
use self::engines::{observe, start_embedder, start_engine, start_extraction, start_small};

/// Folder in the data folder whose content can be made again.
const CACHE_FOLDER: &str = "cache";
/// What stopping may take beyond the drain before it is reported.
const STOP_SLOW: Duration = Duration::from_secs(5);

/// Runs a node until a signal ends it.
pub fn run(loaded: Loaded, ready_json: bool) -> Result<ExitCode, Trouble> {
    let began = Instant::now();
    sys::bound_heap_arenas();
    let mut loaded = loaded;
    obs::logs::start(&loaded.config.log_level, loaded.config.log_json);
    arm_crash_point()?;
    let ended = end_flag()?;
    prepare_folder(&loaded)?;
    let files = sys::raise_open_files().unwrap_or(0);
    tracing::debug!(files, "open files");

    let metrics = Arc::new(Metrics::new(loaded.config.workers));
    let health = Arc::new(Health::new());
    let server = obs::server::start(loaded.config.metrics, Arc::clone(&metrics), Arc::clone(&health))
        .map_err(|error| metrics_port(&loaded.config, &error))?;
    let mut inherited = Inherited::take();
    let listeners = match inherited.plain(loaded.config.listen, loaded.config.workers) {
        Some(listeners) => listeners,
        None => net::listen(loaded.config.listen, loaded.config.workers).map_err(|error| in_parts(&error))?,
    };
    let http = listeners.address;
    let secure = open_tls(&loaded.config, &mut inherited)?;
    let https = secure.as_ref().map(|secure| secure.listeners.address);

    if !http.ip().is_loopback() {
        tracing::warn!(%http, "the API is open to the network over plain HTTP: use tls.listen, or a TLS proxy in front");
    }
    let plan = plan(&loaded.config)?;
    let parts = load_parts(&mut loaded.config)?;
    let (tls, quic) =
        (secure.as_ref().map(|doors| &doors.listeners), secure.as_ref().and_then(|doors| doors.quic.as_ref()));
    let keeper = Doorkeeper::new(&listeners, tls, quic).map_err(|error| {
        Trouble::new("the listening sockets cannot be copied", error.to_string(), "see `ulimit -n`")
    })?;
    let doors = Doors { plain: listeners, secure };
    let reloader = Reloader::new(&loaded);
    let node = Node::assemble(loaded.config, reloader, parts, Arc::clone(&metrics), Arc::clone(&health), doors, &plan)?;
    sys::release_free_heap();
    health.set_ready();
    let ready =
        Ready { http, https, metrics: server.address(), api_key: node.first_key.clone(), model: node.model.clone() };
    ready.announce(ready_json, &plan, began.elapsed());

    let end = wait_for_end(&ended, || node.reload(), &keeper)?;
    node.stop(&health, end);
    drop(server);
    match end {
        End::Stop => Ok(ExitCode::SUCCESS),
        End::HandOver => Err(keeper.exec()),
    }
}

/// Whether a node could run with this configuration: what `serve` finds out before it opens anything.
pub fn check(loaded: &Loaded) -> Result<ExitCode, Trouble> {
    plan(&loaded.config)?;
    Ok(ExitCode::SUCCESS)
}

/// A test may ask for the death of the process at a durable step.
fn arm_crash_point() -> Result<(), Trouble> {
    let Some(text) = std::env::var(crash::VARIABLE).ok().filter(|text| !text.is_empty()) else { return Ok(()) };
    crash::arm(&text).map_err(|why| Trouble::new("the crash point cannot be armed", why, "unset the variable"))?;
    tracing::warn!(point = text, "this process is going to abort at a crash point: {} is set", crash::VARIABLE);
    Ok(())
}

/// How a node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// For good.
    Stop,
    /// Another image of the program takes its place and its ports.
    HandOver,
}

/// A signal arrived during the start is remembered; a second one ends the process at once.
fn end_flag() -> Result<Arc<AtomicBool>, Trouble> {
    let ended = Arc::new(AtomicBool::new(false));
    // Until somebody listens to it, the signal must not do what it does by default: end the process.
    signal_hook::flag::register(SIGUSR2, Arc::default()).map_err(|error| signals(&error))?;
    for signal in [SIGTERM, SIGINT] {
        let twice = signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&ended));
        twice.and_then(|_| signal_hook::flag::register(signal, Arc::clone(&ended))).map_err(|error| signals(&error))?;
    }
    Ok(ended)
}

fn signals(error: &std::io::Error) -> Trouble {
    Trouble::new("signals cannot be handled", error.to_string(), "look at the limits of the process")
}

/// Waits for the signal to end; calls `reload` for each SIGHUP before it. SIGUSR2 asks for a hand-over, which is
/// checked first.
fn wait_for_end(ended: &AtomicBool, reload: impl Fn(), keeper: &Doorkeeper) -> Result<End, Trouble> {
    let mut arrivals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2]).map_err(|error| signals(&error))?;
    // The flag covers a signal that came before `arrivals` existed.
    if ended.load(Ordering::Acquire) {
        return Ok(End::Stop);
    }
    for signal in arrivals.forever() {
        match signal {
            SIGHUP => reload(),
            SIGUSR2 => match keeper.check() {
                Ok(()) => return Ok(End::HandOver),
                Err(trouble) => tracing::error!(%trouble, "SIGUSR2: this process goes on"),
            },
            _ => break,
        }
    }
    Ok(End::Stop)
}

/// Makes the data folder and, on a first start, a commented configuration in it.
fn prepare_folder(loaded: &Loaded) -> Result<(), Trouble> {
    let data = &loaded.config.data;
    let trouble = |error: std::io::Error| {
        let why = match error.kind() {
            std::io::ErrorKind::StorageFull => "there is no space left on the device".to_owned(),
            _ => error.to_string(),
        };
        let next = "check the path, its owner and the space (`df -h`), or name another folder with --data";
        Trouble::new(format!("the data folder {} cannot be used", data.display()), why, next)
    };
    std::fs::create_dir_all(data).map_err(trouble)?;
    let written = config::write_first_file(loaded).map_err(trouble)?;
    if let Some(path) = written {
        tracing::info!(path = %path.display(), "wrote a first configuration");
    }
    Ok(())
}

fn metrics_port(config: &Config, error: &std::io::Error) -> Trouble {
    let address = config.metrics;
    let why = match error.kind() {
        std::io::ErrorKind::AddrInUse => "the port is in use by another process".to_owned(),
        _ => error.to_string(),
    };
    let port = address.port();
    let next = format!(
        "find it with `ss -ltnp 'sport = :{port}'`, or choose another port with --metrics {}:PORT",
        address.ip()
    );
    Trouble::new(format!("cannot listen on {address} for metrics"), why, next)
}

/// An error of a subsystem, whose text says what, why and what next in sentences of its own.
fn in_parts(error: &dyn std::error::Error) -> Trouble {
    let text = error.to_string();
    let (rest, next) = cut(&text, "Next step:")
        .or_else(|| text.rsplit_once(". "))
        .unwrap_or((&text, "`millrace doctor` checks this machine and its configuration"));
    let (what, why) = cut(rest, "Why:").or_else(|| rest.split_once(". ")).unwrap_or((rest, ""));
    let mut why = why.trim().to_owned();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            why.push_str(if why.is_empty() { "" } else { ": " });
            why.push_str(&cause_text);
        }
        source = cause.source();
    }
    Trouble::new(what.trim().trim_end_matches('.'), why, next.trim())
}

fn cut<'a>(text: &'a str, word: &str) -> Option<(&'a str, &'a str)> {
    text.split_once(word).map(|(before, after)| (before.trim(), after.trim()))
}

/// The memory plan, or the refusal with its arithmetic.
fn plan(config: &Config) -> Result<Plan, Trouble> {
    let chat = models::chat_model(config)?;
    let encoder = models::encoder(config)?;
    let of = |model: Option<Found>| model.map_or(0, |model| model.bytes);
    let beside = of(models::draft_model(config)?) + of(models::small_model(config)?);
    let plan = Plan::new(config, chat.bytes + beside, of(encoder));
    if plan.fits() {
        return Ok(plan);
    }
    let what = "the configuration does not fit into MEMORY_LIMIT";
    let next = "lower engine.kv_mib (--engine-kv-mib), take a smaller model, or raise MEMORY_LIMIT";
    Err(Trouble::new(what, format!("the plan is\n{plan}"), next))
}

/// What takes time to get: the store and the models.
struct Parts {
    /// Name of the chat model in the models folder, without its ending.
    name: String,
    store: Store,
    chat: Chat,
    draft: Option<Arc<Model>>,
    /// The small model and its name.
    small: Option<(String, Chat)>,
    encoder: Option<Arc<Encoder>>,
}

/// Opens the store here while other threads load the models.
fn load_parts(config: &mut Config) -> Result<Parts, Trouble> {
    let chat = models::chat_model(config)?;
    let encoder = models::encoder(config)?;
    let name = model_name(&chat);
    let cache = config.data.join(CACHE_FOLDER);
    let draft_cache = cache.clone();
    let draft_load = models::draft_model(config)?
        .map(|found| in_thread("load-draft", move || load_model(&found, &draft_cache)))
        .transpose()?;
    let small_cache = cache.clone();
    let small_load = models::small_model(config)?
        .map(|found| {
            let name = model_name(&found);
            in_thread("load-small", move || load_chat(&found, &small_cache)).map(|load| (name, load))
        })
        .transpose()?;
    let chat_load = in_thread("load-model", move || load_chat(&chat, &cache))?;
    let precision = config.engine.embedding_precision();
    let encoder_load =
        encoder.map(|found| in_thread("load-encoder", move || load_encoder(&found, precision))).transpose()?;
    let deadline = Instant::now() + config.model_load_timeout;
    let began = Instant::now();
    let store = open_store(config)?;
    tracing::debug!(took = ?began.elapsed(), "store opened");
    let chat = finished(&chat_load, deadline, config)?;
    let draft = draft_load.map(|load| finished(&load, deadline, config)).transpose()?;
    let small =
        small_load.map(|(name, load)| finished(&load, deadline, config).map(|chat| (name, chat))).transpose()?;
    let encoder = encoder_load.map(|load| finished(&load, deadline, config)).transpose()?;
    config.engine.context_max = config.engine.context_max.min(chat.model.info().context_max);
    Ok(Parts { name, store, chat, draft, small, encoder })
}

/// What clients call a chat model: its file without the ending.
fn model_name(found: &Found) -> String {
    found.name.strip_suffix(".gguf").unwrap_or(&found.name).to_owned()
}

type Loading<T> = mpsc::Receiver<Result<T, Trouble>>;

fn in_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, Trouble> + Send + 'static,
) -> Result<Loading<T>, Trouble> {
    let (sender, receiver) = mpsc::channel();
    let spawned = std::thread::Builder::new().name(name.into()).spawn(move || {
        let began = Instant::now();
        let outcome = work();
        tracing::debug!(took = ?began.elapsed(), "done");
        // Nobody listens any more when the start was given up.
        let _ = sender.send(outcome);
    });
    match spawned {
        Ok(_) => Ok(receiver),
        Err(error) => Err(Trouble::new("a thread cannot be started", error.to_string(), "look at `ulimit -u`")),
    }
}

fn finished<T>(loading: &Loading<T>, deadline: Instant, config: &Config) -> Result<T, Trouble> {
    let left = deadline.saturating_duration_since(Instant::now());
    match loading.recv_timeout(left) {
        Ok(outcome) => outcome,
        Err(mpsc::RecvTimeoutError::Timeout) => {
            let why = format!("it takes longer than MODEL_LOAD_TIMEOUT ({:?})", config.model_load_timeout);
            let next = "set MODEL_LOAD_TIMEOUT higher, or move the models to a faster disk";
            Err(Trouble::new("the model is not loaded", why, next))
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let next = "check the file with `millrace doctor`";
            Err(Trouble::new("loading the model failed", "the loading thread ended; see the log above", next))
        }
    }
}

fn broken_model(found: &Found, error: &dyn std::error::Error) -> Trouble {
    let mut why = String::new();
    let mut source = Some(error);
    while let Some(cause) = source {
        let text = cause.to_string();
        if !why.contains(&text) {
            why.push_str(if why.is_empty() { "" } else { ": " });
            why.push_str(&text);
        }
        source = cause.source();
    }
    let next = "check the file: `millrace doctor` compares its checksum; copy it again, or choose another with --model";
    Trouble::new(format!("the model {} cannot be loaded", found.path.display()), why, next)
}

/// A chat model and what its file says about turning text into tokens.
struct Chat {
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    template: Arc<ChatTemplate>,
}

fn load_model(found: &Found, cache: &Path) -> Result<Arc<Model>, Trouble> {
    Model::load_cached(&found.path, cache).map_err(|error| broken_model(found, &error))
}

fn load_chat(found: &Found, cache: &Path) -> Result<Chat, Trouble> {
    let model = load_model(found, cache)?;
    let tokenizer = Tokenizer::from_gguf(model.gguf()).map_err(|error| broken_model(found, &error))?;
    let template = ChatTemplate::from_gguf(model.gguf()).map_err(|error| broken_model(found, &error))?;
    Ok(Chat { model, tokenizer: Arc::new(tokenizer), template: Arc::new(template) })
}

fn load_encoder(found: &Found, precision: Precision) -> Result<Arc<Encoder>, Trouble> {
    Encoder::load(&found.path, precision).map(Arc::new).map_err(|error| broken_model(found, &error))
}

/// Opens the store that a configuration describes.
pub(crate) fn open_store(config: &Config) -> Result<Store, Trouble> {
    let options = StoreOptions {
        path: config.data.clone(),
        key_file: config.storage.key_file.clone(),
        key_source: config.storage.key_source.clone(),
        suite: config.storage.suite,
        memory_bytes: config.storage.cache_mib << 20,
        backend: match config.storage_type {
            StorageType::Rocksdb => BackendKind::Rocks,
            StorageType::Memory => BackendKind::Memory,
        },
    };
    Store::open(&options).map_err(|error| in_parts(&error))
}

/// Everything that runs.
struct Node {
    shared: Arc<Shared>,
    shards: Shards,
    extraction: Option<Extraction>,
    first_key: Option<String>,
    model: String,
}

impl Node {
    fn assemble(
        config: Config,
        reloader: Reloader,
        mut parts: Parts,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
        doors: Doors,
        plan: &Plan,
    ) -> Result<Self, Trouble> {
        let config = Arc::new(config);
        let probe = reactor::probe(preference(config.io)).map_err(|error| in_parts(&error))?;
        for (flags, reason) in &probe.refused {
            tracing::info!(?flags, reason, "the kernel refused a ring");
        }
        let engine = start_engine(&config, &parts.chat, parts.draft.clone(), config.engine.kv_mib)?;
        let small = parts.small.take().map(|(name, chat)| start_small(&config, name, &chat)).transpose()?;
        let embedder = start_embedder(&engine, parts.encoder.as_ref())?;
        let control = Control::start().map_err(|error| {
            Trouble::new("the control thread cannot start", error.to_string(), "look at `ulimit -u` and `ulimit -n`")
        })?;
        let encoder = parts.encoder.as_ref().and_then(|_| models::encoder(&config).ok().flatten());
        let encoder = encoder.map(|found| found.name).unwrap_or_default();
        let corpora = Corpora::start(parts.store.clone(), embedder.clone(), &encoder).map(Arc::new);
        let corpora = corpora.map_err(|error| {
            Trouble::new("the corpus thread cannot start", error.to_string(), "look at `ulimit -u`")
        })?;
        let backups = Backups::start(parts.store.clone(), control.clone(), config.backup.clone()).map(Arc::new);
        let backups = backups.map_err(|error| {
            Trouble::new("the threads of the backups cannot start", error.to_string(), "look at `ulimit -u`")
        })?;
        let shown = Arc::clone(&backups);
        metrics.set_backups(move || BackupSnapshot::of(&shown.status()));
        observe(&metrics, &engine, &parts, &config);
        let extraction = start_extraction(&config, &parts, &engine, &metrics)?;
        metrics.set_facts(NodeFacts {
            io: probe.backend.to_string(),
            kernel: instruction_set().to_owned(),
            memory_limit_bytes: plan.limit,
            memory_planned_bytes: plan.total(),
        });
        let first_key = ensure_key(&parts.store)?;
        let issuers = Issuers::new(config.issuers.clone());
        let gateway = Arc::new(Common::default());
        budgets::resume(&parts.store, &gateway);
        let (kept, spent) = (parts.store.clone(), Arc::clone(&gateway));
        let housekeeping = move || budgets::save(&kept, &spent);
        let authority = Authority::open(parts.store.clone(), oauth(&config, &doors), issuers, housekeeping)
            .map_err(|error| in_parts(&error))?;
        authority.issuers().prefetch(&control);
        let (senders, receivers) = shard::mailboxes(config.workers);
        let options = StartOptions {
            backend: probe.backend,
            cpus: cores(),
            limits: net::Limits {
                connections_max: config.limits.connections_max.div_ceil(config.workers),
                idle: config.limits.idle_timeout,
                ..net::Limits::default()
            },
        };
        let (secure, quic, tls) = match doors.secure {
            Some(Secure { listeners, quic, tls }) => (Some(listeners), quic, Some(tls)),
            None => (None, None, None),
        };
        let settings = Settings::of(&config);
        let pace = Pace::new(settings.accounts());
        let shared = Arc::new(Shared {
            live: Live::new(settings),
            store: parts.store,
            engine,
            model: parts.chat.model,
            tokenizer: parts.chat.tokenizer,
            template: parts.chat.template,
            small,
            embedder,
            platforms: Platforms::new(control.clone()),
            pace,
            config,
            control,
            corpora,
            backups,
            metrics,
            health,
            people: crate::bridge::Registry::default(),
            authority: Arc::new(authority),
            reloader,
            gateway,
            tls,
            mailboxes: senders,
        });
        shared.platforms.warm(shared.live.now().accounts());
        let shards =
            Shards::start(&shared, receivers, doors.plain, secure, quic, &options).map_err(|error| in_parts(&error))?;
        tracing::info!(io = %probe.backend, shards = shared.shard_count(), "reactors run");
        Ok(Self { shared, shards, extraction, first_key, model: parts.name })
    }

    /// What SIGHUP asks for: configuration and certificates are read again.
    fn reload(&self) {
        match self.shared.reloader.reload(&self.shared) {
            Ok(report) => {
                let (applied, restart_needed) = (report.applied.join(", "), report.restart_needed.join(", "));
                tracing::info!(applied, restart_needed, "SIGHUP: the configuration was read again");
                if report.certificates {
                    tracing::info!("SIGHUP: new connections use the certificate as it is now");
                    self.shared.config.tls.iter().for_each(|options| tell_certificate(&options.files.certificate));
                }
            }
            Err(trouble) => tracing::error!(%trouble, "SIGHUP: everything stays as it is"),
        }
    }

    /// The way down: no new work, running answers end, then everything is flushed.
    fn stop(self, health: &Health, end: End) {
        let began = Instant::now();
        health.start_draining();
        let drain = self.shared.live.now().drain_timeout;
        tracing::info!(?drain, "draining");
        let left = match end {
            End::Stop => self.shards.drain(began + drain),
            End::HandOver => self.shards.hand_over(began + drain),
        };
        if left.connections_open > 0 || left.shards_busy > 0 {
            tracing::warn!(
                connections = left.connections_open,
                shards = left.shards_busy,
                "cut at the end of the drain"
            );
        }
        self.shards.stop();
        self.shared.corpora.shutdown();
        self.shared.engine.shutdown();
        // After the engine, which ends the answer that a round may be waiting for.
        drop(self.extraction);
        if let Some(small) = &self.shared.small {
            small.engine.shutdown();
        }
        if let Some(embedder) = &self.shared.embedder {
            embedder.shutdown();
        }
        // Before the control thread, which carries its calls.
        self.shared.backups.shutdown();
        self.shared.control.shutdown();
        budgets::save(&self.shared.store, &self.shared.gateway);
        self.shared.store.shutdown();
        let took = began.elapsed();
        if took > drain + STOP_SLOW {
            tracing::warn!(?took, "stopped late");
        } else {
            tracing::info!(?took, "stopped");
        }
    }
}

/// What the OAuth endpoints are called: as configured, or by the port that they are reached on.
fn oauth(config: &Config, doors: &Doors) -> identity::Options {
    let options = &config.oauth;
    let issuer = options.issuer.clone().unwrap_or_else(|| match &doors.secure {
        Some(secure) => format!("https://{}", secure.listeners.address),
        None => format!("http://{}", doors.plain.address),
    });
    identity::Options {
        audience: options.audience.clone().unwrap_or_else(|| issuer.clone()),
        issuer,
        algorithm: options.algorithm,
        plain_http: options.plain_http,
    }
}

fn preference(io: IoMode) -> Preference {
    match io {
        IoMode::Auto => Preference::Auto,
        IoMode::Uring => Preference::Uring,
        IoMode::Epoll => Preference::Epoll,
    }
}

fn cores() -> Vec<usize> {
    shard::topology::allowed_cores().map(|cores| cores.iter().map(|core| core.cpu).collect()).unwrap_or_default()
}

fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "avx2";
        }
    }
    "scalar"
}

/// Makes the first admin key when no usable key exists, so that a node is never without a credential.
fn ensure_key(store: &Store) -> Result<Option<String>, Trouble> {
    let next = "look at the store with `millrace doctor`";
    let unreadable =
        |error: &dyn std::error::Error| Trouble::new("the API keys cannot be read", error.to_string(), next);
    let known = store.credentials().map_err(|error| unreadable(&error))?;
    let usable = |credential: &Credential| !credential.revoked && credential.scopes & SCOPE_ADMIN != 0;
    if known.iter().any(|(_, credential)| usable(credential)) {
        return Ok(None);
    }
    let (text, hash) = auth::make_key().map_err(|error| Trouble::new("no key can be made", error.message, next))?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let credential = Credential {
        tenant: TenantId::DEFAULT,
        user_name: "admin".into(),
        label: "first key".into(),
        scopes: role_scopes("admin").expect("a role"),
        created_ms: now,
        revoked: false,
    };
    let mut batch = Batch::new();
    batch.put_credential(hash, &credential);
    store.commit(batch).map_err(|error| in_parts(&error))?;
    Ok(Some(text))
}

struct Ready {
    http: std::net::SocketAddr,
    https: Option<std::net::SocketAddr>,
    metrics: std::net::SocketAddr,
    api_key: Option<String>,
    model: String,
}

impl Ready {
    /// Tells a person or a program that the node serves. The key goes to standard output, never to the log.
    fn announce(&self, as_json: bool, plan: &Plan, took: Duration) {
        let Self { http, https, metrics, api_key, model } = self;
        tracing::info!(%http, %metrics, model, ?took, planned = human_bytes(plan.total()), "ready");
        let mut stdout = std::io::stdout().lock();
        let text = if as_json {
            let mut line =
                serde_json::json!({"http": http.to_string(), "metrics": metrics.to_string(), "model": model});
            if let Some(https) = https {
                line["https"] = serde_json::json!(https.to_string());
            }
            if let Some(key) = api_key {
                line["api_key"] = serde_json::json!(key);
            }
            format!("{line}\n")
        } else {
            let mut text = format!("memory plan\n{plan}\n\nmodel    {model}\nchat     http://{http}/\n");
            text.push_str(&format!("API      http://{http}/v1\nmetrics  http://{metrics}/metrics\n"));
            if let Some(https) = https {
                text.push_str(&format!("TLS      https://{https}/\n"));
            }
            if let Some(key) = api_key {
                text.push_str(&format!(
                    "\nAPI key  {key}\n         It is shown this once: keep it, for example in MILLRACE_API_KEY.\n"
                ));
            }
            text
        };
        let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Said {
        text: &'static str,
        source: Option<std::io::Error>,
    }

    fn parts(text: &'static str, source: Option<std::io::Error>) -> (String, String, String) {
        let Trouble { what, why, next } = in_parts(&Said { text, source });
        (what, why, next)
    }

    #[test]
    fn the_sentences_of_a_subsystem_become_what_why_next() {
        let (what, why, next) = parts("cannot listen on 1.2.3.4:5. Why: it is taken. Next step: run `ss`", None);
        assert_eq!(
            (what.as_str(), why.as_str(), next.as_str()),
            ("cannot listen on 1.2.3.4:5", "it is taken.", "run `ss`")
        );
        let (what, why, next) = parts("the store is damaged. Restore a copy", Some(std::io::Error::other("bad block")));
        assert_eq!(
            (what.as_str(), why.as_str(), next.as_str()),
            ("the store is damaged", "bad block", "Restore a copy")
        );
        let (what, why, next) = parts("it does not work", None);
        assert_eq!((what.as_str(), why.as_str()), ("it does not work", ""));
        assert!(next.contains("doctor"));
    }
}
