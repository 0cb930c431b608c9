//! Standard Webhooks 1.0: any program can talk to the agent with signed JSON, and gets signed JSON back.
//!
//! In: `{"type":"message","conversation":"..","user":"..","text":".."}`, the fields also inside `data`.
//! Any other `type` is a change report of another system. Out: a Standard Webhook to the account's
//! `reply_url` whose `webhook-id` is the effect key, so that the receiver recognises a repetition.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need};
use super::{
    Account, Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, Incoming, OutboundCall,
    Outgoing, Platform, Reject, Secret,
};
use crate::limits::{CHANNEL_TEXT_BYTES_MAX, EVENT_KEY_BYTES_MAX, NAME_BYTES_MAX, WEBHOOK_SIGNATURES_MAX};
use crate::split::Unit;
use crate::{date, digest};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("secrets", "whsec_... secret shared with the sender, or its whpk_... public key").ours(),
    need("reply_url", "where answers are posted"),
];
static SPEC: Spec = Spec {
    id: "standard_webhooks",
    title: "Standard Webhooks",
    needs: NEEDS,
    covers_body: true,
    // No platform limit; receivers of webhooks are advised to expect bodies below 20 kB.
    text_max: (Unit::Bytes, 16 * 1024),
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
        let (id, timestamp, signatures) = signed_headers(&request.incoming)?;
        let id = valid_id(id)?;
        super::proof::fresh(request, timestamp, super::proof::Clock::Seconds)?;
        verify(request.account, id, timestamp, signatures, request.incoming.body)?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let id = valid_id(signed_headers(&request.incoming)?.0)?;
        Decoded::event(event(request.account, id, plain)?, Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        signed_call(out, &out.account.secrets)
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        match answered.status {
            410 => Delivery::Dead { why: "the receiver answered 410: it wants no more messages".to_owned() },
            // 3xx: a redirect to another host was not followed.
            300..=399 => Delivery::Retry {
                after: answered.pause(None),
                why: format!("the receiver answered {}", answered.status),
            },
            401 => Delivery::Dead { why: "the receiver refused it with 401".to_owned() },
            _ => answered.by_status(None, ""),
        }
    }
}

/// The answer of a channel that only reports, as a Standard Webhook signed with its `bot_token`.
pub(super) fn report(out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
    signed_call(out, out.account.bot_token.as_slice())
}

enum Key {
    Hmac(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// Reads `whsec_...` (or its bare base64) and `whpk_...`.
fn key(secret: &Secret) -> Option<Key> {
    let text = secret.text()?.trim();
    if let Some(public) = text.strip_prefix("whpk_") {
        return digest::unbase64(public).filter(|key| key.len() == 32).map(Key::Ed25519);
    }
    digest::unbase64(text.strip_prefix("whsec_").unwrap_or(text)).filter(|key| !key.is_empty()).map(Key::Hmac)
}

/// Why a configured secret cannot be used, for the configuration check.
pub fn check_secret(secret: &Secret) -> Result<(), &'static str> {
    match key(secret) {
        Some(_) => Ok(()),
        None => Err("a Standard Webhooks secret is `whsec_` and base64, or `whpk_` and a base64 Ed25519 public key"),
    }
}

/// The `v1` signature of a message: base64 of HMAC-SHA-256 over `id.timestamp.body`. `None` when the secret
/// is no symmetric one.
pub fn sign(secret: &Secret, id: &str, timestamp_s: u64, body: &[u8]) -> Option<String> {
    match key(secret)? {
        Key::Hmac(key) => Some(format!("v1,{}", mac(&key, id.as_bytes(), timestamp_s.to_string().as_bytes(), body))),
        Key::Ed25519(_) => None,
    }
}

fn mac(key: &[u8], id: &[u8], timestamp: &[u8], body: &[u8]) -> String {
    digest::base64(&digest::hmac_sha256(key, &[id, b".", timestamp, b".", body]))
}

type Signed<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Id, timestamp and signatures. The `svix-` names are the older ones of the same scheme.
fn signed_headers<'a>(incoming: &Incoming<'a>) -> Result<Signed<'a>, Reject> {
    for names in
        [["svix-id", "svix-timestamp", "svix-signature"], ["webhook-id", "webhook-timestamp", "webhook-signature"]]
    {
        let [id, timestamp, signature] = names.map(|name| incoming.single(name));
        if let (Some(id), Some(timestamp), Some(signature)) = (id?, timestamp?, signature?) {
            return Ok((id, timestamp, signature));
        }
    }
    Err(Reject::Unauthorized("a signature header is missing"))
}

/// A dot in the id would let two different (id, timestamp, body) have the same signed bytes.
fn id_is_valid(id: &str) -> bool {
    (1..=EVENT_KEY_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'.')
}

fn valid_id(id: &[u8]) -> Result<&str, Reject> {
    std::str::from_utf8(id).ok().filter(|id| id_is_valid(id)).ok_or(Reject::Unauthorized("malformed id"))
}

fn verify(account: &Account, id: &str, timestamp: &[u8], signatures: &[u8], body: &[u8]) -> Result<(), Reject> {
    let keys: Vec<Key> = account.secrets.iter().filter_map(key).collect();
    if keys.is_empty() {
        return Err(Reject::Misconfigured("no usable secret"));
    }
    let macs: Vec<String> = keys
        .iter()
        .filter_map(|key| match key {
            Key::Hmac(key) => Some(mac(key, id.as_bytes(), timestamp, body)),
            Key::Ed25519(_) => None,
        })
        .collect();
    let signed = [id.as_bytes(), b".", timestamp, b".", body].concat();
    let mut valid = false;
    // Every listed signature is tried against every key without an early exit.
    for (index, entry) in signatures.split(|byte| *byte == b' ').filter(|entry| !entry.is_empty()).enumerate() {
        if index == WEBHOOK_SIGNATURES_MAX {
            return Err(Reject::Unauthorized("too many signatures"));
        }
        if let Some(given) = entry.strip_prefix(b"v1,") {
            for mac in &macs {
                valid |= digest::constant_time_eq(mac.as_bytes(), given);
            }
        } else if let Some(given) = entry.strip_prefix(b"v1a,") {
            let given = std::str::from_utf8(given).ok().and_then(digest::unbase64).unwrap_or_default();
            for key in &keys {
                if let Key::Ed25519(public) = key {
                    valid |= digest::ed25519_verify(public, &signed, &given);
                }
            }
        }
    }
    if valid { Ok(()) } else { Err(Reject::Unauthorized("no signature fits")) }
}

fn event(account: &Account, id: &str, body: &[u8]) -> Result<InboundEvent, Reject> {
    let text = std::str::from_utf8(body).map_err(|_| Reject::Malformed("body is not UTF-8"))?;
    let value: Value = serde_json::from_str(text).map_err(|_| Reject::Malformed("body is not JSON"))?;
    let object = value.as_object().ok_or(Reject::Malformed("body is not a JSON object"))?;
    let fields = object.get("data").and_then(Value::as_object).unwrap_or(object);
    let is_message = object.get("type").and_then(Value::as_str) == Some("message");
    let text = if is_message {
        let text = fields.get("text").and_then(Value::as_str).ok_or(Reject::Malformed("text is missing"))?;
        text.trim()
    } else {
        text
    };
    if text.is_empty() {
        return Err(Reject::Malformed("text is empty"));
    }
    if text.len() > CHANNEL_TEXT_BYTES_MAX {
        return Err(Reject::TooLarge("text"));
    }
    let kind = if is_message { EventKind::Message } else { EventKind::DataChange };
    let user = name(fields, "user")?.unwrap_or_else(|| "webhook".to_owned());
    let chat = name(fields, "conversation")?.unwrap_or_else(|| account.name.clone());
    let mut event = InboundEvent::new(kind, id, user, chat);
    event.thread = name(fields, "thread")?;
    event.message_id = name(fields, "message_id")?;
    event.text = text.to_owned();
    event.mentioned = is_message;
    // Only the sender knows who reads a conversation of its own.
    event.private = fields.get("private").and_then(Value::as_bool) == Some(true);
    if !is_message {
        let change = object.get("type").and_then(Value::as_str).unwrap_or("change");
        event.change = Some((account.name.clone(), change.to_owned()));
    }
    Ok(event)
}

/// An id field: text, or a number as its text.
fn name(fields: &Map<String, Value>, field: &str) -> Result<Option<String>, Reject> {
    let text = match fields.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => return Err(Reject::Malformed("an id is neither text nor number")),
    };
    let valid = (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    if valid { Ok(Some(text)) } else { Err(Reject::Malformed("an id is empty, too long or has control characters")) }
}

fn signed_call(out: &Outgoing<'_>, secrets: &[Secret]) -> Result<OutboundCall, EncodeError> {
    let url = out.reply_url()?.to_owned();
    let body = json!({
        "type": "message.reply",
        "timestamp": date::rfc3339(out.created_ms),
        "data": {
            "conversation": out.address.chat,
            "thread": out.address.thread,
            "in_reply_to": out.address.reply_to,
            "text": out.text,
        },
    });
    let id = out.key.to_string();
    let call = OutboundCall::json("POST", url, &body).repeatable();
    // One signature for each secret, so that the receiver can change its secret at any time.
    let signatures: Vec<String> =
        secrets.iter().filter_map(|secret| sign(secret, &id, out.now_s, &call.body)).collect();
    if signatures.is_empty() {
        return Err(out.missing("no symmetric secret (whsec_...) is configured to sign with"));
    }
    Ok(call
        .header("webhook-id", id)
        .header("webhook-timestamp", out.now_s.to_string())
        .header("webhook-signature", signatures.join(" ")))
}
