//! Bytes of any kind on a stream of `millrace/1` are refused, waited for, or a frame that can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::native::{ClientFrame, ServerFrame, Side, next_frame};

fuzz_target!(|bytes: &[u8]| {
    for side in [Side::Client, Side::Server] {
        let mut rest = bytes;
        while let Ok(Some((frame, used))) = next_frame(rest, side) {
            match ClientFrame::read(frame) {
                Ok(ClientFrame::Chat(chat)) => {
                    let _ = chat.messages.iter().map(|turn| turn.text.len() + turn.role.len()).sum::<usize>();
                }
                Ok(ClientFrame::Embed(embed)) => drop(embed.texts.iter().map(|text| text.len()).max()),
                _ => {}
            }
            if let Ok(ServerFrame::Vectors(vectors)) = ServerFrame::read(frame) {
                let _ = vectors.values.iter().map(|value| value.to_native()).sum::<f32>();
            }
            rest = &rest[used..];
        }
    }
});
