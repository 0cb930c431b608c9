//! Streams that outlive their connection: a client that asked for it (`stream_options.resume`) comes back with the id
//! of the last event that it has and gets the rest.
//!
//! Each event of such a stream carries `id: COMPLETION:NUMBER`. `Last-Event-ID` with it, on a GET of the completion's
//! address (what an `EventSource` does) or on the same POST (what clients do that stream with `fetch`), goes on behind
//! that event, on whichever reactor the new connection is. Without a reader the work goes on for `resume.grace`.

mod kept;
mod replay;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use millrace_proto::api::ApiError;
use millrace_proto::http1::{Method, RequestHead};
use millrace_proto::sse;

use super::generate::{
    Begun, EVENTS_PER_WRITE_MAX, Headers, KEEP_ALIVE, STATUS_WAIT, ended_early, pass_on, stopping, write_event,
};
use super::sessions::whole;
use super::shape::write_failure;
use super::{Gateway, Principal};
use crate::bridge::{StreamEvent, TokenStream};
use crate::net::connection::contained;
use crate::net::line::Line;
use crate::net::{Gone, Outgoing, Request, Response};

pub use kept::{Bounds, Follower, Kept, Replies};
pub use replay::{Missed, Progress};

/// Longest `Last-Event-ID` that can be one of ours.
const EVENT_ID_BYTES_MAX: usize = 64;

/// One event of a stream.
#[derive(Clone, Debug)]
pub enum Frame {
    /// As it is sent, blank line included.
    Event(Vec<u8>),
    /// There is no (further) answer.
    Failed(ApiError),
}

/// What a look at the frames gave.
enum Waited {
    Frames(Progress),
    Silence,
    Stopping,
}

impl Gateway {
    /// How much is kept, and for how long.
    pub(super) fn bounds(&self) -> Bounds {
        let options = &self.shared.config.resume;
        Bounds { events_max: options.tokens_max, replies_max: options.replies_max, grace: options.grace }
    }

    /// Streams answers that may be resumed.
    pub(super) async fn stream_kept(
        &self,
        principal: &Principal,
        begun: Begun,
        extra: Headers,
        out: &mut Outgoing,
    ) -> Result<(), Gone> {
        let name = begun.shape.id().to_owned();
        let common = &self.shared.gateway;
        let (kept, reader) = common.completions.begin(&begun.owner(principal), &name, &self.bounds(), common);
        let work = produce(Arc::clone(&kept), begun, out.request_id().to_owned());
        spawn_for(&kept, work, || Frame::Failed(ended_early()));
        self.follow(reader, &name, extra, out).await
    }

    /// Goes on with a stream when `Last-Event-ID` names one; else gives `extra` back for a request of its own.
    pub(super) async fn resumed(
        &self,
        principal: &Principal,
        head: &RequestHead,
        extra: Headers,
        out: &mut Outgoing,
    ) -> Option<Headers> {
        match last_event(head) {
            Ok(None) => return Some(extra),
            // A peer that is gone again comes back again.
            Ok(Some(place)) => _ = self.resume(principal, place, extra, out).await,
            Err(error) => self.fail(&error, extra, out),
        }
        None
    }

    /// `GET` of a completion: its stream, behind the event that the client names or from its beginning.
    pub(super) async fn kept_completion(
        &self,
        principal: &Principal,
        request: &Request<'_>,
        name: &str,
        extra: Headers,
        out: &mut Outgoing,
    ) {
        if let Some(response) = self.later_answer(principal, name) {
            return out.respond(Response { headers: [response.headers, extra].concat(), ..response });
        }
        if request.head.method == Method::Head {
            // Reading takes the place of another reader; asking whether there is something to read does not.
            return match self.shared.gateway.completions.find(principal, name) {
                Some(_) => out.respond(Response { headers: extra, ..Response::empty(200) }),
                None => self.fail(&no_reply("The completion"), extra, out),
            };
        }
        let place = match last_event(request.head) {
            Ok(Some((other, _))) if other != name => Err(foreign_event()),
            Ok(Some(place)) => Ok(place),
            Ok(None) => whole(request.head, "starting_after", 0, 0, u64::MAX).map(|after| (name, after)),
            Err(error) => Err(error),
        };
        match place {
            Ok(place) => _ = self.resume(principal, place, extra, out).await,
            Err(error) => self.fail(&error, extra, out),
        }
    }

    /// Goes on with a stream behind the event that the client names.
    async fn resume(
        &self,
        principal: &Principal,
        (name, after): (&str, u64),
        extra: Headers,
        out: &mut Outgoing,
    ) -> Result<(), Gone> {
        let common = &self.shared.gateway;
        let reader = match common.completions.follow(principal, name, after, common) {
            Some(reader) => reader.map_err(|missed| missed_events(missed, after)),
            None => Err(no_reply("The completion")),
        };
        match reader {
            Ok(reader) => {
                let _open = self.net.metrics().open_stream();
                self.follow(reader, name, extra, out).await
            }
            Err(error) => {
                self.fail(&error, extra, out);
                Ok(())
            }
        }
    }

    /// Writes events as they come, until the end or another connection takes over.
    async fn follow(
        &self,
        reader: Follower<Frame>,
        name: &str,
        extra: Headers,
        out: &mut Outgoing,
    ) -> Result<(), Gone> {
        let (mut events, mut frames) = (Vec::new(), Vec::new());
        let mut open = false;
        loop {
            let wait = if open { KEEP_ALIVE } else { STATUS_WAIT };
            let waited = frames_within(&reader, wait, out.line(), &mut frames).await;
            if !open {
                let failure = match (&waited, frames.first()) {
                    (Waited::Frames(_), Some((_, Frame::Failed(error)))) => Some(error.clone()),
                    (Waited::Stopping, _) => Some(stopping()),
                    (Waited::Frames(Progress::Replaced), _) => Some(replaced()),
                    // Everything was read before: only the end is left to say.
                    _ => None,
                };
                if let Some(error) = failure {
                    self.fail(&error, extra, out);
                    return Ok(());
                }
                open = true;
                out.begin_stream("text/event-stream; charset=utf-8", &extra);
            }
            let mut over = false;
            for (number, frame) in frames.drain(..) {
                over |= write_frame(&mut events, name, number, &frame);
            }
            match waited {
                Waited::Silence => events.extend_from_slice(sse::KEEP_ALIVE),
                Waited::Stopping => {
                    write_failure(&mut events, &stopping());
                    over = true;
                }
                Waited::Frames(Progress::Over) if !over => {
                    events.extend_from_slice(sse::DONE);
                    over = true;
                }
                Waited::Frames(Progress::Replaced) => over = true,
                Waited::Frames(_) => {}
            }
            pass_on(&mut events, over, out).await?;
            if over {
                return Ok(());
            }
        }
    }
}

/// The next frames, or silence after `wait`.
async fn frames_within(
    reader: &Follower<Frame>,
    wait: Duration,
    line: &Line,
    frames: &mut Vec<(u64, Frame)>,
) -> Waited {
    let mut timer = pin!(monoio::time::sleep(wait));
    poll_fn(|context| {
        let read =
            reader.poll_read(context, EVENTS_PER_WRITE_MAX, |number, frame| frames.push((number, frame.clone())));
        if let Poll::Ready(progress) = read {
            return Poll::Ready(Waited::Frames(progress));
        }
        if line.poll_ending(context).is_ready() {
            return Poll::Ready(Waited::Stopping);
        }
        timer.as_mut().poll(context).map(|()| Waited::Silence)
    })
    .await
}

/// Appends an event with its id; true = nothing follows.
fn write_frame(out: &mut Vec<u8>, name: &str, number: u64, frame: &Frame) -> bool {
    use std::io::Write as _;
    match frame {
        // The end needs no id: who has not seen it asks again with the id before it.
        Frame::Event(event) if event == sse::DONE => {
            out.extend_from_slice(event);
            true
        }
        Frame::Event(event) => {
            // The id stands behind the data, where clients that only know `data:` do not stumble over it.
            out.extend_from_slice(&event[..event.len() - 1]);
            let _ = write!(out, "id: {name}:{number}\n\n");
            false
        }
        Frame::Failed(error) => {
            write_failure(out, error);
            true
        }
    }
}

/// Turns the events of answers into frames, for as long as somebody may want them.
async fn produce(kept: Arc<Kept<Frame>>, begun: Begun, request_id: String) {
    let Begun { mut shape, mut answers, echo, .. } = begun;
    let (mut open, mut bytes) = (false, Vec::new());
    loop {
        let next = poll_fn(|context| kept.poll_while_wanted(context, |context| answers.poll_next(context)));
        // Dropping the answers ends the work on them.
        let Some(event) = next.await else { return };
        let Some((answer, event)) = event else { return kept.push(Frame::Failed(ended_early())) };
        if let StreamEvent::Error(error) = event {
            tracing::info!(request_id, code = error.code, message = %error.message, "a stream failed");
            return kept.push(Frame::Failed(error));
        }
        if !open {
            open = true;
            shape.open(&mut bytes);
            if let Some(prompt) = &echo {
                (0..answers.count()).for_each(|answer| shape.delta(&mut bytes, answer, prompt, &[]));
            }
        }
        let over = write_event(&mut shape, &mut bytes, answer, event, &request_id);
        sse::events(&bytes).for_each(|event| kept.push(Frame::Event(event.to_vec())));
        bytes.clear();
        if over {
            return;
        }
    }
}

/// Passes the events of a turn on, for as long as somebody may want them.
pub(super) fn keep_turn(kept: &Arc<Kept<StreamEvent>>, mut stream: TokenStream) {
    let wanted = Arc::clone(kept);
    let work = async move {
        loop {
            let next = poll_fn(|context| wanted.poll_while_wanted(context, |context| stream.poll_next(context)));
            let Some(Some(event)) = next.await else { return };
            wanted.push(event);
        }
    };
    spawn_for(kept, work, || StreamEvent::Error(ended_early()));
}

/// Runs the work that makes a reply. Its reader learns of the end, also when that is a panic.
pub(super) fn spawn_for<T: 'static>(
    kept: &Arc<Kept<T>>,
    work: impl Future<Output = ()> + 'static,
    lost: impl FnOnce() -> T + 'static,
) {
    let kept = Arc::clone(kept);
    drop(monoio::spawn(async move {
        if !contained(pin!(work)).await {
            tracing::error!("the task of a reply panicked; its reader is told");
            kept.push(lost());
        }
        kept.finish();
    }));
}

/// What `Last-Event-ID` says: which completion, and the last event of it that the client has.
pub(super) fn last_event(head: &RequestHead) -> Result<Option<(&str, u64)>, ApiError> {
    let Some(text) = head.header("last-event-id").filter(|text| !text.is_empty()) else { return Ok(None) };
    let parts = text.rsplit_once(':').filter(|_| text.len() <= EVENT_ID_BYTES_MAX);
    let number = parts.and_then(|(name, number)| Some((name, number.parse().ok()?)));
    number.map(Some).ok_or_else(|| {
        ApiError::bad_request(
            "invalid_last_event_id",
            "Last-Event-ID is not the id of an event of a stream of this server.",
        )
        .with_next_step("Send the value of the last `id:` line that was received, or leave the header out.")
    })
}

/// Nothing of this name is kept for this key.
pub(super) fn no_reply(what: &str) -> ApiError {
    let why = format!(
        "{what} is not kept here: it was not begun with this key, nobody came back for it in time, or the server has restarted."
    );
    ApiError::new(404, "invalid_request_error", "reply_not_found", why)
        .with_next_step("Send the request again; in a session, its history has what was finished.")
}

/// The events behind the one that the client has cannot be had.
pub(super) fn missed_events(missed: Missed, after: u64) -> ApiError {
    match missed {
        Missed::Forgotten { oldest } => ApiError::new(
            409,
            "invalid_request_error",
            "events_forgotten",
            format!("Event {} is no longer kept; the oldest that is has number {oldest}.", after.saturating_add(1)),
        )
        .with_next_step(
            "Send the request again, or read the session's history; `resume.tokens_max` sets what is kept.",
        ),
        Missed::Unborn { newest } => {
            let message = format!("The reply has {newest} events so far, not {after}.");
            ApiError::bad_request("unknown_event", message)
                .with_next_step("Send the id or offset of an event that was received.")
        }
    }
}

fn foreign_event() -> ApiError {
    ApiError::bad_request("invalid_last_event_id", "Last-Event-ID is of another completion than the address.")
        .with_next_step("Use the address of the completion that the id names.")
}

fn replaced() -> ApiError {
    ApiError::new(409, "invalid_request_error", "reader_replaced", "Another connection reads this reply.")
        .with_next_step("Read it on one connection at a time.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_stand_behind_the_data_and_the_end_has_none() {
        let mut out = Vec::new();
        assert!(!write_frame(&mut out, "chatcmpl-7", 3, &Frame::Event(b"data: {}\n\n".to_vec())));
        assert!(write_frame(&mut out, "chatcmpl-7", 4, &Frame::Event(sse::DONE.to_vec())));
        assert_eq!(out, b"data: {}\nid: chatcmpl-7:3\n\ndata: [DONE]\n\n");
        out.clear();
        assert!(write_frame(&mut out, "chatcmpl-7", 4, &Frame::Failed(ApiError::internal("x"))));
        assert!(out.starts_with(b"data: {\"error\"") && out.ends_with(sse::DONE));
    }
}
