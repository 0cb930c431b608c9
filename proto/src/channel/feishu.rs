//! Feishu and Lark: SHA-256 over time, nonce, key and body; AES-256-CBC with the digest of the key.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::outbound::Codes;
use super::proof::Clock;
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform,
    Reject, envelope, proof, value,
};
use crate::split::Unit;
use crate::{date, digest};
use serde_json::json;
use std::borrow::Cow;

const API: &str = "https://open.feishu.cn";
const NEEDS: &[Need] = &[
    need("verify_token", "Verification Token (Event subscriptions)"),
    need("encryption_keys", "Encrypt Key (Event subscriptions)"),
    need("app_id", "App ID cli_..."),
    need("app_secret", "App Secret"),
    option("bot_id", "open_id of the bot ou_..., to recognise mentions in groups"),
    option("api_base", "https://open.larksuite.com for Lark"),
];
static SPEC: Spec = Spec {
    id: "feishu",
    title: "Feishu / Lark",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Bytes, 30_000),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: true,
    streaming: Streaming::Edits { pause_ms: 300 },
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let account = request.account;
        let incoming = &request.incoming;
        if account.encryption_keys.is_empty() {
            check_token(request, &value::parse_object(incoming.body)?)?;
            return Ok(Cow::Borrowed(incoming.body));
        }
        let signature = incoming.single("x-lark-signature")?.filter(|value| !value.is_empty());
        if let Some(signature) = signature {
            let (time, nonce) =
                (incoming.needed("x-lark-request-timestamp")?, incoming.needed("x-lark-request-nonce")?);
            // Card callbacks carry the text of a Go time.
            match std::str::from_utf8(time).ok().and_then(date::parse_timestamp) {
                Some(seconds) => proof::fresh_seconds(request, seconds)?,
                None => proof::fresh(request, time, Clock::Seconds)?,
            }
            proof::with_any(super::Account::usable(&account.encryption_keys), |key| {
                let signed = [time, nonce, key, incoming.body].concat();
                digest::constant_time_eq(digest::hex(&digest::sha256(&signed)).as_bytes(), signature)
            })?;
        }
        let body = value::parse_object(incoming.body)?;
        let sealed = value::text(&body, "/encrypt").ok_or(Reject::Unauthorized("not encrypted"))?;
        let plain = envelope::open_feishu(account, sealed)?;
        let event = value::parse_object(&plain).map_err(|_| Reject::Unauthorized("the envelope does not open"))?;
        check_token(request, &event)?;
        // Only the address check may come unsigned; its token is the gate.
        if signature.is_none() && value::text(&event, "/type") != Some("url_verification") {
            return Err(Reject::Unauthorized("not signed"));
        }
        Ok(Cow::Owned(plain))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let body = value::parse_object(plain)?;
        if value::text(&body, "/type") == Some("url_verification") {
            let challenge = value::text(&body, "/challenge").ok_or(Reject::Malformed("no challenge"))?;
            return Ok(Decoded::Handshake(Answer::json(&json!({"challenge": challenge}))));
        }
        let ack = Answer::json(&json!({}));
        let app = value::id(&body, "/header/app_id");
        if request.account.app_id.is_some() && request.account.app_id != app {
            return Err(Reject::Unauthorized("an event of another app"));
        }
        match value::text(&body, "/header/event_type") {
            Some("im.message.receive_v1") => message(request, &body, ack),
            Some("card.action.trigger") => {
                let (user, chat) = (
                    value::needed(&body, "/event/operator/open_id")?,
                    value::needed(&body, "/event/context/open_chat_id")?,
                );
                let mut event =
                    InboundEvent::new(EventKind::Action, value::needed(&body, "/header/event_id")?, user, chat);
                event.message_id = value::id(&body, "/event/context/open_message_id");
                event.text = match value::at(&body, "/event/action/value") {
                    serde_json::Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                Decoded::event(event, ack)
            }
            _ => Ok(Decoded::Ignore { why: "an event of another kind", ack }),
        }
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let (kind, content) = content(out);
        let mut body = json!({"msg_type": kind, "content": content, "uuid": out.uuid()});
        let api = out.account.api(API);
        let url = match out.handle() {
            Some(message) => format!("{api}/open-apis/im/v1/messages/{}/reply", super::form::percent_encode(message)),
            None => {
                body["receive_id"] = json!(out.address.chat);
                format!("{api}/open-apis/im/v1/messages?receive_id_type=chat_id")
            }
        };
        Ok(OutboundCall::json("POST", url, &body).bearer(out.access_token()?).repeatable())
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let (kind, content) = content(out);
        let url =
            format!("{}/open-apis/im/v1/messages/{}", out.account.api(API), super::form::percent_encode(message_id));
        let body = json!({"msg_type": kind, "content": content});
        Some(out.access_token().map(|token| OutboundCall::json("PUT", url, &body).bearer(token).repeatable()))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let codes =
            Codes { token: &[99_991_661, 99_991_663, 99_991_668], busy: &[99_991_400, 230_020, 11_232, 11_233] };
        let said = value::text(&body, "/msg").unwrap_or_default();
        answered.by_code(body["code"].as_i64(), codes, value::id(&body, "/data/message_id"), said)
    }

    fn access(
        &self,
        account: &super::Account,
        _now_s: u64,
        _random: &dyn ring::rand::SecureRandom,
    ) -> Option<Result<OutboundCall, EncodeError>> {
        Some(account.client_credentials().map(|(id, secret)| {
            let body = json!({"app_id": id, "app_secret": secret});
            let url = format!("{}/open-apis/auth/v3/tenant_access_token/internal", account.api(API));
            OutboundCall::json("POST", url, &body)
        }))
    }
}

/// The verification token of an event: in its header, or at the top of the older form.
fn check_token(request: &Request<'_>, event: &serde_json::Value) -> Result<(), Reject> {
    let given = value::text(event, "/header/token").or_else(|| value::text(event, "/token")).unwrap_or_default();
    if proof::this_word(request.account.verify_token.as_ref(), given.as_bytes()) {
        Ok(())
    } else {
        Err(Reject::Unauthorized("the verification token"))
    }
}

/// Kind and content of a message: text, or a card when there is something to press.
fn content(out: &Outgoing<'_>) -> (&'static str, String) {
    if out.buttons.is_empty() {
        return ("text", json!({"text": out.text}).to_string());
    }
    let button = |b: &super::Button| json!({"tag": "button", "text": {"tag": "plain_text", "content": b.label}, "value": b.value});
    let buttons: Vec<_> = out.buttons.iter().map(button).collect();
    let elements = json!([{"tag": "markdown", "content": out.text}, {"tag": "action", "actions": buttons}]);
    ("interactive", json!({"elements": elements}).to_string())
}

fn message(request: &Request<'_>, body: &serde_json::Value, ack: Answer) -> Result<Decoded, Reject> {
    let event = value::at(body, "/event");
    if value::text(event, "/sender/sender_type").is_some_and(|kind| kind != "user") {
        return Ok(Decoded::Ignore { why: "written by a bot", ack });
    }
    let (user, chat) = (value::needed(event, "/sender/sender_id/open_id")?, value::needed(event, "/message/chat_id")?);
    let mut found = InboundEvent::new(EventKind::Message, value::needed(body, "/header/event_id")?, user, chat);
    found.message_id = value::id(event, "/message/message_id");
    found.thread = value::id(event, "/message/thread_id").or_else(|| value::id(event, "/message/root_id"));
    let content = value::text(event, "/message/content").unwrap_or("{}");
    let content = value::parse_object(content.as_bytes())?;
    let mut text = value::text(&content, "/text").unwrap_or_default().to_owned();
    found.private = value::text(event, "/message/chat_type") == Some("p2p");
    found.mentioned = found.private;
    for mention in value::list(event, "/message/mentions") {
        let (Some(key), id) = (value::filled(mention, "/key"), value::id(mention, "/id/open_id")) else { continue };
        let ours = request.account.bot_id.is_some() && id == request.account.bot_id;
        found.mentioned |= ours || request.account.bot_id.is_none();
        let name = format!("@{}", value::text(mention, "/name").unwrap_or_default());
        text = text.replace(key, if ours { "" } else { &name });
    }
    found.text = text.trim().to_owned();
    for (kind, pointer) in [("image", "/image_key"), ("file", "/file_key")] {
        if let Some(reference) = value::id(&content, pointer) {
            found.attachments.push(super::Attachment { kind: kind.to_owned(), reference });
        }
    }
    Decoded::event(found, ack)
}
