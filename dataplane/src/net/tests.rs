//! Connections over real sockets and a real reactor, on every back end that the kernel allows.
//! The client is raw TCP: what is tested is bytes on the wire.

mod crowd;
mod tls;

use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use millrace_proto::api::ApiError;
use millrace_proto::http1::{BodyDecoder, BodyFraming, RequestHead, parse_response};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::accept::accept_loop;
use super::line::Line;
use super::wire::Reader;
use super::*;
use crate::net::tls::Tls;
use crate::obs::{Metrics, Route};
use crate::shard::reactor::{self, Backend, Preference};

/// Every wait in these tests ends with this, so that a failure is a failure and not a hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// A service whose answers show what it was given.
struct Probe {
    net: Rc<Net>,
    /// Told when a handler that waits for ever was dropped.
    left: mpsc::Sender<()>,
}

struct TellOnDrop(mpsc::Sender<()>);

impl Drop for TellOnDrop {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

impl Service for Probe {
    type Plan = ();
    type Upgrade = ();
    type Memo = ();

    fn admit(&self, head: &RequestHead, _: Arrival, (): &mut ()) -> Result<Admitted<()>, Refused> {
        let path = head.path();
        if path == "/refused" {
            let error = ApiError::unauthorized("no key");
            return Err(Refused { response: Response::error(&error), metric: Route::Unknown });
        }
        Ok(Admitted {
            plan: (),
            metric: Route::Unknown,
            body_bytes_max: 1_000,
            cancel_on_leave: ["/forever", "/wait", "/patient"].contains(&path),
            immediate: path == "/now",
        })
    }

    async fn serve(&self, (): (), request: Request<'_>, out: &mut Outgoing) -> Next<()> {
        match request.head.path() {
            "/echo" => out.respond(Response::json(200, request.body.to_vec())),
            "/slow" => {
                monoio::time::sleep(Duration::from_millis(30)).await;
                out.respond(Response::fixed(200, "text/plain", b"slow"));
            }
            "/until-drain" => {
                while !self.net.draining.get() {
                    monoio::time::sleep(Duration::from_millis(2)).await;
                }
                out.respond(Response::fixed(200, "text/plain", b"drained"));
            }
            "/stream" => {
                out.begin_stream("text/event-stream", &[]);
                for part in ["one", "two", "three"] {
                    out.stream(part.as_bytes());
                    if out.flush().await.is_err() {
                        return Next::Continue;
                    }
                }
                out.end_stream();
            }
            "/forever" => {
                let _told = TellOnDrop(self.left.clone());
                out.begin_stream("text/event-stream", &[]);
                out.stream(b"begun");
                while out.flush().await.is_ok() {
                    monoio::time::sleep(Duration::from_millis(5)).await;
                    out.stream(b".");
                }
            }
            "/wait" => {
                let _told = TellOnDrop(self.left.clone());
                std::future::pending::<()>().await;
            }
            "/patient" => {
                monoio::time::sleep(Duration::from_millis(60)).await;
                out.respond(Response::fixed(200, "text/plain", b"patience"));
            }
            "/panic" => panic!("as asked"),
            path => out.respond(Response::json(200, path.as_bytes().to_vec())),
        }
        Next::Continue
    }

    fn upgraded(&self, (): (), _: Reader, _: Vec<u8>, _: Outgoing, _: Rc<Line>) -> impl Future<Output = ()> {
        std::future::ready(())
    }
}

struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    drain: Arc<AtomicBool>,
    /// Connections that are open, as of the last tick.
    open: Arc<AtomicUsize>,
    left: mpsc::Receiver<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    fn start(backend: Backend, limits: Limits) -> Self {
        Self::start_with(backend, limits, None)
    }

    fn start_with(backend: Backend, limits: Limits, tls: Option<Arc<Tls>>) -> Self {
        let mut listeners = listen(SocketAddr::from(([127, 0, 0, 1], 0)), 1).expect("listen");
        let (stop, drain) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let open = Arc::new(AtomicUsize::new(0));
        let (told, left) = mpsc::channel();
        let (stopped, drained, opened) = (stop.clone(), drain.clone(), open.clone());
        let listener = listeners.sockets.remove(0);
        let thread = std::thread::spawn(move || {
            reactor::build(backend).expect("reactor").block_on(async move {
                listener.set_nonblocking(backend == Backend::Epoll).expect("mode");
                let listener = monoio::net::TcpListener::from_std(listener).expect("listener");
                let net = Net::new(0, limits, Arc::new(Metrics::new(1)), String::new());
                let service = Rc::new(Probe { net: net.clone(), left: told });
                let accepted = net.clone();
                drop(monoio::spawn(accept_loop(net.clone(), listener, move |stream, peer| {
                    let (net, service, tls) = (accepted.clone(), service.clone(), tls.clone());
                    drop(monoio::spawn(connection::run(net, service, stream, peer.ip(), tls)));
                })));
                while !stopped.load(Ordering::Acquire) {
                    net.tick();
                    opened.store(net.lines.len(), Ordering::Release);
                    if drained.load(Ordering::Acquire) && !net.draining.get() {
                        net.drain();
                    }
                    monoio::time::sleep(Duration::from_millis(5)).await;
                }
                net.lines.stop();
                monoio::time::sleep(Duration::from_millis(20)).await;
            });
        });
        Self { address: listeners.address, stop, drain, open, left, thread: Some(thread) }
    }

    /// Waits until so many connections are open.
    fn await_open(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.open.load(Ordering::Acquire) != count {
            assert!(Instant::now() < deadline, "{} connections are open", self.open.load(Ordering::Acquire));
            std::thread::yield_now();
        }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_nodelay(true).expect("nodelay");
        Client { stream, input: Vec::new() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.expect("the reactor ended well");
            }
        }
    }
}

struct Client {
    stream: TcpStream,
    input: Vec<u8>,
}

#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    keep_alive: bool,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).and_then(|(_, value)| std::str::from_utf8(value).ok())
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("text")
    }
}

impl Client {
    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // A server that has refused already may have closed: the answer tells.
        let _ = self.stream.write_all(bytes.as_ref());
    }

    fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
        self.answer()
    }

    /// Reads one answer; panics when the connection ends before it.
    fn answer(&mut self) -> Answer {
        self.try_answer(false).expect("an answer")
    }

    fn try_answer(&mut self, to_head: bool) -> Option<Answer> {
        let head = loop {
            if let Some(head) = parse_response(&self.input).expect("a well-formed answer") {
                break head;
            }
            if self.more() == 0 {
                assert!(self.input.is_empty(), "half an answer: {:?}", String::from_utf8_lossy(&self.input));
                return None;
            }
        };
        self.input.drain(..head.head_bytes);
        let framing = if to_head { BodyFraming::None } else { head.framing };
        let mut decoder = BodyDecoder::new(framing, 1 << 24).expect("framing");
        let mut body = Vec::new();
        while !decoder.is_done() {
            let progress = decoder.decode(&self.input, &mut body).expect("a well-framed body");
            self.input.drain(..progress.consumed);
            if !progress.done && self.more() == 0 {
                assert!(decoder.done_at_close(), "half a body");
                break;
            }
        }
        Some(Answer { status: head.status, keep_alive: head.keep_alive, headers: head.headers, body })
    }

    fn more(&mut self) -> usize {
        let mut buffer = [0u8; 4096];
        match self.stream.read(&mut buffer) {
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                count
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            // A paused and resumed machine interrupts reads that have a timeout.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => self.more(),
            Err(error) => panic!("no byte within {PATIENCE:?}: {error}"),
        }
    }

    fn assert_closed(&mut self) {
        assert!(self.input.is_empty(), "more than one answer: {:?}", String::from_utf8_lossy(&self.input));
        assert_eq!(self.more(), 0, "the connection is still open: {:?}", String::from_utf8_lossy(&self.input));
    }
}

/// Runs a test on every back end; a kernel without io_uring leaves epoll.
fn on_every_backend(limits: Limits, test: impl Fn(&Server)) {
    let best = reactor::probe(Preference::Auto).expect("a back end").backend;
    let mut backends = vec![Backend::Epoll];
    if best != Backend::Epoll {
        backends.push(best);
    }
    for backend in backends {
        println!("on {backend}");
        test(&Server::start(backend, limits));
    }
}

fn quick() -> Limits {
    Limits {
        head: Duration::from_millis(150),
        body: Duration::from_millis(150),
        idle: Duration::from_millis(150),
        ..Limits::default()
    }
}

/// A seed for a random test, printed so that a failure can be repeated.
fn new_seed() -> u64 {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).expect("random bytes");
    let seed = u64::from_le_bytes(bytes);
    println!("seed {seed}");
    seed
}

#[test]
fn a_connection_serves_many_requests_and_pipelined_ones_in_order() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        assert_eq!(client.get("/a").text(), "/a");
        assert_eq!(client.get("/now").text(), "/now");
        let mut all = String::new();
        for path in ["/now", "/b", "/slow", "/stream", "/now", "/c"] {
            all += &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        }
        client.send(all);
        for expected in ["/now", "/b", "slow", "onetwothree", "/now", "/c"] {
            assert_eq!(client.answer().text(), expected);
        }
    });
}

#[test]
fn bodies_arrive_whole_in_either_framing() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!(client.answer().text(), "hello");
        client.send(
            "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
        );
        assert_eq!(client.answer().text(), "hello");
        client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\nGET /next HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.answer().text(), "");
        assert_eq!(client.answer().text(), "/next");
    });
}

#[test]
fn however_the_bytes_are_cut_the_answers_are_the_same() {
    let seed = new_seed();
    let wire = "GET /now HTTP/1.1\r\nHost: x\r\n\r\n\
        POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 11\r\n\r\nhello world\
        POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n1\r\ne\r\n0\r\nT: 1\r\n\r\n\
        GET /stream HTTP/1.1\r\nHost: x\r\n\r\n";
    on_every_backend(Limits::default(), |server| {
        let mut random = SmallRng::seed_from_u64(seed);
        for _ in 0..24 {
            let mut client = server.connect();
            let mut rest = wire.as_bytes();
            while !rest.is_empty() {
                let cut = random.random_range(1..=rest.len().min(40));
                client.send(&rest[..cut]);
                rest = &rest[cut..];
            }
            for expected in ["/now", "hello world", "abcde", "onetwothree"] {
                assert_eq!(client.answer().text(), expected);
            }
        }
    });
}

#[test]
fn a_client_that_waits_for_100_continue_is_told_to_go_on_or_refused_at_once() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
        assert_eq!(client.answer().status, 100);
        client.send("ok");
        assert_eq!(client.answer().text(), "ok");
        client.send("POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.status, answer.keep_alive), (401, false));
    });
}

#[test]
fn a_body_over_the_cap_is_413_in_either_framing() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n");
        assert_eq!(client.answer().status, 413);
        client.stream.shutdown(Shutdown::Write).expect("shutdown");
        client.assert_closed();
        let mut client = server.connect();
        client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n");
        client.send([b'x'; 1_000]);
        client.send("\r\n1\r\n");
        assert_eq!(client.answer().status, 413);
    });
}

#[test]
fn head_has_the_length_and_no_body() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        client.send("HEAD /some HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.try_answer(true).expect("an answer");
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("5")));
        assert_eq!(client.get("/next").text(), "/next");
    });
}

#[test]
fn an_old_client_gets_a_stream_that_ends_with_the_connection() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        client.send("GET /stream HTTP/1.0\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.text(), answer.keep_alive), ("onetwothree", false));
        assert_eq!(answer.header("transfer-encoding"), None);
        let mut client = server.connect();
        client.send("GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        assert_eq!(client.answer().header("connection"), Some("keep-alive"));
        assert_eq!(client.get("/b").text(), "/b");
    });
}

#[test]
fn a_request_id_is_honoured_or_made() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        client.send("GET /a HTTP/1.1\r\nHost: x\r\nX-Request-Id: abc-1\r\n\r\n");
        assert_eq!(client.answer().header("x-request-id"), Some("abc-1"));
        let made = client.get("/a").header("x-request-id").expect("an id").to_owned();
        assert!(made.starts_with("req-") && Some(made.as_str()) != client.get("/a").header("x-request-id"));
    });
}

#[test]
fn malformed_requests_are_refused_and_end_the_connection() {
    let long_target = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(9_000));
    let long_head = format!("GET / HTTP/1.1\r\nHost: x\r\nA: {}\r\n\r\n", "a".repeat(40_000));
    let many = format!("GET / HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(200));
    let corpus: Vec<(&str, &[u8])> = vec![
        ("no host", b"GET / HTTP/1.1\r\n\r\n"),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        ("two lengths", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        ("length with sign", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\na"),
        ("negative length", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
        ("huge length", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        ("hex length", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\na"),
        ("length list", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\na"),
        (
            "length and chunked",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        ("unknown coding", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n"),
        ("chunked not last", b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, gzip\r\n\r\n"),
        (
            "chunked twice",
            b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ),
        ("spaced header name", b"GET / HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n"),
        ("folded header", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n"),
        ("bare line feeds", b"GET / HTTP/1.1\nHost: x\n\n"),
        ("bare carriage return", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n"),
        ("nul", b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n"),
        ("no version", b"GET /\r\n\r\n"),
        ("wrong version", b"GET / HTTP/3.0\r\nHost: x\r\n\r\n"),
        ("half an http2 preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
        ("tls hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        ("no path", b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("other authority", b"GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("unknown expectation", b"GET / HTTP/1.1\r\nHost: x\r\nExpect: 200-ok\r\n\r\n"),
        (
            "chunk size overflow",
            b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        ),
        (
            "chunk with line feed",
            b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
        ),
        (
            "chunk longer than said",
            b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        ),
        (
            "chunk size with sign",
            b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
        ),
        ("long target", long_target.as_bytes()),
        ("long head", long_head.as_bytes()),
        ("many headers", many.as_bytes()),
    ];
    on_every_backend(Limits::default(), |server| {
        for (name, bytes) in &corpus {
            let mut client = server.connect();
            client.send(bytes);
            let answer = client.try_answer(false).unwrap_or_else(|| panic!("{name}: no answer"));
            assert!((400..=505).contains(&answer.status) && !answer.keep_alive, "{name}: {answer:?}");
            let value: serde_json::Value =
                serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{name}: {answer:?}"));
            assert!(
                value["error"]["message"].is_string() && answer.header("x-request-id").is_some(),
                "{name}: {answer:?}"
            );
            client.stream.shutdown(Shutdown::Write).expect("shutdown");
            client.assert_closed();
        }
        // The server has survived them all.
        assert_eq!(server.connect().get("/a").text(), "/a");
    });
}

#[test]
fn random_bytes_never_take_the_server_down() {
    let seed = new_seed();
    on_every_backend(Limits::default(), |server| {
        let mut random = SmallRng::seed_from_u64(seed);
        let valid = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        for _ in 0..60 {
            let mut bytes = valid.to_vec();
            for _ in 0..random.random_range(1..4) {
                let place = random.random_range(0..bytes.len());
                bytes[place] = random.random();
            }
            let mut client = server.connect();
            client.send(&bytes);
            client.stream.shutdown(Shutdown::Write).expect("shutdown");
            while client.try_answer(false).is_some() {}
        }
        assert_eq!(server.connect().get("/a").text(), "/a");
    });
}

#[test]
fn a_slow_head_a_slow_body_and_an_idle_connection_are_cut() {
    on_every_backend(quick(), |server| {
        let mut slow_head = server.connect();
        slow_head.send("GET / HTT");
        let answer = slow_head.answer();
        assert_eq!((answer.status, answer.keep_alive), (408, false));
        slow_head.assert_closed();

        let mut slow_body = server.connect();
        slow_body.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc");
        assert_eq!(slow_body.answer().status, 408);
        slow_body.assert_closed();

        let mut silent = server.connect();
        silent.assert_closed();

        let mut idle = server.connect();
        assert_eq!(idle.get("/a").status, 200);
        idle.assert_closed();
    });
}

#[test]
fn a_byte_now_and_then_does_not_extend_the_deadline_of_a_head() {
    on_every_backend(quick(), |server| {
        let mut client = server.connect();
        client.stream.set_read_timeout(Some(Duration::from_millis(20))).expect("timeout");
        let started = std::time::Instant::now();
        for byte in b"GET /a-target-that-never-ends-and-goes-on-and-on-and-on-and-on-and-on-and-on".iter().cycle() {
            client.send([*byte]);
            let mut buffer = [0u8; 1024];
            match client.stream.read(&mut buffer) {
                Ok(count) => {
                    assert!(buffer[..count].starts_with(b"HTTP/1.1 408 "));
                    break;
                }
                Err(_) => assert!(started.elapsed() < PATIENCE, "the trickle was never cut"),
            }
        }
    });
}

#[test]
fn a_client_that_leaves_cancels_its_work() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        client.send("GET /forever HTTP/1.1\r\nHost: x\r\n\r\n");
        while !client.input.windows(5).any(|bytes| bytes == b"begun") {
            assert_ne!(client.more(), 0);
        }
        assert!(server.left.try_recv().is_err(), "the work goes on while the client stays");
        drop(client);
        server.left.recv_timeout(PATIENCE).expect("the work was dropped");
    });
}

#[test]
fn a_broken_connection_cancels_a_whole_answer_at_once() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
        // A lingering time of zero makes the close a reset.
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("linger");
        drop(client);
        server.left.recv_timeout(PATIENCE).expect("the work was dropped");
    });
}

#[test]
fn a_client_that_has_finished_sending_still_gets_its_answer() {
    on_every_backend(Limits::default(), |server| {
        for (path, body) in [("/patient", "patience"), ("/stream", "onetwothree"), ("/now", "/now")] {
            let mut client = server.connect();
            client.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
            client.stream.shutdown(Shutdown::Write).expect("shutdown");
            assert_eq!(client.answer().text(), body);
            client.assert_closed();
        }
    });
}

#[test]
fn bytes_that_come_while_work_goes_on_are_the_next_request() {
    on_every_backend(Limits::default(), |server| {
        let mut client = server.connect();
        client.send("GET /forever HTTP/1.1\r\nHost: x\r\n\r\n");
        while !client.input.windows(5).any(|bytes| bytes == b"begun") {
            assert_ne!(client.more(), 0);
        }
        client.send("GET /next HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(server.left.recv_timeout(Duration::from_millis(100)).is_err(), "a next request is no leaving");
        drop(client);
        server.left.recv_timeout(PATIENCE).expect("the work was dropped");
    });
}

#[test]
fn a_panic_ends_its_own_connection_only() {
    on_every_backend(Limits::default(), |server| {
        let mut bystander = server.connect();
        assert_eq!(bystander.get("/a").status, 200);
        let mut client = server.connect();
        client.send("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n");
        client.assert_closed();
        assert_eq!(bystander.get("/b").text(), "/b");
    });
}

#[test]
fn beyond_the_gate_there_is_a_quick_503() {
    on_every_backend(Limits { connections_max: 2, ..Limits::default() }, |server| {
        let mut inside = [server.connect(), server.connect()];
        for client in &mut inside {
            assert_eq!(client.get("/a").status, 200);
        }
        let mut outside = server.connect();
        let answer = outside.answer();
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
        outside.assert_closed();
        drop(inside);
        // A place becomes free as soon as the server has seen the leaving.
        let started = std::time::Instant::now();
        while server.connect().get("/a").status != 200 {
            assert!(started.elapsed() < PATIENCE, "no place became free");
        }
    });
}

#[test]
fn a_drain_closes_idle_connections_finishes_busy_ones_and_accepts_nobody() {
    on_every_backend(Limits::default(), |server| {
        let mut idle = server.connect();
        assert_eq!(idle.get("/a").status, 200);
        let mut busy = server.connect();
        busy.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /until-drain HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(busy.answer().status, 200);
        server.drain.store(true, Ordering::Release);
        idle.assert_closed();
        let answer = busy.answer();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        busy.assert_closed();
        let started = std::time::Instant::now();
        while let Ok(stream) = TcpStream::connect(server.address) {
            drop(stream);
            assert!(started.elapsed() < PATIENCE, "still accepting");
        }
    });
}
