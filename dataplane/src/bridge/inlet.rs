//! Where other threads leave what they have finished for a shard.
//!
//! Everything in here answers something that this shard asked for, and the shard bounds what it asks for
//! (open turns, deliveries, sequences of the engine), so the lists are bounded without a limit of their
//! own: refusing a completion is never right. The mailbox only carries the doorbell. When even that finds
//! no room the shard looks by itself at its next tick.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use millrace_agent::{Fault, OpId, Verdict};
use millrace_inference as engine;
use millrace_proto::id::EffectKey;
use millrace_proto::record::OutboxJob;
use millrace_storage::Recalled;

use super::message::ShardMessage;
use crate::shard::MailboxSender;

/// Something that another thread has finished.
pub(super) enum Completion {
    /// A batch of the agent.
    Persisted { op: OpId, result: Result<(), Fault> },
    /// A vector for the agent.
    Embedded { op: OpId, result: Result<Vec<f32>, String> },
    /// Facts for the agent.
    Recalled { op: OpId, result: Result<Vec<Recalled>, String> },
    /// A state of a delivery.
    Committed { key: EffectKey, durable: bool },
    /// A call of a delivery.
    Called { key: EffectKey, verdict: Verdict },
    /// A delivery that an operator gave another chance.
    Resubmitted { ticket: u64, job: Box<OutboxJob>, result: Result<(), Fault> },
    /// Vectors for a request.
    Vectors { call: u64, result: Result<Vec<Vec<f32>>, String> },
    /// Facts for a request.
    Facts { call: u64, result: Result<Vec<Recalled>, String> },
}

/// The lists of one shard.
pub(super) struct Inlet {
    completions: Mutex<Vec<Completion>>,
    outputs: Mutex<Vec<(u64, engine::Output)>>,
    /// A doorbell is under way.
    rung: AtomicBool,
    mailbox: MailboxSender,
}

impl Inlet {
    pub fn new(mailbox: MailboxSender) -> Self {
        Self { completions: Mutex::default(), outputs: Mutex::default(), rung: AtomicBool::new(false), mailbox }
    }

    pub fn complete(&self, completion: Completion) {
        self.completions.lock().unwrap_or_else(PoisonError::into_inner).push(completion);
        self.ring();
    }

    /// Takes everything. The bell is disarmed first: what comes in afterwards rings again.
    pub fn take(&self, completions: &mut Vec<Completion>, outputs: &mut Vec<(u64, engine::Output)>) {
        self.rung.store(false, Ordering::SeqCst);
        std::mem::swap(&mut *self.completions.lock().unwrap_or_else(PoisonError::into_inner), completions);
        std::mem::swap(&mut *self.outputs.lock().unwrap_or_else(PoisonError::into_inner), outputs);
    }

    fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) && self.mailbox.send(ShardMessage::Doorbell).is_err() {
            self.rung.store(false, Ordering::SeqCst);
        }
    }
}

/// The engine pushes what one step produced and rings once.
impl engine::Outlet for Inlet {
    fn push(&self, ticket: u64, output: engine::Output) {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner).push((ticket, output));
    }

    fn wake(&self) {
        self.ring();
    }
}
