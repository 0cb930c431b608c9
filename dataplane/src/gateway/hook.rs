//! `/hooks/{channel}/{account}`: signed events of messengers and other systems.
//!
//! Verification runs over the raw bytes; the sender learns a status and nothing else, the
//! reason goes to the log and a counter. The platform gets its 200 only when the event is
//! durable: what is acknowledged here is never lost.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::vec::IntoIter;

use millrace_proto::channel::{
    self, Account, Ambient, Answer, ChannelKind, Decoded, EventKind, InboundEvent, Incoming, OutboundCall, Reject,
    StreamPart,
};
use millrace_proto::http1::{BodyFraming, RequestHead};
use millrace_proto::limits::WEBHOOK_BODY_BYTES_MAX;
use millrace_storage::crash;

use super::routes::{self, Row, Segments};
use super::{Gateway, unix_ms};
use crate::bridge::{Ingest, Ingested};
use crate::net::{Refused, Request, Response};
use crate::obs::{ChannelOutcome, Rejection};

/// Seconds after which a platform should come back when the node is overloaded.
const RETRY_AFTER_S: u32 = 5;
/// Longest time of the call that confirms a subscription.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a request is verified: once more when the keys have come, and once more for a key that is new in
/// the set.
const VERIFICATIONS_MAX: usize = 3;

/// What was found out about a request before its body was read.
pub struct Hook {
    pub account: Arc<Account>,
    /// Held until the answer is made.
    _large_body: Option<LargeBody>,
}

/// What is to be done for a request.
enum Step<'a> {
    Answer(Response),
    /// Few requests wait for anything but the disk. What those few keep meanwhile is not carried by all.
    Later(Pin<Box<dyn Future<Output = Response> + 'a>>),
    Store {
        events: IntoIter<InboundEvent>,
        ack: Answer,
    },
}

/// A place for one long body.
struct LargeBody(Rc<Cell<usize>>);

impl LargeBody {
    fn take(places: &Rc<Cell<usize>>) -> Option<Self> {
        let left = places.get().checked_sub(1)?;
        places.set(left);
        Some(Self(Rc::clone(places)))
    }
}

impl Drop for LargeBody {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

impl Gateway {
    /// The cap of a request's body by its channel, before anything of it is read.
    pub(super) fn admit_hook(&self, head: &RequestHead, row: &Row) -> Result<(usize, Hook), Refused> {
        let refused = |response: Response| Refused { response, metric: row.metric };
        let account = self.hook_account(row, head.path()).ok_or_else(|| refused(plain(404)))?;
        let cap = account.kind.spec().body_bytes_max.min(row.body_bytes_max);
        let length = match head.framing {
            BodyFraming::None => 0,
            BodyFraming::Length(length) => usize::try_from(length).unwrap_or(usize::MAX),
            BodyFraming::Chunked | BodyFraming::UntilClose => cap,
        };
        if length > cap {
            self.refuse_event(&account, &Reject::TooLarge("webhook body"));
            // The body is still on its way: the connection cannot be used for another request.
            return Err(refused(plain(413).closing()));
        }
        if length <= WEBHOOK_BODY_BYTES_MAX {
            return Ok((cap, Hook { account, _large_body: None }));
        }
        match LargeBody::take(&self.large_bodies) {
            Some(place) => Ok((cap, Hook { account, _large_body: Some(place) })),
            None => {
                self.net.metrics().channel(account.kind, ChannelOutcome::Overloaded);
                Err(refused(come_back().closing()))
            }
        }
    }

    pub(super) async fn hook(&self, account: &Account, request: &Request<'_>) -> Response {
        let started = Instant::now();
        let step = match self.decode(account, request) {
            Err(Reject::KeysNeeded { url, unknown_key }) => {
                Step::Later(Box::pin(self.when_keys_came(account, request, url, unknown_key, started)))
            }
            decoded => self.act(account, decoded),
        };
        self.finish(account, step, started).await
    }

    /// Verifies and reads a request with the keys that are at hand.
    fn decode(&self, account: &Account, request: &Request<'_>) -> Result<Decoded, Reject> {
        let headers = request.head.header_pairs();
        let incoming = Incoming {
            method: request.head.method.as_str(),
            path: request.head.path(),
            query: request.head.query().unwrap_or_default(),
            headers: &headers,
            body: request.body,
        };
        let entropy = self.entropy.draw().ok_or(Reject::Misconfigured("no random numbers"))?;
        let keys = self.shared.platforms.keys_of(account);
        channel::decode(account, &incoming, &Ambient { now_s: unix_ms() / 1_000, keys: &keys, entropy })
    }

    /// Verifies again when the platform's keys have come.
    async fn when_keys_came(
        &self,
        account: &Account,
        request: &Request<'_>,
        mut url: String,
        mut unknown_key: bool,
        started: Instant,
    ) -> Response {
        for _ in 1..VERIFICATIONS_MAX {
            // A fetch that ended between the look at the keys and this question is not waited for: one more look.
            let nothing_comes = !self.bridge.keys_came(account, &url, unknown_key).await;
            match self.decode(account, request) {
                Err(Reject::KeysNeeded { url: other, unknown_key: unknown }) => {
                    (url, unknown_key) = (other, unknown);
                    if nothing_comes {
                        break;
                    }
                }
                decoded => {
                    let step = self.act(account, decoded);
                    return self.finish(account, step, started).await;
                }
            }
        }
        self.refused(account, &Reject::KeysNeeded { url, unknown_key })
    }

    /// What follows from a request that was read, or not.
    fn act<'a>(&'a self, account: &'a Account, decoded: Result<Decoded, Reject>) -> Step<'a> {
        Step::Answer(match decoded {
            Ok(Decoded::Events { mut events, .. }) if events[0].kind == EventKind::StreamPoll => {
                return Step::Later(Box::pin(self.tell_progress(account, events.swap_remove(0))));
            }
            Ok(Decoded::Events { .. }) if self.channel_is_full(account) => {
                self.net.metrics().rejected(Rejection::RateLimited);
                self.net.metrics().channel(account.kind, ChannelOutcome::Overloaded);
                plain(429).header("retry-after", RETRY_AFTER_S.to_string())
            }
            Ok(Decoded::Events { events, ack }) => return Step::Store { events: events.into_iter(), ack },
            Ok(Decoded::Handshake(answer)) => {
                self.net.metrics().channel(account.kind, ChannelOutcome::Handshake);
                respond(answer)
            }
            Ok(Decoded::Ignore { why, ack }) => {
                self.ignore_event(account, why);
                respond(ack)
            }
            Ok(Decoded::Confirm { call, answer }) => self.confirm(account, call, answer),
            Err(reject) => self.refused(account, &reject),
        })
    }

    async fn finish(&self, account: &Account, step: Step<'_>, started: Instant) -> Response {
        match step {
            Step::Answer(response) => response,
            Step::Later(response) => response.await,
            Step::Store { events, ack } => self.store(account, events, ack, started).await,
        }
    }

    fn refused(&self, account: &Account, reject: &Reject) -> Response {
        self.refuse_event(account, reject);
        let response = respond(reject.answer(account.kind));
        if response.status == 503 { response.header("retry-after", RETRY_AFTER_S.to_string()) } else { response }
    }

    fn confirm(&self, account: &Account, call: OutboundCall, answer: Answer) -> Response {
        let done = Box::new(|result: Result<_, crate::control::CallError>| {
            if let Err(error) = result {
                tracing::warn!(%error, "a subscription was not confirmed; ask the platform to send it again");
            }
        });
        let call = OutboundCall { url: account.document_address(&call.url), ..call };
        match self.shared.control.http(call, CONFIRM_TIMEOUT, done) {
            Ok(()) => {
                self.net.metrics().channel(account.kind, ChannelOutcome::Handshake);
                respond(answer)
            }
            Err(_) => {
                self.net.metrics().channel(account.kind, ChannelOutcome::Overloaded);
                come_back()
            }
        }
    }

    /// Answers a platform that asks for the text of a reply of ours.
    async fn tell_progress(&self, account: &Account, event: InboundEvent) -> Response {
        let id = event.stream.clone().unwrap_or_default();
        let progress = match self.bridge.progress(account, event).await {
            Ok(progress) => progress,
            Err(_) => {
                self.net.metrics().channel(account.kind, ChannelOutcome::Overloaded);
                return come_back();
            }
        };
        self.net.metrics().channel(account.kind, ChannelOutcome::Asked);
        let Some(entropy) = self.entropy.draw() else { return come_back() };
        // What does not fit comes with the finished reply.
        let text = channel::split_text(account.kind, &progress.text).into_iter().next().unwrap_or_default();
        let part = StreamPart { id: &id, text: &text, finished: progress.finished };
        match channel::stream_part(account, &part, unix_ms() / 1_000, entropy) {
            Some(Ok(answer)) => respond(answer),
            Some(Err(_)) | None => come_back(),
        }
    }

    /// Stores the events in their order. All of them are durable before the platform hears of success; a
    /// repetition after a failure half-way meets the dedup keys of those that were stored.
    async fn store(
        &self,
        account: &Account,
        mut events: IntoIter<InboundEvent>,
        ack: Answer,
        started: Instant,
    ) -> Response {
        let metrics = self.net.metrics();
        let mut promised = false;
        let mut next = || {
            let event = events.next()?;
            promised |= event.stream.is_some();
            Some((self.bridge.ingest(account, event), promised))
        };
        while let Some((ingest, promised)) = next() {
            let stored = match ingest {
                Ingest::Known(result) => result,
                Ingest::Storing(waiter) => waiter.await,
                Ingest::Command(outcome) => outcome.await,
            };
            match stored {
                Ok(Ingested::Accepted) => {
                    metrics.webhook_accepted(started.elapsed());
                    metrics.channel(account.kind, ChannelOutcome::Accepted);
                }
                Ok(Ingested::Ignored { why }) => {
                    self.ignore_event(account, why);
                    if promised {
                        // The acknowledgement would promise a reply that never comes.
                        return respond(Answer::ok());
                    }
                }
                Ok(Ingested::Duplicate) => {
                    metrics.rejected(Rejection::Duplicate);
                    metrics.channel(account.kind, ChannelOutcome::Duplicate);
                }
                Err(error) => {
                    metrics.rejected(Rejection::Overloaded);
                    metrics.channel(account.kind, ChannelOutcome::Overloaded);
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
        crash::point("accept.before_ack");
        respond(ack)
    }

    /// Counts an authentic event; whether it is one too many. The platform repeats it later.
    fn channel_is_full(&self, account: &Account) -> bool {
        let live = self.shared.live.now();
        let Some(limit) = &live.rates.channel_events else { return false };
        let meter = self.shared.gateway.meters.of(&super::meter::channel(account.kind.as_str(), &account.name));
        meter.admit(self.now_ns(), limit).is_err()
    }

    fn ignore_event(&self, account: &Account, why: &'static str) {
        self.net.metrics().channel(account.kind, ChannelOutcome::Ignored);
        tracing::debug!(channel = %account.kind, account = %account.name, why, "an event was ignored");
    }

    fn refuse_event(&self, account: &Account, reject: &Reject) {
        let metrics = self.net.metrics();
        metrics.channel(account.kind, ChannelOutcome::from(reject));
        metrics.rejected(match reject {
            Reject::Unauthorized(_) | Reject::Forbidden(_) | Reject::Misconfigured(_) | Reject::KeysNeeded { .. } => {
                Rejection::Signature
            }
            Reject::Stale { .. } => Rejection::Stale,
            Reject::Malformed(_) | Reject::TooLarge(_) | Reject::NotFound(_) => Rejection::Malformed,
        });
        tracing::info!(channel = %account.kind, account = %account.name, reason = %reject, "an event was refused");
    }

    /// The account of an address. The longer addresses exist for Matrix alone.
    fn hook_account(&self, row: &Row, path: &str) -> Option<Arc<Account>> {
        let segments: Segments<'_> = routes::segments(row, path);
        let kind = ChannelKind::parse(segments.get(0))?;
        let plain_address = row.path == routes::HOOK_PATH;
        if !plain_address && kind != ChannelKind::Matrix {
            return None;
        }
        self.shared.live.now().account(kind, segments.get(1)).cloned()
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

fn come_back() -> Response {
    plain(503).header("retry-after", RETRY_AFTER_S.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_for_a_large_body_comes_back_when_it_is_dropped() {
        let places = Rc::new(Cell::new(2));
        let first = LargeBody::take(&places).expect("a place");
        let second = LargeBody::take(&places).expect("a place");
        assert!(LargeBody::take(&places).is_none());
        drop(first);
        assert!(LargeBody::take(&places).is_some_and(|third| {
            drop(third);
            true
        }));
        drop(second);
        assert_eq!(places.get(), 2);
    }
}
