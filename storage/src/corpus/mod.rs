//! Corpora: documents of a tenant, cut into passages, found by words and by meaning.
//!
//! A passage is a row with its text and place (`corpus`), its words (`post`, as memories have them) and
//! its vector (a shared space of its own). A document is written in several batches under a new number
//! and becomes visible as a whole by its last one; a changed file gets a new number too, and its old
//! passages are removed after the new ones stand. What a crash leaves half written or half removed is
//! marked by its document row and swept by the next writer.
//!
//! One writer at a time: the caller runs all changes on one thread.

mod rows;
mod search;
mod write;

pub use rows::{CorpusHead, DocumentRecord};
pub use search::{CorpusHit, CorpusQuery};
pub use write::{Begun, CorpusError, CorpusWriter, NewDocument};

pub(crate) use rows::{CorpusOp, prepare};

use crate::backend::{Cf, ScanRange};
use crate::error::ReadError;
use crate::layout;
use crate::store::{Store, decode};
use millrace_proto::id::TenantId;
use std::ops::ControlFlow;

/// Corpora of one tenant.
pub const CORPORA_MAX: usize = 1_000;
/// Documents of one corpus.
pub const CORPUS_DOCUMENTS_MAX: u64 = 1_000_000;
/// Longest name of a corpus: it is part of addresses and configurations.
pub const CORPUS_NAME_BYTES_MAX: usize = 64;
/// Longest name of a document.
pub const DOCUMENT_NAME_BYTES_MAX: usize = 512;
/// Tags of a document.
pub const DOCUMENT_TAGS_MAX: usize = 16;
/// Longest tag.
pub const DOCUMENT_TAG_BYTES_MAX: usize = 128;

/// The shared space of a corpus's vectors.
fn space_name(corpus: &str) -> String {
    format!("corpus/{corpus}")
}

impl Store {
    /// A tenant's corpora by name.
    pub fn corpora(&self, tenant: TenantId) -> Result<Vec<CorpusHead>, ReadError> {
        let mut names: Vec<String> = Vec::new();
        self.shared().scan_sealed(Cf::Corpus, &layout::corpus_names(tenant), CORPORA_MAX, |plain| {
            names.push(String::from_utf8_lossy(plain).into_owned());
            Ok(ControlFlow::Continue(()))
        })?;
        names.sort_unstable();
        let heads = names.iter().map(|name| self.corpus(tenant, name));
        heads.filter_map(Result::transpose).collect()
    }

    /// One corpus.
    pub fn corpus(&self, tenant: TenantId, corpus: &str) -> Result<Option<CorpusHead>, ReadError> {
        let Some(space) = self.shared().corpus_space(tenant, corpus)? else { return Ok(None) };
        let plain = self.shared().get_sealed(tenant, Cf::Corpus, &layout::corpus_head(tenant, space))?;
        plain.map(|plain| decode(Cf::Corpus, &plain)).transpose()
    }

    /// Documents of a corpus after a number (0 = from the first), in the order in which they came.
    pub fn documents(
        &self,
        tenant: TenantId,
        corpus: &str,
        after: u32,
        limit: usize,
    ) -> Result<Vec<DocumentRecord>, ReadError> {
        let Some(space) = self.shared().corpus_space(tenant, corpus)? else { return Ok(Vec::new()) };
        let from = layout::corpus_document(tenant, space, after.saturating_add(1));
        let to = layout::prefix_end(&layout::corpus_documents(tenant, space));
        let mut found = Vec::new();
        self.shared().scan_sealed_range(Cf::Corpus, ScanRange::forward(&from, &to), usize::MAX, |plain| {
            let document: DocumentRecord = decode(Cf::Corpus, plain)?;
            if document.complete {
                found.push(document);
            }
            Ok(if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(found)
    }

    /// The document of this name.
    pub fn document(&self, tenant: TenantId, corpus: &str, name: &str) -> Result<Option<DocumentRecord>, ReadError> {
        let shared = self.shared();
        let Some(keys) = shared.keys.find(&*shared.kv, tenant)? else { return Ok(None) };
        let space = crate::memory::space_key(&keys, &space_name(corpus));
        let row = layout::corpus_name(tenant, space, rows::blind_name(&keys, space, name));
        let Some(number) = shared.get_sealed(tenant, Cf::Corpus, &row)? else { return Ok(None) };
        let number = rows::number(&number)?;
        let plain = shared.get_sealed(tenant, Cf::Corpus, &layout::corpus_document(tenant, space, number))?;
        let document: Option<DocumentRecord> = plain.map(|plain| decode(Cf::Corpus, &plain)).transpose()?;
        Ok(document.filter(|document| document.complete && document.name == name))
    }
}
