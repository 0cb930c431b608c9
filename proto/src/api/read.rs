//! Reading requests: JSON to typed shapes, range checks, and errors that name the parameter at fault.
//!
//! The straight path is one `serde` pass. Only when it fails is the body read a second time, as a plain
//! value, to find out which parameter has the wrong type: `serde_json` itself only knows line and column.

use super::{ApiError, StreamOptions};
use crate::limits::{ANSWERS_MAX, NAME_BYTES_MAX, STOP_STRING_BYTES_MAX, STOP_STRINGS_MAX, TOP_K_MAX};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The type that a parameter must have, for the message of a mismatch.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Text,
    Flag,
    Number,
    Whole,
    List,
    Object,
    TextOrList,
}

impl Kind {
    fn fits(self, value: &Value) -> bool {
        match self {
            Kind::Text => value.is_string(),
            Kind::Flag => value.is_boolean(),
            Kind::Number => value.as_f64().is_some_and(f64::is_finite),
            Kind::Whole => value.as_i64().is_some(),
            Kind::List => value.is_array(),
            Kind::Object => value.is_object(),
            Kind::TextOrList => value.is_string() || value.is_array(),
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Kind::Text => "a string",
            Kind::Flag => "true or false",
            Kind::Number => "a number",
            Kind::Whole => "a whole number",
            Kind::List => "a list",
            Kind::Object => "an object",
            Kind::TextOrList => "a string or a list",
        }
    }
}

/// Reads a body. `fields` lists the parameters with their types and is used for the error text only.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8], fields: &[(&str, Kind)]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        let at = error.valid_up_to();
        ApiError::bad_request("invalid_utf8", format!("The body is not UTF-8: byte {at} starts an invalid sequence."))
            .with_next_step("Send the JSON encoded as UTF-8.")
    })?;
    serde_json::from_str(text).map_err(|error| explain(text, &error, fields))
}

fn explain(text: &str, error: &serde_json::Error, fields: &[(&str, Kind)]) -> ApiError {
    if text.trim().is_empty() {
        return ApiError::bad_request("empty_body", "The body is empty; a JSON object is expected.");
    }
    let value: Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            return ApiError::bad_request("invalid_json", format!("The body is not valid JSON: {error}."));
        }
    };
    let Some(object) = value.as_object() else {
        return ApiError::bad_request(
            "invalid_json",
            format!("The body must be a JSON object, not {}.", shown(&value)),
        );
    };
    for (name, kind) in fields {
        match object.get(*name) {
            Some(Value::Null) | None => {}
            Some(value) if kind.fits(value) => {}
            Some(value) => {
                let message = format!("{name} is {}; it must be {}.", shown(value), kind.wanted());
                return ApiError::bad_request("invalid_type", message).with_param(*name);
            }
        }
    }
    let text = error.to_string();
    let mut result = ApiError::bad_request("invalid_type", format!("The body cannot be read: {text}."));
    if let Some(name) = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        result =
            ApiError::bad_request("missing_parameter", format!("The parameter {name} is missing.")).with_param(name);
    }
    result
}

/// A value as an error shows it: short, and never the whole of a long text.
fn shown(value: &Value) -> String {
    const SHOWN_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text,
    }
}

/// Checks a number against a closed range. NaN is in no range.
pub(super) fn in_range(name: &str, value: Option<f64>, low: f64, high: f64) -> Result<(), ApiError> {
    match value {
        Some(value) if !(low..=high).contains(&value) => {
            Err(ApiError::invalid_param(name, format!("{name} is {value}; it must be between {low} and {high}.")))
        }
        _ => Ok(()),
    }
}

/// Checks a whole number against a closed range.
pub(super) fn whole_in_range(name: &str, value: Option<i64>, low: i64, high: i64) -> Result<(), ApiError> {
    match value {
        Some(value) if !(low..=high).contains(&value) => {
            Err(ApiError::invalid_param(name, format!("{name} is {value}; it must be between {low} and {high}.")))
        }
        _ => Ok(()),
    }
}

/// Checks a name that a person or program chose: not empty, bounded, without control characters.
pub(super) fn check_name(param: &str, name: Option<&str>) -> Result<(), ApiError> {
    let Some(name) = name else { return Ok(()) };
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        let message = format!("{param} has {} bytes; it must have 1 to {NAME_BYTES_MAX}.", name.len());
        return Err(ApiError::invalid_param(param, message));
    }
    if name.chars().any(char::is_control) {
        return Err(ApiError::invalid_param(param, format!("{param} must not contain control characters.")));
    }
    Ok(())
}

/// Options of a stream say nothing about an answer that comes in one piece: whoever sends them expects a stream.
pub(super) fn check_stream_options(stream: Option<bool>, options: Option<StreamOptions>) -> Result<(), ApiError> {
    if options.is_some() && stream != Some(true) {
        let message = "stream_options is only possible together with stream: true.";
        return Err(ApiError::invalid_param("stream_options", message)
            .with_next_step("Set stream to true, or leave stream_options out."));
    }
    Ok(())
}

/// How many answers are asked for. `best_of` would have more written than given back, and the likeliest chosen.
pub(super) fn check_answers(n: Option<i64>, best_of: Option<i64>) -> Result<(), ApiError> {
    whole_in_range("n", n, 1, ANSWERS_MAX)?;
    match best_of {
        Some(best_of) if best_of != n.unwrap_or(1) => {
            let message = format!("best_of is {best_of}: this server gives back every answer that it writes.");
            Err(ApiError::unsupported("best_of", message)
                .with_next_step("Leave out best_of, ask for n answers with logprobs, and choose among them."))
        }
        _ => Ok(()),
    }
}

/// `n` of a validated request.
pub(super) fn answers(n: Option<i64>) -> usize {
    n.and_then(|n| usize::try_from(n).ok()).unwrap_or(1).max(1)
}

/// The sampling parameters that chat and completion share, as the request has them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingOptions {
    /// 0 to 2; 0 is greedy.
    pub temperature: Option<f64>,
    /// 0 to 1.
    pub top_p: Option<f64>,
    /// 0 (off) and up.
    pub top_k: Option<i64>,
    /// 0 to 1.
    pub min_p: Option<f64>,
    /// 0.01 to 10; 1 is off.
    pub repetition_penalty: Option<f64>,
    /// -2 to 2.
    pub presence_penalty: Option<f64>,
    /// -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Any; the same seed gives the same answer.
    pub seed: Option<i64>,
}

impl SamplingOptions {
    pub(super) fn validate(&self) -> Result<(), ApiError> {
        in_range("temperature", self.temperature, 0.0, 2.0)?;
        in_range("top_p", self.top_p, 0.0, 1.0)?;
        whole_in_range("top_k", self.top_k, 0, TOP_K_MAX)?;
        in_range("min_p", self.min_p, 0.0, 1.0)?;
        in_range("repetition_penalty", self.repetition_penalty, 0.01, 10.0)?;
        in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
    }
}

/// `stop`: one string or a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StopStrings {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl StopStrings {
    /// The strings.
    pub fn as_slice(&self) -> &[String] {
        match self {
            StopStrings::One(one) => std::slice::from_ref(one),
            StopStrings::Many(many) => many,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ApiError> {
        let strings = self.as_slice();
        if strings.len() > STOP_STRINGS_MAX {
            let message = format!("stop has {} strings; at most {STOP_STRINGS_MAX} are allowed.", strings.len());
            return Err(ApiError::invalid_param("stop", message));
        }
        for stop in strings {
            if stop.is_empty() || stop.len() > STOP_STRING_BYTES_MAX {
                let bytes = stop.len();
                let message = format!("A stop string has {bytes} bytes; it must have 1 to {STOP_STRING_BYTES_MAX}.");
                return Err(ApiError::invalid_param("stop", message));
            }
        }
        Ok(())
    }
}
