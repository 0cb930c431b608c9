//! From what went wrong inside to what the caller is told.

use millrace_agent::{Fault, TurnError};
use millrace_inference::{ConstraintError, SubmitError};
use millrace_proto::api::ApiError;

/// Advice when nothing better is known.
const RETRY_AFTER_S: u32 = 1;
/// A full disk is not freed within a second.
const DISK_RETRY_AFTER_S: u32 = 10;

/// A failed turn.
pub(super) fn turn_error(error: &TurnError) -> ApiError {
    let text = sentence(error);
    match error {
        TurnError::ConversationBusy { .. } => ApiError::rate_limited(text, RETRY_AFTER_S)
            .with_next_step("Wait for an answer, then send the next message."),
        TurnError::TooFast { retry_after_ms, .. } => ApiError::rate_limited(text, seconds(*retry_after_ms)),
        TurnError::Overloaded { .. } => ApiError::overloaded(text, RETRY_AFTER_S),
        TurnError::ContextTooLong { prompt_tokens, reply_tokens, context_tokens_max } => {
            ApiError::context_too_long(*prompt_tokens as usize, *reply_tokens as usize, *context_tokens_max as usize)
        }
        TurnError::Template(_) => ApiError::bad_request("template_refused", text).with_param("messages"),
        TurnError::Storage(fault) => storage_error(fault),
        TurnError::ModelBusy { retry_after_ms, .. } => ApiError::overloaded(text, seconds(*retry_after_ms)),
        TurnError::Model(_) => ApiError::internal(text),
        TurnError::Deadline { .. } => ApiError::timeout(text),
        TurnError::Cancelled => ApiError::new(499, "server_error", "cancelled", text),
    }
}

/// A failed write or read.
pub(super) fn storage_error(fault: &Fault) -> ApiError {
    match fault {
        Fault::Busy => ApiError::overloaded(sentence(fault), RETRY_AFTER_S),
        Fault::NoSpace => {
            ApiError::new(503, "server_error", "no_space", "The server's disk is full; nothing was stored.")
                .with_retry_after(DISK_RETRY_AFTER_S)
                .with_next_step("Tell the operator to free disk space; reading goes on meanwhile.")
        }
        Fault::Closed => ApiError::overloaded("The server is shutting down.", RETRY_AFTER_S),
        // The cause may name files; it is for the log.
        Fault::Io(_) => ApiError::internal("The server's store failed; the log has the reason."),
    }
}

/// A constraint that cannot be compiled or followed.
pub(super) fn constraint_error(param: &str, error: &ConstraintError) -> ApiError {
    let text = format!("{param} cannot be used: {error}.");
    if error.is_temporary() {
        return ApiError::overloaded(text, RETRY_AFTER_S).with_param(param);
    }
    ApiError::bad_request("invalid_constraint", text)
        .with_param(param)
        .with_next_step("Change the schema, expression or grammar as the message says, and send it again.")
}

/// A generation that the engine refused at once.
pub(super) fn submit_error(error: &SubmitError) -> ApiError {
    match error {
        SubmitError::QueueFull { retry_after, .. } => {
            ApiError::overloaded(sentence(error), seconds(u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX)))
        }
        SubmitError::TooSlow { retry_after, .. } => {
            let ms = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
            ApiError::rate_limited(sentence(error), seconds(ms))
        }
        SubmitError::PromptTooLong { prompt, max, limit } => ApiError::context_too_long(*prompt, *max, *limit),
        SubmitError::EmptyPrompt => ApiError::invalid_param("prompt", sentence(error)),
        SubmitError::UnknownToken { .. } => ApiError::invalid_param("prompt", sentence(error)),
        SubmitError::Parameter(wrong) => ApiError::invalid_param(wrong.name, sentence(wrong)),
        SubmitError::TooManyTexts { .. } => ApiError::invalid_param("input", sentence(error)),
        SubmitError::Closed => ApiError::overloaded("The server is shutting down.", RETRY_AFTER_S),
        _ => ApiError::new(503, "server_error", "model_unavailable", sentence(error)),
    }
}

pub(super) fn seconds(ms: u64) -> u32 {
    u32::try_from(ms.div_ceil(1_000)).unwrap_or(u32::MAX).max(1)
}

/// Error texts are written to be quoted; an answer is made of sentences.
fn sentence(text: &impl std::fmt::Display) -> String {
    let text = text.to_string();
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str()),
        None => text,
    }
}
