//! OAuth by clients that were not written here, and tokens of another issuer.

use std::process::Command;

use millrace_tests::tools::{binary, printable, python};
use millrace_tests::{Server, client};
use serde_json::{Value, json};

#[test]
fn authlib_and_oauthlib_get_and_use_tokens() {
    let server = Server::builder().env("MILLRACE_LIMITS_REQUESTS_PER_MINUTE", "100000").start();
    println!("{}", python("oauth_clients.py", &[&server.url(), &server.key]));
    let log = server.log();
    assert!(!log.contains("mt-") && !log.contains("ms-"), "neither tokens nor secrets are logged: {log}");
}

#[test]
fn tokens_of_a_trusted_issuer_are_taken_and_its_new_keys_are_fetched() {
    println!("{}", python("oauth_issuer.py", &[binary().to_str().expect("a path")]));
}

fn token(server: &Server, made: &Value) -> String {
    let (id, secret) = (made["client_id"].as_str().expect("an id"), made["client_secret"].as_str().expect("a secret"));
    let form = format!("grant_type=client_credentials&client_id={id}&client_secret={secret}");
    let headers = [("Content-Type", "application/x-www-form-urlencoded")];
    let reply = client::request(server.http, "POST", "/oauth/token", "", &headers, form.as_bytes()).expect("an answer");
    reply.expect(200)["access_token"].as_str().expect("a token").to_owned()
}

#[test]
fn clients_tokens_revocations_and_signing_keys_outlive_a_restart() {
    // The issuer is named, since a free port would be another one after the restart.
    let mut server = Server::builder().config("[oauth]\nissuer = \"https://ai.example\"").start();
    let opaque = server.post("/v1/admin/clients", &json!({"label": "o"})).expect(201);
    let signed = server.post("/v1/admin/clients", &json!({"label": "s", "token": "jwt"})).expect(201);
    let (kept, ended) =
        ([token(&server, &opaque), token(&server, &signed)], [token(&server, &opaque), token(&server, &signed)]);
    for (text, made) in ended.iter().zip([&opaque, &signed]) {
        let form = format!(
            "token={text}&client_id={}&client_secret={}",
            made["client_id"].as_str().expect("an id"),
            made["client_secret"].as_str().expect("a secret")
        );
        let headers = [("Content-Type", "application/x-www-form-urlencoded")];
        let reply = client::request(server.http, "POST", "/oauth/revoke", "", &headers, form.as_bytes());
        assert_eq!(reply.expect("an answer").status, 200);
    }
    let check = |server: &Server| {
        let status =
            |text: &str| client::request(server.http, "GET", "/v1/models", text, &[], b"").expect("an answer").status;
        assert_eq!(kept.iter().map(|text| status(text)).collect::<Vec<_>>(), [200, 200]);
        assert_eq!(ended.iter().map(|text| status(text)).collect::<Vec<_>>(), [401, 401]);
    };
    check(&server);
    server.kill();
    server.restart();
    check(&server);
    token(&server, &opaque);
    let found = std::fs::read_dir(server.data().join("db")).expect("the store").filter_map(Result::ok).any(|entry| {
        let bytes = std::fs::read(entry.path()).unwrap_or_default();
        [b"\"pkcs8\"".as_slice(), b"\"secret\"", b"\"client\""]
            .iter()
            .any(|part| bytes.windows(part.len()).any(|window| window == *part))
    });
    assert!(!found, "keys, hashes and tokens are stored sealed");
}

#[test]
fn the_command_line_manages_clients() {
    let server = Server::start_default();
    let run = |arguments: &[&str]| {
        let output = Command::new(binary())
            .args(arguments)
            .env("MILLRACE_URL", server.url())
            .env("MILLRACE_API_KEY", &server.key)
            .output()
            .expect("the program runs");
        assert!(output.status.success(), "{arguments:?}: {}", printable(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let made = run(&["client", "add", "nightly job", "--role", "operator", "--token", "jwt", "--lifetime", "60"]);
    let (id, secret) = made.trim().split_once(' ').expect("an id and a secret");
    assert!(id.starts_with("mc-") && secret.starts_with("ms-"), "{made}");
    let list = run(&["client", "ls"]);
    assert!(list.contains(id) && list.contains("nightly job") && !list.contains(secret), "{list}");
    let rotated: Value = serde_json::from_str(&run(&["client", "rotate", id, "--keep", "5", "--json"])).expect("JSON");
    assert_ne!(rotated["client_secret"], secret);
    token(&server, &rotated);
    assert_eq!(run(&["client", "rotate", "--signing-key"]).lines().count(), 3, "a head and two keys");
    run(&["client", "rm", id]);
    assert!(!run(&["client", "ls"]).contains(id));
    assert!(run(&["reload"]).contains("applied"));
}
