//! Both network back ends, and a machine on which only one of them is allowed.

use millrace_tests::server::chat;
use millrace_tests::tools::{python, python_script};
use millrace_tests::{Server, client};
use serde_json::json;

/// What must work whatever carries the bytes.
fn serves(server: &Server, backend: &str) {
    let metrics = client::request(server.metrics, "GET", "/metrics", "", &[], b"").expect("metrics").text();
    assert!(metrics.contains(&format!("io=\"{backend}")), "{backend}: {metrics}");
    assert_eq!(server.get("/healthz").status, 200);
    server.ask("Say hello.");
    let mut body = chat("Count to five.", 8);
    body["stream"] = json!(true);
    let events = server.stream("/v1/chat/completions", &body).finish().expect("the stream ends");
    assert!(events.len() > 2, "{events:?}");
    assert_eq!(server.post("/v1/chat/completions", &json!({})).status, 400);
    assert_eq!(client::request(server.http, "GET", "/v1/models", "", &[], b"").expect("an answer").status, 401);
    let checks = [
        "a_wrong_key_is_refused",
        "closing_is_answered",
        "broken_utf8_closes_with_1007",
        "a_message_that_is_too_large_closes_with_1009",
    ];
    let address = server.http.to_string();
    println!("{}", python("ws_chat.py", &[&[address.as_str(), &server.key], &checks[..]].concat()));
    println!("{}", python("http2_abuse.py", &[&server.http.to_string(), &server.key]));
}

#[test]
fn epoll_serves_what_io_uring_serves() {
    let mut server = Server::builder().arg("--io").arg("epoll").start();
    serves(&server, "epoll");
    server.signal("TERM");
    assert!(server.wait(std::time::Duration::from_secs(30)).success());
}

#[test]
fn io_uring_serves_or_is_refused_with_the_reason() {
    // The machine of this test may itself refuse it.
    let auto = Server::start_default();
    let metrics = client::request(auto.metrics, "GET", "/metrics", "", &[], b"").expect("metrics").text();
    if metrics.contains("io=\"io_uring") {
        let server = Server::builder().arg("--io").arg("uring").start();
        serves(&server, "io_uring");
    } else {
        let (status, text) = Server::builder().arg("--io").arg("uring").refuse();
        assert!(!status.success() && text.contains("io_uring"), "{text}");
    }
}

#[test]
fn under_a_filter_that_refuses_io_uring_the_server_falls_back() {
    let (interpreter, script) = python_script("without_io_uring.py");
    let words = [interpreter.to_str().expect("a path"), script.to_str().expect("a path")];
    let server = Server::builder().launcher(&words).start();
    serves(&server, "epoll");
    let (status, text) = Server::builder().launcher(&words).arg("--io").arg("uring").refuse();
    assert!(!status.success() && text.contains("io_uring"), "whoever insists on it is told: {text}");
}
