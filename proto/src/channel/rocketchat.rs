//! Rocket.Chat outgoing webhook: a token in the JSON body, which nothing covers.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need};
use super::{
    Answer, Decoded, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform, Reject, proof, value,
};
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("secrets", "token of the outgoing webhook integration"),
    need("api_base", "address of the Rocket.Chat server"),
    need("bot_token", "personal access token of the bot"),
    need("bot_id", "user id of the bot"),
];
static SPEC: Spec = Spec {
    id: "rocketchat",
    title: "Rocket.Chat",
    needs: NEEDS,
    covers_body: false,
    text_max: (Unit::Chars, 5_000),
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
        let body = value::parse_object(request.incoming.body)?;
        proof::shared_word(request.account, value::text(&body, "/token").unwrap_or_default().as_bytes())?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let body = value::parse_object(plain)?;
        let bot = !matches!(value::at(&body, "/bot"), serde_json::Value::Null | serde_json::Value::Bool(false));
        let user = value::needed(&body, "/user_id")?;
        if bot || request.account.bot_id.as_deref() == Some(&user) {
            return Decoded::ignore("written by a bot");
        }
        if body["isEdited"].as_bool() == Some(true) {
            return Decoded::ignore("an edit of an earlier message");
        }
        let key = value::needed(&body, "/message_id")?;
        let mut event = InboundEvent::new(EventKind::Message, key.clone(), user, value::needed(&body, "/channel_id")?);
        event.message_id = Some(key);
        event.thread = value::id(&body, "/tmid");
        let text = value::text(&body, "/text").unwrap_or_default().trim();
        let trigger = value::text(&body, "/trigger_word").unwrap_or_default();
        event.text = text.strip_prefix(trigger).unwrap_or(text).trim().to_owned();
        Decoded::event(event, Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let base = out.account.api_base.as_deref().ok_or_else(|| out.missing("no api_base is configured"))?;
        let user = out.account.bot_id.as_deref().ok_or_else(|| out.missing("no bot_id is configured"))?;
        let mut body = json!({"roomId": out.address.chat, "text": out.text_with_choices()});
        if let Some(thread) = &out.address.thread {
            body["tmid"] = json!(thread);
        }
        let call = OutboundCall::json("POST", format!("{}/api/v1/chat.postMessage", base.trim_end_matches('/')), &body);
        Ok(call.header("x-auth-token", out.bot_token()?).header("x-user-id", user))
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let user = out.account.bot_id.as_deref()?;
        let url = format!("{}/api/v1/chat.update", out.account.api(""));
        let body = json!({"roomId": out.address.chat, "msgId": message_id, "text": out.text});
        let call = |token: &str| {
            OutboundCall::json("POST", url, &body).header("x-auth-token", token).header("x-user-id", user).repeatable()
        };
        Some(out.bot_token().map(call))
    }

    fn classify(&self, answered: &super::Answered<'_>) -> super::Delivery {
        let body = answered.json();
        answered.by_status(value::id(&body, "/message/_id"), value::text(&body, "/error").unwrap_or_default())
    }
}
