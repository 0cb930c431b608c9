//! LINE Messaging API: base64 HMAC-SHA-256 over the body; answered by push with a retry key.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform,
    Reject, Secret, proof, value,
};
use crate::digest;
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const API: &str = "https://api.line.me";
const NEEDS: &[Need] = &[
    need("secrets", "channel secret (Basic settings)"),
    need("bot_token", "channel access token (Messaging API)"),
    option("bot_id", "our user id: events for other bots are refused"),
];
static SPEC: Spec = Spec {
    id: "line",
    title: "LINE",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Utf16, 5_000),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: true,
    streaming: Streaming::Final,
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        proof::header_mac(request, "x-line-signature", |secret| {
            digest::base64(&digest::hmac_sha256(secret, &[request.incoming.body]))
        })?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let body = value::parse_object(plain)?;
        let us = value::id(&body, "/destination");
        if request.account.bot_id.is_some() && request.account.bot_id != us {
            return Err(Reject::Unauthorized("an event for another bot"));
        }
        let mut events = Vec::new();
        for one in value::list(&body, "/events") {
            if value::text(one, "/mode") != Some("standby") {
                events.extend(event(one, us.as_deref())?);
            }
        }
        Decoded::events(events, "no messages", Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let mut message = json!({"type": "text", "text": out.text});
        if !out.buttons.is_empty() {
            let item = |b: &super::Button| {
                let action = json!({"type": "postback", "label": super::outbound::clip(&b.label, 20), "data": super::outbound::clip(&b.value, 300)});
                json!({"type": "action", "action": action})
            };
            message["quickReply"] = json!({"items": out.buttons.iter().take(13).map(item).collect::<Vec<_>>()});
        }
        // A reply token lives about a minute and cannot be repeated; a push carries a key that LINE recognises.
        let body = json!({"to": out.address.chat, "messages": [message]});
        let call = OutboundCall::json("POST", format!("{}/v2/bot/message/push", out.account.api(API)), &body);
        Ok(call.bearer(out.bot_token()?).header("x-line-retry-key", out.uuid()).repeatable())
    }

    fn typing(&self, out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
        // Only for chats with one person; their ids start with U.
        let person = out.address.chat.starts_with('U');
        let body = json!({"chatId": out.address.chat, "loadingSeconds": 20});
        let url = format!("{}/v2/bot/chat/loading/start", out.account.api(API));
        person.then(|| out.bot_token().map(|token| OutboundCall::json("POST", url, &body).bearer(token).repeatable()))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/message").unwrap_or_default();
        match answered.status {
            // The same retry key was accepted before.
            409 => Delivery::Delivered { receipt: None },
            429 if said.contains("monthly limit") => Delivery::Dead { why: format!("LINE: {said}") },
            401 => Delivery::Dead { why: format!("LINE refused the token: {said}") },
            _ => answered.by_status(value::id(&body, "/sentMessages/0/id"), said),
        }
    }
}

fn event(one: &serde_json::Value, us: Option<&str>) -> Result<Option<InboundEvent>, Reject> {
    let event_kind = match value::text(one, "/type") {
        Some("message") => EventKind::Message,
        Some("postback") => EventKind::Action,
        _ => return Ok(None),
    };
    let group = value::id(one, "/source/groupId").or_else(|| value::id(one, "/source/roomId"));
    let user = value::id(one, "/source/userId");
    let Some(chat) = group.clone().or_else(|| user.clone()) else { return Ok(None) };
    let key = value::needed(one, "/webhookEventId")?;
    let mut event = InboundEvent::new(event_kind, key, user.unwrap_or_else(|| chat.clone()), chat);
    event.message_id = value::id(one, "/message/id");
    event.reply_handle = value::id(one, "/replyToken").map(Secret::new);
    if event_kind == EventKind::Action {
        event.text = value::text(one, "/postback/data").unwrap_or_default().to_owned();
        return Ok(Some(event));
    }
    let of_us = |m: &&serde_json::Value| {
        m["isSelf"].as_bool() == Some(true) || (us.is_some() && value::text(m, "/userId") == us)
    };
    let number = |m: &serde_json::Value, name: &str| m[name].as_u64().and_then(|n| usize::try_from(n).ok());
    let mentions = value::list(one, "/message/mention/mentionees").iter().filter(of_us);
    let ranges: Vec<(usize, usize)> =
        mentions.filter_map(|m| Some((number(m, "index")?, number(m, "length")?))).collect();
    event.mentioned = group.is_none() || !ranges.is_empty();
    event.private = group.is_none();
    event.text = value::without_ranges(value::text(one, "/message/text").unwrap_or_default(), ranges);
    let media = value::text(one, "/message/type").filter(|kind| *kind != "text");
    if let (Some(kind), Some(reference)) = (media, event.message_id.clone()) {
        event.attachments.push(super::Attachment { kind: kind.to_owned(), reference });
    }
    Ok(Some(event))
}
