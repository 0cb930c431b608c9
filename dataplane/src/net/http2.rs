//! HTTP/2 (RFC 9113) over the same halves, service and answers as HTTP/1.1.
//!
//! The `h2` crate keeps the protocol; this file gives it bytes, turns its streams into requests and bounds
//! what a peer may cost: streams at once, handlers at once (a stream that was reset may still have one),
//! frames without work in them, and time. Each stream is a task of its own on the shard.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Response as Head, StatusCode};
use millrace_proto::api::ApiError;
use millrace_proto::http1::{BodyFraming, HttpError, Method, Parts, RequestHead};
use millrace_proto::http2::FrameMeter;
use millrace_proto::limits::HEAD_BYTES_MAX;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Net;
use super::connection::{Admitted, Arrival, Request, Service, contained, count, malformed, while_wanted};
use super::line::{Line, Peer};
use super::outgoing::{FLUSH_BYTES, Gone, Outgoing, Response};
use super::wire::{Reader, Writer};
use crate::obs::{Rejection, Route};

/// Requests that one connection may have open.
const STREAMS_MAX: u32 = 128;

/// What a stream may send before it is read: one small body without waiting for an update.
const STREAM_WINDOW_BYTES: u32 = 64 * 1024;

/// The same for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// Answer bytes of one stream that wait in the protocol's own buffer.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// Streams that the peer reset before they were looked at.
const RESET_UNSEEN_MAX: usize = 20;

/// Streams that were reset because the peer broke a rule.
const RESET_FAULTY_MAX: usize = 64;

/// Serves one connection whose client speaks HTTP/2; `ahead` has arrived already.
pub(super) async fn live<S: Service>(
    net: &Rc<Net>,
    line: &Rc<Line>,
    service: &Rc<S>,
    peer: Peer,
    reader: Reader,
    writer: Writer,
    ahead: Vec<u8>,
) {
    let flooded = Rc::new(Cell::new(false));
    let mut wire = Wire {
        net: net.clone(),
        line: line.clone(),
        reader,
        input: ahead,
        at: 0,
        began: Instant::now(),
        meter: FrameMeter::default(),
        flooded: flooded.clone(),
        writer: Some(writer),
        writing: None,
        buffer: Vec::new(),
    };
    let ahead = std::mem::take(&mut wire.input);
    wire.meter(&ahead);
    wire.input = ahead;
    line.read_until(net.deadline(net.limits.head));
    let handshake = Builder::new()
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(RESET_UNSEEN_MAX)
        .max_local_error_reset_streams(Some(RESET_FAULTY_MAX))
        .handshake::<_, Bytes>(wire);
    let Ok(connection) = handshake.await else {
        net.metrics().rejected(Rejection::Protocol);
        return;
    };
    let shared =
        Rc::new(Shared { net: net.clone(), line: line.clone(), service: service.clone(), peer, running: Cell::new(0) });
    accept(connection, &shared, &flooded).await;
}

/// What the streams of one connection share.
struct Shared<S> {
    net: Rc<Net>,
    line: Rc<Line>,
    service: Rc<S>,
    peer: Peer,
    /// Handlers under way.
    running: Cell<u32>,
}

impl<S> Shared<S> {
    /// A connection without a request is idle: it may be cut by a drain, and after a while anyway.
    fn rest(&self) {
        let idle = self.running.get() == 0;
        self.line.set_idle(idle);
        if idle {
            self.line.read_until(self.net.deadline(self.net.limits.idle));
        } else {
            self.line.read_freely();
        }
    }
}

/// Drives the connection and starts a task for each request.
async fn accept<S: Service>(mut connection: Connection<Wire, Bytes>, shared: &Rc<Shared<S>>, flooded: &Cell<bool>) {
    let net = &shared.net;
    let (mut leaving, mut cut) = (false, false);
    shared.rest();
    loop {
        let accepted = poll_fn(|context| {
            let accepted = connection.poll_accept(context);
            // Registered for being told of a drain; that the node ends is the streams' business.
            let ending = shared.line.poll_ending(context).is_ready();
            let told = (flooded.get() && !cut) || ((net.draining.get() || ending) && !leaving);
            if accepted.is_pending() && told { Poll::Ready(None) } else { accepted.map(Some) }
        })
        .await;
        if flooded.get() && !cut {
            cut = true;
            net.metrics().rejected(Rejection::Protocol);
            connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        } else if net.draining.get() && !leaving {
            leaving = true;
            connection.graceful_shutdown();
        }
        match accepted {
            None => leaving |= shared.line.is_ending(),
            Some(None) => return,
            // The connection has said why in its GOAWAY, as far as anybody listened.
            Some(Some(Err(_))) => return net.metrics().rejected(Rejection::Protocol),
            Some(Some(Ok((request, mut respond)))) => {
                if shared.running.get() >= STREAMS_MAX {
                    net.metrics().rejected(Rejection::Overloaded);
                    respond.send_reset(Reason::REFUSED_STREAM);
                    continue;
                }
                shared.running.set(shared.running.get() + 1);
                shared.rest();
                drop(monoio::spawn(stream(shared.clone(), request, respond)));
            }
        }
    }
}

/// One request from its head to the end of its answer. A panic in the service ends this stream only.
async fn stream<S: Service>(shared: Rc<Shared<S>>, request: http::Request<RecvStream>, respond: SendResponse<Bytes>) {
    let sink = Rc::new(RefCell::new(Sink::new(respond)));
    if !contained(pin!(exchange(&shared, request, &sink))).await {
        tracing::error!(shard = shared.net.shard, "a request handler panicked; its stream is reset");
    }
    sink.borrow_mut().abandon();
    shared.running.set(shared.running.get() - 1);
    shared.rest();
}

async fn exchange<S: Service>(shared: &Shared<S>, request: http::Request<RecvStream>, sink: &Rc<RefCell<Sink>>) {
    let Shared { net, line, service, peer, .. } = shared;
    let started = Instant::now();
    let (parts, mut body) = request.into_parts();
    let mut out = Outgoing::stream_of(net.clone(), line.clone(), sink.clone());
    out.set_secure(peer.secure);
    let head = match assemble(&parts, body.is_end_stream()) {
        Ok(head) => head,
        Err(error) => {
            net.metrics().rejected(Rejection::Protocol);
            out.begin(None, parts.method == http::Method::HEAD, false, true);
            out.respond(malformed(error, "HTTP/2"));
            count(net, Route::Unknown, error.status, started);
            let _ = out.flush().await;
            return;
        }
    };
    out.begin(head.header("x-request-id"), head.method == Method::Head, false, true);
    let arrival = Arrival { peer: *peer, at: started };
    let admitted = service.admit(&head, arrival, &mut S::Memo::default());
    let Admitted { plan, metric, body_bytes_max, cancel_on_leave, .. } = match admitted {
        Ok(admitted) => admitted,
        Err(refused) => {
            out.respond(refused.response);
            count(net, refused.metric, out.status(), started);
            let _ = out.flush().await;
            return;
        }
    };
    let bytes = match read_body(net, &head, &mut body, body_bytes_max).await {
        Ok(bytes) => bytes,
        Err(Unread::Left) => return,
        Err(Unread::Answer(response)) => {
            net.metrics().rejected(Rejection::Protocol);
            count(net, metric, response.status, started);
            out.respond(*response);
            let _ = out.flush().await;
            return;
        }
    };
    let request = Request { head: &head, body: &bytes, peer: *peer };
    let left = |context: &mut Context<'_>| cancel_on_leave && sink.borrow_mut().poll_left(context).is_ready();
    let finished = while_wanted(pin!(service.serve(plan, request, &mut out)), left).await;
    count(net, metric, if finished.is_some() { out.status() } else { 499 }, started);
    if finished.is_some() {
        let _ = out.flush().await;
    }
}

fn assemble(parts: &http::request::Parts, ended: bool) -> Result<RequestHead, HttpError> {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let authority = parts.uri.authority().map_or("", |authority| authority.as_str());
    let fields: Vec<_> = parts.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    RequestHead::assemble(&Parts { method: parts.method.as_str(), target, authority, ended }, &fields)
}

/// Why a body was not read to its end.
enum Unread {
    /// Nobody waits for an answer.
    Left,
    /// Answer this.
    Answer(Box<Response>),
}

async fn read_body(net: &Net, head: &RequestHead, body: &mut RecvStream, bytes_max: usize) -> Result<Vec<u8>, Unread> {
    let answer = |error: &ApiError| Unread::Answer(Box::new(Response::error(error)));
    let too_large = |bytes: u64| answer(&ApiError::too_large("request body", bytes, bytes_max));
    let mut bytes = Vec::new();
    match head.framing {
        BodyFraming::None => return Ok(bytes),
        BodyFraming::Length(length) if length > bytes_max as u64 => return Err(too_large(length)),
        _ => {}
    }
    let mut late = pin!(monoio::time::sleep(net.limits.body));
    loop {
        let part = poll_fn(|context| match body.poll_data(context) {
            Poll::Pending => late.as_mut().poll(context).map(|()| Err(())),
            Poll::Ready(part) => Poll::Ready(Ok(part)),
        });
        match part.await {
            Err(()) => {
                let why = format!("The body of the request did not arrive within {} s.", net.limits.body.as_secs());
                return Err(answer(&ApiError::new(408, "invalid_request_error", "request_timeout", why)));
            }
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(_))) => return Err(Unread::Left),
            Ok(Some(Ok(part))) => {
                if bytes.len() + part.len() > bytes_max {
                    return Err(too_large((bytes.len() + part.len()) as u64));
                }
                bytes.extend_from_slice(&part);
                // Only what was taken may be sent again.
                body.flow_control().release_capacity(part.len()).map_err(|_| Unread::Left)?;
            }
        }
    }
}

/// The answer side of one stream: heads and data in, frames out.
pub(super) struct Sink {
    respond: SendResponse<Bytes>,
    /// There once the head has left.
    stream: Option<SendStream<Bytes>>,
    head: Option<Head<()>>,
    /// The body is complete in the buffer.
    complete: bool,
    /// The last frame has left.
    ended: bool,
}

impl Sink {
    fn new(respond: SendResponse<Bytes>) -> Self {
        Self { respond, stream: None, head: None, complete: false, ended: false }
    }

    pub(super) fn begin_head(&mut self, status: u16) {
        let mut head = Head::new(());
        *head.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.head = Some(head);
    }

    pub(super) fn put_header(&mut self, name: &'static str, value: &[u8]) {
        // RFC 9113 section 8.2.2: fields about a connection have no meaning in a stream.
        if matches!(name, "connection" | "keep-alive" | "transfer-encoding" | "upgrade") {
            return;
        }
        let clean: Vec<u8> = value.iter().map(|&byte| if byte < 0x20 || byte == 0x7f { b' ' } else { byte }).collect();
        if let (Some(head), Ok(value)) = (&mut self.head, HeaderValue::from_bytes(&clean)) {
            head.headers_mut().append(HeaderName::from_static(name), value);
        }
    }

    pub(super) fn end_head(&mut self, date: &[u8], request_id: &str) {
        self.put_header("date", date);
        self.put_header("x-request-id", request_id.as_bytes());
    }

    pub(super) fn end_body(&mut self) {
        self.complete = true;
    }

    /// Hands everything in `buffer` to the protocol, as fast as the peer takes it.
    pub(super) async fn send(sink: &Rc<RefCell<Self>>, buffer: &mut Vec<u8>, patience: Duration) -> Result<(), Gone> {
        loop {
            let before = buffer.len();
            let mut late = None;
            let sent = poll_fn(|context| {
                let state = sink.borrow_mut().poll_send(context, buffer);
                if state.is_ready() || buffer.len() < before {
                    return Poll::Ready(state);
                }
                // Only a peer that makes us wait costs a timer.
                let late = late.get_or_insert_with(|| Box::pin(monoio::time::sleep(patience)));
                late.as_mut().poll(context).map(|()| Poll::Ready(Err(Gone)))
            })
            .await;
            match sent {
                Poll::Ready(Ok(())) => return Ok(()),
                Poll::Ready(Err(Gone)) => {
                    sink.borrow_mut().abandon();
                    return Err(Gone);
                }
                Poll::Pending => {}
            }
        }
    }

    fn poll_send(&mut self, context: &mut Context<'_>, buffer: &mut Vec<u8>) -> Poll<Result<(), Gone>> {
        if let Some(head) = self.head.take() {
            let last = self.complete && buffer.is_empty();
            self.stream = Some(self.respond.send_response(head, last).map_err(|_| Gone)?);
            self.ended = last;
        }
        let Some(stream) = &mut self.stream else { return Poll::Ready(Ok(())) };
        while !buffer.is_empty() {
            stream.reserve_capacity(buffer.len());
            let room = match stream.capacity() {
                0 => match ready!(stream.poll_capacity(context)) {
                    Some(Ok(room)) => room,
                    _ => return Poll::Ready(Err(Gone)),
                },
                room => room,
            };
            let part: Vec<u8> = buffer.drain(..room.min(buffer.len())).collect();
            let last = self.complete && buffer.is_empty();
            stream.send_data(part.into(), last).map_err(|_| Gone)?;
            self.ended = last;
        }
        if self.complete && !self.ended {
            stream.send_data(Bytes::new(), true).map_err(|_| Gone)?;
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready when the peer wants the answer no more.
    fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<()> {
        match &mut self.stream {
            Some(stream) => stream.poll_reset(context).map(drop),
            None => self.respond.poll_reset(context).map(drop),
        }
    }

    /// Resets a stream whose answer is not complete.
    fn abandon(&mut self) {
        if self.ended {
            return;
        }
        self.ended = true;
        match &mut self.stream {
            Some(stream) => stream.send_reset(Reason::CANCEL),
            None => self.respond.send_reset(Reason::INTERNAL_ERROR),
        }
    }
}

type Writing = Pin<Box<dyn Future<Output = (Writer, io::Result<()>, Vec<u8>)>>>;

/// The connection's bytes as the `h2` crate wants them.
struct Wire {
    net: Rc<Net>,
    line: Rc<Line>,
    reader: Reader,
    /// Read and not yet taken.
    input: Vec<u8>,
    at: usize,
    began: Instant,
    meter: FrameMeter,
    flooded: Rc<Cell<bool>>,
    /// Away while a write is under way.
    writer: Option<Writer>,
    writing: Option<Writing>,
    /// Waits for the write before it.
    buffer: Vec<u8>,
}

impl Wire {
    fn meter(&mut self, bytes: &[u8]) {
        let now_ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if self.meter.observe(bytes, now_ns).is_err() {
            self.flooded.set(true);
        }
    }

    /// Ends the write under way.
    fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(writing) = &mut self.writing else { return Poll::Ready(Ok(())) };
        let (writer, result, bytes) = ready!(writing.as_mut().poll(context));
        self.writing = None;
        self.writer = Some(writer);
        if self.buffer.is_empty() {
            self.buffer = bytes;
        }
        Poll::Ready(result)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flooded.get() {
            // Nothing of such a peer is read any more; only the farewell is written.
            return Poll::Pending;
        }
        if this.at == this.input.len() {
            this.input.clear();
            this.at = 0;
            let read = ready!(this.reader.poll_read(context, &mut this.input))?;
            let input = std::mem::take(&mut this.input);
            this.meter(&input[..read]);
            this.input = input;
            if this.flooded.get() {
                return Poll::Pending;
            }
        }
        let part = &this.input[this.at..];
        let part = &part[..part.len().min(room.remaining())];
        room.put_slice(part);
        this.at += part.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.buffer.len() >= FLUSH_BYTES {
            ready!(Pin::new(&mut *this).poll_flush(context))?;
        }
        this.buffer.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            ready!(this.poll_written(context))?;
            if this.buffer.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let Some(mut writer) = this.writer.take() else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            let bytes = std::mem::take(&mut this.buffer);
            let (net, line) = (this.net.clone(), this.line.clone());
            this.writing = Some(Box::pin(async move {
                line.write_until(net.deadline(net.limits.write));
                let (result, bytes) = writer.write(bytes, || line.write_until(net.deadline(net.limits.write))).await;
                line.write_done();
                (writer, result, bytes)
            }));
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut *this).poll_flush(context))?;
        let Some(mut writer) = this.writer.take() else { return Poll::Ready(Ok(())) };
        this.writing = Some(Box::pin(async move {
            writer.finish().await;
            (writer, Ok(()), Vec::new())
        }));
        this.poll_written(context)
    }
}
