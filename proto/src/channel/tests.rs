//! The published vectors of every channel, and what goes out.

use super::*;
use crate::id::{ConversationId, EffectKey, TenantId};
use crate::record::{ChatAddress, DeliveryState};
use proptest::prelude::*;
use serde_json::Value;

const VECTORS: &str = include_str!("../../../tests/data/channel_vectors.json");

fn account(kind: ChannelKind, secrets: &[&str]) -> Account {
    Account {
        kind,
        name: "shop".into(),
        tenant: TenantId(1),
        secrets: secrets.iter().map(|secret| Secret::new(*secret)).collect(),
        bot_token: Some(Secret::new("123:token")),
        api_base: None,
        reply_url: Some("https://example.org/in".into()),
        bot_username: None,
    }
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
        created_ms: 1_767_225_600_000,
        due_ms: 0,
        expires_ms: 0,
        attempt: 0,
        state: DeliveryState::Pending,
        detail: String::new(),
    }
}

fn run(vector: &Value) -> Result<(), String> {
    let kind = ChannelKind::parse(vector["channel"].as_str().unwrap()).unwrap();
    let secrets: Vec<&str> = vector["secrets"].as_object().unwrap().values().filter_map(Value::as_str).collect();
    let mut account = account(kind, &secrets);
    account.bot_username = vector["bot_username"].as_str().map(str::to_owned);
    let headers: Vec<(&str, &[u8])> = vector["headers"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().unwrap().as_bytes()))
        .collect();
    let incoming = Incoming { headers: &headers, body: vector["body"].as_str().unwrap().as_bytes() };
    let result = decode(&account, &incoming, vector["now"].as_u64().unwrap_or(0));
    match (vector["expect"].as_str().unwrap(), result) {
        ("reject", Err(_)) => Ok(()),
        ("accept", Ok(Decoded::Event(event))) => compare(&vector["event"], &event),
        (expected, result) => Err(format!("expected {expected}, got {result:?}")),
    }
}

fn compare(expected: &Value, event: &InboundEvent) -> Result<(), String> {
    let Some(expected) = expected.as_object() else { return Ok(()) };
    for (key, value) in expected {
        let found = match key.as_str() {
            "kind" => Value::from(event.kind.as_str()),
            "user_id" => Value::from(event.user.as_str()),
            "chat_id" => Value::from(event.chat.as_str()),
            "thread_id" => Value::from(event.thread.clone()),
            "message_id" => Value::from(event.message_id.clone()),
            "text" => Value::from(event.text.as_str()),
            "dedup_key" => Value::from(event.event_key.as_str()),
            "mentioned" => Value::from(event.mentioned),
            other => return Err(format!("the vector compares {other:?}, which no event has")),
        };
        if &found != value {
            return Err(format!("{key}: expected {value}, got {found}"));
        }
    }
    Ok(())
}

#[test]
fn published_vectors() {
    let vectors: Vec<Value> = serde_json::from_str(VECTORS).unwrap();
    let mut failures = Vec::new();
    for kind in ChannelKind::ALL {
        let mine: Vec<&Value> = vectors.iter().filter(|vector| vector["channel"] == kind.as_str()).collect();
        let before = failures.len();
        for vector in &mine {
            if let Err(why) = run(vector) {
                failures.push(format!("{kind}/{}: {why}", vector["name"]));
            }
        }
        let failed = failures.len() - before;
        println!("{kind}: {} passed, {failed} failed", mine.len() - failed);
        assert!(mine.len() >= 7, "{kind} has its vectors");
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn signed<'a>(id: &'a str, timestamp: &'a str, signature: &'a str) -> Vec<(&'a str, &'a [u8])> {
    vec![
        ("Webhook-Id", id.as_bytes()),
        ("webhook-timestamp", timestamp.as_bytes()),
        ("webhook-signature", signature.as_bytes()),
    ]
}

const NOW: u64 = 1_767_225_600;

/// Signs with the account's first secret and decodes.
fn webhook(body: &str) -> Result<Decoded, Reject> {
    let account = account(ChannelKind::StandardWebhooks, &["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]);
    let signature = standard_webhooks::sign(&account.secrets[0], "msg_1", NOW, body.as_bytes()).unwrap();
    let timestamp = NOW.to_string();
    let headers = signed("msg_1", &timestamp, &signature);
    decode(&account, &Incoming { headers: &headers, body: body.as_bytes() }, NOW)
}

#[test]
fn webhook_messages_are_read_flat_and_nested() {
    let expected = InboundEvent {
        event_key: "msg_1".into(),
        user: "u".into(),
        chat: "5".into(),
        thread: None,
        message_id: None,
        text: "hi".into(),
        kind: EventKind::Message,
        mentioned: true,
    };
    let flat = r#"{"type":"message","conversation":5,"user":"u","text":" hi\n"}"#;
    assert_eq!(webhook(flat), Ok(Decoded::Event(expected.clone())));
    let nested =
        r#"{"type":"message","timestamp":"2026-01-01T00:00:00Z","data":{"conversation":"5","user":"u","text":"hi"}}"#;
    assert_eq!(webhook(nested), Ok(Decoded::Event(expected)));
    let Ok(Decoded::Event(change)) = webhook(r#"{"type":"order.paid","data":{"id":7}}"#) else { panic!("an event") };
    assert_eq!((change.kind, change.chat.as_str(), change.user.as_str()), (EventKind::DataChange, "shop", "webhook"));
    for (bad, status) in [
        (r#"{"type":"message"}"#, 400),
        (r#"{"type":"message","text":"  "}"#, 400),
        (r#"{"type":"message","text":"x","user":{}}"#, 400),
        (r#"{"type":"message","text":"x","user":""}"#, 400),
        ("[]", 400),
        ("x", 400),
    ] {
        assert_eq!(webhook(bad).expect_err(bad).status(), status);
    }
    let long = format!(r#"{{"type":"message","text":"{}"}}"#, "x".repeat(70_000));
    assert_eq!(webhook(&long).unwrap_err().status(), 413);
}

#[test]
fn signatures_leave_no_freedom() {
    let secrets = ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4"];
    let account = account(ChannelKind::StandardWebhooks, &secrets);
    let body = br#"{"type":"message","text":"x"}"#;
    let timestamp = NOW.to_string();
    let decode_with = |headers: &[(&str, &[u8])]| decode(&account, &Incoming { headers, body }, NOW);
    // Either secret of a rotation is good.
    for secret in &account.secrets {
        let signature = standard_webhooks::sign(secret, "m", NOW, body).unwrap();
        assert!(decode_with(&signed("m", &timestamp, &signature)).is_ok());
    }
    let signature = standard_webhooks::sign(&account.secrets[0], "m", NOW, body).unwrap();
    let good = signed("m", &timestamp, &signature);
    let twice = [good.clone(), vec![("WEBHOOK-SIGNATURE", &b"v1,x"[..])]].concat();
    assert_eq!(decode_with(&twice).unwrap_err().status(), 400);
    let many = format!("{}{signature}", "v1,eA== ".repeat(20));
    assert_eq!(decode_with(&signed("m", &timestamp, &many)).unwrap_err().status(), 401);
    // The id may not reach into the timestamp.
    let shifted = standard_webhooks::sign(&account.secrets[0], "m.1", NOW, body).unwrap();
    assert_eq!(decode_with(&signed("m.1", &timestamp, &shifted)).unwrap_err().status(), 401);
    for bad in ["+1767225600", " 1767225600", "1767225600.0", "", "99999999999999999999", "0x10"] {
        assert_eq!(decode_with(&signed("m", bad, &signature)).unwrap_err().status(), 401, "{bad:?}");
    }
    let no_secret = super::tests::account(ChannelKind::StandardWebhooks, &["not base64!"]);
    assert_eq!(decode(&no_secret, &Incoming { headers: &good, body }, NOW).unwrap_err().status(), 503);
    assert!(standard_webhooks::check_secret(&no_secret.secrets[0]).is_err());
}

#[test]
fn a_webhook_reply_verifies_at_the_receiver() {
    let account = account(ChannelKind::StandardWebhooks, &["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]);
    let call = encode_reply(&account, &job("done"), NOW).unwrap();
    assert!(call.idempotent);
    let headers: Vec<(&str, &[u8])> = call.headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
    let Ok(Decoded::Event(event)) = decode(&account, &Incoming { headers: &headers, body: &call.body }, NOW) else {
        panic!("the reply verifies under our own check")
    };
    assert_eq!(event.event_key, job("").key.to_string());
    let body: Value = serde_json::from_slice(&call.body).unwrap();
    assert_eq!(
        (body["data"]["text"].as_str(), body["timestamp"].as_str()),
        (Some("done"), Some("2026-01-01T00:00:00.000Z"))
    );
    let mut without = account;
    without.reply_url = None;
    assert!(encode_reply(&without, &job("x"), NOW).unwrap_err().to_string().contains("reply_url"));
}

#[test]
fn telegram_replies_hide_the_token_from_logs() {
    let call = encode_reply(&account(ChannelKind::Telegram, &["s"]), &job("done"), NOW).unwrap();
    assert_eq!(call.url, "https://api.telegram.org/bot123:token/sendMessage");
    assert!(!call.idempotent);
    assert!(!format!("{call:?}").contains("token"), "{call:?}");
    let body: Value = serde_json::from_slice(&call.body).unwrap();
    assert_eq!(body["chat_id"], -100_123);
    assert_eq!(
        (&body["message_thread_id"], &body["reply_parameters"]["message_id"]),
        (&Value::from(3), &Value::from(7))
    );
    assert_eq!(format!("{:?}", Secret::new("hush")), "Secret(redacted)");
}

fn telegram(username: Option<&str>, update: &str) -> Result<Decoded, Reject> {
    let mut account = account(ChannelKind::Telegram, &["s3cret"]);
    account.bot_username = username.map(str::to_owned);
    let headers = [("X-Telegram-Bot-Api-Secret-Token", &b"s3cret"[..])];
    decode(&account, &Incoming { headers: &headers, body: update.as_bytes() }, 0)
}

#[test]
fn telegram_groups_need_a_mention() {
    let update = |text: &str, entities: &str, extra: &str| {
        format!(
            r#"{{"update_id":1,"message":{{"message_id":2,"from":{{"id":5}},"chat":{{"id":-9,"type":"group"}},"text":"{text}","entities":[{entities}]{extra}}}}}"#
        )
    };
    let event = |update: String| match telegram(Some("Corp_Bot"), &update) {
        Ok(Decoded::Event(event)) => Ok(event.text),
        Ok(Decoded::Ignore { why }) => Err(why),
        other => panic!("{other:?}"),
    };
    assert_eq!(event(update("hello", "", "")), Err("not addressed to us"));
    assert_eq!(
        event(update("🙂 @corp_bot hi", r#"{"type":"mention","offset":3,"length":9}"#, "")),
        Ok("🙂  hi".into())
    );
    assert_eq!(
        event(update("@other hi", r#"{"type":"mention","offset":0,"length":6}"#, "")),
        Err("not addressed to us")
    );
    assert_eq!(
        event(update("/ask@corp_bot x", r#"{"type":"bot_command","offset":0,"length":13}"#, "")),
        Ok("/ask x".into())
    );
    assert_eq!(
        event(update("/ask@other x", r#"{"type":"bot_command","offset":0,"length":10}"#, "")),
        Err("not addressed to us")
    );
    assert_eq!(event(update("@corp_bot", r#"{"type":"mention","offset":0,"length":9}"#, "")), Err("no text"));
    let reply = r#","reply_to_message":{"from":{"id":1,"is_bot":true,"username":"corp_bot"}}"#;
    assert_eq!(event(update("hello", "", reply)), Ok("hello".into()));
    // Ranges that do not lie on characters are skipped, not followed.
    for range in
        [r#""offset":99,"length":1"#, r#""offset":1,"length":18446744073709551615"#, r#""offset":0,"length":1"#]
    {
        let _ = event(update("🙂", &format!(r#"{{"type":"mention",{range}}}"#), ""));
    }
}

#[test]
fn telegram_answers_are_classified() {
    let classify = |status, body: &str| super::classify(ChannelKind::Telegram, status, None, body.as_bytes());
    assert_eq!(
        classify(200, r#"{"ok":true,"result":{"message_id":42}}"#),
        Delivery::Delivered { receipt: Some("42".into()) }
    );
    assert!(
        matches!(classify(429, r#"{"ok":false,"parameters":{"retry_after":7}}"#), Delivery::Retry { after: Some(after), .. } if after.as_secs() == 7)
    );
    assert!(matches!(classify(500, r#"{"ok":false,"description":"x"}"#), Delivery::Retry { after: None, .. }));
    assert!(matches!(classify(502, "<html>"), Delivery::Unknown { .. }));
    assert!(matches!(classify(200, "<html>"), Delivery::Unknown { .. }));
    assert!(
        matches!(classify(403, r#"{"ok":false,"description":"bot was blocked"}"#), Delivery::Dead { why } if why.contains("blocked"))
    );
}

#[test]
fn webhook_answers_are_classified() {
    let classify = |status, after| super::classify(ChannelKind::StandardWebhooks, status, after, b"");
    assert_eq!(classify(204, None), Delivery::Delivered { receipt: None });
    assert!(matches!(classify(410, None), Delivery::Dead { .. }));
    assert!(matches!(classify(400, None), Delivery::Dead { .. }));
    assert!(matches!(classify(302, None), Delivery::Retry { .. }));
    assert!(matches!(classify(503, Some("30")), Delivery::Retry { after: Some(after), .. } if after.as_secs() == 30));
    assert!(matches!(classify(503, Some("-1")), Delivery::Retry { after: None, .. }));
    assert!(matches!(classify(503, Some("99999999999999999999")), Delivery::Retry { after: Some(_), .. }));
}

proptest! {
    #[test]
    fn random_requests_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200), id in ".{0,20}", time in ".{0,12}", signature in "(v1,|v1a,|v2,| )?.{0,80}") {
        let account = account(ChannelKind::StandardWebhooks, &["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whpk_roKgcoop4u65jRxfWwucP1XZIpalPwrhpoRCJWo6cQA="]);
        let headers = signed(&id, &time, &signature);
        let result = decode(&account, &Incoming { headers: &headers, body: &body }, NOW);
        prop_assert!(result.is_err());
        let text = String::from_utf8_lossy(&body);
        let _ = webhook(&text);
        let _ = telegram(None, &text);
    }

    /// Updates of the right shape with any text and any entity range.
    #[test]
    fn random_updates_never_panic(text in ".{0,30}", offset in 0usize..40, length in 0usize..40, kind in "(mention|bot_command|text_mention)") {
        let text = Value::from(text).to_string();
        let update = format!(r#"{{"update_id":1,"message":{{"message_id":2,"chat":{{"id":1,"type":"private"}},"text":{text},"entities":[{{"type":"{kind}","offset":{offset},"length":{length}}}]}}}}"#);
        prop_assert!(telegram(Some("b"), &update).is_ok());
    }

    #[test]
    fn answers_never_panic(status in 0u16..1000, body in proptest::collection::vec(any::<u8>(), 0..100), after in proptest::option::of(".{0,30}")) {
        for kind in ChannelKind::ALL {
            let _ = classify(kind, status, after.as_deref(), &body);
        }
    }
}
