//! Text to token ids and back, as the model file defines it.
//!
//! [`Tokenizer`] is byte-level or SentencePiece BPE for language models, [`WordPiece`] serves BERT-style encoders and
//! [`StreamDecoder`] turns the bytes of successive tokens into whole UTF-8 characters.

mod bpe;
mod parts;
mod pretokenize;
mod spm;
mod stream;
mod text;
mod wordpiece;

#[cfg(test)]
mod tests;

pub use parts::{TokenKind, TokenizerError, TokenizerParts};
pub use pretokenize::PreTokenizer;
pub use stream::StreamDecoder;
pub use text::Tokenizer;
pub use wordpiece::{WordPiece, WordPieceError};

use text::{BPE, SPM, Symbols};
