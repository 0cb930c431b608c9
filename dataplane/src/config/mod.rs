//! Configuration: raw texts from flags, environment, file and defaults become one checked [`Config`].
//!
//! Code reads only [`Config`]; it never sees a raw text. Secrets never stand in the file: it refers to
//! them as `env:NAME` or `file:PATH`.

mod accounts;
mod check;
mod explain;
mod issuers;
mod keys;
mod layers;
mod machine;
mod units;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_inference::Speculation;
use millrace_inference::encoder::Precision;
use millrace_inference::kv::KvFormat;
use millrace_proto::channel::Account;
use millrace_proto::oauth::jwt::Algorithm;
use millrace_proto::retry::RetryPolicy;
use millrace_storage::{KeySource, Suite};

pub use explain::{explain, explain_all, first_file};
pub use keys::{KEYS, Key, find, nearest};
pub use layers::{Flags, Setting, Source};
pub use machine::{Machine, default_data_folder};
pub use units::human_bytes;

pub use crate::identity::issuers::IssuerOptions;

use crate::backup::place::Place;
use crate::net::tls::TlsFiles;
use crate::trouble::Trouble;

/// Which network back end the reactors use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoMode {
    /// io_uring when the kernel allows it, else epoll.
    Auto,
    /// io_uring or fail.
    Uring,
    /// epoll.
    Epoll,
}

/// What keeps the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageType {
    /// RocksDB on disk.
    Rocksdb,
    /// In memory; gone with the process.
    Memory,
}

/// Settings of the model engine.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineOptions {
    /// Compute threads.
    pub threads: usize,
    /// Longest context in tokens (the model's own limit still applies).
    pub context_max: usize,
    /// Sequences in one batch.
    pub sequences_max: usize,
    /// How keys and values are kept.
    pub kv_type: KvFormat,
    /// KV pool in MiB.
    pub kv_mib: usize,
    /// What of it may be kept for requests that begin like earlier ones, in MiB; `None` follows the model's weights.
    pub kv_kept_mib: Option<usize>,
    /// Requests waiting for the batch.
    pub queue_max: usize,
    /// Most prompt tokens in one step.
    pub prefill_chunk: usize,
    /// How long a step may take while answers run.
    pub inter_token_target: Duration,
    /// Longest predicted time to the first token that is accepted; `None` is any.
    pub first_token_max: Option<Duration>,
    /// Whether the engine guesses tokens.
    pub speculation: Speculation,
    /// Keep the encoder's weights as bytes.
    pub embedding_int8: bool,
}

impl EngineOptions {
    /// How the encoder's weights are kept.
    pub fn embedding_precision(&self) -> Precision {
        if self.embedding_int8 { Precision::Int8 } else { Precision::Half }
    }
}

/// Settings of the store.
#[derive(Debug, Clone, PartialEq)]
pub struct StorageOptions {
    /// Block cache and write buffers in MiB.
    pub cache_mib: usize,
    /// File of the sealing key.
    pub key_file: PathBuf,
    /// Where the key of keys comes from.
    pub key_source: KeySource,
    /// What seals the data of new tenants.
    pub suite: Suite,
}

/// Settings of backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupOptions {
    /// Where they go; `None` makes none but those that a command asks for.
    pub target: Option<Place>,
    /// Time between two; `None` makes none by itself.
    pub every: Option<Duration>,
    /// How many are kept; 0 = all.
    pub keep: usize,
    /// Bytes that are read and written for them in a second; 0 = as fast as it goes.
    pub bytes_per_s: u64,
    /// Messages older than this leave the store for the target; `None` = never.
    pub archive_idle: Option<Duration>,
    /// Newest messages of conversations in use that stay.
    pub archive_window: u64,
}

/// Settings of sessions and turns.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentOptions {
    /// First message of every session.
    pub system_prompt: String,
    /// Longest reply of a turn in tokens.
    pub reply_tokens_max: usize,
    /// Facts recalled into a context; 0 turns recall off.
    pub recall_items_max: usize,
    /// Recent messages considered for a context.
    pub window_messages_max: usize,
    /// Longest time of a turn.
    pub turn_deadline: Duration,
    /// How old a message of a channel, and then its reply, may become.
    pub reply_ttl: Duration,
    /// Hot sessions of one shard.
    pub sessions_hot_max: usize,
}

/// Settings of what is made of memories later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOptions {
    /// The model takes statements out of what users said.
    pub extract: bool,
    /// Tokens that it may use for that in an hour.
    pub extract_tokens_per_hour: u32,
}

/// Which corpora an answer may draw on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Corpora {
    /// Sessions of the API and the chat page.
    pub sessions: Vec<String>,
    /// Channel accounts, by kind and name.
    pub channels: HashMap<(String, String), Vec<String>>,
}

impl Corpora {
    /// What a question may read that came through this channel account, or through the API.
    pub fn readable(&self, channel: Option<&(String, String)>) -> &[String] {
        match channel {
            None => &self.sessions,
            Some(account) => self.channels.get(account).map(Vec::as_slice).unwrap_or_default(),
        }
    }
}

/// Bounds on clients.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Requests of one key in a minute.
    pub requests_per_minute: u32,
    /// Requests of one tenant in a minute; 0 = no limit, as in all that follow.
    pub tenant_requests_per_minute: u32,
    /// Requests of one address in a minute.
    pub address_requests_per_minute: u32,
    /// Events of one channel account in a minute.
    pub channel_events_per_minute: u32,
    /// Tokens of one key in a minute.
    pub tokens_per_minute: u32,
    /// Tokens of one tenant in a minute.
    pub tenant_tokens_per_minute: u32,
    /// Tokens of one key in a day.
    pub tokens_per_day: u32,
    /// Tokens of one tenant in a day.
    pub tenant_tokens_per_day: u32,
    /// Longest reply of requests that name no length while the engine is behind.
    pub short_reply_tokens: u32,
    /// Replies of one tenant that are made later.
    pub async_replies_max: usize,
    /// How long such a reply may take, and how long it is kept afterwards.
    pub async_deadline: Duration,
    /// Open connections of the node.
    pub connections_max: usize,
    /// Wait between requests of a connection.
    pub idle_timeout: Duration,
    /// Longest time of one request.
    pub request_timeout: Duration,
}

/// Settings of replies that a client may come back for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResumeOptions {
    /// How long a reply goes on and is kept without its client.
    pub grace: Duration,
    /// Newest tokens of a reply that are kept.
    pub tokens_max: usize,
    /// Replies of one tenant that are kept.
    pub replies_max: usize,
}

/// Settings of the TLS port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// Its address.
    pub listen: SocketAddr,
    /// Certificates and key.
    pub files: TlsFiles,
    /// Make certificate and key in the data folder when they are not there.
    pub self_signed: bool,
    /// Serve HTTP/3 and `millrace/1` on the UDP port of the same number.
    pub quic: bool,
}

/// Everything a node needs to know, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address of the API.
    pub listen: SocketAddr,
    /// Address of metrics and health.
    pub metrics: SocketAddr,
    /// Data folder.
    pub data: PathBuf,
    /// Models folder.
    pub models: PathBuf,
    /// Chat model by name or path; `None` takes the only one there is.
    pub model: Option<String>,
    /// Encoder by name or path; `None` takes the only one there is.
    pub embedding_model: Option<String>,
    /// Model that guesses for the chat model: file name or path.
    pub draft_model: Option<String>,
    /// Model that answers when the chat model would be late: file name or path.
    pub small_model: Option<String>,
    /// False when the embedding model was turned off (`none`).
    pub embeddings: bool,
    /// Reactor threads (`MAX_WORKERS`).
    pub workers: usize,
    /// Network back end.
    pub io: IoMode,
    /// Bytes that the memory plan may use.
    pub memory_limit: u64,
    /// Pauses between delivery attempts.
    pub retry_policy: RetryPolicy,
    /// Level or filter of the log.
    pub log_level: String,
    /// JSON log lines.
    pub log_json: bool,
    /// What keeps the data.
    pub storage_type: StorageType,
    /// File given by `MODEL_ENDPOINT=file:PATH`; `None` is the built-in engine with `model`.
    pub model_endpoint: Option<String>,
    /// Longest time of loading models.
    pub model_load_timeout: Duration,
    /// How long running answers may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// The TLS port; `None` when it is off.
    pub tls: Option<TlsOptions>,
    /// Browser origins that may call the API.
    pub cors_origins: Vec<String>,
    /// Engine settings.
    pub engine: EngineOptions,
    /// Store settings.
    pub storage: StorageOptions,
    /// Backup settings.
    pub backup: BackupOptions,
    /// Session and turn settings.
    pub agent: AgentOptions,
    /// What is made of memories later.
    pub memory: MemoryOptions,
    /// Corpora that may be read.
    pub corpora: Corpora,
    /// Bounds on clients.
    pub limits: Limits,
    /// Replies that a client may come back for.
    pub resume: ResumeOptions,
    /// What the OAuth endpoints are called and how they sign; its issuer is settled when the ports are known.
    pub oauth: OauthOptions,
    /// Other issuers whose tokens are accepted.
    pub issuers: Vec<IssuerOptions>,
    /// Channel accounts.
    pub channels: Vec<Account>,
}

/// Settings of the OAuth endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OauthOptions {
    /// The issuer identifier, if it is configured.
    pub issuer: Option<String>,
    /// Whom JWTs are for, if it is configured.
    pub audience: Option<String>,
    /// How JWTs are signed.
    pub algorithm: Algorithm,
    /// Take secrets from other machines without TLS.
    pub plain_http: bool,
}

/// A checked configuration and how it came about.
#[derive(Debug)]
pub struct Loaded {
    /// The checked values.
    pub config: Config,
    /// Every setting with its source, for `config explain`.
    pub settings: Vec<Setting>,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// The command line that it was loaded with, to load it again.
    pub flags: Flags,
}

/// Name of the configuration file.
pub const FILE_NAME: &str = "millrace.toml";

/// Loads the configuration of this process.
pub fn load(flags: &Flags) -> Result<Loaded, Trouble> {
    load_from(flags, &|name| std::env::var(name).ok(), &Machine::probe())
}

/// Loads a configuration with a given environment and machine.
pub fn load_from(
    flags: &Flags,
    environment: &dyn Fn(&str) -> Option<String>,
    machine: &Machine,
) -> Result<Loaded, Trouble> {
    let (mut loaded, raw) = load_settings(flags, environment, machine)?;
    let (data, storage) = (loaded.config.data.clone(), loaded.config.storage.clone());
    let sealed = |name: &str| sealed_secret(&data, &storage, name);
    loaded.config.channels = accounts::check(&raw.channels, accounts::References { environment, sealed: &sealed })?;
    Ok(loaded)
}

/// Loads everything but the channel accounts, whose secrets may be at the server's hand only.
pub fn load_without_channels(flags: &Flags) -> Result<Loaded, Trouble> {
    Ok(load_settings(flags, &|name| std::env::var(name).ok(), &Machine::probe())?.0)
}

fn load_settings(
    flags: &Flags,
    environment: &dyn Fn(&str) -> Option<String>,
    machine: &Machine,
) -> Result<(Loaded, layers::RawFile), Trouble> {
    let file = locate(flags, environment);
    let raw = file.as_deref().map(layers::read_file).transpose()?;
    let settings = layers::settle(flags, environment, file.as_deref().zip(raw.as_ref()));
    let mut config = check::check(&settings, environment, machine)?;
    let raw = raw.unwrap_or_default();
    config.issuers = issuers::check(&raw.issuers)?;
    config.corpora.channels = accounts::corpora(&raw.channels)?;
    Ok((Loaded { config, settings, file, flags: flags.clone() }, raw))
}

/// A line number and the plain values of a table.
pub type ChannelTable = (usize, Vec<(String, String)>);

/// The `[[channel]]` tables of a configuration text: line of each and its plain values, secrets as references. `path`
/// only names the text in errors.
pub fn channel_tables(text: &str, path: &Path) -> Result<Vec<ChannelTable>, Trouble> {
    let values = |raw: layers::RawTable| {
        let first = |(key, (texts, _)): (String, (Vec<String>, usize))| Some((key, texts.into_iter().next()?));
        (raw.line, raw.values.into_iter().filter_map(first).collect())
    };
    Ok(layers::parse(text, path)?.channels.into_iter().map(values).collect())
}

fn sealed_secret(data: &Path, storage: &StorageOptions, name: &str) -> Result<zeroize::Zeroizing<Vec<u8>>, String> {
    let vault = millrace_storage::Vault::open(data, &storage.key_source, &storage.key_file, false);
    let found = vault.and_then(|vault| vault.get(name)).map_err(|error| error.to_string())?;
    found.ok_or_else(|| format!("there is no sealed secret {name}; `millrace channel add` makes them"))
}

/// The file to read: the one asked for, else `./millrace.toml`, else the one in the data folder.
fn locate(flags: &Flags, environment: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let asked = flags.config.clone().or_else(|| environment("MILLRACE_CONFIG").map(PathBuf::from));
    if asked.is_some() {
        return asked;
    }
    let data = flags.values.get("data").cloned().or_else(|| environment("MILLRACE_DATA"));
    let data = data.map_or_else(|| default_data_folder(environment), PathBuf::from);
    [PathBuf::from(FILE_NAME), data.join(FILE_NAME)].into_iter().find(|path| path.is_file())
}

/// Writes the commented first file into the data folder, if no file was found; returns its path.
pub fn write_first_file(loaded: &Loaded) -> std::io::Result<Option<PathBuf>> {
    if loaded.file.is_some() {
        return Ok(None);
    }
    let path = loaded.config.data.join(FILE_NAME);
    write_new(&path, &first_file())?;
    Ok(Some(path))
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests;
