//! A new image of the program takes the place of this process (`execve`), and the listening sockets stay open
//! all the while: whoever connects in between waits in the kernel's queue and is not refused. So do the sockets of
//! QUIC: who is connected is told to leave (GOAWAY, then a close), and who greets in between gets no answer until
//! the next image reads the greeting or its repetition.
//!
//! The process number stays the same, so a supervisor notices nothing. The store allows one process at a time,
//! so the new image opens it after this one has closed it; what is checked before anything is given up is that
//! the program starts at all and that its configuration is valid.

use std::ffi::OsString;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::net::{Listeners, QuicSockets};
use crate::sys;
use crate::trouble::Trouble;

/// Where the next image finds its sockets: `PID plain=FD,FD secure=FD quic=FD`. The number of the process keeps a
/// child that inherits the variable from believing it.
const VARIABLE: &str = "MILLRACE_INHERITED_SOCKETS";

/// Longest time of the check before a hand-over.
const CHECK_MAX: Duration = Duration::from_secs(30);

/// Sockets that one process may hand over.
const SOCKETS_MAX: usize = 512;

/// Keeps the listening sockets open while the shards let go of theirs.
#[derive(Debug)]
pub struct Doorkeeper {
    plain: Vec<TcpListener>,
    secure: Vec<TcpListener>,
    quic: Vec<UdpSocket>,
    program: PathBuf,
    arguments: Vec<OsString>,
}

impl Doorkeeper {
    /// Takes copies of the sockets.
    pub fn new(plain: &Listeners, secure: Option<&Listeners>, quic: Option<&QuicSockets>) -> std::io::Result<Self> {
        let copies =
            |sockets: &[TcpListener]| sockets.iter().map(TcpListener::try_clone).collect::<std::io::Result<Vec<_>>>();
        Ok(Self {
            plain: copies(&plain.sockets)?,
            secure: secure.map_or_else(|| Ok(Vec::new()), |listeners| copies(&listeners.sockets))?,
            quic: quic
                .map_or_else(|| Ok(Vec::new()), |quic| quic.sockets.iter().map(UdpSocket::try_clone).collect())?,
            // Now: the link of a replaced file says that it was deleted.
            program: std::env::current_exe()?,
            arguments: std::env::args_os().skip(1).collect(),
        })
    }

    /// Whether the next image would start: it is asked, with the same arguments, to check its configuration.
    pub fn check(&self) -> Result<(), Trouble> {
        let trouble = |why: String| {
            let next = "correct it and send SIGUSR2 again; this process goes on";
            Trouble::new("the program cannot be started anew", why, next)
        };
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).arg("--check").stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.spawn().map_err(|error| trouble(format!("{}: {error}", self.program.display())))?;
        let until = Instant::now() + CHECK_MAX;
        loop {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(trouble(format!("its check ended with {status}; it said why"))),
                Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
                Ok(None) | Err(_) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(trouble(format!("its check did not end within {CHECK_MAX:?}")));
                }
            }
        }
    }

    /// Becomes the next image. Returns only when that fails.
    pub fn exec(&self) -> Trouble {
        let mut kept = Vec::new();
        let all = [("plain", numbers(&self.plain)), ("secure", numbers(&self.secure)), ("quic", numbers(&self.quic))];
        for (name, numbers) in all {
            if let Some(error) = numbers.iter().find_map(|fd| sys::keep_over_exec(*fd).err()) {
                return Trouble::new("a socket cannot be handed over", error.to_string(), "start the program again");
            }
            let numbers: Vec<String> = numbers.iter().map(RawFd::to_string).collect();
            kept.push(format!("{name}={}", numbers.join(",")));
        }
        let text = format!("{} {}", std::process::id(), kept.join(" "));
        let error = Command::new(&self.program).args(&self.arguments).env(VARIABLE, text).exec();
        let what = format!("{} cannot be started", self.program.display());
        Trouble::new(what, error.to_string(), "start the program again")
    }
}

fn numbers(sockets: &[impl AsRawFd]) -> Vec<RawFd> {
    sockets.iter().map(AsRawFd::as_raw_fd).collect()
}

/// The sockets that an earlier image has left for this one.
#[derive(Debug, Default)]
pub struct Inherited {
    plain: Vec<TcpListener>,
    secure: Vec<TcpListener>,
    quic: Vec<UdpSocket>,
}

impl Inherited {
    /// Takes them. Call it once, before anything else opens files.
    pub fn take() -> Self {
        let Some(text) = std::env::var(VARIABLE).ok() else { return Self::default() };
        let mut inherited = Self::default();
        for (name, numbers) in parse(&text, std::process::id()) {
            for number in numbers {
                let adopted = match name.as_str() {
                    "quic" => sys::adopt_datagrams(number).map(|socket| inherited.quic.push(socket)),
                    "plain" => sys::adopt_listener(number).map(|listener| inherited.plain.push(listener)),
                    _ => sys::adopt_listener(number).map(|listener| inherited.secure.push(listener)),
                };
                if let Err(error) = adopted {
                    tracing::warn!(number, name, %error, "an inherited socket is not what it should be");
                }
            }
        }
        inherited
    }

    /// The sockets of the plain port if they listen on `wanted`.
    pub fn plain(&mut self, wanted: SocketAddr, count: usize) -> Option<Listeners> {
        fitting(std::mem::take(&mut self.plain), wanted, count)
    }

    /// The sockets of the TLS port if they listen on `wanted`.
    pub fn secure(&mut self, wanted: SocketAddr, count: usize) -> Option<Listeners> {
        fitting(std::mem::take(&mut self.secure), wanted, count)
    }

    /// The sockets of QUIC if there is one on `address` for each of `count` shards. The kernel steers datagrams by
    /// the place of a socket among them, so another number of shards needs new ones.
    pub fn quic(&mut self, address: SocketAddr, count: usize) -> Option<QuicSockets> {
        let sockets = std::mem::take(&mut self.quic);
        let first = sockets.first()?.local_addr().ok()?;
        if first != address || sockets.len() != count {
            tracing::warn!(%first, %address, "address or reactors have changed: QUIC clients that greet now are refused");
            return None;
        }
        Some(QuicSockets { address, sockets })
    }
}

/// Sockets for `count` shards on `wanted`; port 0 takes whichever port they have.
fn fitting(mut sockets: Vec<TcpListener>, wanted: SocketAddr, count: usize) -> Option<Listeners> {
    let address = sockets.first()?.local_addr().ok()?;
    if address.ip() != wanted.ip() || (wanted.port() != 0 && address.port() != wanted.port()) {
        tracing::warn!(%address, %wanted, "the address has changed: who waits at the old one is refused");
        return None;
    }
    if sockets.len() > count {
        tracing::warn!("fewer reactors than before: who waits at the sockets of the others is refused");
        sockets.truncate(count);
    }
    while sockets.len() < count {
        sockets.push(crate::net::listener::join(address).ok()?);
    }
    Some(Listeners { address, sockets })
}

fn parse(text: &str, pid: u32) -> Vec<(String, Vec<RawFd>)> {
    let mut parts = text.split(' ');
    if parts.next().and_then(|first| first.parse().ok()) != Some(pid) {
        return Vec::new();
    }
    let list = |part: &str| {
        let (name, numbers) = part.split_once('=')?;
        let numbers = numbers.split(',').filter_map(|number| number.parse().ok()).take(SOCKETS_MAX).collect();
        ["plain", "secure", "quic"].contains(&name).then(|| (name.to_owned(), numbers))
    };
    parts.filter_map(list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_believed_by_the_process_that_it_names() {
        let read = parse("77 plain=5,6 secure=", 77);
        assert_eq!(read, [("plain".to_owned(), vec![5, 6]), ("secure".to_owned(), Vec::new())]);
        for other in ["78 plain=5", "", "plain=5", "x plain=5"] {
            assert!(parse(other, 77).is_empty(), "{other}");
        }
        assert_eq!(parse("77 evil=5 plain=x,9", 77), [("plain".to_owned(), vec![9])]);
    }

    #[test]
    fn copies_keep_the_port_open_and_fit_the_next_process() {
        let listeners = crate::net::listen("127.0.0.1:0".parse().expect("an address"), 2).expect("a port");
        let address = listeners.address;
        let keeper = Doorkeeper::new(&listeners, None, None).expect("copies");
        drop(listeners);
        let waiting = std::net::TcpStream::connect(address).expect("the port is still open");
        let taken = fitting(keeper.plain, "127.0.0.1:0".parse().expect("an address"), 3).expect("the same port");
        assert_eq!((taken.address, taken.sockets.len()), (address, 3));
        drop(waiting);
        assert!(fitting(taken.sockets, "127.0.0.1:1".parse().expect("an address"), 3).is_none(), "another port");
    }

    #[test]
    fn datagrams_wait_in_sockets_that_are_handed_over() {
        let listeners = crate::net::listen("127.0.0.1:0".parse().expect("an address"), 1).expect("a port");
        let quic = crate::net::bind_quic("127.0.0.1:0".parse().expect("an address"), 2).expect("a port");
        let (address, keeper) = (quic.address, Doorkeeper::new(&listeners, None, Some(&quic)).expect("copies"));
        drop(quic);
        let client = UdpSocket::bind("127.0.0.1:0").expect("a client");
        client.send_to(b"hello", address).expect("somebody is there");
        let mut inherited = Inherited { quic: keeper.quic, ..Inherited::default() };
        let taken = inherited.quic(address, 2).expect("the same port");
        let mut bytes = [0; 8];
        let got = taken.sockets.iter().find_map(|socket| socket.recv(&mut bytes).ok());
        assert_eq!(got, Some(5));
        let mut fewer = Inherited { quic: taken.sockets, ..Inherited::default() };
        assert!(fewer.quic(address, 3).is_none(), "another number of reactors");
    }
}
