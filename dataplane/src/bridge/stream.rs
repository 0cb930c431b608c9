//! What the gateway holds while an answer is made: a stream of events, and a place for one answer.
//!
//! Both ends live on the thread of the shard, so there is no lock and no atomic. A slow reader costs no
//! extra memory per token: text that was not read yet is joined, so a stream never holds more than the
//! answer itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use millrace_agent::{Finish, Ticket, Timings, TokenInfo, Usage};
use millrace_proto::api::ApiError;

use super::Bridge;
use crate::gateway::reserve::{Reservation, estimate};

/// Something that happened to an answer. Nothing follows `Done` and `Error`.
#[derive(Clone, Debug)]
pub enum StreamEvent {
    /// The model has begun.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// How many of them were cached.
        cached_tokens: u32,
    },
    /// More text.
    Delta {
        /// Whole characters only.
        text: String,
        /// Filled only when token probabilities were asked for.
        tokens: Vec<TokenInfo>,
    },
    /// Something the user should know.
    Notice {
        /// For people.
        text: String,
    },
    /// The answer is complete; in a session it is also durable.
    Done {
        /// Why it ended.
        reason: Finish,
        /// Tokens.
        usage: Usage,
        /// Times.
        timings: Timings,
        /// Sequence number of the answer in its session.
        message_seq: Option<u64>,
    },
    /// There will be no (further) answer. May be the first event: answer with its status then.
    Error(ApiError),
}

#[derive(Default)]
pub(super) struct Channel {
    events: VecDeque<StreamEvent>,
    waker: Option<Waker>,
    finished: bool,
    abandoned: bool,
}

/// The bridge's end of a stream.
#[derive(Clone, Default)]
pub(super) struct StreamSender(Rc<RefCell<Channel>>);

impl StreamSender {
    pub fn push(&self, event: StreamEvent) {
        let mut channel = self.0.borrow_mut();
        if channel.finished || channel.abandoned {
            return;
        }
        channel.finished = matches!(event, StreamEvent::Done { .. } | StreamEvent::Error(_));
        match (channel.events.back_mut(), event) {
            (Some(StreamEvent::Delta { text, tokens }), StreamEvent::Delta { text: more, tokens: more_tokens }) => {
                text.push_str(&more);
                tokens.extend(more_tokens);
            }
            (_, event) => channel.events.push_back(event),
        }
        if let Some(waker) = channel.waker.take() {
            waker.wake();
        }
    }
}

/// Who is told that nobody reads any more.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// A turn of the agent.
    Turn(Ticket),
    /// A generation without a session.
    Run(u64),
}

/// An answer in the making. Dropping it stops the work on it.
pub struct TokenStream {
    channel: Rc<RefCell<Channel>>,
    origin: Origin,
    bridge: Weak<Bridge>,
    /// Tokens of the prompt when they are known before the model begins.
    pub prompt_tokens: Option<u32>,
    /// What this answer has reserved of its caller's tokens.
    reservation: Option<Reservation>,
}

impl TokenStream {
    pub(super) fn new(sender: &StreamSender, origin: Origin, bridge: Weak<Bridge>, prompt_tokens: Option<u32>) -> Self {
        Self { channel: Rc::clone(&sender.0), origin, bridge, prompt_tokens, reservation: None }
    }

    /// Charges what this answer uses to a reservation.
    pub(super) fn charge(mut self, reservation: Option<Reservation>) -> Self {
        self.reservation = reservation;
        self
    }

    /// The next event; None after `Done` or `Error`.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same as a poll.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<StreamEvent>> {
        let event = {
            let mut channel = self.channel.borrow_mut();
            match channel.events.pop_front() {
                Some(event) => Some(event),
                None if channel.finished => None,
                None => {
                    keep_waker(&mut channel.waker, context);
                    return Poll::Pending;
                }
            }
        };
        count(&mut self.reservation, event.as_ref());
        Poll::Ready(event)
    }

    /// An event if one is there already: lets a writer put everything of one step into one chunk.
    pub fn try_next(&mut self) -> Option<StreamEvent> {
        let event = self.channel.borrow_mut().events.pop_front();
        count(&mut self.reservation, event.as_ref());
        event
    }
}

/// What an event says about tokens. Until the end says how many there were, their text gives a guess: a client
/// that leaves half-way pays for what was made for it.
fn count(reservation: &mut Option<Reservation>, event: Option<&StreamEvent>) {
    let Some(reservation) = reservation else { return };
    match event {
        Some(StreamEvent::Started { prompt_tokens, .. }) => reservation.used(*prompt_tokens),
        Some(StreamEvent::Delta { text, .. }) => reservation.add(estimate(text.len()).saturating_sub(estimate(0))),
        Some(StreamEvent::Done { usage, .. }) => reservation.used(usage.prompt.saturating_add(usage.completion)),
        Some(StreamEvent::Notice { .. } | StreamEvent::Error(_)) | None => {}
    }
}

impl Drop for TokenStream {
    fn drop(&mut self) {
        let finished = {
            let mut channel = self.channel.borrow_mut();
            channel.abandoned = true;
            // What was made and not read any more was made all the same.
            channel.events.drain(..).for_each(|event| count(&mut self.reservation, Some(&event)));
            channel.finished
        };
        if !finished && let Some(bridge) = self.bridge.upgrade() {
            bridge.abandoned(self.origin);
        }
    }
}

fn keep_waker(slot: &mut Option<Waker>, context: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
        *slot = Some(context.waker().clone());
    }
}

/// A place for one value and the one who waits for it.
pub struct Once<T>(Rc<RefCell<(Option<T>, Option<Waker>)>>);

impl<T> Clone for Once<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(Rc::default())
    }
}

impl<T> Once<T> {
    pub(super) fn put(&self, value: T) {
        let mut slot = self.0.borrow_mut();
        slot.0 = Some(value);
        if let Some(waker) = slot.1.take() {
            waker.wake();
        }
    }
}

impl<T> Future for Once<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let mut slot = self.0.borrow_mut();
        match slot.0.take() {
            Some(value) => Poll::Ready(value),
            None => {
                keep_waker(&mut slot.1, context);
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(text: &str) -> StreamEvent {
        StreamEvent::Delta { text: text.into(), tokens: Vec::new() }
    }

    fn stream(sender: &StreamSender) -> TokenStream {
        TokenStream::new(sender, Origin::Run(1), Weak::new(), None)
    }

    #[test]
    fn text_that_was_not_read_is_joined_and_nothing_follows_the_end() {
        let sender = StreamSender::default();
        let mut stream = stream(&sender);
        sender.push(StreamEvent::Started { prompt_tokens: 3, cached_tokens: 0 });
        for piece in ["a", "b", "c"] {
            sender.push(delta(piece));
        }
        sender.push(StreamEvent::Error(ApiError::internal("x")));
        sender.push(delta("late"));
        assert!(matches!(stream.try_next(), Some(StreamEvent::Started { .. })));
        let Some(StreamEvent::Delta { text, .. }) = stream.try_next() else { panic!("text") };
        assert_eq!(text, "abc");
        assert!(matches!(stream.try_next(), Some(StreamEvent::Error(_))));
        assert!(stream.try_next().is_none());
    }

    #[test]
    fn an_abandoned_stream_takes_nothing_more() {
        let sender = StreamSender::default();
        drop(stream(&sender));
        sender.push(delta("a"));
        assert!(sender.0.borrow().events.is_empty());
    }

    #[test]
    fn waiting_ends_when_the_value_is_put() {
        let once: Once<u32> = Once::default();
        let mut context = Context::from_waker(Waker::noop());
        let mut waiting = std::pin::pin!(once.clone());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        once.put(7);
        assert_eq!(waiting.as_mut().poll(&mut context), Poll::Ready(7));
    }
}
