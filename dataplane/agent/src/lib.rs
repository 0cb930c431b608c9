//! What to do next in a conversation, and nothing else.
//!
//! [`Agent`] is a state machine without a socket, a file, a thread, a clock or randomness: it is told
//! what happened ([`Event`]) and what time it is, and it says what is to be done ([`Effect`]). One agent
//! belongs to one shard and is the only owner of that shard's conversations, so the order inside a
//! conversation follows from single ownership and needs no lock.
//!
//! A turn goes this way, and no step starts before the one above it is durable or has been given up:
//!
//! ```text
//! Arrived  ─▶ (Load head + history) ─▶ Persist user message ──────────────────────────┐
//! Received ─▶ Accept: inbox record + dedup key, in batches ─▶ the inbox ─▶ TakeUp ────┤
//!         ─▶ Embed + Recall, with a deadline; late or failing = the turn goes on without
//!         ─▶ assemble the context under the token budget ─▶ Generate, with a deadline
//!         ─▶ Persist reply + memory + outbox jobs + closed inbox record in ONE batch ─▶ Done, Deliver
//! ```
//!
//! A message of a channel holds no place in memory until its turn begins: accepted messages wait in the inbox on disk,
//! and are taken up from there when there is room, one per conversation, the same way after a restart.
//!
//! [`Delivery`] is the second machine: it brings outbox jobs to their peers, in order per chat, and
//! knows the difference between "not sent", "delivered" and "nobody can tell".
//!
//! [`People`] knows which users of different channels are one person, because they said so, and how each group wants
//! to be answered; [`Command`] is how they say it.
//!
//! [`extract`] turns what users said into statements with times, by whatever model there is.
//!
//! Invariants, each of them driven by random event sequences in `tests/`:
//! - no answer without a durable question; exactly one terminal reply for every arrival;
//! - at most one running turn per conversation, a bounded queue behind it, bounded hot conversations;
//! - effect keys are (conversation, turn, step): the same work repeated after a crash has the same keys;
//! - a channel message that was accepted ends in a reply, in a visible error, or in a dead letter.

mod agent;
mod backlog;
mod command;
mod config;
mod context;
mod conversation;
mod delivery;
mod effect;
mod event;
pub mod extract;
mod people;
mod stats;

pub use agent::Agent;
pub use command::{Command, HELP};
pub use config::{AgentConfig, ConfigError};
pub use context::{Assembled, ContextInput, ContextTooLong, PromptMessage, Prompter, assemble};
pub use delivery::{Delivery, DeliveryConfig, DeliveryEffect, DeliveryEvent, Permit, Verdict};
pub use effect::{DraftPart, Effect, Memory, Reply, TurnError, Write};
pub use event::{
    Arrival, ConversationKey, Event, Fact, Fault, Finish, GenerationOptions, Inbound, Loaded, OpId, Output, RunId,
    Ticket, Timings, TokenInfo, Usage,
};
pub use people::{CODE_CHARS, CODE_TTL_MS, Change, Listen, PageKey, People, Refused, Table};
pub use stats::AgentStats;
