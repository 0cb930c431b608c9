use super::*;
use proptest::prelude::*;

fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    put_fields(&mut out, fields.iter().map(|(name, value)| (*name, value.as_bytes())));
    out
}

fn headers(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    put_headers(&mut out, &section(fields));
    out
}

fn data(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_data_header(&mut out, bytes.len());
    out.extend_from_slice(bytes);
    out
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", "a"), (":path", "/")];
const POST: [(&str, &str); 5] =
    [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/"), ("content-length", "3")];

/// What a stream of these bytes is: the body, or the fault.
fn read(stream: &[u8], portion: usize) -> Result<Vec<u8>, Fault> {
    let mut reader = RequestReader::default();
    let (mut input, mut body) = (Vec::new(), Vec::new());
    for part in stream.chunks(portion) {
        input.extend_from_slice(part);
        loop {
            let (event, used) = reader.next(&input, &mut body)?;
            input.drain(..used);
            if event.is_none() {
                break;
            }
        }
    }
    reader.finish(input.len()).map(|()| body)
}

#[test]
fn a_request_is_read_in_any_portions() {
    let mut stream = headers(&POST);
    stream.extend(data(b"ab"));
    // A frame of a reserved kind means nothing (RFC 9114 section 7.2.8).
    stream.extend_from_slice(&[0x21, 3, 1, 2, 3]);
    stream.extend(data(b""));
    stream.extend(data(b"c"));
    stream.extend(headers(&[("x-trailer", "1")]));
    for portion in 1..=stream.len() {
        assert_eq!(read(&stream, portion), Ok(b"abc".to_vec()), "portions of {portion}");
    }
}

#[test]
fn a_head_gives_its_parts() {
    let stream = headers(&[GET[0], GET[1], GET[2], (":path", "/v1/models?x=1"), ("x-a", "1"), ("accept", "*/*")]);
    let (event, used) = RequestReader::default().next(&stream, &mut Vec::new()).unwrap();
    let Some(Event::Head(head)) = event else { panic!("a head") };
    assert_eq!(used, stream.len());
    assert_eq!((head.method(), head.authority(), head.path()), ("GET", "a", "/v1/models?x=1"));
    let fields: Vec<_> = head.fields().collect();
    assert_eq!(fields, [("x-a", b"1".as_slice()), ("accept", b"*/*".as_slice())]);
}

/// RFC sections as data: what a request stream holds, and what the peer is told.
#[test]
fn request_streams_that_break_a_rule_are_told_which() {
    let join = |parts: &[Vec<u8>]| parts.concat();
    let with = |more: &[(&str, &str)]| headers(&[&GET[..], more].concat());
    let without = |name: &str| headers(&GET.iter().copied().filter(|(known, _)| *known != name).collect::<Vec<_>>());
    let cases: Vec<(&str, Vec<u8>, Code)> = vec![
        ("9114 4.1: DATA before HEADERS", data(b"x"), Code::FrameUnexpected),
        ("9114 4.1: DATA after trailers", join(&[with(&[]), with_trailers(), data(b"x")]), Code::FrameUnexpected),
        ("9114 4.1: third HEADERS", join(&[with(&[]), with_trailers(), with_trailers()]), Code::FrameUnexpected),
        ("9114 4.1: nothing", Vec::new(), Code::RequestIncomplete),
        ("9114 4.1.2: body too long", join(&[headers(&POST), data(b"abcd")]), Code::MessageError),
        ("9114 4.1.2: body too short", join(&[headers(&POST), data(b"ab")]), Code::MessageError),
        ("9114 4.2: upper case", with(&[("X-A", "1")]), Code::MessageError),
        ("9114 4.2: connection", with(&[("connection", "close")]), Code::MessageError),
        ("9114 4.2: transfer-encoding", with(&[("transfer-encoding", "chunked")]), Code::MessageError),
        ("9114 4.2: te", with(&[("te", "gzip")]), Code::MessageError),
        ("9114 4.3: unknown pseudo-header", with(&[(":protocol", "x")]), Code::MessageError),
        ("9114 4.3: pseudo-header of a response", with(&[(":status", "200")]), Code::MessageError),
        ("9114 4.3: after a field", headers(&[GET[0], GET[1], ("x", "1"), GET[2], GET[3]]), Code::MessageError),
        ("9114 4.3: in trailers", join(&[with(&[]), headers(&[(":path", "/")])]), Code::MessageError),
        ("9114 4.3.1: duplicated method", with(&[GET[0]]), Code::MessageError),
        ("9114 4.3.1: duplicated scheme", with(&[GET[1]]), Code::MessageError),
        ("9114 4.3.1: duplicated authority", with(&[GET[2]]), Code::MessageError),
        ("9114 4.3.1: duplicated path", with(&[GET[3]]), Code::MessageError),
        ("9114 4.3.1: no method", without(":method"), Code::MessageError),
        ("9114 4.3.1: no scheme", without(":scheme"), Code::MessageError),
        ("9114 4.3.1: no path", without(":path"), Code::MessageError),
        ("9114 4.3.1: empty path", headers(&[GET[0], GET[1], GET[2], (":path", "")]), Code::MessageError),
        ("9114 7.1: cut inside a frame", with(&[])[..9].to_vec(), Code::FrameError),
        ("9114 7.1: cut inside DATA", join(&[with(&[]), vec![0, 9, 1]]), Code::FrameError),
        ("9114 7.2.3: CANCEL_PUSH", join(&[with(&[]), vec![3, 1, 0]]), Code::FrameUnexpected),
        ("9114 7.2.4: SETTINGS", join(&[with(&[]), vec![4, 0]]), Code::FrameUnexpected),
        ("9114 7.2.5: PUSH_PROMISE", join(&[with(&[]), vec![5, 1, 0]]), Code::FrameUnexpected),
        ("9114 7.2.6: GOAWAY", join(&[with(&[]), vec![7, 1, 0]]), Code::FrameUnexpected),
        ("9114 7.2.7: MAX_PUSH_ID", join(&[with(&[]), vec![0xd, 1, 0]]), Code::FrameUnexpected),
        ("9114 7.2.8: PRIORITY of HTTP/2", vec![2, 0], Code::FrameUnexpected),
        ("9114 7.2.8: PING of HTTP/2", vec![6, 0], Code::FrameUnexpected),
        ("9114 7.2.8: WINDOW_UPDATE of HTTP/2", vec![8, 0], Code::FrameUnexpected),
        ("9114 7.2.8: CONTINUATION of HTTP/2", vec![9, 0], Code::FrameUnexpected),
        ("9114 10.3: line break in a value", with(&[("x", "a\r\nb")]), Code::MessageError),
        ("9204 3.1: static entry 99", framed(&[0, 0, 0xff, 36]), Code::QpackDecompressionFailed),
        ("9204 3.1: static name 99", framed(&[0, 0, 0x5f, 84, 0]), Code::QpackDecompressionFailed),
        ("9204 4.5.1: dynamic entries needed", framed(&[1, 0, 0x80]), Code::QpackDecompressionFailed),
        ("9204 4.5.1: negative base", framed(&[0, 0x80, 0xd1]), Code::QpackDecompressionFailed),
        ("9204 4.5.2: dynamic entry", framed(&[0, 0, 0x80]), Code::QpackDecompressionFailed),
        ("9204 4.5.3: behind the base", framed(&[0, 0, 0x10]), Code::QpackDecompressionFailed),
        ("9204 4.5.4: dynamic name", framed(&[0, 0, 0x40, 0]), Code::QpackDecompressionFailed),
        ("9204 4.5.5: name behind the base", framed(&[0, 0, 0x00, 0]), Code::QpackDecompressionFailed),
        ("9204 4.1.1: integer without end", framed(&[0, 0, 0xff, 0xff, 0xff, 0xff]), Code::QpackDecompressionFailed),
        (
            "9204 4.1.1: integer of 70 bits",
            framed(&[0, 0, 0xff, 255, 255, 255, 255, 255, 255, 255, 255, 255, 127]),
            Code::QpackDecompressionFailed,
        ),
        ("9204 4.1.2: padding of a string", framed(&[0, 0, 0x51, 0x81, 0x18]), Code::QpackDecompressionFailed),
    ];
    for (name, stream, code) in cases {
        for portion in [1, stream.len().max(1)] {
            let fault = read(&stream, portion).expect_err(name);
            assert_eq!(fault.code, code, "{name}: {fault}");
            let stream_only = matches!(code, Code::MessageError | Code::RequestIncomplete);
            assert_eq!(fault.stream_only, stream_only, "{name}");
        }
    }
}

fn with_trailers() -> Vec<u8> {
    headers(&[("x-trailer", "1")])
}

fn framed(section: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_headers(&mut out, section);
    out
}

#[test]
fn a_head_that_is_too_long_is_answered_not_fatal() {
    let long = "a".repeat(40 * 1024);
    for stream in [headers(&[GET[0], GET[1], GET[2], GET[3], ("x", &long)]), headers(&[("x", "1"); 101])] {
        let event = RequestReader::default().next(&stream, &mut Vec::new()).unwrap().0;
        assert_eq!(event, Some(Event::HeadTooLong));
    }
}

/// Streams in the order of their opening, with what the peer is told.
fn uni(streams: &[&[u8]]) -> Result<(), Fault> {
    let mut peer = Peer::default();
    for stream in streams {
        let mut reader = UniReader::default();
        for byte in *stream {
            reader.observe(std::slice::from_ref(byte), &mut peer)?;
        }
    }
    Ok(())
}

#[test]
fn unidirectional_streams_that_break_a_rule_are_told_which() {
    let good: [&[u8]; 7] = [
        &[0, 4, 0],
        &[0, 4, 2, 6, 9, 0xd, 1, 5, 0xd, 1, 5, 7, 1, 4, 7, 1, 4, 0x21, 2, 1, 1],
        &[2, 0x20],
        &[2],
        &[3, 0x41, 0x7f, 0x05],
        &[0x21, 1, 2, 3],
        &[0, 4, 5, 0x01, 0x40, 0x64, 0x21, 0],
    ];
    for stream in good {
        assert_eq!(uni(&[stream]), Ok(()), "{stream:x?}");
    }
    let cases: [(&str, &[&[u8]], Code); 23] = [
        ("9114 6.2.1: no SETTINGS first", &[&[0, 7, 1, 0]], Code::MissingSettings),
        ("9114 6.2.1: a reserved frame first", &[&[0, 0x21, 0]], Code::MissingSettings),
        ("9114 6.2.1: a second control stream", &[&[0, 4, 0], &[0]], Code::StreamCreationError),
        ("9114 6.2.2: a push stream of a client", &[&[1]], Code::StreamCreationError),
        ("9114 7.2.1: DATA", &[&[0, 4, 0, 0]], Code::FrameUnexpected),
        ("9114 7.2.2: HEADERS", &[&[0, 4, 0, 1]], Code::FrameUnexpected),
        ("9114 7.2.3: CANCEL_PUSH of nothing", &[&[0, 4, 0, 3, 1, 0]], Code::IdError),
        ("9114 7.2.4: second SETTINGS", &[&[0, 4, 0, 4, 0]], Code::FrameUnexpected),
        ("9114 7.2.4: repeated setting", &[&[0, 4, 4, 6, 9, 6, 9]], Code::SettingsError),
        ("9114 7.2.4: cut pair", &[&[0, 4, 1, 6]], Code::FrameError),
        ("9114 7.2.4.1: ENABLE_PUSH of HTTP/2", &[&[0, 4, 2, 2, 0]], Code::SettingsError),
        ("9114 7.2.4.1: MAX_FRAME_SIZE of HTTP/2", &[&[0, 4, 2, 5, 0]], Code::SettingsError),
        ("9114 7.2.5: PUSH_PROMISE", &[&[0, 4, 0, 5]], Code::FrameUnexpected),
        ("9114 7.2.6: GOAWAY goes up", &[&[0, 4, 0, 7, 1, 1, 7, 1, 2]], Code::IdError),
        ("9114 7.2.6: GOAWAY of two integers", &[&[0, 4, 0, 7, 2, 1, 1]], Code::FrameError),
        ("9114 7.2.7: MAX_PUSH_ID goes down", &[&[0, 4, 0, 0xd, 1, 2, 0xd, 1, 1]], Code::IdError),
        ("9114 7.2.8: PING of HTTP/2", &[&[0, 4, 0, 6]], Code::FrameUnexpected),
        ("9204 4.2: second encoder stream", &[&[2], &[2]], Code::StreamCreationError),
        ("9204 4.2: second decoder stream", &[&[3], &[3]], Code::StreamCreationError),
        ("9204 3.2.3: capacity above the limit", &[&[2, 0x21]], Code::QpackEncoderStreamError),
        ("9204 4.3.2: insertion", &[&[2, 0xc1]], Code::QpackEncoderStreamError),
        ("9204 4.4.1: acknowledgement of nothing", &[&[3, 0x80]], Code::QpackDecoderStreamError),
        ("9204 4.4.3: increment of 0", &[&[3, 0x00]], Code::QpackDecoderStreamError),
    ];
    for (name, streams, code) in cases {
        let fault = uni(streams).expect_err(name);
        assert_eq!((fault.code, fault.stream_only), (code, false), "{name}");
    }
}

#[test]
fn closing_a_critical_stream_is_an_error_and_another_is_not() {
    for (kind, critical) in [(0, true), (2, true), (3, true), (0x21, false)] {
        let mut reader = UniReader::default();
        reader.observe(&[kind], &mut Peer::default()).unwrap();
        assert_eq!(reader.closed().is_err(), critical, "{kind:#x}");
    }
}

#[test]
fn the_server_speaks_its_own_rules() {
    let mut control = Vec::new();
    put_control_stream(&mut control);
    put_goaway(&mut control, 1 << 20);
    assert_eq!(uni(&[&control]), Ok(()));
}

proptest! {
    #[test]
    fn integers_read_back(value in 0u64..1 << 62, more in any::<u8>()) {
        let mut out = Vec::new();
        put_varint(&mut out, value);
        let length = out.len();
        out.push(more);
        prop_assert_eq!(varint(&out), Some((value, length)));
        prop_assert_eq!(varint(&out[..length - 1]), None);
    }

    #[test]
    fn fields_read_back(fields in proptest::collection::vec(("[a-z0-9-]{0,20}", ".{0,200}"), 0..20)) {
        let encoded = section(&fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<Vec<_>>());
        if fields.is_empty() {
            return Ok(());
        }
        let decoded = Fields::decode(&if encoded.is_empty() { vec![0, 0] } else { encoded }).unwrap();
        let back: Vec<_> = decoded.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
        let sent: Vec<_> = fields.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone().into_bytes())).collect();
        prop_assert_eq!(back, sent);
    }

    /// Any bytes on any stream end in a fault or are read, in any portions with the same outcome.
    #[test]
    fn any_bytes_are_judged_the_same_in_any_portions(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 0u8..10], 0..80), portion in 1usize..10) {
        let whole = read(&bytes, bytes.len().max(1));
        prop_assert_eq!(read(&bytes, portion).map_err(|fault| fault.code), whole.map_err(|fault| fault.code));
        let _ = uni(&[&bytes]);
    }
}
