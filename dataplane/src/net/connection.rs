//! The life of one connection: TLS when its port speaks it, then HTTP/1.1 here or [`http2`](super).
//!
//! ```text
//! head ─▶ admit (route, key, size: before any body is read) ─▶ body ─▶ serve ─▶ next head
//!   │        └ refused: answer; close if an unread body stands in the way
//!   └ malformed: answer and close
//! ```
//! A service sees whole requests and writes whole answers or streams; everything about
//! framing, deadlines, keep-alive and leaving clients stays here.

use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use millrace_proto::api::ApiError;
use millrace_proto::http1::{
    BodyDecoder, BodyFraming, CONTINUE_100, HeadParser, HttpError, Method, RequestHead, Version,
};
use millrace_proto::http2::PREFACE;
use monoio::net::TcpStream;

use super::http2;
use super::line::{Cut, Line, Peer};
use super::outgoing::{FLUSH_BYTES, Outgoing, Response};
use super::tls::{self, Tls};
use super::wire::{self, Left, Reader};
use super::{Limits, Net};
use crate::obs::{Rejection, Route};

/// Bytes of an unwanted body that are read so that the peer sees the answer, not a reset.
const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Longest such reading.
const LINGER: Duration = Duration::from_secs(2);

/// How long a whole answer is still worked on after the peer has finished sending: it may have
/// closed only its half. A stream needs no such wait, it notices at its next write.
const FINISHED_GRACE: Duration = Duration::from_secs(5);

/// Reads that complete at once in a row before the connection lets others run: on epoll a
/// fast pipelining client could otherwise hold the core.
const READY_READS_MAX: u32 = 64;

/// Pause of such a client.
const YIELD: Duration = Duration::from_millis(1);

/// A request as the service sees it.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The checked head.
    pub head: &'a RequestHead,
    /// The whole body, decoded from its transfer coding. Empty while a request is admitted.
    pub body: &'a [u8],
    /// Who asks.
    pub peer: Peer,
}

/// From where a request came, and when.
#[derive(Clone, Copy)]
pub struct Arrival {
    /// Who asks.
    pub peer: Peer,
    /// When its head was whole.
    pub at: Instant,
}

/// A request that may go on.
pub struct Admitted<P> {
    /// What the service decided.
    pub plan: P,
    /// The label of its metrics.
    pub metric: Route,
    /// Longest body.
    pub body_bytes_max: usize,
    /// A peer that leaves cancels the work.
    pub cancel_on_leave: bool,
    /// The answer is made without waiting, so answers of pipelined requests may share a write.
    pub immediate: bool,
}

/// A request that is answered from its head alone.
pub struct Refused {
    /// The answer.
    pub response: Response,
    /// The label of its metrics.
    pub metric: Route,
}

/// What follows an answer.
pub enum Next<U> {
    /// The next request, if the connection is kept alive.
    Continue,
    /// The connection changes its protocol.
    Upgrade(U),
}

/// What answers requests.
pub trait Service: 'static {
    /// What `admit` hands to `serve`.
    type Plan;
    /// What `serve` hands to `upgraded`.
    type Upgrade;
    /// What `admit` keeps of a connection's last head for one that is [`repeated`](RequestHead::repeated).
    type Memo: Default;

    /// Decides from the head alone. Must not block.
    fn admit(
        &self,
        head: &RequestHead,
        arrival: Arrival,
        memo: &mut Self::Memo,
    ) -> Result<Admitted<Self::Plan>, Refused>;

    /// Answers into `out`.
    fn serve(
        &self,
        plan: Self::Plan,
        request: Request<'_>,
        out: &mut Outgoing,
    ) -> impl Future<Output = Next<Self::Upgrade>>;

    /// Carries on a connection that has left HTTP; `ahead` has arrived already.
    fn upgraded(
        &self,
        upgrade: Self::Upgrade,
        reader: Reader,
        ahead: Vec<u8>,
        out: Outgoing,
        line: Rc<Line>,
    ) -> impl Future<Output = ()>;
}

/// Serves one connection of `ip` to its end. A panic in the service ends this connection only.
pub async fn run<S: Service>(net: Rc<Net>, service: Rc<S>, stream: TcpStream, ip: IpAddr, tls: Option<Arc<Tls>>) {
    let guard = net.lines.join(&stream);
    let line = guard.line().clone();
    net.metrics().connection_opened();
    let peer = Peer { ip, secure: tls.is_some() };
    let connection = Connection { net: &net, line: &line, service: &service, peer };
    if !contained(pin!(connection.begin(stream, tls))).await {
        tracing::error!(shard = net.shard, "a request handler panicked; its connection is closed");
    }
    drop(guard);
    net.metrics().connection_closed();
}

/// Runs `work`, which its caller pins so that no copy of it is kept; false = it panicked.
pub async fn contained(mut work: Pin<&mut impl Future<Output = ()>>) -> bool {
    poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(state) => state.map(|()| true),
        Err(_) => Poll::Ready(false),
    })
    .await
}

/// Runs `work` until its peer has left. Dropping the work cancels it.
pub(super) async fn while_wanted<T>(
    mut work: Pin<&mut impl Future<Output = T>>,
    mut left: impl FnMut(&mut Context<'_>) -> bool,
) -> Option<T> {
    poll_fn(|context| {
        if let Poll::Ready(next) = work.as_mut().poll(context) {
            return Poll::Ready(Some(next));
        }
        if left(context) { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// Where the body of a request was found.
enum Found {
    /// In the input, this many bytes after the head.
    InPlace(usize),
    /// Decoded into a buffer of its own; the input holds this many coded bytes.
    Decoded(Vec<u8>, usize),
}

/// Why a request's bytes did not arrive.
enum Broken {
    /// The peer left; there is nobody to answer.
    Left,
    /// Answer this and close.
    Answer(Response, Rejection),
}

struct Connection<'a, S> {
    net: &'a Rc<Net>,
    line: &'a Rc<Line>,
    service: &'a Rc<S>,
    peer: Peer,
}

/// What a connection turned out to bring.
enum Begun {
    /// A request.
    Head(RequestHead),
    /// The first bytes of HTTP/2.
    Preface,
    /// Nothing more.
    Over,
}

impl<S: Service> Connection<'_, S> {
    fn limits(&self) -> &Limits {
        &self.net.limits
    }

    /// Greets the client if the port speaks TLS, and goes on in the protocol that it chose.
    async fn begin(&self, mut stream: TcpStream, tls: Option<Arc<Tls>>) {
        let mut session = None;
        if let Some(tls) = tls {
            self.line.set_idle(false);
            self.line.read_until(self.net.deadline(self.limits().head));
            self.line.write_until(self.net.deadline(self.limits().head));
            // Boxed, as is HTTP/2: a connection of plain HTTP/1.1 should not carry their state.
            session = match Box::pin(tls::handshake(&tls, &mut stream)).await {
                Ok(session) => Some(session),
                Err(error) => {
                    tracing::debug!(%error, "a TLS handshake failed");
                    return self.net.metrics().rejected(Rejection::Protocol);
                }
            };
            self.line.write_done();
        }
        let chosen = session.as_ref().is_some_and(|session| session.is_http2());
        let (reader, writer) = wire::split(stream, session);
        if chosen {
            let life = http2::live(self.net, self.line, self.service, self.peer, reader, writer, Vec::new());
            return Box::pin(life).await;
        }
        let mut out = Outgoing::new(self.net.clone(), self.line.clone(), writer);
        out.set_secure(self.peer.secure);
        self.live(reader, out).await;
    }

    async fn live(&self, mut reader: Reader, mut out: Outgoing) {
        let mut input: Vec<u8> = Vec::new();
        // Where the next request starts in `input`.
        let mut at = 0;
        let mut served: u64 = 0;
        let mut ahead: Vec<u8> = Vec::new();
        let (mut parser, mut memo) = (HeadParser::default(), S::Memo::default());
        loop {
            let head = match self.head(&mut parser, &mut reader, &mut out, &mut input, &mut at, served).await {
                Ok(Begun::Head(head)) => head,
                Ok(Begun::Over) => return,
                Ok(Begun::Preface) => {
                    let Some(writer) = out.into_writer() else { return };
                    let life = http2::live(self.net, self.line, self.service, self.peer, reader, writer, input);
                    return Box::pin(life).await;
                }
                Err(broken) => return self.give_up(broken, reader, out).await,
            };
            let started = Instant::now();
            out.begin(
                head.header("x-request-id"),
                head.method == Method::Head,
                head.version == Version::Http10,
                // The last answer of a connection says so: its client asks elsewhere next.
                head.keep_alive && !self.net.draining.get(),
            );
            served += 1;
            let arrival = Arrival { peer: self.peer, at: started };
            let admitted = match self.service.admit(&head, arrival, &mut memo) {
                Ok(admitted) => admitted,
                Err(refused) => {
                    let buffered = input.len() - at - head.head_bytes;
                    let skip = match head.framing {
                        BodyFraming::None => Some(0),
                        BodyFraming::Length(length) => {
                            usize::try_from(length).ok().filter(|&length| length <= buffered)
                        }
                        BodyFraming::Chunked | BodyFraming::UntilClose => None,
                    };
                    if skip.is_none() {
                        out.close_after();
                    }
                    out.respond(refused.response);
                    count(self.net, refused.metric, out.status(), started);
                    match skip {
                        Some(skip) if out.keeps_alive() => {
                            at += head.head_bytes + skip;
                            parser.recycle(head);
                            continue;
                        }
                        _ => return self.linger(reader, out).await,
                    }
                }
            };
            let found =
                match self.body(&mut reader, &mut out, &mut input, &mut at, &head, admitted.body_bytes_max).await {
                    Ok(found) => found,
                    Err(broken) => {
                        if let Broken::Answer(response, _) = &broken {
                            count(self.net, admitted.metric, response.status, started);
                        }
                        return self.give_up(broken, reader, out).await;
                    }
                };
            let (body, coded) = match &found {
                Found::InPlace(length) => (&input[at + head.head_bytes..at + head.head_bytes + length], *length),
                Found::Decoded(body, coded) => (body.as_slice(), *coded),
            };
            self.line.read_freely();
            self.line.set_idle(false);
            // Earlier answers must not wait for a handler that waits.
            if !admitted.immediate && out.flush().await.is_err() {
                return;
            }
            let request = Request { head: &head, body, peer: self.peer };
            let next = {
                let work = self.service.serve(admitted.plan, request, &mut out);
                if admitted.cancel_on_leave {
                    self.unless_left(work, &mut reader, &mut ahead).await
                } else {
                    Some(work.await)
                }
            };
            let status = match next {
                Some(_) => out.status(),
                None => 499,
            };
            count(self.net, admitted.metric, status, started);
            at += head.head_bytes + coded;
            parser.recycle(head);
            if !ahead.is_empty() {
                input.append(&mut ahead);
            }
            match next {
                None => return,
                Some(Next::Continue) => {}
                Some(Next::Upgrade(upgrade)) => {
                    wire::compact(&mut input, at);
                    // An upgraded connection may live for days: it keeps nothing of its request.
                    drop((parser, memo, ahead));
                    return self.service.upgraded(upgrade, reader, input, out, self.line.clone()).await;
                }
            }
            if !out.keeps_alive() {
                let _ = out.flush().await;
                if input.len() > at {
                    // Unread bytes would turn the close into a reset that may overtake the answer.
                    return self.linger(reader, out).await;
                }
                return out.finish().await;
            }
            if out.buffered() > FLUSH_BYTES && out.flush().await.is_err() {
                return;
            }
        }
    }

    /// Runs `work` while its peer wants the answer. Dropping the work cancels it.
    async fn unless_left<T>(
        &self,
        work: impl Future<Output = T>,
        reader: &mut Reader,
        ahead: &mut Vec<u8>,
    ) -> Option<T> {
        let mut work = pin!(work);
        let mut left = None;
        let finished = while_wanted(work.as_mut(), |context| match reader.poll_left(context, ahead) {
            Poll::Ready(how) => {
                left = Some(how);
                true
            }
            Poll::Pending => false,
        })
        .await;
        if finished.is_some() || left == Some(Left::Gone) {
            return finished;
        }
        let mut grace = pin!(monoio::time::sleep(FINISHED_GRACE));
        poll_fn(|context| {
            if let Poll::Ready(next) = work.as_mut().poll(context) {
                return Poll::Ready(Some(next));
            }
            if !self.line.is_streaming() && grace.as_mut().poll(context).is_ready() {
                return Poll::Ready(None);
            }
            Poll::Pending
        })
        .await
    }

    /// Reads until a whole head stands at `at`.
    async fn head(
        &self,
        parser: &mut HeadParser,
        reader: &mut Reader,
        out: &mut Outgoing,
        input: &mut Vec<u8>,
        at: &mut usize,
        served: u64,
    ) -> Result<Begun, Broken> {
        let mut begun = false;
        let mut ready_reads = 0;
        loop {
            // HTTP/2 with prior knowledge: its first bytes, and only as the first of a connection.
            if served == 0 && input[*at..].starts_with(PREFACE) {
                return Ok(Begun::Preface);
            }
            let preface_may_come = served == 0 && !input.is_empty() && PREFACE.starts_with(&input[*at..]);
            match parser.parse(&input[*at..]) {
                Ok(Some(head)) => return Ok(Begun::Head(head)),
                Ok(None) => {}
                Err(_) if preface_may_come => {}
                Err(error) => {
                    let response = malformed(error, "HTTP/1.1").closing();
                    return Err(Broken::Answer(response, Rejection::Protocol));
                }
            }
            if out.flush().await.is_err() {
                return Ok(Begun::Over);
            }
            wire::compact(input, *at);
            *at = 0;
            let partial = !input.is_empty();
            self.line.set_idle(!partial);
            if !partial {
                if self.net.draining.get() && served > 0 {
                    return Ok(Begun::Over);
                }
                // A fresh connection must speak as soon as one that has begun to.
                let wait = if served == 0 { self.limits().head } else { self.limits().idle };
                self.line.read_until(self.net.deadline(wait));
            } else if !begun {
                begun = true;
                self.line.read_until(self.net.deadline(self.limits().head));
            }
            match self.read(reader, input, &mut ready_reads).await {
                Ok(1..) => {}
                _ if partial && self.line.cut() == Some(Cut::ReadTimeout) => {
                    return Err(self.late("head", self.limits().head));
                }
                _ => return Ok(Begun::Over),
            }
        }
    }

    /// Reads the body that follows the head at `at`.
    async fn body(
        &self,
        reader: &mut Reader,
        out: &mut Outgoing,
        input: &mut Vec<u8>,
        at: &mut usize,
        head: &RequestHead,
        bytes_max: usize,
    ) -> Result<Found, Broken> {
        let too_large = |bytes: u64| {
            let error = ApiError::too_large("request body", bytes, bytes_max);
            Broken::Answer(Response::error(&error).closing(), Rejection::Protocol)
        };
        let mut decoder = match head.framing {
            BodyFraming::None => return Ok(Found::InPlace(0)),
            BodyFraming::Length(length) => {
                let Some(wanted) = usize::try_from(length).ok().filter(|&wanted| wanted <= bytes_max) else {
                    return Err(too_large(length));
                };
                if input.len() - *at - head.head_bytes >= wanted {
                    return Ok(Found::InPlace(wanted));
                }
                self.ask_for_body(out, input, at, head).await?;
                input.reserve((head.head_bytes + wanted).saturating_sub(input.len()));
                let mut ready_reads = 0;
                while input.len() - head.head_bytes < wanted {
                    self.more_body(reader, input, &mut ready_reads).await?;
                }
                return Ok(Found::InPlace(wanted));
            }
            BodyFraming::Chunked | BodyFraming::UntilClose => {
                BodyDecoder::new(head.framing, bytes_max).map_err(|_| too_large(u64::MAX))?
            }
        };
        let mut body = Vec::new();
        let mut coded = 0;
        let mut asked = false;
        let mut ready_reads = 0;
        loop {
            match decoder.decode(&input[*at + head.head_bytes + coded..], &mut body) {
                Ok(progress) => {
                    coded += progress.consumed;
                    if progress.done {
                        return Ok(Found::Decoded(body, coded));
                    }
                }
                Err(error) if error.status == 413 => return Err(too_large(bytes_max as u64 + 1)),
                Err(error) => {
                    let api = ApiError::bad_request(
                        "malformed_body",
                        format!("The chunked body is malformed: {}.", error.reason),
                    );
                    return Err(Broken::Answer(Response::error(&api).closing(), Rejection::Protocol));
                }
            }
            if !asked {
                asked = true;
                self.ask_for_body(out, input, at, head).await?;
            }
            self.more_body(reader, input, &mut ready_reads).await?;
        }
    }

    /// Sets the body's deadline and tells a client that waits to go on.
    async fn ask_for_body(
        &self,
        out: &mut Outgoing,
        input: &mut Vec<u8>,
        at: &mut usize,
        head: &RequestHead,
    ) -> Result<(), Broken> {
        wire::compact(input, *at);
        *at = 0;
        self.line.set_idle(false);
        self.line.read_until(self.net.deadline(self.limits().body));
        if head.expect_continue && input.len() == head.head_bytes {
            out.raw(CONTINUE_100);
        }
        out.flush().await.map_err(|_| Broken::Left)
    }

    async fn more_body(&self, reader: &mut Reader, input: &mut Vec<u8>, ready_reads: &mut u32) -> Result<(), Broken> {
        match self.read(reader, input, ready_reads).await {
            Ok(1..) => Ok(()),
            _ if self.line.cut() == Some(Cut::ReadTimeout) => Err(self.late("body", self.limits().body)),
            _ => Err(Broken::Left),
        }
    }

    /// Reads once, and pauses when many reads in a row did not have to wait.
    async fn read(&self, reader: &mut Reader, input: &mut Vec<u8>, ready_reads: &mut u32) -> std::io::Result<usize> {
        if *ready_reads >= READY_READS_MAX {
            *ready_reads = 0;
            monoio::time::sleep(YIELD).await;
        }
        let mut waited = false;
        let result = {
            let mut read = pin!(reader.read(input));
            poll_fn(|context| {
                let state = read.as_mut().poll(context);
                waited |= state.is_pending();
                state
            })
            .await
        };
        *ready_reads = if waited { 0 } else { *ready_reads + 1 };
        result
    }

    fn late(&self, part: &str, allowed: Duration) -> Broken {
        let error = ApiError::new(
            408,
            "invalid_request_error",
            "request_timeout",
            format!("The {part} of the request did not arrive within {} s.", allowed.as_secs()),
        );
        Broken::Answer(Response::error(&error).closing(), Rejection::Protocol)
    }

    /// Answers what can still be answered, then closes.
    async fn give_up(&self, broken: Broken, reader: Reader, mut out: Outgoing) {
        let Broken::Answer(response, rejection) = broken else { return };
        self.net.metrics().rejected(rejection);
        // A malformed head has begun no exchange; a late body has. Either way this is its answer.
        if out.request_id().is_empty() || out.status() != 0 {
            out.begin(None, false, false, false);
            self.net.metrics().http_requests(Route::Unknown, response.status);
        }
        out.respond(response);
        self.linger(reader, out).await;
    }

    /// Writes what is buffered and closes in an order that lets the peer read it.
    async fn linger(&self, mut reader: Reader, mut out: Outgoing) {
        if out.flush().await.is_err() {
            return;
        }
        out.finish().await;
        self.line.read_until(self.net.deadline(LINGER));
        let mut dropped = 0;
        let mut ready_reads = 0;
        let mut scratch = Vec::new();
        while dropped < LINGER_BYTES_MAX {
            scratch.clear();
            match self.read(&mut reader, &mut scratch, &mut ready_reads).await {
                Ok(count @ 1..) => dropped += count,
                _ => return,
            }
        }
    }
}

/// The answer for a head that breaks the rules.
pub(super) fn malformed(error: HttpError, protocol: &str) -> Response {
    let next = match error.status {
        414 | 431 => "Send a shorter head.",
        _ => "Correct the request.",
    };
    let message = format!("The request is not valid {protocol}: {}.", error.reason);
    Response::error(
        &ApiError::new(error.status, "invalid_request_error", "malformed_http", message).with_next_step(next),
    )
}

/// Counts an answered request.
pub(super) fn count(net: &Net, metric: Route, status: u16, started: Instant) {
    let metrics = net.metrics();
    metrics.http_requests(metric, status);
    metrics.request_seconds(metric, started.elapsed());
}
