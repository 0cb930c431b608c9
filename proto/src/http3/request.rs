//! One request stream: HEADERS, DATA and perhaps trailers.

use super::qpack::{Fields, FieldsError, SECTION_BYTES_MAX};
use super::varint::varint;
use super::{Code, Fault, frame};

/// Longest HEADERS frame that is collected. Encoding only shortens, so a longer one holds too much.
const HEADERS_FRAME_BYTES_MAX: u64 = SECTION_BYTES_MAX as u64;

/// The head of a request, held to RFC 9114 section 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    fields: Fields,
    /// Which fields are `:method`, `:scheme`, `:authority` and `:path`.
    pseudo: [Option<usize>; 4],
}

const PSEUDO: [&[u8]; 4] = [b":method", b":scheme", b":authority", b":path"];

impl Head {
    fn check(fields: Fields) -> Result<Self, Fault> {
        let mut pseudo = [None; 4];
        let mut ordinary = false;
        for (index, (name, value)) in fields.iter().enumerate() {
            check_value(value)?;
            if name.first() == Some(&b':') {
                if ordinary {
                    return Err(Fault::message("a pseudo-header follows a field"));
                }
                let Some(which) = PSEUDO.iter().position(|known| *known == name) else {
                    return Err(Fault::message("an unknown pseudo-header"));
                };
                if pseudo[which].replace(index).is_some() {
                    return Err(Fault::message("a pseudo-header is duplicated"));
                }
            } else {
                ordinary = true;
                check_field(name, value)?;
            }
        }
        let head = Self { fields, pseudo };
        if head.method() == "CONNECT" {
            return Err(Fault::message("CONNECT is not offered"));
        }
        if pseudo[0].is_none() || pseudo[1].is_none() || pseudo[3].is_none() {
            return Err(Fault::message("a mandatory pseudo-header is absent"));
        }
        if head.path().is_empty() {
            return Err(Fault::message(":path is empty"));
        }
        let text = (0..4).all(|which| head.pseudo_text(which).is_some() || pseudo[which].is_none());
        if text { Ok(head) } else { Err(Fault::message("a pseudo-header is not text")) }
    }

    fn pseudo_text(&self, which: usize) -> Option<&str> {
        let (_, value) = self.fields.iter().nth(self.pseudo[which]?)?;
        std::str::from_utf8(value).ok()
    }

    /// The method.
    pub fn method(&self) -> &str {
        self.pseudo_text(0).unwrap_or_default()
    }

    /// The authority; empty = the `host` field speaks.
    pub fn authority(&self) -> &str {
        self.pseudo_text(2).unwrap_or_default()
    }

    /// Path and query.
    pub fn path(&self) -> &str {
        self.pseudo_text(3).unwrap_or_default()
    }

    /// The fields that are no pseudo-headers.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &[u8])> {
        // Names were checked to be ASCII.
        let text = |(name, value)| Some((std::str::from_utf8(name).ok()?, value));
        self.fields.iter().filter(|(name, _)| name.first() != Some(&b':')).filter_map(text)
    }

    /// The announced length of the body. A malformed one is judged with the other fields.
    fn content_length(&self) -> Option<u64> {
        let (_, value) = self.fields().find(|(name, _)| *name == "content-length")?;
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
    }
}

fn check_value(value: &[u8]) -> Result<(), Fault> {
    let edges = [value.first(), value.last()];
    if value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n')) || edges.iter().any(|edge| is_blank(*edge)) {
        return Err(Fault::message("a value holds a forbidden byte"));
    }
    Ok(())
}

fn is_blank(byte: Option<&u8>) -> bool {
    matches!(byte, Some(b' ' | b'\t'))
}

/// RFC 9114 sections 4.2 and 10.3: a name is a token in lower case; fields about a connection are not sent.
fn check_field(name: &[u8], value: &[u8]) -> Result<(), Fault> {
    let token = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(byte);
    if name.is_empty() || !name.iter().all(token) {
        return Err(Fault::message("a field name is not a token in lower case"));
    }
    match name {
        b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
            Err(Fault::message("a field about the connection"))
        }
        b"te" if value != b"trailers" => Err(Fault::message("te with anything but trailers")),
        _ => Ok(()),
    }
}

/// What a stream has brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The head.
    Head(Head),
    /// The head is longer than was announced; answer 431.
    HeadTooLong,
    /// A part of the body was appended.
    Data,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Body,
    Trailers,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    /// Between frames.
    Header,
    /// In a HEADERS frame of this many bytes, collected as a whole.
    Section(usize),
    /// This many bytes of a DATA frame are to come.
    Data(u64),
    /// This many bytes of a frame without meaning are to come.
    Skip(u64),
}

/// Reads a request stream in any portions.
#[derive(Debug)]
pub struct RequestReader {
    stage: Stage,
    place: Place,
    announced: Option<u64>,
    body_bytes: u64,
}

impl Default for RequestReader {
    fn default() -> Self {
        Self { stage: Stage::Head, place: Place::Header, announced: None, body_bytes: 0 }
    }
}

impl RequestReader {
    /// Reads from `input`, which starts with what the last call left over, and says how much of it was used. Body
    /// bytes are appended to `body`. `None` = more bytes are needed.
    pub fn next(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<(Option<Event>, usize), Fault> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            match self.place {
                Place::Header => {
                    let Some((kind, a)) = varint(rest) else { return Ok((None, used)) };
                    let Some((length, b)) = varint(&rest[a..]) else { return Ok((None, used)) };
                    used += a + b;
                    self.place = self.begin(kind, length)?;
                    if self.stage == Stage::Head && matches!(self.place, Place::Skip(_)) && kind == frame::HEADERS {
                        return Ok((Some(Event::HeadTooLong), used));
                    }
                }
                Place::Section(length) => {
                    let Some(section) = rest.get(..length) else { return Ok((None, used)) };
                    used += length;
                    self.place = Place::Header;
                    if let Some(event) = self.section(section)? {
                        return Ok((Some(event), used));
                    }
                }
                Place::Data(left) => {
                    let part = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if part == 0 && left > 0 {
                        return Ok((None, used));
                    }
                    body.extend_from_slice(&rest[..part]);
                    used += part;
                    let left = left - part as u64;
                    self.place = if left == 0 { Place::Header } else { Place::Data(left) };
                    return Ok((Some(Event::Data), used));
                }
                Place::Skip(left) => {
                    let part = rest.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if part == 0 && left > 0 {
                        return Ok((None, used));
                    }
                    used += part;
                    let left = left - part as u64;
                    self.place = if left == 0 { Place::Header } else { Place::Skip(left) };
                }
            }
        }
    }

    /// A frame begins.
    fn begin(&mut self, kind: u64, length: u64) -> Result<Place, Fault> {
        let unexpected = |reason| Err(Fault::connection(Code::FrameUnexpected, reason));
        match kind {
            frame::DATA if self.stage == Stage::Head => unexpected("DATA before HEADERS"),
            frame::DATA if self.stage == Stage::Trailers => unexpected("DATA after the trailers"),
            frame::DATA => {
                self.body_bytes = self.body_bytes.saturating_add(length);
                if self.announced.is_some_and(|announced| self.body_bytes > announced) {
                    return Err(Fault::message("the body is longer than announced"));
                }
                Ok(if length == 0 { Place::Header } else { Place::Data(length) })
            }
            frame::HEADERS if self.stage == Stage::Trailers => unexpected("HEADERS after the trailers"),
            frame::HEADERS if length > HEADERS_FRAME_BYTES_MAX => Ok(Place::Skip(length)),
            frame::HEADERS => Ok(Place::Section(usize::try_from(length).unwrap_or(usize::MAX))),
            frame::CANCEL_PUSH | frame::SETTINGS | frame::PUSH_PROMISE | frame::GOAWAY | frame::MAX_PUSH_ID => {
                unexpected("a frame that does not belong on a request stream")
            }
            kind if frame::is_forbidden(kind) => unexpected("a frame of HTTP/2"),
            _ => Ok(Place::Skip(length)),
        }
    }

    fn section(&mut self, section: &[u8]) -> Result<Option<Event>, Fault> {
        let fields = match Fields::decode(section) {
            Ok(fields) => fields,
            Err(FieldsError::Malformed(reason)) => {
                return Err(Fault::connection(Code::QpackDecompressionFailed, reason));
            }
            Err(FieldsError::TooLong) if self.stage == Stage::Head => {
                self.stage = Stage::Body;
                return Ok(Some(Event::HeadTooLong));
            }
            Err(FieldsError::TooLong) => return Err(Fault::message("the trailers are too long")),
        };
        if self.stage == Stage::Head {
            let head = Head::check(fields)?;
            self.stage = Stage::Body;
            self.announced = head.content_length();
            return Ok(Some(Event::Head(head)));
        }
        self.stage = Stage::Trailers;
        for (name, value) in fields.iter() {
            check_value(value)?;
            check_field(name, value)?;
        }
        Ok(None)
    }

    /// The client has finished its stream; `left` bytes were not used.
    pub fn finish(&self, left: usize) -> Result<(), Fault> {
        if left > 0 || !matches!(self.place, Place::Header) {
            return Err(Fault::connection(Code::FrameError, "the stream ends inside a frame"));
        }
        if self.stage == Stage::Head {
            let incomplete = Code::RequestIncomplete;
            return Err(Fault { code: incomplete, reason: "the stream ends before a request", stream_only: true });
        }
        if self.announced.is_some_and(|announced| announced != self.body_bytes) {
            return Err(Fault::message("the body is shorter than announced"));
        }
        Ok(())
    }
}
