//! Where the key of keys comes from: a file, the environment, or a command (a vault, a TPM, a cloud's key service).

use super::keyfile::{self, Kek};
use crate::error::OpenError;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use zeroize::Zeroizing;

/// A command that answers later is taken for dead: a start must not hang on a vault that is away.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// A key line is 80 bytes; anything much longer is something else.
const TEXT_BYTES_MAX: u64 = 4_096;

/// Where the key of keys comes from.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum KeySource {
    /// [`crate::StoreOptions::key_file`], made when missing and the store is new.
    #[default]
    File,
    /// An environment variable, by name. The variable with `_PREVIOUS` behind its name may hold the key before it:
    /// when only that one opens the store, the store is brought to the new key.
    Environment(String),
    /// A shell command that prints the key. Its environment is that of this process.
    Command(String),
}

impl std::fmt::Debug for KeySource {
    /// A command may carry a token: it is not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File => f.write_str("File"),
            Self::Environment(name) => f.debug_tuple("Environment").field(name).finish(),
            Self::Command(_) => f.write_str("Command(..)"),
        }
    }
}

impl KeySource {
    /// For messages: names the place, never the key.
    pub(crate) fn describe(&self, key_file: &Path) -> PathBuf {
        match self {
            Self::File => key_file.to_owned(),
            Self::Environment(name) => PathBuf::from(format!("${name}")),
            Self::Command(_) => PathBuf::from("(key command)"),
        }
    }

    /// The key, and the one before it where the source knows one. `None` when there is no key yet.
    pub(crate) fn read(&self, key_file: &Path) -> Result<Option<(Kek, Option<Kek>)>, OpenError> {
        match self {
            Self::File => {
                // What a rotation left that was cut off. A torn file was never used.
                let next = match Kek::read(&keyfile::next_of(key_file)) {
                    Err(OpenError::KeyMalformed { .. }) => None,
                    other => other?,
                };
                Ok(Kek::read(key_file)?.map(|kek| (kek, next)))
            }
            Self::Environment(name) => {
                let of = |name: &str| {
                    let Some(value) = std::env::var_os(name) else { return Ok(None) };
                    let text = Zeroizing::new(value.into_string().map_err(|_| malformed(name, "it is not text"))?);
                    keyfile::parse(&text).map(Some).map_err(|why| malformed(name, why))
                };
                let Some(kek) = of(name)? else {
                    return Err(OpenError::KeySource {
                        what: format!("the environment variable {name}"),
                        why: "it is not set".into(),
                    });
                };
                Ok(Some((kek, of(&format!("{name}_PREVIOUS"))?)))
            }
            Self::Command(command) => {
                let text = run(command).map_err(|why| OpenError::KeySource { what: "the key command".into(), why })?;
                let kek = keyfile::parse(&text).map_err(|why| OpenError::KeySource {
                    what: "the key command".into(),
                    why: format!("what it printed is not a key: {why}"),
                })?;
                Ok(Some((kek, None)))
            }
        }
    }
}

fn malformed(name: &str, why: &str) -> OpenError {
    OpenError::KeySource { what: format!("the environment variable {name}"), why: why.to_owned() }
}

/// What a command prints, within a time and a size.
fn run(command: &str) -> Result<Zeroizing<String>, String> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("it cannot be started: {error}"))?;
    let output = child.stdout.take().expect("standard output is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Zeroizing::new(String::new());
        let read = output.take(TEXT_BYTES_MAX).read_to_string(&mut text).map(|_| text);
        // Nobody listens any more after the deadline.
        let _ = sender.send(read);
    });
    let text = receiver.recv_timeout(COMMAND_DEADLINE);
    if text.is_err() {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| format!("it cannot be waited for: {error}"))?;
    let text = text
        .map_err(|_| format!("it printed no key within {} seconds", COMMAND_DEADLINE.as_secs()))?
        .map_err(|error| format!("its output cannot be read: {error}"))?;
    if !status.success() {
        return Err(format!("it ended with {status}"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(text: &str) -> Result<Option<(Kek, Option<Kek>)>, OpenError> {
        KeySource::Command(text.into()).read(Path::new("unused"))
    }

    #[test]
    fn a_command_prints_the_key_or_says_why_not() {
        let digits = "ab".repeat(32);
        for text in [format!("millrace-key-1 {digits}"), digits.clone()] {
            let (kek, before) = command(&format!("echo {text}")).unwrap().unwrap();
            assert_eq!(kek.bytes(), &[0xab; 32]);
            assert!(before.is_none());
        }
        for (text, word) in [
            ("exit 3", "exit status: 3"),
            ("echo hello", "not a key"),
            ("true", "not a key"),
            ("printf '\\377'", "cannot be read"),
            ("exec yes", "not a key"),
        ] {
            let Err(error) = command(text) else { panic!("{text} gave a key") };
            assert!(error.to_string().contains(word) || error.to_string().contains("ended"), "{text}: {error}");
            assert!(!error.to_string().contains("hello"), "what was printed may be a key with a slip: {error}");
        }
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let source = KeySource::Environment("MILLRACE_TEST_NO_SUCH_VARIABLE".into());
        let Err(error) = source.read(Path::new("unused")) else { panic!("no key can come from nothing") };
        assert!(error.to_string().contains("MILLRACE_TEST_NO_SUCH_VARIABLE"), "{error}");
        assert_eq!(source.describe(Path::new("x")), Path::new("$MILLRACE_TEST_NO_SUCH_VARIABLE"));
    }
}
