//! The published vectors of every channel, and random input for every one of them.

use super::vectors::{self, Case};
use super::*;
use crate::id::{ConversationId, EffectKey, TenantId};
use crate::record::{ChatAddress, DeliveryState};
use proptest::prelude::*;
use serde_json::Value;

mod answers;
mod replies;
mod standard_webhooks;
mod telegram;

const VECTORS: &str = include_str!("../../../tests/data/channel_vectors.json");

/// 2026-01-01T00:00:00Z.
const NOW_S: u64 = 1_767_225_600;
const WHSEC: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn account(kind: ChannelKind, secrets: &[&str]) -> Account {
    let mut account = Account::new(kind, "shop", TenantId(1));
    account.secrets = secrets.iter().map(|secret| Secret::new(*secret)).collect();
    account
}

/// Decodes a POST at [`NOW_S`].
fn post(account: &Account, headers: &[(&str, &[u8])], body: &[u8]) -> Result<Decoded, Reject> {
    let incoming = Incoming { method: "POST", path: "/", query: "", headers, body };
    decode(account, &incoming, &Ambient { now_s: NOW_S, keys: &NoKeys, entropy: [0; 16] })
}

fn job(text: &str) -> OutboxJob {
    OutboxJob {
        key: EffectKey { conversation: ConversationId([0xab; 16]), turn: 4, step: 0 },
        tenant: TenantId(1),
        address: ChatAddress {
            channel: "telegram".into(),
            account: "shop".into(),
            chat: "-100123".into(),
            thread: Some("3".into()),
            reply_to: Some("7".into()),
        },
        text: text.into(),
        created_ms: NOW_S * 1_000,
        due_ms: 0,
        expires_ms: 0,
        attempt: 0,
        state: DeliveryState::Pending,
        detail: String::new(),
    }
}

#[test]
fn every_vector_of_every_channel_holds() {
    let mut documents = vec![VECTORS.to_owned()];
    if let Some(path) = std::env::var_os("MILLRACE_CHANNEL_VECTORS") {
        documents.push(std::fs::read_to_string(&path).expect("MILLRACE_CHANNEL_VECTORS names a file"));
    }
    let mut failures = Vec::new();
    for document in &documents {
        let tallies = vectors::run(document).expect("a list of vectors");
        for tally in &tallies {
            println!("{}: {} passed, {} failed", tally.channel, tally.passed, tally.failed.len());
            failures.extend(tally.failed.iter().map(|why| format!("{}/{why}", tally.channel)));
        }
    }
    let known = vectors::run(VECTORS).expect("a list of vectors");
    for kind in ChannelKind::ALL {
        let tally = known.iter().find(|tally| tally.channel == kind.as_str());
        assert!(tally.is_some_and(|tally| tally.passed >= 5), "{kind} has its vectors");
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn cases() -> Vec<(Value, Case)> {
    let vectors: Vec<Value> = serde_json::from_str(VECTORS).expect("JSON");
    vectors
        .into_iter()
        .map(|vector| {
            let case = Case::read(&vector).expect("a case");
            (vector, case)
        })
        .collect()
}

#[test]
fn an_account_without_secrets_lets_nothing_in() {
    for (vector, mut case) in cases() {
        case.account.secrets = vec![Secret::new("")];
        case.account.encryption_keys = vec![Secret::new("")];
        case.account.verify_token = Some(Secret::new(""));
        case.account.app_id = None;
        case.account.topics = Vec::new();
        let opened = case.with(|account, incoming, ambient| verify(account, incoming, ambient).map(|_| ()));
        assert!(opened.is_err(), "{}/{}", vector["channel"], vector["name"]);
    }
}

#[test]
fn a_flipped_bit_of_a_signed_body_is_refused_or_means_the_same() {
    for (vector, mut case) in cases().into_iter().filter(|(vector, _)| vector["expect"] == "accept") {
        if !case.account.kind.spec().covers_body || vector["layer"] == "decrypt" {
            continue;
        }
        let before = case.with(decode);
        for at in (0..case.body.len()).step_by(1 + case.body.len() / 40) {
            case.body[at] ^= 1;
            let after = case.with(decode);
            assert!(after.is_err() || after == before, "{}/{} byte {at}", vector["channel"], vector["name"]);
            case.body[at] ^= 1;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes in place of the body, a header or the query are an answer or a refusal, never a panic.
    #[test]
    fn random_requests_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,60}", pick in any::<prop::sample::Index>()) {
        let mut all = cases();
        let (_, case) = &mut all[pick.index(243)];
        let platform = case.account.kind.platform();
        case.with(|account, incoming, ambient| {
            let headers: Vec<(&str, &[u8])> = incoming.headers.iter().map(|(name, _)| (*name, text.as_bytes())).collect();
            for changed in [
                Incoming { body: &body, ..*incoming },
                Incoming { headers: &headers, ..*incoming },
                Incoming { query: &text, ..*incoming },
            ] {
                let _ = decode(account, &changed, ambient);
                // What would happen behind a valid signature.
                let request = Request { account, incoming: changed, ambient: *ambient };
                let _ = platform.read(&request, &body);
                let _ = platform.read(&request, text.as_bytes());
            }
        });
    }
}
