//! A sample must pass the verifier of its own platform, and no changed one may.

use super::*;
use crate::channel::{Ambient, Decoded, Incoming, NoKeys, Reject, Secret, decode};
use crate::id::TenantId;
use proptest::prelude::*;

const NOW_S: u64 = 1_767_225_600;
const AES_KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

/// An account with every setting that its platform needs, and no optional one.
fn account(kind: ChannelKind) -> Account {
    let mut account = Account::new(kind, "shop", TenantId(1));
    let secret = match kind {
        ChannelKind::StandardWebhooks => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        ChannelKind::TeamsOutgoing => "c2VjcmV0IG9mIHRlYW1z",
        _ => "word-of-the-platform",
    };
    account.secrets = vec![Secret::new(secret)];
    for need in kind.spec().needs.iter().filter(|need| need.required) {
        let text = Some("setting".to_owned());
        match need.key {
            "secrets" => {}
            "encryption_keys" => account.encryption_keys = vec![Secret::new(AES_KEY)],
            "verify_token" => account.verify_token = Some(Secret::new("verify")),
            "bot_token" => account.bot_token = Some(Secret::new("token")),
            "app_secret" => account.app_secret = Some(Secret::new("app")),
            "app_id" => account.app_id = text,
            "bot_id" => account.bot_id = text,
            "sender" => account.sender = text,
            "mode" => account.mode = Some("project_number".to_owned()),
            "public_url" => account.public_url = Some("https://bot.example".to_owned()),
            "api_base" => account.api_base = Some("https://chat.example".to_owned()),
            "reply_url" => account.reply_url = Some(Secret::new("https://chat.example/in")),
            "topics" => account.topics = vec!["topic".to_owned()],
            other => panic!("{kind} needs {other}, which this test does not know"),
        }
    }
    assert_eq!(account.missing().next().map(|need| need.key), None, "{kind}");
    account
}

fn path(account: &Account) -> String {
    format!("/hooks/{}/{}", account.kind, account.name)
}

fn receive(account: &Account, request: &SampleRequest) -> Result<Decoded, Reject> {
    let headers: Vec<(&str, &[u8])> = request.headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    let path = format!("{}{}", path(account), request.path_tail);
    let incoming =
        Incoming { method: request.method, path: &path, query: &request.query, headers: &headers, body: &request.body };
    decode(account, &incoming, &Ambient { now_s: NOW_S, keys: &NoKeys, entropy: [1; 16] })
}

fn sample(account: &Account, text: &str, number: u64) -> Result<SampleRequest, Unsignable> {
    let scene = Scene { path: &path(account), now_s: NOW_S, entropy: [9; 16] };
    message(account, &Said { number, user: 7, chat: 8, text }, &scene)
}

#[test]
fn every_platform_takes_its_own_sample_or_keeps_its_key_to_itself() {
    let mut only_the_platform = Vec::new();
    for kind in ChannelKind::ALL {
        let account = account(*kind);
        let request = match sample(&account, "Hello, who are you?", 41) {
            Ok(request) => request,
            Err(Unsignable::PlatformOnly(_)) => {
                only_the_platform.push(kind.as_str());
                continue;
            }
            Err(error) => panic!("{kind}: {error}"),
        };
        match receive(&account, &request) {
            Ok(Decoded::Events { events, .. }) => {
                assert_eq!(events.len(), 1, "{kind}");
                let reports = matches!(kind, ChannelKind::DingTalkCallback | ChannelKind::GitHub);
                assert!(reports || events[0].text == "Hello, who are you?", "{kind}: {:?}", events[0].text);
                assert!(events[0].mentioned, "{kind}");
            }
            other => panic!("{kind}: {other:?}"),
        }
    }
    assert_eq!(only_the_platform, ["discord", "teams", "googlechat", "email_sendgrid", "email_sns"]);
}

#[test]
fn two_samples_are_two_events_and_another_secret_is_refused() {
    for kind in ChannelKind::ALL {
        let account = account(*kind);
        let (Ok(one), Ok(two)) = (sample(&account, "x", 1), sample(&account, "x", 2)) else { continue };
        let key = |request| match receive(&account, request) {
            Ok(Decoded::Events { events, .. }) => events[0].event_key.clone(),
            other => panic!("{kind}: {other:?}"),
        };
        assert_ne!(key(&one), key(&two), "{kind}");
        let mut stranger = account.clone();
        stranger.secrets = vec![Secret::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")];
        stranger.encryption_keys.iter_mut().for_each(|key| *key = Secret::new("A".repeat(43)));
        assert!(receive(&stranger, &one).is_err(), "{kind} takes a sample of another account");
    }
}

#[test]
fn an_account_without_secrets_signs_nothing() {
    for kind in ChannelKind::ALL {
        let bare = Account::new(*kind, "shop", TenantId(1));
        if *kind != ChannelKind::Feishu {
            assert!(sample(&bare, "x", 1).is_err(), "{kind}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes behind a valid proof are an answer or a refusal, never a panic.
    #[test]
    fn a_sender_that_holds_the_secret_cannot_break_the_reader(body in proptest::collection::vec(any::<u8>(), 0..300), pick in any::<prop::sample::Index>(), number in any::<u64>()) {
        let account = account(ChannelKind::ALL[pick.index(ChannelKind::ALL.len())]);
        let scene = Scene { path: &path(&account), now_s: NOW_S, entropy: [9; 16] };
        for content_type in ["application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"] {
            if let Ok(request) = signed(&account, content_type, &body, number, &scene) {
                let _ = receive(&account, &request);
            }
        }
    }

    /// What a person says arrives as it was said, but for spaces at its ends.
    #[test]
    fn what_is_said_arrives(text in "[^\u{0}-\u{1f}\\[\\]@<>&-]{1,80}", pick in any::<prop::sample::Index>()) {
        prop_assume!(!text.trim().is_empty());
        let kind = ChannelKind::ALL[pick.index(ChannelKind::ALL.len())];
        let account = account(kind);
        prop_assume!(!matches!(kind, ChannelKind::DingTalkCallback | ChannelKind::GitHub));
        if let Ok(request) = sample(&account, &text, 5) {
            match receive(&account, &request) {
                Ok(Decoded::Events { events, .. }) => prop_assert_eq!(&events[0].text, text.trim(), "{}", kind),
                other => prop_assert!(false, "{}: {:?}", kind, other),
            }
        }
    }
}

#[test]
fn no_secret_shows_in_what_debug_and_errors_print() {
    for kind in ChannelKind::ALL {
        let mut account = account(*kind);
        let canary = |what: &str| Secret::new(format!("canary-{what}-https"));
        account.secrets = vec![canary("current"), canary("previous")];
        account.encryption_keys = vec![canary("key")];
        account.verify_token = Some(canary("verify"));
        account.bot_token = Some(canary("bot"));
        account.app_secret = Some(canary("app"));
        account.reply_url = Some(canary("reply"));
        let mut shown = format!("{account:?}");
        match sample(&account, "Hello", 1) {
            Ok(request) => shown.push_str(&format!("{:?}", receive(&account, &request).map(|_| "taken"))),
            Err(error) => shown.push_str(&format!("{error} {error:?}")),
        }
        assert!(!shown.contains("canary"), "{kind}: {shown}");
    }
}
