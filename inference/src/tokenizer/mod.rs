//! Text to token ids and back, as the model file defines it.
//!
//! [`Tokenizer`] is byte-level BPE for language models, [`WordPiece`] serves BERT-style encoders and
//! [`StreamDecoder`] turns the bytes of successive tokens into whole UTF-8 characters.

mod bpe;
mod pretokenize;
mod stream;
mod wordpiece;

pub use bpe::{TokenKind, Tokenizer, TokenizerError, TokenizerParts};
pub use pretokenize::PreTokenizer;
pub use stream::StreamDecoder;
pub use wordpiece::{WordPiece, WordPieceError};
