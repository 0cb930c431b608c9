//! WeCom smart robot: signed and encrypted JSON in. The reply is fetched: the answer to a message names a stream,
//! and WeCom asks for its text about once a second, for at most six minutes, until it is told that the text is
//! whole. Where it has not asked, the reply goes to the `response_url` of the message, which takes one.

use super::envelope::Proof;
use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::proof::Clock;
use super::{
    Account, Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing,
    Platform, Reject, Secret, StreamPart, envelope, value,
};
use crate::digest;
use crate::record::ChatAddress;
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
        let response_url = value::id(&body, "/response_url");
        let streams = event_kind == EventKind::Message && request.account.stream;
        if streams {
            event.stream = Some(stream_id(&request.account.name, &event.event_key));
        }
        event.reply_handle =
            handle(event.stream.as_deref().filter(|_| streams), response_url.as_deref()).map(Secret::new);
        let text = value::text(&body, "/text/content").or_else(|| value::text(&body, "/voice/content"));
        event.text = without_name(text.unwrap_or_default(), request.account.bot_username.as_deref());
        if let Some(url) = value::id(&body, &format!("/{message_type}/url")) {
            event.attachments.push(super::Attachment { kind: message_type.to_owned(), reference: url });
        }
        let ack = match event.stream.as_deref().filter(|_| streams) {
            None => Answer::ok(),
            Some(id) => {
                let begun = StreamPart { id, text: "", finished: false };
                sealed(request.account, &begun, request.ambient.now_s, request.ambient.entropy)?
            }
        };
        Decoded::event(event, ack)
    }

    fn stream_of<'a>(&self, address: &'a ChatAddress) -> Option<&'a str> {
        parts(address.reply_to.as_deref()?).0
    }

    fn stream_part(
        &self,
        account: &Account,
        part: &StreamPart<'_>,
        now_s: u64,
        entropy: [u8; 16],
    ) -> Option<Result<Answer, Reject>> {
        Some(sealed(account, part, now_s, entropy))
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let ours = |url: &&str| super::keys::host(url) == Some(HOST) || out.account.owns(url);
        let url = out.handle().and_then(|handle| parts(handle).1).filter(ours);
        let url = url.ok_or_else(|| out.missing("the message had no response_url of WeCom"))?;
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

/// The same for every delivery of a message, and not to be guessed from outside the chat.
fn stream_id(account: &str, message: &str) -> String {
    let name = format!("wecom_aibot stream:{}:{account}:{message}", account.len());
    digest::hex(&digest::sha256(name.as_bytes())[..16])
}

/// What a reply needs: `stream`, `url`, or both with a space between. Neither holds one.
fn handle(stream: Option<&str>, url: Option<&str>) -> Option<String> {
    match (stream, url) {
        (Some(stream), url) => Some(format!("{stream} {}", url.unwrap_or_default())),
        (None, url) => url.map(str::to_owned),
    }
}

/// The stream and the address of a handle.
fn parts(handle: &str) -> (Option<&str>, Option<&str>) {
    match handle.split_once(' ') {
        Some((stream, url)) => (Some(stream), Some(url).filter(|url| !url.is_empty())),
        None => (None, Some(handle)),
    }
}

fn sealed(account: &Account, part: &StreamPart<'_>, now_s: u64, entropy: [u8; 16]) -> Result<Answer, Reject> {
    let stream = json!({"id": part.id, "finish": part.finished, "content": part.text});
    let message = json!({"msgtype": "stream", "stream": stream}).to_string();
    let receiver = account.app_id.as_deref().unwrap_or_default();
    let sealed = envelope::seal(account, now_s, entropy, message.as_bytes(), receiver, Clock::Seconds)?;
    let timestamp: u64 = sealed.timestamp.parse().unwrap_or(now_s);
    Ok(Answer::json(&json!({
        "encrypt": sealed.envelope, "msgsignature": sealed.signature, "timestamp": timestamp, "nonce": sealed.nonce,
    })))
}

/// Cuts `@Name` at the start of the text.
pub(super) fn without_name(text: &str, name: Option<&str>) -> String {
    let text = text.trim();
    let rest = name.and_then(|name| text.strip_prefix('@')?.strip_prefix(name.trim_start_matches('@')));
    rest.unwrap_or(text).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_holds_a_stream_an_address_or_both() {
        for (stream, url) in [(Some("ab"), Some("https://x/?a=b")), (Some("ab"), None), (None, Some("https://x/"))] {
            let handle = handle(stream, url).expect("one of them is there");
            assert_eq!(parts(&handle), (stream, url));
        }
        assert_eq!(handle(None, None), None);
    }

    #[test]
    fn every_message_of_every_account_has_a_stream_of_its_own() {
        assert_eq!(stream_id("a", "m1"), stream_id("a", "m1"));
        assert_ne!(stream_id("a", "m1"), stream_id("a", "m2"));
        assert_ne!(stream_id("a", "1:m"), stream_id("a:1", "m"));
    }
}
