//! Outbound HTTP: one Tokio current-thread runtime on its own thread, reached through a bounded queue.
//!
//! Nothing of Tokio leaks out: callers hand in an [`OutboundCall`] and a callback, which runs on the control
//! thread and must be quick (usually it pushes into a mailbox).

pub mod platforms;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use millrace_proto::channel::OutboundCall;
use tokio::sync::{Semaphore, mpsc};

/// Calls that may wait for their turn.
const QUEUE_MAX: usize = 1024;
/// Calls on the wire at the same time.
const CALLS_MAX: usize = 64;
/// Largest answer that is read; platforms answer with a few KiB.
const REPLY_BYTES_MAX: usize = 1 << 20;
/// Redirects followed, and only to the same host over the same scheme.
const REDIRECTS_MAX: usize = 3;
/// Time to reach the peer, within the deadline of the whole call.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// What the peer answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpReply {
    /// Status code.
    pub status: u16,
    /// Header names (lower case) and values; values that are not text are left out.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// URL, method or headers cannot be sent at all.
    #[error("the request cannot be built: {0}")]
    Invalid(String),
    /// The peer was never reached: nothing was sent.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The deadline passed after the request may have been sent.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection failed after the request may have been sent.
    #[error("the connection failed: {0}")]
    Broken(String),
    /// The answer is larger than what is read.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    /// The control thread has ended.
    #[error("the node is stopping")]
    Closed,
}

impl CallError {
    /// May the peer have acted on the request although no answer came?
    pub fn may_have_been_sent(&self) -> bool {
        matches!(self, Self::Timeout(_) | Self::Broken(_) | Self::TooLarge(_))
    }
}

/// The queue of outbound calls is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{QUEUE_MAX} outbound calls are waiting already")]
pub struct Busy;

/// Runs on the control thread with the outcome; must not block.
pub type Done = Box<dyn FnOnce(Result<HttpReply, CallError>) + Send>;

struct Job {
    call: OutboundCall,
    timeout: Duration,
    done: Done,
}

/// Handle to the control thread; clones share it.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    jobs: mpsc::Sender<Job>,
    stats: Arc<Stats>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
    stop: Arc<tokio::sync::Notify>,
    runtime: tokio::runtime::Handle,
}

#[derive(Debug, Default)]
struct Stats {
    calls: AtomicU64,
    failures: AtomicU64,
    refused: AtomicU64,
}

/// Counters of outbound calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlStats {
    /// Calls with an answer or an error.
    pub calls: u64,
    /// Calls without an answer.
    pub failures: u64,
    /// Calls refused by the full queue.
    pub refused: u64,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Control").field(&self.0.stats).finish()
    }
}

impl Control {
    /// Starts the control thread.
    pub fn start() -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Name resolution blocks; four lookups at a time are plenty for a handful of platforms.
            .max_blocking_threads(4)
            .build()?;
        let client = client().map_err(std::io::Error::other)?;
        let (jobs, queue) = mpsc::channel(QUEUE_MAX);
        let stats = Arc::new(Stats::default());
        let stop = Arc::new(tokio::sync::Notify::new());
        let (counted, stopped) = (Arc::clone(&stats), Arc::clone(&stop));
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new()
            .name("control".into())
            .stack_size(1 << 20)
            .spawn(move || runtime.block_on(serve(queue, client, counted, stopped)))?;
        let thread = std::sync::Mutex::new(Some(thread));
        Ok(Self(Arc::new(Inner { jobs, stats, thread, stop, runtime: handle })))
    }

    /// The runtime of the control thread, for a client that another thread waits for. That thread must have ended
    /// before [`Control::shutdown`]: without the control thread nothing drives its calls.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.0.runtime.clone()
    }

    /// Sends `call`; `done` runs with the outcome at the latest after `timeout` on the wire.
    pub fn http(&self, call: OutboundCall, timeout: Duration, done: Done) -> Result<(), Busy> {
        match self.0.jobs.try_send(Job { call, timeout, done }) {
            Ok(()) => Ok(()),
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.0.stats.refused.fetch_add(1, Relaxed);
                Err(Busy)
            }
            Err(mpsc::error::TrySendError::Closed(job)) => {
                (job.done)(Err(CallError::Closed));
                Ok(())
            }
        }
    }

    /// Counters so far.
    pub fn stats(&self) -> ControlStats {
        let stats = &self.0.stats;
        ControlStats {
            calls: stats.calls.load(Relaxed),
            failures: stats.failures.load(Relaxed),
            refused: stats.refused.load(Relaxed),
        }
    }

    /// Ends the thread; calls on the wire are given up as [`CallError::Closed`] is for queued ones.
    pub fn shutdown(&self) {
        self.0.stop.notify_one();
        let thread = self.0.thread.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

fn client() -> reqwest::Result<reqwest::Client> {
    let same_place = reqwest::redirect::Policy::custom(|attempt| {
        let place = |url: &reqwest::Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned), url.port());
        let origin = attempt.previous().first().map(place);
        // A redirect to another host would carry a token or a signed body to somebody else.
        if attempt.previous().len() > REDIRECTS_MAX || origin != Some(place(attempt.url())) {
            attempt.stop()
        } else {
            attempt.follow()
        }
    });
    reqwest::Client::builder()
        .user_agent(concat!("millrace/", env!("CARGO_PKG_VERSION")))
        .redirect(same_place)
        .connect_timeout(CONNECT_MAX)
        .pool_max_idle_per_host(4)
        // The platforms' authorities are compiled in; reading those of the system would lengthen every start.
        .tls_built_in_native_certs(false)
        .build()
}

async fn serve(
    mut queue: mpsc::Receiver<Job>,
    client: reqwest::Client,
    stats: Arc<Stats>,
    stop: Arc<tokio::sync::Notify>,
) {
    let places = Arc::new(Semaphore::new(CALLS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("this semaphore is never closed");
        let job = tokio::select! {
            () = stop.notified() => break,
            job = queue.recv() => match job { Some(job) => job, None => break },
        };
        let (client, stats) = (client.clone(), Arc::clone(&stats));
        tokio::spawn(async move {
            let outcome = perform(&client, job.call, job.timeout).await;
            stats.calls.fetch_add(1, Relaxed);
            if outcome.is_err() {
                stats.failures.fetch_add(1, Relaxed);
            }
            (job.done)(outcome);
            drop(place);
        });
    }
    queue.close();
    while let Some(job) = queue.recv().await {
        (job.done)(Err(CallError::Closed));
    }
}

async fn perform(client: &reqwest::Client, call: OutboundCall, timeout: Duration) -> Result<HttpReply, CallError> {
    let method = call.method.parse::<reqwest::Method>().map_err(|_| CallError::Invalid("the method".into()))?;
    let mut request = client.request(method, call.url.as_str()).body(call.body);
    for (name, value) in call.headers {
        request = request.header(name, value);
    }
    let request = request.build().map_err(|error| CallError::Invalid(without_url(error)))?;
    let exchange = async {
        let mut response = client.execute(request).await.map_err(classify)?;
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(classify)? {
            if body.len() + chunk.len() > REPLY_BYTES_MAX {
                return Err(CallError::TooLarge(REPLY_BYTES_MAX));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(HttpReply { status, headers, body })
    };
    match tokio::time::timeout(timeout, exchange).await {
        Ok(outcome) => outcome,
        Err(_) => Err(CallError::Timeout(timeout)),
    }
}

fn classify(error: reqwest::Error) -> CallError {
    if error.is_builder() {
        CallError::Invalid(without_url(error))
    } else if error.is_connect() {
        CallError::Connect(without_url(error))
    } else {
        CallError::Broken(without_url(error))
    }
}

/// The error's chain without the URL: some platforms put their token into the path.
fn without_url(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
