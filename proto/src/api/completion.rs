//! `POST /v1/completions`.

use super::chat::null_is_default;
use super::read::{
    self, Kind, SamplingOptions, StopStrings, answers, check_answers, check_name, check_stream_options, whole_in_range,
};
use super::structured::{AskedFormat, FormatFields};
use super::{ApiError, StreamOptions, Usage};
use crate::limits::MAX_TOKENS_MAX;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Length of an answer when the request names none: the official default.
const MAX_TOKENS_DEFAULT: u32 = 16;
/// The official bound of `logprobs` on this endpoint.
const LOGPROBS_MAX: i64 = 5;

/// A completion request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CompletionRequest {
    /// Model name; empty means the server's default model.
    #[serde(deserialize_with = "null_is_default")]
    pub model: String,
    /// What to continue.
    pub prompt: Option<Prompt>,
    /// End user inside the tenant.
    pub user: Option<String>,
    /// Whether to answer as server-sent events.
    pub stream: Option<bool>,
    /// Options of the stream.
    pub stream_options: Option<StreamOptions>,
    /// Longest answer in tokens.
    pub max_tokens: Option<i64>,
    /// Whether to repeat the prompt before the answer.
    pub echo: Option<bool>,
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
    /// Alternatives to report at each token.
    pub logprobs: Option<i64>,
    /// Number of answers; 1 unless said otherwise.
    pub n: Option<i64>,
    /// Answers to choose the best `n` from; only the same number, since nothing is left out.
    pub best_of: Option<i64>,
    /// Extension: go on after the end-of-text token (for measurements).
    pub ignore_eos: Option<bool>,
    /// The format of the answer; see [`CompletionRequest::output_format`].
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
}

/// What to continue: one text or one list of tokens. A list with one of either is read as that one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Token ids of the model.
    Tokens(Vec<u32>),
    /// Several texts.
    Texts(Vec<String>),
    /// Several lists of token ids.
    TokenLists(Vec<Vec<u32>>),
}

const FIELDS: &[(&str, Kind)] = &[
    ("model", Kind::Text),
    ("prompt", Kind::TextOrList),
    ("user", Kind::Text),
    ("stream", Kind::Flag),
    ("stream_options", Kind::Object),
    ("max_tokens", Kind::Whole),
    ("echo", Kind::Flag),
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
    ("logprobs", Kind::Whole),
    ("n", Kind::Whole),
    ("best_of", Kind::Whole),
    ("ignore_eos", Kind::Flag),
    ("response_format", Kind::Object),
    ("structured_outputs", Kind::Object),
];

impl CompletionRequest {
    /// Reads and validates a body.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut request: Self = read::parse(body, FIELDS)?;
        request.prompt = request.prompt.map(Prompt::flattened);
        request.validate()?;
        Ok(request)
    }

    /// Checks every range.
    pub fn validate(&self) -> Result<(), ApiError> {
        match &self.prompt {
            None => {
                return Err(
                    ApiError::bad_request("missing_parameter", "The parameter prompt is missing.").with_param("prompt")
                );
            }
            Some(Prompt::Texts(_) | Prompt::TokenLists(_)) => {
                let message = "prompt lists several prompts; this server continues one prompt per request.";
                return Err(ApiError::invalid_param("prompt", message).with_next_step("Send one request per prompt."));
            }
            Some(Prompt::Text(_) | Prompt::Tokens(_)) => {}
        }
        check_name("user", self.user.as_deref())?;
        self.sampling().validate()?;
        whole_in_range("max_tokens", self.max_tokens, 1, MAX_TOKENS_MAX)?;
        whole_in_range("logprobs", self.logprobs, 0, LOGPROBS_MAX)?;
        if let Some(stop) = &self.stop {
            stop.validate()?;
        }
        check_stream_options(self.stream, self.stream_options)?;
        check_answers(self.n, self.best_of)?;
        self.output_format().map(drop)
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

    /// The length of the answer.
    pub fn max_tokens(&self) -> u32 {
        self.max_tokens.and_then(|n| u32::try_from(n).ok()).unwrap_or(MAX_TOKENS_DEFAULT)
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
        self.logprobs.and_then(|n| u8::try_from(n).ok())
    }
}

impl Prompt {
    fn flattened(self) -> Self {
        match self {
            Prompt::Texts(mut texts) if texts.len() == 1 => Prompt::Text(texts.remove(0)),
            Prompt::TokenLists(mut lists) if lists.len() == 1 => Prompt::Tokens(lists.remove(0)),
            other => other,
        }
    }
}

/// The answer, whole or one chunk of it: both have the same shape on this endpoint.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionResponse {
    /// `cmpl-...`.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The model that answered.
    pub model: String,
    /// One answer, or none in the chunk that carries the usage.
    pub choices: Vec<CompletionChoice>,
    /// Token counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One answer or a piece of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// Which answer, from 0.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Log probabilities if asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; null while it goes on.
    pub finish_reason: Option<&'static str>,
}

/// Log probabilities in the older shape of this endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// The tokens.
    pub tokens: Vec<String>,
    /// Their log probabilities.
    pub token_logprobs: Vec<f32>,
    /// The best alternatives of each.
    pub top_logprobs: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Where each starts in the text, in characters.
    pub text_offset: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_in_every_form() {
        let read = |prompt: &str| CompletionRequest::parse(format!(r#"{{"prompt":{prompt}}}"#).as_bytes());
        assert_eq!(read(r#""a""#).unwrap().prompt, Some(Prompt::Text("a".into())));
        assert_eq!(read(r#"["a"]"#).unwrap().prompt, Some(Prompt::Text("a".into())));
        assert_eq!(read("[1,2]").unwrap().prompt, Some(Prompt::Tokens(vec![1, 2])));
        assert_eq!(read("[[1,2]]").unwrap().prompt, Some(Prompt::Tokens(vec![1, 2])));
        assert_eq!(read(r#"["a","b"]"#).unwrap_err().param.as_deref(), Some("prompt"));
        for bad in ["[-1]", "[1.5]", r#"["a",1]"#, "5", "null"] {
            assert_eq!(read(bad).expect_err(bad).status, 400);
        }
        assert_eq!(read(r#""a""#).unwrap().max_tokens(), 16);
    }

    #[test]
    fn ranges_are_checked() {
        for (name, value) in [
            ("max_tokens", "-1"),
            ("logprobs", "6"),
            ("temperature", "1e308"),
            ("n", "33"),
            ("n", "0"),
            ("best_of", "3"),
        ] {
            let error =
                CompletionRequest::parse(format!(r#"{{"prompt":"a","{name}":{value}}}"#).as_bytes()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(name), "{error}");
        }
    }
}
