//! From generated tokens to text that may be shown: whole characters only, and nothing that may yet turn out to be
//! the beginning of a stop string.

use std::collections::VecDeque;

use crate::request::TokenOut;
use crate::tokenizer::StreamDecoder;

/// Text of one reply on its way out.
///
/// Positions are byte offsets in the decoded reply. Tokens that were asked for wait until the text before them is out,
/// so that a stop string takes its tokens along.
#[derive(Debug, Default)]
pub(crate) struct TextGate {
    stop: Vec<String>,
    decoder: StreamDecoder,
    /// Decoded but not yet released.
    held: String,
    released: usize,
    tokens: VecDeque<(usize, TokenOut)>,
}

impl TextGate {
    pub fn new(stop: Vec<String>) -> Self {
        Self { stop, ..Self::default() }
    }

    /// Adds the bytes of one token, and the token itself where the caller wants tokens. Returns true when a stop
    /// string is complete: the reply then ends before it.
    pub fn push(&mut self, bytes: &[u8], token: Option<TokenOut>) -> bool {
        if let Some(token) = token {
            self.tokens.push_back((self.released + self.held.len(), token));
        }
        let before = self.held.len();
        self.decoder.push(bytes, &mut self.held);
        self.cut_at_stop(before)
    }

    /// The reply is over: unfinished characters become replacement characters, nothing is held back any more.
    pub fn finish(&mut self) {
        let before = self.held.len();
        self.decoder.finish(&mut self.held);
        self.cut_at_stop(before);
        self.stop.clear();
    }

    /// Appends what may be shown now.
    pub fn release(&mut self, text: &mut String, tokens: &mut Vec<TokenOut>) {
        let keep = self.partial_stop();
        let ready = self.held.len() - keep;
        text.push_str(&self.held[..ready]);
        self.held.drain(..ready);
        self.released += ready;
        while self.tokens.front().is_some_and(|(start, _)| *start < self.released || keep == 0) {
            tokens.extend(self.tokens.pop_front().map(|(_, token)| token));
        }
    }

    /// Looks for the earliest stop string that uses text behind `before`.
    fn cut_at_stop(&mut self, before: usize) -> bool {
        let found = self.stop.iter().filter_map(|stop| {
            let mut from = (before + 1).saturating_sub(stop.len());
            while !self.held.is_char_boundary(from) {
                from -= 1;
            }
            self.held[from..].find(stop.as_str()).map(|at| from + at)
        });
        let Some(at) = found.min() else { return false };
        // Nothing behind the stop string is part of the reply, not even the beginning of a character.
        self.held.truncate(at);
        self.decoder = StreamDecoder::new();
        self.stop.clear();
        let end = self.released + at;
        self.tokens.retain(|(start, _)| *start < end);
        true
    }

    /// Length of the longest end of the held text with which a stop string begins.
    fn partial_stop(&self) -> usize {
        let held = self.held.as_bytes();
        let longest = |stop: &String| {
            let most = held.len().min(stop.len() - 1);
            (1..=most).rev().find(|n| held.ends_with(&stop.as_bytes()[..*n])).unwrap_or(0)
        };
        // A partial match may begin inside a character only if the stop string did, and it does not.
        self.stop.iter().map(longest).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(id: u32) -> Option<TokenOut> {
        Some(TokenOut { id, logprob: 0.0, text: Vec::new(), top: Vec::new() })
    }

    /// Feeds pieces one by one; gives back the deltas, the ids of released tokens and whether a stop string came.
    fn run(stop: &[&str], pieces: &[&[u8]]) -> (Vec<String>, Vec<u32>, bool) {
        let mut gate = TextGate::new(stop.iter().map(|s| (*s).to_owned()).collect());
        let (mut deltas, mut ids, mut stopped) = (Vec::new(), Vec::new(), false);
        for (id, piece) in (0..).zip(pieces) {
            stopped = gate.push(piece, token(id));
            let (mut text, mut tokens) = (String::new(), Vec::new());
            gate.release(&mut text, &mut tokens);
            deltas.push(text);
            ids.extend(tokens.iter().map(|t| t.id));
            if stopped {
                break;
            }
        }
        gate.finish();
        let (mut text, mut tokens) = (String::new(), Vec::new());
        gate.release(&mut text, &mut tokens);
        deltas.push(text);
        ids.extend(tokens.iter().map(|t| t.id));
        (deltas, ids, stopped)
    }

    #[test]
    fn without_stop_strings_text_leaves_at_once() {
        let (deltas, ids, stopped) = run(&[], &[b"ab", b"c"]);
        assert_eq!((deltas.join("|").as_str(), ids, stopped), ("ab|c|", vec![0, 1], false));
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_seen() {
        let (deltas, ids, stopped) = run(&["\nUser:"], &[b"Hi", b"\n", b"Us", b"er:", b"x"]);
        assert_eq!((deltas.join("|").as_str(), ids, stopped), ("Hi||||", vec![0], true));
    }

    #[test]
    fn text_held_for_a_stop_string_that_does_not_come_is_released() {
        let (deltas, _, stopped) = run(&["\nUser:"], &[b"Hi", b"\n", b"Us", b"a"]);
        assert_eq!((deltas.join("|").as_str(), stopped), ("Hi|||\nUsa|", false));
        let (deltas, ids, _) = run(&["\nUser:"], &[b"Hi", b"\nUse"]);
        assert_eq!((deltas.join("|").as_str(), ids), ("Hi||\nUse", vec![0, 1]));
    }

    #[test]
    fn the_earliest_stop_string_wins_and_text_before_it_stays() {
        let (deltas, _, stopped) = run(&["world", "lo"], &[b"hello world"]);
        assert_eq!((deltas.concat().as_str(), stopped), ("hel", true));
    }

    #[test]
    fn characters_are_whole_in_every_delta() {
        let crab = "🦀".as_bytes();
        let (deltas, _, _) = run(&["🦀🦀"], &[&crab[..2], &crab[2..], b"!"]);
        assert_eq!(deltas.join("|"), "||🦀!|");
        let (deltas, _, _) = run(&[], &[b"a", &crab[..3]]);
        assert_eq!(deltas.join("|"), "a||\u{FFFD}");
    }

    proptest! {
        #[test]
        fn any_cutting_into_tokens_gives_the_text_before_the_first_stop(
            text in "[ab\u{e9}\u{1f980}]{0,30}",
            stops in proptest::collection::vec("[ab\u{e9}]{1,4}", 0..3),
            cut in 1_usize..5,
        ) {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(cut).collect();
            let stop_refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (deltas, _, stopped) = run(&stop_refs, &pieces);
            let first = stop_refs.iter().filter_map(|s| text.find(s)).min();
            prop_assert_eq!(stopped, first.is_some());
            // Which of two overlapping stop strings completes first may end the text earlier or at the same place.
            let expected = &text[..first.unwrap_or(text.len())];
            let got = deltas.concat();
            prop_assert!(got == expected || stops.len() > 1 && stopped && got.starts_with(expected), "{got:?} {expected:?}");
        }
    }
}
