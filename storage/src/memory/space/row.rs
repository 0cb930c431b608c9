//! What is stored of a passage, and what a change of it carries.

use super::facts::Group;
use crate::backend::{Cf, KvOp};
use crate::batch::SpaceWrite;
use crate::error::ReadError;
use crate::layout::{self, SpaceKey};
use crate::memory::vector::VectorRow;
use crate::seal::TenantKeys;
use half::f16;
use millrace_proto::id::TenantId;

const LOG_PUT: u8 = 1;
const LOG_REMOVE: u8 = 2;

/// What the index of a space knows of a passage.
pub(crate) struct Indexed {
    pub vector: Vec<f16>,
    pub at_ms: u64,
    pub group: Group,
}

/// A passage was written (`Some`) or removed (`None`).
pub(crate) struct Change {
    pub tenant: TenantId,
    pub space: SpaceKey,
    pub vid: u64,
    pub written: Option<Indexed>,
}

impl Change {
    /// The row of the change log, keyed by the group's number.
    pub fn log_row(&self, seq: u64) -> KvOp {
        let key = layout::space_log(self.tenant, self.space, seq, self.vid);
        KvOp::Put(Cf::SpaceLog, key, vec![if self.written.is_some() { LOG_PUT } else { LOG_REMOVE }])
    }
}

/// The blind id of a space's name.
pub(crate) fn space_key(keys: &TenantKeys, name: &str) -> SpaceKey {
    keys.blind("space", &[name.as_bytes()])
}

/// The row of a passage: vector length 4, vector row, group, then the text. The vector row's `words` is the
/// length of the group.
pub(crate) fn space_row(keys: &TenantKeys, space: SpaceKey, write: SpaceWrite) -> (KvOp, Change) {
    let SpaceWrite { tenant, space: _, id, text, embedding, owner, tags, at_ms } = write;
    let key = layout::space(tenant, space, id);
    let group = Group::new(owner, tags);
    let facts = group.to_bytes();
    let facts_bytes = u32::try_from(facts.len()).expect("tags are checked against their bounds");
    let row = VectorRow::new(at_ms, facts_bytes, &embedding);
    let bytes = row.to_bytes();
    let length = u32::try_from(bytes.len()).expect("embeddings are checked against EMBEDDING_DIM_MAX");
    let plain = [&length.to_be_bytes()[..], &bytes, &facts, text.as_bytes()].concat();
    let sealed = keys.seal(Cf::Space, &key, &plain);
    let written = Some(Indexed { vector: row.vector, at_ms, group });
    (KvOp::Put(Cf::Space, key, sealed), Change { tenant, space, vid: id, written })
}

/// A passage as it is stored.
pub(super) struct Passage<'a> {
    pub indexed: Indexed,
    pub text: &'a str,
}

pub(super) fn read_space_row(plain: &[u8]) -> Result<Passage<'_>, ReadError> {
    let read = || {
        let (length, rest) = plain.split_first_chunk()?;
        let (row, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        let VectorRow { at_ms, words, vector } = VectorRow::from_bytes(row)?;
        let (facts, text) = rest.split_at_checked(words as usize)?;
        // Rows of schema 2 and older have no facts.
        let group = if facts.is_empty() { Group::default() } else { Group::from_bytes(facts)? };
        Some(Passage { indexed: Indexed { vector, at_ms, group }, text: std::str::from_utf8(text).ok()? })
    };
    read().ok_or_else(|| ReadError::Corrupt { cf: Cf::Space.name(), why: "a passage has the wrong layout".into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn noise_is_an_error_and_never_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read_space_row(&noise);
        }
    }

    #[test]
    fn a_row_of_the_older_schema_has_no_facts() {
        let vector = VectorRow::new(0, 0, &[1.0, 2.0]).to_bytes();
        let plain = [&(vector.len() as u32).to_be_bytes()[..], &vector, "an old passage".as_bytes()].concat();
        let passage = read_space_row(&plain).unwrap();
        assert_eq!((passage.text, passage.indexed.group), ("an old passage", Group::default()));
    }
}
