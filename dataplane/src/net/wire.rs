//! The two halves of a connection over owned buffers, in the open or under TLS.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use monoio::net::TcpStream;

use super::tls::{SEAL_BYTES, Session};

/// Room that a read asks for at least.
const READ_BYTES_MIN: usize = 2 * 1024;

/// Room of a fresh buffer: a request with its headers, usually.
const READ_BYTES_START: usize = 4 * 1024;

/// A buffer that grew beyond this is given back between requests.
const KEEP_BYTES_MAX: usize = 64 * 1024;

/// What may arrive ahead while a request is being worked on; then reading pauses.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

type Reading = Pin<Box<dyn Future<Output = (OwnedReadHalf<TcpStream>, io::Result<usize>, Vec<u8>)>>>;

/// The reading half. At most one read is in flight, and it is never dropped half-way: a read
/// begun to watch a busy connection becomes the read that fetches the next request.
pub struct Reader {
    half: Option<OwnedReadHalf<TcpStream>>,
    watching: Option<Reading>,
    ended: bool,
    session: Option<Rc<Session>>,
    /// Where records arrive; empty between reads.
    sealed: Vec<u8>,
}

/// How a peer has left while it is still owed an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// It sends nothing more. It may have closed, or only finished its half and still read.
    Finished,
    /// The connection is broken.
    Gone,
}

/// The writing half.
pub struct Writer {
    half: OwnedWriteHalf<TcpStream>,
    session: Option<Rc<Session>>,
    sealed: Vec<u8>,
}

/// Splits a stream, with the TLS session it carries if it does.
pub fn split(stream: TcpStream, session: Option<Rc<Session>>) -> (Reader, Writer) {
    let (read, write) = stream.into_split();
    let reader =
        Reader { half: Some(read), watching: None, ended: false, session: session.clone(), sealed: Vec::new() };
    (reader, Writer { half: write, session, sealed: Vec::new() })
}

impl Reader {
    /// Appends what arrives to `input`; 0 = the peer has finished.
    pub async fn read(&mut self, input: &mut Vec<u8>) -> io::Result<usize> {
        let Some(session) = self.session.clone() else { return self.read_wire(input).await };
        let before = input.len();
        session.take_early(input).or_else(|error| self.broken(error))?;
        while input.len() == before && !self.ended && !session.is_closed() {
            let mut sealed = std::mem::take(&mut self.sealed);
            let read = self.read_wire(&mut sealed).await;
            let opened = read.and_then(|_| session.open(&sealed, input));
            compact(&mut sealed, usize::MAX);
            self.sealed = sealed;
            opened.or_else(|error| self.broken(error))?;
        }
        Ok(input.len() - before)
    }

    /// Polls a read that may stay pending while other work goes on; what arrives is appended.
    pub fn poll_read(&mut self, context: &mut Context<'_>, input: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        let Some(session) = self.session.clone() else { return self.poll_wire(context, input) };
        let before = input.len();
        session.take_early(input).or_else(|error| self.broken(error))?;
        while input.len() == before && !self.ended && !session.is_closed() {
            let mut sealed = std::mem::take(&mut self.sealed);
            let read = self.poll_wire(context, &mut sealed);
            let opened = read.map(|read| read.and_then(|_| session.open(&sealed, input)));
            compact(&mut sealed, usize::MAX);
            self.sealed = sealed;
            match opened {
                Poll::Ready(opened) => opened.or_else(|error| self.broken(error))?,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(input.len() - before))
    }

    /// What a broken session says: nothing that follows can be trusted.
    fn broken<T>(&mut self, error: io::Error) -> io::Result<T> {
        self.ended = true;
        Err(error)
    }

    async fn read_wire(&mut self, input: &mut Vec<u8>) -> io::Result<usize> {
        if self.ended {
            return Ok(0);
        }
        if let Some(watching) = self.watching.take() {
            let (half, read, bytes) = watching.await;
            self.half = Some(half);
            return self.note(read).inspect(|_| append(input, bytes));
        }
        let Some(half) = self.half.as_mut() else { return Ok(0) };
        let length = input.len();
        if input.capacity() - length < READ_BYTES_MIN {
            input.reserve(if length == 0 { READ_BYTES_START } else { length.max(READ_BYTES_MIN) });
        }
        let room = input.capacity();
        let (read, slice) = half.read(std::mem::take(input).slice_mut(length..room)).await;
        *input = slice.into_inner();
        self.note(read)
    }

    fn poll_wire(&mut self, context: &mut Context<'_>, input: &mut Vec<u8>) -> Poll<io::Result<usize>> {
        if self.ended {
            return Poll::Ready(Ok(0));
        }
        if self.watching.is_none() {
            let Some(mut half) = self.half.take() else { return Poll::Pending };
            self.watching = Some(Box::pin(async move {
                let (read, bytes) = half.read(Vec::with_capacity(READ_BYTES_MIN)).await;
                (half, read, bytes)
            }));
        }
        let Some(watching) = self.watching.as_mut() else { return Poll::Pending };
        let Poll::Ready((half, read, bytes)) = watching.as_mut().poll(context) else { return Poll::Pending };
        self.watching = None;
        self.half = Some(half);
        Poll::Ready(self.note(read).inspect(|_| append(input, bytes)))
    }

    /// Polls for the peer's leaving while a request is worked on; what arrives goes to `ahead`.
    pub fn poll_left(&mut self, context: &mut Context<'_>, ahead: &mut Vec<u8>) -> Poll<Left> {
        while self.watching.is_some() || ahead.len() < AHEAD_BYTES_MAX {
            match self.poll_read(context, ahead) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Left::Finished),
                Poll::Ready(Err(_)) => return Poll::Ready(Left::Gone),
                Poll::Ready(Ok(_)) => {}
            }
        }
        Poll::Pending
    }

    fn note(&mut self, read: io::Result<usize>) -> io::Result<usize> {
        self.ended = !matches!(read, Ok(1..));
        read
    }
}

impl Writer {
    /// Writes all of `bytes`, calling `progress` after each part; gives the buffer back empty.
    pub async fn write(&mut self, bytes: Vec<u8>, mut progress: impl FnMut()) -> (io::Result<()>, Vec<u8>) {
        let Some(session) = self.session.clone() else { return self.write_wire(bytes, &mut progress).await };
        let mut bytes = bytes;
        for part in bytes.chunks(SEAL_BYTES) {
            let mut sealed = std::mem::take(&mut self.sealed);
            if let Err(error) = session.seal(part, &mut sealed) {
                return (Err(error), bytes);
            }
            let (result, sealed) = self.write_wire(sealed, &mut progress).await;
            self.sealed = sealed;
            if result.is_err() {
                return (result, bytes);
            }
        }
        compact(&mut bytes, usize::MAX);
        (Ok(()), bytes)
    }

    async fn write_wire(&mut self, bytes: Vec<u8>, progress: &mut impl FnMut()) -> (io::Result<()>, Vec<u8>) {
        let mut bytes = bytes;
        let mut written = 0;
        while written < bytes.len() {
            let (result, slice) = self.half.write(bytes.slice(written..)).await;
            bytes = slice.into_inner();
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), bytes),
                Ok(count) => written += count,
                Err(error) => return (Err(error), bytes),
            }
            progress();
        }
        compact(&mut bytes, usize::MAX);
        (Ok(()), bytes)
    }

    /// Says that nothing follows.
    pub async fn finish(&mut self) {
        if let Some(session) = self.session.take() {
            let mut farewell = std::mem::take(&mut self.sealed);
            if session.close(&mut farewell).is_ok() {
                // A peer that is gone needs no farewell.
                let _ = self.write_wire(farewell, &mut || ()).await;
            }
        }
        // An error means that the peer has closed already.
        let _ = self.half.shutdown().await;
    }
}

/// Drops the first `consumed` bytes and gives back memory that one large request took.
pub fn compact(input: &mut Vec<u8>, consumed: usize) {
    if consumed >= input.len() {
        input.clear();
        if input.capacity() > KEEP_BYTES_MAX {
            *input = Vec::new();
        }
    } else if consumed > 0 {
        input.drain(..consumed);
    }
}

fn append(input: &mut Vec<u8>, bytes: Vec<u8>) {
    if input.is_empty() {
        *input = bytes;
    } else {
        input.extend_from_slice(&bytes);
    }
}
