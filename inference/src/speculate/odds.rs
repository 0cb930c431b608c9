//! How likely guesses are right, learned from guesses.

use super::{DRAFT_MAX, Draft};

/// What a guessed token rests on: guesses on equal ground are equally good, and are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// So many tokens before it are equal to those before the place from which it was copied.
    Match(usize),
    /// A draft model took it for the most probable one.
    Model,
    /// The reply's constraint allows nothing else.
    Forced,
}

impl Default for Ground {
    fn default() -> Self {
        Ground::Match(0)
    }
}

/// Lengths of a match from which each class reaches; longer matches are better grounds by far.
const MATCHES: [usize; 6] = [0, 3, 4, 6, 9, 16];
/// The class of draft models.
const MODEL: usize = MATCHES.len();
/// The class of what a constraint forces.
const FORCED: usize = MODEL + 1;
const CLASSES: usize = FORCED + 1;
/// What is believed of each class before anything was seen.
const FIRST_GUESS: [f32; CLASSES] = [0.3, 0.45, 0.55, 0.7, 0.8, 0.85, 0.6, 0.99];
/// Guesses that what is believed beforehand counts for, and most guesses that are remembered.
const PRIOR_WEIGHT: f32 = 4.0;
const MEMORY: f32 = 48.0;
/// What is left of a memory each time a guess was at hand and not tried: what did not pay is tried again in the end.
const FADING: f32 = 0.98;

impl Ground {
    /// The class of the token `at` places behind the first: a right guess makes the match one longer.
    fn class(self, at: usize) -> usize {
        match self {
            Ground::Match(length) => MATCHES.iter().rposition(|from| *from <= length + at).unwrap_or(0),
            Ground::Model => MODEL,
            Ground::Forced => FORCED,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    right: f32,
    tried: f32,
}

impl Tally {
    fn count(&mut self, right: bool) {
        if self.tried >= MEMORY {
            self.fade(1.0 - 1.0 / MEMORY);
        }
        self.tried += 1.0;
        self.right += f32::from(u8::from(right));
    }

    fn fade(&mut self, left: f32) {
        self.right *= left;
        self.tried *= left;
    }

    fn odds(&self, prior: f32) -> f32 {
        (self.right + prior * PRIOR_WEIGHT) / (self.tried + PRIOR_WEIGHT)
    }
}

/// Counts of right guesses: of one sequence, or of all.
#[derive(Clone, Debug, Default)]
pub struct Odds {
    tallies: [Tally; CLASSES],
}

impl Odds {
    /// Counts a draft of which `tried` tokens were computed and the first `right` were right.
    pub fn note(&mut self, ground: Ground, tried: usize, right: usize) {
        for at in 0..tried.min(right + 1) {
            self.tallies[ground.class(at)].count(at < right);
        }
        if tried == 0 {
            self.tallies[ground.class(0)].fade(FADING);
        }
    }

    /// How likely a token on this ground is right for a sequence with these counts, beside what was seen of all.
    pub fn of(&self, all: &Odds, ground: Ground) -> f64 {
        f64::from(self.class(all, ground.class(0)))
    }

    fn class(&self, all: &Odds, class: usize) -> f32 {
        self.tallies[class].odds(all.tallies[class].odds(FIRST_GUESS[class]))
    }

    /// Chances of a draft for a sequence with these counts, beside what was seen of all sequences.
    pub fn chances(&self, all: &Odds, draft: &Draft) -> Chances {
        let mut chances = Chances::default();
        let mut chance = 1.0;
        for at in 0..draft.tokens.len().min(DRAFT_MAX) {
            chance *= self.class(all, draft.ground.class(at));
            chances.values[at] = chance;
            chances.count += 1;
        }
        chances
    }
}

/// For each token of a draft, how likely it and all before it are right.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Chances {
    values: [f32; DRAFT_MAX],
    count: usize,
}

impl Chances {
    /// Chances that do not rise.
    pub fn new(values: &[f32]) -> Self {
        assert!(values.is_sorted_by(|a, b| a >= b), "a token is right only when those before it are");
        let mut chances = Self { count: values.len(), ..Self::default() };
        chances.values[..values.len()].copy_from_slice(values);
        chances
    }

    /// The chance of one token of the draft; `None` behind its end.
    pub fn get(&self, at: usize) -> Option<f64> {
        (at < self.count).then(|| f64::from(self.values[at]))
    }

    /// Tokens of the draft.
    pub fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(count: usize, ground: Ground) -> Draft {
        Draft { tokens: vec![1; count], ground }
    }

    fn first(odds: &Odds, all: &Odds, ground: Ground) -> f64 {
        odds.chances(all, &draft(1, ground)).get(0).expect("one token")
    }

    #[test]
    fn longer_matches_are_better_grounds_and_chances_only_fall() {
        let none = Odds::default();
        let of = |length| first(&none, &none, Ground::Match(length));
        assert!(of(2) < of(3) && of(3) < of(5) && of(5) < of(8) && of(8) < of(20));
        let chances = none.chances(&none, &draft(DRAFT_MAX, Ground::Match(2)));
        let values: Vec<f64> = (0..DRAFT_MAX).filter_map(|at| chances.get(at)).collect();
        assert_eq!((values.len(), chances.get(DRAFT_MAX)), (DRAFT_MAX, None));
        assert!(values.is_sorted_by(|a, b| a >= b));
        // The second is judged as one behind a match of three.
        assert!((values[1] / values[0] - of(3)).abs() < 1e-6);
    }

    #[test]
    fn what_a_sequence_shows_outweighs_what_all_show_and_that_outweighs_the_guess() {
        let (mut own, mut all) = (Odds::default(), Odds::default());
        let ground = Ground::Match(4);
        (0..30).for_each(|_| all.note(ground, 1, 0));
        assert!(first(&own, &all, ground) < 0.1);
        (0..40).for_each(|_| own.note(ground, 1, 1));
        assert!(first(&own, &all, ground) > 0.9);
        assert!(first(&own, &all, Ground::Match(2)) > 0.2, "other grounds are not judged by it");
    }

    #[test]
    fn only_tokens_that_were_judged_are_counted() {
        let mut odds = Odds::default();
        let none = Odds::default();
        // Of ten, two were right and the third wrong: nothing is known of the rest, which stand on the same ground.
        odds.note(Ground::Match(20), 10, 2);
        assert!((first(&odds, &none, Ground::Match(20)) - (2.0 + 4.0 * 0.85) / 7.0).abs() < 1e-6);
    }

    #[test]
    fn what_went_wrong_is_tried_again_after_a_while() {
        let mut odds = Odds::default();
        let none = Odds::default();
        let ground = Ground::Match(2);
        (0..100).for_each(|_| odds.note(ground, 1, 0));
        let low = first(&odds, &none, ground);
        (0..200).for_each(|_| odds.note(ground, 0, 0));
        assert!(low < 0.03 && first(&odds, &none, ground) > 0.2);
    }

    #[test]
    fn a_change_is_noticed_within_the_memory() {
        let mut odds = Odds::default();
        let none = Odds::default();
        (0..10_000).for_each(|_| odds.note(Ground::Model, 1, 1));
        (0..100).for_each(|_| odds.note(Ground::Model, 1, 0));
        assert!(first(&odds, &none, Ground::Model) < 0.2);
    }
}
