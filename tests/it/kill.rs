//! `kill -9` at random moments under load, with the truth kept outside of the server.
//!
//! The oracle knows every event that was acknowledged and everything that reached the platforms.
//! At the end: each acknowledged event has its reply delivered, or the reply is listed as one whose
//! delivery is unknown or impossible. A platform that cannot recognise a repeated message (Telegram)
//! never gets one; one that can (webhooks with a constant id, Matrix transactions, QQ sequence numbers) gets
//! one id for each event.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use millrace_tests::client::ANSWER_WITHIN;
use millrace_tests::platform::{Answer, telegram_sent};
use millrace_tests::{Platform, eventually, random_seed};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::channels::{message, outbox, tell_telegram, tell_webhook, update, with_channels};
use crate::platform_access::{HS_TOKEN, QQ_SECRET, matrix_message, tell_qq};

const CYCLES: u64 = 30;
const EVENTS_PER_CYCLE: u64 = 6;
/// From the start of the process to the first served request.
const READY_P99: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Telegram,
    Webhook,
    Matrix,
    Qq,
}

struct Event {
    number: u64,
    kind: Kind,
}

impl Event {
    fn new(number: u64) -> Self {
        let kinds = [Kind::Telegram, Kind::Webhook, Kind::Telegram, Kind::Matrix, Kind::Webhook, Kind::Qq];
        Self { number, kind: kinds[(number % EVENTS_PER_CYCLE) as usize] }
    }

    /// Each event has a conversation of its own, so that its reply can be told from all others.
    fn conversation(&self) -> String {
        match self.kind {
            Kind::Telegram => (1_000_000 + self.number).to_string(),
            Kind::Webhook => format!("case-{}", self.number),
            Kind::Matrix => format!("!room{}:example.org", self.number),
            Kind::Qq => format!("GROUP{}", self.number),
        }
    }
}

/// The platforms of the test.
struct Platforms {
    telegram: Platform,
    webhook: Platform,
    matrix: Platform,
    qq: Platform,
}

impl Platforms {
    /// All take their time, so that some crashes fall between a message and its receipt.
    fn start() -> Self {
        let pause = |number: usize| Duration::from_millis([0, 400, 30, 900][number % 4]);
        Self {
            telegram: Platform::start(move |_, earlier| Answer::new(200, telegram_sent(earlier)).after(pause(earlier))),
            webhook: Platform::start(move |_, earlier| Answer::new(204, "").after(pause(earlier))),
            matrix: Platform::start(move |_, earlier| {
                Answer::new(200, format!(r#"{{"event_id":"$s{earlier}"}}"#)).after(pause(earlier))
            }),
            qq: Platform::start(move |request, earlier| match request.path.as_str() {
                "/app/getAppAccessToken" => Answer::new(200, r#"{"access_token":"t","expires_in":"7200"}"#),
                _ => Answer::new(200, format!(r#"{{"id":"q{earlier}"}}"#)).after(pause(earlier)),
            }),
        }
    }

    fn serve(&self) -> millrace_tests::ServerBuilder {
        let more = format!(
            "[[channel]]\nkind = \"matrix\"\nname = \"team\"\nsecrets = [\"env:HS\"]\nbot_token = \"env:AS\"\nbot_id = \"@bot:example.org\"\napi_base = \"{}\"\nstream = false\n\n[[channel]]\nkind = \"qqbot\"\nname = \"bot\"\nsecrets = [\"env:QQ\"]\napp_secret = \"env:QQ\"\napp_id = \"1024\"\napi_base = \"{}\"\n",
            self.matrix.url(),
            self.qq.url()
        );
        with_channels(&self.telegram, &self.webhook)
            .config(&more)
            .env("HS", HS_TOKEN)
            .env("AS", "as-token")
            .env("QQ", QQ_SECRET)
            .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "4")
    }

    /// What reached the platforms: conversation and the name under which the platform knows the message.
    fn told(&self) -> Vec<(String, String)> {
        let mut told = Vec::new();
        // Telegram knows nothing: each call is a message of its own.
        told.extend(self.telegram.seen().iter().enumerate().map(|(at, sent)| (chat_of(sent), at.to_string())));
        told.extend(
            self.webhook.seen().iter().map(|sent| (conversation_of(sent), sent.header("webhook-id").to_owned())),
        );
        let parts =
            |path: &str, at: usize| path.split('/').nth(at).unwrap_or_default().replace("%21", "!").replace("%3A", ":");
        told.extend(self.matrix.seen().iter().map(|sent| (parts(&sent.path, 5), parts(&sent.path, 8))));
        let messages = self.qq.seen().into_iter().filter(|sent| sent.path.starts_with("/v2/groups/"));
        told.extend(messages.map(|sent| {
            let body = sent.json();
            (parts(&sent.path, 3), format!("{}/{}", body["msg_id"], body["msg_seq"]))
        }));
        told
    }
}

#[test]
fn kill_30_times_and_nothing_acknowledged_is_lost_or_done_twice() {
    let seed = random_seed("kill");
    let mut random = SmallRng::seed_from_u64(seed);
    let platforms = Platforms::start();
    let mut server = platforms.serve().start();
    let mut acknowledged: Vec<Event> = Vec::new();
    let mut unsure: Vec<Event> = Vec::new();
    let mut slowest = Duration::ZERO;

    for cycle in 0..CYCLES {
        let deadline = Instant::now() + Duration::from_millis(random.random_range(20..1500));
        let (accepted, dropped) = std::thread::scope(|scope| {
            let server = &server;
            let senders: Vec<_> = (0..EVENTS_PER_CYCLE)
                .map(|index| {
                    let event = Event::new(cycle * EVENTS_PER_CYCLE + index);
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
        let settled = settled(&server, &platforms);
        (open == 0 && acknowledged.iter().all(|event| settled.contains(&event.conversation()))).then_some(())
    });

    let mut names: HashMap<String, HashSet<String>> = HashMap::new();
    for (conversation, name) in platforms.told() {
        names.entry(conversation).or_default().insert(name);
    }
    let twice: Vec<_> = names.iter().filter(|(_, names)| names.len() > 1).collect();
    assert!(twice.is_empty(), "one event, one reply, one name: {twice:?}");
    let unknown = outbox(&server, "unknown").len();
    println!(
        "kill: {CYCLES} cycles, {} events acknowledged, {} of them answered at four platforms, {unknown} of unknown delivery, slowest start {slowest:?}",
        acknowledged.len(),
        names.len()
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
    let text = format!("Event {}", event.number);
    let conversation = event.conversation();
    let reply = match event.kind {
        Kind::Telegram => tell_telegram(server, &update(10_000 + event.number, 1_000_000 + event.number, &text)),
        Kind::Webhook => tell_webhook(server, &format!("evt_{}", event.number), &message(&conversation, &text)),
        Kind::Qq => tell_qq(server, &conversation, &format!("evt-{}", event.number), &text),
        Kind::Matrix => {
            let path = format!("/hooks/matrix/team/_matrix/app/v1/transactions/t{}", event.number);
            let bearer = format!("Bearer {HS_TOKEN}");
            let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
            let body = matrix_message(&conversation, &format!("$e{}", event.number), &text);
            millrace_tests::client::request(server.http, "PUT", &path, "", &headers, body.as_bytes())
        }
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
fn settled(server: &millrace_tests::Server, platforms: &Platforms) -> HashSet<String> {
    let mut settled: HashSet<String> = platforms.told().into_iter().map(|(conversation, _)| conversation).collect();
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
