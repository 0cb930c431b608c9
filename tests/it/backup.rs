//! Backups as an operator makes them: through a running server, on a resting folder, into a folder or an S3 server.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use millrace_tests::server::chat;
use millrace_tests::tools::{binary, printable, python};
use millrace_tests::{Server, client, eventually};
use serde_json::{Value, json};

fn millrace(server: Option<&Server>, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(arguments).env_remove("MILLRACE_DATA").env_remove("MILLRACE_CONFIG");
    if let Some(server) = server {
        command.env("MILLRACE_URL", server.url()).env("MILLRACE_API_KEY", &server.key);
    }
    command.output().expect("the program runs")
}

fn ok(server: Option<&Server>, arguments: &[&str]) -> String {
    let output = millrace(server, arguments);
    assert!(output.status.success(), "millrace {arguments:?}: {}", printable(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn fails(server: Option<&Server>, arguments: &[&str]) -> String {
    let output = millrace(server, arguments);
    assert_eq!(output.status.code(), Some(1), "millrace {arguments:?}: {}", printable(&output));
    printable(&output)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn turn(server: &Server, user: &str, session: &str, said: &str) {
    let mut body = chat(said, 4);
    body["session"] = json!(session);
    body["user"] = json!(user);
    server.post("/v1/chat/completions", &body).expect(200);
}

fn history(server: &Server, user: &str, session: &str) -> (u16, String) {
    let path = format!("/v1/sessions/{session}/messages?user={user}");
    let reply = client::request(server.http, "GET", &path, &server.key, &[], b"").expect("an answer");
    (reply.status, reply.text())
}

fn waiting(server: &Server) -> u64 {
    server.get("/v1/admin/backups").expect(200)["keys_waiting"].as_u64().expect("a number")
}

#[test]
fn a_running_server_is_copied_and_the_copy_serves() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = text(&folder.path().join("copies"));
    let mut server =
        Server::builder().config(&format!("[backup]\ntarget = \"{place}\"\nevery = \"0s\"\nkeep = 3\n")).start();
    turn(&server, "dora", "diary", "The vault opens with the word quicksilver-eleven.");
    turn(&server, "emil", "diary", "My bicycle is called Rosinante.");
    let made: Value = serde_json::from_str(&ok(Some(&server), &["backup", "create", "--json"])).expect("JSON");
    let id = made["id"].as_str().expect("an id").to_owned();
    assert_eq!(made["place"], format!("file://{place}"));
    assert!(ok(Some(&server), &["backup", "status"]).contains(&id));
    let page = client::request(server.metrics, "GET", "/metrics", "", &[], b"").expect("metrics").text();
    assert!(page.contains("millrace_backups_total 1\n") && page.contains("millrace_backup_keys_waiting 0\n"), "{page}");

    let list = ok(None, &["backup", "ls", "--from", &place]);
    assert!(list.contains(&id), "{list}");
    let key = text(&server.data().join("master.key"));
    let (one, other) = (text(&folder.path().join("one")), text(&folder.path().join("other")));
    let sealed = ["--from", &place, "--storage-key-file", &key];
    let with = |more: &[&str]| ok(None, &[&["backup"], more, &sealed].concat());
    assert!(with(&["verify"]).contains("is whole"));
    with(&["restore", "--into", &one, "--at", &id]);

    // Who is forgotten now is forgotten in the backup that was made before.
    let done = millrace(Some(&server), &["memory", "forget", "dora", "--yes"]);
    assert!(done.status.success() && printable(&done).contains("1 backup places"), "{}", printable(&done));
    eventually("the copies of keys are overwritten", Duration::from_secs(30), || (waiting(&server) == 0).then_some(()));
    with(&["restore", "--into", &other]);

    let wrong = folder.path().join("wrong.key");
    fs::write(&wrong, format!("millrace-key-1 {}\n", "ab".repeat(32))).expect("written");
    fs::set_permissions(&wrong, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("a mode");
    let third = text(&folder.path().join("third"));
    let told =
        fails(None, &["backup", "restore", "--from", &place, "--into", &third, "--storage-key-file", &text(&wrong)]);
    assert!(told.contains("another key of keys") && told.contains("in no backup"), "{told}");
    let told = fails(None, &["backup", "restore", "--from", &place, "--into", &one, "--storage-key-file", &key]);
    assert!(told.contains("not empty"), "{told}");
    let told = fails(None, &["backup", "create", "--offline", "--to", &place, "--data", &text(&server.data())]);
    assert!(told.contains("in use by another process"), "{told}");

    // Only the node's own admin copies all tenants.
    let other_admin = server.post("/v1/admin/keys", &json!({"label": "theirs", "tenant": 7, "scopes": ["admin"]}));
    let other_admin = other_admin.expect(201);
    let theirs = other_admin["key"].as_str().expect("a key");
    server.post_as(theirs, "/v1/admin/backups", &json!({})).expect(403);
    server.post("/v1/admin/backups", &json!({"to": "relative"})).expect(400);
    server.kill();

    let first_key = server.key.clone();
    for (restored, dora_is_there) in [(&one, true), (&other, false)] {
        let config = format!("[storage]\nkey_file = \"{key}\"\n");
        let again = serve(Path::new(restored), &config, &first_key);
        let (status, emil) = history(&again, "emil", "diary");
        assert!(status == 200 && emil.contains("Rosinante"), "{emil}");
        let (_, dora) = history(&again, "dora", "diary");
        assert_eq!(dora.contains("quicksilver"), dora_is_there, "{dora}");
    }
}

/// A server on a data folder that has keys already.
fn serve(data: &Path, config: &str, key: &str) -> Server {
    Server::builder().config(config).data(data).start_with_key(key)
}

#[test]
fn a_resting_folder_is_copied_without_a_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut server = Server::start_default();
    turn(&server, "emil", "diary", "My bicycle is called Rosinante.");
    server.signal("TERM");
    assert!(server.wait(Duration::from_secs(30)).success());
    let (data, place) = (text(&server.data()), text(&folder.path().join("copies")));
    let made = ok(None, &["backup", "create", "--offline", "--to", &place, "--data", &data]);
    assert!(made.contains("sent"), "{made}");
    let key = text(&server.data().join("master.key"));
    let into = text(&folder.path().join("restored"));
    ok(None, &["backup", "restore", "--from", &place, "--into", &into, "--storage-key-file", &key]);
    let again = serve(Path::new(&into), &format!("[storage]\nkey_file = \"{key}\"\n"), &server.key);
    assert!(history(&again, "emil", "diary").1.contains("Rosinante"));

    let nothing = text(&folder.path().join("nothing"));
    let told = fails(None, &["backup", "create", "--offline", "--to", &place, "--data", &nothing]);
    assert!(told.contains("no store"), "{told}");
    let told = fails(None, &["backup", "ls"]);
    assert!(told.contains("backup.target"), "{told}");
}

#[test]
fn a_server_that_is_killed_while_it_copies_starts_again_and_copies() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = text(&folder.path().join("copies"));
    // So slow that the kill comes in the middle.
    let config = format!("[backup]\ntarget = \"{place}\"\nevery = \"0s\"\nbytes_per_s = \"4KiB\"\n");
    let mut server = Server::builder().config(&config).start();
    turn(&server, "emil", "diary", "My bicycle is called Rosinante.");
    server.post("/v1/admin/backups", &json!({})).expect(202);
    let leftovers = server.data().join("backup.tmp/db");
    eventually("the copy begins", Duration::from_secs(30), || leftovers.exists().then_some(()));
    server.kill();
    assert!(leftovers.exists(), "it was cut off");
    server.reconfigure(|builder| builder.env("MILLRACE_BACKUP_BYTES_PER_S", "0"));
    server.restart();
    ok(Some(&server), &["backup", "create"]);
    assert!(!server.data().join("backup.tmp").exists(), "nothing of the first try is left");
    let key = text(&server.data().join("master.key"));
    ok(None, &["backup", "verify", "--from", &place, "--storage-key-file", &key]);
}

/// Messages leave while the server runs; histories, contexts and new turns read them as before.
#[test]
fn archived_messages_are_read_as_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = text(&folder.path().join("copies"));
    // A millionth of a day: what was said a moment ago is old.
    let config = format!("[backup]\ntarget = \"{place}\"\nevery = \"0s\"\n[archive]\nidle_days = 0.000001\n");
    let mut server = Server::builder().config(&config).start();
    turn(&server, "emil", "diary", "My bicycle is called Rosinante.");
    turn(&server, "dora", "notes", "The vault opens with the word quicksilver-eleven.");
    let before = history(&server, "emil", "diary");
    eventually("the messages are archived", Duration::from_secs(30), || {
        ok(Some(&server), &["archive", "run"]);
        let list: Value = serde_json::from_str(&ok(Some(&server), &["archive", "ls", "--json"])).expect("JSON");
        (list["data"].as_array().expect("a list").len() == 2).then_some(())
    });
    assert!(fs::read_dir(folder.path().join("copies/archive")).expect("objects").count() > 0);
    assert_eq!(history(&server, "emil", "diary"), before);
    let found = ok(Some(&server), &["archive", "search", "--from", "2020-01-01", "--json"]);
    assert!(found.contains("\"session\":\"diary\"") && found.contains("\"messages\":2"), "{found}");
    assert!(!ok(Some(&server), &["archive", "search", "--to", "2020-01-01"]).contains("diary"));

    // After a restart nothing is in memory: the next turn needs the archive.
    server.kill();
    server.restart();
    turn(&server, "emil", "diary", "And my boat is called Windhover.");
    let (status, now) = history(&server, "emil", "diary");
    assert!(status == 200 && now.contains("Rosinante") && now.contains("Windhover"), "{now}");
    let messages: Value = serde_json::from_str(&now).expect("JSON");
    let seqs: Vec<u64> =
        messages["data"].as_array().expect("a list").iter().filter_map(|row| row["seq"].as_u64()).collect();
    assert!(seqs.len() == 4 && seqs.is_sorted_by(|one, next| one < next), "each message once, in order: {seqs:?}");

    // Without the target an archived session is refused and others go on.
    fs::rename(folder.path().join("copies"), folder.path().join("away")).expect("renamed");
    let (status, told) = history(&server, "dora", "notes");
    assert!(status == 503 && told.contains("archive"), "{status} {told}");
    turn(&server, "bert", "new", "Hello.");
    fs::rename(folder.path().join("away"), folder.path().join("copies")).expect("renamed");

    let list: Value = serde_json::from_str(&ok(Some(&server), &["archive", "ls", "--json"])).expect("JSON");
    let row =
        list["data"].as_array().expect("a list").iter().find(|row| row["session"] == "notes").expect("it is there");
    ok(Some(&server), &["archive", "restore", row["conversation"].as_str().expect("an id")]);
    fs::remove_dir_all(folder.path().join("copies")).expect("removed");
    assert!(history(&server, "dora", "notes").1.contains("quicksilver-eleven"), "it is in the store again");
    assert!(fails(Some(&server), &["archive", "restore", "xyz"]).contains("xyz"));
}

#[test]
fn an_s3_server_holds_backups() {
    println!("{}", python("backup_s3.py", &[binary().to_str().expect("a path")]));
}
