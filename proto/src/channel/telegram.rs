//! Telegram Bot API: updates in by webhook, `sendMessage` out.
//!
//! Telegram does not sign: the request carries the `secret_token` that was given to `setWebhook`. The body is
//! therefore as trustworthy as the token and TLS.

use super::{Account, Decoded, Delivery, EncodeError, EventKind, InboundEvent, Incoming, OutboundCall, Reject};
use crate::digest;
use crate::limits::{CHANNEL_TEXT_BYTES_MAX, RETRY_DELAY_S_MAX, WEBHOOK_BODY_BYTES_MAX};
use crate::record::OutboxJob;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::Duration;

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

pub(super) fn decode(account: &Account, incoming: &Incoming<'_>) -> Result<Decoded, Reject> {
    if incoming.body.len() > WEBHOOK_BODY_BYTES_MAX {
        return Err(Reject::TooLarge("webhook body"));
    }
    let token = incoming.single("x-telegram-bot-api-secret-token")?.unwrap_or_default();
    verify(account, token)?;
    let update: Update = std::str::from_utf8(incoming.body)
        .ok()
        .and_then(|text| serde_json::from_str(text).ok())
        .ok_or(Reject::Malformed("body is not a Telegram update"))?;
    let event_key = update.update_id.to_string();
    match update {
        Update { message: Some(message), .. } => message_event(account, event_key, message, EventKind::Message),
        Update { edited_message: Some(message), .. } => message_event(account, event_key, message, EventKind::Edited),
        Update { channel_post: Some(message), .. } => message_event(account, event_key, message, EventKind::Message),
        Update { callback_query: Some(query), .. } => callback_event(event_key, query),
        _ => Ok(Decoded::Ignore { why: "update of a kind that is not handled" }),
    }
}

fn verify(account: &Account, token: &[u8]) -> Result<(), Reject> {
    let mut configured = false;
    let mut valid = false;
    for secret in account.secrets.iter().filter(|secret| !secret.bytes().is_empty()) {
        configured = true;
        valid |= digest::constant_time_eq(secret.bytes(), token);
    }
    match (configured, valid) {
        (false, _) => Err(Reject::Misconfigured("no secret_token")),
        (true, false) => Err(Reject::Unauthorized("secret token")),
        (true, true) => Ok(()),
    }
}

fn message_event(account: &Account, event_key: String, message: Message, kind: EventKind) -> Result<Decoded, Reject> {
    if message.from.as_ref().is_some_and(|from| from.is_bot) {
        return Ok(Decoded::Ignore { why: "written by a bot" });
    }
    let (text, entities) = match (&message.text, &message.caption) {
        (Some(text), _) => (text, &message.entities),
        (None, Some(caption)) => (caption, &message.caption_entities),
        (None, None) => return Ok(Decoded::Ignore { why: "no text" }),
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
    if !mentioned {
        return Ok(Decoded::Ignore { why: "not addressed to us" });
    }
    if text.is_empty() {
        return Ok(Decoded::Ignore { why: "no text" });
    }
    Ok(Decoded::Event(InboundEvent {
        event_key,
        user: message.from.map_or(message.chat.id, |from| from.id).to_string(),
        chat: message.chat.id.to_string(),
        thread: thread(message.message_thread_id, message.is_topic_message),
        message_id: Some(message.message_id.to_string()),
        text,
        kind,
        mentioned,
    }))
}

fn callback_event(event_key: String, query: CallbackQuery) -> Result<Decoded, Reject> {
    let (Some(message), Some(data)) = (query.message, query.data) else {
        return Ok(Decoded::Ignore { why: "button without message or data" });
    };
    Ok(Decoded::Event(InboundEvent {
        event_key,
        user: query.from.id.to_string(),
        chat: message.chat.id.to_string(),
        thread: thread(message.message_thread_id, message.is_topic_message),
        message_id: Some(message.message_id.to_string()),
        text: data,
        kind: EventKind::Action,
        mentioned: true,
    }))
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
        let Some((start, end)) = byte_range(text, entity.offset, entity.length) else { continue };
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

/// The bytes of a range of UTF-16 units; `None` when it does not lie on characters of the text.
fn byte_range(text: &str, offset: usize, length: usize) -> Option<(usize, usize)> {
    let end = offset.checked_add(length)?;
    let mut units = 0;
    let mut start_byte = None;
    for (byte, unit_length) in text.char_indices().map(|(at, c)| (at, c.len_utf16())).chain([(text.len(), 1)]) {
        if units == offset {
            start_byte = Some(byte);
        }
        if units == end {
            return start_byte.map(|start| (start, byte));
        }
        units += unit_length;
    }
    None
}

pub(super) fn encode_reply(account: &Account, job: &OutboxJob) -> Result<OutboundCall, EncodeError> {
    let missing = |missing| EncodeError { channel: account.kind, account: account.name.clone(), missing };
    let token = account
        .bot_token
        .as_ref()
        .and_then(|token| token.text())
        .ok_or_else(|| missing("no bot_token is configured"))?;
    let base = account.api_base.as_deref().unwrap_or(API_BASE).trim_end_matches('/');
    let mut body = json!({"chat_id": id_value(&job.address.chat), "text": job.text});
    if let Some(thread) = &job.address.thread {
        body["message_thread_id"] = id_value(thread);
    }
    if let Some(message) = &job.address.reply_to {
        body["reply_parameters"] = json!({"message_id": id_value(message), "allow_sending_without_reply": true});
    }
    Ok(OutboundCall {
        method: "POST",
        url: format!("{base}/bot{token}/sendMessage"),
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: body.to_string().into_bytes(),
        // Telegram has no key for repetitions: a lost answer leaves the delivery unknown.
        idempotent: false,
    })
}

/// Numeric ids go out as numbers, channel names such as `@news` as text.
fn id_value(id: &str) -> Value {
    id.parse::<i64>().map_or_else(|_| Value::from(id), Value::from)
}

pub(super) fn classify(status: u16, body: &[u8]) -> Delivery {
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
        _ => match answer["parameters"]["migrate_to_chat_id"].as_i64() {
            Some(chat) => Delivery::Dead { why: format!("the group moved to chat {chat}") },
            None => Delivery::Dead { why: format!("Telegram refused it with {status}: {said}") },
        },
    }
}
