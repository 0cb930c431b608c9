//! The memory plan: what a configuration may take at most, before anything is taken.

use std::fmt;

use crate::config::Config;

/// What one hot session holds: its head and recent messages.
const SESSION_BYTES: u64 = 16 << 10;
/// What one open connection holds: buffers of the connection and of the kernel.
const CONNECTION_BYTES: u64 = 8 << 10;
/// What one reactor holds: stack, ring, mailbox, counters.
const REACTOR_BYTES: u64 = 2 << 20;
/// Scratch of one row of the batch over all its layers: activations, logits of a large vocabulary.
const SEQUENCE_BYTES: u64 = 512 << 10;
/// Code, allocator slack, log, control thread.
const PROCESS_BYTES: u64 = 32 << 20;
/// The KV pool of the small model is one part in this many of the chat model's.
pub const SMALL_KV_PART: usize = 4;
/// Connections that are planned as busy at once; idle ones hold almost nothing.
const CONNECTIONS_PLANNED_MAX: usize = 4096;

/// One line of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What takes the memory, with its factors.
    pub what: String,
    /// How much.
    pub bytes: u64,
}

/// The whole plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Its parts.
    pub parts: Vec<Part>,
    /// `MEMORY_LIMIT`.
    pub limit: u64,
}

impl Plan {
    /// The plan of a configuration with these weights on disk; a draft model's count with the chat model's.
    pub fn new(config: &Config, chat_bytes: u64, encoder_bytes: u64) -> Self {
        let engine = &config.engine;
        let mut parts = Vec::new();
        let mut part = |what: String, bytes: u64| parts.push(Part { what, bytes });
        let draft = if config.draft_model.is_some() { " and draft model" } else { "" };
        let small = if config.small_model.is_some() { " and small model" } else { "" };
        part(format!("chat model{draft}{small} weights, packed for the kernels"), chat_bytes);
        if encoder_bytes > 0 {
            part("encoder weights".into(), encoder_bytes);
        }
        part(format!("KV pool (engine.kv_mib = {})", engine.kv_mib), (engine.kv_mib as u64) << 20);
        if config.small_model.is_some() {
            let kv_mib = engine.kv_mib.div_ceil(SMALL_KV_PART);
            part(format!("KV pool of the small model ({kv_mib} MiB)"), (kv_mib as u64) << 20);
        }
        let rows = (engine.sequences_max + engine.prefill_chunk) as u64;
        part(
            format!(
                "step scratch ({} sequences + {} prompt rows x 0.5 MiB)",
                engine.sequences_max, engine.prefill_chunk
            ),
            rows * SEQUENCE_BYTES,
        );
        part(
            format!("store (storage.cache_mib = {})", config.storage.cache_mib),
            (config.storage.cache_mib as u64) << 20,
        );
        let sessions = config.agent.sessions_hot_max * config.workers;
        part(format!("{sessions} hot sessions x 16 KiB"), sessions as u64 * SESSION_BYTES);
        let connections = config.limits.connections_max.min(CONNECTIONS_PLANNED_MAX);
        part(format!("{connections} busy connections x 8 KiB"), connections as u64 * CONNECTION_BYTES);
        part(format!("{} reactors x 2 MiB", config.workers), config.workers as u64 * REACTOR_BYTES);
        part("process".into(), PROCESS_BYTES);
        Self { parts, limit: config.memory_limit }
    }

    /// The sum of all parts.
    pub fn total(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.bytes))
    }

    /// Does it fit?
    pub fn fits(&self) -> bool {
        self.total() <= self.limit
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        for part in &self.parts {
            writeln!(f, "  {:>10.1} MiB  {}", mib(part.bytes), part.what)?;
        }
        let (sign, word) = if self.fits() { ("<=", "fits") } else { (">", "does not fit") };
        write!(f, "  {:>10.1} MiB  in all {sign} MEMORY_LIMIT {:.1} MiB: {word}", mib(self.total()), mib(self.limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, Machine, load_from};

    fn config(memory: &str, kv: &str) -> Config {
        let values =
            [("memory_limit", memory.to_owned()), ("engine.kv_mib", kv.to_owned()), ("data", "/nowhere".into())];
        let flags = Flags { config: None, values: values.into() };
        load_from(&flags, &|_| None, &Machine { memory_bytes: 8 << 30, cpus: 2 }).unwrap().config
    }

    #[test]
    fn the_sum_is_the_sum_of_its_parts_and_decides() {
        let plan = Plan::new(&config("4GiB", "1024"), 100 << 20, 90 << 20);
        assert_eq!(plan.total(), plan.parts.iter().map(|part| part.bytes).sum::<u64>());
        assert!(plan.fits(), "{plan}");
        let tight = Plan::new(&config("128MiB", "4096"), 100 << 20, 0);
        assert!(!tight.fits());
        let text = tight.to_string();
        assert!(text.contains("4096.0 MiB") && text.contains("128.0 MiB: does not fit"), "{text}");
    }
}
