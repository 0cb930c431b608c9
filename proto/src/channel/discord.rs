//! Discord interactions: commands and buttons in, webhook follow-ups out.
//!
//! Signed with Ed25519 over timestamp and body under the application's key. Discord tests the address with
//! deliberately bad signatures; anything but 401 removes it.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::outbound::clip;
use super::proof::{self, Clock};
use super::{Account, Answer, Answered, Attachment, Decoded, Delivery, EncodeError, EventKind, InboundEvent};
use super::{OutboundCall, Outgoing, Platform, Reject, Secret, value};
use crate::digest;
use crate::id::EffectKey;
use crate::split::Unit;
use serde_json::{Value, json};
use std::borrow::Cow;

const API: &str = "https://discord.com/api/v10";
const NEEDS: &[Need] = &[
    need("secrets", "public key of the application, 64 hex digits (General Information)"),
    option("app_id", "application id: interactions of other applications are refused"),
    option("bot_token", "bot token, to write when the interaction's own token has ended (15 min)"),
];
static SPEC: Spec = Spec {
    id: "discord",
    title: "Discord",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Chars, 2_000),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Edits { pause_ms: 1_200 },
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let timestamp = request.incoming.needed("x-signature-timestamp")?;
        let signature = proof::ed25519_hex(request.incoming.needed("x-signature-ed25519")?)?;
        proof::fresh(request, timestamp, Clock::Seconds)?;
        let signed = [timestamp, request.incoming.body].concat();
        proof::with_any(Account::usable(&request.account.secrets), |key| {
            let key = std::str::from_utf8(key).ok().and_then(digest::unhex).unwrap_or_default();
            digest::ed25519_verify(&key, &signed, &signature)
        })?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let body = value::parse_object(plain)?;
        if body["type"].as_u64() == Some(1) {
            return Ok(Decoded::Handshake(Answer::json(&json!({"type": 1}))));
        }
        let app = value::id(&body, "/application_id");
        if let (Some(ours), Some(app)) = (&request.account.app_id, &app)
            && ours != app
        {
            return Err(Reject::Unauthorized("an interaction of another application"));
        }
        let event_kind = match body["type"].as_u64() {
            Some(2) => EventKind::Command,
            Some(3 | 5) => EventKind::Action,
            _ => return Decoded::ignore("an interaction of another kind"),
        };
        let key = value::needed(&body, "/id")?;
        let user = value::id(&body, "/member/user/id").map_or_else(|| value::needed(&body, "/user/id"), Ok)?;
        let mut event = InboundEvent::new(event_kind, key.clone(), user, value::needed(&body, "/channel_id")?);
        event.message_id = value::id(&body, "/message/id").or(Some(key));
        // In a group of friends there is no guild either, but another context.
        event.private = value::id(&body, "/guild_id").is_none() && body["context"].as_u64().unwrap_or(1) == 1;
        let app = app.or_else(|| request.account.app_id.clone());
        event.reply_handle =
            app.zip(value::id(&body, "/token")).map(|(app, token)| Secret::new(format!("{app}/{token}")));
        if event_kind == EventKind::Command {
            event.command = value::id(&body, "/data/name");
            event.text = options(value::list(&body, "/data/options"), 0).trim().to_owned();
        } else {
            event.text = value::text(&body, "/data/custom_id").unwrap_or_default().to_owned();
        }
        if let Some(files) = value::at(&body, "/data/resolved/attachments").as_object() {
            let file = |file: &Value| {
                let kind = value::text(file, "/content_type").unwrap_or("file").to_owned();
                Some(Attachment { kind, reference: value::id(file, "/url")? })
            };
            event.attachments = files.values().filter_map(file).collect();
        }
        // "Thinking": the answer follows within the 15 minutes of the token.
        Decoded::event(event, Answer::json(&json!({"type": 5})))
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let mut body = json!({"content": out.text, "allowed_mentions": {"parse": []}});
        if !out.buttons.is_empty() {
            body["components"] = components(out);
        }
        let api = out.account.api(API);
        if let Some((app, token)) = out.handle().and_then(handle_parts) {
            // The first part takes the place of "thinking"; replacing it twice does no harm.
            return Ok(if matches!(out.key.step, 0 | EffectKey::DRAFT_STEP) {
                OutboundCall::json("PATCH", format!("{api}/webhooks/{app}/{token}/messages/@original"), &body)
            } else {
                OutboundCall::json("POST", format!("{api}/webhooks/{app}/{token}"), &body)
            });
        }
        let uuid = out.uuid().replace('-', "");
        body["nonce"] = json!(&uuid[..25]);
        body["enforce_nonce"] = json!(true);
        let url = format!("{api}/channels/{}/messages", super::form::percent_encode(&out.address.chat));
        Ok(OutboundCall::json("POST", url, &body).header("authorization", format!("Bot {}", out.bot_token()?)))
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let body = json!({"content": out.text, "allowed_mentions": {"parse": []}});
        let api = out.account.api(API);
        let message = super::form::percent_encode(message_id);
        if let Some((app, token)) = out.handle().and_then(handle_parts) {
            let url = format!("{api}/webhooks/{app}/{token}/messages/{message}");
            return Some(Ok(OutboundCall::json("PATCH", url, &body).repeatable()));
        }
        let url = format!("{api}/channels/{}/messages/{message}", super::form::percent_encode(&out.address.chat));
        let bot = |token| OutboundCall::json("PATCH", url, &body).header("authorization", format!("Bot {token}"));
        Some(out.bot_token().map(bot).map(OutboundCall::repeatable))
    }

    fn typing(&self, out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
        // A deferred interaction shows "thinking" by itself.
        if out.handle().and_then(handle_parts).is_some() {
            return None;
        }
        let api = out.account.api(API);
        let url = format!("{api}/channels/{}/typing", super::form::percent_encode(&out.address.chat));
        let bot = |token| OutboundCall::json("POST", url, &json!({})).header("authorization", format!("Bot {token}"));
        Some(out.bot_token().map(bot).map(OutboundCall::repeatable))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/message").unwrap_or_default();
        match answered.status {
            429 => {
                let after = answered.pause(None).max(answered.pause(body["retry_after"].as_f64()));
                Delivery::Retry { after, why: format!("Discord answered 429: {said}") }
            }
            // A webhook token has no successor: 401 is the end, as is 404 (token ended).
            401 => Delivery::Dead { why: format!("Discord refused the token: {said}") },
            _ => answered.by_status(value::id(&body, "/id"), said),
        }
    }
}

/// Application and token of an interaction. Both become part of an address.
fn handle_parts(handle: &str) -> Option<(&str, &str)> {
    let (app, token) = handle.split_once('/')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'=');
    let valid =
        !app.is_empty() && !token.is_empty() && app.bytes().all(|b| b.is_ascii_digit()) && token.bytes().all(plain);
    valid.then_some((app, token))
}

/// The values of options, those of sub-commands included, in their order.
fn options(list: &[Value], depth: usize) -> String {
    let mut texts = Vec::new();
    for option in list {
        match value::at(option, "/value") {
            Value::String(text) => texts.push(text.clone()),
            Value::Null if depth < 3 => {
                let name = value::text(option, "/name").unwrap_or_default();
                texts.push(format!("{name} {}", options(value::list(option, "/options"), depth + 1)).trim().to_owned());
            }
            Value::Null => {}
            other => texts.push(other.to_string()),
        }
    }
    texts.join(" ")
}

fn components(out: &Outgoing<'_>) -> Value {
    let row = |row: &[super::Button]| {
        let buttons: Vec<Value> = row
            .iter()
            .map(|button| json!({"type": 2, "style": 1, "label": clip(&button.label, 80), "custom_id": clip(&button.value, 100)}))
            .collect();
        json!({"type": 1, "components": buttons})
    };
    Value::from(out.buttons.chunks(5).take(5).map(row).collect::<Vec<_>>())
}
