//! Bytes to meaning and back.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use millrace_bench::{CHAT_JSON, chat_head, inbox_record};
use millrace_proto::api::{ChatChunk, ChatRequest, ChunkChoice, Delta};
use millrace_proto::channel::{self, Account, Ambient, ChannelKind, Incoming, NoKeys, Secret};
use millrace_proto::record::{InboxRecord, Record};
use millrace_proto::{http1, id::TenantId, sse, ws};
use std::hint::black_box;

fn http(c: &mut Criterion) {
    let mut group = c.benchmark_group("http1");
    let head = chat_head();
    group.throughput(Throughput::Bytes(head.len() as u64));
    group.bench_function("request head, 13 fields", |b| b.iter(|| http1::parse(black_box(head.as_bytes()))));
    let small = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nAccept: */*\r\n\r\n";
    group.throughput(Throughput::Bytes(small.len() as u64));
    group.bench_function("request head, 2 fields", |b| b.iter(|| http1::parse(black_box(small))));
    let mut body = Vec::new();
    for _ in 0..64 {
        http1::write_chunk(&mut body, &[b'x'; 1024]);
    }
    http1::write_last_chunk(&mut body);
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("chunked body, 64 KiB", |b| {
        let mut out = Vec::with_capacity(80 * 1024);
        b.iter(|| {
            out.clear();
            let mut decoder = http1::BodyDecoder::new(http1::BodyFraming::Chunked, 1 << 20).expect("allowed");
            decoder.decode(black_box(&body), &mut out)
        });
    });
    group.finish();
}

fn json(c: &mut Criterion) {
    let mut group = c.benchmark_group("api");
    group.throughput(Throughput::Bytes(CHAT_JSON.len() as u64));
    group.bench_function("chat request", |b| b.iter(|| ChatRequest::parse(black_box(CHAT_JSON.as_bytes()))));
    let choices = [ChunkChoice {
        index: 0,
        delta: Delta { role: None, content: Some(" printer"), tool_calls: None },
        logprobs: None,
        finish_reason: None,
    }];
    let chunk = ChatChunk {
        id: "chatcmpl-0123456789abcdef",
        object: "chat.completion.chunk",
        created: 1_767_225_600,
        model: "smollm2-135m-instruct",
        choices: &choices,
        usage: None,
        notice: None,
    };
    let mut out = Vec::with_capacity(1024);
    sse::write_json(&mut out, &chunk).expect("serialises");
    group.throughput(Throughput::Bytes(out.len() as u64));
    group.bench_function("write one token as an event", |b| {
        b.iter(|| {
            out.clear();
            sse::write_json(&mut out, black_box(&chunk))
        });
    });
    group.finish();
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    let record = inbox_record();
    let bytes = record.to_bytes();
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("inbox record, write", |b| b.iter(|| black_box(&record).to_bytes()));
    group.bench_function("inbox record, validate and read", |b| b.iter(|| InboxRecord::from_bytes(black_box(&bytes))));
    group.finish();
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("ws");
    for (name, bytes) in [("text of 128 bytes", 128), ("text of 64 KiB", 64 * 1024)] {
        let mut wire = Vec::new();
        ws::encode_masked(&mut wire, ws::Opcode::Text, "x".repeat(bytes).as_bytes(), [1, 2, 3, 4]);
        group.throughput(Throughput::Bytes(wire.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| ws::Decoder::new(ws::Side::Server, 1 << 20).next(&mut black_box(wire.as_slice())));
        });
    }
    group.finish();
}

fn webhook(c: &mut Criterion) {
    let mut account = Account::new(ChannelKind::StandardWebhooks, "bench", TenantId::DEFAULT);
    account.secrets = vec![Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
    let body = br#"{"type":"message","conversation":"c1","user":"ada","text":"My printer does not start."}"#;
    let now_s = 1_767_225_600;
    let signature = channel::standard_webhooks::sign(&account.secrets[0], "msg_1", now_s, body).expect("symmetric");
    let timestamp = now_s.to_string();
    let headers = [
        ("webhook-id", &b"msg_1"[..]),
        ("webhook-timestamp", timestamp.as_bytes()),
        ("webhook-signature", signature.as_bytes()),
    ];
    let incoming =
        Incoming { method: "POST", path: "/hooks/standard_webhooks/bench", query: "", headers: &headers, body };
    let ambient = Ambient { now_s, keys: &NoKeys, entropy: [0; 16] };
    assert!(channel::decode(&account, &incoming, &ambient).is_ok());
    c.bench_function("webhook, verify and decode", |b| {
        b.iter(|| channel::decode(&account, black_box(&incoming), &ambient))
    });
}

criterion_group!(benches, http, json, records, frames, webhook);
criterion_main!(benches);
