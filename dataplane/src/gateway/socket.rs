//! `/v1/chat/ws`: chat over a WebSocket, as the chat page speaks it.
//!
//! JSON in text frames. The key comes in the first frame, so that it is in no URL and no log;
//! before it the page's origin is compared with the host. Client frames: `auth`, `send`,
//! `stop`, `history`, `resume`; server frames: `ready`, `history`, `delta`, `notice`, `done`, `error`.
//! Frames of an answer carry the `offset` behind them, which counts what the model made: with few exceptions
//! (half characters, guessed tokens) one for each token. An answer goes on for a while when its socket is
//! lost; on a new one, `resume` with session, id and the last offset brings the rest. A close with code 1000 says
//! that nobody will come back.
//! Answers are written only as fast as the peer reads: one that is slow holds its answer back, and what the model
//! makes meanwhile is joined in its stream, so a socket's memory is bounded by the answers it asked for.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use millrace_agent::Finish;
use millrace_proto::api::{ApiError, ChatMessage, ChatRequest, ChatRole};
use millrace_proto::http1::RequestHead;
use millrace_proto::limits::{NAME_BYTES_MAX, WS_MESSAGE_BYTES_MAX};
use millrace_proto::record::SCOPE_CHAT;
use millrace_proto::ws::{self, Decoder, Event, Opcode, Side, close_code};
use serde::Deserialize;
use serde_json::{Value, json};

use super::resume::{Follower, Progress, keep_turn, missed_events, no_reply};
use super::sessions::message_object;
use super::shape::{api_usage, finish_reason};
use super::{Gateway, Principal};
use crate::bridge::{Patience, StreamEvent};
use crate::net::line::{Cut, Line};
use crate::net::outgoing::FLUSH_BYTES;
use crate::net::wire::Reader;
use crate::net::{Gone, Next, Outgoing, Response};

/// From the upgrade to a valid key.
const AUTH_WAIT: Duration = Duration::from_secs(10);

/// A silent peer is asked whether it is there; without any frame for three such pauses it is not.
const PING_PAUSE: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(95);

/// Answers that one socket may have under way; the page needs one.
const RUNS_MAX: usize = 8;

/// Bytes of a message that was refused as too long that are read, so that the peer sees the
/// close frame and not a reset.
const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How long a closing peer is heard out in all.
const LINGER: Duration = Duration::from_secs(5);

/// Silence after which a peer that was told to close is taken to have said everything.
const LINGER_SILENCE: Duration = Duration::from_millis(500);

/// Messages of a session that `history` sends at most.
const HISTORY_MESSAGES_MAX: usize = 200;

/// The connection has become a WebSocket.
pub struct Upgrade {
    host_checked: HostChecked,
    /// Compression was agreed on.
    deflate: bool,
}

/// Proof that the origin was compared: only [`Gateway::open_socket`] makes one.
struct HostChecked;

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum ClientFrame {
    Auth { key: String },
    Send { session: String, text: String, id: u64 },
    Stop { id: u64 },
    History { session: String },
    Resume { session: String, id: u64, offset: u64 },
}

/// Events of one answer that may share a frame.
const EVENTS_PER_FRAME_MAX: usize = 256;

struct Run {
    id: u64,
    follower: Follower<StreamEvent>,
    /// The last event was written, or another socket reads on.
    over: bool,
}

impl Run {
    /// Writes what is ready of this answer; false = nothing is.
    fn write(&mut self, out: &mut Outgoing, context: Option<&Context<'_>>) -> bool {
        let mut events: Vec<(u64, StreamEvent)> = Vec::new();
        let mut take = |number: u64, event: &StreamEvent| match (events.last_mut(), event) {
            (Some((last, StreamEvent::Delta { text, .. })), StreamEvent::Delta { text: more, .. }) => {
                *last = number;
                text.push_str(more);
            }
            _ => events.push((number, event.clone())),
        };
        let progress = match context {
            None => self.follower.read(EVENTS_PER_FRAME_MAX, &mut take),
            Some(context) => match self.follower.poll_read(context, EVENTS_PER_FRAME_MAX, &mut take) {
                Poll::Ready(progress) => progress,
                Poll::Pending => Progress::Wait,
            },
        };
        match progress {
            Progress::Wait => return false,
            Progress::Over | Progress::Replaced => self.over = true,
            Progress::Events => {
                for (offset, event) in events {
                    self.over |= matches!(event, StreamEvent::Done { .. } | StreamEvent::Error(_));
                    write_event(out, self.id, event, offset);
                }
            }
        }
        true
    }
}

/// Why a socket ends.
enum End {
    /// The peer is gone; nothing can be said.
    Gone,
    /// Say this and close.
    Close(u16, &'static str),
    /// The peer said this; say it back.
    Echo(Option<u16>),
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

struct Talk<'a> {
    gateway: &'a Gateway,
    line: Rc<Line>,
    out: Outgoing,
    deflate: bool,
    /// The key, kept to be checked again with every message: a revocation ends the talk.
    key: Option<String>,
    runs: Vec<Run>,
    last_ping: Instant,
}

impl Gateway {
    /// Answers the upgrade request.
    pub(super) fn open_socket(&self, head: &RequestHead, out: &mut Outgoing) -> Next<Upgrade> {
        let accept = match ws::handshake(head) {
            Ok(accept) => accept,
            Err(error) => {
                let api = ApiError::new(error.status, "invalid_request_error", "websocket_expected", error.reason);
                let mut response = Response::error(&api);
                if error.status == 426 {
                    response = response.header("sec-websocket-version", "13").header("upgrade", "websocket");
                }
                out.respond(response);
                return Next::Continue;
            }
        };
        if let Some(origin) = head.header("origin")
            && !same_host(origin, head.header("host").unwrap_or_default())
            && self.allowed_origin(head).is_none()
        {
            out.fail(&ApiError::new(
                403,
                "permission_error",
                "foreign_origin",
                format!("A page of {origin} may not open a chat here."),
            ));
            return Next::Continue;
        }
        let deflate = ws::deflate_is_offered(head);
        out.switch_to_websocket(&accept, deflate.then_some(ws::DEFLATE_AGREEMENT));
        Next::Upgrade(Upgrade { host_checked: HostChecked, deflate })
    }

    /// Talks until either side ends it.
    pub(super) async fn converse(
        &self,
        upgrade: Upgrade,
        mut reader: Reader,
        ahead: Vec<u8>,
        out: Outgoing,
        line: Rc<Line>,
    ) {
        let Upgrade { host_checked: HostChecked, deflate } = upgrade;
        let mut talk =
            Talk { gateway: self, line, out, deflate, key: None, runs: Vec::new(), last_ping: Instant::now() };
        let end = match talk.go_on(&mut reader, ahead).await {
            Ok(()) => return,
            Err(end) => end,
        };
        let for_good = matches!(end, End::Echo(Some(close_code::NORMAL)));
        for run in talk.runs.drain(..) {
            self.net.metrics().stream_closed();
            if for_good {
                run.follower.leave();
            }
        }
        match end {
            End::Gone => {}
            End::Close(code, reason) => talk.close(code, reason, reader).await,
            End::Echo(code) => talk.echo(code, reader).await,
        }
    }
}

impl Talk<'_> {
    async fn go_on(&mut self, reader: &mut Reader, ahead: Vec<u8>) -> Result<(), End> {
        let mut decoder = Decoder::new(Side::Server, WS_MESSAGE_BYTES_MAX);
        if self.deflate {
            decoder = decoder.deflated();
        }
        let mut input = ahead;
        self.read_within(AUTH_WAIT);
        self.out.flush().await?;
        loop {
            self.frames(&mut decoder, &mut input).await?;
            self.write_runs();
            self.out.flush().await?;
            if !input.is_empty() {
                continue;
            }
            // Between answers a drain may end the talk at once.
            self.line.set_idle(self.runs.is_empty());
            self.wait(reader, &mut input).await?;
        }
    }

    /// Waits for a frame, an event of an answer, or the time to ping.
    async fn wait(&mut self, reader: &mut Reader, input: &mut Vec<u8>) -> Result<(), End> {
        let until_ping = PING_PAUSE.saturating_sub(self.last_ping.elapsed());
        let mut timer = pin!(monoio::time::sleep(until_ping));
        let runs = &mut self.runs;
        let out = &mut self.out;
        let line = &self.line;
        let read = poll_fn(|context| {
            if line.poll_ending(context).is_ready() {
                return Poll::Ready(Some(Err(std::io::ErrorKind::ConnectionAborted.into())));
            }
            if let Poll::Ready(read) = reader.poll_read(context, input) {
                return Poll::Ready(Some(read));
            }
            if runs.iter_mut().any(|run| run.write(out, Some(&*context))) {
                return Poll::Ready(None);
            }
            timer.as_mut().poll(context).map(|()| None)
        })
        .await;
        if self.last_ping.elapsed() >= PING_PAUSE {
            self.last_ping = Instant::now();
            ws::encode(self.out.raw_buffer(), Opcode::Ping, b"");
        }
        match read {
            None => Ok(()),
            Some(Ok(1..)) => {
                if self.key.is_some() {
                    self.read_within(IDLE);
                }
                Ok(())
            }
            Some(_) if self.line.is_ending() => {
                let error = ApiError::overloaded("This node shuts down and could not finish the answer in time.", 1);
                for run in &self.runs {
                    say(&mut self.out, &error_frame(Some(run.id), &error));
                }
                Err(End::Close(close_code::GOING_AWAY, "the node is shutting down"))
            }
            Some(_) => Err(match self.line.cut() {
                Some(Cut::Drain) => End::Close(close_code::GOING_AWAY, "the node is shutting down"),
                Some(Cut::ReadTimeout) if self.key.is_none() => End::Close(close_code::POLICY, "no key came in time"),
                Some(Cut::ReadTimeout) => End::Close(close_code::GOING_AWAY, "no sign of life"),
                Some(Cut::WriteTimeout | Cut::Stop) | None => End::Gone,
            }),
        }
    }

    /// Acts on the frames that have arrived, until so much is to be written that the peer has
    /// to read first; what is left stays in `input`.
    async fn frames(&mut self, decoder: &mut Decoder, input: &mut Vec<u8>) -> Result<(), End> {
        let bytes = std::mem::take(input);
        let mut rest = bytes.as_slice();
        loop {
            match decoder.next(&mut rest) {
                Ok(None) => return Ok(()),
                Ok(Some(Event::Text(text))) => self.text(&text).await?,
                Ok(Some(Event::Binary(_))) => {
                    return Err(End::Close(close_code::UNSUPPORTED, "only text frames are spoken here"));
                }
                Ok(Some(Event::Ping(payload))) => ws::encode(self.out.raw_buffer(), Opcode::Pong, &payload),
                Ok(Some(Event::Pong(_))) => {}
                Ok(Some(Event::Close { code, .. })) => return Err(End::Echo(code)),
                Err(error) => return Err(End::Close(error.code, error.reason)),
            }
            if self.out.buffered() > FLUSH_BYTES {
                *input = rest.to_vec();
                return Ok(());
            }
        }
    }

    async fn text(&mut self, text: &str) -> Result<(), End> {
        let frame = match serde_json::from_str::<ClientFrame>(text) {
            Ok(frame) => frame,
            Err(error) => {
                let api = ApiError::bad_request("invalid_frame", format!("The frame cannot be read: {error}."));
                self.error(None, &api);
                return if self.key.is_some() { Ok(()) } else { Err(no_key()) };
            }
        };
        match (frame, self.key.clone()) {
            (ClientFrame::Auth { key }, None) => match self.principal(&key) {
                Ok(_) => {
                    self.key = Some(key);
                    self.read_within(IDLE);
                    let model = self.gateway.model_name();
                    self.say(&json!({"type": "ready", "model": model}));
                    Ok(())
                }
                Err(error) => {
                    self.error(None, &error);
                    Err(End::Close(close_code::POLICY, "the key was not accepted"))
                }
            },
            (ClientFrame::Auth { .. }, Some(_)) => {
                self.error(None, &ApiError::bad_request("already_authenticated", "This socket has a key already."));
                Ok(())
            }
            (_, None) => {
                self.error(None, &ApiError::unauthorized("The first frame must carry the key."));
                Err(no_key())
            }
            (ClientFrame::Send { session, text, id }, Some(key)) => {
                let sent = self.send(&key, session, text, id);
                self.told(Some(id), sent)
            }
            (ClientFrame::Stop { id }, Some(_)) => {
                if let Some(at) = self.runs.iter().position(|run| run.id == id) {
                    self.runs.remove(at).follower.leave();
                    self.gateway.net.metrics().stream_closed();
                    self.say(&json!({"type": "done", "id": id, "finish_reason": "cancelled", "usage": null}));
                }
                Ok(())
            }
            (ClientFrame::Resume { session, id, offset }, Some(key)) => {
                let resumed = self.resume(&key, &session, id, offset);
                self.told(Some(id), resumed)
            }
            (ClientFrame::History { session }, Some(key)) => {
                let listed = self.history(&key, &session).await;
                self.told(None, listed)
            }
        }
    }

    /// Says what went wrong with a frame. A key that was revoked ends the socket, whatever it was used for.
    fn told(&mut self, id: Option<u64>, outcome: Result<(), ApiError>) -> Result<(), End> {
        let Err(error) = outcome else { return Ok(()) };
        self.error(id, &error);
        if error.status == 401 { Err(End::Close(close_code::POLICY, "the key was revoked")) } else { Ok(()) }
    }

    fn send(&mut self, key: &str, session: String, text: String, id: u64) -> Result<(), ApiError> {
        let principal = self.principal(key)?;
        if self.gateway.net.refuses_work() {
            return Err(ApiError::overloaded("This node is shutting down and takes no new work.", 1));
        }
        self.check_room(id)?;
        if text.trim().is_empty() {
            return Err(ApiError::invalid_param("text", "The message is empty."));
        }
        check_session(&session)?;
        let name = turn_name(&session, id);
        let request = ChatRequest {
            session: Some(session),
            messages: vec![ChatMessage::new(ChatRole::User, text)],
            stream: Some(true),
            ..ChatRequest::default()
        };
        request.validate()?;
        let stream = self.gateway.bridge.chat(&principal, request, Patience::default())?.into_first();
        let common = &self.gateway.shared.gateway;
        let (kept, follower) = common.turns.begin(&principal, &name, &self.gateway.bounds(), common);
        keep_turn(&kept, stream);
        self.follow(id, follower);
        Ok(())
    }

    /// Goes on with an answer that was begun on another socket, behind what its client has.
    fn resume(&mut self, key: &str, session: &str, id: u64, offset: u64) -> Result<(), ApiError> {
        let principal = self.principal(key)?;
        self.check_room(id)?;
        check_session(session)?;
        let common = &self.gateway.shared.gateway;
        let found = common.turns.follow(&principal, &turn_name(session, id), offset, common);
        let reader = found.ok_or_else(|| no_reply("The answer"))?;
        let follower = reader.map_err(|missed| missed_events(missed, offset))?;
        self.follow(id, follower);
        Ok(())
    }

    fn follow(&mut self, id: u64, follower: Follower<StreamEvent>) {
        self.gateway.net.metrics().stream_opened();
        self.line.set_idle(false);
        self.runs.push(Run { id, follower, over: false });
    }

    fn check_room(&self, id: u64) -> Result<(), ApiError> {
        if self.runs.iter().any(|run| run.id == id) {
            return Err(ApiError::invalid_param("id", format!("An answer with the id {id} is under way.")));
        }
        if self.runs.len() >= RUNS_MAX {
            return Err(ApiError::rate_limited(format!("{RUNS_MAX} answers are under way on this socket."), 1));
        }
        Ok(())
    }

    async fn history(&mut self, key: &str, session: &str) -> Result<(), ApiError> {
        let principal = self.principal(key)?;
        check_session(session)?;
        let messages = match self.gateway.bridge.history(&principal, session, None, HISTORY_MESSAGES_MAX).await {
            // A session begins with its first message: before it, its history is empty.
            Err(error) if error.code == "session_not_found" => Vec::new(),
            answer => answer?,
        };
        let messages: Vec<Value> = messages.iter().map(message_object).collect();
        self.say(&json!({"type": "history", "session": session, "messages": messages}));
        Ok(())
    }

    fn principal(&self, key: &str) -> Result<std::sync::Arc<Principal>, ApiError> {
        let principal = self.gateway.identify(key)?;
        principal.require(SCOPE_CHAT)?;
        Ok(principal)
    }

    /// Writes the events that are ready and forgets the answers that are complete.
    fn write_runs(&mut self) {
        let out = &mut self.out;
        let metrics = self.gateway.net.metrics();
        self.runs.retain_mut(|run| {
            while !run.over && out.buffered() < FLUSH_BYTES && run.write(out, None) {}
            if run.over {
                metrics.stream_closed();
            }
            !run.over
        });
    }

    fn read_within(&self, wait: Duration) {
        self.line.read_until(self.gateway.net.deadline(wait));
    }

    fn say(&mut self, value: &Value) {
        // What comes whole may be long (a history); the pieces of an answer are not.
        let text = value.to_string();
        match self.deflate {
            true => ws::encode_deflated(self.out.raw_buffer(), Opcode::Text, text.as_bytes()),
            false => ws::encode(self.out.raw_buffer(), Opcode::Text, text.as_bytes()),
        }
    }

    fn error(&mut self, id: Option<u64>, error: &ApiError) {
        say(&mut self.out, &error_frame(id, error));
    }

    /// The closing handshake that we begin (RFC 6455, 7.1.2): our frame, then whatever the peer still sends, its own
    /// close frame last. The peer is heard out until it is silent before the stream ends: a client in the middle of a
    /// long message takes the end of the stream for a broken connection and never looks at our reason.
    async fn close(mut self, code: u16, reason: &str, mut reader: Reader) {
        ws::encode_close(self.out.raw_buffer(), code, reason);
        if self.out.flush().await.is_err() {
            return;
        }
        self.drop_until_silent(&mut reader).await;
        self.out.finish().await;
    }

    /// The closing handshake that the peer began: its code back, then the end of the stream.
    async fn echo(mut self, code: Option<u16>, mut reader: Reader) {
        match code {
            Some(code) => ws::encode_close(self.out.raw_buffer(), code, ""),
            None => ws::encode(self.out.raw_buffer(), Opcode::Close, b""),
        }
        if self.out.flush().await.is_err() {
            return;
        }
        self.out.finish().await;
        self.drop_until_silent(&mut reader).await;
    }

    /// Reads and drops until the peer ends, is silent for a moment, or has sent more than anybody needs to.
    async fn drop_until_silent(&self, reader: &mut Reader) {
        let until = Instant::now() + LINGER;
        let mut dropped = 0;
        let mut rest = Vec::new();
        while dropped < LINGER_BYTES_MAX && Instant::now() < until {
            rest.clear();
            self.read_within(LINGER_SILENCE);
            match reader.read(&mut rest).await {
                Ok(count @ 1..) => dropped += count,
                _ => return,
            }
        }
    }
}

impl Drop for Talk<'_> {
    fn drop(&mut self) {
        for _ in &self.runs {
            self.gateway.net.metrics().stream_closed();
        }
    }
}

fn no_key() -> End {
    End::Close(close_code::POLICY, "the first frame must carry the key")
}

fn write_event(out: &mut Outgoing, id: u64, event: StreamEvent, offset: u64) {
    let value = match event {
        StreamEvent::Started { .. } => return,
        StreamEvent::Delta { text, .. } => json!({"type": "delta", "id": id, "text": text, "offset": offset}),
        StreamEvent::Notice { text } => json!({"type": "notice", "id": id, "text": text, "offset": offset}),
        StreamEvent::Done { reason: Finish::Failed(why), .. } => {
            tracing::warn!(why, "a generation failed");
            error_frame(
                Some(id),
                &ApiError::internal("The model engine failed on this message; the node's log has the reason."),
            )
        }
        StreamEvent::Done { reason, usage, message_seq, .. } => json!({
            "type": "done",
            "id": id,
            "offset": offset,
            "finish_reason": finish_reason(&reason),
            "usage": api_usage(usage),
            "seq": message_seq,
        }),
        StreamEvent::Error(error) => error_frame(Some(id), &error),
    };
    say(out, &value);
}

fn say(out: &mut Outgoing, value: &Value) {
    ws::encode(out.raw_buffer(), Opcode::Text, value.to_string().as_bytes());
}

fn error_frame(id: Option<u64>, error: &ApiError) -> Value {
    let mut frame = json!({"type": "error"});
    if let Some(id) = id {
        frame["id"] = Value::from(id);
    }
    frame["error"] = error.to_value()["error"].take();
    frame
}

/// What a turn is called: its session and the number that the client gave it. The length keeps both apart.
fn turn_name(session: &str, id: u64) -> String {
    format!("{}:{session}/{id}", session.len())
}

fn check_session(session: &str) -> Result<(), ApiError> {
    if session.is_empty() || session.len() > NAME_BYTES_MAX {
        let message = format!("session has {} bytes; it must have 1 to {NAME_BYTES_MAX}.", session.len());
        return Err(ApiError::invalid_param("session", message));
    }
    Ok(())
}

/// Whether a page's origin is this host: scheme aside, names and ports are equal.
fn same_host(origin: &str, host: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |name: &str| name.strip_suffix(default_port).unwrap_or(name).to_ascii_lowercase();
    !authority.is_empty() && bare(authority) == bare(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_of_this_host_may_open_a_socket() {
        for (origin, host, same) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", true),
            ("https://chat.example", "chat.example", true),
            ("https://chat.example", "Chat.Example:443", true),
            ("http://chat.example:80", "chat.example", true),
            ("https://evil.example", "chat.example", false),
            ("https://chat.example.evil", "chat.example", false),
            ("http://127.0.0.1:8081", "127.0.0.1:8080", false),
            ("null", "chat.example", false),
            ("file://", "", false),
            ("http://", "", false),
            ("ftp://chat.example", "chat.example", false),
        ] {
            assert_eq!(same_host(origin, host), same, "{origin} against {host}");
        }
    }

    #[test]
    fn frames_are_read_by_their_type_and_unknown_ones_are_errors() {
        let send: ClientFrame =
            serde_json::from_str(r#"{"type":"send","session":"s","text":"hi","id":3,"more":1}"#).expect("a frame");
        assert!(matches!(send, ClientFrame::Send { id: 3, .. }));
        let resume = serde_json::from_str(r#"{"type":"resume","session":"s","id":3,"offset":9}"#).expect("a frame");
        assert!(matches!(resume, ClientFrame::Resume { id: 3, offset: 9, .. }));
        for bad in ["", "[]", "{}", r#"{"type":"quit"}"#, r#"{"type":"send","id":-1}"#, r#"{"type":"stop"}"#] {
            assert!(serde_json::from_str::<ClientFrame>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_choice_of_session_and_number_means_another_turn() {
        let names = [("a", 12), ("a/1", 2), ("a", 1), ("", 1)].map(|(session, id)| turn_name(session, id));
        for (at, name) in names.iter().enumerate() {
            assert!(!names[at + 1..].contains(name), "{name}");
        }
    }

    #[test]
    fn an_error_frame_has_the_shape_of_the_api_inside() {
        let frame = error_frame(Some(4), &ApiError::unauthorized("no"));
        assert_eq!((&frame["id"], &frame["error"]["code"]), (&Value::from(4), &Value::from("invalid_api_key")));
        assert!(error_frame(None, &ApiError::internal("x")).get("id").is_none());
    }
}
