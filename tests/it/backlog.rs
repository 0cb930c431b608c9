//! More messages than the engine can answer at once: all are acknowledged at once, wait in the inbox, and are answered
//! from there one after the other, by the next process when this one dies.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use millrace_tests::client::ANSWER_WITHIN;
use millrace_tests::{Platform, Server, eventually};

use crate::channels::{message, outbox, tell_webhook, with_channels};

const CHATS: u64 = 20;
const MESSAGES: u64 = 6;
/// All messages of all chats are acknowledged in this time, whatever the engine does.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(30);

#[test]
fn messages_beyond_the_turns_at_work_wait_on_disk_and_outlive_the_process() {
    let (telegram, webhook) = (Platform::telegram(), Platform::webhook());
    // One sequence at a time, and many tokens for each reply: at the kill most messages wait.
    let settings = with_channels(&telegram, &webhook)
        .workers(2)
        .env("MILLRACE_ENGINE_SEQUENCES_MAX", "1")
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "24");
    let mut server = settings.start();
    let began = Instant::now();
    for number in 0..MESSAGES {
        for chat in 0..CHATS {
            let (id, body) = event(chat, number);
            assert_eq!(tell_webhook(&server, &id, &body).expect("an answer").status, 200, "event {id}");
        }
    }
    assert!(began.elapsed() < ACCEPTED_WITHIN, "acknowledging does not wait for the engine: {:?}", began.elapsed());
    assert!(waiting(&server) > 0, "the engine is slower than the senders");
    server.kill();
    server.reconfigure(|builder| builder.env("MILLRACE_ENGINE_SEQUENCES_MAX", "16"));
    server.restart();
    // The platform repeats what it may not have seen acknowledged.
    let (id, body) = event(0, MESSAGES - 1);
    assert_eq!(tell_webhook(&server, &id, &body).expect("an answer").status, 200);
    eventually("every message is answered", ANSWER_WITHIN * 4, || {
        let open = ["pending", "sending"].iter().map(|state| outbox(&server, state).len()).sum::<usize>();
        (waiting(&server) == 0 && open == 0).then_some(())
    });
    let unknown = outbox(&server, "unknown").len();
    let mut replies: HashMap<String, HashSet<String>> = HashMap::new();
    for seen in webhook.seen() {
        let chat = seen.json()["data"]["conversation"].as_str().unwrap_or_default().to_owned();
        replies.entry(chat).or_default().insert(seen.header("webhook-id").to_owned());
    }
    let told: usize = replies.values().map(HashSet::len).sum();
    assert_eq!(replies.len() as u64, CHATS);
    assert!(replies.values().all(|ids| ids.len() as u64 <= MESSAGES), "no message has two replies: {replies:?}");
    assert!(told + unknown >= (CHATS * MESSAGES) as usize, "no message is without one: {told} told, {unknown} unknown");
}

fn event(chat: u64, number: u64) -> (String, String) {
    (format!("evt_{chat}_{number}"), message(&format!("chat-{chat}"), &format!("Message {number} of chat {chat}.")))
}

/// Accepted messages that are not answered.
fn waiting(server: &Server) -> u64 {
    let status = server.get("/v1/admin/status").expect(200);
    status["inbox"]["open"].as_u64().unwrap_or_else(|| panic!("no number of open messages: {status}"))
}
