//! What an agent wants done. A closed enum: a `match` shows everything.

use std::sync::Arc;

use millrace_proto::id::{EffectKey, TenantId, UserId};
use millrace_proto::record::{ChatAddress, InboxRecord, Message, OutboxJob, SessionHead};

use crate::event::{
    ConversationKey, Fault, Finish, GenerationOptions, Inbound, OpId, RunId, Ticket, Timings, TokenInfo, Usage,
};

/// Something to do. Effects are to be carried out in the order given.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Read head and newest messages; answer with [`Event::Loaded`](crate::Event::Loaded).
    Load {
        /// Which conversation.
        key: ConversationKey,
        /// At most so many messages.
        messages_max: usize,
    },
    /// Write the inbox records of these messages with their dedup keys, or nothing; answer with
    /// [`Event::Persisted`](crate::Event::Persisted) when durable.
    Accept {
        /// Names the answer.
        op: OpId,
        /// Of any conversations, in the order of their arrival.
        messages: Arc<Vec<Inbound>>,
        /// Until when their dedup keys are kept, in Unix milliseconds.
        dedup_expires_ms: u64,
    },
    /// Read the first open inbox record of a conversation; answer with [`Event::TakenUp`](crate::Event::TakenUp).
    TakeUp {
        /// Which conversation.
        key: ConversationKey,
    },
    /// Write all of this or nothing; answer with [`Event::Persisted`](crate::Event::Persisted) when durable.
    /// Batches of one conversation must be committed in the order given.
    Persist {
        /// Names the answer.
        op: OpId,
        /// All rows belong to this conversation.
        key: ConversationKey,
        /// The rows.
        writes: Vec<Write>,
    },
    /// Compute a vector; answer with [`Event::Embedded`](crate::Event::Embedded).
    Embed {
        /// Names the answer.
        op: OpId,
        /// The text.
        text: String,
    },
    /// Look for facts of this user; answer with [`Event::Recalled`](crate::Event::Recalled).
    Recall {
        /// Names the answer.
        op: OpId,
        /// The asking conversation; its tenant bounds the search.
        key: ConversationKey,
        /// Only what this user said, and what everybody who writes here may read.
        user: UserId,
        /// Kind and name of the channel account through which the question came; none for the API.
        channel: Option<(String, String)>,
        /// The question.
        text: String,
        /// Its vector, when there is one.
        embedding: Option<Vec<f32>>,
        /// At most so many.
        limit: usize,
    },
    /// Generate; answer with [`Event::Output`](crate::Event::Output), the last of which is `Done` or `Refused`.
    Generate {
        /// Names the answer.
        run: RunId,
        /// Whose conversation (the tenant salts the prefix cache).
        key: ConversationKey,
        /// The whole prompt.
        prompt: Vec<u32>,
        /// Cap of the reply.
        max_tokens: u32,
        /// Sampling and stops.
        options: Arc<GenerationOptions>,
        /// The engine gives up at this time.
        deadline_ms: u64,
    },
    /// End a generation soon; its `Done` is still expected.
    StopGeneration {
        /// Which one.
        run: RunId,
    },
    /// Tell the one who waits.
    Reply {
        /// Who.
        ticket: Ticket,
        /// What.
        reply: Reply,
    },
    /// A reply to a channel is being written. What is shown of it is a comfort: the finished reply follows as
    /// [`Effect::Deliver`].
    Draft {
        /// Owner of the conversation.
        tenant: TenantId,
        /// The turn, with the step [`EffectKey::DRAFT_STEP`].
        key: EffectKey,
        /// What is new.
        part: DraftPart,
    },
    /// A durable outbox job is ready to go out.
    Deliver {
        /// The job as it was written.
        job: Box<OutboxJob>,
    },
}

/// A part of a reply that is being written.
#[derive(Clone, Debug)]
pub enum DraftPart {
    /// The work has begun. It may begin again after a restart.
    Begun {
        /// Where the reply will go.
        address: Box<ChatAddress>,
    },
    /// More text.
    Text(String),
    /// Nothing follows but the finished reply.
    Ended,
}

/// One row of a batch.
#[derive(Clone, Debug)]
pub enum Write {
    /// The head of the conversation.
    Session(SessionHead),
    /// A message of the conversation.
    Message(Message),
    /// An accepted channel message whose turn is started once more.
    Inbox(InboxRecord),
    /// This channel message is answered.
    CloseInbox {
        /// Its number.
        number: u64,
    },
    /// An effect on another system.
    Outbox(OutboxJob),
    /// Something to be found again.
    Remember(Memory),
}

/// A message on its way into the memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Memory {
    /// Whose memory.
    pub user: UserId,
    /// Which message of the conversation.
    pub seq: u64,
    /// Its text.
    pub text: String,
    /// When it was said.
    pub at_ms: u64,
    /// Its vector; empty when none could be computed.
    pub embedding: Vec<f32>,
}

/// What the one who waits is told. `Done` and `Failed` are terminal; for messages of channels so is `Accepted`.
#[derive(Clone, Debug)]
pub enum Reply {
    /// The message is durable.
    Accepted,
    /// The model has begun.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// How many of them were cached.
        cached_tokens: u32,
    },
    /// More of the answer.
    Delta {
        /// Whole characters only.
        text: String,
        /// Empty unless asked for.
        logprobs: Vec<TokenInfo>,
    },
    /// Something the user should know, also recorded in the conversation.
    Notice {
        /// For people.
        text: String,
    },
    /// The answer is complete and durable.
    Done {
        /// Why it ended.
        reason: Finish,
        /// Tokens.
        usage: Usage,
        /// Times.
        timings: Timings,
        /// Sequence number of the answer; None when it was empty.
        seq: Option<u64>,
    },
    /// There will be no (further) answer.
    Failed(TurnError),
}

impl Reply {
    /// Whether nothing follows for an interactive arrival.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Reply::Done { .. } | Reply::Failed(_))
    }
}

/// Why a turn has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnError {
    /// Too many turns wait in this conversation.
    ConversationBusy {
        /// How many may wait.
        waiting_max: usize,
    },
    /// The shard has no room for another turn or conversation.
    Overloaded {
        /// What is full, with its bound.
        what: &'static str,
        /// The bound.
        max: usize,
    },
    /// A cap against runaway conversations.
    TooFast {
        /// Which cap.
        what: &'static str,
        /// The cap.
        max: u64,
        /// When there is room again.
        retry_after_ms: u64,
    },
    /// The message cannot fit, whatever is left out.
    ContextTooLong {
        /// Tokens that system prompt, message and template need.
        prompt_tokens: u32,
        /// Tokens kept for the reply.
        reply_tokens: u32,
        /// Tokens of the whole context.
        context_tokens_max: u32,
    },
    /// The chat template of the model refused the conversation.
    Template(String),
    /// The message or the answer could not be stored.
    Storage(Fault),
    /// The engine has no room.
    ModelBusy {
        /// When it makes sense to try again.
        retry_after_ms: u64,
        /// What is full.
        why: String,
    },
    /// The engine failed.
    Model(String),
    /// The turn took too long.
    Deadline {
        /// Its limit.
        limit_ms: u64,
    },
    /// Somebody stopped it.
    Cancelled,
}

impl std::fmt::Display for TurnError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TurnError::ConversationBusy { waiting_max } => {
                write!(f, "{waiting_max} messages are already waiting for an answer in this conversation")
            }
            TurnError::Overloaded { what, max } => write!(f, "all {max} {what} are in use"),
            TurnError::TooFast { what, max, .. } => write!(f, "this conversation has used its {max} {what}"),
            TurnError::ContextTooLong { prompt_tokens, reply_tokens, context_tokens_max } => write!(
                f,
                "the message needs {prompt_tokens} tokens with the system prompt, {reply_tokens} are kept for the reply, \
                 and the model's context holds {context_tokens_max}"
            ),
            TurnError::Template(why) => write!(f, "the model's chat template refused the conversation: {why}"),
            TurnError::Storage(fault) => write!(f, "{fault}"),
            TurnError::ModelBusy { why, .. } => write!(f, "the model is busy: {why}"),
            TurnError::Model(why) => write!(f, "the model failed: {why}"),
            TurnError::Deadline { limit_ms } => write!(f, "no answer within {} s", limit_ms / 1000),
            TurnError::Cancelled => f.write_str("the turn was stopped"),
        }
    }
}

impl std::error::Error for TurnError {}
