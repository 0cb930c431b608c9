//! Measures the CPU backend on a model: what `millrace bench engine` prints and `millrace tune` decides by.
//!
//! Only the backend runs: no queue, no sampling, no network. Other programs on the machine make single runs slower and
//! never faster, so the best of several tells what the code can do and the median what was left of the machine.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::{
    Backend, BackendError, BackendStartError, CpuBackend, CpuConfig, LogitsBuf, LogitsWanted, StepPlan,
};
use crate::kv::{BLOCK_TOKENS, BlockId, KvFormat, blocks_for};
use crate::model::{Model, ModelInfo};

/// What is going to be measured: memory is taken for it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Most tokens of a prompt.
    pub prefill_max: usize,
    /// Most sequences that decode together.
    pub sequences_max: usize,
    /// Tokens that each of them has when decoding starts.
    pub context: usize,
    /// Tokens that each of them decodes.
    pub steps: usize,
    /// How keys and values are kept.
    pub kv_format: KvFormat,
}

impl Extent {
    fn blocks(&self) -> usize {
        blocks_for(self.prefill_max).max(self.sequences_max * blocks_for(self.context + self.steps))
    }

    /// Memory that keys and values of a model will take.
    pub fn kv_bytes(&self, model: &ModelInfo) -> usize {
        self.blocks() * BLOCK_TOKENS * model.kv_token_bytes(self.kv_format)
    }
}

/// Times of equal runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Tokens of one run, over all sequences.
    pub tokens: usize,
    /// Shortest run.
    pub best: Duration,
    /// Median run.
    pub median: Duration,
}

impl Sample {
    fn of(tokens: usize, mut runs: Vec<Duration>) -> Sample {
        runs.sort_unstable();
        Sample { tokens, best: runs[0], median: runs[runs.len() / 2] }
    }

    /// Tokens a second in the best run.
    pub fn best_per_second(&self) -> f64 {
        self.tokens as f64 / self.best.as_secs_f64()
    }

    /// Tokens a second in the median run.
    pub fn median_per_second(&self) -> f64 {
        self.tokens as f64 / self.median.as_secs_f64()
    }
}

/// A backend that is measured.
pub struct Meter {
    backend: CpuBackend,
    logits: LogitsBuf,
    plan: StepPlan,
    vocabulary: u32,
}

impl Meter {
    /// Starts a backend with so many threads and memory for the extent.
    pub fn new(model: Arc<Model>, threads: usize, extent: &Extent) -> Result<Meter, BackendStartError> {
        let config = CpuConfig {
            threads,
            cpus: None,
            nice: 0,
            kv_format: extent.kv_format,
            kv_bytes_max: extent.kv_bytes(model.info()),
            context_max: extent.prefill_max.max(extent.context + extent.steps),
            step_tokens_max: extent.prefill_max.max(extent.sequences_max),
            step_logits_max: extent.sequences_max,
        };
        let vocabulary = model.info().vocab as u32;
        let mut backend = CpuBackend::new(model, &config)?;
        backend.attach();
        let logits = LogitsBuf::new(&backend.limits());
        Ok(Meter { backend, logits, plan: StepPlan::new(), vocabulary })
    }

    /// One prompt of so many tokens in one step, after a run that is not counted.
    pub fn prefill(&mut self, tokens: usize, repeats: usize) -> Result<Sample, BackendError> {
        let ids: Vec<u32> = (0..tokens).map(|position| self.token(position)).collect();
        let blocks: Vec<BlockId> = (0..blocks_for(tokens) as u32).map(BlockId).collect();
        self.plan.clear();
        self.plan.push(&ids, 0, &blocks, LogitsWanted::Last);
        self.step()?;
        let runs = (0..repeats.max(1)).map(|_| self.step()).collect::<Result<_, _>>()?;
        Ok(Sample::of(tokens, runs))
    }

    /// So many sequences that have `context` tokens each decode `steps` tokens each.
    pub fn decode(
        &mut self,
        sequences: usize,
        context: usize,
        steps: usize,
        repeats: usize,
    ) -> Result<Sample, BackendError> {
        let each = blocks_for(context + steps) as u32;
        let tables: Vec<Vec<BlockId>> =
            (0..sequences as u32).map(|index| (index * each..(index + 1) * each).map(BlockId).collect()).collect();
        let mut runs = Vec::new();
        for _ in 0..repeats.max(1) {
            let mut run = Duration::ZERO;
            for position in context..context + steps {
                self.plan.clear();
                for (index, table) in tables.iter().enumerate() {
                    self.plan.push(&[self.token(position + index)], position, table, LogitsWanted::Last);
                }
                run += self.step()?;
            }
            runs.push(run);
        }
        Ok(Sample::of(sequences * steps, runs))
    }

    fn step(&mut self) -> Result<Duration, BackendError> {
        let started = Instant::now();
        self.backend.step(&self.plan, &mut self.logits)?;
        Ok(started.elapsed())
    }

    /// Any tokens will do: the work does not depend on them. These are spread over the embedding.
    fn token(&self, position: usize) -> u32 {
        (position as u32).wrapping_mul(2_654_435_761) % self.vocabulary
    }
}

/// Bytes that each thread reads: more than any cache level holds.
const READ_BYTES: usize = 128 << 20;
const READ_PASSES: usize = 4;

/// Bytes a second that so many threads read from memory together: a step cannot be faster than its weights arrive.
/// The best of a few passes.
pub fn read_bandwidth(threads: usize) -> f64 {
    let buffers: Vec<Vec<u64>> = (0..threads.max(1)).map(|index| vec![index as u64 + 1; READ_BYTES / 8]).collect();
    let pass = || {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for buffer in &buffers {
                scope.spawn(|| black_box(sum(buffer)));
            }
        });
        started.elapsed().as_secs_f64()
    };
    let best = (0..READ_PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min);
    (buffers.len() * READ_BYTES) as f64 / best
}

/// Eight sums, so that additions wait for memory and not for each other.
fn sum(buffer: &[u64]) -> u64 {
    let mut sums = [0_u64; 8];
    for words in buffer.as_chunks::<8>().0 {
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter().fold(0, |total, sum| total.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_from_the_best_and_the_median_run() {
        let runs = [4, 1, 2].map(Duration::from_secs).to_vec();
        let sample = Sample::of(8, runs);
        assert_eq!((sample.best_per_second(), sample.median_per_second()), (8.0, 4.0));
    }

    #[test]
    fn reading_memory_takes_time() {
        let bandwidth = read_bandwidth(1);
        assert!(bandwidth > 1e6 && bandwidth < 1e13, "{bandwidth} bytes a second");
    }
}
