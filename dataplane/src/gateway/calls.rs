//! Tool calls of one answer, found in its text as it comes.

use millrace_proto::api::{CalledFunction, ToolCall};
use millrace_proto::toolcall::{CallParser, CallSyntax, Piece};

/// A part of an answer that may hold calls.
pub(super) enum Part {
    /// Text for the reader.
    Text(String),
    /// The call with this index is complete.
    Call(usize),
}

/// Finds the calls of an answer and gives them ids.
pub struct Calls {
    parser: CallParser,
    /// Only the first call counts: the request wants one at most.
    single: bool,
    made: Vec<ToolCall>,
}

impl Calls {
    /// For an answer of a request with these tools.
    pub fn new(syntax: CallSyntax, names: Vec<String>, single: bool) -> Self {
        Self { parser: CallParser::new(syntax, names), single, made: Vec::new() }
    }

    /// Takes more of the answer; `unique` makes the ids.
    pub(super) fn push(&mut self, unique: &str, text: &str) -> Vec<Part> {
        let mut pieces = Vec::new();
        self.parser.push(text, &mut pieces);
        self.parts(unique, pieces)
    }

    /// The answer is over.
    pub(super) fn finish(&mut self, unique: &str) -> Vec<Part> {
        let mut pieces = Vec::new();
        self.parser.finish(&mut pieces);
        self.parts(unique, pieces)
    }

    /// The calls so far.
    pub(super) fn made(&self) -> &[ToolCall] {
        &self.made
    }

    fn parts(&mut self, unique: &str, pieces: Vec<Piece>) -> Vec<Part> {
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match piece {
                Piece::Text(text) => parts.push(Part::Text(text)),
                Piece::Call { .. } if self.single && !self.made.is_empty() => {}
                Piece::Call { name, arguments } => {
                    let index = self.made.len();
                    parts.push(Part::Call(index));
                    self.made.push(ToolCall {
                        id: format!("call_{unique}{index:02}"),
                        kind: "function".to_owned(),
                        function: CalledFunction { name, arguments },
                    });
                }
            }
        }
        parts
    }
}
