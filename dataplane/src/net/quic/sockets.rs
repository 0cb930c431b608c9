//! The UDP sockets: one for each shard, all on one port, steered by connection id.

use std::io;
use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use super::steer;
use crate::net::ListenError;
use crate::net::listener::{explain, patiently};

/// Room that is asked for in the kernel's buffers; it gives what `net.core.rmem_max` allows. The usual 208 KiB are
/// some 150 datagrams, which one burst of a busy connection can fill.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// The UDP sockets of all shards.
#[derive(Debug)]
pub struct QuicSockets {
    /// The bound address.
    pub address: SocketAddr,
    /// One socket for each shard.
    pub sockets: Vec<UdpSocket>,
}

/// Binds `count` sockets to `address`.
pub fn bind(address: SocketAddr, count: usize) -> Result<QuicSockets, ListenError> {
    assert!((1..=steer::SHARDS_MAX).contains(&count), "{count} shards");
    let failed = |error| explain(address, error);
    // As for TCP: SO_REUSEPORT alone would share the port with a stranger in silence.
    if address.port() != 0 {
        patiently(|| open(address, false).map(drop)).map_err(failed)?;
    }
    let first = open(address, true).map_err(failed)?;
    let bound = first.local_addr().map_err(failed)?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(open(bound, true).map_err(failed)?);
    }
    if count > 1 {
        steer::attach(&sockets[0], count).map_err(failed)?;
    }
    Ok(QuicSockets { address: bound, sockets })
}

fn open(address: SocketAddr, share_port: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if share_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Smaller buffers cost speed, nothing else.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}
