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
    answers: Vec<AnswerShape>,
    /// Counts and times of the answers that are over.
    spent: Option<(Usage, Timings)>,
}

/// One of the answers to a request.
struct AnswerShape {
    index: u32,
    /// Characters written so far: the older log-probability shape counts them.
    text_offset: u32,
    /// What makes the ids of its calls unique.
    unique: String,
    /// Set when the request has tools.
    calls: Option<Calls>,
    over: bool,
}

/// A complete answer, for the shape in one piece.
#[derive(Default)]
pub struct Answer {
    /// Its text, with what makes a call in it.
    pub text: String,
    /// Filled when log-probabilities were asked for.
    pub tokens: Vec<TokenInfo>,
    /// Why it ended; `None` while it goes on.
    pub finish: Option<Finish>,
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
    /// The shape of the answers to one request, of which there is one to begin with. `unique` makes the id.
    pub fn new(
        style: Style,
        unique: u64,
        created: u64,
        model: String,
        wants_usage: bool,
        wants_logprobs: bool,
    ) -> Self {
        let first =
            AnswerShape { index: 0, text_offset: 0, unique: format!("{unique:016x}"), calls: None, over: false };
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
            answers: vec![first],
            spent: None,
        }
    }

    /// The id of the completion.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Which endpoint's shapes.
    pub fn style(&self) -> Style {
        self.style
    }

    /// Another model answers than the one that was named.
    pub fn set_model(&mut self, model: String) {
        self.model = model;
    }

    /// There will be so many answers.
    pub fn expect_answers(&mut self, count: usize) {
        let first = self.answers[0].unique.clone();
        for index in 1..u32::try_from(count).unwrap_or(u32::MAX) {
            let unique = format!("{first}{index:02x}");
            self.answers.push(AnswerShape { index, text_offset: 0, unique, calls: None, over: false });
        }
    }

    /// The answers may hold tool calls, which `calls` finds: once for each answer.
    pub fn expect_calls(&mut self, mut calls: impl FnMut() -> Calls) {
        self.answers.iter_mut().for_each(|answer| answer.calls = Some(calls()));
    }

    /// Appends the first chunk of each answer of a stream.
    pub fn open(&self, events: &mut Vec<u8>) {
        if self.style == Style::Chat {
            let delta = Delta { role: Some("assistant"), content: Some(""), ..Delta::default() };
            self.answers.iter().for_each(|answer| self.chat_delta(events, answer.index, delta, None));
        }
    }

    /// Appends a chunk of text of an answer.
    pub fn delta(&mut self, events: &mut Vec<u8>, answer: usize, text: &str, tokens: &[TokenInfo]) {
        let AnswerShape { index, ref mut text_offset, ref unique, ref mut calls, .. } = self.answers[answer];
        match self.style {
            Style::Chat => {
                let logprobs = self.wants_logprobs.then(|| chat_logprobs(tokens));
                let Some(mut calls) = calls.take() else {
                    let delta = Delta { content: Some(text), ..Delta::default() };
                    return self.chat_delta(events, index, delta, logprobs.as_ref());
                };
                let parts = calls.push(unique, text);
                if let Some(logprobs) = &logprobs {
                    // They come with their tokens; the text of these may wait for what follows.
                    self.chat_delta(events, index, Delta { content: Some(""), ..Delta::default() }, Some(logprobs));
                }
                self.parts(events, index, &calls, parts);
                self.answers[answer].calls = Some(calls);
            }
            Style::Text => {
                let logprobs = self.wants_logprobs.then(|| text_logprobs(tokens, *text_offset));
                *text_offset = text_offset.saturating_add(characters(text));
                let choice = CompletionChoice { index, text: text.into(), logprobs, finish_reason: None };
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
    fn parts(&self, events: &mut Vec<u8>, answer: u32, calls: &Calls, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Text(text) => {
                    self.chat_delta(events, answer, Delta { content: Some(&text), ..Delta::default() }, None);
                }
                Part::Call(index) => {
                    let ToolCall { id, kind, function } = &calls.made()[index];
                    let index = u32::try_from(index).unwrap_or(u32::MAX);
                    let name = FunctionDelta { name: Some(&function.name), arguments: Some("") };
                    let begin = ToolCallDelta { index, id: Some(id), kind: Some(kind), function: name };
                    let arguments = FunctionDelta { name: None, arguments: Some(&function.arguments) };
                    let rest = ToolCallDelta { index, function: arguments, ..ToolCallDelta::default() };
                    for call in [begin, rest] {
                        self.chat_delta(events, answer, Delta { tool_calls: Some(&[call]), ..Delta::default() }, None);
                    }
                }
            }
        }
    }

    /// Appends the last chunk of an answer, and behind that of the last answer `[DONE]`; true when this was it.
    pub fn close(
        &mut self,
        events: &mut Vec<u8>,
        answer: usize,
        finish: &Finish,
        usage: Usage,
        timings: Timings,
    ) -> bool {
        let AnswerShape { index, ref unique, ref mut calls, .. } = self.answers[answer];
        if let Some(mut calls) = calls.take() {
            let parts = calls.finish(unique);
            self.parts(events, index, &calls, parts);
            self.answers[answer].calls = Some(calls);
        }
        let reason = self.answers[answer].reason(finish);
        let (usage, timings) = self.spend(usage, timings);
        self.answers[answer].over = true;
        let last = self.answers.iter().all(|answer| answer.over);
        let counts = api_usage(usage);
        let times = last.then(|| timings_object(usage, timings));
        match self.style {
            Style::Chat => {
                let choice =
                    ChunkChoice { index, delta: Delta::default(), logprobs: None, finish_reason: Some(reason) };
                if self.wants_usage && last {
                    self.chat_chunk(events, &[choice], None, None, None);
                    self.chat_chunk(events, &[], Some(&counts), None, times);
                } else {
                    self.chat_chunk(events, &[choice], None, None, times);
                }
            }
            Style::Text => {
                let choice =
                    CompletionChoice { index, text: String::new(), logprobs: None, finish_reason: Some(reason) };
                if self.wants_usage && last {
                    self.text_chunk(events, vec![choice], None, None);
                    self.text_chunk(events, Vec::new(), Some(counts), times);
                } else {
                    self.text_chunk(events, vec![choice], None, times);
                }
            }
        }
        if last {
            events.extend_from_slice(sse::DONE);
        }
        last
    }

    /// Takes in what an answer needed; gives what all so far did. The prompt is counted once, and as cached only what
    /// was so before the request: the other answers find what the first one computed. Times are those of the slowest.
    pub fn spend(&mut self, usage: Usage, timings: Timings) -> (Usage, Timings) {
        let sum = match self.spent {
            None => (usage, timings),
            Some((all, times)) => (
                Usage {
                    prompt: all.prompt.max(usage.prompt),
                    completion: all.completion.saturating_add(usage.completion),
                    cached: all.cached.min(usage.cached),
                },
                Timings {
                    queue_us: times.queue_us.max(timings.queue_us),
                    prefill_us: times.prefill_us.max(timings.prefill_us),
                    decode_us: times.decode_us.max(timings.decode_us),
                },
            ),
        };
        self.spent = Some(sum);
        sum
    }

    /// Appends an error inside a stream that has begun: the status line is long gone, so the
    /// error is an event of the stream. `[DONE]` follows, so that a client can tell this proper end
    /// from a connection that broke.
    pub fn fail(&self, events: &mut Vec<u8>, error: &ApiError) {
        write_failure(events, error);
    }

    /// All answers as one JSON object; `answers` in their order, `spent` as [`Shape::spend`] gave it for the last.
    pub fn whole(&mut self, answers: Vec<Answer>, (usage, timings): (Usage, Timings), notices: &[String]) -> Vec<u8> {
        let counts = api_usage(usage);
        let timings = Some(timings_object(usage, timings));
        let parts = self.answers.iter_mut().zip(answers);
        match self.style {
            Style::Chat => {
                let wants_logprobs = self.wants_logprobs;
                let choices = parts.map(|(shape, answer)| shape.chat_choice(answer, wants_logprobs)).collect();
                let answer = ChatResponse {
                    id: self.id.clone(),
                    object: "chat.completion",
                    created: self.created,
                    model: self.model.clone(),
                    choices,
                    usage: counts,
                };
                to_json(&Timed { answer: &answer, timings, notices })
            }
            Style::Text => {
                let choices = parts.map(|(shape, answer)| CompletionChoice {
                    index: shape.index,
                    logprobs: self.wants_logprobs.then(|| text_logprobs(&answer.tokens, 0)),
                    finish_reason: answer.finish.as_ref().map(finish_reason),
                    text: answer.text,
                });
                let choices = choices.collect();
                let answer = self.text_object(choices, Some(counts));
                to_json(&Timed { answer: &answer, timings, notices })
            }
        }
    }

    fn chat_delta(&self, events: &mut Vec<u8>, index: u32, delta: Delta<'_>, logprobs: Option<&Logprobs>) {
        let choice = ChunkChoice { index, delta, logprobs, finish_reason: None };
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

impl AnswerShape {
    /// An answer that calls ends for the sake of its calls.
    fn reason(&self, finish: &Finish) -> &'static str {
        let called = self.calls.as_ref().is_some_and(|calls| !calls.made().is_empty());
        if called && *finish == Finish::Stop { "tool_calls" } else { finish_reason(finish) }
    }

    fn chat_choice(&mut self, answer: Answer, wants_logprobs: bool) -> ChatChoice {
        let Answer { mut text, tokens, finish } = answer;
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
        ChatChoice {
            index: self.index,
            finish_reason: self.reason(finish.as_ref().unwrap_or(&Finish::Stop)),
            message: ResponseMessage {
                role: "assistant",
                content: Some(text).filter(|text| tool_calls.is_empty() || !text.is_empty()),
                refusal: None,
                tool_calls,
            },
            logprobs: wants_logprobs.then(|| chat_logprobs(&tokens)),
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

/// Appends an error as the last event of a stream.
pub fn write_failure(events: &mut Vec<u8>, error: &ApiError) {
    events.extend_from_slice(b"data: ");
    events.extend_from_slice(&error.to_json());
    events.extend_from_slice(b"\n\n");
    events.extend_from_slice(sse::DONE);
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

    fn answer(text: &str, finish: Finish) -> Answer {
        Answer { text: text.into(), tokens: Vec::new(), finish: Some(finish) }
    }

    #[test]
    fn several_answers_have_an_index_each_and_one_account_of_tokens() {
        for style in [Style::Chat, Style::Text] {
            let shape = || {
                let mut shape = Shape::new(style, 7, 1, "m".into(), true, false);
                shape.expect_answers(3);
                shape
            };
            let later = Usage { prompt: 10, completion: 2, cached: 9 };
            let (mut streamed, mut sse) = (shape(), Vec::new());
            streamed.open(&mut sse);
            for at in [2, 0, 1] {
                streamed.delta(&mut sse, at, &format!("answer {at}"), &[]);
            }
            assert!(!streamed.close(&mut sse, 1, &Finish::Stop, later, TIMINGS));
            assert!(!streamed.close(&mut sse, 0, &Finish::Length, USAGE, TIMINGS));
            assert!(streamed.close(&mut sse, 2, &Finish::Stop, later, TIMINGS));
            let events = events(&sse);
            assert_eq!(
                (events.len(), events.iter().filter(|event| *event == "[DONE]").count()),
                (
                    match style {
                        Style::Chat => 3 + 3 + 3 + 1 + 1,
                        Style::Text => 3 + 3 + 1 + 1,
                    },
                    1
                )
            );
            let chunks: Vec<Value> =
                events[..events.len() - 1].iter().map(|event| serde_json::from_str(event).expect("JSON")).collect();
            let texts: Vec<(u64, String)> = chunks
                .iter()
                .filter_map(|chunk| chunk["choices"].get(0))
                .map(|choice| {
                    let text = if style == Style::Chat { &choice["delta"]["content"] } else { &choice["text"] };
                    (choice["index"].as_u64().expect("an index"), text.as_str().unwrap_or_default().to_owned())
                })
                .filter(|(_, text)| !text.is_empty())
                .collect();
            assert_eq!(texts, [2, 0, 1].map(|at| (at, format!("answer {at}"))));
            let ends: Vec<(u64, &str)> = chunks
                .iter()
                .filter_map(|chunk| {
                    let choice = chunk["choices"].get(0)?;
                    Some((choice["index"].as_u64()?, choice["finish_reason"].as_str()?))
                })
                .collect();
            assert_eq!(ends, [(1, "stop"), (0, "length"), (2, "stop")]);
            let counts = &chunks.last().expect("some")["usage"];
            assert_eq!((&counts["prompt_tokens"], &counts["completion_tokens"]), (&Value::from(10), &Value::from(7)));
            assert_eq!(counts["prompt_tokens_details"]["cached_tokens"], 4);

            let answers = ["a", "b", "c"].map(|text| answer(text, Finish::Stop));
            let whole = shape().whole(answers.into(), (USAGE, TIMINGS), &[]);
            let whole: Value = serde_json::from_slice(&whole).expect("JSON");
            let indices: Vec<u64> =
                whole["choices"].as_array().expect("a list").iter().filter_map(|c| c["index"].as_u64()).collect();
            assert_eq!(indices, [0, 1, 2]);
        }
    }

    fn stream(style: Style, wants_usage: bool, wants_logprobs: bool) -> Vec<Value> {
        let mut shape = Shape::new(style, 7, 1_700_000_000, "m".into(), wants_usage, wants_logprobs);
        let mut sse = Vec::new();
        let token = TokenInfo { bytes: "é".as_bytes()[..1].to_vec(), logprob: -0.5, top: vec![(b"x".to_vec(), -1.0)] };
        shape.open(&mut sse);
        shape.delta(&mut sse, 0, "a\nb", std::slice::from_ref(&token));
        shape.delta(&mut sse, 0, "c", &[token]);
        assert!(shape.close(&mut sse, 0, &Finish::Stop, USAGE, TIMINGS));
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
        let spent = shape.spend(USAGE, TIMINGS);
        let json = shape.whole(vec![answer("hi", Finish::Length)], spent, &["older messages were cut".into()]);
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
            shape.expect_calls(|| Calls::new(CallSyntax::Tagged, vec!["add".into()], false));
            shape
        };
        let reply = "Yes.\n<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}}</tool_call>";
        let (mut streamed, mut sse) = (shape(), Vec::new());
        for piece in [&reply[..10], &reply[10..30], &reply[30..]] {
            streamed.delta(&mut sse, 0, piece, &[]);
        }
        assert!(streamed.close(&mut sse, 0, &Finish::Stop, USAGE, TIMINGS));
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

        let whole = shape().whole(vec![answer(reply, Finish::Stop)], (USAGE, TIMINGS), &[]);
        let whole: Value = serde_json::from_slice(&whole).expect("JSON");
        let message = &whole["choices"][0]["message"];
        assert_eq!((&message["content"], &message["tool_calls"][0]["id"]), (&Value::from("Yes."), &call(1)["id"]));
        assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
        let plain = shape().whole(vec![answer("no call", Finish::Stop)], (USAGE, TIMINGS), &[]);
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
