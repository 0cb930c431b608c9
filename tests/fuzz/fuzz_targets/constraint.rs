//! Any constraint is refused with a reason, or can be followed: by any of the tokens that it allows, to the same text with
//! guesses and without.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use millrace_inference::constrain::{Allowed, Trial};
use millrace_inference::tokenizer::TokenizerParts;
use millrace_inference::{Constraint, Tokenizer};

/// Longest constraint and text: the fuzzer is to try many small ones.
const BYTES_MAX: usize = 400;
const TOKENS_MAX: usize = 24;

/// Printable bytes, some longer tokens, an end of turn.
fn trial() -> &'static Trial {
    static TRIAL: OnceLock<Trial> = OnceLock::new();
    TRIAL.get_or_init(|| {
        // The constraint library catches its own panics and makes errors of them, so a panic alone is no finding; one
        // that leaves our code still ends the run.
        std::panic::set_hook(Box::new(|_| {}));
        let mut tokens: Vec<String> = (b'!'..=b'~').map(|byte| char::from(byte).to_string()).collect();
        // The byte-level alphabet's signs for space and line feed.
        tokens.extend(["\u{120}", "\u{10a}", "{\"", "\":", "\"}", "true", "null", "12"].map(String::from));
        tokens.push("<|end|>".to_owned());
        let end = tokens.len() as u32 - 1;
        let types = (0..=end).map(|id| if id == end { 3 } else { 1 }).collect();
        let parts = TokenizerParts { kind: "gpt2".into(), tokens, types, eos: Some(end), ..TokenizerParts::default() };
        let tokenizer = Tokenizer::new(parts).expect("a complete vocabulary");
        Trial::new(Arc::new(tokenizer)).expect("it can be constrained")
    })
}

fn constraint(kind: u8, text: &str) -> Option<Constraint> {
    Some(match kind % 5 {
        0 => Constraint::JsonSchema(serde_json::from_str(text).ok()?),
        1 => Constraint::Regex(text.to_owned()),
        2 => Constraint::Grammar(text.to_owned()),
        3 => Constraint::Choice(text.lines().map(str::to_owned).collect()),
        _ => Constraint::Grammar(format!("start: a b*\na: /{text}/\nb: \"x\" a?")),
    })
}

fuzz_target!(|input: (u8, u64, &str)| {
    let (kind, seed, text) = input;
    if text.len() > BYTES_MAX {
        return;
    }
    let Some(constraint) = constraint(kind, text) else { return };
    // What is chosen depends on the text so far alone.
    let choose = |text: &[u32], allowed: Allowed<'_>| {
        let some: Vec<u32> = allowed.tokens().take(64).collect();
        let at = (seed >> (text.len() % 48)) as usize % some.len().max(1);
        some.get(at).copied().unwrap_or(u32::MAX)
    };
    let Ok(plain) = trial().write(constraint.clone(), TOKENS_MAX, choose, |_| Vec::new()) else { return };
    let guess = |text: &[u32]| {
        let mut guess: Vec<u32> = plain[text.len().min(plain.len())..].iter().copied().take(4).collect();
        if seed & 1 == 1 && let Some(last) = guess.last_mut() {
            *last ^= 5;
        }
        guess
    };
    let guessed = trial().write(constraint, TOKENS_MAX, choose, guess).expect("what was followed once is followed again");
    assert_eq!(guessed, plain, "guesses change nothing");
});
