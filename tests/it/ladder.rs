//! The ladder of admission: what a request gets instead when it cannot have what it asks for in time.

use std::path::Path;
use std::time::{Duration, Instant};

use millrace_tests::client::{self, Reply, Stream};
use millrace_tests::server::chat;
use millrace_tests::{Server, ServerBuilder, eventually, tools};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(120);

fn rungs(server: &Server, rung: &str) -> f64 {
    let text = client::request(server.metrics, "GET", "/metrics", "", &[], b"").expect("metrics").text();
    let line = format!("millrace_admissions_total{{rung=\"{rung}\"}} ");
    text.lines().find_map(|known| known.strip_prefix(&line)?.parse().ok()).unwrap_or_else(|| panic!("no {line}"))
}

fn ask(server: &Server, body: &Value, headers: &[(&str, &str)]) -> Reply {
    let mut all = vec![("Content-Type", "application/json")];
    all.extend_from_slice(headers);
    let bytes = body.to_string();
    client::request(server.http, "POST", "/v1/chat/completions", &server.key, &all, bytes.as_bytes())
        .expect("an answer")
}

fn without_length(text: &str) -> Value {
    let mut body = chat(text, 1);
    body.as_object_mut().expect("an object").remove("max_tokens");
    body["ignore_eos"] = json!(true);
    body
}

/// One place, no wait for the first token beyond a moment: whoever comes while it is taken would be late.
fn busy(builder: ServerBuilder) -> (Server, Stream) {
    let server = builder
        .env("MILLRACE_ENGINE_SEQUENCES_MAX", "1")
        .env("MILLRACE_ENGINE_FIRST_TOKEN_MAX", "500ms")
        .env("MILLRACE_LIMITS_REQUESTS_PER_MINUTE", "100000")
        .start();
    // Forecasts need measured steps, and replies are expected to be as long as those before.
    let mut usual = chat("Tell me a long story.", 600);
    usual["ignore_eos"] = json!(true);
    server.post("/v1/chat/completions", &usual).expect(200);
    let mut long = chat("Tell me a story without an end.", 3000);
    long["ignore_eos"] = json!(true);
    long["stream"] = json!(true);
    let mut stream = server.stream("/v1/chat/completions", &long);
    for _ in 0..3 {
        stream.next().expect("an event").expect("not the end");
    }
    (server, stream)
}

#[test]
fn who_would_be_late_is_refused_with_the_time_to_come_back_and_counted() {
    let (server, stream) = busy(Server::builder());
    let refused = eventually("a refusal", PATIENCE, || {
        let reply = ask(&server, &chat("Too late?", 8), &[]);
        (reply.status != 200).then_some(reply)
    });
    assert_eq!(refused.status, 429, "{}", refused.text());
    let wait: u64 = refused.header("retry-after").and_then(|value| value.parse().ok()).expect("a time");
    assert!((1..=60).contains(&wait), "{wait}");
    assert!(rungs(&server, "refused") >= 1.0 && rungs(&server, "as_asked") >= 2.0);
    assert_eq!(rungs(&server, "async"), 0.0, "nobody has asked for it");
    drop(stream);
    eventually("back to normal", PATIENCE, || (ask(&server, &chat("And now?", 8), &[]).status == 200).then_some(()));
}

#[test]
fn a_client_that_accepts_it_is_answered_later() {
    let (server, stream) = busy(Server::builder());
    let body = chat("What is a mill?", 8);
    let accepted = eventually("an asynchronous reply", PATIENCE, || {
        let reply = ask(&server, &body, &[("Prefer", "respond-async")]);
        (reply.status != 200).then_some(reply)
    });
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    assert_eq!(accepted.header("preference-applied"), Some("respond-async"));
    assert_eq!(accepted.header("millrace-degraded"), Some("async"));
    assert!(accepted.header("retry-after").is_some());
    let place = accepted.header("location").expect("an address").to_owned();
    assert_eq!(rungs(&server, "async"), 1.0);
    let pending = server.get(&place);
    assert_eq!((pending.status, pending.json()["status"].as_str()), (202, Some("in_progress")), "{}", pending.text());
    let made = server.post("/v1/admin/keys", &json!({"user": "other", "label": "other"})).expect(201);
    let other = made["key"].as_str().expect("a key");
    let foreign = client::request(server.http, "GET", &place, other, &[], b"").expect("an answer");
    assert_eq!(foreign.status, 404, "{}", foreign.text());
    drop(stream);
    let answer = eventually("the answer", PATIENCE, || {
        let reply = server.get(&place);
        (reply.status != 202).then_some(reply)
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    let later = answer.json();
    assert!(place.ends_with(later["id"].as_str().expect("an id")), "{later}");
    let at_once = ask(&server, &body, &[("Prefer", "respond-async")]);
    assert_eq!((at_once.status, at_once.header("millrace-degraded")), (200, None), "an idle server answers at once");
    assert_eq!(at_once.json()["choices"][0]["message"], later["choices"][0]["message"], "the same answer");
    assert_eq!(server.get(&place).status, 200, "it may be fetched again");
}

#[test]
fn asynchronous_replies_can_be_turned_off() {
    let (server, _stream) = busy(Server::builder().env("MILLRACE_LIMITS_ASYNC_REPLIES_MAX", "0"));
    let refused = eventually("a refusal", PATIENCE, || {
        let reply = ask(&server, &chat("Later?", 8), &[("Prefer", "respond-async")]);
        (reply.status != 200).then_some(reply)
    });
    assert_eq!(refused.status, 429, "{}", refused.text());
}

#[test]
fn who_names_no_length_gets_a_shorter_answer_that_is_complete_in_time() {
    let server = Server::builder()
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "3000")
        .env("MILLRACE_LIMITS_SHORT_REPLY_TOKENS", "8")
        .start();
    // Replies of two hundred tokens are the usual ones, and no engine here makes as many in a second.
    let mut usual = chat("Tell me a long story.", 400);
    usual["ignore_eos"] = json!(true);
    let began = Instant::now();
    server.post("/v1/chat/completions", &usual).expect(200);
    assert!(began.elapsed() > Duration::from_millis(1_100), "this test needs a slower engine: {:?}", began.elapsed());
    let short = ask(&server, &without_length("Tell me more."), &[("Prefer", "wait=1")]);
    assert_eq!(short.status, 200, "{}", short.text());
    assert_eq!(short.header("millrace-degraded"), Some("shorter"));
    assert_eq!(short.json()["usage"]["completion_tokens"], 8);
    assert!(short.text().contains("is kept to 8 tokens"), "{}", short.text());
    assert_eq!(rungs(&server, "shorter"), 1.0);
    // What was asked for by number is not cut: it is refused.
    let refused = ask(&server, &usual, &[("Prefer", "wait=1")]);
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert!(refused.text().contains("would be complete in about"), "{}", refused.text());
    let patient = ask(&server, &chat("Tell me more.", 8), &[("Prefer", "wait=300")]);
    assert_eq!((patient.status, patient.header("millrace-degraded")), (200, None));
}

fn linked_models(folder: &Path) -> String {
    let all = tools::models();
    for entry in std::fs::read_dir(&all).expect("the models").map(|entry| entry.expect("an entry")) {
        std::os::unix::fs::symlink(entry.path(), folder.join(entry.file_name())).expect("a link");
    }
    let chat = std::fs::read_dir(&all)
        .expect("the models")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|name| name.ends_with(".gguf"))
        .expect("a chat model");
    let small = folder.join("small.gguf");
    std::os::unix::fs::symlink(all.join(&chat), small).expect("a link");
    chat
}

#[test]
fn the_small_model_answers_when_the_other_would_be_late() {
    let folder = tempfile::tempdir().expect("a folder");
    let main = linked_models(folder.path());
    let builder =
        Server::builder().models(folder.path()).env("MILLRACE_MODEL", &main).env("MILLRACE_SMALL_MODEL", "small.gguf");
    let (server, stream) = busy(builder);
    let mut question = chat("What is a mill?", 8);
    let small = eventually("the small model", PATIENCE, || {
        let reply = ask(&server, &question, &[]);
        assert_eq!(reply.status, 200, "{}", reply.text());
        (reply.header("millrace-degraded").is_some()).then_some(reply)
    });
    assert_eq!(small.header("millrace-degraded"), Some("small_model"));
    assert_eq!(small.json()["model"], "small");
    assert!(rungs(&server, "small_model") >= 1.0);
    // Who names the model means it.
    question["model"] = json!(main);
    let refused = eventually("a refusal", PATIENCE, || {
        let reply = ask(&server, &question, &[]);
        (reply.status != 200).then_some(reply)
    });
    assert_eq!(refused.status, 429, "{}", refused.text());
    drop(stream);
    question["model"] = json!("default");
    eventually("the main model is back", PATIENCE, || {
        let reply = ask(&server, &question, &[]);
        (reply.status == 200 && reply.header("millrace-degraded").is_none()).then_some(())
    });
}
