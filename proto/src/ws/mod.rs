//! WebSocket (RFC 6455), sans-IO: handshake, a decoder that takes bytes as they arrive, and frame writers.
//!
//! The decoder fails as early as the standard allows: invalid UTF-8 is reported at the byte that makes it
//! invalid, also inside an unfinished frame, and every control frame is bounded by 125 bytes.

mod decode;
mod deflate;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::{Decoder, Event, Side, WsError};
pub use deflate::{AGREEMENT as DEFLATE_AGREEMENT, encode_deflated, is_offered as deflate_is_offered};
pub use encode::{CLOSE_REASON_BYTES_MAX, encode, encode_close, encode_masked};

use crate::digest;
use crate::http1::{HttpError, Method, RequestHead, Version};

/// Frame types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// More of the message before it.
    Continuation,
    /// Text.
    Text,
    /// Bytes.
    Binary,
    /// Close.
    Close,
    /// Ping.
    Ping,
    /// Pong.
    Pong,
}

impl Opcode {
    fn of(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }

    fn bits(self) -> u8 {
        match self {
            Opcode::Continuation => 0,
            Opcode::Text => 1,
            Opcode::Binary => 2,
            Opcode::Close => 8,
            Opcode::Ping => 9,
            Opcode::Pong => 10,
        }
    }

    fn is_control(self) -> bool {
        self.bits() >= 8
    }
}

/// Close codes that we send (RFC 6455 section 7.4.1).
pub mod close_code {
    /// The purpose is fulfilled.
    pub const NORMAL: u16 = 1000;
    /// The server goes down or the page is left.
    pub const GOING_AWAY: u16 = 1001;
    /// The peer broke the protocol.
    pub const PROTOCOL_ERROR: u16 = 1002;
    /// A type of data that we do not take.
    pub const UNSUPPORTED: u16 = 1003;
    /// Text that is not UTF-8.
    pub const INVALID_DATA: u16 = 1007;
    /// A rule of ours was broken (for example no key).
    pub const POLICY: u16 = 1008;
    /// Longer than we take.
    pub const TOO_BIG: u16 = 1009;
    /// Our own fault.
    pub const INTERNAL: u16 = 1011;
    /// Overload: come back later.
    pub const TRY_AGAIN: u16 = 1013;
}

/// Whether a peer may send this close code.
pub fn close_code_is_valid(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// The `Sec-WebSocket-Accept` value for a `Sec-WebSocket-Key`; `None` if the key is not 16 bytes of base64.
pub fn accept_key(key: &str) -> Option<String> {
    const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    if key.len() != 24 || digest::unbase64(key)?.len() != 16 {
        return None;
    }
    Some(digest::base64(&digest::sha1(format!("{key}{MAGIC}").as_bytes())))
}

/// Whether a request asks for a WebSocket.
pub fn is_upgrade(head: &RequestHead) -> bool {
    head.header_has_token("upgrade", "websocket")
}

/// Checks an upgrade request and gives the `Sec-WebSocket-Accept` value for the 101 answer.
///
/// Status 426 means: answer with `Sec-WebSocket-Version: 13`.
pub fn handshake(head: &RequestHead) -> Result<String, HttpError> {
    let single = |name: &str| {
        let mut values = head.headers().filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let first = values.next();
        if values.next().is_some() { None } else { first.and_then(|value| std::str::from_utf8(value).ok()) }
    };
    if head.method != Method::Get || head.version != Version::Http11 {
        return Err(HttpError::new(400, "a WebSocket starts with GET and HTTP/1.1"));
    }
    if !is_upgrade(head) || !head.header_has_token("connection", "upgrade") {
        return Err(HttpError::new(426, "this address speaks WebSocket: Upgrade and Connection are missing"));
    }
    if single("sec-websocket-version") != Some("13") {
        return Err(HttpError::new(426, "only WebSocket version 13 is spoken here"));
    }
    single("sec-websocket-key")
        .and_then(accept_key)
        .ok_or(HttpError::new(400, "Sec-WebSocket-Key must be 16 bytes in base64"))
}
