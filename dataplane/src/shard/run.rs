//! The threads of a node's shards: start, drain, stop.

use std::future::Future;
use std::net::{SocketAddr, TcpListener as StdListener, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use monoio::net::TcpListener;

use super::mailbox::MAILBOX_DRAIN_MAX;
use super::reactor::{self, Backend, ReactorError};
use super::{MailboxReceiver, Shared, topology};
use crate::bridge::Bridge;
use crate::clock::unix_ms;
use crate::gateway::Gateway;
use crate::net::accept::accept_loop;
use crate::net::quic::Door;
use crate::net::tls::Tls;
use crate::net::{self, Limits, Listeners, Net, QuicSockets};

/// The shard's timer: deadlines of connections and the agent's clock are this coarse.
pub const TICK: Duration = Duration::from_millis(50);

/// Pause after a drain that found more mail than one turn may take, so that sockets get theirs.
const BACKLOG_PAUSE: Duration = Duration::from_millis(1);

/// How long a stopping shard lets its cut connections end by themselves.
const STOP_GRACE: Duration = Duration::from_millis(500);

/// How long connections may take to say that their answer was cut.
const END_GRACE: Duration = Duration::from_secs(1);

/// How often a waiting thread looks at the shards' progress.
const WATCH_PAUSE: Duration = Duration::from_millis(5);

/// How shards are started.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// The reactor's back end, as probed.
    pub backend: Backend,
    /// CPUs to pin to, in shard order (round robin); empty = do not pin.
    pub cpus: Vec<usize>,
    /// Bounds of each shard's connections.
    pub limits: Limits,
}

/// A shard did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The thread could not be made.
    #[error("cannot start the thread of shard {shard}: {source}. Next step: look at `ulimit -u` and the memory limit")]
    Thread {
        /// Which shard.
        shard: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The reactor could not be built.
    #[error(transparent)]
    Reactor(#[from] ReactorError),
    /// The listener could not be handed to the reactor.
    #[error("shard {shard} cannot take over its listening socket: {source}")]
    Listener {
        /// Which shard.
        shard: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread ended before it was ready.
    #[error("shard {shard} ended while it started; the log has the reason")]
    Died {
        /// Which shard.
        shard: usize,
    },
}

/// What a drain left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainReport {
    /// Connections still open.
    pub connections_open: usize,
    /// Shards whose bridge still works on something.
    pub shards_busy: usize,
}

#[derive(Default)]
struct Progress {
    connections: AtomicUsize,
    bridge_busy: AtomicBool,
    drained_once: AtomicBool,
}

struct Lifecycle {
    drain: AtomicBool,
    hand_over: AtomicBool,
    end: AtomicBool,
    stop: AtomicBool,
    progress: Vec<Progress>,
}

/// The running shards of a node.
pub struct Shards {
    lifecycle: Arc<Lifecycle>,
    threads: Vec<JoinHandle<()>>,
}

impl Shards {
    /// Starts one thread for each mailbox and returns when all of them accept.
    pub fn start(
        shared: &Arc<Shared>,
        mailboxes: Vec<MailboxReceiver>,
        listeners: Listeners,
        secure: Option<Listeners>,
        quic: Option<QuicSockets>,
        options: &StartOptions,
    ) -> Result<Self, StartError> {
        assert_eq!(mailboxes.len(), listeners.sockets.len(), "one listener for each shard");
        assert_eq!(secure.is_some(), shared.tls.is_some(), "certificates for a port, a port for certificates");
        assert_eq!(mailboxes.len(), shared.shard_count(), "one sender for each shard");
        let lifecycle = Arc::new(Lifecycle {
            drain: AtomicBool::new(false),
            hand_over: AtomicBool::new(false),
            end: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            progress: mailboxes.iter().map(|_| Progress::default()).collect(),
        });
        let mut shards = Self { lifecycle: lifecycle.clone(), threads: Vec::new() };
        let mut started = Vec::new();
        let mut secure = secure.map(|listeners| listeners.sockets.into_iter());
        let alt_svc = quic.as_ref().map_or_else(String::new, |quic| alternative(quic.address.port()));
        let mut quic = quic.map(|quic| quic.sockets.into_iter());
        for (index, (mailbox, listener)) in mailboxes.into_iter().zip(listeners.sockets).enumerate() {
            let (report, reported) = mpsc::sync_channel(1);
            let seat = Seat {
                index,
                shared: shared.clone(),
                mailbox,
                listener,
                secure: secure.as_mut().and_then(Iterator::next),
                quic: quic.as_mut().and_then(Iterator::next),
                alt_svc: alt_svc.clone(),
                lifecycle: lifecycle.clone(),
                options: options.clone(),
                report,
            };
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || live(seat))
                .map_err(|source| StartError::Thread { shard: index, source });
            match thread {
                Ok(thread) => shards.threads.push(thread),
                Err(error) => {
                    shards.stop();
                    return Err(error);
                }
            }
            started.push(reported);
        }
        for (shard, reported) in started.into_iter().enumerate() {
            let answer = reported.recv().unwrap_or(Err(StartError::Died { shard }));
            if let Err(error) = answer {
                shards.stop();
                return Err(error);
            }
        }
        Ok(shards)
    }

    /// Stops accepting and lets running answers end. At the deadline those that still run are
    /// told to say so to their clients. Returns as soon as nothing is left.
    pub fn drain(&self, deadline: Instant) -> DrainReport {
        self.lifecycle.drain.store(true, Ordering::Release);
        let report = self.wait_for_quiet(deadline);
        if report.connections_open == 0 {
            return report;
        }
        self.lifecycle.end.store(true, Ordering::Release);
        self.wait_for_quiet(Instant::now() + END_GRACE);
        report
    }

    /// [`Shards::drain`] with listeners that stay open for the process that follows.
    pub fn hand_over(&self, deadline: Instant) -> DrainReport {
        self.lifecycle.hand_over.store(true, Ordering::Release);
        self.drain(deadline)
    }

    fn wait_for_quiet(&self, deadline: Instant) -> DrainReport {
        loop {
            let report = self.report();
            let begun = self.lifecycle.progress.iter().all(|progress| progress.drained_once.load(Ordering::Acquire));
            if (begun && report.connections_open == 0 && report.shards_busy == 0) || Instant::now() >= deadline {
                return report;
            }
            std::thread::sleep(WATCH_PAUSE);
        }
    }

    /// Cuts what is left and joins the threads.
    pub fn stop(self) {
        self.lifecycle.stop.store(true, Ordering::Release);
        for thread in self.threads {
            // A shard that panicked has reported it already.
            let _ = thread.join();
        }
    }

    fn report(&self) -> DrainReport {
        let progress = &self.lifecycle.progress;
        DrainReport {
            connections_open: progress.iter().map(|shard| shard.connections.load(Ordering::Acquire)).sum(),
            shards_busy: progress.iter().filter(|shard| shard.bridge_busy.load(Ordering::Acquire)).count(),
        }
    }
}

/// What a shard's thread is given.
struct Seat {
    index: usize,
    shared: Arc<Shared>,
    mailbox: MailboxReceiver,
    listener: StdListener,
    /// The listener whose connections speak TLS.
    secure: Option<StdListener>,
    /// The socket of the QUIC endpoint.
    quic: Option<UdpSocket>,
    alt_svc: String,
    lifecycle: Arc<Lifecycle>,
    options: StartOptions,
    report: mpsc::SyncSender<Result<(), StartError>>,
}

fn live(seat: Seat) {
    let index = seat.index;
    let shared = seat.shared.clone();
    let progress = seat.lifecycle.clone();
    if let Some(&cpu) = seat.options.cpus.get(index % seat.options.cpus.len().max(1))
        && let Err(error) = topology::pin_current_thread(cpu)
    {
        tracing::warn!(shard = index, cpu, %error, "cannot pin the shard; it runs unpinned");
    }
    // Connections wait for this thread.
    millrace_storage::reactor_thread();
    let report = seat.report.clone();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut reactor = reactor::build(seat.options.backend)?;
        reactor.block_on(run(seat))
    }));
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            let _ = report.try_send(Err(error));
        }
        Err(_) => {
            // The conversations of this shard are stranded: a supervisor must restart the node.
            tracing::error!(shard = index, "a shard panicked; the node is no longer ready");
            shared.health.set_unready("a shard panicked; restart the node");
        }
    }
    progress.progress[index].connections.store(0, Ordering::Release);
    progress.progress[index].bridge_busy.store(false, Ordering::Release);
    progress.progress[index].drained_once.store(true, Ordering::Release);
}

async fn run(seat: Seat) -> Result<(), StartError> {
    let Seat { index, shared, mailbox, listener, secure, quic, alt_svc, lifecycle, options, report } = seat;
    let failed = |source| StartError::Listener { shard: index, source };
    let adopt = |listener: StdListener| {
        listener.set_nonblocking(options.backend == Backend::Epoll)?;
        TcpListener::from_std(listener)
    };
    let listener = adopt(listener).map_err(failed)?;
    let secure = secure.map(adopt).transpose().map_err(failed)?;

    let net = Net::new(index, options.limits, shared.metrics.clone(), alt_svc);
    net.tick();
    let bridge = Bridge::new(index, shared.clone());
    let gateway = Rc::new(Gateway::new(shared.clone(), net.clone(), bridge.clone()));
    bridge.resume();
    let serve = |tls: Option<Arc<Tls>>| {
        let (net, gateway) = (net.clone(), gateway.clone());
        move |stream, peer: SocketAddr| {
            let (net, gateway, tls) = (net.clone(), gateway.clone(), tls.clone());
            drop(monoio::spawn(net::connection::run(net, gateway, stream, peer.ip(), tls)));
        }
    };
    drop(monoio::spawn(accept_loop(net.clone(), listener, serve(None))));
    if let Some(secure) = secure {
        drop(monoio::spawn(accept_loop(net.clone(), secure, serve(shared.tls.clone()))));
    }
    let door = quic
        .zip(shared.tls.clone())
        .map(|(socket, tls)| Door::open(socket, tls, index, shared.shard_count(), options.limits.idle))
        .transpose()
        .map_err(failed)?;
    if let Some(door) = &door {
        drop(monoio::spawn(door.clone().serve(net.clone(), gateway.clone())));
    }
    let _ = report.send(Ok(()));
    drop(report);

    let progress = &lifecycle.progress[index];
    let metrics = shared.metrics.shard(index);
    let mut next_tick = Instant::now() + TICK;
    let mut timer = pin!(monoio::time::sleep_until(next_tick.into()));
    loop {
        let drained = mailbox.drain(MAILBOX_DRAIN_MAX, |message| bridge.on_message(message));
        if drained > 0 {
            metrics.mailbox_drained(drained as u64);
        }
        let now = Instant::now();
        if now >= next_tick {
            next_tick = now + TICK;
            timer.set(monoio::time::sleep_until(next_tick.into()));
            net.tick();
            gateway.tick();
            bridge.tick(unix_ms());
            if lifecycle.stop.load(Ordering::Acquire) {
                break;
            }
            let draining = lifecycle.drain.load(Ordering::Acquire);
            if draining && !net.draining.get() {
                bridge.close_inbox();
                if lifecycle.hand_over.load(Ordering::Acquire) { net.hand_over() } else { net.drain() }
            }
            if lifecycle.end.load(Ordering::Acquire) {
                net.lines.end();
            }
            if let Some(door) = &door {
                door.tick(net.refuses_work());
            }
            progress.connections.store(net.lines.len(), Ordering::Release);
            progress.bridge_busy.store(!bridge.idle(), Ordering::Release);
            // Only a tick after the drain has begun says something about it.
            progress.drained_once.store(draining, Ordering::Release);
        }
        if drained == MAILBOX_DRAIN_MAX {
            monoio::time::sleep(BACKLOG_PAUSE).await;
            continue;
        }
        let mut mail = pin!(mailbox.ready());
        std::future::poll_fn(|context| {
            if mail.as_mut().poll(context).is_ready() {
                return std::task::Poll::Ready(());
            }
            timer.as_mut().poll(context)
        })
        .await;
    }
    net.drain();
    net.lines.stop();
    let grace = Instant::now() + STOP_GRACE;
    while !net.lines.is_empty() && Instant::now() < grace {
        mailbox.drain(MAILBOX_DRAIN_MAX, |message| bridge.on_message(message));
        monoio::time::sleep(BACKLOG_PAUSE).await;
        net.lines.stop();
    }
    if let Some(door) = &door {
        door.close(!net.refuses_work()).await;
    }
    Ok(())
}

/// Says that HTTP/3 is served on `port` (RFC 7838); good for a day.
fn alternative(port: u16) -> String {
    format!("h3=\":{port}\"; ma=86400")
}
