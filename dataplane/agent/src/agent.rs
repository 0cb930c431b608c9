//! The machine: arrivals, durable acceptance, cancel, eviction. Messages of channels are in `inbound.rs`, the work on
//! a turn is in `turn.rs`.

#[path = "inbound.rs"]
mod inbound;
#[path = "turn.rs"]
mod turn;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use millrace_proto::id::{TenantId, UserId};
use millrace_proto::record::{Message, Role, SessionHead};

use self::inbound::turn_of;
use crate::backlog::Backlog;
use crate::config::{AgentConfig, ConfigError};
use crate::context::Prompter;
use crate::conversation::{Answer, Batch, Conversation, Opening, Outcome, Phase, Turn, Writing};
use crate::effect::{Effect, Reply, TurnError, Write};
use crate::event::{Arrival, ConversationKey, Event, Fault, Inbound, Loaded, OpId, RunId, Ticket};
use crate::stats::AgentStats;

/// Turns that become durable in one batch of one conversation.
const ACCEPT_BATCH_MAX: usize = 32;
/// Characters of the first message that become the title of a conversation.
const TITLE_CHARS_MAX: usize = 80;

/// The agent of one shard.
pub struct Agent {
    config: AgentConfig,
    prompter: Arc<dyn Prompter + Send + Sync>,
    /// Boxed, so that the free places of the table are small.
    conversations: HashMap<ConversationKey, Box<Conversation>>,
    /// Idle conversations by the time of their last use.
    idle: BTreeMap<u64, ConversationKey>,
    timers: BTreeSet<(u64, ConversationKey)>,
    ops: HashMap<OpId, ConversationKey>,
    runs: HashMap<RunId, ConversationKey>,
    tickets: HashMap<Ticket, ConversationKey>,
    open_turns: usize,
    /// Those of them that answer messages of channels.
    channel_turns: usize,
    /// Messages of channels that wait for their batch, and those on their way to the disk.
    received: Vec<Inbound>,
    storing: HashMap<OpId, Arc<Vec<Inbound>>>,
    /// How many both are.
    accepting: usize,
    /// Accepted messages whose turn has not begun.
    backlog: Backlog,
    /// Conversations of the backlog that were too fast, by the time at which they may go on.
    paced: BTreeSet<(u64, ConversationKey)>,
    /// The number of the newest message, and of the newest of an earlier process.
    last_number: u64,
    inherited_to: u64,
    closing: bool,
    /// Memory of all windows, as far as they were counted when their conversation was last touched.
    hot_bytes: usize,
    next_id: u64,
    stats: AgentStats,
}

impl Agent {
    /// An agent without conversations.
    pub fn new(config: AgentConfig, prompter: Arc<dyn Prompter + Send + Sync>) -> Result<Self, ConfigError> {
        config.check()?;
        Ok(Self {
            config,
            prompter,
            conversations: HashMap::new(),
            idle: BTreeMap::new(),
            timers: BTreeSet::new(),
            ops: HashMap::new(),
            runs: HashMap::new(),
            tickets: HashMap::new(),
            open_turns: 0,
            channel_turns: 0,
            received: Vec::new(),
            storing: HashMap::new(),
            accepting: 0,
            backlog: Backlog::default(),
            paced: BTreeSet::new(),
            last_number: 0,
            inherited_to: 0,
            closing: false,
            hot_bytes: 0,
            next_id: 0,
            stats: AgentStats::default(),
        })
    }

    /// Takes in what happened and says what is to be done.
    pub fn step(&mut self, event: Event, now_ms: u64, effects: &mut Vec<Effect>) {
        match event {
            Event::Arrived(arrival) => self.arrived(*arrival, now_ms, effects),
            Event::Received(message) => self.received(*message, now_ms, effects),
            Event::Flush => self.flush(now_ms, effects),
            Event::Waiting { key, messages, last } => self.found_waiting(key, messages, last),
            Event::TakenUp { key, first } => self.taken_up(key, first, now_ms, effects),
            Event::Closing => self.closing = true,
            Event::Loaded { key, result } => self.loaded(key, result, now_ms, effects),
            Event::Persisted { op, result } => self.persisted(op, result, now_ms, effects),
            Event::Embedded { op, result } => self.embedded(op, result, now_ms, effects),
            Event::Recalled { op, result } => self.recalled(op, result, now_ms, effects),
            Event::Output { run, output } => self.output(run, output, now_ms, effects),
            Event::Cancelled { ticket } => self.cancelled(ticket, now_ms, effects),
            Event::Forgotten { tenant, user } => self.forgotten(tenant, user, now_ms, effects),
            Event::Tick => self.tick(now_ms, effects),
        }
        self.take_up(now_ms, effects);
    }

    /// Drops the conversations of a user. Open work ends as if it were cancelled, and nothing of it is stored: head and
    /// window hold words that were forgotten.
    fn forgotten(&mut self, tenant: TenantId, user: UserId, now_ms: u64, effects: &mut Vec<Effect>) {
        let theirs = self
            .conversations
            .iter()
            .filter(|(key, conversation)| key.tenant == tenant && conversation.belongs_to(user));
        let keys: Vec<ConversationKey> = theirs.map(|(key, _)| *key).collect();
        for key in keys {
            let conversation = self.conversation(key);
            conversation.forgotten = true;
            let (openings, queue) =
                (std::mem::take(&mut conversation.openings), std::mem::take(&mut conversation.queue));
            for opening in openings {
                match opening {
                    Opening::New(arrival) => self.refuse(arrival.ticket, TurnError::Cancelled, effects),
                    Opening::Again(_) => self.channel_dropped(key),
                }
            }
            for turn in queue {
                match turn.answer.ticket() {
                    Some(ticket) => {
                        self.open_turns -= 1;
                        self.tickets.remove(&ticket);
                        effects.push(Effect::Reply { ticket, reply: Reply::Failed(TurnError::Cancelled) });
                    }
                    None => self.channel_dropped(key),
                }
            }
            self.cancel_running(key, effects);
            self.advance(key, now_ms, effects);
        }
    }

    /// When the next [`Event::Tick`] is of use.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let firsts = [self.timers.first(), self.paced.first()];
        firsts.into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Turns that are not finished. Messages that wait in the inbox are none yet.
    pub fn open_turns(&self) -> usize {
        self.open_turns
    }

    /// Accepted messages that wait in the inbox.
    pub fn waiting_messages(&self) -> usize {
        self.backlog.messages()
    }

    /// Whether messages wait for [`Event::Flush`].
    pub fn wants_flush(&self) -> bool {
        !self.received.is_empty()
    }

    /// Conversations in memory.
    pub fn hot_conversations(&self) -> usize {
        self.conversations.len()
    }

    /// Bytes of the messages in memory.
    pub fn hot_bytes(&self) -> usize {
        self.hot_bytes
    }

    /// What was done so far.
    pub fn stats(&self) -> AgentStats {
        self.stats
    }

    /// The options.
    pub fn config(&self) -> &AgentConfig {
        &self.config
    }

    /// The model's tokenizer and template.
    pub fn prompter(&self) -> &dyn Prompter {
        &*self.prompter
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn arrived(&mut self, arrival: Arrival, now_ms: u64, effects: &mut Vec<Effect>) {
        let (key, ticket) = (arrival.key, arrival.ticket);
        if let Err(error) = self.admit(&arrival, now_ms, effects) {
            self.stats.turns_refused += 1;
            effects.push(Effect::Reply { ticket, reply: Reply::Failed(error) });
            self.settle(key);
            return;
        }
        self.open_turns += 1;
        self.tickets.insert(ticket, key);
        self.conversation(key).openings.push_back(Opening::New(Box::new(arrival)));
        self.advance(key, now_ms, effects);
    }

    /// Whether there is room for this turn; makes its conversation hot.
    fn admit(&mut self, arrival: &Arrival, now_ms: u64, effects: &mut Vec<Effect>) -> Result<(), TurnError> {
        if self.open_turns >= self.config.open_turns_max {
            return Err(TurnError::Overloaded { what: "places for open turns", max: self.config.open_turns_max });
        }
        // The exact check happens on the whole prompt. This one keeps a message that can never be
        // answered out of the record, and it is cheap against reading it into a prompt.
        self.fits(&arrival.text, arrival.options.max_tokens)?;
        if !self.conversations.contains_key(&arrival.key) {
            if self.conversations.len() >= self.config.conversations_max && !self.evict() {
                return Err(TurnError::Overloaded {
                    what: "places for conversations",
                    max: self.config.conversations_max,
                });
            }
            self.heat(arrival.key, effects);
        }
        let waiting_max = self.config.queue_turns_max;
        let turns_max = self.config.turns_per_minute_max;
        let tokens_max = self.config.tokens_per_hour_max;
        let conversation = self.conversation(arrival.key);
        if conversation.open_turns() > waiting_max {
            return Err(TurnError::ConversationBusy { waiting_max });
        }
        conversation.caps.take_turn(now_ms, turns_max, tokens_max)
    }

    fn fits(&self, text: &str, max_tokens: Option<u32>) -> Result<(), TurnError> {
        let prompt_tokens = self.prompter.count(text);
        let reply_tokens = max_tokens.unwrap_or(self.config.reply_tokens_max);
        let context_tokens_max = self.config.context_tokens_max;
        if prompt_tokens.saturating_add(reply_tokens) > context_tokens_max {
            return Err(TurnError::ContextTooLong { prompt_tokens, reply_tokens, context_tokens_max });
        }
        Ok(())
    }

    /// Takes a conversation into memory and asks for its rows.
    fn heat(&mut self, key: ConversationKey, effects: &mut Vec<Effect>) {
        self.conversations.insert(key, Box::default());
        effects.push(Effect::Load { key, messages_max: self.config.window_messages_max });
    }

    fn loaded(&mut self, key: ConversationKey, result: Result<Loaded, Fault>, now_ms: u64, effects: &mut Vec<Effect>) {
        let (messages_max, bytes_max) = (self.config.window_messages_max, self.config.window_bytes_max);
        let pause_ms = self.config.retry_max_ms;
        let Some(conversation) = self.conversations.get_mut(&key) else { return };
        if conversation.loaded {
            return;
        }
        match result {
            Ok(loaded) => {
                conversation.loaded = true;
                conversation.head = loaded.head.map(|head| *head);
                for message in loaded.messages {
                    conversation.window.push(message, messages_max, bytes_max);
                }
            }
            Err(fault) => {
                // Whoever waits is told; what a channel has been promised is tried again, for it must not
                // end in silence.
                let openings = std::mem::take(&mut conversation.openings);
                for opening in openings {
                    match opening {
                        Opening::New(arrival) => {
                            let error = TurnError::Storage(fault.clone());
                            self.refuse(arrival.ticket, error, effects);
                        }
                        again => self.conversation(key).openings.push_back(again),
                    }
                }
                if self.conversation(key).channel {
                    self.set_timer(key, Some(now_ms + pause_ms));
                }
            }
        }
        self.advance(key, now_ms, effects);
    }

    /// An arrival that was counted but never became durable.
    fn refuse(&mut self, ticket: Ticket, error: TurnError, effects: &mut Vec<Effect>) {
        self.tickets.remove(&ticket);
        self.open_turns -= 1;
        self.stats.turns_refused += 1;
        effects.push(Effect::Reply { ticket, reply: Reply::Failed(error) });
    }

    /// Does whatever a conversation can do next: write, or start the next turn.
    fn advance(&mut self, key: ConversationKey, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(conversation) = self.conversations.get(&key) else { return };
        if conversation.loaded {
            if conversation.running.is_none() && !conversation.queue.is_empty() {
                self.start_turn(key, now_ms, effects);
            }
            let conversation = self.conversation(key);
            if conversation.writing.is_none() {
                let finishing =
                    conversation.running.as_ref().is_some_and(|r| matches!(r.phase, Phase::Finishing { .. }))
                        && conversation.timer_ms.is_none();
                if finishing {
                    self.write_finish(key, now_ms, effects);
                } else if !conversation.openings.is_empty() {
                    self.write_accept(key, now_ms, effects);
                }
            }
        }
        self.settle(key);
    }

    /// One batch with everything that waits to be accepted.
    fn write_accept(&mut self, key: ConversationKey, now_ms: u64, effects: &mut Vec<Effect>) {
        let op = OpId(self.id());
        let prompter = Arc::clone(&self.prompter);
        let conversation = self.conversation(key);
        let mut head: Option<SessionHead> = None;
        let (mut writes, mut turns, mut messages) = (Vec::new(), Vec::new(), Vec::new());
        while turns.len() < ACCEPT_BATCH_MAX {
            let Some(opening) = conversation.openings.pop_front() else { break };
            match opening {
                Opening::New(arrival) => {
                    let head = head.get_or_insert_with(|| {
                        let next_turn = conversation.next_turn();
                        let known = conversation.head.clone().unwrap_or_else(|| new_head(&arrival, now_ms));
                        SessionHead { next_turn, ..known }
                    });
                    let (turn, seq) = (head.next_turn, head.next_seq);
                    head.next_turn += 1;
                    head.next_seq += 1;
                    head.updated_ms = now_ms;
                    let tokens = prompter.count(&arrival.text);
                    let message =
                        Message { seq, turn, role: Role::User, text: arrival.text.clone(), at_ms: now_ms, tokens };
                    writes.push(Write::Message(message.clone()));
                    messages.push(message);
                    let turn = Turn {
                        id: turn,
                        user: arrival.user,
                        text: arrival.text,
                        recorded: true,
                        question_seq: Some(seq),
                        at_ms: now_ms,
                        answer: Answer::Stream { ticket: arrival.ticket, options: arrival.options },
                        cancelled: false,
                    };
                    turns.push((Some(arrival.ticket), turn));
                }
                Opening::Again(record) => {
                    writes.push(Write::Inbox((*record).clone()));
                    turns.push((None, turn_of(*record)));
                }
            }
        }
        if let Some(head) = &head {
            writes.insert(0, Write::Session(head.clone()));
        }
        conversation.writing = Some(Writing { op, head, messages, what: Batch::Accept { turns } });
        self.ops.insert(op, key);
        effects.push(Effect::Persist { op, key, writes });
    }

    fn persisted(&mut self, op: OpId, result: Result<(), Fault>, now_ms: u64, effects: &mut Vec<Effect>) {
        if let Some(messages) = self.storing.remove(&op) {
            return self.stored(messages, &result, now_ms, effects);
        }
        let Some(key) = self.ops.remove(&op) else { return };
        let Some(conversation) = self.conversations.get_mut(&key) else { return };
        if conversation.writing.as_ref().is_none_or(|writing| writing.op != op) {
            return;
        }
        let Some(Writing { head, messages, what, .. }) = conversation.writing.take() else { return };
        if result.is_ok() {
            conversation.head = head.or(conversation.head.take());
            for message in messages {
                conversation.window.push(message, self.config.window_messages_max, self.config.window_bytes_max);
            }
        }
        match what {
            Batch::Accept { turns } => {
                for (ticket, turn) in turns {
                    self.accept_settled(key, ticket, turn, result.clone(), effects);
                }
            }
            Batch::Finish { jobs, answer_seq } => self.finish_settled(key, jobs, answer_seq, result, now_ms, effects),
        }
        self.advance(key, now_ms, effects);
    }

    fn accept_settled(
        &mut self,
        key: ConversationKey,
        ticket: Option<Ticket>,
        turn: Turn,
        result: Result<(), Fault>,
        effects: &mut Vec<Effect>,
    ) {
        match (ticket, result) {
            (Some(ticket), Err(fault)) => self.refuse(ticket, TurnError::Storage(fault), effects),
            (Some(ticket), Ok(())) => {
                self.stats.turns_accepted += 1;
                effects.push(Effect::Reply { ticket, reply: Reply::Accepted });
                self.conversation(key).queue.push_back(turn);
            }
            // The message is durable already; only its count of starts is not. Going on is right: the batch that
            // ends the turn waits for the disk anyway.
            (None, _) => self.conversation(key).queue.push_back(turn),
        }
    }

    fn cancelled(&mut self, ticket: Ticket, now_ms: u64, effects: &mut Vec<Effect>) {
        let Some(&key) = self.tickets.get(&ticket) else { return };
        let Some(conversation) = self.conversations.get_mut(&key) else { return };
        let is_it = |opening: &Opening| matches!(opening, Opening::New(arrival) if arrival.ticket == ticket);
        if let Some(place) = conversation.openings.iter().position(is_it) {
            conversation.openings.remove(place);
            self.refuse(ticket, TurnError::Cancelled, effects);
        } else if let Some(turn) = waiting_turn(conversation, ticket) {
            turn.cancelled = true;
        } else {
            self.cancel_running(key, effects);
        }
        self.advance(key, now_ms, effects);
    }

    fn tick(&mut self, now_ms: u64, effects: &mut Vec<Effect>) {
        while let Some(&(at, key)) = self.timers.first() {
            if at > now_ms {
                break;
            }
            self.timers.pop_first();
            if let Some(conversation) = self.conversations.get_mut(&key) {
                conversation.timer_ms = None;
            }
            if self.conversations.get(&key).is_some_and(|conversation| !conversation.loaded) {
                effects.push(Effect::Load { key, messages_max: self.config.window_messages_max });
            } else {
                self.timer_fired(key, now_ms, effects);
            }
            self.advance(key, now_ms, effects);
        }
        while let Some(&(_, key)) = self.paced.first().filter(|(at, _)| *at <= now_ms) {
            self.paced.pop_first();
            self.backlog.released(key);
        }
    }

    fn set_timer(&mut self, key: ConversationKey, at_ms: Option<u64>) {
        let Some(conversation) = self.conversations.get_mut(&key) else { return };
        if let Some(old) = conversation.timer_ms {
            self.timers.remove(&(old, key));
        }
        conversation.timer_ms = at_ms;
        if let Some(at) = at_ms {
            self.timers.insert((at, key));
        }
    }

    /// Keeps the list of idle conversations: those can be dropped at any time.
    fn settle(&mut self, key: ConversationKey) {
        let Some(conversation) = self.conversations.get_mut(&key) else { return };
        let busy = conversation.open_turns() > 0 || conversation.writing.is_some();
        if !busy {
            conversation.rest();
        }
        let bytes = conversation.window.bytes();
        self.hot_bytes = self.hot_bytes - conversation.counted_bytes + bytes;
        conversation.counted_bytes = bytes;
        if let Some(stamp) = conversation.idle_stamp.take() {
            self.idle.remove(&stamp);
        }
        if !busy && (!conversation.loaded || conversation.forgotten) {
            // Its load failed or is still on its way for somebody who left: the next one asks again.
            // Or its user was forgotten, and with it what is here.
            self.cool(key);
        } else if !busy {
            self.next_id += 1;
            conversation.idle_stamp = Some(self.next_id);
            self.idle.insert(self.next_id, key);
        }
        while self.hot_bytes > self.config.hot_bytes_max && self.evict() {}
    }

    fn evict(&mut self) -> bool {
        let Some((_, key)) = self.idle.pop_first() else { return false };
        self.cool(key);
        self.stats.conversations_evicted += 1;
        true
    }

    fn cool(&mut self, key: ConversationKey) {
        self.set_timer(key, None);
        if let Some(conversation) = self.conversations.remove(&key) {
            self.hot_bytes -= conversation.counted_bytes;
        }
    }

    /// The conversation of a key that is known to be hot.
    fn conversation(&mut self, key: ConversationKey) -> &mut Conversation {
        self.conversations.get_mut(&key).expect("a conversation with open work is hot")
    }
}

fn new_head(arrival: &Arrival, now_ms: u64) -> SessionHead {
    SessionHead {
        tenant: arrival.key.tenant,
        user: arrival.user,
        conversation: arrival.key.conversation,
        name: arrival.name.clone(),
        title: title(&arrival.text),
        created_ms: now_ms,
        updated_ms: now_ms,
        next_seq: 0,
        next_turn: 0,
        address: None,
    }
}

/// The first words of a conversation.
fn title(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(TITLE_CHARS_MAX).collect()
}

fn waiting_turn(conversation: &mut Conversation, ticket: Ticket) -> Option<&mut Turn> {
    let accepting = match &mut conversation.writing {
        Some(Writing { what: Batch::Accept { turns }, .. }) => turns.as_mut_slice(),
        _ => &mut [],
    };
    accepting
        .iter_mut()
        .map(|(_, turn)| turn)
        .chain(conversation.queue.iter_mut())
        .find(|turn| turn.answer.ticket() == Some(ticket))
}

/// What a finished turn leaves behind, told apart for the counters.
fn count_outcome(stats: &mut AgentStats, outcome: &Outcome) {
    match outcome {
        Outcome::Answered { .. } => stats.turns_answered += 1,
        Outcome::Failed(TurnError::Cancelled) => stats.turns_cancelled += 1,
        Outcome::Failed(_) => stats.turns_failed += 1,
        Outcome::DeadLetter(_) => stats.dead_letters += 1,
    }
}
