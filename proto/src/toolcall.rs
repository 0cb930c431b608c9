//! Tool calls in the text that a model writes, in the forms of the common chat templates.
//!
//! | syntax | a call is written as |
//! |---|---|
//! | [`CallSyntax::Tagged`] | `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number (Hermes, Qwen) |
//! | [`CallSyntax::Bare`] | `{"name": ..., "parameters": {...}}`, perhaps after `<\|python_tag\|>`, several with `;` (Llama 3) |
//! | [`CallSyntax::List`] | `[TOOL_CALLS] [{"name": ..., "arguments": {...}}]` or `[TOOL_CALLS]name{...}` (Mistral) |
//!
//! Nothing is lost: what looks like a call and is none comes out as text. Text before a call leaves at once, except for
//! what may yet become the beginning of a mark.

use serde::Deserialize;
use serde_json::{Map, Value};

/// How a model writes its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallSyntax {
    /// Each call between tags.
    Tagged,
    /// A JSON object instead of an answer.
    Bare,
    /// A list behind a mark.
    List,
}

/// A part of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text for the reader.
    Text(String),
    /// A whole call.
    Call {
        /// Name of the function.
        name: String,
        /// The arguments as JSON text, an object.
        arguments: String,
    },
}

const TAG_OPEN: &str = "<tool_call>";
const TAG_CLOSE: &str = "</tool_call>";
const PYTHON_TAG: &str = "<|python_tag|>";
const LIST_MARK: &str = "[TOOL_CALLS]";
const ARGUMENTS_MARK: &str = "[ARGS]";

impl CallSyntax {
    fn mark(self) -> &'static str {
        match self {
            CallSyntax::Tagged => TAG_OPEN,
            CallSyntax::Bare => PYTHON_TAG,
            CallSyntax::List => LIST_MARK,
        }
    }
}

/// Finds calls in a reply that comes in pieces.
#[derive(Clone, Debug)]
pub struct CallParser {
    syntax: CallSyntax,
    /// Functions that exist; a call of another one is text.
    names: Vec<String>,
    /// Text that was not passed on: a call in the making, blanks that may stand before one, the beginning of a mark.
    held: String,
    in_call: bool,
    /// Some text that is not blank was passed on: a reply that begins so is no bare call.
    spoken: bool,
    /// The last piece was a call: blanks that follow are only its end.
    called: bool,
}

impl CallParser {
    /// A parser for one reply.
    pub fn new(syntax: CallSyntax, names: Vec<String>) -> Self {
        Self { syntax, names, held: String::new(), in_call: false, spoken: false, called: false }
    }

    /// Takes more of the reply; appends what is certain.
    pub fn push(&mut self, text: &str, pieces: &mut Vec<Piece>) {
        self.held.push_str(text);
        while self.step(pieces) {}
    }

    /// The reply is over: appends the rest.
    pub fn finish(&mut self, pieces: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        let calls = if self.in_call { self.calls_of(&held) } else { None };
        match calls {
            Some(calls) => pieces.extend(calls),
            None if self.called && held.trim().is_empty() => {}
            None => self.speak(pieces, &held),
        }
        self.in_call = false;
    }

    /// One step; false when more text is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if self.in_call {
            // Only tags tell where a call ends; the others take what is left of the reply.
            let Some(end) = self.held.find(TAG_CLOSE).filter(|_| self.syntax == CallSyntax::Tagged) else {
                return false;
            };
            let rest = self.held.split_off(end + TAG_CLOSE.len());
            let call = std::mem::replace(&mut self.held, rest);
            self.in_call = false;
            match self.calls_of(&call) {
                Some(calls) => {
                    self.called = true;
                    pieces.extend(calls);
                }
                None => self.speak(pieces, &call),
            }
            return true;
        }
        let mark = self.syntax.mark();
        let bare = !self.spoken && self.syntax != CallSyntax::Tagged && self.held.trim_start().starts_with(['{', '[']);
        let begin = if bare && !mark.starts_with(self.held.trim_start()) { Some(0) } else { self.held.find(mark) };
        if let Some(begin) = begin {
            // Blanks before a call belong to it: they vanish with it, and stay when it is none.
            let before = self.held[..begin].trim_end().len();
            let call = self.held.split_off(before);
            let text = std::mem::replace(&mut self.held, call);
            self.speak(pieces, &text);
            self.in_call = true;
            return true;
        }
        let ready = self.held.len() - held_back(&self.held, mark);
        let ready = self.held[..ready].trim_end().len();
        if ready > 0 {
            let rest = self.held.split_off(ready);
            let text = std::mem::replace(&mut self.held, rest);
            self.speak(pieces, &text);
        }
        false
    }

    fn speak(&mut self, pieces: &mut Vec<Piece>, text: &str) {
        if !text.is_empty() {
            (self.spoken, self.called) = (true, false);
            pieces.push(Piece::Text(text.to_owned()));
        }
    }

    /// The calls in a text that begins with a mark or with JSON; `None` when it is not made of calls alone.
    fn calls_of(&self, text: &str) -> Option<Vec<Piece>> {
        let text = text.trim();
        let body = text.strip_prefix(self.syntax.mark()).unwrap_or(text);
        let body = body.strip_suffix(TAG_CLOSE).filter(|_| self.syntax == CallSyntax::Tagged).unwrap_or(body).trim();
        let calls = match self.syntax {
            CallSyntax::List if !body.starts_with('[') => self.named_calls(body)?,
            CallSyntax::List => {
                let list: Vec<Value> = serde_json::from_str(body).ok()?;
                list.into_iter().map(|call| self.call(call)).collect::<Option<Vec<_>>>()?
            }
            CallSyntax::Tagged | CallSyntax::Bare => self.objects(body)?,
        };
        (!calls.is_empty()).then_some(calls)
    }

    /// JSON objects behind each other, with blanks or semicolons between.
    fn objects(&self, mut body: &str) -> Option<Vec<Piece>> {
        let mut calls = Vec::new();
        while !body.is_empty() {
            let mut stream = serde_json::Deserializer::from_str(body).into_iter::<Value>();
            calls.push(self.call(stream.next()?.ok()?)?);
            body = body[stream.byte_offset()..].trim_start_matches(|c: char| c == ';' || c.is_whitespace());
        }
        Some(calls)
    }

    /// `name{...}` or `name[ARGS]{...}`, each perhaps after another mark.
    fn named_calls(&self, mut body: &str) -> Option<Vec<Piece>> {
        let mut calls = Vec::new();
        while !body.is_empty() {
            let begin = body.find('{')?;
            let name = body[..begin].trim();
            let name = name.strip_suffix(ARGUMENTS_MARK).unwrap_or(name).trim();
            let mut stream = serde_json::Deserializer::from_str(&body[begin..]).into_iter::<Map<String, Value>>();
            let arguments = stream.next()?.ok()?;
            calls.push(self.known(name, arguments)?);
            let rest = body[begin + stream.byte_offset()..].trim_start();
            body = rest.strip_prefix(LIST_MARK).unwrap_or(rest).trim_start();
        }
        Some(calls)
    }

    fn call(&self, value: Value) -> Option<Piece> {
        #[derive(Deserialize)]
        struct Written {
            name: String,
            #[serde(alias = "parameters", default)]
            arguments: Value,
        }
        let Written { name, arguments } = serde_json::from_value(value).ok()?;
        match arguments {
            Value::Object(arguments) => self.known(&name, arguments),
            Value::Null => self.known(&name, Map::new()),
            // Some models write the arguments as a text, as the API does.
            Value::String(text) => self.known(&name, serde_json::from_str(&text).ok()?),
            _ => None,
        }
    }

    fn known(&self, name: &str, arguments: Map<String, Value>) -> Option<Piece> {
        let known = self.names.iter().any(|other| other == name);
        known.then(|| Piece::Call { name: name.to_owned(), arguments: Value::Object(arguments).to_string() })
    }
}

/// Length of the longest end of `text` with which `mark` begins.
fn held_back(text: &str, mark: &str) -> usize {
    let most = text.len().min(mark.len() - 1);
    (1..=most).rev().find(|n| text.as_bytes().ends_with(&mark.as_bytes()[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(syntax: CallSyntax, pieces: &[&str]) -> Vec<Piece> {
        let mut parser = CallParser::new(syntax, vec!["add".into(), "now".into()]);
        let mut found = Vec::new();
        for piece in pieces {
            parser.push(piece, &mut found);
        }
        parser.finish(&mut found);
        joined(found)
    }

    /// Neighbouring texts as one.
    fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
        let mut out: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (out.last_mut(), piece) {
                (Some(Piece::Text(text)), Piece::Text(more)) => text.push_str(&more),
                (_, piece) => out.push(piece),
            }
        }
        out
    }

    fn call(name: &str, arguments: &str) -> Piece {
        Piece::Call { name: name.into(), arguments: arguments.into() }
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.into())
    }

    const ADD: &str = r#"{"name": "add", "arguments": {"a": 1, "b": "}</x>"}}"#;

    fn add() -> Piece {
        call("add", r#"{"a":1,"b":"}</x>"}"#)
    }

    #[test]
    fn calls_are_found_in_the_forms_of_the_templates() {
        use CallSyntax::{Bare, List, Tagged};
        let cases = [
            (Tagged, format!("<tool_call>\n{ADD}\n</tool_call>"), vec![add()]),
            (
                Tagged,
                format!("Let me see.\n<tool_call>{ADD}</tool_call>\n<tool_call>{{\"name\": \"now\"}}</tool_call>\n"),
                vec![text("Let me see."), add(), call("now", "{}")],
            ),
            (Tagged, format!("<tool_call>{ADD}"), vec![add()]),
            (Bare, r#"{"name": "add", "parameters": {"a": 1}}"#.into(), vec![call("add", r#"{"a":1}"#)]),
            (
                Bare,
                format!("<|python_tag|>{ADD}; {{\"name\": \"now\", \"parameters\": {{}}}}"),
                vec![add(), call("now", "{}")],
            ),
            (List, format!("[TOOL_CALLS] [{ADD}]"), vec![add()]),
            (List, format!("[{ADD}, {ADD}]"), vec![add(), add()]),
            (
                List,
                "[TOOL_CALLS]add[ARGS]{\"a\": 2}[TOOL_CALLS]now{}".into(),
                vec![call("add", r#"{"a":2}"#), call("now", "{}")],
            ),
            (
                Tagged,
                "<tool_call>{\"name\": \"add\", \"arguments\": \"{\\\"a\\\": 3}\"}</tool_call>".into(),
                vec![call("add", r#"{"a":3}"#)],
            ),
        ];
        for (syntax, reply, wanted) in cases {
            assert_eq!(parse(syntax, &[&reply]), wanted, "{reply}");
        }
    }

    #[test]
    fn what_is_no_call_stays_text() {
        use CallSyntax::{Bare, List, Tagged};
        for (syntax, reply) in [
            (Tagged, "plain <b>text</b> with a < and a trailing <tool"),
            (Tagged, "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>"),
            (Tagged, "<tool_call>not json</tool_call> and more"),
            (Tagged, "<tool_call>{\"name\": \"add\""),
            (Tagged, "{\"name\": \"add\", \"arguments\": {}}"),
            (Bare, "{\"answer\": 42}"),
            (Bare, "Use {\"name\": \"add\", \"parameters\": {}} for that."),
            (List, "[1, 2, 3]"),
            (List, "[TOOL_CALLS] nothing"),
        ] {
            assert_eq!(parse(syntax, &[reply]), [text(reply)], "{reply}");
        }
    }

    #[test]
    fn text_leaves_before_the_reply_is_over() {
        let mut parser = CallParser::new(CallSyntax::Tagged, vec!["add".into()]);
        let mut pieces = Vec::new();
        parser.push("Hello <b", &mut pieces);
        assert_eq!(pieces, [text("Hello <b")]);
        parser.push("> there <tool", &mut pieces);
        assert_eq!(joined(pieces), [text("Hello <b> there")]);
    }

    proptest! {
        #[test]
        fn cutting_a_reply_anywhere_changes_nothing(
            parts in proptest::collection::vec(0..7_usize, 0..6),
            cut in 1_usize..9,
            syntax in 0..3_usize,
        ) {
            let words = ["<tool_call>", "</tool_call>", ADD, " text \u{e9} ", "[TOOL_CALLS]", "\n", "{"];
            let reply: String = parts.iter().map(|part| words[*part]).collect();
            let syntax = [CallSyntax::Tagged, CallSyntax::Bare, CallSyntax::List][syntax];
            let letters: Vec<char> = reply.chars().collect();
            let pieces: Vec<String> = letters.chunks(cut).map(|piece| piece.iter().collect()).collect();
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(parse(syntax, &pieces), parse(syntax, &[&reply]));
        }
    }
}
