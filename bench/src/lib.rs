//! Inputs that the benches share, so that figures of different benches speak of the same things.
//!
//! Run one with `cargo bench -p millrace-bench --bench parse`; `cargo test -p millrace-bench --benches` runs
//! every bench once, so that none of them rots. Figures belong beside a date and the name of the machine.
//!
//! | bench | what it measures |
//! |---|---|
//! | `parse` | bytes to meaning: HTTP/1.1, chat JSON, stored records, WebSocket, webhooks |
//! | `kernel` | one layer of a network for each weight format and number of tokens |
//! | `mailbox` | the ring into a shard: cost of a message, round trip between two reactors |
//! | `commit` | durable acceptance of messages: one at a time and in groups, each with its sync |
//! | `step` | a whole engine step of a 135M model: decoding alone and in batches, prefill |

pub mod synthetic;

use millrace_inference::backend::{Backend, CpuBackend, CpuConfig, LogitsBuf, LogitsWanted, StepPlan};
use millrace_inference::kv::{BlockId, KvFormat, blocks_for};
use millrace_inference::model::Model;
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{ChatAddress, InboxRecord};
use std::sync::Arc;

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
        number: 42,
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

/// An engine backend over a model, with sequences that already have a context, ready to run steps.
pub struct Steps {
    backend: CpuBackend,
    logits: LogitsBuf,
    plan: StepPlan,
}

/// Context of a decoding sequence: positions before the new token.
pub const DECODE_CONTEXT: usize = 128;

impl Steps {
    /// A backend on all processors with room for `sequences` sequences of 256 tokens.
    pub fn new(model: Arc<Model>, sequences: usize) -> Self {
        let kv_format = KvFormat::F16;
        let kv_bytes_max = model.info().kv_token_bytes(kv_format) * 256 * sequences;
        let config = CpuConfig {
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            cpus: None,
            nice: 0,
            kv_format,
            kv_bytes_max,
            context_max: 256,
            step_tokens_max: 256,
            step_logits_max: sequences,
        };
        let mut backend = CpuBackend::new(model, &config).expect("the backend starts");
        backend.attach();
        let logits = LogitsBuf::new(&backend.limits());
        Self { backend, logits, plan: StepPlan::new() }
    }

    /// Plans one new token for each of `sequences` sequences.
    pub fn plan_decode(&mut self, sequences: usize) {
        self.plan.clear();
        let blocks = blocks_for(DECODE_CONTEXT + 1);
        for sequence in 0..sequences {
            let first = (sequence * blocks) as u32;
            let table: Vec<BlockId> = (first..first + blocks as u32).map(BlockId).collect();
            self.plan.push(&[sequence as u32 % 32], DECODE_CONTEXT, &table, LogitsWanted::Last);
        }
    }

    /// Plans the first `tokens` tokens of one prompt.
    pub fn plan_prefill(&mut self, tokens: usize) {
        self.plan.clear();
        let prompt: Vec<u32> = (0..tokens as u32).map(|token| token % 32).collect();
        let table: Vec<BlockId> = (0..blocks_for(tokens) as u32).map(BlockId).collect();
        self.plan.push(&prompt, 0, &table, LogitsWanted::Last);
    }

    /// Runs what is planned.
    pub fn run(&mut self) {
        self.backend.step(&self.plan, &mut self.logits).expect("the plan is valid");
    }
}
