//! HTTP/3 (RFC 9114) and QPACK (RFC 9204) without its dynamic table, strict on purpose.
//!
//! The server announces a table of zero bytes, so no stream ever waits for another one, no peer can make the
//! server keep state, and whatever refers to a dynamic entry is an error.
//!
//! Sans-IO: [`RequestReader`] takes the bytes of one request stream, [`UniReader`] those of one unidirectional
//! stream, [`Peer`] keeps what the streams of a connection know together, and the `put` functions append to a buffer.

mod huffman;
mod put;
mod qpack;
mod request;
mod static_table;
#[cfg(test)]
mod tests;
mod uni;
mod varint;

pub use put::{put_control_stream, put_data_header, put_fields, put_goaway, put_headers};
pub use qpack::{Fields, FieldsError};
pub use request::{Event, Head, RequestReader};
pub use uni::{Peer, UniReader};
pub use varint::{put_varint, varint};

/// The name in the TLS handshake (ALPN).
pub const ALPN: &[u8] = b"h3";

/// Codes of RFC 9114 section 8.1 and RFC 9204 section 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each name is that of the RFC")]
pub enum Code {
    NoError = 0x100,
    GeneralProtocolError = 0x101,
    InternalError = 0x102,
    StreamCreationError = 0x103,
    ClosedCriticalStream = 0x104,
    FrameUnexpected = 0x105,
    FrameError = 0x106,
    ExcessiveLoad = 0x107,
    IdError = 0x108,
    SettingsError = 0x109,
    MissingSettings = 0x10a,
    RequestRejected = 0x10b,
    RequestCancelled = 0x10c,
    RequestIncomplete = 0x10d,
    MessageError = 0x10e,
    ConnectError = 0x10f,
    VersionFallback = 0x110,
    QpackDecompressionFailed = 0x200,
    QpackEncoderStreamError = 0x201,
    QpackDecoderStreamError = 0x202,
}

/// Bytes that break a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} ({code:?})")]
pub struct Fault {
    /// What the peer is told.
    pub code: Code,
    /// What is wrong.
    pub reason: &'static str,
    /// Only this stream is lost; otherwise the connection is.
    pub stream_only: bool,
}

impl Fault {
    const fn connection(code: Code, reason: &'static str) -> Self {
        Self { code, reason, stream_only: false }
    }

    const fn message(reason: &'static str) -> Self {
        Self { code: Code::MessageError, reason, stream_only: true }
    }
}

/// Types of frames, RFC 9114 section 11.2.1.
mod frame {
    pub const DATA: u64 = 0x0;
    pub const HEADERS: u64 = 0x1;
    pub const CANCEL_PUSH: u64 = 0x3;
    pub const SETTINGS: u64 = 0x4;
    pub const PUSH_PROMISE: u64 = 0x5;
    pub const GOAWAY: u64 = 0x7;
    pub const MAX_PUSH_ID: u64 = 0xd;

    /// Types that HTTP/2 had and HTTP/3 forbids.
    pub fn is_forbidden(kind: u64) -> bool {
        matches!(kind, 0x2 | 0x6 | 0x8 | 0x9)
    }
}
