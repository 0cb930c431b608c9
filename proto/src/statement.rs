//! Statements: what somebody said of a thing, with the time for which it holds and the time at which it was written down.
//!
//! "I live in Paris" is a statement about the speaker. When the speaker moves, it gets an end and is not deleted, so
//! a question "as of then" keeps its answer.

use crate::id::ConversationId;

/// The speaker, as the subject of a statement.
pub const SPEAKER: &str = "user";

/// A message: where it was said, and which one of that conversation.
pub type MessageId = (ConversationId, u64);

/// `subject` stands in `relation` to `object`, from one time to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Of whom or what; [`SPEAKER`] is whoever said it.
    pub subject: String,
    /// A word such as `lives_in`.
    pub relation: String,
    /// What is said of it.
    pub object: String,
    /// From when it holds, in Unix milliseconds.
    pub valid_from_ms: u64,
    /// Until when it holds; `None` while nothing says that it ended.
    pub valid_to_ms: Option<u64>,
    /// When it was written down.
    pub recorded_ms: u64,
    /// When its end was written down; `None` while nothing says that it ended.
    pub ended_ms: Option<u64>,
    /// The message that says so.
    pub source: MessageId,
    /// The message that says that it ended.
    pub ended_by: Option<MessageId>,
}

impl Statement {
    /// Whether it held at one time, as far as was known at another.
    pub fn holds(&self, valid_ms: u64, known_ms: u64) -> bool {
        // An end that was written down later was not known yet.
        let end = self.valid_to_ms.filter(|_| self.ended_ms.is_none_or(|written| written <= known_ms));
        self.recorded_ms <= known_ms && self.valid_from_ms <= valid_ms && end.is_none_or(|end| valid_ms < end)
    }

    /// Whether both say the same of the same, whenever.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.relation == other.relation
            && normal(&self.subject) == normal(&other.subject)
            && normal(&self.object) == normal(&other.object)
    }
}

/// A name as it is compared: small letters, one space between words.
pub fn normal(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for word in name.split_whitespace() {
        if !normal.is_empty() {
            normal.push(' ');
        }
        normal.extend(word.chars().flat_map(char::to_lowercase));
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_counts_from_when_it_was_written_down() {
        let at = (ConversationId([1; 16]), 1);
        let statement = Statement {
            subject: SPEAKER.into(),
            relation: "lives_in".into(),
            object: "Paris".into(),
            valid_from_ms: 100,
            valid_to_ms: Some(200),
            recorded_ms: 110,
            ended_ms: Some(300),
            source: at,
            ended_by: Some(at),
        };
        assert!(!statement.holds(50, 400) && statement.holds(150, 400) && !statement.holds(200, 400));
        assert!(statement.holds(250, 299), "the end was not known yet");
        assert!(!statement.holds(150, 109), "nothing was known yet");
    }

    #[test]
    fn names_are_compared_without_case_and_spaces() {
        assert_eq!(normal("  New\n YORK "), "new york");
        assert_eq!(normal("ÄRGER"), "ärger");
    }
}
