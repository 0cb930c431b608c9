//! Answers to "which value holds, and why": `config explain`, and the commented first file.

use std::fmt::Write as _;

use super::keys::{KEYS, nearest};
use super::{Loaded, Setting, human_bytes};
use crate::trouble::Trouble;

/// Everything about one key.
pub fn explain(loaded: &Loaded, name: &str) -> Result<String, Trouble> {
    let found = loaded.settings.iter().find(|setting| setting.key.name == name || setting.key.env == name);
    let Some(setting) = found else {
        let near = nearest(name, KEYS.iter().map(|key| key.name));
        let next = near.map_or("millrace config explain lists all keys".to_owned(), |near| {
            format!("millrace config explain {near}")
        });
        return Err(Trouble::new(format!("there is no setting `{name}`"), "it is not in the table of settings", next));
    };
    let key = setting.key;
    let mut text = String::new();
    let _ = writeln!(text, "{} = {}", key.name, shown(loaded, setting));
    let _ = writeln!(text, "  from:    {}", setting.source);
    let _ = writeln!(text, "  what:    {}", key.what);
    let _ = writeln!(text, "  cost:    {}", key.cost);
    let _ = writeln!(text, "  default: {}", if key.default.is_empty() { "(none)" } else { key.default });
    let _ = writeln!(text, "  set by:  --{} VALUE, {}=VALUE, or `{}` in millrace.toml", key.flag(), key.env, key.name);
    Ok(text)
}

/// One line for each key: value and source.
pub fn explain_all(loaded: &Loaded) -> String {
    let mut text = String::new();
    for setting in &loaded.settings {
        let _ = writeln!(text, "{:<30} {:<28} {}", setting.key.name, shown(loaded, setting), setting.source);
    }
    let channels = loaded.config.channels.len();
    let _ = writeln!(text, "{:<30} {channels} account(s)", "channel");
    text
}

/// The text as given, and what it comes to where that is not the same.
fn shown(loaded: &Loaded, setting: &Setting) -> String {
    let config = &loaded.config;
    let settled = match setting.key.name {
        "data" => config.data.display().to_string(),
        "models" => config.models.display().to_string(),
        "storage.key_file" => config.storage.key_file.display().to_string(),
        "workers" => config.workers.to_string(),
        "memory_limit" => human_bytes(config.memory_limit),
        "engine.threads" => config.engine.threads.to_string(),
        "engine.kv_mib" => config.engine.kv_mib.to_string(),
        _ => String::new(),
    };
    match (setting.text.as_str(), settled.as_str()) {
        ("", "") => "(not set)".to_owned(),
        ("", settled) => settled.to_owned(),
        (text, "") => text.to_owned(),
        (text, settled) if text == settled => text.to_owned(),
        (text, settled) => format!("{text} ({settled})"),
    }
}

/// The text of a first `millrace.toml`: every key with its meaning, all commented out.
pub fn first_file() -> String {
    let mut text = String::from(
        "# Millrace configuration. Everything here is optional: a line that begins with # shows the default.\n\
         # A flag beats an environment variable, which beats this file. `millrace config explain` shows what holds.\n",
    );
    let mut table = "";
    for key in KEYS {
        // The file lies in the data folder, so a `data` in it would point away from itself.
        if key.name == "data" {
            continue;
        }
        let (head, name) = key.name.split_once('.').unwrap_or(("", key.name));
        if head != table {
            table = head;
            let _ = write!(text, "\n[{head}]\n");
        }
        let number = key.default.parse::<u64>().is_ok();
        let value = if number { key.default.to_owned() } else { format!("{:?}", key.default) };
        let _ = write!(text, "\n# {}\n# Cost: {} [{}]\n# {name} = {value}\n", key.what, key.cost, key.env);
    }
    text.push_str(
        "\n# Channel accounts, one table each. Secrets are references: env:NAME or file:PATH.\n\
         # The webhook of an account is POST /hooks/KIND/NAME.\n\
         # [[channel]]\n# kind = \"telegram\"\n# name = \"support\"\n# secrets = [\"env:TELEGRAM_WEBHOOK_SECRET\"]\n\
         # bot_token = \"env:TELEGRAM_BOT_TOKEN\"\n\n\
         # [[channel]]\n# kind = \"standard_webhooks\"\n# name = \"intranet\"\n# secrets = [\"file:/etc/millrace/intranet.secret\"]\n\
         # reply_url = \"https://intranet.example/replies\"\n",
    );
    text
}
