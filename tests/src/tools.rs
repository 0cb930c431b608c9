//! Small things that several tests share: waiting for a fact, running a client script, signing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;

/// The root of the repository. Tests run in the folder of their package; a path from when they were built would name the
/// checkout that they were built in, and a target folder may serve several.
pub fn repository() -> PathBuf {
    std::env::current_dir()
        .expect("a working folder")
        .parent()
        .expect("the tests package lies inside the repository")
        .to_owned()
}

fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache");
    base.filter(|path| path.is_absolute()).unwrap_or_else(home).join("millrace")
}

/// The folder with the default models.
pub fn models() -> PathBuf {
    let folder = std::env::var_os("MILLRACE_MODELS").map_or_else(|| cache().join("models"), PathBuf::from);
    assert!(
        folder.join(CHAT_MODEL_FILE).is_file(),
        "no {CHAT_MODEL_FILE} in {}: run `make setup-test`",
        folder.display()
    );
    folder
}

/// The file name of the default chat model.
pub const CHAT_MODEL_FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The program under test: `MILLRACE_BIN`, or the one beside this test's own build.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("MILLRACE_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().expect("the test knows its own path");
    let path = own.parent().and_then(Path::parent).expect("tests are built into <profile>/deps").join("millrace");
    assert!(path.is_file(), "no {}: run `make test`, which builds it first", path.display());
    path
}

/// Tests a condition until it holds or the deadline passes; `what` names it in the failure.
///
/// # Panics
/// When the deadline passes.
pub fn eventually<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

/// The seed of a random test: `MILLRACE_SEED` repeats one, otherwise a fresh one; always printed.
pub fn random_seed(test: &str) -> u64 {
    let seed = std::env::var("MILLRACE_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| getrandom::u64().expect("the system gives randomness"));
    println!("{test}: MILLRACE_SEED={seed}");
    seed
}

/// Runs a script of `tests/py` with the Python clients that `make setup-test` installed. The script
/// holds the assertions; its exit status is the verdict and its output the report.
///
/// # Panics
/// When the script does not end with status 0.
pub fn python(script: &str, arguments: &[&str]) -> String {
    let (interpreter, path) = python_script(script);
    assert!(interpreter.is_file(), "no {}: run `make setup-test`", interpreter.display());
    let mut python = Command::new(interpreter);
    python.arg(path).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
    run(python, script, arguments)
}

/// Runs a script of `tests/js` with the Node clients that `make setup-test` installed, like [`python`].
///
/// # Panics
/// When the script does not end with status 0.
pub fn node(script: &str, arguments: &[&str]) -> String {
    let modules = clients().join("node/node_modules");
    assert!(modules.is_dir(), "no {}: run `make setup-test`", modules.display());
    let mut node = Command::new("node");
    node.arg(repository().join("tests/js").join(script)).args(arguments).env("NODE_PATH", modules);
    run(node, script, arguments)
}

fn clients() -> PathBuf {
    std::env::var_os("MILLRACE_CLIENTS").map_or_else(|| cache().join("clients"), PathBuf::from)
}

fn run(mut program: Command, script: &str, arguments: &[&str]) -> String {
    let output = program.stdin(Stdio::null()).output().expect("the interpreter starts");
    let text = printable(&output);
    assert!(output.status.success(), "{script} {} failed:\n{text}", arguments.join(" "));
    text
}

/// The Python interpreter with the clients, and the path of a script of `tests/py`.
pub fn python_script(script: &str) -> (PathBuf, PathBuf) {
    (clients().join("bin/python"), repository().join("tests/py").join(script))
}

/// Both outputs of a program, for a failure message.
pub fn printable(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Signs a Standard Webhooks message: `v1,` and the base64 HMAC-SHA256 of `id.timestamp.body`.
pub fn sign_webhook(secret: &str, id: &str, timestamp: u64, body: &str) -> String {
    let key = BASE64.decode(secret.strip_prefix("whsec_").unwrap_or(secret)).expect("the secret is base64");
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let tag = hmac::sign(&key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", BASE64.encode(tag.as_ref()))
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("the clock is past 1970").as_secs()
}
