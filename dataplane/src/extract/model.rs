//! The extractor that asks the node's own engine, in its background class and under a schema.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use millrace_agent::Prompter;
use millrace_agent::extract::{self, ExtractError, Extractor, Findings, Said};
use millrace_inference::{self as engine, Constraint, Engine, FinishReason, Output, Sampling, SubmitError, Usage};
use serde_json::Value;

use super::Idle;

/// Longest answer in tokens.
const ANSWER_TOKENS_MAX: usize = 768;
/// How long an answer may take: in the background of a busy engine it gets an eighth of it.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);
/// Requests of the extraction share cached prefixes with each other and with nobody else.
const CACHE_SALT: u64 = u64::from_be_bytes(*b"extract\0");

/// Asks the engine.
pub struct ModelExtractor {
    engine: Arc<Engine>,
    prompter: Arc<dyn Prompter + Send + Sync>,
    schema: Box<dyn Fn(usize) -> Value + Send>,
    /// Tokens of answers that were of no use.
    wasted: u64,
}

impl std::fmt::Debug for ModelExtractor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelExtractor").finish_non_exhaustive()
    }
}

impl ModelExtractor {
    /// An extractor over an engine and the prompter of its model.
    pub fn new(engine: Arc<Engine>, prompter: Arc<dyn Prompter + Send + Sync>) -> Self {
        Self { engine, prompter, schema: Box::new(extract::schema), wasted: 0 }
    }

    /// Narrows what may be answered: any part of the usual schema is one.
    pub fn with_schema(mut self, schema: impl Fn(usize) -> Value + Send + 'static) -> Self {
        self.schema = Box::new(schema);
        self
    }

    fn request(&self, said: &[Said], outlet: Arc<Outlet>) -> Result<engine::Request, ExtractError> {
        let prompt = self.prompter.encode(&extract::questions(said)).map_err(|why| ExtractError::Never { why })?;
        let room = self.engine.context_max().saturating_sub(prompt.len());
        if room < ANSWER_TOKENS_MAX / 4 {
            let why = format!("{} tokens are asked, the context holds {}", prompt.len(), self.engine.context_max());
            return Err(ExtractError::TooMuch { why });
        }
        Ok(engine::Request {
            ticket: 0,
            prompt,
            sampling: Sampling::greedy(),
            max_tokens: room.min(ANSWER_TOKENS_MAX) as u32,
            stop: Vec::new(),
            ignore_eos: false,
            constraint: Some(Constraint::JsonSchema((self.schema)(said.len()))),
            top_logprobs: None,
            deadline: Some(Instant::now() + ANSWER_WITHIN),
            cache_salt: CACHE_SALT,
            // No tenant pays for it: it is nobody's request.
            tenant: u64::MAX,
            weight: 1,
            background: true,
            outlet,
        })
    }
}

impl Extractor for ModelExtractor {
    fn extract(&mut self, said: &[Said]) -> Result<Findings, ExtractError> {
        let (sender, outputs) = unbounded();
        let request = self.request(said, Arc::new(Outlet(sender)))?;
        let cancel = self.engine.submit(request).map_err(refused)?;
        let (text, reason, usage) = answer(&outputs).inspect_err(|_| cancel.cancel())?;
        let tokens = u64::from(usage.prompt) + u64::from(usage.completion);
        let found = match reason {
            FinishReason::Stop => extract::claims(&text, said)
                .map(|claims| Findings { claims, tokens })
                .map_err(|error| ExtractError::Useless { why: error.to_string() }),
            FinishReason::Length => Err(ExtractError::TooMuch { why: "the answer does not end".into() }),
            FinishReason::Cancelled => Err(ExtractError::Later { why: "the engine is shutting down".into() }),
            FinishReason::Deadline => Err(ExtractError::Later { why: "others came first for too long".into() }),
            FinishReason::Constraint(error) if error.is_temporary() => {
                Err(ExtractError::Later { why: error.to_string() })
            }
            FinishReason::Constraint(error @ engine::ConstraintError::Stuck { .. }) => {
                Err(ExtractError::Useless { why: error.to_string() })
            }
            FinishReason::Constraint(error) => Err(ExtractError::Never { why: error.to_string() }),
            FinishReason::Error(why) => Err(ExtractError::Later { why }),
        };
        if found.is_err() {
            self.wasted += tokens;
        }
        found
    }

    fn wasted(&mut self) -> u64 {
        std::mem::take(&mut self.wasted)
    }
}

fn refused(error: SubmitError) -> ExtractError {
    let why = error.to_string();
    match error {
        SubmitError::PromptTooLong { .. } => ExtractError::TooMuch { why },
        SubmitError::EmptyPrompt | SubmitError::UnknownToken { .. } | SubmitError::Parameter(_) => {
            ExtractError::Never { why }
        }
        _ => ExtractError::Later { why },
    }
}

/// Collects an answer. The engine ends every request by its deadline; a little more is waited for.
fn answer(outputs: &Receiver<Output>) -> Result<(String, FinishReason, Usage), ExtractError> {
    let until = Instant::now() + ANSWER_WITHIN + Duration::from_secs(30);
    let mut text = String::new();
    loop {
        match outputs.recv_deadline(until) {
            Ok(Output::Started { .. }) => {}
            Ok(Output::Delta { text: more, .. }) => text.push_str(&more),
            Ok(Output::Done { reason, usage, .. }) => return Ok((text, reason, usage)),
            Err(RecvTimeoutError::Timeout) => return Err(ExtractError::Later { why: "the engine is silent".into() }),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(ExtractError::Later { why: "the engine has stopped".into() });
            }
        }
    }
}

/// Bounded by `max_tokens` of the one request that uses it.
struct Outlet(Sender<Output>);

impl engine::Outlet for Outlet {
    fn push(&self, _ticket: u64, output: Output) {
        // Nobody listens any more when the wait was given up.
        let _ = self.0.send(output);
    }

    fn wake(&self) {}
}

/// Idle while the engine computes nothing and has computed nothing since the last look.
pub struct Quiet {
    engine: Arc<Engine>,
    seen: u64,
}

impl Quiet {
    /// Looks at an engine.
    pub fn new(engine: Arc<Engine>) -> Self {
        Self { engine, seen: u64::MAX }
    }
}

impl std::fmt::Debug for Quiet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quiet").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Idle for Quiet {
    fn is_idle(&mut self) -> bool {
        let stats = self.engine.stats();
        let generated = stats.prompt_tokens.get() + stats.generated_tokens.get();
        let quiet = stats.running.get() == 0 && stats.waiting.get() == 0;
        // Between two turns of a talk there is a moment of silence: one look is not enough.
        let idle = quiet && generated == self.seen;
        self.seen = generated;
        idle
    }
}
