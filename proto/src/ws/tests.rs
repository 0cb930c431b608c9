//! The cases follow the groups of the Autobahn test suite: framing, pings, reserved bits, opcodes,
//! fragmentation, UTF-8, close handling, limits.

use super::*;
use proptest::prelude::*;

const MAX: usize = 1 << 20;

fn client(opcode_and_fin: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_masked(&mut out, Opcode::Binary, payload, [1, 2, 3, 4]);
    out[0] = opcode_and_fin;
    out
}

/// Everything that a server reads from these bytes, cut into pieces of `piece` bytes.
fn read(wire: &[u8], piece: usize) -> (Vec<Event>, Option<u16>) {
    let mut decoder = Decoder::new(Side::Server, MAX);
    let mut events = Vec::new();
    for mut input in wire.chunks(piece) {
        loop {
            match decoder.next(&mut input) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => break,
                Err(error) => return (events, Some(error.code)),
            }
        }
        assert!(input.is_empty(), "everything is taken");
    }
    (events, None)
}

fn check(wire: &[Vec<u8>], expected: &[Event], error: Option<u16>) {
    let wire = wire.concat();
    for piece in [1, 3, 7, wire.len().max(1)] {
        let (events, code) = read(&wire, piece);
        assert_eq!((events.as_slice(), code), (expected, error), "in pieces of {piece}: {wire:02x?}");
    }
}

fn text(text: &str) -> Event {
    Event::Text(text.to_owned())
}

#[test]
fn the_accept_key_is_that_of_the_rfc() {
    assert_eq!(accept_key("dGhlIHNhbXBsZSBub25jZQ==").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    for bad in ["", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZQ== ", "AAAA", "!!!!!!!!!!!!!!!!!!!!!!=="] {
        assert_eq!(accept_key(bad), None, "{bad:?}");
    }
}

#[test]
fn the_handshake_is_checked() {
    let request = |extra: &str, version: &str| {
        let raw = format!(
            "GET /v1/chat/ws HTTP/1.1\r\nHost: a\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n{extra}Sec-WebSocket-Version: {version}\r\n\r\n"
        );
        handshake(&crate::http1::parse(raw.as_bytes()).unwrap().unwrap())
    };
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(request(key, "13").as_deref(), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(request(key, "8").unwrap_err().status, 426);
    assert_eq!(request("", "13").unwrap_err().status, 400);
    assert_eq!(request(&key.repeat(2), "13").unwrap_err().status, 400);
    let plain = crate::http1::parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().unwrap();
    assert!(!is_upgrade(&plain));
    assert_eq!(handshake(&plain).unwrap_err().status, 426);
}

#[test]
fn messages_of_every_length_form() {
    for length in [0, 1, 125, 126, 127, 128, 65_535, 65_536, 70_000] {
        let payload = "x".repeat(length);
        let wire = client(0x81, payload.as_bytes());
        assert_eq!(read(&wire, 1_000), (vec![text(&payload)], None), "{length}");
        assert_eq!(read(&client(0x82, payload.as_bytes()), 999).0, [Event::Binary(payload.into_bytes())]);
    }
}

#[test]
fn control_frames_come_between_fragments_and_are_bounded() {
    let wire = [client(0x01, b"fr"), client(0x89, b"ping"), client(0x00, b""), client(0x8a, b""), client(0x80, b"ag")];
    check(&wire, &[Event::Ping(b"ping".to_vec()), Event::Pong(vec![]), text("frag")], None);
    check(&[client(0x89, &[0xff; 125])], &[Event::Ping(vec![0xff; 125])], None);
    for opcode in [0x88, 0x89, 0x8a] {
        check(&[client(opcode, &[0; 126])], &[], Some(1002));
    }
    for opcode in [0x08, 0x09, 0x0a] {
        check(&[client(opcode, b"")], &[], Some(1002));
    }
}

#[test]
fn wrong_frames_are_protocol_errors() {
    for first in [0xc1, 0xa1, 0x91, 0x83, 0x87, 0x8b, 0x8f] {
        check(&[client(0x81, b"ok"), client(first, b"x")], &[text("ok")], Some(1002));
    }
    check(&[client(0x80, b"x")], &[], Some(1002));
    check(&[client(0x00, b"x")], &[], Some(1002));
    check(&[client(0x01, b"x"), client(0x81, b"y")], &[], Some(1002));
    check(&[client(0x01, b"x"), client(0x82, b"y")], &[], Some(1002));
    check(&[vec![0x81, 0x01, b'x']], &[], Some(1002));
    let mut decoder = Decoder::new(Side::Client, MAX);
    assert_eq!(decoder.next(&mut client(0x81, b"x").as_slice()).unwrap_err().code, 1002);
    // Lengths that are not in their shortest form, and one beyond 2^63.
    check(&[vec![0x81, 0xfe, 0, 5, 1, 2, 3, 4]], &[], Some(1002));
    check(&[vec![0x81, 0xff, 0, 0, 0, 0, 0, 0, 0, 5, 1, 2, 3, 4]], &[], Some(1002));
    check(&[vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 5, 1, 2, 3, 4]], &[], Some(1002));
}

#[test]
fn messages_above_the_limit_are_refused_at_their_header() {
    let header = [0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 1, 1, 2, 3, 4];
    check(&[header.to_vec()], &[], Some(1009));
    let mut decoder = Decoder::new(Side::Server, 4);
    let wire = [client(0x02, b"abc"), client(0x80, b"de")].concat();
    assert_eq!(decoder.next(&mut wire.as_slice()).unwrap_err().code, 1009);
    assert!(decoder.is_finished());
    assert_eq!(decoder.next(&mut client(0x81, b"x").as_slice()), Ok(None));
}

#[test]
fn utf8_is_checked_across_fragments_and_as_early_as_possible() {
    let kappa = "Hello-µ@ßöäüàá-UTF-8!!κόσμε🙂".as_bytes();
    for cut in 0..kappa.len() {
        check(
            &[client(0x01, &kappa[..cut]), client(0x80, &kappa[cut..])],
            &[Event::Text(String::from_utf8(kappa.to_vec()).unwrap())],
            None,
        );
    }
    for bad in [
        &b"\xc0\xaf"[..],
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xff",
        b"a\x80",
        b"\xce\xbae\xcc",
    ] {
        check(&[client(0x81, bad)], &[], Some(1007));
    }
    check(&[client(0x81, b"\xce")], &[], Some(1007));
    check(&[client(0x01, b"\xce"), client(0x80, b"")], &[], Some(1007));
    // Fail fast: the invalid byte is reported although frame and message are unfinished.
    let unfinished = &client(0x01, b"abc\xf4\x90xxxxxxxx")[..6 + 5];
    assert_eq!(read(unfinished, 100), (vec![], Some(1007)));
    check(&[client(0x82, b"\xff\xfe")], &[Event::Binary(vec![0xff, 0xfe])], None);
}

#[test]
fn close_frames_are_checked() {
    let close = |code: u16, reason: &[u8]| client(0x88, &[&code.to_be_bytes()[..], reason].concat());
    check(&[client(0x88, b""), client(0x81, b"late")], &[Event::Close { code: None, reason: String::new() }], None);
    check(&[client(0x88, b"\x03")], &[], Some(1002));
    for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
        check(&[close(code, b"ok")], &[Event::Close { code: Some(code), reason: "ok".into() }], None);
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        check(&[close(code, b"")], &[], Some(1002));
    }
    check(&[close(1000, &[b'x'; 123])], &[Event::Close { code: Some(1000), reason: "x".repeat(123) }], None);
    check(&[close(1000, &[b'x'; 124])], &[], Some(1002));
    check(&[close(1000, b"\xff")], &[], Some(1007));
}

#[test]
fn our_own_frames_are_read_by_a_client() {
    let mut wire = Vec::new();
    encode(&mut wire, Opcode::Text, "é".repeat(40_000).as_bytes());
    encode(&mut wire, Opcode::Ping, b"p");
    encode_close(&mut wire, close_code::GOING_AWAY, &"ü".repeat(100));
    let mut decoder = Decoder::new(Side::Client, MAX);
    let mut input = wire.as_slice();
    assert_eq!(decoder.next(&mut input), Ok(Some(text(&"é".repeat(40_000)))));
    assert_eq!(decoder.next(&mut input), Ok(Some(Event::Ping(b"p".to_vec()))));
    assert_eq!(decoder.next(&mut input), Ok(Some(Event::Close { code: Some(1001), reason: "ü".repeat(61) })));
    assert!(decoder.is_finished());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), piece in 1usize..50) {
        let _ = read(&bytes, piece);
        let mut decoder = Decoder::new(Side::Client, 100);
        let mut input = bytes.as_slice();
        while let Ok(Some(_)) = decoder.next(&mut input) {}
    }

    /// Valid headers with random payloads reach the UTF-8 and close checks.
    #[test]
    fn random_frames_never_panic(frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..20)), 0..10), piece in 1usize..50) {
        let wire: Vec<u8> = frames.iter().flat_map(|(first, payload)| client(first & 0x8f, payload)).collect();
        let _ = read(&wire, piece);
    }

    #[test]
    fn fragmented_messages_read_back(message in ".{0,80}", cuts in proptest::collection::vec(any::<usize>(), 0..6), mask in any::<[u8; 4]>(), piece in 1usize..50) {
        let bytes = message.as_bytes();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        ends.sort_unstable();
        let mut wire = Vec::new();
        let mut start = 0;
        for (index, end) in ends.iter().chain([&bytes.len()]).enumerate() {
            let at = wire.len();
            encode_masked(&mut wire, Opcode::Text, &bytes[start..*end], mask);
            wire[at] = if index == ends.len() { 0x80 } else { 0 } | u8::from(index == 0);
            start = *end;
        }
        prop_assert_eq!(read(&wire, piece), (vec![Event::Text(message)], None));
    }
}
