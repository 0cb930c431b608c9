//! Slack: Events API, slash commands and buttons in, `chat.postMessage` or `response_url` out.
//!
//! Signed with HMAC-SHA-256 over `v0:timestamp:body` under the signing secret as text.

use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::outbound::{Codes, clip};
use super::proof::{self, Clock};
use super::value::Field;
use super::{Answer, Answered, Attachment, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall};
use super::{Outgoing, Platform, Reject, Secret, value, xml};
use crate::digest;
use crate::record::ChatAddress;
use crate::split::Unit;
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;

const API: &str = "https://slack.com";
const RESPONSE_HOST: &str = "hooks.slack.com";
const NEEDS: &[Need] = &[
    need("secrets", "signing secret (Basic Information)"),
    need("bot_token", "bot token xoxb-... (OAuth & Permissions)"),
    option("app_id", "app id A...: events of other apps are refused"),
    option("bot_id", "the bot's user id U...: its mentions are cut out"),
];
static SPEC: Spec = Spec {
    id: "slack",
    title: "Slack",
    needs: NEEDS,
    covers_body: true,
    // The platform cuts above 40,000; long messages read badly and blocks fail far earlier.
    text_max: (Unit::Chars, 4_000),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Edits { pause_ms: 1_200 },
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let timestamp = request.incoming.needed("x-slack-request-timestamp")?;
        proof::fresh(request, timestamp, Clock::Seconds)?;
        proof::header_mac(request, "x-slack-signature", |secret| {
            let mac = digest::hmac_sha256(secret, &[b"v0:", timestamp, b":", request.incoming.body]);
            ["v0=", &digest::hex(&mac)].concat()
        })?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        if request.incoming.is_form() {
            let form = Form::parse(plain)?;
            return match form.get("payload") {
                Some(payload) => action(&value::parse_object(payload.as_bytes())?),
                None => command(request, &form),
            };
        }
        let body: Callback<'_> = value::typed_object(plain)?;
        match body.kind.text() {
            Some("url_verification") => {
                let challenge = body.challenge.text().ok_or(Reject::Malformed("no challenge"))?;
                Ok(Decoded::Handshake(Answer::text(challenge)))
            }
            Some("event_callback") => message(request, &body),
            Some("app_rate_limited") => Decoded::ignore("Slack limits our events"),
            _ => Decoded::ignore("a callback of another kind"),
        }
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let mut body = json!({"text": escape(out.text)});
        if !out.buttons.is_empty() {
            body["blocks"] = blocks(out);
        }
        if let Some(url) = out.handle().filter(|handle| is_response_url(out, handle)) {
            body["response_type"] = json!("in_channel");
            return Ok(OutboundCall::json("POST", url.to_owned(), &body));
        }
        body["channel"] = json!(out.address.chat);
        // Direct channels (D...) have no threads to keep apart; elsewhere the answer stays with its question.
        let thread = out.address.thread.as_deref();
        if let Some(thread) = thread.or_else(|| out.handle().filter(|_| !out.address.chat.starts_with('D'))) {
            body["thread_ts"] = json!(thread);
        }
        let url = format!("{}/api/chat.postMessage", out.account.api(API));
        Ok(OutboundCall::json("POST", url, &body).bearer(out.bot_token()?))
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let body = json!({"channel": out.address.chat, "ts": message_id, "text": escape(out.text)});
        let url = format!("{}/api/chat.update", out.account.api(API));
        Some(out.bot_token().map(|token| OutboundCall::json("POST", url, &body).bearer(token).repeatable()))
    }

    fn names_messages(&self, address: &ChatAddress) -> bool {
        // The address of a slash command answers `ok` and no more.
        !address.reply_to.as_deref().is_some_and(|handle| handle.contains("://"))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let error = value::text(&body, "/error").unwrap_or_default();
        // `response_url` answers plain `ok`.
        let code = match body["ok"].as_bool() {
            Some(true) => Some(0),
            Some(false)
                if matches!(error, "ratelimited" | "rate_limited" | "internal_error" | "service_unavailable") =>
            {
                Some(2)
            }
            Some(false) => Some(1),
            None => return answered.by_status(None, ""),
        };
        answered.by_code(code, Codes { token: &[], busy: &[2] }, value::id(&body, "/ts"), error)
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn blocks(out: &Outgoing<'_>) -> Value {
    let buttons: Vec<Value> = out
        .buttons
        .iter()
        .take(25)
        .enumerate()
        .map(|(index, button)| {
            json!({
                "type": "button", "action_id": format!("choice-{index}"), "value": clip(&button.value, 2_000),
                "text": {"type": "plain_text", "text": clip(&button.label, 75)},
            })
        })
        .collect();
    json!([
        {"type": "section", "text": {"type": "mrkdwn", "text": clip(&escape(out.text), 3_000)}},
        {"type": "actions", "elements": buttons},
    ])
}

/// An address from an event is only called when it is Slack's (or that of the configured API).
fn is_response_url(out: &Outgoing<'_>, handle: &str) -> bool {
    super::keys::host(handle) == Some(RESPONSE_HOST) || out.account.owns(handle)
}

fn command(request: &Request<'_>, form: &Form) -> Result<Decoded, Reject> {
    if form.get("ssl_check") == Some("1") {
        return Ok(Decoded::Handshake(Answer::ok()));
    }
    check_app(request, form.get("api_app_id"))?;
    let field = |name| form.get(name).filter(|text| !text.is_empty()).ok_or(Reject::Malformed("a field is missing"));
    let trigger = field("trigger_id")?;
    let mut event = InboundEvent::new(EventKind::Command, trigger, field("user_id")?, field("channel_id")?);
    event.message_id = Some(trigger.to_owned());
    event.reply_handle = form.get("response_url").map(Secret::new);
    event.command = Some(field("command")?.to_owned());
    event.text = form.get("text").unwrap_or_default().trim().to_owned();
    Decoded::event(event, Answer::ok())
}

fn action(body: &Value) -> Result<Decoded, Reject> {
    if value::text(body, "/type") != Some("block_actions") {
        return Decoded::ignore("an interaction of another kind");
    }
    let key = value::id(body, "/trigger_id").map_or_else(|| value::needed(body, "/actions/0/action_ts"), Ok)?;
    let (user, chat) = (value::needed(body, "/user/id")?, value::needed(body, "/channel/id")?);
    let mut event = InboundEvent::new(EventKind::Action, key, user, chat);
    event.message_id = value::id(body, "/message/ts");
    event.thread = value::id(body, "/message/thread_ts");
    event.reply_handle = value::id(body, "/response_url").map(Secret::new);
    let pressed = value::text(body, "/actions/0/value").or_else(|| value::text(body, "/actions/0/action_id"));
    event.text = pressed.unwrap_or_default().to_owned();
    Decoded::event(event, Answer::ok())
}

fn check_app(request: &Request<'_>, app: Option<&str>) -> Result<(), Reject> {
    match (request.account.app_id.as_deref(), app) {
        (Some(ours), Some(app)) if ours != app => Err(Reject::Unauthorized("an event of another app")),
        _ => Ok(()),
    }
}

/// What is read of a callback of the Events API.
#[derive(Deserialize)]
struct Callback<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Field<'a>,
    #[serde(borrow, default)]
    challenge: Field<'a>,
    #[serde(borrow, default)]
    api_app_id: Field<'a>,
    #[serde(borrow, default)]
    event_id: Field<'a>,
    #[serde(borrow, default)]
    authorizations: Option<Vec<Authorization<'a>>>,
    #[serde(borrow, default)]
    event: Option<Event<'a>>,
}

#[derive(Deserialize)]
struct Authorization<'a> {
    #[serde(borrow, default)]
    user_id: Field<'a>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Field<'a>,
    #[serde(borrow, default)]
    subtype: Field<'a>,
    #[serde(borrow, default)]
    bot_id: Field<'a>,
    #[serde(borrow, default)]
    user: Field<'a>,
    #[serde(borrow, default)]
    channel: Field<'a>,
    #[serde(borrow, default)]
    channel_type: Field<'a>,
    #[serde(borrow, default)]
    ts: Field<'a>,
    #[serde(borrow, default)]
    thread_ts: Field<'a>,
    #[serde(borrow, default)]
    text: Field<'a>,
    #[serde(borrow, default)]
    files: Option<Vec<File<'a>>>,
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, default)]
    mimetype: Field<'a>,
    #[serde(borrow, default)]
    url_private: Field<'a>,
    #[serde(borrow, default)]
    id: Field<'a>,
}

fn message(request: &Request<'_>, body: &Callback<'_>) -> Result<Decoded, Reject> {
    check_app(request, body.api_app_id.text())?;
    let Some(event) = &body.event else { return Decoded::ignore("an event of a kind that is not handled") };
    let installed = body.authorizations.as_ref().and_then(|all| all.first()).and_then(|first| first.user_id.text());
    let bot = request.account.bot_id.as_deref().or(installed);
    if event.bot_id.is_there() || (bot.is_some() && event.user.text() == bot) {
        return Decoded::ignore("written by a bot");
    }
    if event.subtype.text().is_some_and(|kind| kind != "file_share" && kind != "thread_broadcast") {
        return Decoded::ignore("a message of a kind that is not handled");
    }
    let text = event.text.text().unwrap_or_default();
    let mentioned = match (event.kind.text(), event.channel_type.text()) {
        (Some("app_mention"), _) | (Some("message"), Some("im")) => true,
        // Slack sends a mention in a channel as `app_mention` and again as `message`: only the first of them counts.
        (Some("message"), _) if bot.is_none_or(|bot| mentions(text, bot)) => {
            return Decoded::ignore("it comes as app_mention if it is for us");
        }
        (Some("message"), _) => false,
        _ => return Decoded::ignore("an event of a kind that is not handled"),
    };
    let (user, chat) = (event.user.needed()?, event.channel.needed()?);
    let mut found = InboundEvent::new(EventKind::Message, body.event_id.needed()?, user, chat);
    found.thread = event.thread_ts.id();
    found.message_id = event.ts.id();
    found.private = event.channel_type.text() == Some("im");
    found.mentioned = mentioned;
    found.text = without_mention(text, bot);
    let attachment = |file: &File<'_>| {
        let kind = file.mimetype.text().unwrap_or("file").to_owned();
        Some(Attachment { kind, reference: file.url_private.id().or_else(|| file.id.id())? })
    };
    found.attachments = event.files.iter().flatten().filter_map(attachment).collect();
    Decoded::event(found, Answer::ok())
}

/// Whether a text has `<@U...>` of this user.
fn mentions(text: &str, user: &str) -> bool {
    text.split("<@").skip(1).any(|rest| rest.strip_prefix(user).is_some_and(|rest| rest.starts_with(['>', '|'])))
}

/// Cuts `<@U...>` of us; when our id is not known, the mention that the text starts with.
fn without_mention(text: &str, bot: Option<&str>) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("<@") {
        let Some(length) = rest[start..].find('>') else { break };
        let inner = &rest[start + 2..start + length];
        let id = inner.split('|').next().unwrap_or_default();
        let ours = match bot {
            Some(bot) => id == bot,
            None => kept.trim().is_empty() && rest[..start].trim().is_empty(),
        };
        kept.push_str(&rest[..if ours { start } else { start + length + 1 }]);
        rest = &rest[start + length + 1..];
    }
    kept.push_str(rest);
    xml::unescape_html(kept.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::{Account, Ambient, ChannelKind, Incoming, NoKeys, read_verified};
    use crate::id::TenantId;

    fn read(event: Value) -> Decoded {
        let account = Account::new(ChannelKind::Slack, "a", TenantId(1));
        let incoming = Incoming { method: "POST", path: "", query: "", headers: &[], body: b"" };
        let ambient = Ambient { now_s: 0, keys: &NoKeys, entropy: [0; 16] };
        let body = json!({"type": "event_callback", "event_id": "Ev1", "authorizations": [{"user_id": "UBOT"}], "event": event});
        read_verified(&account, &incoming, &ambient, body.to_string().as_bytes()).expect("readable")
    }

    fn in_channel(kind: &str, text: &str) -> Value {
        json!({"type": kind, "channel_type": "channel", "channel": "C1", "user": "U1", "ts": "1.0", "text": text})
    }

    #[test]
    fn a_list_is_no_callback() {
        let account = Account::new(ChannelKind::Slack, "a", TenantId(1));
        let incoming = Incoming { method: "POST", path: "", query: "", headers: &[], body: b"" };
        let ambient = Ambient { now_s: 0, keys: &NoKeys, entropy: [0; 16] };
        let read = read_verified(&account, &incoming, &ambient, br#" ["event_callback"]"#);
        assert!(matches!(read, Err(Reject::Malformed(_))), "{read:?}");
    }

    #[test]
    fn what_is_said_in_a_channel_is_read_once_and_addresses_us_only_by_mention() {
        for (event, mentioned) in [
            (in_channel("app_mention", "<@UBOT> hello"), true),
            (in_channel("message", "hello everybody"), false),
            (in_channel("message", "<@UBOTHER> hello"), false),
        ] {
            let Decoded::Events { events, .. } = read(event) else { panic!("an event") };
            assert_eq!((events.len(), events[0].mentioned), (1, mentioned));
        }
        for text in ["<@UBOT> hello", "hello <@UBOT|bot>"] {
            let twin = read(in_channel("message", text));
            assert!(matches!(twin, Decoded::Ignore { .. }), "{text}: it comes as app_mention as well: {twin:?}");
        }
    }
}
