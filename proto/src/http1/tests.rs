//! What the parser accepts, and the corpus of requests that it must refuse.

use super::*;
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX, URI_BYTES_MAX};
use proptest::prelude::*;

const MB: usize = 1 << 20;

fn head(text: &str) -> RequestHead {
    parse(text.as_bytes()).expect("accepted").expect("complete")
}

/// The status that a whole raw request (head and body) is refused with; 200 when it is accepted.
fn verdict(raw: &[u8]) -> u16 {
    let head = match parse(raw) {
        Ok(Some(head)) => head,
        Ok(None) => return 0,
        Err(error) => return error.status,
    };
    let mut decoder = match BodyDecoder::new(head.framing, MB) {
        Ok(decoder) => decoder,
        Err(error) => return error.status,
    };
    match decoder.decode(&raw[head.head_bytes..], &mut Vec::new()) {
        Ok(_) if decoder.is_done() => 200,
        Ok(_) => 0,
        Err(error) => error.status,
    }
}

#[test]
fn a_plain_request_is_read() {
    let head = head("POST /v1/x?a=1&b=%20c HTTP/1.1\r\nHost: h:80\r\ncontent-LENGTH: 5\r\nX: a, B ,c\r\n\r\nhello");
    assert_eq!((head.method, head.path(), head.query()), (Method::Post, "/v1/x", Some("a=1&b=%20c")));
    assert_eq!(head.framing, BodyFraming::Length(5));
    assert_eq!(head.query_param("b").as_deref(), Some(" c"));
    assert_eq!(head.header("HOST"), Some("h:80"));
    assert!(head.header_has_token("x", "b") && !head.header_has_token("x", "d"));
    assert!(head.keep_alive && !head.expect_continue);
    assert_eq!(
        head.head_bytes,
        "POST /v1/x?a=1&b=%20c HTTP/1.1\r\nHost: h:80\r\ncontent-LENGTH: 5\r\nX: a, B ,c\r\n\r\n".len()
    );
}

/// The smuggling and abuse corpus: each request must be refused with this status (0: still incomplete).
#[test]
fn ambiguous_requests_are_refused() {
    let cases: &[(&str, &[u8], u16)] = &[
        ("no host", b"GET / HTTP/1.1\r\n\r\n", 400),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("two equal hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("empty host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        ("host with space", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (
            "length and chunked",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunked and length",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "zero length and chunked",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "different lengths",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            400,
        ),
        ("length list", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400),
        ("plus length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400),
        ("minus length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\nhello", 400),
        ("hex length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", 400),
        ("empty length", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
        ("length overflow", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551616\r\n\r\n", 400),
        ("length above the limit", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n", 413),
        ("unknown coding", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        ("gzip, chunked", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (
            "chunked not last",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunked twice",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunked and identity",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("quoted coding", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", 501),
        (
            "vertical tab in coding",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        ("coding in 1.0", b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("space before colon", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("folded header", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
        ("folded with tab", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n\tb\r\n\r\n", 400),
        ("space before first header", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        ("bare lf in head", b"GET / HTTP/1.1\nHost: a\n\n", 400),
        ("bare lf after header", b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        ("bare cr in value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        ("nul in value", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        ("empty name", b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
        ("no colon", b"GET / HTTP/1.1\r\nHost: a\r\nXYZ\r\n\r\n", 400),
        ("control in name", b"GET / HTTP/1.1\r\nHost: a\r\nX\x01Y: b\r\n\r\n", 400),
        ("http/0.9", b"GET /\r\n\r\n", 400),
        ("http/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("lower-case version", b"GET / http/1.1\r\nHost: a\r\n\r\n", 505),
        ("two spaces", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("target without slash", b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("fragment", b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("non-ascii target", b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("authority form", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 400),
        ("absolute target with other host", b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("unknown expectation", b"POST / HTTP/1.1\r\nHost: a\r\nExpect: teapot\r\n\r\n", 417),
        (
            "chunk lf only",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunk data end lf only",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n",
            400,
        ),
        (
            "chunk size overflow",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunk size huge",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello\r\n0\r\n\r\n",
            413,
        ),
        (
            "chunk size signed",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunk size 0x",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunk size with space",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunk size empty",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "chunk shorter than data",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "control in extension",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\x01\r\nhello\r\n0\r\n\r\n",
            400,
        ),
        (
            "request in trailer",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nGET /x HTTP/1.1\r\n\r\n",
            400,
        ),
    ];
    for (name, raw, status) in cases {
        assert_eq!(verdict(raw), *status, "{name}");
    }
    println!("{} ambiguous requests refused", cases.len());
}

#[test]
fn good_requests_are_accepted() {
    let cases: &[(&str, &[u8])] = &[
        ("1.0 without host", b"GET / HTTP/1.0\r\n\r\n"),
        ("empty line before", b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("equal lengths", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello"),
        ("absolute form", b"GET http://a/x HTTP/1.1\r\nHost: A\r\n\r\n"),
        ("asterisk", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("chunked", b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5;ext=1\r\nhello\r\n00\r\nTrailer: x\r\n\r\n"),
        ("ipv6 host", b"GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n"),
        ("latin-1 value", b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\r\n\r\n"),
    ];
    for (name, raw) in cases {
        assert_eq!(verdict(raw), 200, "{name}");
    }
}

#[test]
fn limits_have_their_own_status() {
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(URI_BYTES_MAX));
    assert_eq!(verdict(long_target.as_bytes()), 414);
    // Refused before the line ends: nobody may make us buffer without end.
    assert_eq!(verdict("G".repeat(URI_BYTES_MAX + 100).as_bytes()), 414);
    let long_head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX));
    assert_eq!(verdict(long_head.as_bytes()), 431);
    let fields = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(n - 1));
    assert_eq!(verdict(fields(HEADERS_MAX).as_bytes()), 200);
    assert_eq!(verdict(fields(HEADERS_MAX + 1).as_bytes()), 431);
    assert_eq!(verdict(b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), 400);
    let extensions = format!("5;{}\r\nhello\r\n", "x".repeat(240)).repeat(100);
    let raw = format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{extensions}0\r\n\r\n");
    assert_eq!(verdict(raw.as_bytes()), 400);
    let raw = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: {}\r\n\r\n",
        "x".repeat(5_000)
    );
    assert_eq!(verdict(raw.as_bytes()), 400);
}

#[test]
fn keep_alive_follows_version_and_connection() {
    let keep = |text: &str| head(text).keep_alive;
    assert!(keep("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert!(!keep("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, Close\r\n\r\n"));
    assert!(!keep("GET / HTTP/1.0\r\nHost: a\r\n\r\n"));
    assert!(keep("GET / HTTP/1.0\r\nHost: a\r\nConnection: Keep-Alive\r\n\r\n"));
    assert!(head("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n").expect_continue);
    assert!(!head("POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n").expect_continue);
}

#[test]
fn pipelined_requests_are_separated() {
    let raw = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n";
    let first = parse(raw).unwrap().unwrap();
    let mut body = Vec::new();
    let rest = &raw[first.head_bytes..];
    let progress = BodyDecoder::new(first.framing, MB).unwrap().decode(rest, &mut body).unwrap();
    assert_eq!((body.as_slice(), progress.done), (&b"hi"[..], true));
    assert_eq!(parse(&rest[progress.consumed..]).unwrap().unwrap().path(), "/b");
}

#[test]
fn a_head_that_comes_again_is_known() {
    let (mut parser, text) = (HeadParser::default(), "GET /a?b HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n");
    let first = parser.parse(format!("\r\n{text}").as_bytes()).unwrap().unwrap();
    assert_eq!((first.repeated, first.head_bytes), (false, text.len() + 2));
    parser.recycle(first);
    let again = parser.parse(format!("{text}{text}").as_bytes()).unwrap().unwrap();
    assert_eq!((again.repeated, again.head_bytes), (true, text.len()));
    assert_eq!((again.path(), again.query(), again.header("x")), ("/a", Some("b"), Some("y")));
    parser.recycle(again);
    let other = parser.parse(text.replace("X: y", "X: z").as_bytes()).unwrap().unwrap();
    assert_eq!((other.repeated, other.header("x")), (false, Some("z")));
}

#[test]
fn header_values_cannot_add_lines() {
    let mut out = Vec::new();
    write_head(
        &mut out,
        200,
        &[("x-id", "a\r\nset-cookie: b\0")],
        ResponseBody::Length(3),
        false,
        &http_date(784_111_777),
    );
    let text = String::from_utf8(out).unwrap();
    assert_eq!(
        text,
        "HTTP/1.1 200 OK\r\nx-id: a  set-cookie: b \r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-length: 3\r\nconnection: close\r\n\r\n"
    );
}

#[test]
fn responses_are_read_back() {
    let mut out = Vec::new();
    write_head(&mut out, 200, &[("content-type", "text/event-stream")], ResponseBody::Chunked, true, &http_date(0));
    let head = parse_response(&out).unwrap().unwrap();
    assert_eq!((head.status, head.framing, head.keep_alive), (200, BodyFraming::Chunked, true));
    assert_eq!(head.header("content-type"), Some("text/event-stream"));
    assert_eq!(parse_response(&out[..out.len() - 1]).unwrap(), None);
    let mut out = Vec::new();
    write_error(&mut out, &HttpError::new(431, "too long"), &http_date(0));
    let head = parse_response(&out).unwrap().unwrap();
    assert_eq!((head.status, head.framing, head.keep_alive), (431, BodyFraming::Length(9), false));
    let until_close = parse_response(b"HTTP/1.1 200 OK\r\n\r\n").unwrap().unwrap();
    assert_eq!((until_close.framing, until_close.keep_alive), (BodyFraming::UntilClose, false));
}

#[test]
fn escapes_decode_or_are_refused() {
    assert_eq!(percent_decode("a%2Fb+c").as_deref(), Some("a/b+c"));
    assert_eq!(percent_decode("%e4%bd%a0").as_deref(), Some("你"));
    for bad in ["%", "%1", "%zz", "%ff", "%00", "%+1"] {
        assert_eq!(percent_decode(bad), None, "{bad}");
    }
    let pairs: Vec<_> = query_pairs("a=1&&b=x+y&c&d=%zz").collect();
    assert_eq!(pairs, [("a".into(), "1".into()), ("b".into(), "x y".into()), ("c".into(), String::new())]);
}

/// Feeds bytes in the given pieces, as a socket would.
fn parse_in_pieces(parser: &mut HeadParser, raw: &[u8], cuts: &[usize]) -> Result<Option<RequestHead>, HttpError> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (raw.len() + 1)).collect();
    ends.push(raw.len());
    ends.sort_unstable();
    let mut result = Ok(None);
    for end in ends {
        result = parser.parse(&raw[..end]);
        if !matches!(result, Ok(None)) {
            break;
        }
    }
    result
}

proptest! {
    #[test]
    fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = verdict(&raw);
        let _ = parse_response(&raw);
    }

    /// Bytes that look like HTTP reach much deeper than random ones.
    #[test]
    fn damaged_requests_never_panic(place in any::<usize>(), byte in any::<u8>(), cut in any::<usize>()) {
        let mut raw = b"POST /a?b=c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n5;x=y\r\nhello\r\n0\r\nT: u\r\n\r\n".to_vec();
        let at = place % raw.len();
        raw[at] = byte;
        let _ = verdict(&raw);
        raw.truncate(cut % raw.len());
        let _ = verdict(&raw);
        for decoder_input in [&raw[..], &raw[raw.len() / 2..]] {
            let mut decoder = BodyDecoder::new(BodyFraming::Chunked, 100).unwrap();
            let mut out = Vec::new();
            let _ = decoder.decode(decoder_input, &mut out);
            prop_assert!(out.len() <= 100);
        }
    }

    /// However a head is cut into pieces, and whatever head came before it, the outcome is that of the whole.
    #[test]
    fn pieces_give_the_same_result(cuts in proptest::collection::vec(any::<usize>(), 0..8), which in 0usize..6, before in 0usize..4) {
        let first: &[u8] = [
            &b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
            b"\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
            b"POST /a HTTP/1.1\r\nHost: a\r\n\r\n",
        ][before];
        let raw: &[u8] = [
            &b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"[..],
            b"\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
            b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\tX: y\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nX: y",
        ][which];
        let mut parser = HeadParser::default();
        let known = parser.parse(first).expect("accepted").expect("complete");
        parser.recycle(known);
        let summary = |result: Result<Option<RequestHead>, HttpError>| {
            result.map(|head| head.map(|head| (head.target().to_owned(), head.framing, head.head_bytes)))
        };
        prop_assert_eq!(summary(parse_in_pieces(&mut parser, raw, &cuts)), summary(parse(raw)));
    }

    #[test]
    fn chunked_bodies_read_back(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..8), piece in 1usize..40) {
        let mut wire = Vec::new();
        for part in &parts {
            write_chunk(&mut wire, part);
        }
        write_last_chunk(&mut wire);
        wire.extend_from_slice(b"GET");
        let mut decoder = BodyDecoder::new(BodyFraming::Chunked, MB).unwrap();
        let mut body = Vec::new();
        let mut used = 0;
        for input in wire.chunks(piece) {
            let progress = decoder.decode(input, &mut body).unwrap();
            used += progress.consumed;
            if progress.done {
                break;
            }
        }
        prop_assert!(decoder.is_done());
        prop_assert_eq!(body, parts.concat());
        prop_assert_eq!(&wire[used..], b"GET");
    }

    #[test]
    fn bodies_of_known_length_read_back(body in proptest::collection::vec(any::<u8>(), 1..200), piece in 1usize..40) {
        let mut decoder = BodyDecoder::new(BodyFraming::Length(body.len() as u64), 200).unwrap();
        let wire = [&body[..], b"next"].concat();
        let mut out = Vec::new();
        let mut used = 0;
        for input in wire.chunks(piece) {
            used += decoder.decode(input, &mut out).unwrap().consumed;
        }
        prop_assert_eq!(out, &wire[..used]);
        prop_assert_eq!(used, body.len());
    }

    #[test]
    fn escapes_never_panic(text in ".{0,60}") {
        let _ = percent_decode(&text);
        let _ = query_pairs(&text).count();
    }
}

#[test]
fn a_head_of_another_protocol_obeys_the_same_rules() {
    let assemble = |target: &str, authority: &str, ended: bool, fields: &[(&str, &[u8])]| {
        let parts = Parts { method: "POST", target, authority, ended };
        RequestHead::assemble(&parts, fields).map_err(|error| error.status)
    };
    let head = assemble("/a?b=c", "x.example", false, &[("content-length", b"5"), ("x", b"y")]).expect("a head");
    assert_eq!((head.path(), head.query(), head.header("host")), ("/a", Some("b=c"), Some("x.example")));
    assert_eq!((head.framing, head.method, head.header("x")), (BodyFraming::Length(5), Method::Post, Some("y")));
    assert_eq!(assemble("/", "x", false, &[]).expect("a head").framing, BodyFraming::Chunked);
    assert_eq!(assemble("/", "x", true, &[]).expect("a head").framing, BodyFraming::None);
    assert_eq!(assemble("/", "", true, &[("host", b"h")]).expect("a head").header("host"), Some("h"));
    let host = assemble("/", "x", true, &[("host", b"X")]).expect("the same host");
    assert_eq!(host.headers().filter(|(name, _)| *name == "host").count(), 1);
    assert_eq!(assemble("/", "x", true, &[("host", b"other")]).err(), Some(400));
    assert_eq!(assemble("/", "", true, &[]).err(), Some(400));
    assert_eq!(assemble("/", "x", true, &[("content-length", b"5")]).err(), Some(400));
    assert_eq!(assemble("/", "x", false, &[("content-length", b"+5")]).err(), Some(400));
    assert_eq!(assemble("/ /", "x", true, &[]).err(), Some(400));
    assert_eq!(assemble("no-slash", "x", true, &[]).err(), Some(400));
    assert_eq!(assemble("/", "x", true, &[("big", &[b'a'; 40_000])]).err(), Some(431));
    assert_eq!(assemble("/", "x", true, &[("a", b"b".as_slice()); 101]).err(), Some(431));
}
