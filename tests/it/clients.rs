//! Clients that were not written here: the official OpenAI client, curl, `websockets`.

use std::process::Command;

use millrace_tests::server::chat;
use millrace_tests::tools::{printable, python};
use millrace_tests::{Server, eventually};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn the_official_openai_client_works() {
    let server = Server::start_default();
    println!("{}", python("openai_client.py", &[&server.url(), &server.key]));
    // The last promise of the script is that leaving a stream early frees the engine.
    eventually("no request runs after the clients left", Duration::from_secs(30), || {
        (server.metric("vllm:num_requests_running") == Some(0.0)).then_some(())
    });
}

#[test]
fn the_websockets_library_works() {
    let server = Server::start_default();
    println!("{}", python("ws_chat.py", &[&server.http.to_string(), &server.key]));
}

/// Runs curl; returns the status code and what it printed.
fn curl(arguments: &[&str]) -> (u16, String) {
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "120", "--write-out", "\n%{http_code}"])
        .args(arguments)
        .output()
        .expect("curl runs");
    assert!(output.status.success(), "curl {arguments:?}: {}", printable(&output));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let (body, status) = text.rsplit_once('\n').expect("the status is the last line");
    (status.parse().expect("a status code"), body.to_owned())
}

#[test]
fn curl_gets_answers_streams_and_clear_errors() {
    let server = Server::start_default();
    let url = server.url();
    let key = format!("Authorization: Bearer {}", server.key);
    let json_type = "Content-Type: application/json";

    assert_eq!(curl(&[&format!("{url}/healthz")]).0, 200);
    assert_eq!(curl(&[&format!("{url}/readyz")]).0, 200);

    let (status, page) = curl(&[&url]);
    assert_eq!(status, 200);
    assert!(page.contains("<html") && page.contains("<script"), "the chat page: {page}");

    let (status, models) = curl(&["-H", &key, &format!("{url}/v1/models")]);
    assert_eq!(status, 200, "{models}");
    let models: Value = serde_json::from_str(&models).expect("JSON");
    assert_eq!(models["object"], "list");

    let body = chat("Say hello.", 8).to_string();
    let (status, reply) = curl(&["-H", &key, "-H", json_type, "-d", &body, &format!("{url}/v1/chat/completions")]);
    assert_eq!(status, 200, "{reply}");
    let reply: Value = serde_json::from_str(&reply).expect("JSON");
    assert!(reply["choices"][0]["message"]["content"].as_str().is_some_and(|text| !text.is_empty()), "{reply}");

    let mut body = chat("Say hello.", 8);
    body["stream"] = json!(true);
    let (status, stream) =
        curl(&["-N", "-H", &key, "-H", json_type, "-d", &body.to_string(), &format!("{url}/v1/chat/completions")]);
    assert_eq!(status, 200, "{stream}");
    assert!(stream.starts_with("data: {"), "{stream}");
    assert!(stream.trim_end().ends_with("data: [DONE]"), "{stream}");

    // HTTP/1.0 and HEAD, which scripts and load balancers still use.
    assert_eq!(curl(&["--http1.0", &format!("{url}/healthz")]).0, 200);
    assert_eq!(curl(&["--head", &format!("{url}/healthz")]).0, 200);

    // A large body makes curl ask first (Expect: 100-continue).
    let long =
        json!({"model": "default", "max_tokens": 2, "messages": [{"role": "user", "content": "word ".repeat(500)}]})
            .to_string();
    let (status, reply) = curl(&[
        "-H",
        &key,
        "-H",
        json_type,
        "-H",
        "Expect: 100-continue",
        "-d",
        &long,
        &format!("{url}/v1/chat/completions"),
    ]);
    assert_eq!(status, 200, "{reply}");

    for (what, arguments, wanted) in [
        ("no key", vec![format!("{url}/v1/models")], 401),
        ("unknown route", vec!["-H".into(), key.clone(), format!("{url}/v1/nothing")], 404),
        ("wrong method", vec!["-H".into(), key.clone(), "-X".into(), "DELETE".into(), format!("{url}/v1/models")], 405),
        ("key in the URL", vec![format!("{url}/v1/models?api_key={}", server.key)], 401),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (status, body) = curl(&arguments);
        assert_eq!(status, wanted, "{what}: {body}");
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{what}: {error}: {body}"));
        assert!(body["error"]["message"].is_string() && body["error"]["next_step"].is_string(), "{what}: {body}");
    }
}

#[test]
fn a_keep_alive_connection_answers_pipelined_requests_in_order() {
    let server = Server::start_default();
    let mut connection = millrace_tests::client::Connection::open(server.http).expect("a connection");
    let mut bytes = Vec::new();
    for path in ["/healthz", "/v1/nothing", "/healthz", "/v1/models"] {
        bytes.extend(millrace_tests::client::request_bytes(server.http, "GET", path, &server.key, &[], b""));
    }
    connection.send(&bytes).expect("sent");
    let statuses: Vec<u16> = (0..4).map(|_| connection.reply().expect("an answer").status).collect();
    assert_eq!(statuses, [200, 404, 200, 200]);
}

#[test]
fn the_autobahn_cases_end_as_they_must() {
    let server = Server::start_default();
    println!("{}", python("ws_autobahn.py", &[&server.http.to_string(), &server.key]));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
