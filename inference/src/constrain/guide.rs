//! The parser of one running request, which travels: while the backend computes a step, a mask thread has it.
//!
//! Where the step computes guessed tokens too (`speculate`), the thread gives the parser back with the mask for the
//! next token and goes on with a copy of it through the guesses, one mask for each, until one is not allowed. So every
//! row of the step is sampled under the mask that it would have had in a step of its own, and the reply is the same.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};
use llguidance::toktrie::SimpleVob;
use llguidance::{CancellationHandle, Matcher};

use super::ConstraintError;
use super::compile::{Compiled, shortened};
use crate::speculate::DRAFT_MAX;
use crate::stats::Stats;

/// Longest that the engine's thread waits for masks in one step. Beyond it a sequence leaves the batch until its mask is
/// there, so that a constraint with slow masks slows nobody but itself.
pub(crate) const STEP_PATIENCE: Duration = Duration::from_millis(8);
/// Longest work on one mask. The compiler's limits end most masks long before, but not every expression keeps to them.
const MASK_TIME_MAX: Duration = Duration::from_millis(500);

/// Longest that it waits for a mask behind a guessed token, beyond which the guess is not looked at.
const AHEAD_PATIENCE: Duration = Duration::from_millis(1);

/// How far a mask thread is with the task of a guide.
#[derive(Default)]
struct Progress {
    begun: Option<Instant>,
    /// Ends the work on masks behind guesses.
    ahead: Option<CancellationHandle>,
    /// Nobody wants them any more.
    closed: bool,
}

type Shared = Arc<Mutex<Progress>>;

fn locked(progress: &Shared) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work for a mask thread: advance the parser by tokens and compute the next mask, then those behind guessed tokens.
pub(super) struct MaskTask {
    matcher: Box<Matcher>,
    tokens: Vec<u32>,
    guessed: Vec<u32>,
    progress: Shared,
    back: Sender<Turn>,
}

/// What comes back: the parser with the next mask, then one mask for each guessed token that the constraint allows.
struct Turn {
    matcher: Option<Box<Matcher>>,
    mask: Result<Mask, String>,
    took: Duration,
}

/// What may follow.
struct Mask {
    allowed: SimpleVob,
    /// Tokens that must follow, one after the other: the names of a schema's fields, for example.
    forced: Vec<u32>,
}

impl Mask {
    /// Of the parser's present state, whose mask was just computed.
    fn of(matcher: &mut Matcher, allowed: SimpleVob) -> Mask {
        let mut forced = if matcher.is_stopped() { Vec::new() } else { matcher.compute_ff_tokens() };
        forced.truncate(1 + DRAFT_MAX);
        Mask { allowed, forced }
    }
}

/// Of the parser when it has taken these tokens.
fn next_mask(matcher: &mut Matcher, tokens: &[u32]) -> Result<Mask, String> {
    let allowed = matcher.consume_tokens(tokens).and_then(|()| matcher.compute_mask_or_eos());
    let allowed = allowed.map_err(|error| shortened(&error.to_string()))?;
    Ok(Mask::of(matcher, allowed))
}

impl MaskTask {
    pub fn run(self) {
        let Self { mut matcher, tokens, guessed, progress, back } = self;
        let begun = Instant::now();
        locked(&progress).begun = Some(begun);
        let mask = next_mask(&mut matcher, &tokens);
        let ahead = match &mask {
            // A copy, so that a guess which leads into trouble leaves the parser of the reply as it is.
            Ok(mask) if !guessed.is_empty() => Some(((*matcher).clone(), mask.allowed.clone())),
            _ => None,
        };
        // Nobody waits when the request has ended meanwhile.
        let _ = back.send(Turn { matcher: Some(matcher), mask, took: begun.elapsed() });
        if let Some((matcher, mask)) = ahead {
            look_ahead(matcher, mask, &guessed, &progress, &back);
        }
    }
}

/// Sends the masks behind guessed tokens, as far as the constraint allows them.
fn look_ahead(mut matcher: Matcher, mut mask: SimpleVob, guessed: &[u32], progress: &Shared, back: &Sender<Turn>) {
    {
        let mut progress = locked(progress);
        if progress.closed {
            return;
        }
        progress.ahead = matcher.cancellation_handle();
    }
    for token in guessed {
        let begun = Instant::now();
        // A text may hold numbers beyond the vocabulary, where that of the network is padded.
        if *token as usize >= mask.len() || !mask.is_allowed(*token) {
            return;
        }
        // The reply may never come here; if it does, its own parser says what is wrong.
        let Ok(next) = next_mask(&mut matcher, &[*token]) else { return };
        mask = next.allowed.clone();
        if back.send(Turn { matcher: None, mask: Ok(next), took: begun.elapsed() }).is_err() {
            return;
        }
    }
}

enum State {
    /// The parser is here, and so is the mask for the next token.
    Ready(Ready),
    /// It is to be advanced by these tokens.
    Due { matcher: Box<Matcher>, tokens: Vec<u32> },
    /// A mask thread has the parser; these guesses are to be looked at.
    Away { guessed: Vec<u32>, turns: Receiver<Turn> },
    /// It cannot go on.
    Broken(String),
}

struct Ready {
    /// Stands before the first guess.
    matcher: Box<Matcher>,
    /// Before and behind the guesses, as far as they have come.
    masks: Vec<Mask>,
    guessed: Vec<u32>,
    /// How many guesses were right.
    right: usize,
    turns: Option<Receiver<Turn>>,
}

/// Says which tokens may come next in one reply.
pub(crate) struct Guide {
    state: State,
    tokens: usize,
    /// Tokens that must follow those which were accepted, as far as that is known.
    forced: Vec<u32>,
    tasks: Sender<MaskTask>,
    progress: Shared,
    cancel: Option<CancellationHandle>,
}

impl Guide {
    pub(super) fn new(compiled: Compiled, tasks: Sender<MaskTask>) -> Self {
        let Compiled { mut matcher, mask } = compiled;
        let mask = Mask::of(&mut matcher, mask);
        let cancel = matcher.cancellation_handle();
        let state = State::Ready(Ready { matcher, masks: vec![mask], guessed: Vec::new(), right: 0, turns: None });
        Self { state, tokens: 0, forced: Vec::new(), tasks, progress: Shared::default(), cancel }
    }

    /// The mask for the next token, one bit per token, least significant first; `None` when it is not there within
    /// `patience`, which the wait uses up.
    pub fn mask(&mut self, patience: &mut Duration, stats: &Stats) -> Result<Option<&[u32]>, ConstraintError> {
        if matches!(self.state, State::Ready(_)) {
            self.goes_on(stats);
        }
        self.look_at(&[]);
        if matches!(self.state, State::Away { .. }) {
            let begun = Instant::now();
            self.take_back(*patience, stats);
            let waited = begun.elapsed();
            *patience = patience.saturating_sub(waited);
            stats.mask_wait_us.add(waited.as_micros() as u64);
        }
        match &self.state {
            State::Ready(ready) => Ok(Some(ready.masks[ready.right].allowed.as_slice())),
            State::Broken(why) => Err(ConstraintError::Stuck { tokens: self.tokens, why: why.clone() }),
            State::Due { .. } | State::Away { .. } => Ok(None),
        }
    }

    /// After a token was accepted: whether the mask behind it is there already, because it was guessed. If not, the
    /// next row of the same step cannot be used.
    pub fn goes_on(&mut self, stats: &Stats) -> bool {
        let State::Ready(ready) = &mut self.state else { return false };
        while ready.masks.len() <= ready.right {
            let turn = ready.turns.as_ref().and_then(|turns| turns.recv_timeout(AHEAD_PATIENCE).ok());
            match turn {
                Some(Turn { mask: Ok(mask), took, .. }) => {
                    note(stats, took);
                    ready.masks.push(mask);
                }
                _ => {
                    self.fall_back();
                    return false;
                }
            }
        }
        true
    }

    /// Whether the parser is with a mask thread and not overdue.
    pub fn is_away(&mut self, stats: &Stats) -> bool {
        if matches!(self.state, State::Away { .. }) {
            self.take_back(Duration::ZERO, stats);
        }
        matches!(self.state, State::Away { .. })
    }

    fn take_back(&mut self, patience: Duration, stats: &Stats) {
        let State::Away { guessed, turns } = &mut self.state else { return };
        self.state = match turns.recv_timeout(patience) {
            Ok(Turn { matcher: Some(matcher), mask, took }) => {
                note(stats, took);
                let (guessed, turns) = (std::mem::take(guessed), Some(turns.clone()));
                match mask {
                    Ok(mask) => State::Ready(Ready { matcher, masks: vec![mask], guessed, right: 0, turns }),
                    Err(why) => State::Broken(why),
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                let begun = locked(&self.progress).begun;
                if begun.is_none_or(|begun| begun.elapsed() < MASK_TIME_MAX) {
                    return;
                }
                self.cancel_mask();
                State::Broken(format!("its mask took longer than {} ms", MASK_TIME_MAX.as_millis()))
            }
            _ => State::Broken("the thread with its parser ended".to_owned()),
        };
    }

    fn cancel_mask(&self) {
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
    }

    /// Nothing more is wanted of the masks behind guesses.
    fn cancel_ahead(&self, closed: bool) {
        let mut progress = locked(&self.progress);
        progress.closed |= closed;
        if let Some(ahead) = progress.ahead.take() {
            ahead.cancel();
        }
    }

    /// The parser stays where it is; what was right of the guesses is consumed with the next token.
    fn fall_back(&mut self) {
        if !matches!(self.state, State::Ready(_)) {
            return;
        }
        let state = std::mem::replace(&mut self.state, State::Broken(String::new()));
        if let State::Ready(Ready { matcher, mut guessed, right, .. }) = state {
            guessed.truncate(right);
            self.state = State::Due { matcher, tokens: guessed };
        }
    }

    /// Notes the token that was chosen under the last mask. The next mask is there when it was guessed, else it is due.
    pub fn accept(&mut self, token: u32) {
        self.tokens += 1;
        self.forced.clear();
        if let State::Ready(ready) = &mut self.state
            && let Some((first, rest)) = ready.masks.get(ready.right).and_then(|mask| mask.forced.split_first())
            && *first == token
        {
            self.forced.extend_from_slice(rest);
        }
        if let State::Ready(ready) = &mut self.state
            && ready.guessed.get(ready.right) == Some(&token)
        {
            ready.right += 1;
            return;
        }
        self.fall_back();
        if let State::Due { tokens, .. } = &mut self.state {
            tokens.push(token);
        }
    }

    /// Tokens that must follow, whatever the model says; more may be forced than these.
    pub fn forced(&self) -> &[u32] {
        &self.forced
    }

    /// Has the mask computed that is due, and those behind these guesses of what follows.
    pub fn look_at(&mut self, guessed: &[u32]) {
        if !matches!(self.state, State::Due { .. }) {
            return;
        }
        // Guesses of the last step share the parser's tables with this one.
        self.cancel_ahead(false);
        let (back, turns) = bounded(1 + guessed.len());
        let guessed = guessed.to_vec();
        let away = State::Away { guessed: guessed.clone(), turns };
        if let State::Due { matcher, tokens } = std::mem::replace(&mut self.state, away) {
            locked(&self.progress).begun = None;
            // One task per request at most, and the queue has a place for each.
            let task = MaskTask { matcher, tokens, guessed, progress: Arc::clone(&self.progress), back };
            if self.tasks.try_send(task).is_err() {
                self.state = State::Broken("no mask thread takes work".to_owned());
            }
        }
    }
}

fn note(stats: &Stats, took: Duration) {
    stats.masks.add(1);
    stats.mask_us.add(took.as_micros() as u64);
}

impl Drop for Guide {
    /// The request has ended: masks that are being computed are of no use.
    fn drop(&mut self) {
        if matches!(self.state, State::Away { .. }) {
            self.cancel_mask();
        }
        self.cancel_ahead(true);
    }
}
