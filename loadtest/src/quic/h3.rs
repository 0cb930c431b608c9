//! As much of an HTTP/3 client as load needs.

use super::READ_BYTES_MAX;
use anyhow::{Context, bail};
use millrace_proto::http3::{Fields, put_control_stream, put_data_header, put_fields, put_headers, varint};
use quinn::{Connection, SendStream};

/// Types of frames, RFC 9114 section 7.2.
const DATA: u64 = 0;
const HEADERS: u64 = 1;

/// A request that is sent many times: its frames are made once.
pub struct H3Request(Vec<u8>);

impl H3Request {
    /// A request; an empty body makes a GET, another a POST of JSON.
    pub fn new(authority: &str, path: &str, key: &str, body: &[u8]) -> Self {
        let length = body.len().to_string();
        let bearer = format!("Bearer {key}");
        let method: &[u8] = if body.is_empty() { b"GET" } else { b"POST" };
        let mut fields: Vec<(&str, &[u8])> = vec![
            (":method", method),
            (":scheme", b"https"),
            (":authority", authority.as_bytes()),
            (":path", path.as_bytes()),
        ];
        if !key.is_empty() {
            fields.push(("authorization", bearer.as_bytes()));
        }
        if !body.is_empty() {
            fields.push(("content-type", b"application/json"));
            fields.push(("content-length", length.as_bytes()));
        }
        let mut section = Vec::new();
        put_fields(&mut section, fields);
        let mut frames = Vec::new();
        put_headers(&mut frames, &section);
        if !body.is_empty() {
            put_data_header(&mut frames, body.len());
            frames.extend_from_slice(body);
        }
        Self(frames)
    }
}

/// An HTTP/3 connection.
pub struct H3Client {
    connection: Connection,
    /// Open as long as the connection is.
    _control: SendStream,
}

impl H3Client {
    /// Says the client's settings.
    pub async fn start(connection: Connection) -> anyhow::Result<Self> {
        let mut control = connection.open_uni().await?;
        let mut opening = Vec::new();
        put_control_stream(&mut opening);
        control.write_all(&opening).await?;
        Ok(Self { connection, _control: control })
    }

    /// Sends a request and reads its answer: status and body.
    pub async fn exchange(&self, request: &H3Request) -> anyhow::Result<(u16, Vec<u8>)> {
        let (mut send, mut receive) = self.connection.open_bi().await.context("no stream")?;
        send.write_all(&request.0).await.context("the request was not taken")?;
        send.finish()?;
        let mut input = Vec::new();
        while let Some(chunk) = receive.read_chunk(READ_BYTES_MAX, true).await.context("the answer was cut")? {
            input.extend_from_slice(&chunk.bytes);
        }
        let mut status = 0;
        let mut body = Vec::new();
        let mut rest = input.as_slice();
        while let Some((kind, a)) = varint(rest) {
            let (length, b) = varint(&rest[a..]).context("cut frame")?;
            let payload = rest.get(a + b..a + b + usize::try_from(length)?).context("cut frame")?;
            match kind {
                HEADERS if status == 0 => status = status_of(payload)?,
                DATA => body.extend_from_slice(payload),
                _ => {}
            }
            rest = &rest[a + b + payload.len()..];
        }
        if status == 0 {
            bail!("an answer without a head");
        }
        Ok((status, body))
    }
}

fn status_of(section: &[u8]) -> anyhow::Result<u16> {
    let fields = Fields::decode(section)?;
    let status = fields.iter().find(|(name, _)| *name == b":status").context("no :status")?.1;
    Ok(std::str::from_utf8(status)?.parse()?)
}
