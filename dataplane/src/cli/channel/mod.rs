//! `millrace channel`: accounts of messengers, from the first question to the first message.

mod add;
mod file;
mod probe;
mod steps;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use millrace_proto::channel::{Account, ChannelKind};
use serde_json::json;

use super::FolderFlags;
use super::client::ServerArgs;
use super::print::{note, out, table};
use crate::config;
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct ChannelArgs {
    #[command(subcommand)]
    command: ChannelCommand,
}

#[derive(Debug, Subcommand)]
enum ChannelCommand {
    /// Set an account up: asks for what the platform needs, seals the secrets, says what to do in its console
    Add(add::AddArgs),
    /// List the accounts of the configuration
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        folders: FolderFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take an account out of the configuration and forget its sealed secrets
    Rm {
        /// KIND/NAME, or KIND when there is one account of that kind
        id: String,
        #[command(flatten)]
        folders: FolderFlags,
    },
    /// Send a signed sample event through a running server and report what came back
    Test {
        /// KIND/NAME, or KIND when there is one account of that kind
        id: String,
        /// What the sample says
        #[arg(long, default_value = "Hello! This is a test of the channel.")]
        text: String,
        /// Number of the chat: with the number of a real one (Telegram, SMS) the reply reaches it
        #[arg(long, default_value_t = 1)]
        chat: u64,
        /// Number of the user who says it
        #[arg(long, default_value_t = 1)]
        user: u64,
        /// How long to watch for the reply, in seconds; needs an admin key
        #[arg(long, default_value_t = 0)]
        wait: u64,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        server: ServerArgs,
        #[command(flatten)]
        folders: FolderFlags,
    },
    /// Run conformance vectors through the adapters; exit code 1 when one fails
    Verify {
        /// A JSON list of vectors
        #[arg(long, value_name = "FILE", required = true)]
        vectors: Vec<PathBuf>,
        /// Measure instead what verifying one good request costs, in microseconds for each channel
        #[arg(long)]
        time: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &ChannelArgs) -> Result<ExitCode, Trouble> {
    match &args.command {
        ChannelCommand::Add(args) => add::run(args),
        ChannelCommand::Ls { folders, json } => ls(folders, *json),
        ChannelCommand::Rm { id, folders } => rm(id, folders),
        ChannelCommand::Test { id, text, chat, user, wait, json, server, folders } => {
            let account = account(id, config::load(&folders.flags)?.config.channels)?;
            let sample = probe::Sample { text, chat: *chat, user: *user, wait_s: *wait };
            probe::test(&account, &sample, server, *json)
        }
        ChannelCommand::Verify { vectors, time: true, json } => verify::time(vectors, *json),
        ChannelCommand::Verify { vectors, time: false, json } => verify::run(vectors, *json),
    }
}

/// Reads a kind, with the nearest known one in the error.
fn kind_of(text: &str) -> Result<ChannelKind, Trouble> {
    ChannelKind::parse(text).ok_or_else(|| {
        let names: Vec<&str> = ChannelKind::ALL.iter().map(|kind| kind.as_str()).collect();
        let near = config::nearest(text, names.iter().copied()).map(|near| format!("did you mean `{near}`?"));
        let next = near.unwrap_or_else(|| format!("known: {}", names.join(", ")));
        Trouble::new(format!("there is no channel kind {text:?}"), "no platform has this id", next)
    })
}

/// Picks the account that `KIND/NAME` or `KIND` means.
fn account(id: &str, accounts: Vec<Account>) -> Result<Account, Trouble> {
    let known: Vec<String> = accounts.iter().map(|one| format!("{}/{}", one.kind, one.name)).collect();
    let fits = |one: &Account| format!("{}/{}", one.kind, one.name) == id || one.kind.as_str() == id;
    let mut fitting: Vec<Account> = accounts.into_iter().filter(fits).collect();
    match fitting.len() {
        1 => Ok(fitting.remove(0)),
        0 => {
            let why = if known.is_empty() {
                "no account is configured".into()
            } else {
                format!("configured: {}", known.join(", "))
            };
            Err(Trouble::new(format!("there is no account {id}"), why, "`millrace channel add` makes one"))
        }
        count => Err(Trouble::new(format!("{id} means {count} accounts"), known.join(", "), "write KIND/NAME")),
    }
}

fn ls(folders: &FolderFlags, json: bool) -> Result<ExitCode, Trouble> {
    let loaded = config::load_without_channels(&folders.flags)?;
    let accounts = match &loaded.file {
        Some(path) => file::accounts(&file::read(path)?, path)?,
        None => Vec::new(),
    };
    if json {
        let rows: Vec<_> =
            accounts.iter().map(|one| json!({"kind": one.kind, "name": one.name, "path": one.path()})).collect();
        out(&format!("{}\n", json!(rows)));
        return Ok(ExitCode::SUCCESS);
    }
    if accounts.is_empty() {
        note("no channel accounts; `millrace channel add KIND` makes one");
        return Ok(ExitCode::SUCCESS);
    }
    let title = |kind: &str| ChannelKind::parse(kind).map_or("(unknown)", |kind| kind.spec().title).to_owned();
    let rows: Vec<Vec<String>> =
        accounts.iter().map(|one| vec![one.kind.clone(), one.name.clone(), title(&one.kind), one.path()]).collect();
    out(&table(&["KIND", "NAME", "PLATFORM", "WEBHOOK"], &rows));
    Ok(ExitCode::SUCCESS)
}

fn rm(id: &str, folders: &FolderFlags) -> Result<ExitCode, Trouble> {
    let loaded = config::load_without_channels(&folders.flags)?;
    let Some(path) = &loaded.file else {
        return Err(Trouble::new(
            format!("there is no account {id}"),
            "there is no configuration file",
            "nothing to do",
        ));
    };
    let text = file::read(path)?;
    let accounts = file::accounts(&text, path)?;
    let fitting: Vec<&file::Entry> =
        accounts.iter().filter(|one| format!("{}/{}", one.kind, one.name) == id || one.kind == id).collect();
    let [entry] = fitting[..] else {
        let known: Vec<String> = accounts.iter().map(|one| format!("{}/{}", one.kind, one.name)).collect();
        let why = format!("{} accounts fit; configured: {}", fitting.len(), known.join(", "));
        return Err(Trouble::new(
            format!("{id} does not name one account"),
            why,
            "write KIND/NAME as `channel ls` shows it",
        ));
    };
    file::replace(path, &file::without(&text, path, entry)?)?;
    let storage = &loaded.config.storage;
    let data = &loaded.config.data;
    let forgotten = if data.join(millrace_storage::VAULT_FILE).exists() {
        let vault = millrace_storage::Vault::open(data, &storage.key_source, &storage.key_file, false);
        vault
            .and_then(|mut vault| vault.remove_all(&add::secret_prefix(&entry.kind, &entry.name)))
            .map_err(sealed_trouble)?
    } else {
        0
    };
    note(&format!(
        "{}/{} is removed, {forgotten} sealed secret(s) forgotten; `millrace reload` tells a running server",
        entry.kind, entry.name
    ));
    note("the platform still calls the webhook and gets 404: remove it in its console as well");
    Ok(ExitCode::SUCCESS)
}

/// A failure of the sealed file for the person at the terminal.
fn sealed_trouble(error: millrace_storage::VaultError) -> Trouble {
    let next = "look at the files in the data folder; `millrace config explain storage.key_file` names the key file";
    Trouble::new("the sealed secrets cannot be used", error.to_string(), next)
}
