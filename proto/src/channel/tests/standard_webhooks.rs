//! Standard Webhooks: how messages are read, and that a signature leaves no freedom.

use super::*;
use crate::channel::standard_webhooks::{check_secret, sign};

fn signed<'a>(id: &'a str, timestamp: &'a str, signature: &'a str) -> Vec<(&'a str, &'a [u8])> {
    vec![
        ("Webhook-Id", id.as_bytes()),
        ("webhook-timestamp", timestamp.as_bytes()),
        ("webhook-signature", signature.as_bytes()),
    ]
}

/// Signs with the account's only secret and decodes.
fn webhook(body: &str) -> Result<Decoded, Reject> {
    let account = account(ChannelKind::StandardWebhooks, &[WHSEC]);
    let signature = sign(&account.secrets[0], "msg_1", NOW_S, body.as_bytes()).unwrap();
    post(&account, &signed("msg_1", &NOW_S.to_string(), &signature), body.as_bytes())
}

fn event(decoded: Result<Decoded, Reject>) -> InboundEvent {
    match decoded {
        Ok(Decoded::Events { mut events, .. }) if events.len() == 1 => events.remove(0),
        other => panic!("expected one event, got {other:?}"),
    }
}

#[test]
fn messages_are_read_flat_and_nested() {
    let mut expected = InboundEvent::new(EventKind::Message, "msg_1", "u", "5");
    expected.text = "hi".into();
    let flat = r#"{"type":"message","conversation":5,"user":"u","text":" hi\n"}"#;
    assert_eq!(event(webhook(flat)), expected);
    let nested =
        r#"{"type":"message","timestamp":"2026-01-01T00:00:00Z","data":{"conversation":"5","user":"u","text":"hi"}}"#;
    assert_eq!(event(webhook(nested)), expected);
}

#[test]
fn any_other_type_is_a_change_of_another_system() {
    let change = event(webhook(r#"{"type":"order.paid","data":{"id":7}}"#));
    assert_eq!((change.kind, change.mentioned), (EventKind::DataChange, false));
    assert_eq!((change.chat.as_str(), change.user.as_str()), ("shop", "webhook"));
    assert_eq!(change.change, Some(("shop".into(), "order.paid".into())));
}

#[test]
fn a_signed_body_that_says_nothing_is_malformed() {
    for bad in [
        r#"{"type":"message"}"#,
        r#"{"type":"message","text":"  "}"#,
        r#"{"type":"message","text":"x","user":{}}"#,
        r#"{"type":"message","text":"x","user":""}"#,
        "[]",
        "x",
    ] {
        assert_eq!(webhook(bad).expect_err(bad).status(), 400, "{bad}");
    }
    let long = format!(r#"{{"type":"message","text":"{}"}}"#, "x".repeat(70_000));
    assert_eq!(webhook(&long).unwrap_err().status(), 413);
}

const BODY: &[u8] = br#"{"type":"message","text":"x"}"#;

/// An account in the middle of a rotation: current and earlier secret.
fn rotating() -> Account {
    account(ChannelKind::StandardWebhooks, &[WHSEC, "whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4"])
}

fn status(account: &Account, headers: &[(&str, &[u8])]) -> u16 {
    post(account, headers, BODY).map_or_else(|reject| reject.status(), |_| 200)
}

#[test]
fn either_secret_of_a_rotation_is_good() {
    let account = rotating();
    let timestamp = NOW_S.to_string();
    let signatures: Vec<String> =
        account.secrets.iter().map(|secret| sign(secret, "m", NOW_S, BODY).unwrap()).collect();
    for signature in &signatures {
        assert_eq!(status(&account, &signed("m", &timestamp, signature)), 200);
    }
    let both = signatures.join(" ");
    assert_eq!(status(&account, &signed("m", &timestamp, &both)), 200);
    let third = Secret::new("whsec_dGhpcmQtc2VjcmV0LW9mLW5vYm9keQ==");
    let foreign = sign(&third, "m", NOW_S, BODY).unwrap();
    assert_eq!(status(&account, &signed("m", &timestamp, &foreign)), 401);
}

#[test]
fn headers_may_not_come_twice() {
    let account = rotating();
    let timestamp = NOW_S.to_string();
    let signature = sign(&account.secrets[0], "m", NOW_S, BODY).unwrap();
    let good = signed("m", &timestamp, &signature);
    for again in ["WEBHOOK-ID", "Webhook-Timestamp", "WEBHOOK-SIGNATURE"] {
        let twice = [good.clone(), vec![(again, &b"v1,x"[..])]].concat();
        assert_eq!(status(&account, &twice), 400, "{again}");
    }
    for gone in 0..good.len() {
        let mut without = good.clone();
        without.remove(gone);
        assert_eq!(status(&account, &without), 401, "without {}", good[gone].0);
    }
}

#[test]
fn a_list_of_signatures_is_bounded() {
    let account = rotating();
    let signature = sign(&account.secrets[0], "m", NOW_S, BODY).unwrap();
    let many = format!("{}{signature}", "v1,eA== ".repeat(20));
    assert_eq!(status(&account, &signed("m", &NOW_S.to_string(), &many)), 401);
}

#[test]
fn the_id_may_not_reach_into_the_timestamp() {
    let account = rotating();
    let shifted = sign(&account.secrets[0], "m.1", NOW_S, BODY).unwrap();
    assert_eq!(status(&account, &signed("m.1", &NOW_S.to_string(), &shifted)), 401);
}

#[test]
fn odd_timestamps_are_refused() {
    let account = rotating();
    let signature = sign(&account.secrets[0], "m", NOW_S, BODY).unwrap();
    for bad in ["+1767225600", " 1767225600", "01767225600", "1767225600.0", "", "99999999999999999999", "0x10", "-1"] {
        assert_eq!(status(&account, &signed("m", bad, &signature)), 401, "{bad:?}");
    }
}

#[test]
fn a_timestamp_counts_within_the_skew_only() {
    let account = rotating();
    let skew_s = crate::limits::WEBHOOK_SKEW_S;
    for (sent_s, expected) in
        [(NOW_S - skew_s, 200), (NOW_S + skew_s, 200), (NOW_S - skew_s - 1, 401), (NOW_S + skew_s + 1, 401)]
    {
        let signature = sign(&account.secrets[0], "m", sent_s, BODY).unwrap();
        assert_eq!(status(&account, &signed("m", &sent_s.to_string(), &signature)), expected, "{sent_s}");
    }
}

#[test]
fn an_unusable_secret_is_our_fault_not_the_senders() {
    let account = account(ChannelKind::StandardWebhooks, &["not base64!"]);
    let signature = sign(&Secret::new(WHSEC), "m", NOW_S, BODY).unwrap();
    assert_eq!(status(&account, &signed("m", &NOW_S.to_string(), &signature)), 503);
    assert!(check_secret(&account.secrets[0]).is_err());
    assert_eq!(check_secret(&Secret::new(WHSEC)), Ok(()));
}

proptest! {
    #[test]
    fn random_requests_are_refused(body in proptest::collection::vec(any::<u8>(), 0..200), id in ".{0,20}", time in ".{0,12}", signature in "(v1,|v1a,|v2,| )?.{0,80}") {
        let account = account(ChannelKind::StandardWebhooks, &[WHSEC, "whpk_roKgcoop4u65jRxfWwucP1XZIpalPwrhpoRCJWo6cQA="]);
        prop_assert!(post(&account, &signed(&id, &time, &signature), &body).is_err());
        // What would happen behind a valid signature.
        let _ = webhook(&String::from_utf8_lossy(&body));
    }
}
