//! Helpers of the tests in this folder.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millrace_inference::gguf::Gguf;
use millrace_inference::{FinishReason, Outlet, Output, Request, Sampling, Timings, TokenOut, Usage};

/// Longer than any step of any test, so that a hang fails instead of blocking.
const PATIENCE: Duration = Duration::from_secs(300);

/// A model file or folder; prints why a test does nothing when it is missing.
pub fn model_path(name: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("MILLRACE_MODELS").map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME")?;
        Some(PathBuf::from(home).join(".cache/millrace/models"))
    })?;
    let path = folder.join(name);
    if !path.exists() {
        eprintln!("SKIPPED: {} does not exist; set MILLRACE_MODELS", path.display());
        return None;
    }
    Some(path)
}

pub const LANGUAGE_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

pub fn language_model() -> Option<Gguf> {
    model_path(LANGUAGE_MODEL).map(|path| Gguf::open(&path).expect("the model file opens"))
}

/// A recorded reference beside these tests.
pub fn reference(name: &str) -> serde_json::Value {
    let path = PathBuf::from("tests/data").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).expect("the reference is JSON")
}

pub fn ids(value: &serde_json::Value) -> Vec<u32> {
    let array = value.as_array().expect("an array of ids");
    array.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// Everything that one request produced.
#[derive(Debug, Default)]
pub struct Reply {
    pub started: Option<u32>,
    pub text: String,
    pub tokens: Vec<TokenOut>,
    pub deltas: usize,
    pub done: Option<(FinishReason, Usage, Timings)>,
}

impl Reply {
    pub fn reason(&self) -> &FinishReason {
        &self.done.as_ref().expect("the request is over").0
    }

    pub fn usage(&self) -> Usage {
        self.done.as_ref().expect("the request is over").1
    }
}

/// An outlet for one request that can be waited for.
pub struct Listener {
    events: Receiver<Event>,
}

enum Event {
    Output(Output),
    Wake,
}

struct Channel {
    sender: Mutex<Sender<Event>>,
    ticket: u64,
}

impl Outlet for Channel {
    fn push(&self, ticket: u64, output: Output) {
        assert_eq!(ticket, self.ticket, "outputs carry the ticket of their request");
        // A test that stopped listening does not care.
        let _ = self.sender.lock().expect("not poisoned").send(Event::Output(output));
    }

    fn wake(&self) {
        let _ = self.sender.lock().expect("not poisoned").send(Event::Wake);
    }
}

impl Listener {
    /// Waits for the end of the request.
    pub fn finish(self) -> Reply {
        let mut reply = Reply::default();
        while !self.step(&mut reply) {}
        reply
    }

    /// Waits until the reply has some text, or is over.
    pub fn until_text(&self) -> Reply {
        let mut reply = Reply::default();
        while reply.text.is_empty() && !self.step(&mut reply) {}
        reply
    }

    /// Takes in one event; true when the request is over.
    pub fn step(&self, reply: &mut Reply) -> bool {
        match self.events.recv_timeout(PATIENCE).expect("the engine answers") {
            Event::Wake => reply.done.is_some(),
            Event::Output(output) => {
                assert!(reply.done.is_none(), "nothing follows Done");
                match output {
                    Output::Started { cached_tokens } => {
                        assert!(reply.started.replace(cached_tokens).is_none(), "a request starts once");
                    }
                    Output::Delta { text, tokens } => {
                        reply.text.push_str(&text);
                        reply.tokens.extend(tokens);
                        reply.deltas += 1;
                    }
                    Output::Done { reason, usage, timings } => reply.done = Some((reason, usage, timings)),
                }
                false
            }
        }
    }
}

/// A greedy request for this prompt and the listener for its reply.
pub fn request(prompt: Vec<u32>, max_tokens: u32) -> (Request, Listener) {
    let (sender, events) = channel();
    let outlet = Arc::new(Channel { sender: Mutex::new(sender), ticket: 7 });
    let request = Request {
        ticket: 7,
        prompt,
        sampling: Sampling::greedy(),
        max_tokens,
        stop: Vec::new(),
        ignore_eos: false,
        constraint: None,
        top_logprobs: None,
        deadline: None,
        cache_salt: 0,
        tenant: 0,
        weight: 1,
        background: false,
        outlet,
    };
    (request, Listener { events })
}

/// Polls for a condition that another thread brings about.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::yield_now();
    }
}
