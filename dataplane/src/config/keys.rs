//! The table of all settings: names, environment variables, defaults, meaning and price.
//!
//! Flags, `config explain` and the first `millrace.toml` are made from this table, so they cannot drift.

use std::collections::HashMap;
use std::sync::LazyLock;

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Name in `millrace.toml`; a dot separates the table from the key.
    pub name: &'static str,
    /// Environment variable.
    pub env: &'static str,
    /// Default as it would be written.
    pub default: &'static str,
    /// What it sets, with the allowed values.
    pub what: &'static str,
    /// What a larger (or another) value costs.
    pub cost: &'static str,
}

impl Key {
    /// The long flag without its dashes: `engine.kv_mib` is `engine-kv-mib`.
    pub fn flag(&self) -> &'static str {
        // The command line wants names that live as long as the program.
        static FLAGS: LazyLock<HashMap<&'static str, String>> =
            LazyLock::new(|| KEYS.iter().map(|key| (key.name, key.name.replace(['.', '_'], "-"))).collect());
        &FLAGS[self.name]
    }
}

macro_rules! keys {
    ($($name:literal, $env:literal, $default:literal, $what:literal, $cost:literal;)*) => {
        /// Every setting, in the order of the file.
        pub const KEYS: &[Key] = &[$(Key { name: $name, env: $env, default: $default, what: $what, cost: $cost }),*];
    };
}

keys! {
    "data", "MILLRACE_DATA", "",
        "Folder of everything this node keeps: sessions, memory, queues, key file. Default: $XDG_DATA_HOME/millrace or ~/.local/share/millrace",
        "Moving it moves the data; one process at a time may use it.";
    "models", "MILLRACE_MODELS", "",
        "Folder with the models. Default: `models` inside the data folder",
        "Nothing but disk space.";
    "listen", "MILLRACE_LISTEN", "127.0.0.1:8080",
        "Address of the API and the chat page; port 0 picks a free one",
        "An address other than loopback opens the API to the network in plain HTTP: use tls.listen for that, or a TLS proxy.";
    "metrics", "MILLRACE_METRICS", "127.0.0.1:8081",
        "Address of /metrics, /healthz and /readyz; port 0 picks a free one",
        "These pages need no key: an address other than loopback shows them to the network.";
    "model", "MILLRACE_MODEL", "",
        "Chat model: a file or folder name in the models folder, or a path. Default: the only GGUF file there",
        "A larger model answers better and takes more memory and time for each token.";
    "embedding_model", "MILLRACE_EMBEDDING_MODEL", "",
        "Encoder for embeddings and recall: a folder in the models folder, or a path; `none` turns it off. Default: the only encoder folder there",
        "Without it /v1/embeddings is refused and recall works on words and links alone.";
    "draft_model", "MILLRACE_DRAFT_MODEL", "",
        "A much smaller chat model of the same family (same vocabulary) that guesses tokens for the chat model, named like it; empty is none",
        "Its weights come on top in memory, and an eighth of engine.kv_mib is its own; used only while it makes answers faster.";
    "small_model", "MILLRACE_SMALL_MODEL", "",
        "A chat model that answers requests without a session, tools or a model's name when `model` would be late: file name in the models folder, or a path; empty is none",
        "Memory for its weights and a quarter of engine.kv_mib; both models share the processor.";
    "workers", "MAX_WORKERS", "auto",
        "Reactor threads, 1 to 256; auto is one for each CPU, at most 16",
        "Each takes about 1 MiB and one io_uring; more than CPUs only adds switches.";
    "io", "MILLRACE_IO", "auto",
        "Network back end: auto, uring (fail if the kernel refuses) or epoll",
        "epoll costs more system calls for each request.";
    "memory_limit", "MEMORY_LIMIT", "70%",
        "Most memory that the plan may use: a size (`8GiB`) or a share of the machine (`70%`)",
        "The plan refuses to start when it does not fit; a limit near all memory invites the OOM killer.";
    "retry_policy", "RETRY_POLICY", "exp:1s..60s*5",
        "Pauses between delivery attempts: a list `5s,30s,2m,10m`, back-off `exp:1s..60s*5`, or `none`",
        "Longer policies keep undeliverable replies in the outbox for longer.";
    "log_level", "LOG_LEVEL", "info",
        "error, warn, info, debug, trace or off; a filter such as `info,millrace_storage=debug` also works",
        "debug and trace write many lines for each request and slow it down.";
    "log_format", "MILLRACE_LOG_FORMAT", "text",
        "text for people or json for machines; always on standard error",
        "Nothing.";
    "storage_type", "STORAGE_TYPE", "rocksdb",
        "rocksdb (durable), or memory (everything is lost at the end of the process; for trials)",
        "memory keeps no promise about accepted messages.";
    "model_endpoint", "MODEL_ENDPOINT", "local",
        "local: the built-in engine; file:PATH: the built-in engine with the GGUF file at PATH. Remote endpoints are not supported by this version",
        "Nothing.";
    "model_load_timeout", "MODEL_LOAD_TIMEOUT", "60s",
        "Longest time that loading the models may take, 1s to 1h",
        "A longer time hides a slow disk from the supervisor for longer.";
    "drain_timeout", "MILLRACE_DRAIN_TIMEOUT", "10s",
        "How long running answers may go on after SIGTERM, 0s to 10m",
        "A restart takes up to this long; a supervisor must wait longer than it before it kills.";
    "cors_origins", "MILLRACE_CORS_ORIGINS", "",
        "Browser origins that may call the API, comma separated, each like https://example.org; empty allows none but the page itself",
        "Pages of these origins can use a key that their visitor gives them.";
    "tls.listen", "MILLRACE_TLS_LISTEN", "",
        "Address of the API over TLS (HTTP/1.1, HTTP/2 and, over UDP, HTTP/3), such as 0.0.0.0:8443; port 0 picks a free one; empty turns it off",
        "This is the port to open to a network; `listen` can stay on loopback.";
    "tls.certificate", "MILLRACE_TLS_CERTIFICATE", "",
        "PEM file with the certificate chain, the server's own first; read again on SIGHUP",
        "Nothing.";
    "tls.key", "MILLRACE_TLS_KEY", "",
        "PEM file with the certificate's private key, readable by this user only; read again on SIGHUP",
        "Nothing.";
    "tls.self_signed", "MILLRACE_TLS_SELF_SIGNED", "false",
        "true makes a certificate for this machine in the folder `tls` of the data folder, when tls.certificate is empty; for development",
        "Clients must be told to trust it: nobody vouches for it.";
    "tls.client_ca", "MILLRACE_TLS_CLIENT_CA", "",
        "PEM file with the authorities that sign client certificates (mutual TLS); empty asks for none",
        "Clients need a certificate beside their key.";
    "tls.client_auth", "MILLRACE_TLS_CLIENT_AUTH", "require",
        "With tls.client_ca: require refuses clients without a certificate, request only checks those that show one",
        "Nothing.";
    "tls.quic", "MILLRACE_TLS_QUIC", "true",
        "true serves HTTP/3 and millrace/1 on the UDP port with the number of tls.listen",
        "A firewall must let UDP through on that port; some 2 MiB for each shard.";
    "oauth.issuer", "MILLRACE_OAUTH_ISSUER", "",
        "URL under which OAuth clients reach this node, such as https://ai.example.org; it is the issuer of its tokens. Default: made from tls.listen or listen",
        "Changing it ends all JWTs that were made under the old one.";
    "oauth.audience", "MILLRACE_OAUTH_AUDIENCE", "",
        "Whom this node's JWTs are for (aud), checked in those that come back. Default: oauth.issuer",
        "Nothing.";
    "oauth.algorithm", "MILLRACE_OAUTH_ALGORITHM", "EdDSA",
        "How this node signs JWTs: EdDSA (Ed25519) or ES256 (P-256); another one makes a new key, and the earlier keys go on verifying",
        "ES256 is known to more libraries and slower.";
    "oauth.plain_http", "MILLRACE_OAUTH_PLAIN_HTTP", "false",
        "true takes client secrets from other machines over plain HTTP too, for a TLS proxy that is not on this machine",
        "Whoever can read the network in between reads the secrets.";
    "engine.threads", "MILLRACE_ENGINE_THREADS", "auto",
        "Compute threads of the engine, 1 to 512; auto is one for each CPU",
        "More than CPUs makes every step slower.";
    "engine.context_max", "MILLRACE_ENGINE_CONTEXT_MAX", "8192",
        "Longest context in tokens, 64 to 1048576; the model's own limit is never exceeded",
        "One sequence may take this many tokens of the KV pool.";
    "engine.sequences_max", "MILLRACE_ENGINE_SEQUENCES_MAX", "64",
        "Sequences computed together, 1 to 1024",
        "Each running sequence makes a step longer and holds its part of the KV pool.";
    "engine.kv_mib", "MILLRACE_ENGINE_KV_MIB", "auto",
        "Size of the KV pool in MiB, 16 to 1048576; auto is a quarter of memory_limit, at most 4096",
        "It is the largest part of the memory plan; pages are touched only when used.";
    "engine.kv_kept_mib", "MILLRACE_ENGINE_KV_KEPT_MIB", "auto",
        "How much of the KV pool may keep what was computed for earlier requests, 0 to 1048576 MiB; auto is twice the model's weights",
        "It stays in memory, and conversations that come back start sooner; running requests use the whole pool all the same.";
    "engine.kv_type", "MILLRACE_ENGINE_KV_TYPE", "f16",
        "How keys and values are kept: f16, or q8_0 (bytes with a scale for each 32, where heads are a multiple of 32)",
        "q8_0 takes 17/32 of the memory and is quicker in long contexts; replies may differ slightly.";
    "engine.queue_max", "MILLRACE_ENGINE_QUEUE_MAX", "256",
        "Requests that may wait for the batch, 1 to 65536; more are refused with 503",
        "A long queue turns overload into long waits instead of early refusals.";
    "engine.prefill_chunk", "MILLRACE_ENGINE_PREFILL_CHUNK", "128",
        "Most prompt tokens computed in one step, 16 to 8192; while answers run, engine.inter_token_target cuts steps shorter",
        "Larger steps read prompts faster; work buffers grow with it.";
    "engine.inter_token_target", "MILLRACE_ENGINE_INTER_TOKEN_TARGET", "100ms",
        "How long a step may take while answers run, 1ms to 60s, kept by measured speeds; a prompt gets at least 16 tokens of each step",
        "A longer time starts new answers sooner and makes running ones stutter.";
    "engine.first_token_max", "MILLRACE_ENGINE_FIRST_TOKEN_MAX", "0s",
        "Refuse requests (429) whose first token is predicted later than this, up to 1h; 0s refuses only what would miss its own deadline",
        "A longer time turns overload into long waits instead of early refusals.";
    "engine.speculation", "MILLRACE_ENGINE_SPECULATION", "auto",
        "Guess tokens and verify several in one step: auto where it is predicted to be faster, or off; answers are the same either way",
        "off makes answers slower that repeat parts of their context, while few run at once.";
    "engine.embedding_int8", "MILLRACE_ENGINE_EMBEDDING_INT8", "false",
        "Keep most of the encoder's weights as bytes instead of half floats: true or false",
        "true saves two fifths of their memory; vectors keep a cosine of 0.999 with the exact ones (all-MiniLM-L6-v2).";
    "storage.cache_mib", "MILLRACE_STORAGE_CACHE_MIB", "64",
        "Block cache and write buffers of the store in MiB, 8 to 1048576",
        "Counts in the memory plan.";
    "storage.key_file", "MILLRACE_STORAGE_KEY_FILE", "",
        "File with the key that seals the stored values, mode 0600; made at the first start. Default: `master.key` inside the data folder",
        "Without this file the data cannot be read: back it up apart from the data.";
    "storage.key_source", "MILLRACE_STORAGE_KEY_SOURCE", "file",
        "Where the key of keys comes from: file (storage.key_file), env:NAME, or command:COMMAND, a shell command that prints it",
        "With env and command every start depends on them; the key never touches the disk.";
    "storage.suite", "MILLRACE_STORAGE_SUITE", "intl",
        "What seals the data of new tenants: intl (AES-256-GCM) or gm (SM4-GCM); `millrace seal rotate --suite` changes it for others",
        "gm costs a little more processor time where the processor lacks GFNI.";
    "backup.target", "MILLRACE_BACKUP_TARGET", "",
        "Where backups go: a folder (/path or file:///path), or s3://bucket/prefix with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the server's environment; empty makes none by itself",
        "Copies of everything, sealed: whoever has them and the key of keys has the data. The key of keys is not in them: keep it apart.";
    "backup.every", "MILLRACE_BACKUP_EVERY", "24h",
        "Time between two backups, up to 8784h; 0s makes none by itself. The first comes a minute after the first start",
        "A longer time loses more when the disk is lost; each backup sends what changed since the last.";
    "backup.keep", "MILLRACE_BACKUP_KEEP", "7",
        "Backups that are kept of this data folder, up to 100000; 0 keeps all",
        "Each keeps what later ones no longer have; what they share is stored once.";
    "backup.bytes_per_s", "MILLRACE_BACKUP_BYTES_PER_S", "64MiB",
        "Bytes that a backup reads and writes in a second, such as 64MiB; 0 is as fast as it goes",
        "A faster backup takes more of the disk and a part of a core from answers.";
    "archive.idle_days", "MILLRACE_ARCHIVE_IDLE_DAYS", "0",
        "Messages of conversations that were idle for so many days, and in others those older than that and beyond agent.window_messages_max, move to backup.target once a day; up to 36500, such as 90 or 0.5; 0 moves none",
        "The store stays small; whoever reads old messages waits for the target, and needs it.";
    "agent.system_prompt", "MILLRACE_AGENT_SYSTEM_PROMPT", "You are a helpful assistant. Answer briefly and truthfully.",
        "First message of every session, at most 16384 bytes",
        "Its tokens are part of every context (shared in the KV cache between sessions).";
    "agent.reply_tokens_max", "MILLRACE_AGENT_REPLY_TOKENS_MAX", "512",
        "Longest reply of a session turn in tokens, 1 to 131072, unless the request says otherwise",
        "This part of the context is kept free for the reply.";
    "agent.recall_items_max", "MILLRACE_AGENT_RECALL_ITEMS_MAX", "4",
        "Facts from other sessions of the same user placed into a context, 0 to 64; 0 turns recall off",
        "Each takes room from the recent messages.";
    "agent.corpora", "MILLRACE_AGENT_CORPORA", "",
        "Corpora whose passages sessions of the API and the chat page may be answered from, comma separated, at most 16; channels name their own as `corpora` in [[channel]]",
        "Everybody with a key of the tenant can ask out what these documents say; each passage takes room from the recent messages.";
    "agent.window_messages_max", "MILLRACE_AGENT_WINDOW_MESSAGES_MAX", "200",
        "Recent messages of a session that are considered for a context, 2 to 10000",
        "They are held in memory for hot sessions.";
    "agent.reply_ttl", "MILLRACE_AGENT_REPLY_TTL", "1h",
        "How old a message of a channel or its reply may be and still be answered, 1m to 7d",
        "After a long stop older messages get a notice in the outbox instead of a late answer.";
    "agent.turn_deadline", "MILLRACE_AGENT_TURN_DEADLINE", "120s",
        "Longest time of one session turn, 1s to 1h",
        "A stuck turn holds its session for this long.";
    "agent.sessions_hot_max", "MILLRACE_AGENT_SESSIONS_HOT_MAX", "1024",
        "Sessions held in memory by each reactor, 16 to 1000000",
        "About 16 KiB each in the memory plan.";
    "memory.extract", "MILLRACE_MEMORY_EXTRACT", "off",
        "on lets the chat model read what users said while nothing else runs, and keep statements such as `user lives_in Rome` with their times; off does not",
        "A small model understands much wrongly: use it with some billions of weights or more. It takes compute time, and what was said while it was off is not read later.";
    "memory.extract_tokens_per_hour", "MILLRACE_MEMORY_EXTRACT_TOKENS_PER_HOUR", "200000",
        "Most tokens of prompts and replies that memory.extract may use in an hour, 1000 to 1000000000",
        "More keeps up with busier users and the machine busy for longer.";
    "limits.requests_per_minute", "MILLRACE_LIMITS_REQUESTS_PER_MINUTE", "600",
        "API requests of one key in a minute, 1 to 10000000; more are refused with 429",
        "One client can take more of the engine.";
    "limits.tenant_requests_per_minute", "MILLRACE_LIMITS_TENANT_REQUESTS_PER_MINUTE", "0",
        "API requests of one tenant in a minute, all its keys and clients together, up to 10000000; 0 is no limit",
        "One tenant can take more of the engine.";
    "limits.address_requests_per_minute", "MILLRACE_LIMITS_ADDRESS_REQUESTS_PER_MINUTE", "0",
        "Requests from one IP address in a minute, whatever key they show, up to 10000000; 0 is no limit",
        "Behind a proxy all clients have its address: leave it at 0 there.";
    "limits.channel_events_per_minute", "MILLRACE_LIMITS_CHANNEL_EVENTS_PER_MINUTE", "0",
        "Authentic events of one channel account in a minute, up to 10000000; more are refused with 429, and the platform repeats them later; 0 is no limit",
        "One account can take more of the engine.";
    "limits.tokens_per_minute", "MILLRACE_LIMITS_TOKENS_PER_MINUTE", "0",
        "Tokens of one key or client in a minute, prompts and answers together, up to 1000000000; 0 is no limit. A request reserves what it may need and gives back what it did not",
        "One client can take more of the engine.";
    "limits.tenant_tokens_per_minute", "MILLRACE_LIMITS_TENANT_TOKENS_PER_MINUTE", "0",
        "The same for one tenant, all its keys and clients together, up to 1000000000; 0 is no limit",
        "One tenant can take more of the engine.";
    "limits.tokens_per_day", "MILLRACE_LIMITS_TOKENS_PER_DAY", "0",
        "Budget of one key or client in tokens a day, up to 4000000000; it comes back evenly and a restart does not forget what was used; 0 is no budget",
        "One client can take more of the engine.";
    "limits.tenant_tokens_per_day", "MILLRACE_LIMITS_TENANT_TOKENS_PER_DAY", "0",
        "The same for one tenant, all its keys and clients together",
        "One tenant can take more of the engine.";
    "limits.short_reply_tokens", "MILLRACE_LIMITS_SHORT_REPLY_TOKENS", "128",
        "Longest reply in tokens for requests that name no length while half of engine.queue_max waits, or what is left of a limit on tokens; the answer says so. Up to 131072; 0 refuses instead",
        "Long replies under load keep others waiting.";
    "limits.async_replies_max", "MILLRACE_LIMITS_ASYNC_REPLIES_MAX", "16",
        "Replies of one tenant that are made later, for clients that accept it (`Prefer: respond-async`) when they would be late, up to 100000; 0 refuses instead",
        "Each holds a place in the engine's queue, and its text in memory until it is fetched or too old.";
    "limits.async_deadline", "MILLRACE_LIMITS_ASYNC_DEADLINE", "10m",
        "How long such a reply may take, and how long it is kept afterwards, 1s to 1h",
        "A longer time keeps more of them.";
    "limits.connections_max", "MILLRACE_LIMITS_CONNECTIONS_MAX", "10000",
        "Client connections of the whole node, 8 to 1000000",
        "About 8 KiB each, and one file descriptor.";
    "limits.idle_timeout", "MILLRACE_LIMITS_IDLE_TIMEOUT", "60s",
        "How long a connection may wait between requests, 1s to 1h",
        "Idle connections count as open.";
    "limits.request_timeout", "MILLRACE_LIMITS_REQUEST_TIMEOUT", "300s",
        "Longest time of one API request from its head to the end of its answer, 1s to 1h",
        "A slow client can hold its place for this long.";
    "resume.grace", "MILLRACE_RESUME_GRACE", "15s",
        "How long a reply that may be resumed (chat sockets, and streams with stream_options.resume) goes on without its client and is kept for it, 0s to 1h; 0s cancels it at once",
        "Replies that nobody comes back for use the engine for this long.";
    "resume.tokens_max", "MILLRACE_RESUME_TOKENS_MAX", "4096",
        "Newest tokens of such a reply that are kept, 16 to 1000000; a client that lacks more cannot resume",
        "About 300 bytes each while the reply is kept.";
    "resume.replies_max", "MILLRACE_RESUME_REPLIES_MAX", "64",
        "Such replies of one tenant that are kept, 1 to 100000; beyond it the oldest without a client goes, and its work with it",
        "Memory: replies times their tokens.";
}

/// The keys of one `[[channel]]` table.
pub const CHANNEL_KEYS: &[&str] = &[
    "kind",
    "name",
    "tenant",
    "secrets",
    "encryption_keys",
    "verify_token",
    "bot_token",
    "app_secret",
    "app_id",
    "bot_id",
    "bot_username",
    "sender",
    "mode",
    "topics",
    "public_url",
    "api_base",
    "keys_base",
    "reply_url",
    "corpora",
    "stream",
    "users",
    "operators",
];

/// The keys of one `[[issuer]]` table.
pub const ISSUER_KEYS: &[&str] = &["issuer", "jwks_url", "audience", "tenant", "scopes"];

/// The setting called `name`.
pub fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The known name that is most like `name`, if one is near enough to be meant.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.75)
        .max_by(|one, two| one.0.total_cmp(&two.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_variables_and_flags_are_unique_and_explained() {
        let (mut names, mut envs, mut flags) = (HashSet::new(), HashSet::new(), HashSet::new());
        for key in KEYS {
            assert!(names.insert(key.name) && envs.insert(key.env) && flags.insert(key.flag()), "{}", key.name);
            assert!(!key.what.is_empty() && !key.cost.is_empty(), "{}", key.name);
        }
        for wished in [
            "MAX_WORKERS",
            "MEMORY_LIMIT",
            "RETRY_POLICY",
            "LOG_LEVEL",
            "MODEL_ENDPOINT",
            "STORAGE_TYPE",
            "MODEL_LOAD_TIMEOUT",
        ] {
            assert!(envs.contains(wished), "{wished}");
        }
    }

    #[test]
    fn a_typo_finds_its_key() {
        let names = || KEYS.iter().map(|key| key.name);
        assert_eq!(nearest("engine.kv_mb", names()), Some("engine.kv_mib"));
        assert_eq!(nearest("lisen", names()), Some("listen"));
        assert_eq!(nearest("zzz", names()), None);
    }
}
