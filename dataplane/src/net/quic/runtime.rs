//! quinn on the shard's reactor.
//!
//! quinn wants everything `Send` because its usual runtimes move tasks between threads. Here nothing moves: an
//! endpoint, its connections and their timers are made, polled and dropped on the shard's thread, and
//! [`SendWrapper`] panics rather than let that be untrue.
//!
//! quinn's drivers wake themselves when their work budget is used up. monoio puts a task that wakes itself at the
//! front of its queue, so such a driver would starve everything else on the core; [`Relay`] takes these wakes and
//! gives them back from a task of its own, which puts the driver behind the others.

use std::cell::RefCell;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Instant;

use monoio::net::udp::UdpSocket as Readiness;
use monoio::time::Sleep;
use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};
use send_wrapper::SendWrapper;

/// The runtime of one shard's endpoint.
pub(super) struct MonoioRuntime {
    relay: SendWrapper<Rc<Relay>>,
}

impl MonoioRuntime {
    /// A runtime for the calling thread, which must run a reactor.
    pub(super) fn new() -> Self {
        let relay = Rc::new(Relay::default());
        drop(monoio::spawn(relay.clone().run()));
        Self { relay: SendWrapper::new(relay) }
    }
}

impl fmt::Debug for MonoioRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MonoioRuntime")
    }
}

impl Runtime for MonoioRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(SendWrapper::new(Box::pin(monoio::time::sleep_until(at.into())))))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        drop(monoio::spawn(fair(future, (*self.relay).clone())));
    }

    fn wrap_udp_socket(&self, socket: StdSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let state = UdpSocketState::new((&socket).into())?;
        let readiness = Rc::new(Readiness::from_std(socket.try_clone()?)?);
        let waits = SendWrapper::new(Waits { readiness, readable: RefCell::default() });
        Ok(Arc::new(Socket { socket, state, waits }))
    }
}

struct Timer(SendWrapper<Pin<Box<Sleep>>>);

impl fmt::Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timer")
    }
}

impl AsyncTimer for Timer {
    fn reset(self: Pin<&mut Self>, at: Instant) {
        self.get_mut().0.as_mut().reset(at.into());
    }

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.get_mut().0.as_mut().poll(context)
    }
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>>>>;

/// Datagrams through system calls, readiness through the reactor.
struct Socket {
    socket: StdSocket,
    state: UdpSocketState,
    waits: SendWrapper<Waits>,
}

struct Waits {
    readiness: Rc<Readiness>,
    readable: RefCell<Option<Waiting>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Socket").field(&self.socket).finish()
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        let readiness = self.waits.readiness.clone();
        Box::pin(Writable(SendWrapper::new((readiness, None))))
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.state.send((&self.socket).into(), transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.state.recv((&self.socket).into(), buffers, meta) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => return Poll::Ready(done),
            }
            let mut waiting = self.waits.readable.borrow_mut();
            let future = waiting.get_or_insert_with(|| {
                let readiness = self.waits.readiness.clone();
                Box::pin(async move { readiness.readable(false).await })
            });
            let ready = ready!(future.as_mut().poll(context));
            *waiting = None;
            ready?;
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

struct Writable(SendWrapper<(Rc<Readiness>, Option<Waiting>)>);

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Writable")
    }
}

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (readiness, waiting) = &mut *self.get_mut().0;
        let future = waiting.get_or_insert_with(|| {
            let readiness = readiness.clone();
            Box::pin(async move { readiness.writable(false).await })
        });
        let ready = ready!(future.as_mut().poll(context));
        *waiting = None;
        Poll::Ready(ready)
    }
}

/// Gives the wakes of tasks that woke themselves back from a task of its own.
#[derive(Default)]
struct Relay {
    waiting: RefCell<Vec<Waker>>,
    own: RefCell<Option<Waker>>,
}

impl Relay {
    fn later(&self, waker: &Waker) {
        self.waiting.borrow_mut().push(waker.clone());
        if let Some(own) = self.own.borrow_mut().take() {
            own.wake();
        }
    }

    /// Runs as long as the reactor does.
    async fn run(self: Rc<Self>) {
        poll_fn(|context| {
            *self.own.borrow_mut() = Some(context.waker().clone());
            let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
            waiting.into_iter().for_each(Waker::wake);
            Poll::Pending
        })
        .await
    }
}

/// Tells a wake from inside a poll from one that comes later.
struct Gate {
    outer: Waker,
    polling: AtomicBool,
    again: AtomicBool,
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.polling.load(Ordering::Relaxed) {
            self.again.store(true, Ordering::Relaxed);
        } else {
            self.outer.wake_by_ref();
        }
    }
}

async fn fair(mut future: Pin<Box<dyn Future<Output = ()> + Send>>, relay: Rc<Relay>) {
    let mut known: Option<(Arc<Gate>, Waker)> = None;
    poll_fn(|context| {
        if !known.as_ref().is_some_and(|(gate, _)| gate.outer.will_wake(context.waker())) {
            let outer = context.waker().clone();
            let gate = Arc::new(Gate { outer, polling: AtomicBool::new(false), again: AtomicBool::new(false) });
            known = Some((gate.clone(), gate.into()));
        }
        let Some((gate, waker)) = &known else { return Poll::Pending };
        gate.polling.store(true, Ordering::Relaxed);
        let state = future.as_mut().poll(&mut Context::from_waker(waker));
        gate.polling.store(false, Ordering::Relaxed);
        if gate.again.swap(false, Ordering::Relaxed) && state.is_pending() {
            relay.later(context.waker());
        }
        state
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::reactor::{self, Preference};
    use std::cell::Cell;

    /// A driver that always has more to do must not keep others from running. monoio alone runs such a task
    /// 100,000 times before anything else.
    #[test]
    fn a_task_that_wakes_itself_lets_others_run() {
        let backend = reactor::probe(Preference::Auto).expect("probe").backend;
        let turns = std::thread::spawn(move || {
            reactor::build(backend).expect("runtime").block_on(async {
                let runtime = MonoioRuntime::new();
                let left = Arc::new(std::sync::atomic::AtomicU32::new(100_000));
                let turns = left.clone();
                runtime.spawn(Box::pin(poll_fn(move |context| {
                    if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                        return Poll::Ready(());
                    }
                    context.waker().wake_by_ref();
                    Poll::Pending
                })));
                let other = Rc::new(Cell::new(0));
                let seen = other.clone();
                monoio::spawn(async move { seen.set(100_000 - turns.load(Ordering::Relaxed)) }).await;
                other.get()
            })
        })
        .join()
        .expect("thread");
        assert!(turns < 100, "the other task waited for {turns} turns");
    }

    #[test]
    fn a_timer_of_the_runtime_fires_and_can_be_put_off() {
        let backend = reactor::probe(Preference::Auto).expect("probe").backend;
        let took = std::thread::spawn(move || {
            reactor::build(backend).expect("runtime").block_on(async {
                let runtime = MonoioRuntime::new();
                let began = Instant::now();
                let mut timer = runtime.new_timer(began + std::time::Duration::from_millis(1));
                timer.as_mut().reset(began + std::time::Duration::from_millis(20));
                poll_fn(|context| timer.as_mut().poll(context)).await;
                began.elapsed()
            })
        })
        .join()
        .expect("thread");
        assert!(took.as_millis() >= 19, "{took:?}");
    }
}
