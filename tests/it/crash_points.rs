//! The process dies before and after each durable step, at its first, second and third pass. The truth is kept
//! outside: every event that was acknowledged has its reply, and no reply reached a chat twice.

use std::collections::HashMap;

use millrace_tests::client::ANSWER_WITHIN;
use millrace_tests::{Platform, Seen, Server, eventually};

use crate::channels::{
    BOT_TOKEN, TELEGRAM_SECRET, WEBHOOK_SECRET, message, outbox, tell_telegram, tell_webhook, update,
};

/// In the order in which a message comes to them; the same list as in the product (checked at its start).
const POINTS: [&str; 14] = [
    "accept.before_commit",
    "commit.before_write",
    "commit.after_write",
    "accept.before_ack",
    "draft.before_row",
    "draft.before_send",
    "draft.after_send",
    "finish.before_commit",
    "finish.after_commit",
    "delivery.before_sending",
    "delivery.before_call",
    "delivery.after_call",
    "delivery.before_receipt",
    "delivery.after_receipt",
];
/// Events of each kind: enough that every point is passed three times.
const EVENTS: u64 = 4;

#[test]
fn first_pass() {
    POINTS.into_iter().for_each(|point| die_at(point, 1));
}

#[test]
fn second_pass() {
    POINTS.into_iter().for_each(|point| die_at(point, 2));
}

#[test]
fn third_pass() {
    POINTS.into_iter().for_each(|point| die_at(point, 3));
}

fn die_at(point: &str, pass: u32) {
    let (growing, whole, webhook) = (Platform::telegram(), Platform::telegram(), Platform::webhook());
    let account = |name: &str, platform: &Platform, stream: bool| {
        format!(
            "[[channel]]\nkind = \"telegram\"\nname = \"{name}\"\nsecrets = [\"env:TELEGRAM_SECRET\"]\nbot_token = \"env:TELEGRAM_BOT_TOKEN\"\napi_base = \"{}\"\nstream = {stream}\n\n",
            platform.url()
        )
    };
    let config = format!(
        "{}{}[[channel]]\nkind = \"standard_webhooks\"\nname = \"shop\"\nsecrets = [\"env:WEBHOOK_SECRET\"]\nreply_url = \"{}/replies\"\n",
        account("growing", &growing, true),
        account("bot", &whole, false),
        webhook.url()
    );
    let mut server = Server::builder()
        .config(&config)
        .env("TELEGRAM_SECRET", TELEGRAM_SECRET)
        .env("TELEGRAM_BOT_TOKEN", BOT_TOKEN)
        .env("WEBHOOK_SECRET", WEBHOOK_SECRET)
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "4")
        .env("RETRY_POLICY", "1s,1s,1s")
        .start();
    // The first start writes the first key; what is counted here are the steps of messages.
    server.kill();
    server.reconfigure(|builder| builder.env("MILLRACE_CRASH_POINT", &format!("{point}:{pass}")));
    server.restart();
    // Until the process dies. What it did not acknowledge is sent again later, as platforms do. Replies that are made
    // together leave together, so the next event waits for the receipts of the last one: what can be under way at the
    // end is then known.
    for number in 0..EVENTS {
        deliver(&server, number);
        eventually("the receipts of one event, or the end", ANSWER_WITHIN, || {
            let receipts = server.try_metric("millrace_channel_deliveries_total").ok().flatten().unwrap_or(0.0);
            (receipts >= (3 * (number + 1)) as f64 || !server.runs()).then_some(())
        });
    }
    server.wait(ANSWER_WITHIN);
    server.reconfigure(|builder| builder.env("MILLRACE_CRASH_POINT", ""));
    server.restart();
    for number in 0..EVENTS {
        assert!(deliver(&server, number), "{point}:{pass}: a running server accepts every event");
    }
    eventually("every reply is settled", ANSWER_WITHIN, || {
        let open = ["pending", "sending"].iter().map(|state| outbox(&server, state).len()).sum::<usize>();
        let told = |platform: &Platform| {
            platform
                .seen()
                .iter()
                .filter(|one| is_message(one))
                .map(chat_of)
                .collect::<std::collections::HashSet<_>>()
                .len()
        };
        let listed = outbox(&server, "unknown").len();
        let all = told(&growing) + told(&whole) + webhook_ids(&webhook).len() + listed;
        (open == 0 && all as u64 >= 3 * EVENTS && finished(&server)).then_some(())
    });
    assert!(outbox(&server, "dead").is_empty(), "{point}:{pass}");
    let unknown = outbox(&server, "unknown");
    assert!(unknown.len() <= 2, "{point}:{pass}: at most the replies to one event in two accounts: {unknown:#?}");
    for job in unknown {
        let why = job["detail"].as_str().unwrap_or_default();
        assert!(why.contains("the process ended while the call was under way"), "{point}:{pass}: {job:#}");
    }
    for (id, count) in webhook_ids(&webhook) {
        assert_eq!(count, 1, "{point}:{pass}: event {id} has more than one reply id");
    }
    check_chats(point, pass, &whole, false);
    check_chats(point, pass, &growing, true);
}

/// Whether every acknowledged message is answered.
fn finished(server: &Server) -> bool {
    server.get("/v1/admin/status").expect(200)["inbox"]["open"].as_u64() == Some(0)
}

fn deliver(server: &Server, number: u64) -> bool {
    let text = format!("Event {number}");
    let growing = {
        let headers = [("Content-Type", "application/json"), ("X-Telegram-Bot-Api-Secret-Token", TELEGRAM_SECRET)];
        let body = update(20_000 + number, 2_000_000 + number, &text);
        millrace_tests::client::request(server.http, "POST", "/hooks/telegram/growing", "", &headers, body.as_bytes())
    };
    let whole = tell_telegram(server, &update(10_000 + number, 1_000_000 + number, &text));
    let webhook = tell_webhook(server, &format!("evt_{number}"), &message(&format!("case-{number}"), &text));
    [growing, whole, webhook].into_iter().all(|reply| matches!(reply, Ok(reply) if reply.status == 200))
}

fn is_message(seen: &Seen) -> bool {
    seen.path.ends_with("sendMessage")
}

fn chat_of(seen: &Seen) -> String {
    seen.json()["chat_id"].to_string()
}

/// How many different ids the reply to each event had.
fn webhook_ids(webhook: &Platform) -> HashMap<String, usize> {
    let mut ids: HashMap<String, std::collections::HashSet<String>> = HashMap::new();
    for seen in webhook.seen() {
        let conversation = seen.json()["data"]["conversation"].as_str().unwrap_or_default().to_owned();
        ids.entry(conversation).or_default().insert(seen.header("webhook-id").to_owned());
    }
    ids.into_iter().map(|(conversation, ids)| (conversation, ids.len())).collect()
}

/// One message for each chat. In an account whose replies grow, the process may die between the first words
/// and the answer to them: the reply is then a message of its own, and the words stay as the beginning of it.
fn check_chats(point: &str, pass: u32, platform: &Platform, grows: bool) {
    let mut chats: HashMap<String, Vec<String>> = HashMap::new();
    for seen in platform.seen().iter().filter(|one| is_message(one)) {
        chats.entry(chat_of(seen)).or_default().push(seen.json()["text"].as_str().unwrap_or_default().to_owned());
    }
    for (chat, texts) in chats {
        let doubled = texts.len() > 1;
        let excused = grows && texts.len() == 2 && texts[1].starts_with(&texts[0]);
        assert!(!doubled || excused, "{point}:{pass}: chat {chat} got {texts:?}");
    }
}
