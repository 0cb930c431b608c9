//! Request bodies of any bytes are refused or can be looked at.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::api::{ChatRequest, CompletionRequest, EmbeddingRequest};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(request) = ChatRequest::parse(bytes) {
        let _ = (request.tool_use().is_some(), request.output_format(), request.sampling(), request.stop_strings());
    }
    if let Ok(request) = CompletionRequest::parse(bytes) {
        let _ = (request.sampling(), request.output_format());
    }
    let _ = EmbeddingRequest::parse(bytes);
});
