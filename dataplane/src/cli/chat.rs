//! `millrace chat`: a conversation in the terminal.

use std::io::{BufRead as _, IsTerminal, Write as _};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::ServerArgs;
use super::client::Client;
use super::print::{Tone, note, painted, trouble};
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Name of the conversation; the server remembers it under this name
    #[arg(long, default_value = "terminal")]
    session: String,
    /// One message instead of a conversation
    message: Option<String>,
}

/// Longest line that is sent as one message.
const LINE_BYTES_MAX: usize = 256 * 1024;

pub(super) fn run(args: &ChatArgs) -> Result<ExitCode, Trouble> {
    let client = Client::new(&args.server)?;
    client.require_key()?;
    let models = client.get("/v1/models")?;
    let model = models["data"][0]["id"].as_str().unwrap_or("default").to_owned();
    if let Some(message) = &args.message {
        turn(&client, &model, &args.session, message)?;
        return Ok(ExitCode::SUCCESS);
    }
    let person = std::io::stdin().is_terminal();
    if person {
        note(&format!("{model} at {}, session `{}`. End with Ctrl-D.", client.base, args.session));
    }
    let mut failed = false;
    let mut lines = std::io::stdin().lock();
    loop {
        if person {
            print!("{} ", painted(">", Tone::Strong));
            let _ = std::io::stdout().flush();
        }
        let mut line = String::new();
        let read = lines.read_line(&mut line).map_err(|error| {
            Trouble::new("the input cannot be read", error.to_string(), "send UTF-8 text, one message on each line")
        })?;
        if read == 0 {
            break;
        }
        let message = line.trim();
        if message.is_empty() {
            continue;
        }
        if message.len() > LINE_BYTES_MAX {
            note(&format!("a message has at most {LINE_BYTES_MAX} bytes; this one was not sent"));
            continue;
        }
        if let Err(error) = turn(&client, &model, &args.session, message) {
            // A conversation goes on after one failed turn; a script learns of it by the exit code.
            trouble(&error);
            failed = true;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn turn(client: &Client, model: &str, session: &str, message: &str) -> Result<(), Trouble> {
    let body = json!({
        "model": model,
        "session": session,
        "stream": true,
        "messages": [{"role": "user", "content": message}],
    });
    let mut stdout = std::io::stdout();
    let outcome = client.stream("/v1/chat/completions", &body, |data| {
        let event: Value = serde_json::from_str(data).unwrap_or(Value::Null);
        if let Some(error) = event["error"]["message"].as_str() {
            let next = event["error"]["next_step"].as_str().unwrap_or("ask again");
            return Err(Trouble::new("the answer ended with an error", error, next));
        }
        if let Some(notice) = notice_of(&event) {
            note(&format!("[{notice}]"));
        }
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        }
        Ok(())
    });
    let _ = writeln!(stdout);
    outcome
}

fn notice_of(event: &Value) -> Option<&str> {
    event["notice"]
        .as_str()
        .or_else(|| event["notice"]["text"].as_str())
        .or_else(|| event["millrace"]["notice"].as_str())
}
