//! The tokenizer of any GGUF file is refused, or takes any text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_inference::Tokenizer;
use millrace_inference::gguf::Gguf;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Gguf::from_bytes(bytes.to_vec()) else { return };
    let Ok(tokenizer) = Tokenizer::from_gguf(&file) else { return };
    // The end of a file is where changes do not break its structure, so it doubles as a text.
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(64)..]);
    for special in [false, true] {
        for id in tokenizer.encode(&text, special) {
            let _ = (tokenizer.visible_bytes(id), tokenizer.is_end(id));
        }
    }
});
