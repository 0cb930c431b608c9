//! The header of a frame.

use crate::limits::{NATIVE_ANSWER_BYTES_MAX, NATIVE_HELLO_BYTES_MAX, NATIVE_REQUEST_BYTES_MAX};

/// Length of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Who sends a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The program that asks.
    Client,
    /// The node that answers.
    Server,
}

/// What a frame holds. The high bit is set in what the server sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name is the message of the same name")]
pub enum Kind {
    Hello = 0x01,
    Echo = 0x02,
    Chat = 0x03,
    Embed = 0x04,
    Welcome = 0x81,
    Echoed = 0x82,
    Started = 0x83,
    Delta = 0x84,
    Notice = 0x85,
    Done = 0x86,
    Vectors = 0x87,
    Fault = 0x8f,
}

const KINDS: [Kind; 12] = [
    Kind::Hello,
    Kind::Echo,
    Kind::Chat,
    Kind::Embed,
    Kind::Welcome,
    Kind::Echoed,
    Kind::Started,
    Kind::Delta,
    Kind::Notice,
    Kind::Done,
    Kind::Vectors,
    Kind::Fault,
];

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        KINDS.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// Who may send it.
    pub fn sender(self) -> Side {
        if self as u8 & 0x80 == 0 { Side::Client } else { Side::Server }
    }

    /// Longest payload.
    pub fn payload_bytes_max(self) -> usize {
        match self {
            Kind::Hello => NATIVE_HELLO_BYTES_MAX,
            Kind::Echo | Kind::Chat | Kind::Embed => NATIVE_REQUEST_BYTES_MAX,
            _ => NATIVE_ANSWER_BYTES_MAX,
        }
    }
}

/// A frame where it lies in the receive buffer; its payload is not validated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it holds.
    pub kind: Kind,
    /// The rkyv bytes.
    pub payload: &'a [u8],
}

/// Bytes that are no frame of the protocol. Nothing after them can be trusted: the connection closes with
/// [`close_code::PROTOCOL`](super::close_code::PROTOCOL).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The kind does not exist.
    #[error("no frame has the kind {0:#04x}")]
    UnknownKind(u8),
    /// The kind belongs to the other side.
    #[error("{0:?} is not sent by this side")]
    WrongSide(Kind),
    /// Flags and reserved bytes are zero in this version.
    #[error("reserved bytes of the header are not zero")]
    Reserved,
    /// The payload is too long.
    #[error("{kind:?} of {bytes} bytes; {bytes_max} are allowed")]
    TooLong {
        /// What it claims to be.
        kind: Kind,
        /// What it claims to hold.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The payload is not a valid value of its kind.
    #[error("the payload is not a valid {0:?}")]
    Invalid(Kind),
}

/// Cuts the first frame off `bytes` and says how many bytes it took; `None` means that more are needed. A
/// header is judged as soon as it is there, before any room is made for its payload.
pub fn next_frame(bytes: &[u8], from: Side) -> Result<Option<(Frame<'_>, usize)>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
    let [a, b, c, d, kind, flags, reserved @ ..] = *header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let kind = Kind::of(kind).ok_or(FrameError::UnknownKind(kind))?;
    if kind.sender() != from {
        return Err(FrameError::WrongSide(kind));
    }
    if flags != 0 || reserved != [0; 2] {
        return Err(FrameError::Reserved);
    }
    let bytes_max = kind.payload_bytes_max();
    if length > bytes_max {
        return Err(FrameError::TooLong { kind, bytes: length, bytes_max });
    }
    Ok(rest.get(..length).map(|payload| (Frame { kind, payload }, FRAME_HEADER_BYTES + length)))
}

/// Appends a header; its length is filled in by [`end`].
pub(super) fn begin(out: &mut Vec<u8>, kind: Kind) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0, 0, 0, 0, kind as u8, 0, 0, 0]);
    start
}

/// Fills in the length of the frame that starts at `start`.
pub(super) fn end(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start - FRAME_HEADER_BYTES).expect("an answer is bounded far below 4 GiB");
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}
