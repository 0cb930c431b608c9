//! Fake messenger platforms: a real HTTP server on a free port that records what reaches it and
//! answers as the test says (slowly, with 429, with 500, not at all).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// One request that reached the platform.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The path with its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The raw body.
    pub body: Vec<u8>,
    /// When it was complete.
    pub at: Instant,
    /// What it was answered.
    pub answered: u16,
}

impl Seen {
    /// The first value of a header; empty when it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// The body as JSON; `Null` when it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// How the platform answers one request.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code; 0 closes the connection without an answer.
    pub status: u16,
    /// Extra headers, each `Name: value`.
    pub headers: Vec<String>,
    /// The JSON body.
    pub body: String,
    /// How long to wait before answering.
    pub delay: Duration,
}

impl Answer {
    /// An answer with a status and a JSON body, at once.
    pub fn new(status: u16, body: impl Into<String>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), delay: Duration::ZERO }
    }

    /// Adds a header line.
    pub fn header(mut self, line: &str) -> Self {
        self.headers.push(line.to_owned());
        self
    }

    /// Waits before answering.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

/// What the paths of typing signs hold (Telegram, Matrix and Discord, LINE).
const TYPING: [&str; 3] = ["/sendChatAction", "/typing", "/loading/start"];

type Behaviour = dyn Fn(&Seen, usize) -> Answer + Send + Sync;

struct Shared {
    seen: Mutex<Vec<Seen>>,
    /// Typing signs: they say nothing, so they are kept apart.
    typing: Mutex<Vec<Seen>>,
    arrived: Condvar,
    behaviour: Box<Behaviour>,
}

/// A fake platform. It lives until the process ends; a test makes its own.
pub struct Platform {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Platform {
    /// Starts one. `behaviour` gets each request and how many came before it.
    ///
    /// # Panics
    /// When no port is free.
    pub fn start(behaviour: impl Fn(&Seen, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound address");
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            typing: Mutex::default(),
            arrived: Condvar::new(),
            behaviour: Box::new(behaviour),
        });
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&served);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, shared }
    }

    /// A fake Telegram Bot API that accepts every message.
    pub fn telegram() -> Self {
        Self::start(|_, earlier| Answer::new(200, telegram_sent(earlier)))
    }

    /// A webhook receiver that accepts everything.
    pub fn webhook() -> Self {
        Self::start(|_, _| Answer::new(204, ""))
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that arrived so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The typing signs that were shown so far.
    pub fn typing(&self) -> Vec<Seen> {
        self.shared.typing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `count` requests that fit have arrived and returns them.
    ///
    /// # Panics
    /// When they do not arrive in time.
    pub fn wait(&self, what: &str, count: usize, limit: Duration, fits: impl Fn(&Seen) -> bool) -> Vec<Seen> {
        let deadline = Instant::now() + limit;
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let fitting: Vec<Seen> = seen.iter().filter(|one| fits(one)).cloned().collect();
            if fitting.len() >= count {
                return fitting;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{what}: {} of {count} within {limit:?}; all that arrived: {seen:#?}",
                fitting.len()
            );
            seen = self.shared.arrived.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What Telegram answers to a `sendMessage` that worked.
pub fn telegram_sent(message_id: usize) -> String {
    format!(
        r#"{{"ok":true,"result":{{"message_id":{},"date":1700000000,"chat":{{"id":1,"type":"private"}},"text":"."}}}}"#,
        message_id + 1
    )
}

fn serve(stream: TcpStream, shared: &Shared) {
    let mut reader = BufReader::new(stream);
    while let Some(mut seen) = read_request(&mut reader) {
        if TYPING.iter().any(|sign| seen.path.contains(sign)) {
            shared.typing.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
            if write_answer(reader.get_mut(), &Answer::new(200, r#"{"ok":true,"result":true}"#)).is_err() {
                return;
            }
            continue;
        }
        let answer = {
            let earlier = shared.seen.lock().unwrap_or_else(PoisonError::into_inner).len();
            (shared.behaviour)(&seen, earlier)
        };
        seen.answered = answer.status;
        shared.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        shared.arrived.notify_all();
        std::thread::sleep(answer.delay);
        if answer.status == 0 || write_answer(reader.get_mut(), &answer).is_err() {
            return;
        }
    }
}

fn write_answer(stream: &mut TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Answer\r\nContent-Type: application/json\r\n", answer.status);
    for line in &answer.headers {
        head.push_str(line);
        head.push_str("\r\n");
    }
    if answer.status == 204 {
        head.push_str("\r\n");
    } else {
        head.push_str(&format!("Content-Length: {}\r\n\r\n{}", answer.body.len(), answer.body));
    }
    stream.write_all(head.as_bytes())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut line = String::new();
    let first = (reader.read_line(&mut line).ok()? > 0).then(|| line.trim_end().to_owned())?;
    let path = first.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let text = line.trim_end();
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(':')?;
        let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
        if name == "content-length" {
            length = value.parse().ok()?;
        }
        headers.push((name, value));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(Seen { path, headers, body, at: Instant::now(), answered: 0 })
}
