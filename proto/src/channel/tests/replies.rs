//! What goes out: calls that verify at the receiver, say whether they may be repeated, and show no secret.

use super::*;

const TOKEN: &str = "aHVzaC1ib3QtdG9rZW4=";
const ACCESS: &str = "hush-access-token";
const APP_SECRET: &str = "hush-app-secret";

/// An account with every setting that any platform needs for a reply.
fn complete(kind: ChannelKind) -> Account {
    let mut account = account(kind, &[WHSEC]);
    account.encryption_keys = vec![Secret::new("hush-encryption-key")];
    account.verify_token = Some(Secret::new("hush-verify-token"));
    account.bot_token = Some(Secret::new(TOKEN));
    account.app_secret = Some(Secret::new(APP_SECRET));
    account.app_id = Some("app7".into());
    account.bot_id = Some("bot7".into());
    account.sender = Some("1000002".into());
    account.api_base = Some("https://api.example.org".into());
    account.reply_url = Some(Secret::new("https://example.org/in"));
    account
}

/// Reply handles in the forms of all platforms: an answer to one message takes another path than a new one.
fn handles() -> Vec<Option<String>> {
    let later_ms = (NOW_S + 60) * 1_000;
    let mut handles = vec![None];
    handles.extend(
        [
            "m7",
            "c2c/m7",
            "17/hush-interaction",
            "https://hooks.slack.com/commands/T1/2/x",
            "https://qyapi.weixin.qq.com/cgi-bin/aibot/response?response_code=x",
            r#"["https://smba.trafficmanager.net/emea/","19:a@thread.v2","m7"]"#,
            &format!(r#"["https://oapi.dingtalk.com/robot/sendBySession?session=x",{later_ms},"user7"]"#),
        ]
        .map(|handle| Some(handle.to_owned())),
    );
    handles
}

/// Every call that a platform can be made to make, with what it is.
fn calls(kind: ChannelKind) -> Vec<(&'static str, OutboundCall)> {
    handles().into_iter().flat_map(|handle| calls_with(kind, handle)).collect()
}

fn calls_with(kind: ChannelKind, handle: Option<String>) -> Vec<(&'static str, OutboundCall)> {
    let account = complete(kind);
    let mut calls = Vec::new();
    for step in [0, 1] {
        let mut job = job("hello");
        job.key.step = step;
        job.address.chat = "stream:7".into();
        job.address.reply_to = handle.clone();
        let out = Outgoing {
            account: &account,
            address: &job.address,
            key: &job.key,
            text: &job.text,
            buttons: &[],
            created_ms: job.created_ms,
            now_s: NOW_S,
            token: Some(ACCESS),
        };
        let made = [("send", Some(send(&out))), ("edit", edit(&out, "m7")), ("typing", typing(&out))];
        calls.extend(made.into_iter().filter_map(|(what, call)| Some((what, call?.ok()?))));
    }
    let access = kind.platform().access(&account, NOW_S, &ring::rand::SystemRandom::new());
    calls.extend(access.and_then(Result::ok).map(|call| ("access", call)));
    calls
}

#[test]
fn encoders_and_specs_agree_on_who_recognises_a_repetition() {
    for &kind in ChannelKind::ALL {
        let mut sent = 0;
        for handle in handles() {
            let mut address = job("hello").address;
            address.reply_to = handle.clone();
            let known = recognises_repetition(kind, &address);
            for (_, call) in calls_with(kind, handle).into_iter().filter(|(what, _)| *what == "send") {
                assert_eq!(call.idempotent, known, "{kind}: {call:?}");
                sent += 1;
            }
        }
        assert!(sent > 0, "{kind} sends with a complete account");
    }
}

#[test]
fn a_bot_of_qq_that_speaks_on_its_own_account_has_nothing_that_marks_a_repetition() {
    let mut address = job("hello").address;
    for (handle, known) in [(None, false), (Some("groups/"), false), (Some("groups/m7"), true)] {
        address.reply_to = handle.map(str::to_owned);
        assert_eq!(recognises_repetition(ChannelKind::QqBot, &address), known, "{handle:?}");
    }
}

#[test]
fn an_answer_to_one_message_may_take_another_path_than_a_new_message() {
    for kind in [ChannelKind::Discord, ChannelKind::Slack, ChannelKind::DingTalk, ChannelKind::QqBot] {
        let sent = calls(kind).into_iter().filter(|(what, _)| *what == "send");
        let urls: std::collections::HashSet<String> = sent.map(|(_, call)| call.url).collect();
        assert!(urls.len() > 1, "{kind} knows the form of its handle: {urls:?}");
    }
}

#[test]
fn debug_output_shows_no_secret() {
    assert_eq!(format!("{:?}", Secret::new("hush")), "Secret(redacted)");
    for &kind in ChannelKind::ALL {
        let shown = [format!("{:?}", complete(kind)), format!("{:?}", calls(kind))].concat();
        for secret in ["hush", TOKEN, WHSEC, ACCESS, APP_SECRET] {
            assert!(!shown.contains(secret), "{kind} shows {secret}");
        }
    }
}

/// Decodes a reply as a receiver with the given secret would.
fn receive(call: &OutboundCall, secret: &str) -> Result<Decoded, Reject> {
    let headers: Vec<(&str, &[u8])> = call.headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
    post(&account(ChannelKind::StandardWebhooks, &[secret]), &headers, &call.body)
}

#[test]
fn a_webhook_reply_verifies_at_the_receiver() {
    let call = encode_reply(&complete(ChannelKind::StandardWebhooks), &job("done"), None, NOW_S).unwrap();
    let Ok(Decoded::Events { events, .. }) = receive(&call, WHSEC) else {
        panic!("the reply verifies under our own check")
    };
    assert_eq!(events[0].event_key, job("").key.to_string());
    let body: Value = serde_json::from_slice(&call.body).unwrap();
    assert_eq!(body["data"]["text"], "done");
    assert_eq!(body["timestamp"], "2026-01-01T00:00:00.000Z");
    let mut changed = call;
    changed.body.push(b' ');
    assert_eq!(receive(&changed, WHSEC).unwrap_err().status(), 401);
}

#[test]
fn a_webhook_reply_is_signed_with_every_secret_of_a_rotation() {
    let mut account = complete(ChannelKind::StandardWebhooks);
    let earlier = "whsec_YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4";
    account.secrets.push(Secret::new(earlier));
    let call = encode_reply(&account, &job("done"), None, NOW_S).unwrap();
    for secret in [WHSEC, earlier] {
        assert!(receive(&call, secret).is_ok());
    }
}

#[test]
fn a_channel_that_only_reports_answers_with_a_signed_webhook() {
    for kind in [ChannelKind::GitHub, ChannelKind::EmailSns, ChannelKind::DingTalkCallback] {
        let call = encode_reply(&complete(kind), &job("done"), None, NOW_S).unwrap();
        assert!(receive(&call, TOKEN).is_ok(), "{kind}");
    }
}

#[test]
fn a_webhook_account_that_cannot_reply_says_what_to_set() {
    let refusal = |account: &Account| encode_reply(account, &job("x"), None, NOW_S).unwrap_err().to_string();
    let mut account = complete(ChannelKind::StandardWebhooks);
    account.secrets = vec![Secret::new("whpk_roKgcoop4u65jRxfWwucP1XZIpalPwrhpoRCJWo6cQA=")];
    assert!(refusal(&account).contains("whsec_"), "a public key cannot sign");
    account.reply_url = None;
    assert!(refusal(&account).contains("reply_url"));
}

#[test]
fn telegram_replies_go_to_the_topic_and_hide_the_token_from_logs() {
    let mut account = account(ChannelKind::Telegram, &["s"]);
    account.bot_token = Some(Secret::new("123:token"));
    let call = encode_reply(&account, &job("done"), None, NOW_S).unwrap();
    assert_eq!(call.url, "https://api.telegram.org/bot123:token/sendMessage");
    assert!(!format!("{call:?}").contains("token"), "{call:?}");
    let body: Value = serde_json::from_slice(&call.body).unwrap();
    assert_eq!(body["chat_id"], -100_123);
    assert_eq!(body["message_thread_id"], 3);
    assert_eq!(body["reply_parameters"]["message_id"], 7);
}
