//! The CPU backend: owns the KV memory, the work buffers and the team of threads.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use memmap2::MmapMut;

use super::forward::{ATTEND_ROWS_MAX, FF_TOKENS, Frame, Unit};
use super::moe::Mixture;
use super::team::{Crew, Team, TeamConfig};
use super::{Backend, BackendError, BackendLimits, BackendStartError, LogitsBuf, LogitsWanted, StepPlan};
use crate::kernel::{self, BLOCK, Kernels};
use crate::kv::{BLOCK_TOKENS, KvFormat, blocks_for};
use crate::model::{Model, RopeTable};

/// How the CPU backend uses the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// Threads that compute, the calling thread included. More than the physical cores only costs.
    pub threads: usize,
    /// Cores to pin the threads to, first the calling thread; `None` leaves them to the system.
    pub cpus: Option<Vec<usize>>,
    /// Scheduling priority of the computing threads: 0 is normal, 19 yields to everybody.
    pub nice: i32,
    /// How keys and values are kept.
    pub kv_format: KvFormat,
    /// Bytes for keys and values. Raising it costs exactly that much memory once it has been used.
    pub kv_bytes_max: usize,
    /// Highest position + 1 of a token; capped by what the model was trained for.
    pub context_max: usize,
    /// Most tokens in one step. Work buffers grow with it: about 20 KiB per token for a 135M model.
    pub step_tokens_max: usize,
    /// Most rows of logits in one step.
    pub step_logits_max: usize,
}

/// Bounds of [`CpuConfig`].
const THREADS_MAX: usize = 256;
const STEP_TOKENS_MAX: usize = 1 << 16;
const BLOCKS_MAX: usize = 1 << 24;

/// Runs steps on the processor's cores.
pub struct CpuBackend {
    model: Arc<Model>,
    kernels: &'static Kernels,
    limits: BackendLimits,
    team: Team,
    kv: MmapMut,
    kv_format: KvFormat,
    work: Work,
}

/// Buffers of a step, allocated once. Rows marked "+" have one more for each thread, for single-token steps.
pub(super) struct Work {
    pub(super) x: Vec<f32>,
    /// Quantised rows of the residual stream's width "+".
    pub(super) acts_x: ActsBuf,
    /// Quantised attention results "+".
    pub(super) acts_o: ActsBuf,
    pub(super) acts_ff: ActsBuf,
    /// Results that wait for their norm; empty without such norms.
    pub(super) branch: Vec<f32>,
    /// Buffers of the experts, where a model has some.
    pub(super) mixture: Option<Mixture>,
    pub(super) qkv: Vec<f32>,
    pub(super) attended: Vec<f32>,
    /// Cosine and sine of each rotated pair, per table and token.
    pub(super) rope: Vec<f32>,
    /// For sequences of ordinary length, and for stretched ones where there are such.
    pub(super) rope_tables: Vec<Vec<RopeTable>>,
    pub(super) places: Vec<Place>,
    /// Rows that need logits.
    pub(super) logits_rows: Vec<u32>,
    pub(super) units: Vec<Unit>,
    /// Next attention unit to take, per layer.
    pub(super) taken: Vec<AtomicUsize>,
    /// Work space, `scratch_len` floats for each thread.
    pub(super) scratch: Vec<f32>,
    pub(super) scratch_len: usize,
    pub(super) threads: usize,
}

/// Where a token stands.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) position: u32,
    pub(super) block: u32,
    /// In the block.
    pub(super) slot: u32,
    /// Index into [`Work::rope_tables`].
    pub(super) turned: u32,
}

/// Storage behind [`kernel::Acts`].
pub(super) struct ActsBuf {
    q: Vec<i8>,
    d: Vec<f32>,
    s: Vec<f32>,
    f: Vec<f32>,
    columns: usize,
}

impl ActsBuf {
    pub(super) fn new(rows: usize, columns: usize, plain: bool) -> ActsBuf {
        let scales = rows * (columns / BLOCK);
        ActsBuf {
            q: vec![0; rows * columns],
            d: vec![0.0; scales],
            s: vec![0.0; scales],
            f: vec![0.0; if plain { rows * columns } else { 0 }],
            columns,
        }
    }

    pub(super) fn view(&mut self) -> kernel::Acts {
        kernel::Acts {
            q: self.q.as_mut_ptr(),
            d: self.d.as_mut_ptr(),
            s: self.s.as_mut_ptr(),
            f: if self.f.is_empty() { std::ptr::null_mut() } else { self.f.as_mut_ptr() },
            columns: self.columns,
        }
    }
}

impl CpuBackend {
    /// Makes a backend for `model`: reserves memory and starts the threads.
    pub fn new(model: Arc<Model>, config: &CpuConfig) -> Result<CpuBackend, BackendStartError> {
        Self::with_kernels(model, config, kernel::kernels())
    }

    pub(crate) fn with_kernels(
        model: Arc<Model>,
        config: &CpuConfig,
        kernels: &'static Kernels,
    ) -> Result<CpuBackend, BackendStartError> {
        let hyper = model.hyper();
        within("threads", config.threads, 1, THREADS_MAX)?;
        within("context_max", config.context_max, 1, usize::MAX)?;
        within("step_tokens_max", config.step_tokens_max, 1, STEP_TOKENS_MAX)?;
        within("step_logits_max", config.step_logits_max, 1, config.step_tokens_max)?;
        if !config.kv_format.fits(hyper.head_dim) {
            return Err(BackendStartError::KvFormat { format: config.kv_format, head_dim: hyper.head_dim });
        }
        let block_bytes = config.kv_format.bytes(hyper.kv_elements() * BLOCK_TOKENS);
        let blocks = (config.kv_bytes_max / block_bytes).min(BLOCKS_MAX);
        if blocks == 0 {
            return Err(BackendStartError::KvBudget { bytes: config.kv_bytes_max, block_bytes, blocks, min: 1 });
        }
        let kv_bytes = blocks * block_bytes;
        let kv = MmapMut::map_anon(kv_bytes)
            .map_err(|_| BackendStartError::Memory { what: "keys and values", bytes: kv_bytes })?;
        // A block's memory is contiguous over all layers, so large pages are filled well; without them it is slower.
        let _ = kv.advise(memmap2::Advice::HugePage);
        let limits = BackendLimits {
            blocks,
            step_tokens_max: config.step_tokens_max,
            step_logits_max: config.step_logits_max,
            context_max: config.context_max.min(hyper.context_max),
            vocab: hyper.vocab,
            stretch_from: hyper
                .rope
                .stretch_from(&model.weights().rope_factors, config.context_max.min(hyper.context_max)),
        };
        let work = Work::new(&model, config, limits.stretch_from.is_some());
        let CpuConfig { threads, nice, .. } = *config;
        let team = Team::start(TeamConfig { threads, cpus: config.cpus.clone(), nice })?;
        Ok(CpuBackend { kernels, limits, team, kv, kv_format: config.kv_format, work, model })
    }
}

fn within(name: &'static str, value: usize, min: usize, max: usize) -> Result<(), BackendStartError> {
    if (min..=max).contains(&value) { Ok(()) } else { Err(BackendStartError::Setting { name, value, min, max }) }
}

impl Work {
    fn new(model: &Model, config: &CpuConfig, stretches: bool) -> Work {
        let (hyper, tokens) = (model.hyper(), config.step_tokens_max);
        let plain = model.weights().plain;
        let lengths: &[bool] = if stretches { &[false, true] } else { &[false] };
        let rope_tables: Vec<Vec<RopeTable>> =
            lengths.iter().map(|long| hyper.rope.tables(&model.weights().rope_factors, *long)).collect();
        let (experts, experts_used) = hyper.experts.map_or((0, 1), |experts| (experts.count, experts.used));
        let private = tokens + config.threads;
        let attend = kernel::AttendArgs::scratch_len(ATTEND_ROWS_MAX.max(hyper.heads / hyper.kv_heads), hyper.head_dim);
        // Rounded to whole pages, so that threads do not share cache lines.
        let scratch_len = attend.max(2 * FF_TOKENS * BLOCK).max(experts).next_multiple_of(1024);
        Work {
            // Products write whole tiles of 16 columns; every width here is a multiple of 16.
            x: vec![0.0; tokens * hyper.width],
            acts_x: ActsBuf::new(private, hyper.width, plain.residual),
            acts_o: ActsBuf::new(private, hyper.q_width(), plain.attended),
            acts_ff: ActsBuf::new(tokens * experts_used, hyper.ff, plain.inner),
            branch: vec![0.0; if hyper.post_norms { tokens * hyper.width } else { 0 }],
            mixture: Mixture::new(hyper, tokens, plain.residual),
            qkv: vec![0.0; tokens * (hyper.q_width() + 2 * hyper.kv_width())],
            attended: vec![0.0; tokens * hyper.q_width()],
            rope: vec![0.0; tokens * rope_tables[0].len() * hyper.rope.dim],
            rope_tables,
            places: Vec::with_capacity(tokens),
            logits_rows: Vec::with_capacity(config.step_logits_max),
            units: Vec::with_capacity(tokens * hyper.kv_heads),
            taken: (0..hyper.layers).map(|_| AtomicUsize::new(0)).collect(),
            scratch: vec![0.0; config.threads * scratch_len],
            scratch_len,
            threads: config.threads,
        }
    }

    /// Lays out what all threads need to know about the step. Allocates nothing: capacities cover the limits.
    pub(super) fn prepare(&mut self, plan: &StepPlan, kv_heads: usize, group: usize) {
        self.places.clear();
        self.logits_rows.clear();
        self.units.clear();
        let chunk = (ATTEND_ROWS_MAX / group).max(1);
        for (index, slice) in plan.slices().enumerate() {
            for i in 0..slice.tokens.len() {
                let position = slice.start + i;
                let block = slice.blocks[position / BLOCK_TOKENS];
                let (position, slot) = (position as u32, (position % BLOCK_TOKENS) as u32);
                self.places.push(Place { position, block: block.0, slot, turned: u32::from(slice.stretched) });
            }
            let (first, last) = (slice.row as u32, (slice.row + slice.tokens.len()) as u32);
            match slice.logits {
                LogitsWanted::None => {}
                LogitsWanted::Last => self.logits_rows.push(last - 1),
                LogitsWanted::All => self.logits_rows.extend(first..last),
            }
            for from in (0..slice.tokens.len()).step_by(chunk) {
                let tokens = chunk.min(slice.tokens.len() - from);
                for kv_head in 0..kv_heads {
                    let cost = tokens * group * blocks_for(slice.start + from + tokens);
                    self.units.push(Unit { slice: index, from, tokens, kv_head, cost });
                }
            }
        }
        // The longest units first, so that the threads end together.
        self.units.sort_unstable_by_key(|unit| (std::cmp::Reverse(unit.cost), unit.slice, unit.from, unit.kv_head));
        for taken in &mut self.taken {
            *taken.get_mut() = 0;
        }
    }
}

impl Backend for CpuBackend {
    fn limits(&self) -> BackendLimits {
        self.limits
    }

    fn attach(&mut self) {
        self.team.attach();
    }

    fn crew(&mut self) -> Option<&mut dyn Crew> {
        Some(&mut self.team)
    }

    fn step(&mut self, plan: &StepPlan, logits: &mut LogitsBuf) -> Result<(), BackendError> {
        plan.check(&self.limits)?;
        let block_bytes = self.kv_format.bytes(self.model.hyper().kv_elements() * BLOCK_TOKENS);
        for (from, to) in plan.copies() {
            // All layers of a block lie side by side.
            let from = from.0 as usize * block_bytes;
            self.kv.copy_within(from..from + block_bytes, to.0 as usize * block_bytes);
        }
        let stride = logits.stride();
        let logits = logits.begin(plan.logits_rows());
        let kv = (&mut self.kv[..], self.kv_format);
        let frame = Frame::new(&self.model, self.kernels, plan, &mut self.work, kv, (logits, stride));
        self.team.run(&|member, barrier| frame.run(member, barrier));
        Ok(())
    }
}
