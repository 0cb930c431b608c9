//! `/v1/sessions`: what the node remembers of a user's conversations.

use millrace_proto::api::ApiError;
use millrace_proto::http1::RequestHead;
use millrace_proto::limits::NAME_BYTES_MAX;
use millrace_proto::record::{Message, SessionHead};
use millrace_proto::statement::{MessageId, Statement};
use serde_json::{Value, json};

use super::routes::Segments;
use super::{Gateway, Principal, json as to_json, segment};
use crate::net::{Request, Response};

/// Rows of one page when the request names no number.
const PAGE_DEFAULT: usize = 50;

/// Rows of one page at most.
const PAGE_MAX: usize = 500;

impl Gateway {
    pub(super) fn sessions(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let principal = self.acting(principal, request)?;
        let limit = whole(request.head, "limit", PAGE_DEFAULT as u64, 1, PAGE_MAX as u64)?;
        let heads = self.bridge.sessions(&principal, limit as usize)?;
        let data: Vec<Value> = heads.iter().map(session_object).collect();
        Ok(Response::json(200, to_json(&json!({"object": "list", "data": data}))))
    }

    pub(super) async fn session_messages(
        &self,
        principal: &Principal,
        request: &Request<'_>,
        segments: Segments<'_>,
    ) -> Result<Response, ApiError> {
        let principal = self.acting(principal, request)?;
        let session = session_name(segments)?;
        let limit = whole(request.head, "limit", PAGE_DEFAULT as u64, 1, PAGE_MAX as u64)?;
        let before = match request.head.query_param("before") {
            None => None,
            Some(_) => Some(whole(request.head, "before", 0, 0, u64::MAX)?),
        };
        let messages = self.bridge.history(&principal, &session, before, limit as usize).await?;
        let data: Vec<Value> = messages.iter().map(message_object).collect();
        Ok(Response::json(200, to_json(&json!({"object": "list", "session": session, "data": data}))))
    }

    pub(super) async fn session_context(
        &self,
        principal: &Principal,
        request: &Request<'_>,
        segments: Segments<'_>,
    ) -> Result<Response, ApiError> {
        let principal = self.acting(principal, request)?;
        let session = session_name(segments)?;
        let Some(text) = request.head.query_param("text").filter(|text| !text.is_empty()) else {
            return Err(ApiError::bad_request(
                "missing_parameter",
                "The parameter text is missing: the message whose context is wanted.",
            )
            .with_param("text"));
        };
        let view = self.bridge.context(&principal, &session, &text).await?;
        Ok(Response::json(200, to_json(&view)))
    }

    /// `as_of` is the time for which the statements hold, `known_at` the time as of whose knowledge; by default all of them
    /// are listed, ended ones too.
    pub(super) async fn statements(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let principal = self.acting(principal, request)?;
        let limit = whole(request.head, "limit", PAGE_DEFAULT as u64, 1, PAGE_MAX as u64)?;
        let as_of = whole(request.head, "as_of", u64::MAX, 0, u64::MAX)?;
        let known_at = whole(request.head, "known_at", u64::MAX, 0, u64::MAX)?;
        let asked = request.head.query_param("as_of").is_some() || request.head.query_param("known_at").is_some();
        let name = |name: &'static str| match request.head.query_param(name) {
            Some(text) if text.len() > NAME_BYTES_MAX => {
                let message = format!("{name} has {} bytes; at most {NAME_BYTES_MAX} are accepted.", text.len());
                Err(ApiError::invalid_param(name, message))
            }
            other => Ok(other.filter(|text| !text.is_empty())),
        };
        let (subject, relation) = (name("subject")?, name("relation")?);
        let as_of = asked.then_some((as_of, known_at));
        let found = self.bridge.statements(&principal, subject, relation, as_of, limit as usize).await?;
        let data: Vec<Value> = found.iter().map(statement_object).collect();
        Ok(Response::json(200, to_json(&json!({"object": "list", "data": data}))))
    }

    /// The principal, in the place of the user whom the query names.
    fn acting(&self, principal: &Principal, request: &Request<'_>) -> Result<Principal, ApiError> {
        self.bridge.acting_for(principal, request.head.query_param("user").as_deref())
    }
}

fn session_name(segments: Segments<'_>) -> Result<String, ApiError> {
    let name = segment(segments, 0)?;
    if name.len() > NAME_BYTES_MAX {
        let message = format!("The session name has {} bytes; at most {NAME_BYTES_MAX} are accepted.", name.len());
        return Err(ApiError::invalid_param("session", message));
    }
    Ok(name)
}

/// A whole number of the query, within bounds.
pub(super) fn whole(head: &RequestHead, name: &'static str, default: u64, min: u64, max: u64) -> Result<u64, ApiError> {
    let Some(text) = head.query_param(name) else { return Ok(default) };
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u64>() {
        Ok(value) if digits && (min..=max).contains(&value) => Ok(value),
        _ => {
            let shown: String = text.chars().take(40).collect();
            Err(ApiError::invalid_param(
                name,
                format!("{name} is {shown:?}; it must be a whole number from {min} to {max}."),
            ))
        }
    }
}

fn session_object(head: &SessionHead) -> Value {
    json!({
        "name": head.name,
        "title": head.title,
        "created_ms": head.created_ms,
        "updated_ms": head.updated_ms,
        "messages": head.next_seq,
        "channel": head.address.as_ref().map(|address| &address.channel),
    })
}

fn statement_object(statement: &Statement) -> Value {
    let message = |(conversation, seq): MessageId| json!({"conversation": conversation.to_string(), "seq": seq});
    json!({
        "subject": statement.subject,
        "relation": statement.relation,
        "object": statement.object,
        "valid_from_ms": statement.valid_from_ms,
        "valid_to_ms": statement.valid_to_ms,
        "recorded_ms": statement.recorded_ms,
        "ended_ms": statement.ended_ms,
        "source": message(statement.source),
        "ended_by": statement.ended_by.map(message),
    })
}

/// A message as sessions and the chat socket show it.
pub(super) fn message_object(message: &Message) -> Value {
    json!({
        "seq": message.seq,
        "turn": message.turn,
        "role": message.role.as_str(),
        "text": message.text,
        "at_ms": message.at_ms,
        "tokens": message.tokens,
    })
}
