//! Commands that people give in a chat instead of asking the model.
//!
//! A command is the whole message: `/word` or `!word` (some messengers keep the slash for themselves), perhaps
//! with `@bot` behind it as Telegram writes it, and at most one word more.

use crate::people::Listen;

/// What a person wants of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Show a code.
    Link,
    /// Use a code.
    Redeem(String),
    /// End the link.
    Unlink,
    /// Say who is speaking.
    WhoAmI,
    /// Say or set which messages of this chat are answered.
    Listen(Option<Listen>),
    /// Say what there is.
    Help,
}

/// What a help command answers.
pub const HELP: &str = "/link - show a code that links this account with another of yours\n\
    /link CODE - use a code that another chat has shown\n\
    /unlink - end the link\n\
    /whoami - who you are here\n\
    /listen mentions|all|off - which messages of a group are answered";

/// Longest command: a word, a mention and a code.
const TEXT_BYTES_MAX: usize = 200;

impl Command {
    /// Reads a message. `None` = it is for the model. `called` is the name of a command that the platform itself
    /// has recognised (a slash command); its text is what follows.
    pub fn parse(called: Option<&str>, text: &str) -> Option<Self> {
        if text.len() > TEXT_BYTES_MAX {
            return None;
        }
        let mut words = text.split_whitespace();
        let own =
            |word: &str| ["link", "unlink", "whoami", "listen"].iter().any(|known| word.eq_ignore_ascii_case(known));
        let (word, rest) = match called.map(|name| name.trim_start_matches('/')) {
            Some(name) if own(name) => (name.to_owned(), words.next()),
            // `/millrace link`: our name is the command, and the word is in its text.
            Some(_) => {
                let word = words.next()?;
                (own(word).then(|| word.to_owned())?, words.next())
            }
            None => {
                let word = words.next()?.strip_prefix(['/', '!'])?;
                let word = word.split('@').next().unwrap_or(word);
                (word.to_owned(), words.next())
            }
        };
        if words.next().is_some() {
            return None;
        }
        match (word.to_ascii_lowercase().as_str(), rest) {
            ("link", None) => Some(Self::Link),
            ("link", Some(code)) => Some(Self::Redeem(code.to_owned())),
            ("unlink", None) => Some(Self::Unlink),
            ("whoami", None) => Some(Self::WhoAmI),
            ("listen", None) => Some(Self::Listen(None)),
            ("listen", Some(word)) => Some(Listen::parse(word).map_or(Self::Help, |listen| Self::Listen(Some(listen)))),
            ("help", None) => Some(Self::Help),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_whole_messages() {
        for (called, text, expected) in [
            (None, "/link", Some(Command::Link)),
            (None, " !link ", Some(Command::Link)),
            (None, "/LINK@our_bot", Some(Command::Link)),
            (None, "/link abcd-efgh", Some(Command::Redeem("abcd-efgh".into()))),
            (None, "/unlink", Some(Command::Unlink)),
            (None, "/whoami", Some(Command::WhoAmI)),
            (None, "/listen", Some(Command::Listen(None))),
            (None, "/listen all", Some(Command::Listen(Some(Listen::All)))),
            (None, "/listen sometimes", Some(Command::Help)),
            (None, "/help", Some(Command::Help)),
            (Some("/link"), "", Some(Command::Link)),
            (Some("link"), "ABCDEFGH", Some(Command::Redeem("ABCDEFGH".into()))),
            (Some("/millrace"), "link ABCDEFGH", Some(Command::Redeem("ABCDEFGH".into()))),
            (Some("/millrace"), "how are you?", None),
            (Some("/weather"), "today", None),
            (None, "link", None),
            (None, "how do I /link this?", None),
            (None, "/link this to that", None),
            (None, "/start", None),
            (None, "", None),
            (None, "/", None),
        ] {
            assert_eq!(Command::parse(called, text), expected, "{called:?} {text:?}");
        }
        assert_eq!(Command::parse(None, &format!("/link {}", "x".repeat(300))), None);
    }
}
