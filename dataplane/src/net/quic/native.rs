//! `millrace/1`: frames of [`millrace_proto::native`] on the streams of a connection.
//!
//! The first stream of a client introduces it; every other stream carries requests, which are answered in their
//! order. Requests that arrived together are answered together: their answers share writes and datagrams.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use millrace_proto::api::ApiError;
use millrace_proto::native::{
    ArchivedHello, ClientFrame, Fault, Frame, FrameError, Kind, Payload, Side, VERSION, Welcome, close_code, next_frame,
};
use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::{READ_BYTES_MAX, STREAMS_MAX, within};
use crate::net::connection::contained;
use crate::net::line::{Line, Peer};
use crate::net::outgoing::{FLUSH_BYTES, Gone};
use crate::net::{Net, Service};
use crate::obs::Rejection;

/// What answers requests of `millrace/1`.
pub trait NativeService: Service {
    /// Who speaks on a connection.
    type Caller: 'static;

    /// Says who the client is.
    fn welcome(&self, hello: &ArchivedHello, peer: Peer) -> Result<(Self::Caller, Welcome), ApiError>;

    /// Answers one request into `answers`. `frame` is what `request` was read from. An error means that the peer is
    /// gone.
    fn answer(
        &self,
        caller: &Self::Caller,
        request: ClientFrame<'_>,
        frame: Frame<'_>,
        answers: &mut Answers,
    ) -> impl Future<Output = Result<(), Gone>>;
}

/// The answer side of one stream.
pub struct Answers {
    net: Rc<Net>,
    line: Rc<Line>,
    stream: SendStream,
    buffer: Vec<u8>,
    /// Every request is answered: the end of the stream is a proper end.
    whole: bool,
}

impl Answers {
    /// Buffers a frame.
    pub fn put(&mut self, payload: &impl Payload) {
        payload.put(&mut self.buffer);
    }

    /// Buffers the failure of a request.
    pub fn fail(&mut self, error: &ApiError) {
        self.put(&Fault::from(error));
    }

    /// The buffer, for encoders that append whole frames.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// The connection as the shard's sweep sees it.
    pub fn line(&self) -> &Rc<Line> {
        &self.line
    }

    /// Writes what is buffered, as fast as the peer takes it.
    pub async fn flush(&mut self) -> Result<(), Gone> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let mut parts = [Bytes::from(std::mem::take(&mut self.buffer))];
        while !parts[0].is_empty() {
            match within(self.net.limits.write, self.stream.write_chunks(&mut parts)).await {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(Gone),
            }
        }
        Ok(())
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // quinn finishes a stream that is dropped, and half an answer would look like a whole one.
        if !self.whole {
            let _ = self.stream.reset(VarInt::from_u32(close_code::CANCELLED));
        }
    }
}

struct Shared<S: NativeService> {
    net: Rc<Net>,
    line: Rc<Line>,
    service: Rc<S>,
    connection: Connection,
    caller: S::Caller,
    /// Requests under way on all streams.
    running: Cell<u32>,
    /// Open streams.
    streams: Cell<u32>,
    leaving: RefCell<Option<Waker>>,
}

impl<S: NativeService> Shared<S> {
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

fn close(connection: &Connection, code: u32, reason: &str) {
    connection.close(VarInt::from_u32(code), reason.as_bytes());
}

/// Serves one connection whose client speaks `millrace/1`.
pub(super) async fn live<S: NativeService>(
    net: &Rc<Net>,
    line: &Rc<Line>,
    service: &Rc<S>,
    peer: Peer,
    connection: Connection,
) {
    let Some(introduced) = within(net.limits.head, introduce(net, line, service, peer, &connection)).await else {
        net.metrics().rejected(Rejection::Unauthorized);
        return close(&connection, close_code::UNAUTHORIZED, "no hello came in time");
    };
    let Ok((caller, first)) = introduced else { return };
    let shared = Rc::new(Shared {
        net: net.clone(),
        line: line.clone(),
        service: service.clone(),
        connection: connection.clone(),
        caller,
        running: Cell::new(0),
        streams: Cell::new(0),
        leaving: RefCell::default(),
    });
    let (answers, receive, input) = first;
    shared.streams.set(1);
    drop(monoio::spawn(stream(shared.clone(), answers, receive, input)));
    accept(&shared).await;
}

type First = (Answers, RecvStream, BytesMut);

/// Reads the hello on the first stream and answers it. An error has been told to the peer.
async fn introduce<S: NativeService>(
    net: &Rc<Net>,
    line: &Rc<Line>,
    service: &Rc<S>,
    peer: Peer,
    connection: &Connection,
) -> Result<(S::Caller, First), ()> {
    let (send, mut receive) = connection.accept_bi().await.map_err(drop)?;
    let mut answers = Answers { net: net.clone(), line: line.clone(), stream: send, buffer: Vec::new(), whole: false };
    let mut input = BytesMut::new();
    let broken = |error: FrameError| {
        net.metrics().rejected(Rejection::Protocol);
        close(connection, close_code::PROTOCOL, &error.to_string());
    };
    loop {
        if let Some((frame, used)) = next_frame(&input, Side::Client).map_err(broken)? {
            let ClientFrame::Hello(hello) = ClientFrame::read(frame).map_err(broken)? else {
                net.metrics().rejected(Rejection::Unauthorized);
                close(connection, close_code::UNAUTHORIZED, "the first frame must be a hello");
                return Err(());
            };
            let welcomed = match hello.version.to_native() {
                VERSION => service.welcome(hello, peer),
                other => Err(ApiError::bad_request("unknown_version", format!("Version {other} is not spoken here."))
                    .with_next_step("Speak version 1.")),
            };
            match welcomed {
                Ok((caller, welcome)) => {
                    answers.put(&welcome);
                    answers.flush().await.map_err(drop)?;
                    input.advance(used);
                    return Ok((caller, (answers, receive, input)));
                }
                Err(error) => {
                    net.metrics().rejected(Rejection::Unauthorized);
                    answers.fail(&error);
                    answers.flush().await.map_err(drop)?;
                    answers.whole = true;
                    let _ = answers.stream.finish();
                    // The fault must arrive before the close, which would overtake it.
                    let _ = answers.stream.stopped().await;
                    close(connection, close_code::UNAUTHORIZED, error.code);
                    return Err(());
                }
            }
        }
        match receive.read_chunk(READ_BYTES_MAX, true).await {
            Ok(Some(chunk)) => input.extend_from_slice(&chunk.bytes),
            _ => {
                close(connection, close_code::PROTOCOL, "the first stream ended without a hello");
                return Err(());
            }
        }
    }
}

/// What wakes the connection's own task.
enum Arrived {
    Stream(SendStream, RecvStream),
    Told,
    Over,
}

async fn accept<S: NativeService>(shared: &Rc<Shared<S>>) {
    let connection = shared.connection.clone();
    let (net, line) = (&shared.net, &shared.line);
    let mut streams = pin!(connection.accept_bi());
    loop {
        let arrived = poll_fn(|context| {
            match streams.as_mut().poll(context) {
                Poll::Ready(Ok((send, receive))) => return Poll::Ready(Arrived::Stream(send, receive)),
                Poll::Ready(Err(_)) => return Poll::Ready(Arrived::Over),
                Poll::Pending => {}
            }
            let ending = line.poll_ending(context).is_ready() || net.draining.get();
            if line.cut().is_some() || (ending && shared.running.get() == 0) {
                return Poll::Ready(Arrived::Told);
            }
            if ending {
                *shared.leaving.borrow_mut() = Some(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
        match arrived {
            Arrived::Over => return,
            Arrived::Told => return close(&connection, close_code::SHUTDOWN, "the node is shutting down"),
            Arrived::Stream(mut send, mut receive) => {
                if shared.streams.get() >= STREAMS_MAX {
                    net.metrics().rejected(Rejection::Overloaded);
                    let _ = send.reset(VarInt::from_u32(close_code::LIMIT));
                    let _ = receive.stop(VarInt::from_u32(close_code::LIMIT));
                    continue;
                }
                shared.streams.set(shared.streams.get() + 1);
                let answers =
                    Answers { net: net.clone(), line: line.clone(), stream: send, buffer: Vec::new(), whole: false };
                drop(monoio::spawn(stream(shared.clone(), answers, receive, BytesMut::new())));
            }
        }
    }
}

/// Serves one stream to its end. A panic in the service ends this stream only.
async fn stream<S: NativeService>(
    shared: Rc<Shared<S>>,
    mut answers: Answers,
    mut receive: RecvStream,
    ahead: BytesMut,
) {
    let running = Cell::new(false);
    let fine = contained(pin!(async {
        if let Err(error) = requests(&shared, &mut answers, &mut receive, ahead, &running).await {
            shared.net.metrics().rejected(Rejection::Protocol);
            close(&shared.connection, close_code::PROTOCOL, &error.to_string());
        }
    }))
    .await;
    if !fine {
        tracing::error!(shard = shared.net.shard, "a request handler panicked; its stream is reset");
    }
    if running.get() {
        shared.run(-1);
    }
    shared.streams.set(shared.streams.get() - 1);
}

/// Runs `work` while its peer wants the answer. Dropping the work cancels it.
async fn unless<T>(
    stopped: Option<Pin<Box<impl Future<Output = T>>>>,
    work: impl Future<Output = Result<(), Gone>>,
) -> Result<(), Gone> {
    let (mut stopped, mut work) = (stopped, pin!(work));
    poll_fn(|context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(done);
        }
        match &mut stopped {
            Some(stopped) => stopped.as_mut().poll(context).map(|_| Err(Gone)),
            None => Poll::Pending,
        }
    })
    .await
}

/// Answers the requests of a stream in their order.
async fn requests<S: NativeService>(
    shared: &Shared<S>,
    answers: &mut Answers,
    receive: &mut RecvStream,
    ahead: BytesMut,
    running: &Cell<bool>,
) -> Result<(), FrameError> {
    let mut input = ahead;
    loop {
        while let Some((frame, used)) = next_frame(&input, Side::Client)? {
            let request = ClientFrame::read(frame)?;
            if matches!(request, ClientFrame::Hello(_)) {
                return Err(FrameError::WrongSide(frame.kind));
            }
            running.set(true);
            shared.run(1);
            // A client that stops the stream wants no answer; an echo is done before it could.
            let stopped = (frame.kind != Kind::Echo).then(|| Box::pin(answers.stream.stopped()));
            let answered = unless(stopped, shared.service.answer(&shared.caller, request, frame, answers)).await;
            running.set(false);
            shared.run(-1);
            if answered.is_err() || (answers.buffer.len() > FLUSH_BYTES && answers.flush().await.is_err()) {
                return Ok(());
            }
            input.advance(used);
        }
        if answers.flush().await.is_err() {
            return Ok(());
        }
        match receive.read_chunk(READ_BYTES_MAX, true).await {
            Ok(Some(chunk)) => input.extend_from_slice(&chunk.bytes),
            Ok(None) => {
                answers.whole = input.is_empty();
                if answers.whole {
                    let _ = answers.stream.finish();
                }
                return Ok(());
            }
            Err(_) => return Ok(()),
        }
    }
}
