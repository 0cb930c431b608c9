//! Accepted messages that wait in the inbox: how many of which conversation, and whose turn is next.
//!
//! The inbox on disk is the truth; here is only what is needed to read from it in a fair order. A conversation
//! costs the same however many of its messages wait, and one that floods its shard gets every n-th turn like the n - 1
//! others.

use std::collections::{HashMap, VecDeque};

use crate::event::ConversationKey;

#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// Messages by conversation. One with zero is looked at once more: only the inbox knows that it is empty.
    waiting: HashMap<ConversationKey, u32>,
    /// Conversations of `waiting` of which no message is being answered, the one that waits longest first.
    ready: VecDeque<ConversationKey>,
    messages: usize,
}

impl Backlog {
    /// Messages of all conversations.
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Conversations whose next message may be taken up.
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Whether messages of this conversation may wait.
    pub fn waits(&self, key: &ConversationKey) -> bool {
        self.waiting.contains_key(key)
    }

    /// How many messages of this conversation are known to wait.
    pub fn count(&self, key: &ConversationKey) -> u32 {
        self.waiting.get(key).copied().unwrap_or_default()
    }

    /// Messages have come to wait; `live` = one of their conversation is being answered.
    pub fn add(&mut self, key: ConversationKey, messages: u32, live: bool) {
        self.messages += messages as usize;
        let known = self.waiting.len();
        let count = self.waiting.entry(key).or_default();
        *count = count.saturating_add(messages);
        if self.waiting.len() > known && !live {
            self.ready.push_back(key);
        }
    }

    /// The conversation whose turn it is. It counts as live from here on.
    pub fn next(&mut self) -> Option<ConversationKey> {
        self.ready.pop_front()
    }

    /// A message of a live conversation was read.
    pub fn taken(&mut self, key: &ConversationKey) {
        if let Some(count) = self.waiting.get_mut(key).filter(|count| **count > 0) {
            *count -= 1;
            self.messages -= 1;
        }
    }

    /// The inbox holds nothing of a live conversation.
    pub fn empty(&mut self, key: &ConversationKey) {
        self.messages -= self.waiting.remove(key).unwrap_or_default() as usize;
    }

    /// A conversation is live no more.
    pub fn released(&mut self, key: ConversationKey) {
        if self.waits(&key) {
            self.ready.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::id::{ConversationId, TenantId};

    fn key(name: &str) -> ConversationKey {
        ConversationKey { tenant: TenantId(1), conversation: ConversationId::of(TenantId(1), name) }
    }

    #[test]
    fn conversations_take_turns_however_many_messages_one_has() {
        let mut backlog = Backlog::default();
        backlog.add(key("flood"), 1_000, false);
        backlog.add(key("calm"), 1, false);
        backlog.add(key("calm"), 1, false);
        assert_eq!((backlog.messages(), backlog.ready()), (1_002, 2));
        let mut order = Vec::new();
        for _ in 0..6 {
            let next = backlog.next().expect("messages wait");
            order.push(next == key("calm"));
            backlog.taken(&next);
            backlog.released(next);
        }
        assert_eq!(order, [false, true, false, true, false, true]);
        assert_eq!(backlog.messages(), 997);
    }

    #[test]
    fn a_conversation_leaves_only_when_the_inbox_is_found_empty() {
        let mut backlog = Backlog::default();
        backlog.add(key("a"), 1, true);
        assert_eq!(backlog.next(), None, "its earlier message is being answered");
        backlog.released(key("a"));
        assert_eq!(backlog.next(), Some(key("a")));
        backlog.taken(&key("a"));
        backlog.released(key("a"));
        assert!(backlog.waits(&key("a")) && backlog.messages() == 0);
        assert_eq!(backlog.next(), Some(key("a")));
        backlog.empty(&key("a"));
        backlog.released(key("a"));
        assert!(!backlog.waits(&key("a")) && backlog.ready() == 0);
    }
}
