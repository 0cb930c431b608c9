//! DingTalk robot in HTTP mode. The signature covers the time only, not the body.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::outbound::Codes;
use super::proof::Clock;
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform,
    Reject, Secret, proof, value,
};
use crate::digest;
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const API: &str = "https://api.dingtalk.com";
const HOSTS: [&str; 2] = ["oapi.dingtalk.com", "api.dingtalk.com"];
const NEEDS: &[Need] = &[
    need("secrets", "AppSecret of the robot's application"),
    need("app_id", "AppKey, for access tokens"),
    need("app_secret", "AppSecret once more, for access tokens").same_as("secrets"),
    option("sender", "robotCode, for answers after the session's address has ended"),
];
static SPEC: Spec = Spec {
    id: "dingtalk",
    title: "DingTalk robot",
    needs: NEEDS,
    covers_body: false,
    text_max: (Unit::Bytes, 20_000),
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
        let timestamp = request.incoming.needed("timestamp")?;
        proof::fresh(request, timestamp, Clock::Millis)?;
        proof::header_mac(request, "sign", |secret| {
            digest::base64(&digest::hmac_sha256(secret, &[timestamp, b"\n", secret]))
        })?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, _request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let body = value::parse_object(plain)?;
        let user = value::id(&body, "/senderStaffId").map_or_else(|| value::needed(&body, "/senderId"), Ok)?;
        if value::id(&body, "/senderId").is_some()
            && value::id(&body, "/senderId") == value::id(&body, "/chatbotUserId")
        {
            return Decoded::ignore("written by us");
        }
        let key = value::needed(&body, "/msgId")?;
        let mut event =
            InboundEvent::new(EventKind::Message, key.clone(), user.clone(), value::needed(&body, "/conversationId")?);
        event.message_id = Some(key);
        let private = value::text(&body, "/conversationType") == Some("1");
        event.mentioned = private || body["isInAtList"].as_bool() != Some(false);
        event.private = private;
        let rich: String =
            value::list(&body, "/content/richText").iter().filter_map(|part| value::text(part, "/text")).collect();
        event.text = value::text(&body, "/text/content").unwrap_or(&rich).trim().to_owned();
        if let Some(code) = value::id(&body, "/content/downloadCode") {
            let kind = value::text(&body, "/msgtype").unwrap_or("file").to_owned();
            event.attachments.push(super::Attachment { kind, reference: code });
        }
        let ends_ms = body["sessionWebhookExpiredTime"].as_u64().unwrap_or_default();
        let webhook = value::id(&body, "/sessionWebhook");
        let handle = json!([webhook, ends_ms, if private { Some(user) } else { None }]);
        event.reply_handle = Some(Secret::new(handle.to_string()));
        Decoded::event(event, Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let handle =
            out.handle().and_then(|handle| serde_json::from_str::<serde_json::Value>(handle).ok()).unwrap_or_default();
        let ours =
            |url: &&str| super::keys::host(url).is_some_and(|host| HOSTS.contains(&host)) || out.account.owns(url);
        let text = out.text_with_choices();
        // The session's address needs no token and lives about 90 minutes.
        if let Some(url) = value::text(&handle, "/0").filter(ours)
            && handle[1].as_u64().unwrap_or_default() / 1_000 > out.now_s
        {
            return Ok(OutboundCall::json(
                "POST",
                url.to_owned(),
                &json!({"msgtype": "text", "text": {"content": text}}),
            ));
        }
        let mut body = json!({
            "robotCode": out.sender()?, "msgKey": "sampleText", "msgParam": json!({"content": text}).to_string(),
        });
        let path = match value::text(&handle, "/2") {
            Some(user) => {
                body["userIds"] = json!([user]);
                "oToMessages/batchSend"
            }
            None => {
                body["openConversationId"] = json!(out.address.chat);
                "groupMessages/send"
            }
        };
        let call = OutboundCall::json("POST", format!("{}/v1.0/robot/{path}", out.account.api(API)), &body);
        Ok(call.header("x-acs-dingtalk-access-token", out.access_token()?))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/errmsg").or_else(|| value::text(&body, "/message")).unwrap_or_default();
        let codes = Codes { token: &[40_014, 42_001], busy: &[-1, 130_101, 130_102, 660_026] };
        match body["errcode"].as_i64() {
            None => answered.by_status(value::id(&body, "/processQueryKey"), said),
            code => answered.by_code(code, codes, None, said),
        }
    }

    fn access(
        &self,
        account: &super::Account,
        _now_s: u64,
        _random: &dyn ring::rand::SecureRandom,
    ) -> Option<Result<OutboundCall, EncodeError>> {
        Some(account.client_credentials().map(|(id, secret)| {
            let body = json!({"appKey": id, "appSecret": secret});
            OutboundCall::json("POST", format!("{}/v1.0/oauth2/accessToken", account.api(API)), &body)
        }))
    }
}
