//! Starts that must fail, and say what is wrong, why, and what to do.

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use millrace_tests::tools::{CHAT_MODEL_FILE, models};
use millrace_tests::{Server, random_seed};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// A refused start: a non-zero status, the words that name the trouble, and no panic.
fn check_refusal(what: &str, (status, text): (std::process::ExitStatus, String), words: &[&str]) {
    assert!(!status.success(), "{what}: ended with success: {text}");
    assert!(status.code().is_some_and(|code| code != 101), "{what}: ended by {status}: {text}");
    assert!(!text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "{what}: {text}");
    let lower = text.to_lowercase();
    for word in words {
        assert!(lower.contains(&word.to_lowercase()), "{what}: the message does not name {word:?}: {text}");
    }
    assert!(
        lower.contains("next") || lower.contains("run ") || lower.contains("set ") || lower.contains("check"),
        "{what}: no next step: {text}"
    );
}

/// A models folder with links to the real models, so that one file can be replaced.
fn models_copy(folder: &Path) -> PathBuf {
    let copy = folder.join("models");
    fs::create_dir_all(&copy).expect("a folder");
    for entry in fs::read_dir(models()).expect("the models") {
        let entry = entry.expect("an entry");
        if !entry.file_name().to_string_lossy().starts_with('.') {
            std::os::unix::fs::symlink(entry.path(), copy.join(entry.file_name())).expect("a link");
        }
    }
    copy
}

fn scratch() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("millrace-test-").tempdir().expect("a temporary folder")
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for flag in ["--listen", "--metrics"] {
        let refusal = Server::builder().arg(flag).arg(&address).refuse();
        check_refusal(flag, refusal, &[&address, "use"]);
    }
}

#[test]
fn a_missing_or_empty_models_folder_is_named() {
    let folder = scratch();
    let missing = folder.path().join("no-such-folder");
    check_refusal("missing", Server::builder().models(&missing).refuse(), &["no-such-folder"]);
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).expect("a folder");
    check_refusal("empty", Server::builder().models(&empty).refuse(), &["empty", "model"]);
    check_refusal("unknown model", Server::builder().env("MILLRACE_MODEL", "no-such.gguf").refuse(), &["no-such.gguf"]);
}

#[test]
fn a_truncated_or_corrupt_model_file_is_refused() {
    let good = fs::read(models().join(CHAT_MODEL_FILE)).expect("the model");
    let seed = random_seed("corrupt-model");
    let mut random = SmallRng::seed_from_u64(seed);
    let mut cases: Vec<(String, Vec<u8>)> = vec![
        ("empty".into(), Vec::new()),
        ("only the magic".into(), good[..4].to_vec()),
        ("another magic".into(), [b"GGML".as_slice(), &good[4..4096]].concat()),
        ("version 99".into(), [&good[..4], &99_u32.to_le_bytes(), &good[8..4096]].concat()),
        ("text".into(), b"This is not a model.".repeat(100)),
        ("half the metadata".into(), good[..100_000].to_vec()),
        ("half the tensors".into(), good[..good.len() / 2].to_vec()),
        ("one byte short".into(), good[..good.len() - 1].to_vec()),
    ];
    // The counts of tensors and keys stand at 8 and 16; a hostile file claims very many.
    for (at, name) in [(8, "tensors"), (16, "keys")] {
        for count in [u64::MAX, 1 << 62, 1 << 40, 1_000_000] {
            let mut bytes = good[..2_000_000].to_vec();
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
            cases.push((format!("{count} {name}"), bytes));
        }
    }
    for number in 0..6 {
        let mut bytes = good[..random.random_range(24..1_000_000)].to_vec();
        for _ in 0..8 {
            let at = random.random_range(8..bytes.len().min(4000));
            bytes[at] = random.random();
        }
        cases.push((format!("random damage {number}"), bytes));
    }
    for (what, bytes) in cases {
        let folder = scratch();
        let copy = models_copy(folder.path());
        let path = copy.join(CHAT_MODEL_FILE);
        fs::remove_file(&path).expect("the link");
        fs::write(&path, bytes).expect("written");
        check_refusal(&what, Server::builder().models(&copy).refuse(), &[CHAT_MODEL_FILE]);
    }
}

#[test]
fn damage_in_the_embedding_model_is_refused() {
    let folder = scratch();
    let copy = models_copy(folder.path());
    let encoder = copy.join("all-MiniLM-L6-v2");
    let real = fs::canonicalize(&encoder).expect("the encoder");
    fs::remove_file(&encoder).expect("the link");
    fs::create_dir(&encoder).expect("a folder");
    for entry in fs::read_dir(real).expect("the encoder") {
        let entry = entry.expect("an entry");
        if entry.file_name() == "model.safetensors" {
            let bytes = fs::read(entry.path()).expect("the weights");
            fs::write(encoder.join("model.safetensors"), &bytes[..bytes.len() / 3]).expect("written");
        } else {
            std::os::unix::fs::symlink(entry.path(), encoder.join(entry.file_name())).expect("a link");
        }
    }
    check_refusal("truncated safetensors", Server::builder().models(&copy).refuse(), &["model.safetensors"]);
}

#[test]
fn two_servers_do_not_share_one_data_folder() {
    let first = Server::start_default();
    check_refusal("second server", Server::builder().data(&first.data()).refuse(), &["another process"]);
    first.ask("Is the first one still there?");
}

#[test]
fn another_key_file_cannot_open_the_data() {
    let mut server = Server::start_default();
    let mut body = millrace_tests::server::chat("My secret is the word periwinkle-nine.", 2);
    body["session"] = serde_json::json!("sealed");
    server.post("/v1/chat/completions", &body).expect(200);
    let data = server.data();
    let key = data.join("master.key");
    let mode = fs::metadata(&key).expect("a key file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "the key file is for its owner only");
    server.kill();

    let mut sealed = Vec::new();
    collect(&data, &mut sealed);
    let plain = sealed.iter().any(|bytes| bytes.windows(15).any(|window| window == b"periwinkle-nine"));
    assert!(!plain, "a message lies in clear text on the disk");

    let good = fs::read(&key).expect("the key");
    let other: Vec<u8> = if good.iter().all(u8::is_ascii) {
        good.iter()
            .map(|byte| {
                if *byte == b'0' {
                    b'1'
                } else if *byte == b'A' {
                    b'B'
                } else if *byte == b'a' {
                    b'b'
                } else {
                    *byte
                }
            })
            .collect()
    } else {
        good.iter().map(|byte| !byte).collect()
    };
    fs::write(&key, other).expect("written");
    check_refusal("another key", Server::builder().data(&data).refuse(), &["key"]);
    fs::write(&key, &good[..good.len() / 2]).expect("written");
    check_refusal("half a key", Server::builder().data(&data).refuse(), &["key"]);
    fs::remove_file(&key).expect("removed");
    check_refusal("no key", Server::builder().data(&data).refuse(), &["key"]);
    fs::write(&key, &good).expect("written");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("set");
    check_refusal("a key that everybody reads", Server::builder().data(&data).refuse(), &["master.key", "600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("set");
    server.restart();
    assert!(server.get("/v1/sessions/sealed/messages").text().contains("periwinkle-nine"));
}

/// The content of every file below a folder.
fn collect(folder: &Path, into: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            collect(&path, into);
        } else {
            into.push(fs::read(&path).expect("readable"));
        }
    }
}

/// A small file system that is full, if this user may mount one.
struct FullDisk(tempfile::TempDir);

impl FullDisk {
    fn mount() -> Option<Self> {
        let folder = scratch();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "millrace-test"]).arg(folder.path()).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            return None;
        }
        let disk = Self(folder);
        let mut fill = fs::File::create(disk.0.path().join("ballast")).expect("a file");
        while fill.write_all(&[0; 4096]).is_ok() {}
        Some(disk)
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_at_the_start_is_named() {
    let Some(disk) = FullDisk::mount() else {
        println!("not run: this user may not mount a file system");
        return;
    };
    let data = disk.0.path().join("data");
    check_refusal("full disk", Server::builder().data(&data).refuse(), &["space"]);
}

#[test]
fn a_data_folder_that_cannot_be_written_is_named() {
    let folder = scratch();
    let file = folder.path().join("a-file");
    fs::write(&file, "x").expect("written");
    check_refusal("a file instead of a folder", Server::builder().data(&file).refuse(), &["a-file"]);
    check_refusal("below a file", Server::builder().data(&file.join("data")).refuse(), &["a-file"]);
}

#[test]
fn a_plan_that_does_not_fit_is_refused_with_the_arithmetic() {
    let refusal = Server::builder().env("MEMORY_LIMIT", "128MiB").env("MILLRACE_ENGINE_KV_MIB", "4096").refuse();
    check_refusal("plan", refusal, &["4096", "128"]);
}

#[test]
fn a_wrong_configuration_names_the_line_or_the_variable() {
    for (what, config, words) in [
        ("unknown key", "lisen = \"127.0.0.1:0\"", vec!["lisen", "listen"]),
        ("unknown table", "[engin]\nthreads = 2", vec!["engin", "engine"]),
        ("wrong type", "[engine]\nthreads = \"many\"", vec!["threads", "many"]),
        ("out of range", "[engine]\nsequences_max = 0", vec!["sequences_max"]),
        ("not TOML", "listen = ", vec!["millrace.toml"]),
        (
            "a literal secret",
            "[[channel]]\nkind = \"telegram\"\nname = \"x\"\nsecrets = [\"hunter2hunter2\"]\nbot_token = \"env:T\"",
            vec!["env:", "file:"],
        ),
        (
            "a missing secret",
            "[[channel]]\nkind = \"telegram\"\nname = \"x\"\nsecrets = [\"env:NO_SUCH_VARIABLE\"]\nbot_token = \"env:T\"",
            vec!["NO_SUCH_VARIABLE"],
        ),
        (
            "an unknown channel",
            "[[channel]]\nkind = \"telegraph\"\nname = \"x\"\nsecrets = [\"env:T\"]",
            vec!["telegraph", "telegram"],
        ),
    ] {
        let (status, text) = Server::builder().config(config).env("T", "t").refuse();
        assert!(!text.contains("hunter2"), "{what}: the secret is repeated: {text}");
        check_refusal(what, (status, text), &words);
    }
    for (name, value) in [
        ("MAX_WORKERS", "many"),
        ("MEMORY_LIMIT", "-5"),
        ("RETRY_POLICY", "sometimes"),
        ("MODEL_LOAD_TIMEOUT", "soon"),
        ("STORAGE_TYPE", "paper"),
    ] {
        check_refusal(name, Server::builder().env(name, value).refuse(), &[name, value]);
    }
}
