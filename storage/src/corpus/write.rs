//! Taking documents in and removing them.

use super::rows::{CorpusHead, CorpusOp, DocumentRecord, document_of, vid, word_counts};
use super::{
    CORPORA_MAX, CORPUS_DOCUMENTS_MAX, CORPUS_NAME_BYTES_MAX, DOCUMENT_NAME_BYTES_MAX, DOCUMENT_TAG_BYTES_MAX,
    DOCUMENT_TAGS_MAX, space_name,
};
use crate::backend::{Cf, ScanRange};
use crate::batch::{Batch, SpaceWrite};
use crate::error::{CommitError, ReadError};
use crate::layout;
use crate::memory;
use crate::store::{Store, decode};
use millrace_proto::document::Passage;
use millrace_proto::id::TenantId;
use std::ops::ControlFlow;

/// Passages of one batch: some 300 KiB of rows, so that the group of a message waits little behind it.
const BATCH_PASSAGES: usize = 32;

/// Why a corpus was not changed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CorpusError {
    /// The request cannot be fulfilled as it is.
    #[error("{0}")]
    Invalid(String),
    /// The store could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// A document to take in.
#[derive(Clone, Debug, PartialEq)]
pub struct NewDocument {
    /// Its name; one that is known is replaced.
    pub name: String,
    /// SHA-256 of the file.
    pub hash: [u8; 32],
    /// Its format.
    pub kind: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// What it is filed under.
    pub tags: Vec<String>,
    /// Parts that could not be read.
    pub notes: Vec<String>,
    /// Unix milliseconds.
    pub added_ms: u64,
}

/// How taking in begins.
pub enum Begun {
    /// The same bytes under the same name and tags are there already.
    Unchanged(DocumentRecord),
    /// Passages are expected.
    Writer(Box<CorpusWriter>),
}

/// A document that is being taken in. Dropped without [`CorpusWriter::finish`] it stays invisible and is
/// swept later.
pub struct CorpusWriter {
    store: Store,
    tenant: TenantId,
    corpus: String,
    head: CorpusHead,
    document: DocumentRecord,
    replaces: Option<DocumentRecord>,
    batch: Batch,
    waiting: usize,
}

impl CorpusWriter {
    /// Adds a passage; an empty embedding makes it findable by words alone.
    pub fn put(&mut self, passage: Passage, embedding: Vec<f32>) -> Result<(), CorpusError> {
        let vid = vid(self.document.number, self.document.passages);
        self.document.passages += 1;
        self.document.words += u64::from(memory::length(&word_counts(&passage)));
        self.batch.corpus(self.tenant, &self.corpus, CorpusOp::Passage(vid, passage));
        if !embedding.is_empty() {
            let space = space_name(&self.corpus);
            let write = SpaceWrite {
                tenant: self.tenant,
                space,
                id: vid,
                text: String::new(),
                embedding,
                owner: None,
                tags: self.document.tags.clone(),
                at_ms: self.document.added_ms,
            };
            self.batch.put_space(write);
        }
        self.waiting += 1;
        if self.waiting == BATCH_PASSAGES {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), CorpusError> {
        self.waiting = 0;
        self.store.commit(std::mem::take(&mut self.batch))?;
        Ok(())
    }

    /// Makes the document visible, whole, in place of an older one of its name.
    pub fn finish(mut self) -> Result<DocumentRecord, CorpusError> {
        self.document.complete = true;
        let Self { store, tenant, corpus, mut head, document, replaces, mut batch, .. } = self;
        head.documents += 1;
        head.passages += u64::from(document.passages);
        head.words += document.words;
        if let Some(old) = &replaces {
            leave(&mut head, old);
            let hidden = DocumentRecord { complete: false, ..old.clone() };
            batch.corpus(tenant, &corpus, CorpusOp::Document(hidden));
        }
        batch.corpus(tenant, &corpus, CorpusOp::Head(head));
        batch.corpus(tenant, &corpus, CorpusOp::Name(document.name.clone(), document.number));
        batch.corpus(tenant, &corpus, CorpusOp::Document(document.clone()));
        store.commit(batch)?;
        if let Some(old) = replaces {
            store.sweep_document(tenant, &corpus, old.number)?;
        }
        Ok(document)
    }
}

fn leave(head: &mut CorpusHead, document: &DocumentRecord) {
    head.documents = head.documents.saturating_sub(1);
    head.passages = head.passages.saturating_sub(u64::from(document.passages));
    head.words = head.words.saturating_sub(document.words);
}

fn check(corpus: &str, document: &NewDocument) -> Result<(), CorpusError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if corpus.is_empty() || corpus.len() > CORPUS_NAME_BYTES_MAX || !corpus.chars().all(plain) {
        let why = format!(
            "a corpus is named by 1 to {CORPUS_NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, not {corpus:?}"
        );
        return Err(CorpusError::Invalid(why));
    }
    let name = &document.name;
    if name.is_empty() || name.len() > DOCUMENT_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let why = format!("a document's name has 1 to {DOCUMENT_NAME_BYTES_MAX} bytes and no control characters");
        return Err(CorpusError::Invalid(why));
    }
    let tags = &document.tags;
    if tags.len() > DOCUMENT_TAGS_MAX || tags.iter().any(|tag| tag.is_empty() || tag.len() > DOCUMENT_TAG_BYTES_MAX) {
        let why = format!("a document has at most {DOCUMENT_TAGS_MAX} tags of 1 to {DOCUMENT_TAG_BYTES_MAX} bytes");
        return Err(CorpusError::Invalid(why));
    }
    Ok(())
}

impl Store {
    /// Begins to take a document into a corpus, which is made when it is new. `model` names the embedding
    /// model of the vectors that follow; a corpus keeps to one.
    pub fn begin_document(
        &self,
        tenant: TenantId,
        corpus: &str,
        model: &str,
        new: NewDocument,
    ) -> Result<Begun, CorpusError> {
        check(corpus, &new)?;
        let head = self.corpus(tenant, corpus)?;
        let mut head = match head {
            Some(head) if head.model != model && head.documents > 0 => {
                let why = format!(
                    "the corpus {corpus} was made with the embedding model {:?}, this node runs {model:?}; \
                     remove the corpus and add its documents again",
                    head.model
                );
                return Err(CorpusError::Invalid(why));
            }
            Some(head) => CorpusHead { model: model.to_owned(), ..head },
            None => {
                if self.corpora(tenant)?.len() >= CORPORA_MAX {
                    return Err(CorpusError::Invalid(format!("there are {CORPORA_MAX} corpora already")));
                }
                CorpusHead {
                    name: corpus.to_owned(),
                    model: model.to_owned(),
                    documents: 0,
                    passages: 0,
                    words: 0,
                    next: 1,
                    created_ms: new.added_ms,
                }
            }
        };
        let replaces = self.document(tenant, corpus, &new.name)?;
        if let Some(old) = replaces.as_ref().filter(|old| old.hash == new.hash && old.tags == new.tags) {
            return Ok(Begun::Unchanged(old.clone()));
        }
        if head.documents >= CORPUS_DOCUMENTS_MAX || head.next == u32::MAX {
            return Err(CorpusError::Invalid(format!("the corpus {corpus} has {} documents already", head.documents)));
        }
        let document = DocumentRecord {
            number: head.next,
            name: new.name,
            hash: new.hash,
            kind: new.kind,
            bytes: new.bytes,
            tags: new.tags,
            notes: new.notes,
            passages: 0,
            words: 0,
            added_ms: new.added_ms,
            complete: false,
        };
        head.next += 1;
        // The number is used up and the row stands before the first passage: what a crash leaves can be found.
        let mut batch = Batch::new();
        batch.corpus(tenant, corpus, CorpusOp::Head(head.clone()));
        batch.corpus(tenant, corpus, CorpusOp::Document(document.clone()));
        self.commit(batch)?;
        let corpus = corpus.to_owned();
        let store = self.clone();
        Ok(Begun::Writer(Box::new(CorpusWriter {
            store,
            tenant,
            corpus,
            head,
            document,
            replaces,
            batch: Batch::new(),
            waiting: 0,
        })))
    }

    /// Removes a document with its passages. `false` = there is none of this name.
    pub fn remove_document(&self, tenant: TenantId, corpus: &str, name: &str) -> Result<bool, CorpusError> {
        let (Some(mut head), Some(mut document)) = (self.corpus(tenant, corpus)?, self.document(tenant, corpus, name)?)
        else {
            return Ok(false);
        };
        leave(&mut head, &document);
        document.complete = false;
        let number = document.number;
        let mut batch = Batch::new();
        batch.corpus(tenant, corpus, CorpusOp::Head(head));
        batch.corpus(tenant, corpus, CorpusOp::RemoveName(name.to_owned()));
        batch.corpus(tenant, corpus, CorpusOp::Document(document));
        self.commit(batch)?;
        self.sweep_document(tenant, corpus, number)?;
        Ok(true)
    }

    /// Removes a corpus with all its documents. `false` = there is none of this name.
    pub fn remove_corpus(&self, tenant: TenantId, corpus: &str) -> Result<bool, CorpusError> {
        if self.corpus(tenant, corpus)?.is_none() {
            return Ok(false);
        }
        // One document after the other: a crash in between leaves a smaller corpus.
        while let Some(document) = self.documents(tenant, corpus, 0, 1)?.pop() {
            self.remove_document(tenant, corpus, &document.name)?;
        }
        self.sweep_corpus(tenant, corpus)?;
        let mut batch = Batch::new();
        batch.corpus(tenant, corpus, CorpusOp::RemoveHead);
        self.commit(batch)?;
        Ok(true)
    }

    /// Removes what interrupted writers left. Returns how many documents that were.
    pub fn sweep_corpus(&self, tenant: TenantId, corpus: &str) -> Result<usize, CorpusError> {
        let Some(space) = self.shared().corpus_space(tenant, corpus)? else { return Ok(0) };
        let mut left = Vec::new();
        self.shared().scan_sealed(Cf::Corpus, &layout::corpus_documents(tenant, space), usize::MAX, |plain| {
            let document: DocumentRecord = decode(Cf::Corpus, plain)?;
            if !document.complete {
                left.push(document.number);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for number in &left {
            self.sweep_document(tenant, corpus, *number)?;
        }
        Ok(left.len())
    }

    /// Removes the passages of a document that is not visible, then its row.
    fn sweep_document(&self, tenant: TenantId, corpus: &str, number: u32) -> Result<(), CorpusError> {
        let Some(space) = self.shared().corpus_space(tenant, corpus)? else { return Ok(()) };
        let from = layout::corpus_passage(tenant, space, vid(number, 0));
        let to = layout::corpus_passage(tenant, space, vid(number + 1, 0));
        loop {
            let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            self.shared()
                .kv
                .scan(Cf::Corpus, ScanRange::forward(&from, &to), &mut |key, value| {
                    rows.push((key.to_vec(), value.to_vec()));
                    if rows.len() < BATCH_PASSAGES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                })
                .map_err(ReadError::from)?;
            let mut batch = Batch::new();
            let last = rows.len() < BATCH_PASSAGES;
            for (key, sealed) in rows {
                let vid = layout::tail_u64(&key).filter(|vid| document_of(*vid) == number);
                let vid = vid.ok_or_else(|| ReadError::Corrupt {
                    cf: Cf::Corpus.name(),
                    why: "a passage has a wrong key".into(),
                })?;
                let plain = self.shared().open(tenant, Cf::Corpus, &key, sealed)?;
                batch.corpus(tenant, corpus, CorpusOp::RemovePassage(vid, decode(Cf::Corpus, &plain)?));
                batch.remove_space(tenant, &space_name(corpus), vid);
            }
            if last {
                batch.corpus(tenant, corpus, CorpusOp::RemoveDocument(number));
            }
            self.commit(batch)?;
            if last {
                return Ok(());
            }
        }
    }
}
