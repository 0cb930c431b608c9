//! Limits on tokens: reserved when a request is admitted, settled when its answer ends.

use std::thread;

use millrace_tests::server::chat;
use millrace_tests::{Server, client};
use serde_json::{Value, json};

fn body(max_tokens: Option<u32>) -> Value {
    let mut body = chat("Tell me a story about a mill.", 8);
    body["ignore_eos"] = json!(true);
    match max_tokens {
        Some(count) => body["max_tokens"] = json!(count),
        None => {
            body.as_object_mut().expect("an object").remove("max_tokens");
        }
    }
    body
}

/// What is left of a limit, by the header of an answer.
fn left(reply: &client::Reply, limit: &str) -> u32 {
    let header = reply.header("ratelimit").unwrap_or_else(|| panic!("no RateLimit: {:?}", reply.headers));
    let item = header.split(", ").find(|item| item.starts_with(&format!("\"{limit}\""))).expect("the limit");
    let value = item.split(';').find_map(|part| part.strip_prefix("r=")).expect("what is left");
    value.parse().expect("a number")
}

#[test]
fn two_requests_do_not_spend_the_same_tokens() {
    let server = Server::builder().config("[limits]\ntokens_per_minute = 100").start();
    let ask = |count: Option<u32>| server.post("/v1/chat/completions", &body(count));
    let statuses = thread::scope(|scope| {
        let asked: Vec<_> = (0..4).map(|_| scope.spawn(|| ask(Some(50)).status)).collect();
        asked.into_iter().map(|thread| thread.join().expect("asked")).collect::<Vec<_>>()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 429).count(), 3, "{statuses:?}");
    // Waiting helps those; it does not help one that asks for more than there ever is.
    let refused = ask(Some(50));
    let wait: u64 = refused.header("retry-after").and_then(|wait| wait.parse().ok()).expect("a time");
    assert!(refused.status == 429 && (1..=60).contains(&wait), "{wait}");
    let never = ask(Some(101));
    assert_eq!((never.status, never.header("retry-after")), (429, None));
    assert_eq!(never.json()["error"]["code"], "request_exceeds_limit");
    // Who names no length gets what there is, and is told so.
    let made = server.post("/v1/admin/keys", &json!({"user": "other", "label": "other"})).expect(201);
    let key = made["key"].as_str().expect("a key");
    let short = server.post_as(key, "/v1/chat/completions", &body(None)).expect(200);
    let tokens = short["usage"]["completion_tokens"].as_u64().expect("a number");
    assert!((16..100).contains(&tokens), "{short}");
    assert!(short.to_string().contains("is kept to"), "{short}");
}

#[test]
fn what_was_not_used_comes_back() {
    let server = Server::builder().config("[limits]\ntokens_per_minute = 3000").start();
    let mut stops = body(Some(2000));
    // It ends at the first full stop or newline, long before two thousand tokens.
    stops["ignore_eos"] = json!(false);
    stops["stop"] = json!([".", "\n"]);
    let first = server.post("/v1/chat/completions", &stops);
    let used = first.json()["usage"]["total_tokens"].as_u64().expect("a number");
    assert!(first.status == 200 && used < 300, "{}", first.text());
    let second = server.post("/v1/chat/completions", &body(Some(4)));
    assert_eq!(second.status, 200, "{}", second.text());
    assert!(left(&second, "tokens") > 2_500, "{:?}", second.headers);
}

#[test]
fn a_client_that_leaves_pays_for_what_was_made_for_it() {
    let server = Server::builder().config("[limits]\ntokens_per_minute = 3000").start();
    let mut long = body(Some(1500));
    long["stream"] = json!(true);
    let mut stream = server.stream("/v1/chat/completions", &long);
    for _ in 0..40 {
        stream.next().expect("an event").expect("more to come");
    }
    drop(stream);
    let left = millrace_tests::eventually("what was not made comes back", std::time::Duration::from_secs(30), || {
        let left = left(&server.post("/v1/chat/completions", &body(Some(1))), "tokens");
        (left > 1_600).then_some(left)
    });
    assert!(left < 2_990, "some of it was used: {left}");
}

#[test]
fn a_day_budget_outlives_a_restart_and_tenants_share_theirs() {
    let config = "[limits]\ntokens_per_day = 5000\ntenant_tokens_per_day = 300";
    let mut server = Server::builder().config(config).start();
    let first = server.post("/v1/chat/completions", &body(Some(100)));
    assert_eq!(first.status, 200, "{}", first.text());
    server.signal("TERM");
    assert!(server.wait(std::time::Duration::from_secs(30)).success());
    server.restart();
    let other = server.post("/v1/admin/keys", &json!({"user": "other", "label": "other"})).expect(201);
    let other = other["key"].as_str().expect("a key");
    let ask = |key: &str, count: u32| server.post_as(key, "/v1/chat/completions", &body(Some(count)));
    let refused = ask(other, 250);
    assert_eq!(refused.status, 429, "the tenant has spent a third of its day: {}", refused.text());
    let served = ask(other, 40);
    assert_eq!(served.status, 200, "{}", served.text());
    let mine = left(&ask(&server.key, 1), "tokens-day");
    assert!((4_500..4_900).contains(&mine), "the key's own budget, after the restart: {mine}");
}

#[test]
fn embeddings_count_as_well() {
    let server = Server::builder().config("[limits]\ntokens_per_minute = 200").start();
    let ask = |text: &str| server.post("/v1/embeddings", &json!({"model": "all-MiniLM-L6-v2", "input": text})).status;
    assert_eq!(ask("short"), 200);
    assert_eq!(ask(&"word ".repeat(300)), 429);
}
