//! The settings that may change while the node runs. Readers take what holds at the moment and never wait.

use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;

use millrace_proto::channel::{Account, ChannelKind};
use millrace_proto::id::TenantId;
use millrace_proto::record::ChatAddress;

use crate::config::{Config, Corpora};
use crate::gateway::rates::Rates;

/// One state of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Rate limits.
    pub rates: Rates,
    /// Browser origins that may call the API.
    pub cors_origins: Vec<String>,
    /// How long running answers may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// The channel accounts that are served.
    pub channels: Vec<Arc<Account>>,
    /// What answers may draw on.
    pub corpora: Corpora,
}

impl Settings {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            rates: Rates::of(&config.limits),
            cors_origins: config.cors_origins.clone(),
            drain_timeout: config.drain_timeout,
            channels: config.channels.iter().cloned().map(Arc::new).collect(),
            corpora: config.corpora.clone(),
        }
    }

    /// The account of a webhook's address.
    pub fn account(&self, kind: ChannelKind, name: &str) -> Option<&Arc<Account>> {
        self.channels.iter().find(|account| account.kind == kind && account.name == name)
    }

    /// The account from which a chat is answered.
    pub fn account_of(&self, tenant: TenantId, address: &ChatAddress) -> Option<&Arc<Account>> {
        self.channels.iter().find(|account| {
            account.kind.as_str() == address.channel && account.name == address.account && account.tenant == tenant
        })
    }

    /// The accounts as a list without owners.
    pub fn accounts(&self) -> impl Iterator<Item = &Account> {
        self.channels.iter().map(|account| &**account)
    }
}

/// The settings in use.
#[derive(Debug)]
pub struct Live(ArcSwap<Settings>);

impl Live {
    /// Starts with these.
    pub fn new(settings: Settings) -> Self {
        Self(ArcSwap::from_pointee(settings))
    }

    /// What holds now. Keep it for one request at most.
    pub fn now(&self) -> Guard<Arc<Settings>> {
        self.0.load()
    }

    /// From here on these hold.
    pub fn replace(&self, settings: Settings) {
        self.0.store(Arc::new(settings));
    }
}
