//! The fields of a model file that describe its tokenizer.

use super::PreTokenizer;
use crate::gguf::Gguf;

/// Most tokens a vocabulary may have; ids above this are not worth their memory on this engine.
const VOCABULARY_MAX: usize = 1 << 20;

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
    /// One byte of text that has no other token.
    Byte,
}

impl TokenKind {
    /// From the number that GGUF files use; unknown numbers count as normal text.
    pub fn from_gguf(number: u32) -> Self {
        match number {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
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
        "this model uses the tokenizer kind {kind:?}, supported are \"gpt2\" (byte-level BPE) and \"llama\" (SentencePiece BPE); choose another model"
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
    /// A rule of the vocabulary that would change texts.
    #[error("this model's vocabulary has the rule {field}, which is not supported; choose another model")]
    UnknownRule {
        /// Name of the field.
        field: &'static str,
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
    /// `tokenizer.ggml.merges`, for BPE: two parts with a space between, best first.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.scores`, for SentencePiece: the higher, the earlier a token is formed.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
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
        // Kinds need different fields; a kind that is not known is named first.
        let (merges, scores) = match kind {
            super::BPE => (strings("tokenizer.ggml.merges")?, Vec::new()),
            super::SPM => {
                refuse_normaliser(gguf)?;
                let field = "tokenizer.ggml.scores";
                let scores = gguf.array(field).ok().and_then(|array| array.f32s());
                (Vec::new(), scores.ok_or(TokenizerError::MissingField { field })?)
            }
            _ => return Err(TokenizerError::UnknownKind { kind: kind.to_owned() }),
        };
        let types = gguf.array("tokenizer.ggml.token_type").ok().and_then(|a| a.u64s()).unwrap_or_default();
        Ok(Self {
            kind: kind.to_owned(),
            rules: gguf.str("tokenizer.ggml.pre").unwrap_or_default().to_owned(),
            tokens: strings("tokenizer.ggml.tokens")?,
            types: types.into_iter().map(|n| u32::try_from(n).unwrap_or(0)).collect(),
            merges,
            scores,
            add_space_prefix: gguf.bool("tokenizer.ggml.add_space_prefix").ok(),
            bos: gguf.u32("tokenizer.ggml.bos_token_id").ok(),
            eos: gguf.u32("tokenizer.ggml.eos_token_id").ok(),
            eot: gguf.u32("tokenizer.ggml.eot_token_id").ok(),
            add_bos: gguf.bool("tokenizer.ggml.add_bos_token").ok(),
        })
    }
}

/// SentencePiece models may rewrite texts before they split them. The models that are stored as GGUF do not, and a file
/// that asks for it is refused.
fn refuse_normaliser(gguf: &Gguf) -> Result<(), TokenizerError> {
    let field = "tokenizer.ggml.precompiled_charsmap";
    if gguf.array(field).is_ok_and(|table| !table.is_empty()) {
        return Err(TokenizerError::UnknownRule { field });
    }
    let field = "tokenizer.ggml.remove_extra_whitespaces";
    if matches!(gguf.bool(field), Ok(true)) {
        return Err(TokenizerError::UnknownRule { field });
    }
    Ok(())
}

pub(super) fn damaged(what: String) -> TokenizerError {
    TokenizerError::Damaged { what }
}

pub(super) fn check_sizes(parts: &TokenizerParts) -> Result<(), TokenizerError> {
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
    if !parts.scores.is_empty() && parts.scores.len() != n {
        return Err(damaged(format!("{n} tokens but {} scores", parts.scores.len())));
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
