//! A new image of the program takes over while clients go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_tests::server::chat;
use millrace_tests::{Server, client, eventually};
use serde_json::json;

/// How long a request may take while one image ends and the next one starts.
const PATIENCE: Duration = Duration::from_secs(110);

#[test]
fn no_request_fails_while_the_program_is_replaced() {
    // A busy machine may take long over the answer that is under way.
    let server = Server::builder().env("MILLRACE_DRAIN_TIMEOUT", "60s").start();
    let (address, key) = (server.http, server.key.clone());
    let pid = server.pid();
    let stop = Arc::new(AtomicBool::new(false));
    let (served, longest_ms) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|number| {
            let (stop, served, longest_ms, key) = (stop.clone(), served.clone(), longest_ms.clone(), key.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Acquire) {
                    let began = Instant::now();
                    // Each request has a connection of its own: one that is refused shows at once.
                    let path = if number % 2 == 0 { "/v1/models" } else { "/healthz" };
                    match client::request(address, "GET", path, &key, &[("Connection", "close")], b"") {
                        Ok(reply) if reply.status == 200 => {
                            served.fetch_add(1, Ordering::AcqRel);
                        }
                        // The key's rate is not what is tested here.
                        Ok(reply) if reply.status == 429 => std::thread::sleep(Duration::from_millis(100)),
                        Ok(reply) => failures.push(format!("{} {}", reply.status, reply.text())),
                        Err(error) => failures.push(format!("{error:#}")),
                    }
                    longest_ms.fetch_max(began.elapsed().as_millis() as usize, Ordering::AcqRel);
                }
                failures
            })
        })
        .collect();
    let more = |than: usize| {
        eventually("requests are served", PATIENCE, || (served.load(Ordering::Acquire) > than).then_some(()))
    };
    more(100);
    for round in 1..=3 {
        // An answer that runs when the hand-over begins is finished.
        let mut body = chat("Count slowly.", 24);
        body["stream"] = json!(true);
        body["ignore_eos"] = json!(true);
        let stream = server.stream("/v1/chat/completions", &body);
        server.signal("USR2");
        let events = stream.finish().expect("the stream ends");
        let whole = events.iter().any(|event| event["choices"][0]["finish_reason"] == "length");
        assert!(whole, "{events:?}");
        eventually("the next image is ready", PATIENCE, || {
            (server.log().matches(" ready").count() > round).then_some(())
        });
        more(served.load(Ordering::Acquire) + 100);
    }
    stop.store(true, Ordering::Release);
    let failures: Vec<String> =
        clients.into_iter().flat_map(|client| client.join().expect("the client ends")).collect();
    assert!(failures.is_empty(), "{} failures: {:?}", failures.len(), &failures[..failures.len().min(5)]);
    assert_eq!(server.pid(), pid, "the process is the same");
    println!("{} requests, the longest took {} ms", served.load(Ordering::Acquire), longest_ms.load(Ordering::Acquire));
}

#[test]
fn a_program_that_would_not_start_changes_nothing() {
    let mut server = Server::start_default();
    std::fs::write(server.config_file(), "nonsense = 1\n").expect("written");
    server.signal("USR2");
    eventually("the check has failed", PATIENCE, || server.log().contains("this process goes on").then_some(()));
    assert!(server.runs());
    assert_eq!(server.get("/v1/models").status, 200);
}

#[test]
fn a_killed_server_gets_its_port_back_at_once() {
    let mut server = Server::start_default();
    let address = server.http.to_string();
    for _ in 0..5 {
        // Ring teardown keeps a killed process's port for some milliseconds: the start retries the bind.
        server.kill();
        server.reconfigure(|builder| builder.arg("--listen").arg(&address));
        server.restart();
        assert_eq!(server.http.to_string(), address);
        assert_eq!(server.get("/healthz").status, 200);
    }
}
