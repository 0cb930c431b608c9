//! Guesses from the text itself: what followed the last time that the text read like this (prompt lookup).
//!
//! Replies that quote, summarise or correct what is in the prompt, and code, repeat stretches of it. The search is that
//! of LZ77 compressors: every pair of tokens is entered into a hash table of chains as the text grows, a guess walks the
//! chain of the last pair and takes the place with the longest match before it, the latest among equals. The place that
//! the last guess was copied from is looked at first, so that a long quotation is not lost in a long chain.
//!
//! Sketch: entering a token takes some nanoseconds, a guess below a microsecond; a sequence needs 16 KiB and 4 bytes
//! for each token. Guesses come from a sequence's own text only, so nothing of another tenant can show in them, not
//! even as time.

use std::collections::HashMap;

use super::{DRAFT_MAX, Draft, Drafter, Ground, Wish};

/// Chains; pairs that share one are told apart by looking at them.
const CHAINS: usize = 1 << 12;
/// Most places that a guess looks at.
const PLACES_MAX: usize = 32;
/// Least match that is a ground for guessing, and where comparing ends.
const MATCH_MIN: usize = 2;
const MATCH_MAX: usize = 32;

/// The drafter over the sequences' own texts.
#[derive(Debug, Default)]
pub struct Lookup {
    indexes: HashMap<u64, Index>,
}

impl Drafter for Lookup {
    fn draft(&mut self, wishes: &mut [Wish<'_>]) {
        for Wish { sequence, history, most, draft } in wishes {
            let index = self.indexes.entry(*sequence).or_insert_with(|| Index::new(history.len()));
            index.follow(history);
            index.guess(history, (*most).min(DRAFT_MAX), draft);
        }
    }

    fn forget(&mut self, sequence: u64) {
        self.indexes.remove(&sequence);
    }

    fn price(&self, _wishes: usize) -> Option<f64> {
        None
    }
}

/// Where the pairs of one text are. A place is the number of tokens before it, so that 0 can stand for "none".
#[derive(Debug)]
struct Index {
    /// By hash of a pair: the last place behind such a pair.
    last: Box<[u32; CHAINS]>,
    /// By place: the place before it in its chain.
    before: Vec<u32>,
    /// Where the last guess was copied from, and how long the text was then.
    source: Option<(usize, usize)>,
}

impl Index {
    fn new(tokens: usize) -> Self {
        let mut before = Vec::with_capacity(2 * tokens);
        // No pair stands before the first two places.
        before.resize(MATCH_MIN, 0);
        Self { last: Box::new([0; CHAINS]), before, source: None }
    }

    /// Enters all places that a token follows.
    fn follow(&mut self, text: &[u32]) {
        for place in self.before.len()..text.len() {
            let last = &mut self.last[chain(text, place)];
            self.before.push(std::mem::replace(last, place as u32));
        }
    }

    fn guess(&mut self, text: &[u32], most: usize, draft: &mut Draft) {
        let Some((from, length)) = self.best_place(text).filter(|_| most > 0) else {
            self.source = None;
            return;
        };
        self.source = Some((from, text.len()));
        draft.tokens.clear();
        draft.ground = Ground::Match(length);
        for place in from..from + most {
            // What is copied may reach into the copy: a text that goes round in circles.
            let token = text.get(place).copied().unwrap_or_else(|| draft.tokens[place - text.len()]);
            draft.tokens.push(token);
        }
    }

    /// The place with the longest match before it, and the length of that.
    fn best_place(&self, text: &[u32]) -> Option<(usize, usize)> {
        if text.len() < MATCH_MIN {
            return None;
        }
        let mut best = None;
        let resumed = self.source.map(|(from, length)| from + (text.len() - length));
        let mut next = self.last[chain(text, text.len())] as usize;
        let chained = std::iter::from_fn(|| {
            let place = next;
            next = *self.before.get(place)? as usize;
            (place > 0).then_some(place)
        });
        for place in resumed.into_iter().chain(chained.take(PLACES_MAX)) {
            let length = matched(text, place);
            if length >= MATCH_MIN && best.is_none_or(|(_, longest)| length > longest) {
                best = Some((place, length));
            }
            if length == MATCH_MAX {
                break;
            }
        }
        best
    }
}

/// The chain of the pair before a place.
fn chain(text: &[u32], place: usize) -> usize {
    let pair = u64::from(text[place - 2]) << 32 | u64::from(text[place - 1]);
    // Multiplicative hashing: the upper bits of the product depend on all bits of the pair.
    (pair.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - CHAINS.ilog2())) as usize
}

/// How many tokens before this place are those at the end of the text, as far as it matters.
fn matched(text: &[u32], place: usize) -> usize {
    let pairs = text[..place].iter().rev().zip(text.iter().rev());
    pairs.take(MATCH_MAX).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draft(lookup: &mut Lookup, history: &[u32], most: usize) -> Draft {
        let mut draft = Draft::with_room();
        lookup.draft(&mut [Wish { sequence: 1, history, most, draft: &mut draft }]);
        draft
    }

    fn guess(history: &[u32], most: usize) -> Draft {
        draft(&mut Lookup::default(), history, most)
    }

    #[test]
    fn what_followed_the_same_words_is_guessed() {
        let found = guess(&[1, 2, 3, 4, 5, 9, 2, 3], 3);
        assert_eq!(found, Draft { tokens: vec![4, 5, 9], ground: Ground::Match(2) });
    }

    #[test]
    fn the_longest_match_wins_and_among_equals_the_latest() {
        assert_eq!(guess(&[7, 2, 3, 4, 8, 2, 3, 5, 7, 2, 3], 1).tokens, [4]);
        assert_eq!(guess(&[6, 2, 3, 4, 8, 2, 3, 5, 7, 2, 3], 1).tokens, [5]);
    }

    #[test]
    fn without_a_repeated_pair_nothing_is_guessed() {
        for history in [&[][..], &[1], &[1, 2], &[1, 2, 3, 1, 3, 2, 1]] {
            assert_eq!(guess(history, 5), Draft::default(), "{history:?}");
        }
        assert_eq!(guess(&[1, 2, 1, 2], 0), Draft::default());
    }

    #[test]
    fn a_text_that_goes_round_in_circles_is_continued() {
        assert_eq!(guess(&[1, 2, 3, 1, 2, 3, 1, 2], 7).tokens, [3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(guess(&[5, 5, 5], 4).tokens, [5, 5, 5, 5]);
    }

    #[test]
    fn a_quotation_is_followed_through_a_pair_that_stands_in_many_places() {
        // "0 0" stands in so many later places that its chain is cut before the quotation.
        let quoted: Vec<u32> = (1..=10).chain([0, 0]).chain(100..=110).collect();
        let noise = (0..200).flat_map(|i| [1000 + i, 0, 0]);
        let mut text: Vec<u32> = quoted.iter().copied().chain(noise).chain(1..=9).collect();
        let mut lookup = Lookup::default();
        assert_eq!(draft(&mut lookup, &text, 2).tokens, [10, 0]);
        text.extend([10, 0, 0]);
        assert_eq!(draft(&mut lookup, &text, 2).tokens, [100, 101]);
        // Whoever comes to this place without having followed it finds a later one.
        assert_ne!(guess(&text, 2).tokens, [100, 101]);
    }

    #[test]
    fn sequences_do_not_see_each_other() {
        let mut lookup = Lookup::default();
        let mut drafts = [Draft::default(), Draft::default()];
        let [first, second] = &mut drafts;
        lookup.draft(&mut [
            Wish { sequence: 1, history: &[1, 2, 3, 1, 2], most: 2, draft: first },
            Wish { sequence: 2, history: &[9, 1, 2], most: 2, draft: second },
        ]);
        assert_eq!((drafts[0].tokens.as_slice(), drafts[1].tokens.as_slice()), (&[3, 1][..], &[][..]));
        lookup.forget(1);
        assert!(lookup.indexes.len() == 1 && lookup.indexes.contains_key(&2));
    }

    proptest! {
        /// Grown in any pieces, the index guesses a continuation of an earlier place with the match that it names.
        #[test]
        fn a_guess_is_a_copy_of_what_it_names(
            text in proptest::collection::vec(0_u32..4, 0..300),
            cuts in proptest::collection::vec(0_usize..300, 0..6),
            most in 0_usize..20,
        ) {
            let mut lookup = Lookup::default();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            cuts.iter().for_each(|cut| drop(draft(&mut lookup, &text[..*cut], most)));
            let found = draft(&mut lookup, &text, most);
            prop_assert!(found.tokens.len() <= most.min(DRAFT_MAX));
            let longest = (MATCH_MIN..text.len()).map(|place| matched(&text, place)).max().unwrap_or(0);
            prop_assert_eq!(found.tokens.is_empty(), longest < MATCH_MIN || most == 0);
            if let (false, Ground::Match(length)) = (found.tokens.is_empty(), found.ground) {
                prop_assert!(length <= longest);
                let whole = [&text[..], &found.tokens].concat();
                let copied = |place: usize| {
                    matched(&text, place) == length && whole[place..].starts_with(&found.tokens)
                };
                prop_assert!((MATCH_MIN..text.len()).any(copied));
            }
        }
    }
}
