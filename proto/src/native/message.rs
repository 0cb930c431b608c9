//! The values that frames hold.
//!
//! A receiver reads the archived form in place. Adding a field changes the bytes, so a changed message is a
//! new kind or a new version of the protocol, never a silent edit.

use rkyv::api::high::{HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::{Archive, Deserialize, Portable, Serialize};

use super::frame::{self, Frame, FrameError, Kind, Side};
use crate::api::ApiError;

/// First frame of a client: who speaks.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the protocol that the client speaks.
    pub version: u16,
    /// An API key or an access token.
    pub token: String,
    /// Name of the program, for the node's log; may be empty.
    pub agent: String,
}

/// Asks for its own content back: what a round trip costs.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Echo {
    /// Comes back unchanged.
    pub id: u64,
    /// Comes back unchanged.
    pub text: String,
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Turn {
    /// `system`, `developer`, `user`, `assistant` or `tool`.
    pub role: String,
    /// What was said.
    pub text: String,
}

/// Asks for an answer, which streams back as `Started`, `Delta`s, perhaps `Notice`s, and `Done` or `Fault`.
#[derive(Clone, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Chat {
    /// Name of the model; empty = the node's own.
    pub model: String,
    /// The node keeps this conversation; `messages` then holds only what is new.
    pub session: Option<String>,
    /// The user of the tenant that the request is made for; needs the scope for it.
    pub user: Option<String>,
    /// The conversation.
    pub messages: Vec<Turn>,
    /// Longest answer in tokens.
    pub max_tokens: Option<u32>,
    /// As in the JSON API.
    pub temperature: Option<f32>,
    /// As in the JSON API.
    pub top_p: Option<f32>,
    /// As in the JSON API.
    pub seed: Option<i64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
}

/// Asks for sentence embeddings, answered by `Vectors` or `Fault`.
#[derive(Clone, Debug, Default, PartialEq, Archive, Serialize, Deserialize)]
pub struct Embed {
    /// Name of the model; empty = the node's own.
    pub model: String,
    /// What is to be embedded.
    pub texts: Vec<String>,
    /// Shorter vectors; `None` = as long as the model makes them.
    pub dimensions: Option<u32>,
}

/// The connection may be used.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Welcome {
    /// Version that both sides speak from here on.
    pub version: u16,
    /// Name of the chat model.
    pub model: String,
    /// Name of the embedding model; empty = none is loaded.
    pub embedding_model: String,
}

/// The model has begun.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Started {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// How many of them were cached.
    pub cached_tokens: u32,
}

/// More text of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Delta {
    /// Whole characters only.
    pub text: String,
}

/// Something that a person should know about an answer.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Notice {
    /// For people.
    pub text: String,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Ending {
    /// The model was done, or a stop text came.
    Stop,
    /// `max_tokens` or the context is full.
    Length,
    /// The time for it was over.
    Deadline,
    /// It was stopped from outside.
    Cancelled,
}

/// An answer is complete; in a session it is also durable.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Done {
    /// Why it ended.
    pub ending: Ending,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// How many of them were cached.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Sequence number of the answer in its session.
    pub message_seq: Option<u64>,
}

/// Embeddings, one after the other.
#[derive(Clone, Debug, PartialEq, Archive, Serialize, Deserialize)]
pub struct Vectors {
    /// Name of the model.
    pub model: String,
    /// Components of one vector.
    pub dimensions: u32,
    /// All components: the vector of text `n` starts at `n * dimensions`.
    pub values: Vec<f32>,
    /// Tokens of all texts.
    pub tokens: u32,
}

/// A request failed. The connection and the stream go on.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Fault {
    /// The status that the JSON API answers with.
    pub status: u16,
    /// For programs, as in the JSON API.
    pub code: String,
    /// What happened and why.
    pub message: String,
    /// What to do.
    pub next_step: String,
    /// The same request may succeed later.
    pub retryable: bool,
    /// Not before this many seconds.
    pub retry_after_s: Option<u32>,
}

impl From<&ApiError> for Fault {
    fn from(error: &ApiError) -> Self {
        Self {
            status: error.status,
            code: error.code.to_string(),
            message: error.message.to_string(),
            next_step: error.next_step.to_string(),
            retryable: error.retryable(),
            retry_after_s: error.retry_after_s,
        }
    }
}

/// A value that a frame can hold.
pub trait Payload: Sized + for<'a> Serialize<HighSerializer<Vec<u8>, ArenaHandle<'a>, rancor::Error>> {
    /// The kind of its frame.
    const KIND: Kind;

    /// Appends the frame.
    fn put(&self, out: &mut Vec<u8>) {
        let start = frame::begin(out, Self::KIND);
        let bytes = std::mem::take(out);
        // Writing to memory fails only when memory itself does.
        *out = rkyv::api::high::to_bytes_in::<_, rancor::Error>(self, bytes).expect("a message fits into memory");
        frame::end(out, start);
    }
}

macro_rules! payloads {
    ($($type:ident = $kind:ident),* $(,)?) => {$(
        impl Payload for $type {
            const KIND: Kind = Kind::$kind;
        }
    )*};
}

payloads!(
    Hello = Hello,
    Echo = Echo,
    Chat = Chat,
    Embed = Embed,
    Welcome = Welcome,
    Started = Started,
    Delta = Delta,
    Notice = Notice,
    Done = Done,
    Vectors = Vectors,
    Fault = Fault,
);

/// Appends the answer to an echo: the content of the frame that was validated.
pub fn echoed(out: &mut Vec<u8>, validated: Frame<'_>) {
    debug_assert_eq!(validated.kind, Kind::Echo);
    let start = frame::begin(out, Kind::Echoed);
    out.extend_from_slice(validated.payload);
    frame::end(out, start);
}

/// A validated frame of a client.
pub enum ClientFrame<'a> {
    /// Who speaks.
    Hello(&'a ArchivedHello),
    /// Say this back.
    Echo(&'a ArchivedEcho),
    /// Answer this.
    Chat(&'a ArchivedChat),
    /// Embed these.
    Embed(&'a ArchivedEmbed),
}

impl<'a> ClientFrame<'a> {
    /// Validates the payload where it lies.
    pub fn read(frame: Frame<'a>) -> Result<Self, FrameError> {
        Ok(match frame.kind {
            Kind::Hello => Self::Hello(access(frame)?),
            Kind::Echo => Self::Echo(access(frame)?),
            Kind::Chat => Self::Chat(access(frame)?),
            Kind::Embed => Self::Embed(access(frame)?),
            other => {
                debug_assert_eq!(other.sender(), Side::Server);
                return Err(FrameError::WrongSide(other));
            }
        })
    }
}

/// A validated frame of a server.
pub enum ServerFrame<'a> {
    /// The connection may be used.
    Welcome(&'a ArchivedWelcome),
    /// What was sent.
    Echoed(&'a ArchivedEcho),
    /// The model has begun.
    Started(&'a ArchivedStarted),
    /// More text.
    Delta(&'a ArchivedDelta),
    /// For people.
    Notice(&'a ArchivedNotice),
    /// The answer is complete.
    Done(&'a ArchivedDone),
    /// Embeddings.
    Vectors(&'a ArchivedVectors),
    /// The request failed.
    Fault(&'a ArchivedFault),
}

impl<'a> ServerFrame<'a> {
    /// Validates the payload where it lies.
    pub fn read(frame: Frame<'a>) -> Result<Self, FrameError> {
        Ok(match frame.kind {
            Kind::Welcome => Self::Welcome(access(frame)?),
            Kind::Echoed => Self::Echoed(access(frame)?),
            Kind::Started => Self::Started(access(frame)?),
            Kind::Delta => Self::Delta(access(frame)?),
            Kind::Notice => Self::Notice(access(frame)?),
            Kind::Done => Self::Done(access(frame)?),
            Kind::Vectors => Self::Vectors(access(frame)?),
            Kind::Fault => Self::Fault(access(frame)?),
            other => return Err(FrameError::WrongSide(other)),
        })
    }
}

fn access<'a, T>(frame: Frame<'a>) -> Result<&'a T, FrameError>
where
    T: Portable + for<'b> CheckBytes<HighValidator<'b, rancor::Failure>>,
{
    // `Failure` carries nothing: an error text for each bad frame of a hostile peer would cost more than the check.
    rkyv::access::<T, rancor::Failure>(frame.payload).map_err(|_| FrameError::Invalid(frame.kind))
}
