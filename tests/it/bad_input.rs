//! Everything a client can send wrongly: a clear answer each time, and a server that goes on.

use std::time::Duration;

use millrace_tests::Server;
use millrace_tests::client::{self, Connection, request_bytes};
use millrace_tests::server::chat;
use millrace_tests::tools::python;
use serde_json::{Value, json};

/// Sends raw bytes and returns the status of the first answer (0: closed without one). The sending side stays
/// open: a client that ends it has left, and what was done for it alone is cancelled.
fn raw(server: &Server, bytes: &[u8]) -> (u16, String) {
    let mut connection = Connection::open(server.http).expect("a connection");
    // The server may close before everything is sent; its answer is what counts.
    let _ = connection.send(bytes);
    match connection.reply() {
        Ok(reply) => (reply.status, reply.text()),
        Err(_) => (0, String::new()),
    }
}

#[test]
fn malformed_http_is_refused_and_the_connection_is_closed() {
    let server = Server::start_default();
    let host = format!("Host: {}\r\n", server.http);
    let huge = "a".repeat(100_000);
    let many = (0..2000).map(|n| format!("X-{n}: y\r\n")).collect::<String>();
    let cases: Vec<(&str, Vec<u8>, &[u16])> = vec![
        ("not HTTP", b"hello there\r\n\r\n".to_vec(), &[400]),
        ("binary", vec![0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc], &[400, 0]),
        ("no version", format!("GET /healthz\r\n{host}\r\n").into(), &[400]),
        ("half an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(), &[400, 505]),
        ("HTTP/3.7", format!("GET /healthz HTTP/3.7\r\n{host}\r\n").into(), &[400, 505]),
        ("no host", b"GET /healthz HTTP/1.1\r\n\r\n".to_vec(), &[400]),
        ("two hosts", format!("GET /healthz HTTP/1.1\r\n{host}{host}\r\n").into(), &[400]),
        ("space before the colon", format!("GET /healthz HTTP/1.1\r\n{host}X-A : b\r\n\r\n").into(), &[400]),
        ("folded header", format!("GET /healthz HTTP/1.1\r\n{host}X-A: b\r\n c\r\n\r\n").into(), &[400]),
        ("a NUL in a header", format!("GET /healthz HTTP/1.1\r\n{host}X-A: b\0c\r\n\r\n").into(), &[400]),
        ("a bare CR in a header", format!("GET /healthz HTTP/1.1\r\n{host}X-A: b\rc\r\n\r\n").into(), &[400]),
        ("a space in the path", format!("GET /health z HTTP/1.1\r\n{host}\r\n").into(), &[400, 505]),
        ("length and chunked", format!("POST /v1/completions HTTP/1.1\r\n{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").into(), &[400]),
        ("two lengths", format!("POST /v1/completions HTTP/1.1\r\n{host}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}} ").into(), &[400]),
        ("length +5", format!("POST /v1/completions HTTP/1.1\r\n{host}Content-Length: +5\r\n\r\n12345").into(), &[400]),
        ("length -1", format!("POST /v1/completions HTTP/1.1\r\n{host}Content-Length: -1\r\n\r\n").into(), &[400]),
        ("length of 30 digits", format!("POST /v1/completions HTTP/1.1\r\n{host}Content-Length: 999999999999999999999999999999\r\n\r\n").into(), &[400, 413]),
        ("unknown transfer coding", format!("POST /v1/completions HTTP/1.1\r\n{host}Transfer-Encoding: xchunked\r\n\r\n").into(), &[400, 501]),
        ("chunked twice", format!("POST /v1/completions HTTP/1.1\r\n{host}Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n").into(), &[400, 501]),
        ("chunked in HTTP/1.0", format!("POST /v1/completions HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n").into(), &[400]),
        ("a chunk size that is no number", chunked(&server, "zz\r\nhello\r\n0\r\n\r\n"), &[400]),
        ("a chunk size that overflows", chunked(&server, "ffffffffffffffffff\r\nhello\r\n0\r\n\r\n"), &[400, 413]),
        ("a chunk without its end", chunked(&server, "5\r\nhelloX\r\n0\r\n\r\n"), &[400]),
        ("a header line of 100 kB", format!("GET /healthz HTTP/1.1\r\n{host}X-A: {huge}\r\n\r\n").into(), &[431]),
        ("a path of 100 kB", format!("GET /{huge} HTTP/1.1\r\n{host}\r\n").into(), &[414, 431]),
        ("2000 headers", format!("GET /healthz HTTP/1.1\r\n{host}{many}\r\n").into(), &[431]),
        ("a body of 1 GiB announced", format!("POST /v1/chat/completions HTTP/1.1\r\n{host}Authorization: Bearer {}\r\nContent-Length: 1073741824\r\n\r\n", server.key).into(), &[413]),
    ];
    for (what, bytes, allowed) in cases {
        let (status, text) = raw(&server, &bytes);
        assert!(allowed.contains(&status), "{what}: {status} instead of one of {allowed:?}: {text}");
        if status != 0 {
            assert!(!text.contains("panicked"), "{what}: {text}");
        }
    }
    assert_eq!(server.get("/healthz").status, 200, "the server goes on");
}

/// A request with a valid head and this chunked body.
fn chunked(server: &Server, body: &str) -> Vec<u8> {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        server.http, server.key
    );
    (head + body).into_bytes()
}

#[test]
fn a_refused_request_does_not_smuggle_a_second_one() {
    let server = Server::start_default();
    let mut connection = Connection::open(server.http).expect("a connection");
    let inner = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    let bytes = format!(
        "POST /v1/models HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
        server.http,
        inner.len() + 5
    );
    connection.send(bytes.as_bytes()).expect("sent");
    assert_eq!(connection.reply().expect("an answer").status, 400);
    assert!(connection.closed(), "nothing after the refused request is answered");
}

#[test]
fn a_chunked_request_is_read_as_any_other() {
    let server = Server::start_default();
    let body = chat("Say hello.", 4).to_string();
    let (one, two) = body.split_at(20);
    let bytes = chunked(
        &server,
        &format!("{:x}\r\n{one}\r\n{:X};ext=1\r\n{two}\r\n0\r\nTrailer: x\r\n\r\n", one.len(), two.len()),
    );
    let (status, text) = raw(&server, &bytes);
    assert!(status == 200 || (status == 400 && text.contains("chunk")), "{status}: {text}");
    let bytes = chunked(&server, &format!("{:x}\r\n{one}\r\n{:X}\r\n{two}\r\n0\r\n\r\n", one.len(), two.len()));
    let (status, text) = raw(&server, &bytes);
    assert_eq!(status, 200, "{text}");
}

/// A refused API request: status, and the parameter that the error names.
struct Refused {
    what: &'static str,
    body: Vec<u8>,
    status: u16,
    param: Option<&'static str>,
}

fn refused(what: &'static str, change: Value, status: u16, param: Option<&'static str>) -> Refused {
    let mut body = chat("hello", 4);
    for (name, value) in change.as_object().expect("an object") {
        body[name] = value.clone();
    }
    Refused { what, body: body.to_string().into_bytes(), status, param }
}

fn text(what: &'static str, body: &str, status: u16, param: Option<&'static str>) -> Refused {
    Refused { what, body: body.as_bytes().to_vec(), status, param }
}

/// Checks the shape that every API error has: what, why, next step.
fn check_error(what: &str, reply: &client::Reply, status: u16, param: Option<&str>) {
    assert_eq!(reply.status, status, "{what}: {}", reply.text());
    let error = &reply.json()["error"];
    for field in ["message", "type", "code", "next_step"] {
        assert!(error[field].as_str().is_some_and(|text| !text.is_empty()), "{what}: no {field}: {error}");
    }
    assert!(error["retryable"].is_boolean(), "{what}: {error}");
    if let Some(param) = param {
        assert!(
            error["param"].as_str().is_some_and(|found| found.starts_with(param)),
            "{what}: names {} instead of {param}: {error}",
            error["param"]
        );
    }
    let shown = error.to_string();
    for inside in ["panicked", ".rs:", "0x7f", "RocksDB", "src/"] {
        assert!(!shown.contains(inside), "{what}: the error shows the inside of the server: {shown}");
    }
}

#[test]
fn a_bad_chat_request_is_refused_with_the_reason() {
    let server = Server::start_default();
    let nan =
        |name: &str| format!(r#"{{"model":"default","messages":[{{"role":"user","content":"x"}}],"{name}":NaN}}"#);
    let long = "word ".repeat(9000);
    let deep = "[".repeat(200_000);
    let cases = vec![
        text("nothing", "", 400, None),
        text("not JSON", "hello", 400, None),
        text("half a JSON", r#"{"model": "default", "messages": ["#, 400, None),
        text("JSON of another shape", "[1,2,3]", 400, None),
        text("text after the JSON", r#"{"model":"default","messages":[{"role":"user","content":"x"}]} x"#, 400, None),
        text("very deep JSON", &deep, 400, None),
        Refused {
            what: "broken UTF-8",
            body: b"{\"model\":\"default\",\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}".to_vec(),
            status: 400,
            param: None,
        },
        text(
            "half a surrogate pair",
            r#"{"model":"default","messages":[{"role":"user","content":"\ud800"}]}"#,
            400,
            None,
        ),
        text("no messages", r#"{"model":"default"}"#, 400, Some("messages")),
        refused("empty messages", json!({"messages": []}), 400, Some("messages")),
        refused("an unknown role", json!({"messages": [{"role": "robot", "content": "x"}]}), 400, Some("messages")),
        refused(
            "content that is a number",
            json!({"messages": [{"role": "user", "content": 5}]}),
            400,
            Some("messages"),
        ),
        refused("an unknown model", json!({"model": "no-such-model"}), 404, Some("model")),
        refused(
            "a context that is too long",
            json!({"messages": [{"role": "user", "content": long}]}),
            400,
            Some("messages"),
        ),
        text("NaN", &nan("temperature"), 400, None),
        refused("temperature -1", json!({"temperature": -1}), 400, Some("temperature")),
        refused("temperature 1e308", json!({"temperature": 1e308}), 400, Some("temperature")),
        refused("temperature as text", json!({"temperature": "hot"}), 400, Some("temperature")),
        refused("top_p 0", json!({"top_p": -0.01}), 400, Some("top_p")),
        refused("top_p 2", json!({"top_p": 2}), 400, Some("top_p")),
        refused("top_k -1", json!({"top_k": -1}), 400, Some("top_k")),
        refused("top_k of 20 digits", json!({"top_k": 99_999_999_999_999_999_999_f64}), 400, Some("top_k")),
        refused("min_p 1.5", json!({"min_p": 1.5}), 400, Some("min_p")),
        refused("repetition_penalty -1", json!({"repetition_penalty": -1}), 400, Some("repetition_penalty")),
        refused("presence_penalty 3", json!({"presence_penalty": 3}), 400, Some("presence_penalty")),
        refused("frequency_penalty -3", json!({"frequency_penalty": -3}), 400, Some("frequency_penalty")),
        refused("max_tokens -5", json!({"max_tokens": -5}), 400, Some("max_tokens")),
        refused("max_tokens 0", json!({"max_tokens": 0}), 400, Some("max_tokens")),
        refused("max_tokens 1.5", json!({"max_tokens": 1.5}), 400, Some("max_tokens")),
        refused("max_tokens 1e30", json!({"max_tokens": 1e30}), 400, Some("max_tokens")),
        refused("n 33", json!({"n": 33}), 400, Some("n")),
        refused("100 stop strings", json!({"stop": vec!["x"; 100]}), 400, Some("stop")),
        refused("a stop that is a number", json!({"stop": 5}), 400, Some("stop")),
        refused("top_logprobs without logprobs", json!({"top_logprobs": 3}), 400, Some("top_logprobs")),
        refused("top_logprobs 1000", json!({"logprobs": true, "top_logprobs": 1000}), 400, Some("top_logprobs")),
        refused(
            "stream_options without stream",
            json!({"stream_options": {"include_usage": true}}),
            400,
            Some("stream_options"),
        ),
        refused("an empty session name", json!({"session": ""}), 400, Some("session")),
        refused("a session name of 10 kB", json!({"session": "s".repeat(10_000)}), 400, Some("session")),
    ];
    for case in cases {
        let headers = [("Content-Type", "application/json")];
        let reply = client::request(server.http, "POST", "/v1/chat/completions", &server.key, &headers, &case.body)
            .unwrap_or_else(|error| panic!("{}: {error:#}", case.what));
        check_error(case.what, &reply, case.status, case.param);
    }
    // The error of a context that is too long has the numbers in it.
    let reply = server.post("/v1/chat/completions", &chat(&"word ".repeat(9000), 4));
    let error = &reply.json()["error"];
    assert_eq!(error["code"], "context_length_exceeded");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("8192") && message.contains("90"), "{message}");
    server.ask("Still there?");
}

#[test]
fn other_routes_refuse_bad_input_as_clearly() {
    let server = Server::start_default();
    for (what, path, body, status, param) in [
        ("no prompt", "/v1/completions", json!({"model": "default"}), 400, "prompt"),
        (
            "best_of",
            "/v1/completions",
            json!({"model": "default", "prompt": "x", "n": 3, "best_of": 5}),
            400,
            "best_of",
        ),
        ("no input", "/v1/embeddings", json!({"model": "default"}), 400, "input"),
        ("empty input", "/v1/embeddings", json!({"model": "default", "input": ""}), 400, "input"),
        ("10 000 inputs", "/v1/embeddings", json!({"model": "default", "input": vec!["x"; 10_000]}), 400, "input"),
        (
            "other encoding",
            "/v1/embeddings",
            json!({"model": "default", "input": "x", "encoding_format": "hex"}),
            400,
            "encoding_format",
        ),
        (
            "dimensions 0",
            "/v1/embeddings",
            json!({"model": "default", "input": "x", "dimensions": 0}),
            400,
            "dimensions",
        ),
    ] {
        let reply = server.post(path, &body);
        check_error(what, &reply, status, Some(param));
    }
    for (what, path, status) in [
        ("limit of a list", "/v1/sessions/x/messages?limit=-1", 400),
        ("limit as text", "/v1/sessions/x/messages?limit=many", 400),
        ("broken escape", "/v1/sessions/%zz/messages", 400),
        ("traversal", "/console/../../etc/passwd", 404),
        ("escaped traversal", "/console/%2e%2e/%2e%2e/etc/passwd", 404),
        ("a missing asset", "/console/no-such-file.js", 404),
        ("no such model", "/v1/models/no-such", 404),
    ] {
        let reply = server.get(path);
        assert!(
            reply.status == status || (path.starts_with("/console") && reply.status == 400),
            "{what}: {} {}",
            reply.status,
            reply.text()
        );
    }
}

#[test]
fn keys_are_needed_everywhere_but_for_health_and_the_page() {
    let server = Server::start_default();
    for (method, path) in [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/x"),
        ("GET", "/v1/sessions"),
        ("GET", "/v1/sessions/x/messages"),
        ("GET", "/v1/sessions/x/context?text=a"),
        ("POST", "/v1/admin/keys"),
        ("GET", "/v1/admin/keys"),
        ("GET", "/v1/admin/outbox"),
        ("GET", "/v1/admin/status"),
    ] {
        for key in ["", "mr-wrong", "mr-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
            let reply = client::request(server.http, method, path, key, &[], b"").expect("an answer");
            check_error(&format!("{method} {path} with {key:?}"), &reply, 401, None);
            assert!(
                reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")),
                "{method} {path}"
            );
        }
    }
    // A key that may chat may not administer.
    let made =
        server.post("/v1/admin/keys", &json!({"user": "guest", "label": "chat only", "scopes": ["chat"]})).expect(201);
    let key = made["key"].as_str().expect("a key");
    assert!(key.starts_with("mr-") && key.len() == 46, "{key}");
    assert_eq!(server.post_as(key, "/v1/chat/completions", &chat("hello", 2)).status, 200);
    for (method, path) in [
        ("GET", "/v1/admin/keys"),
        ("GET", "/v1/admin/outbox"),
        ("GET", "/v1/admin/status"),
        ("POST", "/v1/admin/keys"),
    ] {
        let reply = client::request(server.http, method, path, key, &[("Content-Type", "application/json")], b"{}")
            .expect("an answer");
        check_error(&format!("{method} {path} with a chat key"), &reply, 403, None);
    }
    let list = server.get("/v1/admin/keys").expect(200).to_string();
    assert!(!list.contains(key) && !list.contains(&server.key), "a list never shows a key: {list}");
    // A connection that sends the same head again and again is recognised by it, and not longer than its key holds.
    let mut kept = client::Connection::open(server.http).expect("a connection");
    let same = client::request_bytes(server.http, "GET", "/v1/models", key, &[], b"");
    let mut status = || {
        kept.send(&same).expect("sent");
        kept.reply().expect("an answer").status
    };
    assert_eq!([status(), status(), status()], [200; 3]);
    let id = made["id"].as_str().unwrap_or_else(|| panic!("{made}"));
    let reply = client::request(server.http, "DELETE", &format!("/v1/admin/keys?id={id}"), &server.key, &[], b"")
        .expect("an answer");
    assert!(reply.status < 300, "{}", reply.text());
    assert_eq!(
        server.post_as(key, "/v1/chat/completions", &chat("hello", 2)).status,
        401,
        "a revoked key is dead at once"
    );
    assert_eq!([status(), status()], [401; 2], "also where it was recognised before");
}

#[test]
fn a_slow_or_silent_client_is_closed_and_nobody_else_waits() {
    let server = Server::builder().env("MILLRACE_LIMITS_IDLE_TIMEOUT", "2s").start();
    let mut silent: Vec<Connection> = (0..50).map(|_| Connection::open(server.http).expect("a connection")).collect();
    for (number, connection) in silent.iter_mut().enumerate() {
        let half = match number % 3 {
            0 => "",
            1 => "GET /healthz HT",
            _ => "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        };
        connection.send(half.as_bytes()).expect("sent");
    }
    server.ask("Does anybody else get an answer?");
    for connection in &mut silent {
        connection.patience(Duration::from_secs(30)).expect("set");
        // An answer such as 408 may come first; the end of the connection must come.
        let _ = connection.reply();
        assert!(connection.closed(), "a silent connection stays open");
    }
}

#[test]
fn requests_cut_at_every_byte_do_no_harm() {
    let server = Server::start_default();
    let body = chat("hello", 1).to_string();
    let bytes = request_bytes(
        server.http,
        "POST",
        "/v1/chat/completions",
        &server.key,
        &[("Content-Type", "application/json")],
        body.as_bytes(),
    );
    for end in (0..bytes.len()).step_by(7) {
        let mut connection = Connection::open(server.http).expect("a connection");
        connection.send(&bytes[..end]).expect("sent");
    }
    server.ask("Still there?");
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn what_two_readers_may_read_differently_is_refused() {
    let server = Server::start_default();
    println!("{}", python("http1_corpus.py", &[&server.http.to_string(), &server.key]));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}
