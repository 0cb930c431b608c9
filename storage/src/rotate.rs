//! Rotation while serving: new keys for what is written from now on, and a sweep that brings the rest to them.
//!
//! The sweep is one thread that waits for each page to be durable before it reads the next, so it never takes more than
//! one place in the commit queue. A note in the control family outlives a crash: the next start sweeps again.

use crate::backend::{Cf, KvOp, ScanRange};
use crate::error::{CommitError, OpenError, ReadError};
use crate::layout::{self, ctl};
use crate::reseal::{Guarded, Sweep};
use crate::seal::{self, Kek, KeySource, NO_USER, Suite, VaultError};
use crate::store::{BackendKind, Inner, Store};
use millrace_proto::id::TenantId;
use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;

/// Why keys were not rotated.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Another rotation is running.
    #[error("a rotation is running already; ask again when it is done")]
    Running,
    /// The key of keys comes from where the program cannot change it.
    #[error("{0}")]
    Source(String),
    /// The new key could not be had.
    #[error("the new key of keys cannot be used")]
    Key(#[source] OpenError),
    /// The store could not be read.
    #[error("the keys cannot be read")]
    Read(#[source] ReadError),
    /// The new keys could not be written.
    #[error("the new keys cannot be written")]
    Write(#[source] CommitError),
    /// The sealed secrets beside the store could not be brought to the new key.
    #[error("the sealed secrets cannot be brought to the new key")]
    Secrets(#[source] VaultError),
    /// The thread could not be started.
    #[error("the rotation cannot start")]
    Thread(#[source] std::io::Error),
}

/// What a rotation did before its sweep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RotationDone {
    /// Keys that were made or wrapped anew.
    pub keys: usize,
}

/// Called once when the new keys are durable, or with the reason why not. The sweep goes on after it.
pub type Rotated = Box<dyn FnOnce(Result<RotationDone, RotateError>) + Send>;

/// The one rotation that may run.
#[derive(Default)]
pub(crate) struct Rotations {
    stop: Arc<AtomicBool>,
    running: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Rotations {
    /// Ends a running sweep and waits for it. It goes on at the next start.
    pub fn close(&self) {
        self.stop.store(true, Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("the rotation of keys panicked");
        }
    }

    /// Runs `work` on a thread of its own, unless another rotation runs.
    fn start(&self, work: impl FnOnce(Running, &AtomicBool) + Send + 'static) -> Result<(), RotateError> {
        let mut slot = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if self.running.swap(true, AcqRel) {
            return Err(RotateError::Running);
        }
        let running = Running(Arc::clone(&self.running));
        let stop = Arc::clone(&self.stop);
        let thread = std::thread::Builder::new().name("store-rotate".into()).spawn(move || work(running, &stop));
        // A thread that is replaced here has only its answer left to give.
        *slot = Some(thread.map_err(RotateError::Thread)?);
        Ok(())
    }
}

/// Held while a rotation runs. Given up before the last answer, so that whoever has it may start the next one.
struct Running(Arc<AtomicBool>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.store(false, Release);
    }
}

impl Store {
    /// Makes new keys for a tenant and all its users, of another suite if one is named, and brings every row to them
    /// in the background while serving. Old keys stay, because archives may need them; a forgotten user's go all.
    pub fn rotate_keys(&self, tenant: TenantId, suite: Option<Suite>, done: Rotated) -> Result<(), RotateError> {
        // The thread must not keep the store open: it only borrows it for a page at a time.
        let store = Arc::downgrade(self.inner());
        self.inner().rotations.start(move |running, stop| {
            let made = with(&store, |inner| make_keys(inner, tenant, suite))
                .unwrap_or(Err(RotateError::Write(CommitError::Closed)));
            if made.is_err() {
                drop(running);
                return done(made);
            }
            // Before the answer: whoever was answered sees that rows are on their way.
            with(&store, |inner| inner.shared.stats.rotations_running.store(1, Relaxed));
            done(made);
            sweep(&store, &[tenant], stop);
        })
    }

    /// Brings everything that the key of keys wraps to a new one. From a file: a new key is made and takes
    /// the file's place. From a command: it is asked again and must give the new one.
    pub fn rotate_master_key(&self, done: Rotated) -> Result<(), RotateError> {
        let store = Arc::downgrade(self.inner());
        self.inner().rotations.start(move |running, _| {
            let made = with(&store, renew_master).unwrap_or(Err(RotateError::Write(CommitError::Closed)));
            drop(running);
            done(made);
        })
    }

    /// Goes on with sweeps that the last process did not finish.
    pub(crate) fn resume_rotations(&self) -> std::io::Result<()> {
        let tenants = noted(self.inner()).map_err(|error| std::io::Error::other(error.to_string()))?;
        if tenants.is_empty() {
            return Ok(());
        }
        let store = Arc::downgrade(self.inner());
        self.shared().stats.rotations_running.store(tenants.len(), Relaxed);
        let started = self.inner().rotations.start(move |_running, stop| sweep(&store, &tenants, stop));
        started.map_err(|error| std::io::Error::other(error.to_string()))
    }
}

fn renew_master(inner: &Inner) -> Result<RotationDone, RotateError> {
    let options = &inner.options;
    let new = match &options.key_source {
        _ if options.backend == BackendKind::Memory => {
            return Err(RotateError::Source(
                "a store in memory keeps its key nowhere, so there is none to renew".into(),
            ));
        }
        KeySource::File => Kek::create(&seal::next_of(&options.key_file)).map_err(RotateError::Key)?,
        KeySource::Command(_) => {
            let read = options.key_source.read(&options.key_file).map_err(RotateError::Key)?;
            let (kek, _) = read.expect("a command gives a key or an error");
            if inner.shared.keys.is_master(&kek) {
                let why = "the key command still prints the present key: give it the new one first";
                return Err(RotateError::Source(why.into()));
            }
            kek
        }
        KeySource::Environment(name) => {
            return Err(RotateError::Source(format!(
                "the key of keys comes from the environment, which cannot change while the program runs: \
                 start it with the new key in {name} and the old one in {name}_PREVIOUS"
            )));
        }
    };
    // The secrets open under both keys until the new one has taken its place, whatever happens between.
    seal::admit_key(&options.path, &inner.shared.keys.master(), &new).map_err(RotateError::Secrets)?;
    let keys = inner.shared.keys.rewrap(&*inner.shared.kv, new.clone()).map_err(RotateError::Write)?;
    if options.key_source == KeySource::File {
        let failed = |source| OpenError::io("put the new key in the place of", &options.key_file, source);
        seal::publish_next(&options.key_file).map_err(|source| RotateError::Key(failed(source)))?;
    }
    seal::keep_key(&options.path, &new).map_err(RotateError::Secrets)?;
    tracing::info!(keys, "the store was brought to a new key of keys");
    Ok(RotationDone { keys })
}

/// Runs with the store while it is open.
fn with<T>(store: &Weak<Inner>, act: impl FnOnce(&Inner) -> T) -> Option<T> {
    store.upgrade().map(|inner| act(&inner))
}

/// Tenants whose sweep is not finished.
fn noted(inner: &Inner) -> Result<Vec<TenantId>, ReadError> {
    let mut tenants = Vec::new();
    let to = layout::prefix_end(ctl::ROTATION);
    inner.shared.kv.scan(Cf::Ctl, ScanRange::forward(ctl::ROTATION, &to), &mut |key, _| {
        tenants.extend(key.last_chunk().map(|bytes| TenantId(u32::from_be_bytes(*bytes))));
        ControlFlow::Continue(())
    })?;
    Ok(tenants)
}

fn make_keys(inner: &Inner, tenant: TenantId, suite: Option<Suite>) -> Result<RotationDone, RotateError> {
    let (kv, keys) = (&*inner.shared.kv, &inner.shared.keys);
    let note = KvOp::Put(Cf::Ctl, layout::rotation_note(tenant), Vec::new());
    // A new key is what the sweep works by: the note of it stands first.
    kv.apply(&[note], true).map_err(|error| RotateError::Write(error.into()))?;
    keys.rotate(kv, (tenant, NO_USER), suite).map_err(RotateError::Write)?;
    let users = seal::users(kv, tenant).map_err(RotateError::Read)?;
    for user in &users {
        keys.rotate(kv, (tenant, *user), suite).map_err(RotateError::Write)?;
    }
    tracing::info!(tenant = tenant.0, users = users.len(), "new keys are in use; older rows are brought to them");
    Ok(RotationDone { keys: 1 + users.len() })
}

fn sweep(store: &Weak<Inner>, tenants: &[TenantId], stop: &AtomicBool) {
    let Some(inner) = store.upgrade() else { return };
    let shared = Arc::clone(&inner.shared);
    drop(inner);
    for tenant in tenants {
        let sweep = Sweep { kv: &*shared.kv, keys: &shared.keys, tenant: Some(*tenant), users: None };
        let mut whole = true;
        let swept = sweep.run(|rows: Vec<Guarded>| {
            if stop.load(Relaxed) {
                whole = false;
                return Ok(ControlFlow::Break(()));
            }
            if !rows.is_empty() {
                let written = with(store, |inner| inner.commit.guarded(&shared, rows));
                written.unwrap_or(Err(CommitError::Closed))?;
            }
            Ok(ControlFlow::Continue(()))
        });
        match swept {
            Ok(swept) if whole => {
                let done = KvOp::Delete(Cf::Ctl, layout::rotation_note(*tenant));
                match shared.kv.apply(&[done], true) {
                    Ok(()) => tracing::info!(tenant = tenant.0, rows = swept.resealed, "all rows are under new keys"),
                    Err(error) => tracing::warn!(%error, "the end of a rotation was not noted; it is checked again"),
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(tenant = tenant.0, %error, "a rotation stopped; it goes on at the next start");
            }
        }
        shared.stats.rotations_running.fetch_sub(1, Relaxed);
    }
}
