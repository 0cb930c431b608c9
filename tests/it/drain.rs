//! SIGTERM under load: readiness fails first, running answers end properly, nothing accepted is lost.

use std::time::{Duration, Instant};

use millrace_tests::client::{self, Stream};
use millrace_tests::server::chat;
use millrace_tests::{Platform, Server, eventually};
use serde_json::json;

use crate::channels::{outbox, tell_telegram, update, with_channels};

fn readiness(server: &Server) -> Option<u16> {
    client::request(server.metrics, "GET", "/readyz", "", &[], b"").ok().map(|reply| reply.status)
}

/// Streams that have sent their first piece.
fn running_streams(server: &Server, count: usize, max_tokens: u32) -> Vec<Stream> {
    (0..count)
        .map(|number| {
            let mut body = chat(&format!("Tell a story about the number {number}."), max_tokens);
            body["stream"] = json!(true);
            body["ignore_eos"] = json!(true);
            let mut stream = server.stream("/v1/chat/completions", &body);
            stream.next().expect("a first event");
            stream
        })
        .collect()
}

#[test]
fn drain_lets_running_streams_finish() {
    let mut server = Server::builder().env("MILLRACE_DRAIN_TIMEOUT", "60s").start();
    let mut idle = client::Connection::open(server.http).expect("a connection");
    idle.send(&client::request_bytes(server.http, "GET", "/healthz", "", &[], b"")).expect("sent");
    assert_eq!(idle.reply().expect("an answer").status, 200);
    let streams = running_streams(&server, 6, 48);

    server.signal("TERM");
    let seen = eventually("readiness fails", Duration::from_secs(5), || match readiness(&server) {
        Some(200) => None,
        other => Some(other),
    });
    assert_eq!(seen, Some(503), "readiness answers 503 while the streams still run");

    for (number, stream) in streams.into_iter().enumerate() {
        let events = stream.finish().unwrap_or_else(|error| panic!("stream {number} was cut: {error:#}"));
        let reason = events.iter().rev().find_map(|event| event["choices"][0]["finish_reason"].as_str());
        assert_eq!(reason, Some("length"), "stream {number} got all its tokens");
    }
    assert!(idle.closed(), "an idle connection is closed");
    let status = server.wait(Duration::from_secs(30));
    assert!(status.success(), "{status}: {}", server.log());
}

#[test]
fn drain_ends_what_takes_too_long_with_a_proper_end() {
    let mut server = Server::builder().env("MILLRACE_DRAIN_TIMEOUT", "1s").start();
    let streams = running_streams(&server, 4, 4000);
    let began = Instant::now();
    server.signal("TERM");
    for (number, stream) in streams.into_iter().enumerate() {
        let events = stream.finish().unwrap_or_else(|error| panic!("stream {number} was cut: {error:#}"));
        let last = events
            .iter()
            .rev()
            .find(|event| event["error"].is_object() || event["choices"][0]["finish_reason"].is_string());
        assert!(last.is_some(), "stream {number} says why it ended: {:?}", events.last());
    }
    let status = server.wait(Duration::from_secs(15));
    assert!(status.success(), "{status}: {}", server.log());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn drain_keeps_accepted_channel_messages_for_the_next_start() {
    let (telegram, webhook) = (Platform::telegram(), Platform::webhook());
    let mut server = with_channels(&telegram, &webhook).env("MILLRACE_DRAIN_TIMEOUT", "1s").start();
    for number in 0..12 {
        assert_eq!(
            tell_telegram(&server, &update(number + 1, 500 + number, "Tell me something.")).expect("an answer").status,
            200
        );
    }
    server.signal("TERM");
    let status = server.wait(Duration::from_secs(20));
    assert!(status.success(), "{status}: {}", server.log());
    server.restart();
    telegram.wait("all twelve replies", 12, Duration::from_secs(120), |_| true);
    eventually("the outbox is empty", Duration::from_secs(30), || outbox(&server, "pending").is_empty().then_some(()));
    let mut chats: Vec<String> = telegram.seen().iter().map(|sent| sent.json()["chat_id"].to_string()).collect();
    chats.sort();
    let all = chats.len();
    chats.dedup();
    assert_eq!((all, chats.len()), (12, 12), "each chat has one reply");
}

#[test]
fn drain_without_load_is_quick() {
    let mut server = Server::start_default();
    let began = Instant::now();
    server.signal("TERM");
    let status = server.wait(Duration::from_secs(10));
    assert!(status.success(), "{status}: {}", server.log());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn drain_also_answers_to_an_interrupt_from_the_terminal() {
    let mut server = Server::start_default();
    server.signal("INT");
    let status = server.wait(Duration::from_secs(10));
    assert!(status.success(), "{status}: {}", server.log());
}
