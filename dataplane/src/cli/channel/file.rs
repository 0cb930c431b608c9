//! The channel accounts as text in the configuration file.
//!
//! The file belongs to its owner, comments and order included: an account is added as a table at its end, and
//! removed by cutting the lines of its table. What would come out is parsed before it is written.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::config::channel_tables;
use crate::trouble::Trouble;

/// One `[[channel]]` table.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Its `kind` as written.
    pub kind: String,
    /// Its `name` as written.
    pub name: String,
    /// Its `public_url`, if it has one.
    pub public_url: Option<String>,
    /// Line of its header, from 1.
    line: usize,
}

impl Entry {
    /// Path of the webhook.
    pub fn path(&self) -> String {
        format!("/hooks/{}/{}", self.kind, self.name)
    }
}

pub(super) fn read(path: &Path) -> Result<String, Trouble> {
    std::fs::read_to_string(path).map_err(|error| {
        let what = format!("{} cannot be read", path.display());
        Trouble::new(what, error.to_string(), "check the path and its mode")
    })
}

/// The accounts in their order.
pub(super) fn accounts(text: &str, path: &Path) -> Result<Vec<Entry>, Trouble> {
    let entry = |(line, values): (usize, Vec<(String, String)>)| {
        let value = |key: &str| values.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone());
        let text = |key: &str| value(key).unwrap_or_default();
        Entry { kind: text("kind"), name: text("name"), public_url: value("public_url"), line }
    };
    Ok(channel_tables(text, path)?.into_iter().map(entry).collect())
}

/// The text with one more table at its end.
pub(super) fn with(text: &str, kind: &str, name: &str, settings: &[(String, Vec<String>)]) -> String {
    let mut out = text.to_owned();
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    if !out.is_empty() {
        out.push('\n');
    }
    out.push_str(&format!("[[channel]]\nkind = {}\nname = {}\n", quoted(kind), quoted(name)));
    for (key, values) in settings {
        let listed = matches!(key.as_str(), "secrets" | "encryption_keys" | "topics" | "users" | "operators");
        let value = if listed {
            format!("[{}]", values.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(", "))
        } else {
            quoted(values.first().map_or("", String::as_str))
        };
        out.push_str(&format!("{key} = {value}\n"));
    }
    out
}

/// A TOML basic string. The escapes of JSON are a subset of TOML's, but for the slash, which serde leaves alone.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The text without the table of an entry.
pub(super) fn without(text: &str, path: &Path, entry: &Entry) -> Result<String, Trouble> {
    let by_hand = |why: &str| {
        let what = format!("the table of {}/{} cannot be cut out of {}", entry.kind, entry.name, path.display());
        Trouble::new(what, why, format!("take it out by hand; it begins in line {}", entry.line))
    };
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let start = entry.line - 1;
    if lines.get(start).is_none_or(|line| !line.trim_start().starts_with("[[")) {
        return Err(by_hand("it is not written as a [[channel]] table"));
    }
    // Comments above the next table belong to that table.
    let end = (start + 1..lines.len()).find(|at| lines[*at].starts_with('[')).unwrap_or(lines.len());
    let comment = |line: &str| line.trim_start().starts_with('#') || line.trim().is_empty();
    let end = (start + 1..=end).rev().find(|at| *at == start + 1 || !comment(lines[at - 1])).unwrap_or(end);
    let rest: String = lines[..start].iter().chain(&lines[end..]).copied().collect();
    let names = |list: Vec<Entry>| list.into_iter().map(|one| (one.kind, one.name)).collect::<Vec<_>>();
    let mut expected = names(accounts(text, path)?);
    expected.retain(|one| *one != (entry.kind.clone(), entry.name.clone()));
    match accounts(&rest, path).map(names) {
        Ok(left) if left == expected => Ok(rest),
        _ => Err(by_hand("what would be left is not the same configuration")),
    }
}

/// Replaces the file as a whole, readable by its owner only.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), Trouble> {
    let failed = |error: std::io::Error| {
        let what = format!("{} cannot be written", path.display());
        Trouble::new(what, error.to_string(), "check the folder's mode and space; the old file is unchanged")
    };
    let fresh = path.with_extension("toml.new");
    let _ = std::fs::remove_file(&fresh);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&fresh, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "listen = \"127.0.0.1:1\"\n\n[[channel]]\nkind = \"telegram\"\nname = \"a\"\nsecrets = [\n  \"env:A\",\n]\n\n\
                        # the shop\n[[channel]]\nkind = \"slack\"\nname = \"b\"\n\n[agent]\nreply_tokens_max = 5\n";

    fn path() -> &'static Path {
        Path::new("millrace.toml")
    }

    #[test]
    fn a_table_is_cut_and_its_neighbours_keep_their_comments() {
        let entries = accounts(TEXT, path()).unwrap();
        assert_eq!(entries.iter().map(Entry::path).collect::<Vec<_>>(), ["/hooks/telegram/a", "/hooks/slack/b"]);
        let first = without(TEXT, path(), &entries[0]).unwrap();
        assert!(first.contains("# the shop\n[[channel]]\nkind = \"slack\"") && !first.contains("telegram"), "{first}");
        let second = without(TEXT, path(), &entries[1]).unwrap();
        assert!(
            second.contains("[agent]\nreply_tokens_max = 5") && second.contains("env:A") && !second.contains("slack"),
            "{second}"
        );
    }

    #[test]
    fn an_inline_table_is_left_to_its_owner() {
        let text = "channel = [{kind = \"slack\", name = \"b\"}]\n";
        let entries = accounts(text, path()).unwrap();
        assert!(without(text, path(), &entries[0]).unwrap_err().next.contains("by hand"));
    }

    proptest! {
        #[test]
        fn what_was_added_reads_back_and_goes_again(name in "[a-z]{1,8}", value in "[^\u{0}-\u{1f}\u{7f}]{0,30}") {
            let url = format!("https://x.example/{value}");
            let settings = [("secrets".to_owned(), vec![value.clone(), "env:B".into()]), ("public_url".to_owned(), vec![url.clone()])];
            let text = with(TEXT, "github", &name, &settings);
            let entries = accounts(&text, path()).unwrap();
            let added = entries.last().unwrap();
            prop_assert_eq!((added.kind.as_str(), &added.name, added.public_url.as_ref()), ("github", &name, Some(&url)));
            prop_assert_eq!(accounts(&without(&text, path(), added).unwrap(), path()).unwrap(), accounts(TEXT, path()).unwrap());
        }
    }
}
