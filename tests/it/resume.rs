//! Replies that outlive their connections, and those that must not.

use std::time::{Duration, Instant};

use millrace_tests::client::Stream;
use millrace_tests::server::chat;
use millrace_tests::tools::python;
use millrace_tests::{Server, ServerBuilder, eventually};
use serde_json::{Value, json};

const RUNNING: &str = "vllm:num_requests_running";

fn other_key(server: &Server) -> String {
    let made = server.post("/v1/admin/keys", &json!({"user": "other", "label": "other", "role": "user"})).expect(201);
    made["key"].as_str().expect("a key").to_owned()
}

fn resumes(builder: ServerBuilder) {
    // Breaking connections early makes many of them; replies are long enough to be broken several times, and no longer.
    let server = builder
        .env("MILLRACE_LIMITS_REQUESTS_PER_MINUTE", "100000")
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "128")
        .start();
    let other = other_key(&server);
    println!("{}", python("resume.py", &[&server.http.to_string(), &server.key, &other]));
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn broken_connections_resume_on_io_uring_where_there_is_one() {
    resumes(Server::builder().workers(3));
}

#[test]
fn broken_connections_resume_on_epoll() {
    resumes(Server::builder().workers(3).arg("--io").arg("epoll"));
}

fn endless(resume: bool) -> Value {
    let mut body = chat("Tell me a story without an end.", 4000);
    body["ignore_eos"] = json!(true);
    body["stream"] = json!(true);
    body["stream_options"] = json!({"resume": resume});
    body
}

/// Begins a stream, reads some of it and goes; returns the completion's id.
fn begin_and_leave(server: &Server, body: &Value) -> String {
    let mut stream = Stream::open(server.http, "/v1/chat/completions", &server.key, body).expect("a stream");
    let first = stream.next().expect("an event").expect("not the end");
    stream.next().expect("an event").expect("not the end");
    let event: Value = serde_json::from_str(&first).expect("JSON");
    event["id"].as_str().expect("an id").to_owned()
}

#[test]
fn without_its_client_a_reply_goes_on_for_the_grace_time_and_no_longer() {
    let server = Server::builder().env("MILLRACE_RESUME_GRACE", "3s").start();
    let left = Instant::now();
    let name = begin_and_leave(&server, &endless(true));
    let until = eventually("the work ends", Duration::from_secs(30), || {
        (server.metric(RUNNING) == Some(0.0)).then(|| left.elapsed())
    });
    assert!(until >= Duration::from_secs(3), "it was waited for: {until:?}");
    assert_eq!(server.get(&format!("/v1/chat/completions/{name}")).status, 404);
    // Who did not ask for it is not waited for.
    begin_and_leave(&server, &endless(false));
    let left = Instant::now();
    eventually("the work ends at once", Duration::from_millis(2_500), || {
        (server.metric(RUNNING) == Some(0.0)).then_some(())
    });
    println!("ended {:?} after its client left", left.elapsed());
}

#[test]
fn a_tenant_keeps_as_many_replies_as_configured() {
    let server = Server::builder().env("MILLRACE_RESUME_GRACE", "60s").env("MILLRACE_RESUME_REPLIES_MAX", "2").start();
    let leave = || {
        let name = begin_and_leave(&server, &endless(true));
        // One that is still read would not be taken.
        eventually("the server notices", Duration::from_secs(30), || {
            (server.metric("millrace_streams_open") == Some(0.0)).then_some(())
        });
        name
    };
    let names: Vec<String> = (0..3).map(|_| leave()).collect();
    eventually("the oldest is given up", Duration::from_secs(30), || {
        (server.metric(RUNNING) == Some(2.0)).then_some(())
    });
    assert_eq!(server.get(&format!("/v1/chat/completions/{}", names[0])).status, 404);
}

#[test]
fn what_was_forgotten_is_said_and_a_drain_waits_for_nobody() {
    let mut server =
        Server::builder().env("MILLRACE_RESUME_GRACE", "60s").env("MILLRACE_RESUME_TOKENS_MAX", "16").start();
    let name = begin_and_leave(&server, &endless(true));
    let path = format!("/v1/chat/completions/{name}?starting_after=1");
    let refused = eventually("its beginning is forgotten", Duration::from_secs(60), || {
        (server.metric("vllm:generation_tokens_total").unwrap_or(0.0) >= 64.0).then(|| server.get(&path))
    });
    assert_eq!(refused.status, 409, "{}", refused.text());
    assert_eq!(refused.json()["error"]["code"], "events_forgotten");
    let began = Instant::now();
    server.signal("TERM");
    assert!(server.wait(Duration::from_secs(10)).success());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
