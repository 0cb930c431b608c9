//! Inputs that the benches share, so that figures of different benches speak of the same things.
//!
//! Run one with `cargo bench -p millrace-bench --bench parse`; `cargo test -p millrace-bench --benches` runs
//! every bench once, so that none of them rots. Figures belong beside a date and the name of the machine.
//!
//! | bench | what it measures |
//! |---|---|
//! | `parse` | bytes to meaning: HTTP/1.1, chat JSON, stored records, WebSocket, webhooks |

use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{ChatAddress, InboxRecord};

/// A chat request as an API client sends it (about 300 bytes).
pub const CHAT_JSON: &str = r#"{"model":"smollm2-135m-instruct","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"My printer does not start since Monday. What should I check first?"}],"temperature":0.7,"top_p":0.95,"max_tokens":128,"stream":true,"stream_options":{"include_usage":true}}"#;

/// The head of that request with the fields that the official Python client adds.
pub fn chat_head() -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept-Encoding: gzip, deflate\r\n\
         Connection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n\
         User-Agent: OpenAI/Python 1.99.0\r\nX-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\n\
         X-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\nX-Stainless-Async: false\r\n\
         Authorization: Bearer mr-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG\r\nContent-Length: {}\r\n\r\n",
        CHAT_JSON.len()
    )
}

/// An accepted message as it is stored.
pub fn inbox_record() -> InboxRecord {
    let tenant = TenantId(1);
    InboxRecord {
        tenant,
        user: UserId::of(tenant, "ada"),
        conversation: ConversationId::of(tenant, "telegram/shop/1111111"),
        turn: 42,
        address: ChatAddress {
            channel: "telegram".into(),
            account: "shop".into(),
            chat: "1111111".into(),
            thread: None,
            reply_to: Some("1365".into()),
        },
        text: "My printer does not start since Monday. What should I check first?".into(),
        event_key: "10000".into(),
        received_ms: 1_767_225_600_000,
        deadline_ms: 1_767_225_630_000,
        attempt: 0,
    }
}
