//! A user who is forgotten through the command line is gone from the running server, and keys change under it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use millrace_tests::server::chat;
use millrace_tests::tools::binary;
use millrace_tests::{Server, client, eventually};
use serde_json::json;
use std::time::Duration;

fn millrace(server: &Server, arguments: &[&str]) -> Output {
    Command::new(binary())
        .args(arguments)
        .env("MILLRACE_URL", server.url())
        .env("MILLRACE_API_KEY", &server.key)
        .output()
        .expect("the program runs")
}

fn turn(server: &Server, user: &str, session: &str, text: &str) {
    let mut body = chat(text, 4);
    body["session"] = json!(session);
    body["user"] = json!(user);
    server.post("/v1/chat/completions", &body).expect(200);
}

/// What the server would put before the model, history and recalled facts included.
fn context(server: &Server, user: &str, session: &str, question: &str) -> String {
    let path = format!("/v1/sessions/{session}/context?text={}&user={user}", question.replace(' ', "%20"));
    let reply = client::request(server.http, "GET", &path, &server.key, &[], b"").expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.text()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn holding(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let holds = |path: &PathBuf| {
        // A file of the database may be replaced while we look.
        fs::read(path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    };
    files(folder).into_iter().filter(holds).collect()
}

#[test]
fn forget_erases_a_user_at_once_and_for_good() {
    let mut server = Server::start_default();
    turn(&server, "dora", "first", "The vault opens with the word quicksilver-eleven.");
    turn(&server, "emil", "first", "My bicycle is called Rosinante.");
    let question = "What is the word of the vault?";
    assert!(context(&server, "dora", "second", question).contains("quicksilver-eleven"));

    let unsure = millrace(&server, &["memory", "forget", "dora"]);
    assert!(!unsure.status.success() && String::from_utf8_lossy(&unsure.stderr).contains("--yes"));
    assert!(context(&server, "dora", "second", question).contains("quicksilver-eleven"));

    let keys = fs::read(server.data().join("user-keys")).expect("the file of user keys");
    let slots: Vec<&[u8]> = keys.chunks(128).skip(1).map(|slot| &slot[17..115]).collect();
    let done = millrace(&server, &["memory", "forget", "dora", "--yes"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for session in ["first", "second"] {
        let seen = context(&server, "dora", session, question);
        assert!(!seen.contains("quicksilver"), "{seen}");
    }
    assert!(context(&server, "emil", "second", "What is my bicycle called?").contains("Rosinante"));
    let log = server.log();
    assert!(log.contains("a user was forgotten") && log.contains("forget"), "an audit line: {log}");
    assert!(!log.contains("dora") && !log.contains("quicksilver"), "the log names nobody who is forgotten: {log}");
    let erased = slots.iter().filter(|slot| holding(&server.data(), slot).is_empty()).count();
    assert_eq!(erased, 1, "one of the sealed user keys is nowhere any more");
    assert_eq!(holding(&server.data(), b"quicksilver-eleven"), Vec::<PathBuf>::new());

    server.kill();
    server.restart();
    assert!(!context(&server, "dora", "first", question).contains("quicksilver"));
    assert!(context(&server, "emil", "second", "What is my bicycle called?").contains("Rosinante"));
    turn(&server, "dora", "first", "The vault now opens with the word amber-three.");
    let seen = context(&server, "dora", "second", question);
    assert!(seen.contains("amber-three") && !seen.contains("quicksilver"), "{seen}");
}

#[test]
fn keys_and_suite_change_while_the_server_works() {
    let mut server = Server::start_default();
    turn(&server, "fritz", "first", "The lighthouse keeper is called Ottokar.");
    let question = "What is the lighthouse keeper called?";
    let old_key = fs::read(server.data().join("master.key")).expect("the key");
    for arguments in [&["seal", "rotate"][..], &["seal", "rotate", "--suite", "gm"], &["seal", "rotate", "--master"]] {
        eventually("the last rotation is over", Duration::from_secs(20), || {
            let status = server.get("/v1/admin/status").json();
            (status["storage"]["rotations_running"] == 0).then_some(())
        });
        let done = millrace(&server, arguments);
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        assert!(context(&server, "fritz", "second", question).contains("Ottokar"), "{arguments:?}");
    }
    assert_ne!(fs::read(server.data().join("master.key")).expect("the key"), old_key);
    server.kill();
    server.restart();
    assert!(context(&server, "fritz", "second", question).contains("Ottokar"));
}

#[test]
fn the_key_of_keys_may_come_from_the_environment_or_a_command() {
    let digits = "5c".repeat(32);
    let server = Server::builder()
        .env("MILLRACE_STORAGE_KEY_SOURCE", "env:TEST_MASTER")
        .env("TEST_MASTER", &digits)
        .env("MILLRACE_STORAGE_SUITE", "gm")
        .start();
    turn(&server, "gerda", "first", "The parrot is called Balthasar.");
    assert!(context(&server, "gerda", "second", "What is the parrot called?").contains("Balthasar"));
    assert!(!server.data().join("master.key").exists());
    assert_eq!(holding(&server.data(), digits.as_bytes()), Vec::<PathBuf>::new());
    assert!(!server.log().contains(&digits));
    let refused = millrace(&server, &["seal", "rotate", "--master"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("_PREVIOUS"), "{refused:?}");

    let (status, log) = Server::builder().env("MILLRACE_STORAGE_KEY_SOURCE", "command:exit 7").refuse();
    assert!(!status.success() && log.contains("exit status: 7"), "{log}");
    let (status, log) = Server::builder().env("MILLRACE_STORAGE_KEY_SOURCE", "0123").refuse();
    assert!(!status.success() && log.contains("command:COMMAND"), "{log}");
}
