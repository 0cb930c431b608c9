//! Settings of the CPU backend.

/// How the CPU backend uses the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// Threads that compute, the calling thread included. More than the physical cores only costs.
    pub threads: usize,
    /// Cores to pin the threads to, first the calling thread; `None` leaves them to the system.
    pub cpus: Option<Vec<usize>>,
    /// Scheduling priority of the computing threads: 0 is normal, 19 yields to everybody.
    pub nice: i32,
    /// Bytes for keys and values. Raising it costs exactly that much memory once it has been used.
    pub kv_bytes_max: usize,
    /// Highest position + 1 of a token; capped by what the model was trained for.
    pub context_max: usize,
    /// Most tokens in one step. Work buffers grow with it: about 20 KiB per token for a 135M model.
    pub step_tokens_max: usize,
    /// Most rows of logits in one step.
    pub step_logits_max: usize,
}
