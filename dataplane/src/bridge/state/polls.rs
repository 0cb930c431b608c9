//! Replies that the platform fetches: it asks for the text so far, about once a second, until it is told that
//! nothing will follow.
//!
//! The finished reply is a delivery like any other: a job of the outbox, which goes out when its platform asks for
//! it, or by a call of ours when the platform has stopped asking. Which of the two it was must survive a crash:
//!
//! - The job is written as under way before its text is told, by either way.
//! - Asking again is harmless, so a job that a process left under way is told to whoever asks. It never makes a
//!   call of its own: the earlier process may have told it. When nobody asks, its fate is unknown.

use std::time::Duration;

use millrace_agent::{DeliveryEvent, Permit, Ticket, Verdict};
use millrace_proto::api::ApiError;
use millrace_proto::channel::{self, Account, ChannelKind, InboundEvent};
use millrace_proto::id::{EffectKey, virtual_shard};
use millrace_proto::record::{ChatAddress, DeliveryState, OutboxJob};

use super::{State, Waiter};
use crate::bridge::message::ShardMessage;
use crate::bridge::outbox::account_of;
use crate::bridge::stream::Once;
use crate::bridge::translate::shard_of;
use crate::bridge::{Bridge, channel_key};

/// Replies of one shard that may be asked for; further ones go out by calls of ours.
const STREAMS_MAX: usize = 16_384;
/// WeCom stops asking six minutes after the first question. A reply must be told before.
const ASKED_MS_MAX: u64 = 330_000;
/// How long a told reply is kept for a platform that did not get the answer.
const KEPT_MS: u64 = 360_000;
/// A platform that has not asked for this long will not ask again.
const SILENT_MS: u64 = 10_000;
/// How long a question may wait for a reply that is being settled. WeCom waits five seconds.
const HOLD_MS: u64 = 2_000;
/// When a reply looks again whether it was asked for.
const LOOK_MS: u64 = 50;
/// Bounds a question whose owner does not answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// The account and the name of a stream.
pub(super) type StreamName = (ChannelKind, String, String);

/// One reply that is asked for.
#[derive(Debug)]
pub(super) struct Polled {
    /// The reply in the making, while it is made.
    draft: Option<EffectKey>,
    /// What was written when the making ended, then what was told.
    text: String,
    began_ms: u64,
    asked_ms: u64,
    /// A question that waits, and until when.
    waiting: Option<(Ticket, u64)>,
    told: bool,
    /// The reply was under way when an earlier process ended.
    inherited: bool,
}

impl Polled {
    fn new(now_ms: u64) -> Self {
        Self {
            draft: None,
            text: String::new(),
            began_ms: now_ms,
            asked_ms: now_ms,
            waiting: None,
            told: false,
            inherited: false,
        }
    }

    /// Whether the platform may still ask.
    fn listens(&self, now_ms: u64) -> bool {
        !self.told
            && now_ms.saturating_sub(self.began_ms) < ASKED_MS_MAX
            && now_ms.saturating_sub(self.asked_ms) < SILENT_MS
    }
}

/// The text of a reply, as far as there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// All of it so far.
    pub text: String,
    /// Whether nothing will follow.
    pub finished: bool,
}

impl Bridge {
    /// The text so far of the reply that a platform asks for.
    pub async fn progress(&self, account: &Account, event: InboundEvent) -> Result<Progress, ApiError> {
        let stream = event.stream.clone().unwrap_or_default();
        let key = channel_key(account, &event);
        let waiter: Once<Progress> = Once::default();
        let ticket = {
            let mut state = self.state.borrow_mut();
            let ticket = state.open_ticket(Waiter::Progress(waiter.clone()))?;
            let name = (account.kind, account.name.clone(), stream);
            let owner = self.shared.shard_of(virtual_shard(key.tenant, key.conversation));
            if owner == state.index {
                state.asked(ticket, name);
            } else {
                state.send_request(owner, ticket, ShardMessage::Progress { ticket, stream: name })?;
            }
            ticket
        };
        monoio::time::timeout(ANSWER_WITHIN, waiter).await.map_err(|_| {
            self.state.borrow_mut().waiters.remove(&ticket);
            ApiError::overloaded("The owner of this conversation has too much work.", 1)
        })
    }
}

impl State {
    /// A platform asks for the text of a reply.
    pub(in crate::bridge) fn asked(&mut self, ticket: Ticket, name: StreamName) {
        let now_ms = self.clock.now_ms();
        let full = self.polls.len() >= STREAMS_MAX;
        let Some(polled) = stream_entry(&mut self.polls, &name, full, now_ms) else {
            return self.answer_progress(ticket, Progress { text: String::new(), finished: false });
        };
        polled.asked_ms = now_ms;
        let earlier = polled.waiting.take();
        let writing = polled.draft.and_then(|key| self.drafts.get(&key)).map(|draft| draft.text.trim_end().to_owned());
        let (answer, known) = match (polled.told, writing) {
            (true, _) => (Progress { text: polled.text.clone(), finished: true }, true),
            (false, Some(text)) => (Progress { text, finished: false }, true),
            (false, None) => (Progress { text: polled.text.clone(), finished: false }, false),
        };
        // Nothing is being written: the finished reply may be about to come.
        if !known && (polled.draft.is_some() || polled.inherited) {
            polled.waiting = Some((ticket, now_ms + HOLD_MS));
        } else {
            self.answer_progress(ticket, answer.clone());
        }
        if let Some((earlier, _)) = earlier {
            self.answer_progress(earlier, answer);
        }
    }

    /// A reply begins that the platform will ask for.
    pub(super) fn expect_questions(&mut self, key: EffectKey, account: &Account, address: &ChatAddress) {
        let Some(name) = stream_name(account, address) else { return };
        let (now_ms, full) = (self.clock.now_ms(), self.polls.len() >= STREAMS_MAX);
        if let Some(polled) = stream_entry(&mut self.polls, &name, full, now_ms) {
            polled.draft = Some(key);
        }
    }

    /// The making of a reply has ended; its finished text comes through the outbox.
    pub(super) fn keep_for_questions(&mut self, key: EffectKey) {
        let Some(draft) = self.drafts.get(&key) else { return };
        let Some(account) = account_of(&self.shared, draft.tenant, &draft.address) else { return };
        let Some(name) = stream_name(&account, &draft.address) else { return };
        let text = draft.text.trim_end().to_owned();
        if let Some(polled) = self.polls.get_mut(&name) {
            polled.text = text;
        }
    }

    /// Whether a finished reply waits to be asked for, or may be told now. `None` when our own call is the way.
    pub(in crate::bridge) fn permit_to_tell(&mut self, account: &Account, job: &OutboxJob) -> Option<Permit> {
        let name = stream_name(account, &job.address)?;
        let (now_ms, full) = (self.clock.now_ms(), self.polls.len() >= STREAMS_MAX);
        let polled = stream_entry(&mut self.polls, &name, full, now_ms)?;
        if polled.told {
            return None;
        }
        if job.state == DeliveryState::Sending {
            polled.inherited = true;
        }
        if polled.waiting.is_some() || (polled.inherited && !polled.listens(now_ms)) {
            // Its state is written before it is told, as before a call.
            return Some(Permit::Now { idempotent: false });
        }
        // A command is answered without a draft: from now on questions wait for its end.
        polled.draft.get_or_insert(EffectKey { step: EffectKey::DRAFT_STEP, ..job.key });
        polled.listens(now_ms).then(|| Permit::Later { after_ms: LOOK_MS, why: String::new() })
    }

    /// Tells a finished reply to the platform that asks for it. `None` when our own call is the way.
    pub(in crate::bridge) fn tell_finished(&mut self, account: &Account, job: &OutboxJob) -> Option<DeliveryEvent> {
        let name = stream_name(account, &job.address)?;
        let now_ms = self.clock.now_ms();
        let polled = self.polls.get_mut(&name).filter(|polled| !polled.told)?;
        let verdict = if polled.waiting.is_some() || polled.listens(now_ms) {
            // A question that has just been given up comes again, and finds the text here.
            (polled.told, polled.asked_ms) = (true, now_ms);
            polled.text.clone_from(&job.text);
            if let Some((ticket, _)) = polled.waiting.take() {
                self.answer_progress(ticket, Progress { text: job.text.clone(), finished: true });
            }
            Verdict::Delivered { receipt: name.2 }
        } else if polled.inherited {
            let why = "the process ended while the platform was being told, and it has not asked again".to_owned();
            Verdict::Ambiguous { why }
        } else {
            return None;
        };
        Some(DeliveryEvent::Called { key: job.key, verdict })
    }

    /// Answers questions that have waited long enough and forgets replies of long ago.
    pub(in crate::bridge) fn tick_polls(&mut self, now_ms: u64) {
        let mut late = Vec::new();
        self.polls.retain(|_, polled| {
            if let Some((ticket, _)) = polled.waiting.take_if(|(_, until_ms)| *until_ms <= now_ms) {
                late.push((ticket, Progress { text: polled.text.clone(), finished: false }));
            }
            now_ms.saturating_sub(polled.asked_ms) < KEPT_MS
        });
        for (ticket, progress) in late {
            self.answer_progress(ticket, progress);
        }
    }

    fn answer_progress(&mut self, ticket: Ticket, progress: Progress) {
        let shard = shard_of(ticket);
        if shard == self.index {
            self.progressed(ticket, progress);
        } else {
            self.send_answer(shard, ShardMessage::Progressed { ticket, progress });
        }
    }

    /// The owner has answered a question of this shard's connections.
    pub(in crate::bridge) fn progressed(&mut self, ticket: Ticket, progress: Progress) {
        if let Some(Waiter::Progress(waiter)) = self.waiters.remove(&ticket) {
            waiter.put(progress);
        }
    }
}

fn stream_name(account: &Account, address: &ChatAddress) -> Option<StreamName> {
    let stream = channel::stream_of(account.kind, address)?;
    Some((account.kind, account.name.clone(), stream.to_owned()))
}

/// The entry of a stream, a new one when there is room.
fn stream_entry<'a>(
    polls: &'a mut std::collections::HashMap<StreamName, Polled>,
    name: &StreamName,
    full: bool,
    now_ms: u64,
) -> Option<&'a mut Polled> {
    if full {
        return polls.get_mut(name);
    }
    Some(polls.entry(name.clone()).or_insert_with(|| Polled::new(now_ms)))
}
