//! The same things in the words of the agent, the store, the engine and the API.

use std::time::Duration;

use millrace_agent::{
    AgentConfig, ConversationKey, Fact, Fault, Finish, Inbound, Output, Ticket, Timings, TurnError, Usage, Write,
};
use millrace_inference as engine;
use millrace_proto::api::ApiError;
use millrace_proto::channel::ChannelKind;
use millrace_storage::{Batch, CommitError, MemoryWrite, Recalled};

use super::errors::{submit_error, turn_error};
use super::outbox;
use super::stream::StreamEvent;
use crate::shard::Shared;

/// The upper bits of a ticket name the shard whose connection waits.
pub(super) const TICKET_SHARD_SHIFT: u32 = 48;
/// What the memory plan reckons for a hot session. A longer one takes the room of others.
const HOT_SESSION_BYTES: usize = 16 << 10;
/// Messages of channels that one shard works on at the same time, at least.
const CHANNEL_TURNS_MIN: usize = 8;
/// Tokens of recalled facts in one context.
const RECALL_TOKENS_MAX: u32 = 512;

pub(super) fn agent_config(shared: &Shared) -> AgentConfig {
    let options = &shared.config.agent;
    let context_tokens_max = u32::try_from(shared.engine.context_max()).unwrap_or(u32::MAX);
    let wanted = u32::try_from(options.reply_tokens_max).unwrap_or(u32::MAX);
    AgentConfig {
        system_prompt: options.system_prompt.clone(),
        context_tokens_max,
        // A small model has a small context: half of it at least belongs to the question.
        reply_tokens_max: wanted.clamp(1, (context_tokens_max / 2).max(1)),
        recall_items_max: options.recall_items_max,
        // Facts are read anew in every turn, so they cost time to the first token.
        recall_tokens_max: (context_tokens_max / 5).clamp(64, RECALL_TOKENS_MAX),
        embedding: shared.embedder.is_some(),
        window_messages_max: options.window_messages_max.max(1),
        conversations_max: options.sessions_hot_max.max(1),
        channel_turns_max: channel_turns(shared.config.engine.sequences_max, shared.shard_count()),
        hot_bytes_max: options.sessions_hot_max.max(1) * HOT_SESSION_BYTES,
        inbox_ttl_ms: u64::try_from(options.reply_ttl.as_millis()).unwrap_or(u64::MAX / 2),
        outbox_ttl_ms: u64::try_from(options.reply_ttl.as_millis()).unwrap_or(u64::MAX / 2),
        turn_deadline_ms: u64::try_from(options.turn_deadline.as_millis()).unwrap_or(u64::MAX / 2),
        dedup_ttl_ms: ChannelKind::ALL.iter().map(|kind| kind.dedup_ttl_ms()).max().unwrap_or_default(),
        split: outbox::split_reply,
        ..AgentConfig::default()
    }
}

/// Twice what the engine works on at the same time, shared by all shards: the next prompts are ready when a place is
/// free, and those of people at a connection find room in its queue.
fn channel_turns(sequences_max: usize, shards: usize) -> usize {
    (2 * sequences_max).div_ceil(shards.max(1)).max(CHANNEL_TURNS_MIN)
}

pub(super) fn shard_of(ticket: Ticket) -> usize {
    usize::try_from(ticket.0 >> TICKET_SHARD_SHIFT).unwrap_or(usize::MAX)
}

/// `extract`: what is remembered waits for an extraction too.
pub(super) fn batch_of(key: ConversationKey, writes: Vec<Write>, extract: bool) -> Batch {
    let mut batch = Batch::new();
    for write in writes {
        match write {
            Write::Session(head) => batch.put_session(&head),
            Write::Message(message) => batch.append_message(key.tenant, key.conversation, &message),
            Write::Inbox(record) => batch.put_inbox(&record),
            Write::CloseInbox { number } => batch.close_inbox(key.tenant, key.conversation, number),
            Write::Outbox(job) => outbox::put(&mut batch, &job),
            Write::Remember(memory) => {
                let (tenant, conversation, user, seq) = (key.tenant, key.conversation, memory.user, memory.seq);
                let (text, at_ms, embedding) = (memory.text, memory.at_ms, memory.embedding);
                batch.remember(MemoryWrite { tenant, user, conversation, seq, text, at_ms, embedding });
                if extract {
                    batch.let_extract(tenant, user, conversation, seq);
                }
            }
        }
    }
    batch
}

pub(super) fn accept_batch(messages: &[Inbound], dedup_expires_ms: u64) -> Batch {
    let mut batch = Batch::new();
    for Inbound { record, dedup_scope, .. } in messages {
        batch.put_inbox(record);
        batch.put_dedup(record.tenant, dedup_scope, &record.event_key, dedup_expires_ms);
    }
    batch
}

pub(super) fn fault(error: CommitError) -> Fault {
    match error {
        CommitError::NoSpace { .. } => Fault::NoSpace,
        CommitError::Closed => Fault::Closed,
        other => Fault::Io(other.to_string()),
    }
}

pub(super) fn fact(recalled: Recalled) -> Fact {
    let Recalled { conversation, seq, text, at_ms, score, .. } = recalled;
    Fact { conversation, seq, text, at_ms, score, citation: None }
}

pub(super) fn finish(reason: engine::FinishReason) -> Finish {
    match reason {
        engine::FinishReason::Stop => Finish::Stop,
        engine::FinishReason::Length => Finish::Length,
        engine::FinishReason::Cancelled => Finish::Cancelled,
        engine::FinishReason::Deadline => Finish::Deadline,
        engine::FinishReason::Constraint(error) => Finish::Failed(error.to_string()),
        engine::FinishReason::Error(why) => Finish::Failed(why),
    }
}

pub(super) fn usage_of(usage: engine::Usage) -> Usage {
    Usage { prompt: usage.prompt, completion: usage.completion, cached: usage.cached }
}

pub(super) fn timings_of(timings: engine::Timings) -> Timings {
    let us = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX);
    Timings { queue_us: us(timings.queue), prefill_us: us(timings.prefill), decode_us: us(timings.decode) }
}

/// An output of a generation without a session, as its reader sees it.
pub(super) fn stream_event(output: Output, prompt_tokens: u32) -> StreamEvent {
    match output {
        Output::Started { cached_tokens } => StreamEvent::Started { prompt_tokens, cached_tokens },
        Output::Delta { text, logprobs } => StreamEvent::Delta { text, tokens: logprobs },
        Output::Refused { retry_after_ms, why } => {
            StreamEvent::Error(turn_error(&TurnError::ModelBusy { retry_after_ms, why }))
        }
        Output::Done { reason: reason @ (Finish::Stop | Finish::Length), usage, timings } => {
            StreamEvent::Done { reason, usage, timings, message_seq: None }
        }
        Output::Done { reason: Finish::Cancelled, .. } => {
            // The reader has left, or the engine is shutting down under it.
            StreamEvent::Error(submit_error(&engine::SubmitError::Closed))
        }
        Output::Done { reason: Finish::Deadline, .. } => {
            StreamEvent::Error(ApiError::timeout("The answer took longer than a request may take."))
        }
        Output::Done { reason: Finish::Failed(why), .. } => {
            tracing::error!(why, "a generation failed");
            StreamEvent::Error(turn_error(&TurnError::Model(why)))
        }
    }
}
