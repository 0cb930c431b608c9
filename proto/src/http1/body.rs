//! Body framing: fixed length and chunked.

use super::HttpError;
use crate::limits::{CHUNK_LINE_BYTES_MAX, CHUNK_SIZE_DIGITS_MAX, TRAILER_BYTES_MAX};

/// Bytes of chunk extensions in one body. They carry nothing, so more than a little is an attack.
const EXTENSION_BYTES_MAX: usize = 16 * 1024;
/// What is reserved at once for a body of announced length; the rest as it arrives.
const RESERVE_BYTES_MAX: usize = 64 * 1024;

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is no body.
    None,
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Until the connection ends (responses only).
    UntilClose,
}

/// What one call of [`BodyDecoder::decode`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Input bytes used. What is left belongs to the next message.
    pub consumed: usize,
    /// Whether the body is complete.
    pub done: bool,
}

/// Takes the framing off a body as it arrives.
#[derive(Clone, Debug)]
pub struct BodyDecoder {
    state: State,
    bytes: usize,
    bytes_max: usize,
    extension_bytes: usize,
}

#[derive(Clone, Debug)]
enum State {
    Length(u64),
    UntilClose,
    ChunkLine(Vec<u8>),
    ChunkData(u64),
    ChunkEnd { carriage_return: bool },
    Trailer { line: Vec<u8>, total: usize },
    Done,
}

const TOO_LARGE: HttpError = HttpError::new(413, "body is longer than this address accepts");

impl BodyDecoder {
    /// A decoder that refuses more than `bytes_max` bytes; an announced length above it is refused at once.
    pub fn new(framing: BodyFraming, bytes_max: usize) -> Result<Self, HttpError> {
        let state = match framing {
            BodyFraming::None | BodyFraming::Length(0) => State::Done,
            BodyFraming::Length(length) if length > bytes_max as u64 => return Err(TOO_LARGE),
            BodyFraming::Length(length) => State::Length(length),
            BodyFraming::Chunked => State::ChunkLine(Vec::new()),
            BodyFraming::UntilClose => State::UntilClose,
        };
        Ok(Self { state, bytes: 0, bytes_max, extension_bytes: 0 })
    }

    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether the body is complete when the peer closes now.
    pub fn done_at_close(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Body bytes seen so far.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads from `input` and appends body bytes to `out`.
    pub fn decode(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Progress, HttpError> {
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            at += self.step(&input[at..], out)?;
        }
        Ok(Progress { consumed: at, done: self.is_done() })
    }

    fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, HttpError> {
        match &mut self.state {
            State::Done => Ok(0),
            State::Length(left) => {
                let take = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let expected = usize::try_from(*left).unwrap_or(usize::MAX).min(RESERVE_BYTES_MAX);
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::Done;
                } else if out.capacity() - out.len() < take {
                    out.reserve(expected.max(take));
                }
                self.take(&input[..take], out)
            }
            State::UntilClose => self.take(input, out),
            State::ChunkLine(line) => {
                let used = take_line(input, line, CHUNK_LINE_BYTES_MAX, "chunk-size line is too long")?;
                if line.last() == Some(&b'\n') {
                    let line = std::mem::take(line);
                    let (size, extension_bytes) = chunk_size(&line[..line.len() - 2])?;
                    self.extension_bytes += extension_bytes;
                    if self.extension_bytes > EXTENSION_BYTES_MAX {
                        return Err(HttpError::bad("too many chunk extensions"));
                    }
                    if size > (self.bytes_max - self.bytes) as u64 {
                        return Err(TOO_LARGE);
                    }
                    self.state = match size {
                        0 => State::Trailer { line: Vec::new(), total: 0 },
                        _ => State::ChunkData(size),
                    };
                }
                Ok(used)
            }
            State::ChunkData(left) => {
                let take = input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::ChunkEnd { carriage_return: false };
                }
                self.take(&input[..take], out)
            }
            State::ChunkEnd { carriage_return } => {
                match (*carriage_return, input[0]) {
                    (false, b'\r') => *carriage_return = true,
                    (true, b'\n') => self.state = State::ChunkLine(Vec::new()),
                    _ => return Err(HttpError::bad("chunk does not end where its size says")),
                }
                Ok(1)
            }
            State::Trailer { line, total } => {
                let used = take_line(input, line, TRAILER_BYTES_MAX, "trailer is too long")?;
                *total += used;
                if *total > TRAILER_BYTES_MAX {
                    return Err(HttpError::bad("trailer is too long"));
                }
                if line.last() == Some(&b'\n') {
                    if line.len() == 2 {
                        self.state = State::Done;
                    } else {
                        check_trailer(line)?;
                        line.clear();
                    }
                }
                Ok(used)
            }
        }
    }

    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize, HttpError> {
        if bytes.len() > self.bytes_max - self.bytes {
            return Err(TOO_LARGE);
        }
        self.bytes += bytes.len();
        out.extend_from_slice(bytes);
        Ok(bytes.len())
    }
}

/// Moves bytes up to and including a CRLF into `line`. Bare CR and LF are errors.
fn take_line(input: &[u8], line: &mut Vec<u8>, bytes_max: usize, too_long: &'static str) -> Result<usize, HttpError> {
    for (index, byte) in input.iter().enumerate() {
        match (line.last(), byte) {
            (Some(b'\r'), b'\n') => {
                line.push(b'\n');
                return Ok(index + 1);
            }
            (Some(b'\r'), _) | (_, b'\n') => return Err(HttpError::bad("line does not end with CRLF")),
            (_, 0) => return Err(HttpError::bad("NUL in the framing of the body")),
            _ if line.len() >= bytes_max => return Err(HttpError::bad(too_long)),
            _ => line.push(*byte),
        }
    }
    Ok(input.len())
}

/// Reads `size[;extension]` and gives the size and the bytes of the extension.
fn chunk_size(line: &[u8]) -> Result<(u64, usize), HttpError> {
    const BAD: HttpError = HttpError::bad("malformed chunk size");
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extension) = line.split_at(digits);
    if digits == 0 || digits > CHUNK_SIZE_DIGITS_MAX {
        return Err(BAD);
    }
    let visible = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..);
    if !(extension.is_empty() || extension[0] == b';') || !extension.iter().all(visible) {
        return Err(BAD);
    }
    // Sixteen hex digits are exactly a u64; the checked arithmetic keeps that true if the limit is raised.
    let value = size
        .iter()
        .try_fold(0u64, |sum, byte| sum.checked_mul(16)?.checked_add(u64::from(char::from(*byte).to_digit(16)?)));
    Ok((value.ok_or(BAD)?, extension.len()))
}

/// Trailer fields are dropped, but must be header fields: anything else is a smuggled message.
fn check_trailer(line: &[u8]) -> Result<(), HttpError> {
    let mut storage = [httparse::EMPTY_HEADER; 1];
    let text = [line, b"\r\n"].concat();
    match httparse::parse_headers(&text, &mut storage) {
        Ok(httparse::Status::Complete(_)) => Ok(()),
        _ => Err(HttpError::bad("malformed trailer field")),
    }
}

/// Appends one chunk. An empty one would end the body, so nothing is written for it.
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// Appends the end of a chunked body.
pub fn write_last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}
