//! `millrace memory` and `millrace seal`: forgetting users and renewing keys, on a running server.

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::ServerArgs;
use super::admin::admin;
use super::print::note;
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct MemoryArgs {
    #[command(subcommand)]
    command: MemoryCommand,
}

#[derive(Debug, Subcommand)]
enum MemoryCommand {
    /// Erase everything that a user said, and the keys that open its copies in old files; cannot be undone
    Forget {
        #[command(flatten)]
        server: ServerArgs,
        /// The user's name, as API keys and channels know it
        user: String,
        /// Tenant that it belongs to; default: that of the API key
        #[arg(long)]
        tenant: Option<u32>,
        /// Really do it
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct SealArgs {
    #[command(subcommand)]
    command: SealCommand,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SuiteName {
    /// AES-256-GCM
    Intl,
    /// SM4-GCM
    Gm,
}

#[derive(Debug, Subcommand)]
enum SealCommand {
    /// Make new keys and bring stored rows to them while serving
    Rotate {
        #[command(flatten)]
        server: ServerArgs,
        /// Renew the key of keys instead of a tenant's keys
        #[arg(long, conflicts_with_all = ["tenant", "suite"])]
        master: bool,
        /// Tenant whose keys are renewed; default: that of the API key
        #[arg(long)]
        tenant: Option<u32>,
        /// Seal with these algorithms from now on
        #[arg(long)]
        suite: Option<SuiteName>,
    },
}

pub(super) fn memory(args: &MemoryArgs) -> Result<ExitCode, Trouble> {
    let MemoryCommand::Forget { server, user, tenant, yes } = &args.command;
    if !yes {
        let why = "sessions, messages, memory and waiting replies of the user would be erased for good";
        return Err(Trouble::new(format!("{user} is not forgotten"), why, "say --yes to do it"));
    }
    let mut body = json!({"user": user});
    if let Some(tenant) = tenant {
        body["tenant"] = json!(tenant);
    }
    let done = admin(server)?.post("/v1/admin/forget", &body)?;
    note(&match done["backup_places"].as_u64().unwrap_or_default() {
        0 => format!("{user} is forgotten"),
        places => format!(
            "{user} is forgotten. The copies of keys in {places} backup places are overwritten next; \
             `millrace backup status` tells when none is waiting. From then on no backup there opens anything of {user}"
        ),
    });
    Ok(ExitCode::SUCCESS)
}

pub(super) fn seal(args: &SealArgs) -> Result<ExitCode, Trouble> {
    let SealCommand::Rotate { server, master, tenant, suite } = &args.command;
    let mut body = json!({"keys": if *master { "master" } else { "data" }});
    if let Some(tenant) = tenant {
        body["tenant"] = json!(tenant);
    }
    if let Some(suite) = suite {
        body["suite"] = json!(match suite {
            SuiteName::Intl => "intl",
            SuiteName::Gm => "gm",
        });
    }
    let done = admin(server)?.post("/v1/admin/rotate", &body)?;
    let renewed = done["renewed"].as_u64().unwrap_or_default();
    if *master {
        note(&format!("{renewed} keys are wrapped by the new master key; back the new key file up"));
    } else {
        note(&format!("{renewed} new keys are in use; older rows follow in the background"));
    }
    Ok(ExitCode::SUCCESS)
}
