//! One flag for each row of the settings table.

use std::path::PathBuf;

use clap::builder::PathBufValueParser;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::config::{Flags, KEYS, Key};

/// Every setting as a flag, and `--config`.
#[derive(Debug, Default)]
pub(super) struct SettingFlags {
    pub(super) flags: Flags,
}

/// The flags that say where things are, for commands that need no more.
#[derive(Debug, Default)]
pub(super) struct FolderFlags {
    pub(super) flags: Flags,
}

/// The flags that say where the data is and what opens it.
#[derive(Debug, Default)]
pub(super) struct SealFlags {
    pub(super) flags: Flags,
}

/// Settings that stand above the long list in the help.
const COMMON: [&str; 7] = ["data", "models", "listen", "metrics", "model", "embedding_model", "io"];
const FOLDERS: &[&str] = &["data", "models"];
const SEALING: &[&str] = &["data", "storage.key_file", "storage.key_source"];

fn config_flag() -> Arg {
    Arg::new("config").long("config").value_name("FILE").value_parser(PathBufValueParser::new()).help(
        "Configuration file. Default: ./millrace.toml, else millrace.toml in the data folder [env: MILLRACE_CONFIG]",
    )
}

fn flag(key: &'static Key) -> Arg {
    let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
    let arg = Arg::new(key.name)
        .long(key.flag())
        .value_name("VALUE")
        .allow_hyphen_values(true)
        .help(format!("{} [env: {}]{default}", key.what, key.env));
    if COMMON.contains(&key.name) { arg } else { arg.help_heading("Settings") }
}

fn read(matches: &ArgMatches, keys: impl Iterator<Item = &'static Key>) -> Flags {
    let value = |key: &'static Key| Some((key.name, matches.get_one::<String>(key.name)?.clone()));
    Flags { config: matches.get_one::<PathBuf>("config").cloned(), values: keys.filter_map(value).collect() }
}

fn named(names: &'static [&'static str]) -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| names.contains(&key.name))
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        command.arg(config_flag()).args(KEYS.iter().map(flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self { flags: read(matches, KEYS.iter()) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// A type that takes some of the settings as flags.
macro_rules! some_flags {
    ($type:ty, $names:expr) => {
        impl Args for $type {
            fn augment_args(command: Command) -> Command {
                command.arg(config_flag()).args(named($names).map(flag))
            }

            fn augment_args_for_update(command: Command) -> Command {
                Self::augment_args(command)
            }
        }

        impl FromArgMatches for $type {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self { flags: read(matches, named($names)) })
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
}

some_flags!(FolderFlags, FOLDERS);
some_flags!(SealFlags, SEALING);
