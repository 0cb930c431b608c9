//! `millrace client`: the OAuth clients of a running server, by its admin API.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::ServerArgs;
use super::admin::{admin, query, show_list, text};
use super::print::{note, out};
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct ClientArgs {
    #[command(subcommand)]
    command: ClientCommand,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Opaque,
    Jwt,
}

#[derive(Debug, Subcommand)]
enum ClientCommand {
    /// Make a client and print its id and secret once
    Add {
        #[command(flatten)]
        server: ServerArgs,
        /// What it is used for
        label: String,
        /// What its tokens may do: chat, operate, metrics, introspect, impersonate, admin
        #[arg(long, value_delimiter = ',', conflicts_with = "role")]
        scopes: Option<Vec<String>>,
        /// A role instead of scopes: user, operator, admin
        #[arg(long)]
        role: Option<String>,
        /// User that its tokens speak for; the client itself when left out
        #[arg(long)]
        user: Option<String>,
        /// Tenant that it belongs to
        #[arg(long)]
        tenant: Option<u32>,
        /// Tokens that only this server can check, or signed ones
        #[arg(long, default_value = "opaque")]
        token: Kind,
        /// How long a token lives, in seconds
        #[arg(long, value_name = "SECONDS")]
        lifetime: Option<u64>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List all clients (their secrets are never shown again)
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        server: ServerArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a client and end all its tokens
    Rm {
        #[command(flatten)]
        server: ServerArgs,
        /// The id that `client ls` shows
        id: String,
    },
    /// Give a client a new secret, or the server a new key for signing tokens
    Rotate {
        #[command(flatten)]
        server: ServerArgs,
        /// The id that `client ls` shows
        #[arg(required_unless_present = "signing_key", conflicts_with = "signing_key")]
        id: Option<String>,
        /// Seconds for which the earlier secret still holds
        #[arg(long, default_value_t = 0, value_name = "SECONDS")]
        keep: u64,
        /// Make a new key that signs tokens; earlier ones go on verifying until their tokens have ended
        #[arg(long)]
        signing_key: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &ClientArgs) -> Result<ExitCode, Trouble> {
    match &args.command {
        ClientCommand::Add { server, label, scopes, role, user, tenant, token, lifetime, json } => {
            let mut body = json!({"label": label, "token": match token {
                Kind::Opaque => "opaque",
                Kind::Jwt => "jwt",
            }});
            let optional = [
                ("scopes", scopes.as_ref().map(|scopes| json!(scopes))),
                ("role", role.as_ref().map(|role| json!(role))),
                ("user", user.as_ref().map(|user| json!(user))),
                ("tenant", tenant.map(|tenant| json!(tenant))),
                ("lifetime_s", lifetime.map(|seconds| json!(seconds))),
            ];
            for (name, value) in optional {
                if let Some(value) = value {
                    body[name] = value;
                }
            }
            show_secret(&admin(server)?.post("/v1/admin/clients", &body)?, *json);
        }
        ClientCommand::Ls { server, json } => {
            let list = admin(server)?.get("/v1/admin/clients")?;
            show_list(&list, &["client_id", "tenant", "user", "label", "scopes", "token", "lifetime_s"], *json);
        }
        ClientCommand::Rm { server, id } => {
            admin(server)?.delete(&format!("/v1/admin/clients?id={}", query(id)))?;
            note(&format!("client {id} is removed; its tokens open nothing any more"));
        }
        ClientCommand::Rotate { server, id: Some(id), keep, json, .. } => {
            let body = json!({"id": id, "keep_s": keep});
            show_secret(&admin(server)?.post("/v1/admin/clients/rotate", &body)?, *json);
        }
        ClientCommand::Rotate { server, id: None, json, .. } => {
            let list = admin(server)?.post("/v1/admin/signing-keys", &json!({}))?;
            show_list(&list, &["kid", "algorithm", "created_s", "verifies_until_s"], *json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show_secret(made: &Value, json: bool) {
    if json {
        out(&format!("{made}\n"));
    } else {
        out(&format!("{} {}\n", text(made, "client_id"), text(made, "client_secret")));
        note("This is the only time that the secret is shown.");
    }
}
