//! `/v1/chat/completions`, `/v1/completions` and `/v1/embeddings`.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use millrace_agent::Finish;
use millrace_proto::api::{ApiError, ChatRequest, CompletionRequest, EmbeddingRequest, Prompt};
use millrace_proto::id::UserId;
use millrace_proto::sse;

use super::calls::Calls;
use super::shape::{Answer, Shape, Style};
use super::{Gateway, Principal, json, unix_ms};
use crate::bridge::{Answers, Patience, StreamEvent};
use crate::net::line::Line;
use crate::net::{Gone, Outgoing, Request, Response};
use crate::obs::Rung;

/// How long a streamed answer may stay silent before its status line is sent. Until then an
/// error (a full queue, a prompt that is too long) still gets its own status.
pub(super) const STATUS_WAIT: Duration = Duration::from_millis(1_500);

/// Pause between comments that keep a silent stream alive through proxies.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Events that may share one write: the tokens of several steps, when the peer reads slowly.
pub(super) const EVENTS_PER_WRITE_MAX: usize = 256;

/// Says that a client gets less than it has asked for because of the load, and what.
const DEGRADED: &str = "millrace-degraded";

/// Headers beyond those that every answer has.
pub(super) type Headers = Vec<(&'static str, String)>;

/// The answers that the bridge has begun.
pub(super) struct Begun {
    pub shape: Shape,
    /// For whom they are made: the user of the key, or the one for whom the request speaks.
    user: UserId,
    streams: bool,
    /// The stream is kept for a client that loses its connection.
    resumes: bool,
    pub answers: Answers,
    /// The prompt, when each answer is to repeat it.
    pub echo: Option<String>,
}

impl Begun {
    /// The key that asked, with the user for whom it did.
    pub fn owner(&self, principal: &Principal) -> Principal {
        Principal { user: self.user, ..principal.clone() }
    }
}

/// What the next event of some answers turned out to be.
enum Waited {
    /// Of the answer with this index.
    Event(usize, StreamEvent),
    Silence,
    End,
    /// The node ends what is still under way.
    Stopping,
}

impl Gateway {
    pub(super) async fn chat(&self, principal: &Principal, request: &Request<'_>, extra: Headers, out: &mut Outgoing) {
        if let Some(extra) = self.resumed(principal, request.head, extra, out).await {
            let begun = self.begin_chat(principal, request.body, self.patience(request.head));
            self.generate(principal, begun, extra, out).await;
        }
    }

    fn begin_chat(&self, principal: &Principal, body: &[u8], patience: Patience) -> Result<Begun, ApiError> {
        ChatRequest::parse(body).and_then(|request| {
            let mut shape =
                self.shape(Style::Chat, &request.model, request.wants_usage(), request.logprobs_wanted().is_some());
            shape.expect_answers(request.answers());
            if let Some(used) = request.tool_use() {
                let names: Vec<String> = used.tools.iter().map(|tool| tool.function.name.clone()).collect();
                let syntax = self.bridge.call_syntax();
                shape.expect_calls(|| Calls::new(syntax, names.clone(), !used.parallel));
            }
            let (streams, resumes) = (request.wants_stream(), request.wants_resume());
            // Whether the key may speak for that user is decided where the answers begin.
            let acting = self.bridge.acting_for(principal, request.user.as_deref());
            let user = acting.map_or(principal.user, |acting| acting.user);
            self.bridge.chat(principal, request, patience).map(|answers| Begun {
                shape,
                user,
                streams,
                resumes,
                answers,
                echo: None,
            })
        })
    }

    pub(super) async fn complete(
        &self,
        principal: &Principal,
        request: &Request<'_>,
        extra: Headers,
        out: &mut Outgoing,
    ) {
        if let Some(extra) = self.resumed(principal, request.head, extra, out).await {
            let begun = self.begin_completion(principal, request.body, self.patience(request.head));
            self.generate(principal, begun, extra, out).await;
        }
    }

    fn begin_completion(&self, principal: &Principal, body: &[u8], patience: Patience) -> Result<Begun, ApiError> {
        CompletionRequest::parse(body).and_then(|request| {
            let echo = echo_of(&request)?;
            let mut shape =
                self.shape(Style::Text, &request.model, request.wants_usage(), request.logprobs_wanted().is_some());
            shape.expect_answers(request.answers());
            let (streams, resumes) = (request.wants_stream(), request.wants_resume());
            self.bridge.complete(principal, request, patience).map(|answers| Begun {
                shape,
                user: principal.user,
                streams,
                resumes,
                answers,
                echo,
            })
        })
    }

    pub(super) async fn embeddings(&self, principal: &Principal, request: &Request<'_>) -> Result<Response, ApiError> {
        let request = EmbeddingRequest::parse(request.body)?;
        let answer = self.bridge.embed(principal, request).await?;
        Ok(Response::json(200, json(&answer)))
    }

    fn shape(&self, style: Style, asked: &str, wants_usage: bool, wants_logprobs: bool) -> Shape {
        let model = if asked.is_empty() { self.model_name() } else { asked.to_owned() };
        Shape::new(style, self.net.next_request_id(), unix_ms() / 1_000, model, wants_usage, wants_logprobs)
    }

    async fn generate(
        &self,
        principal: &Principal,
        begun: Result<Begun, ApiError>,
        mut extra: Headers,
        out: &mut Outgoing,
    ) {
        let mut begun = match begun {
            Ok(begun) => begun,
            Err(error) => return self.fail(&error, extra, out),
        };
        let rung = begun.answers.rung();
        if rung != Rung::AsAsked {
            extra.push((DEGRADED, rung.as_str().to_owned()));
        }
        if let Some(model) = begun.answers.model() {
            begun.shape.set_model(model.to_owned());
        }
        if rung == Rung::Later {
            return self.answer_later(principal, begun, extra, out);
        }
        let _open = self.net.metrics().open_stream();
        if begun.streams && begun.resumes {
            // The work is not this connection's: it goes on for a while without it.
            let _: Result<(), Gone> = self.stream_kept(principal, begun, extra, out).await;
        } else if begun.streams {
            // The peer's leaving is noticed by the connection, which drops this future, and by
            // a failed write; both drop the answers, which cancels their generation.
            let _: Result<(), Gone> = self.stream(begun, extra, out).await;
        } else {
            self.collect(begun, extra, out).await;
        }
    }

    /// Streams events as they come; several that are ready share a write.
    async fn stream(&self, begun: Begun, extra: Headers, out: &mut Outgoing) -> Result<(), Gone> {
        let Begun { mut shape, mut answers, echo, .. } = begun;
        let mut events = Vec::new();
        let mut open = false;
        loop {
            let wait = if open { KEEP_ALIVE } else { STATUS_WAIT };
            let mut waited = next_within(&mut answers, wait, out.line()).await;
            if !open {
                match waited {
                    // `Started` says that the request was accepted; a notice comes before it.
                    Waited::Event(_, StreamEvent::Error(error)) => {
                        self.fail(&error, extra, out);
                        return Ok(());
                    }
                    Waited::End => {
                        self.fail(&ended_early(), extra, out);
                        return Ok(());
                    }
                    Waited::Stopping => {
                        self.fail(&stopping(), extra, out);
                        return Ok(());
                    }
                    _ => {}
                }
                open = true;
                out.begin_stream("text/event-stream; charset=utf-8", &extra);
                shape.open(&mut events);
                if let Some(prompt) = &echo {
                    (0..answers.count()).for_each(|answer| shape.delta(&mut events, answer, prompt, &[]));
                }
            }
            let mut over = false;
            for _ in 0..EVENTS_PER_WRITE_MAX {
                match waited {
                    Waited::Silence => events.extend_from_slice(sse::KEEP_ALIVE),
                    Waited::End => {
                        shape.fail(&mut events, &ended_early());
                        over = true;
                    }
                    Waited::Stopping => {
                        shape.fail(&mut events, &stopping());
                        over = true;
                    }
                    Waited::Event(answer, event) => {
                        over = write_event(&mut shape, &mut events, answer, event, out.request_id());
                    }
                }
                if over {
                    break;
                }
                match answers.try_next() {
                    Some((answer, event)) => waited = Waited::Event(answer, event),
                    None => break,
                }
            }
            pass_on(&mut events, over, out).await?;
            if over {
                return Ok(());
            }
        }
    }

    /// Answers in one piece.
    async fn collect(&self, begun: Begun, extra: Headers, out: &mut Outgoing) {
        let request_id = out.request_id().to_owned();
        let mut collected = Collected::new(begun);
        let line = out.line().clone();
        let whole = poll_fn(|context| match collected.poll_whole(context, &request_id) {
            Poll::Pending if line.poll_ending(context).is_ready() => Poll::Ready(Err(stopping())),
            whole => whole,
        });
        match whole.await {
            Ok(body) => {
                let mut response = Response::json(200, body);
                response.headers.extend(extra);
                out.respond(response);
            }
            Err(error) => self.fail(&error, extra, out),
        }
    }

    pub(super) fn fail(&self, error: &ApiError, extra: Headers, out: &mut Outgoing) {
        let mut response = self.report(error, out.request_id());
        response.headers.extend(extra);
        out.respond(response);
    }
}

/// Whole answers in the making.
pub(super) struct Collected {
    shape: Shape,
    coming: Answers,
    answers: Vec<Answer>,
    notices: Vec<String>,
}

impl Collected {
    /// Nothing has come yet.
    pub(super) fn new(begun: Begun) -> Self {
        let Begun { shape, answers: coming, echo, .. } = begun;
        let empty = || Answer { text: echo.clone().unwrap_or_default(), ..Answer::default() };
        let answers = std::iter::repeat_with(empty).take(coming.count()).collect();
        Self { shape, coming, answers, notices: Vec::new() }
    }

    /// Ready with the body once all answers are complete.
    pub(super) fn poll_whole(
        &mut self,
        context: &mut Context<'_>,
        request_id: &str,
    ) -> Poll<Result<Vec<u8>, ApiError>> {
        loop {
            let Some((at, event)) = ready!(self.coming.poll_next(context)) else {
                return Poll::Ready(Err(ended_early()));
            };
            match event {
                StreamEvent::Started { .. } => {}
                StreamEvent::Delta { text, mut tokens } => {
                    self.answers[at].text.push_str(&text);
                    self.answers[at].tokens.append(&mut tokens);
                }
                StreamEvent::Notice { text } => self.notices.push(text),
                StreamEvent::Error(error) => return Poll::Ready(Err(error)),
                StreamEvent::Done { reason: Finish::Failed(why), .. } => {
                    tracing::warn!(request_id, why, "a generation failed");
                    return Poll::Ready(Err(failed()));
                }
                StreamEvent::Done { reason, usage, timings, .. } => {
                    let spent = self.shape.spend(usage, timings);
                    self.answers[at].finish = Some(reason);
                    if self.answers.iter().all(|answer| answer.finish.is_some()) {
                        let answers = std::mem::take(&mut self.answers);
                        return Poll::Ready(Ok(self.shape.whole(answers, spent, &self.notices)));
                    }
                }
            }
        }
    }
}

/// Hands over what was written; `over` = nothing follows.
pub(super) async fn pass_on(events: &mut Vec<u8>, over: bool, out: &mut Outgoing) -> Result<(), Gone> {
    out.stream(events.as_slice());
    events.clear();
    if over {
        out.end_stream();
    }
    out.flush().await
}

/// Appends an event; true = nothing follows.
pub(super) fn write_event(
    shape: &mut Shape,
    events: &mut Vec<u8>,
    answer: usize,
    event: StreamEvent,
    request_id: &str,
) -> bool {
    match event {
        StreamEvent::Started { .. } => false,
        StreamEvent::Delta { text, tokens } => {
            shape.delta(events, answer, &text, &tokens);
            false
        }
        StreamEvent::Notice { text } => {
            shape.notice(events, &text);
            false
        }
        StreamEvent::Done { reason: Finish::Failed(why), .. } => {
            tracing::warn!(request_id, why, "a generation failed");
            shape.fail(events, &failed());
            true
        }
        StreamEvent::Done { reason, usage, timings, .. } => shape.close(events, answer, &reason, usage, timings),
        StreamEvent::Error(error) => {
            tracing::warn!(request_id, code = error.code, message = %error.message, "a stream failed");
            shape.fail(events, &error);
            true
        }
    }
}

/// The prompt that the answer repeats, if it was asked to.
fn echo_of(request: &CompletionRequest) -> Result<Option<String>, ApiError> {
    match (&request.prompt, request.echo) {
        (Some(Prompt::Text(_)), Some(true)) if request.logprobs.is_some() => Err(ApiError::unsupported(
            "echo",
            "Log probabilities of the prompt are not computed, so echo and logprobs exclude each other.",
        )),
        (Some(Prompt::Text(text)), Some(true)) => Ok(Some(text.clone())),
        (_, Some(true)) => Err(ApiError::unsupported("echo", "Only a prompt of one text can be repeated.")),
        _ => Ok(None),
    }
}

pub(super) fn cors_headers(origin: Option<&str>) -> Headers {
    origin.map_or_else(Vec::new, |origin| {
        vec![
            ("access-control-allow-origin", origin.to_owned()),
            ("access-control-expose-headers", "x-request-id, retry-after, location, millrace-degraded".to_owned()),
            ("vary", "Origin".to_owned()),
        ]
    })
}

/// The next event, or silence after `wait`.
async fn next_within(answers: &mut Answers, wait: Duration, line: &Line) -> Waited {
    let mut next = pin!(answers.next());
    let mut timer = pin!(monoio::time::sleep(wait));
    poll_fn(|context| {
        if let Poll::Ready(event) = next.as_mut().poll(context) {
            return Poll::Ready(event.map_or(Waited::End, |(answer, event)| Waited::Event(answer, event)));
        }
        if line.poll_ending(context).is_ready() {
            return Poll::Ready(Waited::Stopping);
        }
        timer.as_mut().poll(context).map(|()| Waited::Silence)
    })
    .await
}

pub(super) fn ended_early() -> ApiError {
    ApiError::internal("The answer ended without a result.")
}

pub(super) fn stopping() -> ApiError {
    ApiError::overloaded("This node shuts down and could not finish the answer in time.", 1)
}

fn failed() -> ApiError {
    ApiError::internal("The model engine failed on this request; the node's log has the reason.")
}
