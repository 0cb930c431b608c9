//! A plain blocking HTTP/1.1 client over `std::net`. It sends exactly the bytes it is told to, so
//! that a test can also speak HTTP wrongly on purpose.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// No answer takes longer than this, also on a machine that is busy compiling.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// One HTTP answer, read to its end.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Names in lower case, in the order of arrival.
    pub headers: Vec<(String, String)>,
    /// The body with its transfer coding removed.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {} {}", self.status, self.text()))
    }

    /// Checks the status and returns the body as JSON.
    ///
    /// # Panics
    /// When the status is another one.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        self.json()
    }
}

/// One connection, kept alive between requests.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects.
    pub fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).context("connect")?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        stream.set_nodelay(true)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.reader.get_mut().write_all(bytes).context("write")
    }

    /// Tells the peer that nothing more will come.
    pub fn finish(&mut self) -> Result<()> {
        self.reader.get_mut().shutdown(std::net::Shutdown::Write).context("shutdown")
    }

    /// Sets how long a read may wait.
    pub fn patience(&mut self, limit: Duration) -> Result<()> {
        self.reader.get_mut().set_read_timeout(Some(limit)).context("set a read timeout")
    }

    /// Reads one answer.
    pub fn reply(&mut self) -> Result<Reply> {
        let (status, headers) = self.head()?;
        let mut reply = Reply { status, headers, body: Vec::new() };
        if matches!(status, 100..=199 | 204 | 304) {
            return Ok(reply);
        }
        if reply.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            while let Some(chunk) = self.chunk()? {
                reply.body.extend_from_slice(&chunk);
            }
        } else if let Some(length) = reply.header("content-length") {
            let length: usize = length.parse().context("content-length")?;
            reply.body.resize(length, 0);
            self.reader.read_exact(&mut reply.body).context("body")?;
        } else {
            self.reader.read_to_end(&mut reply.body).context("body up to the close")?;
        }
        Ok(reply)
    }

    /// Whether the peer has closed, once everything it sent is read.
    pub fn closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).context("read a line")?;
        if line.is_empty() {
            bail!("the connection closed");
        }
        Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
    }

    fn head(&mut self) -> Result<(u16, Vec<(String, String)>)> {
        let first = self.line()?;
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        let Some(status) = status else { bail!("not a status line: {first:?}") };
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok((status, headers));
            }
            let (name, value) = line.split_once(':').with_context(|| format!("not a header: {line:?}"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// The next chunk of a chunked body; `None` after the last one.
    fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let line = self.line()?;
        let size = usize::from_str_radix(line.trim(), 16).with_context(|| format!("not a chunk size: {line:?}"))?;
        let mut chunk = vec![0; size];
        self.reader.read_exact(&mut chunk).context("chunk")?;
        let end = self.line()?;
        if !end.is_empty() {
            bail!("a chunk ends with {end:?}");
        }
        Ok((size > 0).then_some(chunk))
    }
}

/// Writes a request. `Host`, `Content-Length` and the key are added; `headers` can override none of them.
pub fn request_bytes(
    address: SocketAddr,
    method: &str,
    path: &str,
    key: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n");
    if !key.is_empty() {
        head.push_str(&format!("Authorization: Bearer {key}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One request on a connection of its own.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    key: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Reply> {
    let mut connection = Connection::open(address)?;
    connection.send(&request_bytes(address, method, path, key, headers, body))?;
    connection.reply().with_context(|| format!("{method} {path}"))
}

/// A streaming answer (server-sent events), event by event.
pub struct Stream {
    connection: Connection,
    /// The status code.
    pub status: u16,
    pending: Vec<u8>,
}

impl Stream {
    /// Sends a request and reads the head of the answer.
    pub fn open(address: SocketAddr, path: &str, key: &str, body: &Value) -> Result<Self> {
        let mut connection = Connection::open(address)?;
        let body = body.to_string();
        let headers = [("Content-Type", "application/json")];
        connection.send(&request_bytes(address, "POST", path, key, &headers, body.as_bytes()))?;
        let (status, headers) = connection.head()?;
        if status != 200 {
            let length =
                headers.iter().find(|(name, _)| name == "content-length").and_then(|(_, value)| value.parse().ok());
            let mut rest = vec![0; length.unwrap_or(0)];
            connection.reader.read_exact(&mut rest)?;
            bail!("status {status}: {}", String::from_utf8_lossy(&rest));
        }
        let event_stream =
            headers.iter().any(|(name, value)| name == "content-type" && value.starts_with("text/event-stream"));
        if !event_stream {
            bail!("not an event stream: {headers:?}");
        }
        Ok(Self { connection, status, pending: Vec::new() })
    }

    /// The data of the next event (`[DONE]` included); `None` when the stream ended properly.
    #[expect(clippy::should_implement_trait, reason = "an iterator could not report a broken stream")]
    pub fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.pending.drain(..end + 2).collect();
                let event = String::from_utf8(event).context("an event is not UTF-8")?;
                let data: Vec<&str> =
                    event.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
                if data.is_empty() {
                    continue; // A comment that keeps the connection alive.
                }
                return Ok(Some(data.join("\n")));
            }
            match self.connection.chunk()? {
                Some(chunk) => self.pending.extend_from_slice(&chunk),
                None if self.pending.is_empty() => return Ok(None),
                None => bail!("the stream ended inside an event: {:?}", String::from_utf8_lossy(&self.pending)),
            }
        }
    }

    /// Reads to the end: every event before `[DONE]`, which must be the last.
    pub fn finish(mut self) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        while let Some(event) = self.next()? {
            if event == "[DONE]" {
                if let Some(after) = self.next()? {
                    bail!("an event after [DONE]: {after}");
                }
                return Ok(events);
            }
            events.push(serde_json::from_str(&event).with_context(|| format!("not JSON: {event}"))?);
        }
        bail!("the stream ended without [DONE]; last event: {:?}", events.last())
    }
}

/// The text of all deltas of a finished chat stream.
pub fn streamed_text(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}
