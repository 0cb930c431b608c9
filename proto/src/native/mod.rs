//! `millrace/1`: the native protocol for programs that send many requests, over QUIC.
//!
//! A stream carries frames: eight bytes of header, then one rkyv value that the receiver validates and reads
//! where it lies. Nothing is parsed into owned values, no text is escaped, and a stream serves any number of
//! requests, so a small message costs a fraction of an HTTP request. `proto/NATIVE.md` is the specification.
//!
//! Sans-IO: [`next_frame`] cuts what has arrived, [`ClientFrame::read`] and [`ServerFrame::read`] validate it, the
//! `put` functions append to a buffer.

mod frame;
mod message;
#[cfg(test)]
mod tests;

pub use frame::{FRAME_HEADER_BYTES, Frame, FrameError, Kind, Side, next_frame};
pub use message::{
    ArchivedChat, ArchivedEcho, ArchivedEmbed, ArchivedFault, ArchivedHello, ArchivedTurn, Chat, ClientFrame, Delta,
    Done, Echo, Embed, Ending, Fault, Hello, Notice, Payload, ServerFrame, Started, Turn, Vectors, Welcome, echoed,
};

/// The name in the TLS handshake (ALPN).
pub const ALPN: &[u8] = b"millrace/1";

/// The version that [`Hello`] and [`Welcome`] carry.
pub const VERSION: u16 = 1;

/// Codes with which a side closes a connection or resets a stream.
pub mod close_code {
    /// Nothing is wrong.
    pub const DONE: u32 = 0;
    /// A frame that the specification does not allow.
    pub const PROTOCOL: u32 = 1;
    /// The first frame did not carry a valid token.
    pub const UNAUTHORIZED: u32 = 2;
    /// Too much of something: frames ahead, streams, bytes.
    pub const LIMIT: u32 = 3;
    /// The node shuts down.
    pub const SHUTDOWN: u32 = 4;
    /// Nothing happened for too long.
    pub const IDLE: u32 = 5;
    /// The sender has no use for the answer.
    pub const CANCELLED: u32 = 6;
}
