//! The checked options of the agent. Every bound has a name here, and what raising it costs.

use millrace_proto::record::ChatAddress;

/// Options of one agent; the same on all shards.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// First message of every context.
    pub system_prompt: String,
    /// Tokens that prompt and reply together may take: the engine's limit.
    pub context_tokens_max: u32,
    /// Tokens kept free for a reply when the request names no limit, and the cap of such a reply.
    pub reply_tokens_max: u32,
    /// Recalled facts in one context; 0 turns recall off.
    pub recall_items_max: usize,
    /// Tokens of all recalled facts in one context.
    pub recall_tokens_max: u32,
    /// How long embedding and recall may take together before the turn goes on without them.
    pub recall_deadline_ms: u64,
    /// Whether an embedding model is there; without one recall is by words and graph only.
    pub embedding: bool,
    /// Messages loaded for a conversation and kept hot. Costs memory per hot conversation.
    pub window_messages_max: usize,
    /// Bytes of message text kept hot for a conversation.
    pub window_bytes_max: usize,
    /// Conversations kept hot. The least recently used idle one goes first.
    pub conversations_max: usize,
    /// Bytes of all hot windows together; beyond it idle conversations leave, however few they are.
    pub hot_bytes_max: usize,
    /// Turns that may wait behind the running one of a conversation.
    pub queue_turns_max: usize,
    /// Open turns of the whole shard, waiting and running.
    pub open_turns_max: usize,
    /// How many of them may answer messages of channels. Messages beyond it wait in the inbox on disk: more turns at
    /// once than the engine takes would only cost memory and be refused by it.
    pub channel_turns_max: usize,
    /// Accepted messages that may wait in the inbox; what comes then is refused. Each conversation among them costs
    /// about 100 bytes of memory.
    pub inbox_waiting_max: usize,
    /// From the start of the work on a turn to the end of its reply.
    pub turn_deadline_ms: u64,
    /// What the engine may take beyond its deadline before it counts as hung.
    pub engine_grace_ms: u64,
    /// A channel message older than this is not answered any more but becomes a dead letter.
    pub inbox_ttl_ms: u64,
    /// Starts of the work on one inbox record, counted over restarts, before it becomes a dead letter.
    pub inbox_attempts_max: u32,
    /// How long the dedup key of a channel event is kept; longer than any platform redelivers.
    pub dedup_ttl_ms: u64,
    /// How long a reply may wait for its delivery.
    pub outbox_ttl_ms: u64,
    /// First pause before a refused generation or a failed batch is tried again; it doubles.
    pub retry_first_ms: u64,
    /// Longest such pause.
    pub retry_max_ms: u64,
    /// Turns of one conversation in a minute.
    pub turns_per_minute_max: u32,
    /// The same for conversations on channels: a chat is typed by people, and two bots that answer each other
    /// must be slowed down. What comes faster waits.
    pub channel_turns_per_minute_max: u32,
    /// Prompt and reply tokens of one conversation in an hour.
    pub tokens_per_hour_max: u64,
    /// Cuts a reply into the parts which the channel can carry. Must return at least one part.
    pub split: fn(&ChatAddress, &str) -> Vec<String>,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            system_prompt: "You are a helpful assistant.".to_owned(),
            context_tokens_max: 2048,
            reply_tokens_max: 512,
            recall_items_max: 6,
            recall_tokens_max: 384,
            recall_deadline_ms: 1_500,
            embedding: true,
            window_messages_max: 256,
            window_bytes_max: 256 * 1024,
            conversations_max: 4_096,
            hot_bytes_max: 64 << 20,
            queue_turns_max: 16,
            open_turns_max: 4_096,
            channel_turns_max: 64,
            inbox_waiting_max: 1 << 19,
            turn_deadline_ms: 600_000,
            engine_grace_ms: 5_000,
            inbox_ttl_ms: 6 * 3_600_000,
            inbox_attempts_max: 10,
            dedup_ttl_ms: 7 * 24 * 3_600_000,
            outbox_ttl_ms: 24 * 3_600_000,
            retry_first_ms: 250,
            retry_max_ms: 10_000,
            turns_per_minute_max: 240,
            channel_turns_per_minute_max: 30,
            tokens_per_hour_max: 4_000_000,
            split: |_, text| vec![text.to_owned()],
        }
    }
}

/// A combination of options that could never answer anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The option that is wrong.
    pub option: &'static str,
    /// What is wrong with it and what to do.
    pub why: String,
}

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.option, self.why)
    }
}

impl std::error::Error for ConfigError {}

impl AgentConfig {
    /// Refuses options with which every turn would fail.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |option, why: String| Err(ConfigError { option, why });
        if self.context_tokens_max < 64 {
            return refuse(
                "context_tokens_max",
                format!("{} tokens cannot hold a question; set at least 64", self.context_tokens_max),
            );
        }
        if self.reply_tokens_max == 0 || self.reply_tokens_max > self.context_tokens_max / 2 {
            return refuse(
                "reply_tokens_max",
                format!(
                    "{} must lie between 1 and half of the context of {} tokens; lower it or choose a larger context",
                    self.reply_tokens_max, self.context_tokens_max
                ),
            );
        }
        for (option, value) in [
            ("window_messages_max", self.window_messages_max),
            ("window_bytes_max", self.window_bytes_max),
            ("conversations_max", self.conversations_max),
            ("open_turns_max", self.open_turns_max),
            ("channel_turns_max", self.channel_turns_max),
            ("inbox_waiting_max", self.inbox_waiting_max),
            ("inbox_attempts_max", self.inbox_attempts_max as usize),
            ("turns_per_minute_max", self.turns_per_minute_max as usize),
            ("channel_turns_per_minute_max", self.channel_turns_per_minute_max as usize),
        ] {
            if value == 0 {
                return refuse(option, "must be at least 1".to_owned());
            }
        }
        if self.retry_first_ms == 0 || self.retry_max_ms < self.retry_first_ms {
            return refuse(
                "retry_max_ms",
                "the retry pauses must be positive and the longest not below the first".to_owned(),
            );
        }
        Ok(())
    }

    /// The pause before try number `attempt` (0 = first retry): doubling, capped.
    pub(crate) fn pause_ms(&self, attempt: u32) -> u64 {
        self.retry_first_ms.saturating_mul(1u64 << attempt.min(20)).min(self.retry_max_ms)
    }
}
