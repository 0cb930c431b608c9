//! What a bridge asks of the engine and the encoder, and what becomes of their answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_agent::{DeliveryEvent, Event, Fault, GenerationOptions, OpId, Output, Ticket, TokenInfo};
use millrace_inference as engine;
use millrace_proto::id::TenantId;

use super::{Call, Run, State, Target};
use crate::bridge::errors::constraint_error;
use crate::bridge::inlet::Completion;
use crate::bridge::ladder::Voice;
use crate::bridge::stream::StreamEvent;
use crate::bridge::tools::Constrained;
use crate::bridge::translate::{finish, stream_event, timings_of, usage_of};
use crate::obs::Turn;

impl State {
    pub(super) fn embed_for_agent(&mut self, op: OpId, text: String) {
        let Some(embedder) = &self.shared.embedder else {
            let result = Err("there is no embedding model".to_owned());
            return self.events.push_back(Event::Embedded { op, result });
        };
        let inlet = Arc::clone(&self.inlet);
        let done = move |result: Result<Vec<Vec<f32>>, engine::EmbedError>| {
            let result = result
                .map_err(|error| error.to_string())
                .and_then(|vectors| vectors.into_iter().next().ok_or_else(|| "the encoder gave no vector".to_owned()));
            inlet.complete(Completion::Embedded { op, result });
        };
        let request = engine::EmbedRequest {
            texts: vec![text],
            // A turn waits for what it recalls.
            priority: engine::EmbedPriority::Query,
            done: Box::new(done),
        };
        if let Err(error) = embedder.submit(request) {
            self.events.push_back(Event::Embedded { op, result: Err(error.to_string()) });
        }
    }

    /// Asks the engine; the answer comes as outputs of the returned run.
    pub fn submit(&mut self, submission: Submission<'_>, target: Target) -> Result<u64, engine::SubmitError> {
        let id = self.id();
        let options = submission.options;
        let prompt_tokens = u32::try_from(submission.prompt.len()).unwrap_or(u32::MAX);
        let submitted = Instant::now();
        let prompter = Arc::clone(&submission.voice.prompter);
        let (constraint, constrained_by) = submission.constrained.map(|c| (c.constraint, c.param)).unzip();
        let cancel = submission.voice.engine.submit(engine::Request {
            ticket: id,
            prompt: submission.prompt,
            sampling: engine::Sampling {
                temperature: options.temperature,
                top_k: options.top_k,
                top_p: options.top_p,
                min_p: options.min_p,
                repetition_penalty: options.repetition_penalty,
                presence_penalty: options.presence_penalty,
                frequency_penalty: options.frequency_penalty,
                seed: options.seed,
                ..engine::Sampling::default()
            },
            max_tokens: submission.max_tokens,
            stop: options.stop.clone(),
            ignore_eos: options.ignore_eos,
            constraint,
            top_logprobs: options.top_logprobs,
            deadline: submission.deadline.map(|after| submitted + after),
            cache_salt: u64::from(submission.tenant.0),
            tenant: u64::from(submission.tenant.0),
            weight: 1,
            background: submission.background,
            outlet: Arc::clone(&self.inlet) as _,
        })?;
        self.runs
            .insert(id, Run { target, cancel, submitted, last_text: None, prompt_tokens, prompter, constrained_by });
        Ok(id)
    }

    pub(super) fn take_inlet(&mut self) {
        let (mut completions, mut outputs) = (Vec::new(), Vec::new());
        self.inlet.take(&mut completions, &mut outputs);
        for completion in completions {
            self.completed(completion);
        }
        for (run, output) in outputs {
            self.output(run, output);
        }
        if self.agent.wants_flush() {
            self.events.push_back(Event::Flush);
        }
        self.drive();
    }

    fn completed(&mut self, completion: Completion) {
        match completion {
            Completion::Loaded { key, id, result } => self.loaded(key, id, result),
            Completion::Persisted { op, result } => {
                if let Err(Fault::Io(why)) = &result {
                    tracing::error!(why, "a batch was not written");
                }
                self.events.push_back(Event::Persisted { op, result });
            }
            Completion::Embedded { op, result } => self.events.push_back(Event::Embedded { op, result }),
            Completion::Recalled { op, result } => {
                self.events.push_back(Event::Recalled { op, result });
            }
            Completion::Committed { key, durable } => self.deliver(DeliveryEvent::Committed { key, durable }),
            Completion::Called { key, verdict } => self.called(key, verdict),
            Completion::Resubmitted { ticket, job, result } => self.resubmit_stored(Ticket(ticket), *job, result),
            Completion::Vectors { call, result } => {
                if let Some(Call::Vectors(waiter)) = self.calls.remove(&call) {
                    waiter.put(result);
                }
            }
            Completion::DraftGone { key, why } => self.draft_gone(key, why),
            Completion::Draft { key, answer } => self.draft_answered(key, answer),
            Completion::KeysCame { call } => {
                if let Some(Call::Keys(waiter)) = self.calls.remove(&call) {
                    waiter.put(());
                }
            }
            Completion::Facts { call, result } => {
                if let Some(Call::Facts(waiter)) = self.calls.remove(&call) {
                    waiter.put(result);
                }
            }
        }
    }

    fn output(&mut self, id: u64, output: engine::Output) {
        let Some(run) = self.runs.get_mut(&id) else { return };
        let metrics = self.shared.metrics.shard(self.index);
        if let (engine::Output::Done { reason: engine::FinishReason::Constraint(error), .. }, Target::Stream(stream)) =
            (&output, &run.target)
        {
            // The caller's own constraint: told in the caller's words, not as a failure of the engine.
            stream.push(StreamEvent::Error(constraint_error(run.constrained_by.unwrap_or("response_format"), error)));
            self.runs.remove(&id);
            return;
        }
        let output = match output {
            engine::Output::Started { cached_tokens } => Output::Started { cached_tokens },
            engine::Output::Delta { text, tokens } => {
                let now = Instant::now();
                match run.last_text.replace(now) {
                    None => metrics.first_token(now - run.submitted),
                    Some(before) => metrics.inter_token(now - before, 1),
                }
                if text.is_empty() && tokens.is_empty() {
                    return;
                }
                let prompter = &run.prompter;
                let info = |token: engine::TokenOut| TokenInfo {
                    top: token.top.iter().map(|(id, logprob)| (prompter.token_bytes(*id), *logprob)).collect(),
                    bytes: token.text,
                    logprob: token.logprob,
                };
                Output::Delta { text, logprobs: tokens.into_iter().map(info).collect() }
            }
            engine::Output::Done { reason, usage, timings } => {
                metrics.turn(Turn {
                    total: run.submitted.elapsed(),
                    queue: timings.queue,
                    prefill: timings.prefill,
                    decode: timings.decode,
                });
                Output::Done { reason: finish(reason), usage: usage_of(usage), timings: timings_of(timings) }
            }
        };
        let done = matches!(output, Output::Done { .. });
        match &run.target {
            Target::Agent(agent_run) => {
                let agent_run = *agent_run;
                if done {
                    self.agent_runs.remove(&agent_run);
                }
                self.events.push_back(Event::Output { run: agent_run, output });
            }
            Target::Stream(stream) => stream.push(stream_event(output, run.prompt_tokens)),
        }
        if done {
            self.runs.remove(&id);
        }
    }
}

/// What a generation needs besides its target.
pub(in crate::bridge) struct Submission<'a> {
    pub voice: &'a Voice,
    pub prompt: Vec<u32>,
    pub max_tokens: u32,
    pub options: &'a GenerationOptions,
    pub constrained: Option<Constrained>,
    pub deadline: Option<Duration>,
    pub tenant: TenantId,
    /// It gives way to all that are not.
    pub background: bool,
}
