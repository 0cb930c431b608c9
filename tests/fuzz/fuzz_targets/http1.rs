//! A request or response head of any bytes is refused or can be looked at, whole or in two parts; so are bodies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::http1::{BodyDecoder, BodyFraming, HeadParser, parse, parse_response, percent_decode, query_pairs};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    if let Ok(Some(head)) = &whole {
        let _ = (head.path(), head.query().map(|query| query_pairs(query).count()), percent_decode(head.path()));
        let _ = (head.headers().count(), head.header_has_token("connection", "close"));
    }
    let mut parser = HeadParser::default();
    if let Ok(None) = parser.parse(&bytes[..bytes.len() / 2]) {
        assert_eq!(parser.parse(bytes).is_ok(), whole.is_ok(), "parts change nothing");
    }
    let _ = parse_response(bytes);
    for framing in [BodyFraming::Chunked, BodyFraming::Length(9), BodyFraming::UntilClose] {
        let mut decoder = BodyDecoder::new(framing, 1 << 10).expect("within the limit");
        let (mut rest, mut out) = (bytes, Vec::new());
        while let Ok(progress) = decoder.decode(rest, &mut out) {
            rest = &rest[progress.consumed..];
            if progress.done || progress.consumed == 0 {
                break;
            }
        }
        assert!(out.len() <= 1 << 10, "a body stays within its limit");
    }
});
