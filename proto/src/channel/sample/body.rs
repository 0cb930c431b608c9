//! The body of a message on each platform, as small as the platform's own documents allow.

use super::{Plain, Said, Scene, Unsignable, secret, word};
use crate::channel::{Account, ChannelKind, form};
use crate::digest;
use serde_json::{Value, json};

fn of_json(value: &Value) -> Plain {
    Plain { content_type: "application/json".to_owned(), body: value.to_string().into_bytes() }
}

fn of_form(fields: &[(&str, &str)]) -> Plain {
    Plain { content_type: "application/x-www-form-urlencoded".to_owned(), body: form::encode(fields).into_bytes() }
}

/// The XML of WeCom and WeChat. The text is written as CDATA, whose end it must not contain.
fn of_xml(said: &Said<'_>, now_s: u64) -> Plain {
    let text = said.text.replace("]]>", "]] >");
    let body = format!(
        "<xml><ToUserName><![CDATA[us]]></ToUserName><FromUserName><![CDATA[user-{}]]></FromUserName>\
         <CreateTime>{now_s}</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[{text}]]></Content>\
         <MsgId>{}</MsgId></xml>",
        said.user, said.number
    );
    Plain { content_type: "text/xml".to_owned(), body: body.into_bytes() }
}

pub(super) fn message(account: &Account, said: &Said<'_>, scene: &Scene<'_>) -> Result<Plain, Unsignable> {
    use ChannelKind as Kind;
    let (number, user, chat, text, now_s) = (said.number, said.user, said.chat, said.text, scene.now_s);
    let (person, place, id) = (format!("user-{user}"), format!("chat-{chat}"), format!("sample-{number}"));
    let app = account.app_id.as_deref();
    Ok(match account.kind {
        Kind::Slack => of_json(&json!({
            "type": "event_callback", "team_id": "T0SAMPLE", "api_app_id": app.unwrap_or("A0SAMPLE"),
            "event_id": format!("Ev{number}"), "event_time": now_s,
            "event": {"type": "message", "channel_type": "im", "channel": format!("D{chat}"), "user": format!("U{user}"),
                "text": text, "ts": format!("{now_s}.{:06}", number % 1_000_000)},
        })),
        Kind::Telegram => of_json(&json!({
            "update_id": number,
            "message": {"message_id": number, "date": now_s, "text": text, "chat": {"id": chat, "type": "private"},
                "from": {"id": user, "is_bot": false, "first_name": "Sample"}},
        })),
        Kind::WhatsApp => of_json(&json!({
            "object": "whatsapp_business_account",
            "entry": [{"id": "1", "changes": [{"field": "messages", "value": {
                "messaging_product": "whatsapp", "metadata": {"phone_number_id": app.unwrap_or("1")},
                "messages": [{"from": user.to_string(), "id": id, "timestamp": now_s.to_string(), "type": "text",
                    "text": {"body": text}}]}}]}],
        })),
        Kind::Messenger => of_json(&json!({
            "object": "page",
            "entry": [{"id": app.unwrap_or("1"), "time": now_s * 1_000, "messaging": [{
                "sender": {"id": user.to_string()}, "recipient": {"id": app.unwrap_or("1")}, "timestamp": now_s * 1_000,
                "message": {"mid": id, "text": text}}]}],
        })),
        Kind::Line => of_json(&json!({
            "destination": account.bot_id.as_deref().unwrap_or("Us"),
            "events": [{"type": "message", "mode": "active", "timestamp": now_s * 1_000, "webhookEventId": id,
                "source": {"type": "user", "userId": person}, "replyToken": format!("reply-{number}"),
                "deliveryContext": {"isRedelivery": false}, "message": {"id": number.to_string(), "type": "text", "text": text}}],
        })),
        Kind::TeamsOutgoing => of_json(&json!({
            "type": "message", "id": id, "text": text, "from": {"id": person, "name": "Sample"},
            "conversation": {"id": place}, "channelId": "msteams",
        })),
        Kind::Viber => of_json(&json!({
            "event": "message", "timestamp": now_s * 1_000, "message_token": number,
            "sender": {"id": person, "name": "Sample"}, "message": {"type": "text", "text": text},
        })),
        Kind::Twilio => of_form(&[
            ("MessageSid", &id),
            ("AccountSid", app.unwrap_or("AC0")),
            ("From", &format!("+1{user}")),
            ("To", account.sender.as_deref().unwrap_or("+10")),
            ("Body", text),
            ("NumMedia", "0"),
        ]),
        Kind::WeCom | Kind::WeChatMp => of_xml(said, now_s),
        Kind::WeComAibot => of_json(&json!({
            "msgid": id, "aibotid": "us", "chattype": "single", "from": {"userid": person}, "msgtype": "text",
            "text": {"content": text},
        })),
        Kind::DingTalk => of_json(&json!({
            "msgId": id, "msgtype": "text", "text": {"content": text}, "conversationId": place, "conversationType": "1",
            "senderStaffId": person, "senderId": person, "chatbotUserId": "us", "createAt": now_s * 1_000,
        })),
        Kind::DingTalkCallback => of_json(&json!({
            "EventType": "sample", "EventId": id, "CorpId": place, "OptStaffId": person, "text": text,
        })),
        Kind::Feishu => of_json(&json!({
            "schema": "2.0",
            "header": {"event_id": id, "event_type": "im.message.receive_v1", "create_time": (now_s * 1_000).to_string(),
                "token": account.verify_token.as_ref().and_then(|token| token.text()).unwrap_or_default(),
                "app_id": app.unwrap_or_default(), "tenant_key": "sample"},
            "event": {"sender": {"sender_id": {"open_id": person}, "sender_type": "user"},
                "message": {"message_id": format!("om_{number}"), "chat_id": place, "chat_type": "p2p", "message_type": "text",
                    "content": json!({"text": text}).to_string()}},
        })),
        Kind::QqBot => of_json(&json!({
            "op": 0, "id": id, "t": "C2C_MESSAGE_CREATE",
            "d": {"id": format!("m-{number}"), "author": {"user_openid": person}, "content": text},
        })),
        Kind::Mattermost => of_form(&[
            ("token", word(account)?),
            ("channel_id", &place),
            ("user_id", &person),
            ("post_id", &id),
            ("text", text),
        ]),
        Kind::Matrix => of_json(&json!({"events": [{
            "type": "m.room.message", "event_id": format!("${id}"), "room_id": format!("!{place}:sample"),
            "sender": format!("@{person}:sample"), "origin_server_ts": now_s * 1_000,
            "content": {"msgtype": "m.text", "body": text,
                "m.mentions": {"user_ids": [account.bot_id.as_deref().unwrap_or_default()]}},
        }]})),
        Kind::RocketChat => of_json(&json!({
            "token": word(account)?, "channel_id": place, "message_id": id, "user_id": person, "user_name": "sample",
            "text": text, "bot": false,
        })),
        Kind::Zulip => of_json(&json!({
            "token": word(account)?, "bot_email": app.unwrap_or_default(), "trigger": "direct_message", "data": text,
            "message": {"id": number, "sender_id": user, "sender_email": "sample@sample.invalid", "type": "private",
                "display_recipient": [{"id": chat}], "content": text, "timestamp": now_s},
        })),
        Kind::GitHub => of_json(&json!({
            "action": "opened", "repository": {"full_name": place}, "sender": {"login": person}, "issue": {"title": text},
        })),
        Kind::StandardWebhooks => of_json(&json!({
            "type": "message", "conversation": place, "user": person, "text": text, "message_id": id,
        })),
        Kind::EmailMailgun => {
            let (time, token) = (now_s.to_string(), digest::hex(&digest::sha256(id.as_bytes()))[..50].to_owned());
            let signature = digest::hex(&digest::hmac_sha256(secret(account)?, &[time.as_bytes(), token.as_bytes()]));
            of_form(&[
                ("timestamp", &time),
                ("token", &token),
                ("signature", &signature),
                ("sender", &format!("{person}@sample.invalid")),
                ("recipient", account.sender.as_deref().unwrap_or("us@sample.invalid")),
                ("subject", "Sample"),
                ("Message-Id", &format!("<{id}@sample.invalid>")),
                ("stripped-text", text),
                ("X-Mailgun-Spf", "Pass"),
            ])
        }
        Kind::Discord | Kind::Teams | Kind::GoogleChat | Kind::EmailSendGrid | Kind::EmailSns => {
            return Err(Unsignable::PlatformOnly(account.kind.spec().title));
        }
    })
}
