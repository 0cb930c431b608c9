//! WeChat official account: signed XML in (encrypted in safe mode), customer-service messages out.
//!
//! In plain mode the signature does not cover the body. In safe mode only the envelope counts.

use super::envelope::Proof;
use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::outbound::Codes;
use super::proof::Clock;
use super::xml::Document;
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform,
    Reject, envelope, value,
};
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const API: &str = "https://api.weixin.qq.com";
const NEEDS: &[Need] = &[
    need("secrets", "Token of the server configuration").ours(),
    need("app_id", "AppID wx..."),
    need("app_secret", "AppSecret, for customer-service messages"),
    option("encryption_keys", "EncodingAESKey; with it only encrypted messages are taken"),
    option("mode", "plain or safe; safe when an EncodingAESKey is set"),
];
static SPEC: Spec = Spec {
    id: "wechat_mp",
    title: "WeChat official account",
    needs: NEEDS,
    covers_body: false,
    text_max: (Unit::Bytes, 2_048),
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
        let query = Form::parse(request.incoming.query.as_bytes())?;
        let safe = match request.account.mode.as_deref() {
            Some("plain") => false,
            Some("safe") => true,
            None => !request.account.encryption_keys.is_empty(),
            Some(_) => return Err(Reject::Misconfigured("mode is neither plain nor safe")),
        };
        if !safe || request.incoming.method == "GET" {
            Proof::read(&query, &["signature"])?.check(request, Clock::Seconds, None)?;
            return Ok(Cow::Borrowed(request.incoming.body));
        }
        let proof = Proof::read(&query, &["msg_signature"])?;
        let receiver = request.account.app_id.as_deref().ok_or(Reject::Misconfigured("no app_id"))?;
        let document = Document::parse(request.incoming.body)?;
        let sealed = document.filled("Encrypt").ok_or(Reject::Unauthorized("no envelope"))?;
        proof.check(request, Clock::Seconds, Some(sealed))?;
        envelope::open(request.account, sealed, receiver).map(Cow::Owned)
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        if request.incoming.method == "GET" {
            let query = Form::parse(request.incoming.query.as_bytes())?;
            let echo = query.single("echostr")?.ok_or(Reject::Malformed("no echostr"))?;
            return Ok(Decoded::Handshake(Answer::text(echo)));
        }
        event(plain, Answer::text("success"))
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let body = json!({"touser": out.address.chat, "msgtype": "text", "text": {"content": out.text_with_choices()}});
        let url = format!("{}/cgi-bin/message/custom/send?access_token={}", out.account.api(API), out.access_token()?);
        Ok(OutboundCall::json("POST", url, &body))
    }

    fn typing(&self, out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
        let body = json!({"touser": out.address.chat, "command": "Typing"});
        let url = |token| format!("{}/cgi-bin/message/custom/typing?access_token={token}", out.account.api(API));
        Some(out.access_token().map(|token| OutboundCall::json("POST", url(token), &body).repeatable()))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/errmsg").unwrap_or_default();
        let codes = Codes { token: &[40_001, 40_014, 42_001], busy: &[-1, 45_009, 45_011] };
        answered.by_code(body["errcode"].as_i64(), codes, None, said)
    }

    /// A stable token: a second node that asks does not end the token of the first.
    fn access(
        &self,
        account: &super::Account,
        _now_s: u64,
        _random: &dyn ring::rand::SecureRandom,
    ) -> Option<Result<OutboundCall, EncodeError>> {
        Some(account.client_credentials().map(|(id, secret)| {
            let body = json!({"grant_type": "client_credential", "appid": id, "secret": secret});
            OutboundCall::json("POST", format!("{}/cgi-bin/stable_token", account.api(API)), &body)
        }))
    }
}

/// A message or event in the XML that WeChat and WeCom share.
pub(super) fn event(plain: &[u8], ack: Answer) -> Result<Decoded, Reject> {
    let document = Document::parse(plain)?;
    let field = |name| document.filled(name).ok_or(Reject::Malformed("a field is missing"));
    let (from, created, message_type) = (field("FromUserName")?, field("CreateTime")?, field("MsgType")?);
    let name = document.get("Event").unwrap_or_default();
    let message = document.filled("MsgId").map(str::to_owned);
    let key = message.clone().unwrap_or_else(|| format!("{from}{created}{name}"));
    let action = message_type == "event";
    if action && !name.eq_ignore_ascii_case("click") {
        return Ok(Decoded::Ignore { why: "an event of another kind", ack });
    }
    let event_kind = if action { EventKind::Action } else { EventKind::Message };
    let mut event = InboundEvent::new(event_kind, key, from, from);
    event.message_id = message;
    event.private = true;
    event.text = match action {
        true => document.get("EventKey").unwrap_or_default().to_owned(),
        false => document.get("Content").or_else(|| document.get("Recognition")).unwrap_or_default().trim().to_owned(),
    };
    if let Some(media) = document.filled("MediaId") {
        event.attachments.push(super::Attachment { kind: message_type.to_owned(), reference: media.to_owned() });
    }
    Decoded::event(event, ack)
}
