//! Byte-level BPE.
//!
//! Cost: one word of `n` symbols takes O(n log n); a word is at most the whole text, so a megabyte without a
//! space costs about a second and never n². Memory: the token bytes once, one hash entry per merge.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::parts::damaged;
use super::{PreTokenizer, Symbols, TokenKind, TokenizerError, TokenizerParts};

/// Words up to this many symbols are merged by scanning, longer ones with a heap.
const SCAN_SYMBOLS_MAX: usize = 24;

/// The tables of byte-level BPE. Symbols are those of the tokenizer: vocabulary first, then parts that only merges name.
pub(super) struct Bpe {
    rules: PreTokenizer,
    merges: HashMap<(u32, u32), Merge, BuildHasherDefault<PairHasher>>,
    /// Token of each single byte; `NO_SYMBOL` where the vocabulary has none.
    single: [u32; 256],
    /// Whole words that become one token without merging (Llama 3).
    whole: HashMap<Box<[u8]>, u32>,
    vocabulary: usize,
}

const NO_SYMBOL: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    into: u32,
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

impl Bpe {
    /// Checks the fields and adds all symbols to `symbols`, which is empty before.
    pub(super) fn new(
        parts: &TokenizerParts,
        kinds: &[TokenKind],
        symbols: &mut Symbols,
    ) -> Result<Self, TokenizerError> {
        let rules = match parts.rules.as_str() {
            "" | "default" => PreTokenizer::Gpt2,
            name => PreTokenizer::by_name(name).ok_or_else(|| TokenizerError::UnknownRules { name: name.into() })?,
        };
        let vocabulary = parts.tokens.len();
        let to_byte = byte_alphabet();
        let mut index = Index::with_capacity(vocabulary);
        let mut bytes = Vec::new();
        for (text, kind) in parts.tokens.iter().zip(kinds) {
            match kind {
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => {
                    bytes.clear();
                    from_alphabet(text, &to_byte, &mut bytes);
                    let id = symbols.add(&bytes);
                    if !bytes.is_empty() {
                        index.insert_first(id, symbols);
                    }
                }
                TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined => {
                    symbols.add(text.as_bytes());
                }
            }
        }
        let mut merges = HashMap::with_capacity_and_hasher(parts.merges.len(), BuildHasherDefault::default());
        for (rank, line) in (0_u32..).zip(&parts.merges) {
            // A part may itself begin with a space only in alphabets without byte mapping, so look from index 1.
            let cut = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
            let Some(cut) = cut else {
                return Err(damaged(format!("merge {rank} ({line:?}) is not two parts with a space between")));
            };
            bytes.clear();
            from_alphabet(&line[..cut], &to_byte, &mut bytes);
            let left = bytes.len();
            from_alphabet(&line[cut + 1..], &to_byte, &mut bytes);
            let mut intern = |bytes: &[u8]| index.intern(bytes, symbols);
            let key = (intern(&bytes[..left]), intern(&bytes[left..]));
            let into = intern(&bytes);
            merges.entry(key).or_insert(Merge { rank, into });
        }

        let mut single = [NO_SYMBOL; 256];
        for (slot, byte) in single.iter_mut().zip(0..=u8::MAX) {
            let symbol = index.get(&[byte], symbols);
            *slot = symbol.filter(|id| (*id as usize) < vocabulary).unwrap_or(NO_SYMBOL);
        }
        // Llama 3 takes a word that is a token as it stands, even where no chain of merges leads to it.
        let whole = if rules == PreTokenizer::Llama3 {
            let tokens = index.ids().filter(|id| (*id as usize) < vocabulary);
            tokens.map(|id| (symbols.get(id).into(), id)).collect()
        } else {
            HashMap::new()
        };
        Ok(Self { rules, merges, single, whole, vocabulary })
    }

    /// How texts are split into words.
    pub(super) fn rules(&self) -> PreTokenizer {
        self.rules
    }

    /// Appends the ids of a text without special tokens.
    pub(super) fn encode(&self, text: &str, symbols: &Symbols, scratch: &mut Scratch, ids: &mut Vec<u32>) {
        let has_token = |byte: u8| self.single[usize::from(byte)] != NO_SYMBOL;
        if text.bytes().all(has_token) {
            return self.encode_words(text, symbols, scratch, ids);
        }
        // Some vocabularies lack bytes of rare characters. Such a character becomes U+FFFD: dropping it would change
        // the text silently, and the unknown token is often the end-of-text token, which no user may write.
        let known = |c: char| c.encode_utf8(&mut [0; 4]).bytes().all(has_token);
        let replaced =
            |c: char| if known(c) { Some(c) } else { Some(char::REPLACEMENT_CHARACTER).filter(|c| known(*c)) };
        let text: String = text.chars().filter_map(replaced).collect();
        self.encode_words(&text, symbols, scratch, ids);
    }

    fn encode_words(&self, text: &str, table: &Symbols, scratch: &mut Scratch, ids: &mut Vec<u32>) {
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
            self.finish_word(word.as_bytes(), table, &scratch.symbols, ids);
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
    fn finish_word(&self, word: &[u8], table: &Symbols, symbols: &[u32], ids: &mut Vec<u32>) {
        let vocabulary = self.vocabulary;
        let mut at = 0;
        for symbol in symbols {
            let length = table.get(*symbol).len();
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
pub(super) struct Scratch {
    symbols: Vec<u32>,
    previous: Vec<u32>,
    next: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
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

/// Appends the bytes that a text in that alphabet stands for.
fn from_alphabet(text: &str, table: &[u16; 512], bytes: &mut Vec<u8>) {
    for c in text.chars() {
        match table.get(c as usize).and_then(|b| u8::try_from(*b).ok()) {
            Some(byte) => bytes.push(byte),
            // Not of the alphabet: keep the character as it is.
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Finds symbols by their bytes, which lie in [`Symbols`] only: a model has some hundred thousand, and its start waits
/// for them.
struct Index {
    table: HashTable<u32>,
    hasher: RandomState,
}

impl Index {
    fn with_capacity(symbols: usize) -> Index {
        Index { table: HashTable::with_capacity(symbols), hasher: RandomState::default() }
    }

    fn get(&self, bytes: &[u8], symbols: &Symbols) -> Option<u32> {
        self.table.find(self.hasher.hash_one(bytes), |id| symbols.get(*id) == bytes).copied()
    }

    /// Adds a symbol, unless one with the same bytes is there.
    fn insert_first(&mut self, id: u32, symbols: &Symbols) {
        let (hasher, bytes) = (&self.hasher, symbols.get(id));
        let same = |other: &u32| symbols.get(*other) == bytes;
        self.table.entry(hasher.hash_one(bytes), same, |id| hasher.hash_one(symbols.get(*id))).or_insert(id);
    }

    /// The symbol with these bytes; a new one if there is none.
    fn intern(&mut self, bytes: &[u8], symbols: &mut Symbols) -> u32 {
        self.get(bytes, symbols).unwrap_or_else(|| {
            let id = symbols.add(bytes);
            self.insert_first(id, symbols);
            id
        })
    }

    fn ids(&self) -> impl Iterator<Item = u32> {
        self.table.iter().copied()
    }
}
