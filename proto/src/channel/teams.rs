//! Microsoft Teams through the Bot Framework: a JWT proves the sender and the service address.
//!
//! The token does not cover the body; it covers `serviceUrl`, the only address that replies go to.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, OutboundCall, Outgoing, Platform, Reject, Secret, jwt,
    teams_outgoing, value,
};
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

pub(super) const KEYS: &str = "https://login.botframework.com/v1/.well-known/openidconfiguration";
const LOGIN: &str = "https://login.microsoftonline.com";
const NEEDS: &[Need] = &[
    need("app_id", "Microsoft app id of the bot"),
    need("app_secret", "client secret of the app registration"),
    option("mode", "directory (tenant) id of a single-tenant bot; else botframework.com"),
    option("bot_id", "the bot's id 28:..., to recognise our own messages"),
];
static SPEC: Spec = Spec {
    id: "teams",
    title: "Microsoft Teams",
    needs: NEEDS,
    covers_body: false,
    text_max: (Unit::Bytes, 16_000),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Edits { pause_ms: 1_500 },
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let token = jwt::Token::of(request)?;
        let app = request.account.app_id.as_deref().filter(|id| !id.is_empty());
        let app = app.ok_or(Reject::Misconfigured("no app_id"))?;
        if token.claim("iss") != Some("https://api.botframework.com") {
            return Err(Reject::Unauthorized("another issuer"));
        }
        if !token.is_for(app) {
            return Err(Reject::Unauthorized("another audience"));
        }
        token.check_time(request)?;
        let key = token.verify(request, KEYS)?;
        let body = value::parse_object(request.incoming.body)?;
        if token.claim("serviceurl").is_none() || token.claim("serviceurl") != value::text(&body, "/serviceUrl") {
            return Err(Reject::Unauthorized("another service address"));
        }
        let channel = value::text(&body, "/channelId").unwrap_or_default();
        if !key.endorsements.is_empty() && !key.endorsements.iter().any(|one| one == channel) {
            return Err(Reject::Unauthorized("the key may not sign for this channel"));
        }
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let body = value::parse_object(plain)?;
        if request.account.bot_id.is_some() && value::id(&body, "/from/id") == request.account.bot_id {
            return Decoded::ignore("written by us");
        }
        let Some(mut event) = teams_outgoing::activity(&body)? else {
            return Decoded::ignore("an activity of another kind");
        };
        let full = value::needed(&body, "/conversation/id")?;
        let channel = value::text(&body, "/channelId").unwrap_or_default();
        event.event_key = format!("{channel}|{full}|{}", value::needed(&body, "/id")?);
        let service = value::needed(&body, "/serviceUrl")?;
        event.reply_handle = Some(Secret::new(json!([service, full, event.message_id]).to_string()));
        Decoded::event(event, Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let (url, reply_to) = activities(out)?;
        let mut body = json!({"type": "message", "text": out.text, "textFormat": "markdown", "replyToId": reply_to});
        if !out.buttons.is_empty() {
            let action = |b: &super::Button| json!({"type": "imBack", "title": b.label, "value": b.value});
            body["suggestedActions"] = json!({"actions": out.buttons.iter().map(action).collect::<Vec<_>>()});
        }
        Ok(OutboundCall::json("POST", url, &body).bearer(out.access_token()?))
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let body = json!({"type": "message", "text": out.text, "textFormat": "markdown"});
        let call = |(url, _)| {
            let url = format!("{url}/{}", super::form::percent_encode(message_id));
            Ok(OutboundCall::json("PUT", url, &body).bearer(out.access_token()?).repeatable())
        };
        Some(activities(out).and_then(call))
    }

    fn typing(&self, out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
        let call = |(url, _)| {
            Ok(OutboundCall::json("POST", url, &json!({"type": "typing"})).bearer(out.access_token()?).repeatable())
        };
        Some(activities(out).and_then(call))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/error/message").unwrap_or_default();
        match answered.status {
            412 => Delivery::Retry { after: answered.pause(None), why: format!("Teams answered 412: {said}") },
            _ => answered.by_status(value::id(&body, "/id"), said),
        }
    }

    fn access(
        &self,
        account: &super::Account,
        _now_s: u64,
        _random: &dyn ring::rand::SecureRandom,
    ) -> Option<Result<OutboundCall, EncodeError>> {
        let tenant = account.mode.as_deref().unwrap_or("botframework.com");
        let url = format!("{}/{}/oauth2/v2.0/token", account.api(LOGIN), super::form::percent_encode(tenant));
        Some(account.client_credentials().map(|(id, secret)| {
            let scope = "https://api.botframework.com/.default";
            let fields =
                [("grant_type", "client_credentials"), ("client_id", id), ("client_secret", secret), ("scope", scope)];
            OutboundCall::form("POST", url, &fields)
        }))
    }
}

/// The address of a conversation's activities and the message that is answered.
fn activities(out: &Outgoing<'_>) -> Result<(String, Option<String>), EncodeError> {
    let lost = || out.missing("the address of the conversation is not known");
    let handle =
        out.handle().and_then(|handle| serde_json::from_str::<serde_json::Value>(handle).ok()).ok_or_else(lost)?;
    let service = value::text(&handle, "/0").ok_or_else(lost)?;
    // The token of the event has proven this address; plain HTTP is for a configured service alone.
    if super::keys::host(service).is_none() && !out.account.owns(service) {
        return Err(lost());
    }
    let conversation = value::text(&handle, "/1").ok_or_else(lost)?;
    let conversation = super::form::percent_encode(conversation);
    Ok((
        format!("{}/v3/conversations/{conversation}/activities", service.trim_end_matches('/')),
        value::id(&handle, "/2"),
    ))
}
