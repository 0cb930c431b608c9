//! WeCom smart robot: signed and encrypted JSON in; answered at the `response_url` of the message.

use super::envelope::Proof;
use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::proof::Clock;
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform,
    Reject, Secret, envelope, value,
};
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const HOST: &str = "qyapi.weixin.qq.com";
const NEEDS: &[Need] = &[
    need("secrets", "Token of the robot's callback").ours(),
    need("encryption_keys", "EncodingAESKey of the robot's callback").ours(),
    option("bot_username", "the robot's name, to cut its mention out"),
    option("app_id", "receive id; empty for robots of one's own company"),
];
static SPEC: Spec = Spec {
    id: "wecom_aibot",
    title: "WeCom smart robot",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Bytes, 20_480),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Polled,
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let query = Form::parse(request.incoming.query.as_bytes())?;
        let proof = Proof::read(&query, &["msg_signature"])?;
        let receiver = request.account.app_id.as_deref().unwrap_or_default();
        let sealed = if request.incoming.method == "GET" {
            query.needed("echostr")?.to_owned()
        } else {
            value::needed(&value::parse_object(request.incoming.body)?, "/encrypt")?
        };
        proof.check(request, Clock::Seconds, Some(&sealed))?;
        envelope::open(request.account, &sealed, receiver).map(Cow::Owned)
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        if request.incoming.method == "GET" {
            return Ok(Decoded::Handshake(Answer::text(plain)));
        }
        let body = value::parse_object(plain)?;
        let user = value::needed(&body, "/from/userid")?;
        let chat = value::id(&body, "/chatid").unwrap_or_else(|| user.clone());
        let message_type = value::text(&body, "/msgtype").unwrap_or_default();
        let key = value::needed(&body, "/msgid")?;
        let event_kind = match message_type {
            "stream" => EventKind::StreamPoll,
            "event" => return Decoded::ignore("an event of another kind"),
            _ => EventKind::Message,
        };
        let mut event = InboundEvent::new(event_kind, key.clone(), user, chat);
        event.message_id = Some(key);
        event.private = value::text(&body, "/chattype") == Some("single");
        event.stream = value::id(&body, "/stream/id");
        event.reply_handle = value::id(&body, "/response_url").map(Secret::new);
        let text = value::text(&body, "/text/content").or_else(|| value::text(&body, "/voice/content"));
        event.text = without_name(text.unwrap_or_default(), request.account.bot_username.as_deref());
        if let Some(url) = value::id(&body, &format!("/{message_type}/url")) {
            event.attachments.push(super::Attachment { kind: message_type.to_owned(), reference: url });
        }
        Decoded::event(event, Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let ours = |url: &&str| super::keys::host(url) == Some(HOST) || out.account.owns(url);
        let url = out.handle().filter(ours).ok_or_else(|| out.missing("the message had no response_url of WeCom"))?;
        let body = json!({"msgtype": "markdown", "markdown": {"content": out.text_with_choices()}});
        Ok(OutboundCall::json("POST", url.to_owned(), &body))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/errmsg").unwrap_or_default();
        match body["errcode"].as_i64() {
            None => answered.by_status(None, said),
            code => answered.by_code(code, super::wecom::CODES, None, said),
        }
    }
}

/// Cuts `@Name` at the start of the text.
pub(super) fn without_name(text: &str, name: Option<&str>) -> String {
    let text = text.trim();
    let rest = name.and_then(|name| text.strip_prefix('@')?.strip_prefix(name.trim_start_matches('@')));
    rest.unwrap_or(text).trim().to_owned()
}
