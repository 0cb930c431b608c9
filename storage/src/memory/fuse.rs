//! One ranking from three, and every constant of recall in one place.
//!
//! Each way of searching gives scores of its own scale. A list is divided by its best score, the
//! nearness of meaning after its mean over all of the user's memories was taken off (what every
//! memory shares with the question says nothing), and the three are added under weights. Then every
//! hit lends shares of its score to the turns beside it, because an answer often stands next to the
//! words that find it.
//!
//! The constants were tuned on the LoCoMo conversations 26 to 43 and checked on 44 to 50, which took
//! no part in it (`millrace bench memory` prints the table again). Recall of evidence turns at 10,
//! tuned / held out:
//!
//! | step | tuned | held out |
//! |---|---|---|
//! | BM25 alone | .640 | .632 |
//! | reciprocal ranks of BM25 and vectors (k 60), half lent to each side | .644 | .602 |
//! | scores instead of ranks | .677 | .658 |
//! | and lending to one turn each side | .747 | .725 |
//! | and to two, mean taken off, shorter length discount | .785 | .746 |
//!
//! Ranks lose because they hide that the best hit by words is often far ahead of the second.

use super::Why;
use crate::layout::{DocId, IdMap};

/// Weight of nearness of meaning.
const VECTOR_WEIGHT: f32 = 0.6;
/// Weight of shared words.
const TEXT_WEIGHT: f32 = 1.0;
/// Weight of shared things: precise when it hits, silent most of the time.
const GRAPH_WEIGHT: f32 = 0.2;
/// Weight of lying in the time that the question names.
const TIME_WEIGHT: f32 = 0.3;
/// Shares of its score that a memory lends to the turns after it: replies follow what they answer.
const LENT_AFTER: [f32; 2] = [0.45, 0.15];
/// Shares lent to the turns before it.
const LENT_BEFORE: [f32; 2] = [0.35, 0.1];
/// Keeps the order of memories that are no nearer than the mean.
const TAIL: f32 = 1e-3;
/// Entries of each list that take part.
pub(crate) const DEPTH: usize = 256;

/// BM25: how soon a repeated word stops adding.
pub(crate) const BM25_K1: f32 = 1.2;
/// BM25: how much a long text is discounted. Turns are short; the usual .75 is for documents.
pub(crate) const BM25_B: f32 = 0.4;
/// Different words of one question.
pub(crate) const QUERY_WORDS_MAX: usize = 48;
/// Postings of one word that are read: a word in so many of a user's memories tells little.
pub(crate) const POSTINGS_MAX: usize = 20_000;

/// Things of one question that the graph starts from.
pub(crate) const SEEDS_MAX: usize = 24;
/// Chance that the walk through the graph returns to where it started, at each step.
pub(crate) const WALK_RETURN: f32 = 0.5;
/// What may stay unpushed at a vertex, per edge: bounds the walk to 1 / (return * this) pushes.
pub(crate) const WALK_REST: f32 = 1e-4;
/// Edges of one vertex that the walk follows, the newest first: a thing with more leads nowhere in
/// particular, and a question must not cost what the largest thing costs.
pub(crate) const WALK_EDGES_MAX: usize = 512;

/// Most memories that one recall returns.
pub const RECALL_LIMIT_MAX: usize = 256;
/// A relevance below which a memory rather distracts than helps: one shared common word among
/// several, or a nearness of meaning that two unrelated sentences have too.
pub const RELEVANCE_MIN: f32 = 0.15;

/// A memory found by one way of searching.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Hit {
    pub doc: DocId,
    /// On the scale of its list; more is better.
    pub score: f32,
    /// How much of the question it covers by itself, 0 to 1.
    pub relevance: f32,
}

/// What the three ways of searching found, each the best first.
#[derive(Debug, Default)]
pub(crate) struct Rankings {
    pub vector: Vec<Hit>,
    /// Mean score over everything that was compared for `vector`.
    pub vector_mean: f32,
    pub text: Vec<Hit>,
    pub graph: Vec<Hit>,
}

/// A memory after fusion.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Fused {
    pub score: f32,
    pub relevance: f32,
    pub why: Why,
}

/// Fuses, lends to neighbours and sorts. `exists` says whether a neighbour may be returned,
/// `in_time` whether a memory lies in the time that was asked for.
pub(crate) fn fuse(
    rankings: &Rankings,
    exists: impl Fn(DocId) -> bool,
    in_time: impl Fn(DocId) -> bool,
) -> Vec<(DocId, Fused)> {
    let hits = rankings.vector.len() + rankings.text.len() + rankings.graph.len();
    let mut found: IdMap<DocId, Fused> = IdMap::with_capacity_and_hasher(2 * hits, Default::default());
    for (list, mean, weight, part) in [
        (&rankings.vector, rankings.vector_mean, VECTOR_WEIGHT, (|why| &mut why.vector) as fn(&mut Why) -> &mut f32),
        (&rankings.text, 0.0, TEXT_WEIGHT, |why| &mut why.text),
        (&rankings.graph, 0.0, GRAPH_WEIGHT, |why| &mut why.graph),
    ] {
        let Some(range) = list.first().map(|best| best.score - mean) else { continue };
        for (rank, hit) in list.iter().take(DEPTH).enumerate() {
            let share = if range > 0.0 { ((hit.score - mean) / range).max(0.0) } else { 0.0 };
            let gain = weight * (share + TAIL / (rank as f32 + 1.0));
            let fused = found.entry(hit.doc).or_default();
            fused.score += gain;
            fused.relevance = fused.relevance.max(hit.relevance.clamp(0.0, 1.0));
            *part(&mut fused.why) += gain;
        }
    }
    for (doc, fused) in &mut found {
        if in_time(*doc) {
            fused.score += TIME_WEIGHT;
        }
    }
    lend_to_neighbours(&mut found, exists);
    let mut sorted: Vec<_> = found.into_iter().collect();
    sorted.sort_unstable_by(|a, b| b.1.score.total_cmp(&a.1.score).then(b.0.cmp(&a.0)));
    sorted
}

fn lend_to_neighbours(found: &mut IdMap<DocId, Fused>, exists: impl Fn(DocId) -> bool) {
    // In a fixed order: sums of single-precision numbers depend on it.
    let mut lenders: Vec<(DocId, Fused)> = found.iter().map(|(doc, fused)| (*doc, *fused)).collect();
    lenders.sort_unstable_by_key(|(doc, _)| *doc);
    let mut lend = |doc: DocId, seq: Option<u64>, share: f32, from: &Fused| {
        let Some(seq) = seq else { return };
        let neighbour = DocId { seq, ..doc };
        if exists(neighbour) {
            let to = found.entry(neighbour).or_default();
            to.score += share * from.score;
            to.relevance = to.relevance.max(share * from.relevance);
        }
    };
    for (doc, fused) in lenders {
        for (distance, share) in (1..).zip(LENT_AFTER) {
            lend(doc, doc.seq.checked_add(distance), share, &fused);
        }
        for (distance, share) in (1..).zip(LENT_BEFORE) {
            lend(doc, doc.seq.checked_sub(distance), share, &fused);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::id::ConversationId;

    fn doc(conversation: u8, seq: u64) -> DocId {
        DocId { conversation: ConversationId([conversation; 16]), seq }
    }

    fn hit(doc: DocId, score: f32) -> Hit {
        Hit { doc, score, relevance: score }
    }

    #[test]
    fn agreement_beats_one_good_score() {
        let rankings = Rankings {
            vector: vec![hit(doc(1, 0), 0.8), hit(doc(2, 0), 0.7)],
            text: vec![hit(doc(3, 0), 9.0), hit(doc(2, 0), 8.0)],
            ..Rankings::default()
        };
        let fused = fuse(&rankings, |_| false, |_| false);
        assert_eq!(fused[0].0, doc(2, 0));
        let why = fused[0].1.why;
        assert!(why.vector > 0.0 && why.text > 0.0 && why.graph == 0.0);
    }

    #[test]
    fn what_all_memories_share_with_the_question_does_not_count() {
        let near = |score| vec![hit(doc(1, 0), score), hit(doc(2, 0), 0.5)];
        let lead = |mean| {
            let rankings = Rankings { vector: near(0.6), vector_mean: mean, ..Rankings::default() };
            let fused = fuse(&rankings, |_| false, |_| false);
            fused[0].1.score / fused[1].1.score
        };
        assert!(lead(0.45) > 2.0 * lead(0.0));
        assert!(lead(0.55).is_finite(), "a memory below the mean keeps a place at the end");
    }

    #[test]
    fn the_turns_beside_a_hit_are_found_and_missing_ones_are_not() {
        let rankings = Rankings { vector: vec![hit(doc(1, 5), 0.9)], ..Rankings::default() };
        let fused = fuse(&rankings, |doc| (6..=7).contains(&doc.seq), |_| false);
        let found: Vec<_> = fused.iter().map(|(doc, _)| doc.seq).collect();
        assert_eq!(found, [5, 6, 7]);
        assert_eq!(fused[1].1.why, Why::default());
        assert!(fused[1].1.relevance > 0.0 && fused[1].1.relevance < fused[0].1.relevance);
    }

    #[test]
    fn turns_between_two_hits_take_from_both() {
        let text = vec![hit(doc(1, 4), 1.0), hit(doc(1, 6), 1.0), hit(doc(1, 20), 1.0)];
        let rankings = Rankings { text, ..Rankings::default() };
        let fused = fuse(&rankings, |_| true, |_| false);
        let score = |seq| fused.iter().find(|(found, _)| found.seq == seq).map(|(_, fused)| fused.score).unwrap();
        assert!(score(5) > score(19) && score(5) > score(21));
    }

    #[test]
    fn the_first_and_the_last_turn_have_no_turn_beyond() {
        let text = vec![hit(doc(1, 0), 1.0), hit(doc(1, u64::MAX), 1.0)];
        let rankings = Rankings { text, ..Rankings::default() };
        assert_eq!(fuse(&rankings, |_| true, |_| false).len(), 6);
    }

    #[test]
    fn the_time_asked_for_comes_first_among_equals() {
        let text = vec![hit(doc(2, 9), 1.0), hit(doc(1, 9), 1.0)];
        let rankings = Rankings { text, ..Rankings::default() };
        let fused = fuse(&rankings, |_| false, |found| found == doc(1, 9));
        assert_eq!(fused[0].0, doc(1, 9));
    }
}
