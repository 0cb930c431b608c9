//! Bounds: what is over them is refused at once, with a status that says when to come back.

use std::time::{Duration, Instant};

use millrace_tests::client::{self, Connection, Stream, request_bytes};
use millrace_tests::server::chat;
use millrace_tests::tools::python;
use millrace_tests::{Server, eventually};
use serde_json::json;

#[test]
fn a_key_over_its_rate_is_told_when_to_come_back() {
    let server = Server::builder().env("MILLRACE_LIMITS_REQUESTS_PER_MINUTE", "6").start();
    let made =
        server.post("/v1/admin/keys", &json!({"user": "other", "label": "other", "scopes": ["chat"]})).expect(201);
    let other = made["key"].as_str().expect("a key");
    let refused = (0..50).map(|_| server.get("/v1/models")).find(|reply| reply.status != 200).expect("a refusal");
    assert_eq!(refused.status, 429, "{}", refused.text());
    let pause: u64 = refused.header("retry-after").and_then(|value| value.parse().ok()).expect("a Retry-After header");
    assert!((1..=60).contains(&pause), "{pause}");
    assert_eq!(refused.json()["error"]["retryable"], true);
    let reply = client::request(server.http, "GET", "/v1/models", other, &[], b"").expect("an answer");
    assert_eq!(reply.status, 200, "another key is not concerned");
    assert_eq!(server.get("/healthz").status, 200, "health has no limit");
}

#[test]
fn a_full_queue_refuses_early_and_serves_what_it_accepted() {
    let server = Server::builder()
        .env("MILLRACE_ENGINE_SEQUENCES_MAX", "2")
        .env("MILLRACE_ENGINE_QUEUE_MAX", "2")
        .env("MILLRACE_LIMITS_REQUESTS_PER_MINUTE", "100000")
        .start();
    let mut body = chat("Tell me a long story.", 60);
    body["ignore_eos"] = json!(true);
    body["stream"] = json!(true);
    let mut accepted = Vec::new();
    let mut refused = 0;
    for _ in 0..12 {
        let mut connection = Connection::open(server.http).expect("a connection");
        let bytes = body.to_string();
        connection
            .send(&request_bytes(
                server.http,
                "POST",
                "/v1/chat/completions",
                &server.key,
                &[("Content-Type", "application/json")],
                bytes.as_bytes(),
            ))
            .expect("sent");
        accepted.push(connection);
    }
    let mut served = 0;
    for mut connection in accepted {
        let began = Instant::now();
        let reply = connection.reply().expect("an answer");
        match reply.status {
            200 => {
                served += 1;
                assert!(reply.text().trim_end().ends_with("data: [DONE]"), "{}", reply.text());
            }
            503 | 429 => {
                refused += 1;
                assert!(reply.header("retry-after").is_some(), "{:?}", reply.headers);
                assert!(began.elapsed() < Duration::from_secs(5), "a refusal is quick: {:?}", began.elapsed());
            }
            other => panic!("{other}: {}", reply.text()),
        }
    }
    assert!(served >= 2 && refused >= 1 && served + refused == 12, "{served} served, {refused} refused");
    server.ask("Back to normal?");
}

#[test]
fn a_client_that_leaves_frees_its_place_within_moments() {
    let server = Server::builder().env("MILLRACE_ENGINE_SEQUENCES_MAX", "1").start();
    for _ in 0..3 {
        let mut body = chat("Tell me a story without an end.", 4000);
        body["ignore_eos"] = json!(true);
        body["stream"] = json!(true);
        let mut stream = Stream::open(server.http, "/v1/chat/completions", &server.key, &body).expect("a stream");
        for _ in 0..3 {
            stream.next().expect("an event").expect("not the end");
        }
        drop(stream);
        let began = Instant::now();
        server.ask("Is the only place free?");
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
    eventually("no request runs", Duration::from_secs(10), || {
        (server.metric("vllm:num_requests_running") == Some(0.0)).then_some(())
    });
}

#[test]
fn sixty_four_chats_at_once_all_get_their_answer() {
    let server = Server::builder().env("MILLRACE_LIMITS_REQUESTS_PER_MINUTE", "100000").start();
    let texts: Vec<String> = std::thread::scope(|scope| {
        let chats: Vec<_> = (0..64)
            .map(|number| {
                let server = &server;
                scope.spawn(move || {
                    let mut body = chat(&format!("Write about the number {}.", number % 8), 12);
                    body["stream"] = json!(true);
                    let events = server.stream("/v1/chat/completions", &body).finish().expect("a whole stream");
                    client::streamed_text(&events)
                })
            })
            .collect();
        chats.into_iter().map(|chat| chat.join().expect("a chat")).collect()
    });
    assert_eq!(texts.len(), 64);
    assert!(texts.iter().all(|text| !text.trim().is_empty()), "{texts:?}");
}

#[test]
fn tenants_and_addresses_have_limits_of_their_own() {
    let server =
        Server::builder().config("[limits]\ntenant_requests_per_minute = 30\naddress_requests_per_minute = 50").start();
    let key = |tenant: u32, user: &str| {
        let body = json!({"tenant": tenant, "user": user, "label": user, "role": "user"});
        let made = server.post("/v1/admin/keys", &body).expect(201);
        made["key"].as_str().expect("a key").to_owned()
    };
    let (ada, bob, eve) = (key(7, "ada"), key(7, "bob"), key(8, "eve"));
    println!("{}", python("limits_client.py", &[&server.url(), &ada, &bob, &eve, "30", "50"]));
}
