//! Reading the configuration again while the node runs: what can change does, and what needs a restart is named.
//!
//! A configuration that cannot be used changes nothing. Settings are compared as texts, so a default that was
//! written out is no change. What was named as needing a restart is named again until the restart.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use millrace_proto::channel::Account;
use serde::Serialize;

use crate::config::{self, Flags, Loaded};
use crate::identity::issuers::Issuers;
use crate::obs;
use crate::shard::Shared;
use crate::shard::live::Settings;
use crate::trouble::Trouble;

/// Settings that take effect at once. Everything else was used to build the node.
const LIVE: &[&str] = &[
    "agent.corpora",
    "cors_origins",
    "drain_timeout",
    "limits.address_requests_per_minute",
    "limits.channel_events_per_minute",
    "limits.requests_per_minute",
    "limits.short_reply_tokens",
    "limits.tenant_requests_per_minute",
    "limits.tenant_tokens_per_day",
    "limits.tenant_tokens_per_minute",
    "limits.tokens_per_day",
    "limits.tokens_per_minute",
    "log_level",
];

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Settings that have changed and hold now.
    pub applied: Vec<String>,
    /// Settings that have changed and hold after a restart.
    pub restart_needed: Vec<String>,
    /// The certificates were read again.
    pub certificates: bool,
}

/// What the running node was built from.
pub struct Reloader {
    flags: Flags,
    running: Mutex<Running>,
}

struct Running {
    settings: BTreeMap<&'static str, String>,
    channels: Channels,
    issuers: Vec<config::IssuerOptions>,
}

/// The accounts with their secrets, and which corpora each may read. A secret that was renewed under its old name is a
/// change that no text shows.
type Channels = (Vec<Account>, HashMap<(String, String), Vec<String>>);

impl Reloader {
    /// For a node that is started with this.
    pub fn new(loaded: &Loaded) -> Self {
        Self { flags: loaded.flags.clone(), running: Mutex::new(Running::of(loaded)) }
    }

    /// Reads everything again. Does IO: not for a reactor.
    pub fn reload(&self, shared: &Shared) -> Result<Report, Trouble> {
        let loaded = config::load(&self.flags)?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = compare(&mut running, &loaded);
        if let Some(tls) = &shared.tls {
            tls.reload().map_err(|error| {
                let next = "correct the files; the certificate in use stays, and nothing else was changed";
                Trouble::new("the certificate cannot be used", error.to_string(), next)
            })?;
            report.certificates = true;
        }
        let fresh = Running::of(&loaded);
        for name in &report.applied {
            match name.as_str() {
                "issuer" => {
                    shared.authority.put_issuers(Issuers::new(fresh.issuers.clone()), &shared.control);
                    running.issuers.clone_from(&fresh.issuers);
                    // Tokens of an issuer that is no longer trusted must not be remembered as good.
                    shared.gateway.keys_changed();
                }
                "channel" => running.channels.clone_from(&fresh.channels),
                "log_level" => obs::logs::set_level(&loaded.config.log_level),
                _ => {}
            }
            if let Some((key, text)) = fresh.settings.get_key_value(name.as_str()) {
                running.settings.insert(key, text.clone());
            }
        }
        let settings = Settings::of(&loaded.config);
        // Before the first event of a new account: its rates are kept and its keys are on their way.
        shared.pace.keep(settings.accounts());
        shared.platforms.keep(settings.accounts());
        shared.platforms.warm(settings.accounts());
        shared.live.replace(settings);
        Ok(report)
    }
}

impl Running {
    fn of(loaded: &Loaded) -> Self {
        Self {
            settings: loaded.settings.iter().map(|setting| (setting.key.name, setting.text.clone())).collect(),
            channels: (loaded.config.channels.clone(), loaded.config.corpora.channels.clone()),
            issuers: loaded.config.issuers.clone(),
        }
    }
}

fn compare(running: &mut Running, loaded: &Loaded) -> Report {
    let fresh = Running::of(loaded);
    let mut report = Report::default();
    for (name, text) in &fresh.settings {
        if running.settings.get(name) == Some(text) {
            continue;
        }
        if LIVE.contains(name) { &mut report.applied } else { &mut report.restart_needed }.push((*name).to_owned());
    }
    if running.channels != fresh.channels {
        report.applied.push("channel".into());
    }
    if running.issuers != fresh.issuers {
        report.applied.push("issuer".into());
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{KEYS, Machine, load_from};

    fn loaded(text: &str) -> Loaded {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("millrace.toml");
        std::fs::write(&file, text).expect("written");
        let flags = Flags { config: Some(file), ..Flags::default() };
        let machine = Machine { cpus: 2, memory_bytes: 8 << 30 };
        load_from(&flags, &|_| None, &machine).expect("a configuration")
    }

    #[test]
    fn changes_are_sorted_into_those_that_hold_and_those_that_need_a_restart() {
        let mut running = Running::of(&loaded("listen = \"127.0.0.1:9000\"\n"));
        let report = compare(&mut running, &loaded("listen = \"127.0.0.1:9000\"\n"));
        assert_eq!(report, Report::default(), "nothing has changed");
        let next = loaded(
            "listen = \"127.0.0.1:9001\"\nlog_level = \"debug\"\n[limits]\nrequests_per_minute = 7\n\
             [[issuer]]\nissuer = \"https://a.example\"\njwks_url = \"https://a.example/keys\"\naudience = \"m\"\n",
        );
        let report = compare(&mut running, &next);
        assert_eq!(report.applied, ["limits.requests_per_minute", "log_level", "issuer"]);
        assert_eq!(report.restart_needed, ["listen"]);
        assert_eq!(compare(&mut running, &next), report, "named again until it holds");
        let secret = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(secret.path(), "word").expect("written");
        let channel = format!(
            "listen = \"127.0.0.1:9000\"\n[[channel]]\nkind = \"slack\"\nname = \"a\"\nsecrets = [\"file:{path}\"]\nbot_token = \"file:{path}\"\n",
            path = secret.path().display()
        );
        assert_eq!(compare(&mut running, &loaded(&channel)).applied, ["channel"]);
        let mut running = Running::of(&loaded(&channel));
        assert_eq!(compare(&mut running, &loaded(&channel)), Report::default());
        std::fs::write(secret.path(), "another word").expect("written");
        assert_eq!(compare(&mut running, &loaded(&channel)).applied, ["channel"], "a secret renewed in its place");
    }

    #[test]
    fn what_is_called_live_exists() {
        for name in LIVE {
            assert!(KEYS.iter().any(|key| key.name == *name), "{name}");
        }
        assert!(LIVE.is_sorted());
    }
}
