//! Errors in the shape of the OpenAI API, with two more fields: whether a retry may help, and the next step.

use serde_json::json;
use std::borrow::Cow;
use std::fmt;

/// An error as the API shows it. The text never carries internals (addresses, paths of other tenants,
/// back traces): whoever makes one writes it for the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// The `type` of the OpenAI error object.
    pub kind: &'static str,
    /// The `code` of the OpenAI error object; stable, for programs.
    pub code: &'static str,
    /// What happened and why, with the numbers.
    pub message: String,
    /// The parameter at fault.
    pub param: Option<String>,
    /// Seconds after which a retry makes sense (`Retry-After`).
    pub retry_after_s: Option<u32>,
    /// What the caller can do about it.
    pub next_step: Cow<'static, str>,
}

impl ApiError {
    /// Any error; prefer the named constructors.
    pub fn new(status: u16, kind: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        let next_step = match status {
            401 => "Send a valid key in the header `Authorization: Bearer mr-...`.",
            403 => "Use a key that has the needed scope.",
            404 => "Check the address and the names in it.",
            405 => "Use the method that the header `Allow` names.",
            408 => "Send the request again, faster.",
            413 => "Send a smaller request.",
            429 | 503 => "Wait as long as `Retry-After` says, then try again.",
            501 | 505 => "Use plain HTTP/1.1.",
            500.. => "Try again; if it happens again, tell the operator the time of the request.",
            _ => "Correct the request and send it again.",
        };
        Self {
            status,
            kind,
            code,
            message: message.into(),
            param: None,
            retry_after_s: None,
            next_step: Cow::Borrowed(next_step),
        }
    }

    /// 400 about one parameter.
    pub fn invalid_param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::bad_request("invalid_value", message).with_param(param)
    }

    /// 400.
    pub fn bad_request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", code, message)
    }

    /// 400: prompt and answer do not fit into the context window. Says by how much.
    pub fn context_too_long(prompt_tokens: usize, answer_tokens: usize, context_tokens: usize) -> Self {
        Self::bad_request(
            "context_length_exceeded",
            format!(
                "The prompt has {prompt_tokens} tokens and {answer_tokens} are asked for the answer: {} in all, \
                 but the context window of this model holds {context_tokens}.",
                prompt_tokens.saturating_add(answer_tokens)
            ),
        )
        .with_param("messages")
        .with_next_step("Send fewer or shorter messages, or a smaller max_tokens.")
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401, "authentication_error", "invalid_api_key", message)
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "permission_error", "insufficient_scope", message)
    }

    /// 404 for an address.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "invalid_request_error", "not_found", message)
    }

    /// 404 for a model name; names the models that exist.
    pub fn unknown_model(name: &str, available: &[String]) -> Self {
        let known = if available.is_empty() { "no model is loaded".to_owned() } else { available.join(", ") };
        Self::new(404, "invalid_request_error", "model_not_found", format!("The model {name:?} does not exist here."))
            .with_param("model")
            .with_next_step(format!("Use one of: {known}. GET /v1/models lists them."))
    }

    /// 405.
    pub fn method_not_allowed(method: &str, path: &str, allowed: &str) -> Self {
        let message = format!("{method} is not possible on {path}; possible: {allowed}.");
        Self::new(405, "invalid_request_error", "method_not_allowed", message)
    }

    /// 413.
    pub fn too_large(what: &str, bytes: u64, bytes_max: usize) -> Self {
        let message = format!("The {what} has {bytes} bytes; at most {bytes_max} are accepted.");
        Self::new(413, "invalid_request_error", "request_too_large", message)
    }

    /// 429 of a rate limit.
    pub fn rate_limited(message: impl Into<String>, retry_after_s: u32) -> Self {
        Self::new(429, "rate_limit_error", "rate_limit_exceeded", message).with_retry_after(retry_after_s)
    }

    /// 503: a queue is full or the server drains.
    pub fn overloaded(message: impl Into<String>, retry_after_s: u32) -> Self {
        Self::new(503, "server_error", "overloaded", message).with_retry_after(retry_after_s)
    }

    /// 504: the request's own deadline passed.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "server_error", "deadline_exceeded", message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "server_error", "internal_error", message)
    }

    /// 501: a feature of the API that this server does not have.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", "unsupported_parameter", message)
            .with_param(param)
            .with_next_step("Leave the parameter out.")
    }

    /// Names the parameter at fault.
    pub fn with_param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Replaces the advice.
    pub fn with_next_step(mut self, next_step: impl Into<Cow<'static, str>>) -> Self {
        self.next_step = next_step.into();
        self
    }

    /// Sets `Retry-After`.
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Whether the same request may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self.status, 408 | 429 | 500 | 502 | 503 | 504)
    }

    /// The JSON value `{"error": {...}}`.
    pub fn to_value(&self) -> serde_json::Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
            "retryable": self.retryable(),
            "next_step": self.next_step,
        }})
    }

    /// The JSON text of [`ApiError::to_value`].
    pub fn to_json(&self) -> Vec<u8> {
        self.to_value().to_string().into_bytes()
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {}) {}", self.message, self.status, self.code, self.next_step)
    }
}

impl std::error::Error for ApiError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_openais_with_advice() {
        let error = ApiError::context_too_long(9_000, 64, 8_192);
        let value: serde_json::Value = serde_json::from_slice(&error.to_json()).unwrap();
        assert_eq!(value["error"]["type"], "invalid_request_error");
        assert_eq!(value["error"]["code"], "context_length_exceeded");
        assert_eq!(value["error"]["param"], "messages");
        assert_eq!(value["error"]["retryable"], false);
        let message = value["error"]["message"].as_str().unwrap();
        assert!(message.contains("9000") && message.contains("9064") && message.contains("8192"), "{message}");
        assert!(!error.next_step.is_empty());
        assert!(ApiError::overloaded("full", 2).retryable());
    }
}
