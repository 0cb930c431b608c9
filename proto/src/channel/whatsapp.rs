//! WhatsApp Cloud API: signed by Meta over the raw body, answered through the Graph API.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::outbound::clip;
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform,
    Reject, meta, value,
};
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("secrets", "app secret (App settings, Basic)"),
    need("verify_token", "the word that you type as verify token in the webhook form").ours(),
    need("bot_token", "access token of a system user"),
    need("app_id", "phone number id"),
    option("api_base", "another Graph API version"),
];
static SPEC: Spec = Spec {
    id: "whatsapp",
    title: "WhatsApp Cloud API",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Chars, 4_096),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: 7 * kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Final,
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        meta::open(request)
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        if request.incoming.method == "GET" {
            return meta::challenge(request);
        }
        let body = value::parse_object(plain)?;
        let mut events = Vec::new();
        let changes = value::list(&body, "/entry").iter().flat_map(|entry| value::list(entry, "/changes"));
        for change in changes.filter(|change| value::text(change, "/field") == Some("messages")) {
            let ours = value::text(change, "/value/metadata/phone_number_id");
            if request.account.app_id.as_deref().is_some_and(|id| Some(id) != ours) {
                continue;
            }
            for message in value::list(change, "/value/messages") {
                events.push(event(message)?);
            }
        }
        Decoded::events(events, "no messages", Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let number = out.app_id()?;
        let mut body = json!({"messaging_product": "whatsapp", "recipient_type": "individual", "to": out.address.chat});
        if out.buttons.is_empty() {
            body["type"] = json!("text");
            body["text"] = json!({"body": out.text, "preview_url": false});
        } else {
            let reply =
                |b: &super::Button| json!({"type": "reply", "reply": {"id": b.value, "title": clip(&b.label, 20)}});
            let buttons: Vec<_> = out.buttons.iter().take(3).map(reply).collect();
            body["type"] = json!("interactive");
            body["interactive"] = json!({"type": "button", "body": {"text": out.text}, "action": {"buttons": buttons}});
        }
        if let Some(message) = out.handle() {
            body["context"] = json!({"message_id": message});
        }
        let url = format!("{}/{number}/messages", out.account.api(meta::API));
        Ok(OutboundCall::json("POST", url, &body).bearer(out.bot_token()?))
    }

    fn typing(&self, out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
        let body = json!({
            "messaging_product": "whatsapp", "status": "read", "message_id": out.handle()?,
            "typing_indicator": {"type": "text"},
        });
        let call = |number| {
            let url = format!("{}/{number}/messages", out.account.api(meta::API));
            Ok(OutboundCall::json("POST", url, &body).bearer(out.bot_token()?).repeatable())
        };
        Some(out.app_id().and_then(call))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        meta::classify(answered, "/messages/0/id")
    }
}

fn event(message: &serde_json::Value) -> Result<InboundEvent, Reject> {
    let (from, id) = (value::needed(message, "/from")?, value::needed(message, "/id")?);
    let pressed = value::text(message, "/interactive/button_reply/id")
        .or_else(|| value::text(message, "/interactive/list_reply/id"))
        .or_else(|| value::text(message, "/button/payload"));
    let event_kind = if pressed.is_some() { EventKind::Action } else { EventKind::Message };
    let mut event = InboundEvent::new(event_kind, id.clone(), from.clone(), from);
    event.message_id = Some(id);
    event.private = true;
    let media = ["image", "audio", "video", "document", "sticker"];
    for name in media.into_iter().filter(|name| message.get(name).is_some()) {
        if let Some(reference) = value::id(&message[name], "/id") {
            event.attachments.push(super::Attachment { kind: name.to_owned(), reference });
        }
        event.text = value::text(&message[name], "/caption").unwrap_or_default().trim().to_owned();
    }
    match (pressed, value::text(message, "/text/body")) {
        (Some(pressed), _) => event.text = pressed.to_owned(),
        (None, Some(text)) => event.text = text.trim().to_owned(),
        (None, None) => {}
    }
    Ok(event)
}
