//! The tokenizer and the chat template of the real model against recorded references.

use std::time::Instant;

use millrace_inference::{ChatTemplate, TemplateMessage, Tokenizer};
use proptest::prelude::*;

use crate::support::{ids, language_model, reference};

#[test]
fn every_recorded_string_has_the_recorded_ids_and_comes_back() {
    let Some(gguf) = language_model() else { return };
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a BPE vocabulary");
    let recorded = reference("tokenizer_reference.json");
    let cases = recorded["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 66);
    for case in cases {
        let text = case["text"].as_str().expect("text");
        assert_eq!(tokenizer.encode(text, true), ids(&case["ids_parse_special"]), "special tokens in {text:?}");
        let plain = tokenizer.encode(text, false);
        assert_eq!(plain, ids(&case["ids_plain"]), "plain {text:?}");
        assert_eq!(tokenizer.decode(&plain), case["detokenized_plain"].as_str().expect("text"));
    }
}

#[test]
fn every_recorded_conversation_renders_to_the_recorded_prompt() {
    let Some(gguf) = language_model() else { return };
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a BPE vocabulary");
    let template = ChatTemplate::from_gguf(&gguf).expect("a template");
    let recorded = reference("llama_reference.json");
    let cases = recorded["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 20);
    for case in cases {
        let messages: Vec<TemplateMessage> = case["messages"]
            .as_array()
            .expect("messages")
            .iter()
            .map(|m| TemplateMessage::new(m["role"].as_str().expect("role"), m["content"].as_str().expect("content")))
            .collect();
        let prompt = template.render(&messages, true).expect("renders");
        assert_eq!(prompt, case["prompt"].as_str().expect("prompt"));
        assert_eq!(tokenizer.encode(&prompt, true), ids(&case["prompt_ids"]));
    }
}

#[test]
fn special_tokens_of_a_user_stay_text() {
    let Some(gguf) = language_model() else { return };
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a BPE vocabulary");
    let end = tokenizer.eos().expect("the file names one");
    assert_eq!(tokenizer.encode("<|im_end|>", true), [end]);
    assert!(!tokenizer.encode("<|im_end|>", false).contains(&end));
    assert!(tokenizer.is_end(end) && tokenizer.is_end(tokenizer.special_id("<|endoftext|>").expect("known")));
    assert_eq!(tokenizer.decode(&[end]), "");
    assert_eq!(tokenizer.token_bytes(end), b"<|im_end|>");
    assert_eq!(tokenizer.token_bytes(u32::MAX), b"");
}

#[test]
fn a_long_text_without_a_space_takes_linear_time() {
    let Some(gguf) = language_model() else { return };
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a BPE vocabulary");
    let seconds = |bytes: usize| {
        let text = "ab".repeat(bytes / 2);
        let begun = Instant::now();
        assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false)), text);
        begun.elapsed().as_secs_f64()
    };
    seconds(10_000);
    let (short, long) = (seconds(50_000), seconds(800_000));
    // Sixteen times the text: a quadratic merge would take 256 times as long.
    assert!(long < short * 100.0 + 0.5, "{short} s, then {long} s");
}

#[test]
fn any_text_comes_back() {
    let Some(gguf) = language_model() else { return };
    let tokenizer = Tokenizer::from_gguf(&gguf).expect("a BPE vocabulary");
    // A few bytes that begin rare characters have no token in this vocabulary.
    let mut known = [false; 256];
    for id in 0..tokenizer.vocabulary() as u32 {
        if let [byte] = tokenizer.visible_bytes(id) {
            known[usize::from(*byte)] = true;
        }
    }
    let kept = |c: char| c.encode_utf8(&mut [0; 4]).bytes().all(|b| known[usize::from(b)]);
    let common = [(' ', '~'), ('\u{a1}', '\u{2ff}'), ('\u{370}', '\u{5ff}'), ('一', '龥'), ('가', '힣'), ('😀', '🙏')];
    for (first, last) in common {
        assert_eq!((first..=last).find(|c| !kept(*c)), None, "characters in common use have tokens");
    }
    proptest!(ProptestConfig::with_cases(400), |(text in "(?s)([ a-zA-Z0-9.,'!?\\n\\t]|\\PC|.){0,120}")| {
        let expected: String = text.chars().map(|c| if kept(c) { c } else { char::REPLACEMENT_CHARACTER }).collect();
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text, false)), expected);
    });
    // Words long enough for the heap must merge exactly as short ones do: piece by piece equals at once.
    proptest!(ProptestConfig::with_cases(200), |(word in "[a-z]{30,120}")| {
        let ids = tokenizer.encode(&word, false);
        let again: Vec<u32> = ids.iter().flat_map(|id| tokenizer.encode(&tokenizer.decode(&[*id]), false)).collect();
        prop_assert_eq!(ids, again);
    });
}
