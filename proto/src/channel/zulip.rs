//! Zulip outgoing webhook: a token and the bot's address in the JSON body, which nothing covers.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need};
use super::{
    Answer, Decoded, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform, Reject, proof, value,
};
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("secrets", "token of the outgoing webhook bot"),
    need("app_id", "the bot's mail address"),
    need("bot_token", "API key of the bot"),
    need("api_base", "address of the Zulip server"),
];
static SPEC: Spec = Spec {
    id: "zulip",
    title: "Zulip",
    needs: NEEDS,
    covers_body: false,
    text_max: (Unit::Chars, 10_000),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Edits { pause_ms: 1_000 },
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let body = value::parse_object(request.incoming.body)?;
        let bot = request.account.app_id.as_deref().filter(|mail| !mail.is_empty());
        let bot = bot.ok_or(Reject::Misconfigured("no app_id"))?;
        proof::shared_word(request.account, value::text(&body, "/token").unwrap_or_default().as_bytes())?;
        if value::text(&body, "/bot_email") != Some(bot) {
            return Err(Reject::Unauthorized("a message for another bot"));
        }
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let silent = Answer::json(&json!({"response_not_required": true}));
        let body = value::parse_object(plain)?;
        if value::id(&body, "/message/sender_email") == request.account.app_id {
            return Ok(Decoded::Ignore { why: "written by us", ack: silent });
        }
        let (key, user) = (value::needed(&body, "/message/id")?, value::needed(&body, "/message/sender_id")?);
        let chat = match value::id(&body, "/message/stream_id") {
            Some(stream) => format!("stream:{stream}"),
            None => {
                let people = value::list(&body, "/message/display_recipient");
                let mut ids: Vec<String> = people.iter().filter_map(|one| value::id(one, "/id")).collect();
                ids.sort();
                format!("dm:{}", if ids.is_empty() { user.clone() } else { ids.join(",") })
            }
        };
        let mut event = InboundEvent::new(EventKind::Message, key.clone(), user, chat);
        event.message_id = Some(key);
        // The bot and one person.
        event.private = event.chat.starts_with("dm:") && value::list(&body, "/message/display_recipient").len() <= 2;
        event.thread = value::id(&body, "/message/subject").filter(|_| event.chat.starts_with("stream:"));
        let text = value::text(&body, "/message/content").or_else(|| value::text(&body, "/data")).unwrap_or_default();
        event.text = without_mention(text, value::text(&body, "/bot_full_name"));
        Decoded::event(event, silent)
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let base = out.account.api_base.as_deref().ok_or_else(|| out.missing("no api_base is configured"))?;
        let text = out.text_with_choices();
        let (kind, to) = match out.address.chat.split_once(':') {
            Some(("stream", id)) => ("stream", id.to_owned()),
            Some((_, ids)) => ("direct", format!("[{ids}]")),
            None => return Err(out.missing("the chat is neither a stream nor direct")),
        };
        let topic = out.address.thread.as_deref().unwrap_or("chat");
        let fields = [("type", kind), ("to", to.as_str()), ("topic", topic), ("content", text.as_str())];
        let call = OutboundCall::form("POST", format!("{}/api/v1/messages", base.trim_end_matches('/')), &fields);
        Ok(call.basic(out.app_id()?, out.bot_token()?))
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let url = format!("{}/api/v1/messages/{}", out.account.api(""), super::form::percent_encode(message_id));
        let call = |id: &str| {
            Ok(OutboundCall::form("PATCH", url, &[("content", out.text)]).basic(id, out.bot_token()?).repeatable())
        };
        Some(out.app_id().and_then(call))
    }

    fn classify(&self, answered: &super::Answered<'_>) -> super::Delivery {
        let body = answered.json();
        answered.by_status(value::id(&body, "/id"), value::text(&body, "/msg").unwrap_or_default())
    }
}

/// Cuts `@**Name**` and `@**Name|id**` of us.
fn without_mention(text: &str, name: Option<&str>) -> String {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return text.trim().to_owned() };
    let start = format!("@**{name}");
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(&start) {
        let after = &rest[at + start.len()..];
        let Some(end) = after.find("**") else { break };
        let tail = &after[..end];
        if tail.is_empty() || tail.starts_with('|') {
            kept.push_str(&rest[..at]);
        } else {
            kept.push_str(&rest[..at + start.len() + end + 2]);
        }
        rest = &after[end + 2..];
    }
    kept.push_str(rest);
    kept.trim().to_owned()
}
