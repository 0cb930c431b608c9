//! What computes: the engines, the worker of the embeddings, the extraction, and how their figures are told.

use std::sync::Arc;
use std::time::Instant;

use millrace_inference::encoder::Encoder;
use millrace_inference::model::Model;
use millrace_inference::{EmbedWorker, Engine, EngineConfig};

use super::{Chat, Parts, in_parts};
use crate::bridge::ModelPrompter;
use crate::config::Config;
use crate::extract::{Extraction, ModelExtractor, Quiet};
use crate::obs::{EngineSnapshot, Metrics, StorageSnapshot};
use crate::plan::SMALL_KV_PART;
use crate::shard::Small;
use crate::trouble::Trouble;

/// Calls that may wait for the embedding worker.
const EMBED_QUEUE_MAX: usize = 256;
/// Engine threads give way to reactors, so that accepting stays quick while every core computes. At 5 their claim is a
/// third of a reactor's, and acknowledgements wait for it (p99 of 15,000 events a second on a shared core: 31 ms; at 10,
/// 8 ms); at 15 a flood that is merely refused would leave them nothing.
const ENGINE_NICE: i32 = 10;
/// By default the KV pool keeps as much of earlier requests as this many times the weights: a share of memory that
/// follows the model, so that a small one stays small.
const KV_KEPT_WEIGHTS: usize = 2;

/// The small model gets a quarter of the chat model's room for keys and values.
pub(super) fn start_small(config: &Config, name: String, chat: &Chat) -> Result<Small, Trouble> {
    let engine = start_engine(config, chat, None, config.engine.kv_mib.div_ceil(SMALL_KV_PART))?;
    Ok(Small { name, engine, tokenizer: Arc::clone(&chat.tokenizer), template: Arc::clone(&chat.template) })
}

pub(super) fn start_engine(
    config: &Config,
    chat: &Chat,
    draft: Option<Arc<Model>>,
    kv_mib: usize,
) -> Result<Arc<Engine>, Trouble> {
    let options = &config.engine;
    let settings = EngineConfig {
        threads: options.threads,
        cpus: None,
        nice: ENGINE_NICE,
        kv_format: options.kv_type,
        kv_bytes_max: kv_mib << 20,
        kv_kept_bytes_max: options.kv_kept_mib.map_or(KV_KEPT_WEIGHTS * chat.model.weights_bytes(), |mib| mib << 20),
        context_max: options.context_max.min(chat.model.info().context_max),
        sequences_max: options.sequences_max,
        queue_max: options.queue_max,
        prefill_chunk: options.prefill_chunk,
        inter_token_target: options.inter_token_target,
        first_token_max: options.first_token_max,
        speculation: options.speculation,
    };
    let began = Instant::now();
    let (model, tokenizer) = (Arc::clone(&chat.model), Arc::clone(&chat.tokenizer));
    let engine = Engine::start_with_draft(model, draft, tokenizer, settings);
    let engine = engine.map(Arc::new).map_err(|error| in_parts(&error));
    tracing::debug!(took = ?began.elapsed(), "engine started");
    engine
}

pub(super) fn start_embedder(
    engine: &Engine,
    encoder: Option<&Arc<Encoder>>,
) -> Result<Option<Arc<EmbedWorker>>, Trouble> {
    let start = |encoder| EmbedWorker::beside(engine, Arc::clone(encoder), EMBED_QUEUE_MAX).map(Arc::new);
    encoder.map(start).transpose().map_err(|error| in_parts(&error))
}

pub(super) fn start_extraction(
    config: &Config,
    parts: &Parts,
    engine: &Arc<Engine>,
    metrics: &Metrics,
) -> Result<Option<Extraction>, Trouble> {
    if !config.memory.extract {
        return Ok(None);
    }
    let prompter = ModelPrompter::new(Arc::clone(&parts.chat.tokenizer), Arc::clone(&parts.chat.template));
    let extractor = Box::new(ModelExtractor::new(Arc::clone(engine), Arc::new(prompter)));
    let idle = Box::new(Quiet::new(Arc::clone(engine)));
    let started = Extraction::start(parts.store.clone(), extractor, idle, config.memory.extract_tokens_per_hour);
    let extraction = started.map_err(|error| {
        Trouble::new("the extraction thread cannot start", error.to_string(), "look at `ulimit -u`")
    })?;
    metrics.set_extract(extraction.snapshot());
    Ok(Some(extraction))
}

pub(super) fn observe(metrics: &Metrics, engine: &Arc<Engine>, parts: &Parts, config: &Config) {
    let (engine, model) = (Arc::clone(engine), parts.name.clone());
    let weights_bytes = parts.chat.model.weights_bytes() as u64;
    let encoder_bytes = parts.encoder.as_ref().map_or(0, |encoder| encoder.weights_bytes() as u64);
    let kv_bytes = (config.engine.kv_mib as u64) << 20;
    metrics.set_engine(move || {
        let stats = engine.stats();
        let forecast = stats.forecast.snapshot();
        let finished = |name: &str| stats.finished().find(|(known, _)| *known == name).map_or(0, |(_, count)| count);
        EngineSnapshot {
            model: model.clone(),
            running: stats.running.get(),
            waiting: stats.waiting.get(),
            kv_usage: stats.kv_usage(),
            prompt_tokens: stats.prompt_tokens.get(),
            prompt_tokens_cached: stats.cached_tokens.get(),
            generation_tokens: stats.generated_tokens.get(),
            finished_stop: finished("stop"),
            finished_length: finished("length"),
            finished_cancelled: finished("abort"),
            finished_deadline: finished("deadline"),
            finished_error: finished("error"),
            refused: stats.refused.get(),
            steps: stats.steps.get(),
            preemptions: stats.preemptions.get(),
            drafts: stats.drafts.get(),
            draft_tokens: stats.draft_tokens.get(),
            accepted_tokens: stats.accepted_tokens.get(),
            forecasts: forecast.count,
            forecast_seconds: forecast.sum_seconds,
            forecast_error_seconds: stats.forecast_error.snapshot().sum_seconds,
            forecast_good: stats.forecast_good.get(),
            constraints: stats.constraints.get(),
            constraint_seconds: stats.constraint_us.get() as f64 * 1e-6,
            masks: stats.masks.get(),
            mask_seconds: stats.mask_us.get() as f64 * 1e-6,
            mask_wait_seconds: stats.mask_wait_us.get() as f64 * 1e-6,
            weights_bytes,
            encoder_bytes,
            kv_bytes,
            kv_resident_bytes: (kv_bytes as f64 * stats.kv_touched()) as u64,
        }
    });
    let store = parts.store.clone();
    metrics.set_storage(move || {
        let stats = store.stats();
        StorageSnapshot {
            commits: stats.batches,
            groups: stats.groups,
            failures: stats.failed_no_space + stats.failed_io,
            refused: stats.busy,
            waiting: stats.waiting_jobs as u64,
            commit_seconds: stats.commit_ns as f64 * 1e-9,
        }
    });
}
