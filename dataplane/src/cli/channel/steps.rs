//! What to do in the console of each platform, in its own words.

use millrace_proto::channel::ChannelKind;
use zeroize::Zeroizing;

/// The steps. `{url}` is the webhook's address, `{key}` a secret that we made up.
fn steps(kind: ChannelKind) -> &'static [&'static str] {
    use ChannelKind as Kind;
    match kind {
        Kind::Slack => &[
            "https://api.slack.com/apps, your app, Event Subscriptions: switch on, Request URL {url}",
            "Subscribe to bot events: message.im, app_mention; Save Changes",
            "OAuth & Permissions: scopes chat:write, im:history, app_mentions:read; install the app again",
            "For buttons: Interactivity & Shortcuts, Request URL {url}; for commands: Slash Commands, the same URL",
        ],
        Kind::Discord => &[
            "https://discord.com/developers/applications, your application, General Information: Interactions Endpoint URL {url}",
            "Bot: copy the token; OAuth2: invite it with the scopes bot and applications.commands",
        ],
        Kind::Telegram => &[
            "Run once: curl https://api.telegram.org/bot<TOKEN>/setWebhook -d url={url} -d secret_token={secrets}",
            "In groups: @BotFather, /setprivacy, Disable, if the bot shall see more than its mentions",
        ],
        Kind::WhatsApp => &[
            "https://developers.facebook.com, your app, WhatsApp, Configuration: Callback URL {url}, Verify token {verify_token}",
            "Webhook fields: subscribe to messages",
        ],
        Kind::Messenger => &[
            "https://developers.facebook.com, your app, Messenger, Settings: Callback URL {url}, Verify token {verify_token}",
            "Subscribe the page to messages and messaging_postbacks",
        ],
        Kind::Line => &[
            "https://developers.line.biz/console, your channel, Messaging API: Webhook URL {url}, Verify, Use webhook on",
            "Webhook redelivery: on, so that nothing is lost while this server restarts",
        ],
        Kind::Teams => &[
            "https://portal.azure.com, your Azure Bot, Configuration: Messaging endpoint {url}",
            "Channels: add Microsoft Teams",
        ],
        Kind::TeamsOutgoing => &[
            "Teams, Manage team, Apps, Create an outgoing webhook: Callback URL {url}; it shows the security token once",
            "Channel, Workflows: `Post to a channel when a webhook request is received`; its address is reply_url",
        ],
        Kind::GoogleChat => &[
            "https://console.cloud.google.com, Google Chat API, Configuration: HTTP endpoint URL {url}",
            "Authentication audience: project number, or the endpoint URL with `mode`",
        ],
        Kind::Viber => &[
            "Run once: curl https://chatapi.viber.com/pa/set_webhook -H 'X-Viber-Auth-Token: <TOKEN>' -d '{\"url\":\"{url}\"}'",
        ],
        Kind::Twilio => &[
            "https://console.twilio.com, your number (or WhatsApp sender): A message comes in, Webhook {url}, HTTP POST",
        ],
        Kind::WeCom => &[
            "https://work.weixin.qq.com, the application, 接收消息 (API): URL {url}, Token {secrets}, EncodingAESKey {encryption_keys}",
            "The server must run with this account before you save: WeCom calls the URL at once",
        ],
        Kind::WeComAibot => &[
            "https://work.weixin.qq.com, 智能机器人, API 模式: URL {url}, Token {secrets}, EncodingAESKey {encryption_keys}",
            "The server must run with this account before you save: WeCom calls the URL at once",
        ],
        Kind::WeChatMp => &[
            "https://mp.weixin.qq.com, 基本配置, 服务器配置: URL {url}, Token {secrets}; 安全模式 with the EncodingAESKey given here",
            "The server must run with this account before you save: WeChat calls the URL at once",
        ],
        Kind::DingTalk => &["https://open-dev.dingtalk.com, your app, 机器人: HTTP mode, 消息接收地址 {url}"],
        Kind::DingTalkCallback => &[
            "https://open-dev.dingtalk.com, your app, 事件订阅: HTTP push, 请求网址 {url}, with the aes_key and Token shown there",
        ],
        Kind::Feishu => &[
            "https://open.feishu.cn/app, your app, 事件与回调: request address {url}; the Encrypt Key must be set",
            "Events: im.message.receive_v1; callbacks: card.action.trigger; then publish a version",
        ],
        Kind::QqBot => &[
            "https://q.qq.com, your bot, 回调配置: 请求地址 {url}; events C2C_MESSAGE_CREATE and GROUP_AT_MESSAGE_CREATE",
        ],
        Kind::Mattermost => &[
            "Integrations, Outgoing Webhooks (or Slash Commands): callback URL {url}, content type application/json",
            "Integrations, Bot Accounts: a bot with post:all; its token is bot_token",
        ],
        Kind::Matrix => &[
            "Write a registration file for the home server: url: {url}, as_token: {bot_token}, hs_token: {secrets}, sender_localpart and a namespace with your bot",
            "Name it in app_service_config_files of the home server and restart that",
        ],
        Kind::RocketChat => {
            &["Administration, Integrations, New, Outgoing: event Message Sent, URL {url}; its token is `secrets`"]
        }
        Kind::Zulip => &["Settings, Bots, Add a new bot, Outgoing webhook: endpoint URL {url}, interface Generic"],
        Kind::GitHub => &[
            "Repository or organisation, Settings, Webhooks, Add webhook: Payload URL {url}, application/json, Secret {secrets}",
        ],
        Kind::StandardWebhooks => &[
            "Tell the sender: POST signed JSON to {url}; the shared secret is {secrets}",
            "The same secret signs the answers that arrive at reply_url",
        ],
        Kind::EmailSendGrid => &[
            "Settings, Inbound Parse: host and URL {url}; attach a security policy with signature and copy its public key",
            "MX record of the host: mx.sendgrid.net",
        ],
        Kind::EmailMailgun => &["Receiving, Create route: match the recipient, action forward(\"{url}\")"],
        Kind::EmailSns => &[
            "SES, Email receiving, a rule with the action `Publish to Amazon SNS topic` (topics names its ARN)",
            "SNS, the topic, Create subscription: HTTPS, endpoint {url}; this server confirms it by itself",
        ],
    }
}

/// The callback address and the numbered steps, with the secrets that the platform has to be told.
pub(super) fn text(kind: ChannelKind, url: &str, made: &[(&'static str, Zeroizing<String>)]) -> String {
    let mut out = format!("\nCallback URL: {url}\n\n");
    for (index, step) in steps(kind).iter().enumerate() {
        let mut step = step.replace("{url}", url);
        for key in ["secrets", "verify_token", "encryption_keys", "bot_token"] {
            let value = made.iter().find(|(known, _)| *known == key).map(|(_, value)| value.as_str());
            step = step.replace(&format!("{{{key}}}"), value.unwrap_or("<the value that you gave>"));
        }
        out.push_str(&format!("{}. {step}\n", index + 1));
    }
    if !made.is_empty() {
        out.push_str("\nThe secrets above were made for you. This is the only time that they are shown.\n");
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::channel::Origin;

    #[test]
    fn every_platform_is_told_the_address_and_every_secret_that_we_make() {
        for kind in ChannelKind::ALL {
            let ours = kind.spec().needs.iter().filter(|need| need.origin == Origin::Ours);
            let made: Vec<_> = ours.map(|need| (need.key, Zeroizing::new(format!("<<{}>>", need.key)))).collect();
            let text = text(*kind, "https://bot.example/hooks/x/y", &made);
            assert!(
                text.contains("1. ") && text.matches("https://bot.example/hooks/x/y").count() >= 2,
                "{kind}: {text}"
            );
            for (key, value) in &made {
                assert!(text.contains(value.as_str()), "{kind} is not told {key}: {text}");
            }
            assert!(!text.contains("{secrets}") && !text.contains("{url}"), "{kind}: {text}");
        }
    }
}
