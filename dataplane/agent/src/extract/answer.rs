//! What the model's answer means.

use millrace_proto::date;
use millrace_proto::statement::{MessageId, normal};
use serde::Deserialize;

use super::{Relation, Said};

/// What one message claims.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// Of whom or what.
    pub subject: String,
    /// How.
    pub relation: &'static Relation,
    /// What is said of it.
    pub object: String,
    /// From when it holds, or has ended, in Unix milliseconds.
    pub since_ms: u64,
    /// It is no longer so.
    pub ended: bool,
    /// The message.
    pub source: MessageId,
}

/// The answer does not follow its schema: it was cut off, or written by a model without constraint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not what was asked for: {why}")]
pub struct WrongAnswer {
    /// Where it departs.
    pub why: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    facts: Vec<Written>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    message: usize,
    subject: String,
    relation: String,
    object: String,
    since: Option<String>,
    ended: bool,
}

/// Reads an answer about some messages.
pub fn claims(answer: &str, said: &[Said]) -> Result<Vec<Claim>, WrongAnswer> {
    let wrong = |why: String| WrongAnswer { why };
    let answer: Answer = serde_json::from_str(answer).map_err(|error| wrong(error.to_string()))?;
    let mut claims = Vec::with_capacity(answer.facts.len());
    for written in answer.facts {
        let message = written.message.checked_sub(1).and_then(|at| said.get(at));
        let message = message.ok_or_else(|| wrong(format!("there is no message {}", written.message)))?;
        let relation = Relation::of(&written.relation)
            .ok_or_else(|| wrong(format!("there is no relation {:?}", written.relation)))?;
        let (subject, object) = (written.subject.trim().to_owned(), written.object.trim().to_owned());
        // A schema cannot forbid spaces alone, nor a thing that is said of itself.
        if normal(&subject).is_empty() || normal(&object).is_empty() || normal(&subject) == normal(&object) {
            continue;
        }
        // A date that no calendar has is as good as none.
        let since_ms = written.since.as_deref().and_then(date::since).unwrap_or(message.at_ms);
        claims.push(Claim { subject, relation, object, since_ms, ended: written.ended, source: message.id });
    }
    Ok(claims)
}
