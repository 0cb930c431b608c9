//! What a question brings back: the user's own memories, and passages of the corpora that may be read here.

use millrace_agent::Fact;
use millrace_proto::id::{ConversationId, TenantId};
use millrace_storage::{CorpusHit, CorpusQuery, Recalled, Store};

use super::translate::fact;
use crate::config::Corpora;

/// A passage must cover this much of the question: what is said to everybody distracts sooner than one's own words.
const PASSAGE_RELEVANCE_MIN: f32 = 0.3;

/// Which channel account a question came through; none for the API.
pub(super) type Channel = Option<(String, String)>;

/// The question to the corpora that may be read; `None` when there are none.
pub(super) fn passages_query(
    corpora: &Corpora,
    channel: &Channel,
    tenant: TenantId,
    text: &str,
    embedding: Option<&Vec<f32>>,
    limit: usize,
) -> Option<CorpusQuery> {
    let names = corpora.readable(channel.as_ref());
    (!names.is_empty()).then(|| CorpusQuery {
        tenant,
        corpora: names.to_vec(),
        text: text.to_owned(),
        embedding: embedding.cloned(),
        tags: Vec::new(),
        limit,
        relevance_min: PASSAGE_RELEVANCE_MIN,
    })
}

/// Memories and passages as facts, the more relevant first. Runs on a read thread of the store.
pub(super) fn facts(store: &Store, memories: Vec<Recalled>, passages: Option<&CorpusQuery>) -> Vec<Fact> {
    let passages = passages.map(|query| store.search_corpora_here(query)).unwrap_or(Ok(Vec::new()));
    let passages = passages.unwrap_or_else(|error| {
        tracing::warn!(%error, "corpora could not be searched; the turn goes on without them");
        Vec::new()
    });
    merge(memories, passages)
}

/// Each list keeps its own order, which knows more than one number says.
fn merge(memories: Vec<Recalled>, passages: Vec<CorpusHit>) -> Vec<Fact> {
    let mut memories = memories.into_iter().map(|memory| (memory.relevance, fact(memory))).peekable();
    let mut passages = passages.into_iter().map(|hit| (hit.relevance, passage(hit))).peekable();
    let mut facts = Vec::new();
    loop {
        let memory_first = match (memories.peek(), passages.peek()) {
            (None, None) => return facts,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((memory, _)), Some((passage, _))) => memory >= passage,
        };
        let next = if memory_first { memories.next() } else { passages.next() };
        facts.extend(next.map(|(_, fact)| fact));
    }
}

fn passage(hit: CorpusHit) -> Fact {
    let place = hit.passage.citation();
    let citation = if place.is_empty() { hit.document } else { format!("{}, {place}", hit.document) };
    Fact {
        // It was said in no conversation.
        conversation: ConversationId([0; 16]),
        seq: u64::from(hit.number) << 32 | u64::from(hit.part),
        text: hit.passage.text,
        at_ms: hit.added_ms,
        score: hit.score,
        citation: Some(citation),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::document::{Passage, Place};
    use millrace_storage::Why;

    fn memory(relevance: f32) -> Recalled {
        Recalled {
            conversation: ConversationId([1; 16]),
            seq: 1,
            text: format!("memory {relevance}"),
            at_ms: 1,
            score: 1.0,
            relevance,
            why: Why::default(),
        }
    }

    fn hit(relevance: f32) -> CorpusHit {
        let passage = Passage {
            headings: vec!["Notice".into()],
            place: Some(Place::Page(4)),
            page_last: 4,
            rows: None,
            text: format!("passage {relevance}"),
        };
        CorpusHit {
            corpus: "c".into(),
            document: "terms.pdf".into(),
            number: 1,
            part: 2,
            passage,
            added_ms: 1,
            score: 1.0,
            relevance,
        }
    }

    #[test]
    fn both_lists_are_merged_by_relevance_and_keep_their_order() {
        let merged = merge(vec![memory(0.5), memory(0.9)], vec![hit(0.7), hit(0.4)]);
        let texts: Vec<&str> = merged.iter().map(|fact| fact.text.as_str()).collect();
        assert_eq!(texts, ["passage 0.7", "memory 0.5", "memory 0.9", "passage 0.4"]);
        assert_eq!(merged[0].citation.as_deref(), Some("terms.pdf, page 4, Notice"));
    }
}
