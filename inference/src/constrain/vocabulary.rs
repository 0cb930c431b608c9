//! The model's vocabulary in the form that grammars are matched against: a trie over the bytes of all tokens.

use std::sync::Arc;

use llguidance::toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use super::ConstraintError;
use crate::tokenizer::{TokenKind, Tokenizer};

/// Trie and tokenizer of one model.
struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
    /// Whether encoding a text gives tokens of exactly its bytes, so that a forced text can be forced as those tokens.
    canonical: bool,
}

/// Builds the trie; takes about 50 ms.
pub(super) fn environment(tokenizer: &Arc<Tokenizer>) -> Result<TokEnv, ConstraintError> {
    let size = tokenizer.vocabulary();
    let end: Vec<u32> = tokenizer.end_tokens().iter().copied().filter(|id| (*id as usize) < size).collect();
    let Some(first_end) = end.first() else {
        return Err(ConstraintError::Model { why: "its vocabulary names no end-of-turn token" });
    };
    let words: Vec<Vec<u8>> = (0..size as u32).map(|id| word(tokenizer, id)).collect();
    let trie = TokTrie::from(&TokRxInfo::new(size as u32, *first_end), &words).with_eos_tokens(&end);
    let probe = "{\"key\": [1, true], \"é\": null}";
    let encoded = tokenizer.encode(probe, false);
    let canonical = encoded.iter().flat_map(|id| tokenizer.token_bytes(*id)).eq(probe.as_bytes());
    Ok(Arc::new(Vocabulary { trie, tokenizer: Arc::clone(tokenizer), canonical }))
}

/// Control tokens are marked, so that no text of a grammar can become one; tokens without a text stay empty and are
/// never allowed. A text that begins with the marker byte is no UTF-8 and would be taken for a control token.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    match tokenizer.kind(id) {
        TokenKind::Control => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
        TokenKind::Unknown | TokenKind::Unused => Vec::new(),
        _ if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
        _ => bytes.to_vec(),
    }
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        if !self.canonical {
            return self.trie.greedy_tokenize(bytes);
        }
        self.trie.tokenize_with_greedy_fallback(bytes, |text| self.tokenizer.encode(text, false))
    }

    fn tokenize_is_canonical(&self) -> bool {
        self.canonical
    }
}
