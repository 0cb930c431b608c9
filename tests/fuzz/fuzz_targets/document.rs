//! Files of every format that parsers of ours read themselves, and the passages that they are cut into.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::document::{passages, read};

/// PDF and xlsx are read by other people's parsers, in a process of their own; their panics are known.
const KINDS: [&str; 7] = ["txt", "md", "html", "docx", "pptx", "csv", "eml"];

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let kind = KINDS[usize::from(*kind) % KINDS.len()];
    let Ok(document) = read(&format!("a.{kind}"), bytes) else { return };
    let words = |text: &str| text.split_whitespace().count();
    for passage in passages(&document.blocks, 32, &words) {
        assert!(words(&passage.text) <= 32 && !passage.text.is_empty());
    }
});
