//! Reads files in a process of its own.
//!
//! Parsers of nine formats meet files of strangers. What panics, loops or grows in them ends that process,
//! which may take so much memory and so much time, and nothing of this one. The process is this program
//! again, with the file on its standard input and the blocks on its standard output.

use std::io::{Read, Write};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use millrace_proto::document::{self, Document, DocumentError, Kind};
use millrace_proto::limits::{DOCUMENT_BYTES_MAX, DOCUMENT_TEXT_BYTES_MAX};
use millrace_proto::record::Record as _;
use millrace_storage::CorpusError;

use crate::sys;

/// The hidden command of the reading process.
pub const COMMAND: &str = "read-document";
/// Memory of the reading process: a large PDF takes some 300 MiB.
const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// Processor time of the reading process.
const CPU_SECONDS_MAX: u64 = 120;
/// Wall time, when the machine is busy.
const READ_WITHIN: Duration = Duration::from_secs(300);
/// What it may answer: the text, and as much again for its form.
const ANSWER_BYTES_MAX: u64 = 4 * DOCUMENT_TEXT_BYTES_MAX as u64;
/// Stack of the reading thread: parsers of nested things recurse.
const STACK_BYTES: usize = 64 << 20;
/// First bytes of an answer.
const READ: &[u8; 4] = b"read";
const REFUSED: &[u8; 4] = b"refu";

/// Why a file was not taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Refusal {
    fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn stopping() -> Self {
        Self::new("stopping", "the node is stopping; add the document again after its start")
    }

    pub(super) fn embedding(error: &dyn std::fmt::Display) -> Self {
        Self::new("embedding_failed", format!("the passages could not be embedded: {error}; try again later"))
    }
}

impl From<DocumentError> for Refusal {
    fn from(error: DocumentError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<CorpusError> for Refusal {
    fn from(error: CorpusError) -> Self {
        let code = match &error {
            CorpusError::Invalid(_) => "invalid_request",
            CorpusError::Read(_) | CorpusError::Commit(_) => "storage_failed",
        };
        Self::new(code, error.to_string())
    }
}

/// Reads a file in another process.
pub fn read(name: &str, bytes: &[u8]) -> Result<Document, Refusal> {
    let kind = Kind::of_name(name).ok_or_else(|| DocumentError::UnknownKind { name: name.to_owned() })?;
    if bytes.len() > DOCUMENT_BYTES_MAX {
        let (found, max) = (bytes.len() as u64, DOCUMENT_BYTES_MAX as u64);
        return Err(DocumentError::TooLarge { what: "bytes", found, max }.into());
    }
    // The running program itself, also when its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.args([COMMAND, kind.as_str()]).env_clear().current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let child = command.spawn().map_err(|error| {
        Refusal::new("internal", format!("no process for reading could be started: {error}; look at `ulimit -u`"))
    })?;
    let (status, late, answer) = converse(child, bytes);
    understand(status, late, &answer)
}

/// Gives the file to the process and takes its answer, within the time.
fn converse(mut child: Child, bytes: &[u8]) -> (Option<ExitStatus>, bool, Vec<u8>) {
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let mut answer = Vec::new();
    let (over, wait) = channel::<()>();
    let (status, late) = std::thread::scope(|scope| {
        scope.spawn(move || {
            if let Some(mut stdin) = stdin {
                // A process that died takes no more; its end says why.
                let _ = stdin.write_all(bytes);
            }
        });
        let guard = scope.spawn(move || {
            let late = wait.recv_timeout(READ_WITHIN) == Err(RecvTimeoutError::Timeout);
            if late {
                let _ = child.kill();
            }
            (child.wait().ok(), late)
        });
        if let Some(stdout) = stdout {
            // More than the bound is cut off here, and the process ends by its broken pipe.
            let _ = stdout.take(ANSWER_BYTES_MAX).read_to_end(&mut answer);
        }
        drop(over);
        guard.join().unwrap_or((None, false))
    });
    (status, late, answer)
}

fn understand(status: Option<ExitStatus>, late: bool, answer: &[u8]) -> Result<Document, Refusal> {
    let broken = |why: &str| {
        let next = "open it in the program that made it, save it again, or export it to another format";
        Refusal::new("document_damaged", format!("the document cannot be read: {why}; {next}"))
    };
    if late {
        return Err(broken("it took longer than it may"));
    }
    match (status.and_then(|status| status.code()), answer.split_first_chunk()) {
        (Some(0), Some((READ, rest))) => {
            Document::from_bytes(rest).map_err(|error| broken(&format!("its reader gave no document ({error})")))
        }
        (Some(0), Some((REFUSED, rest))) => {
            let text = String::from_utf8_lossy(rest);
            let (code, message) = text.split_once('\n').unwrap_or(("", &text));
            // Codes are words of this program, whichever process says them.
            let code = DocumentError::CODES.into_iter().find(|known| *known == code).unwrap_or("document_damaged");
            Err(Refusal::new(code, message))
        }
        _ => Err(broken("its reader needs more memory or time than it may have, or breaks over it")),
    }
}

/// The reading process: standard input to standard output.
pub fn run(kind: &str) -> ExitCode {
    // Its panics are the file's fault; the other side says so.
    std::panic::set_hook(Box::new(|_| {}));
    if sys::confine(MEMORY_BYTES_MAX, CPU_SECONDS_MAX).is_err() {
        return ExitCode::FAILURE;
    }
    let name = format!("document.{kind}");
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
        let mut bytes = Vec::new();
        std::io::stdin().lock().take(DOCUMENT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
        Some(match document::read(&name, &bytes) {
            Ok(document) => [&READ[..], &document.to_bytes()].concat(),
            Err(error) => [&REFUSED[..], format!("{}\n{error}", error.code()).as_bytes()].concat(),
        })
    });
    let Some(answer) = thread.ok().and_then(|thread| thread.join().ok()).flatten() else { return ExitCode::FAILURE };
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(&answer).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
