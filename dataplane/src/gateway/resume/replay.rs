//! What a reply has produced, kept so that a client whose connection broke gets the rest. Pure: no clock, no IO.
//!
//! Events are numbered from 1. One reader at a time takes them in their order, and a later reader takes the place of
//! an earlier one: a client that is back should not have to wait until its old connection is known to be dead. A
//! reader that falls behind holds the producer back; while nobody reads, the oldest events make room for new ones.

use std::collections::VecDeque;

/// The newest events of one reply.
#[derive(Debug)]
pub struct Replay<T> {
    kept: VecDeque<T>,
    kept_max: usize,
    /// Number of the newest event; 0 = there is none yet.
    newest: u64,
    over: bool,
    reader: Option<Attached>,
    readers: u64,
    /// Since when nobody reads, in milliseconds of the caller's clock.
    alone_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Attached {
    ticket: u64,
    /// Number of the last event that it has taken.
    read: u64,
}

/// Why a reader cannot go on where it wants to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// Some of the events in between are no longer kept.
    Forgotten {
        /// The oldest event that is.
        oldest: u64,
    },
    /// There are not so many events yet.
    Unborn {
        /// The newest event.
        newest: u64,
    },
}

/// What a look at the events gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Some were taken.
    Events,
    /// There is none now.
    Wait,
    /// All were taken, and no more will come.
    Over,
    /// Another reader has taken the place of this one.
    Replaced,
}

impl<T> Replay<T> {
    /// Keeps the newest `kept_max` events, at least one. Nobody reads yet.
    pub fn new(kept_max: usize, now_ms: u64) -> Self {
        let (kept, kept_max) = (VecDeque::new(), kept_max.max(1));
        Self { kept, kept_max, newest: 0, over: false, reader: None, readers: 0, alone_ms: now_ms }
    }

    /// A new reader that has all events up to number `after`. Gives its ticket.
    pub fn attach(&mut self, after: u64) -> Result<u64, Missed> {
        if after > self.newest {
            return Err(Missed::Unborn { newest: self.newest });
        }
        let oldest = self.newest - self.kept.len() as u64 + 1;
        if after + 1 < oldest {
            return Err(Missed::Forgotten { oldest });
        }
        self.readers += 1;
        self.reader = Some(Attached { ticket: self.readers, read: after });
        Ok(self.readers)
    }

    /// The reader with this ticket has left.
    pub fn detach(&mut self, ticket: u64, now_ms: u64) {
        if self.reader.is_some_and(|reader| reader.ticket == ticket) {
            self.reader = None;
            self.alone_ms = now_ms;
        }
    }

    /// Whether somebody reads.
    pub fn is_read(&self) -> bool {
        self.reader.is_some()
    }

    /// Whether nobody has read for `grace_ms`.
    pub fn is_forsaken(&self, now_ms: u64, grace_ms: u64) -> bool {
        self.reader.is_none() && now_ms.saturating_sub(self.alone_ms) >= grace_ms
    }

    /// Whether an event may be added without taking one from a reader that needs it.
    pub fn has_room(&self) -> bool {
        self.reader.is_none_or(|reader| self.newest - reader.read < self.kept_max as u64)
    }

    /// Adds an event.
    pub fn push(&mut self, event: T) {
        if self.kept.len() == self.kept_max {
            self.kept.pop_front();
        }
        self.kept.push_back(event);
        self.newest += 1;
    }

    /// No event follows.
    pub fn finish(&mut self) {
        self.over = true;
    }

    /// Shows the next events, at most `limit`, with their numbers to the reader with this ticket.
    pub fn read(&mut self, ticket: u64, limit: usize, mut show: impl FnMut(u64, &T)) -> Progress {
        let Some(reader) = self.reader.as_mut().filter(|reader| reader.ticket == ticket) else {
            return Progress::Replaced;
        };
        let unread = usize::try_from(self.newest - reader.read).unwrap_or(usize::MAX);
        if unread == 0 {
            return if self.over { Progress::Over } else { Progress::Wait };
        }
        // A producer that did not look for room has taken the oldest from it.
        reader.read += unread.saturating_sub(self.kept.len()) as u64;
        let at = self.kept.len().saturating_sub(unread);
        for event in self.kept.iter().skip(at).take(limit) {
            reader.read += 1;
            show(reader.read, event);
        }
        Progress::Events
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn taken(replay: &mut Replay<u64>, ticket: u64, limit: usize) -> (Vec<u64>, Progress) {
        let mut seen = Vec::new();
        let progress = replay.read(ticket, limit, |number, event| {
            assert_eq!(number, *event);
            seen.push(number);
        });
        (seen, progress)
    }

    #[test]
    fn a_reader_gets_the_rest_in_order_and_then_the_end() {
        let mut replay = Replay::new(8, 0);
        let first = replay.attach(0).expect("the beginning");
        assert_eq!(taken(&mut replay, first, 9), (vec![], Progress::Wait));
        (1..=5).for_each(|event| replay.push(event));
        assert_eq!(taken(&mut replay, first, 2), (vec![1, 2], Progress::Events));
        replay.detach(first, 100);
        replay.push(6);
        replay.finish();
        let second = replay.attach(1).expect("kept");
        assert_eq!(taken(&mut replay, first, 9), (vec![], Progress::Replaced));
        assert_eq!(taken(&mut replay, second, 9), (vec![2, 3, 4, 5, 6], Progress::Events));
        assert_eq!(taken(&mut replay, second, 9), (vec![], Progress::Over));
    }

    #[test]
    fn the_oldest_make_room_only_while_nobody_reads() {
        let mut replay = Replay::new(3, 0);
        let slow = replay.attach(0).expect("the beginning");
        (1..=3).for_each(|event| replay.push(event));
        assert!(!replay.has_room());
        taken(&mut replay, slow, 1);
        assert!(replay.has_room());
        replay.detach(slow, 0);
        (4..=9).for_each(|event| replay.push(event));
        assert!(replay.has_room());
        assert_eq!(replay.attach(5), Err(Missed::Forgotten { oldest: 7 }));
        assert_eq!(replay.attach(10), Err(Missed::Unborn { newest: 9 }));
        let back = replay.attach(6).expect("kept");
        assert_eq!(taken(&mut replay, back, 9).0, [7, 8, 9]);
    }

    #[test]
    fn grace_runs_from_when_the_last_reader_left() {
        let mut replay: Replay<u64> = Replay::new(3, 1_000);
        assert!(!replay.is_forsaken(1_999, 1_000) && replay.is_forsaken(2_000, 1_000));
        let (old, new) = (replay.attach(0).expect("read"), replay.attach(0).expect("read"));
        assert!(!replay.is_forsaken(u64::MAX, 0));
        replay.detach(old, 5_000);
        assert!(replay.is_read(), "the one that was replaced leaves late");
        replay.detach(new, 6_000);
        assert!(!replay.is_forsaken(6_999, 1_000) && replay.is_forsaken(7_000, 1_000));
    }

    proptest! {
        /// Whatever breaks when: a client that comes back in time has every event once, in order.
        #[test]
        fn nothing_is_lost_or_repeated(steps in proptest::collection::vec((0u8..4, 1usize..5), 0..200), kept_max in 1usize..12) {
            let mut replay = Replay::new(kept_max, 0);
            let (mut ticket, mut has, mut made) = (replay.attach(0).ok(), 0u64, 0u64);
            for (what, count) in steps {
                match what {
                    0 | 1 => for _ in 0..count {
                        if replay.has_room() {
                            made += 1;
                            replay.push(made);
                        }
                    },
                    2 => if let Some(ticket) = ticket {
                        for number in taken(&mut replay, ticket, count).0 {
                            prop_assert_eq!(number, has + 1);
                            has = number;
                        }
                    },
                    _ => match ticket.take() {
                        Some(gone) => replay.detach(gone, 0),
                        None => match replay.attach(has) {
                            Ok(again) => ticket = Some(again),
                            Err(missed) => {
                                prop_assert_eq!(missed, Missed::Forgotten { oldest: made - kept_max as u64 + 1 });
                                prop_assert!(made - has > kept_max as u64);
                                break;
                            }
                        },
                    },
                }
            }
        }
    }
}
