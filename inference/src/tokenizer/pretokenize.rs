//! Splitting text into words before BPE, by the rules that `tokenizer.ggml.pre` names.
//!
//! The published rules are regular expressions with a look-ahead over Unicode categories. They are few and
//! fixed, so they are written out here as one pass over the characters: no regex engine, no backtracking, time
//! linear in the text.

use unicode_general_category::{GeneralCategory as G, get_general_category};

/// A named set of splitting rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// GPT-2: contractions, `[space]letters`, `[space]digits`, `[space]others`, white space.
    Gpt2,
    /// Every digit on its own, then GPT-2's rules on what lies between digits.
    Smollm,
    /// Llama 3: digits in groups of up to three, line ends kept with punctuation.
    Llama3,
    /// Qwen 2: as Llama 3, but every digit on its own.
    Qwen2,
}

impl PreTokenizer {
    /// The rules for a value of `tokenizer.ggml.pre`; `None` when this build does not know it.
    pub fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "gpt-2" | "gpt2" | "phi-2" | "roberta-bpe" => Self::Gpt2,
            "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => Self::Smollm,
            "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "dbrx" | "smaug-bpe" => Self::Llama3,
            "qwen2" | "deepseek-r1-qwen" | "stablelm2" => Self::Qwen2,
            _ => return None,
        })
    }

    /// Names accepted by [`Self::by_name`] that stand for distinct rules.
    pub const NAMES: &'static str = "gpt-2, smollm, llama-bpe, qwen2";

    /// Calls `word` for every piece of `text`, in order; the pieces together are the text.
    pub fn split<'t>(self, text: &'t str, mut word: impl FnMut(&'t str)) {
        match self {
            Self::Gpt2 => split_gpt2(text, &mut word),
            Self::Smollm => split_smollm(text, &mut word),
            Self::Llama3 => split_llama3(text, 3, &mut word),
            Self::Qwen2 => split_llama3(text, 1, &mut word),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    if c.is_ascii() {
        return match c {
            'a'..='z' | 'A'..='Z' => Class::Letter,
            '0'..='9' => Class::Number,
            ' ' | '\t'..='\r' => Class::Space,
            _ => Class::Other,
        };
    }
    if c.is_whitespace() {
        return Class::Space;
    }
    match get_general_category(c) {
        G::UppercaseLetter | G::LowercaseLetter | G::TitlecaseLetter | G::ModifierLetter | G::OtherLetter => {
            Class::Letter
        }
        G::DecimalNumber | G::LetterNumber | G::OtherNumber => Class::Number,
        _ => Class::Other,
    }
}

/// Length in bytes of the longest prefix whose characters all satisfy `keep`.
fn run(text: &str, mut keep: impl FnMut(char) -> bool) -> usize {
    text.char_indices().find(|(_, c)| !keep(*c)).map_or(text.len(), |(at, _)| at)
}

fn run_of(text: &str, wanted: Class) -> usize {
    run(text, |c| class(c) == wanted)
}

/// `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll`, `'d` at the beginning: length in bytes, else 0.
fn contraction(text: &str, any_case: bool) -> usize {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&b'\'') {
        return 0;
    }
    let at = |i: usize| bytes.get(i).map_or(0, |b| if any_case { b.to_ascii_lowercase() } else { *b });
    match (at(1), at(2)) {
        (b's' | b't' | b'm' | b'd', _) => 2,
        (b'r' | b'v', b'e') | (b'l', b'l') => 3,
        _ => 0,
    }
}

/// `\s+(?!\S)|\s+`: a run of white space gives its last character to the word behind it.
fn white_space(text: &str) -> usize {
    let all = run_of(text, Class::Space);
    if all == text.len() {
        return all;
    }
    let last = text[..all].chars().next_back().map_or(0, char::len_utf8);
    if all > last { all - last } else { all }
}

fn split_gpt2<'t>(mut text: &'t str, word: &mut impl FnMut(&'t str)) {
    while let Some(first) = text.chars().next() {
        let end = match contraction(text, false) {
            0 => {
                // An optional single space belongs to the letters, digits or signs behind it.
                let lead = usize::from(first == ' ');
                match text[lead..].chars().next().map(class) {
                    Some(kind) if kind != Class::Space => lead + run_of(&text[lead..], kind),
                    _ => white_space(text),
                }
            }
            n => n,
        };
        let (head, rest) = text.split_at(end);
        word(head);
        text = rest;
    }
}

fn split_smollm<'t>(text: &'t str, word: &mut impl FnMut(&'t str)) {
    let mut start = 0;
    for (at, c) in text.char_indices() {
        if class(c) == Class::Number {
            split_gpt2(&text[start..at], word);
            let end = at + c.len_utf8();
            word(&text[at..end]);
            start = end;
        }
    }
    split_gpt2(&text[start..], word);
}

fn split_llama3<'t>(mut text: &'t str, digits: usize, word: &mut impl FnMut(&'t str)) {
    let line_end = |c: char| c == '\r' || c == '\n';
    while let Some(first) = text.chars().next() {
        let end = match contraction(text, true) {
            0 => match class(first) {
                Class::Letter => run_of(text, Class::Letter),
                Class::Number => {
                    let mut left = digits + 1;
                    run(text, |c| {
                        left -= 1;
                        left > 0 && class(c) == Class::Number
                    })
                }
                kind => llama3_rest(text, first, kind, line_end),
            },
            n => n,
        };
        let (head, rest) = text.split_at(end);
        word(head);
        text = rest;
    }
}

/// The alternatives of Llama 3's rule that begin with white space or a sign.
fn llama3_rest(text: &str, first: char, kind: Class, line_end: impl Fn(char) -> bool + Copy) -> usize {
    let after = &text[first.len_utf8()..];
    let next = after.chars().next().map(class);
    // [^\r\n\p{L}\p{N}]?\p{L}+
    if !line_end(first) && next == Some(Class::Letter) {
        return first.len_utf8() + run_of(after, Class::Letter);
    }
    // ` ?[^\s\p{L}\p{N}]+[\r\n]*`
    let lead = usize::from(first == ' ');
    if kind == Class::Other || (lead == 1 && next == Some(Class::Other)) {
        let signs = lead + run_of(&text[lead..], Class::Other);
        return signs + run(&text[signs..], line_end);
    }
    // `\s*[\r\n]+`: the longest white space that ends in line ends.
    let blank = run_of(text, Class::Space);
    if let Some(last) = text[..blank].rfind(line_end) {
        return last + 1;
    }
    white_space(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(rules: PreTokenizer, text: &str, expected: &[&str]) {
        let mut words = Vec::new();
        rules.split(text, |w| words.push(w));
        assert_eq!(words, expected, "{rules:?} on {text:?}");
    }

    #[test]
    fn gpt2_words() {
        check(PreTokenizer::Gpt2, "Hello world", &["Hello", " world"]);
        check(PreTokenizer::Gpt2, "it's  we'll", &["it", "'s", " ", " we", "'ll"]);
        check(PreTokenizer::Gpt2, "a   b", &["a", "  ", " b"]);
        check(PreTokenizer::Gpt2, "a\n\nb ", &["a", "\n", "\n", "b", " "]);
        check(PreTokenizer::Gpt2, "x 1234!?", &["x", " 1234", "!?"]);
        check(PreTokenizer::Gpt2, "\t\t", &["\t\t"]);
    }

    #[test]
    fn smollm_splits_every_digit_and_looks_ahead_only_inside_the_piece() {
        check(PreTokenizer::Smollm, "in 1984", &["in", " ", "1", "9", "8", "4"]);
        check(PreTokenizer::Smollm, "a  1", &["a", "  ", "1"]);
        check(PreTokenizer::Smollm, "v2.0b", &["v", "2", ".", "0", "b"]);
    }

    #[test]
    fn llama3_groups_digits_and_keeps_line_ends() {
        check(PreTokenizer::Llama3, "12345 it'S", &["123", "45", " it", "'S"]);
        check(PreTokenizer::Llama3, "end.\n\nNext", &["end", ".\n\n", "Next"]);
        check(PreTokenizer::Llama3, "a \n b", &["a", " \n", " b"]);
        check(PreTokenizer::Llama3, "(word)  x", &["(word", ")", " ", " x"]);
        check(PreTokenizer::Qwen2, "x12", &["x", "1", "2"]);
    }

    proptest! {
        #[test]
        fn the_words_together_are_the_text(text in "(?s)[ \\t\\n\\ra-c1-3'.!\u{e9}\u{3000}\u{4e2d}\u{1f980}]{0,40}") {
            for rules in [PreTokenizer::Gpt2, PreTokenizer::Smollm, PreTokenizer::Llama3, PreTokenizer::Qwen2] {
                let mut joined = String::new();
                rules.split(&text, |w| { assert!(!w.is_empty()); joined.push_str(w); });
                prop_assert_eq!(&joined, &text);
            }
        }
    }
}
