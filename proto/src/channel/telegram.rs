//! Telegram Bot API: updates in by webhook, `sendMessage` out.
//!
//! Telegram does not sign: the request carries the `secret_token` that was given to `setWebhook`. The body is
//! therefore as trustworthy as the token and TLS.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::{Account, Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall};
use super::{Outgoing, Platform, Reject, proof, value};
use crate::limits::{CHANNEL_TEXT_BYTES_MAX, RETRY_DELAY_S_MAX};
use crate::split::Unit;
use serde::Deserialize;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::time::Duration;

const NEEDS: &[Need] = &[
    need("secrets", "the secret_token that you give to setWebhook").ours(),
    need("bot_token", "bot token of @BotFather"),
    option("bot_username", "the bot's name without @, to recognise mentions in groups"),
];
static SPEC: Spec = Spec {
    id: "telegram",
    title: "Telegram",
    needs: NEEDS,
    covers_body: false,
    text_max: (Unit::Utf16, 4_096),
    body_bytes_max: kind::BODY_1_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Edits { pause_ms: 1_000 },
};
const API_BASE: &str = "https://api.telegram.org";

#[derive(Deserialize)]
struct Update {
    update_id: i64,
    message: Option<Message>,
    edited_message: Option<Message>,
    channel_post: Option<Message>,
    callback_query: Option<CallbackQuery>,
}

#[derive(Deserialize)]
struct Message {
    message_id: i64,
    message_thread_id: Option<i64>,
    #[serde(default)]
    is_topic_message: bool,
    from: Option<User>,
    chat: Chat,
    text: Option<String>,
    caption: Option<String>,
    #[serde(default)]
    entities: Vec<Entity>,
    #[serde(default)]
    caption_entities: Vec<Entity>,
    reply_to_message: Option<RepliedTo>,
}

#[derive(Deserialize)]
struct RepliedTo {
    from: Option<User>,
}

#[derive(Deserialize)]
struct User {
    id: i64,
    #[serde(default)]
    is_bot: bool,
    username: Option<String>,
}

#[derive(Deserialize)]
struct Chat {
    id: i64,
    #[serde(rename = "type", default)]
    kind: String,
}

/// A marked range of the text, in UTF-16 code units.
#[derive(Deserialize)]
struct Entity {
    #[serde(rename = "type")]
    kind: String,
    offset: usize,
    length: usize,
    user: Option<User>,
}

#[derive(Deserialize)]
struct CallbackQuery {
    from: User,
    message: Option<CallbackMessage>,
    data: Option<String>,
}

#[derive(Deserialize)]
struct CallbackMessage {
    message_id: i64,
    message_thread_id: Option<i64>,
    #[serde(default)]
    is_topic_message: bool,
    chat: Chat,
}

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let token = request.incoming.needed("x-telegram-bot-api-secret-token")?;
        proof::shared_word(request.account, token)?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let update: Update =
            serde_json::from_slice(plain).map_err(|_| Reject::Malformed("body is not a Telegram update"))?;
        let (account, key) = (request.account, update.update_id.to_string());
        match update {
            Update { message: Some(message), .. } => message_event(account, key, message, EventKind::Message),
            Update { edited_message: Some(message), .. } => message_event(account, key, message, EventKind::Edited),
            Update { channel_post: Some(message), .. } => message_event(account, key, message, EventKind::Message),
            Update { callback_query: Some(query), .. } => callback_event(key, query),
            _ => Decoded::ignore("update of a kind that is not handled"),
        }
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let mut body = json!({"chat_id": id_value(&out.address.chat), "text": out.text});
        if let Some(thread) = &out.address.thread {
            body["message_thread_id"] = id_value(thread);
        }
        if let Some(message) = out.handle() {
            body["reply_parameters"] = json!({"message_id": id_value(message), "allow_sending_without_reply": true});
        }
        if !out.buttons.is_empty() {
            // Buttons carry at most 64 bytes; a longer value could not be told from another.
            let short = out.buttons.iter().filter(|button| button.value.len() <= 64);
            let row = |button: &super::Button| json!([{"text": button.label, "callback_data": button.value}]);
            body["reply_markup"] = json!({"inline_keyboard": short.map(row).collect::<Vec<_>>()});
        }
        // Telegram has no key for repetitions: a lost answer leaves the delivery unknown.
        call(out, "sendMessage", &body)
    }

    fn edit(&self, out: &Outgoing<'_>, message_id: &str) -> Option<Result<OutboundCall, EncodeError>> {
        let body =
            json!({"chat_id": id_value(&out.address.chat), "message_id": id_value(message_id), "text": out.text});
        Some(call(out, "editMessageText", &body).map(OutboundCall::repeatable))
    }

    fn typing(&self, out: &Outgoing<'_>) -> Option<Result<OutboundCall, EncodeError>> {
        let body = json!({"chat_id": id_value(&out.address.chat), "action": "typing"});
        Some(call(out, "sendChatAction", &body).map(OutboundCall::repeatable))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        classify(answered.status, answered.body)
    }
}

fn call(out: &Outgoing<'_>, method: &str, body: &Value) -> Result<OutboundCall, EncodeError> {
    let url = format!("{}/bot{}/{method}", out.account.api(API_BASE), out.bot_token()?);
    Ok(OutboundCall::json("POST", url, body))
}

fn message_event(account: &Account, event_key: String, message: Message, kind: EventKind) -> Result<Decoded, Reject> {
    if message.from.as_ref().is_some_and(|from| from.is_bot) {
        return Decoded::ignore("written by a bot");
    }
    let (text, entities) = match (&message.text, &message.caption) {
        (Some(text), _) => (text, &message.entities),
        (None, Some(caption)) => (caption, &message.caption_entities),
        (None, None) => return Decoded::ignore("no text"),
    };
    if text.len() > CHANNEL_TEXT_BYTES_MAX {
        return Err(Reject::TooLarge("text"));
    }
    let (text, addressed) = without_mentions(text, entities, account.bot_username.as_deref());
    let reply_to_us = message
        .reply_to_message
        .as_ref()
        .and_then(|replied| replied.from.as_ref())
        .is_some_and(|from| from.is_bot && is_us(from.username.as_deref(), account.bot_username.as_deref()));
    let private = message.chat.kind == "private";
    // Without our own name we cannot recognise a mention; Telegram's privacy mode then decides what we get.
    let mentioned = private || addressed || reply_to_us || account.bot_username.is_none();
    if text.is_empty() {
        return Decoded::ignore("no text");
    }
    let user = message.from.map_or(message.chat.id, |from| from.id).to_string();
    let mut event = InboundEvent::new(kind, event_key, user, message.chat.id.to_string());
    event.thread = thread(message.message_thread_id, message.is_topic_message);
    event.message_id = Some(message.message_id.to_string());
    event.text = text;
    (event.mentioned, event.private) = (mentioned, private);
    Decoded::event(event, Answer::ok())
}

fn callback_event(event_key: String, query: CallbackQuery) -> Result<Decoded, Reject> {
    let (Some(message), Some(data)) = (query.message, query.data) else {
        return Decoded::ignore("button without message or data");
    };
    let mut event =
        InboundEvent::new(EventKind::Action, event_key, query.from.id.to_string(), message.chat.id.to_string());
    event.thread = thread(message.message_thread_id, message.is_topic_message);
    event.message_id = Some(message.message_id.to_string());
    event.text = data;
    Decoded::event(event, Answer::ok())
}

/// Only topics of a forum are threads that can be answered into; other thread ids are reply chains.
fn thread(id: Option<i64>, is_topic: bool) -> Option<String> {
    id.filter(|_| is_topic).map(|id| id.to_string())
}

fn is_us(name: Option<&str>, bot_username: Option<&str>) -> bool {
    match (name, bot_username) {
        (Some(name), Some(ours)) => name.eq_ignore_ascii_case(ours.trim_start_matches('@')),
        _ => false,
    }
}

/// Takes mentions of us out of the text and says whether there was one. Entities count UTF-16 units.
fn without_mentions(text: &str, entities: &[Entity], bot_username: Option<&str>) -> (String, bool) {
    let mut addressed = false;
    let mut cuts: Vec<(usize, usize)> = Vec::new();
    for entity in entities {
        let Some((start, end)) = value::utf16_range(text, entity.offset, entity.length) else { continue };
        let marked = &text[start..end];
        match entity.kind.as_str() {
            "mention" if is_us(marked.strip_prefix('@'), bot_username) => {
                addressed = true;
                cuts.push((start, end));
            }
            "text_mention"
                if entity.user.as_ref().is_some_and(|user| is_us(user.username.as_deref(), bot_username)) =>
            {
                addressed = true;
                cuts.push((start, end));
            }
            "bot_command" => match marked.find('@') {
                None => addressed = true,
                Some(at) if is_us(Some(&marked[at + 1..]), bot_username) => {
                    addressed = true;
                    cuts.push((start + at, end));
                }
                Some(_) => {}
            },
            _ => {}
        }
    }
    cuts.sort_unstable();
    let mut kept = String::with_capacity(text.len());
    let mut from = 0;
    for (start, end) in cuts {
        if start >= from {
            kept.push_str(&text[from..start]);
            from = end;
        }
    }
    kept.push_str(&text[from..]);
    (kept.trim().to_owned(), addressed)
}

/// Numeric ids go out as numbers, channel names such as `@news` as text.
fn id_value(id: &str) -> Value {
    id.parse::<i64>().map_or_else(|_| Value::from(id), Value::from)
}

fn classify(status: u16, body: &[u8]) -> Delivery {
    let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let ok = answer["ok"].as_bool();
    let said = answer["description"].as_str().unwrap_or("no description").chars().take(200).collect::<String>();
    match (status, ok) {
        (200..=299, Some(true)) => {
            Delivery::Delivered { receipt: answer["result"]["message_id"].as_i64().map(|id| id.to_string()) }
        }
        (429, _) => {
            let seconds = answer["parameters"]["retry_after"].as_u64().map(|s| s.min(RETRY_DELAY_S_MAX));
            Delivery::Retry { after: seconds.map(Duration::from_secs), why: format!("Telegram answered 429: {said}") }
        }
        // Telegram itself says that it did not send; a proxy in between cannot know.
        (500.., Some(false)) => Delivery::Retry { after: None, why: format!("Telegram answered {status}: {said}") },
        (200..=299 | 500.., _) => {
            Delivery::Unknown { why: format!("answer {status} does not say whether the message was sent") }
        }
        // An edit that changes nothing: the message says already what it should say.
        (400, _) if said.contains("message is not modified") => Delivery::Delivered { receipt: None },
        _ => match answer["parameters"]["migrate_to_chat_id"].as_i64() {
            Some(chat) => Delivery::Dead { why: format!("the group moved to chat {chat}") },
            None => Delivery::Dead { why: format!("Telegram refused it with {status}: {said}") },
        },
    }
}
