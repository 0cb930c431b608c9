//! The parser of one running request, which travels: while the backend computes a step, a mask thread has it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use llguidance::toktrie::SimpleVob;
use llguidance::{CancellationHandle, Matcher};

use super::ConstraintError;
use super::compile::{Compiled, shortened};
use crate::stats::Stats;

/// Longest that the engine's thread waits for masks in one step. Beyond it a sequence leaves the batch until its mask is
/// there, so that a constraint with slow masks slows nobody but itself.
pub(crate) const STEP_PATIENCE: Duration = Duration::from_millis(8);
/// Longest work on one mask. The compiler's limits end most masks long before, but not every expression keeps to them.
const MASK_TIME_MAX: Duration = Duration::from_millis(500);

/// When a mask thread began with the parser of a guide.
type Begun = Arc<Mutex<Option<Instant>>>;

/// Work for a mask thread: advance the parser by a token, then compute the next mask.
pub(super) struct MaskTask {
    matcher: Box<Matcher>,
    token: u32,
    begun: Begun,
    back: Sender<Turn>,
}

/// What comes back.
struct Turn {
    matcher: Box<Matcher>,
    mask: Result<SimpleVob, String>,
    took: Duration,
}

impl MaskTask {
    pub fn run(self) {
        let Self { mut matcher, token, begun: shared, back } = self;
        let begun = Instant::now();
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun);
        let mask = matcher.consume_token(token).and_then(|()| matcher.compute_mask_or_eos());
        let mask = mask.map_err(|error| shortened(&error.to_string()));
        // Nobody waits when the request has ended meanwhile.
        let _ = back.send(Turn { matcher, mask, took: begun.elapsed() });
    }
}

enum State {
    /// The parser is here, and so is the mask for the next token.
    Ready { matcher: Box<Matcher>, mask: SimpleVob },
    /// A mask thread has the parser.
    Away,
    /// It cannot go on.
    Broken(String),
}

/// Says which tokens may come next in one reply.
pub(crate) struct Guide {
    state: State,
    tokens: usize,
    tasks: Sender<MaskTask>,
    begun: Begun,
    back: (Sender<Turn>, Receiver<Turn>),
    cancel: Option<CancellationHandle>,
}

impl Guide {
    pub(super) fn new(compiled: Compiled, tasks: Sender<MaskTask>) -> Self {
        let Compiled { matcher, mask } = compiled;
        let cancel = matcher.cancellation_handle();
        Self {
            state: State::Ready { matcher, mask },
            tokens: 0,
            tasks,
            begun: Begun::default(),
            back: bounded(1),
            cancel,
        }
    }

    /// The mask for the next token, one bit per token, least significant first; `None` when it is not there within
    /// `patience`, which the wait uses up.
    pub fn mask(&mut self, patience: &mut Duration, stats: &Stats) -> Result<Option<&[u32]>, ConstraintError> {
        if matches!(self.state, State::Away) {
            let begun = Instant::now();
            self.take_back(*patience, stats);
            let waited = begun.elapsed();
            *patience = patience.saturating_sub(waited);
            stats.mask_wait_us.add(waited.as_micros() as u64);
        }
        match &self.state {
            State::Ready { mask, .. } => Ok(Some(mask.as_slice())),
            State::Away => Ok(None),
            State::Broken(why) => Err(ConstraintError::Stuck { tokens: self.tokens, why: why.clone() }),
        }
    }

    /// Whether the parser is with a mask thread and not overdue.
    pub fn is_away(&mut self, stats: &Stats) -> bool {
        if matches!(self.state, State::Away) {
            self.take_back(Duration::ZERO, stats);
        }
        matches!(self.state, State::Away)
    }

    fn take_back(&mut self, patience: Duration, stats: &Stats) {
        self.state = match self.back.1.recv_timeout(patience) {
            Ok(Turn { matcher, mask, took }) => {
                stats.masks.add(1);
                stats.mask_us.add(took.as_micros() as u64);
                match mask {
                    Ok(mask) => State::Ready { matcher, mask },
                    Err(why) => State::Broken(why),
                }
            }
            // The guide holds a sender itself, so the other error cannot come.
            Err(_) => {
                let begun = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
                if begun.is_none_or(|begun| begun.elapsed() < MASK_TIME_MAX) {
                    return;
                }
                self.cancel_mask();
                State::Broken(format!("its mask took longer than {} ms", MASK_TIME_MAX.as_millis()))
            }
        };
    }

    fn cancel_mask(&self) {
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
    }

    /// Notes the token that was chosen under the last mask and has the next mask computed.
    pub fn accept(&mut self, token: u32) {
        self.tokens += 1;
        self.state = match std::mem::replace(&mut self.state, State::Away) {
            State::Ready { matcher, .. } => {
                // One task per request at most, and the queue has a place for each.
                *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = None;
                let task = MaskTask { matcher, token, begun: Arc::clone(&self.begun), back: self.back.0.clone() };
                match self.tasks.try_send(task) {
                    Ok(()) => State::Away,
                    Err(_) => State::Broken("no mask thread takes work".to_owned()),
                }
            }
            other => other,
        };
    }
}

impl Drop for Guide {
    /// The request has ended: a mask that is being computed is of no use.
    fn drop(&mut self) {
        if matches!(self.state, State::Away) {
            self.cancel_mask();
        }
    }
}
