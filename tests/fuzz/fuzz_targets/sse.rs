//! Any stream of events gives the same events however it is cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::sse::Decoder;

fuzz_target!(|bytes: &[u8]| {
    let events = |parts: &[&[u8]]| {
        let (mut decoder, mut events) = (Decoder::default(), Vec::new());
        let fine = parts.iter().all(|part| decoder.feed(part, |event| events.push(event.to_owned())).is_ok());
        (fine, events)
    };
    let single: Vec<&[u8]> = bytes.chunks(1).collect();
    assert_eq!(events(&[bytes]), events(&single), "cuts change nothing");
});
