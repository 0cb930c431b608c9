//! From a constraint to a parser over the model's tokens, within limits, and once for equal constraints.

use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{InferenceCapabilities, SimpleVob};
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::{Value, json};

use super::vocabulary::environment;
use super::{Constraint, ConstraintError, Frame, any_object};
use crate::tokenizer::Tokenizer;

/// Compiled constraints that are kept: programs send the same few schemas and tools again and again.
const KEPT_MAX: usize = 32;
/// Longest reason of the compiler that is passed on.
const WHY_BYTES_MAX: usize = 600;
/// Space between the parts of a JSON document. Bounded: a small model may otherwise write blanks until its reply is
/// full. Long enough for an indented document of sixteen levels.
const JSON_SPACE: &str = r"[ \n\r\t]{1,33}";

/// What one compilation and one mask may cost. Speeds are those of the library's documentation.
fn limits() -> ParserLimits {
    ParserLimits {
        // Nodes of the lexer's regular expressions: at 50,000/ms about 20 ms.
        initial_lexer_fuel: 1_000_000,
        // Per mask: at 14,000/ms about 11 ms, and at 20,000/ms about 2 ms.
        step_lexer_fuel: 150_000,
        step_max_items: 40_000,
        max_items_in_row: 2_000,
        // At 1 to 2 KiB each at most 100 MiB for one hostile request; ordinary schemas stay below a thousand.
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        // The verbose form repeats grammar and state, which belong to the caller and are long.
        verbose_errors: false,
    }
}

/// A parser at the beginning of a reply and its first mask.
pub(super) struct Compiled {
    pub matcher: Box<Matcher>,
    pub mask: SimpleVob,
}

/// The compiler of one model.
pub(super) struct Compiler {
    factory: ParserFactory,
    /// The most recently used ones, best last.
    kept: Mutex<VecDeque<(String, Arc<Compiled>)>>,
}

impl Compiler {
    pub fn new(tokenizer: &Arc<Tokenizer>) -> Result<Self, ConstraintError> {
        let environment = environment(tokenizer)?;
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| ConstraintError::Invalid { why: shortened(&error.to_string()) })?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, kept: Mutex::default() })
    }

    /// A copy of an earlier result.
    pub fn kept(&self, key: &str) -> Option<Compiled> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|(other, _)| other == key)?;
        let entry = kept.remove(at)?;
        let found = Arc::clone(&entry.1);
        kept.push_back(entry);
        drop(kept);
        Some(found.copy())
    }

    /// Compiles and keeps the result. May take long on hostile input: see `workshop.rs`.
    pub fn compile(&self, key: &str, constraint: Constraint) -> Result<Compiled, ConstraintError> {
        let invalid = |error: &dyn std::fmt::Display| ConstraintError::Invalid { why: shortened(&error.to_string()) };
        let parser = self.factory.create_parser(grammar(constraint)).map_err(|error| invalid(&error))?;
        let mut matcher = Box::new(Matcher::new(Ok(parser)).into_cancellable());
        let mask = matcher.compute_mask_or_eos().map_err(|error| invalid(&error))?;
        let compiled = Arc::new(Compiled { matcher, mask });
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back((key.to_owned(), Arc::clone(&compiled)));
        drop(kept);
        Ok(compiled.copy())
    }
}

impl Compiled {
    /// Independent of the original, lexer caches included: what one request adds to them is freed with it.
    fn copy(&self) -> Compiled {
        Compiled { matcher: Box::new(self.matcher.deep_clone()), mask: self.mask.clone() }
    }
}

/// The constraint as a grammar of the library.
fn grammar(constraint: Constraint) -> TopLevelGrammar {
    match constraint {
        Constraint::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_options(schema)),
        Constraint::JsonObject => TopLevelGrammar::from_json_schema(with_options(any_object())),
        Constraint::Regex(regex) => TopLevelGrammar::from_regex(&regex),
        Constraint::Grammar(lark) => TopLevelGrammar::from_lark(lark),
        Constraint::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
            TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | ")))
        }
        Constraint::Framed(frame) => TopLevelGrammar::from_lark(framed(frame)),
    }
}

fn framed(frame: Frame) -> String {
    let Frame { opening, before, schema, after, between, documents_max } = frame;
    let mut lark = String::from("start:");
    if let Some(id) = opening {
        let _ = write!(lark, " <[{id}]>");
    }
    lark.push_str(" call");
    if documents_max > 1 {
        let _ = write!(lark, " (");
        push_text(&mut lark, &between);
        let _ = write!(lark, " call){{0,{}}}", documents_max - 1);
    }
    lark.push_str("\ncall:");
    push_text(&mut lark, &before);
    lark.push_str(" document");
    push_text(&mut lark, &after);
    let _ = write!(lark, "\ndocument: %json {}\n", with_options(schema));
    lark
}

fn push_text(lark: &mut String, text: &str) {
    if !text.is_empty() {
        lark.push(' ');
        lark.push_str(&quoted(text));
    }
}

/// A text as a string of the grammar language, whose escapes are those of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// Options travel inside the schema; what the sender put there is replaced.
fn with_options(schema: Value) -> Value {
    let mut schema = if schema.is_object() { schema } else { json!({"allOf": [schema]}) };
    JsonCompileOptions { whitespace_pattern: Some(JSON_SPACE.to_owned()), ..JsonCompileOptions::default() }
        .apply_to(&mut schema);
    schema
}

/// The reason without the library's marks, cut at a bound.
pub(super) fn shortened(why: &str) -> String {
    let why = why.split("\n<").next().unwrap_or(why).trim();
    let mut end = why.len().min(WHY_BYTES_MAX);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    why[..end].to_owned()
}
