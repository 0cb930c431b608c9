//! Google Chat: a JWT of Google proves the sender, for a project number or for the address of the hook.
//!
//! The token does not cover the body. A token of one kind is refused under the other.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::{
    Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform,
    Reject, jwt, value,
};
use crate::digest;
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const API: &str = "https://chat.googleapis.com";
const TOKEN: &str = "https://oauth2.googleapis.com/token";
const ISSUER: &str = "chat@system.gserviceaccount.com";
pub(super) const PROJECT_KEYS: &str =
    "https://www.googleapis.com/service_accounts/v1/jwk/chat@system.gserviceaccount.com";
pub(super) const GOOGLE_KEYS: &str = "https://www.googleapis.com/oauth2/v3/certs";
const NEEDS: &[Need] = &[
    need("app_id", "the audience: project number, or the exact address of the hook"),
    need("mode", "project_number or endpoint_url, as chosen in the Chat API configuration"),
    need("app_secret", "service account key (JSON file) for replies"),
    option("bot_id", "users/... of the app, to recognise our own messages"),
];
static SPEC: Spec = Spec {
    id: "googlechat",
    title: "Google Chat",
    needs: NEEDS,
    covers_body: false,
    text_max: (Unit::Chars, 4_000),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: true,
    streaming: Streaming::Edits { pause_ms: 1_200 },
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let audience = request.account.app_id.as_deref().filter(|text| !text.is_empty());
        let audience = audience.ok_or(Reject::Misconfigured("no audience"))?;
        let token = jwt::Token::of(request)?;
        let (issued_by_us, keys) = match request.account.mode.as_deref() {
            Some("project_number") => (token.claim("iss") == Some(ISSUER), PROJECT_KEYS),
            Some("endpoint_url") => {
                let google = matches!(token.claim("iss"), Some("https://accounts.google.com" | "accounts.google.com"));
                let verified = token.claims["email_verified"].as_bool() == Some(true);
                (google && verified && token.claim("email") == Some(ISSUER), GOOGLE_KEYS)
            }
            _ => return Err(Reject::Misconfigured("mode is neither project_number nor endpoint_url")),
        };
        if !issued_by_us {
            return Err(Reject::Unauthorized("another issuer"));
        }
        if !token.is_for(audience) {
            return Err(Reject::Unauthorized("another audience"));
        }
        token.check_time(request)?;
        token.verify(request, keys)?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let nothing = Answer::json(&json!({}));
        let body = value::parse_object(plain)?;
        let event_type = value::text(&body, "/type").unwrap_or_default();
        let event_kind = match event_type {
            "MESSAGE" if value::id(&body, "/message/slashCommand/commandId").is_some() => EventKind::Command,
            "MESSAGE" => EventKind::Message,
            "CARD_CLICKED" => EventKind::Action,
            "APP_COMMAND" => EventKind::Command,
            _ => return Ok(Decoded::Ignore { why: "an event of another kind", ack: nothing }),
        };
        let user = value::needed(&body, "/user/name")?;
        let bot = value::text(&body, "/user/type") == Some("BOT");
        if bot || request.account.bot_id.as_deref() == Some(&user) {
            return Ok(Decoded::Ignore { why: "written by a bot", ack: nothing });
        }
        let message = value::id(&body, "/message/name");
        let key = match (&message, event_kind) {
            (Some(name), EventKind::Message | EventKind::Command) => name.clone(),
            _ => format!("{}/{event_type}", value::needed(&body, "/eventTime")?),
        };
        let mut event = InboundEvent::new(event_kind, key, user, value::needed(&body, "/space/name")?);
        event.thread = value::id(&body, "/message/thread/name");
        event.message_id = message;
        event.private = value::text(&body, "/space/spaceType") == Some("DIRECT_MESSAGE")
            || value::text(&body, "/space/type") == Some("DM");
        event.command = value::id(&body, "/message/slashCommand/commandId");
        event.text = match event_kind {
            EventKind::Action => value::text(&body, "/common/invokedFunction")
                .or_else(|| value::text(&body, "/action/actionMethodName"))
                .unwrap_or_default()
                .to_owned(),
            _ => value::text(&body, "/message/argumentText")
                .or_else(|| value::text(&body, "/message/text"))
                .unwrap_or_default()
                .trim()
                .to_owned(),
        };
        for file in value::list(&body, "/message/attachment") {
            if let (Some(kind), Some(reference)) = (value::id(file, "/contentType"), value::id(file, "/name")) {
                event.attachments.push(super::Attachment { kind, reference });
            }
        }
        Decoded::event(event, nothing)
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let mut body = json!({"text": out.text_with_choices()});
        let mut query = format!("requestId={}", out.uuid());
        if let Some(thread) = &out.address.thread {
            body["thread"] = json!({"name": thread});
            query.push_str("&messageReplyOption=REPLY_MESSAGE_FALLBACK_TO_NEW_THREAD");
        }
        let url = format!("{}/v1/{}/messages?{query}", out.account.api(API), out.address.chat);
        Ok(OutboundCall::json("POST", url, &body).bearer(out.access_token()?).repeatable())
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let url = format!("{}/v1/{message_id}?updateMask=text", out.account.api(API));
        let call = |token| OutboundCall::json("PATCH", url, &json!({"text": out.text})).bearer(token).repeatable();
        Some(out.access_token().map(call))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        answered.by_status(value::id(&body, "/name"), value::text(&body, "/error/message").unwrap_or_default())
    }

    /// A signed assertion of the service account (RFC 7523) is exchanged for a token.
    fn access(
        &self,
        account: &super::Account,
        now_s: u64,
        random: &dyn ring::rand::SecureRandom,
    ) -> Option<Result<OutboundCall, EncodeError>> {
        let assertion = || {
            let file = value::parse_object(account.app_secret.as_ref()?.bytes()).ok()?;
            let key = super::keys::unpem(value::text(&file, "/private_key")?, "PRIVATE KEY")?;
            let claims = json!({
                "iss": value::text(&file, "/client_email")?, "scope": "https://www.googleapis.com/auth/chat.bot",
                "aud": TOKEN, "iat": now_s, "exp": now_s + 3_600,
            });
            let header = json!({"alg": "RS256", "typ": "JWT"});
            let part = |value: &serde_json::Value| digest::base64url(value.to_string().as_bytes());
            let signed = format!("{}.{}", part(&header), part(&claims));
            let signature = digest::rsa_sign_sha256(&key, signed.as_bytes(), random)?;
            Some(format!("{signed}.{}", digest::base64url(&signature)))
        };
        let unusable = EncodeError {
            channel: account.kind,
            account: account.name.clone(),
            missing: "app_secret is no service account key",
        };
        Some(assertion().ok_or(unusable).map(|assertion| {
            let grant = "urn:ietf:params:oauth:grant-type:jwt-bearer";
            let url = match &account.api_base {
                Some(_) => format!("{}/token", account.api(API)),
                None => TOKEN.to_owned(),
            };
            OutboundCall::form("POST", url, &[("grant_type", grant), ("assertion", &assertion)])
        }))
    }
}
