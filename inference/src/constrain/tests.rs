//! A small vocabulary that can write any byte and has some longer tokens, as real ones do; random logits instead of a
//! model. Whatever the logits say, a reply that ends by itself is what its constraint accepts.

use std::sync::Arc;

use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use super::compile::{Compiled, Compiler};
use super::guide::MaskTask;
use super::*;
use crate::request::Sampling;
use crate::sample::{Sampler, restrict};
use crate::stats::Stats;
use crate::tokenizer::{Tokenizer, TokenizerParts};

const PIECES: [&str; 14] =
    ["{\"", "\":", "\",\"", "\"}", "true", "null", "false", "name", "[[", "]]", "12", ", ", "é", "}}"];
const END: &str = "<|im_end|>";
const TOKENS_MAX: usize = 400;

fn tokenizer() -> Arc<Tokenizer> {
    // GPT-2's alphabet: printable bytes stand for themselves, the others for characters from 256 on.
    let (mut next, mut byte_text) = (256, Vec::new());
    for byte in 0..=255_u8 {
        let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
        byte_text.push(if printable { char::from(byte) } else { char::from_u32(next).expect("a character") });
        next += u32::from(!printable);
    }
    let text = |bytes: &[u8]| bytes.iter().map(|b| byte_text[usize::from(*b)]).collect::<String>();
    let mut tokens: Vec<String> = (0..=255_u8).map(|byte| text(&[byte])).collect();
    tokens.extend(PIECES.iter().map(|piece| text(piece.as_bytes())));
    tokens.extend([END.to_owned(), "<|tool|>".to_owned()]);
    let size = tokens.len();
    let types = (0..size).map(|id| if id + 2 >= size { 3 } else { 1 }).collect();
    let eos = Some(size as u32 - 2);
    let parts = TokenizerParts { kind: "gpt2".into(), tokens, types, eos, ..TokenizerParts::default() };
    Arc::new(Tokenizer::new(parts).expect("a complete vocabulary"))
}

struct Bench {
    tokenizer: Arc<Tokenizer>,
    compiler: Compiler,
    sampler: Sampler,
}

enum Written {
    Whole(String),
    /// Still within the constraint when the reply was full.
    Cut,
}

impl Bench {
    fn new() -> Self {
        let tokenizer = tokenizer();
        let compiler = Compiler::new(&tokenizer).expect("the vocabulary can be constrained");
        let sampler = Sampler::new(tokenizer.vocabulary());
        Self { tokenizer, compiler, sampler }
    }

    fn compile(&self, constraint: &Constraint) -> Result<Compiled, ConstraintError> {
        check::check(constraint)?;
        self.compiler.compile(&format!("{constraint:?}"), constraint.clone())
    }

    /// Writes under random logits. Ends are a little likelier than chance, or long texts would never end.
    fn write(&mut self, constraint: &Constraint, seed: u64, temperature: f32) -> Written {
        self.write_guessing(constraint, seed, temperature, |_, _| Vec::new()).0
    }

    /// The same in steps of as many tokens as were guessed right, and the tokens; `guess` sees those before and what must
    /// follow.
    fn write_guessing(
        &mut self,
        constraint: &Constraint,
        seed: u64,
        temperature: f32,
        mut guess: impl FnMut(&[u32], &[u32]) -> Vec<u32>,
    ) -> (Written, Vec<u32>) {
        let compiled = self.compile(constraint).expect("the constraint compiles");
        let (tasks, work) = crossbeam::channel::bounded::<MaskTask>(4);
        let mut guide = Guide::new(compiled, tasks);
        let (stats, mut random) = (Stats::default(), SmallRng::seed_from_u64(seed));
        let sampling = Sampling { temperature, seed, ..Sampling::default() };
        let (mut bytes, mut history) = (Vec::new(), vec![0]);
        for _ in 0..TOKENS_MAX {
            // The vocabulary of a network is often padded: logits beyond the tokenizer's ids must never win.
            let mut logits: Vec<f32> =
                (0..self.tokenizer.vocabulary() + 7).map(|_| random.random_range(-4.0..4.0)).collect();
            for closing in [b'"', b'}', b']', b','] {
                logits[usize::from(closing)] += 4.0;
            }
            logits[self.tokenizer.eos().expect("set") as usize] += 4.0;
            let mask = guide.mask(&mut STEP_PATIENCE.clone(), &stats).expect("the constraint can be followed");
            let mask = mask.expect("the mask was computed");
            restrict(&mut logits, mask);
            let allowed = mask.to_vec();
            logits.truncate(self.tokenizer.vocabulary());
            let id = self.sampler.pick(&mut logits, &sampling, &history, 1).expect("a token is allowed");
            assert!(allowed[id as usize / 32] >> (id % 32) & 1 == 1, "seed {seed}: token {id} is not allowed");
            if self.tokenizer.is_end(id) {
                history.push(id);
                return (Written::Whole(String::from_utf8(bytes).expect("replies are UTF-8")), history);
            }
            bytes.extend_from_slice(self.tokenizer.visible_bytes(id));
            history.push(id);
            guide.accept(id);
            if !guide.goes_on(&stats) {
                guide.look_at(&guess(&history, guide.forced()));
                work.try_recv().expect("the guide hands its parser over").run();
            }
        }
        (Written::Cut, history)
    }
}

/// Whether a document follows a schema: the rules of JSON Schema for the keywords that [`schema`] writes, one by one.
fn satisfies(schema: &Value, document: &Value) -> bool {
    let whole = |name: &str| schema[name].as_i64();
    if let Some(choices) = schema["anyOf"].as_array() {
        return choices.iter().any(|choice| satisfies(choice, document));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(document);
    }
    let within =
        |n: i64, low: &str, high: &str| whole(low).is_none_or(|l| l <= n) && whole(high).is_none_or(|h| n <= h);
    match (schema["type"].as_str().expect("each schema has a type"), document) {
        ("boolean", Value::Bool(_)) | ("null", Value::Null) => true,
        // An integer is a number without a fraction, however it is written: `-0` too.
        ("integer", Value::Number(number)) => {
            let number = number.as_f64().filter(|n| n.fract() == 0.0);
            number.is_some_and(|n| within(n as i64, "minimum", "maximum"))
        }
        ("string", Value::String(text)) => {
            let pattern_fits = schema["pattern"].is_null() || fits_pattern(text);
            pattern_fits && within(text.chars().count() as i64, "minLength", "maxLength")
        }
        ("array", Value::Array(items)) => {
            let fits = items.iter().all(|item| satisfies(&schema["items"], item));
            fits && within(items.len() as i64, "minItems", "maxItems")
        }
        ("object", Value::Object(fields)) => {
            let required = schema["required"].as_array().expect("always written");
            let known = schema["properties"].as_object().expect("always written");
            required.iter().all(|name| fields.contains_key(name.as_str().expect("a name")))
                && fields.iter().all(|(name, field)| known.get(name).is_some_and(|schema| satisfies(schema, field)))
        }
        _ => false,
    }
}

/// [`PATTERN`] by hand.
fn fits_pattern(text: &str) -> bool {
    let (letters, digits) = text.split_once('-').unwrap_or((text, "0"));
    (2..=5).contains(&letters.len())
        && letters.bytes().all(|b| (b'a'..=b'f').contains(&b))
        && (1..=3).contains(&digits.len())
        && digits.bytes().all(|b| b.is_ascii_digit())
}

const PATTERN: &str = "^[a-f]{2,5}(-[0-9]{1,3})?$";

/// A random schema of the kinds that programs use, and of bounded size.
fn schema(random: &mut SmallRng, depth: usize) -> Value {
    let kinds = if depth == 0 { 6 } else { 10 };
    match random.random_range(0..kinds) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => {
            let low = random.random_range(-500..500);
            json!({"type": "integer", "minimum": low, "maximum": low + random.random_range(0..900)})
        }
        3 => {
            let low = random.random_range(0..4);
            json!({"type": "string", "minLength": low, "maxLength": low + random.random_range(0..9)})
        }
        4 => json!({"enum": ["red", "gr\u{fc}n", 7, null, true, ["x"]]}),
        5 => json!({"type": "string", "pattern": PATTERN}),
        6 | 7 => {
            let names = ["name", "a b", "\u{e9}", "n\"q", "list"];
            let mut properties = Map::new();
            for name in &names[..random.random_range(1..=names.len())] {
                properties.insert((*name).to_owned(), schema(random, depth - 1));
            }
            let required: Vec<&String> = properties.keys().filter(|_| random.random_bool(0.6)).collect();
            json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
        }
        8 => {
            let low = random.random_range(0..3);
            json!({"type": "array", "items": schema(random, depth - 1), "minItems": low, "maxItems": low + 2})
        }
        _ => json!({"anyOf": [schema(random, depth - 1), schema(random, depth - 1)]}),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_the_logits_say_the_document_is_valid(seed in any::<u64>(), temperature in 0.5_f32..2.0) {
        let mut bench = Bench::new();
        let schema = schema(&mut SmallRng::seed_from_u64(seed), 3);
        let mut whole = 0;
        for round in 0..4 {
            let constraint = Constraint::JsonSchema(schema.clone());
            if let Written::Whole(text) = bench.write(&constraint, seed ^ round, temperature) {
                whole += 1;
                let document: Value = serde_json::from_str(&text)
                    .map_err(|error| TestCaseError::fail(format!("{error}: {text:?} under {schema}")))?;
                prop_assert!(satisfies(&schema, &document), "{text} does not satisfy {schema}");
            }
        }
        prop_assert!(whole > 0, "no document of four was finished under {schema}");
    }

    /// Right, wrong, forbidden and unknown guesses change nothing of what is written.
    #[test]
    fn guesses_change_no_document(seed in any::<u64>(), temperature in 0.0_f32..2.0, wrong in 0_u32..6) {
        let mut bench = Bench::new();
        let constraint = Constraint::JsonSchema(schema(&mut SmallRng::seed_from_u64(seed), 3));
        let (_, plain) = bench.write_guessing(&constraint, seed, temperature, |_, _| Vec::new());
        let (mut random, mut steps) = (SmallRng::seed_from_u64(seed), 0);
        let guess = |history: &[u32], forced: &[u32]| {
            steps += 1;
            assert!(forced.iter().zip(&plain[history.len()..]).all(|(a, b)| a == b), "what is forced follows");
            let mut guess = plain[history.len()..].to_vec();
            guess.truncate(random.random_range(0..6));
            for token in &mut guess {
                if random.random_range(0..10) < wrong {
                    *token = random.random_range(0..300);
                }
            }
            guess
        };
        let (_, guessed) = bench.write_guessing(&constraint, seed, temperature, guess);
        prop_assert_eq!(&guessed, &plain);
        prop_assert!(wrong > 0 || plain.len() < 20 || steps < plain.len() - 1, "{} steps for {} tokens", steps, plain.len());
    }

    #[test]
    fn a_pattern_is_matched_from_end_to_end(seed in any::<u64>()) {
        let mut bench = Bench::new();
        let Written::Whole(text) = bench.write(&Constraint::Regex("(ab|[0-9]{3})+x?".into()), seed, 1.0) else {
            return Ok(());
        };
        let mut rest = text.strip_suffix('x').unwrap_or(&text);
        prop_assert!(!rest.is_empty(), "{text:?}");
        while !rest.is_empty() {
            let digits = rest.len() >= 3 && rest.as_bytes()[..3].iter().all(u8::is_ascii_digit);
            rest = if let Some(after) = rest.strip_prefix("ab") { after } else { prop_assert!(digits, "{text:?}"); &rest[3..] };
        }
    }
}

fn whole(constraint: &Constraint, seed: u64) -> String {
    match Bench::new().write(constraint, seed, 1.0) {
        Written::Whole(text) => text,
        Written::Cut => panic!("the reply of seed {seed} did not end"),
    }
}

#[test]
fn the_judge_of_these_tests_refuses_what_is_wrong() {
    let schema = json!({"type": "object", "required": ["a"], "properties": {
        "a": {"type": "integer", "minimum": 1, "maximum": 3},
        "b": {"type": "array", "items": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": PATTERN}]}, "minItems": 1, "maxItems": 2},
        "c": {"type": "string", "minLength": 1, "maxLength": 2},
    }, "additionalProperties": false});
    let right = [json!({"a": 1}), json!({"a": 3, "b": [null, "ab-12"], "c": "\u{e9}\u{e9}"})];
    assert!(right.iter().all(|document| satisfies(&schema, document)));
    for wrong in [
        json!([]),
        json!({}),
        json!({"a": 4}),
        json!({"a": 1.5}),
        json!({"a": 1, "d": 1}),
        json!({"a": 1, "b": []}),
        json!({"a": 1, "b": [null, null, null]}),
        json!({"a": 1, "b": ["ab-"]}),
        json!({"a": 1, "b": ["abcdefa"]}),
        json!({"a": 1, "c": ""}),
    ] {
        assert!(!satisfies(&schema, &wrong), "{wrong}");
    }
}

#[test]
fn a_choice_is_one_of_the_texts() {
    let choices = ["yes", "no", "perhaps \"so\"\n", "ye"].map(str::to_owned);
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..40 {
        seen.insert(whole(&Constraint::Choice(choices.to_vec()), seed));
    }
    assert!(seen.iter().all(|text| choices.contains(text)), "{seen:?}");
    assert!(seen.len() > 1, "{seen:?}");
}

#[test]
fn a_grammar_may_nest() {
    let lark = "start: pair\npair: \"<\" pair? \">\"".to_owned();
    for seed in 0..20 {
        let text = whole(&Constraint::Grammar(lark.clone()), seed);
        let half = text.len() / 2;
        assert!(half > 0 && text == "<".repeat(half) + &">".repeat(half), "seed {seed}: {text:?}");
    }
}

#[test]
fn frames_hold_valid_documents_and_control_tokens_stay_invisible() {
    let tokenizer = tokenizer();
    let frame = Frame {
        opening: tokenizer.special_id("<|tool|>"),
        before: "<call>\n".into(),
        schema: json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"], "additionalProperties": false}),
        after: "\n</call>".into(),
        between: "\n".into(),
        documents_max: 3,
    };
    let mut counts = std::collections::BTreeSet::new();
    for seed in 0..30 {
        let text = whole(&Constraint::Framed(frame.clone()), seed);
        let calls: Vec<&str> = text.split("<call>\n").skip(1).collect();
        counts.insert(calls.len());
        for call in calls {
            let document = call.trim_end().strip_suffix("</call>").unwrap_or_else(|| panic!("{text:?}"));
            let document: Value = serde_json::from_str(document).unwrap_or_else(|error| panic!("{error}: {text:?}"));
            assert!(document["n"].is_u64(), "{text:?}");
        }
    }
    assert!(counts.iter().all(|n| (1..=3).contains(n)) && counts.len() > 1, "{counts:?}");
}

#[test]
fn any_object_is_an_object() {
    let mut bench = Bench::new();
    let mut ended = 0;
    for seed in 0..20 {
        if let Written::Whole(text) = bench.write(&Constraint::JsonObject, seed, 1.0) {
            ended += 1;
            assert!(serde_json::from_str::<Map<String, Value>>(&text).is_ok(), "seed {seed}: {text:?}");
        }
    }
    assert!(ended > 0);
}

#[test]
fn the_same_logits_give_the_same_reply() {
    let constraint = Constraint::JsonSchema(schema(&mut SmallRng::seed_from_u64(5), 3));
    for temperature in [0.0, 1.0] {
        let text = |bench: &mut Bench| match bench.write(&constraint, 11, temperature) {
            Written::Whole(text) => text,
            Written::Cut => "cut".to_owned(),
        };
        let mut bench = Bench::new();
        let first = text(&mut bench);
        // The second run starts from the kept compilation of the first.
        assert_eq!(first, text(&mut bench));
        assert_eq!(first, text(&mut Bench::new()));
    }
}

#[test]
fn what_cannot_be_compiled_says_why() {
    let bench = Bench::new();
    let refused = |constraint: Constraint| bench.compile(&constraint).err().expect("refused").to_string();
    for (constraint, words) in [
        (Constraint::Regex("a(".into()), "regex"),
        (Constraint::Grammar("start: missing".into()), "missing"),
        (Constraint::Grammar("begin: \"a\"".into()), "start"),
        (Constraint::JsonSchema(json!({"type": "whatever"})), "whatever"),
        (Constraint::JsonSchema(json!({"type": "string", "minLength": 3, "maxLength": 1})), "nsatisfiable"),
        (Constraint::JsonSchema(json!({"$ref": "#/$defs/nowhere"})), "nowhere"),
        (Constraint::JsonSchema(json!({"$ref": "https://example.com/schema.json"})), "example.com"),
    ] {
        let why = refused(constraint.clone());
        assert!(why.contains(words) && why.len() < 800, "{constraint:?}: {why}");
    }
}

#[test]
fn an_equal_constraint_is_compiled_once() {
    let bench = Bench::new();
    let constraint = Constraint::Regex("[0-9]+".into());
    let key = format!("{constraint:?}");
    assert!(bench.compiler.kept(&key).is_none());
    bench.compile(&constraint).expect("compiles");
    assert!(bench.compiler.kept(&key).is_some());
    for n in 0..40 {
        bench.compile(&Constraint::Regex(format!("a{{{n}}}b"))).expect("compiles");
    }
    assert!(bench.compiler.kept(&key).is_none(), "the oldest goes first");
}

#[test]
fn a_slow_mask_is_not_waited_for_and_ends_with_its_request() {
    let bench = Bench::new();
    let compiled = bench.compile(&Constraint::Regex("[ab]+".into())).expect("compiles");
    // Nobody takes the work, as if all mask threads were busy.
    let (tasks, work) = crossbeam::channel::bounded::<MaskTask>(1);
    let (mut guide, stats) = (Guide::new(compiled, tasks), Stats::default());
    let mut patience = STEP_PATIENCE;
    assert!(guide.mask(&mut patience, &stats).expect("works").is_some(), "the first mask comes with the compilation");
    assert_eq!(patience, STEP_PATIENCE);
    guide.accept(u32::from(b'a'));
    for _ in 0..3 {
        assert!(guide.mask(&mut patience, &stats).expect("works").is_none());
        assert_eq!(patience, Duration::ZERO, "one step waits once, however many masks are late");
    }
    assert!(guide.is_away(&stats), "whoever asks for a mask has it computed");
    work.recv().expect("the task").run();
    assert!(guide.mask(&mut patience, &stats).expect("works").is_some());
    guide.accept(u32::from(b'1'));
    guide.look_at(&[]);
    work.recv().expect("the task").run();
    let error = guide.mask(&mut patience, &stats).expect_err("the expression has no digits");
    assert!(matches!(error, ConstraintError::Stuck { tokens: 2, .. }), "{error:?}");
    assert_eq!(stats.masks.get(), 2);
}
