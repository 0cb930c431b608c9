//! A client of `millrace/1`.

use super::{READ_BYTES_MAX, odd};
use anyhow::{Context, bail};
use millrace_proto::native::{Hello, Payload, ServerFrame, Side, VERSION, next_frame};
use quinn::{Connection, RecvStream, SendStream};

/// A connection that the server has welcomed.
pub struct NativeClient {
    connection: Connection,
    /// Name of the server's chat model.
    pub model: String,
    /// Name of its embedding model; empty = none.
    pub embedding_model: String,
    /// Ends the connection's first stream when it is dropped.
    _first: NativeStream,
}

impl NativeClient {
    /// Introduces the program under a key.
    pub async fn introduce(connection: Connection, token: &str, agent: &str) -> anyhow::Result<Self> {
        let mut first = NativeStream::open(&connection).await?;
        first.put(&Hello { version: VERSION, token: token.to_owned(), agent: agent.to_owned() });
        first.flush().await?;
        let (model, embedding_model) = first
            .next(|frame| match frame {
                ServerFrame::Welcome(welcome) => {
                    Ok((welcome.model.as_str().to_owned(), welcome.embedding_model.as_str().to_owned()))
                }
                ServerFrame::Fault(fault) => bail!("refused: {} {}", fault.message, fault.next_step),
                _ => odd("no welcome"),
            })
            .await??;
        Ok(Self { connection, model, embedding_model, _first: first })
    }

    /// Opens a stream for any number of requests, which are answered in their order.
    pub async fn open(&self) -> anyhow::Result<NativeStream> {
        NativeStream::open(&self.connection).await
    }
}

/// A stream of requests.
pub struct NativeStream {
    send: SendStream,
    receive: RecvStream,
    out: Vec<u8>,
    input: Vec<u8>,
    at: usize,
}

impl NativeStream {
    async fn open(connection: &Connection) -> anyhow::Result<Self> {
        let (send, receive) = connection.open_bi().await.context("no stream")?;
        Ok(Self { send, receive, out: Vec::new(), input: Vec::new(), at: 0 })
    }

    /// Buffers a request.
    pub fn put(&mut self, request: &impl Payload) {
        request.put(&mut self.out);
    }

    /// Sends what is buffered.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        self.send.write_all(&self.out).await.context("the stream is closed")?;
        self.out.clear();
        Ok(())
    }

    /// Waits for the next frame and reads it where it lies.
    pub async fn next<T>(&mut self, read: impl FnOnce(ServerFrame<'_>) -> T) -> anyhow::Result<T> {
        loop {
            if let Some((frame, used)) = next_frame(&self.input[self.at..], Side::Server)? {
                let result = read(ServerFrame::read(frame)?);
                self.at += used;
                return Ok(result);
            }
            self.input.drain(..self.at);
            self.at = 0;
            match self.receive.read_chunk(READ_BYTES_MAX, true).await.context("the connection is lost")? {
                Some(chunk) => self.input.extend_from_slice(&chunk.bytes),
                None => bail!("the stream ended"),
            }
        }
    }
}
