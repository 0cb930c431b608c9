//! Deadlines of connections, kept by one sweep instead of one timer each.
//!
//! A connection writes its deadline into a cell (no timer is armed per request) and the
//! shard's sweep compares all of them a few times a second. An expired line is cut by
//! `shutdown(2)`: the pending read or write completes in the ordinary way, so no operation
//! of the ring is ever dropped half-way, and the connection's own task sees why.
#![allow(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, Shutdown};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use monoio::net::TcpStream;
use socket2::SockRef;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// Tasks of one connection that may wait for its end: a protocol with streams has one for each. Beyond it all
/// are woken and those that still wait come back.
const ENDERS_MAX: usize = 512;

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address, as the socket says.
    pub ip: IpAddr,
    /// Nobody in between can read along: TLS.
    pub secure: bool,
}

/// Why a line was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing arrived in time.
    ReadTimeout,
    /// The peer took nothing in time.
    WriteTimeout,
    /// The node drains and this line was idle.
    Drain,
    /// The node stops now.
    Stop,
}

/// One connection as the sweep sees it.
pub struct Line {
    /// The connection's own; `None` = it shares one with others (QUIC) and is told instead.
    socket: Option<RawFd>,
    slot: Cell<usize>,
    read_until_ms: Cell<u64>,
    write_until_ms: Cell<u64>,
    idle: Cell<bool>,
    streaming: Cell<bool>,
    ending: Cell<bool>,
    /// Who is told that the node drains or ends what is still under way.
    enders: RefCell<Vec<Waker>>,
    cut: Cell<Option<Cut>>,
}

impl Line {
    /// The next read must complete before `until_ms`.
    pub fn read_until(&self, until_ms: u64) {
        self.read_until_ms.set(until_ms);
    }

    /// Reads may take for ever.
    pub fn read_freely(&self) {
        self.read_until_ms.set(NEVER);
    }

    /// The next write must complete before `until_ms`.
    pub fn write_until(&self, until_ms: u64) {
        self.write_until_ms.set(until_ms);
    }

    /// No write is in flight.
    pub fn write_done(&self) {
        self.write_until_ms.set(NEVER);
    }

    /// Between two requests: a drain may cut here without harm.
    pub fn set_idle(&self, idle: bool) {
        self.idle.set(idle);
    }

    /// An answer is being streamed: a peer that is gone shows at the next write.
    pub fn set_streaming(&self, streaming: bool) {
        self.streaming.set(streaming);
    }

    /// Whether an answer is being streamed.
    pub fn is_streaming(&self) -> bool {
        self.streaming.get()
    }

    /// The node ends what is still under way.
    pub fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// Ready when the node ends what is still under way: say so to the peer and finish.
    pub fn poll_ending(&self, context: &Context<'_>) -> Poll<()> {
        if self.ending.get() {
            return Poll::Ready(());
        }
        let mut enders = self.enders.borrow_mut();
        if !enders.iter().any(|waker| waker.will_wake(context.waker())) {
            if enders.len() == ENDERS_MAX {
                enders.drain(..).for_each(Waker::wake);
            }
            enders.push(context.waker().clone());
        }
        Poll::Pending
    }

    fn wake_enders(&self) {
        let enders = std::mem::take(&mut *self.enders.borrow_mut());
        enders.into_iter().for_each(Waker::wake);
    }

    /// Why the sweep cut this line, if it did.
    pub fn cut(&self) -> Option<Cut> {
        self.cut.get()
    }

    fn shut(&self, why: Cut, how: Shutdown) {
        if self.cut.get() == Some(why) {
            return;
        }
        self.cut.set(Some(why));
        let Some(socket) = self.socket else { return self.wake_enders() };
        // SAFETY: `Lines::join` returned a guard that lives inside the task that owns the stream
        // and is dropped before it; a line leaves the table with its guard, so `socket` is open here.
        let socket = unsafe { BorrowedFd::borrow_raw(socket) };
        // An error means that the peer has closed already.
        let _ = SockRef::from(&socket).shutdown(how);
    }
}

/// All connections of one shard.
#[derive(Default)]
pub struct Lines {
    table: RefCell<Vec<Rc<Line>>>,
}

impl Lines {
    /// Enters a connection. The guard must be dropped before the stream is closed.
    pub fn join(self: &Rc<Self>, stream: &TcpStream) -> LineGuard {
        self.enter(Some(stream.as_raw_fd()))
    }

    /// Enters a connection without a socket of its own: it is told of a cut through [`Line::poll_ending`].
    pub fn join_detached(self: &Rc<Self>) -> LineGuard {
        self.enter(None)
    }

    fn enter(self: &Rc<Self>, socket: Option<RawFd>) -> LineGuard {
        let mut table = self.table.borrow_mut();
        let line = Rc::new(Line {
            socket,
            slot: Cell::new(table.len()),
            read_until_ms: Cell::new(NEVER),
            write_until_ms: Cell::new(NEVER),
            idle: Cell::new(true),
            streaming: Cell::new(false),
            ending: Cell::new(false),
            enders: RefCell::default(),
            cut: Cell::new(None),
        });
        table.push(line.clone());
        LineGuard { line, lines: self.clone() }
    }

    /// Connections entered.
    pub fn len(&self) -> usize {
        self.table.borrow().len()
    }

    /// No connection is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cuts what is overdue; while draining also what is idle.
    pub fn sweep(&self, now_ms: u64, draining: bool) {
        for line in self.table.borrow().iter() {
            if line.write_until_ms.get() <= now_ms {
                line.shut(Cut::WriteTimeout, Shutdown::Both);
            } else if line.read_until_ms.get() <= now_ms {
                line.shut(Cut::ReadTimeout, Shutdown::Read);
            } else if draining && line.idle.get() {
                line.shut(Cut::Drain, Shutdown::Read);
            }
        }
    }

    /// Tells every connection to finish what it is doing now.
    pub fn end(&self) {
        for line in self.table.borrow().iter() {
            line.ending.set(true);
            line.wake_enders();
        }
    }

    /// Lets every connection notice that the node drains.
    pub fn tell_draining(&self) {
        self.table.borrow().iter().for_each(|line| line.wake_enders());
    }

    /// Cuts everything.
    pub fn stop(&self) {
        for line in self.table.borrow().iter() {
            line.shut(Cut::Stop, Shutdown::Both);
        }
    }

    fn leave(&self, line: &Line) {
        let mut table = self.table.borrow_mut();
        let slot = line.slot.get();
        table.swap_remove(slot);
        if let Some(moved) = table.get(slot) {
            moved.slot.set(slot);
        }
    }
}

/// Membership of a connection in its shard's table.
pub struct LineGuard {
    line: Rc<Line>,
    lines: Rc<Lines>,
}

impl LineGuard {
    /// The line itself.
    pub fn line(&self) -> &Rc<Line> {
        &self.line
    }
}

impl Drop for LineGuard {
    fn drop(&mut self) {
        self.lines.leave(&self.line);
    }
}

/// Ends the accept that is pending on a listening socket. The caller keeps it open meanwhile.
pub fn shut_listener(listener: RawFd) {
    // SAFETY: the accept loop publishes its descriptor only while it owns the listener, and takes
    // the publication back before it closes it, on this same thread.
    let socket = unsafe { BorrowedFd::borrow_raw(listener) };
    let _ = SockRef::from(&socket).shutdown(Shutdown::Both);
}
