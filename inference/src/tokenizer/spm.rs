//! SentencePiece BPE (Kudo and Richardson, arXiv 1808.06226) as GGUF files of the kind `llama` store it.
//!
//! A text is a row of characters, spaces written as U+2581. The pair of neighbours whose text is the token of the highest
//! score is joined, leftmost first, until no pair is a token; what is left without a token becomes its bytes' tokens.
//! There are no words: a pair may span a space. Cost O(n log n) for n characters.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::parts::damaged;
use super::{Symbols, TokenKind, TokenizerError, TokenizerParts};

/// How a vocabulary writes a space.
const SPACE: &str = "\u{2581}";

/// The tables of SentencePiece BPE.
pub(super) struct Spm {
    /// Tokens that text may become, by their text with spaces as [`SPACE`].
    tokens: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    /// Bytes of the longest of them: longer pairs are not looked up.
    longest: usize,
    bytes: [u32; 256],
    add_space_prefix: bool,
}

/// A row of characters that were joined, linked to its neighbours.
#[derive(Clone, Copy)]
struct Piece {
    start: u32,
    /// Bytes; 0 when the piece was joined to its left neighbour.
    len: u32,
    previous: u32,
    next: u32,
}

/// No neighbour.
const NONE: u32 = u32::MAX;

/// Two neighbours whose text is a token.
#[derive(Clone, Copy)]
struct Pair {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both when they were neighbours; another sum means that one was joined meanwhile.
    len: u32,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl Spm {
    /// Checks the fields and adds the bytes of all tokens to `symbols`, which is empty before.
    pub(super) fn new(
        parts: &TokenizerParts,
        kinds: &[TokenKind],
        symbols: &mut Symbols,
    ) -> Result<Self, TokenizerError> {
        if parts.scores.is_empty() {
            return Err(TokenizerError::MissingField { field: "tokenizer.ggml.scores" });
        }
        if let Some(id) = parts.scores.iter().position(|score| score.is_nan()) {
            return Err(damaged(format!("the score of token {id} is not a number")));
        }
        let mut tokens: HashMap<Box<str>, u32> = HashMap::with_capacity(parts.tokens.len());
        let mut bytes = [None; 256];
        for ((id, text), kind) in (0_u32..).zip(&parts.tokens).zip(kinds) {
            match kind {
                TokenKind::Byte => {
                    let byte = byte_of(text).ok_or_else(|| damaged(format!("byte token {id} is called {text:?}")))?;
                    bytes[usize::from(byte)].get_or_insert(id);
                    symbols.add(&[byte]);
                }
                TokenKind::Normal => {
                    symbols.add(text.replace(SPACE, " ").as_bytes());
                    if !text.is_empty() {
                        tokens.entry(text.as_str().into()).or_insert(id);
                    }
                }
                TokenKind::UserDefined => {
                    symbols.add(text.replace(SPACE, " ").as_bytes());
                }
                TokenKind::Unknown | TokenKind::Control | TokenKind::Unused => {
                    symbols.add(text.as_bytes());
                }
            }
        }
        if let Some(byte) = bytes.iter().position(Option::is_none) {
            return Err(damaged(format!("it has no token for the byte {byte:#04X}")));
        }
        Ok(Self {
            longest: tokens.keys().map(|text| text.len()).max().unwrap_or(0),
            tokens,
            scores: parts.scores.clone(),
            bytes: bytes.map(|id| id.expect("checked above")),
            add_space_prefix: parts.add_space_prefix.unwrap_or(true),
        })
    }

    /// Whether the beginning of a text gets a space in front.
    pub(super) fn adds_space(&self) -> bool {
        self.add_space_prefix
    }

    /// Appends the ids of a text without special tokens; `begins` when it stands at the beginning or behind one.
    pub(super) fn encode(&self, text: &str, begins: bool, ids: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        let mut written = String::with_capacity(text.len() + 16);
        if begins && self.add_space_prefix {
            written.push_str(SPACE);
        }
        for (i, part) in text.split(' ').enumerate() {
            if i > 0 {
                written.push_str(SPACE);
            }
            written.push_str(part);
        }
        let mut at = 0;
        for len in self.join(&written) {
            let piece = &written[at..at + len];
            at += len;
            match self.tokens.get(piece) {
                Some(id) => ids.push(*id),
                None => ids.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
        }
    }

    /// Lengths of the pieces of a text when no two neighbours are a token any more.
    fn join(&self, text: &str) -> impl Iterator<Item = usize> + use<> {
        let mut pieces: Vec<Piece> = Vec::with_capacity(text.len());
        for (start, c) in text.char_indices() {
            let i = pieces.len() as u32;
            pieces.push(Piece {
                start: start as u32,
                len: c.len_utf8() as u32,
                previous: i.wrapping_sub(1),
                next: i + 1,
            });
        }
        if let Some(last) = pieces.last_mut() {
            last.next = NONE;
        }
        let mut heap = BinaryHeap::new();
        let pair = |pieces: &[Piece], left: u32, right: u32| {
            let (l, r) = (pieces.get(left as usize)?, pieces.get(right as usize)?);
            let (start, len) = (l.start as usize, l.len + r.len);
            if len as usize > self.longest {
                return None;
            }
            let id = self.tokens.get(&text[start..start + len as usize])?;
            Some(Pair { score: self.scores[*id as usize], left, right, len })
        };
        heap.extend((1..pieces.len() as u32).filter_map(|right| pair(&pieces, right - 1, right)));
        while let Some(Pair { left, right, len, .. }) = heap.pop() {
            let (l, r) = (pieces[left as usize], pieces[right as usize]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue;
            }
            pieces[right as usize].len = 0;
            pieces[left as usize] = Piece { len, next: r.next, ..l };
            if let Some(after) = pieces.get_mut(r.next as usize) {
                after.previous = left;
            }
            heap.extend(pair(&pieces, l.previous, left));
            heap.extend(pair(&pieces, left, r.next));
        }
        pieces.into_iter().filter(|piece| piece.len > 0).map(|piece| piece.len as usize)
    }
}

/// The byte of a token such as `<0x0A>`.
fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}
