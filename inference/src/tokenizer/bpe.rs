//! Byte-level BPE, built from the `tokenizer.ggml.*` fields of a GGUF file.
//!
//! Cost: one word of `n` symbols takes O(n log n); a word is at most the whole text, so a megabyte without a
//! space costs about a second and never n². Memory: the token bytes once, one hash entry per merge.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use super::PreTokenizer;
use crate::gguf::Gguf;

/// The one value of `tokenizer.ggml.model` that is supported: byte-level BPE.
const KIND: &str = "gpt2";
/// Words up to this many symbols are merged by scanning, longer ones with a heap.
const SCAN_SYMBOLS_MAX: usize = 24;
/// Most tokens a vocabulary may have; ids above this are not worth their memory on this engine.
const VOCABULARY_MAX: usize = 1 << 20;
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

/// What a token is, from `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Ordinary text.
    Normal,
    /// Stands for input that has no token.
    Unknown,
    /// Structure such as end of turn; never part of visible text.
    Control,
    /// Added text that is matched before any splitting.
    UserDefined,
    /// Reserved place in the vocabulary.
    Unused,
}

impl TokenKind {
    /// From the number that GGUF files use; unknown numbers count as normal text.
    pub fn from_gguf(number: u32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            _ => Self::Normal,
        }
    }
}

/// Why a vocabulary cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A field that is needed is missing or of the wrong type.
    #[error("the model file has no usable field {field}; convert the model again with a current converter")]
    MissingField {
        /// Name of the field.
        field: &'static str,
    },
    /// Another tokenizer algorithm.
    #[error(
        "this model uses the tokenizer kind {kind:?}, supported is \"gpt2\" (byte-level BPE); choose another model"
    )]
    UnknownKind {
        /// Value of `tokenizer.ggml.model`.
        kind: String,
    },
    /// Another splitting rule.
    #[error("this model splits text by the rules {name:?}, known are {}; choose another model", PreTokenizer::NAMES)]
    UnknownRules {
        /// Value of `tokenizer.ggml.pre`.
        name: String,
    },
    /// The fields contradict each other.
    #[error("the vocabulary of the model file is damaged: {what}; fetch the file again")]
    Damaged {
        /// What is wrong.
        what: String,
    },
}

/// The fields a tokenizer is built from.
#[derive(Clone, Debug, Default)]
pub struct TokenizerParts {
    /// `tokenizer.ggml.model`.
    pub kind: String,
    /// `tokenizer.ggml.pre`; empty means GPT-2's rules.
    pub rules: String,
    /// `tokenizer.ggml.tokens`.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`; may be empty.
    pub types: Vec<u32>,
    /// `tokenizer.ggml.merges`: two parts with a space between, best first.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
}

/// Byte-level BPE of one model. Immutable, shared between threads.
pub struct Tokenizer {
    rules: PreTokenizer,
    /// Bytes of all symbols one behind the other: vocabulary first, then parts that only merges name.
    bytes: Vec<u8>,
    /// Symbol `i` is `bytes[ends[i - 1]..ends[i]]`.
    ends: Vec<u32>,
    kinds: Vec<TokenKind>,
    merges: HashMap<(u32, u32), Merge, BuildHasherDefault<PairHasher>>,
    /// Token of each single byte; `NO_SYMBOL` where the vocabulary has none.
    single: [u32; 256],
    /// Whole words that become one token without merging (Llama 3).
    whole: HashMap<Box<[u8]>, u32>,
    special: Vec<Special>,
    /// Bytes with which some special token begins.
    special_first: [bool; 256],
    bos: Option<u32>,
    eos: Option<u32>,
    end: Vec<u32>,
    add_bos: bool,
}

const NO_SYMBOL: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    into: u32,
}

/// A token that is matched as a whole before splitting.
struct Special {
    text: Box<[u8]>,
    id: u32,
    /// Matched in every text, not only where special tokens are asked for.
    always: bool,
}

/// Multiplicative hash of two ids; the keys come from the model file, not from users.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }
    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0.rotate_left(26) ^ u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("rules", &self.rules).field("tokens", &self.kinds.len()).finish()
    }
}

impl TokenizerParts {
    /// Reads the fields from a model file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let strings = |field: &'static str| {
            let array = gguf.array(field).ok().and_then(|a| a.strings());
            array.map(|s| s.map(str::to_owned).collect()).ok_or(TokenizerError::MissingField { field })
        };
        let kind = gguf.str("tokenizer.ggml.model");
        let kind = kind.map_err(|_| TokenizerError::MissingField { field: "tokenizer.ggml.model" })?;
        if kind != KIND {
            // Other kinds lack the fields below; say what matters first.
            return Err(TokenizerError::UnknownKind { kind: kind.to_owned() });
        }
        let types = gguf.array("tokenizer.ggml.token_type").ok().and_then(|a| a.u64s()).unwrap_or_default();
        Ok(Self {
            kind: kind.to_owned(),
            rules: gguf.str("tokenizer.ggml.pre").unwrap_or_default().to_owned(),
            tokens: strings("tokenizer.ggml.tokens")?,
            types: types.into_iter().map(|n| u32::try_from(n).unwrap_or(0)).collect(),
            merges: strings("tokenizer.ggml.merges")?,
            bos: gguf.u32("tokenizer.ggml.bos_token_id").ok(),
            eos: gguf.u32("tokenizer.ggml.eos_token_id").ok(),
            eot: gguf.u32("tokenizer.ggml.eot_token_id").ok(),
            add_bos: gguf.bool("tokenizer.ggml.add_bos_token").ok(),
        })
    }
}

impl Tokenizer {
    /// The tokenizer of a model file.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(TokenizerParts::from_gguf(gguf)?)
    }

    /// Checks the fields and builds the tables.
    pub fn new(parts: TokenizerParts) -> Result<Self, TokenizerError> {
        if parts.kind != KIND {
            return Err(TokenizerError::UnknownKind { kind: parts.kind });
        }
        let rules = match parts.rules.as_str() {
            "" | "default" => PreTokenizer::Gpt2,
            name => PreTokenizer::by_name(name).ok_or_else(|| TokenizerError::UnknownRules { name: name.into() })?,
        };
        let vocabulary = parts.tokens.len();
        check_sizes(&parts)?;

        let to_byte = byte_alphabet();
        let mut symbols = Symbols::default();
        let mut kinds = Vec::with_capacity(vocabulary);
        let mut special = Vec::new();
        for (id, text) in (0_u32..).zip(&parts.tokens) {
            let kind = parts.types.get(id as usize).map_or(TokenKind::Normal, |n| TokenKind::from_gguf(*n));
            kinds.push(kind);
            match kind {
                TokenKind::Normal | TokenKind::Unused => symbols.add(&from_alphabet(text, &to_byte), true),
                _ => {
                    symbols.add(text.as_bytes(), false);
                    if !text.is_empty() {
                        let always = kind == TokenKind::UserDefined;
                        special.push(Special { text: text.as_bytes().into(), id, always });
                    }
                }
            }
        }
        // The longest match wins where one special token begins like another.
        special.sort_by_key(|s| Reverse(s.text.len()));
        let mut special_first = [false; 256];
        for s in &special {
            special_first[usize::from(s.text[0])] = true;
        }

        let mut merges = HashMap::with_capacity_and_hasher(parts.merges.len(), BuildHasherDefault::default());
        for (rank, line) in (0_u32..).zip(&parts.merges) {
            // A part may itself begin with a space only in alphabets without byte mapping, so look from index 1.
            let cut = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
            let Some(cut) = cut else {
                return Err(damaged(format!("merge {rank} ({line:?}) is not two parts with a space between")));
            };
            let left = from_alphabet(&line[..cut], &to_byte);
            let right = from_alphabet(&line[cut + 1..], &to_byte);
            let joined = [left.as_slice(), right.as_slice()].concat();
            let key = (symbols.intern(&left), symbols.intern(&right));
            let into = symbols.intern(&joined);
            merges.entry(key).or_insert(Merge { rank, into });
        }

        let mut single = [NO_SYMBOL; 256];
        for (slot, byte) in single.iter_mut().zip(0_u8..) {
            let symbol = symbols.index.get([byte].as_slice()).copied();
            *slot = symbol.filter(|id| (*id as usize) < vocabulary).unwrap_or(NO_SYMBOL);
        }
        // Llama 3 takes a word that is a token as it stands, even where no chain of merges leads to it.
        let whole = if rules == PreTokenizer::Llama3 {
            let ids = vocabulary as u32;
            symbols.index.iter().filter(|(_, id)| **id < ids).map(|(b, id)| (b.clone(), *id)).collect()
        } else {
            HashMap::new()
        };
        let mut end: Vec<u32> = parts.eos.into_iter().chain(parts.eot).collect();
        for s in &special {
            if !s.always && END_NAMES.iter().any(|name| name.as_bytes() == &*s.text) && !end.contains(&s.id) {
                end.push(s.id);
            }
        }
        Ok(Self {
            rules,
            bytes: symbols.bytes,
            ends: symbols.ends,
            kinds,
            merges,
            single,
            whole,
            special,
            special_first,
            bos: parts.bos,
            eos: parts.eos,
            end,
            add_bos: parts.add_bos.unwrap_or(rules == PreTokenizer::Llama3),
        })
    }

    /// Number of tokens.
    pub fn vocabulary(&self) -> usize {
        self.kinds.len()
    }

    /// Token ids of a text. With `parse_special`, strings such as `<|im_end|>` become their control token:
    /// right for rendered templates, wrong for text that a user wrote.
    pub fn encode(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut scratch = Scratch::default();
        let mut start = 0;
        let mut at = 0;
        while at < text.len() {
            match self.special_at(&text.as_bytes()[at..], parse_special) {
                Some(special) => {
                    self.encode_plain(&text[start..at], &mut scratch, &mut ids);
                    ids.push(special.id);
                    at += special.text.len();
                    start = at;
                }
                None => at += 1,
            }
        }
        self.encode_plain(&text[start..], &mut scratch, &mut ids);
        ids
    }

    /// The text of a sequence of tokens; control tokens give nothing, bytes that are not UTF-8 give U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        for id in ids {
            bytes.extend_from_slice(self.visible_bytes(*id));
        }
        match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        }
    }

    /// Bytes of one token, control tokens included; empty for an id outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if (id as usize) < self.kinds.len() { self.symbol_bytes(id) } else { &[] }
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

    fn symbol_bytes(&self, symbol: u32) -> &[u8] {
        let i = symbol as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.bytes[start..self.ends[i] as usize]
    }

    fn special_at(&self, text: &[u8], parse_special: bool) -> Option<&Special> {
        if !self.special_first[usize::from(text[0])] {
            return None;
        }
        self.special.iter().find(|s| (parse_special || s.always) && text.starts_with(&s.text))
    }

    fn encode_plain(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let has_token = |byte: u8| self.single[usize::from(byte)] != NO_SYMBOL;
        if text.bytes().all(has_token) {
            return self.encode_words(text, scratch, ids);
        }
        // Some vocabularies lack bytes of rare characters. Such a character becomes U+FFFD: dropping it would change
        // the text silently, and the unknown token is often the end-of-text token, which no user may write.
        let known = |c: char| c.encode_utf8(&mut [0; 4]).bytes().all(has_token);
        let replaced =
            |c: char| if known(c) { Some(c) } else { Some(char::REPLACEMENT_CHARACTER).filter(|c| known(*c)) };
        let text: String = text.chars().filter_map(replaced).collect();
        self.encode_words(&text, scratch, ids);
    }

    fn encode_words(&self, text: &str, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        self.rules.split(text, |word| {
            if let Some(id) = self.whole.get(word.as_bytes()) {
                ids.push(*id);
                return;
            }
            scratch.symbols.clear();
            scratch.symbols.extend(word.bytes().map(|b| self.single[usize::from(b)]));
            if scratch.symbols.len() <= SCAN_SYMBOLS_MAX {
                self.merge_by_scan(&mut scratch.symbols);
            } else {
                self.merge_by_heap(scratch);
            }
            self.finish_word(word.as_bytes(), &scratch.symbols, ids);
        });
    }

    fn merge_of(&self, left: u32, right: u32) -> Option<Merge> {
        self.merges.get(&(left, right)).copied()
    }

    /// Applies the best merge, leftmost first, until none is left. Quadratic, so for short words only.
    fn merge_by_scan(&self, symbols: &mut Vec<u32>) {
        loop {
            let best = symbols
                .windows(2)
                .enumerate()
                .filter_map(|(i, pair)| self.merge_of(pair[0], pair[1]).map(|m| (m.rank, i, m.into)))
                .min();
            let Some((_, i, into)) = best else { return };
            symbols[i] = into;
            symbols.remove(i + 1);
        }
    }

    /// The same result with a heap over candidate pairs and a linked list of symbols.
    fn merge_by_heap(&self, scratch: &mut Scratch) {
        let Scratch { symbols, previous, next, heap } = scratch;
        let n = symbols.len();
        previous.clear();
        previous.extend((0..n as u32).map(|i| i.wrapping_sub(1)));
        next.clear();
        next.extend(1..=n as u32);
        heap.clear();
        for i in 0..n - 1 {
            if let Some(m) = self.merge_of(symbols[i], symbols[i + 1]) {
                heap.push(Reverse((m.rank, i as u32, symbols[i], symbols[i + 1])));
            }
        }
        while let Some(Reverse((_, at, left, right))) = heap.pop() {
            let i = at as usize;
            let j = next[i] as usize;
            // The entry is stale when either side was merged meanwhile.
            if j >= n || symbols[i] != left || symbols[j] != right || left == GONE {
                continue;
            }
            let merge = self.merge_of(left, right).expect("the pair was put on the heap as a merge");
            symbols[i] = merge.into;
            symbols[j] = GONE;
            next[i] = next[j];
            if let Some(after) = symbols.get(next[i] as usize) {
                previous[next[i] as usize] = at;
                if let Some(m) = self.merge_of(merge.into, *after) {
                    heap.push(Reverse((m.rank, at, merge.into, *after)));
                }
            }
            if let Some(before) = symbols.get(previous[i] as usize)
                && let Some(m) = self.merge_of(*before, merge.into)
            {
                heap.push(Reverse((m.rank, previous[i], *before, merge.into)));
            }
        }
        symbols.retain(|s| *s != GONE);
    }

    /// Turns symbols into ids. A symbol that only merges know falls back to the tokens of its bytes.
    fn finish_word(&self, word: &[u8], symbols: &[u32], ids: &mut Vec<u32>) {
        let vocabulary = self.kinds.len();
        let mut at = 0;
        for symbol in symbols {
            let length = self.symbol_bytes(*symbol).len();
            if (*symbol as usize) < vocabulary {
                ids.push(*symbol);
            } else {
                let singles = word[at..at + length].iter().map(|byte| self.single[usize::from(*byte)]);
                ids.extend(singles.filter(|id| (*id as usize) < vocabulary));
            }
            at += length;
        }
    }
}

/// A merged-away place in [`Tokenizer::merge_by_heap`]. No symbol has this number: tables are far smaller.
const GONE: u32 = u32::MAX - 1;

/// Buffers that one call of `encode` reuses from word to word.
#[derive(Default)]
struct Scratch {
    symbols: Vec<u32>,
    previous: Vec<u32>,
    next: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
}

/// The table of symbols while it grows.
#[derive(Default)]
struct Symbols {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    index: HashMap<Box<[u8]>, u32>,
}

impl Symbols {
    fn add(&mut self, bytes: &[u8], mergeable: bool) {
        let id = self.ends.len() as u32;
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len() as u32);
        if mergeable && !bytes.is_empty() {
            self.index.entry(bytes.into()).or_insert(id);
        }
    }

    fn intern(&mut self, bytes: &[u8]) -> u32 {
        if let Some(id) = self.index.get(bytes) {
            return *id;
        }
        self.add(bytes, true);
        self.ends.len() as u32 - 1
    }
}

fn damaged(what: String) -> TokenizerError {
    TokenizerError::Damaged { what }
}

fn check_sizes(parts: &TokenizerParts) -> Result<(), TokenizerError> {
    let n = parts.tokens.len();
    if n == 0 {
        return Err(TokenizerError::MissingField { field: "tokenizer.ggml.tokens" });
    }
    if n > VOCABULARY_MAX || parts.merges.len() > 2 * VOCABULARY_MAX {
        return Err(damaged(format!("{n} tokens and {} merges are more than {VOCABULARY_MAX}", parts.merges.len())));
    }
    if !parts.types.is_empty() && parts.types.len() != n {
        return Err(damaged(format!("{n} tokens but {} token types", parts.types.len())));
    }
    let text: usize = parts.tokens.iter().chain(&parts.merges).map(|t| 2 * t.len()).sum();
    if text > 1 << 30 {
        return Err(damaged(format!("its strings take {text} bytes")));
    }
    let ids = [("bos", parts.bos), ("eos", parts.eos), ("eot", parts.eot)];
    for (name, id) in ids {
        if let Some(id) = id.filter(|id| *id as usize >= n) {
            return Err(damaged(format!("the {name} token is {id}, outside the {n} tokens")));
        }
    }
    Ok(())
}

/// GPT-2 writes bytes as printable characters: printable Latin-1 bytes as themselves, the others as U+0100 and up.
/// The table goes from character code to byte; 256 marks characters outside the alphabet.
fn byte_alphabet() -> [u16; 512] {
    let mut table = [256_u16; 512];
    let mut next = 256;
    for byte in 0_u16..256 {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code = if printable {
            byte
        } else {
            next += 1;
            next - 1
        };
        table[usize::from(code)] = byte;
    }
    table
}

fn from_alphabet(text: &str, table: &[u16; 512]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match table.get(c as usize).and_then(|b| u8::try_from(*b).ok()) {
            Some(byte) => bytes.push(byte),
            // Not of the alphabet: keep the character as it is.
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}
