//! Response heads: written for our clients, and parsed by our own client tools.

use super::HttpError;
use super::body::BodyFraming;
use super::request::{Version, content_length, tokens, transfer_encoding};
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

/// The interim answer to `Expect: 100-continue`.
pub const CONTINUE_100: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How the body of a response is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// This many bytes.
    Length(usize),
    /// Chunks follow.
    Chunked,
    /// The body ends with the connection: streams to HTTP/1.0 clients.
    UntilClose,
    /// No framing header: 101, 204 and 304.
    None,
}

/// Appends a response head. `date` is the value of the `Date` header (see [`crate::date::http_date`]).
///
/// Header values may hold outside text: control characters in them become spaces, so that no value can add
/// a line to the head.
pub fn write_head(
    out: &mut Vec<u8>,
    status: u16,
    headers: &[(&str, &str)],
    body: ResponseBody,
    keep_alive: bool,
    date: &str,
) {
    debug_assert!((100..1000).contains(&status));
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason_phrase(status).as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in headers {
        write_field(out, name, value);
    }
    write_field(out, "date", date);
    match body {
        ResponseBody::Length(length) => write_field(out, "content-length", &length.to_string()),
        ResponseBody::Chunked => write_field(out, "transfer-encoding", "chunked"),
        ResponseBody::UntilClose | ResponseBody::None => {}
    }
    if (!keep_alive || body == ResponseBody::UntilClose) && status != 101 {
        write_field(out, "connection", "close");
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a complete plain-text answer to a request that was refused before it was understood.
pub fn write_error(out: &mut Vec<u8>, error: &HttpError, date: &str) {
    let text = format!("{}\n", error.reason);
    let headers = [("content-type", "text/plain; charset=utf-8"), ("cache-control", "no-store")];
    write_head(out, error.status, &headers, ResponseBody::Length(text.len()), false, date);
    out.extend_from_slice(text.as_bytes());
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &str) {
    debug_assert!(
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)),
        "header names are ours: {name:?}"
    );
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend(value.bytes().map(|byte| if byte < b' ' || byte == 0x7f { b' ' } else { byte }));
    out.extend_from_slice(b"\r\n");
}

/// The customary words for a status.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        _ => "Status",
    }
}

/// A parsed response head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// Status.
    pub status: u16,
    /// How the body is framed.
    pub framing: BodyFraming,
    /// Whether the connection may carry another request.
    pub keep_alive: bool,
    /// Bytes of the head in the input.
    pub head_bytes: usize,
    /// Header fields in order, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl ResponseHead {
    /// The first value of a header (lower-case name), if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let field = self.headers.iter().find(|(known, _)| known == name);
        field.and_then(|(_, value)| std::str::from_utf8(value).ok())
    }
}

/// Parses the head of a response to `GET` or `POST`; `None` means that more bytes are needed.
pub fn parse_response(bytes: &[u8]) -> Result<Option<ResponseHead>, HttpError> {
    let mut storage = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut storage);
    let head_bytes = match response.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if bytes.len() <= HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => return Err(HttpError::new(502, "response head is too long")),
        Err(_) => return Err(HttpError::new(502, "malformed response head")),
    };
    let status = response.code.unwrap_or(0);
    let version = if response.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let mut keep_alive = version == Version::Http11;
    let mut length = None;
    let mut chunked = false;
    let mut headers = Vec::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        if field.name.eq_ignore_ascii_case("content-length") {
            let this = content_length(field.value)?;
            if length.replace(this).is_some_and(|before| before != this) {
                return Err(HttpError::new(502, "two different Content-Length values"));
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            transfer_encoding(field.value)?;
            chunked = true;
        } else if field.name.eq_ignore_ascii_case("connection") {
            for token in tokens(field.value) {
                keep_alive |= token.eq_ignore_ascii_case(b"keep-alive");
                keep_alive &= !token.eq_ignore_ascii_case(b"close");
            }
        }
        headers.push((field.name.to_ascii_lowercase(), field.value.to_vec()));
    }
    let framing = match (status, chunked, length) {
        (100..=199 | 204 | 304, _, _) => BodyFraming::None,
        (_, true, _) => BodyFraming::Chunked,
        (_, false, Some(length)) => BodyFraming::Length(length),
        (_, false, None) => BodyFraming::UntilClose,
    };
    keep_alive &= framing != BodyFraming::UntilClose;
    Ok(Some(ResponseHead { status, framing, keep_alive, head_bytes, headers }))
}
