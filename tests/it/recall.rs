//! What one session learns, another session of the same user can use, and nobody else.
//! The assertions look at the assembled context, not at what a small model makes of it.

use std::time::Duration;

use millrace_tests::server::chat;
use millrace_tests::{Server, client, eventually};
use serde_json::{Value, json};

/// One turn of a session of an end user.
fn turn(server: &Server, key: &str, user: &str, session: &str, text: &str) -> Value {
    let mut body = chat(text, 8);
    body["session"] = json!(session);
    if !user.is_empty() {
        body["user"] = json!(user);
    }
    server.post_as(key, "/v1/chat/completions", &body).expect(200)
}

/// The context that a message would get in a session.
pub fn context(server: &Server, key: &str, user: &str, session: &str, text: &str) -> String {
    let text: String = text
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    let path = format!("/v1/sessions/{session}/context?text={text}&user={user}");
    let reply = client::request(server.http, "GET", &path, key, &[], b"").expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.text()
}

#[test]
fn a_fact_from_one_session_reaches_another_session_of_the_same_user_only() {
    let server = Server::start_default();
    let fact = "My sister's dog is called Bartholomew and he is afraid of thunder.";
    turn(&server, &server.key, "anna", "monday", fact);
    turn(&server, &server.key, "anna", "monday", "The office printer is on the second floor.");
    turn(&server, &server.key, "anna", "tuesday", "Hello again.");

    let question = "What is the name of my sister's dog?";
    let seen = context(&server, &server.key, "anna", "tuesday", question);
    assert!(seen.contains("Bartholomew"), "the fact is recalled: {seen}");
    let fresh = context(&server, &server.key, "anna", "wednesday", question);
    assert!(fresh.contains("Bartholomew"), "also in a session that has no message yet: {fresh}");

    turn(&server, &server.key, "boris", "tuesday", "Hello.");
    let other_user = context(&server, &server.key, "boris", "tuesday", question);
    assert!(!other_user.contains("Bartholomew"), "another user sees it: {other_user}");
    let same_name = context(&server, &server.key, "boris", "monday", question);
    assert!(!same_name.contains("Bartholomew"), "the name of a session is not a key to it: {same_name}");

    let made = server
        .post(
            "/v1/admin/keys",
            &json!({"tenant": 2, "user": "anna", "label": "other tenant", "scopes": ["chat", "impersonate"]}),
        )
        .expect(201);
    let other_key = made["key"].as_str().unwrap_or_else(|| panic!("no key: {made}")).to_owned();
    turn(&server, &other_key, "anna", "tuesday", "Hello.");
    for session in ["monday", "tuesday", "wednesday"] {
        let other_tenant = context(&server, &other_key, "anna", session, question);
        assert!(!other_tenant.contains("Bartholomew"), "another tenant sees it: {other_tenant}");
    }
}

#[test]
fn memory_and_history_survive_a_crash() {
    let mut server = Server::start_default();
    turn(&server, &server.key, "carla", "first", "The code word for the archive is marzipan-seven.");
    server.kill();
    server.restart();
    let seen = context(&server, &server.key, "carla", "second", "What is the code word for the archive?");
    assert!(seen.contains("marzipan-seven"), "{seen}");
    let history = client::request(server.http, "GET", "/v1/sessions/first/messages?user=carla", &server.key, &[], b"")
        .expect("an answer");
    assert!(history.text().contains("marzipan-seven"), "{}", history.text());
}

#[test]
fn a_cut_of_old_messages_is_visible() {
    let server = Server::builder()
        .env("MILLRACE_ENGINE_CONTEXT_MAX", "512")
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "16")
        .start();
    let long = "This sentence fills the window of the model with some words. ".repeat(8);
    let mut notices = 0;
    for number in 0..8 {
        let mut body = chat(&format!("{number}. {long}"), 8);
        body["session"] = json!("long");
        let reply = server.post("/v1/chat/completions", &body).expect(200);
        notices += usize::from(reply.to_string().contains("notice"));
    }
    let history = server.get("/v1/sessions/long/messages").expect(200);
    let shown = history.to_string();
    assert!(shown.contains("notice") || notices > 0, "the window was cut without a word: {shown}");
    assert!(shown.contains("0. This sentence") || shown.contains("7. This sentence"), "{shown}");
}

#[test]
fn the_sessions_of_a_user_are_listed_newest_first() {
    let server = Server::start_default();
    for session in ["alpha", "beta", "gamma"] {
        turn(&server, &server.key, "", session, "Hello.");
    }
    let list = eventually("three sessions are listed", Duration::from_secs(10), || {
        let list = server.get("/v1/sessions").expect(200);
        (list["data"].as_array().map(Vec::len) == Some(3)).then_some(list)
    });
    let names: Vec<&str> = list["data"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["name"].as_str().or(one["id"].as_str()))
        .collect();
    assert_eq!(names, ["gamma", "beta", "alpha"], "{list}");
}

/// With `memory.extract` the model reads what was said, in the background and once. What so small a model makes of it is
/// its own; that it is listed with its message, and goes with its user, is not.
#[test]
fn what_was_said_is_read_for_statements_while_nothing_else_runs() {
    let plain = Server::start_default();
    turn(&plain, &plain.key, "anna", "monday", "I live in Paris.");
    assert_eq!(plain.metric("millrace_extract_messages_total"), None, "it is off by default");
    assert_eq!(plain.get("/v1/memory/statements?user=anna").expect(200)["data"], json!([]));

    let mut server = Server::builder().config("[memory]\nextract = \"on\"\n").start();
    turn(&server, &server.key, "anna", "monday", "I live in Paris.");
    turn(&server, &server.key, "anna", "monday", "My brother Tom plays chess.");
    let read = |server: &Server, count: f64| {
        eventually("the messages are read", Duration::from_secs(180), || {
            server.metric("millrace_extract_messages_total").filter(|read| *read >= count)
        })
    };
    assert_eq!(read(&server, 2.0), 2.0);
    assert!(server.metric("millrace_extract_tokens_total").is_some_and(|tokens| tokens >= 0.0));
    let listed = server.get("/v1/memory/statements?user=anna").expect(200);
    for statement in listed["data"].as_array().expect("a list") {
        assert!(statement["source"]["seq"].is_u64() && statement["valid_from_ms"].is_u64(), "{statement}");
        assert!(statement["relation"].as_str().is_some_and(|word| !word.is_empty()), "{statement}");
    }
    let wrong = server.get("/v1/memory/statements?as_of=yesterday");
    assert_eq!(wrong.status, 400, "{}", wrong.text());

    // After a crash only what is new is read.
    server.kill();
    server.restart();
    turn(&server, &server.key, "anna", "monday", "I like green tea.");
    assert_eq!(read(&server, 1.0), 1.0);
    server.post("/v1/admin/forget", &json!({"user": "anna"})).expect(200);
    assert_eq!(server.get("/v1/memory/statements?user=anna").expect(200)["data"], json!([]));
}
