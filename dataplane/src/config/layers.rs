//! Where each setting's text comes from: flag, environment, file or default, in this order.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::keys::{CHANNEL_KEYS, ISSUER_KEYS, KEYS, Key, nearest};
use crate::trouble::Trouble;

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `--flag VALUE`.
    Flag(&'static str),
    /// An environment variable.
    Environment(&'static str),
    /// A line of the configuration file.
    File(PathBuf, usize),
    /// Not set anywhere.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag --{flag}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::File(path, line) => write!(f, "{} line {line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// One setting as text, with its source.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The row of the table.
    pub key: &'static Key,
    /// The text as given (or the default).
    pub text: String,
    /// Who gave it.
    pub source: Source,
}

impl Setting {
    /// The error that this setting's value cannot be used.
    pub fn refuse(&self, why: impl fmt::Display) -> Trouble {
        let Self { key, text, source } = self;
        let next = match source {
            Source::Flag(flag) => format!("change --{flag}; `millrace config explain {}` describes it", key.name),
            Source::Environment(name) => format!("change {name}; `millrace config explain {}` describes it", key.name),
            Source::File(path, line) => format!("change {} in line {line} of {}", key.name, path.display()),
            Source::Default => format!("set it with --{} or {}", key.flag(), key.env),
        };
        let why = format!("{why}. {}: {}", key.name, key.what);
        Trouble::new(format!("{} = {text:?} cannot be used ({source})", key.name), why, next)
    }
}

/// One raw `[[channel]]` or `[[issuer]]` table.
#[derive(Debug, Default)]
pub(super) struct RawTable {
    pub(super) file: PathBuf,
    pub(super) line: usize,
    pub(super) values: BTreeMap<String, (Vec<String>, usize)>,
}

/// The parsed file: texts of known keys and channel tables.
#[derive(Debug, Default)]
pub(super) struct RawFile {
    pub(super) values: BTreeMap<&'static str, (String, usize)>,
    pub(super) channels: Vec<RawTable>,
    pub(super) issuers: Vec<RawTable>,
}

/// What the command line says: values by key name, and the file to read.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// `--config PATH`.
    pub config: Option<PathBuf>,
    /// Setting name to text.
    pub values: BTreeMap<&'static str, String>,
}

/// Longest configuration file: a larger one is not one.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads and checks the shape of a configuration file.
pub(super) fn read_file(path: &Path) -> Result<RawFile, Trouble> {
    let trouble = |why: String| {
        let next = "give another file with --config or MILLRACE_CONFIG, or correct this one";
        Trouble::new(format!("the configuration file {} cannot be read", path.display()), why, next)
    };
    let size = std::fs::metadata(path).map_err(|error| trouble(error.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(trouble(format!("it has {size} bytes; at most {FILE_BYTES_MAX} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| trouble(error.to_string()))?;
    parse(&text, path)
}

/// Parses configuration text; `path` only names it in errors.
pub(super) fn parse(text: &str, path: &Path) -> Result<RawFile, Trouble> {
    let line_of = |offset: usize| 1 + text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n').count();
    let root = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(span.start));
        let what = format!("{} line {line} is not TOML", path.display());
        Trouble::new(what, error.message().to_owned(), "correct the line; text needs \"quotes\"")
    })?;
    let mut raw = RawFile::default();
    for (name, value) in root.get_ref() {
        let line = line_of(name.span().start);
        match (name.get_ref().as_ref(), value.get_ref()) {
            (name @ ("channel" | "issuer"), DeValue::Array(tables)) => {
                for table in tables {
                    let read = repeated(name, table.get_ref(), path, line_of(table.span().start), &line_of)?;
                    if name == "channel" { &mut raw.channels } else { &mut raw.issuers }.push(read);
                }
            }
            (name @ ("channel" | "issuer"), _) => return Err(wrong_table(name, path, line)),
            (table_name, DeValue::Table(table)) => {
                for (name, value) in table {
                    let full = format!("{table_name}.{}", name.get_ref());
                    insert(&mut raw, &full, value.get_ref(), path, line_of(name.span().start))?;
                }
            }
            (name, value) => insert(&mut raw, name, value, path, line)?,
        }
    }
    Ok(raw)
}

fn insert(raw: &mut RawFile, name: &str, value: &DeValue<'_>, path: &Path, line: usize) -> Result<(), Trouble> {
    let Some(key) = KEYS.iter().find(|key| key.name == name) else {
        let known = KEYS.iter().map(|key| key.name).chain(["channel", "issuer"]);
        return Err(unknown(path, line, name, nearest(name, known)));
    };
    let texts = texts(value).ok_or_else(|| {
        let what = format!("{name} in line {line} of {} has a value of the wrong kind", path.display());
        Trouble::new(what, format!("it is a {}. {name}: {}", value.type_str(), key.what), "write one plain value")
    })?;
    raw.values.insert(key.name, (texts.join(","), line));
    Ok(())
}

fn keys_of(table: &str) -> &'static [&'static str] {
    if table == "channel" { CHANNEL_KEYS } else { ISSUER_KEYS }
}

fn repeated(
    table_name: &str,
    value: &DeValue<'_>,
    path: &Path,
    line: usize,
    line_of: &dyn Fn(usize) -> usize,
) -> Result<RawTable, Trouble> {
    let known = keys_of(table_name);
    let DeValue::Table(table) = value else { return Err(wrong_table(table_name, path, line)) };
    let mut raw = RawTable { file: path.to_owned(), line, values: BTreeMap::new() };
    for (name, value) in table {
        let (line, name) = (line_of(name.span().start), name.get_ref().as_ref());
        if !known.contains(&name) {
            return Err(unknown(path, line, name, nearest(name, known.iter().copied())));
        }
        let texts = texts(value.get_ref()).ok_or_else(|| wrong_table(table_name, path, line))?;
        raw.values.insert(name.to_owned(), (texts, line));
    }
    Ok(raw)
}

fn wrong_table(name: &str, path: &Path, line: usize) -> Trouble {
    let keys = keys_of(name).join(", ");
    Trouble::new(
        format!("the {name} in line {line} of {} has the wrong shape", path.display()),
        format!("each {name} is one [[{name}]] table with the plain values {keys}"),
        format!("write [[{name}]] with one key = value on each line"),
    )
}

fn unknown(path: &Path, line: usize, name: &str, nearest: Option<&str>) -> Trouble {
    let next = match nearest {
        Some(near) => format!("did you mean `{near}`? All keys: millrace config explain"),
        None => "take the line out. All keys: millrace config explain".into(),
    };
    let what = format!("unknown key `{name}` in line {line} of {}", path.display());
    Trouble::new(what, "a key that is not known would be silently without effect", next)
}

/// The text of a scalar, or of each element of a list of scalars.
fn texts(value: &DeValue<'_>) -> Option<Vec<String>> {
    let scalar = |value: &DeValue<'_>| {
        Some(match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok()?.to_string(),
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Boolean(yes) => yes.to_string(),
            _ => return None,
        })
    };
    match value {
        DeValue::Array(items) => items.iter().map(|item| scalar(item.get_ref())).collect(),
        other => scalar(other).map(|text| vec![text]),
    }
}

/// Picks the winning text of every key.
pub(super) fn settle(
    flags: &Flags,
    environment: &dyn Fn(&str) -> Option<String>,
    file: Option<(&Path, &RawFile)>,
) -> Vec<Setting> {
    let pick = |key: &'static Key| {
        if let Some(text) = flags.values.get(key.name) {
            return (text.clone(), Source::Flag(key.flag()));
        }
        // An empty variable means "not set": compose files and units often export empty ones.
        if let Some(text) = environment(key.env).filter(|text| !text.is_empty()) {
            return (text, Source::Environment(key.env));
        }
        if let Some((path, raw)) = file
            && let Some((text, line)) = raw.values.get(key.name)
        {
            return (text.clone(), Source::File(path.to_owned(), *line));
        }
        (key.default.to_owned(), Source::Default)
    };
    KEYS.iter()
        .map(|key| {
            let (text, source) = pick(key);
            Setting { key, text, source }
        })
        .collect()
}
