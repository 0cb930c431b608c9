//! What a question brings back: the user's own memories, and passages of the corpora that may be read here.

use millrace_agent::Fact;
use millrace_proto::date;
use millrace_proto::id::{ConversationId, TenantId, UserId};
use millrace_proto::statement::Statement;
use millrace_storage::{CorpusHit, CorpusQuery, Recalled, Store};

use super::translate::fact;
use crate::config::{Corpora, MemoryOptions};

/// A passage must cover this much of the question: what is said to everybody distracts sooner than one's own words.
const PASSAGE_RELEVANCE_MIN: f32 = 0.3;

/// Statements of one context.
const STATEMENTS_MAX: usize = 3;

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

/// A question to the statements that were extracted from what a user said.
pub(super) struct About {
    pub owner: (TenantId, UserId),
    pub text: String,
    pub now_ms: u64,
}

/// The question to a user's statements; `None` when none are extracted.
pub(super) fn about(options: &MemoryOptions, tenant: TenantId, user: UserId, text: &str, now_ms: u64) -> Option<About> {
    options.extract.then(|| About { owner: (tenant, user), text: text.to_owned(), now_ms })
}

/// Memories, statements and passages as facts, the more relevant first. Runs on a read thread of the store.
pub(super) fn facts(
    store: &Store,
    memories: Vec<Recalled>,
    about: Option<&About>,
    passages: Option<&CorpusQuery>,
) -> Vec<Fact> {
    let passages = passages.map(|query| store.search_corpora_here(query)).unwrap_or(Ok(Vec::new()));
    let passages = passages.unwrap_or_else(|error| {
        tracing::warn!(%error, "corpora could not be searched; the turn goes on without them");
        Vec::new()
    });
    let asked = |about: &About| store.statements_about_here(about.owner, &about.text, about.now_ms, STATEMENTS_MAX);
    let statements = about.map(asked).unwrap_or(Ok(Vec::new())).unwrap_or_else(|error| {
        tracing::warn!(%error, "statements could not be read; the turn goes on without them");
        Vec::new()
    });
    let memories = memories.into_iter().map(|memory| (memory.relevance, fact(memory))).collect();
    let statements = statements.into_iter().map(|(statement, share)| (share, stated(&statement))).collect();
    let passages = passages.into_iter().map(|hit| (hit.relevance, passage(hit))).collect();
    merge(merge(statements, memories), passages).into_iter().map(|(_, fact)| fact).collect()
}

/// Each list keeps its own order, which knows more than one number says. Of equals the first list's come first.
fn merge(one: Vec<(f32, Fact)>, other: Vec<(f32, Fact)>) -> Vec<(f32, Fact)> {
    let (mut one, mut other) = (one.into_iter().peekable(), other.into_iter().peekable());
    let mut merged = Vec::with_capacity(one.len() + other.len());
    loop {
        let first = match (one.peek(), other.peek()) {
            (None, None) => return merged,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((one, _)), Some((other, _))) => one >= other,
        };
        merged.extend(if first { one.next() } else { other.next() });
    }
}

/// A statement as a fact that cites the message that says so.
fn stated(statement: &Statement) -> Fact {
    let Statement { subject, relation, object, valid_from_ms, source, .. } = statement;
    let (conversation, seq) = *source;
    Fact {
        conversation,
        seq,
        text: format!("{subject} {} {object} (since {})", relation.replace('_', " "), date::day(*valid_from_ms)),
        at_ms: *valid_from_ms,
        score: 0.0,
        citation: None,
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
        let memories = [0.5, 0.9].map(|relevance| (relevance, fact(memory(relevance))));
        let passages = [0.7, 0.4].map(|relevance| (relevance, passage(hit(relevance))));
        let merged = merge(memories.into(), passages.into());
        let texts: Vec<&str> = merged.iter().map(|(_, fact)| fact.text.as_str()).collect();
        assert_eq!(texts, ["passage 0.7", "memory 0.5", "memory 0.9", "passage 0.4"]);
        assert_eq!(merged[0].1.citation.as_deref(), Some("terms.pdf, page 4, Notice"));
    }
}
