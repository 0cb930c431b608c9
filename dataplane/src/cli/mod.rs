//! The command line: results on standard output, everything else on standard error.
//!
//! Exit codes: 0 worked; 1 did not work (the message says what, why and what next); 2 wrong usage. `doctor`
//! answers 0 for healthy, 1 for warnings and 2 for failures.

mod admin;
mod archive;
mod backup;
mod bench;
mod bench_memory;
mod channel;
mod chat;
mod client;
mod corpus;
mod doctor;
mod doctor_checks;
mod model;
mod oauth;
mod print;
mod routes;
mod sealing;
mod settings;
mod status;
mod tune;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::config;
use crate::corpus::reader;
use crate::node;
use crate::trouble::Trouble;
use client::ServerArgs;
use settings::{FolderFlags, SettingFlags};

/// A self-hosted AI agent platform in one binary: engine, memory, channels and API.
#[derive(Debug, Parser)]
#[command(name = "millrace", version, args_override_self = true, propagate_version = true, max_term_width = 100)]
struct Cli {
    /// No colour in the output (also: NO_COLOR)
    #[arg(long, global = true)]
    no_color: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(Box<ServeArgs>),
    /// Talk to a running server in the terminal
    Chat(chat::ChatArgs),
    /// Set up, list, test and remove accounts of messengers
    Channel(channel::ChannelArgs),
    /// Add, list, show and remove models
    Model(model::ModelArgs),
    /// Check this machine and its configuration; exit code 0 healthy, 1 warnings, 2 failures
    Doctor(Box<doctor::DoctorArgs>),
    /// Measure the engine or the memory on this machine
    Bench(bench::BenchArgs),
    /// Measure this machine and propose engine settings for it
    Tune(Box<tune::TuneArgs>),
    /// Ask a running server how it is
    Status(status::StatusArgs),
    /// Show which settings hold and where they come from
    Config(ConfigArgs),
    /// Manage the API keys of a running server
    Key(admin::KeyArgs),
    /// Make a running server read its configuration again; says what needs a restart
    Reload(admin::ReloadArgs),
    /// Manage the OAuth clients of a running server
    Client(oauth::ClientArgs),
    /// Forget what a user said
    Memory(sealing::MemoryArgs),
    /// Make, list, check and restore copies of the data
    Backup(backup::BackupArgs),
    /// Look after messages that have left the store for the backup target
    Archive(archive::ArchiveArgs),
    /// Renew the keys that seal the stored data
    Seal(sealing::SealArgs),
    /// Look after replies that could not be delivered
    Outbox(admin::OutboxArgs),
    /// List every address that the server answers, and who may call it
    Routes(routes::RoutesArgs),
    /// Take documents in, search and remove them
    Corpus(corpus::CorpusArgs),
    /// Read a document from standard input: the server's own helper
    #[command(name = reader::COMMAND, hide = true)]
    ReadDocument {
        /// The format
        kind: String,
    },
    /// Print a completion script: millrace completion bash > /etc/bash_completion.d/millrace
    Completion {
        /// Which shell
        shell: Shell,
    },
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Print one line of JSON on standard output once the server is ready
    #[arg(long)]
    ready_json: bool,
    /// Check the configuration and the memory plan, then end: exit code 0 if the server would start with them
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Value, source and price of one setting, or one line for each
    Explain(Box<ExplainArgs>),
}

#[derive(Debug, Args)]
struct ExplainArgs {
    /// A key such as engine.kv_mib, or its environment variable
    key: Option<String>,
    #[command(flatten)]
    settings: SettingFlags,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    print::set_colour(!cli.no_color);
    match run(cli.command) {
        Ok(code) => code,
        Err(trouble) => {
            print::trouble(&trouble);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode, Trouble> {
    match command {
        Command::Serve(args) => {
            let loaded = config::load(&args.settings.flags)?;
            if args.check { node::check(&loaded) } else { node::run(loaded, args.ready_json) }
        }
        Command::Channel(args) => channel::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Model(args) => model::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tune(args) => tune::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Config(ConfigArgs { command: ConfigCommand::Explain(args) }) => explain(&args),
        Command::Key(args) => admin::keys(&args),
        Command::Reload(args) => admin::reload(&args),
        Command::Client(args) => oauth::run(&args),
        Command::Memory(args) => sealing::memory(&args),
        Command::Archive(args) => archive::run(&args),
        Command::Backup(args) => backup::run(&args),
        Command::Seal(args) => sealing::seal(&args),
        Command::Outbox(args) => admin::outbox(&args),
        Command::Routes(args) => Ok(routes::run(&args)),
        Command::Corpus(args) => corpus::run(&args),
        Command::ReadDocument { kind } => Ok(reader::run(&kind)),
        Command::Completion { shell } => Ok(completion(shell)),
    }
}

fn explain(args: &ExplainArgs) -> Result<ExitCode, Trouble> {
    let loaded = config::load(&args.settings.flags)?;
    let text = match &args.key {
        Some(key) => config::explain(&loaded, key)?,
        None => {
            let file = loaded.file.as_deref().map_or("none".to_owned(), |path| path.display().to_string());
            format!("{}configuration file: {file}\n", config::explain_all(&loaded))
        }
    };
    print::out(&text);
    Ok(ExitCode::SUCCESS)
}

fn completion(shell: Shell) -> ExitCode {
    let mut command = Cli::command();
    let mut script = Vec::new();
    let generator = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    clap_complete::generate(generator, &mut command, "millrace", &mut script);
    let _ = std::io::stdout().write_all(&script);
    ExitCode::SUCCESS
}

/// Reads a small text file for a flag such as `--key-file`.
fn read_text(path: &PathBuf) -> Result<String, Trouble> {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|error| {
        Trouble::new(format!("{} cannot be read", path.display()), error.to_string(), "check the path and its mode")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KEYS;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_serve_and_names_its_variable_in_the_help() {
        let mut command = Cli::command();
        let serve = command.find_subcommand_mut("serve").unwrap();
        // Lines are wrapped; the words are what counts.
        let help = serve.render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        for key in KEYS {
            assert!(help.contains(&format!("--{}", key.flag())), "{}", key.name);
            assert!(help.contains(&format!("[env: {}]", key.env)), "{}", key.env);
        }
    }

    #[test]
    fn a_flag_given_twice_takes_the_last() {
        let cli = Cli::try_parse_from(["millrace", "serve", "--listen", "a", "--engine-kv-mib=5", "--listen", "b"]);
        let Command::Serve(args) = cli.unwrap().command else { panic!("not serve") };
        assert_eq!(args.settings.flags.values["listen"], "b");
        assert_eq!(args.settings.flags.values["engine.kv_mib"], "5");
    }
}
