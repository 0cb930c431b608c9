//! Searching corpora: the nearest vectors and the best words, added.

use super::rows::{DocumentRecord, document_of, words_owner};
use super::space_name;
use crate::backend::{Cf, ScanRange};
use crate::error::{Busy, ReadError};
use crate::layout::{self, SpaceKey};
use crate::memory::{self, SpaceFilter, SpaceQuery};
use crate::seal::TenantKeys;
use crate::store::{Shared, Store, decode};
use millrace_proto::document::Passage;
use millrace_proto::id::TenantId;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Candidates of each way of searching.
const DEPTH: usize = 64;
/// Passages of one answer.
pub(crate) const CORPUS_LIMIT_MAX: usize = 100;
/// Corpora of one question.
pub(crate) const CORPORA_ASKED_MAX: usize = 32;
/// BM25 for passages, which are of one size by their making: a length says little.
const BM25_K1: f32 = 1.2;
const BM25_B: f32 = 0.4;
/// Different words of one question.
const WORDS_MAX: usize = 48;
/// Postings of one word that are read: a word in more passages than this decides nothing.
const POSTINGS_MAX: usize = 50_000;
/// Weight of nearness of meaning beside shared words.
const VECTOR_WEIGHT: f32 = 1.0;

/// A question to corpora.
#[derive(Clone, Debug, PartialEq)]
pub struct CorpusQuery {
    /// Owning tenant.
    pub tenant: TenantId,
    /// Names of the corpora; unknown ones hold nothing.
    pub corpora: Vec<String>,
    /// The question.
    pub text: String,
    /// Its embedding; without one words alone decide.
    pub embedding: Option<Vec<f32>>,
    /// Only documents with all of these tags.
    pub tags: Vec<String>,
    /// Most passages to return.
    pub limit: usize,
    /// Passages of less [`CorpusHit::relevance`] are left out.
    pub relevance_min: f32,
}

/// A passage that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct CorpusHit {
    /// Its corpus.
    pub corpus: String,
    /// The name of its document.
    pub document: String,
    /// The number of its document.
    pub number: u32,
    /// Its place in the document, from 0.
    pub part: u32,
    /// What it says and where.
    pub passage: Passage,
    /// Unix milliseconds at which the document came in.
    pub added_ms: u64,
    /// Comparable within one answer.
    pub score: f32,
    /// How much of the question it covers, 0 to 1, by words or by meaning.
    pub relevance: f32,
}

#[derive(Clone, Copy, Default)]
struct Found {
    vector: f32,
    text: f32,
    covered: f32,
    cosine: f32,
}

impl Store {
    /// Finds passages. `done` is called on a read thread.
    pub fn search_corpora(
        &self,
        query: CorpusQuery,
        done: Box<dyn FnOnce(Result<Vec<CorpusHit>, ReadError>) + Send>,
    ) -> Result<(), Busy> {
        let shared = Arc::clone(self.shared());
        self.on_pool(done, move || shared.search_corpora(&query))
    }

    /// [`Store::search_corpora`] on this thread: for callers that are on a read thread already.
    pub fn search_corpora_here(&self, query: &CorpusQuery) -> Result<Vec<CorpusHit>, ReadError> {
        self.shared().search_corpora(query)
    }
}

impl Shared {
    /// The space of a corpus; `None` when the tenant never stored anything.
    pub(super) fn corpus_space(&self, tenant: TenantId, corpus: &str) -> Result<Option<SpaceKey>, ReadError> {
        let keys = self.keys.find(&*self.kv, tenant)?;
        Ok(keys.map(|keys| memory::space_key(&keys, &space_name(corpus))))
    }

    fn search_corpora(self: &Arc<Self>, query: &CorpusQuery) -> Result<Vec<CorpusHit>, ReadError> {
        if query.corpora.len() > CORPORA_ASKED_MAX {
            let why = format!("a question names {} corpora, the bound is {CORPORA_ASKED_MAX}", query.corpora.len());
            return Err(ReadError::Invalid { why });
        }
        // More tags than a document can have.
        if query.tags.len() > super::DOCUMENT_TAGS_MAX {
            return Ok(Vec::new());
        }
        let Some(keys) = self.keys.find(&*self.kv, query.tenant)? else { return Ok(Vec::new()) };
        let mut hits = Vec::new();
        for corpus in &query.corpora {
            self.search_corpus(query, &keys, corpus, &mut hits)?;
        }
        hits.retain(|hit: &CorpusHit| hit.relevance >= query.relevance_min);
        hits.sort_by(|a, b| {
            b.score.total_cmp(&a.score).then_with(|| (&a.corpus, a.number, a.part).cmp(&(&b.corpus, b.number, b.part)))
        });
        hits.truncate(query.limit.min(CORPUS_LIMIT_MAX));
        Ok(hits)
    }

    fn search_corpus(
        self: &Arc<Self>,
        query: &CorpusQuery,
        keys: &Arc<TenantKeys>,
        corpus: &str,
        hits: &mut Vec<CorpusHit>,
    ) -> Result<(), ReadError> {
        let tenant = query.tenant;
        let space = memory::space_key(keys, &space_name(corpus));
        let Some(plain) = self.get_sealed(tenant, Cf::Corpus, &layout::corpus_head(tenant, space))? else {
            return Ok(());
        };
        let head: super::CorpusHead = decode(Cf::Corpus, &plain)?;
        let mut found: HashMap<u64, Found> = HashMap::new();
        if let Some(embedding) = query.embedding.as_ref().filter(|embedding| !embedding.is_empty()) {
            let near = SpaceQuery {
                tenant,
                space: space_name(corpus),
                embedding: embedding.clone(),
                limit: DEPTH,
                filter: SpaceFilter { tags_all: query.tags.clone(), ..SpaceFilter::default() },
            };
            let near = self.search_space(&near)?;
            // What everything near the question has in common says nothing.
            let floor = near.last().filter(|_| near.len() == DEPTH).map_or(0.0, |last| last.score);
            let range = near.first().map_or(0.0, |best| best.score - floor).max(f32::MIN_POSITIVE);
            for hit in near {
                let entry = found.entry(hit.id).or_default();
                entry.vector = ((hit.score - floor) / range).max(0.0);
                entry.cosine = hit.score;
            }
        }
        self.search_words(query, keys, space, &head, &mut found)?;
        let mut ranked: Vec<(u64, Found, f32)> =
            found.into_iter().map(|(vid, found)| (vid, found, VECTOR_WEIGHT * found.vector + found.text)).collect();
        ranked.sort_by(|a, b| b.2.total_cmp(&a.2).then(a.0.cmp(&b.0)));
        let limit = hits.len() + query.limit.min(CORPUS_LIMIT_MAX);
        let mut documents: HashMap<u32, Option<DocumentRecord>> = HashMap::new();
        for (vid, found, score) in ranked {
            if hits.len() >= limit {
                break;
            }
            let number = document_of(vid);
            if let std::collections::hash_map::Entry::Vacant(entry) = documents.entry(number) {
                let plain = self.get_sealed(tenant, Cf::Corpus, &layout::corpus_document(tenant, space, number))?;
                let document: Option<DocumentRecord> = plain.map(|plain| decode(Cf::Corpus, &plain)).transpose()?;
                let wanted = |document: &DocumentRecord| query.tags.iter().all(|tag| document.tags.contains(tag));
                entry.insert(document.filter(|document| document.complete && wanted(document)));
            }
            // Half written, or removed since the search.
            let Some(Some(document)) = documents.get(&number) else { continue };
            let key = layout::corpus_passage(tenant, space, vid);
            let Some(plain) = self.get_sealed(tenant, Cf::Corpus, &key)? else { continue };
            hits.push(CorpusHit {
                corpus: corpus.to_owned(),
                document: document.name.clone(),
                number,
                part: vid as u32,
                passage: decode::<Passage>(Cf::Corpus, &plain)?,
                added_ms: document.added_ms,
                score,
                relevance: found.covered.max(found.cosine).clamp(0.0, 1.0),
            });
        }
        Ok(())
    }

    fn search_words(
        &self,
        query: &CorpusQuery,
        keys: &TenantKeys,
        space: SpaceKey,
        head: &super::CorpusHead,
        found: &mut HashMap<u64, Found>,
    ) -> Result<(), ReadError> {
        let owner = words_owner(space);
        let mean = (head.words as f32 / head.passages.max(1) as f32).max(1.0);
        let mut gathered: HashMap<u64, (f32, f32)> = HashMap::new();
        let mut asked = 0.0;
        for word in memory::counts(&query.text).keys().take(WORDS_MAX) {
            let from = layout::post_prefix(query.tenant, owner, memory::term(keys, owner, word));
            let to = layout::prefix_end(&from);
            let mut postings: Vec<(u64, f32, f32)> = Vec::new();
            let mut damaged = false;
            self.kv.scan(Cf::Post, ScanRange::forward(&from, &to), &mut |key, value| {
                match (layout::tail_u64(key), value) {
                    (Some(vid), [a, b, c, d]) => {
                        let number = |high: &u8, low: &u8| f32::from(u16::from_be_bytes([*high, *low]));
                        postings.push((vid, number(a, b), number(c, d)));
                    }
                    _ => damaged = true,
                }
                if postings.len() < POSTINGS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if damaged {
                let why = "a posting of a corpus does not have four bytes".into();
                return Err(ReadError::Corrupt { cf: Cf::Post.name(), why });
            }
            let (all, with) = (head.passages as f32, postings.len() as f32);
            let rarity = (1.0 + (all - with + 0.5).max(0.0) / (with + 0.5)).ln();
            asked += rarity;
            for (vid, count, length) in postings {
                let norm = BM25_K1 * (1.0 - BM25_B + BM25_B * length / mean);
                let (score, covered) = gathered.entry(vid).or_default();
                *score += rarity * count * (BM25_K1 + 1.0) / (count + norm);
                *covered += rarity;
            }
        }
        let best = gathered.values().map(|(score, _)| *score).fold(f32::MIN_POSITIVE, f32::max);
        for (vid, (score, covered)) in gathered {
            let entry = found.entry(vid).or_default();
            entry.text = score / best;
            entry.covered = covered / f32::max(asked, f32::MIN_POSITIVE);
        }
        Ok(())
    }
}
