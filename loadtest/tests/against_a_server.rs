//! The generator against a small real server whose behaviour is known, so that the counted numbers can be
//! checked. Times are only bounded from below: a busy test machine may be slower, never faster.

use clap::Parser;
use millrace_loadtest::{Options, Report, run};
use millrace_proto::channel::{self, Account, Ambient, ChannelKind, Incoming, NoKeys, Secret};
use millrace_proto::http1::{
    BodyDecoder, HeadParser, RequestHead, ResponseBody, write_chunk, write_head, write_last_chunk,
};
use millrace_proto::{id::TenantId, sse};
use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// What the server does with request number `n` (from 1): it writes the whole answer.
type Handler = dyn Fn(u64, &RequestHead, &[u8], &mut TcpStream) -> std::io::Result<()> + Send + Sync;

/// A thread per connection, keep-alive; runs until the process ends.
fn serve(
    handler: impl Fn(u64, &RequestHead, &[u8], &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handler: Arc<Handler> = Arc::new(handler);
    let count = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (handler, count) = (Arc::clone(&handler), Arc::clone(&count));
            std::thread::spawn(move || {
                let _ = connection(stream, &*handler, &count);
            });
        }
    });
    address
}

fn connection(mut stream: TcpStream, handler: &Handler, count: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    loop {
        let mut parser = HeadParser::default();
        let head = loop {
            if let Some(head) = parser.parse(&bytes).expect("the generator sends valid requests") {
                break head;
            }
            match stream.read(&mut piece)? {
                0 => return Ok(()),
                n => bytes.extend_from_slice(&piece[..n]),
            }
        };
        bytes.drain(..head.head_bytes);
        let mut decoder = BodyDecoder::new(head.framing, 1 << 20).unwrap();
        let mut body = Vec::new();
        loop {
            let used = decoder.decode(&bytes, &mut body).unwrap().consumed;
            bytes.drain(..used);
            if decoder.is_done() {
                break;
            }
            match stream.read(&mut piece)? {
                0 => return Ok(()),
                n => bytes.extend_from_slice(&piece[..n]),
            }
        }
        handler(count.fetch_add(1, Ordering::SeqCst) + 1, &head, &body, &mut stream)?;
        if !head.keep_alive {
            return Ok(());
        }
    }
}

fn answer(stream: &mut TcpStream, status: u16, body: &str) -> std::io::Result<()> {
    let mut out = Vec::new();
    let headers = [("content-type", "application/json")];
    write_head(&mut out, status, &headers, ResponseBody::Length(body.len()), true, "now");
    out.extend_from_slice(body.as_bytes());
    stream.write_all(&out)
}

/// Streams `tokens` tokens with a pause before each, as the API does; `finish` leaves the end out if false.
fn stream_tokens(stream: &mut TcpStream, tokens: u32, pause: Duration, finish: bool) -> std::io::Result<()> {
    let mut out = Vec::new();
    write_head(&mut out, 200, &[("content-type", "text/event-stream")], ResponseBody::Chunked, true, "now");
    stream.write_all(&out)?;
    let mut event = |data: &str| {
        let (mut event, mut chunk) = (Vec::new(), Vec::new());
        sse::write_event(&mut event, data);
        write_chunk(&mut chunk, &event);
        stream.write_all(&chunk)
    };
    event(r#"{"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}"#)?;
    for i in 0..tokens {
        std::thread::sleep(pause);
        event(&format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"t{i} "}},"finish_reason":null}}]}}"#))?;
    }
    if finish {
        event(r#"{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#)?;
        event(&format!(
            r#"{{"choices":[],"usage":{{"prompt_tokens":5,"completion_tokens":{tokens},"total_tokens":9}}}}"#
        ))?;
        event("[DONE]")?;
    }
    let mut out = Vec::new();
    write_last_chunk(&mut out);
    stream.write_all(&out)
}

fn load(address: SocketAddr, arguments: &str) -> Report {
    let words = format!("millrace-load --target http://{address} {arguments}");
    let options = Options::try_parse_from(words.split_whitespace()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&options)).unwrap()
}

#[test]
fn streams_are_counted_token_by_token() {
    let pause = Duration::from_millis(20);
    let address = serve(move |_, _, _, stream| stream_tokens(stream, 5, pause, true));
    let report = load(address, "--rate 20 --arrivals constant --duration 1s");
    assert_eq!((report.requests, report.ok, report.tokens), (20, 20, 100), "{report}");
    assert_eq!(report.itl_ms.unwrap().count, 80, "five tokens have four gaps");
    assert_eq!(report.ttft_ms.unwrap().count, 20);
    assert!(report.ttft_ms.unwrap().p50 >= 19.9, "{report}");
    // The mean gap is the pause or longer, whatever the reading thread's delays are.
    assert!(report.itl_ms.unwrap().mean >= 15.0, "{report}");
    assert!(report.latency_ms.unwrap().p50 >= 99.0, "{report}");
    assert!(report.latency_ms.unwrap().max >= report.ttft_ms.unwrap().max);
}

/// The server holds everything for half a second once. An open loop charges the stall to all the requests
/// that were meant to start in it; a closed loop sees a single slow request. Both against the same server.
#[test]
fn a_stall_is_charged_to_every_request_that_waited() {
    let stalling = || {
        let gate = Arc::new(Mutex::new(()));
        serve(move |n, _, _, stream| {
            let _turn = gate.lock().unwrap();
            if n == 10 {
                std::thread::sleep(Duration::from_millis(500));
            }
            answer(stream, 200, "{}")
        })
    };
    let arguments = format!("--workload webhook --secret {SECRET}");
    let open = load(stalling(), &format!("{arguments} --duration 1s --rate 100 --arrivals constant"));
    assert_eq!((open.requests, open.ok), (100, 100), "{open}");
    // Starts 10 ms apart during 500 ms: about 50 of 100 waited, half of those for more than 250 ms.
    let latency = open.latency_ms.unwrap();
    assert!(latency.max >= 495.0 && latency.p95 >= 400.0 && latency.p90 >= 300.0, "{open}");
    let closed = load(stalling(), &format!("{arguments} --duration 60s --closed 1 --requests 100"));
    assert_eq!((closed.requests, closed.ok), (100, 100), "{closed}");
    let latency = closed.latency_ms.unwrap();
    assert!(latency.max >= 495.0, "{closed}");
    assert!(latency.p95 < 400.0, "one slow request of a hundred is hidden below the 99th percentile: {closed}");
}

#[test]
fn webhook_events_are_signed_and_never_repeat() {
    let mut account = Account::new(ChannelKind::StandardWebhooks, "shop", TenantId(1));
    account.secrets = vec![Secret::new(SECRET)];
    let ids = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&ids);
    let address = serve(move |_, head, body, stream| {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let headers = head.header_pairs();
        let incoming = Incoming { method: "POST", path: head.path(), query: "", headers: &headers, body };
        let verified = channel::decode(&account, &incoming, &Ambient { now_s, keys: &NoKeys, entropy: [0; 16] });
        let fresh = seen.lock().unwrap().insert(head.header("webhook-id").unwrap().to_owned());
        let good = verified.is_ok() && fresh && head.path() == "/hooks/standard_webhooks/shop";
        answer(stream, if good { 200 } else { 401 }, "{}")
    });
    let arguments = format!("--workload webhook --account shop --secret {SECRET} --rate 200 --duration 1s --seed 3");
    let report = load(address, &arguments);
    assert_eq!(report.ok, report.requests, "{report}");
    assert_eq!(ids.lock().unwrap().len() as u64, report.requests);
    assert!(report.requests > 150, "Poisson arrivals at 200/s: {report}");
}

#[test]
fn failures_are_named_and_counted() {
    let address = serve(|n, _, _, stream| match n % 5 {
        0 => answer(stream, 429, r#"{"error":{"message":"slow down"}}"#),
        1 => stream_tokens(stream, 2, Duration::ZERO, false),
        2 => stream.shutdown(std::net::Shutdown::Both),
        3 => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n"),
        _ => stream_tokens(stream, 2, Duration::ZERO, true),
    });
    let arguments = "--rate 50 --arrivals constant --duration 1s --fresh-connections --require success>=99.5%";
    let report = load(address, arguments);
    assert_eq!((report.requests, report.ok), (50, 10), "{report}");
    let errors: Vec<(&str, u64)> = report.errors.iter().map(|(kind, count)| (kind.as_str(), *count)).collect();
    assert_eq!(errors, [("connection cut", 10), ("malformed answer", 10), ("status 429", 10), ("stream cut", 10)]);
    assert!(report.error_samples.iter().any(|sample| sample.contains("slow down")), "{report}");
    assert!(!report.requirements_met());
    assert_eq!(report.requirements[0].value, Some(20.0));
}

#[test]
fn a_server_that_never_answers_ends_in_timeouts() {
    let address = serve(|_, _, _, _| {
        std::thread::sleep(Duration::from_secs(30));
        Ok(())
    });
    let start = Instant::now();
    let report = load(address, "--rate 20 --arrivals constant --duration 500ms --timeout 300ms");
    assert_eq!((report.requests, report.ok, report.errors["timeout"]), (10, 0, 10), "{report}");
    assert!(start.elapsed() < Duration::from_secs(20), "a timeout does not wait for the server");
}

#[test]
fn idle_connections_are_reused_and_lost_ones_replaced() {
    let connections = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&connections);
    // The server closes after every fifth answer without saying so.
    let address = serve(move |n, _, _, stream| {
        // After our own shutdown a last request may still be read, and the peer has no address any more; its
        // connection was counted by the requests before.
        stream.peer_addr().map(|peer| seen.lock().unwrap().insert(peer))?;
        answer(stream, 200, "{}")?;
        if n % 5 == 0 { stream.shutdown(std::net::Shutdown::Both) } else { Ok(()) }
    });
    let arguments = format!("--workload webhook --secret {SECRET} --closed 1 --requests 50 --duration 60s");
    let report = load(address, &arguments);
    assert_eq!((report.requests, report.ok), (50, 50), "{report}");
    // A request may reach the server just before it closes and be counted there without an answer; then the
    // fifths come sooner. Every loss is one new connection in any case.
    assert!(report.reconnects >= 9, "{report}");
    assert_eq!(connections.lock().unwrap().len() as u64, report.reconnects + 1);
}

#[test]
fn warm_up_is_left_out_and_the_limit_of_requests_in_flight_is_reported() {
    let address = serve(|_, _, _, stream| answer(stream, 200, "{}"));
    let base = format!("--workload webhook --secret {SECRET} --rate 50 --arrivals constant --duration 1s");
    let report = load(address, &format!("{base} --warmup 500ms"));
    assert_eq!(report.requests, 25, "{report}");
    let slow = serve(|_, _, _, stream| {
        std::thread::sleep(Duration::from_millis(400));
        answer(stream, 200, "{}")
    });
    let report = load(slow, &format!("{base} --in-flight-max 2"));
    assert!(!report.valid && report.errors["in-flight limit"] >= 40, "{report}");
}

#[test]
fn requests_wait_for_one_of_as_many_connections_as_there_may_be_and_the_wait_counts() {
    let connections = Arc::new(Mutex::new(HashSet::new()));
    let seen = Arc::clone(&connections);
    let address = serve(move |_, _, _, stream| {
        stream.peer_addr().map(|peer| seen.lock().unwrap().insert(peer))?;
        std::thread::sleep(Duration::from_millis(100));
        answer(stream, 200, "{}")
    });
    let arguments = format!("--workload webhook --secret {SECRET} --rate 100 --arrivals constant --duration 200ms");
    let report = load(address, &format!("{arguments} --connections-max 2"));
    assert_eq!((report.requests, report.ok), (20, 20), "{report}");
    assert_eq!(connections.lock().unwrap().len(), 2);
    // Twenty of 100 ms each on two connections take a second, of which the last arrival came after 190 ms.
    assert!(report.latency_ms.as_ref().is_some_and(|latency| latency.max >= 800.0), "{report}");
}

/// The binary: exit codes, JSON, and the refusals before anything is sent.
#[test]
fn the_command_line() {
    let address = serve(|_, _, _, stream| answer(stream, 200, "{}"));
    let command = |arguments: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_millrace-load"));
        command.args(arguments.split_whitespace()).env("MILLRACE_LOAD_SECRET", SECRET).output().unwrap()
    };
    let base = format!("--target http://{address} --workload webhook --closed 2 --requests 20 --json -");
    // A generator on a very busy machine may declare its own report invalid (3): then it says why.
    let judged = |arguments: &str, expected: i32| {
        let output = command(&format!("{base} {arguments}"));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
        assert_eq!(report["ok"], 20);
        if report["valid"] == true {
            assert_eq!(output.status.code(), Some(expected), "{arguments}");
        } else {
            assert_eq!(output.status.code(), Some(3));
            assert!(!report["invalid_because"].as_array().unwrap().is_empty());
        }
    };
    judged("--require success>=100%", 0);
    judged("--require p50<0us", 1);
    for (arguments, reason) in [
        ("--target http://192.0.2.1:80", "--allow-remote"),
        ("--target http://127.0.0.1:1", "no server answers"),
        ("--target https://127.0.0.1:1", "http://"),
        ("--target http://127.0.0.1:1 --rate nan", "rate"),
        ("--target http://127.0.0.1:1 --require p99<5", "unit"),
    ] {
        let output = command(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(reason), "{arguments}: {text}");
    }
}
