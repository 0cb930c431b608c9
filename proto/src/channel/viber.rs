//! Viber: hex HMAC-SHA-256 over the body under the token, dashes included.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need};
use super::outbound::Codes;
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform,
    Reject, proof, value,
};
use crate::digest;
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const API: &str = "https://chatapi.viber.com";
const NEEDS: &[Need] = &[
    need("secrets", "authentication token of the bot, with its dashes"),
    need("bot_token", "the same token, for replies").same_as("secrets"),
    need("sender", "the bot's name as people see it"),
];
static SPEC: Spec = Spec {
    id: "viber",
    title: "Viber",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Chars, 7_000),
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
        proof::header_mac(request, "x-viber-content-signature", |secret| {
            digest::hex(&digest::hmac_sha256(secret, &[request.incoming.body]))
        })?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, _request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let body = value::parse_object(plain)?;
        match value::text(&body, "/event") {
            Some("webhook") => return Ok(Decoded::Handshake(Answer::ok())),
            Some("message") => {}
            _ => return Decoded::ignore("an event of another kind"),
        }
        let (key, user) = (value::needed(&body, "/message_token")?, value::needed(&body, "/sender/id")?);
        let mut event = InboundEvent::new(EventKind::Message, key.clone(), user.clone(), user);
        event.message_id = Some(key);
        event.private = true;
        event.text = value::text(&body, "/message/text").unwrap_or_default().trim().to_owned();
        if let (Some(kind), Some(reference)) = (value::id(&body, "/message/type"), value::id(&body, "/message/media")) {
            event.attachments.push(super::Attachment { kind, reference });
        }
        Decoded::event(event, Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let mut body = json!({
            "receiver": out.address.chat, "min_api_version": 1, "sender": {"name": super::outbound::clip(out.sender()?, 28)},
            "tracking_data": out.uuid(), "type": "text", "text": out.text,
        });
        if !out.buttons.is_empty() {
            let button = |b: &super::Button| json!({"ActionType": "reply", "ActionBody": b.value, "Text": b.label});
            let buttons: Vec<_> = out.buttons.iter().take(12).map(button).collect();
            body["keyboard"] = json!({"Type": "keyboard", "Buttons": buttons});
        }
        let call = OutboundCall::json("POST", format!("{}/pa/send_message", out.account.api(API)), &body);
        Ok(call.header("x-viber-auth-token", out.bot_token()?))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/status_message").unwrap_or_default();
        answered.by_code(
            body["status"].as_i64(),
            Codes { token: &[], busy: &[12] },
            value::id(&body, "/message_token"),
            said,
        )
    }
}
