//! DingTalk organisation events: the shared envelope with times in milliseconds; each is answered encrypted.

use super::envelope::Proof;
use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::proof::Clock;
use super::{
    Answer, Decoded, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform, Reject, envelope,
    standard_webhooks, value,
};
use crate::digest;
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("secrets", "Token of the event subscription"),
    need("encryption_keys", "aes_key of the event subscription"),
    need("app_id", "owner key: AppKey, CorpId or SuiteKey"),
    option("reply_url", "where answers are posted as Standard Webhooks"),
    option("bot_token", "whsec_... secret that signs them"),
];
static SPEC: Spec = Spec {
    id: "dingtalk_callback",
    title: "DingTalk events",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Bytes, 16_384),
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
        let query = Form::parse(request.incoming.query.as_bytes())?;
        let proof = Proof::read(&query, &["msg_signature", "signature"])?;
        let sealed = value::needed(&value::parse_object(request.incoming.body)?, "/encrypt")?;
        proof.check(request, Clock::Millis, Some(&sealed))?;
        let owner = request.account.app_id.as_deref().ok_or(Reject::Misconfigured("no app_id"))?;
        envelope::open(request.account, &sealed, owner).map(Cow::Owned)
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let owner = request.account.app_id.as_deref().unwrap_or_default();
        let sealed = envelope::seal_answer(request, b"success", owner, Clock::Millis)?;
        let ack = Answer::json(&json!({
            "msg_signature": sealed.signature, "timeStamp": sealed.timestamp, "nonce": sealed.nonce, "encrypt": sealed.envelope,
        }));
        let body = value::parse_object(plain)?;
        let change = value::needed(&body, "/EventType")?;
        if change.starts_with("check_") {
            return Ok(Decoded::Handshake(ack));
        }
        let key = value::id(&body, "/EventId").unwrap_or_else(|| digest::hex(&digest::sha256(plain)));
        let source = value::id(&body, "/CorpId").unwrap_or_else(|| owner.to_owned());
        let user = value::id(&body, "/OptStaffId").unwrap_or_else(|| "dingtalk".to_owned());
        let mut event = InboundEvent::new(EventKind::DataChange, key, user, source.clone());
        event.text = String::from_utf8_lossy(plain).into_owned();
        event.change = Some((source, change));
        Decoded::event(event, ack)
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        standard_webhooks::report(out)
    }
}
