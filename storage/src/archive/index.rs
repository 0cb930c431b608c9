//! The index of archived messages: one row of the family `archive` for each block.
//!
//! ```text
//! key     shard2 tenant4 conversation16 first_seq8
//! value   version 1 (1), suite 1, place16, line16, object16, object_bytes4, offset4, length4, last_seq8, rows4,
//!         first_ms8, last_ms8
//! block   (seq8 length4 value)*: rows of `msg` as they lay in the store, sealed by their user's key
//!
//! key     shard2 tenant4 conversation16 all ones 8     brought back by an operator, and left alone for a while
//! value   version 1 (2), when8
//! ```
//! In clear, like the other keys: it holds ids, counts and times. What a block holds is sealed twice, by the user's key
//! and by the object's; whoever is forgotten is unreadable there as everywhere.

use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::error::{KvError, ReadError};
use crate::layout;
use crate::seal::Suite;
use millrace_proto::backup::{LineId, OBJECT_BYTES_MAX, ObjectId};
use millrace_proto::id::{ConversationId, TenantId};
use std::ops::{ControlFlow, Range};

const VERSION: u8 = 1;
const HELD: u8 = 2;
const VALUE_BYTES: usize = 2 + 16 + 16 + 16 + 4 + 4 + 4 + 8 + 4 + 8 + 8;
const ROW_HEAD_BYTES: usize = 12;

/// Digest of a place's URL, which a named value holds.
pub(crate) type PlaceId = [u8; 16];

/// A run of messages of one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Block {
    pub tenant: TenantId,
    pub conversation: ConversationId,
    pub first_seq: u64,
    pub last_seq: u64,
    pub rows: u32,
    pub first_ms: u64,
    pub last_ms: u64,
    pub suite: Suite,
    pub place: PlaceId,
    pub line: LineId,
    pub object: ObjectId,
    /// Plain bytes of the object.
    pub object_bytes: u32,
    /// Where in its plain bytes the block lies.
    pub offset: u32,
    pub length: u32,
}

impl Block {
    pub fn key(&self) -> Vec<u8> {
        layout::archived(self.tenant, self.conversation, self.first_seq)
    }

    pub fn range(&self) -> Range<usize> {
        self.offset as usize..self.offset as usize + self.length as usize
    }

    pub fn put(&self) -> KvOp {
        let mut value = Vec::with_capacity(VALUE_BYTES);
        value.extend_from_slice(&[VERSION, self.suite.number()]);
        value.extend_from_slice(&self.place);
        value.extend_from_slice(&self.line);
        value.extend_from_slice(&self.object);
        for number in [self.object_bytes, self.offset, self.length] {
            value.extend_from_slice(&number.to_be_bytes());
        }
        value.extend_from_slice(&self.last_seq.to_be_bytes());
        value.extend_from_slice(&self.rows.to_be_bytes());
        value.extend_from_slice(&self.first_ms.to_be_bytes());
        value.extend_from_slice(&self.last_ms.to_be_bytes());
        KvOp::Put(Cf::Archive, self.key(), value)
    }

    pub fn read(key: &[u8], value: &[u8]) -> Result<Self, ReadError> {
        Self::parse(key, value).ok_or_else(|| ReadError::Corrupt {
            cf: Cf::Archive.name(),
            why: "a row of the index of archived messages has the wrong layout".into(),
        })
    }

    fn parse(key: &[u8], value: &[u8]) -> Option<Self> {
        if key.len() != 30 || value.len() != VALUE_BYTES || value[0] != VERSION {
            return None;
        }
        let mut rest = &value[2..];
        let block = Self {
            tenant: layout::tenant_of(Cf::Archive, key)?,
            conversation: layout::conversation_of(Cf::Archive, key)?,
            first_seq: layout::tail_u64(key)?,
            suite: Suite::of_number(value[1])?,
            place: take(&mut rest)?,
            line: take(&mut rest)?,
            object: take(&mut rest)?,
            object_bytes: u32::from_be_bytes(take(&mut rest)?),
            offset: u32::from_be_bytes(take(&mut rest)?),
            length: u32::from_be_bytes(take(&mut rest)?),
            last_seq: u64::from_be_bytes(take(&mut rest)?),
            rows: u32::from_be_bytes(take(&mut rest)?),
            first_ms: u64::from_be_bytes(take(&mut rest)?),
            last_ms: u64::from_be_bytes(take(&mut rest)?),
        };
        let inside = u64::from(block.offset) + u64::from(block.length) <= u64::from(block.object_bytes);
        (inside && block.object_bytes as usize <= OBJECT_BYTES_MAX && block.first_seq <= block.last_seq)
            .then_some(block)
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(*head)
}

/// Adds a row to a block.
pub(crate) fn push_row(block: &mut Vec<u8>, seq: u64, sealed: &[u8]) {
    block.extend_from_slice(&seq.to_be_bytes());
    block.extend_from_slice(&(sealed.len() as u32).to_be_bytes());
    block.extend_from_slice(sealed);
}

/// Bytes that a row takes in a block.
pub(crate) fn row_bytes(sealed: usize) -> usize {
    ROW_HEAD_BYTES + sealed
}

/// The rows of a block; `None` when it is not one.
pub(crate) fn rows(mut block: &[u8]) -> Option<Vec<(u64, Vec<u8>)>> {
    let mut rows = Vec::new();
    while !block.is_empty() {
        let seq = u64::from_be_bytes(take(&mut block)?);
        let length = u32::from_be_bytes(take(&mut block)?) as usize;
        let (sealed, rest) = block.split_at_checked(length)?;
        rows.push((seq, sealed.to_vec()));
        block = rest;
    }
    Some(rows)
}

/// The note that a conversation was brought back at a time.
pub(crate) fn put_held(tenant: TenantId, conversation: ConversationId, now_ms: u64) -> KvOp {
    let value = [&[HELD][..], &now_ms.to_be_bytes()].concat();
    KvOp::Put(Cf::Archive, layout::archived(tenant, conversation, u64::MAX), value)
}

/// When a conversation was brought back; 0 = never.
pub(crate) fn held_ms(kv: &dyn KvStore, tenant: TenantId, conversation: ConversationId) -> Result<u64, KvError> {
    let value = kv.get(Cf::Archive, &layout::archived(tenant, conversation, u64::MAX))?;
    let time = value.as_deref().and_then(|value| value.strip_prefix(&[HELD])).and_then(|time| time.try_into().ok());
    Ok(time.map_or(0, u64::from_be_bytes))
}

/// Calls `each` with every block under a prefix of keys, by conversation and number.
pub(crate) fn scan(
    kv: &dyn KvStore,
    prefix: &[u8],
    mut each: impl FnMut(Block) -> ControlFlow<()>,
) -> Result<(), ReadError> {
    let to = if prefix.is_empty() { layout::prefix_end(&[u8::MAX]) } else { layout::prefix_end(prefix) };
    let mut broken = None;
    kv.scan(Cf::Archive, ScanRange::forward(prefix, &to), &mut |key, value| {
        if value.first() == Some(&HELD) {
            return ControlFlow::Continue(());
        }
        match Block::read(key, value) {
            Ok(block) => each(block),
            Err(error) => {
                broken = Some(error);
                ControlFlow::Break(())
            }
        }
    })
    .map_err(|error: KvError| ReadError::from(error))?;
    broken.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn block() -> Block {
        Block {
            tenant: TenantId(7),
            conversation: ConversationId([1; 16]),
            first_seq: 3,
            last_seq: 900,
            rows: 12,
            first_ms: 1_000,
            last_ms: 2_000,
            suite: Suite::Gm,
            place: [2; 16],
            line: [3; 16],
            object: [4; 16],
            object_bytes: 5_000,
            offset: 100,
            length: 4_900,
        }
    }

    #[test]
    fn a_row_reads_back_and_what_is_out_of_range_is_refused() {
        let KvOp::Put(Cf::Archive, key, value) = block().put() else { panic!("a write") };
        assert_eq!(Block::read(&key, &value).unwrap(), block());
        assert!(Block::read(&key[1..], &value).is_err());
        assert!(Block::read(&key, &value[1..]).is_err());
        for change in [
            Block { length: 4_901, ..block() },
            Block { last_seq: 2, ..block() },
            Block { object_bytes: OBJECT_BYTES_MAX as u32 + 1, ..block() },
        ] {
            let KvOp::Put(_, key, value) = change.put() else { panic!("a write") };
            assert!(Block::read(&key, &value).is_err(), "{change:?}");
        }
    }

    proptest! {
        #[test]
        fn rows_read_back_and_no_bytes_make_the_reader_panic(
            values in proptest::collection::vec((any::<u64>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..10),
            noise in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = Vec::new();
            for (seq, sealed) in &values {
                push_row(&mut bytes, *seq, sealed);
            }
            prop_assert_eq!(bytes.len(), values.iter().map(|(_, sealed)| row_bytes(sealed.len())).sum::<usize>());
            prop_assert_eq!(rows(&bytes), Some(values));
            let _ = rows(&noise);
        }
    }
}
