//! Messages of channels: accepted in batches, kept in the inbox, taken up one per conversation.
//!
//! Accepting needs nothing of the conversation: no head, no history, no place in memory. So it goes on at the speed
//! of the disk whatever the engine does. A turn begins when there is room for it; until then its message is a
//! row of the inbox and a count here.

use std::sync::Arc;

use millrace_proto::record::{ChatAddress, InboxRecord};

use super::Agent;
use crate::conversation::{Answer, Conversation, Opening, Turn};
use crate::effect::{Effect, Reply, TurnError};
use crate::event::{ConversationKey, Fault, Inbound, OpId};

/// Messages that become durable in one batch. A batch stands or falls as a whole, so it is no longer than what
/// makes its fixed cost small.
const ACCEPT_BATCH_MAX: usize = 64;
/// Numbers of messages begin with their time in milliseconds, so that they go on increasing after a restart; the lower
/// bits count within one. Until 2039 the sum stays below 2^53, which every reader of JSON can hold.
const NUMBER_TIME_SHIFT: u32 = 12;

impl Agent {
    pub(super) fn received(&mut self, mut message: Inbound, now_ms: u64, effects: &mut Vec<Effect>) {
        let max = self.config.inbox_waiting_max;
        if self.backlog.messages() + self.accepting >= max {
            self.stats.turns_refused += 1;
            let error = TurnError::Overloaded { what: "places for waiting messages", max };
            effects.push(Effect::Reply { ticket: message.ticket, reply: Reply::Failed(error) });
            return;
        }
        self.last_number = (self.last_number + 1).max(now_ms << NUMBER_TIME_SHIFT);
        let record = &mut message.record;
        record.number = self.last_number;
        record.received_ms = now_ms;
        record.deadline_ms = now_ms + self.config.inbox_ttl_ms;
        record.attempt = 1;
        self.accepting += 1;
        self.received.push(message);
        if self.received.len() >= ACCEPT_BATCH_MAX {
            self.flush(now_ms, effects);
        }
    }

    pub(super) fn flush(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        if self.received.is_empty() {
            return;
        }
        let op = OpId(self.id());
        // The next batch is probably as long as this one.
        let room = Vec::with_capacity(self.received.len());
        let messages = Arc::new(std::mem::replace(&mut self.received, room));
        self.storing.insert(op, Arc::clone(&messages));
        effects.push(Effect::Accept { op, messages, dedup_expires_ms: now_ms + self.config.dedup_ttl_ms });
    }

    /// A batch of messages is durable, or was not written.
    pub(super) fn stored(
        &mut self,
        messages: Arc<Vec<Inbound>>,
        result: &Result<(), Fault>,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        for Inbound { record, ticket, .. } in Arc::unwrap_or_clone(messages) {
            self.accepting -= 1;
            let reply = match result {
                Ok(()) => Reply::Accepted,
                Err(fault) => Reply::Failed(TurnError::Storage(fault.clone())),
            };
            effects.push(Effect::Reply { ticket, reply });
            if result.is_ok() {
                self.stats.turns_accepted += 1;
                self.place(record, now_ms, effects);
            } else {
                self.stats.turns_refused += 1;
            }
        }
    }

    /// A durable message begins its turn at once when none waits before it; else it waits in the inbox.
    fn place(&mut self, record: InboxRecord, now_ms: u64, effects: &mut Vec<Effect>) {
        let key = ConversationKey { tenant: record.tenant, conversation: record.conversation };
        let first = self.backlog.ready() == 0 && !self.backlog.waits(&key);
        let may = first && self.has_channel_room() && self.may_go_live(&key);
        if may && self.too_fast_until(&key, now_ms).is_none() {
            self.go_live(key, effects);
            self.begin(key, record, now_ms, effects);
        } else {
            let live = self.conversations.get(&key).is_some_and(|conversation| conversation.channel);
            self.backlog.add(key, 1, live);
        }
    }

    /// Takes messages out of the inbox as long as there is room for their turns.
    pub(super) fn take_up(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        for _ in 0..self.backlog.ready() {
            if !self.has_channel_room() {
                return;
            }
            let Some(key) = self.backlog.next() else { return };
            if !self.may_go_live(&key) {
                self.backlog.released(key);
                continue;
            }
            // One of which nothing is known to wait is only looked at.
            let knows = self.backlog.count(&key) > 0;
            if let Some(at_ms) = self.too_fast_until(&key, now_ms).filter(|_| knows) {
                self.paced.insert((at_ms, key));
                continue;
            }
            self.go_live(key, effects);
            self.conversation(key).taking = true;
            self.settle(key);
            effects.push(Effect::TakeUp { key });
        }
    }

    pub(super) fn taken_up(
        &mut self,
        key: ConversationKey,
        first: Result<Option<Box<InboxRecord>>, Fault>,
        now_ms: u64,
        effects: &mut Vec<Effect>,
    ) {
        let Some(conversation) = self.conversations.get_mut(&key) else { return };
        if !std::mem::take(&mut conversation.taking) {
            return;
        }
        match first {
            // Its user was forgotten meanwhile: the inbox is asked again when the conversation has left.
            Ok(Some(_)) if conversation.forgotten => self.channel_ended(key),
            Ok(Some(record)) => {
                self.backlog.taken(&key);
                return self.begin(key, *record, now_ms, effects);
            }
            Ok(None) => {
                self.backlog.empty(&key);
                self.channel_ended(key);
            }
            // What was accepted must not end in silence: it is read again after a pause.
            Err(_) => {
                self.leave_live(key);
                self.paced.insert((now_ms + self.config.retry_max_ms, key));
            }
        }
        self.advance(key, now_ms, effects);
    }

    /// Notes what an earlier process left.
    pub(super) fn found_waiting(&mut self, key: ConversationKey, messages: u32, last: u64) {
        self.backlog.add(key, messages, false);
        self.last_number = self.last_number.max(last);
        self.inherited_to = self.last_number;
    }

    fn has_channel_room(&self) -> bool {
        !self.closing
            && self.channel_turns < self.config.channel_turns_max
            && (self.conversations.len() < self.config.conversations_max || !self.idle.is_empty())
    }

    fn may_go_live(&self, key: &ConversationKey) -> bool {
        self.conversations.get(key).is_none_or(|conversation| !conversation.channel && !conversation.forgotten)
    }

    /// When the next message of this conversation may be answered, if it may not now. Until then it waits in the inbox:
    /// there it takes no place from others, and nobody who drains waits for it.
    fn too_fast_until(&mut self, key: &ConversationKey, now_ms: u64) -> Option<u64> {
        let (turns_max, tokens_max) = (self.config.channel_turns_per_minute_max, self.config.tokens_per_hour_max);
        match self.conversations.get_mut(key)?.caps.check(now_ms, turns_max, tokens_max) {
            Err(TurnError::TooFast { retry_after_ms, .. }) => Some(now_ms + retry_after_ms),
            _ => None,
        }
    }

    /// Gives a message of this conversation a place among the open turns.
    fn go_live(&mut self, key: ConversationKey, effects: &mut Vec<Effect>) {
        if !self.conversations.contains_key(&key) {
            if self.conversations.len() >= self.config.conversations_max {
                self.evict();
            }
            self.heat(key, effects);
        }
        self.conversation(key).channel = true;
        self.channel_turns += 1;
        self.open_turns += 1;
    }

    fn begin(&mut self, key: ConversationKey, mut record: InboxRecord, now_ms: u64, effects: &mut Vec<Effect>) {
        let inherited = record.number <= self.inherited_to;
        let conversation = self.conversation(key);
        if inherited {
            // The start is counted before the work, so that a message which kills the process cannot do so for ever.
            record.attempt = record.attempt.saturating_add(1);
            conversation.openings.push_back(Opening::Again(Box::new(record)));
        } else {
            conversation.queue.push_back(turn_of(record));
        }
        self.advance(key, now_ms, effects);
    }

    /// The turn of a channel message has ended, or there was none.
    pub(super) fn channel_ended(&mut self, key: ConversationKey) {
        self.leave_live(key);
        self.backlog.released(key);
    }

    fn leave_live(&mut self, key: ConversationKey) {
        let conversation = self.conversation(key);
        debug_assert!(conversation.channel, "only a live conversation ends to be");
        conversation.channel = false;
        self.channel_turns -= 1;
        self.open_turns -= 1;
    }

    /// The turn of a channel message ends without closing its record: the inbox is asked what is left of it.
    pub(super) fn channel_dropped(&mut self, key: ConversationKey) {
        self.backlog.add(key, 0, true);
        self.channel_ended(key);
    }
}

pub(super) fn turn_of(record: InboxRecord) -> Turn {
    Turn {
        id: 0,
        user: record.user,
        text: record.text,
        recorded: false,
        question_seq: None,
        at_ms: record.received_ms,
        answer: Answer::Outbox {
            address: record.address,
            deadline_ms: record.deadline_ms,
            attempt: record.attempt,
            number: record.number,
        },
        cancelled: false,
    }
}

/// Gives the turn of a channel message its number when the work on it begins. The same work done again after a crash
/// gets the same number: the head has not moved.
pub(super) fn number_turn(conversation: &Conversation, turn: &mut Turn) {
    let Answer::Outbox { number, .. } = &turn.answer else { return };
    // Records of older versions were numbered as turns, and their question was recorded with them.
    turn.recorded = conversation.head.as_ref().is_some_and(|head| *number < head.next_turn);
    turn.id = if turn.recorded { *number } else { conversation.next_turn() };
    turn.question_seq = conversation.window.question_of(turn.id);
}

/// The visible name of a channel's conversation.
pub(super) fn name_of(address: &ChatAddress) -> String {
    let ChatAddress { channel, account, chat, thread, .. } = address;
    match thread {
        Some(thread) => format!("{channel}/{account}/{chat}/{thread}"),
        None => format!("{channel}/{account}/{chat}"),
    }
}
