//! `/metrics`, `/healthz` and `/readyz` on a port and a thread of their own, so that they answer while
//! every reactor is busy.
//!
//! The server multiplexes a bounded number of clients with `poll(2)`. Each client has one deadline for its
//! whole exchange; when all places are taken the oldest client is dropped, so that clients that never send
//! (or never read) cannot keep a scraper out.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Health, Metrics};

/// Clients served at the same time.
const CLIENTS_MAX: usize = 64;
/// Bytes of a request head; scrapers send a few hundred.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Time of one whole exchange.
const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// How long one wait may last: bounds the delay of a stop.
const POLL_MS: i32 = 200;

/// A running metrics server; dropping it stops the thread.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// The bound address (the real port when 0 was asked).
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Binds `address` and starts the thread.
pub fn start(address: SocketAddr, metrics: Arc<Metrics>, health: Arc<Health>) -> io::Result<Server> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let serve = move || Loop { listener, metrics, health, clients: Vec::with_capacity(CLIENTS_MAX) }.run(&stopped);
    let thread = std::thread::Builder::new().name("metrics".into()).stack_size(512 * 1024).spawn(serve)?;
    Ok(Server { address, stop, thread: Some(thread) })
}

struct Client {
    stream: TcpStream,
    deadline: Instant,
    head: Vec<u8>,
    answer: Vec<u8>,
    sent: usize,
}

enum Progress {
    Open,
    Finished,
}

struct Loop {
    listener: TcpListener,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    clients: Vec<Client>,
}

impl Loop {
    fn run(mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Acquire) {
            let mut waits = Vec::with_capacity(self.clients.len() + 1);
            waits.push((self.listener.as_raw_fd(), false));
            waits.extend(self.clients.iter().map(|client| (client.stream.as_raw_fd(), !client.answer.is_empty())));
            poll::wait(&waits, POLL_MS);
            self.accept();
            let now = Instant::now();
            let mut at = 0;
            while at < self.clients.len() {
                let step = advance(&mut self.clients[at], &self.metrics, &self.health);
                let late = now >= self.clients[at].deadline;
                if late || !matches!(step, Ok(Progress::Open)) {
                    self.clients.remove(at);
                } else {
                    at += 1;
                }
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            if self.clients.len() == CLIENTS_MAX {
                self.clients.remove(0);
            }
            let deadline = Instant::now() + EXCHANGE_MAX;
            self.clients.push(Client { stream, deadline, head: Vec::new(), answer: Vec::new(), sent: 0 });
        }
    }
}

fn advance(client: &mut Client, metrics: &Metrics, health: &Health) -> io::Result<Progress> {
    if client.answer.is_empty() {
        let mut chunk = [0; 2048];
        loop {
            match client.stream.read(&mut chunk) {
                Ok(0) => return Ok(Progress::Finished),
                Ok(count) => client.head.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if client.head.len() > HEAD_BYTES_MAX {
                break;
            }
        }
        match answer_to(&client.head, metrics, health) {
            Some(answer) => client.answer = answer,
            None => return Ok(Progress::Open),
        }
    }
    while client.sent < client.answer.len() {
        match client.stream.write(&client.answer[client.sent..]) {
            Ok(0) => return Ok(Progress::Finished),
            Ok(count) => client.sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Open),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let _ = client.stream.shutdown(std::net::Shutdown::Write);
    Ok(Progress::Finished)
}

/// The whole answer once the head is complete, `None` while more must come.
fn answer_to(head: &[u8], metrics: &Metrics, health: &Health) -> Option<Vec<u8>> {
    if head.len() > HEAD_BYTES_MAX {
        return Some(reply(
            "431 Request Header Fields Too Large",
            TEXT,
            "the request head is larger than 8 KiB\n",
            true,
        ));
    }
    let mut slots = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut slots);
    match request.parse(head) {
        Ok(httparse::Status::Partial) => return None,
        Err(error) => return Some(reply("400 Bad Request", TEXT, &format!("not an HTTP request: {error}\n"), true)),
        Ok(httparse::Status::Complete(_)) => {}
    }
    let method = request.method.unwrap_or("");
    let with_body = method != "HEAD";
    if !matches!(method, "GET" | "HEAD") {
        return Some(reply("405 Method Not Allowed", TEXT, "only GET and HEAD are served here\n", true));
    }
    let path = request.path.unwrap_or("").split('?').next().unwrap_or("");
    Some(match path {
        "/metrics" => reply("200 OK", "text/plain; version=0.0.4; charset=utf-8", &metrics.render(health), with_body),
        "/healthz" => reply("200 OK", TEXT, "ok\n", with_body),
        "/readyz" if health.is_ready() => reply("200 OK", TEXT, "ready\n", with_body),
        "/readyz" => reply("503 Service Unavailable", TEXT, &format!("{}\n", health.reason()), with_body),
        _ => reply("404 Not Found", TEXT, "served here: /metrics, /healthz, /readyz\n", with_body),
    })
}

const TEXT: &str = "text/plain; charset=utf-8";

fn reply(status: &str, content_type: &str, body: &str, with_body: bool) -> Vec<u8> {
    let length = body.len();
    let body = if with_body { body } else { "" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

mod poll {
    //! The one foreign call of this server.
    #![allow(unsafe_code)]

    use std::os::fd::RawFd;

    /// Waits until one of the descriptors is readable (or writable, where the flag says so).
    pub(super) fn wait(waits: &[(RawFd, bool)], timeout_ms: i32) {
        let mut fds: Vec<libc::pollfd> = waits
            .iter()
            .map(|(fd, write)| {
                let events = if *write { libc::POLLOUT } else { libc::POLLIN };
                libc::pollfd { fd: *fd, events, revents: 0 }
            })
            .collect();
        // SAFETY: poll(2) reads and writes exactly `fds.len()` entries of a live, exclusively borrowed array;
        // an error or an early return only makes the caller look at its non-blocking sockets once more.
        unsafe {
            libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started() -> (Server, Arc<Health>) {
        let health = Arc::new(Health::new());
        let server = start("127.0.0.1:0".parse().unwrap(), Arc::new(Metrics::new(1)), Arc::clone(&health)).unwrap();
        (server, health)
    }

    fn ask(server: &Server, request: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn readiness_follows_health_and_metrics_are_prometheus_text() {
        let (server, health) = started();
        assert!(ask(&server, "GET /healthz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
        let starting = ask(&server, "GET /readyz HTTP/1.1\r\n\r\n");
        assert!(starting.starts_with("HTTP/1.1 503 ") && starting.ends_with("starting\n"), "{starting}");
        health.set_ready();
        assert!(ask(&server, "GET /readyz?x=1 HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
        let metrics = ask(&server, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(metrics.contains("version=0.0.4") && metrics.contains("\nmillrace_ready 1\n"), "{metrics}");
        assert!(ask(&server, "GET /other HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(ask(&server, "POST /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
        assert!(ask(&server, "\0\0\r\n\r\n").starts_with("HTTP/1.1 400 "));
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(HEAD_BYTES_MAX));
        assert!(ask(&server, &endless).starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn clients_that_never_send_do_not_keep_a_scraper_out() {
        let (server, _health) = started();
        let idle: Vec<TcpStream> =
            (0..CLIENTS_MAX * 2).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
        assert!(ask(&server, "GET /metrics HTTP/1.1\r\n\r\n").contains("millrace_build_info"));
        drop(idle);
    }

    #[test]
    fn a_head_that_arrives_byte_by_byte_is_answered_once() {
        let (server, _health) = started();
        let mut stream = TcpStream::connect(server.address()).unwrap();
        for byte in b"GET /healthz HTTP/1.1\r\n\r\n" {
            stream.write_all(&[*byte]).unwrap();
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("ok\n"), "{answer}");
    }
}
