//! Paged key/value memory: fixed blocks, handed out by a bounded allocator.
//!
//! The scheduler owns the allocator and each sequence's block table; a backend owns the bytes and only ever sees block
//! numbers. A block may be held by several sequences (a shared prefix), hence the reference counts.

mod block;
mod format;

pub use block::{BLOCK_TOKENS, BlockAllocator, BlockId, blocks_for};
pub(crate) use format::GROUP;
pub use format::KvFormat;
