//! `kill -9` at random moments under load, with the truth kept outside of the server.
//!
//! The oracle knows every event that was acknowledged and everything that reached the platforms.
//! At the end: each acknowledged event has its reply delivered, or the reply is listed as one whose
//! delivery is unknown or impossible. A platform that cannot recognise a repeated message (Telegram)
//! never gets one; one that can (webhooks with a constant id) gets one id for each event.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use millrace_tests::client::ANSWER_WITHIN;
use millrace_tests::platform::{Answer, telegram_sent};
use millrace_tests::{Platform, eventually, random_seed};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::channels::{message, outbox, tell_telegram, tell_webhook, update, with_channels};

const CYCLES: u64 = 30;
const EVENTS_PER_CYCLE: u64 = 6;
/// From the start of the process to the first served request.
const READY_P99: Duration = Duration::from_secs(5);

struct Event {
    number: u64,
    telegram: bool,
}

impl Event {
    /// Each event has a conversation of its own, so that its reply can be told from all others.
    fn conversation(&self) -> String {
        if self.telegram { (1_000_000 + self.number).to_string() } else { format!("case-{}", self.number) }
    }
}

#[test]
fn kill_30_times_and_nothing_acknowledged_is_lost_or_done_twice() {
    let seed = random_seed("kill");
    let mut random = SmallRng::seed_from_u64(seed);
    // Platforms that take their time, so that some crashes fall between a message and its receipt.
    let pause = |number: usize| Duration::from_millis([0, 400, 30, 900][number % 4]);
    let telegram = Platform::start(move |_, earlier| Answer::new(200, telegram_sent(earlier)).after(pause(earlier)));
    let webhook = Platform::start(move |_, earlier| Answer::new(204, "").after(pause(earlier)));
    let mut server = with_channels(&telegram, &webhook).env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "4").start();
    let mut acknowledged: Vec<Event> = Vec::new();
    let mut unsure: Vec<Event> = Vec::new();
    let mut slowest = Duration::ZERO;

    for cycle in 0..CYCLES {
        let deadline = Instant::now() + Duration::from_millis(random.random_range(20..1500));
        let (accepted, dropped) = std::thread::scope(|scope| {
            let server = &server;
            let senders: Vec<_> = (0..EVENTS_PER_CYCLE)
                .map(|index| {
                    let event = Event { number: cycle * EVENTS_PER_CYCLE + index, telegram: index % 2 == 0 };
                    let pause = Duration::from_millis(random.random_range(0..600));
                    scope.spawn(move || {
                        std::thread::sleep(pause);
                        let outcome = deliver(server, &event);
                        (event, outcome)
                    })
                })
                .collect();
            std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
            server.signal("KILL");
            let mut accepted = Vec::new();
            let mut dropped = Vec::new();
            for sender in senders {
                let (event, outcome) = sender.join().expect("a sender");
                if outcome { accepted.push(event) } else { dropped.push(event) }
            }
            (accepted, dropped)
        });
        server.wait(Duration::from_secs(10));
        acknowledged.extend(accepted);
        unsure.extend(dropped);
        server.restart();
        slowest = slowest.max(server.started_in);

        // As platforms do: what was not acknowledged comes again, and sometimes what was.
        for event in std::mem::take(&mut unsure) {
            assert!(deliver(&server, &event), "a running server accepts event {}", event.number);
            acknowledged.push(event);
        }
        if let Some(event) = acknowledged.choose(&mut random) {
            assert!(deliver(&server, event), "a repeated event is acknowledged");
        }
    }

    eventually("every reply is settled", ANSWER_WITHIN * 4, || {
        let open = ["pending", "sending"].iter().map(|state| outbox(&server, state).len()).sum::<usize>();
        let settled = settled(&server, &telegram, &webhook);
        (open == 0 && acknowledged.iter().all(|event| settled.contains(&event.conversation()))).then_some(())
    });

    let mut replies: HashMap<String, usize> = HashMap::new();
    for sent in telegram.seen() {
        *replies.entry(chat_of(&sent)).or_default() += 1;
    }
    let twice: Vec<_> = replies.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "replies delivered twice to a platform that cannot know it: {twice:?}");
    let mut ids: HashMap<String, HashSet<String>> = HashMap::new();
    for sent in webhook.seen() {
        ids.entry(conversation_of(&sent)).or_default().insert(sent.header("webhook-id").to_owned());
    }
    let many: Vec<_> = ids.iter().filter(|(_, ids)| ids.len() > 1).collect();
    assert!(many.is_empty(), "one event, one reply, one id: {many:?}");
    let unknown = outbox(&server, "unknown").len();
    println!(
        "kill: {CYCLES} cycles, {} events acknowledged, {} telegram replies, {} webhook replies, {unknown} of unknown delivery, slowest start {slowest:?}",
        acknowledged.len(),
        replies.len(),
        ids.len()
    );
    assert_eq!(acknowledged.len() as u64, CYCLES * EVENTS_PER_CYCLE);
    assert!(
        unknown as u64 <= CYCLES * EVENTS_PER_CYCLE / 4,
        "unknown is for the few that were under way at a crash: {unknown}"
    );
    assert!(slowest <= READY_P99, "slowest restart {slowest:?}");
}

/// Whether the server acknowledged the event.
fn deliver(server: &millrace_tests::Server, event: &Event) -> bool {
    let reply = if event.telegram {
        let chat = 1_000_000 + event.number;
        tell_telegram(server, &update(10_000 + event.number, chat, &format!("Event {}", event.number)))
    } else {
        tell_webhook(
            server,
            &format!("evt_{}", event.number),
            &message(&event.conversation(), &format!("Event {}", event.number)),
        )
    };
    matches!(reply, Ok(reply) if reply.status == 200)
}

fn chat_of(sent: &millrace_tests::Seen) -> String {
    let chat = &sent.json()["chat_id"];
    chat.as_str().map_or_else(|| chat.to_string(), str::to_owned)
}

fn conversation_of(sent: &millrace_tests::Seen) -> String {
    let body = sent.json();
    let conversation =
        if body["conversation"].is_string() { &body["conversation"] } else { &body["data"]["conversation"] };
    conversation.as_str().unwrap_or_else(|| panic!("a reply without conversation: {body}")).to_owned()
}

/// The conversations whose reply reached its platform or is listed as undeliverable or unknown.
fn settled(server: &millrace_tests::Server, telegram: &Platform, webhook: &Platform) -> HashSet<String> {
    let mut settled: HashSet<String> = telegram.seen().iter().map(chat_of).collect();
    settled.extend(webhook.seen().iter().map(conversation_of));
    for state in ["unknown", "dead"] {
        for job in outbox(server, state) {
            settled.insert(job["chat"].as_str().unwrap_or_else(|| panic!("a job without its chat: {job}")).to_owned());
        }
    }
    settled
}

#[test]
fn kill_during_a_session_keeps_every_finished_turn() {
    let mut server = millrace_tests::Server::start_default();
    let mut finished = Vec::new();
    let seed = random_seed("kill-session");
    let mut random = SmallRng::seed_from_u64(seed);
    for round in 0..3 {
        for number in 0..3 {
            let text = format!("Remember item {round}-{number}.");
            let mut body = millrace_tests::server::chat(&text, 4);
            body["session"] = serde_json::json!("crash");
            server.post("/v1/chat/completions", &body).expect(200);
            finished.push(text);
        }
        // The next turn is under way when the process dies.
        let mut body = millrace_tests::server::chat("A turn that may be lost.", 200);
        body["session"] = serde_json::json!("crash");
        body["stream"] = serde_json::json!(true);
        let mut stream = server.stream("/v1/chat/completions", &body);
        for _ in 0..random.random_range(1..6) {
            stream.next().expect("an event");
        }
        server.kill();
        server.restart();
        let history = server.get("/v1/sessions/crash/messages?limit=100").expect(200).to_string();
        for text in &finished {
            assert!(history.contains(text.as_str()), "{text:?} is gone: {history}");
        }
    }
}
