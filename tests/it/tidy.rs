//! The text rules of the source tree, as an ordinary test.

use std::path::{Path, PathBuf};
use std::process::Command;

use millrace_tests::tools::repository;

const LINES_MAX: usize = 1000;
/// How far above an `unsafe` its reason may stand.
const REASON_WITHIN_LINES: usize = 6;

/// Every file that git tracks or would track, with the ending `extension` (all files when it is empty).
fn files(extension: &str) -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(repository())
        .output()
        .expect("git runs");
    assert!(output.status.success(), "the tests run in a git checkout");
    let list = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let files: Vec<PathBuf> =
        list.lines().filter(|path| path.ends_with(extension)).map(|path| repository().join(path)).collect();
    assert!(!files.is_empty(), "no file ends with {extension:?}");
    files.into_iter().filter(|path| path.is_file()).collect()
}

/// Text files only; `None` for a binary one.
fn read(path: &Path) -> Option<String> {
    std::fs::read(path).ok().and_then(|bytes| String::from_utf8(bytes).ok())
}

fn shown(path: &Path) -> String {
    path.strip_prefix(repository()).unwrap_or(path).display().to_string()
}

/// Reports every offence at once, so that one run is enough to mend all.
fn check(rule: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn no_source_file_is_longer_than_a_reader_can_hold() {
    let mut offences = Vec::new();
    for extension in [".rs", ".py", ".js", ".css", ".sh"] {
        if !files("").iter().any(|path| path.to_string_lossy().ends_with(extension)) {
            continue;
        }
        for path in files(extension) {
            let lines = read(&path).map_or(0, |text| text.lines().count());
            if lines > LINES_MAX {
                offences.push(format!("{}: {lines} lines", shown(&path)));
            }
        }
    }
    check("a source file has at most 1000 lines", &offences);
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut offences = Vec::new();
    for path in files(".rs") {
        let Some(text) = read(&path) else { continue };
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            let opens = ["unsafe {", "unsafe impl"].iter().any(|start| code.contains(start));
            if !opens || code.contains('"') {
                continue;
            }
            let first = index.saturating_sub(REASON_WITHIN_LINES);
            if !lines[first..=index].iter().any(|line| line.contains("SAFETY")) {
                offences.push(format!("{}:{}", shown(&path), index + 1));
            }
        }
    }
    check("an unsafe block has a SAFETY comment within six lines above", &offences);
}

#[test]
fn nothing_is_left_undone_in_the_tree() {
    // Composed, so that this file does not offend against its own rule.
    let words = [
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["XX", "X"].concat(),
        ["todo", "!("].concat(),
        ["unimplemented", "!("].concat(),
    ];
    let mut offences = Vec::new();
    for path in files(".rs").into_iter().chain(files(".py")).chain(files("Makefile")).chain(files(".toml")) {
        let Some(text) = read(&path) else { continue };
        for (index, line) in text.lines().enumerate() {
            if words.iter().any(|word| contains_word(line, word)) {
                offences.push(format!("{}:{}: {}", shown(&path), index + 1, line.trim()));
            }
        }
    }
    check("no note of work left undone", &offences);
}

/// Whether `word` stands in `line` without letters or digits around it.
fn contains_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let joined_after = word.ends_with(char::is_alphanumeric) && after.is_some_and(is_part);
        !before.is_some_and(is_part) && !joined_after
    })
}

#[test]
fn the_word_search_finds_words_and_nothing_else() {
    assert!(contains_word("// todo later", "todo"));
    assert!(contains_word("todo", "todo"));
    assert!(contains_word("let x = later!(\"a\")", "later!("));
    assert!(!contains_word("mastodon_todos", "todo"));
    assert!(!contains_word("a_todo", "todo"));
}

#[test]
fn no_path_of_a_developers_machine_is_in_the_tree() {
    let machine =
        [["/wo", "rk/"].concat(), ["/ro", "ot/"].concat(), ["/home", "/"].concat(), ["..", "/shared"].concat()];
    let mut offences = Vec::new();
    for path in files("") {
        // Lock files name no paths; the font and image files of the console are not text.
        let Some(text) = read(&path) else { continue };
        for (index, line) in text.lines().enumerate() {
            if machine.iter().any(|part| line.contains(part.as_str())) {
                offences.push(format!("{}:{}: {}", shown(&path), index + 1, line.trim()));
            }
        }
    }
    check("no absolute path of one machine", &offences);
}

#[test]
fn the_arrows_between_the_packages_go_one_way() {
    let allowed: &[(&str, &[&str])] = &[
        ("proto", &[]),
        ("inference", &[]),
        ("storage", &["millrace-proto"]),
        ("dataplane/agent", &["millrace-proto"]),
        ("dataplane", &["millrace-agent", "millrace-inference", "millrace-proto", "millrace-storage"]),
        ("loadtest", &["millrace-proto"]),
        ("bench", &["millrace-dataplane", "millrace-inference", "millrace-proto", "millrace-storage"]),
        ("tests", &[]),
    ];
    let mut offences = Vec::new();
    for (package, may_use) in allowed {
        let manifest = repository().join(package).join("Cargo.toml");
        let text = read(&manifest).unwrap_or_else(|| panic!("{} is missing", manifest.display()));
        let used = text
            .lines()
            .filter_map(|line| line.split(['=', '.', ' ']).next())
            .filter(|name| name.starts_with("millrace-"));
        for name in used {
            if !may_use.contains(&name) {
                offences.push(format!("{package} uses {name}"));
            }
        }
    }
    check("dependencies between packages follow the design", &offences);
}

#[test]
fn the_pure_packages_touch_no_clock_no_socket_and_no_thread() {
    let forbidden = [
        "std::net",
        "std::thread",
        "std::time::Instant",
        "SystemTime::now",
        "Instant::now",
        "std::fs",
        "tokio::",
        "monoio::",
        "rand::",
    ];
    let mut offences = Vec::new();
    for path in files(".rs") {
        let name = shown(&path);
        if !(name.starts_with("proto/src") || name.starts_with("dataplane/agent/src")) || name.contains("test") {
            continue;
        }
        let Some(text) = read(&path) else { continue };
        // Unit tests at the end of a file may read vectors and seeds from disk.
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        for (index, line) in code.lines().enumerate() {
            // The trait of a source of randomness that a caller hands in is no source.
            let statement = line.split("//").next().unwrap_or("").replace("ring::rand::SecureRandom", "");
            if let Some(word) = forbidden.iter().find(|word| statement.contains(**word)) {
                offences.push(format!("{name}:{}: {word}", index + 1));
            }
        }
    }
    check("proto and agent do no IO and read no clock", &offences);
}
