//! What the model is asked, and the schema of its answer.

use millrace_proto::date;
use millrace_proto::record::Role;
use millrace_proto::statement::SPEAKER;
use serde_json::{Value, json};

use super::{RELATIONS, Said};
use crate::context::PromptMessage;

/// Most messages that are asked about at once.
pub const ASKED_MESSAGES_MAX: usize = 8;
/// Longest part of a message that is shown, in bytes: what somebody pastes is not about the speaker.
const TEXT_BYTES_MAX: usize = 1_500;
/// Statements of one answer.
const CLAIMS_MAX: usize = 12;
/// Characters of a subject.
const SUBJECT_CHARS_MAX: usize = 48;
/// Characters of an object.
const OBJECT_CHARS_MAX: usize = 64;

/// The messages of the prompt.
pub fn questions(said: &[Said]) -> [PromptMessage; 2] {
    let mut rules = format!(
        "You keep a notebook about a person. Read the numbered messages that the person wrote and write down what they \
         state as a fact. The person is called \"{SPEAKER}\"; others by their names. Write nothing that is asked, \
         imagined or only possible. An empty list is a good answer.\n\
         message: its number. since: YYYY-MM-DD, YYYY-MM or YYYY when the message says since when, else null. ended: \
         true when the message says that it is no longer so. The relations are:\n"
    );
    for relation in RELATIONS {
        rules.push_str(&format!("{}: {}\n", relation.word, relation.meaning));
    }
    let mut numbered = String::new();
    for (number, message) in (1..).zip(said) {
        let shown = &message.text[..message.text.floor_char_boundary(TEXT_BYTES_MAX)];
        numbered.push_str(&format!("{number}. [{}] {}\n", date::day(message.at_ms), shown.replace('\n', " ")));
    }
    [PromptMessage { role: Role::System, content: rules }, PromptMessage { role: Role::User, content: numbered }]
}

/// The schema of an answer about so many messages.
pub fn schema(messages: usize) -> Value {
    let words: Vec<&str> = RELATIONS.iter().map(|relation| relation.word).collect();
    let text = |chars: usize| json!({"type": "string", "minLength": 1, "maxLength": chars});
    let claim = json!({
        "type": "object",
        "properties": {
            "message": {"enum": (1..=messages).collect::<Vec<_>>()},
            "subject": text(SUBJECT_CHARS_MAX),
            "relation": {"enum": words},
            "object": text(OBJECT_CHARS_MAX),
            "since": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[0-9]{4}(-[0-9]{2}(-[0-9]{2})?)?$"}]},
            "ended": {"type": "boolean"},
        },
        "required": ["message", "subject", "relation", "object", "since", "ended"],
        "additionalProperties": false,
    });
    json!({
        "type": "object",
        "properties": {"facts": {"type": "array", "items": claim, "maxItems": CLAIMS_MAX}},
        "required": ["facts"],
        "additionalProperties": false,
    })
}
