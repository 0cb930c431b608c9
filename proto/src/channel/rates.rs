//! How fast platforms let us write: the one table, with where each number comes from.
//!
//! A platform counts calls in a span of time; a bucket that refills lets its burst and a span's worth through
//! in one span. Where a platform punishes (DingTalk blocks a robot for ten minutes), burst and rate together
//! therefore stay within its number. Numbers that no document states are marked as ours.

use super::ChannelKind;
use crate::gcra::Limit;

/// The rates of one platform.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Calls of one account.
    pub account: Limit,
    /// Calls into one chat with one person.
    pub chat: Limit,
    /// Calls into one group.
    pub group: Limit,
}

const fn second(units: u32, burst: u32) -> Limit {
    Limit { interval_ns: 1_000_000_000 / units as u64, burst }
}

const fn minute(units: u32, burst: u32) -> Limit {
    Limit { interval_ns: 60_000_000_000 / units as u64, burst }
}

const fn rates(account: Limit, chat: Limit, group: Limit) -> Rates {
    Rates { account, chat, group }
}

/// Ours: a courtesy towards servers that state no limit, faster than people read.
const COURTESY: Rates = rates(second(30, 30), second(1, 3), second(1, 3));

/// The row of a platform.
pub const fn of(kind: ChannelKind) -> Rates {
    use ChannelKind as K;
    match kind {
        // "Rate limits": one message a second in a channel, short bursts; the account's number is ours.
        K::Slack => rates(second(50, 50), second(1, 3), second(1, 3)),
        // "Rate limits": 50 requests a second; routes are learnt from answers, so the chat's number is ours.
        K::Discord => rates(second(50, 50), second(1, 5), second(1, 5)),
        // "Bots FAQ": 30 a second in all, one a second in a chat, 20 a minute in a group.
        K::Telegram => rates(second(30, 30), second(1, 5), minute(15, 5)),
        // "Throughput": 80 a second for a number, one in six seconds for a pair with bursts up to 45.
        K::WhatsApp => rates(second(80, 80), minute(10, 45), minute(10, 45)),
        // "Optimize your bot": 50 a second for an app and tenant, 1,800 an hour for a thread.
        K::Teams => rates(second(50, 50), minute(30, 10), minute(30, 10)),
        // "Usage limits": 3,000 writes a minute for a project, 60 a minute for a space.
        K::GoogleChat => rates(minute(2_950, 50), minute(55, 5), minute(55, 5)),
        // Long codes of the USA: one segment a second; the rest waits in a queue of Twilio's.
        K::Twilio => rates(second(1, 10), second(1, 3), second(1, 3)),
        // "Message frequency limits": 30 a minute for a member.
        K::WeCom | K::WeComAibot => rates(second(30, 30), minute(25, 5), minute(25, 5)),
        // "Custom robots": 20 a minute, then ten minutes of silence.
        K::DingTalk => rates(second(30, 30), minute(15, 5), minute(15, 5)),
        // "Message sending": 1,000 a minute and 50 a second for an app, 5 a second for a user or group.
        K::Feishu => rates(minute(950, 50), second(5, 5), second(5, 5)),
        // Receivers are programs of the owner.
        K::StandardWebhooks => rates(second(100, 100), second(20, 20), second(20, 20)),
        K::Messenger
        | K::Line
        | K::TeamsOutgoing
        | K::Viber
        | K::WeChatMp
        | K::DingTalkCallback
        | K::QqBot
        | K::Mattermost
        | K::Matrix
        | K::RocketChat
        | K::Zulip
        | K::GitHub
        | K::EmailSendGrid
        | K::EmailMailgun
        | K::EmailSns => COURTESY,
    }
}

impl Rates {
    /// The rate of a chat. Only Telegram tells groups by their id: it is negative.
    pub fn of_chat(&self, kind: ChannelKind, chat: &str) -> Limit {
        if kind == ChannelKind::Telegram && chat.starts_with('-') { self.group } else { self.chat }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gcra::{State, check};

    fn in_a_minute(limit: &Limit) -> usize {
        let mut bucket = State::default();
        (0..60_000u64).filter(|ms| check(&mut bucket, 1_000_000_000 + ms * 1_000_000, 1, limit).is_ok()).count()
    }

    #[test]
    fn stated_numbers_hold_in_the_first_minute_too() {
        for (kind, group, most) in [
            (ChannelKind::Telegram, "-100", 20),
            (ChannelKind::DingTalk, "cid", 20),
            (ChannelKind::GoogleChat, "spaces/a", 60),
            (ChannelKind::WeCom, "user", 30),
        ] {
            let sent = in_a_minute(&of(kind).of_chat(kind, group));
            assert!(sent <= most && sent + 2 >= most, "{kind}: {sent} in a minute");
        }
        assert!(in_a_minute(&of(ChannelKind::Feishu).account) <= 1_000);
        assert!(in_a_minute(&of(ChannelKind::GoogleChat).account) <= 3_000);
    }

    #[test]
    fn every_row_lets_something_through() {
        for &kind in ChannelKind::ALL {
            let Rates { account, chat, group } = of(kind);
            for limit in [account, chat, group] {
                assert!(limit.burst >= 1 && limit.interval_ns >= 1, "{kind}");
            }
        }
    }
}
