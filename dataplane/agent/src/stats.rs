//! Plain counters; the shell exports them.

/// What an agent has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AgentStats {
    /// Arrivals that became durable.
    pub turns_accepted: u64,
    /// Turns that ended with an answer.
    pub turns_answered: u64,
    /// Turns that ended with an error after they were accepted.
    pub turns_failed: u64,
    /// Turns that were stopped.
    pub turns_cancelled: u64,
    /// Arrivals that were refused before anything was written.
    pub turns_refused: u64,
    /// Channel messages that ended as dead letters.
    pub dead_letters: u64,
    /// Turns that went on without (all of) their recall.
    pub recall_degraded: u64,
    /// Turns whose context left older messages out.
    pub contexts_cut: u64,
    /// Generations that the engine refused and that were tried again.
    pub generations_retried: u64,
    /// Conversations that left the hot set.
    pub conversations_evicted: u64,
}
