//! `millrace channel add`: asks for what the platform needs, and for nothing twice.
//!
//! What has to be asked is in the adapter's [`Spec`](millrace_proto::channel::Spec). Secrets go sealed into the data
//! folder, as soon as they are given; the configuration file gets references to them. An interrupted set-up goes on
//! where it was.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use millrace_proto::channel::{ChannelKind, Need, Origin};
use millrace_storage::{VAULT_FILE, Vault};
use zeroize::Zeroizing;

use super::{file, kind_of, probe, sealed_trouble, steps};
use crate::cli::FolderFlags;
use crate::cli::client::{Client, ServerArgs};
use crate::cli::print::{note, out};
use crate::config::{self, FILE_NAME, Loaded};
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// The platform, such as telegram; a wrong one lists them all
    kind: String,
    /// Name of the account: part of the webhook's path
    #[arg(long, default_value = "main")]
    name: String,
    /// A setting: KEY=VALUE; a secret as KEY=env:NAME, KEY=file:PATH (read now and sealed) or KEY=new
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Ask nothing; what is missing is an error that names it
    #[arg(long)]
    non_interactive: bool,
    #[command(flatten)]
    folders: FolderFlags,
}

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = millrace_storage::VAULT_SECRET_BYTES_MAX;

/// Start of the names of an account's sealed secrets.
pub(super) fn secret_prefix(kind: &str, name: &str) -> String {
    format!("{kind}/{name}/")
}

pub(super) fn run(args: &AddArgs) -> Result<ExitCode, Trouble> {
    let kind = kind_of(&args.kind)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if args.name.is_empty() || args.name.len() > 64 || !args.name.chars().all(plain) {
        let why = "the name is part of the webhook's path";
        return Err(Trouble::new(
            format!("--name {:?} cannot be used", args.name),
            why,
            "use 1 to 64 letters, digits, `-` or `_`",
        ));
    }
    let loaded = config::load_without_channels(&args.folders.flags)?;
    let path = loaded.file.clone().unwrap_or_else(|| loaded.config.data.join(FILE_NAME));
    let text = if path.exists() { file::read(&path)? } else { String::new() };
    let known = file::accounts(&text, &path)?;
    if known.iter().any(|one| one.kind == kind.as_str() && one.name == args.name) {
        let next = format!("choose another --name, or `millrace channel rm {kind}/{}` first", args.name);
        return Err(Trouble::new(
            format!("there is an account {kind}/{} already", args.name),
            path.display().to_string(),
            next,
        ));
    }
    let mut setup = Setup {
        kind,
        name: &args.name,
        given: given(kind, &args.settings)?,
        ask: !args.non_interactive,
        vault: vault(&loaded)?,
        made: Vec::new(),
        settings: Vec::new(),
    };
    let url = setup.public_url(known.iter().find_map(|one| one.public_url.clone()))?;
    setup.run()?;
    let Setup { made, settings, .. } = setup;
    std::fs::create_dir_all(&loaded.config.data).map_err(|error| {
        Trouble::new(
            format!("{} cannot be made", loaded.config.data.display()),
            error.to_string(),
            "give another --data",
        )
    })?;
    file::replace(&path, &file::with(&text, kind.as_str(), &args.name, &settings))?;
    note(&format!("{kind}/{} is in {}; its secrets are sealed in {VAULT_FILE}", args.name, path.display()));
    let base = url.unwrap_or_else(|| "https://YOUR.HOST".to_owned());
    let address = format!("{}/hooks/{kind}/{}", base.trim_end_matches('/'), args.name);
    out(&steps::text(kind, &address, &made));
    try_out(args, &loaded, kind)
}

/// The vault of the data folder. A key file is made only where no store exists that it would not open.
fn vault(loaded: &Loaded) -> Result<Vault, Trouble> {
    let (data, storage) = (&loaded.config.data, &loaded.config.storage);
    std::fs::create_dir_all(data).map_err(|error| {
        Trouble::new(format!("{} cannot be made", data.display()), error.to_string(), "give another --data")
    })?;
    let store_exists = data.join("db").exists();
    Vault::open(data, &storage.key_source, &storage.key_file, !store_exists).map_err(sealed_trouble)
}

/// Values of `--set`, checked against what the platform knows.
fn given(kind: ChannelKind, settings: &[String]) -> Result<Vec<(String, String)>, Trouble> {
    let needs = kind.spec().needs;
    let mut given = Vec::new();
    for setting in settings {
        // The value may be a secret that somebody typed: it is never repeated.
        let bad = |what: String, why: &str, next: String| Err(Trouble::new(what, why, next));
        let Some((key, value)) = setting.split_once('=') else {
            return bad("a --set has no `=`".into(), "it must be KEY=VALUE", "correct it".into());
        };
        let need = needs.iter().find(|need| need.key == key);
        let extra = ["public_url", "api_base", "tenant", "bot_id", "bot_username", "users", "operators"].contains(&key);
        if need.is_none() && !extra {
            let keys: Vec<&str> = needs.iter().map(|need| need.key).collect();
            return bad(format!("{kind} has no setting {key:?}"), "", format!("it has: {}", keys.join(", ")));
        }
        let reference = value.starts_with("env:") || value.starts_with("file:") || value == "new";
        if need.is_some_and(Need::is_secret) && !reference && key != "reply_url" {
            let why = "a secret on the command line can be seen by every process of this machine";
            return bad(
                format!("{key} is a secret"),
                why,
                format!("write {key}=env:NAME, {key}=file:PATH or {key}=new"),
            );
        }
        given.push((key.to_owned(), value.to_owned()));
    }
    Ok(given)
}

struct Setup<'a> {
    kind: ChannelKind,
    name: &'a str,
    given: Vec<(String, String)>,
    ask: bool,
    vault: Vault,
    /// What we made up and the platform must be told.
    made: Vec<(&'static str, Zeroizing<String>)>,
    settings: Vec<(String, Vec<String>)>,
}

impl Setup<'_> {
    /// The address under which the platform reaches us; that of another account is offered.
    fn public_url(&mut self, known: Option<String>) -> Result<Option<String>, Trouble> {
        let url = match self.take("public_url") {
            Some(url) => Some(url),
            None if known.is_some() => known,
            None if self.ask => prompt(
                "public_url: https address under which the platform reaches this server (empty: decide later)",
                false,
            )?
            .map(|answer| answer.to_string()),
            None => None,
        };
        if let Some(url) = &url {
            if !(url.starts_with("https://") || url.starts_with("http://")) {
                let why = "it must begin with https:// (or http:// for tests)";
                return Err(Trouble::new(
                    format!("{url:?} is no address"),
                    why,
                    "give scheme and host, without a path",
                ));
            }
            self.settings.push(("public_url".to_owned(), vec![url.trim_end_matches('/').to_owned()]));
        }
        Ok(url)
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.given.iter().position(|(known, _)| known == key)?;
        Some(self.given.remove(at).1)
    }

    fn run(&mut self) -> Result<(), Trouble> {
        if self.ask {
            note(&format!("{}: what the platform needs", self.kind.spec().title));
        }
        let mut missing = Vec::new();
        for need in self.kind.spec().needs.iter().filter(|need| need.key != "public_url") {
            let settled = if need.is_secret() { self.secret(need)? } else { self.plain(need)? };
            if !settled && need.required {
                missing.push(need);
            }
        }
        for (key, value) in std::mem::take(&mut self.given) {
            self.settings.push((key.clone(), split(&key, value)));
        }
        let url_missing = self.kind.spec().needs.iter().find(|need| {
            need.key == "public_url" && need.required && !self.settings.iter().any(|(key, _)| key == "public_url")
        });
        missing.extend(url_missing);
        if missing.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = missing.iter().map(|need| format!("{} ({})", need.key, need.what)).collect();
        let next = "give each with --set, or run without --non-interactive; what was given already is kept";
        Err(Trouble::new(
            format!("{}/{} is not complete", self.kind, self.name),
            format!("missing: {}", list.join("; ")),
            next,
        ))
    }

    fn plain(&mut self, need: &Need) -> Result<bool, Trouble> {
        let value = match self.take(need.key) {
            Some(value) => Some(value),
            None if self.ask => prompt(&question(need), false)?.map(|answer| answer.to_string()),
            None => None,
        };
        let Some(value) = value else { return Ok(false) };
        self.settings.push((need.key.to_owned(), split(need.key, value)));
        Ok(true)
    }

    /// A secret, from the first of: `--set`, the setting whose value it shares, an earlier try, a question, chance.
    fn secret(&mut self, need: &'static Need) -> Result<bool, Trouble> {
        let sealed = format!("{}{}", secret_prefix(self.kind.as_str(), self.name), need.key);
        let shared = match need.origin {
            Origin::Same(key) => format!("{}{key}", secret_prefix(self.kind.as_str(), self.name)),
            Origin::Platform | Origin::Ours => sealed.clone(),
        };
        let kept = |vault: &Vault, name: &str| vault.names().any(|known| known == name);
        let name = match self.take(need.key) {
            Some(reference) if reference == "new" => {
                let value = self.make(need)?;
                self.seal(&sealed, &value)?;
                sealed
            }
            Some(reference) => {
                let value = match need.key {
                    "reply_url" if reference.starts_with("http") => Zeroizing::new(reference),
                    key => referred(key, &reference)?,
                };
                self.seal(&sealed, &value)?;
                sealed
            }
            None if kept(&self.vault, &shared) => {
                if shared == sealed {
                    note(&format!("{}: kept from an earlier try", need.key));
                    if need.origin == Origin::Ours {
                        let value = self.vault.get(&sealed).map_err(sealed_trouble)?.unwrap_or_default();
                        self.made.push((need.key, Zeroizing::new(String::from_utf8_lossy(&value).into_owned())));
                    }
                }
                shared
            }
            None => {
                let answer = if self.ask { prompt(&question(need), true)? } else { None };
                let value = match answer {
                    Some(answer) => answer,
                    None if need.origin == Origin::Ours && need.required => self.make(need)?,
                    None => return Ok(false),
                };
                self.seal(&sealed, &value)?;
                sealed
            }
        };
        self.settings.push((need.key.to_owned(), vec![format!("sealed:{name}")]));
        Ok(true)
    }

    fn seal(&mut self, name: &str, value: &str) -> Result<(), Trouble> {
        self.vault.put(name, value.as_bytes()).map_err(sealed_trouble)
    }

    /// A new random secret in the form that the platform takes. It is shown once, since the platform has to be told.
    fn make(&mut self, need: &'static Need) -> Result<Zeroizing<String>, Trouble> {
        if need.origin != Origin::Ours {
            let why = "only the platform can say it";
            return Err(Trouble::new(format!("{} cannot be made up", need.key), why, need.what));
        }
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut bytes[..]).map_err(|error| {
            Trouble::new("no secret can be made", error.to_string(), "the system's random source is missing")
        })?;
        let value = match (self.kind, need.key) {
            (ChannelKind::StandardWebhooks, _) => format!("whsec_{}", millrace_proto::digest::base64(&bytes[..])),
            // 43 characters of base64: 32 bytes without the padding. Letters and digits only, as consoles demand.
            (_, "encryption_keys") => {
                millrace_proto::digest::base64(&bytes[..]).trim_end_matches('=').replace('+', "a").replace('/', "b")
            }
            // WeCom and WeChat take at most 32 characters.
            _ => millrace_proto::digest::hex(&bytes[..16]),
        };
        let value = Zeroizing::new(value);
        self.made.push((need.key, value.clone()));
        Ok(value)
    }
}

/// Lists are given with commas.
fn split(key: &str, value: String) -> Vec<String> {
    match key {
        "topics" | "users" | "operators" => value.split(',').map(|one| one.trim().to_owned()).collect(),
        _ => vec![value],
    }
}

fn question(need: &Need) -> String {
    let hint = match (need.required, need.origin) {
        (true, Origin::Ours) => " (empty: a new random one)",
        (true, _) => "",
        (false, _) => " (optional)",
    };
    format!("{}: {}{hint}", need.key, need.what)
}

/// Reads a secret that a flag refers to.
fn referred(key: &str, reference: &str) -> Result<Zeroizing<String>, Trouble> {
    let missing =
        |why: String| Trouble::new(format!("{key} refers to a secret that is not there"), why, "correct that --set");
    let value = if let Some(name) = reference.strip_prefix("env:") {
        std::env::var(name).map_err(|_| missing(format!("the environment variable {name} is not set")))?
    } else {
        let path = PathBuf::from(reference.strip_prefix("file:").unwrap_or(reference));
        let text = std::fs::read_to_string(&path).map_err(|error| missing(format!("{}: {error}", path.display())))?;
        text.trim_end_matches(['\n', '\r']).to_owned()
    };
    if value.is_empty() { Err(missing("it is empty".to_owned())) } else { Ok(Zeroizing::new(value)) }
}

/// One question; an empty answer is none. Secrets are not echoed.
fn prompt(question: &str, secret: bool) -> Result<Option<Zeroizing<String>>, Trouble> {
    let unreadable = |error: std::io::Error| {
        let next = "give the values with --set and --non-interactive";
        Trouble::new("the answer cannot be read", error.to_string(), next)
    };
    let _ = write!(std::io::stderr().lock(), "{question}\n> ");
    let answer = if secret && std::io::stdin().is_terminal() {
        Zeroizing::new(rpassword::read_password().map_err(unreadable)?)
    } else {
        let mut line = Zeroizing::new(String::new());
        let mut stdin = std::io::stdin().lock();
        if stdin.read_line(&mut line).map_err(unreadable)? == 0 {
            let why = "standard input ended";
            return Err(Trouble::new("there is no answer", why, "give the values with --set and --non-interactive"));
        }
        line
    };
    let answer = answer.trim();
    if answer.len() > ANSWER_BYTES_MAX {
        let why = format!("at most {ANSWER_BYTES_MAX} bytes are taken");
        return Err(Trouble::new("the answer is too long", why, "is this the right value?"));
    }
    Ok((!answer.is_empty()).then(|| Zeroizing::new(answer.to_owned())))
}

/// Reads the configuration as the server will, and lets a sample through the adapter.
fn try_out(args: &AddArgs, loaded: &Loaded, kind: ChannelKind) -> Result<ExitCode, Trouble> {
    let id = format!("{kind}/{}", args.name);
    // The account is picked before anything else fails: another account's secret may be at the server's hand only.
    let account = match config::load(&args.folders.flags) {
        Ok(loaded) => super::account(&id, loaded.config.channels)?,
        Err(trouble) => {
            note(&format!("the account was not tried out: {trouble}"));
            return Ok(ExitCode::FAILURE);
        }
    };
    match probe::rehearse(&account) {
        Some(Ok(())) => note("test: a signed sample passes the adapter with these secrets"),
        Some(Err(why)) => {
            let next = format!("`millrace channel rm {id}`, then add it again with the right values");
            return Err(Trouble::new(format!("{id} cannot verify its own sample"), why, next));
        }
        None => note("test: only the platform can sign its events; send a message there to test the account"),
    }
    let server = ServerArgs { url: None, key_file: None };
    let answers = loaded.config.listen.port() != 0
        && Client::new(&server).and_then(|client| client.page("/healthz")).is_ok_and(|(status, _)| status == 200);
    note(&if answers {
        format!("`millrace reload` makes the server serve the account; then: millrace channel test {id}")
    } else {
        format!("start the server (`millrace serve`), then: millrace channel test {id}")
    });
    Ok(ExitCode::SUCCESS)
}
