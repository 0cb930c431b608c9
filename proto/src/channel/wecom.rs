//! WeCom application: signed and encrypted XML in, `message/send` out.

use super::envelope::Proof;
use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need};
use super::outbound::Codes;
use super::proof::Clock;
use super::xml::Document;
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, OutboundCall, Outgoing, Platform, Reject, envelope, value,
};
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const API: &str = "https://qyapi.weixin.qq.com";
pub(super) const CODES: Codes<'_> = Codes { token: &[40_001, 40_014, 42_001], busy: &[-1, 45_009, 45_011, 45_047] };
const NEEDS: &[Need] = &[
    need("secrets", "Token of the callback").ours(),
    need("encryption_keys", "EncodingAESKey of the callback").ours(),
    need("app_id", "corp id ww... (or suite id)"),
    need("app_secret", "Secret of the application"),
    need("sender", "AgentId of the application"),
];
static SPEC: Spec = Spec {
    id: "wecom",
    title: "WeCom",
    needs: NEEDS,
    covers_body: true,
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
        let proof = Proof::read(&query, &["msg_signature"])?;
        let receiver = request.account.app_id.as_deref().ok_or(Reject::Misconfigured("no app_id"))?;
        let sealed = if request.incoming.method == "GET" {
            query.needed("echostr")?.to_owned()
        } else {
            Document::parse(request.incoming.body)?
                .filled("Encrypt")
                .ok_or(Reject::Unauthorized("no envelope"))?
                .to_owned()
        };
        proof.check(request, Clock::Seconds, Some(&sealed))?;
        envelope::open(request.account, &sealed, receiver).map(Cow::Owned)
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        if request.incoming.method == "GET" {
            return Ok(Decoded::Handshake(Answer::text(plain)));
        }
        super::wechat_mp::event(plain, Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let body = json!({
            "touser": out.address.chat, "msgtype": "text", "agentid": out.sender()?.parse::<u64>().unwrap_or_default(),
            "text": {"content": out.text_with_choices()}, "enable_duplicate_check": 1, "duplicate_check_interval": 1_800,
        });
        let url = format!("{}/cgi-bin/message/send?access_token={}", out.account.api(API), out.access_token()?);
        Ok(OutboundCall::json("POST", url, &body))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/errmsg").unwrap_or_default();
        answered.by_code(body["errcode"].as_i64(), CODES, value::id(&body, "/msgid"), said)
    }

    fn access(
        &self,
        account: &super::Account,
        _now_s: u64,
        _random: &dyn ring::rand::SecureRandom,
    ) -> Option<Result<OutboundCall, EncodeError>> {
        Some(account.client_credentials().map(|(id, secret)| {
            let query = super::form::encode(&[("corpid", id), ("corpsecret", secret)]);
            OutboundCall::get(format!("{}/cgi-bin/gettoken?{query}", account.api(API)))
        }))
    }
}
