//! HTTP/1.1 (RFC 9112) on top of `httparse`, strict on purpose.
//!
//! Where two HTTP implementations may read the same bytes differently, one of them can be tricked into
//! seeing a request that the other did not see. So everything ambiguous is refused and the connection is
//! closed: no or several `Host`, a `Content-Length` that is not digits, `Content-Length` together with
//! `Transfer-Encoding`, any transfer coding but one `chunked`, folded header lines, bare CR or LF, NUL,
//! chunk sizes that overflow.
//!
//! Sans-IO: [`HeadParser`] and [`BodyDecoder`] take what has arrived, the writers append to a buffer.

mod body;
mod request;
mod response;
mod target;
#[cfg(test)]
mod tests;

pub use crate::date::http_date;
pub use body::{BodyDecoder, BodyFraming, Progress, write_chunk, write_last_chunk};
pub use request::{HeadParser, Method, Parts, RequestHead, Version, parse};
pub use response::{CONTINUE_100, ResponseBody, ResponseHead, parse_response, reason_phrase, write_error, write_head};
pub use target::{form_decode, percent_decode, query_pairs};

/// A message that cannot be accepted. The answer is this status, and then the connection is closed: after
/// a framing error nothing that follows can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} (HTTP {status})")]
pub struct HttpError {
    /// Status of the answer.
    pub status: u16,
    /// What is wrong, for the answer and the log.
    pub reason: &'static str,
}

impl HttpError {
    pub(crate) const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }

    const fn bad(reason: &'static str) -> Self {
        Self::new(400, reason)
    }
}
