//! What the answers of a platform mean for a delivery.

use super::*;
use std::time::Duration;

fn telegram(status: u16, body: &str) -> Delivery {
    classify(ChannelKind::Telegram, &Answered { status, retry_after: None, body: body.as_bytes() })
}

fn webhook(status: u16, retry_after: Option<&str>) -> Delivery {
    classify(ChannelKind::StandardWebhooks, &Answered { status, retry_after, body: b"" })
}

/// The pause of a retry; anything else fails the test.
fn pause(delivery: Delivery) -> Option<Duration> {
    match delivery {
        Delivery::Retry { after, .. } => after,
        other => panic!("expected a retry, got {other:?}"),
    }
}

#[test]
fn telegram_says_in_the_body_whether_it_sent() {
    let delivered = Delivery::Delivered { receipt: Some("42".into()) };
    assert_eq!(telegram(200, r#"{"ok":true,"result":{"message_id":42}}"#), delivered);
    let limited = telegram(429, r#"{"ok":false,"parameters":{"retry_after":7}}"#);
    assert_eq!(pause(limited), Some(Duration::from_secs(7)));
    assert_eq!(pause(telegram(500, r#"{"ok":false,"description":"x"}"#)), None);
    // A proxy in between cannot know, and Telegram would send a repetition once more.
    for status in [200, 502] {
        let unknown = telegram(status, "<html>");
        assert!(matches!(unknown, Delivery::Unknown { .. }), "{status}: {unknown:?}");
    }
}

#[test]
fn telegram_refusals_say_why() {
    for (status, body, why) in [
        (403, r#"{"ok":false,"description":"bot was blocked"}"#, "blocked"),
        (400, r#"{"ok":false,"parameters":{"migrate_to_chat_id":-1009}}"#, "-1009"),
    ] {
        let dead = telegram(status, body);
        assert!(matches!(&dead, Delivery::Dead { why: said } if said.contains(why)), "{status}: {dead:?}");
    }
}

#[test]
fn a_receiver_of_webhooks_answers_by_status() {
    assert_eq!(webhook(204, None), Delivery::Delivered { receipt: None });
    for status in [400, 401, 403, 404, 410] {
        let dead = webhook(status, None);
        assert!(matches!(dead, Delivery::Dead { .. }), "{status}: {dead:?}");
    }
    // Redirects are not followed: they would carry the signature to another host.
    for status in [302, 408, 425, 429, 500, 503] {
        assert_eq!(pause(webhook(status, None)), None, "{status}");
    }
}

#[test]
fn retry_after_is_taken_in_seconds_and_bounded() {
    assert_eq!(pause(webhook(503, Some("30"))), Some(Duration::from_secs(30)));
    assert_eq!(pause(webhook(503, Some("-1"))), None);
    assert_eq!(pause(webhook(503, Some("Thu, 01 Jan 2026 00:00:00 GMT"))), None);
    let longest = Duration::from_secs(crate::limits::RETRY_DELAY_S_MAX);
    assert_eq!(pause(webhook(503, Some("99999999999999999999"))), Some(longest));
    let limited = telegram(429, r#"{"ok":false,"parameters":{"retry_after":18446744073709551615}}"#);
    assert_eq!(pause(limited), Some(longest));
}

proptest! {
    #[test]
    fn answers_never_panic(status in 0u16..1000, body in proptest::collection::vec(any::<u8>(), 0..100), after in proptest::option::of(".{0,30}")) {
        for kind in ChannelKind::ALL {
            let _ = classify(*kind, &Answered { status, retry_after: after.as_deref(), body: &body });
        }
    }
}
