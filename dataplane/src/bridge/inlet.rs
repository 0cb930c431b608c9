//! Where other threads leave what they have finished for a shard.
//!
//! Everything in here answers something that this shard asked for, and the shard bounds what it asks for
//! (open turns, deliveries, sequences of the engine), so the lists are bounded without a limit of their
//! own: refusing a completion is never right. The mailbox only carries the doorbell. When even that finds
//! no room the shard looks by itself at its next tick.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use millrace_agent::{ConversationKey, Fact, Fault, Loaded, OpId, Verdict};
use millrace_inference as engine;
use millrace_proto::id::EffectKey;
use millrace_proto::record::OutboxJob;

use super::message::ShardMessage;
use super::state::DraftAnswer;
use crate::shard::MailboxSender;

/// Something that another thread has finished.
pub(super) enum Completion {
    /// A conversation for the agent, which had to be read from the disk.
    Loaded { key: ConversationKey, id: u64, result: Result<Loaded, Fault> },
    /// A batch of the agent.
    Persisted { op: OpId, result: Result<(), Fault> },
    /// A vector for the agent.
    Embedded { op: OpId, result: Result<Vec<f32>, String> },
    /// Facts for the agent.
    Recalled { op: OpId, result: Result<Vec<Fact>, String> },
    /// A state of a delivery.
    Committed { key: EffectKey, durable: bool },
    /// A call of a delivery.
    Called { key: EffectKey, verdict: Verdict },
    /// A delivery that an operator gave another chance.
    Resubmitted { ticket: u64, job: Box<OutboxJob>, result: Result<(), Fault> },
    /// Vectors for a request.
    Vectors { call: u64, result: Result<Vec<Vec<f32>>, String> },
    /// The message that a reply was to replace is gone.
    DraftGone { key: EffectKey, why: String },
    /// A call that showed a part of a reply.
    Draft { key: EffectKey, answer: DraftAnswer },
    /// The fetch of a platform's keys has ended.
    KeysCame { call: u64 },
    /// Facts for a request.
    Facts { call: u64, result: Result<Vec<Fact>, String> },
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

    /// Lets the shard look here when it has done what it is about to do.
    pub fn ring(&self) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::mailbox;
    use millrace_inference::Outlet as _;

    fn completion() -> Completion {
        Completion::Vectors { call: 1, result: Ok(Vec::new()) }
    }

    fn taken(inlet: &Inlet) -> (usize, usize) {
        let (mut completions, mut outputs) = (Vec::new(), Vec::new());
        inlet.take(&mut completions, &mut outputs);
        (completions.len(), outputs.len())
    }

    #[test]
    fn many_completions_ring_once_until_they_are_taken() {
        let (sender, receiver) = mailbox::channel(8);
        let inlet = Inlet::new(sender);
        for _ in 0..100 {
            inlet.complete(completion());
            inlet.push(7, engine::Output::Started { cached_tokens: 0 });
            inlet.wake();
        }
        assert_eq!(receiver.drain(8, drop), 1);
        assert_eq!(taken(&inlet), (100, 100));
        inlet.complete(completion());
        assert_eq!(receiver.drain(8, drop), 1, "what comes after a take rings again");
    }

    #[test]
    fn a_full_mailbox_loses_the_bell_and_not_the_completion() {
        let (sender, receiver) = mailbox::channel(1);
        sender.send(ShardMessage::Doorbell).expect("room");
        let inlet = Inlet::new(sender);
        inlet.complete(completion());
        assert_eq!(taken(&inlet), (1, 0), "the shard looks by itself");
        receiver.drain(1, drop);
        inlet.complete(completion());
        assert_eq!(receiver.drain(1, drop), 1, "and the bell works again");
    }
}
