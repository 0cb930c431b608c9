//! Log output: `tracing` to standard error, as text for people or as JSON for machines.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging at `level`; a second call in one process changes nothing.
///
/// `level` is one of the five level names or a `tracing` filter such as `info,millrace_storage=debug`.
pub fn start(level: &str, json: bool) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colour);
    let _ = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_target(false).with_thread_names(level.contains("debug")).try_init()
    };
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
