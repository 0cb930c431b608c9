//! Matrix application service: the home server proves itself with `hs_token`; nothing covers the body.

use super::event::Request;
use super::form::{self, Form};
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::{
    Answer, Decoded, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform, Reject, proof, value,
};
use crate::digest;
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("secrets", "hs_token of the registration").ours(),
    need("bot_token", "as_token of the registration").ours(),
    need("bot_id", "@bot:server, to recognise mentions and our own messages"),
    need("api_base", "address of the home server"),
    option("bot_username", "display name of the bot"),
];
static SPEC: Spec = Spec {
    id: "matrix",
    title: "Matrix",
    needs: NEEDS,
    covers_body: false,
    text_max: (Unit::Bytes, 32_000),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: true,
    streaming: Streaming::Edits { pause_ms: 1_500 },
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let query = Form::parse(request.incoming.query.as_bytes())?;
        let legacy = query.single("access_token")?;
        let token = proof::authorization(request, "Bearer")?.or(legacy).filter(|token| !token.is_empty());
        let token = token.ok_or(Reject::Unauthorized("no token"))?;
        if legacy.is_some_and(|legacy| !digest::constant_time_eq(legacy.as_bytes(), token.as_bytes())) {
            return Err(Reject::Forbidden("two different tokens"));
        }
        proof::shared_word(request.account, token.as_bytes()).map_err(|reject| match reject {
            Reject::Unauthorized(why) => Reject::Forbidden(why),
            other => other,
        })?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let nothing = Answer::json(&json!({}));
        if request.incoming.path.ends_with("/ping") {
            return Ok(Decoded::Handshake(nothing));
        }
        let at = request
            .incoming
            .path
            .rfind("/transactions/")
            .ok_or(Reject::NotFound("users and rooms are not managed here"))?;
        let transaction = form::percent_decode(&request.incoming.path.as_bytes()[at + 14..], false);
        let transaction = transaction.filter(|id| !id.is_empty()).ok_or(Reject::Malformed("no transaction id"))?;
        let body = value::parse_object(plain)?;
        let mut events = Vec::new();
        for one in value::list(&body, "/events") {
            if let Some(mut event) = message(request, one)? {
                // The server repeats a transaction unchanged: its place in it is as good as its own id.
                event.event_key = match events.len() {
                    0 => format!("txn:{transaction}"),
                    place => format!("txn:{transaction}:{place}"),
                };
                events.push(event);
            }
        }
        Decoded::events(events, "no messages", nothing)
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let mut content = json!({"msgtype": "m.notice", "body": out.text_with_choices()});
        if let Some(thread) = &out.address.thread {
            content["m.relates_to"] = json!({"rel_type": "m.thread", "event_id": thread});
        } else if let Some(message) = out.handle() {
            content["m.relates_to"] = json!({"m.in_reply_to": {"event_id": message}});
        }
        put(out, &out.key.to_string(), &content)
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let new = json!({"msgtype": "m.notice", "body": out.text});
        let content = json!({
            "msgtype": "m.notice", "body": format!("* {}", out.text), "m.new_content": new,
            "m.relates_to": {"rel_type": "m.replace", "event_id": message_id},
        });
        let version = digest::hex(&digest::sha256(out.text.as_bytes())[..8]);
        Some(put(out, &format!("{}-{version}", out.key), &content))
    }

    fn typing(&self, out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
        let user = form::percent_encode(out.account.bot_id.as_deref()?);
        let room = form::percent_encode(&out.address.chat);
        let url = format!("{}/_matrix/client/v3/rooms/{room}/typing/{user}", out.account.api(""));
        let body = json!({"typing": true, "timeout": 30_000});
        Some(out.bot_token().map(|token| OutboundCall::json("PUT", url, &body).bearer(token).repeatable()))
    }

    fn classify(&self, answered: &super::Answered<'_>) -> super::Delivery {
        let body = answered.json();
        let said = value::text(&body, "/error").unwrap_or_default();
        if answered.status == 429 {
            let after = answered.pause(body["retry_after_ms"].as_f64().map(|ms| ms / 1_000.0));
            return super::Delivery::Retry { after, why: format!("the home server answered 429: {said}") };
        }
        answered.by_status(value::id(&body, "/event_id"), said)
    }
}

fn put(out: &Outgoing<'_>, transaction: &str, content: &serde_json::Value) -> Result<OutboundCall, EncodeError> {
    let base = out.account.api_base.as_deref().ok_or_else(|| out.missing("no api_base is configured"))?;
    let room = form::percent_encode(&out.address.chat);
    let url =
        format!("{}/_matrix/client/v3/rooms/{room}/send/m.room.message/{transaction}", base.trim_end_matches('/'));
    Ok(OutboundCall::json("PUT", url, content).bearer(out.bot_token()?).repeatable())
}

fn message(request: &Request<'_>, one: &serde_json::Value) -> Result<Option<InboundEvent>, Reject> {
    let us = request.account.bot_id.as_deref();
    let sender = value::needed(one, "/sender")?;
    let notice = value::text(one, "/content/msgtype") == Some("m.notice");
    let edit = value::text(one, "/content/m.relates_to/rel_type") == Some("m.replace");
    if value::text(one, "/type") != Some("m.room.message") || Some(sender.as_str()) == us || notice || edit {
        return Ok(None);
    }
    let id = value::needed(one, "/event_id")?;
    let mut event = InboundEvent::new(EventKind::Message, id.clone(), sender, value::needed(one, "/room_id")?);
    event.message_id = Some(id);
    if value::text(one, "/content/m.relates_to/rel_type") == Some("m.thread") {
        event.thread = value::id(one, "/content/m.relates_to/event_id");
    }
    let body = value::text(one, "/content/body").unwrap_or_default().trim();
    let names = [us, request.account.bot_username.as_deref()];
    let rest = names.into_iter().flatten().find_map(|name| body.strip_prefix(name));
    let listed =
        value::list(one, "/content/m.mentions/user_ids").iter().any(|user| us.is_some() && user.as_str() == us);
    event.mentioned = listed || rest.is_some();
    event.text = rest.map_or(body, |rest| rest.trim_start_matches([':', ','])).trim().to_owned();
    if let (Some(kind), Some(reference)) = (value::id(one, "/content/msgtype"), value::id(one, "/content/url")) {
        event.attachments.push(super::Attachment { kind, reference });
    }
    Ok(Some(event))
}
