//! `millrace archive`: messages that have left the store of a running server.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use millrace_proto::date::parse_timestamp;
use serde_json::json;

use super::ServerArgs;
use super::admin::{admin, show_list};
use super::print::note;
use crate::trouble::Trouble;

const COLUMNS: [&str; 6] = ["conversation", "tenant", "session", "messages", "from", "to"];
/// Pause between two looks at a run.
const LOOK_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(super) struct ArchiveArgs {
    #[command(subcommand)]
    command: ArchiveCommand,
}

#[derive(Debug, Subcommand)]
enum ArchiveCommand {
    /// List conversations with archived messages, the newest first
    Ls {
        #[command(flatten)]
        server: ServerArgs,
        /// How many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Find conversations with archived messages of a time. What was said is read with the session's history as ever
    Search {
        #[command(flatten)]
        server: ServerArgs,
        /// Said at this time or later, such as 2026-01-31 or 2026-01-31T12:00:00Z
        #[arg(long, value_name = "TIME")]
        from: Option<String>,
        /// Said before this time
        #[arg(long, value_name = "TIME")]
        to: Option<String>,
        /// Only this conversation, by its id or the beginning of it
        #[arg(long, value_name = "CONVERSATION")]
        id: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Bring the archived messages of a conversation back into the store
    Restore {
        #[command(flatten)]
        server: ServerArgs,
        /// The id that `archive ls` shows
        conversation: String,
        /// Tenant that it belongs to; default: that of the API key
        #[arg(long)]
        tenant: Option<u32>,
    },
    /// Move old messages now instead of at the next daily run
    Run {
        #[command(flatten)]
        server: ServerArgs,
    },
}

pub(super) fn run(args: &ArchiveArgs) -> Result<ExitCode, Trouble> {
    match &args.command {
        ArchiveCommand::Ls { server, limit, json } => {
            let list = admin(server)?.get(&format!("/v1/admin/archive?limit={limit}"))?;
            show_list(&list, &COLUMNS, *json);
        }
        ArchiveCommand::Search { server, from, to, id, json } => {
            let from = from.as_deref().map_or(Ok(0), |text| moment(text, "--from"))?;
            let to = to.as_deref().map_or(Ok(u64::MAX), |text| moment(text, "--to"))?;
            let query = format!("/v1/admin/archive?limit=1000&from_ms={from}&to_ms={to}");
            let mut list = admin(server)?.get(&query)?;
            if let (Some(id), Some(rows)) = (id, list["data"].as_array_mut()) {
                rows.retain(|row| row["conversation"].as_str().is_some_and(|own| own.starts_with(id.as_str())));
            }
            show_list(&list, &COLUMNS, *json);
        }
        ArchiveCommand::Restore { server, conversation, tenant } => {
            let mut body = json!({"action": "restore", "conversation": conversation});
            if let Some(tenant) = tenant {
                body["tenant"] = json!(tenant);
            }
            let done = admin(server)?.post("/v1/admin/archive", &body)?;
            let messages = done["messages"].as_u64().unwrap_or_default();
            note(&format!("{messages} messages are back; they leave again when nobody used them for as long"));
        }
        ArchiveCommand::Run { server } => {
            let client = admin(server)?;
            let asked = client.post("/v1/admin/archive", &json!({"action": "run"}))?;
            let outcome = loop {
                let status = client.get("/v1/admin/backups")?;
                let ended = status["runs"].as_array().into_iter().flatten().find(|ended| ended["run"] == asked["run"]);
                if let Some(ended) = ended {
                    break ended.clone();
                }
                std::thread::park_timeout(LOOK_EVERY);
            };
            if let Some(why) = outcome["error"].as_str() {
                return Err(Trouble::new("nothing more was archived", why, "what was moved is readable as before"));
            }
            let count = |name: &str| outcome["archived"][name].as_u64().unwrap_or_default();
            note(&format!("{} messages of {} conversations were archived", count("messages"), count("conversations")));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Unix milliseconds of a date, or of a date with a time.
fn moment(text: &str, flag: &str) -> Result<u64, Trouble> {
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    parse_timestamp(&whole).map(|seconds| seconds * 1_000).ok_or_else(|| {
        let next = "write 2026-01-31, or 2026-01-31T12:00:00Z";
        Trouble::new(format!("{flag} {text} is not a time"), "it cannot be read", next)
    })
}

#[cfg(test)]
mod tests {
    use super::moment;

    #[test]
    fn dates_and_times_are_read() {
        assert_eq!(moment("1970-01-02", "--from").ok(), Some(86_400_000));
        assert_eq!(moment("1970-01-01T00:00:01Z", "--from").ok(), Some(1_000));
        for text in ["", "yesterday", "2026-13-01", "2026-01-31 nonsense"] {
            assert!(moment(text, "--to").is_err_and(|trouble| trouble.what.contains("--to")), "{text}");
        }
    }
}
