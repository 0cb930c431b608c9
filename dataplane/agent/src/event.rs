//! What can happen to an agent. A closed enum: a `match` shows everything.

use std::sync::Arc;

use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::{InboxRecord, Message, SessionHead};

/// The address of a conversation: the tenant is part of every key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConversationKey {
    /// Owner of the conversation.
    pub tenant: TenantId,
    /// The conversation inside the tenant.
    pub conversation: ConversationId,
}

/// Who waits for the replies of an arrival; chosen by the shell, never reused while open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// One storage or retrieval operation; chosen by the agent, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// One generation; chosen by the agent, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// Something that happened.
#[derive(Debug)]
pub enum Event {
    /// A person or a program says something over a connection.
    Arrived(Box<Arrival>),
    /// A channel has brought a message. It is written with the next [`Event::Flush`], or with the batch that it fills.
    Received(Box<Inbound>),
    /// Nothing more comes at once: the messages received so far are written.
    Flush,
    /// Messages of one conversation that an earlier process accepted and did not answer. Told before anything else
    /// happens, and of the conversation that waits longest first.
    Waiting {
        /// Which conversation.
        key: ConversationKey,
        /// How many there are.
        messages: u32,
        /// The number of the last one.
        last: u64,
    },
    /// The answer to [`Effect::TakeUp`](crate::Effect::TakeUp).
    TakenUp {
        /// Which conversation.
        key: ConversationKey,
        /// Its first message; none when there is none any more.
        first: Result<Option<Box<InboxRecord>>, Fault>,
    },
    /// The process ends soon: the turns of messages that are still in the inbox are left to the next one.
    Closing,
    /// The answer to [`Effect::Load`](crate::Effect::Load).
    Loaded {
        /// Which conversation.
        key: ConversationKey,
        /// Its head and its newest messages, oldest first.
        result: Result<Loaded, Fault>,
    },
    /// The answer to [`Effect::Accept`](crate::Effect::Accept) and [`Effect::Persist`](crate::Effect::Persist).
    Persisted {
        /// Which batch.
        op: OpId,
        /// Durable, or not written at all.
        result: Result<(), Fault>,
    },
    /// The answer to [`Effect::Embed`](crate::Effect::Embed).
    Embedded {
        /// Which text.
        op: OpId,
        /// Its vector.
        result: Result<Vec<f32>, String>,
    },
    /// The answer to [`Effect::Recall`](crate::Effect::Recall).
    Recalled {
        /// Which query.
        op: OpId,
        /// Facts, best first.
        result: Result<Vec<Fact>, String>,
    },
    /// The engine produced something for a generation.
    Output {
        /// Which generation.
        run: RunId,
        /// What it produced.
        output: Output,
    },
    /// Nobody waits for the replies of this ticket any more, or the user pressed stop.
    Cancelled {
        /// Whose turn.
        ticket: Ticket,
    },
    /// A user was forgotten: what is in memory of its conversations goes.
    Forgotten {
        /// The user's tenant.
        tenant: TenantId,
        /// The user.
        user: UserId,
    },
    /// Time passed; deadlines are looked at.
    Tick,
}

/// A new turn of somebody who holds a connection open: replies are streamed to the ticket.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Where it belongs.
    pub key: ConversationKey,
    /// Who says it: the owner of what is remembered.
    pub user: UserId,
    /// The visible name of the conversation, used when it is new.
    pub name: String,
    /// What is said.
    pub text: String,
    /// Who gets the replies.
    pub ticket: Ticket,
    /// How it is to be answered.
    pub options: Arc<GenerationOptions>,
}

/// A message of a channel. The ticket only learns that it is durable; the reply goes through the outbox.
#[derive(Clone, Debug)]
pub struct Inbound {
    /// What is stored of it. The agent gives it its number and its times.
    pub record: InboxRecord,
    /// The name space of the record's event key.
    pub dedup_scope: String,
    /// Who waits for the acknowledgement.
    pub ticket: Ticket,
}

/// What a request says about its generation. `None` = the model's default.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationOptions {
    /// A system prompt instead of the configured one.
    pub system: Option<String>,
    /// Cap of the reply in tokens.
    pub max_tokens: Option<u32>,
    /// 0 = greedy.
    pub temperature: f32,
    /// 0 = off.
    pub top_k: u32,
    /// 1 = off.
    pub top_p: f32,
    /// 0 = off.
    pub min_p: f32,
    /// 1 = off.
    pub repetition_penalty: f32,
    /// 0 = off.
    pub presence_penalty: f32,
    /// 0 = off.
    pub frequency_penalty: f32,
    /// Same seed, same answer.
    pub seed: u64,
    /// Strings that end the reply.
    pub stop: Vec<String>,
    /// Whether the end-of-text token is ignored (load tests).
    pub ignore_eos: bool,
    /// How many alternatives per token are reported.
    pub top_logprobs: Option<u8>,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        Self {
            system: None,
            max_tokens: None,
            temperature: 0.7,
            top_k: 0,
            top_p: 0.95,
            min_p: 0.0,
            repetition_penalty: 1.1,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            stop: Vec::new(),
            ignore_eos: false,
            top_logprobs: None,
        }
    }
}

/// What the store knows about a conversation.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// None = a new conversation.
    pub head: Option<Box<SessionHead>>,
    /// The newest messages in ascending order.
    pub messages: Vec<Message>,
}

/// Why a batch was not written or a row not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Too much waits for the disk.
    Busy,
    /// The disk is full.
    NoSpace,
    /// The store is closing.
    Closed,
    /// Anything else the operator has to look at.
    Io(String),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Busy => f.write_str("too much work is waiting for the disk"),
            Fault::NoSpace => f.write_str("the disk is full"),
            Fault::Closed => f.write_str("the store is closing"),
            Fault::Io(why) => write!(f, "the store failed: {why}"),
        }
    }
}

/// A remembered message, or a passage of a document, with its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// Where it was said.
    pub conversation: ConversationId,
    /// Which message there.
    pub seq: u64,
    /// What was said.
    pub text: String,
    /// When.
    pub at_ms: u64,
    /// Higher is better.
    pub score: f32,
    /// For a passage of a document: file, page and heading, as people cite them.
    pub citation: Option<String>,
}

/// What the engine says about a generation.
#[derive(Clone, Debug)]
pub enum Output {
    /// The first step is done.
    Started {
        /// Prompt tokens that were found in the prefix cache.
        cached_tokens: u32,
    },
    /// More text.
    Delta {
        /// Whole characters only.
        text: String,
        /// Empty unless asked for.
        logprobs: Vec<TokenInfo>,
    },
    /// The engine did not take the request: its queue is full.
    Refused {
        /// When it makes sense to try again.
        retry_after_ms: u64,
        /// What is full.
        why: String,
    },
    /// The end; nothing follows.
    Done {
        /// Why.
        reason: Finish,
        /// Tokens.
        usage: Usage,
        /// Times.
        timings: Timings,
    },
}

/// One token of a reply, when token probabilities were asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenInfo {
    /// Its bytes; not always whole characters.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The most probable tokens at its place, best first.
    pub top: Vec<(Vec<u8>, f32)>,
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model or a stop string ended it.
    Stop,
    /// The token limit ended it.
    Length,
    /// It was stopped from outside.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The engine failed.
    Failed(String),
}

/// Tokens of a generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Tokens of the reply.
    pub completion: u32,
    /// Prompt tokens that were not computed again.
    pub cached: u32,
}

/// Where the time of a generation went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting for a place in the batch.
    pub queue_us: u64,
    /// From the first step to the first token.
    pub prefill_us: u64,
    /// From the first token to the last.
    pub decode_us: u64,
}
