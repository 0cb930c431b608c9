//! The answer side of a request: heads, whole bodies and streams into one buffer that leaves in
//! as few writes as possible. Handlers see no difference between HTTP/1.1, whose framing is
//! written here, and a stream of HTTP/2, whose framing the `Sink` adds.

use std::cell::RefCell;
use std::io::Write as _;
use std::rc::Rc;

use millrace_proto::api::ApiError;
use millrace_proto::http1::{reason_phrase, write_last_chunk};

use super::Net;
use super::http2;
use super::line::Line;
use super::quic;
use super::wire::Writer;

/// Buffered answers of pipelined requests are written beyond this.
pub const FLUSH_BYTES: usize = 64 * 1024;

/// Longest `x-request-id` that is honoured.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// The peer is gone (or took nothing in time); nothing more can be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// A body.
#[derive(Debug)]
pub enum Body {
    /// None.
    Empty,
    /// Compiled in.
    Static(&'static [u8]),
    /// Made for this answer.
    Owned(Vec<u8>),
    /// Made once for many answers of the shard.
    Shared(Rc<[u8]>),
}

impl Body {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Empty => &[],
            Self::Static(bytes) => bytes,
            Self::Owned(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// `content-type`; empty = none is sent.
    pub content_type: &'static str,
    /// The body.
    pub body: Body,
    /// Further headers; names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// Close the connection after this answer.
    pub close: bool,
}

impl Response {
    /// An answer with a JSON body.
    pub fn json(status: u16, body: Vec<u8>) -> Self {
        Self { status, content_type: "application/json", body: Body::Owned(body), headers: Vec::new(), close: false }
    }

    /// An answer with a compiled-in body.
    pub fn fixed(status: u16, content_type: &'static str, body: &'static [u8]) -> Self {
        Self { status, content_type, body: Body::Static(body), headers: Vec::new(), close: false }
    }

    /// An answer with a body that many answers share.
    pub fn shared(status: u16, content_type: &'static str, body: Rc<[u8]>) -> Self {
        Self { status, content_type, body: Body::Shared(body), headers: Vec::new(), close: false }
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, content_type: "", body: Body::Empty, headers: Vec::new(), close: false }
    }

    /// The answer for an error, in the shape of the API.
    pub fn error(error: &ApiError) -> Self {
        let mut response = Self::json(error.status, error.to_json());
        if let Some(seconds) = error.retry_after_s {
            response.headers.push(("retry-after", seconds.to_string()));
        }
        if error.status == 401 {
            response.headers.push(("www-authenticate", "Bearer realm=\"millrace\"".into()));
        }
        response
    }

    /// Adds a header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Closes the connection afterwards.
    pub fn closing(mut self) -> Self {
        self.close = true;
        self
    }
}

/// What one request's answer must respect.
#[derive(Debug, Default)]
struct Exchange {
    request_id: String,
    head_only: bool,
    http_1_0: bool,
    keep_alive: bool,
    status: u16,
    chunked: bool,
    streaming: bool,
}

/// Where answers leave.
enum Way {
    /// The connection itself.
    Http1(Writer),
    /// One stream of an HTTP/2 connection.
    Http2(Rc<RefCell<http2::Sink>>),
    /// One stream of an HTTP/3 connection.
    Http3(Rc<RefCell<quic::Sink>>),
}

/// The answer side.
pub struct Outgoing {
    net: Rc<Net>,
    line: Rc<Line>,
    way: Way,
    buffer: Vec<u8>,
    exchange: Exchange,
    gone: bool,
    /// The connection is under TLS, so its client may be told of HTTP/3.
    secure: bool,
}

impl Outgoing {
    /// The answer side of a connection.
    pub fn new(net: Rc<Net>, line: Rc<Line>, writer: Writer) -> Self {
        Self::on(net, line, Way::Http1(writer))
    }

    /// The answer side of one HTTP/2 stream.
    pub(super) fn stream_of(net: Rc<Net>, line: Rc<Line>, sink: Rc<RefCell<http2::Sink>>) -> Self {
        Self::on(net, line, Way::Http2(sink))
    }

    /// The answer side of one HTTP/3 stream.
    pub(super) fn http3(net: Rc<Net>, line: Rc<Line>, sink: Rc<RefCell<quic::Sink>>) -> Self {
        Self::on(net, line, Way::Http3(sink))
    }

    fn on(net: Rc<Net>, line: Rc<Line>, way: Way) -> Self {
        Self { net, line, way, buffer: Vec::new(), exchange: Exchange::default(), gone: false, secure: false }
    }

    /// Says that the connection is under TLS.
    pub(super) fn set_secure(&mut self, secure: bool) {
        self.secure = secure;
    }

    /// Takes the connection back for another protocol, before anything was answered.
    pub(super) fn into_writer(self) -> Option<Writer> {
        match self.way {
            Way::Http1(writer) => Some(writer),
            Way::Http2(_) | Way::Http3(_) => None,
        }
    }

    /// Starts an exchange: what follows answers this request.
    pub fn begin(&mut self, request_id: Option<&str>, head_only: bool, http_1_0: bool, keep_alive: bool) {
        let exchange = &mut self.exchange;
        exchange.head_only = head_only;
        exchange.http_1_0 = http_1_0;
        exchange.keep_alive = keep_alive;
        exchange.status = 0;
        exchange.chunked = false;
        exchange.streaming = false;
        exchange.request_id.clear();
        match request_id.and_then(honoured_id) {
            Some(id) => exchange.request_id.push_str(id),
            None => {
                exchange.request_id.push_str("req-");
                put_hex(&mut exchange.request_id, self.net.next_request_id());
            }
        }
    }

    /// The id under which this exchange is known to the client and in the log.
    pub fn request_id(&self) -> &str {
        &self.exchange.request_id
    }

    /// The status that was answered; 0 = none yet.
    pub fn status(&self) -> u16 {
        self.exchange.status
    }

    /// The connection stays open after this exchange.
    pub fn keeps_alive(&self) -> bool {
        self.exchange.keep_alive && !self.gone
    }

    /// The connection closes after this exchange.
    pub fn close_after(&mut self) {
        self.exchange.keep_alive = false;
    }

    /// Bytes not yet written.
    pub fn buffered(&self) -> usize {
        self.buffer.len()
    }

    /// The connection as the shard's sweep sees it.
    pub fn line(&self) -> &Rc<Line> {
        &self.line
    }

    /// The peer is known to be gone.
    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// Buffers a whole answer.
    pub fn respond(&mut self, response: Response) {
        debug_assert_eq!(self.exchange.status, 0, "one answer for one request");
        if response.close {
            self.exchange.keep_alive = false;
        }
        self.status_line(response.status);
        let body = response.body.as_slice();
        if !response.content_type.is_empty() {
            self.put_header("content-type", response.content_type.as_bytes());
        }
        // RFC 9110 section 8.6: 1xx and 204 have no length.
        if response.status >= 200 && response.status != 204 {
            self.put_length(body.len());
        }
        for (name, value) in &response.headers {
            self.put_header(name, value.as_bytes());
        }
        self.end_head();
        if !self.exchange.head_only {
            self.buffer.extend_from_slice(body);
        }
        self.end_body();
    }

    /// Buffers the answer for an error.
    pub fn fail(&mut self, error: &ApiError) {
        self.respond(Response::error(error));
    }

    /// Buffers the head of a stream of unknown length.
    pub fn begin_stream(&mut self, content_type: &'static str, headers: &[(&'static str, String)]) {
        debug_assert_eq!(self.exchange.status, 0, "one answer for one request");
        self.exchange.streaming = true;
        self.line.set_streaming(true);
        self.exchange.chunked = !self.exchange.http_1_0 && matches!(self.way, Way::Http1(_));
        if self.exchange.http_1_0 {
            // Such a client knows the end only by the close.
            self.exchange.keep_alive = false;
        }
        self.status_line(200);
        self.put_header("content-type", content_type.as_bytes());
        self.put_header("cache-control", b"no-cache");
        // Reverse proxies that buffer would hold tokens back.
        self.put_header("x-accel-buffering", b"no");
        for (name, value) in headers {
            self.put_header(name, value.as_bytes());
        }
        if self.exchange.chunked {
            self.put_header("transfer-encoding", b"chunked");
        }
        self.end_head();
    }

    /// Buffers a part of the stream.
    pub fn stream(&mut self, part: &[u8]) {
        debug_assert!(self.exchange.streaming, "begin_stream comes first");
        if part.is_empty() || self.exchange.head_only {
            return;
        }
        if self.exchange.chunked {
            let _ = write!(self.buffer, "{:x}\r\n", part.len());
            self.buffer.extend_from_slice(part);
            self.buffer.extend_from_slice(b"\r\n");
        } else {
            self.buffer.extend_from_slice(part);
        }
    }

    /// Buffers the end of the stream.
    pub fn end_stream(&mut self) {
        if self.exchange.chunked && !self.exchange.head_only {
            write_last_chunk(&mut self.buffer);
        }
        self.exchange.streaming = false;
        self.line.set_streaming(false);
        self.end_body();
    }

    /// Buffers bytes as they are (an interim answer, frames of an upgraded connection).
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The buffer, for encoders that append.
    pub fn raw_buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Buffers the head that turns the connection into a WebSocket.
    pub fn switch_to_websocket(&mut self, accept: &str, extensions: Option<&str>) {
        self.exchange.status = 101;
        self.buffer.extend_from_slice(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: ",
        );
        self.buffer.extend_from_slice(accept.as_bytes());
        if let Some(extensions) = extensions {
            self.buffer.extend_from_slice(b"\r\nsec-websocket-extensions: ");
            self.buffer.extend_from_slice(extensions.as_bytes());
        }
        self.buffer.extend_from_slice(b"\r\nx-request-id: ");
        self.buffer.extend_from_slice(self.exchange.request_id.as_bytes());
        self.buffer.extend_from_slice(b"\r\n\r\n");
    }

    /// Writes everything buffered.
    pub async fn flush(&mut self) -> Result<(), Gone> {
        if self.gone {
            return Err(Gone);
        }
        let (net, line) = (&self.net, &self.line);
        let writer = match &mut self.way {
            Way::Http1(writer) => writer,
            Way::Http2(sink) => {
                let sent = http2::Sink::send(sink, &mut self.buffer, net.limits.write).await;
                self.gone = sent.is_err();
                return sent;
            }
            Way::Http3(sink) => {
                let sent = quic::Sink::send(sink, &mut self.buffer, net.limits.write).await;
                self.gone = sent.is_err();
                return sent;
            }
        };
        if self.buffer.is_empty() {
            return Ok(());
        }
        line.write_until(net.deadline(net.limits.write));
        let bytes = std::mem::take(&mut self.buffer);
        let (result, bytes) = writer.write(bytes, || line.write_until(net.deadline(net.limits.write))).await;
        line.write_done();
        self.buffer = bytes;
        if result.is_err() {
            self.gone = true;
            return Err(Gone);
        }
        Ok(())
    }

    /// Says that nothing follows.
    pub async fn finish(&mut self) {
        if let Way::Http1(writer) = &mut self.way {
            writer.finish().await;
        }
    }

    fn status_line(&mut self, status: u16) {
        self.exchange.status = status;
        match &self.way {
            Way::Http1(_) if status == 200 => self.buffer.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
            Way::Http1(_) => {
                let _ = write!(self.buffer, "HTTP/1.1 {status} {}\r\n", reason_phrase(status));
            }
            Way::Http2(sink) => sink.borrow_mut().begin_head(status),
            Way::Http3(sink) => sink.borrow_mut().begin_head(status),
        }
    }

    fn put_length(&mut self, bytes: usize) {
        match &self.way {
            Way::Http1(_) => {
                self.buffer.extend_from_slice(b"content-length: ");
                put_decimal(&mut self.buffer, bytes);
                self.buffer.extend_from_slice(b"\r\n");
            }
            Way::Http2(_) | Way::Http3(_) => self.put_header("content-length", bytes.to_string().as_bytes()),
        }
    }

    fn put_header(&mut self, name: &'static str, value: &[u8]) {
        match &self.way {
            Way::Http1(_) => {}
            Way::Http2(sink) => return sink.borrow_mut().put_header(name, value),
            Way::Http3(sink) => return sink.borrow_mut().put_header(name, value),
        }
        self.buffer.extend_from_slice(name.as_bytes());
        self.buffer.extend_from_slice(b": ");
        // A value may hold text of a request (a model's name); a line break in it would forge a header.
        if value.iter().any(|&byte| byte < 0x20 || byte == 0x7f) {
            self.buffer.extend(value.iter().map(|&byte| if byte < 0x20 || byte == 0x7f { b' ' } else { byte }));
        } else {
            self.buffer.extend_from_slice(value);
        }
        self.buffer.extend_from_slice(b"\r\n");
    }

    fn end_head(&mut self) {
        if self.net.draining.get() {
            self.exchange.keep_alive = false;
        }
        if self.secure && !self.net.alt_svc.is_empty() {
            let net = self.net.clone();
            self.put_header("alt-svc", net.alt_svc.as_bytes());
        }
        let date = self.net.date();
        match &self.way {
            Way::Http1(_) => {}
            Way::Http2(sink) => {
                return sink.borrow_mut().end_head(date.as_str().as_bytes(), &self.exchange.request_id);
            }
            Way::Http3(sink) => {
                return sink.borrow_mut().end_head(date.as_str().as_bytes(), &self.exchange.request_id);
            }
        }
        self.buffer.extend_from_slice(b"date: ");
        self.buffer.extend_from_slice(date.as_str().as_bytes());
        drop(date);
        self.buffer.extend_from_slice(b"\r\nx-request-id: ");
        self.buffer.extend_from_slice(self.exchange.request_id.as_bytes());
        self.buffer.extend_from_slice(match (self.exchange.keep_alive, self.exchange.http_1_0) {
            (true, false) => b"\r\n\r\n".as_slice(),
            (true, true) => b"\r\nconnection: keep-alive\r\n\r\n",
            (false, _) => b"\r\nconnection: close\r\n\r\n",
        });
    }
}

impl Outgoing {
    /// Nothing of the body is missing in the buffer.
    fn end_body(&mut self) {
        match &self.way {
            Way::Http1(_) => {}
            Way::Http2(sink) => sink.borrow_mut().end_body(),
            Way::Http3(sink) => sink.borrow_mut().end_body(),
        }
    }
}

/// Appends a number. The formatting machinery of the library costs several times as much, for each answer.
fn put_decimal(out: &mut Vec<u8>, mut number: usize) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends sixteen hexadecimal digits.
fn put_hex(out: &mut String, number: u64) {
    let digits: [u8; 16] = std::array::from_fn(|at| b"0123456789abcdef"[(number >> (60 - at * 4) & 15) as usize]);
    out.push_str(std::str::from_utf8(&digits).unwrap_or_default());
}

/// A client's id is echoed when it can stand in a header and in a log line as it is.
fn honoured_id(id: &str) -> Option<&str> {
    let printable = !id.is_empty()
        && id.len() <= REQUEST_ID_BYTES_MAX
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte));
    printable.then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_that_cannot_forge_anything_are_honoured() {
        assert_eq!(honoured_id("abc-1.2:3"), Some("abc-1.2:3"));
        for bad in ["", "a b", "a\r\nset-cookie: x", "<script>", &"a".repeat(129), "\u{e9}"] {
            assert_eq!(honoured_id(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn numbers_are_written_as_the_library_writes_them() {
        for number in [0, 7, 10, 99, 12_345, usize::MAX] {
            let mut out = Vec::new();
            put_decimal(&mut out, number);
            assert_eq!(out, number.to_string().into_bytes());
            let mut out = String::new();
            put_hex(&mut out, number as u64);
            assert_eq!(out, format!("{number:016x}"));
        }
    }

    #[test]
    fn an_unauthorized_answer_names_its_scheme() {
        let response = Response::error(&ApiError::unauthorized("no key"));
        assert!(
            response.headers.iter().any(|(name, value)| *name == "www-authenticate" && value.starts_with("Bearer"))
        );
    }
}
