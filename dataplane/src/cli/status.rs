//! `millrace status`: one screen about a running server.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::ServerArgs;
use super::client::Client;
use super::print::{Tone, note, out, painted};
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<ExitCode, Trouble> {
    let client = Client::new(&args.server)?;
    let (status, reason) = client.page("/readyz")?;
    let ready = status == 200;
    let details = if client.has_key() { client.get("/v1/admin/status")? } else { Value::Null };
    if args.json {
        let document = json!({"url": client.base, "ready": ready, "reason": reason.trim(), "status": details});
        out(&format!("{document}\n"));
    } else {
        let mut text = String::new();
        let (word, tone) = if ready { ("ready", Tone::Good) } else { ("not ready", Tone::Bad) };
        let _ = writeln!(text, "{}  {}", client.base, painted(word, tone));
        if !ready {
            let _ = writeln!(text, "  {}", reason.trim());
        }
        tell(&mut text, &details, 1);
        out(&text);
        if details.is_null() {
            note("set MILLRACE_API_KEY to a key with the scope `admin` for details");
        }
    }
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Deepest nesting that is shown.
const DEPTH_MAX: usize = 6;

/// JSON as indented `name: value` lines.
fn tell(text: &mut String, value: &Value, depth: usize) {
    let Value::Object(fields) = value else { return };
    for (name, field) in fields {
        let indent = "  ".repeat(depth);
        match field {
            Value::Object(_) if depth < DEPTH_MAX => {
                let _ = writeln!(text, "{indent}{name}");
                tell(text, field, depth + 1);
            }
            Value::String(plain) => drop(writeln!(text, "{indent}{name}: {plain}")),
            other => drop(writeln!(text, "{indent}{name}: {other}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_values_are_indented() {
        let mut text = String::new();
        tell(&mut text, &json!({"model": "m", "engine": {"running": 2}, "list": [1]}), 0);
        assert_eq!(text, "model: m\nengine\n  running: 2\nlist: [1]\n");
    }
}
