//! QUIC (RFC 9000): one endpoint for each shard, all on the UDP port beside the TLS port.
//!
//! ```text
//! datagram ─▶ steering program of the port (by connection id) ─▶ the shard's socket ─▶ quinn
//!                ─▶ handshake (ALPN) ─▶ `h3`: requests of the same service as HTTP/1.1 and HTTP/2
//!                                    └▶ `millrace/1`: frames
//! ```
//! Cost sketch: a datagram carries the requests or answers of many streams, so a small request costs a fraction of
//! a system call. What a peer may cost is bounded by the constants below; the protocol's own rule that an address
//! which was not proved gets three times what it sent holds beside them.

mod http3;
mod native;
mod runtime;
mod sockets;
mod steer;

pub(super) use http3::Sink;
pub use native::{Answers, NativeService};
pub use sockets::{QuicSockets, bind};

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::UdpSocket;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use millrace_proto::{http3 as h3, native as millrace1};
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Connection, Endpoint, EndpointConfig, Incoming, ServerConfig, TransportConfig, VarInt};

use super::Net;
use super::line::Peer;
use super::tls::Tls;
use crate::obs::Rejection;

/// Requests that one connection may have open.
const STREAMS_MAX: u32 = 128;

/// Streams of a client without an answer: control and the two of QPACK, and some that nobody knows.
const UNI_STREAMS_MAX: u32 = 8;

/// What a stream may send before it is read.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// The same for all streams of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Answer bytes of a connection that wait for their acknowledgement.
const SEND_WINDOW_BYTES: u64 = 2 * 1024 * 1024;

/// Handshakes of one shard under way from which on an address must be proved by a round trip first.
const HANDSHAKES_FREE: usize = 32;

/// Handshakes of one shard under way; the next one is refused.
const HANDSHAKES_MAX: usize = 1_024;

/// Datagrams of connections that the endpoint has not looked at yet, of one and of all.
const INCOMING_BYTES_MAX: u64 = 64 * 1024;
const INCOMING_TOTAL_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How long a closing endpoint tells its peers so.
const CLOSE_WAIT: Duration = Duration::from_millis(300);

/// Bytes that one read of a stream takes at most.
const READ_BYTES_MAX: usize = 64 * 1024;

/// The QUIC side of a TLS configuration, for all shards: they share the key of address tokens.
pub(super) fn server_config(tls: &rustls::ServerConfig) -> Result<ServerConfig, String> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![h3::ALPN.to_vec(), millrace1::ALPN.to_vec()];
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .migration(true)
        .max_incoming(HANDSHAKES_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_TOTAL_BYTES_MAX);
    Ok(config)
}

fn transport(idle: Duration) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(STREAMS_MAX.into())
        .max_concurrent_uni_streams(UNI_STREAMS_MAX.into())
        .stream_receive_window(STREAM_WINDOW_BYTES.into())
        .receive_window(CONNECTION_WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES)
        // Longer idle times than the protocol can say do not exist in the configuration.
        .max_idle_timeout(idle.try_into().ok())
        .datagram_receive_buffer_size(None);
    transport
}

/// The endpoint of one shard.
pub struct Door {
    endpoint: Endpoint,
    tls: Arc<Tls>,
    transport: Arc<TransportConfig>,
    /// The configuration that new connections get.
    epoch: Cell<u64>,
    closed: Cell<bool>,
}

impl Door {
    /// Opens shard `shard` of `shards` on its socket. Must be called on the shard's thread.
    pub fn open(socket: UdpSocket, tls: Arc<Tls>, shard: usize, shards: usize, idle: Duration) -> io::Result<Rc<Self>> {
        let mut reset_key = [0u8; 64];
        getrandom::fill(&mut reset_key).map_err(|error| io::Error::other(error.to_string()))?;
        let reset_key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &reset_key);
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        config.cid_generator(move || Box::new(steer::ShardIds::new(shard, shards)));
        let runtime = Arc::new(runtime::MonoioRuntime::new());
        let transport = Arc::new(transport(idle));
        let (epoch, mut server) = tls.quic();
        server.transport_config(transport.clone());
        let endpoint = Endpoint::new(config, Some(server), socket, runtime)?;
        Ok(Rc::new(Self { endpoint, tls, transport, epoch: Cell::new(epoch), closed: Cell::new(false) }))
    }

    /// Follows what happened to certificates and node: `closing` = nobody will serve who comes now. Called by the
    /// shard's timer.
    pub fn tick(&self, closing: bool) {
        if closing {
            if !self.closed.replace(true) {
                self.endpoint.set_server_config(None);
            }
            return;
        }
        if self.epoch.get() != self.tls.epoch() {
            let (epoch, mut server) = self.tls.quic();
            server.transport_config(self.transport.clone());
            self.epoch.set(epoch);
            self.endpoint.set_server_config(Some(server));
        }
    }

    /// Closes what is left and tells the peers. A door whose socket lives on in another image (`handed_over`) goes on
    /// ignoring who comes, because an endpoint that was closed refuses them.
    pub async fn close(&self, handed_over: bool) {
        if !handed_over {
            self.endpoint.close(VarInt::from_u32(0), b"the node is shutting down");
        }
        let _ = within(CLOSE_WAIT, self.endpoint.wait_idle()).await;
    }

    /// Serves connections until the endpoint is closed.
    pub async fn serve<S: NativeService>(self: Rc<Self>, net: Rc<Net>, service: Rc<S>) {
        let handshakes = Rc::new(Cell::new(0));
        while let Some(incoming) = self.endpoint.accept().await {
            if net.refuses_work() {
                incoming.refuse();
            } else if net.draining.get() {
                // The next image serves the repetition of this greeting, as a client takes a refusal for final.
                incoming.ignore();
            } else if net.lines.len() >= net.limits.connections_max || handshakes.get() >= HANDSHAKES_MAX {
                net.metrics().rejected(Rejection::Connections);
                incoming.refuse();
            } else if handshakes.get() >= HANDSHAKES_FREE && !incoming.remote_address_validated() {
                // Nobody waits for an answer to a datagram that may be forged; an honest client comes back at once.
                if incoming.may_retry() {
                    let _ = incoming.retry();
                } else {
                    incoming.refuse();
                }
            } else {
                handshakes.set(handshakes.get() + 1);
                drop(monoio::spawn(live(net.clone(), service.clone(), incoming, handshakes.clone())));
            }
        }
    }
}

/// One connection from its first datagram to its end.
async fn live<S: NativeService>(net: Rc<Net>, service: Rc<S>, incoming: Incoming, handshakes: Rc<Cell<usize>>) {
    let peer = Peer { ip: incoming.remote_address().ip().to_canonical(), secure: true };
    // From the greeting on, so that a drain does not end a handshake half-way.
    let guard = net.lines.join_detached();
    let line = guard.line().clone();
    line.set_idle(false);
    let greeted = match incoming.accept() {
        Ok(connecting) => within(net.limits.head, connecting).await,
        Err(error) => Some(Err(error)),
    };
    handshakes.set(handshakes.get() - 1);
    let connection = match greeted {
        Some(Ok(connection)) => connection,
        Some(Err(error)) => {
            tracing::debug!(%error, "a QUIC handshake failed");
            return net.metrics().rejected(Rejection::Protocol);
        }
        None => return net.metrics().rejected(Rejection::Protocol),
    };
    line.set_idle(true);
    net.metrics().connection_opened();
    if protocol(&connection) == millrace1::ALPN {
        native::live(&net, &line, &service, peer, connection).await;
    } else {
        http3::live(&net, &line, &service, peer, connection).await;
    }
    drop(guard);
    net.metrics().connection_closed();
}

/// What the handshake agreed on. rustls has refused a client that offers neither.
fn protocol(connection: &Connection) -> Vec<u8> {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).unwrap_or_default()
}

/// Runs `work` for at most `patience`. Work that is done at once costs no timer.
async fn within<T>(patience: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut late = None;
    poll_fn(|context| {
        if let Poll::Ready(done) = work.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        let late = late.get_or_insert_with(|| Box::pin(monoio::time::sleep(patience)));
        late.as_mut().poll(context).map(|()| None)
    })
    .await
}
