//! WordPiece as BERT models use it.
