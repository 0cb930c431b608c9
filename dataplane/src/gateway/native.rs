//! What `millrace/1` asks, answered by the same bridge, keys and limits as the JSON API; and the echo of both.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use millrace_agent::Finish;
use millrace_proto::api::{
    ApiError, ChatMessage, ChatRequest, ChatRole, Embedding, EmbeddingInput, EmbeddingRequest, StopStrings,
};
use millrace_proto::native::{
    ArchivedChat, ArchivedEmbed, ArchivedHello, ClientFrame, Delta, Done, Ending, Frame, Notice, Started, VERSION,
    Vectors, Welcome, echoed,
};
use millrace_proto::record::SCOPE_CHAT;
use serde::{Deserialize, Serialize};

use super::{Gateway, Principal, json};
use crate::bridge::{Patience, StreamEvent, TokenStream};
use crate::net::line::Line;
use crate::net::quic::{Answers, NativeService};
use crate::net::{Gone, Peer, Request, Response};
use crate::obs::Route;

/// Events of an answer that may share one write, when the peer reads slowly.
const EVENTS_PER_WRITE_MAX: usize = 256;

/// Who speaks on a connection: its key, looked up again for each request, so that a revocation holds at once and
/// every request counts against the key's limits.
pub struct Caller {
    token: String,
}

/// The body of `POST /v1/echo` and of its answer.
#[derive(Deserialize, Serialize)]
struct EchoBody<'a> {
    id: u64,
    #[serde(borrow)]
    text: std::borrow::Cow<'a, str>,
}

impl Gateway {
    /// Says back what was sent: what a round trip through router, key and limits costs.
    pub(super) fn echo(&self, request: &Request<'_>) -> Result<Response, ApiError> {
        let _ = self;
        let body: EchoBody<'_> = serde_json::from_slice(request.body).map_err(|error| {
            ApiError::bad_request("invalid_body", format!("The body is not an object with `id` and `text`: {error}."))
        })?;
        Ok(Response::json(200, json(&body)))
    }

    fn caller(&self, token: &str) -> Result<std::sync::Arc<Principal>, ApiError> {
        let principal = self.identify(token)?;
        principal.require(SCOPE_CHAT)?;
        Ok(principal)
    }
}

impl NativeService for Gateway {
    type Caller = Caller;

    fn welcome(&self, hello: &ArchivedHello, peer: Peer) -> Result<(Caller, Welcome), ApiError> {
        let token = hello.token.as_str();
        let principal = self.caller(token)?;
        tracing::debug!(key = principal.key_label, agent = hello.agent.as_str(), ip = %peer.ip, "a program is connected");
        let welcome = Welcome {
            version: VERSION,
            model: self.model_name(),
            embedding_model: self.bridge.embedding_model().unwrap_or_default(),
        };
        Ok((Caller { token: token.to_owned() }, welcome))
    }

    async fn answer(
        &self,
        caller: &Caller,
        request: ClientFrame<'_>,
        frame: Frame<'_>,
        answers: &mut Answers,
    ) -> Result<(), Gone> {
        let started = Instant::now();
        let (route, status) = match (self.caller(&caller.token), request) {
            (Ok(_), ClientFrame::Echo(_)) => {
                echoed(answers.buffer(), frame);
                (Route::Echo, 200)
            }
            (Ok(principal), ClientFrame::Chat(chat)) => {
                (Route::Chat, Box::pin(self.native_chat(&principal, chat, answers)).await?)
            }
            (Ok(principal), ClientFrame::Embed(embed)) => {
                (Route::Embeddings, Box::pin(self.native_embed(&principal, embed, answers)).await)
            }
            (Ok(_), ClientFrame::Hello(_)) => {
                let error = ApiError::bad_request("already_introduced", "This connection has said hello before.");
                (Route::Unknown, self.native_fault(&error, answers))
            }
            (Err(error), request) => {
                let route = match request {
                    ClientFrame::Echo(_) => Route::Echo,
                    ClientFrame::Chat(_) => Route::Chat,
                    ClientFrame::Embed(_) => Route::Embeddings,
                    ClientFrame::Hello(_) => Route::Unknown,
                };
                (route, self.native_fault(&error, answers))
            }
        };
        self.net.metrics().http_requests(route, status);
        self.net.metrics().request_seconds(route, started.elapsed());
        Ok(())
    }
}

impl Gateway {
    fn native_fault(&self, error: &ApiError, answers: &mut Answers) -> u16 {
        let _ = self.report(error, "millrace/1");
        answers.fail(error);
        error.status
    }

    /// Streams the answer to a chat; gives the status that it counts as.
    async fn native_chat(
        &self,
        principal: &Principal,
        chat: &ArchivedChat,
        answers: &mut Answers,
    ) -> Result<u16, Gone> {
        let draining = self.net.draining.get();
        let begun = chat_request(chat).and_then(|request| {
            if draining {
                return Err(ApiError::overloaded("This node is shutting down and takes no new work.", 1));
            }
            request.validate()?;
            self.bridge.chat(principal, request, Patience::default()).map(crate::bridge::Answers::into_first)
        });
        let mut stream = match begun {
            Ok(stream) => stream,
            Err(error) => return Ok(self.native_fault(&error, answers)),
        };
        let _open = self.net.metrics().open_stream();
        self.native_stream(&mut stream, answers).await
    }

    async fn native_stream(&self, stream: &mut TokenStream, answers: &mut Answers) -> Result<u16, Gone> {
        loop {
            let mut next = next_or_ending(stream, answers.line()).await;
            for _ in 0..EVENTS_PER_WRITE_MAX {
                if let Some(status) = self.native_event(next, answers) {
                    return Ok(status);
                }
                match stream.try_next() {
                    Some(event) => next = Ok(Some(event)),
                    None => break,
                }
            }
            answers.flush().await?;
        }
    }

    /// Buffers an event; a status = nothing follows.
    fn native_event(&self, event: Result<Option<StreamEvent>, Ending>, answers: &mut Answers) -> Option<u16> {
        match event {
            Ok(Some(StreamEvent::Started { prompt_tokens, cached_tokens })) => {
                answers.put(&Started { prompt_tokens, cached_tokens });
                None
            }
            Ok(Some(StreamEvent::Delta { text, .. })) => {
                answers.put(&Delta { text });
                None
            }
            Ok(Some(StreamEvent::Notice { text })) => {
                answers.put(&Notice { text });
                None
            }
            Ok(Some(StreamEvent::Done { reason, usage, message_seq, .. })) => {
                let Some(ending) = ending(&reason) else {
                    tracing::warn!(?reason, "a generation failed");
                    let error =
                        ApiError::internal("The model engine failed on this request; the node's log has the reason.");
                    return Some(self.native_fault(&error, answers));
                };
                answers.put(&Done {
                    ending,
                    prompt_tokens: usage.prompt,
                    cached_tokens: usage.cached,
                    completion_tokens: usage.completion,
                    message_seq,
                });
                Some(200)
            }
            Ok(Some(StreamEvent::Error(error))) => Some(self.native_fault(&error, answers)),
            Ok(None) => Some(self.native_fault(&ApiError::internal("The answer ended without a result."), answers)),
            Err(_) => {
                let why = "This node shuts down and could not finish the answer in time.";
                Some(self.native_fault(&ApiError::overloaded(why, 1), answers))
            }
        }
    }

    async fn native_embed(&self, principal: &Principal, embed: &ArchivedEmbed, answers: &mut Answers) -> u16 {
        let request = EmbeddingRequest {
            model: embed.model.as_str().to_owned(),
            input: Some(EmbeddingInput::Many(embed.texts.iter().map(|text| text.as_str().to_owned()).collect())),
            dimensions: embed.dimensions.as_ref().map(|dimensions| i64::from(dimensions.to_native())),
            ..EmbeddingRequest::default()
        };
        let checked = request.validate();
        let answer = match checked {
            Ok(()) => self.bridge.embed(principal, request).await,
            Err(error) => Err(error),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return self.native_fault(&error, answers),
        };
        let mut values = Vec::new();
        let mut dimensions = 0;
        for row in &answer.data {
            if let Embedding::Float(vector) = &row.embedding {
                dimensions = vector.len();
                values.extend_from_slice(vector);
            }
        }
        answers.put(&Vectors {
            model: answer.model,
            dimensions: u32::try_from(dimensions).unwrap_or(u32::MAX),
            values,
            tokens: answer.usage.total_tokens,
        });
        200
    }
}

/// The next event; an error = the node ends what is still under way.
async fn next_or_ending(stream: &mut TokenStream, line: &Line) -> Result<Option<StreamEvent>, Ending> {
    let mut next = pin!(stream.next());
    poll_fn(|context| {
        if let Poll::Ready(event) = next.as_mut().poll(context) {
            return Poll::Ready(Ok(event));
        }
        line.poll_ending(context).map(|()| Err(Ending::Cancelled))
    })
    .await
}

/// `None` = the engine failed.
fn ending(reason: &Finish) -> Option<Ending> {
    match reason {
        Finish::Stop => Some(Ending::Stop),
        Finish::Length => Some(Ending::Length),
        Finish::Cancelled => Some(Ending::Cancelled),
        Finish::Deadline => Some(Ending::Deadline),
        Finish::Failed(_) => None,
    }
}

fn chat_request(chat: &ArchivedChat) -> Result<ChatRequest, ApiError> {
    let text = |text: &rkyv::string::ArchivedString| text.as_str().to_owned();
    let messages = chat.messages.iter().map(|turn| Ok(ChatMessage::new(role(turn.role.as_str())?, turn.text.as_str())));
    let stop: Vec<String> = chat.stop.iter().map(text).collect();
    Ok(ChatRequest {
        model: text(&chat.model),
        messages: messages.collect::<Result<_, ApiError>>()?,
        session: chat.session.as_ref().map(text),
        user: chat.user.as_ref().map(text),
        stream: Some(true),
        max_tokens: chat.max_tokens.as_ref().map(|tokens| i64::from(tokens.to_native())),
        temperature: chat.temperature.as_ref().map(|value| f64::from(value.to_native())),
        top_p: chat.top_p.as_ref().map(|value| f64::from(value.to_native())),
        seed: chat.seed.as_ref().map(|seed| seed.to_native()),
        stop: (!stop.is_empty()).then_some(StopStrings::Many(stop)),
        ..ChatRequest::default()
    })
}

fn role(name: &str) -> Result<ChatRole, ApiError> {
    Ok(match name {
        "system" => ChatRole::System,
        "developer" => ChatRole::Developer,
        "user" => ChatRole::User,
        "assistant" => ChatRole::Assistant,
        "tool" => ChatRole::Tool,
        _ => {
            let why = "A role is `system`, `developer`, `user`, `assistant` or `tool`.";
            return Err(ApiError::invalid_param("messages", why));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::native::{Chat, Payload, Side, Turn, next_frame};

    fn read(chat: &Chat) -> Result<ChatRequest, ApiError> {
        let mut wire = Vec::new();
        chat.put(&mut wire);
        let (frame, _) = next_frame(&wire, Side::Client).expect("a frame").expect("whole");
        let Ok(ClientFrame::Chat(archived)) = ClientFrame::read(frame) else { panic!("a chat") };
        chat_request(archived)
    }

    #[test]
    fn a_chat_asks_for_the_same_as_its_json_form() {
        let turn = |role: &str| Turn { role: role.into(), text: "hi".into() };
        let chat = Chat {
            model: "m".into(),
            session: Some("s".into()),
            messages: vec![turn("user")],
            max_tokens: Some(7),
            temperature: Some(0.5),
            seed: Some(-1),
            stop: vec!["x".into()],
            ..Chat::default()
        };
        let made = read(&chat).expect("valid");
        let json = r#"{"model":"m","session":"s","messages":[{"role":"user","content":"hi"}],"max_tokens":7,
            "temperature":0.5,"seed":-1,"stop":["x"],"stream":true}"#;
        assert_eq!(made, ChatRequest::parse(json.as_bytes()).expect("valid"));
        let wrong = Chat { messages: vec![turn("robot")], ..chat };
        assert_eq!(read(&wrong).expect_err("no such role").status, 400);
    }
}
