//! When a growing reply is shown: at once for the first part, then no faster than the platform allows, and
//! slower while the platform complains. Pure: time and lengths come in, what to do comes out.

use super::Streaming;

/// Longest pause between two edits, however often the platform complained.
const PAUSE_MS_MAX: u64 = 15_000;
/// The typing sign ends by itself after five seconds on most platforms.
const TYPING_MS: u64 = 4_000;

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this time (milliseconds); `None` = nothing until something new arrives.
    Wait(Option<u64>),
    /// Show the typing sign.
    Typing,
    /// Send the first part as a new message.
    Send,
    /// Replace the text of the message.
    Edit,
}

/// The showing of one reply.
#[derive(Clone, Debug)]
pub struct Cadence {
    pause_ms: Option<u64>,
    base_ms: u64,
    shown: usize,
    sent: bool,
    in_flight: bool,
    next_ms: u64,
    typing_ms: u64,
}

impl Cadence {
    /// A reply that starts now.
    pub fn new(streaming: Streaming, now_ms: u64) -> Self {
        let pause_ms = match streaming {
            Streaming::Edits { pause_ms } => Some(pause_ms),
            Streaming::Final | Streaming::Polled => None,
        };
        let base_ms = pause_ms.unwrap_or(0);
        Self { pause_ms, base_ms, shown: 0, sent: false, in_flight: false, next_ms: now_ms, typing_ms: now_ms }
    }

    /// What to do when `length` bytes of the reply are written. A `Send` or `Edit` is under way until
    /// [`Cadence::done`]; the finished reply goes through the outbox, not through here.
    pub fn step(&mut self, length: usize, now_ms: u64) -> Step {
        let Some(pause_ms) = self.pause_ms.filter(|_| length > self.shown) else { return self.typing(now_ms) };
        if self.in_flight {
            return Step::Wait(None);
        }
        if now_ms < self.next_ms {
            return Step::Wait(Some(self.next_ms));
        }
        let first = !self.sent;
        (self.sent, self.in_flight, self.shown) = (true, true, length);
        self.next_ms = now_ms + pause_ms;
        if first { Step::Send } else { Step::Edit }
    }

    fn typing(&mut self, now_ms: u64) -> Step {
        // A message that grows is sign enough.
        if self.sent {
            return Step::Wait(None);
        }
        if now_ms < self.typing_ms {
            return Step::Wait(Some(self.typing_ms));
        }
        self.typing_ms = now_ms + TYPING_MS;
        Step::Typing
    }

    /// There is no message that could grow: only the typing sign is shown from now on.
    pub fn only_typing(&mut self) {
        self.pause_ms = None;
        self.in_flight = false;
    }

    /// The message exists already, from before a restart: what follows changes it.
    pub fn already_sent(&mut self) {
        self.sent = true;
    }

    /// The first part cannot go out before this time; nothing was sent.
    pub fn postpone(&mut self, until_ms: u64) {
        (self.sent, self.in_flight, self.shown) = (false, false, 0);
        self.next_ms = until_ms;
    }

    /// The call under way ended. A platform that complains (429) doubles the pause, a success shortens it
    /// towards the platform's own.
    pub fn done(&mut self, accepted: bool, retry_after_ms: Option<u64>, now_ms: u64) {
        self.in_flight = false;
        let Some(pause_ms) = &mut self.pause_ms else { return };
        if accepted {
            *pause_ms = (*pause_ms * 7 / 8).max(self.base_ms);
        } else {
            *pause_ms = (*pause_ms * 2).min(PAUSE_MS_MAX.max(self.base_ms));
            self.next_ms = now_ms.saturating_add(retry_after_ms.unwrap_or(*pause_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_is_shown_at_once_and_edits_keep_the_pause() {
        let mut cadence = Cadence::new(Streaming::Edits { pause_ms: 1_000 }, 0);
        assert_eq!(cadence.step(0, 0), Step::Typing);
        assert_eq!(cadence.step(0, 10), Step::Wait(Some(4_000)));
        assert_eq!(cadence.step(5, 20), Step::Send);
        assert_eq!(cadence.step(9, 30), Step::Wait(None), "one call at a time");
        cadence.done(true, None, 100);
        assert_eq!(cadence.step(9, 110), Step::Wait(Some(1_020)));
        assert_eq!(cadence.step(9, 1_020), Step::Edit);
        cadence.done(false, None, 1_100);
        assert_eq!(cadence.step(12, 1_200), Step::Wait(Some(3_100)), "slower after a complaint");
        assert_eq!(cadence.step(12, 3_100), Step::Edit);
        cadence.done(false, Some(30_000), 3_200);
        assert_eq!(cadence.step(15, 4_000), Step::Wait(Some(33_200)));
        assert_eq!(cadence.step(12, 99_000), Step::Wait(None), "nothing new");
    }

    #[test]
    fn a_first_part_that_could_not_go_out_is_tried_again_as_a_first_part() {
        let mut cadence = Cadence::new(Streaming::Edits { pause_ms: 1_000 }, 0);
        assert_eq!(cadence.step(5, 0), Step::Send);
        cadence.postpone(700);
        assert_eq!(cadence.step(9, 100), Step::Wait(Some(700)));
        assert_eq!(cadence.step(9, 700), Step::Send);
        cadence.done(true, None, 800);
        assert_eq!(cadence.step(12, 1_700), Step::Edit);
        cadence.only_typing();
        assert_eq!(cadence.step(99, 9_000), Step::Wait(None), "the message stays as it is");
    }

    #[test]
    fn a_message_from_before_a_restart_is_changed_and_not_sent_again() {
        let mut cadence = Cadence::new(Streaming::Edits { pause_ms: 1_000 }, 0);
        cadence.already_sent();
        assert_eq!(cadence.step(5, 0), Step::Edit);
    }

    #[test]
    fn platforms_without_edits_only_get_the_typing_sign() {
        let mut cadence = Cadence::new(Streaming::Final, 0);
        assert_eq!(cadence.step(50, 0), Step::Typing);
        assert_eq!(cadence.step(90, 4_000), Step::Typing);
        assert_eq!(cadence.step(90, 4_001), Step::Wait(Some(8_000)));
    }
}
