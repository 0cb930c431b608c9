//! SentencePiece BPE against sentencepiece itself, on vocabularies that `tests/tools/spm_reference.py` trained.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Recorded {
    add_space_prefix: bool,
    tokens: Vec<String>,
    scores: Vec<f32>,
    types: Vec<u32>,
    texts: Vec<Text>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<u32>,
}

fn recorded() -> Vec<Recorded> {
    serde_json::from_str(include_str!("../../tests/data/spm_reference.json")).expect("the recording is JSON")
}

fn parts(recorded: &Recorded) -> TokenizerParts {
    TokenizerParts {
        kind: "llama".into(),
        tokens: recorded.tokens.clone(),
        scores: recorded.scores.clone(),
        types: recorded.types.clone(),
        bos: Some(1),
        eos: Some(2),
        add_space_prefix: Some(recorded.add_space_prefix),
        ..TokenizerParts::default()
    }
}

fn tokenizer(recorded: &Recorded) -> Tokenizer {
    Tokenizer::new(parts(recorded)).expect("a complete vocabulary")
}

#[test]
fn every_recorded_text_has_the_ids_of_sentencepiece_and_comes_back() {
    for recorded in recorded() {
        let tokenizer = tokenizer(&recorded);
        for Text { text, ids } in &recorded.texts {
            // sentencepiece puts a space in front only at the very beginning, not behind a special token as well.
            if !(recorded.add_space_prefix && text.contains("<|user|>")) {
                assert_eq!(&tokenizer.encode(text, false), ids, "{text:?} {}", recorded.add_space_prefix);
            }
            let expected = text.replace('\u{2581}', " ");
            assert_eq!(tokenizer.decode(&tokenizer.encode(text, false)), expected, "{}", recorded.add_space_prefix);
        }
    }
}

#[test]
fn control_tokens_of_a_user_stay_text_and_those_of_a_template_do_not() {
    for recorded in recorded() {
        let tokenizer = tokenizer(&recorded);
        assert_eq!(tokenizer.encode("<s>", true), [1]);
        assert!(!tokenizer.encode("<s>", false).contains(&1));
        assert!(tokenizer.adds_bos() && tokenizer.is_end(2));
    }
}

#[test]
fn a_space_is_put_in_front_at_the_beginning_and_behind_special_tokens_only() {
    let [with, without] = recorded().try_into().ok().expect("two vocabularies");
    let (with, without) = (tokenizer(&with), tokenizer(&without));
    let text = |tokenizer: &Tokenizer, ids: &[u32]| -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id).to_vec()).collect();
        String::from_utf8(bytes).expect("whole characters")
    };
    assert_eq!(text(&with, &with.encode("a<s>b", true)), " a<s> b");
    assert_eq!(text(&without, &without.encode("a<s>b", true)), "a<s>b");
    // A text in two parts.
    let mut ids = with.encode("a", false);
    with.append("b", false, &mut ids);
    assert_eq!(text(&with, &ids), " ab");
}

#[test]
fn damaged_vocabularies_are_refused() {
    let refuse = |change: fn(&mut TokenizerParts)| {
        let mut parts = parts(&recorded()[0]);
        change(&mut parts);
        Tokenizer::new(parts).expect_err("the vocabulary is damaged")
    };
    assert!(matches!(refuse(|parts| parts.kind = "t5".into()), TokenizerError::UnknownKind { kind } if kind == "t5"));
    assert!(matches!(refuse(|parts| parts.scores.clear()), TokenizerError::MissingField { .. }));
    assert!(matches!(refuse(|parts| parts.scores.truncate(9)), TokenizerError::Damaged { .. }));
    assert!(matches!(refuse(|parts| parts.scores[300] = f32::NAN), TokenizerError::Damaged { .. }));
    assert!(matches!(refuse(|parts| parts.types.fill(1)), TokenizerError::Damaged { .. }));
    assert!(matches!(refuse(|parts| parts.bos = Some(9999)), TokenizerError::Damaged { .. }));
}

/// The definition itself: join the best pair, leftmost first, until there is none.
fn naive(recorded: &Recorded, text: &str) -> Vec<u32> {
    let prefix = if recorded.add_space_prefix && !text.is_empty() { " " } else { "" };
    let written = format!("{prefix}{text}").replace(' ', "\u{2581}");
    let normal =
        |text: &str| (0..recorded.tokens.len()).find(|&i| recorded.types[i] == 1 && recorded.tokens[i] == text);
    let mut pieces: Vec<String> = written.chars().map(String::from).collect();
    loop {
        let joined = |i: usize| normal(&format!("{}{}", pieces[i], pieces[i + 1])).map(|id| (recorded.scores[id], i));
        let pairs = (0..pieces.len().saturating_sub(1)).filter_map(joined);
        let best = pairs.reduce(|best, pair| if pair.0 > best.0 { pair } else { best });
        let Some((_, i)) = best else { break };
        let right = pieces.remove(i + 1);
        pieces[i].push_str(&right);
    }
    let byte = |byte: u8| recorded.tokens.iter().position(|token| *token == format!("<0x{byte:02X}>"));
    let ids = pieces.iter().flat_map(|piece| match normal(piece) {
        Some(id) => vec![id as u32],
        None => piece.bytes().map(|b| byte(b).expect("all bytes have tokens") as u32).collect(),
    });
    ids.collect()
}

proptest! {
    #[test]
    fn joining_follows_its_definition(text in "(?s)([ a-z\n]|the|ing|\u{e9}|\u{65e5}|\u{1f980}){0,30}") {
        for recorded in recorded() {
            prop_assert_eq!(tokenizer(&recorded).encode(&text, false), naive(&recorded, &text));
        }
    }
}
