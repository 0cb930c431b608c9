//! The settings that may change while the node runs. Readers take what holds at the moment and never wait.

use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use std::sync::Arc;

use crate::config::Config;
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
}

impl Settings {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        Self {
            rates: Rates::of(&config.limits),
            cors_origins: config.cors_origins.clone(),
            drain_timeout: config.drain_timeout,
        }
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
