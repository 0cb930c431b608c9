//! Several answers to one request (`n`), read as one stream of events that say to which answer they belong.

use std::future::poll_fn;
use std::task::{Context, Poll};

use super::stream::{StreamEvent, TokenStream};
use crate::obs::Rung;

/// The answers of one request, at least one. Dropping them stops the work on all.
pub struct Answers {
    streams: Vec<TokenStream>,
    /// Whose turn it is to be looked at first, so that a quick answer does not hide the others.
    turn: usize,
    rung: Rung,
    /// The model that answers, when it is not the one that is meant by default.
    model: Option<String>,
}

impl From<TokenStream> for Answers {
    fn from(stream: TokenStream) -> Self {
        Self::new(vec![stream])
    }
}

impl Answers {
    /// `streams` in the order of the answers' indices.
    pub(super) fn new(streams: Vec<TokenStream>) -> Self {
        assert!(!streams.is_empty(), "a request has an answer");
        Self { streams, turn: 0, rung: Rung::AsAsked, model: None }
    }

    /// The answers, which are less than what was asked for.
    pub(super) fn reduced(self, rung: Rung, model: Option<String>) -> Self {
        Self { rung, model, ..self }
    }

    /// How they were admitted.
    pub fn rung(&self) -> Rung {
        self.rung
    }

    /// The model that answers, when it is not the one that is meant by default.
    pub fn model(&self) -> Option<&str> {
        self.model.as_deref()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.streams.len()
    }

    /// The first answer alone, for callers that asked for one.
    pub fn into_first(mut self) -> TokenStream {
        self.streams.swap_remove(0)
    }

    /// The next event and the index of its answer; None once all answers are over.
    pub async fn next(&mut self) -> Option<(usize, StreamEvent)> {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// The same as a poll.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, StreamEvent)>> {
        let count = self.streams.len();
        let mut open = false;
        for at in (0..count).map(|step| (self.turn + step) % count) {
            match self.streams[at].poll_next(context) {
                Poll::Ready(Some(event)) => {
                    self.turn = (at + 1) % count;
                    return Poll::Ready(Some((at, event)));
                }
                Poll::Ready(None) => {}
                Poll::Pending => open = true,
            }
        }
        if open { Poll::Pending } else { Poll::Ready(None) }
    }

    /// An event if one is there already: lets a writer put everything of one step into one chunk.
    pub fn try_next(&mut self) -> Option<(usize, StreamEvent)> {
        let count = self.streams.len();
        let mut places = (0..count).map(|step| (self.turn + step) % count);
        let found = places.find_map(|at| self.streams[at].try_next().map(|event| (at, event)));
        if let Some((at, _)) = found {
            self.turn = (at + 1) % count;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Weak;
    use std::task::Waker;

    use millrace_agent::{Finish, Timings, Usage};

    use super::*;
    use crate::bridge::stream::{Origin, StreamSender};

    fn delta(text: &str) -> StreamEvent {
        StreamEvent::Delta { text: text.into(), tokens: Vec::new() }
    }

    fn done() -> StreamEvent {
        StreamEvent::Done {
            reason: Finish::Stop,
            usage: Usage::default(),
            timings: Timings::default(),
            message_seq: None,
        }
    }

    fn answers(senders: &[StreamSender]) -> Answers {
        Answers::new(senders.iter().map(|sender| TokenStream::new(sender, Origin::Run(1), Weak::new(), None)).collect())
    }

    fn poll(answers: &mut Answers) -> Poll<Option<(usize, StreamEvent)>> {
        answers.poll_next(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn events_come_in_turn_with_their_index_until_the_last_answer_is_over() {
        let senders = [StreamSender::default(), StreamSender::default()];
        let mut answers = answers(&senders);
        assert!(poll(&mut answers).is_pending());
        for sender in &senders {
            sender.push(StreamEvent::Started { prompt_tokens: 1, cached_tokens: 0 });
            sender.push(delta("a"));
        }
        let order: Vec<usize> = (0..4).filter_map(|_| answers.try_next().map(|(at, _)| at)).collect();
        assert_eq!(order, [0, 1, 0, 1]);
        senders[1].push(done());
        assert!(matches!(poll(&mut answers), Poll::Ready(Some((1, StreamEvent::Done { .. })))));
        assert!(poll(&mut answers).is_pending(), "the first answer goes on");
        senders[0].push(delta("b"));
        senders[0].push(done());
        assert!(matches!(poll(&mut answers), Poll::Ready(Some((0, StreamEvent::Delta { .. })))));
        assert!(matches!(poll(&mut answers), Poll::Ready(Some((0, StreamEvent::Done { .. })))));
        assert!(matches!(poll(&mut answers), Poll::Ready(None)));
    }
}
