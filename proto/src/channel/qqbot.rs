//! QQ bot: Ed25519 over time and body, under a key pair that grows from the app secret.
//!
//! The address check makes us sign words of the sender with the very key that authenticates events. Its
//! words are therefore bounded so that no event can hide in them.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need};
use super::outbound::Codes;
use super::proof::Clock;
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform,
    Reject, Secret, proof, value,
};
use crate::digest;
use crate::record::ChatAddress;
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const API: &str = "https://api.sgroup.qq.com";
const TOKEN: &str = "https://bots.qq.com/app/getAppAccessToken";
const NEEDS: &[Need] = &[
    need("secrets", "AppSecret: events are signed with it"),
    need("app_id", "AppID of the bot"),
    need("app_secret", "AppSecret once more, for access tokens").same_as("secrets"),
];
static SPEC: Spec = Spec {
    id: "qqbot",
    title: "QQ bot",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Chars, 2_000),
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
        let incoming = &request.incoming;
        let app = incoming.single("x-bot-appid")?;
        if let (Some(ours), Some(app)) = (&request.account.app_id, app)
            && ours.as_bytes() != app
        {
            return Err(Reject::Unauthorized("an event of another bot"));
        }
        let Some(signature) = incoming.single("x-signature-ed25519")? else {
            return check_address(request, app.is_some()).map(|()| Cow::Borrowed(incoming.body));
        };
        let signature = proof::ed25519_hex(signature)?;
        let timestamp = incoming.needed("x-signature-timestamp")?;
        proof::fresh(request, timestamp, Clock::Seconds)?;
        let signed = [timestamp, incoming.body].concat();
        proof::with_any(super::Account::usable(&request.account.secrets), |secret| {
            digest::ed25519_verify(&digest::ed25519_public(&seed(secret)), &signed, &signature)
        })?;
        Ok(Cow::Borrowed(incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let body = value::parse_object(plain)?;
        if body["op"].as_u64() == Some(13) {
            check_address(request, true)?;
            let secret = super::Account::usable(&request.account.secrets).next();
            let secret = secret.ok_or(Reject::Misconfigured("no usable secret"))?;
            let (token, time) = (value::needed(&body, "/d/plain_token")?, value::needed(&body, "/d/event_ts")?);
            let signature = digest::ed25519_sign(&seed(secret), format!("{time}{token}").as_bytes());
            let answer = json!({"plain_token": token, "signature": digest::hex(&signature)});
            return Ok(Decoded::Handshake(Answer::json(&answer)));
        }
        let d = value::at(&body, "/d");
        if d.pointer("/author/bot").and_then(serde_json::Value::as_bool) == Some(true) {
            return Decoded::ignore("written by a bot");
        }
        let (user, chat, kind) = match value::text(&body, "/t") {
            Some("GROUP_AT_MESSAGE_CREATE") => ("/author/member_openid", "/group_openid", "groups"),
            Some("C2C_MESSAGE_CREATE") => ("/author/user_openid", "/author/user_openid", "users"),
            Some("AT_MESSAGE_CREATE") => ("/author/id", "/channel_id", "channels"),
            _ => return Decoded::ignore("an event of another kind"),
        };
        let key = value::id(&body, "/id").map_or_else(|| value::needed(d, "/id"), Ok)?;
        let mut event = InboundEvent::new(EventKind::Message, key, value::needed(d, user)?, value::needed(d, chat)?);
        event.message_id = value::id(d, "/id");
        event.private = kind == "users";
        let handle = format!("{kind}/{}", event.message_id.as_deref().unwrap_or_default());
        event.reply_handle = Some(Secret::new(handle));
        event.text = value::text(d, "/content").unwrap_or_default().trim().to_owned();
        for file in value::list(d, "/attachments") {
            if let (Some(kind), Some(reference)) = (value::id(file, "/content_type"), value::id(file, "/url")) {
                event.attachments.push(super::Attachment { kind, reference });
            }
        }
        Decoded::event(event, Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let (kind, message) = answered_message(out.handle());
        let chat = super::form::percent_encode(&out.address.chat);
        let url = match kind {
            "channels" => format!("{}/channels/{chat}/messages", out.account.api(API)),
            kind => format!("{}/v2/{kind}/{chat}/messages", out.account.api(API)),
        };
        // The pair of both is refused when it comes again.
        let body = json!({"content": out.text_with_choices(), "msg_type": 0, "msg_id": message, "msg_seq": out.key.step.saturating_add(1)});
        let call =
            OutboundCall::json("POST", url, &body).header("authorization", format!("QQBot {}", out.access_token()?));
        // Without the message that is answered there is no pair, and the bot speaks on its own account.
        Ok(if message.is_empty() { call } else { call.repeatable() })
    }

    fn recognises_repetition(&self, address: &ChatAddress) -> bool {
        !answered_message(address.reply_to.as_deref()).1.is_empty()
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/message").unwrap_or_default();
        match body["code"].as_i64() {
            // The same msg_id and msg_seq were accepted before.
            Some(40_054_005) => Delivery::Delivered { receipt: None },
            Some(code) if code != 0 => {
                answered.by_code(Some(code), Codes { token: &[11_243, 11_244], busy: &[22_009, 20_028] }, None, said)
            }
            _ => answered.by_status(value::id(&body, "/id"), said),
        }
    }

    fn access(
        &self,
        account: &super::Account,
        _now_s: u64,
        _random: &dyn ring::rand::SecureRandom,
    ) -> Option<Result<OutboundCall, EncodeError>> {
        Some(account.client_credentials().map(|(id, secret)| {
            let url = match &account.api_base {
                Some(_) => format!("{}/app/getAppAccessToken", account.api(API)),
                None => TOKEN.to_owned(),
            };
            OutboundCall::json("POST", url, &json!({"appId": id, "clientSecret": secret}))
        }))
    }
}

/// The kind of the chat and the message that is answered, from the handle of the event.
fn answered_message(handle: Option<&str>) -> (&str, &str) {
    handle.and_then(|handle| handle.split_once('/')).unwrap_or(("groups", ""))
}

/// The secret, repeated to 32 bytes.
pub(super) fn seed(secret: &[u8]) -> [u8; 32] {
    let mut seed = [0; 32];
    for (byte, from) in seed.iter_mut().zip(secret.iter().cycle()) {
        *byte = *from;
    }
    seed
}

/// The address check comes unsigned. What we sign is `event_ts ‖ plain_token`; an event signs `time ‖ {...}`.
/// Without a brace in the token and with digits alone in the time, no event has such bytes.
fn check_address(request: &Request<'_>, app_is_ours: bool) -> Result<(), Reject> {
    let refused = Err(Reject::Unauthorized("not signed, and no address check"));
    if !app_is_ours || request.account.app_id.is_none() {
        return refused;
    }
    let body = value::parse_object(request.incoming.body)?;
    let (token, time) = (value::text(&body, "/d/plain_token"), value::id(&body, "/d/event_ts"));
    let token = token.is_some_and(|token| (1..=128).contains(&token.len()) && !token.contains('{'));
    let seconds = time.as_deref().map(str::as_bytes).and_then(proof::whole);
    match (body["op"].as_u64(), token, seconds) {
        (Some(13), true, Some(seconds)) => proof::fresh_seconds(request, seconds),
        _ => refused,
    }
}
