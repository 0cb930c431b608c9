//! What becomes of a request that cannot have what it asks for in time: the rungs of admission, in their order.
//!
//! as asked → small model → shorter answer → asynchronous reply → refused with the time at which to come back
//!
//! A rung is taken when the predicted times of the first and of the last token are within what the engine and the
//! client allow. Nothing is taken away that was asked for by number or by name: only a request that names no length is
//! shortened, only one that is content with the default model gets the small one, and only a client that has said so
//! (`Prefer: respond-async`) is answered later. Turns of sessions keep their model, so their ladder is shorter.

use std::rc::Weak;
use std::sync::Arc;
use std::time::Duration;

use millrace_agent::GenerationOptions;
use millrace_inference::{Engine, SubmitError};
use millrace_proto::api::ApiError;

use super::Bridge;
use super::answers::Answers;
use super::errors::{seconds, submit_error};
use super::prompt::ModelPrompter;
use super::state::{State, Submission, Target};
use super::stream::{Origin, StreamSender, TokenStream};
use super::tools::Constrained;
use crate::gateway::Principal;
use crate::obs::Rung;

/// Longest advice to a client that is refused; beyond it a guess is worth nothing.
const RETRY_AFTER_S_MAX: u32 = 60;

/// What a client accepts instead of the answer in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// It waits at most so long for the whole answer.
    pub wait: Option<Duration>,
    /// It may be answered later, at another address.
    pub later: bool,
}

/// A model that can answer, and how it is spoken to.
#[derive(Clone)]
pub(super) struct Voice {
    pub engine: Arc<Engine>,
    pub prompter: Arc<ModelPrompter>,
    /// Its name, when it is not the model that is meant by default.
    pub name: Option<String>,
}

/// A request without a session.
pub(super) struct Wish {
    pub options: GenerationOptions,
    /// How many answers.
    pub count: usize,
    pub constrained: Option<Constrained>,
    /// Any model will do.
    pub any_model: bool,
    pub patience: Patience,
}

/// How a rung changes what is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Shorter,
    Later,
}

/// Why a rung was not taken.
enum Missed {
    /// It would be too late; the next one may be in time.
    Late(Box<ApiError>),
    /// No rung can help.
    Wrong(Box<ApiError>),
}

impl From<SubmitError> for Missed {
    fn from(error: SubmitError) -> Self {
        let api = Box::new(submit_error(&error));
        match error {
            SubmitError::TooSlow { .. } | SubmitError::QueueFull { .. } => Self::Late(api),
            _ => Self::Wrong(api),
        }
    }
}

impl State {
    /// The model that is meant by default.
    pub fn main_voice(&self) -> Voice {
        Voice { engine: Arc::clone(&self.shared.engine), prompter: Arc::clone(&self.prompter), name: None }
    }

    /// Half of the engine's queue is taken.
    pub fn is_behind(&self) -> bool {
        self.shared.engine.stats().waiting.get() * 2 >= self.shared.config.engine.queue_max as u64
    }

    /// Counts how a request was admitted.
    pub fn count_rung(&self, rung: Rung) {
        self.shared.metrics.shard(self.index).admitted(rung);
    }

    /// Starts the answers to a prompt, on the first rung that is in time. `encode` makes the prompt for a model.
    pub fn start(
        &mut self,
        principal: &Principal,
        wish: &Wish,
        encode: impl Fn(&ModelPrompter) -> Result<Vec<u32>, ApiError>,
        bridge: &Weak<Bridge>,
    ) -> Result<Answers, ApiError> {
        let main = self.main_voice();
        let prompt = encode(&main.prompter)?;
        let short = self.shared.live.now().rates.short_reply_tokens > 0 && wish.options.max_tokens.is_none();
        let refused = match self.attempt(principal, wish, &main, &prompt, Change::Nothing, bridge) {
            Ok(answers) => return Ok(self.admitted(answers)),
            Err(Missed::Wrong(error)) => return Err(*error),
            Err(Missed::Late(error)) => error,
        };
        if let Some(small) = self.small.clone().filter(|_| wish.any_model)
            && let Ok(prompt) = encode(&small.prompter)
            && let Ok(answers) = self.attempt(principal, wish, &small, &prompt, Change::Nothing, bridge)
        {
            return Ok(self.admitted(answers.reduced(Rung::SmallModel, small.name)));
        }
        if short && let Ok(answers) = self.attempt(principal, wish, &main, &prompt, Change::Shorter, bridge) {
            return Ok(self.admitted(answers));
        }
        if wish.patience.later
            && let Ok(answers) = self.attempt(principal, wish, &main, &prompt, Change::Later, bridge)
        {
            return Ok(self.admitted(answers.reduced(Rung::Later, None)));
        }
        self.count_rung(Rung::Refused);
        Err(*refused)
    }

    fn admitted(&self, answers: Answers) -> Answers {
        self.count_rung(answers.rung());
        answers
    }

    /// Starts the answers on one rung. They share the keys and values of the prompt: the first computes them, and the
    /// others begin once its blocks are there.
    fn attempt(
        &mut self,
        principal: &Principal,
        wish: &Wish,
        voice: &Voice,
        prompt: &[u32],
        change: Change,
        bridge: &Weak<Bridge>,
    ) -> Result<Answers, Missed> {
        let limits = &self.shared.config.limits;
        let context = voice.engine.context_max();
        let room = context.saturating_sub(prompt.len());
        // Without a limit the reply gets what a session's reply gets, or what is left of the context.
        let usual = self.shared.config.agent.reply_tokens_max.min(room);
        let max_tokens = wish.options.max_tokens.map_or(usual, |n| n as usize);
        if max_tokens == 0 || max_tokens > room {
            return Err(Missed::Wrong(Box::new(ApiError::context_too_long(prompt.len(), max_tokens.max(1), context))));
        }
        let whole = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let prompt_tokens = whole(prompt.len());
        let asked = wish.options.max_tokens.map(|_| whole(max_tokens));
        let short = self.shared.live.now().rates.short_reply_tokens;
        let may_be_short = asked.is_none() && short > 0 && (short as usize) < usual;
        let deadline = match change {
            Change::Later => limits.async_deadline,
            Change::Nothing | Change::Shorter => {
                wish.patience.wait.map_or(limits.request_timeout, |wait| wait.min(limits.request_timeout))
            }
        };
        let mut options = wish.options.clone();
        let mut streams = Vec::with_capacity(wish.count);
        let mut shortened = false;
        for _ in 0..wish.count {
            let sender = StreamSender::default();
            // When one is refused, dropping the streams ends those before it and gives back what they reserved.
            let allowance = self
                .allow_at(principal, prompt_tokens, asked, whole(usual), change == Change::Shorter)
                .map_err(|error| Missed::Wrong(Box::new(error)))?;
            if change != Change::Later {
                let reply_tokens = allowance.reply_tokens as usize;
                let crowded = may_be_short && change == Change::Nothing && voice.name.is_none() && self.is_behind();
                in_time(voice, principal, prompt.len(), reply_tokens, deadline, crowded)?;
            }
            if allowance.shortened && !shortened {
                shortened = true;
                sender.push(allowance.notice());
            }
            let submission = Submission {
                voice,
                prompt: prompt.to_vec(),
                max_tokens: allowance.reply_tokens,
                options: &options,
                constrained: wish.constrained.clone(),
                deadline: Some(deadline),
                tenant: principal.tenant,
                background: change == Change::Later,
            };
            let run = self.submit(submission, Target::Stream(sender.clone()))?;
            let stream = TokenStream::new(&sender, Origin::Run(run), Weak::clone(bridge), Some(prompt_tokens));
            streams.push(stream.charge(allowance.reservation));
            // Each answer has a seed of its own, and the first is the one that is given without `n`.
            options.seed = options.seed.wrapping_add(1);
        }
        let answers = Answers::new(streams);
        Ok(if shortened { answers.reduced(Rung::Shorter, None) } else { answers })
    }
}

/// Refuses a rung whose answer would begin or end too late, or that would keep a crowd waiting.
fn in_time(
    voice: &Voice,
    principal: &Principal,
    prompt_tokens: usize,
    reply_tokens: usize,
    deadline: Duration,
    crowded: bool,
) -> Result<(), Missed> {
    if crowded {
        return Err(Missed::Late(Box::new(ApiError::overloaded("The engine's queue is half full.", 1))));
    }
    let Some(forecast) = voice.engine.forecast(u64::from(principal.tenant.0), prompt_tokens, reply_tokens) else {
        return Ok(());
    };
    if let Some(limit) = voice.engine.first_token_max().filter(|limit| forecast.first_token > *limit) {
        let predicted = forecast.first_token;
        return Err(SubmitError::TooSlow { predicted, limit, retry_after: predicted }.into());
    }
    if forecast.complete > deadline {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (complete, allowed) = (ms(forecast.complete), ms(deadline));
        let message = format!("The answer would be complete in about {complete} ms; {allowed} ms are allowed.");
        let retry_after_s = seconds(complete - allowed).min(RETRY_AFTER_S_MAX);
        return Err(Missed::Late(Box::new(ApiError::rate_limited(message, retry_after_s))));
    }
    Ok(())
}
