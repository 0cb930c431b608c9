//! Mattermost outgoing webhooks and slash commands: a token in the body, which nothing covers.

use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need};
use super::{
    Answer, Decoded, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform, Reject, Secret, proof,
    value,
};
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("secrets", "tokens of the outgoing webhooks and slash commands"),
    need("api_base", "address of the Mattermost server"),
    need("bot_token", "token of the bot account"),
];
static SPEC: Spec = Spec {
    id: "mattermost",
    title: "Mattermost",
    needs: NEEDS,
    covers_body: false,
    text_max: (Unit::Chars, 16_383),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Edits { pause_ms: 1_000 },
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let form = fields(request)?;
        let token = form.needed("token")?;
        proof::shared_word(request.account, token.as_bytes())?;
        if let Some(value) = request.incoming.single("authorization")? {
            let header = std::str::from_utf8(value).ok().and_then(|text| text.strip_prefix("Token "));
            if header != Some(token) {
                return Err(Reject::Unauthorized("two different tokens"));
            }
        }
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, _plain: &[u8]) -> Result<Decoded, Reject> {
        let form = fields(request)?;
        let field =
            |name| form.get(name).filter(|text| !text.is_empty()).ok_or(Reject::Malformed("a field is missing"));
        let command = form.get("command").filter(|text| !text.is_empty());
        let key = if command.is_some() { field("trigger_id")? } else { field("post_id")? };
        let event_kind = if command.is_some() { EventKind::Command } else { EventKind::Message };
        let mut event = InboundEvent::new(event_kind, key, field("user_id")?, field("channel_id")?);
        event.command = command.map(str::to_owned);
        event.message_id = Some(key.to_owned());
        event.reply_handle = command.map(|_| Secret::new("")).or_else(|| Some(Secret::new(key)));
        let text = form.get("text").unwrap_or_default().trim();
        let trigger = form.get("trigger_word").unwrap_or_default();
        event.text = text.strip_prefix(trigger).unwrap_or(text).trim().to_owned();
        Decoded::event(event, Answer::json(&json!({})))
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let base = out.account.api_base.as_deref().ok_or_else(|| out.missing("no api_base is configured"))?;
        let root = out.handle().unwrap_or_default();
        let body = json!({"channel_id": out.address.chat, "message": out.text_with_choices(), "root_id": root});
        Ok(OutboundCall::json("POST", format!("{}/api/v4/posts", base.trim_end_matches('/')), &body)
            .bearer(out.bot_token()?))
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let message = super::form::percent_encode(message_id);
        let url = format!("{}/api/v4/posts/{message}/patch", out.account.api(""));
        let body = json!({"message": out.text});
        Some(out.bot_token().map(|token| OutboundCall::json("PUT", url, &body).bearer(token).repeatable()))
    }

    fn classify(&self, answered: &super::Answered<'_>) -> super::Delivery {
        let body = answered.json();
        answered.by_status(value::id(&body, "/id"), value::text(&body, "/message").unwrap_or_default())
    }
}

/// The fields of a form, of the query of a GET, or of JSON (texts only: a `null` token is no token).
fn fields(request: &Request<'_>) -> Result<Form, Reject> {
    let incoming = &request.incoming;
    if incoming.method == "GET" {
        return Form::parse(incoming.query.as_bytes());
    }
    if !incoming.content_type().is_some_and(|kind| kind.starts_with(b"application/json")) {
        return Form::parse(incoming.body);
    }
    let body = value::parse_object(incoming.body)?;
    let texts = body.as_object().into_iter().flatten();
    let texts = texts.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    Ok(Form::from_fields(texts.collect()))
}
