//! Log output: `tracing` to standard error, as text for people or as JSON for machines.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

type SetFilter = Box<dyn Fn(EnvFilter) + Send + Sync>;

/// Changes the filter of the running log.
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Starts logging at `level`; a second call in one process changes nothing.
///
/// `level` is one of the five level names or a `tracing` filter such as `info,millrace_storage=debug`.
pub fn start(level: &str, json: bool) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    if json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        keep(builder.try_init().is_ok(), move |filter| handle.reload(filter).is_ok());
    } else {
        let builder = builder.with_target(false).with_thread_names(level.contains("debug")).with_filter_reloading();
        let handle = builder.reload_handle();
        keep(builder.try_init().is_ok(), move |filter| handle.reload(filter).is_ok());
    }
}

fn keep(started: bool, set: impl Fn(EnvFilter) -> bool + Send + Sync + 'static) {
    if started {
        let set = move |filter| {
            if !set(filter) {
                tracing::warn!("the log keeps its level");
            }
        };
        // Only the call that started the log comes here.
        let _ = SET_FILTER.set(Box::new(set));
    }
}

/// Changes the level of the running log.
pub fn set_level(level: &str) {
    if let (Some(set), Ok(filter)) = (SET_FILTER.get(), EnvFilter::try_new(level)) {
        set(filter);
    }
}

/// Is `level` something that [`start`] understands?
pub fn is_valid(level: &str) -> bool {
    let known = |name: &str| matches!(name, "error" | "warn" | "info" | "debug" | "trace" | "off");
    // The filter grammar takes a bare unknown word as a target name, so `LOG_LEVEL=verbose` would be silent.
    level.split(',').all(|part| part.contains('=') || known(&part.trim().to_ascii_lowercase()))
        && EnvFilter::try_new(level).is_ok()
}

#[cfg(test)]
mod tests {
    use super::is_valid;

    #[test]
    fn levels_and_filters_are_understood_and_typos_are_not() {
        for good in ["info", "DEBUG", "off", "info,millrace_storage=debug", "warn,a::b=trace"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in ["verbose", "", "info,loud", "info,a=loud"] {
            assert!(!is_valid(bad), "{bad}");
        }
    }
}
