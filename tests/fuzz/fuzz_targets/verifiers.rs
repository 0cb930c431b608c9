//! The verifier of every channel: a recorded request with any bytes in one of its places is accepted or refused.
//!
//! The first byte picks the channel (`MILLRACE_FUZZ_CHANNEL=slack` keeps to one), the second the request and the place.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::channel::vectors::Case;
use millrace_proto::channel::{ChannelKind, Incoming, decode, verify};
use std::collections::BTreeMap;
use std::sync::LazyLock;

const VECTORS: &str = include_str!("../../data/channel_vectors.json");

static CASES: LazyLock<Vec<Vec<Case>>> = LazyLock::new(|| {
    let only = std::env::var("MILLRACE_FUZZ_CHANNEL").ok();
    let vectors: Vec<serde_json::Value> = serde_json::from_str(VECTORS).expect("a list of vectors");
    let mut cases: BTreeMap<ChannelKind, Vec<Case>> = BTreeMap::new();
    for case in vectors.iter().map(|vector| Case::read(vector).expect("a case")) {
        if only.as_deref().is_none_or(|only| only == case.account.kind.as_str()) {
            cases.entry(case.account.kind).or_default().push(case);
        }
    }
    assert!(!cases.is_empty(), "MILLRACE_FUZZ_CHANNEL names a channel");
    cases.into_values().collect()
});

fuzz_target!(|bytes: &[u8]| {
    let [channel, place, bytes @ ..] = bytes else { return };
    let cases = &CASES[usize::from(*channel) % CASES.len()];
    let case = &cases[usize::from(*place >> 2) % cases.len()];
    let text = String::from_utf8_lossy(bytes);
    case.with(|account, incoming, ambient| {
        let mut headers = incoming.headers.to_vec();
        let changed = match place % 4 {
            0 => Incoming { body: bytes, ..*incoming },
            1 => Incoming { query: &text, ..*incoming },
            2 => Incoming { path: &text, ..*incoming },
            _ => {
                // One header after the other, by the first byte; all of them when there is none.
                let pick = bytes.first().map_or(usize::MAX, |pick| usize::from(*pick));
                for (index, header) in headers.iter_mut().enumerate() {
                    if pick == usize::MAX || index == pick % incoming.headers.len().max(1) {
                        header.1 = bytes.get(1..).unwrap_or_default();
                    }
                }
                Incoming { headers: &headers, ..*incoming }
            }
        };
        let opened = verify(account, &changed, ambient).is_ok();
        let decoded = decode(account, &changed, ambient);
        assert!(opened || decoded.is_err(), "what does not verify is not read");
        let mut bare = account.clone();
        (bare.secrets, bare.encryption_keys, bare.verify_token) = (Vec::new(), Vec::new(), None);
        (bare.app_id, bare.topics) = (None, Vec::new());
        assert!(verify(&bare, &changed, ambient).is_err(), "an account without secrets verifies nothing");
    });
});
