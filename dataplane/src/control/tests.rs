//! Outbound calls against small real servers on port 0.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc;

use super::*;

/// Answers each connection with the next of `answers`, then hands over what it read.
fn server(answers: Vec<Vec<u8>>) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 65536];
            let mut length = 0;
            while !request[..length].windows(4).any(|window| window == b"\r\n\r\n") {
                length += stream.read(&mut request[length..]).unwrap();
            }
            let _ = seen.send(String::from_utf8_lossy(&request[..length]).into_owned());
            if answer.is_empty() {
                continue;
            }
            let _ = stream.write_all(&answer);
        }
    });
    (address, requests)
}

fn call(url: String) -> OutboundCall {
    let headers = vec![("authorization".to_owned(), "Bearer very-secret".to_owned())];
    OutboundCall { method: "POST", url, headers, body: b"{}".to_vec(), idempotent: false }
}

fn outcome(control: &Control, url: String, timeout: Duration) -> Result<HttpReply, CallError> {
    let (send, receive) = mpsc::channel();
    control.http(call(url), timeout, Box::new(move |outcome| send.send(outcome).unwrap())).unwrap();
    receive.recv_timeout(Duration::from_secs(30)).expect("every call ends")
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn a_call_is_sent_and_its_answer_comes_back() {
    let (address, requests) = server(vec![b"HTTP/1.1 201 Created\r\nX-Id: 7\r\nContent-Length: 2\r\n\r\nok".to_vec()]);
    let control = Control::start().unwrap();
    let reply = outcome(&control, format!("http://{address}/send"), LONG).unwrap();
    assert_eq!((reply.status, reply.body.as_slice()), (201, b"ok".as_slice()));
    assert!(reply.headers.contains(&("x-id".into(), "7".into())));
    let request = requests.recv().unwrap();
    assert!(request.starts_with("POST /send HTTP/1.1\r\n") && request.contains("Bearer very-secret"), "{request}");
    assert_eq!(control.stats(), ControlStats { calls: 1, failures: 0, refused: 0 });
    control.shutdown();
}

#[test]
fn errors_tell_whether_the_peer_may_have_acted() {
    let control = Control::start().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = outcome(&control, format!("http://{free}/token-in-path"), LONG).unwrap_err();
    assert!(matches!(refused, CallError::Connect(_)) && !refused.may_have_been_sent(), "{refused:?}");
    assert!(!refused.to_string().contains("token-in-path"), "{refused}");

    let (address, _requests) = server(vec![Vec::new()]);
    let broken = outcome(&control, format!("http://{address}/"), LONG).unwrap_err();
    assert!(matches!(broken, CallError::Broken(_)) && broken.may_have_been_sent(), "{broken:?}");

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let late = outcome(&control, url, Duration::from_millis(100)).unwrap_err();
    assert!(matches!(late, CallError::Timeout(_)) && late.may_have_been_sent(), "{late:?}");

    let invalid = outcome(&control, "not a url".into(), LONG).unwrap_err();
    assert!(matches!(invalid, CallError::Invalid(_)) && !invalid.may_have_been_sent(), "{invalid:?}");
}

#[test]
fn a_redirect_to_another_host_is_not_followed() {
    let (elsewhere, stolen) = server(vec![b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec()]);
    let redirect = format!("HTTP/1.1 307 Go\r\nLocation: http://{elsewhere}/\r\nContent-Length: 0\r\n\r\n");
    let (address, _requests) = server(vec![redirect.into_bytes()]);
    let control = Control::start().unwrap();
    assert_eq!(outcome(&control, format!("http://{address}/"), LONG).unwrap().status, 307);
    assert!(stolen.try_recv().is_err());
}

#[test]
fn an_endless_answer_is_cut_off() {
    let mut answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_vec();
    answer.resize(answer.len() + REPLY_BYTES_MAX + 1, b'x');
    let (address, _requests) = server(vec![answer]);
    let control = Control::start().unwrap();
    let outcome = outcome(&control, format!("http://{address}/"), LONG);
    assert_eq!(outcome, Err(CallError::TooLarge(REPLY_BYTES_MAX)));
}

#[test]
fn a_stopped_control_thread_answers_every_call() {
    let control = Control::start().unwrap();
    control.shutdown();
    assert_eq!(outcome(&control, "http://127.0.0.1:9/".into(), LONG), Err(CallError::Closed));
}
