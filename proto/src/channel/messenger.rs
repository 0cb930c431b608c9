//! Facebook Messenger: signed by Meta over the raw body, answered through the Graph API.

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
    need("bot_token", "page access token"),
    option("app_id", "page id: events of other pages are left out"),
];
static SPEC: Spec = Spec {
    id: "messenger",
    title: "Messenger",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Chars, 2_000),
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
        meta::open(request)
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        if request.incoming.method == "GET" {
            return meta::challenge(request);
        }
        let body = value::parse_object(plain)?;
        let mut events = Vec::new();
        for entry in value::list(&body, "/entry") {
            let page = value::id(entry, "/id");
            if request.account.app_id.is_some() && request.account.app_id != page {
                continue;
            }
            for message in value::list(entry, "/messaging") {
                events.extend(event(message)?);
            }
        }
        Decoded::events(events, "no messages", Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let mut message = json!({"text": out.text});
        if !out.buttons.is_empty() {
            let reply =
                |b: &super::Button| json!({"content_type": "text", "title": clip(&b.label, 20), "payload": b.value});
            message["quick_replies"] = out.buttons.iter().take(13).map(reply).collect();
        }
        let body = json!({"recipient": {"id": out.address.chat}, "messaging_type": "RESPONSE", "message": message});
        let url = format!("{}/me/messages", out.account.api(meta::API));
        Ok(OutboundCall::json("POST", url, &body).bearer(out.bot_token()?))
    }

    fn typing(&self, out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
        let body = json!({"recipient": {"id": out.address.chat}, "sender_action": "typing_on"});
        let url = format!("{}/me/messages", out.account.api(meta::API));
        Some(out.bot_token().map(|token| OutboundCall::json("POST", url, &body).bearer(token).repeatable()))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        meta::classify(answered, "/message_id")
    }
}

fn event(message: &serde_json::Value) -> Result<Option<InboundEvent>, Reject> {
    let (event_kind, part) = if message.get("message").is_some() {
        (EventKind::Message, &message["message"])
    } else if message.get("postback").is_some() {
        (EventKind::Action, &message["postback"])
    } else {
        return Ok(None);
    };
    if part["is_echo"].as_bool() == Some(true) {
        return Ok(None);
    }
    let (sender, mid) = (value::needed(message, "/sender/id")?, value::needed(part, "/mid")?);
    let mut event = InboundEvent::new(event_kind, mid.clone(), sender.clone(), sender);
    event.message_id = Some(mid);
    event.private = true;
    event.text = match event_kind {
        EventKind::Action => value::text(part, "/payload").unwrap_or_default().to_owned(),
        _ => value::text(part, "/text").unwrap_or_default().trim().to_owned(),
    };
    for file in value::list(part, "/attachments") {
        if let (Some(kind), Some(reference)) = (value::id(file, "/type"), value::id(file, "/payload/url")) {
            event.attachments.push(super::Attachment { kind, reference });
        }
    }
    Ok(Some(event))
}
