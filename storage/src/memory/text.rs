//! Search by words: BM25 over postings that are rows of the database.
//!
//! One row per (user, word, memory): `word8 conversation16 seq8` -> how often. The word is a keyed
//! digest, so neither the row nor its key holds text. A posting is written in the same batch as the
//! memory itself and needs no reading first, so the index is never behind and never torn.

use super::fuse::{BM25_B, BM25_K1, DEPTH, Hit, POSTINGS_MAX, QUERY_WORDS_MAX};
use super::user::{DocMeta, UserIndex};
use super::words::words;
use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::error::ReadError;
use crate::layout::{self, DocId};
use crate::seal::TenantKeys;
use millrace_proto::id::{TenantId, UserId};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// How often each word occurs.
pub(crate) fn counts(text: &str) -> BTreeMap<String, u16> {
    let mut counts = BTreeMap::new();
    for word in words(text) {
        let count: &mut u16 = counts.entry(word).or_default();
        *count = count.saturating_add(1);
    }
    counts
}

/// Number of words that [`counts`] saw: the length that BM25 compares.
pub(crate) fn length(counts: &BTreeMap<String, u16>) -> u32 {
    counts.values().map(|count| u32::from(*count)).sum()
}

/// The blind id of a word of a user.
pub(crate) fn term(keys: &TenantKeys, user: UserId, word: &str) -> Term {
    // The user is part of the digest: the same word of two users gives unrelated rows.
    keys.blind("word", &[&user.0, word.as_bytes()])
}

/// A word of a user, as its rows name it.
pub(crate) type Term = [u8; 8];

/// The rows of a memory. Gives back its words, for the user's index.
pub(crate) fn put_rows(
    keys: &TenantKeys,
    tenant: TenantId,
    user: UserId,
    doc: DocId,
    counts: &BTreeMap<String, u16>,
    ops: &mut Vec<KvOp>,
) -> Vec<(Term, u16)> {
    let mut terms = Vec::with_capacity(counts.len());
    for (word, count) in counts {
        let term = term(keys, user, word);
        ops.push(KvOp::Put(Cf::Post, layout::post(tenant, user, term, doc), count.to_be_bytes().to_vec()));
        terms.push((term, *count));
    }
    terms
}

/// Removes the rows of a memory.
pub(crate) fn delete_rows(
    keys: &TenantKeys,
    tenant: TenantId,
    user: UserId,
    doc: DocId,
    counts: &BTreeMap<String, u16>,
    ops: &mut Vec<KvOp>,
) {
    for word in counts.keys() {
        ops.push(KvOp::Delete(Cf::Post, layout::post(tenant, user, term(keys, user, word), doc)));
    }
}

/// What a memory has gathered: its BM25 score, and the rarity of the question's words that it holds.
#[derive(Debug, Clone, Copy, Default)]
struct Gathered {
    score: f32,
    covered: f32,
}

/// The best memories for a text, the best first. A hit's relevance is the share of the question's
/// words that it holds, each word weighted by its rarity. The postings of a word are read once and stay with the
/// user's index: a common word has thousands of rows.
pub(crate) fn search(
    kv: &dyn KvStore,
    keys: &TenantKeys,
    (tenant, user): (TenantId, UserId),
    text: &str,
    index: &UserIndex,
    visible: impl Fn(DocId, DocMeta) -> bool,
) -> Result<Vec<Hit>, ReadError> {
    let asked_words = counts(text);
    if asked_words.is_empty() {
        return Ok(Vec::new());
    }
    let mean = (index.words() as f32 / index.docs().max(1) as f32).max(1.0);
    let mut found = vec![Gathered::default(); index.numbers()];
    let mut asked = 0.0;
    for word in asked_words.keys().take(QUERY_WORDS_MAX) {
        let term = term(keys, user, word);
        let postings = index.postings(term, || postings(kv, tenant, user, term))?;
        // Numbers of memories that were written again or forgotten are still in the list, and count no more.
        let live = postings.iter().filter(|(number, _)| index.numbered(*number).is_some()).count();
        let (all, with) = (index.docs() as f32, live as f32);
        // The `1 +` keeps a word that is in most memories from counting against them.
        let rarity = (1.0 + (all - with + 0.5).max(0.0) / (with + 0.5)).ln();
        asked += rarity;
        for (number, count) in postings.iter() {
            let Some((_, meta)) = index.numbered(*number) else { continue };
            let count = f32::from(*count);
            let norm = BM25_K1 * (1.0 - BM25_B + BM25_B * meta.words as f32 / mean);
            let gathered = &mut found[*number as usize];
            gathered.score += rarity * count * (BM25_K1 + 1.0) / (count + norm);
            gathered.covered += rarity;
        }
    }
    let hits = (0u32..).zip(found).filter(|(_, gathered)| gathered.score > 0.0).filter_map(|(number, gathered)| {
        let (doc, meta) = index.numbered(number)?;
        let relevance = gathered.covered / asked.max(f32::MIN_POSITIVE);
        visible(doc, meta).then_some(Hit { doc, score: gathered.score, relevance })
    });
    Ok(best(hits.collect()))
}

/// The `DEPTH` best; newer turns first among equals, so answers are repeatable.
pub(crate) fn best(mut hits: Vec<Hit>) -> Vec<Hit> {
    hits.retain(|hit| hit.score > 0.0);
    let better = |a: &Hit, b: &Hit| b.score.total_cmp(&a.score).then(b.doc.cmp(&a.doc));
    if hits.len() > DEPTH {
        hits.select_nth_unstable_by(DEPTH, better);
        hits.truncate(DEPTH);
    }
    hits.sort_unstable_by(better);
    hits
}

fn postings(kv: &dyn KvStore, tenant: TenantId, user: UserId, term: Term) -> Result<Vec<(DocId, u16)>, ReadError> {
    let from = layout::post_prefix(tenant, user, term);
    let to = layout::prefix_end(&from);
    let mut found = Vec::new();
    let mut damaged = false;
    kv.scan(Cf::Post, ScanRange::forward(&from, &to), &mut |key, value| {
        match (DocId::at_end_of(key), value.try_into().map(u16::from_be_bytes)) {
            (Some(doc), Ok(count)) => found.push((doc, count)),
            _ => damaged = true,
        }
        if found.len() < POSTINGS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if damaged {
        return Err(ReadError::Corrupt { cf: Cf::Post.name(), why: "a posting does not have two bytes".into() });
    }
    Ok(found)
}
