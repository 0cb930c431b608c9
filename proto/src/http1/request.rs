//! The head of a request.

use super::body::BodyFraming;
use super::{HttpError, target};
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX, URI_BYTES_MAX};
use std::fmt;
use std::mem::MaybeUninit;

/// Empty lines that may come before a request line (RFC 9112 section 2.2 asks to skip at least one).
const LEADING_EMPTY_LINES_MAX: usize = 2;
/// Memory that a connection keeps for its next head.
const SPARE_BYTES_MAX: usize = 4 * 1024;
/// Room for method and version beside the longest target.
const REQUEST_LINE_BYTES_MAX: usize = URI_BYTES_MAX + 64;

/// A request method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
    /// OPTIONS.
    Options,
    /// Any other token; no route has it.
    Other,
}

impl Method {
    fn of(token: &str) -> Self {
        match token {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            "PUT" => Method::Put,
            "PATCH" => Method::Patch,
            "DELETE" => Method::Delete,
            "OPTIONS" => Method::Options,
            _ => Method::Other,
        }
    }

    /// The name on the wire; `?` for [`Method::Other`].
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Other => "?",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The protocol version of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
}

/// A request whose parts another protocol has already taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// The authority pseudo-header; empty = the `host` field speaks.
    pub authority: &'a str,
    /// No body follows.
    pub ended: bool,
}

/// A range of the head bytes. [`HEAD_BYTES_MAX`] fits into `u16`.
#[derive(Clone, Copy, Debug)]
struct Span(u16, u16);

impl Span {
    fn of(whole: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr() as usize - whole.as_ptr() as usize;
        debug_assert!(start + part.len() <= whole.len(), "the part lies inside the whole");
        Self(start as u16, (start + part.len()) as u16)
    }

    fn range(self) -> std::ops::Range<usize> {
        usize::from(self.0)..usize::from(self.1)
    }
}

/// A checked request head. Owns a copy of its bytes, so that the receive buffer can go back to the ring.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The version.
    pub version: Version,
    /// How the body is framed.
    pub framing: BodyFraming,
    /// Whether the connection may carry another request after this one.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// Bytes of the head in the input: the body starts here.
    pub head_bytes: usize,
    /// Byte for byte the head before it on its connection: what was found out about that one holds here.
    pub repeated: bool,
    bytes: Vec<u8>,
    target: Span,
    /// Bytes of the path, the first part of the target.
    path_bytes: u16,
    fields: Vec<(Span, Span)>,
}

impl RequestHead {
    /// Path and query, starting with `/` (or `*` for OPTIONS).
    pub fn target(&self) -> &str {
        self.text(self.target)
    }

    /// The path, without decoding: routes compare it byte for byte.
    pub fn path(&self) -> &str {
        self.text(Span(self.target.0, self.target.0 + self.path_bytes))
    }

    /// The query without its `?`, without decoding.
    pub fn query(&self) -> Option<&str> {
        let mark = self.target.0 + self.path_bytes;
        (mark < self.target.1).then(|| self.text(Span(mark + 1, self.target.1)))
    }

    /// The first value of a query parameter, decoded.
    pub fn query_param(&self, name: &str) -> Option<String> {
        target::query_pairs(self.query()?).find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The first value of a header, if it is visible ASCII or UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_bytes(name).and_then(|value| std::str::from_utf8(value).ok())
    }

    /// The first value of a header, byte for byte.
    pub fn header_bytes(&self, name: &str) -> Option<&[u8]> {
        let name = name.as_bytes();
        let same = |(known, _): &&(Span, Span)| self.bytes[known.range()].eq_ignore_ascii_case(name);
        self.fields.iter().find(same).map(|(_, value)| &self.bytes[value.range()])
    }

    /// All header fields in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.fields.iter().map(|(name, value)| (self.text(*name), &self.bytes[value.range()]))
    }

    /// All header fields as channel verification takes them.
    pub fn header_pairs(&self) -> Vec<(&str, &[u8])> {
        self.headers().collect()
    }

    /// Whether a comma-separated header names `token`, in any case.
    pub fn header_has_token(&self, name: &str, token: &str) -> bool {
        self.headers()
            .filter(|(known, _)| known.eq_ignore_ascii_case(name))
            .any(|(_, value)| tokens(value).any(|known| known.eq_ignore_ascii_case(token.as_bytes())))
    }

    /// A head from the parts of an HTTP/2 request, held to the same rules as one of HTTP/1.1.
    pub fn assemble<'a>(parts: &Parts<'a>, fields: &[(&'a str, &'a [u8])]) -> Result<Self, HttpError> {
        let authority = (!parts.authority.is_empty()).then_some(("host", parts.authority.as_bytes()));
        // RFC 9113 section 8.3.1: a `host` beside the authority must say the same.
        let differs = |(name, value): (&str, &[u8])| {
            authority.is_some_and(|(_, authority)| name == "host" && !value.eq_ignore_ascii_case(authority))
        };
        if fields.iter().copied().any(differs) {
            return Err(HttpError::bad("authority and Host differ"));
        }
        let rest = fields.iter().copied().filter(|(name, _)| authority.is_none() || *name != "host");
        let fields = authority.into_iter().chain(rest);
        let facts = Facts::gather(fields.clone(), Version::Http2)?;
        let method = Method::of(parts.method);
        let path = target::check(parts.target, method, facts.host)?;
        let (count, field_bytes) =
            fields.clone().fold((0, 0), |(count, bytes), (name, value)| (count + 1, bytes + name.len() + value.len()));
        if count > HEADERS_MAX {
            return Err(HttpError::new(431, "more than 100 header fields"));
        }
        if path.len() + field_bytes > HEAD_BYTES_MAX {
            return Err(HttpError::new(431, "head is longer than 32 KiB"));
        }
        let framing = match (parts.ended, facts.framing) {
            (true, BodyFraming::Length(_)) => return Err(HttpError::bad("Content-Length without a body")),
            (true, _) => BodyFraming::None,
            (false, BodyFraming::Length(length)) => BodyFraming::Length(length),
            (false, _) => BodyFraming::Chunked,
        };
        let mut bytes = Vec::with_capacity(path.len() + field_bytes);
        let mut spans = Vec::with_capacity(count);
        let mut keep = |part: &[u8]| {
            let start = bytes.len() as u16;
            bytes.extend_from_slice(part);
            Span(start, bytes.len() as u16)
        };
        let target = keep(path.as_bytes());
        for (name, value) in fields {
            let name = keep(name.as_bytes());
            spans.push((name, keep(value)));
        }
        Ok(Self {
            method,
            version: Version::Http2,
            framing,
            keep_alive: true,
            expect_continue: false,
            head_bytes: 0,
            repeated: false,
            bytes,
            path_bytes: path_bytes(path),
            target,
            fields: spans,
        })
    }

    fn text(&self, span: Span) -> &str {
        std::str::from_utf8(&self.bytes[span.range()]).expect("checked to be ASCII when the head was parsed")
    }
}

/// Bytes of a target before its query.
fn path_bytes(target: &str) -> u16 {
    memchr::memchr(b'?', target.as_bytes()).unwrap_or(target.len()) as u16
}

/// Parses request heads as their bytes arrive; remembers how far it has looked, so that a head that drips
/// in byte by byte costs linear time, and the head before, since programs send the same one again and again.
/// One per connection; reusable after every head.
#[derive(Clone, Debug, Default)]
pub struct HeadParser {
    last: Option<RequestHead>,
    scan: Scan,
}

/// How far the present head has been looked at.
#[derive(Clone, Debug, Default)]
struct Scan {
    scanned: usize,
    line_start: usize,
    started: bool,
    skipped: usize,
}

/// Parses a head that starts at the beginning of `bytes`: `None` means that more bytes are needed.
pub fn parse(bytes: &[u8]) -> Result<Option<RequestHead>, HttpError> {
    HeadParser::default().parse(bytes)
}

impl HeadParser {
    /// `bytes` is everything received since the last head ended (and its body was taken away); it may only
    /// grow between calls.
    pub fn parse(&mut self, bytes: &[u8]) -> Result<Option<RequestHead>, HttpError> {
        // What a head says depends on its bytes alone, and no head is the beginning of another one.
        if let Some(last) = self.last.take_if(|last| bytes.starts_with(&last.bytes)) {
            self.scan = Scan::default();
            return Ok(Some(RequestHead { head_bytes: last.bytes.len(), repeated: true, ..last }));
        }
        let Some(end) = self.scan.find_end(bytes)? else { return Ok(None) };
        let spare = self.last.take().map_or_else(Default::default, |last| (last.bytes, last.fields));
        let skipped = std::mem::take(&mut self.scan).skipped;
        read_head(&bytes[skipped..end], end, spare).map(Some)
    }

    /// Takes a head that is done with: the next one needs no allocation, and one that is equal no parsing.
    pub fn recycle(&mut self, head: RequestHead) {
        if head.bytes.capacity() <= SPARE_BYTES_MAX {
            self.last = Some(head);
        }
    }
}

impl Scan {
    /// Finds the end of the empty line that closes the head, checking line structure on the way. Jumps from one
    /// byte that matters to the next.
    fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, HttpError> {
        while self.scanned < bytes.len() {
            if self.scanned == self.line_start && matches!(bytes[self.scanned], b' ' | b'\t') {
                return Err(HttpError::bad("line starts with white space (folded headers are not accepted)"));
            }
            let Some(found) = memchr::memchr3(b'\r', b'\n', 0, &bytes[self.scanned..]) else {
                return self.judge_length(bytes.len()).map(|()| {
                    self.scanned = bytes.len();
                    None
                });
            };
            let at = self.scanned + found;
            self.judge_length(at)?;
            match bytes[at] {
                0 => return Err(HttpError::bad("NUL in the head")),
                b'\n' => return Err(HttpError::bad("line feed without carriage return")),
                _ => {}
            }
            match bytes.get(at + 1) {
                // The byte after the carriage return has not arrived yet: looked at again then.
                None => {
                    self.scanned = at;
                    return Ok(None);
                }
                Some(b'\n') => {}
                Some(_) => return Err(HttpError::bad("carriage return without line feed")),
            }
            let line_bytes = at - self.line_start;
            self.scanned = at + 2;
            self.line_start = at + 2;
            if line_bytes > 0 {
                self.started = true;
            } else if self.started {
                return Ok(Some(at + 2));
            } else if at + 2 > LEADING_EMPTY_LINES_MAX * 2 {
                return Err(HttpError::bad("empty lines before the request"));
            } else {
                self.skipped = at + 2;
            }
        }
        Ok(None)
    }

    /// Refuses a head that has reached `end` and is too long for it.
    fn judge_length(&self, end: usize) -> Result<(), HttpError> {
        let head_bytes = end - self.skipped;
        if head_bytes > HEAD_BYTES_MAX {
            return Err(HttpError::new(431, "head is longer than 32 KiB"));
        }
        if !self.started && head_bytes > REQUEST_LINE_BYTES_MAX {
            return Err(HttpError::new(414, "request target is longer than 8 KiB"));
        }
        Ok(())
    }
}

fn read_head(head: &[u8], head_bytes: usize, spare: (Vec<u8>, Vec<(Span, Span)>)) -> Result<RequestHead, HttpError> {
    let (mut bytes, mut fields) = spare;
    bytes.clear();
    bytes.extend_from_slice(head);
    fields.clear();
    let mut storage = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(&bytes, &mut storage) {
        Ok(httparse::Status::Complete(used)) if used == bytes.len() => {}
        Ok(_) => return Err(HttpError::bad("malformed head")),
        Err(error) => return Err(parse_error(error)),
    }
    let version = match request.version {
        Some(0) => Version::Http10,
        _ => Version::Http11,
    };
    let method = Method::of(request.method.unwrap_or(""));
    let facts = Facts::gather(request.headers.iter().map(|field| (field.name, field.value)), version)?;
    let full_target = request.path.unwrap_or("");
    let target = target::check(full_target, method, facts.host)?;
    let keep_alive = match version {
        Version::Http11 | Version::Http2 => !facts.close,
        Version::Http10 => facts.keep_alive && !facts.close,
    };
    let path_bytes = path_bytes(target);
    let target = Span::of(&bytes, target.as_bytes());
    let spans =
        request.headers.iter().map(|field| (Span::of(&bytes, field.name.as_bytes()), Span::of(&bytes, field.value)));
    fields.extend(spans);
    let (framing, expect_continue) = (facts.framing, facts.expect_continue && version == Version::Http11);
    Ok(RequestHead {
        method,
        version,
        framing,
        keep_alive,
        expect_continue,
        head_bytes,
        repeated: false,
        bytes,
        target,
        path_bytes,
        fields,
    })
}

fn parse_error(error: httparse::Error) -> HttpError {
    match error {
        httparse::Error::TooManyHeaders => HttpError::new(431, "more than 100 header fields"),
        httparse::Error::Version => HttpError::new(505, "only HTTP/1.0 and HTTP/1.1 are spoken here"),
        httparse::Error::HeaderName => HttpError::bad("malformed header name"),
        httparse::Error::HeaderValue => HttpError::bad("malformed header value"),
        _ => HttpError::bad("malformed request line"),
    }
}

/// What the header fields say about framing and connection.
struct Facts<'a> {
    host: &'a str,
    framing: BodyFraming,
    close: bool,
    keep_alive: bool,
    expect_continue: bool,
}

impl<'a> Facts<'a> {
    fn gather(fields: impl Iterator<Item = (&'a str, &'a [u8])>, version: Version) -> Result<Self, HttpError> {
        let mut host = None;
        let mut length = None;
        let mut chunked = false;
        let mut facts =
            Facts { host: "", framing: BodyFraming::None, close: false, keep_alive: false, expect_continue: false };
        for (name, value) in fields {
            // Checked by length first: almost every field falls through without a comparison.
            match name.len() {
                4 if name.eq_ignore_ascii_case("host") => {
                    let before = host.replace(host_value(value)?);
                    before.map_or(Ok(()), |_| Err(HttpError::bad("more than one Host")))?;
                }
                14 if name.eq_ignore_ascii_case("content-length") => {
                    let this = content_length(value)?;
                    if length.replace(this).is_some_and(|before| before != this) {
                        return Err(HttpError::bad("two different Content-Length values"));
                    }
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    if chunked {
                        return Err(HttpError::bad("more than one Transfer-Encoding"));
                    }
                    transfer_encoding(value)?;
                    chunked = true;
                }
                10 if name.eq_ignore_ascii_case("connection") => {
                    for token in tokens(value) {
                        facts.close |= token.eq_ignore_ascii_case(b"close");
                        facts.keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                    }
                }
                6 if name.eq_ignore_ascii_case("expect") => {
                    if !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(HttpError::new(417, "the only known expectation is 100-continue"));
                    }
                    facts.expect_continue = true;
                }
                _ => {}
            }
        }
        facts.host = match (host, version) {
            (Some(host), _) => host,
            (None, Version::Http10) => "",
            (None, Version::Http11 | Version::Http2) => return Err(HttpError::bad("no Host")),
        };
        facts.framing = match (chunked, length) {
            (true, Some(_)) => return Err(HttpError::bad("Content-Length together with Transfer-Encoding")),
            (true, None) if version == Version::Http10 => {
                return Err(HttpError::bad("Transfer-Encoding in HTTP/1.0"));
            }
            (true, None) => BodyFraming::Chunked,
            (false, None | Some(0)) => BodyFraming::None,
            (false, Some(length)) => BodyFraming::Length(length),
        };
        Ok(facts)
    }
}

/// Which bytes a `Host` may hold (RFC 3986 section 3.2). A table: this is asked for each byte of each request.
static HOST_BYTES: [bool; 256] = {
    let (mut table, others) = ([false; 256], b"-._~!$&'()*+,;=%:[]");
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

fn host_value(value: &[u8]) -> Result<&str, HttpError> {
    match std::str::from_utf8(value) {
        Ok(host) if !host.is_empty() && value.iter().all(|byte| HOST_BYTES[usize::from(*byte)]) => Ok(host),
        _ => Err(HttpError::bad("malformed Host")),
    }
}

/// Digits only: Rust's own integer parser would also take a sign.
pub(super) fn content_length(value: &[u8]) -> Result<u64, HttpError> {
    const BAD: HttpError = HttpError::bad("malformed Content-Length");
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    value.iter().try_fold(0u64, |sum, digit| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))).ok_or(BAD)
}

pub(super) fn transfer_encoding(value: &[u8]) -> Result<(), HttpError> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let mut codings = tokens(value);
    match codings.any(|coding| coding.eq_ignore_ascii_case(b"chunked")) {
        true => Err(HttpError::bad("chunked must be the only transfer coding")),
        false => Err(HttpError::new(501, "the only known transfer coding is chunked")),
    }
}

/// The trimmed members of a comma-separated list.
pub(super) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}
