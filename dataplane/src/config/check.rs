//! From settled texts to the checked [`Config`].

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_inference::Speculation;
use millrace_proto::oauth::jwt::Algorithm;
use millrace_storage::{CORPUS_NAME_BYTES_MAX, KeySource, Suite};

use super::layers::Setting;
use super::machine::{Machine, default_data_folder};
use super::{
    AgentOptions, BackupOptions, Config, Corpora, EngineOptions, IoMode, Limits, MemoryOptions, OauthOptions,
    ResumeOptions, StorageOptions, StorageType, TlsOptions, units,
};
use crate::backup::place::Place;
use crate::net::tls::TlsFiles;
use crate::obs::logs;
use crate::trouble::Trouble;

/// Corpora that one question searches.
const CORPORA_READABLE_MAX: usize = 16;
/// Longest system prompt.
const SYSTEM_PROMPT_BYTES_MAX: usize = 16 * 1024;
/// Largest KV pool that `auto` chooses.
const KV_MIB_AUTO_MAX: u64 = 4096;

struct Texts<'a>(&'a [Setting]);

impl Texts<'_> {
    fn setting(&self, name: &str) -> &Setting {
        self.0.iter().find(|setting| setting.key.name == name).expect("every checked name stands in the key table")
    }

    fn text(&self, name: &str) -> &str {
        &self.setting(name).text
    }

    fn read<T>(&self, name: &str, reader: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Trouble> {
        let setting = self.setting(name);
        reader(&setting.text).map_err(|why| setting.refuse(why))
    }

    fn whole(&self, name: &str, min: u64, max: u64) -> Result<usize, Trouble> {
        self.read(name, |text| units::whole(text, min, max).map(|number| number as usize))
    }

    fn whole_or_auto(&self, name: &str, min: u64, max: u64, auto: u64) -> Result<usize, Trouble> {
        if self.text(name) == "auto" { Ok(auto as usize) } else { self.whole(name, min, max) }
    }

    fn duration(&self, name: &str, min: Duration, max: Duration) -> Result<Duration, Trouble> {
        self.read(name, |text| {
            let time = units::duration(text)?;
            if time < min || time > max { Err(format!("a time from {min:?} to {max:?} is allowed")) } else { Ok(time) }
        })
    }

    fn address(&self, name: &str) -> Result<SocketAddr, Trouble> {
        self.read(name, |text| {
            let text = text.replace("localhost:", "127.0.0.1:");
            text.parse().map_err(|_| "write IP:PORT, such as 127.0.0.1:8080 or [::1]:8080".to_owned())
        })
    }

    fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, Trouble> {
        self.read(name, |text| {
            let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            found.ok_or_else(|| format!("allowed are {}", words.join(", ")))
        })
    }

    /// An issuer identifier (RFC 8414 section 2): https, no query, no fragment; http for this machine alone.
    fn issuer(&self, name: &str) -> Result<Option<String>, Trouble> {
        match self.optional(name) {
            None => Ok(None),
            Some(_) => self.read(name, |text| super::issuers::identifier(text).map(|text| Some(text.to_owned()))),
        }
    }

    fn optional(&self, name: &str) -> Option<String> {
        Some(self.text(name).to_owned()).filter(|text| !text.is_empty())
    }
}

pub(super) fn check(
    settings: &[Setting],
    environment: &dyn Fn(&str) -> Option<String>,
    machine: &Machine,
) -> Result<Config, Trouble> {
    let texts = Texts(settings);
    let data = texts.optional("data").map_or_else(|| default_data_folder(environment), PathBuf::from);
    let models = texts.optional("models").map_or_else(|| data.join("models"), PathBuf::from);
    let memory_limit = texts.read("memory_limit", |text| {
        let bytes = units::bytes(text, machine.memory_bytes)?;
        let least = 64 << 20;
        if bytes < least { Err(format!("{bytes} bytes are too few; at least 64 MiB are needed")) } else { Ok(bytes) }
    })?;
    let embedding_model = texts.optional("embedding_model");
    let second = Duration::from_secs(1);
    let hour = second * 3600;
    let config = Config {
        listen: texts.address("listen")?,
        metrics: texts.address("metrics")?,
        model: texts.optional("model"),
        embeddings: embedding_model.as_deref() != Some("none"),
        embedding_model: embedding_model.filter(|name| name != "none"),
        draft_model: texts.optional("draft_model"),
        small_model: texts.optional("small_model"),
        workers: texts.whole_or_auto("workers", 1, 256, machine.cpus.min(16) as u64)?,
        io: texts.choice("io", &[("auto", IoMode::Auto), ("uring", IoMode::Uring), ("epoll", IoMode::Epoll)])?,
        memory_limit,
        retry_policy: texts.read("retry_policy", |text| text.parse().map_err(|error| format!("{error}")))?,
        log_level: texts.read("log_level", |text| {
            if logs::is_valid(text) { Ok(text.to_owned()) } else { Err("no such level or filter".into()) }
        })?,
        log_json: texts.choice("log_format", &[("text", false), ("json", true)])?,
        storage_type: texts
            .choice("storage_type", &[("rocksdb", StorageType::Rocksdb), ("memory", StorageType::Memory)])?,
        model_endpoint: texts.read("model_endpoint", endpoint)?,
        model_load_timeout: texts.duration("model_load_timeout", second, hour)?,
        drain_timeout: texts.duration("drain_timeout", Duration::ZERO, second * 600)?,
        tls: tls(&texts, &data)?,
        cors_origins: texts.read("cors_origins", origins)?,
        engine: engine(&texts, memory_limit, machine)?,
        storage: StorageOptions {
            cache_mib: texts.whole("storage.cache_mib", 8, 1 << 20)?,
            key_file: texts.optional("storage.key_file").map_or_else(|| data.join("master.key"), PathBuf::from),
            key_source: texts.read("storage.key_source", key_source)?,
            suite: texts.choice("storage.suite", &[("intl", Suite::Intl), ("gm", Suite::Gm)])?,
        },
        backup: backup(&texts)?,
        agent: agent(&texts)?,
        memory: MemoryOptions {
            extract: texts.choice("memory.extract", &[("off", false), ("on", true)])?,
            extract_tokens_per_hour: texts.whole("memory.extract_tokens_per_hour", 1_000, 1_000_000_000)? as u32,
        },
        corpora: Corpora { sessions: texts.read("agent.corpora", corpora)?, ..Corpora::default() },
        limits: Limits {
            requests_per_minute: texts.whole("limits.requests_per_minute", 1, 10_000_000)? as u32,
            tenant_requests_per_minute: texts.whole("limits.tenant_requests_per_minute", 0, 10_000_000)? as u32,
            address_requests_per_minute: texts.whole("limits.address_requests_per_minute", 0, 10_000_000)? as u32,
            channel_events_per_minute: texts.whole("limits.channel_events_per_minute", 0, 10_000_000)? as u32,
            tokens_per_minute: texts.whole("limits.tokens_per_minute", 0, 1_000_000_000)? as u32,
            tenant_tokens_per_minute: texts.whole("limits.tenant_tokens_per_minute", 0, 1_000_000_000)? as u32,
            tokens_per_day: texts.whole("limits.tokens_per_day", 0, 4_000_000_000)? as u32,
            tenant_tokens_per_day: texts.whole("limits.tenant_tokens_per_day", 0, 4_000_000_000)? as u32,
            short_reply_tokens: texts.whole("limits.short_reply_tokens", 0, 131_072)? as u32,
            async_replies_max: texts.whole("limits.async_replies_max", 0, 100_000)?,
            async_deadline: texts.duration("limits.async_deadline", second, hour)?,
            connections_max: texts.whole("limits.connections_max", 8, 1_000_000)?,
            idle_timeout: texts.duration("limits.idle_timeout", second, hour)?,
            request_timeout: texts.duration("limits.request_timeout", second, hour)?,
        },
        resume: ResumeOptions {
            grace: texts.duration("resume.grace", Duration::ZERO, hour)?,
            tokens_max: texts.whole("resume.tokens_max", 16, 1_000_000)?,
            replies_max: texts.whole("resume.replies_max", 1, 100_000)?,
        },
        oauth: OauthOptions {
            issuer: texts.issuer("oauth.issuer")?,
            audience: texts.optional("oauth.audience"),
            algorithm: texts.choice("oauth.algorithm", &[("EdDSA", Algorithm::EdDsa), ("ES256", Algorithm::Es256)])?,
            plain_http: texts.choice("oauth.plain_http", &[("false", false), ("true", true)])?,
        },
        issuers: Vec::new(),
        channels: Vec::new(),
        data,
        models,
    };
    if config.listen.port() != 0 && config.listen == config.metrics {
        return Err(texts.setting("metrics").refuse(format!("{} is the address of the API already", config.listen)));
    }
    if let Some(tls) = &config.tls
        && tls.listen.port() != 0
        && [config.listen, config.metrics].contains(&tls.listen)
    {
        return Err(texts
            .setting("tls.listen")
            .refuse(format!("{} is taken by another port of this node", tls.listen)));
    }
    Ok(config)
}

/// The folder in the data folder for a certificate that was made here.
const TLS_FOLDER: &str = "tls";

fn tls(texts: &Texts<'_>, data: &Path) -> Result<Option<TlsOptions>, Trouble> {
    let self_signed = texts.choice("tls.self_signed", &[("false", false), ("true", true)])?;
    let quic = texts.choice("tls.quic", &[("true", true), ("false", false)])?;
    let client_required = texts.choice("tls.client_auth", &[("require", true), ("request", false)])?;
    let named = (texts.optional("tls.certificate"), texts.optional("tls.key"));
    let client_ca = texts.optional("tls.client_ca").map(PathBuf::from);
    if texts.optional("tls.listen").is_none() {
        for (name, given) in [("tls.certificate", named.0.is_some()), ("tls.client_ca", client_ca.is_some())] {
            if given {
                return Err(texts.setting(name).refuse("it has no effect without tls.listen"));
            }
        }
        return Ok(None);
    }
    let folder = data.join(TLS_FOLDER);
    let (certificate, key, self_signed) = match named {
        (Some(certificate), Some(key)) => (certificate.into(), key.into(), false),
        (None, None) if self_signed => (folder.join("certificate.pem"), folder.join("key.pem"), true),
        (None, None) => {
            let why = "there is no certificate: set tls.certificate and tls.key, or tls.self_signed = true to try it";
            return Err(texts.setting("tls.listen").refuse(why));
        }
        (Some(_), None) => return Err(texts.setting("tls.certificate").refuse("tls.key is missing")),
        (None, Some(_)) => return Err(texts.setting("tls.key").refuse("tls.certificate is missing")),
    };
    let files = TlsFiles { certificate, key, client_ca, client_required };
    Ok(Some(TlsOptions { listen: texts.address("tls.listen")?, files, self_signed, quic }))
}

fn engine(texts: &Texts<'_>, memory_limit: u64, machine: &Machine) -> Result<EngineOptions, Trouble> {
    let minute = Duration::from_secs(60);
    let kv_auto = (memory_limit / 4 / (1 << 20)).clamp(16, KV_MIB_AUTO_MAX);
    Ok(EngineOptions {
        threads: texts.whole_or_auto("engine.threads", 1, 512, machine.cpus as u64)?,
        context_max: texts.whole("engine.context_max", 64, 1 << 20)?,
        sequences_max: texts.whole("engine.sequences_max", 1, 1024)?,
        kv_type: texts.read("engine.kv_type", str::parse)?,
        kv_mib: texts.whole_or_auto("engine.kv_mib", 16, 1 << 20, kv_auto)?,
        kv_kept_mib: match texts.text("engine.kv_kept_mib") {
            "auto" => None,
            _ => Some(texts.whole("engine.kv_kept_mib", 0, 1 << 20)?),
        },
        queue_max: texts.whole("engine.queue_max", 1, 65_536)?,
        prefill_chunk: texts.whole("engine.prefill_chunk", 16, 8192)?,
        inter_token_target: texts.duration("engine.inter_token_target", Duration::from_millis(1), minute)?,
        first_token_max: Some(texts.duration("engine.first_token_max", Duration::ZERO, 60 * minute)?)
            .filter(|limit| !limit.is_zero()),
        speculation: texts.choice("engine.speculation", &[("auto", Speculation::Auto), ("off", Speculation::Off)])?,
        embedding_int8: texts.choice("engine.embedding_int8", &[("false", false), ("true", true)])?,
    })
}

fn backup(texts: &Texts<'_>) -> Result<BackupOptions, Trouble> {
    let target = match texts.optional("backup.target") {
        None => None,
        Some(_) => Some(texts.read("backup.target", |text| Place::parse(text, false))?),
    };
    if target.is_some() && texts.text("storage_type") == "memory" {
        return Err(texts.setting("backup.target").refuse("a store in memory has no files to copy"));
    }
    let archive_idle = Some(texts.read("archive.idle_days", days)?).filter(|idle| !idle.is_zero());
    if archive_idle.is_some() && target.is_none() {
        return Err(texts.setting("archive.idle_days").refuse("messages have nowhere to go without backup.target"));
    }
    let every = texts.duration("backup.every", Duration::ZERO, Duration::from_secs(366 * 24 * 3600))?;
    Ok(BackupOptions {
        target,
        every: Some(every).filter(|every| !every.is_zero()),
        keep: texts.whole("backup.keep", 0, 100_000)?,
        bytes_per_s: texts.read("backup.bytes_per_s", |text| units::bytes(text, 0))?,
        archive_idle,
        archive_window: texts.whole("agent.window_messages_max", 2, 10_000)? as u64,
    })
}

/// A time in days, which may be parts of one.
fn days(text: &str) -> Result<Duration, String> {
    let days = text.trim().parse::<f64>().ok().filter(|days| (0.0..=36_500.0).contains(days));
    days.map(|days| Duration::from_secs_f64(days * 86_400.0)).ok_or("write a number of days from 0 to 36500".into())
}

fn agent(texts: &Texts<'_>) -> Result<AgentOptions, Trouble> {
    let second = Duration::from_secs(1);
    Ok(AgentOptions {
        system_prompt: texts.read("agent.system_prompt", |text| {
            let bytes = text.len();
            if bytes > SYSTEM_PROMPT_BYTES_MAX {
                return Err(format!("it has {bytes} bytes; at most {SYSTEM_PROMPT_BYTES_MAX} are allowed"));
            }
            Ok(text.to_owned())
        })?,
        reply_tokens_max: texts.whole("agent.reply_tokens_max", 1, 131_072)?,
        recall_items_max: texts.whole("agent.recall_items_max", 0, 64)?,
        window_messages_max: texts.whole("agent.window_messages_max", 2, 10_000)?,
        turn_deadline: texts.duration("agent.turn_deadline", second, second * 3600)?,
        reply_ttl: texts.duration("agent.reply_ttl", second * 60, second * 7 * 24 * 3600)?,
        sessions_hot_max: texts.whole("agent.sessions_hot_max", 16, 1_000_000)?,
    })
}

fn endpoint(text: &str) -> Result<Option<String>, String> {
    if text == "local" {
        return Ok(None);
    }
    match text.strip_prefix("file:") {
        Some(path) if !path.is_empty() => Ok(Some(path.trim_start_matches("//").to_owned())),
        _ => Err("this version runs models in its own engine only; write `local` or `file:PATH`".into()),
    }
}

fn key_source(text: &str) -> Result<KeySource, String> {
    let environment = text.strip_prefix("env:").filter(|name| !name.is_empty() && !name.contains(['=', ' ']));
    let command = text.strip_prefix("command:").filter(|command| !command.trim().is_empty());
    match (text, environment, command) {
        ("file", _, _) => Ok(KeySource::File),
        (_, Some(name), _) => Ok(KeySource::Environment(name.to_owned())),
        (_, _, Some(command)) => Ok(KeySource::Command(command.to_owned())),
        _ => Err("write `file`, `env:NAME` or `command:COMMAND`; the key itself never stands in a setting".into()),
    }
}

/// Names of corpora between commas. Which exist is only known while the node runs.
pub(super) fn corpora(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> =
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if names.len() > CORPORA_READABLE_MAX {
        return Err(format!("it names {} corpora; at most {CORPORA_READABLE_MAX} can be read together", names.len()));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match names.iter().find(|name| name.len() > CORPUS_NAME_BYTES_MAX || !name.chars().all(plain)) {
        Some(wrong) => Err(format!("{wrong:?} is no name of a corpus: 1 to 64 letters, digits, `-`, `_` or `.`")),
        None => Ok(names),
    }
}

/// `https://app.example.org, http://localhost:3000`.
fn origins(text: &str) -> Result<Vec<String>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|origin| {
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            let host = rest.filter(|host| !host.is_empty() && !host.contains(['/', '*', ' ', '@', '?', '#']));
            host.map(|_| origin.to_owned()).ok_or_else(|| {
                format!("{origin:?} is not an origin; write scheme and host alone, such as https://example.org")
            })
        })
        .collect()
}
