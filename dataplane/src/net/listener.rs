//! Listening sockets: one SO_REUSEPORT socket for each shard, all on one address.
//!
//! The kernel spreads connections over the group by the 4-tuple, so a shard accepts what it
//! serves and no connection changes cores. SO_REUSEPORT alone would let a second process of
//! the same user join the group and take half of the connections in silence; therefore a
//! plain bind without the option comes first and reports the foreign owner.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel may hold for one shard before it accepts them; it takes this down to
/// `net.core.somaxconn`. Whoever finds the queue full tries again after one second, and then after two.
const BACKLOG: i32 = 65_535;

/// How long a busy port is retried. A killed process whose sockets sat in an io_uring keeps
/// its port for some 7 ms after its exit was seen, because ring teardown is asynchronous.
const BUSY_RETRY_MAX: Duration = Duration::from_millis(750);

/// Pause between two tries.
const BUSY_RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The listening sockets of all shards.
#[derive(Debug)]
pub struct Listeners {
    /// The bound address, with the real port when port 0 was asked for.
    pub address: SocketAddr,
    /// One socket for each shard.
    pub sockets: Vec<TcpListener>,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has the port.
    #[error(
        "cannot listen on {address}: the port is in use. Why: another process (perhaps a second millrace) listens there. \
         Next step: find it with `ss -ltnp 'sport = :{port}'` and stop it, or choose another port with `--listen {ip}:PORT` \
         (port 0 takes a free one)",
        port = address.port(), ip = address.ip()
    )]
    InUse {
        /// The wanted address.
        address: SocketAddr,
    },
    /// The port needs a privilege that the process lacks.
    #[error(
        "cannot listen on {address}: permission denied. Why: ports below 1024 need a privilege. \
         Next step: use a port from 1024 on, or `setcap cap_net_bind_service=+ep` on the binary"
    )]
    Denied {
        /// The wanted address.
        address: SocketAddr,
    },
    /// The address is not one of this machine.
    #[error(
        "cannot listen on {address}: the address is not one of this machine. \
         Next step: list them with `ip -brief address`, or use 127.0.0.1 (this machine only) or 0.0.0.0 (every interface)"
    )]
    NotLocal {
        /// The wanted address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// The wanted address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Binds `count` sockets to `address`.
pub fn listen(address: SocketAddr, count: usize) -> Result<Listeners, ListenError> {
    assert!(count > 0, "a node has at least one shard");
    // Port 0 cannot collide; a fixed port is first claimed alone.
    if address.port() != 0 {
        claim(address).map_err(|error| explain(address, error))?;
    }
    let first = bind(address, true).map_err(|error| explain(address, error))?;
    let bound = first.local_addr().map_err(|error| explain(address, error))?;
    let mut sockets = vec![first];
    for _ in 1..count {
        sockets.push(bind(bound, true).map_err(|error| explain(bound, error))?);
    }
    Ok(Listeners { address: bound, sockets })
}

/// Succeeds when nobody listens on `address`.
fn claim(address: SocketAddr) -> io::Result<()> {
    patiently(|| bind(address, false).map(drop))
}

/// Tries a bind until a port that was just given up is free.
pub(super) fn patiently(bind: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && started.elapsed() < BUSY_RETRY_MAX => {
                std::thread::sleep(BUSY_RETRY_PAUSE);
            }
            done => return done,
        }
    }
}

/// One more socket on an address that this process listens on already.
pub fn join(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address, true)
}

fn bind(address: SocketAddr, share_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT must not keep the port.
    socket.set_reuse_address(true)?;
    if share_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    if share_port {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

pub(super) fn explain(address: SocketAddr, source: io::Error) -> ListenError {
    match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse { address },
        io::ErrorKind::PermissionDenied => ListenError::Denied { address },
        io::ErrorKind::AddrNotAvailable => ListenError::NotLocal { address },
        _ => ListenError::Other { address, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loopback(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn port_zero_gives_every_shard_the_same_real_port() {
        let listeners = listen(loopback(0), 3).expect("listen");
        assert_ne!(listeners.address.port(), 0);
        for socket in &listeners.sockets {
            assert_eq!(socket.local_addr().expect("address"), listeners.address);
        }
    }

    #[test]
    fn a_port_in_use_is_reported_even_when_its_owner_shares_it() {
        let other = listen(loopback(0), 1).expect("listen");
        let error = listen(other.address, 2).expect_err("taken");
        let text = error.to_string();
        assert!(matches!(error, ListenError::InUse { .. }), "{text}");
        assert!(text.contains(&other.address.port().to_string()) && text.contains("ss -ltnp"), "{text}");
    }

    #[test]
    fn a_port_that_becomes_free_within_the_retry_time_is_taken() {
        let other = listen(loopback(0), 1).expect("listen");
        let address = other.address;
        let closer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            drop(other);
        });
        assert_eq!(listen(address, 2).expect("after a wait").address, address);
        closer.join().expect("closer");
    }

    #[test]
    fn a_foreign_address_names_the_next_step() {
        let error = listen(SocketAddr::from(([192, 0, 2, 1], 0)), 1).expect_err("not ours");
        assert!(matches!(error, ListenError::NotLocal { .. }), "{error}");
    }
}
