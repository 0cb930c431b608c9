//! The platforms by name, and what each of them demands, as data.

use super::Platform;
use crate::split::Unit;
use std::fmt;

/// What one account setting is for on a platform.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// The key of the `[[channel]]` table.
    pub key: &'static str,
    /// What it is, in the words of the platform's console.
    pub what: &'static str,
    /// Whether the server refuses to start without it.
    pub required: bool,
    /// Who makes it up.
    pub origin: Origin,
}

/// Where the value of a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The platform shows it.
    Platform,
    /// We choose it and tell the platform.
    Ours,
    /// It is the value of another setting once more.
    Same(&'static str),
}

impl Need {
    /// We choose this value and tell the platform.
    pub(super) const fn ours(self) -> Self {
        Self { origin: Origin::Ours, ..self }
    }

    /// The value of `key` once more.
    pub(super) const fn same_as(self, key: &'static str) -> Self {
        Self { origin: Origin::Same(key), ..self }
    }

    /// Whether the value must not be shown or written in clear. Addresses of incoming webhooks are such values: who knows
    /// one may write there.
    pub fn is_secret(&self) -> bool {
        matches!(self.key, "secrets" | "encryption_keys" | "verify_token" | "bot_token" | "app_secret" | "reply_url")
    }
}

/// A setting without which the account cannot work.
pub(super) const fn need(key: &'static str, what: &'static str) -> Need {
    Need { key, what, required: true, origin: Origin::Platform }
}

/// A setting that adds something.
pub(super) const fn option(key: &'static str, what: &'static str) -> Need {
    Need { key, what, required: false, origin: Origin::Platform }
}

/// How a reply that is still being written can be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streaming {
    /// Only the finished reply is sent.
    Final,
    /// A message is sent once and then edited, at most once in this many milliseconds.
    Edits {
        /// Shortest pause between two edits of one message.
        pause_ms: u64,
    },
    /// The platform asks for the text so far.
    Polled,
}

/// What a platform demands of those who talk to it.
#[derive(Debug)]
pub struct Spec {
    /// The id in addresses and configuration.
    pub id: &'static str,
    /// Its name for people.
    pub title: &'static str,
    /// The account settings, required ones first.
    pub needs: &'static [Need],
    /// Whether a changed body is noticed. Where it is not, only TLS and the secrecy of the token protect it.
    pub covers_body: bool,
    /// The longest text of one message, and what it is counted in.
    pub text_max: (Unit, usize),
    /// Longest request body.
    pub body_bytes_max: usize,
    /// How long the platform may repeat an event.
    pub retry_window_ms: u64,
    /// Whether a repeated reply is recognised by its key.
    pub recognises_repetition: bool,
    /// How a growing reply can be shown.
    pub streaming: Streaming,
}

/// One megabyte: the cap of all messengers.
pub(super) const BODY_1_MIB: usize = crate::limits::WEBHOOK_BODY_BYTES_MAX;
/// Mail and repository events carry attachments and diffs.
pub(super) const BODY_25_MIB: usize = crate::limits::HOOK_BODY_BYTES_MAX;
/// The repetition window of platforms that state none.
pub(super) const DAY_MS: u64 = 24 * 3_600_000;

macro_rules! channels {
    ($($(#[$doc:meta])* $variant:ident => $module:ident,)*) => {
        /// The platforms that this build knows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum ChannelKind {
            $($(#[$doc])* $variant,)*
        }

        impl ChannelKind {
            /// All of them.
            pub const ALL: &'static [ChannelKind] = &[$(ChannelKind::$variant,)*];

            pub(super) fn platform(self) -> &'static dyn Platform {
                match self {
                    $(ChannelKind::$variant => &super::$module::Adapter,)*
                }
            }
        }
    };
}

channels! {
    /// Slack: Events API, slash commands, interactivity.
    Slack => slack,
    /// Discord interactions.
    Discord => discord,
    /// Telegram Bot API.
    Telegram => telegram,
    /// WhatsApp Cloud API.
    WhatsApp => whatsapp,
    /// Facebook Messenger.
    Messenger => messenger,
    /// LINE Messaging API.
    Line => line,
    /// Microsoft Teams through the Bot Framework.
    Teams => teams,
    /// Microsoft Teams outgoing webhook.
    TeamsOutgoing => teams_outgoing,
    /// Google Chat app.
    GoogleChat => googlechat,
    /// Viber bot.
    Viber => viber,
    /// Twilio SMS and WhatsApp.
    Twilio => twilio,
    /// WeCom application.
    WeCom => wecom,
    /// WeCom smart robot.
    WeComAibot => wecom_aibot,
    /// WeChat official account.
    WeChatMp => wechat_mp,
    /// DingTalk robot in HTTP mode.
    DingTalk => dingtalk,
    /// DingTalk organisation events.
    DingTalkCallback => dingtalk_callback,
    /// Feishu and Lark.
    Feishu => feishu,
    /// QQ bot.
    QqBot => qqbot,
    /// Mattermost webhooks and slash commands.
    Mattermost => mattermost,
    /// Matrix application service.
    Matrix => matrix,
    /// Rocket.Chat outgoing webhook.
    RocketChat => rocketchat,
    /// Zulip outgoing webhook.
    Zulip => zulip,
    /// GitHub webhooks.
    GitHub => github,
    /// Standard Webhooks 1.0: signed JSON in, signed JSON out.
    StandardWebhooks => standard_webhooks,
    /// Mail through SendGrid Inbound Parse.
    EmailSendGrid => email_sendgrid,
    /// Mail through Mailgun routes.
    EmailMailgun => email_mailgun,
    /// Mail through Amazon SES and SNS.
    EmailSns => email_sns,
}

impl ChannelKind {
    /// What the platform demands.
    pub fn spec(self) -> &'static Spec {
        self.platform().spec()
    }

    /// The id in addresses and configuration.
    pub fn as_str(self) -> &'static str {
        self.spec().id
    }

    /// Reads the id.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == name)
    }

    /// How long a dedup key of this channel must be remembered: at least what the product promises, and
    /// longer where the platform repeats for longer.
    pub fn dedup_ttl_ms(self) -> u64 {
        self.spec().retry_window_ms.max(crate::limits::DEDUP_TTL_MS)
    }
}

impl fmt::Display for ChannelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
