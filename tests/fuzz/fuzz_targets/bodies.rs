//! The readers of every channel behind a valid proof: JSON, forms, multipart, XML, mail and envelopes of any bytes.
//!
//! The first byte picks the channel (`MILLRACE_FUZZ_CHANNEL=slack` keeps to one), the second the content type.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::channel::sample::{Scene, signed};
use millrace_proto::channel::{
    Account, Ambient, ChannelKind, Decoded, Incoming, NoKeys, Secret, decode, read_verified,
};
use millrace_proto::id::TenantId;
use std::sync::LazyLock;

const NOW_S: u64 = 1_767_225_600;
const CONTENT_TYPES: [&str; 5] = [
    "application/json",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=b",
    "text/xml",
    "text/plain; charset=utf-8",
];

static ACCOUNTS: LazyLock<Vec<Account>> = LazyLock::new(|| {
    let only = std::env::var("MILLRACE_FUZZ_CHANNEL").ok();
    let kinds = ChannelKind::ALL.iter().filter(|kind| only.as_deref().is_none_or(|only| only == kind.as_str()));
    let account = |kind: &ChannelKind| {
        let mut account = Account::new(*kind, "fuzz", TenantId(1));
        account.secrets = vec![Secret::new(match kind {
            ChannelKind::StandardWebhooks => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            _ => "c2VjcmV0IG9mIHRoZSBwbGF0Zm9ybQ==",
        })];
        account.encryption_keys = vec![Secret::new("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG")];
        account.verify_token = Some(Secret::new("verify"));
        account.app_id = Some("app".to_owned());
        account.bot_id = Some("bot".to_owned());
        account.bot_username = Some("robot".to_owned());
        account.public_url = Some("https://bot.example".to_owned());
        account
    };
    kinds.map(account).collect()
});

fuzz_target!(|bytes: &[u8]| {
    let [channel, form, body @ ..] = bytes else { return };
    let account = &ACCOUNTS[usize::from(*channel) % ACCOUNTS.len()];
    let content_type = CONTENT_TYPES[usize::from(*form) % CONTENT_TYPES.len()];
    let ambient = Ambient { now_s: NOW_S, keys: &NoKeys, entropy: [1; 16] };
    let path = format!("/hooks/{}/fuzz", account.kind);
    let scene = Scene { path: &path, now_s: NOW_S, entropy: [9; 16] };
    if let Ok(request) = signed(account, content_type, body, 1, &scene) {
        let headers: Vec<(&str, &[u8])> = request.headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let path = format!("{path}{}", request.path_tail);
        let incoming =
            Incoming { method: request.method, path: &path, query: &request.query, headers: &headers, body: &request.body };
        if let Ok(Decoded::Events { events, .. }) = decode(account, &incoming, &ambient) {
            assert!(!events.is_empty() && events.iter().all(|event| !event.event_key.is_empty()));
        }
    }
    // Those that only the platform can sign are read as if they had been verified.
    let headers = [("content-type", content_type.as_bytes())];
    for method in ["POST", "GET", "PUT"] {
        let incoming = Incoming { method, path: &path, query: "", headers: &headers, body };
        let _ = read_verified(account, &incoming, &ambient, body);
    }
});
