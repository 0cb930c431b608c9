//! The accept loop of one shard and its gate.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

use millrace_proto::api::ApiError;
use millrace_proto::http1::reason_phrase;
use monoio::io::AsyncWriteRent;
use monoio::net::{TcpListener, TcpStream};

use super::Net;
use super::line::shut_listener;
use crate::obs::Rejection;

/// What a connection beyond the gate reads before it is closed. Made once: refusing must stay
/// cheap when everything else is not.
static REFUSED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let error = ApiError::overloaded("This node serves its maximum of connections.", 1)
        .with_next_step("Try again in a second, or raise limits.connections_max.");
    let body = error.to_json();
    let mut bytes = format!(
        "HTTP/1.1 503 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\n\
         connection: close\r\n\r\n",
        reason_phrase(503),
        body.len()
    )
    .into_bytes();
    bytes.extend_from_slice(&body);
    bytes
});

/// Refusals that may be written at once; beyond that the connection is just closed.
const REFUSALS_MAX: usize = 64;

/// Connections that one turn of an io_uring reactor may take. With a single accept in flight each takes a turn, which
/// under load is so slow that the kernel's queue overflows: those who find it full come again after a second.
const ACCEPTS_AT_ONCE: usize = 128;

/// Pause after the process ran out of descriptors or memory for sockets.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until the listener is shut, handing each stream to `serve`.
pub async fn accept_loop(net: Rc<Net>, listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr) + 'static) {
    let fd = listener.as_raw_fd();
    net.listener_fds.borrow_mut().push(fd);
    // With epoll one loop takes all that wait, and a descriptor wakes one waiter only.
    let at_once = if monoio::utils::is_legacy() { 1 } else { ACCEPTS_AT_ONCE };
    let (door, complained) = (Rc::new((listener, serve)), Rc::new(Cell::new(false)));
    let accepts = |_| monoio::spawn(accept_each(Rc::clone(&net), Rc::clone(&door), Rc::clone(&complained)));
    let loops: Vec<_> = (0..at_once).map(accepts).collect();
    for each in loops {
        each.await;
    }
    net.listener_fds.borrow_mut().retain(|known| *known != fd);
}

/// One accept after the other. `complained` is shared by the loops of a door, so that one of them logs what all meet.
async fn accept_each<S: Fn(TcpStream, SocketAddr)>(
    net: Rc<Net>,
    door: Rc<(TcpListener, S)>,
    complained: Rc<Cell<bool>>,
) {
    let (listener, serve) = &*door;
    loop {
        let cancel = net.accepting.borrow().handle();
        match listener.cancelable_accept(cancel).await {
            Ok((stream, peer)) => {
                // One that came in the very moment of stopping has been taken off the queue: it is served.
                let last = net.stopped_accepting.get();
                if last && !net.handing_over.get() {
                    break;
                }
                if net.lines.len() >= net.limits.connections_max {
                    refuse(&net, stream);
                    continue;
                }
                // Tokens are small writes that must leave at once.
                let _ = stream.set_nodelay(true);
                serve(stream, peer);
                if last {
                    break;
                }
            }
            Err(_) if net.stopped_accepting.get() => break,
            Err(error) => match error.raw_os_error() {
                // The peer left between the handshake and the accept.
                Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO) => {}
                Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                    if !complained.replace(true) {
                        tracing::warn!(
                            %error, open = net.lines.len(),
                            "cannot accept: out of descriptors or memory; raise `ulimit -n`"
                        );
                    }
                    monoio::time::sleep(EXHAUSTED_PAUSE).await;
                    complained.set(false);
                }
                _ => {
                    if !complained.replace(true) {
                        tracing::error!(%error, "accept failed");
                    }
                    monoio::time::sleep(EXHAUSTED_PAUSE).await;
                    complained.set(false);
                }
            },
        }
    }
}

/// Closes the queues of the listeners: the pending accepts complete and the loops end.
pub fn stop_accepting(net: &Net) {
    if !net.stopped_accepting.replace(true) {
        net.listener_fds.borrow().iter().for_each(|fd| shut_listener(*fd));
    }
}

/// Ends the loops and leaves the queues open: who connects from here on waits for the process that takes the
/// listeners over. Cancelled, not dropped: an accept that was forgotten could still take a connection away.
pub fn leave_listeners_open(net: &Net) {
    if !net.stopped_accepting.replace(true) {
        let canceller = net.accepting.take();
        net.accepting.replace(canceller.cancel());
    }
}

fn refuse(net: &Rc<Net>, stream: TcpStream) {
    net.metrics().rejected(Rejection::Connections);
    if net.refusals.get() >= REFUSALS_MAX {
        return;
    }
    net.refusals.set(net.refusals.get() + 1);
    let net = net.clone();
    drop(monoio::spawn(async move {
        let mut stream = stream;
        let _: (io::Result<usize>, &[u8]) = stream.write(REFUSED.as_slice()).await;
        // Says that nothing follows; the answer may otherwise be lost to a reset.
        let _ = stream.shutdown().await;
        net.refusals.set(net.refusals.get() - 1);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prepared_refusal_is_well_formed() {
        let text = std::str::from_utf8(&REFUSED).expect("utf-8");
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .expect("a length")
            .parse()
            .expect("a number");
        assert_eq!(length, body.len());
        let value: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(value["error"]["retryable"], true);
    }
}
