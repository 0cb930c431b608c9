//! What is sent: request number `n` of a workload, as bytes.

use crate::{Options, Target, WorkloadKind};
use anyhow::bail;
use millrace_proto::channel::sample::{self, Said, Scene};
use millrace_proto::channel::{Account, ChannelKind, Secret, standard_webhooks};
use millrace_proto::id::TenantId;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::json;

const SYSTEM: &str = "You help the staff of a company with their equipment. Answer in short, plain sentences, use \
    only what you were told, say so when an administrator is needed, and end with one concrete next step.";
const THINGS: [&str; 12] = [
    "printer",
    "laptop",
    "headset",
    "mail account",
    "calendar",
    "door badge",
    "test server",
    "database",
    "file share",
    "video room",
    "desk phone",
    "expense form",
];
const TROUBLES: [&str; 8] = [
    "does not start",
    "asks for the password again and again",
    "has been slow since Monday",
    "shows an error after the update",
    "lost all settings",
    "cannot reach the network",
    "stops after ten minutes",
    "reports a full disk",
];
const PLACES: [&str; 6] =
    ["at home", "in the warehouse", "on the second floor", "on a train", "at a customer", "in the lab"];
const QUESTIONS: [&str; 5] = [
    "What should I check first?",
    "Can I fix it myself today?",
    "Who has to approve a change?",
    "Is there a way around it until tomorrow?",
    "Which log do you need?",
];

/// A source of requests.
pub struct Workload {
    kind: WorkloadKind,
    host: String,
    options: Options,
    secret: Secret,
    slack: Account,
    run_id: u64,
}

impl Workload {
    /// `run_id` sets this run apart from others, so that the server does not take its events for repetitions.
    pub fn new(options: &Options, target: &Target, run_id: u64) -> anyhow::Result<Self> {
        let secret = Secret::new(options.secret.as_str());
        if options.workload != WorkloadKind::Chat {
            if options.account.is_empty() || options.account.contains(['/', '?', '#', ' ', '\r', '\n']) {
                bail!("the account {:?} cannot be part of an address", options.account);
            }
            if options.workload == WorkloadKind::Slack && options.secret.is_empty() {
                bail!("the slack workload needs a signing secret: set MILLRACE_LOAD_SECRET to that of the account");
            }
            if options.workload == WorkloadKind::Webhook && standard_webhooks::sign(&secret, "test", 0, b"").is_none() {
                bail!(
                    "the webhook workload needs a signing secret: set MILLRACE_LOAD_SECRET to the account's whsec_..."
                );
            }
        }
        if options.key.contains(['\r', '\n']) {
            bail!("the API key has a line break in it");
        }
        let mut slack = Account::new(ChannelKind::Slack, options.account.as_str(), TenantId::DEFAULT);
        slack.secrets = vec![secret.clone()];
        Ok(Self { kind: options.workload, host: target.host.clone(), options: options.clone(), secret, slack, run_id })
    }

    /// Whether answers are event streams with tokens.
    pub fn streams_tokens(&self) -> bool {
        self.kind == WorkloadKind::Chat
    }

    /// Request number `n`. The same seed and number give the same prompt; `now_s` is Unix time for signatures.
    pub fn request(&self, n: u64, now_s: u64) -> Vec<u8> {
        match self.kind {
            WorkloadKind::Chat => self.chat(n),
            WorkloadKind::Webhook => self.webhook(n, now_s),
            WorkloadKind::Slack => self.slack(n, now_s),
        }
    }

    fn prompt(&self, n: u64) -> String {
        let mut random = SmallRng::seed_from_u64(self.options.seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let case: u32 = random.random_range(0..1_000_000);
        let mut pick = |words: &[&'static str]| *words.choose(&mut random).expect("the lists are not empty");
        format!("Case {case:06}. My {} {} {}. {}", pick(&THINGS), pick(&TROUBLES), pick(&PLACES), pick(&QUESTIONS))
    }

    fn chat(&self, n: u64) -> Vec<u8> {
        let options = &self.options;
        let user = json!({"role": "user", "content": self.prompt(n)});
        let mut body = json!({
            "model": options.model,
            "messages": [user],
            "max_tokens": options.max_tokens,
            "temperature": 0,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if options.sessions > 0 {
            body["session"] = format!("load-{}-{}", self.run_id, n % u64::from(options.sessions)).into();
        } else {
            body["messages"] = json!([{"role": "system", "content": SYSTEM}, user]);
        }
        if options.ignore_eos {
            body["ignore_eos"] = true.into();
        }
        let mut headers = vec![("accept", "text/event-stream".to_owned())];
        if !options.key.is_empty() {
            headers.push(("authorization", format!("Bearer {}", options.key)));
        }
        self.post("/v1/chat/completions", &headers, body.to_string().as_bytes())
    }

    fn webhook(&self, n: u64, now_s: u64) -> Vec<u8> {
        let conversation = n % u64::from(self.options.conversations);
        let body = json!({
            "type": "message",
            "conversation": format!("load-{conversation}"),
            "user": format!("load-user-{conversation}"),
            "text": self.prompt(n),
        });
        let body = body.to_string();
        let id = format!("load_{}_{n}", self.run_id);
        let signature =
            standard_webhooks::sign(&self.secret, &id, now_s, body.as_bytes()).expect("checked at the start");
        let headers = [("webhook-id", id), ("webhook-timestamp", now_s.to_string()), ("webhook-signature", signature)];
        self.post(&format!("/hooks/standard_webhooks/{}", self.options.account), &headers, body.as_bytes())
    }

    fn slack(&self, n: u64, now_s: u64) -> Vec<u8> {
        let conversation = n % u64::from(self.options.conversations);
        // The run's id is a time: with the number behind it no two events of two runs are alike.
        let number = self.run_id.wrapping_mul(1_000_000).wrapping_add(n);
        let text = self.prompt(n);
        let said = Said { number, user: conversation, chat: conversation, text: &text };
        let path = format!("/hooks/slack/{}", self.options.account);
        let scene = Scene { path: &path, now_s, entropy: [0; 16] };
        let request = sample::message(&self.slack, &said, &scene).expect("checked at the start");
        let headers: Vec<_> = request.headers.into_iter().filter(|(name, _)| *name != "content-type").collect();
        self.post(&path, &headers, &request.body)
    }

    fn post(&self, path: &str, headers: &[(&str, String)], body: &[u8]) -> Vec<u8> {
        let mut wire = format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n", self.host);
        for (name, value) in headers {
            wire.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.options.fresh_connections {
            wire.push_str("connection: close\r\n");
        }
        wire.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
        let mut wire = wire.into_bytes();
        wire.extend_from_slice(body);
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use millrace_proto::channel::{self, Ambient, Decoded, Incoming, NoKeys};
    use millrace_proto::{api::ChatRequest, http1};

    fn workload(arguments: &str) -> anyhow::Result<Workload> {
        let words = format!("millrace-load --target http://127.0.0.1:1 {arguments}");
        let options = Options::parse_from(words.split_whitespace());
        Workload::new(&options, &Target::resolve(&options.target, false).unwrap(), 5)
    }

    #[test]
    fn chat_requests_are_what_the_server_parses() {
        let workload = workload("--key mr-x --sessions 3 --max-tokens 9").unwrap();
        let wire = workload.request(4, 0);
        let head = http1::parse(&wire).unwrap().unwrap();
        assert_eq!((head.path(), head.header("authorization")), ("/v1/chat/completions", Some("Bearer mr-x")));
        let request = ChatRequest::parse(&wire[head.head_bytes..]).unwrap();
        assert!(request.wants_stream() && request.wants_usage());
        assert_eq!((request.session.as_deref(), request.max_tokens()), (Some("load-5-1"), Some(9)));
        assert_eq!(wire, workload.request(4, 1), "request 4 is always the same");
        assert_ne!(wire, workload.request(5, 0));
    }

    #[test]
    fn webhook_events_verify_under_the_account() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let workload = workload(&format!("--workload webhook --secret {secret}")).unwrap();
        let wire = workload.request(7, 1_000);
        let head = http1::parse(&wire).unwrap().unwrap();
        assert_eq!(head.path(), "/hooks/standard_webhooks/load");
        let mut account = Account::new(ChannelKind::StandardWebhooks, "load", TenantId(1));
        account.secrets = vec![Secret::new(secret)];
        let headers = head.header_pairs();
        let body = &wire[head.head_bytes..];
        let incoming = Incoming { method: "POST", path: head.path(), query: "", headers: &headers, body };
        let ambient = Ambient { now_s: 1_000, keys: &NoKeys, entropy: [0; 16] };
        let Ok(Decoded::Events { events, .. }) = channel::decode(&account, &incoming, &ambient) else {
            panic!("it verifies")
        };
        let [event] = &events[..] else { panic!("one event, not {}", events.len()) };
        assert_eq!((event.event_key.as_str(), event.chat.as_str()), ("load_5_7", "load-7"));
    }

    #[test]
    fn slack_events_verify_under_the_account() {
        let workload = workload("--workload slack --secret 8f742231b10e8888abcd99 --conversations 3").unwrap();
        let wire = workload.request(7, 1_000);
        let head = http1::parse(&wire).unwrap().unwrap();
        assert_eq!(head.path(), "/hooks/slack/load");
        let headers = head.header_pairs();
        let body = &wire[head.head_bytes..];
        let incoming = Incoming { method: "POST", path: head.path(), query: "", headers: &headers, body };
        let ambient = Ambient { now_s: 1_000, keys: &NoKeys, entropy: [0; 16] };
        let Ok(Decoded::Events { events, .. }) = channel::decode(&workload.slack, &incoming, &ambient) else {
            panic!("it verifies")
        };
        assert_eq!((events.len(), events[0].chat.as_str()), (1, "D1"));
        assert_ne!(workload.request(8, 1_000), wire);
    }

    #[test]
    fn what_cannot_work_is_refused_at_the_start() {
        assert!(workload("--workload slack").is_err());
        assert!(workload("--workload webhook").is_err());
        assert!(workload("--workload webhook --secret whpk_x").is_err());
        assert!(workload("--workload webhook --secret whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw --account a/b").is_err());
    }
}
