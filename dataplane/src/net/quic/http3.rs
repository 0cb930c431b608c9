//! HTTP/3 (RFC 9114) over the same service and answers as HTTP/1.1 and HTTP/2.
//!
//! quinn keeps the streams and [`millrace_proto::http3`] reads them; this file joins both, one task for each
//! request, and bounds time. Header compression has no state here, so streams never wait for each other.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use millrace_proto::api::ApiError;
use millrace_proto::http1::{BodyFraming, Method, Parts, RequestHead};
use millrace_proto::http3::{self as h3, Code, Event, Fault, RequestReader, UniReader};
use quinn::{Connection, RecvStream, SendStream, VarInt, WriteError};

use super::{READ_BYTES_MAX, STREAMS_MAX, within};
use crate::net::Net;
use crate::net::connection::{Admitted, Arrival, Request, Service, contained, count, malformed, while_wanted};
use crate::net::line::{Line, Peer};
use crate::net::outgoing::{Gone, Outgoing, Response};
use crate::obs::{Rejection, Route};

/// What the streams of one connection share.
struct Shared<S> {
    net: Rc<Net>,
    line: Rc<Line>,
    service: Rc<S>,
    peer: Peer,
    connection: Connection,
    /// What the unidirectional streams know together.
    streams: RefCell<h3::Peer>,
    /// Handlers under way.
    running: Cell<u32>,
    /// The connection's own task, when it waits for the last handler.
    leaving: RefCell<Option<Waker>>,
}

impl<S> Shared<S> {
    fn close(&self, code: Code, reason: &str) {
        self.connection.close(number(code), reason.as_bytes());
    }

    fn fail(&self, fault: Fault) {
        self.net.metrics().rejected(Rejection::Protocol);
        tracing::debug!(%fault, "an HTTP/3 connection broke a rule");
        self.close(fault.code, fault.reason);
    }

    fn run(&self, change: i32) {
        self.running.set(self.running.get().saturating_add_signed(change));
        self.line.set_idle(self.running.get() == 0);
        if self.running.get() == 0
            && let Some(waker) = self.leaving.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

fn number(code: Code) -> VarInt {
    VarInt::from_u32(code as u32)
}

/// Serves one connection whose client speaks HTTP/3.
pub(super) async fn live<S: Service>(
    net: &Rc<Net>,
    line: &Rc<Line>,
    service: &Rc<S>,
    peer: Peer,
    connection: Connection,
) {
    let shared = Rc::new(Shared {
        net: net.clone(),
        line: line.clone(),
        service: service.clone(),
        peer,
        connection: connection.clone(),
        streams: RefCell::default(),
        running: Cell::new(0),
        leaving: RefCell::default(),
    });
    let mut opening = Vec::new();
    h3::put_control_stream(&mut opening);
    // A client that gives no credit for the control stream cannot be served.
    let opened = within(net.limits.head, async {
        let mut control = connection.open_uni().await?;
        control.write_all(&opening).await?;
        Ok::<_, WriteError>(control)
    });
    let Some(Ok(mut control)) = opened.await else {
        return shared.close(Code::StreamCreationError, "there is no room for a control stream");
    };
    accept(&shared, &mut control).await;
}

/// What wakes the connection's own task.
enum Arrived {
    Request(SendStream, RecvStream),
    Uni(RecvStream),
    /// The node drains or ends.
    Told,
    Over,
}

async fn accept<S: Service>(shared: &Rc<Shared<S>>, control: &mut SendStream) {
    let connection = shared.connection.clone();
    let (net, line) = (&shared.net, &shared.line);
    let (mut requests, mut unis) = (pin!(connection.accept_bi()), pin!(connection.accept_uni()));
    let mut next_id = 0;
    let mut leaving = false;
    loop {
        let arrived = poll_fn(|context| {
            match requests.as_mut().poll(context) {
                Poll::Ready(Ok((send, receive))) => return Poll::Ready(Arrived::Request(send, receive)),
                Poll::Ready(Err(_)) => return Poll::Ready(Arrived::Over),
                Poll::Pending => {}
            }
            match unis.as_mut().poll(context) {
                Poll::Ready(Ok(receive)) => return Poll::Ready(Arrived::Uni(receive)),
                Poll::Ready(Err(_)) => return Poll::Ready(Arrived::Over),
                Poll::Pending => {}
            }
            // Registers for being told of a drain; that the node ends is the streams' business.
            let ending = line.poll_ending(context).is_ready();
            let over = leaving && shared.running.get() == 0;
            if over || line.cut().is_some() || ((ending || net.draining.get()) && !leaving) {
                return Poll::Ready(Arrived::Told);
            }
            if leaving {
                *shared.leaving.borrow_mut() = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
        match arrived {
            Arrived::Over => return,
            Arrived::Told if line.cut().is_some() || (leaving && shared.running.get() == 0) => {
                return shared.close(Code::NoError, "the node is shutting down");
            }
            Arrived::Told => {
                leaving = true;
                let mut goaway = Vec::new();
                h3::put_goaway(&mut goaway, next_id);
                let _ = within(net.limits.write, control.write_all(&goaway)).await;
            }
            Arrived::Uni(receive) => drop(monoio::spawn(unidirectional(shared.clone(), receive))),
            Arrived::Request(mut send, mut receive) => {
                next_id = u64::from(VarInt::from(send.id())) + 4;
                if leaving || shared.running.get() >= STREAMS_MAX {
                    net.metrics().rejected(if leaving { Rejection::Draining } else { Rejection::Overloaded });
                    let _ = send.reset(number(Code::RequestRejected));
                    let _ = receive.stop(number(Code::RequestRejected));
                    continue;
                }
                shared.run(1);
                drop(monoio::spawn(stream(shared.clone(), send, receive)));
            }
        }
    }
}

/// Reads a unidirectional stream of the client.
async fn unidirectional<S: Service>(shared: Rc<Shared<S>>, mut receive: RecvStream) {
    let mut reader = UniReader::default();
    loop {
        let judged = match receive.read_chunk(READ_BYTES_MAX, true).await {
            Ok(Some(chunk)) => reader.observe(&chunk.bytes, &mut shared.streams.borrow_mut()),
            // The end of a connection ends its streams as well and is no fault of theirs.
            _ if shared.connection.close_reason().is_some() => return,
            _ => reader.closed().map(|()| false),
        };
        match judged {
            Ok(true) => {}
            Ok(false) => {
                let _ = receive.stop(number(Code::StreamCreationError));
                return;
            }
            Err(fault) => return shared.fail(fault),
        }
    }
}

/// One request from its head to the end of its answer. A panic in the service ends this stream only.
async fn stream<S: Service>(shared: Rc<Shared<S>>, send: SendStream, receive: RecvStream) {
    let sink = Rc::new(RefCell::new(Sink::new(send)));
    if !contained(pin!(exchange(&shared, receive, &sink))).await {
        tracing::error!(shard = shared.net.shard, "a request handler panicked; its stream is reset");
    }
    sink.borrow_mut().abandon(Code::InternalError);
    shared.run(-1);
}

async fn exchange<S: Service>(shared: &Shared<S>, receive: RecvStream, sink: &Rc<RefCell<Sink>>) {
    let Shared { net, line, service, peer, .. } = shared;
    let mut incoming = Incoming { receive, reader: RequestReader::default(), input: Bytes::new(), ended: false };
    let mut body = Vec::new();
    let mut out = Outgoing::http3(net.clone(), line.clone(), sink.clone());
    let begun = incoming.head(net.limits.head, &mut body).await;
    let started = Instant::now();
    let (head, complete) = match begun {
        Ok((Some(head), complete)) => (head, complete),
        Ok((None, _)) => {
            net.metrics().rejected(Rejection::Protocol);
            out.begin(None, false, false, true);
            let why = "The header fields are longer than 32 KiB, or there are more than 100 of them.";
            out.fail(&ApiError::new(431, "invalid_request_error", "malformed_http", why));
            count(net, Route::Unknown, 431, started);
            let _ = out.flush().await;
            return incoming.stop();
        }
        Err(stop) => return incoming.give_up(stop, shared, sink),
    };
    let parts = Parts { method: head.method(), target: head.path(), authority: head.authority(), ended: complete };
    let fields: Vec<_> = head.fields().collect();
    let head = match RequestHead::assemble(&parts, &fields) {
        Ok(head) => head,
        Err(error) => {
            net.metrics().rejected(Rejection::Protocol);
            out.begin(None, parts.method == "HEAD", false, true);
            out.respond(malformed(error, "HTTP/3"));
            count(net, Route::Unknown, error.status, started);
            let _ = out.flush().await;
            return incoming.stop();
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
            return incoming.stop();
        }
    };
    if !complete && let Err(stop) = incoming.body(&head, body_bytes_max, net.limits.body, &mut body).await {
        let Stop::Answer(response) = stop else { return incoming.give_up(stop, shared, sink) };
        net.metrics().rejected(Rejection::Protocol);
        count(net, metric, response.status, started);
        out.respond(*response);
        let _ = out.flush().await;
        return incoming.stop();
    }
    let request = Request { head: &head, body: &body, peer: *peer };
    let left = |context: &mut Context<'_>| cancel_on_leave && sink.borrow_mut().poll_left(context).is_ready();
    let finished = while_wanted(pin!(service.serve(plan, request, &mut out)), left).await;
    count(net, metric, if finished.is_some() { out.status() } else { 499 }, started);
    if finished.is_some() {
        let _ = out.flush().await;
    } else {
        sink.borrow_mut().abandon(Code::RequestCancelled);
    }
}

/// Why a request was not read to its end.
enum Stop {
    /// Nobody waits for an answer.
    Left,
    /// It took too long.
    Late,
    /// It breaks a rule.
    Fault(Fault),
    /// Answer this.
    Answer(Box<Response>),
}

/// The request side of one stream.
struct Incoming {
    receive: RecvStream,
    reader: RequestReader,
    /// Arrived and not yet used.
    input: Bytes,
    ended: bool,
}

impl Incoming {
    /// The next event; `None` = the request is complete.
    async fn next(&mut self, patience: Duration, body: &mut Vec<u8>) -> Result<Option<Event>, Stop> {
        loop {
            let (event, used) = self.reader.next(&self.input, body).map_err(Stop::Fault)?;
            self.input.advance(used);
            if event.is_some() {
                return Ok(event);
            }
            if self.ended {
                return self.reader.finish(self.input.len()).map(|()| None).map_err(Stop::Fault);
            }
            match within(patience, self.receive.read_chunk(READ_BYTES_MAX, true)).await {
                None => return Err(Stop::Late),
                Some(Err(_)) => return Err(Stop::Left),
                Some(Ok(None)) => self.ended = true,
                Some(Ok(Some(chunk))) if self.input.is_empty() => self.input = chunk.bytes,
                Some(Ok(Some(chunk))) => self.input = [&self.input[..], &chunk.bytes[..]].concat().into(),
            }
        }
    }

    /// The head (`None` = too long), and whether the request is complete with it. Many clients end a request
    /// without a body a moment after its head, and whether there is a body decides what a route answers: so
    /// without an announced length the next event is waited for.
    async fn head(&mut self, patience: Duration, body: &mut Vec<u8>) -> Result<(Option<h3::Head>, bool), Stop> {
        let head = match self.next(patience, body).await? {
            Some(Event::Head(head)) => head,
            Some(Event::HeadTooLong) => return Ok((None, false)),
            Some(Event::Data) | None => unreachable!("a body and an end come after a head"),
        };
        let announces = |(name, value): (&str, &[u8])| match name {
            "content-length" => value != b"0",
            "expect" => true,
            _ => false,
        };
        if head.fields().any(announces) {
            return Ok((Some(head), false));
        }
        let complete = self.next(patience, body).await?.is_none();
        Ok((Some(head), complete))
    }

    async fn body(
        &mut self,
        head: &RequestHead,
        bytes_max: usize,
        patience: Duration,
        body: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        let answer = |error: &ApiError| Stop::Answer(Box::new(Response::error(error)));
        let too_large = |bytes: u64| answer(&ApiError::too_large("request body", bytes, bytes_max));
        if let BodyFraming::Length(length) = head.framing
            && length > bytes_max as u64
        {
            return Err(too_large(length));
        }
        let reading = async {
            loop {
                if body.len() > bytes_max {
                    return Err(too_large(body.len() as u64));
                }
                // Bounded as a whole below: a body that drips in must not last for ever.
                if self.next(patience, body).await?.is_none() {
                    return Ok(());
                }
            }
        };
        within(patience, reading).await.unwrap_or_else(|| {
            let why = format!("The body of the request did not arrive within {} s.", patience.as_secs());
            Err(answer(&ApiError::new(408, "invalid_request_error", "request_timeout", why)))
        })
    }

    /// Nothing more of this request is of interest (RFC 9114 section 4.1).
    fn stop(&mut self) {
        if !self.ended {
            let _ = self.receive.stop(number(Code::NoError));
        }
    }

    fn give_up<S>(&mut self, stop: Stop, shared: &Shared<S>, sink: &Rc<RefCell<Sink>>) {
        let code = match stop {
            Stop::Fault(fault) if !fault.stream_only => return shared.fail(fault),
            Stop::Fault(fault) => {
                shared.net.metrics().rejected(Rejection::Protocol);
                fault.code
            }
            Stop::Late => {
                shared.net.metrics().rejected(Rejection::Protocol);
                Code::RequestIncomplete
            }
            Stop::Left | Stop::Answer(_) => Code::RequestCancelled,
        };
        let _ = self.receive.stop(number(code));
        sink.borrow_mut().abandon(code);
    }
}

/// Encoded header fields of most answers.
const FIELDS_BYTES_USUAL: usize = 256;

type Stopped = Pin<Box<dyn Future<Output = ()>>>;

/// The answer side of one stream: heads and data in, frames out.
pub(in crate::net) struct Sink {
    /// Away while a write is under way.
    stream: Option<SendStream>,
    /// The encoded header fields of a head that has not left.
    fields: Vec<u8>,
    /// The body is complete in the buffer.
    complete: bool,
    /// The last frame has left, or the stream was reset.
    ended: bool,
    stopped: Option<Stopped>,
}

impl Sink {
    fn new(stream: SendStream) -> Self {
        let fields = Vec::with_capacity(FIELDS_BYTES_USUAL);
        Self { stream: Some(stream), fields, complete: false, ended: false, stopped: None }
    }

    pub(in crate::net) fn begin_head(&mut self, status: u16) {
        let mut digits = [0u8; 3];
        for (at, digit) in digits.iter_mut().enumerate() {
            *digit = b'0' + (status / [100, 10, 1][at] % 10) as u8;
        }
        self.put_header(":status", &digits);
    }

    pub(in crate::net) fn put_header(&mut self, name: &'static str, value: &[u8]) {
        // RFC 9114 section 4.2: fields about a connection have no meaning in a stream.
        if matches!(name, "connection" | "keep-alive" | "transfer-encoding" | "upgrade") {
            return;
        }
        let control = |byte: &u8| *byte < 0x20 || *byte == 0x7f;
        if value.iter().any(control) {
            let clean: Vec<u8> = value.iter().map(|byte| if control(byte) { b' ' } else { *byte }).collect();
            return h3::put_fields(&mut self.fields, [(name, clean.as_slice())]);
        }
        h3::put_fields(&mut self.fields, [(name, value)]);
    }

    pub(in crate::net) fn end_head(&mut self, date: &[u8], request_id: &str) {
        h3::put_fields(&mut self.fields, [("date", date), ("x-request-id", request_id.as_bytes())]);
    }

    pub(in crate::net) fn end_body(&mut self) {
        self.complete = true;
    }

    /// The frames for the head, if it has not left, and for what is in `buffer`.
    fn frames(&mut self, buffer: &mut Vec<u8>) -> Vec<u8> {
        let mut frames = Vec::with_capacity(self.fields.len() + buffer.len() + 16);
        if !self.fields.is_empty() {
            h3::put_headers(&mut frames, &self.fields);
            self.fields.clear();
        }
        if !buffer.is_empty() {
            h3::put_data_header(&mut frames, buffer.len());
            frames.append(buffer);
        }
        frames
    }

    /// Hands everything in `buffer` to the protocol, as fast as the peer takes it.
    pub(in crate::net) async fn send(
        sink: &Rc<RefCell<Self>>,
        buffer: &mut Vec<u8>,
        patience: Duration,
    ) -> Result<(), Gone> {
        let (stream, frames, complete) = {
            let mut sink = sink.borrow_mut();
            if sink.ended {
                return if sink.complete { Ok(()) } else { Err(Gone) };
            }
            (sink.stream.take(), sink.frames(buffer), sink.complete)
        };
        let mut writing = Writing { stream, home: sink };
        let Some(stream) = &mut writing.stream else { return Err(Gone) };
        let mut parts = [Bytes::from(frames)];
        while !parts[0].is_empty() {
            match within(patience, stream.write_chunks(&mut parts)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    drop(writing);
                    sink.borrow_mut().abandon(Code::RequestCancelled);
                    return Err(Gone);
                }
            }
        }
        if complete {
            let _ = stream.finish();
            drop(writing);
            sink.borrow_mut().ended = true;
        }
        Ok(())
    }

    /// Ready when the peer wants the answer no more.
    fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.stopped.is_none() {
            let Some(stream) = &self.stream else { return Poll::Pending };
            let stopped = stream.stopped();
            self.stopped = Some(Box::pin(async move { drop(stopped.await) }));
        }
        let Some(stopped) = &mut self.stopped else { return Poll::Pending };
        stopped.as_mut().poll(context)
    }

    /// Resets a stream whose answer is not complete.
    fn abandon(&mut self, code: Code) {
        if !std::mem::replace(&mut self.ended, true)
            && let Some(stream) = &mut self.stream
        {
            let _ = stream.reset(number(code));
        }
    }
}

/// Brings the stream back when a write ends or is given up: dropped anywhere else, quinn would finish it, and half
/// an answer would look like a whole one.
struct Writing<'a> {
    stream: Option<SendStream>,
    home: &'a Rc<RefCell<Sink>>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.home.borrow_mut().stream = self.stream.take();
    }
}
