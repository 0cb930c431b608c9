//! `POST /hooks/{channel}/{account}`: signed events of messengers and other systems.
//!
//! Verification runs over the raw bytes; the sender learns a status and nothing else, the
//! reason goes to the log and a counter. The platform gets its 200 only when the event is
//! durable: what is acknowledged here is never lost.

use std::time::Instant;

use millrace_proto::channel::{
    self, Account, Ambient, Answer, ChannelKind, Decoded, InboundEvent, Incoming, NoKeys, Reject,
};

use super::routes::Segments;
use super::{Gateway, unix_ms};
use crate::bridge::Ingested;
use crate::net::{Request, Response};
use crate::obs::Rejection;

/// Seconds after which a platform should come back when the node is overloaded.
const RETRY_AFTER_S: u32 = 5;
/// Longest time of the call that confirms a subscription.
const CONFIRM_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

impl Gateway {
    pub(super) async fn hook(&self, request: &Request<'_>, segments: Segments<'_>) -> Response {
        let started = Instant::now();
        let Some(account) = self.account(segments.get(0), segments.get(1)) else { return plain(404) };
        let headers = request.head.header_pairs();
        let incoming = Incoming {
            method: request.head.method.as_str(),
            path: request.head.path(),
            query: request.head.query().unwrap_or_default(),
            headers: &headers,
            body: request.body,
        };
        let mut entropy = [0; 16];
        if getrandom::fill(&mut entropy).is_err() {
            return plain(503);
        }
        let ambient = Ambient { now_s: unix_ms() / 1_000, keys: &NoKeys, entropy };
        match channel::decode(account, &incoming, &ambient) {
            Ok(Decoded::Events { .. }) if self.channel_is_full(account) => {
                self.net.metrics().rejected(Rejection::RateLimited);
                plain(429).header("retry-after", RETRY_AFTER_S.to_string())
            }
            Ok(Decoded::Events { events, ack }) => self.ingest(account, events, ack, started).await,
            Ok(Decoded::Handshake(answer)) => respond(answer),
            Ok(Decoded::Ignore { why, ack }) => {
                tracing::debug!(channel = %account.kind, account = %account.name, why, "an event was ignored");
                respond(ack)
            }
            Ok(Decoded::Confirm { call, answer }) => {
                let done = Box::new(|result: Result<_, crate::control::CallError>| {
                    if let Err(error) = result {
                        tracing::warn!(%error, "a subscription was not confirmed; ask the platform to send it again");
                    }
                });
                match self.shared.control.http(call, CONFIRM_TIMEOUT, done) {
                    Ok(()) => respond(answer),
                    Err(_) => plain(503).header("retry-after", RETRY_AFTER_S.to_string()),
                }
            }
            Err(reject) => {
                self.net.metrics().rejected(match reject {
                    Reject::Unauthorized(_)
                    | Reject::Forbidden(_)
                    | Reject::Misconfigured(_)
                    | Reject::KeysNeeded { .. } => Rejection::Signature,
                    Reject::Stale { .. } => Rejection::Stale,
                    Reject::Malformed(_) | Reject::TooLarge(_) | Reject::NotFound(_) => Rejection::Malformed,
                });
                tracing::info!(channel = %account.kind, account = %account.name, reason = %reject, "an event was refused");
                plain(reject.status())
            }
        }
    }

    /// Stores the events in their order. All of them are durable before the platform hears of success; a
    /// repetition after a failure half-way meets the dedup keys of those that were stored.
    async fn ingest(&self, account: &Account, events: Vec<InboundEvent>, ack: Answer, started: Instant) -> Response {
        for event in events {
            match self.bridge.ingest(account, event).await {
                Ok(Ingested::Accepted) => self.net.metrics().webhook_accepted(started.elapsed()),
                Ok(Ingested::Ignored { why }) => {
                    tracing::debug!(channel = %account.kind, account = %account.name, why, "an event was ignored");
                }
                Ok(Ingested::Duplicate) => self.net.metrics().rejected(Rejection::Duplicate),
                Err(error) => {
                    self.net.metrics().rejected(Rejection::Overloaded);
                    tracing::warn!(
                        channel = %account.kind, account = %account.name, code = error.code, message = %error.message,
                        "an event was not accepted; the platform is asked to repeat it"
                    );
                    // Whatever the reason, it was not stored: only a repetition helps.
                    let wait = error.retry_after_s.unwrap_or(RETRY_AFTER_S);
                    return plain(503).header("retry-after", wait.to_string());
                }
            }
        }
        respond(ack)
    }

    /// Counts an authentic event; whether it is one too many. The platform repeats it later.
    fn channel_is_full(&self, account: &Account) -> bool {
        let live = self.shared.live.now();
        let Some(limit) = &live.rates.channel_events else { return false };
        let meter = self.shared.gateway.meters.of(&super::meter::channel(account.kind.as_str(), &account.name));
        meter.admit(self.now_ns(), limit).is_err()
    }

    fn account(&self, channel: &str, name: &str) -> Option<&Account> {
        let kind = ChannelKind::parse(channel)?;
        self.shared.config.channels.iter().find(|account| account.kind == kind && account.name == name)
    }
}

fn respond(answer: Answer) -> Response {
    let mut response = Response::json(answer.status, answer.body);
    response.content_type = answer.content_type;
    response
}

/// An answer whose body says no more than its status.
fn plain(status: u16) -> Response {
    let body: &'static [u8] = if status == 200 { b"{\"ok\":true}" } else { b"{\"ok\":false}" };
    Response::fixed(status, "application/json", body)
}
