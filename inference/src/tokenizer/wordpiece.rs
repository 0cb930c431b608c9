//! WordPiece as uncased and cased BERT models use it.

use std::collections::HashMap;

use unicode_general_category::{GeneralCategory as G, get_general_category};
use unicode_normalization::UnicodeNormalization;

/// A longer word becomes one unknown token, as in the reference; it also bounds the search inside a word.
const WORD_CHARS_MAX: usize = 100;
/// Most lines of a vocabulary.
const VOCABULARY_MAX: usize = 1 << 20;

/// Why a vocabulary cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WordPieceError {
    /// A token without which nothing works is missing.
    #[error("the vocabulary has no token {0}; it belongs to another kind of model")]
    Missing(&'static str),
    /// Too many lines.
    #[error("the vocabulary has {0} lines, allowed are {VOCABULARY_MAX}")]
    TooLarge(usize),
}

/// The tokenizer of a BERT-style model.
pub struct WordPiece {
    /// Tokens that begin a word.
    initial: HashMap<Box<str>, u32>,
    /// Tokens that continue one, without their `##`.
    inner: HashMap<Box<str>, u32>,
    size: usize,
    lowercase: bool,
    unknown: u32,
    start: u32,
    end: u32,
}

impl std::fmt::Debug for WordPiece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WordPiece").field("tokens", &self.size).field("lowercase", &self.lowercase).finish()
    }
}

impl WordPiece {
    /// From the text of a `vocab.txt`: one token per line, the line number is its id.
    pub fn new(vocabulary: &str, lowercase: bool) -> Result<Self, WordPieceError> {
        let (mut initial, mut inner, mut size) = (HashMap::new(), HashMap::new(), 0);
        for (id, line) in (0_u32..).zip(vocabulary.lines()) {
            size += 1;
            match line.trim_end_matches('\r').strip_prefix("##") {
                Some(rest) if !rest.is_empty() => inner.insert(rest.into(), id),
                _ => initial.insert(line.trim_end_matches('\r').into(), id),
            };
        }
        if size > VOCABULARY_MAX {
            return Err(WordPieceError::TooLarge(size));
        }
        let find = |name: &'static str| initial.get(name).copied().ok_or(WordPieceError::Missing(name));
        let (unknown, start, end) = (find("[UNK]")?, find("[CLS]")?, find("[SEP]")?);
        Ok(Self { initial, inner, size, lowercase, unknown, start, end })
    }

    /// Number of tokens.
    pub fn vocabulary(&self) -> usize {
        self.size
    }

    /// Ids of a text between start and end token, `max` at most in all; the rest of the text is left out.
    pub fn encode(&self, text: &str, max: usize) -> Vec<u32> {
        let max = max.max(2);
        let mut ids = vec![self.start];
        let mut word = String::new();
        for c in self.normalised(text) {
            if ids.len() >= max {
                break;
            }
            if c.is_whitespace() {
                self.end_word(&mut word, &mut ids);
            } else if is_punctuation(c) || is_cjk(c) {
                self.end_word(&mut word, &mut ids);
                word.push(c);
                self.end_word(&mut word, &mut ids);
            } else {
                word.push(c);
            }
        }
        self.end_word(&mut word, &mut ids);
        ids.truncate(max - 1);
        ids.push(self.end);
        ids
    }

    /// Without control characters, and for uncased models in lower case without accents.
    fn normalised<'t>(&self, text: &'t str) -> Box<dyn Iterator<Item = char> + 't> {
        let clean = text.chars().filter(|c| c.is_whitespace() || !is_control(*c));
        if !self.lowercase {
            return Box::new(clean);
        }
        let bare = clean.nfd().filter(|c| get_general_category(*c) != G::NonspacingMark);
        Box::new(bare.flat_map(char::to_lowercase))
    }

    /// Greedy longest match from the left; a word with an unknown part is unknown as a whole.
    fn end_word(&self, word: &mut String, ids: &mut Vec<u32>) {
        if word.is_empty() {
            return;
        }
        let begun = ids.len();
        let mut rest = word.as_str();
        if word.chars().count() > WORD_CHARS_MAX {
            ids.push(self.unknown);
            rest = "";
        }
        while !rest.is_empty() {
            let table = if rest.len() == word.len() { &self.initial } else { &self.inner };
            let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
            let found = ends.into_iter().find_map(|end| table.get(&rest[..end]).map(|id| (end, *id)));
            match found {
                Some((end, id)) => {
                    ids.push(id);
                    rest = &rest[end..];
                }
                None => {
                    ids.truncate(begun);
                    ids.push(self.unknown);
                    break;
                }
            }
        }
        word.clear();
    }
}

/// Characters that the reference drops.
fn is_control(c: char) -> bool {
    c == '\0'
        || c == char::REPLACEMENT_CHARACTER
        || matches!(get_general_category(c), G::Control | G::Format | G::PrivateUse | G::Surrogate | G::Unassigned)
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation()
        || matches!(
            get_general_category(c),
            G::ConnectorPunctuation
                | G::DashPunctuation
                | G::OpenPunctuation
                | G::ClosePunctuation
                | G::InitialPunctuation
                | G::FinalPunctuation
                | G::OtherPunctuation
        )
}

/// The ideograph blocks that the reference splits into single characters.
fn is_cjk(c: char) -> bool {
    matches!(u32::from(c),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x20000..=0x2A6DF | 0x2A700..=0x2B73F | 0x2B740..=0x2B81F
        | 0x2B920..=0x2CEAF | 0xF900..=0xFAFF | 0x2F800..=0x2FA1F)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VOCABULARY: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nun\n##aff\n##able\ncafe\n,\n中\n文\n##s\na";

    fn ids(text: &str) -> Vec<u32> {
        WordPiece::new(VOCABULARY, true).expect("complete").encode(text, 256)
    }

    #[test]
    fn the_longest_piece_wins_from_the_left() {
        assert_eq!(ids("unaffable"), [2, 4, 5, 6, 3]);
        assert_eq!(ids("unaffablex un"), [2, 1, 4, 3]);
    }

    #[test]
    fn accents_case_and_control_characters_vanish() {
        assert_eq!(ids("CAF\u{c9}S,\u{200d} ca\u{0}fe"), [2, 7, 11, 8, 7, 3]);
    }

    #[test]
    fn ideographs_stand_alone() {
        assert_eq!(ids("中文a"), [2, 9, 10, 12, 3]);
    }

    #[test]
    fn a_long_text_is_cut_and_still_ends() {
        let tokenizer = WordPiece::new(VOCABULARY, true).expect("complete");
        assert_eq!(tokenizer.encode(&"a ".repeat(1000), 5), [2, 12, 12, 12, 3]);
        assert_eq!(tokenizer.encode(&"q".repeat(101), 5), [2, 1, 3]);
    }

    #[test]
    fn an_incomplete_vocabulary_is_refused() {
        assert_eq!(WordPiece::new("[UNK]\n[CLS]", true).err(), Some(WordPieceError::Missing("[SEP]")));
    }

    proptest! {
        #[test]
        fn any_text_gives_known_ids_within_the_bound(text in "\\PC*", max in 2_usize..20) {
            let tokenizer = WordPiece::new(VOCABULARY, true).expect("complete");
            let ids = tokenizer.encode(&text, max);
            prop_assert!(ids.len() <= max && ids.iter().all(|id| (*id as usize) < tokenizer.vocabulary()));
            prop_assert_eq!((ids[0], ids[ids.len() - 1]), (2, 3));
        }
    }
}
