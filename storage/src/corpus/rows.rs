//! The rows of corpora.

use crate::backend::{Cf, KvOp};
use crate::error::ReadError;
use crate::layout::{self, DocId, SpaceKey};
use crate::memory;
use crate::seal::TenantKeys;
use millrace_proto::document::Passage;
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::record::Record;
use millrace_proto::records;
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::BTreeMap;

/// A corpus as a whole.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct CorpusHead {
    /// Its name.
    pub name: String,
    /// The embedding model of its vectors; empty when it is searched by words alone.
    pub model: String,
    /// Its documents.
    pub documents: u64,
    /// Their passages.
    pub passages: u64,
    /// Words of all passages.
    pub words: u64,
    /// Number of the next document.
    pub next: u32,
    /// Unix milliseconds of its making.
    pub created_ms: u64,
}

/// A document of a corpus.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct DocumentRecord {
    /// Its number in the corpus; a changed file gets a new one.
    pub number: u32,
    /// Its name, usually that of the file.
    pub name: String,
    /// SHA-256 of the file.
    pub hash: [u8; 32],
    /// Its format.
    pub kind: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// What it was filed under.
    pub tags: Vec<String>,
    /// Parts that could not be read.
    pub notes: Vec<String>,
    /// Its passages.
    pub passages: u32,
    /// Words of its passages.
    pub words: u64,
    /// Unix milliseconds of its taking in.
    pub added_ms: u64,
    /// False while it is being written or removed.
    pub complete: bool,
}

records!(CorpusHead, DocumentRecord);

/// One change of a corpus's rows.
#[derive(Debug)]
pub(crate) enum CorpusOp {
    Head(CorpusHead),
    RemoveHead,
    Document(DocumentRecord),
    RemoveDocument(u32),
    /// The document of this name has this number.
    Name(String, u32),
    RemoveName(String),
    Passage(u64, Passage),
    /// The passage as it was written: its words follow from it.
    RemovePassage(u64, Passage),
}

impl CorpusOp {
    /// What it costs in a queue.
    pub fn bytes(&self) -> usize {
        match self {
            // Each word is a row of some 60 bytes.
            CorpusOp::Passage(_, passage) | CorpusOp::RemovePassage(_, passage) => 12 * passage.text.len(),
            _ => 1_024,
        }
    }
}

pub(crate) fn blind_name(keys: &TenantKeys, space: SpaceKey, name: &str) -> [u8; 16] {
    keys.blind("document name", &[&space, name.as_bytes()])
}

/// The user under which the words of a corpus stand. A user's id is a digest of other things, so that no
/// user has it.
pub(super) fn words_owner(space: SpaceKey) -> UserId {
    UserId(space)
}

pub(super) fn words_doc(vid: u64) -> DocId {
    DocId { conversation: ConversationId([0; 16]), seq: vid }
}

/// The words by which a passage is found: its headings' and its own.
pub(super) fn word_counts(passage: &Passage) -> BTreeMap<String, u16> {
    let mut text = passage.headings.join("\n");
    text.push('\n');
    text.push_str(&passage.text);
    memory::counts(&text)
}

/// Passage number of a document as one number.
pub(super) fn vid(document: u32, passage: u32) -> u64 {
    u64::from(document) << 32 | u64::from(passage)
}

pub(super) fn document_of(vid: u64) -> u32 {
    (vid >> 32) as u32
}

pub(super) fn number(plain: &[u8]) -> Result<u32, ReadError> {
    let bytes = plain.try_into().map(u32::from_be_bytes);
    bytes
        .map_err(|_| ReadError::Corrupt { cf: Cf::Corpus.name(), why: "a document's number has a wrong length".into() })
}

/// Rows of a change.
pub(crate) fn prepare(keys: &TenantKeys, tenant: TenantId, corpus: &str, op: CorpusOp, ops: &mut Vec<KvOp>) {
    let space = memory::space_key(keys, &super::space_name(corpus));
    let put = |key: Vec<u8>, plain: &[u8]| {
        let sealed = keys.seal(Cf::Corpus, &key, plain);
        KvOp::Put(Cf::Corpus, key, sealed)
    };
    let delete = |key: Vec<u8>| KvOp::Delete(Cf::Corpus, key);
    match op {
        CorpusOp::Head(head) => {
            ops.push(put(layout::corpus_listed(tenant, space), head.name.as_bytes()));
            ops.push(put(layout::corpus_head(tenant, space), &head.to_bytes()));
        }
        CorpusOp::RemoveHead => {
            ops.push(delete(layout::corpus_listed(tenant, space)));
            ops.push(delete(layout::corpus_head(tenant, space)));
        }
        CorpusOp::Document(document) => {
            ops.push(put(layout::corpus_document(tenant, space, document.number), &document.to_bytes()));
        }
        CorpusOp::RemoveDocument(number) => ops.push(delete(layout::corpus_document(tenant, space, number))),
        CorpusOp::Name(name, number) => {
            let key = layout::corpus_name(tenant, space, blind_name(keys, space, &name));
            ops.push(put(key, &number.to_be_bytes()));
        }
        CorpusOp::RemoveName(name) => {
            ops.push(delete(layout::corpus_name(tenant, space, blind_name(keys, space, &name))));
        }
        CorpusOp::Passage(vid, passage) => {
            let counts = word_counts(&passage);
            let words = memory::length(&counts);
            for (word, count) in &counts {
                let key = post(keys, tenant, space, word, vid);
                // The length stands beside the count: a search needs no second read to weigh a hit.
                let value = [&count.to_be_bytes()[..], &saturate(words).to_be_bytes()].concat();
                ops.push(KvOp::Put(Cf::Post, key, value));
            }
            ops.push(put(layout::corpus_passage(tenant, space, vid), &passage.to_bytes()));
        }
        CorpusOp::RemovePassage(vid, passage) => {
            for word in word_counts(&passage).keys() {
                ops.push(KvOp::Delete(Cf::Post, post(keys, tenant, space, word, vid)));
            }
            ops.push(delete(layout::corpus_passage(tenant, space, vid)));
        }
    }
}

fn saturate(words: u32) -> u16 {
    u16::try_from(words).unwrap_or(u16::MAX)
}

fn post(keys: &TenantKeys, tenant: TenantId, space: SpaceKey, word: &str, vid: u64) -> Vec<u8> {
    let owner = words_owner(space);
    layout::post(tenant, owner, memory::term(keys, owner, word), words_doc(vid))
}
