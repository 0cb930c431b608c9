//! The tokenizer of a language model: special tokens around one of two algorithms.

use std::cmp::Reverse;

use super::bpe::{Bpe, Scratch};
use super::parts::check_sizes;
use super::spm::Spm;
use super::{TokenKind, TokenizerError, TokenizerParts};
use crate::gguf::Gguf;

/// Values of `tokenizer.ggml.model`: byte-level BPE, and SentencePiece BPE.
pub(super) const BPE: &str = "gpt2";
pub(super) const SPM: &str = "llama";
/// Token names that end a turn in the chat formats in use, beside the ids that the file names.
const END_NAMES: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end|>",
    "<end_of_turn>",
    "<|return|>",
];

/// Turns text into the token ids of one model and back. Immutable, shared between threads.
pub struct Tokenizer {
    algorithm: Algorithm,
    symbols: Symbols,
    kinds: Vec<TokenKind>,
    special: Vec<Special>,
    /// Bytes with which some special token begins.
    special_first: [bool; 256],
    bos: Option<u32>,
    eos: Option<u32>,
    end: Vec<u32>,
    add_bos: bool,
}

enum Algorithm {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
}

/// A token that is matched as a whole before splitting.
struct Special {
    text: Box<[u8]>,
    id: u32,
    /// Matched in every text, not only where special tokens are asked for.
    always: bool,
}

/// Bytes of all symbols one behind the other: the vocabulary, then what an algorithm adds.
#[derive(Default)]
pub(super) struct Symbols {
    bytes: Vec<u8>,
    /// Symbol `i` is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<u32>,
}

impl Symbols {
    /// Adds a symbol and returns its number.
    pub(super) fn add(&mut self, bytes: &[u8]) -> u32 {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len() as u32);
        self.ends.len() as u32 - 1
    }

    pub(super) fn get(&self, symbol: u32) -> &[u8] {
        let i = symbol as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.bytes[start..self.ends[i] as usize]
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("Tokenizer");
        match &self.algorithm {
            Algorithm::Bpe(bpe) => f.field("rules", &bpe.rules()),
            Algorithm::Spm(_) => f.field("rules", &SPM),
        };
        f.field("tokens", &self.kinds.len()).finish()
    }
}

impl Tokenizer {
    /// The tokenizer of a model file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(TokenizerParts::from_gguf(gguf)?)
    }

    /// Checks the fields and builds the tables.
    pub fn new(parts: TokenizerParts) -> Result<Self, TokenizerError> {
        if ![BPE, SPM].contains(&parts.kind.as_str()) {
            return Err(TokenizerError::UnknownKind { kind: parts.kind });
        }
        check_sizes(&parts)?;
        let kind = |id: usize| parts.types.get(id).map_or(TokenKind::Normal, |n| TokenKind::from_gguf(*n));
        let kinds: Vec<TokenKind> = (0..parts.tokens.len()).map(kind).collect();
        let mut symbols = Symbols::default();
        let (algorithm, adds_bos) = if parts.kind == BPE {
            let bpe = Bpe::new(&parts, &kinds, &mut symbols)?;
            let adds_bos = bpe.rules() == super::PreTokenizer::Llama3;
            (Algorithm::Bpe(Box::new(bpe)), adds_bos)
        } else {
            (Algorithm::Spm(Box::new(Spm::new(&parts, &kinds, &mut symbols)?)), true)
        };
        let mut special: Vec<Special> = (0_u32..)
            .zip(&kinds)
            .filter(|(_, kind)| matches!(kind, TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined))
            .map(|(id, kind)| Special { text: symbols.get(id).into(), id, always: *kind == TokenKind::UserDefined })
            .filter(|special| !special.text.is_empty())
            .collect();
        // The longest match wins where one special token begins like another.
        special.sort_by_key(|s| Reverse(s.text.len()));
        let mut special_first = [false; 256];
        for s in &special {
            special_first[usize::from(s.text[0])] = true;
        }
        let mut end: Vec<u32> = parts.eos.into_iter().chain(parts.eot).collect();
        for s in &special {
            if !s.always && END_NAMES.iter().any(|name| name.as_bytes() == &*s.text) && !end.contains(&s.id) {
                end.push(s.id);
            }
        }
        let add_bos = parts.add_bos.unwrap_or(adds_bos);
        Ok(Self { algorithm, symbols, kinds, special, special_first, bos: parts.bos, eos: parts.eos, end, add_bos })
    }

    /// Number of tokens.
    pub fn vocabulary(&self) -> usize {
        self.kinds.len()
    }

    /// Token ids of a text. With `parse_special`, strings such as `<|im_end|>` become their control token:
    /// right for rendered templates, wrong for text that a user wrote.
    pub fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        self.append(text, parse_special, &mut ids);
        ids
    }

    /// Appends the ids of a text to those of what stands before it. Some vocabularies write the beginning of a text,
    /// and what follows a special token, with a space in front; the continuation of a text gets none.
    pub fn append(&self, text: &str, parse_special: bool, ids: &mut Vec<u32>) {
        let mut scratch = Scratch::default();
        let mut start = 0;
        let mut at = 0;
        while at < text.len() {
            match self.special_at(&text.as_bytes()[at..], parse_special) {
                Some(special) => {
                    self.append_plain(&text[start..at], &mut scratch, ids);
                    ids.push(special.id);
                    at += special.text.len();
                    start = at;
                }
                None => at += 1,
            }
        }
        self.append_plain(&text[start..], &mut scratch, ids);
    }

    fn append_plain(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        match &self.algorithm {
            Algorithm::Bpe(bpe) => bpe.encode(text, &self.symbols, scratch, ids),
            Algorithm::Spm(spm) => spm.encode(text, ids.last().is_none_or(|id| self.is_special(*id)), ids),
        }
    }

    fn is_special(&self, id: u32) -> bool {
        matches!(self.kind(id), TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined)
    }

    /// The text of a sequence of tokens; control tokens give nothing, bytes that are not UTF-8 give U+FFFD. A space that
    /// [`Tokenizer::encode`] puts in front is left out again.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for (i, id) in ids.iter().enumerate() {
            let begins = i == 0 || self.is_special(ids[i - 1]);
            let added = begins && matches!(&self.algorithm, Algorithm::Spm(spm) if spm.adds_space());
            let visible = self.visible_bytes(*id);
            let space = added && !self.is_special(*id) && visible.first() == Some(&b' ');
            bytes.extend_from_slice(&visible[usize::from(space)..]);
        }
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// Bytes of one token, control tokens included; empty for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if (id as usize) < self.kinds.len() { self.symbols.get(id) } else { &[] }
    }

    /// Bytes of one token as they appear in a reply: control tokens give nothing.
    pub fn visible_bytes(&self, id: u32) -> &[u8] {
        if self.kind(id) == TokenKind::Control { &[] } else { self.token_bytes(id) }
    }

    /// What a token is; ids outside the vocabulary are `Unused`.
    pub fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    /// Id of the token with exactly this text among control and user-defined tokens.
    pub fn special_id(&self, text: &str) -> Option<u32> {
        self.special.iter().find(|s| &*s.text == text.as_bytes()).map(|s| s.id)
    }

    /// Begin-of-text token that the file names.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Whether a text that is not a rendered chat gets the begin-of-text token in front.
    pub fn adds_bos(&self) -> bool {
        self.add_bos && self.bos.is_some()
    }

    /// End-of-text token that the file names.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// All tokens that end a turn.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end
    }

    /// Whether this token ends a turn.
    pub fn is_end(&self, id: u32) -> bool {
        self.end.contains(&id)
    }

    fn special_at(&self, text: &[u8], parse_special: bool) -> Option<&Special> {
        if !self.special_first[usize::from(text[0])] {
            return None;
        }
        self.special.iter().find(|s| (parse_special || s.always) && text.starts_with(&s.text))
    }
}
