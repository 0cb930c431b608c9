//! `POST /hooks/{channel}/{account}`: signed events of messengers and other systems.
//!
//! Verification runs over the raw bytes; the sender learns a status and nothing else, the
//! reason goes to the log and a counter. The platform gets its 200 only when the event is
//! durable: what is acknowledged here is never lost.

use std::time::Instant;

use millrace_proto::channel::{self, Account, ChannelKind, Decoded, Incoming, Reject};

use super::routes::Segments;
use super::{Gateway, unix_ms};
use crate::bridge::Ingested;
use crate::net::{Request, Response};
use crate::obs::Rejection;

/// Seconds after which a platform should come back when the node is overloaded.
const RETRY_AFTER_S: u32 = 5;

impl Gateway {
    pub(super) async fn hook(&self, request: &Request<'_>, segments: Segments<'_>) -> Response {
        let started = Instant::now();
        let Some(account) = self.account(segments.get(0), segments.get(1)) else { return plain(404) };
        let headers = request.head.header_pairs();
        let incoming = Incoming { headers: &headers, body: request.body };
        match channel::decode(account, &incoming, unix_ms() / 1_000) {
            Ok(Decoded::Event(event)) => match self.bridge.ingest(account, event).await {
                Ok(Ingested::Accepted) => {
                    self.net.metrics().webhook_accepted(started.elapsed());
                    plain(200)
                }
                Ok(Ingested::Ignored { why }) => {
                    tracing::debug!(channel = %account.kind, account = %account.name, why, "an event was ignored");
                    plain(200)
                }
                Ok(Ingested::Duplicate) => {
                    self.net.metrics().rejected(Rejection::Duplicate);
                    plain(200)
                }
                Err(error) => {
                    self.net.metrics().rejected(Rejection::Overloaded);
                    tracing::warn!(
                        channel = %account.kind, account = %account.name, code = error.code, message = %error.message,
                        "an event was not accepted; the platform is asked to repeat it"
                    );
                    // Whatever the reason, nothing was stored: only a repetition helps.
                    let wait = error.retry_after_s.unwrap_or(RETRY_AFTER_S);
                    plain(503).header("retry-after", wait.to_string())
                }
            },
            Ok(Decoded::Handshake(answer)) => {
                let mut response = Response::json(answer.status, answer.body);
                response.content_type = answer.content_type;
                response
            }
            Ok(Decoded::Ignore { why }) => {
                tracing::debug!(channel = %account.kind, account = %account.name, why, "an event was ignored");
                plain(200)
            }
            Err(reject) => {
                self.net.metrics().rejected(match reject {
                    Reject::Unauthorized(_) | Reject::Misconfigured(_) => Rejection::Signature,
                    Reject::Stale { .. } => Rejection::Stale,
                    Reject::Malformed(_) | Reject::TooLarge(_) => Rejection::Malformed,
                });
                tracing::info!(channel = %account.kind, account = %account.name, reason = %reject, "an event was refused");
                plain(reject.status())
            }
        }
    }

    fn account(&self, channel: &str, name: &str) -> Option<&Account> {
        let kind = ChannelKind::parse(channel)?;
        self.shared.config.channels.iter().find(|account| account.kind == kind && account.name == name)
    }
}

/// An answer whose body says no more than its status.
fn plain(status: u16) -> Response {
    let body: &'static [u8] = if status == 200 { b"{\"ok\":true}" } else { b"{\"ok\":false}" };
    Response::fixed(status, "application/json", body)
}
