//! One HTTP/1.1 exchange over a raw socket, with the times that matter.

use crate::Target;
use millrace_proto::http1::{BodyDecoder, ResponseHead, parse_response};
use std::cell::RefCell;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Bodies above this are a fault of the server.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
const READ_BYTES: usize = 16 * 1024;

/// Why an exchange failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Groups failures in the report.
    pub kind: String,
    /// What exactly happened.
    pub detail: String,
}

impl Failure {
    /// A failure.
    pub fn new(kind: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind: kind.into(), detail: detail.into() }
    }
}

/// Opens connections and keeps idle ones for later requests.
pub struct Connections {
    target: Target,
    reuse: bool,
    idle: RefCell<Vec<TcpStream>>,
    /// One for each connection that may be in use.
    places: Option<Semaphore>,
    reconnects: RefCell<u64>,
}

impl Connections {
    /// Connections to `target`, no more than `max` in use at once; kept alive if `reuse`.
    pub fn new(target: Target, reuse: bool, max: Option<u32>) -> Self {
        let places = max.map(|max| Semaphore::new(max as usize));
        Self { target, reuse, idle: RefCell::new(Vec::new()), places, reconnects: RefCell::new(0) }
    }

    /// Idle connections that the server had closed when they were needed.
    pub fn reconnects(&self) -> u64 {
        *self.reconnects.borrow()
    }

    /// Sends `request` and reads the answer. `body` is called with the status, each piece of the body and
    /// the time at which it was read.
    pub async fn exchange(
        &self,
        request: &[u8],
        body: &mut dyn FnMut(u16, &[u8], Instant),
    ) -> Result<ResponseHead, Failure> {
        let _place = match &self.places {
            Some(places) => Some(places.acquire().await.expect("the places are never closed")),
            None => None,
        };
        let kept = self.idle.borrow_mut().pop();
        if let Some(stream) = kept {
            match self.attempt(stream, request, body).await {
                // A server may close an idle connection at any time; before any byte of an answer this is no
                // failure of the request.
                Err(Attempt::Unanswered(_)) => *self.reconnects.borrow_mut() += 1,
                Err(Attempt::Failed(failure)) => return Err(failure),
                Ok(head) => return Ok(head),
            }
        }
        let stream = TcpStream::connect(self.target.address)
            .await
            .map_err(|error| Failure::new("connect", error.to_string()))?;
        stream.set_nodelay(true).map_err(|error| Failure::new("connect", error.to_string()))?;
        match self.attempt(stream, request, body).await {
            Ok(head) => Ok(head),
            Err(Attempt::Unanswered(failure) | Attempt::Failed(failure)) => Err(failure),
        }
    }

    async fn attempt(
        &self,
        mut stream: TcpStream,
        request: &[u8],
        body: &mut dyn FnMut(u16, &[u8], Instant),
    ) -> Result<ResponseHead, Attempt> {
        let cut = |detail: String| Attempt::Unanswered(Failure::new("connection cut", detail));
        stream.write_all(request).await.map_err(|error| cut(error.to_string()))?;
        let mut bytes = Vec::with_capacity(READ_BYTES);
        let (head, read_at) = loop {
            let count = stream.read_buf(&mut bytes).await.map_err(|error| cut(error.to_string()))?;
            let read_at = Instant::now();
            if bytes.is_empty() {
                return Err(cut("closed before an answer".to_owned()));
            }
            if count == 0 {
                return Err(Attempt::Failed(Failure::new("connection cut", "closed inside the head of the answer")));
            }
            match parse_response(&bytes) {
                Ok(Some(head)) if head.status == 100 => drop(bytes.drain(..head.head_bytes)),
                Ok(Some(head)) => break (head, read_at),
                Ok(None) => {}
                Err(error) => return Err(Attempt::Failed(Failure::new("malformed answer", error.reason))),
            }
        };
        let reusable = self.read_body(&mut stream, &head, bytes, read_at, body).await.map_err(Attempt::Failed)?;
        if reusable && self.reuse && head.keep_alive {
            self.idle.borrow_mut().push(stream);
        }
        Ok(head)
    }

    /// Reads the body and says whether the connection stands at the start of a next answer.
    async fn read_body(
        &self,
        stream: &mut TcpStream,
        head: &ResponseHead,
        mut bytes: Vec<u8>,
        mut read_at: Instant,
        body: &mut dyn FnMut(u16, &[u8], Instant),
    ) -> Result<bool, Failure> {
        let malformed = |reason: &str| Failure::new("malformed answer", reason);
        let mut decoder = BodyDecoder::new(head.framing, BODY_BYTES_MAX).map_err(|error| malformed(error.reason))?;
        let mut decoded = Vec::new();
        bytes.drain(..head.head_bytes);
        loop {
            decoded.clear();
            let progress = decoder.decode(&bytes, &mut decoded).map_err(|error| malformed(error.reason))?;
            if !decoded.is_empty() {
                body(head.status, &decoded, read_at);
            }
            if decoder.is_done() {
                return Ok(progress.consumed == bytes.len());
            }
            bytes.clear();
            let count =
                stream.read_buf(&mut bytes).await.map_err(|error| Failure::new("connection cut", error.to_string()))?;
            read_at = Instant::now();
            if count == 0 {
                return match decoder.done_at_close() {
                    true => Ok(false),
                    false => Err(Failure::new("connection cut", "closed inside the body of the answer")),
                };
            }
        }
    }
}

enum Attempt {
    /// Nothing of an answer was seen.
    Unanswered(Failure),
    Failed(Failure),
}
