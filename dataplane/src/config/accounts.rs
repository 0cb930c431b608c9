//! Channel accounts: `[[channel]]` tables become [`Account`]s whose secrets come from outside the file.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use millrace_proto::channel::{Account, ChannelKind, Secret};
use millrace_proto::id::TenantId;
use zeroize::Zeroizing;

use super::layers::RawTable;
use super::{nearest, units};
use crate::trouble::Trouble;

/// Accounts of one node; each costs a route and a few strings.
const ACCOUNTS_MAX: usize = 256;
/// Longest secret that a file may hold.
const SECRET_BYTES_MAX: u64 = 4096;

/// A sealed secret by name.
type Sealed<'a> = &'a dyn Fn(&str) -> Result<Zeroizing<Vec<u8>>, String>;

/// Where references to secrets lead.
#[derive(Clone, Copy)]
pub(super) struct References<'a> {
    /// `env:NAME`.
    pub environment: &'a dyn Fn(&str) -> Option<String>,
    /// `sealed:NAME`: a secret that `millrace channel add` has put into the data folder; the error says why not.
    pub sealed: Sealed<'a>,
}

pub(super) fn check(raws: &[RawTable], references: References<'_>) -> Result<Vec<Account>, Trouble> {
    if let Some(raw) = raws.get(ACCOUNTS_MAX) {
        return Err(raw.trouble(raw.line, "is one too many", &format!("at most {ACCOUNTS_MAX} accounts are served")));
    }
    let mut seen = HashSet::new();
    let mut accounts = Vec::with_capacity(raws.len());
    for raw in raws {
        let account = account(raw, references)?;
        if !seen.insert((account.kind, account.name.clone())) {
            return Err(raw.trouble(raw.line, "has a name that is taken", "kind and name together must be unique"));
        }
        accounts.push(account);
    }
    Ok(accounts)
}

/// Which corpora each account's questions may read; none unless the account names them.
pub(super) fn corpora(raws: &[RawTable]) -> Result<HashMap<(String, String), Vec<String>>, Trouble> {
    let mut readable = HashMap::new();
    for raw in raws {
        let Some((names, line)) = raw.values.get("corpora") else { continue };
        let names =
            super::check::corpora(&names.join(",")).map_err(|why| raw.trouble(*line, "has a wrong `corpora`", &why))?;
        let (kind, name) = (raw.required("kind")?.0.to_owned(), raw.required("name")?.0.to_owned());
        readable.insert((kind, name), names);
    }
    Ok(readable)
}

fn account(raw: &RawTable, references: References<'_>) -> Result<Account, Trouble> {
    let kinds = || ChannelKind::ALL.iter().map(|kind| kind.as_str());
    let (kind_text, line) = raw.required("kind")?;
    let kind = ChannelKind::ALL.iter().copied().find(|kind| kind.as_str() == kind_text).ok_or_else(|| {
        let near = nearest(kind_text, kinds()).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
        let known: Vec<&str> = kinds().collect();
        raw.trouble(line, &format!("has the unknown kind {kind_text:?}"), &format!("known: {}{near}", known.join(", ")))
    })?;
    let (name, line) = raw.required("name")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        let why = "the name is part of the webhook's path: 1 to 64 letters, digits, `-` or `_`";
        return Err(raw.trouble(line, &format!("has the name {name:?}"), why));
    }
    let tenant = match raw.one("tenant")? {
        None => TenantId::DEFAULT,
        Some((text, line)) => match units::whole(text, 1, u64::from(u32::MAX)) {
            Ok(number) => TenantId(number as u32),
            Err(why) => return Err(raw.trouble(line, &format!("has the tenant {text:?}"), &why)),
        },
    };
    let text = |key| Ok::<_, Trouble>(raw.one(key)?.map(|(text, _)| text.to_owned()));
    let mut account = Account::new(kind, name, tenant);
    account.secrets = raw.secrets("secrets", references)?;
    account.encryption_keys = raw.secrets("encryption_keys", references)?;
    account.verify_token = raw.one_secret("verify_token", references)?;
    account.bot_token = raw.one_secret("bot_token", references)?;
    account.app_secret = raw.one_secret("app_secret", references)?;
    account.app_id = text("app_id")?;
    account.bot_id = text("bot_id")?;
    account.bot_username = text("bot_username")?;
    account.sender = text("sender")?;
    account.mode = text("mode")?;
    let list = |key| raw.values.get(key).map_or_else(Vec::new, |(texts, _)| texts.clone());
    account.topics = list("topics");
    account.users = list("users");
    account.operators = list("operators");
    account.public_url = raw.url("public_url")?;
    account.api_base = raw.url("api_base")?;
    account.keys_base = raw.keys_base()?;
    account.reply_url = raw.url_or_secret("reply_url", references)?;
    account.stream = match raw.one("stream")? {
        None | Some(("true", _)) => true,
        Some(("false", _)) => false,
        Some((text, line)) => {
            let why = "true shows replies while they are written, false sends them finished";
            return Err(raw.trouble(line, &format!("has {text:?} as `stream`"), why));
        }
    };
    raw.complete(&account)?;
    Ok(account)
}

impl RawTable {
    fn trouble(&self, line: usize, what: &str, why: &str) -> Trouble {
        let file = self.file.display();
        Trouble::new(format!("the channel in line {line} of {file} {what}"), why, "correct that line")
    }

    fn one(&self, key: &str) -> Result<Option<(&str, usize)>, Trouble> {
        match self.values.get(key) {
            None => Ok(None),
            Some((texts, line)) if texts.len() == 1 => Ok(Some((&texts[0], *line))),
            Some((_, line)) => Err(self.trouble(*line, &format!("has a list as `{key}`"), "one value belongs there")),
        }
    }

    fn required(&self, key: &str) -> Result<(&str, usize), Trouble> {
        let missing = || self.trouble(self.line, &format!("has no `{key}`"), "kind and name are always needed");
        self.one(key)?.ok_or_else(missing)
    }

    fn url(&self, key: &str) -> Result<Option<String>, Trouble> {
        let Some((text, line)) = self.one(key)? else { return Ok(None) };
        if !is_url(text) {
            let why = "write an http:// or https:// URL without user name and password";
            return Err(self.trouble(line, &format!("has {text:?} as `{key}`"), why));
        }
        Ok(Some(text.trim_end_matches('/').to_owned()))
    }

    fn secret(&self, key: &str, text: &str, line: usize, references: References<'_>) -> Result<Secret, Trouble> {
        // The text itself is never repeated: it may be the secret that somebody pasted here.
        let value = if let Some(name) = text.strip_prefix("env:") {
            (references.environment)(name).map(String::into_bytes).ok_or_else(|| {
                let why = format!("the environment variable {name} is not set");
                self.trouble(line, &format!("refers to a missing secret in `{key}`"), &why)
            })?
        } else if let Some(path) = text.strip_prefix("file:") {
            read_secret(Path::new(path))
                .map_err(|why| self.trouble(line, &format!("refers to an unreadable secret in `{key}`"), &why))?
        } else if let Some(name) = text.strip_prefix("sealed:") {
            let unreadable = |why: String| self.trouble(line, &format!("refers to a missing secret in `{key}`"), &why);
            (references.sealed)(name).map_err(unreadable)?.to_vec()
        } else {
            let why = "secrets do not belong into this file; write env:NAME or file:PATH, or let `millrace channel add` seal them";
            return Err(self.trouble(line, &format!("has a literal secret in `{key}`"), why));
        };
        if value.is_empty() {
            return Err(self.trouble(
                line,
                &format!("has an empty secret in `{key}`"),
                "an empty secret protects nothing",
            ));
        }
        Ok(Secret::new(value))
    }

    fn secrets(&self, key: &str, references: References<'_>) -> Result<Vec<Secret>, Trouble> {
        let Some((texts, line)) = self.values.get(key) else { return Ok(Vec::new()) };
        texts.iter().map(|text| self.secret(key, text, *line, references)).collect()
    }

    fn one_secret(&self, key: &str, references: References<'_>) -> Result<Option<Secret>, Trouble> {
        let Some((reference, line)) = self.one(key)? else { return Ok(None) };
        self.secret(key, reference, line, references).map(Some)
    }

    /// An address that may itself be a secret: as it is, or by reference.
    fn url_or_secret(&self, key: &str, references: References<'_>) -> Result<Option<Secret>, Trouble> {
        let Some((text, line)) = self.one(key)? else { return Ok(None) };
        if !["env:", "file:", "sealed:"].iter().any(|start| text.starts_with(start)) {
            return Ok(self.url(key)?.map(Secret::new));
        }
        let secret = self.secret(key, text, line, references)?;
        if secret.text().is_none_or(|text| !is_url(text)) {
            let why = "the secret must be an http:// or https:// URL without user name and password";
            return Err(self.trouble(line, &format!("refers to something else than a URL in `{key}`"), why));
        }
        Ok(Some(secret))
    }

    /// Who serves the keys decides who may speak: over plain HTTP only this machine itself may.
    fn keys_base(&self) -> Result<Option<String>, Trouble> {
        let Some(url) = self.url("keys_base")? else { return Ok(None) };
        let here = ["http://127.0.0.1", "http://localhost", "http://[::1]"];
        let ends = |rest: &str| rest.is_empty() || rest.starts_with([':', '/']);
        let local = here.iter().any(|start| url.strip_prefix(start).is_some_and(ends));
        if local || url.starts_with("https://") {
            return Ok(Some(url));
        }
        let why = "keys that come over plain HTTP could be anybody's; write an https:// URL";
        Err(self.trouble(self.line, &format!("has {url:?} as `keys_base`"), why))
    }

    /// Each kind needs some of the optional keys.
    fn complete(&self, account: &Account) -> Result<(), Trouble> {
        match account.missing().next() {
            None => Ok(()),
            Some(need) => {
                let why = format!("{} needs it: {}", account.kind.spec().title, need.what);
                Err(self.trouble(self.line, &format!("has no `{}`", need.key), &why))
            }
        }
    }
}

/// Whether a text is an HTTP address without user name and password.
fn is_url(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/') && !rest.contains([' ', '@']))
}

fn read_secret(path: &Path) -> Result<Vec<u8>, String> {
    let size = std::fs::metadata(path).map_err(|error| format!("{}: {error}", path.display()))?.len();
    if size > SECRET_BYTES_MAX {
        return Err(format!("{} has {size} bytes; a secret has at most {SECRET_BYTES_MAX}", path.display()));
    }
    let mut value = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    // Editors and `echo` end a file with a newline that is not part of the secret.
    while matches!(value.last(), Some(b'\n' | b'\r')) {
        value.pop();
    }
    Ok(value)
}
