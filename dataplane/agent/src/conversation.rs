//! A hot conversation: its head, its window of recent messages, its queue and the one running turn.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_proto::id::UserId;
use millrace_proto::record::{ChatAddress, InboxRecord, Message, Role, SessionHead};

use crate::effect::TurnError;
use crate::event::{Arrival, Finish, GenerationOptions, OpId, RunId, Ticket, Timings, Usage};

/// What is kept in memory of one conversation. Everything in it can be dropped while it is idle.
#[derive(Debug, Default)]
pub(crate) struct Conversation {
    /// Whether head and window are there.
    pub loaded: bool,
    /// None until the first message is durable.
    pub head: Option<SessionHead>,
    pub window: Window,
    /// Where the context window began in the last turn.
    pub window_from_seq: u64,
    /// Not durable yet: waiting for the load or for the batch in flight.
    pub openings: VecDeque<Opening>,
    /// The one batch in flight. One at a time keeps sequence numbers without gaps when a batch fails.
    pub writing: Option<Writing>,
    /// Durable, in the order of their turns.
    pub queue: VecDeque<Turn>,
    pub running: Option<Box<Running>>,
    /// The time at which this conversation wants to be looked at.
    pub timer_ms: Option<u64>,
    /// Bytes of its window that the agent's sum of hot bytes holds.
    pub counted_bytes: usize,
    /// Its place among the idle ones.
    pub idle_stamp: Option<u64>,
    pub caps: Caps,
    /// A message of a channel is taken up or being answered. One at a time: the next ones wait in the inbox.
    pub channel: bool,
    /// That message is being read.
    pub taking: bool,
    /// Its user was forgotten: nothing of it is stored any more, and it leaves the memory with its open work.
    pub forgotten: bool,
}

impl Conversation {
    /// Whether it is this user's, as far as it is known here.
    pub fn belongs_to(&self, user: UserId) -> bool {
        let opened_by = |opening: &Opening| match opening {
            Opening::New(arrival) => arrival.user == user,
            Opening::Again(record) => record.user == user,
        };
        self.head.as_ref().is_some_and(|head| head.user == user)
            || self.openings.iter().any(opened_by)
            || self.writing.as_ref().and_then(|writing| writing.head.as_ref()).is_some_and(|head| head.user == user)
            || self.queue.iter().chain(self.running.as_ref().map(|running| &running.turn)).any(|turn| turn.user == user)
    }

    /// Gives back the room that its last turn took: most conversations are idle most of the time.
    pub fn rest(&mut self) {
        self.openings = VecDeque::new();
        self.queue = VecDeque::new();
        self.window.messages.shrink_to_fit();
    }

    /// Turns that are not finished.
    pub fn open_turns(&self) -> usize {
        let writing = match &self.writing {
            Some(Writing { what: Batch::Accept { turns, .. }, .. }) => turns.len(),
            _ => 0,
        };
        let running = usize::from(self.running.is_some());
        self.openings.len() + writing + self.queue.len() + running + usize::from(self.taking)
    }

    /// The number of the next turn: above those that are recorded, being recorded and being answered.
    pub fn next_turn(&self) -> u64 {
        let of_head = |head: Option<&SessionHead>| head.map_or(0, |head| head.next_turn);
        let writing = self.writing.as_ref().and_then(|writing| writing.head.as_ref());
        let running = self.running.as_ref().map_or(0, |running| running.turn.id + 1);
        of_head(self.head.as_ref()).max(of_head(writing)).max(running)
    }
}

/// A turn that is not durable yet, or whose start an earlier process has counted.
#[derive(Debug)]
pub(crate) enum Opening {
    New(Box<Arrival>),
    Again(Box<InboxRecord>),
}

/// A durable turn.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// Given when the work on it begins, when it comes from a channel.
    pub id: u64,
    pub user: UserId,
    pub text: String,
    /// Whether the question stands in the conversation already. A message of a channel joins it together with its
    /// answer; until then its inbox record is what is durable of it.
    pub recorded: bool,
    /// Sequence number of the recorded question; None when it is older than the loaded window.
    pub question_seq: Option<u64>,
    pub at_ms: u64,
    pub answer: Answer,
    pub cancelled: bool,
}

/// Where the answer goes.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Stream { ticket: Ticket, options: Arc<GenerationOptions> },
    Outbox { address: ChatAddress, deadline_ms: u64, attempt: u32, number: u64 },
}

impl Answer {
    pub fn ticket(&self) -> Option<Ticket> {
        match self {
            Answer::Stream { ticket, .. } => Some(*ticket),
            Answer::Outbox { .. } => None,
        }
    }
}

/// A batch on its way to the disk.
#[derive(Debug)]
pub(crate) struct Writing {
    pub op: OpId,
    /// Replaces the head when the batch is durable; none when the batch leaves it as it is.
    pub head: Option<SessionHead>,
    /// Join the window when the batch is durable.
    pub messages: Vec<Message>,
    pub what: Batch,
}

#[derive(Debug)]
pub(crate) enum Batch {
    Accept {
        /// New turns with the ticket of the one who waits, and those of an earlier process without.
        turns: Vec<(Option<Ticket>, Turn)>,
    },
    Finish {
        jobs: Vec<millrace_proto::record::OutboxJob>,
        answer_seq: Option<u64>,
    },
}

/// The turn that is being worked on.
#[derive(Debug)]
pub(crate) struct Running {
    pub turn: Turn,
    pub phase: Phase,
    /// A vector may come late; then it is still good for the memory.
    pub embed_op: Option<OpId>,
    pub embedding: Option<Vec<f32>>,
    pub notices: Vec<String>,
    pub text: String,
    pub prompt_tokens: u32,
    pub deadline_ms: u64,
    /// Refused generations or failed batches in a row.
    pub retries: u32,
}

#[derive(Debug)]
pub(crate) enum Phase {
    /// Embedding and recall are under way; `recall_op` is set once the second has begun.
    Retrieving { recall_op: Option<OpId> },
    /// The prompt is kept until the engine has taken it.
    Generating { run: RunId, prompt: Vec<u32>, max_tokens: u32 },
    /// The engine had no room; it is asked again when the timer fires.
    Pausing { prompt: Vec<u32>, max_tokens: u32 },
    /// The outcome is known and waits to be durable.
    Finishing { outcome: Outcome },
}

#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Answered {
        reason: Finish,
        usage: Usage,
        timings: Timings,
    },
    Failed(TurnError),
    /// Too old to be answered.
    DeadLetter(String),
}

/// The newest messages, bounded by number and bytes.
#[derive(Debug, Default)]
pub(crate) struct Window {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Window {
    pub fn push(&mut self, message: Message, messages_max: usize, bytes_max: usize) {
        self.bytes += message.text.len();
        self.messages.push_back(message);
        while self.messages.len() > messages_max || (self.bytes > bytes_max && self.messages.len() > 1) {
            if let Some(old) = self.messages.pop_front() {
                self.bytes -= old.text.len();
            }
        }
    }

    pub fn as_slice(&mut self) -> &[Message] {
        self.messages.make_contiguous()
    }

    /// Recorded messages before the window. Sequence numbers have no gaps, so the first one says it.
    pub fn older(&self) -> u64 {
        self.messages.front().map_or(0, |m| m.seq)
    }

    /// Memory that the window takes: texts and their records.
    pub fn bytes(&self) -> usize {
        self.bytes + self.messages.len() * size_of::<Message>()
    }

    pub fn question_of(&self, turn: u64) -> Option<u64> {
        self.messages.iter().find(|m| m.turn == turn && m.role == Role::User).map(|m| m.seq)
    }
}

/// Caps against conversations that run away, counted in fixed spans from their first use.
#[derive(Debug, Default)]
pub(crate) struct Caps {
    minute_from_ms: u64,
    turns: u32,
    hour_from_ms: u64,
    tokens: u64,
}

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 3_600_000;

impl Caps {
    /// Takes a turn, or says when there is room again.
    pub fn take_turn(&mut self, now_ms: u64, turns_max: u32, tokens_max: u64) -> Result<(), TurnError> {
        self.check(now_ms, turns_max, tokens_max)?;
        self.turns += 1;
        Ok(())
    }

    /// Whether there is room for a turn, and if not, when there is again.
    pub fn check(&mut self, now_ms: u64, turns_max: u32, tokens_max: u64) -> Result<(), TurnError> {
        self.roll(now_ms);
        if self.turns >= turns_max {
            let retry_after_ms = (self.minute_from_ms + MINUTE_MS).saturating_sub(now_ms).max(1);
            return Err(TurnError::TooFast { what: "turns a minute", max: u64::from(turns_max), retry_after_ms });
        }
        if self.tokens >= tokens_max {
            let retry_after_ms = (self.hour_from_ms + HOUR_MS).saturating_sub(now_ms).max(1);
            return Err(TurnError::TooFast { what: "tokens an hour", max: tokens_max, retry_after_ms });
        }
        Ok(())
    }

    pub fn add_tokens(&mut self, now_ms: u64, tokens: u64) {
        self.roll(now_ms);
        self.tokens = self.tokens.saturating_add(tokens);
    }

    /// A clock that jumps back starts a new span as well: it must not lock a conversation.
    fn roll(&mut self, now_ms: u64) {
        if now_ms < self.minute_from_ms || now_ms - self.minute_from_ms >= MINUTE_MS {
            (self.minute_from_ms, self.turns) = (now_ms, 0);
        }
        if now_ms < self.hour_from_ms || now_ms - self.hour_from_ms >= HOUR_MS {
            (self.hour_from_ms, self.tokens) = (now_ms, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_is_bounded_by_number_and_bytes_and_knows_what_is_older() {
        let mut window = Window::default();
        for seq in 0..100 {
            let text = "x".repeat(10);
            window.push(Message { seq, turn: seq, role: Role::User, text, at_ms: 0, tokens: 0 }, 50, 205);
        }
        assert_eq!((window.messages.len(), window.bytes, window.older()), (20, 200, 80));
        let huge = "y".repeat(500);
        window.push(Message { seq: 100, turn: 100, role: Role::User, text: huge, at_ms: 0, tokens: 0 }, 50, 205);
        assert_eq!((window.messages.len(), window.older()), (1, 100), "the newest message stays whatever its size");
    }

    #[test]
    fn caps_open_again_when_their_span_is_over_and_when_the_clock_jumps_back() {
        let mut caps = Caps::default();
        let t = 10_000_000;
        for _ in 0..3 {
            caps.take_turn(t, 3, 100).unwrap();
        }
        let Err(TurnError::TooFast { retry_after_ms, .. }) = caps.take_turn(t + 1_000, 3, 100) else { panic!() };
        assert_eq!(retry_after_ms, 59_000);
        caps.take_turn(t + 60_000, 3, 100).unwrap();
        caps.add_tokens(t + 60_000, 100);
        assert!(caps.take_turn(t + 60_001, 3, 100).is_err());
        caps.take_turn(t - 5_000_000, 3, 100).unwrap();
    }
}
