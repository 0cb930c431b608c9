//! `POST /v1/chat/completions`.

use super::read::{
    self, Kind, SamplingOptions, StopStrings, answers, check_answers, check_name, check_stream_options, whole_in_range,
};
use super::structured::{AskedFormat, FormatFields};
use super::tool::{self, Tool, ToolCall, ToolChoice, ToolUse};
use super::{ApiError, Usage};
use crate::limits::{CHAT_MESSAGES_MAX, MAX_TOKENS_MAX, TOP_LOGPROBS_MAX};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A chat request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChatRequest {
    /// Model name; empty means the server's default model.
    #[serde(deserialize_with = "null_is_default")]
    pub model: String,
    /// The conversation so far. With `session`, only what is new.
    #[serde(deserialize_with = "null_is_default")]
    pub messages: Vec<ChatMessage>,
    /// Extension: the name of a conversation that the server remembers.
    pub session: Option<String>,
    /// End user inside the tenant.
    pub user: Option<String>,
    /// Whether to answer as server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream.
    pub stream_options: Option<StreamOptions>,
    /// Longest answer in tokens (older name).
    pub max_tokens: Option<i64>,
    /// Longest answer in tokens.
    pub max_completion_tokens: Option<i64>,
    /// See [`SamplingOptions`].
    pub temperature: Option<f64>,
    /// See [`SamplingOptions`].
    pub top_p: Option<f64>,
    /// See [`SamplingOptions`].
    pub top_k: Option<i64>,
    /// See [`SamplingOptions`].
    pub min_p: Option<f64>,
    /// See [`SamplingOptions`].
    pub repetition_penalty: Option<f64>,
    /// The other common name of `repetition_penalty`.
    pub repeat_penalty: Option<f64>,
    /// See [`SamplingOptions`].
    pub presence_penalty: Option<f64>,
    /// See [`SamplingOptions`].
    pub frequency_penalty: Option<f64>,
    /// See [`SamplingOptions`].
    pub seed: Option<i64>,
    /// Texts that end the answer.
    pub stop: Option<StopStrings>,
    /// Whether to report the log probability of each token.
    pub logprobs: Option<bool>,
    /// Alternatives to report at each token.
    pub top_logprobs: Option<i64>,
    /// Number of answers; 1 unless said otherwise.
    pub n: Option<i64>,
    /// Answers to choose the best `n` from; only the same number, since nothing is left out.
    pub best_of: Option<i64>,
    /// Extension: go on after the end-of-text token (for measurements).
    pub ignore_eos: Option<bool>,
    /// The format of the answer; see [`ChatRequest::output_format`].
    pub response_format: Option<Value>,
    /// Extension of vLLM, the same in other words.
    pub structured_outputs: Option<Value>,
    /// Extension of vLLM (older name).
    pub guided_json: Option<Value>,
    /// Extension of vLLM (older name).
    pub guided_regex: Option<Value>,
    /// Extension of vLLM (older name).
    pub guided_choice: Option<Value>,
    /// Extension of vLLM (older name).
    pub guided_grammar: Option<Value>,
    /// What the model may call.
    #[serde(deserialize_with = "null_is_default")]
    pub tools: Vec<Tool>,
    /// Whether and what it has to call.
    pub tool_choice: Option<Value>,
    /// Whether one answer may call several tools; true unless said otherwise.
    pub parallel_tool_calls: Option<bool>,
    /// The form of `tools` before there were tools; refused.
    pub functions: Option<Value>,
}

/// Options of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    /// Whether the last chunk carries the token counts.
    pub include_usage: Option<bool>,
    /// Whether the stream may be resumed after a lost connection: its work goes on for a while, and its events have ids.
    pub resume: Option<bool>,
}

/// Who says a message of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChatRole {
    /// Instructions.
    System,
    /// The newer name of `system`.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl ChatRole {
    /// The role name that chat templates know (`developer` becomes `system`).
    pub fn template_name(self) -> &'static str {
        match self {
            ChatRole::System | ChatRole::Developer => "system",
            ChatRole::User => "user",
            ChatRole::Assistant => "assistant",
            ChatRole::Tool => "tool",
        }
    }
}

/// One message of a request. Content parts of type `text` are joined when the message is read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who says it.
    pub role: ChatRole,
    /// What is said.
    #[serde(default, deserialize_with = "content")]
    pub content: String,
    /// Name of the speaker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the assistant called.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// A message of text.
    pub fn new(role: ChatRole, content: impl Into<String>) -> Self {
        Self { role, content: content.into(), name: None, tool_calls: Vec::new(), tool_call_id: None }
    }
}

/// The text of a part type that this server does not read; looked for by the error path.
const PART_TYPE_ERROR: &str = "only content parts of type \"text\" are supported";

fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    struct Part {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        text: Option<String>,
    }
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = String;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a string or a list of text parts as content")
        }

        fn visit_str<E>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        fn visit_string<E>(self, text: String) -> Result<String, E> {
            Ok(text)
        }

        fn visit_unit<E>(self) -> Result<String, E> {
            Ok(String::new())
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut parts: A) -> Result<String, A::Error> {
            let mut text = String::new();
            while let Some(part) = parts.next_element::<Part>()? {
                match (part.kind.as_str(), part.text) {
                    ("text", Some(part)) => text.push_str(&part),
                    ("text", None) => return Err(serde::de::Error::custom("a text part has no text")),
                    (other, _) => {
                        return Err(serde::de::Error::custom(format!("{PART_TYPE_ERROR}, got {other:?}")));
                    }
                }
            }
            Ok(text)
        }
    }
    deserializer.deserialize_any(Visitor)
}

pub(super) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Which of the nested parameters cannot be read: only the error path asks.
fn nested_param(body: &[u8]) -> &'static str {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let tools = body.get("tools").filter(|tools| !tools.is_null());
    if tools.is_some_and(|tools| Vec::<Tool>::deserialize(tools).is_err()) { "tools" } else { "messages" }
}

const FIELDS: &[(&str, Kind)] = &[
    ("model", Kind::Text),
    ("messages", Kind::List),
    ("session", Kind::Text),
    ("user", Kind::Text),
    ("stream", Kind::Flag),
    ("stream_options", Kind::Object),
    ("max_tokens", Kind::Whole),
    ("max_completion_tokens", Kind::Whole),
    ("temperature", Kind::Number),
    ("top_p", Kind::Number),
    ("top_k", Kind::Whole),
    ("min_p", Kind::Number),
    ("repetition_penalty", Kind::Number),
    ("repeat_penalty", Kind::Number),
    ("presence_penalty", Kind::Number),
    ("frequency_penalty", Kind::Number),
    ("seed", Kind::Whole),
    ("stop", Kind::TextOrList),
    ("logprobs", Kind::Flag),
    ("top_logprobs", Kind::Whole),
    ("n", Kind::Whole),
    ("best_of", Kind::Whole),
    ("ignore_eos", Kind::Flag),
    ("response_format", Kind::Object),
    ("structured_outputs", Kind::Object),
    ("tools", Kind::List),
    ("parallel_tool_calls", Kind::Flag),
];

impl ChatRequest {
    /// Reads and validates a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let request: Self =
            read::parse(body, FIELDS).map_err(|error| match error.message.contains(PART_TYPE_ERROR) {
                true => ApiError { code: "unsupported_content", ..error }.with_param("messages"),
                false if error.param.is_none() && error.code == "invalid_type" => error.with_param(nested_param(body)),
                false => error,
            })?;
        request.validate()?;
        Ok(request)
    }

    /// Checks every range.
    pub fn validate(&self) -> Result<(), ApiError> {
        if self.messages.is_empty() {
            return Err(ApiError::invalid_param("messages", "messages is empty; at least one message is needed."));
        }
        if self.messages.len() > CHAT_MESSAGES_MAX {
            let message = format!("{} messages; at most {CHAT_MESSAGES_MAX} are accepted.", self.messages.len());
            return Err(ApiError::invalid_param("messages", message));
        }
        check_name("session", self.session.as_deref())?;
        check_name("user", self.user.as_deref())?;
        self.sampling().validate()?;
        whole_in_range("max_tokens", self.max_tokens, 1, MAX_TOKENS_MAX)?;
        whole_in_range("max_completion_tokens", self.max_completion_tokens, 1, MAX_TOKENS_MAX)?;
        if let Some(stop) = &self.stop {
            stop.validate()?;
        }
        whole_in_range("top_logprobs", self.top_logprobs, 0, TOP_LOGPROBS_MAX)?;
        if self.top_logprobs.is_some_and(|n| n > 0) && self.logprobs != Some(true) {
            return Err(ApiError::invalid_param("top_logprobs", "top_logprobs needs logprobs to be true."));
        }
        check_stream_options(self.stream, self.stream_options)?;
        check_answers(self.n, self.best_of)?;
        self.validate_tools()
    }

    fn validate_tools(&self) -> Result<(), ApiError> {
        if self.functions.is_some() {
            return Err(ApiError::unsupported(
                "functions",
                "functions is the older form of tools and is not supported.",
            )
            .with_next_step("Send tools and tool_choice."));
        }
        let choice = tool::choice(self.tool_choice.as_ref())?;
        tool::check(&self.tools, &choice, self.tool_choice.is_some())?;
        tool::check_messages(&self.messages)?;
        let format = self.output_format()?;
        if let (Some(asked), Some(_)) = (&format, self.tool_use()) {
            let message = format!("{} and tools exclude each other: a call has a format of its own.", asked.param);
            return Err(ApiError::unsupported(asked.param, message)
                .with_next_step("Leave one of them out, or set tool_choice to none."));
        }
        if self.session.is_some() && self.answers() > 1 {
            let message = "A session goes on from one answer, so n cannot be more than 1 in it.";
            return Err(ApiError::unsupported("n", message)
                .with_next_step("Leave out `session` and send the whole conversation."));
        }
        if self.session.is_some() {
            let param = if self.tools.is_empty() { format.map(|asked| asked.param) } else { Some("tools") };
            if let Some(param) = param {
                let message =
                    format!("{param} is not possible in a session, whose history the server keeps as plain text.");
                return Err(ApiError::unsupported(param, message)
                    .with_next_step("Leave out `session` and send the whole conversation."));
            }
        }
        Ok(())
    }

    /// The tools that the model gets to see; a validated request never gives an error here.
    pub fn tool_use(&self) -> Option<ToolUse<'_>> {
        let choice = tool::choice(self.tool_choice.as_ref()).ok()?;
        let wanted = !self.tools.is_empty() && choice != ToolChoice::None;
        wanted.then(|| ToolUse { tools: &self.tools, choice, parallel: self.parallel_tool_calls != Some(false) })
    }

    /// What the answer has to be, if the request says so.
    pub fn output_format(&self) -> Result<Option<AskedFormat>, ApiError> {
        FormatFields {
            response_format: self.response_format.as_ref(),
            structured_outputs: self.structured_outputs.as_ref(),
            guided_json: self.guided_json.as_ref(),
            guided_regex: self.guided_regex.as_ref(),
            guided_choice: self.guided_choice.as_ref(),
            guided_grammar: self.guided_grammar.as_ref(),
        }
        .read()
    }

    /// The sampling parameters.
    pub fn sampling(&self) -> SamplingOptions {
        SamplingOptions {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty.or(self.repeat_penalty),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.seed,
        }
    }

    /// The asked length of the answer; a validated request never gives 0.
    pub fn max_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens).and_then(|n| u32::try_from(n).ok())
    }

    /// The stop strings.
    pub fn stop_strings(&self) -> &[String] {
        self.stop.as_ref().map_or(&[], StopStrings::as_slice)
    }

    /// How many answers to give.
    pub fn answers(&self) -> usize {
        answers(self.n)
    }

    /// Whether to stream.
    pub fn wants_stream(&self) -> bool {
        self.stream == Some(true)
    }

    /// Whether the stream ends with token counts.
    pub fn wants_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage == Some(true))
    }

    /// Whether the stream is to be kept for a client that loses its connection.
    pub fn wants_resume(&self) -> bool {
        self.stream_options.is_some_and(|options| options.resume == Some(true))
    }

    /// `Some(n)` when log probabilities are asked for, with n alternatives.
    pub fn logprobs_wanted(&self) -> Option<u8> {
        (self.logprobs == Some(true)).then(|| u8::try_from(self.top_logprobs.unwrap_or(0)).unwrap_or(0))
    }
}

/// The answer of a request that does not stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatResponse {
    /// `chatcmpl-...`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// One answer.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatChoice {
    /// Which answer, from 0.
    pub index: u32,
    /// The answer.
    pub message: ResponseMessage,
    /// Log probabilities if asked for.
    pub logprobs: Option<Logprobs>,
    /// Why it ended: `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// The message of an answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ResponseMessage {
    /// `assistant`.
    pub role: &'static str,
    /// The text; null when there are only calls.
    pub content: Option<String>,
    /// Always null; present because clients read it.
    pub refusal: Option<String>,
    /// What is to be called.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// One chunk of a streamed answer. Borrows, because one is written for every token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChatChunk<'a> {
    /// `chatcmpl-...`, the same in all chunks.
    pub id: &'a str,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Unix seconds, the same in all chunks.
    pub created: u64,
    /// The model that answers.
    pub model: &'a str,
    /// One choice, or none in the chunk that carries the usage.
    pub choices: &'a [ChunkChoice<'a>],
    /// Token counts, in the last chunk if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<&'a Usage>,
    /// Extension: a visible event, such as "older messages were left out".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notice: Option<&'a str>,
}

/// The choice of a chunk.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChunkChoice<'a> {
    /// Which answer, from 0.
    pub index: u32,
    /// What is new.
    pub delta: Delta<'a>,
    /// Log probabilities if asked for.
    pub logprobs: Option<&'a Logprobs>,
    /// Set in the last chunk.
    pub finish_reason: Option<&'a str>,
}

/// What a chunk adds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Delta<'a> {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'a str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    /// More of the calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<&'a [ToolCallDelta<'a>]>,
}

/// What a chunk adds to a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ToolCallDelta<'a> {
    /// Which call of the answer.
    pub index: u32,
    /// In the first piece of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    /// `function`, in the first piece of a call.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'a str>,
    /// Name and arguments.
    pub function: FunctionDelta<'a>,
}

/// What a chunk adds to name and arguments of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FunctionDelta<'a> {
    /// The name, in the first piece of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// More JSON text of the arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<&'a str>,
}

/// Log probabilities of the tokens of an answer or chunk.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Logprobs {
    /// One entry per token.
    pub content: Vec<TokenLogprob>,
}

/// The log probability of a token.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token as text, with replacement characters where it is part of a character.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The best alternatives.
    pub top_logprobs: Vec<TopLogprob>,
}

/// An alternative.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopLogprob {
    /// The token as text.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(extra: &str) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(format!(r#"{{"messages":[{{"role":"user","content":"hi"}}]{extra}}}"#).as_bytes())
    }

    #[test]
    fn an_official_request_is_read_and_unknown_fields_are_ignored() {
        let request = with(
            r#","model":"m","stream":true,"stream_options":{"include_usage":true},"max_completion_tokens":7,
               "stop":"END","temperature":0,"repeat_penalty":1.1,"logprobs":true,"top_logprobs":3,"future":{"x":1}"#,
        )
        .unwrap();
        assert!(request.wants_stream() && request.wants_usage());
        assert_eq!(request.max_tokens(), Some(7));
        assert_eq!(request.stop_strings(), ["END"]);
        assert_eq!(request.sampling().repetition_penalty, Some(1.1));
        assert_eq!(request.logprobs_wanted(), Some(3));
    }

    #[test]
    fn content_may_be_text_parts_or_null() {
        let body = br#"{"messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},{"role":"assistant","content":null}]}"#;
        let request = ChatRequest::parse(body).unwrap();
        assert_eq!(request.messages[0].content, "ab");
        assert_eq!(request.messages[0].role.template_name(), "system");
        assert_eq!(request.messages[1].content, "");
        let body = br#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#;
        let error = ChatRequest::parse(body).unwrap_err();
        assert_eq!((error.status, error.code, error.param.as_deref()), (400, "unsupported_content", Some("messages")));
        assert!(error.message.contains("image_url"), "{error}");
    }

    /// Every numeric field refuses what lies outside, and says name, value and range.
    #[test]
    fn stream_options_need_a_stream() {
        let read = |rest: &str| {
            ChatRequest::parse(format!(r#"{{"messages":[{{"role":"user","content":"a"}}],{rest}}}"#).as_bytes())
        };
        read(r#""stream":true,"stream_options":{"include_usage":true}"#).expect("both together");
        read(r#""stream":true,"stream_options":null"#).expect("null is as good as absent");
        for rest in [r#""stream_options":{"include_usage":true}"#, r#""stream":false,"stream_options":{}"#] {
            assert_eq!(read(rest).expect_err(rest).param.as_deref(), Some("stream_options"));
        }
    }

    #[test]
    fn ranges_are_checked_with_name_value_and_range() {
        let cases = [
            ("temperature", "-0.1"),
            ("temperature", "2.1"),
            ("temperature", "1e308"),
            ("temperature", "-1e308"),
            ("top_p", "-1"),
            ("top_p", "1.5"),
            ("top_k", "-1"),
            ("top_k", "9223372036854775807"),
            ("min_p", "2"),
            ("repetition_penalty", "0"),
            ("repetition_penalty", "-1"),
            ("presence_penalty", "3"),
            ("frequency_penalty", "-2.5"),
            ("max_tokens", "0"),
            ("max_tokens", "-1"),
            ("max_tokens", "1000001"),
            ("max_completion_tokens", "-9223372036854775808"),
            ("top_logprobs", "21"),
            ("n", "33"),
            ("n", "0"),
            ("n", "-1"),
            ("best_of", "2"),
        ];
        for (name, value) in cases {
            let error = with(&format!(r#","logprobs":true,"{name}":{value}"#)).expect_err(name);
            assert_eq!(error.status, 400, "{name}");
            assert_eq!(error.param.as_deref(), Some(name), "{error}");
            assert!(error.message.contains(name), "{error}");
        }
        let mut request = with("").unwrap();
        request.temperature = Some(f64::NAN);
        assert_eq!(request.validate().unwrap_err().param.as_deref(), Some("temperature"));
        request.temperature = Some(f64::INFINITY);
        assert!(request.validate().is_err());
    }

    #[test]
    fn wrong_types_name_the_parameter() {
        let cases = [
            ("max_tokens", "1.5"),
            ("max_tokens", "1e308"),
            ("max_tokens", "18446744073709551615"),
            ("max_tokens", r#""5""#),
            ("stream", "1"),
            ("temperature", r#""hot""#),
            ("seed", "0.5"),
            ("stop", "5"),
            ("session", "5"),
            ("user", "[]"),
            ("model", "{}"),
            ("stream_options", "true"),
            ("ignore_eos", "0"),
        ];
        for (name, value) in cases {
            let error = with(&format!(r#","{name}":{value}"#)).expect_err(name);
            assert_eq!((error.status, error.param.as_deref()), (400, Some(name)), "{name}={value}: {error}");
        }
        for bad in [
            "",
            "   ",
            "[]",
            "{",
            "nan",
            r#"{"messages":[],"temperature":NaN}"#,
            "{\"messages\":[]}",
            r#"{"messages":[{"role":"king","content":"x"}]}"#,
            r#"{"messages":[5]}"#,
            "{}",
        ] {
            assert_eq!(ChatRequest::parse(bad.as_bytes()).expect_err(bad).status, 400);
        }
        assert_eq!(ChatRequest::parse(b"{\"model\":\"\xff\"}").unwrap_err().code, "invalid_utf8");
    }

    #[test]
    fn chunks_have_the_official_shape() {
        let choices = [ChunkChoice {
            index: 0,
            delta: Delta { content: Some("hé"), ..Delta::default() },
            logprobs: None,
            finish_reason: None,
        }];
        let chunk = ChatChunk {
            id: "chatcmpl-1",
            object: "chat.completion.chunk",
            created: 5,
            model: "m",
            choices: &choices,
            usage: None,
            notice: None,
        };
        assert_eq!(
            serde_json::to_string(&chunk).unwrap(),
            r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":5,"model":"m","choices":[{"index":0,"delta":{"content":"hé"},"logprobs":null,"finish_reason":null}]}"#
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ChatRequest::parse(&bytes);
        }

        #[test]
        fn any_value_of_any_field_is_accepted_or_refused(field in 0..FIELDS.len(), value in "(-?[0-9]{1,25}(\\.[0-9]{1,5})?(e[0-9]{1,3})?|\"[a-z]{0,5}\"|true|null|\\[\\]|\\{\\})") {
            let _ = with(&format!(r#","{}":{value}"#, FIELDS[field].0));
        }
    }
}
