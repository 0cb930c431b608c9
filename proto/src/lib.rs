//! The protocol core of Millrace: it turns bytes into meaning and meaning back into bytes.
//!
//! What it never does: it opens no socket and no file, reads no clock, starts no thread and draws no
//! random number. Time, jitter and keys come in as arguments, so every function here can be driven by
//! a test, a simulator or a fuzzer exactly as the server drives it.
//!
//! Main types: [`http1::RequestHead`] and [`ws::Decoder`] (the wire), [`api::ChatRequest`] and
//! [`api::ApiError`] (the OpenAI-shaped API), [`oauth`] (clients and tokens), [`channel::Account`] (messengers and webhooks),
//! [`document`] (files into passages), [`backup::Manifest`] (what a backup holds), [`record`] (what is stored), [`id`] (who and where).

pub mod api;
pub mod backup;
pub mod channel;
pub mod date;
pub mod digest;
pub mod document;
pub mod gcra;
pub mod gm;
pub mod http1;
pub mod http2;
pub mod http3;
pub mod id;
pub mod limits;
pub mod native;
pub mod oauth;
pub mod record;
pub mod retry;
pub mod split;
pub mod sse;
pub mod statement;
pub mod toolcall;
pub mod ws;
