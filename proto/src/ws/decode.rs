//! The decoder: bytes to messages.

use super::{Opcode, close_code, close_code_is_valid, deflate};
use crate::limits::WS_CONTROL_BYTES_MAX;

/// Who decodes. Clients must mask their frames and servers must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We are the server and read a client's frames.
    Server,
    /// We are the client and read a server's frames.
    Client,
}

/// Something that arrived whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// Answer with a pong of the same payload.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// The peer closes: answer with a close frame of the same code (or an empty one), then close. Bytes
    /// after it are not read.
    Close {
        /// The code, if there was one.
        code: Option<u16>,
        /// The reason.
        reason: String,
    },
}

/// The peer broke the protocol: send a close frame with this code and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (close code {code})")]
pub struct WsError {
    /// Close code.
    pub code: u16,
    /// Reason for the close frame and the log.
    pub reason: &'static str,
}

const fn protocol(reason: &'static str) -> WsError {
    WsError { code: close_code::PROTOCOL_ERROR, reason }
}

/// The first reserved bit: on the first frame of a message it says that the message is compressed.
pub(super) const COMPRESSED: u8 = 0x40;

const INVALID_UTF8: WsError = WsError { code: close_code::INVALID_DATA, reason: "text is not UTF-8" };
/// Two header bytes, eight of length, four of mask.
const HEADER_BYTES_MAX: usize = 14;

/// Takes bytes as they arrive and gives messages. After an error or a close it gives nothing more.
#[derive(Clone, Debug)]
pub struct Decoder {
    side: Side,
    message_bytes_max: usize,
    /// Compression was agreed on.
    deflated: bool,
    /// The message under way is compressed: it is judged when it is whole.
    compressed: bool,
    header: [u8; HEADER_BYTES_MAX],
    header_bytes: usize,
    frame: Option<Frame>,
    /// The message under way: its type and what arrived of it.
    message: Option<(Opcode, Vec<u8>)>,
    /// Up to here the text under way is valid and ends with a whole character.
    valid_bytes: usize,
    control: Vec<u8>,
    finished: bool,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    last: bool,
    opcode: Opcode,
    left: u64,
    mask: [u8; 4],
    masked_at: usize,
}

impl Decoder {
    /// A decoder for one connection; messages above `message_bytes_max` are refused with 1009, as soon as a
    /// frame header announces it.
    pub fn new(side: Side, message_bytes_max: usize) -> Self {
        Self {
            side,
            message_bytes_max,
            deflated: false,
            compressed: false,
            header: [0; HEADER_BYTES_MAX],
            header_bytes: 0,
            frame: None,
            message: None,
            valid_bytes: 0,
            control: Vec::new(),
            finished: false,
        }
    }

    /// Takes compressed messages, as the handshake has agreed on.
    pub fn deflated(mut self) -> Self {
        self.deflated = true;
        self
    }

    /// Whether nothing more will be read.
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    /// Reads from the front of `input`, moves it past what was read, and gives the next event. `None` means
    /// that `input` is used up.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Event>, WsError> {
        while !self.finished {
            let Some(frame) = self.frame else {
                match self.read_header(input) {
                    Ok(Some(frame)) => {
                        self.frame = Some(frame);
                        continue;
                    }
                    Ok(None) => return Ok(None),
                    Err(error) => return self.fail(error),
                }
            };
            if let Err(error) = self.read_payload(frame, input) {
                return self.fail(error);
            }
            match self.frame {
                Some(frame) if frame.left == 0 => {
                    self.frame = None;
                    match self.end_frame(frame) {
                        Ok(None) => {}
                        Ok(event) => return Ok(event),
                        Err(error) => return self.fail(error),
                    }
                }
                _ => return Ok(None),
            }
        }
        *input = &[];
        Ok(None)
    }

    fn fail<T>(&mut self, error: WsError) -> Result<T, WsError> {
        self.finished = true;
        Err(error)
    }

    fn read_header(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, WsError> {
        while let [first, rest @ ..] = *input {
            self.header[self.header_bytes] = *first;
            self.header_bytes += 1;
            *input = rest;
            // The first two bytes are judged at once: a peer that is wrong there may send nothing more.
            let header = self.header;
            if self.header_bytes == 1 {
                self.check_first(header[0])?;
            } else if self.header_bytes == 2 {
                self.check_second(header[0], header[1])?;
            }
            if self.header_bytes >= 2 && self.header_bytes == header_length(header[1]) {
                self.header_bytes = 0;
                return self.begin_frame(&header).map(Some);
            }
        }
        Ok(None)
    }

    fn check_first(&self, first: u8) -> Result<(), WsError> {
        let opcode = Opcode::of(first & 15).ok_or(protocol("unknown opcode"))?;
        let may_compress = self.deflated && matches!(opcode, Opcode::Text | Opcode::Binary);
        let reserved = first & if may_compress { 0x70 & !COMPRESSED } else { 0x70 };
        if reserved != 0 {
            return Err(protocol("reserved bits are set"));
        }
        match (opcode, first & 0x80 != 0, self.message.is_some()) {
            (opcode, false, _) if opcode.is_control() => Err(protocol("control frame is fragmented")),
            (Opcode::Continuation, _, false) => Err(protocol("continuation without a message")),
            (Opcode::Text | Opcode::Binary, _, true) => Err(protocol("new message inside a fragmented one")),
            _ => Ok(()),
        }
    }

    fn check_second(&self, first: u8, second: u8) -> Result<(), WsError> {
        if (second & 0x80 != 0) != (self.side == Side::Server) {
            return Err(protocol("frame is masked on the wrong side"));
        }
        let opcode = Opcode::of(first & 15).expect("checked with the first byte");
        if opcode.is_control() && usize::from(second & 0x7f) > WS_CONTROL_BYTES_MAX {
            return Err(protocol("control frame is longer than 125 bytes"));
        }
        Ok(())
    }

    fn begin_frame(&mut self, header: &[u8; HEADER_BYTES_MAX]) -> Result<Frame, WsError> {
        let (length, mask_at) = match header[1] & 0x7f {
            126 => (u64::from(u16::from_be_bytes([header[2], header[3]])), 4),
            127 => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&header[2..10]);
                (u64::from_be_bytes(bytes), 10)
            }
            short => (u64::from(short), 2),
        };
        if (mask_at == 4 && length < 126) || (mask_at == 10 && length <= u64::from(u16::MAX)) {
            return Err(protocol("length is not in its shortest form"));
        }
        if length >> 63 != 0 {
            return Err(protocol("length has its highest bit set"));
        }
        let opcode = Opcode::of(header[0] & 15).expect("checked with the first byte");
        if !opcode.is_control() {
            let before = self.message.as_ref().map_or(0, |(_, bytes)| bytes.len());
            if length > (self.message_bytes_max - before) as u64 {
                return Err(WsError { code: close_code::TOO_BIG, reason: "message is too long" });
            }
            if opcode != Opcode::Continuation {
                self.message = Some((opcode, Vec::new()));
                self.valid_bytes = 0;
                self.compressed = header[0] & COMPRESSED != 0;
            }
        }
        let mut mask = [0; 4];
        if header[1] & 0x80 != 0 {
            mask.copy_from_slice(&header[mask_at..mask_at + 4]);
        }
        Ok(Frame { last: header[0] & 0x80 != 0, opcode, left: length, mask, masked_at: 0 })
    }

    fn read_payload(&mut self, mut frame: Frame, input: &mut &[u8]) -> Result<(), WsError> {
        let take = input.len().min(usize::try_from(frame.left).unwrap_or(usize::MAX));
        let (bytes, rest) = input.split_at(take);
        *input = rest;
        let target = match (&mut self.message, frame.opcode.is_control()) {
            (_, true) => &mut self.control,
            (Some((_, message)), false) => message,
            (None, false) => unreachable!("a data frame always has a message under way"),
        };
        let start = target.len();
        target.extend_from_slice(bytes);
        if self.side == Side::Server {
            unmask(&mut target[start..], frame.mask, frame.masked_at);
        }
        frame.masked_at = (frame.masked_at + take) & 3;
        frame.left -= take as u64;
        self.frame = Some(frame);
        if !frame.opcode.is_control() && !self.compressed {
            self.check_text(false)?;
        }
        Ok(())
    }

    /// Checks what has arrived of a text; a character may still be incomplete unless the text ends here.
    fn check_text(&mut self, complete: bool) -> Result<(), WsError> {
        let Some((Opcode::Text, bytes)) = &self.message else { return Ok(()) };
        match std::str::from_utf8(&bytes[self.valid_bytes..]) {
            Ok(_) => self.valid_bytes = bytes.len(),
            Err(error) if error.error_len().is_none() && !complete => self.valid_bytes += error.valid_up_to(),
            Err(_) => return Err(INVALID_UTF8),
        }
        Ok(())
    }

    fn end_frame(&mut self, frame: Frame) -> Result<Option<Event>, WsError> {
        match frame.opcode {
            Opcode::Ping => Ok(Some(Event::Ping(std::mem::take(&mut self.control)))),
            Opcode::Pong => Ok(Some(Event::Pong(std::mem::take(&mut self.control)))),
            Opcode::Close => {
                let payload = std::mem::take(&mut self.control);
                let event = close_event(&payload)?;
                self.finished = true;
                Ok(Some(event))
            }
            Opcode::Text | Opcode::Binary | Opcode::Continuation if !frame.last => Ok(None),
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                if std::mem::take(&mut self.compressed)
                    && let Some((_, message)) = &mut self.message
                {
                    *message = deflate::inflate(message, self.message_bytes_max)?;
                }
                self.check_text(true)?;
                Ok(match self.message.take() {
                    Some((Opcode::Text, bytes)) => {
                        Some(Event::Text(String::from_utf8(bytes).map_err(|_| INVALID_UTF8)?))
                    }
                    Some((_, bytes)) => Some(Event::Binary(bytes)),
                    None => unreachable!("a data frame always has a message under way"),
                })
            }
        }
    }
}

fn header_length(second: u8) -> usize {
    let length = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + length + if second & 0x80 != 0 { 4 } else { 0 }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4], at: usize) {
    let mask = [mask[at & 3], mask[(at + 1) & 3], mask[(at + 2) & 3], mask[(at + 3) & 3]];
    // Whole words first; the compiler turns this into wide vector operations.
    let mut words = bytes.chunks_exact_mut(4);
    for word in &mut words {
        for (byte, key) in word.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= key;
    }
}

fn close_event(payload: &[u8]) -> Result<Event, WsError> {
    match payload {
        [] => Ok(Event::Close { code: None, reason: String::new() }),
        [_] => Err(protocol("close frame has half a code")),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !close_code_is_valid(code) {
                return Err(protocol("close code is not allowed"));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| INVALID_UTF8)?;
            Ok(Event::Close { code: Some(code), reason: reason.to_owned() })
        }
    }
}
