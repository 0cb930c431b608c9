//! WebSocket frames of any bytes are refused or decoded, and every decoder gets on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::ws::{Decoder, Side};

fuzz_target!(|bytes: &[u8]| {
    for side in [Side::Server, Side::Client] {
        let (mut decoder, mut input) = (Decoder::new(side, 1 << 10), bytes);
        while let Ok(Some(_)) = decoder.next(&mut input) {}
    }
});
