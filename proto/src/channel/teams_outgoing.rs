//! Microsoft Teams outgoing webhook: HMAC over the body under the decoded security token.
//!
//! Teams takes an answer only in the response, within seconds. Replies that take longer go to the incoming
//! webhook of the channel (`reply_url`).

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need};
use super::{
    Answer, Decoded, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform, Reject, proof, value, xml,
};
use crate::digest;
use crate::split::Unit;
use serde_json::Value;
use serde_json::json;
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("secrets", "security token, base64, as Teams shows it"),
    need("reply_url", "incoming webhook (or workflow) of the channel, for the answers"),
];
static SPEC: Spec = Spec {
    id: "teams_outgoing",
    title: "Teams outgoing webhook",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Bytes, 16_000),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Final,
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let given = proof::authorization(request, "HMAC")?.ok_or(Reject::Unauthorized("no signature"))?;
        proof::with_any(super::Account::usable(&request.account.secrets), |secret| {
            let key = std::str::from_utf8(secret).ok().and_then(digest::unbase64).filter(|key| !key.is_empty());
            key.is_some_and(|key| {
                let mac = digest::base64(&digest::hmac_sha256(&key, &[request.incoming.body]));
                digest::constant_time_eq(mac.as_bytes(), given.as_bytes())
            })
        })?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, _request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        match activity(&value::parse_object(plain)?)? {
            Some(event) => Decoded::event(event, Answer::json(&json!({"type": "message", "text": "..."}))),
            None => Decoded::ignore("an activity of another kind"),
        }
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let url = out.reply_url()?.to_owned();
        Ok(OutboundCall::json("POST", url, &json!({"type": "message", "text": out.text_with_choices()})))
    }
}

/// A Bot Framework activity as an event; `None` when it asks for nothing.
pub(super) fn activity(body: &Value) -> Result<Option<InboundEvent>, Reject> {
    if value::text(body, "/type") != Some("message") {
        return Ok(None);
    }
    let id = value::needed(body, "/id")?;
    let full = value::needed(body, "/conversation/id")?;
    let (chat, thread) = match full.split_once(";messageid=") {
        Some((chat, root)) => (chat.to_owned(), Some(root.to_owned())),
        None => (full, None),
    };
    let pressed = body.get("value").filter(|value| !value.is_null());
    let event_kind = if pressed.is_some() { EventKind::Action } else { EventKind::Message };
    let mut event = InboundEvent::new(event_kind, id.clone(), value::needed(body, "/from/id")?, chat);
    (event.thread, event.message_id) = (thread, Some(id));
    let us = value::id(body, "/recipient/id");
    let mut text = value::text(body, "/text").unwrap_or_default().to_owned();
    let mut mentioned = false;
    for entity in value::list(body, "/entities").iter().filter(|one| value::text(one, "/type") == Some("mention")) {
        // An outgoing webhook has no recipient: Teams calls it only when it is mentioned.
        if us.is_none() || value::id(entity, "/mentioned/id") == us {
            mentioned = true;
            if let Some(mark) = value::filled(entity, "/text") {
                text = text.replace(mark, "");
            }
        }
    }
    let private = value::text(body, "/conversation/conversationType") == Some("personal");
    event.mentioned = mentioned || private || us.is_none() || pressed.is_some();
    event.private = private;
    event.text = match pressed {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => xml::unescape_html(&text).trim().to_owned(),
    };
    for file in value::list(body, "/attachments") {
        if let (Some(kind), Some(reference)) = (value::id(file, "/contentType"), value::id(file, "/contentUrl")) {
            event.attachments.push(super::Attachment { kind, reference });
        }
    }
    Ok(Some(event))
}
