//! Answers of the generation endpoints in the shapes of the OpenAI API. Pure: events in, bytes out.

use millrace_agent::{Finish, Timings, TokenInfo, Usage};
use millrace_proto::api::{
    self, ApiError, ChatChoice, ChatChunk, ChatResponse, ChunkChoice, CompletionChoice, CompletionLogprobs,
    CompletionResponse, Delta, FunctionDelta, Logprobs, ResponseMessage, TokenLogprob, ToolCall, ToolCallDelta,
    TopLogprob,
};
use millrace_proto::sse;
use serde::Serialize;

use super::calls::{Calls, Part};

/// Which endpoint's shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Text,
}

/// What all chunks of an answer have in common, and what was asked for.
pub struct Shape {
    style: Style,
    id: String,
    created: u64,
    model: String,
    /// The last chunk carries token counts.
    wants_usage: bool,
    wants_logprobs: bool,
    /// Characters written so far: the older log-probability shape counts them.
    text_offset: u32,
    /// What makes the id unique, for the ids of calls.
    unique: String,
    /// Set when the request has tools.
    calls: Option<Calls>,
}

/// Where the time of an answer went, with the names that llama-server uses.
#[derive(Debug, Serialize)]
struct TimingsObject {
    queue_ms: f64,
    prompt_n: u32,
    cache_n: u32,
    prompt_ms: f64,
    prompt_per_second: f64,
    predicted_n: u32,
    predicted_ms: f64,
    predicted_per_second: f64,
}

/// An answer with the `timings` extension.
#[derive(Serialize)]
struct Timed<'a, T> {
    #[serde(flatten)]
    answer: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    timings: Option<TimingsObject>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    notices: &'a [String],
}

impl Shape {
    /// The shape of one answer. `unique` makes its id.
    pub fn new(
        style: Style,
        unique: u64,
        created: u64,
        model: String,
        wants_usage: bool,
        wants_logprobs: bool,
    ) -> Self {
        let prefix = match style {
            Style::Chat => "chatcmpl",
            Style::Text => "cmpl",
        };
        Self {
            style,
            id: format!("{prefix}-{unique:016x}"),
            created,
            model,
            wants_usage,
            wants_logprobs,
            text_offset: 0,
            unique: format!("{unique:016x}"),
            calls: None,
        }
    }

    /// The answer may hold tool calls.
    pub fn expect_calls(&mut self, calls: Calls) {
        self.calls = Some(calls);
    }

    /// Appends the first chunk of a stream.
    pub fn open(&self, events: &mut Vec<u8>) {
        if self.style == Style::Chat {
            self.chat_delta(events, Delta { role: Some("assistant"), content: Some(""), ..Delta::default() }, None);
        }
    }

    /// Appends a chunk of text.
    pub fn delta(&mut self, events: &mut Vec<u8>, text: &str, tokens: &[TokenInfo]) {
        match self.style {
            Style::Chat => {
                let logprobs = self.wants_logprobs.then(|| chat_logprobs(tokens));
                let Some(mut calls) = self.calls.take() else {
                    return self.chat_delta(
                        events,
                        Delta { content: Some(text), ..Delta::default() },
                        logprobs.as_ref(),
                    );
                };
                let parts = calls.push(&self.unique, text);
                if let Some(logprobs) = &logprobs {
                    // They come with their tokens; the text of these may wait for what follows.
                    self.chat_delta(events, Delta { content: Some(""), ..Delta::default() }, Some(logprobs));
                }
                self.parts(events, &calls, parts);
                self.calls = Some(calls);
            }
            Style::Text => {
                let logprobs = self.wants_logprobs.then(|| text_logprobs(tokens, self.text_offset));
                self.text_offset = self.text_offset.saturating_add(characters(text));
                let choice = CompletionChoice { index: 0, text: text.into(), logprobs, finish_reason: None };
                self.text_chunk(events, vec![choice], None, None);
            }
        }
    }

    /// Appends a chunk that says something to the user. The text endpoint has no place for it.
    pub fn notice(&self, events: &mut Vec<u8>, text: &str) {
        if self.style == Style::Chat {
            let choice = ChunkChoice { index: 0, delta: Delta::default(), logprobs: None, finish_reason: None };
            self.chat_chunk(events, &[choice], None, Some(text), None);
        }
    }

    /// Appends text and calls as they were found.
    fn parts(&self, events: &mut Vec<u8>, calls: &Calls, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Text(text) => self.chat_delta(events, Delta { content: Some(&text), ..Delta::default() }, None),
                Part::Call(index) => {
                    let ToolCall { id, kind, function } = &calls.made()[index];
                    let index = u32::try_from(index).unwrap_or(u32::MAX);
                    let name = FunctionDelta { name: Some(&function.name), arguments: Some("") };
                    let begin = ToolCallDelta { index, id: Some(id), kind: Some(kind), function: name };
                    let arguments = FunctionDelta { name: None, arguments: Some(&function.arguments) };
                    let rest = ToolCallDelta { index, function: arguments, ..ToolCallDelta::default() };
                    for call in [begin, rest] {
                        self.chat_delta(events, Delta { tool_calls: Some(&[call]), ..Delta::default() }, None);
                    }
                }
            }
        }
    }

    /// Appends the last chunks and `[DONE]`.
    pub fn close(&mut self, events: &mut Vec<u8>, finish: &Finish, usage: Usage, timings: Timings) {
        if let Some(mut calls) = self.calls.take() {
            let parts = calls.finish(&self.unique);
            self.parts(events, &calls, parts);
            self.calls = Some(calls);
        }
        let reason = self.reason(finish);
        let counts = api_usage(usage);
        let times = Some(timings_object(usage, timings));
        match self.style {
            Style::Chat => {
                let choice =
                    ChunkChoice { index: 0, delta: Delta::default(), logprobs: None, finish_reason: Some(reason) };
                if self.wants_usage {
                    self.chat_chunk(events, &[choice], None, None, None);
                    self.chat_chunk(events, &[], Some(&counts), None, times);
                } else {
                    self.chat_chunk(events, &[choice], None, None, times);
                }
            }
            Style::Text => {
                let choice =
                    CompletionChoice { index: 0, text: String::new(), logprobs: None, finish_reason: Some(reason) };
                if self.wants_usage {
                    self.text_chunk(events, vec![choice], None, None);
                    self.text_chunk(events, Vec::new(), Some(counts), times);
                } else {
                    self.text_chunk(events, vec![choice], None, times);
                }
            }
        }
        events.extend_from_slice(sse::DONE);
    }

    /// Appends an error inside a stream that has begun: the status line is long gone, so the
    /// error is an event of the stream. `[DONE]` follows, so that a client can tell this proper end
    /// from a connection that broke.
    pub fn fail(&self, events: &mut Vec<u8>, error: &ApiError) {
        events.extend_from_slice(b"data: ");
        events.extend_from_slice(&error.to_json());
        events.extend_from_slice(b"\n\n");
        events.extend_from_slice(sse::DONE);
    }

    /// An answer that calls ends for the sake of its calls.
    fn reason(&self, finish: &Finish) -> &'static str {
        let called = self.calls.as_ref().is_some_and(|calls| !calls.made().is_empty());
        if called && *finish == Finish::Stop { "tool_calls" } else { finish_reason(finish) }
    }

    /// The whole answer as one JSON object.
    pub fn whole(
        &mut self,
        mut text: String,
        tokens: &[TokenInfo],
        finish: &Finish,
        usage: Usage,
        timings: Timings,
        notices: &[String],
    ) -> Vec<u8> {
        let mut tool_calls = Vec::new();
        if let Some(calls) = &mut self.calls {
            let mut parts = calls.push(&self.unique, &text);
            parts.extend(calls.finish(&self.unique));
            let texts = parts.into_iter().filter_map(|part| match part {
                Part::Text(text) => Some(text),
                Part::Call(_) => None,
            });
            text = texts.collect();
            tool_calls = calls.made().to_vec();
        }
        let reason = self.reason(finish);
        let counts = api_usage(usage);
        let timings = Some(timings_object(usage, timings));
        match self.style {
            Style::Chat => {
                let answer = ChatResponse {
                    id: self.id.clone(),
                    object: "chat.completion",
                    created: self.created,
                    model: self.model.clone(),
                    choices: vec![ChatChoice {
                        index: 0,
                        message: ResponseMessage {
                            role: "assistant",
                            content: Some(text).filter(|text| tool_calls.is_empty() || !text.is_empty()),
                            refusal: None,
                            tool_calls,
                        },
                        logprobs: self.wants_logprobs.then(|| chat_logprobs(tokens)),
                        finish_reason: reason,
                    }],
                    usage: counts,
                };
                to_json(&Timed { answer: &answer, timings, notices })
            }
            Style::Text => {
                let choice = CompletionChoice {
                    index: 0,
                    text,
                    logprobs: self.wants_logprobs.then(|| text_logprobs(tokens, 0)),
                    finish_reason: Some(reason),
                };
                let answer = self.text_object(vec![choice], Some(counts));
                to_json(&Timed { answer: &answer, timings, notices })
            }
        }
    }

    fn chat_delta(&self, events: &mut Vec<u8>, delta: Delta<'_>, logprobs: Option<&Logprobs>) {
        let choice = ChunkChoice { index: 0, delta, logprobs, finish_reason: None };
        self.chat_chunk(events, &[choice], None, None, None);
    }

    fn chat_chunk(
        &self,
        events: &mut Vec<u8>,
        choices: &[ChunkChoice<'_>],
        usage: Option<&api::Usage>,
        notice: Option<&str>,
        timings: Option<TimingsObject>,
    ) {
        let chunk = ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            choices,
            usage,
            notice,
        };
        event(events, &Timed { answer: &chunk, timings, notices: &[] });
    }

    fn text_chunk(
        &self,
        events: &mut Vec<u8>,
        choices: Vec<CompletionChoice>,
        usage: Option<api::Usage>,
        timings: Option<TimingsObject>,
    ) {
        let answer = self.text_object(choices, usage);
        event(events, &Timed { answer: &answer, timings, notices: &[] });
    }

    fn text_object(&self, choices: Vec<CompletionChoice>, usage: Option<api::Usage>) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion",
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        }
    }
}

/// The value of `finish_reason`. A deadline or a stop by the user ends the text early, which is
/// what clients understand by `length` and `stop`; failures never come here.
pub fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::Stop | Finish::Cancelled => "stop",
        Finish::Length | Finish::Deadline => "length",
        Finish::Failed(_) => "error",
    }
}

/// Token counts as the API writes them.
pub fn api_usage(usage: Usage) -> api::Usage {
    api::Usage::new(usage.prompt, usage.completion, usage.cached)
}

fn timings_object(usage: Usage, timings: Timings) -> TimingsObject {
    let milliseconds = |us: u64| us as f64 / 1_000.0;
    let per_second = |count: u32, us: u64| if us == 0 { 0.0 } else { f64::from(count) * 1e6 / us as f64 };
    let computed = usage.prompt.saturating_sub(usage.cached);
    TimingsObject {
        queue_ms: milliseconds(timings.queue_us),
        prompt_n: computed,
        cache_n: usage.cached,
        prompt_ms: milliseconds(timings.prefill_us),
        prompt_per_second: per_second(computed, timings.prefill_us),
        predicted_n: usage.completion,
        predicted_ms: milliseconds(timings.decode_us),
        // The first token belongs to the prompt's time.
        predicted_per_second: per_second(usage.completion.saturating_sub(1), timings.decode_us),
    }
}

fn chat_logprobs(tokens: &[TokenInfo]) -> Logprobs {
    let content = tokens
        .iter()
        .map(|token| TokenLogprob {
            token: lossy(&token.bytes),
            logprob: token.logprob,
            bytes: token.bytes.clone(),
            top_logprobs: token
                .top
                .iter()
                .map(|(bytes, logprob)| TopLogprob { token: lossy(bytes), logprob: *logprob, bytes: bytes.clone() })
                .collect(),
        })
        .collect();
    Logprobs { content }
}

fn text_logprobs(tokens: &[TokenInfo], mut offset: u32) -> CompletionLogprobs {
    let mut logprobs = CompletionLogprobs::default();
    for token in tokens {
        let text = lossy(&token.bytes);
        logprobs.text_offset.push(offset);
        offset = offset.saturating_add(characters(&text));
        logprobs.tokens.push(text);
        logprobs.token_logprobs.push(token.logprob);
        logprobs
            .top_logprobs
            .push(token.top.iter().map(|(bytes, logprob)| (lossy(bytes), serde_json::Value::from(*logprob))).collect());
    }
    logprobs
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn characters(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

fn event(events: &mut Vec<u8>, value: &impl Serialize) {
    if let Err(error) = sse::write_json(events, value) {
        tracing::error!(%error, "an answer could not be written as JSON");
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| {
        tracing::error!(%error, "an answer could not be written as JSON");
        ApiError::internal("The answer could not be written as JSON.").to_json()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::toolcall::CallSyntax;
    use serde_json::Value;

    const USAGE: Usage = Usage { prompt: 10, completion: 3, cached: 4 };
    const TIMINGS: Timings = Timings { queue_us: 1_000, prefill_us: 2_000, decode_us: 4_000 };

    fn events(sse: &[u8]) -> Vec<String> {
        let text = std::str::from_utf8(sse).expect("utf-8");
        assert!(text.ends_with("\n\n"));
        text.trim_end().split("\n\n").map(|event| event.strip_prefix("data: ").expect("data").to_owned()).collect()
    }

    fn stream(style: Style, wants_usage: bool, wants_logprobs: bool) -> Vec<Value> {
        let mut shape = Shape::new(style, 7, 1_700_000_000, "m".into(), wants_usage, wants_logprobs);
        let mut sse = Vec::new();
        let token = TokenInfo { bytes: "é".as_bytes()[..1].to_vec(), logprob: -0.5, top: vec![(b"x".to_vec(), -1.0)] };
        shape.open(&mut sse);
        shape.delta(&mut sse, "a\nb", std::slice::from_ref(&token));
        shape.delta(&mut sse, "c", &[token]);
        shape.close(&mut sse, &Finish::Stop, USAGE, TIMINGS);
        let mut events = events(&sse);
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect()
    }

    #[test]
    fn a_chat_stream_has_role_deltas_finish_and_usage_in_this_order() {
        let chunks = stream(Style::Chat, true, false);
        assert_eq!(chunks.len(), 5);
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        assert_eq!(chunks[1]["choices"][0]["delta"]["content"], "a\nb");
        assert_eq!(chunks[3]["choices"][0]["finish_reason"], "stop");
        assert_eq!(chunks[4]["choices"], Value::Array(Vec::new()));
        assert_eq!(chunks[4]["usage"]["total_tokens"], 13);
        assert_eq!(chunks[4]["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
        assert_eq!(chunks[4]["timings"]["predicted_per_second"], 500.0);
        for chunk in &chunks {
            assert_eq!((&chunk["id"], &chunk["object"]), (&chunks[0]["id"], &Value::from("chat.completion.chunk")));
        }
    }

    #[test]
    fn without_the_option_no_chunk_carries_usage() {
        for style in [Style::Chat, Style::Text] {
            let chunks = stream(style, false, false);
            assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
            assert!(chunks.last().expect("some")["timings"].is_object());
        }
    }

    #[test]
    fn log_probabilities_have_the_shape_of_each_endpoint() {
        let chat = stream(Style::Chat, false, true);
        let entry = &chat[1]["choices"][0]["logprobs"]["content"][0];
        assert_eq!((&entry["token"], &entry["bytes"][0]), (&Value::from("\u{fffd}"), &Value::from(0xc3)));
        assert_eq!(entry["top_logprobs"][0]["token"], "x");
        let text = stream(Style::Text, false, true);
        assert_eq!(text[0]["choices"][0]["logprobs"]["text_offset"][0], 0);
        assert_eq!(text[1]["choices"][0]["logprobs"]["text_offset"][0], 3);
        assert_eq!(text[0]["choices"][0]["logprobs"]["top_logprobs"][0]["x"], -1.0);
    }

    #[test]
    fn a_whole_answer_has_usage_and_timings() {
        let mut shape = Shape::new(Style::Chat, 7, 1, "m".into(), false, false);
        let json = shape.whole("hi".into(), &[], &Finish::Length, USAGE, TIMINGS, &["older messages were cut".into()]);
        let value: Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(value["object"], "chat.completion");
        assert_eq!(value["choices"][0]["message"]["content"], "hi");
        assert_eq!(value["choices"][0]["finish_reason"], "length");
        assert_eq!(value["timings"]["prompt_n"], 6);
        assert_eq!(value["notices"][0], "older messages were cut");
    }

    #[test]
    fn calls_come_as_deltas_with_ids_and_end_the_answer() {
        let shape = || {
            let mut shape = Shape::new(Style::Chat, 7, 1, "m".into(), false, false);
            shape.expect_calls(Calls::new(CallSyntax::Tagged, vec!["add".into()], false));
            shape
        };
        let reply = "Yes.\n<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}}</tool_call>";
        let (mut streamed, mut sse) = (shape(), Vec::new());
        for piece in [&reply[..10], &reply[10..30], &reply[30..]] {
            streamed.delta(&mut sse, piece, &[]);
        }
        streamed.close(&mut sse, &Finish::Stop, USAGE, TIMINGS);
        let events = events(&sse);
        let chunks: Vec<Value> =
            events[..events.len() - 1].iter().map(|e| serde_json::from_str(e).expect("JSON")).collect();
        let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
        assert_eq!(deltas[0]["content"], "Yes.");
        let call = |n: usize| &deltas[n]["tool_calls"][0];
        assert_eq!((&call(1)["function"]["name"], &call(1)["type"]), (&Value::from("add"), &Value::from("function")));
        assert!(call(1)["id"].as_str().is_some_and(|id| id.starts_with("call_")), "{}", call(1));
        assert_eq!(
            (&call(2)["index"], &call(2)["function"]["arguments"]),
            (&Value::from(0), &Value::from("{\"a\":1}"))
        );
        assert_eq!(chunks.last().expect("some")["choices"][0]["finish_reason"], "tool_calls");

        let whole = shape().whole(reply.into(), &[], &Finish::Stop, USAGE, TIMINGS, &[]);
        let whole: Value = serde_json::from_slice(&whole).expect("JSON");
        let message = &whole["choices"][0]["message"];
        assert_eq!((&message["content"], &message["tool_calls"][0]["id"]), (&Value::from("Yes."), &call(1)["id"]));
        assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
        let plain = shape().whole("no call".into(), &[], &Finish::Stop, USAGE, TIMINGS, &[]);
        let plain: Value = serde_json::from_slice(&plain).expect("JSON");
        assert_eq!(plain["choices"][0]["finish_reason"], "stop");
        assert!(plain["choices"][0]["message"].get("tool_calls").is_none());
    }

    #[test]
    fn an_error_in_a_stream_is_one_event_and_a_proper_end() {
        let shape = Shape::new(Style::Chat, 7, 1, "m".into(), false, false);
        let mut sse = Vec::new();
        shape.fail(&mut sse, &ApiError::internal("broken"));
        let events = events(&sse);
        assert_eq!(events.len(), 2);
        let value: Value = serde_json::from_str(&events[0]).expect("JSON");
        assert_eq!(value["error"]["code"], "internal_error");
        assert_eq!(events[1], "[DONE]");
    }
}
