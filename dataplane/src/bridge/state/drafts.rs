//! Replies that are shown in a chat while they are written.
//!
//! What is shown before a reply is finished is a comfort, not the reply: the finished text always goes out
//! through the outbox. Three rules keep both apart and in order:
//!
//! - Before the first part leaves, a row of the outbox under the step [`EffectKey::DRAFT_STEP`] says so, and
//!   when the platform has named the message, the row holds its id. A process that starts again finds the
//!   message and goes on in it.
//! - The finished reply waits for the call that is under way, then replaces the text of that message. An edit
//!   may be repeated, so nothing can be doubled by it. When the message is lost (its id never came, or
//!   somebody deleted it) the reply goes out as a message of its own.
//! - One call at a time, and none while the platform or our own rate says no: text gathers, edits never do.
//!   They also leave the last place of a bucket to finished replies.

use std::sync::Arc;
use std::time::Duration;

use millrace_agent::DraftPart;
use millrace_proto::channel::cadence::{Cadence, Step};
use millrace_proto::channel::{self, Account, EncodeError, OutboundCall, Outgoing, Secret, access};
use millrace_proto::id::{EffectKey, TenantId};
use millrace_proto::record::{ChatAddress, DeliveryState, OutboxJob};
use millrace_storage::{Batch, CommitError, crash};

use super::State;
use crate::bridge::inlet::Completion;
use crate::bridge::outbox::{account_of, classify};
use crate::control::platforms::Token;
use crate::control::{CallError, HttpReply};

/// Replies of one shard that are shown while they are written; further ones come finished.
const DRAFTS_MAX: usize = 4_096;
/// Longest time of a call that only shows something.
const SHOW_TIMEOUT: Duration = Duration::from_secs(10);
/// Within this time the finished reply of a draft is on its way.
const FOLLOWS_MS: u64 = 2_000;
/// When a draft that found no room on the control thread, or no token, looks again.
const LOOK_AGAIN_MS: u64 = 500;

/// One reply in the making.
pub(in crate::bridge) struct Draft {
    pub(super) tenant: TenantId,
    pub(super) address: ChatAddress,
    created_ms: u64,
    pub(super) text: String,
    cadence: Cadence,
    shown: Shown,
    busy: bool,
    ended: bool,
    ended_ms: u64,
    wake_ms: Option<u64>,
}

/// What the chat shows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    /// A message whose id is known.
    Message(String),
    /// Perhaps a message, and no way to change it.
    Lost,
}

/// What became of a call that showed something.
#[derive(Debug)]
pub(in crate::bridge) enum DraftAnswer {
    /// The row that announces the first part.
    Announced { durable: bool },
    /// The first part.
    Sent(channel::Delivery),
    /// A change of it.
    Edited(channel::Delivery),
}

impl State {
    /// Takes up a part of a reply.
    pub(in crate::bridge) fn draft(&mut self, tenant: TenantId, key: EffectKey, part: DraftPart) {
        match part {
            DraftPart::Begun { address } => self.draft_begun(tenant, key, *address),
            DraftPart::Text(text) => {
                if let Some(draft) = self.drafts.get_mut(&key) {
                    draft.text.push_str(&text);
                }
                self.step_draft(key);
            }
            DraftPart::Ended => {
                let now_ms = self.clock.now_ms();
                self.keep_for_questions(key);
                if let Some(draft) = self.drafts.get_mut(&key) {
                    (draft.ended, draft.ended_ms) = (true, now_ms);
                    self.forget_empty_draft(key);
                }
            }
        }
    }

    fn draft_begun(&mut self, tenant: TenantId, key: EffectKey, address: ChatAddress) {
        let Some(account) = account_of(&self.shared, tenant, &address) else { return };
        let now_ms = self.clock.now_ms();
        self.expect_questions(key, &account, &address);
        let mut cadence = Cadence::new(account.kind.spec().streaming, now_ms);
        // A turn that begins again after a crash goes on in the message of its first beginning.
        let shown = self.drafts.remove(&key).map_or(Shown::Nothing, |draft| draft.shown);
        match &shown {
            Shown::Nothing if !account.stream || self.drafts.len() >= DRAFTS_MAX => cadence.only_typing(),
            Shown::Nothing => {}
            Shown::Message(_) => cadence.already_sent(),
            Shown::Lost => cadence.only_typing(),
        }
        let draft = Draft {
            tenant,
            address,
            created_ms: now_ms,
            text: String::new(),
            cadence,
            shown,
            busy: false,
            ended: false,
            ended_ms: 0,
            wake_ms: None,
        };
        self.drafts.insert(key, draft);
        self.step_draft(key);
    }

    /// Drafts with a call under way, and those whose finished reply is just about to follow: what a drain waits
    /// for.
    pub(in crate::bridge) fn open_drafts(&self) -> usize {
        let now_ms = self.clock.now_ms();
        let follows = |draft: &Draft| draft.ended && now_ms.saturating_sub(draft.ended_ms) < FOLLOWS_MS;
        self.drafts.values().filter(|draft| draft.busy || follows(draft)).count()
    }

    /// Drafts whose time has come.
    pub(in crate::bridge) fn tick_drafts(&mut self, now_ms: u64) {
        let due = |draft: &Draft| draft.wake_ms.is_some_and(|at| at <= now_ms);
        let keys: Vec<EffectKey> = self.drafts.iter().filter(|(_, draft)| due(draft)).map(|(key, _)| *key).collect();
        for key in keys {
            self.step_draft(key);
        }
    }

    fn step_draft(&mut self, key: EffectKey) {
        loop {
            let now_ms = self.clock.now_ms();
            let Some(draft) = self.drafts.get_mut(&key) else { return };
            if draft.ended || draft.busy {
                return;
            }
            let length = draft.text.trim_end().len();
            let step = draft.cadence.step(length, now_ms);
            draft.wake_ms = match step {
                Step::Wait(at) => at,
                _ => None,
            };
            match step {
                Step::Wait(_) => return,
                Step::Typing => self.show_typing(key),
                Step::Send => self.announce_draft(key, now_ms),
                Step::Edit => self.edit_draft(key, now_ms),
            }
        }
    }

    fn show_typing(&mut self, key: EffectKey) {
        let Some(draft) = self.drafts.get(&key) else { return };
        let Some(account) = account_of(&self.shared, draft.tenant, &draft.address) else { return };
        let Ok(Some(call)) = self.authorised(&account, |token| {
            channel::typing(&outgoing(&account, draft, &key, "", token, self.clock.now_ms())).transpose()
        }) else {
            return;
        };
        // Whether anybody saw the sign changes nothing.
        let _ = self.shared.control.http(call, SHOW_TIMEOUT, Box::new(|_| {}));
    }

    /// The first part: first the row that says that it goes out.
    fn announce_draft(&mut self, key: EffectKey, now_ms: u64) {
        let Some(draft) = self.drafts.get(&key) else { return };
        let Some(account) = account_of(&self.shared, draft.tenant, &draft.address) else { return };
        let editable = self.authorised(&account, |token| {
            let out = outgoing(&account, draft, &key, "x", token, now_ms);
            Ok(channel::shows_growth(&out))
        });
        match editable {
            Ok(true) => {}
            // This chat cannot be shown a growing message.
            Ok(false) | Err(None) => return self.with_cadence(key, Cadence::only_typing),
            Err(Some(after_ms)) => return self.with_cadence(key, |cadence| cadence.postpone(now_ms + after_ms)),
        }
        if let Err(wait) = self.shared.pace.admit_extra(&account, &draft.address.chat) {
            let at = now_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)).saturating_add(1);
            return self.with_cadence(key, |cadence| cadence.postpone(at));
        }
        crash::point("draft.before_row");
        let row = row(draft, key, String::new());
        let mut batch = Batch::new();
        batch.put_outbox(&row);
        let inlet = Arc::clone(&self.inlet);
        let done = move |result: Result<u64, CommitError>| {
            inlet.complete(Completion::Draft { key, answer: DraftAnswer::Announced { durable: result.is_ok() } });
        };
        if self.shared.store.submit(batch, Box::new(done)).is_err() {
            return self.with_cadence(key, |cadence| cadence.postpone(now_ms + LOOK_AGAIN_MS));
        }
        if let Some(draft) = self.drafts.get_mut(&key) {
            draft.busy = true;
        }
    }

    fn edit_draft(&mut self, key: EffectKey, now_ms: u64) {
        let Some(draft) = self.drafts.get(&key) else { return };
        let Some(account) = account_of(&self.shared, draft.tenant, &draft.address) else { return };
        let Shown::Message(id) = &draft.shown else { return self.with_cadence(key, Cadence::only_typing) };
        if let Err(wait) = self.shared.pace.admit_extra(&account, &draft.address.chat) {
            let after_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
            return self.with_cadence(key, |cadence| cadence.done(false, Some(after_ms), now_ms));
        }
        let text = first_part(&account, &draft.text);
        let call = self.authorised(&account, |token| {
            channel::edit(&outgoing(&account, draft, &key, &text, token, now_ms), id).transpose()
        });
        match call {
            Ok(Some(call)) => self.show(key, &account, call, DraftAnswer::Edited),
            Ok(None) | Err(None) => self.with_cadence(key, Cadence::only_typing),
            Err(Some(after_ms)) => self.with_cadence(key, |cadence| cadence.done(false, Some(after_ms), now_ms)),
        }
    }

    /// Makes a call that shows something.
    fn show(
        &mut self,
        key: EffectKey,
        account: &Arc<Account>,
        call: OutboundCall,
        wrap: fn(channel::Delivery) -> DraftAnswer,
    ) {
        let Some(draft) = self.drafts.get_mut(&key) else { return };
        draft.busy = true;
        let (inlet, shared) = (Arc::clone(&self.inlet), Arc::clone(&self.shared));
        let (called, chat) = (Arc::clone(account), draft.address.chat.clone());
        let done = move |result: Result<HttpReply, CallError>| {
            let answer = wrap(match result {
                Ok(reply) => {
                    let answer = classify(called.kind, &reply);
                    shared.pace.heed(&called, &chat, &answer);
                    answer
                }
                Err(error) if error.may_have_been_sent() => channel::Delivery::Unknown { why: error.to_string() },
                Err(error) => channel::Delivery::Retry { after: None, why: error.to_string() },
            });
            inlet.complete(Completion::Draft { key, answer });
        };
        if self.shared.control.http(call, SHOW_TIMEOUT, Box::new(done)).is_err() {
            let why = "too many calls are waiting".to_owned();
            let after = Some(Duration::from_millis(LOOK_AGAIN_MS));
            self.draft_answered(key, wrap(channel::Delivery::Retry { after, why }));
        }
    }

    /// Takes in what became of a call.
    pub(in crate::bridge) fn draft_answered(&mut self, key: EffectKey, answer: DraftAnswer) {
        let now_ms = self.clock.now_ms();
        let Some(draft) = self.drafts.get_mut(&key) else { return };
        draft.busy = false;
        match answer {
            DraftAnswer::Announced { durable: false } => draft.cadence.postpone(now_ms + LOOK_AGAIN_MS),
            DraftAnswer::Announced { durable: true } => return self.send_draft(key, now_ms),
            DraftAnswer::Sent(delivery) => {
                crash::point("draft.after_send");
                self.draft_sent(key, delivery, now_ms);
            }
            DraftAnswer::Edited(delivery) => match delivery {
                channel::Delivery::Delivered { .. } => draft.cadence.done(true, None, now_ms),
                channel::Delivery::Retry { after, .. } => {
                    let after_ms = after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
                    draft.cadence.done(false, after_ms, now_ms);
                }
                // The finished reply will find out what is the matter.
                _ => draft.cadence.only_typing(),
            },
        }
        self.forget_empty_draft(key);
        self.step_draft(key);
    }

    fn send_draft(&mut self, key: EffectKey, now_ms: u64) {
        crash::point("draft.before_send");
        let Some(draft) = self.drafts.get(&key) else { return };
        let Some(account) = account_of(&self.shared, draft.tenant, &draft.address) else { return };
        let text = first_part(&account, &draft.text);
        let call = self.authorised(&account, |token| {
            channel::send(&outgoing(&account, draft, &key, &text, token, now_ms)).map(Some)
        });
        match call {
            Ok(Some(call)) if !draft.ended => self.show(key, &account, call, DraftAnswer::Sent),
            // Nothing has left, and the row says otherwise.
            _ => self.draft_sent(key, channel::Delivery::Dead { why: "it cannot be sent".to_owned() }, now_ms),
        }
        self.forget_empty_draft(key);
    }

    fn draft_sent(&mut self, key: EffectKey, delivery: channel::Delivery, now_ms: u64) {
        let Some(draft) = self.drafts.get_mut(&key) else { return };
        let mut batch = Batch::new();
        match delivery {
            channel::Delivery::Delivered { receipt: Some(id) } => {
                draft.shown = Shown::Message(id.clone());
                draft.cadence.done(true, None, now_ms);
                batch.put_outbox(&row(draft, key, id));
            }
            channel::Delivery::Delivered { receipt: None } | channel::Delivery::Unknown { .. } => {
                draft.shown = Shown::Lost;
                return draft.cadence.only_typing();
            }
            channel::Delivery::Retry { after, .. } => {
                let after_ms =
                    after.map_or(LOOK_AGAIN_MS, |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
                draft.cadence.postpone(now_ms.saturating_add(after_ms));
                batch.remove_outbox(draft.tenant, &key);
            }
            channel::Delivery::TokenRefused { .. } | channel::Delivery::Dead { .. } => {
                draft.cadence.only_typing();
                batch.remove_outbox(draft.tenant, &key);
            }
        }
        // A row that is not written says less than it could, which only costs the message its growth.
        if let Err(busy) = self.shared.store.submit(batch, Box::new(|_| {})) {
            tracing::debug!(%busy, effect = %key, "the row of a growing message was not written");
        }
    }

    /// Whether the finished reply must wait for a call that shows a part of it.
    pub(in crate::bridge) fn draft_is_busy(&self, job: &OutboxJob) -> bool {
        job.key.step == 0 && self.drafts.get(&draft_key(&job.key)).is_some_and(|draft| draft.busy)
    }

    /// The message that the finished reply replaces.
    pub(in crate::bridge) fn draft_message(&self, job: &OutboxJob) -> Option<&str> {
        if job.key.step != 0 {
            return None;
        }
        match &self.drafts.get(&draft_key(&job.key))?.shown {
            Shown::Message(id) => Some(id),
            Shown::Nothing | Shown::Lost => None,
        }
    }

    /// The message cannot be changed any more: the reply goes out as one of its own.
    pub(in crate::bridge) fn draft_is_lost(&mut self, key: &EffectKey) {
        if let Some(draft) = self.drafts.get_mut(&draft_key(key)) {
            draft.shown = Shown::Lost;
        }
    }

    /// The finished reply has reached its end: its draft leaves with it.
    pub(in crate::bridge) fn end_draft(&mut self, job: &OutboxJob, batch: &mut Batch) {
        if job.key.step == 0
            && let Some(draft) = self.drafts.remove(&draft_key(&job.key))
        {
            batch.remove_outbox(draft.tenant, &draft_key(&job.key));
        }
    }

    /// The rows of an earlier process; those whose reply is settled are removed.
    pub(in crate::bridge) fn resume_drafts(&mut self, rows: Vec<OutboxJob>, settled: Vec<OutboxJob>) {
        let now_ms = self.clock.now_ms();
        let mut removed = Batch::new();
        let mut remove = |row: &OutboxJob| removed.remove_outbox(row.tenant, &row.key);
        settled.iter().for_each(&mut remove);
        for row in rows {
            if self.drafts.len() >= DRAFTS_MAX {
                remove(&row);
                continue;
            }
            let shown = if row.detail.is_empty() { Shown::Lost } else { Shown::Message(row.detail) };
            let mut cadence = Cadence::new(channel::Streaming::Final, now_ms);
            cadence.only_typing();
            let draft = Draft {
                tenant: row.tenant,
                address: row.address,
                created_ms: row.created_ms,
                text: String::new(),
                cadence,
                shown,
                busy: false,
                ended: true,
                ended_ms: 0,
                wake_ms: None,
            };
            self.drafts.insert(row.key, draft);
        }
        let count = removed.len();
        if count > 0 && self.shared.store.submit(removed, Box::new(|_| {})).is_err() {
            tracing::debug!(count, "rows of growing messages stay until the next start");
        }
    }

    fn forget_empty_draft(&mut self, key: EffectKey) {
        let empty = |draft: &Draft| draft.ended && !draft.busy && draft.shown == Shown::Nothing;
        if self.drafts.get(&key).is_some_and(empty) {
            self.drafts.remove(&key);
        }
    }

    fn with_cadence(&mut self, key: EffectKey, change: impl FnOnce(&mut Cadence)) {
        if let Some(draft) = self.drafts.get_mut(&key) {
            change(&mut draft.cadence);
        }
    }

    /// Makes a call with the token that it needs. The error holds the milliseconds until a token may be there;
    /// none when there will be none.
    fn authorised<T>(
        &self,
        account: &Account,
        make: impl Fn(Option<&str>) -> Result<T, EncodeError>,
    ) -> Result<T, Option<u64>> {
        if !access::needed(account.kind) {
            return make(None).map_err(|_| None);
        }
        match self.shared.platforms.token(account) {
            Token::Ready(token) => make(Secret::text(&token)).map_err(|_| None),
            Token::Wait { after_ms, .. } => Err(Some(after_ms)),
            Token::Impossible(_) => Err(None),
        }
    }
}

/// The name of the draft of a reply.
fn draft_key(reply: &EffectKey) -> EffectKey {
    EffectKey { step: EffectKey::DRAFT_STEP, ..*reply }
}

fn row(draft: &Draft, key: EffectKey, message: String) -> OutboxJob {
    OutboxJob {
        key,
        tenant: draft.tenant,
        address: draft.address.clone(),
        text: String::new(),
        created_ms: draft.created_ms,
        due_ms: draft.created_ms,
        expires_ms: u64::MAX,
        attempt: 1,
        state: DeliveryState::Sending,
        detail: message,
    }
}

/// What fits into the message that grows; the rest comes with the finished reply.
fn first_part(account: &Account, text: &str) -> String {
    channel::split_text(account.kind, text.trim_end()).into_iter().next().unwrap_or_default()
}

fn outgoing<'a>(
    account: &'a Account,
    draft: &'a Draft,
    key: &'a EffectKey,
    text: &'a str,
    token: Option<&'a str>,
    now_ms: u64,
) -> Outgoing<'a> {
    Outgoing {
        account,
        address: &draft.address,
        key,
        text,
        buttons: &[],
        created_ms: draft.created_ms,
        now_s: now_ms / 1_000,
        token,
    }
}
