//! `millrace key` and `millrace outbox`: the admin API of a running server.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::ServerArgs;
use super::client::Client;
use super::print::{note, out, table};
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key and print it once
    Add {
        #[command(flatten)]
        server: ServerArgs,
        /// Whom the key speaks for
        user: String,
        /// What it is used for, to tell keys apart
        #[arg(long, default_value = "cli")]
        label: String,
        /// What it may do: chat, admin, metrics, impersonate
        #[arg(long, value_delimiter = ',', default_value = "chat")]
        scopes: Vec<String>,
        /// Tenant that it belongs to
        #[arg(long)]
        tenant: Option<u32>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List all keys (their text is never shown again)
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        server: ServerArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a key by its id
    Rm {
        #[command(flatten)]
        server: ServerArgs,
        /// The id that `key ls` shows
        id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct OutboxArgs {
    #[command(subcommand)]
    command: OutboxCommand,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    Pending,
    Sending,
    Unknown,
    Dead,
}

#[derive(Debug, Subcommand)]
enum OutboxCommand {
    /// List replies that are not delivered
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        server: ServerArgs,
        /// Only this state
        #[arg(long)]
        state: Option<State>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one reply with its text and last error
    Show {
        #[command(flatten)]
        server: ServerArgs,
        /// The id that `outbox ls` shows
        id: String,
    },
    /// Deliver a dead or unknown reply again
    Resubmit {
        #[command(flatten)]
        server: ServerArgs,
        /// The id that `outbox ls` shows
        id: String,
    },
    /// Give a reply up for good
    Drop {
        #[command(flatten)]
        server: ServerArgs,
        /// The id that `outbox ls` shows
        id: String,
    },
}

pub(super) fn keys(args: &KeyArgs) -> Result<ExitCode, Trouble> {
    match &args.command {
        KeyCommand::Add { server, user, label, scopes, tenant, json } => {
            let client = admin(server)?;
            let mut body = json!({"user": user, "label": label, "scopes": scopes});
            if let Some(tenant) = tenant {
                body["tenant"] = json!(tenant);
            }
            let made = client.post("/v1/admin/keys", &body)?;
            if *json {
                out(&format!("{made}\n"));
            } else {
                out(&format!("{}\n", text(&made, "key")));
                note("This is the only time that the key is shown.");
            }
        }
        KeyCommand::Ls { server, json } => {
            let list = admin(server)?.get("/v1/admin/keys")?;
            let columns = ["id", "tenant", "user", "label", "scopes", "revoked"];
            show_list(&list, &columns, *json);
        }
        KeyCommand::Rm { server, id } => {
            admin(server)?.delete(&format!("/v1/admin/keys?id={}", query(id)))?;
            note(&format!("key {id} is revoked"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn outbox(args: &OutboxArgs) -> Result<ExitCode, Trouble> {
    match &args.command {
        OutboxCommand::Ls { server, state, json } => {
            let query = state.map_or(String::new(), |state| format!("?state={}", state_name(state)));
            let list = admin(server)?.get(&format!("/v1/admin/outbox{query}"))?;
            show_list(&list, &["id", "state", "channel", "account", "chat", "attempt", "detail"], *json);
        }
        OutboxCommand::Show { server, id } => {
            let list = admin(server)?.get("/v1/admin/outbox")?;
            let found = rows(&list).into_iter().find(|row| row["id"] == id.as_str()).ok_or_else(|| {
                let why = "no undelivered reply has this id";
                Trouble::new(format!("there is no reply {id}"), why, "millrace outbox ls shows the ids")
            })?;
            out(&format!("{}\n", serde_json::to_string_pretty(&found).unwrap_or_default()));
        }
        OutboxCommand::Resubmit { server, id } => {
            admin(server)?.post("/v1/admin/outbox", &json!({"action": "resubmit", "id": id}))?;
            note(&format!("reply {id} will be delivered again"));
        }
        OutboxCommand::Drop { server, id } => {
            admin(server)?.post("/v1/admin/outbox", &json!({"action": "drop", "id": id}))?;
            note(&format!("reply {id} is dropped"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn admin(server: &ServerArgs) -> Result<Client, Trouble> {
    let client = Client::new(server)?;
    client.require_key()?;
    Ok(client)
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Sending => "sending",
        State::Unknown => "unknown",
        State::Dead => "dead",
    }
}

/// A value for a query string: everything but plain characters is percent-encoded.
pub(super) fn query(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn rows(list: &Value) -> Vec<Value> {
    list["data"].as_array().cloned().unwrap_or_default()
}

pub(super) fn text(row: &Value, column: &str) -> String {
    match &row[column] {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

pub(super) fn show_list(list: &Value, columns: &[&str], json: bool) {
    if json {
        out(&format!("{list}\n"));
        return;
    }
    let rows: Vec<Vec<String>> =
        rows(list).iter().map(|row| columns.iter().map(|column| text(row, column)).collect()).collect();
    let head: Vec<String> = columns.iter().map(|column| column.to_uppercase()).collect();
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    out(&table(&head, &rows));
    if list["has_more"].as_bool() == Some(true) {
        note("there are more; narrow the list with --state");
    }
}
