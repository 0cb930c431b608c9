//! Requests that need no agent: chat without a session, completions, embeddings, model names; and what a
//! session takes from a chat request.

use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use millrace_agent::GenerationOptions;
use millrace_inference as engine;
use millrace_proto::api::{
    ApiError, ChatRequest, ChatRole, CompletionRequest, Embedding, EmbeddingData, EmbeddingInput, EmbeddingRequest,
    EmbeddingResponse, EmbeddingUsage, EncodingFormat, Prompt, SamplingOptions,
};

use super::Bridge;
use super::answers::Answers;
use super::errors::submit_error;
use super::inlet::Completion;
use super::ladder::{Patience, Wish};
use super::prompt::ModelPrompter;
use super::state::{Call, State};
use super::stream::Once;
use super::tools;
use crate::gateway::Principal;
use crate::models;
use crate::shard::Shared;

/// The name that always means the loaded model.
const DEFAULT_MODEL: &str = "default";
/// Sampling of a session that says nothing about it: a conversation wants a steadier tone than the
/// official default of the API, which requests without a session keep.
const SESSION_TEMPERATURE: f64 = 0.7;

/// The text of the new turn and a system prompt for it. The server keeps the history of a session, so
/// anything else in the request would be said twice or lost.
pub(super) fn session_messages(request: &ChatRequest) -> Result<(String, Option<String>), ApiError> {
    let wrong = || {
        ApiError::invalid_param(
            "messages",
            "With `session` the server keeps the history: send one new user message, optionally after one system message.",
        )
        .with_next_step("Send only what is new, or leave out `session` and send the whole conversation.")
    };
    let (system, user) = match request.messages.as_slice() {
        [user] => (None, user),
        [system, user] if system.role.template_name() == "system" => (Some(system.content.clone()), user),
        _ => return Err(wrong()),
    };
    if user.role != ChatRole::User {
        return Err(wrong());
    }
    if user.content.trim().is_empty() {
        return Err(ApiError::invalid_param("messages", "The new message is empty."));
    }
    Ok((user.content.clone(), system))
}

pub(super) fn session_options(request: &ChatRequest, system: Option<String>) -> GenerationOptions {
    let sampling = request.sampling();
    let sampling = SamplingOptions { temperature: sampling.temperature.or(Some(SESSION_TEMPERATURE)), ..sampling };
    GenerationOptions {
        system,
        ..options(
            &sampling,
            request.max_tokens(),
            request.stop_strings(),
            request.ignore_eos,
            request.logprobs_wanted(),
        )
    }
}

/// Absent parameters have the official defaults of the API; an absent seed is a new one each time.
fn options(
    sampling: &SamplingOptions,
    max_tokens: Option<u32>,
    stop: &[String],
    ignore_eos: Option<bool>,
    top_logprobs: Option<u8>,
) -> GenerationOptions {
    let number = |value: Option<f64>, default: f32| value.map_or(default, |value| value as f32);
    GenerationOptions {
        system: None,
        max_tokens,
        temperature: number(sampling.temperature, 1.0),
        top_k: sampling.top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(0),
        top_p: number(sampling.top_p, 1.0),
        min_p: number(sampling.min_p, 0.0),
        repetition_penalty: number(sampling.repetition_penalty, 1.0),
        presence_penalty: number(sampling.presence_penalty, 0.0),
        frequency_penalty: number(sampling.frequency_penalty, 0.0),
        seed: sampling.seed.map_or_else(fresh_seed, i64::cast_unsigned),
        stop: stop.to_vec(),
        ignore_eos: ignore_eos == Some(true),
        top_logprobs,
    }
}

fn fresh_seed() -> u64 {
    // Without the system's random numbers an answer is still an answer, only not a surprising one.
    getrandom::u64().unwrap_or_default()
}

/// The name in the models folder first, without and with its ending, then what the file calls itself.
pub(super) fn model_names(shared: &Shared) -> Vec<String> {
    let mut names = Vec::new();
    if let Ok(found) = models::chat_model(&shared.config) {
        names.extend(found.name.strip_suffix(".gguf").map(str::to_owned));
        names.push(found.name);
    }
    let own = &shared.model.info().name;
    if !names.contains(own) {
        names.push(own.clone());
    }
    names
}

/// The name of the encoder in the models folder.
pub(super) fn embedding_name(shared: &Shared) -> Option<String> {
    shared.embedder.as_ref()?;
    models::encoder(&shared.config).ok().flatten().map(|found| found.name)
}

/// Whether a request names no model in particular.
fn means_default(asked: &str) -> bool {
    asked.is_empty() || asked == DEFAULT_MODEL
}

pub(super) fn check_model(asked: &str, known: &[String]) -> Result<(), ApiError> {
    if means_default(asked) || known.iter().any(|name| name.eq_ignore_ascii_case(asked)) {
        return Ok(());
    }
    let mut known = known.to_vec();
    known.push(DEFAULT_MODEL.to_owned());
    Err(ApiError::unknown_model(asked, &known))
}

/// The vectors of some texts, or why there are none.
type Embedded = Result<Vec<Vec<f32>>, String>;

impl State {
    /// Straight to the engine: nothing is stored, nothing is recalled.
    pub fn stateless_chat(
        &mut self,
        principal: &Principal,
        request: &ChatRequest,
        patience: Patience,
        bridge: &Weak<Bridge>,
    ) -> Result<Answers, ApiError> {
        let used = request.tool_use();
        let offered = used.as_ref().map_or(&[][..], |used| used.tools);
        let encode = |prompter: &ModelPrompter| {
            prompter
                .encode_chat(&request.messages, offered)
                .map_err(|why| ApiError::bad_request("template_refused", why).with_param("messages"))
        };
        // Models write calls in different ways, and the answer is read as the main one does.
        let any_model = means_default(&request.model) && offered.is_empty();
        let options = options(
            &request.sampling(),
            request.max_tokens(),
            request.stop_strings(),
            request.ignore_eos,
            request.logprobs_wanted(),
        );
        let demanded =
            used.as_ref().and_then(|used| tools::demanded(used, self.prompter.call_syntax(), &self.shared.tokenizer));
        let constrained = demanded.or(request.output_format()?.map(tools::constrained));
        let wish = Wish { options, count: request.answers(), constrained, any_model, patience };
        self.start(principal, &wish, encode, bridge)
    }

    pub fn complete(
        &mut self,
        principal: &Principal,
        request: &CompletionRequest,
        patience: Patience,
        bridge: &Weak<Bridge>,
    ) -> Result<Answers, ApiError> {
        let encode = |prompter: &ModelPrompter| match &request.prompt {
            Some(Prompt::Text(text)) => Ok(prompter.encode_plain(text)),
            Some(Prompt::Tokens(tokens)) => Ok(tokens.clone()),
            _ => Err(ApiError::invalid_param("prompt", "prompt must be one text or one list of tokens.")),
        };
        // Token ids mean nothing to another model.
        let any_model = means_default(&request.model) && matches!(request.prompt, Some(Prompt::Text(_)));
        let options = options(
            &request.sampling(),
            Some(request.max_tokens()),
            request.stop_strings(),
            request.ignore_eos,
            request.logprobs_wanted(),
        );
        let constrained = request.output_format()?.map(tools::constrained);
        let wish = Wish { options, count: request.answers(), constrained, any_model, patience };
        self.start(principal, &wish, encode, bridge)
    }

    /// Asks the encoder; the answer is put where the caller waits. Also says how many tokens the texts have.
    pub fn embed_texts(
        &mut self,
        texts: Vec<String>,
        priority: engine::EmbedPriority,
    ) -> Result<(Once<Embedded>, usize), ApiError> {
        let Some(embedder) = self.shared.embedder.clone() else {
            return Err(ApiError::new(
                404,
                "invalid_request_error",
                "model_not_found",
                "No embedding model is loaded.",
            )
            .with_param("model")
            .with_next_step("Add one with `millrace model add PATH` and set `embedding_model`."));
        };
        let (call, inlet) = (self.id(), Arc::clone(&self.inlet));
        let done = move |result: Result<Vec<Vec<f32>>, engine::EmbedError>| {
            inlet.complete(Completion::Vectors { call, result: result.map_err(|error| error.to_string()) });
        };
        let request = engine::EmbedRequest { texts, priority, done: Box::new(done) };
        let tokens = embedder.submit(request).map_err(|error| submit_error(&error))?;
        let waiter = Once::default();
        self.calls.insert(call, Call::Vectors(waiter.clone()));
        Ok((waiter, tokens))
    }
}

impl Bridge {
    /// Embeds texts.
    pub async fn embed(
        self: &Rc<Self>,
        principal: &Principal,
        request: EmbeddingRequest,
    ) -> Result<EmbeddingResponse, ApiError> {
        let model = self.known_embedding_model(&request.model)?;
        let texts = match &request.input {
            Some(EmbeddingInput::One(text)) => vec![text.clone()],
            Some(EmbeddingInput::Many(texts)) => texts.clone(),
            _ => {
                return Err(ApiError::unsupported(
                    "input",
                    "input lists token ids; the encoder has a tokenizer of its own, so send texts.",
                )
                .with_next_step("Send the texts themselves."));
            }
        };
        let width = self.shared.embedder.as_ref().map_or(0, |embedder| embedder.encoder().dimensions());
        let dimensions = request.dimensions.map(|wanted| check_dimensions(wanted, width)).transpose()?;
        let bytes = texts.iter().map(String::len).sum();
        let mut reservation = self.state.borrow().reserve(principal, crate::gateway::reserve::estimate(bytes))?;
        let (waiter, tokens) = self.state.borrow_mut().embed_texts(texts, engine::EmbedPriority::Bulk)?;
        if let Some(reservation) = &mut reservation {
            reservation.used(u32::try_from(tokens).unwrap_or(u32::MAX));
        }
        let mut vectors =
            waiter.await.map_err(|why| ApiError::internal(format!("The embedding model failed: {why}.")))?;
        if let Some(dimensions) = dimensions {
            vectors.iter_mut().for_each(|vector| shorten(vector, dimensions));
        }
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        let format = request.encoding_format.unwrap_or(EncodingFormat::Float);
        let row =
            |(index, vector)| EmbeddingData { object: "embedding", index, embedding: Embedding::new(vector, format) };
        Ok(EmbeddingResponse {
            object: "list",
            data: (0u32..).zip(vectors).map(row).collect(),
            model,
            usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
        })
    }

    /// Name of the embedding model, if there is one.
    pub fn embedding_model(&self) -> Option<String> {
        self.embedding_name.clone()
    }

    fn known_embedding_model(&self, asked: &str) -> Result<String, ApiError> {
        let Some(name) = self.embedding_model() else {
            return Err(ApiError::unknown_model(asked, &[]).with_next_step(
                "No embedding model is loaded: add one with `millrace model add PATH` and set `embedding_model`.",
            ));
        };
        check_model(asked, std::slice::from_ref(&name))?;
        Ok(name)
    }
}

fn check_dimensions(wanted: i64, width: usize) -> Result<usize, ApiError> {
    usize::try_from(wanted).ok().filter(|n| (1..=width).contains(n)).ok_or_else(|| {
        ApiError::invalid_param("dimensions", format!("dimensions is {wanted}; this model gives 1 to {width}."))
    })
}

/// Keeps the first components and gives the vector length 1 again.
fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    vector.truncate(dimensions);
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}

/// The longest that a request for a view may wait for vectors and facts.
pub(super) const VIEW_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: &str) -> ChatRequest {
        ChatRequest::parse(body.as_bytes()).expect("valid")
    }

    #[test]
    fn a_session_takes_one_new_message_and_perhaps_a_system_prompt() {
        let one = request(r#"{"session":"s","messages":[{"role":"user","content":"hi"}]}"#);
        assert_eq!(session_messages(&one).unwrap(), ("hi".into(), None));
        let two = request(
            r#"{"session":"s","messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hi"}]}"#,
        );
        assert_eq!(session_messages(&two).unwrap(), ("hi".into(), Some("be brief".into())));
        for wrong in [
            r#"[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}]"#,
            r#"[{"role":"assistant","content":"b"}]"#,
            r#"[{"role":"user","content":"  "}]"#,
        ] {
            let body = format!(r#"{{"session":"s","messages":{wrong}}}"#);
            let error = session_messages(&request(&body)).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some("messages")), "{wrong}");
        }
    }

    #[test]
    fn absent_parameters_have_the_official_defaults_and_zero_stays_zero() {
        let plain = request(r#"{"messages":[{"role":"user","content":"hi"}]}"#);
        let made = options(&plain.sampling(), None, &[], None, None);
        assert_eq!((made.temperature, made.top_p, made.top_k), (1.0, 1.0, 0));
        let greedy = request(r#"{"messages":[{"role":"user","content":"hi"}],"temperature":0,"seed":-5}"#);
        let made = session_options(&greedy, None);
        assert_eq!((made.temperature, made.seed), (0.0, (-5i64).cast_unsigned()));
        assert_eq!(session_options(&plain, None).temperature, 0.7);
    }

    #[test]
    fn an_unknown_model_is_named_with_those_that_exist() {
        let known = || vec!["SmolLM2-135M".to_owned()];
        for name in ["", "default", "smollm2-135m"] {
            check_model(name, &known()).unwrap();
        }
        let error = check_model("gpt-9", &known()).unwrap_err();
        assert_eq!((error.status, error.code), (404, "model_not_found"));
        assert!(error.next_step.contains("SmolLM2-135M"), "{}", error.next_step);
    }

    #[test]
    fn shortened_vectors_have_length_one() {
        let mut vector = vec![3.0, 4.0, 12.0];
        shorten(&mut vector, 2);
        assert_eq!(vector, [0.6, 0.8]);
        assert_eq!(check_dimensions(3, 3).unwrap(), 3);
        for refused in [0, -1, 4] {
            assert_eq!(check_dimensions(refused, 3).unwrap_err().status, 400);
        }
    }
}
