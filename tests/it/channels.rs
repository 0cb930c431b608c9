//! Two channels from end to end: signed event in, durable turn, reply out over real HTTP to fake
//! platforms that fail as real ones do.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use millrace_tests::platform::{Answer, telegram_sent};
use millrace_tests::tools::{python, sign_webhook, unix_seconds};
use millrace_tests::{Platform, Reply, Server, ServerBuilder, client, eventually};
use serde_json::{Value, json};

/// 24 bytes, as the standard advises.
pub const WEBHOOK_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
/// What Telegram sends back to prove itself.
pub const TELEGRAM_SECRET: &str = "AbC-123_telegramSecret";
/// The token of the bot.
pub const BOT_TOKEN: &str = "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw";
/// A reply takes this long at most, with the model and all retries.
const REPLY_WITHIN: Duration = Duration::from_secs(120);

/// A server with one account of each channel.
pub fn with_channels(telegram: &Platform, webhook: &Platform) -> ServerBuilder {
    let config = format!(
        r#"
[[channel]]
kind = "telegram"
name = "bot"
secrets = ["env:TELEGRAM_SECRET"]
bot_token = "env:TELEGRAM_BOT_TOKEN"
api_base = "{}"
stream = false

[[channel]]
kind = "standard_webhooks"
name = "shop"
secrets = ["env:WEBHOOK_SECRET"]
reply_url = "{}/replies"
"#,
        telegram.url(),
        webhook.url()
    );
    Server::builder()
        .config(&config)
        .env("TELEGRAM_SECRET", TELEGRAM_SECRET)
        .env("TELEGRAM_BOT_TOKEN", BOT_TOKEN)
        .env("WEBHOOK_SECRET", WEBHOOK_SECRET)
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "12")
        .env("RETRY_POLICY", "1s,1s,1s")
}

/// A Telegram update with a private message.
pub fn update(update_id: u64, chat: u64, text: &str) -> String {
    json!({
        "update_id": update_id,
        "message": {
            "message_id": update_id, "date": unix_seconds(), "text": text,
            "chat": {"id": chat, "type": "private", "first_name": "Test"},
            "from": {"id": chat, "is_bot": false, "first_name": "Test"},
        }
    })
    .to_string()
}

/// Delivers an update as Telegram does.
pub fn tell_telegram(server: &Server, body: &str) -> anyhow::Result<Reply> {
    let headers = [("Content-Type", "application/json"), ("X-Telegram-Bot-Api-Secret-Token", TELEGRAM_SECRET)];
    client::request(server.http, "POST", "/hooks/telegram/bot", "", &headers, body.as_bytes())
}

/// Delivers a signed webhook.
pub fn tell_webhook(server: &Server, id: &str, body: &str) -> anyhow::Result<Reply> {
    let now = unix_seconds();
    let (time, signature) = (now.to_string(), sign_webhook(WEBHOOK_SECRET, id, now, body));
    let headers = [
        ("Content-Type", "application/json"),
        ("webhook-id", id),
        ("webhook-timestamp", &time),
        ("webhook-signature", &signature),
    ];
    client::request(server.http, "POST", "/hooks/standard_webhooks/shop", "", &headers, body.as_bytes())
}

/// A message in the shape that the generic webhook takes.
pub fn message(conversation: &str, text: &str) -> String {
    json!({"type": "message", "conversation": conversation, "user": "customer", "text": text}).to_string()
}

/// The jobs of the outbox in one state.
pub fn outbox(server: &Server, state: &str) -> Vec<Value> {
    let list = server.get(&format!("/v1/admin/outbox?limit=1000&state={state}")).expect(200);
    list["data"].as_array().unwrap_or_else(|| panic!("no list: {list}")).clone()
}

#[test]
fn a_telegram_message_is_answered_once_to_the_chat_it_came_from() {
    let (telegram, webhook) = (Platform::telegram(), Platform::webhook());
    let server = with_channels(&telegram, &webhook).start();
    let reply = tell_telegram(&server, &update(1, 4711, "Hello, who are you?")).expect("an answer");
    assert_eq!(reply.status, 200, "{}", reply.text());
    let sent = telegram.wait("the reply", 1, REPLY_WITHIN, |_| true).remove(0);
    assert_eq!(sent.path, format!("/bot{BOT_TOKEN}/sendMessage"));
    let body = sent.json();
    assert_eq!(body["chat_id"].as_i64().or_else(|| body["chat_id"].as_str()?.parse().ok()), Some(4711), "{body}");
    assert!(body["text"].as_str().is_some_and(|text| !text.trim().is_empty()), "{body}");

    // The platform repeats an update whose answer it did not see: no second reply.
    for _ in 0..3 {
        assert_eq!(tell_telegram(&server, &update(1, 4711, "Hello, who are you?")).expect("an answer").status, 200);
    }
    assert_eq!(tell_telegram(&server, &update(2, 4711, "And what can you do?")).expect("an answer").status, 200);
    telegram.wait("the second reply", 2, REPLY_WITHIN, |_| true);
    eventually("the outbox is empty", REPLY_WITHIN, || outbox(&server, "pending").is_empty().then_some(()));
    assert_eq!(telegram.seen().len(), 2, "{:#?}", telegram.seen());
}

#[test]
fn a_webhook_is_answered_with_a_signed_webhook() {
    let (telegram, webhook) = (Platform::telegram(), Platform::webhook());
    let server = with_channels(&telegram, &webhook).start();
    let url = format!("{}/hooks/standard_webhooks/shop", server.url());
    // The sender and the verifier are the reference implementation of the standard.
    let status =
        python("webhooks.py", &["send", &url, WEBHOOK_SECRET, "msg_first", &message("case-1", "Where is my parcel?")]);
    assert_eq!(status.trim(), "200");
    let sent = webhook.wait("the reply", 1, REPLY_WITHIN, |_| true).remove(0);
    assert_eq!(sent.path, "/replies");
    assert!(sent.text().contains("case-1"), "the reply names its conversation: {}", sent.text());
    let headers: serde_json::Map<String, Value> =
        sent.headers.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), json!([{"headers": headers, "body": sent.text()}]).to_string()).expect("written");
    println!("{}", python("webhooks.py", &["verify", WEBHOOK_SECRET, &file.path().to_string_lossy()]));
}

#[test]
fn unsigned_stale_and_foreign_events_are_refused_without_a_reason() {
    let (telegram, webhook) = (Platform::telegram(), Platform::webhook());
    let server = with_channels(&telegram, &webhook).start();
    let now = unix_seconds();
    let body = message("case-2", "hello");
    let good = sign_webhook(WEBHOOK_SECRET, "m", now, &body);
    let other = sign_webhook("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "m", now, &body);
    let old = sign_webhook(WEBHOOK_SECRET, "m", now - 400, &body);
    let early = sign_webhook(WEBHOOK_SECRET, "m", now + 400, &body);
    let cases: Vec<(&str, u64, &str, &str, u16)> = vec![
        ("another secret", now, &other, &body, 401),
        ("another body", now, &good, "{}", 401),
        ("another time", now - 1, &good, &body, 401),
        ("too old", now - 400, &old, &body, 401),
        ("from the future", now + 400, &early, &body, 401),
        ("an empty signature", now, "", &body, 401),
        ("an unknown version", now, "v9,AAAA", &body, 401),
    ];
    for (what, time, signature, body, wanted) in cases {
        let time = time.to_string();
        let headers = [
            ("Content-Type", "application/json"),
            ("webhook-id", "m"),
            ("webhook-timestamp", &time),
            ("webhook-signature", signature),
        ];
        let reply =
            client::request(server.http, "POST", "/hooks/standard_webhooks/shop", "", &headers, body.as_bytes())
                .expect("an answer");
        assert_eq!(reply.status, wanted, "{what}: {}", reply.text());
        for secret in ["skew", "stale", "signature mismatch", WEBHOOK_SECRET] {
            assert!(!reply.text().contains(secret), "{what} tells the sender why: {}", reply.text());
        }
    }
    for (token, wanted) in [("wrong", 401), ("", 401)] {
        let headers = [("Content-Type", "application/json"), ("X-Telegram-Bot-Api-Secret-Token", token)];
        let reply =
            client::request(server.http, "POST", "/hooks/telegram/bot", "", &headers, update(1, 1, "x").as_bytes())
                .expect("an answer");
        assert_eq!(reply.status, wanted);
    }
    for (path, wanted) in [("/hooks/telegram/nobody", 404), ("/hooks/nothing/bot", 404), ("/hooks/telegram", 404)] {
        let headers = [("X-Telegram-Bot-Api-Secret-Token", TELEGRAM_SECRET)];
        let reply =
            client::request(server.http, "POST", path, "", &headers, update(1, 1, "x").as_bytes()).expect("an answer");
        assert_eq!(reply.status, wanted, "{path}");
    }
    // Well signed, but not a message.
    assert_eq!(tell_webhook(&server, "bad-json", "not json").expect("an answer").status, 400);
    assert_eq!(tell_telegram(&server, "not json").expect("an answer").status, 400);
    // Well signed and understood, but nothing to answer: acknowledged, so that it is not sent again.
    assert_eq!(tell_telegram(&server, r#"{"update_id":77,"poll":{"id":"1"}}"#).expect("an answer").status, 200);
    assert!(telegram.seen().is_empty() && webhook.seen().is_empty(), "a refused event was answered");
    let refused = server.metric("millrace_rejected_total").unwrap_or(0.0);
    assert!(refused >= 9.0, "refused events are counted: {refused}");
}

#[test]
fn a_busy_platform_is_tried_again_and_gets_the_same_message_id() {
    let seen_before: Mutex<HashSet<String>> = Mutex::default();
    // Each message: 500, then a connection that closes, then a slow success.
    let tries = Mutex::new(std::collections::HashMap::<String, usize>::new());
    let webhook = Platform::start(move |request, _| {
        let mut tries = tries.lock().expect("a lock");
        let count = tries.entry(request.header("webhook-id").to_owned()).or_default();
        *count += 1;
        match *count {
            1 => Answer::new(500, "{}"),
            2 => Answer::new(0, ""),
            _ => Answer::new(200, "{}").after(Duration::from_millis(300)),
        }
    });
    let telegram = Platform::start(move |request, earlier| {
        if seen_before.lock().expect("a lock").insert(request.json()["chat_id"].to_string()) {
            Answer::new(
                429,
                r#"{"ok":false,"error_code":429,"description":"Too Many Requests","parameters":{"retry_after":1}}"#,
            )
            .header("Retry-After: 1")
        } else {
            Answer::new(200, telegram_sent(earlier))
        }
    });
    let server = with_channels(&telegram, &webhook).start();
    assert_eq!(tell_webhook(&server, "msg_retry", &message("case-3", "Hello?")).expect("an answer").status, 200);
    assert_eq!(tell_telegram(&server, &update(5, 815, "Hello?")).expect("an answer").status, 200);

    let tries = webhook.wait("three tries", 3, REPLY_WITHIN, |_| true);
    let ids: HashSet<&str> = tries.iter().map(|one| one.header("webhook-id")).collect();
    assert_eq!(ids.len(), 1, "the id is constant over all tries: {ids:?}");
    let bodies: HashSet<String> = tries.iter().map(millrace_tests::Seen::text).collect();
    assert_eq!(bodies.len(), 1, "and so is the body: {bodies:?}");
    let sent = telegram.wait("two tries", 2, REPLY_WITHIN, |_| true);
    assert!(
        sent[1].at - sent[0].at >= Duration::from_millis(950),
        "retry_after is kept: {:?}",
        sent[1].at - sent[0].at
    );
    eventually("both are delivered", REPLY_WITHIN, || outbox(&server, "pending").is_empty().then_some(()));
    assert_eq!(webhook.seen().len(), 3, "no try after the success");
    assert_eq!(telegram.seen().len(), 2, "no try after the success");
}

#[test]
fn what_cannot_be_delivered_is_listed_and_can_be_sent_again() {
    let healed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let state = std::sync::Arc::clone(&healed);
    let telegram = Platform::start(|_, _| {
        Answer::new(403, r#"{"ok":false,"error_code":403,"description":"Forbidden: bot was blocked by the user"}"#)
    });
    let webhook = Platform::start(move |_, _| {
        Answer::new(if state.load(std::sync::atomic::Ordering::SeqCst) { 200 } else { 503 }, "{}")
    });
    let server = with_channels(&telegram, &webhook).start();
    assert_eq!(tell_telegram(&server, &update(9, 99, "Hello?")).expect("an answer").status, 200);
    assert_eq!(tell_webhook(&server, "msg_dead", &message("case-4", "Hello?")).expect("an answer").status, 200);

    let dead = eventually("both replies are dead letters", REPLY_WITHIN, || {
        let dead = outbox(&server, "dead");
        (dead.len() == 2).then_some(dead)
    });
    assert_eq!(telegram.seen().len(), 1, "a refusal is final");
    assert_eq!(webhook.seen().len(), 4, "the first try and three retries");
    let text = Value::from(dead.clone()).to_string();
    assert!(text.contains("blocked by the user") || text.contains("403"), "the reason is shown: {text}");

    healed.store(true, std::sync::atomic::Ordering::SeqCst);
    let job = dead.iter().find(|job| job.to_string().contains("standard_webhooks")).unwrap_or_else(|| panic!("{text}"));
    let id = job["id"].as_str().unwrap_or_else(|| panic!("no id: {job}"));
    let reply = server.post("/v1/admin/outbox", &json!({"action": "resubmit", "id": id}));
    assert!(reply.status < 300, "{}", reply.text());
    let tries = webhook.wait("the resubmitted reply", 5, REPLY_WITHIN, |_| true);
    let ids: HashSet<&str> = tries.iter().map(|one| one.header("webhook-id")).collect();
    assert_eq!(ids.len(), 1, "still the same id");
    eventually("one dead letter is left", REPLY_WITHIN, || (outbox(&server, "dead").len() == 1).then_some(()));
}

#[test]
fn messages_of_one_conversation_are_answered_in_their_order() {
    let (telegram, webhook) = (Platform::telegram(), Platform::webhook());
    let server = with_channels(&telegram, &webhook).start();
    for number in 1..=6 {
        assert_eq!(
            tell_telegram(&server, &update(100 + number, 333, &format!("Message {number}"))).expect("an answer").status,
            200
        );
    }
    let sent = telegram.wait("six replies", 6, REPLY_WITHIN, |_| true);
    let order: Vec<i64> = sent
        .iter()
        .filter_map(|one| {
            let reply_to = &one.json()["reply_parameters"]["message_id"];
            reply_to.as_i64().or_else(|| reply_to.as_str()?.parse().ok())
        })
        .collect();
    assert_eq!(order, [101, 102, 103, 104, 105, 106], "each reply points at its message");
}
