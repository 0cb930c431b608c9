//! permessage-deflate (RFC 7692), without context takeover in either direction: a compressor between messages would
//! hold a quarter of a megabyte for each idle socket.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::decode::WsError;
use super::{Opcode, close_code};
use crate::http1::RequestHead;

/// What the handshake answers when it agrees.
pub const AGREEMENT: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// Shorter messages are sent as they are: the pieces of an answer would not get smaller.
const COMPRESS_BYTES_MIN: usize = 512;

/// What a message ends with after a flush, and what is not sent (RFC 7692 section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Room made for inflated bytes at once.
const STEP_BYTES: usize = 16 * 1024;

/// Offers of one handshake that are looked at.
const OFFERS_MAX: usize = 8;

/// Whether the client offers compression in a form that is spoken here.
pub fn is_offered(head: &RequestHead) -> bool {
    head.headers()
        .filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-extensions"))
        .filter_map(|(_, value)| std::str::from_utf8(value).ok())
        .flat_map(|value| value.split(','))
        .take(OFFERS_MAX)
        .any(acceptable)
}

/// RFC 7692 section 7.1: each parameter at most once, with the values that it may have.
fn acceptable(offer: &str) -> bool {
    let mut parts = offer.split(';').map(str::trim);
    if parts.next() != Some("permessage-deflate") {
        return false;
    }
    let mut seen = [false; 4];
    for part in parts {
        let (name, value) = match part.split_once('=') {
            Some((name, value)) => (name.trim_end(), Some(value.trim_start().trim_matches('"'))),
            None => (part, None),
        };
        let (which, fine) = match name {
            "server_no_context_takeover" => (0, value.is_none()),
            "client_no_context_takeover" => (1, value.is_none()),
            // Our compressor always looks back over 32 KiB.
            "server_max_window_bits" => (2, value == Some("15")),
            "client_max_window_bits" => {
                (3, value.is_none_or(|bits| matches!(bits, "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15")))
            }
            _ => return false,
        };
        if !fine || std::mem::replace(&mut seen[which], true) {
            return false;
        }
    }
    true
}

/// Inflates a whole message of at most `bytes_max`.
pub(super) fn inflate(message: &[u8], bytes_max: usize) -> Result<Vec<u8>, WsError> {
    const BROKEN: WsError = WsError { code: close_code::INVALID_DATA, reason: "compressed message is malformed" };
    let mut inflater = Decompress::new(false);
    let mut out = Vec::new();
    for part in [message, &TAIL] {
        let mut rest = part;
        loop {
            out.reserve(STEP_BYTES);
            let (read, written) = (inflater.total_in(), inflater.total_out());
            let status = inflater.decompress_vec(rest, &mut out, FlushDecompress::Sync).map_err(|_| BROKEN)?;
            rest = &rest[(inflater.total_in() - read) as usize..];
            if out.len() > bytes_max {
                return Err(WsError { code: close_code::TOO_BIG, reason: "message is too long" });
            }
            match status {
                // RFC 7692 section 7.2.3.4: a block that says it is the last may be followed by others.
                Status::StreamEnd => {
                    inflater.reset(false);
                    if rest.is_empty() {
                        break;
                    }
                }
                _ if rest.is_empty() && out.len() < out.capacity() => break,
                _ if inflater.total_in() == read && inflater.total_out() == written => return Err(BROKEN),
                _ => {}
            }
        }
    }
    Ok(out)
}

/// Appends a complete message in one unmasked frame, compressed if that makes it shorter.
pub fn encode_deflated(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    let compressed = if payload.len() < COMPRESS_BYTES_MIN { None } else { deflate(payload) };
    match compressed {
        Some(compressed) if compressed.len() < payload.len() => {
            let start = out.len();
            super::encode(out, opcode, &compressed);
            out[start] |= super::decode::COMPRESSED;
        }
        _ => super::encode(out, opcode, payload),
    }
}

fn deflate(payload: &[u8]) -> Option<Vec<u8>> {
    let mut deflater = Compress::new(Compression::fast(), false);
    let mut out = Vec::with_capacity(payload.len() / 2 + 64);
    let mut rest = payload;
    loop {
        let read = deflater.total_in();
        deflater.compress_vec(rest, &mut out, FlushCompress::Sync).ok()?;
        rest = &rest[(deflater.total_in() - read) as usize..];
        if rest.is_empty() && out.len() < out.capacity() {
            break;
        }
        out.reserve(STEP_BYTES);
    }
    out.strip_suffix(&TAIL).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ws::{Decoder, Event, Side};
    use proptest::prelude::*;

    fn offered(value: &str) -> bool {
        let raw = format!("GET / HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Extensions: {value}\r\n\r\n");
        is_offered(&crate::http1::parse(raw.as_bytes()).unwrap().unwrap())
    }

    #[test]
    fn offers_are_taken_or_declined_as_the_rfc_says() {
        for good in [
            "permessage-deflate",
            "permessage-deflate; client_max_window_bits",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; server_max_window_bits=15; client_max_window_bits=8",
            "permessage-deflate; client_max_window_bits=\"10\"",
            "x-other, permessage-deflate",
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
        ] {
            assert!(offered(good), "{good}");
        }
        for bad in [
            "permessage-bzip2",
            "permessage-deflate; server_max_window_bits=8",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=08",
            "permessage-deflate; server_no_context_takeover=1",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; unknown",
        ] {
            assert!(!offered(bad), "{bad}");
        }
    }

    /// RFC 7692 section 7.2.3: messages with and without compression, fragmented, with an empty last block.
    #[test]
    fn the_examples_of_the_rfc_are_read() {
        let masked = |first: u8, payload: &[u8]| {
            let mut frame = vec![first, 0x80 | payload.len() as u8, 0, 0, 0, 0];
            frame.extend_from_slice(payload);
            frame
        };
        let hello: &[u8] = &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let cases: [(Vec<u8>, Result<&str, u16>); 9] = [
            (masked(0xc1, hello), Ok("Hello")),
            ([masked(0x41, &hello[..3]), masked(0x80, &hello[3..])].concat(), Ok("Hello")),
            (masked(0xc1, &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00]), Ok("Hello")),
            (masked(0xc1, &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00]), Ok("Hello")),
            (masked(0x81, b"Hello"), Ok("Hello")),
            ([masked(0x41, &hello[..3]), masked(0xc0, &hello[3..])].concat(), Err(1002)),
            (masked(0xc9, b""), Err(1002)),
            (masked(0xc1, &[0xff, 0xff, 0xff]), Err(1007)),
            (masked(0xa1, b"x"), Err(1002)),
        ];
        for (wire, expected) in cases {
            let mut decoder = Decoder::new(Side::Server, 1_000).deflated();
            let mut input = wire.as_slice();
            match (decoder.next(&mut input), expected) {
                (Ok(Some(Event::Text(text))), Ok(expected)) => assert_eq!(text, expected),
                (Err(error), Err(code)) => assert_eq!(error.code, code, "{wire:x?}"),
                (other, expected) => panic!("{wire:x?}: {other:?}, not {expected:?}"),
            }
        }
        // Without an agreement the bit is an error.
        let mut decoder = Decoder::new(Side::Server, 1_000);
        assert_eq!(decoder.next(&mut masked(0xc1, hello).as_slice()).unwrap_err().code, 1002);
    }

    #[test]
    fn a_small_message_that_inflates_without_end_is_refused() {
        let bomb = deflate(&vec![0; 10_000_000]).unwrap();
        assert!(bomb.len() < 100_000);
        assert_eq!(inflate(&bomb, 1 << 20).unwrap_err().code, 1009);
        assert_eq!(inflate(&bomb, 10_000_000).unwrap().len(), 10_000_000);
    }

    proptest! {
        #[test]
        fn messages_read_back(text in "([a-c ]{0,3000}|.{0,300})", cut in any::<usize>()) {
            let mut wire = Vec::new();
            encode_deflated(&mut wire, Opcode::Text, text.as_bytes());
            let mut decoder = Decoder::new(Side::Client, 1 << 20).deflated();
            let (first, second) = wire.split_at(cut % (wire.len() + 1));
            let mut event = None;
            for mut part in [first, second] {
                event = decoder.next(&mut part).unwrap().or(event);
            }
            prop_assert_eq!(event, Some(Event::Text(text)));
        }

        #[test]
        fn any_bytes_inflate_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = inflate(&bytes, 10_000);
        }
    }
}
