//! Carries out what the deliveries want: states to the store, calls to the platforms.

use std::sync::Arc;
use std::time::Duration;

use millrace_agent::{DeliveryEvent, Fault, Permit, Ticket, Verdict};
use millrace_proto::api::ApiError;
use millrace_proto::channel::{self, Account, ChannelKind, EncodeError, OutboundCall, Secret, access};
use millrace_proto::id::{EffectKey, TenantId};
use millrace_proto::record::{ChatAddress, DeliveryState, OutboxJob};
use millrace_storage::{Batch, CommitError, crash};

use super::errors::storage_error;
use super::inlet::Completion;
use super::state::State;
use super::translate::fault;
use crate::control::platforms::Token;
use crate::control::{CallError, HttpReply};
use crate::shard::Shared;

/// Longest time of one call to a platform.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a job that an operator gave another chance may wait for its delivery.
const RESUBMIT_TTL_MS: u64 = 24 * 3_600_000;
/// When a reply looks again whether a part of it is still on its way.
const DRAFT_LOOK_MS: u64 = 50;
/// Pause before a call that found no room on the control thread.
const BUSY_RETRY_MS: u64 = 500;

/// The parts in which a platform can carry a reply.
pub(super) fn split_reply(address: &ChatAddress, text: &str) -> Vec<String> {
    match ChannelKind::parse(&address.channel) {
        Some(kind) => channel::split_text(kind, text),
        None => vec![text.to_owned()],
    }
}

/// A job with what is known about its peer.
pub(super) fn job_event(job: OutboxJob) -> DeliveryEvent {
    let kind = ChannelKind::parse(&job.address.channel);
    // The delivery has to know before the first call is made. What a platform asks for may be told again.
    let repeatable =
        |kind| channel::recognises_repetition(kind, &job.address) || channel::stream_of(kind, &job.address).is_some();
    let idempotent = kind.is_some_and(repeatable);
    DeliveryEvent::Job { job: Box::new(job), idempotent }
}

/// Writes a job in its state: open ones stay in the outbox, finished ones leave a receipt.
pub(super) fn put(batch: &mut Batch, job: &OutboxJob) {
    match job.state {
        DeliveryState::Pending | DeliveryState::Sending => batch.put_outbox(job),
        DeliveryState::Delivered | DeliveryState::Unknown | DeliveryState::Dead => {
            // The row is needed as well: a dead letter that was never pending is listed with its text.
            batch.put_outbox(job);
            batch.finish_outbox(job.tenant, &job.key, job.state, &job.detail);
        }
    }
}

impl State {
    pub fn deliver_new(&mut self, job: OutboxJob) {
        self.deliver(job_event(job));
    }

    /// The open jobs of this shard's conversations in the order of their making.
    pub fn open_jobs(&self) -> Vec<OutboxJob> {
        let mut jobs = self.open_rows();
        jobs.retain(|job| job.key.step != EffectKey::DRAFT_STEP);
        jobs
    }

    /// The same with the rows of replies that are shown while they are written.
    pub fn open_rows(&self) -> Vec<OutboxJob> {
        match self.shared.store.outbox_open() {
            Ok(mut jobs) => {
                jobs.retain(|job| self.owns(job.tenant, job.key.conversation));
                jobs.sort_by_key(|job| (job.created_ms, job.key));
                jobs
            }
            Err(error) => {
                tracing::error!(shard = self.index, %error, "the outbox cannot be read; its jobs wait for the next start");
                Vec::new()
            }
        }
    }

    /// Writes a state; the event comes at once when the store has no room.
    pub fn commit_job(&mut self, job: OutboxJob) -> Option<DeliveryEvent> {
        self.count(&job);
        let ends = !matches!(job.state, DeliveryState::Pending | DeliveryState::Sending);
        crash::point(if ends { "delivery.before_receipt" } else { "delivery.before_sending" });
        let mut batch = Batch::new();
        match job.state {
            DeliveryState::Pending | DeliveryState::Sending => batch.put_outbox(&job),
            state => {
                batch.finish_outbox(job.tenant, &job.key, state, &job.detail);
                self.end_draft(&job, &mut batch);
            }
        }
        let (key, inlet) = (job.key, Arc::clone(&self.inlet));
        let done = move |result: Result<u64, CommitError>| {
            if ends {
                crash::point("delivery.after_receipt");
            }
            if let Err(error) = &result {
                tracing::warn!(%error, effect = %key, "the state of a delivery was not written; it is tried again");
            }
            inlet.complete(Completion::Committed { key, durable: result.is_ok() });
        };
        let refused = self.shared.store.submit(batch, Box::new(done)).is_err();
        refused.then_some(DeliveryEvent::Committed { key, durable: false })
    }

    fn count(&self, job: &OutboxJob) {
        let metrics = self.shared.metrics.shard(self.index);
        let (effect, account, detail) = (job.key, &job.address.account, &job.detail);
        match job.state {
            DeliveryState::Sending => {}
            DeliveryState::Pending => {
                metrics.delivery_retried();
                tracing::info!(%effect, account, attempt = job.attempt, detail, "a delivery failed and is tried again");
            }
            DeliveryState::Delivered => {
                metrics.delivered(Duration::from_millis(self.clock.now_ms().saturating_sub(job.created_ms)));
            }
            DeliveryState::Dead => {
                metrics.delivery_dead();
                tracing::warn!(%effect, account, detail, "a delivery was given up; `millrace outbox` lists it");
            }
            DeliveryState::Unknown => {
                metrics.delivery_unknown();
                tracing::warn!(%effect, account, detail, "nobody can tell whether a delivery happened; `millrace outbox` lists it");
            }
        }
    }

    /// Whether a job may go out now: its account is there, its token is good, its buckets are not empty.
    pub fn permit(&mut self, job: &OutboxJob) -> DeliveryEvent {
        DeliveryEvent::Permit { key: job.key, permit: self.permission(job).unwrap_or_else(|refused| refused) }
    }

    fn permission(&mut self, job: &OutboxJob) -> Result<Permit, Permit> {
        let account = account(&self.shared, job).map_err(|why| Permit::Never { why })?;
        if let Some(permit) = self.permit_to_tell(&account, job) {
            return Ok(permit);
        }
        if self.draft_is_busy(job) {
            return Ok(Permit::Later { after_ms: DRAFT_LOOK_MS, why: String::new() });
        }
        let (call, _) = self.encoded(&account, job)?;
        match self.shared.pace.admit(&account, &job.address.chat) {
            Ok(()) => Ok(Permit::Now { idempotent: call.idempotent }),
            Err(wait) => {
                let after_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
                Ok(Permit::Later { after_ms, why: String::new() })
            }
        }
    }

    /// The call of a job with the token that it used, if it needs one.
    fn encoded(&self, account: &Account, job: &OutboxJob) -> Result<(OutboundCall, Option<Secret>), Permit> {
        let now_s = self.clock.now_ms() / 1_000;
        let never = |error: EncodeError| Permit::Never { why: error.to_string() };
        let message = self.draft_message(job);
        let encode = |token: Option<&str>| match message {
            None => channel::encode_reply(account, job, token, now_s),
            Some(id) => channel::encode_edit(account, job, id, token, now_s),
        };
        // Some replies go to an address of their own, or are authorised by a token that does not end.
        let refused = match encode(None) {
            Ok(call) => return Ok((call, None)),
            Err(error) => error,
        };
        if !access::needed(account.kind) {
            return Err(never(refused));
        }
        match self.shared.platforms.token(account) {
            Token::Impossible(why) => Err(Permit::Never { why }),
            Token::Wait { after_ms, why } => Err(Permit::Later { after_ms, why }),
            Token::Ready(token) => {
                let call = encode(token.text()).map_err(never)?;
                Ok((call, Some(token)))
            }
        }
    }

    /// Makes the call; the event comes at once when it cannot be made, or when the platform has asked.
    pub fn call_peer(&mut self, job: &OutboxJob) -> Option<DeliveryEvent> {
        let key = job.key;
        let answer = |verdict| Some(DeliveryEvent::Called { key, verdict });
        let account = match account(&self.shared, job) {
            Ok(account) => account,
            Err(why) => return answer(Verdict::Dead { why }),
        };
        if let Some(event) = self.tell_finished(&account, job) {
            return Some(event);
        }
        let (call, token) = match self.encoded(&account, job) {
            Ok(encoded) => encoded,
            // The token ended between the question and the call: nothing has left.
            Err(Permit::Later { after_ms, why }) => {
                return answer(Verdict::Retry { after_ms: Some(after_ms), why });
            }
            Err(Permit::Never { why }) => return answer(Verdict::Dead { why }),
            Err(Permit::Now { .. }) => unreachable!("not a refusal"),
        };
        let (inlet, platforms, owner) =
            (Arc::clone(&self.inlet), self.shared.platforms.clone(), token.map(|token| (account.clone(), token)));
        let kind = account.kind;
        let (shared, called, chat) = (Arc::clone(&self.shared), account.clone(), job.address.chat.clone());
        let edits = self.draft_message(job).is_some();
        let done = move |result: Result<HttpReply, CallError>| {
            let told = result.as_ref().ok().map(|reply| classify(kind, reply));
            if let Some(delivery) = &told {
                shared.pace.heed(&called, &chat, delivery);
            }
            let refused = matches!(told, Some(channel::Delivery::TokenRefused { .. }));
            let renewable = owner.as_ref().is_some_and(|(account, _)| account.bot_token.is_none());
            if let (true, Some((account, token))) = (refused && renewable, &owner) {
                platforms.token_refused(account, token);
            }
            let verdict = verdict(kind, result, renewable);
            inlet.complete(match verdict {
                // The message was taken away, or may not be changed any more.
                Verdict::Dead { why } if edits => Completion::DraftGone { key, why },
                verdict => Completion::Called { key, verdict },
            });
        };
        crash::point("delivery.before_call");
        match self.shared.control.http(call, CALL_TIMEOUT, Box::new(done)) {
            Ok(()) => None,
            Err(busy) => {
                let verdict = Verdict::Retry { after_ms: Some(BUSY_RETRY_MS), why: busy.to_string() };
                Some(DeliveryEvent::Called { key, verdict })
            }
        }
    }

    pub fn called(&mut self, key: EffectKey, verdict: Verdict) {
        crash::point("delivery.after_call");
        self.deliver(DeliveryEvent::Called { key, verdict });
    }

    /// The message that a reply was to replace cannot be changed: it goes out as one of its own.
    pub fn draft_gone(&mut self, key: EffectKey, why: String) {
        self.draft_is_lost(&key);
        self.called(key, Verdict::Retry { after_ms: None, why });
    }

    /// Gives a dead or unknown delivery another chance.
    pub fn resubmit(&mut self, ticket: Ticket, tenant: TenantId, key: EffectKey) {
        match self.revived(tenant, key) {
            Err(error) => self.answer_resubmit(ticket, Err(error)),
            Ok(job) => {
                let mut batch = Batch::new();
                batch.put_outbox(&job);
                let inlet = Arc::clone(&self.inlet);
                let written = Box::new(job);
                let done = move |result: Result<u64, CommitError>| {
                    let result = result.map(drop).map_err(fault);
                    inlet.complete(Completion::Resubmitted { ticket: ticket.0, job: written, result });
                };
                match self.shared.store.submit(batch, Box::new(done)) {
                    Ok(()) => self.count_resubmitting(1),
                    Err(_) => self.answer_resubmit(ticket, Err(storage_error(&Fault::Busy))),
                }
            }
        }
    }

    fn revived(&self, tenant: TenantId, key: EffectKey) -> Result<OutboxJob, ApiError> {
        let found = self.shared.store.outbox_job(tenant, &key).map_err(|error| {
            tracing::error!(%error, "an outbox job cannot be read");
            storage_error(&Fault::Io(String::new()))
        })?;
        let Some(job) = found else {
            return Err(ApiError::not_found(format!("There is no delivery {key}.")));
        };
        if !matches!(job.state, DeliveryState::Dead | DeliveryState::Unknown) {
            let message =
                format!("The delivery {key} is {}; only dead and unknown ones can be sent again.", job.state.as_str());
            return Err(ApiError::new(409, "invalid_request_error", "delivery_not_finished", message));
        }
        let now_ms = self.clock.now_ms();
        Ok(OutboxJob {
            state: DeliveryState::Pending,
            attempt: 0,
            due_ms: now_ms,
            expires_ms: now_ms + RESUBMIT_TTL_MS,
            detail: format!("resubmitted; before: {}", job.detail),
            ..job
        })
    }

    pub fn resubmit_stored(&mut self, ticket: Ticket, job: OutboxJob, result: Result<(), Fault>) {
        self.count_resubmitting(-1);
        if result.is_ok() {
            self.deliver_new(job);
        }
        self.answer_resubmit(ticket, result.map_err(|fault| storage_error(&fault)));
    }
}

fn account(shared: &Shared, job: &OutboxJob) -> Result<Arc<Account>, String> {
    let address = &job.address;
    account_of(shared, job.tenant, address).ok_or_else(|| {
        format!(
            "the account {:?} of channel {:?} is not configured any more; configure it and resubmit",
            address.account, address.channel
        )
    })
}

/// The account of an address, as it is configured now.
pub(super) fn account_of(shared: &Shared, tenant: TenantId, address: &ChatAddress) -> Option<Arc<Account>> {
    shared.live.now().account_of(tenant, address).cloned()
}

fn retry_after(reply: &HttpReply) -> Option<&str> {
    reply.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("retry-after")).map(|(_, value)| value.as_str())
}

pub(super) fn classify(kind: ChannelKind, reply: &HttpReply) -> channel::Delivery {
    let answered = channel::Answered { status: reply.status, retry_after: retry_after(reply), body: &reply.body };
    channel::classify(kind, &answered)
}

/// What an answer, or its absence, means for the delivery. A refused token is a reason to try again when a new
/// one can be fetched.
fn verdict(kind: ChannelKind, result: Result<HttpReply, CallError>, renewable: bool) -> Verdict {
    match result {
        Ok(reply) => match classify(kind, &reply) {
            channel::Delivery::Delivered { receipt } => Verdict::Delivered { receipt: receipt.unwrap_or_default() },
            channel::Delivery::Dead { why } => Verdict::Dead { why },
            channel::Delivery::TokenRefused { why } if renewable => Verdict::Retry { after_ms: None, why },
            channel::Delivery::TokenRefused { why } => Verdict::Dead { why },
            channel::Delivery::Unknown { why } => Verdict::Ambiguous { why },
            channel::Delivery::Retry { after, why } => Verdict::Retry {
                after_ms: after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
                why,
            },
        },
        Err(CallError::Invalid(why)) => Verdict::Dead { why },
        Err(error) if error.may_have_been_sent() => Verdict::Ambiguous { why: error.to_string() },
        Err(error) => Verdict::Retry { after_ms: None, why: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_sent_is_ambiguous_and_what_was_not_is_tried_again() {
        let kind = ChannelKind::Telegram;
        let sent = verdict(kind, Err(CallError::Timeout(CALL_TIMEOUT)), false);
        assert!(matches!(sent, Verdict::Ambiguous { .. }), "{sent:?}");
        let unsent = verdict(kind, Err(CallError::Connect("refused".into())), false);
        assert!(matches!(unsent, Verdict::Retry { .. }), "{unsent:?}");
        let headers = vec![("Retry-After".to_owned(), "7".to_owned())];
        let limited =
            verdict(ChannelKind::StandardWebhooks, Ok(HttpReply { status: 429, headers, body: Vec::new() }), false);
        assert!(matches!(limited, Verdict::Retry { after_ms: Some(7_000), .. }), "{limited:?}");
    }
    #[test]
    fn a_refused_token_is_final_unless_another_can_be_fetched() {
        let refusal = || {
            let body = br#"{"code":99991663,"msg":"Invalid access token"}"#.to_vec();
            Ok(HttpReply { status: 401, headers: Vec::new(), body })
        };
        assert!(matches!(verdict(ChannelKind::GoogleChat, refusal(), true), Verdict::Retry { .. }));
        assert!(matches!(verdict(ChannelKind::GoogleChat, refusal(), false), Verdict::Dead { .. }));
    }
}
