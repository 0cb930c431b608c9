//! A few threads that run one closure together, with a barrier inside.
//!
//! A step of a small model takes milliseconds and has hundreds of phases, so handing out work must cost far less than
//! a microsecond: waiting threads spin, then yield the core to others, and sleep only when nothing comes.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;

use super::BackendStartError;

/// Polls with a pause between them: some tens of microseconds, longer than almost every phase.
const SPINS: u32 = 2_000;
/// Polls that give the core away in between, before sleeping.
const YIELDS: u32 = 100;

type Job = dyn Fn(usize, &Barrier) + Sync;

/// Some threads that can be given work: the same job for each, which divides the work by itself.
pub trait Crew {
    /// Runs `job` once on each thread, the calling one included, and returns when all are done.
    fn run(&mut self, job: &(dyn Fn() + Sync));
}

/// The calling thread alone.
pub struct Solo;

impl Crew for Solo {
    fn run(&mut self, job: &(dyn Fn() + Sync)) {
        job();
    }
}

/// Threads of a team and where they run.
#[derive(Clone, Debug)]
pub(crate) struct TeamConfig {
    /// Threads, the owner's included.
    pub(crate) threads: usize,
    /// Cores to pin them to, first the owner.
    pub(crate) cpus: Option<Vec<usize>>,
    /// Priority, 0 to 19.
    pub(crate) nice: i32,
}

/// The team; its owner is member 0.
pub(crate) struct Team {
    shared: Arc<Shared>,
    members: Vec<JoinHandle<()>>,
    config: TeamConfig,
}

impl Crew for Team {
    fn run(&mut self, job: &(dyn Fn() + Sync)) {
        Team::run(self, &|_, _| job());
    }
}

struct Shared {
    /// Counts jobs; a change is the signal to read `job`.
    epoch: Signal,
    job: UnsafeCell<Option<*const Job>>,
    stop: AtomicBool,
    barrier: Barrier,
}

// SAFETY: `job` is written only by the owner between jobs, while every other member waits for `epoch`, and read only
// after `epoch` changed (release / acquire). The closure behind it is `Sync` and outlives the job: see `Team::run`.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Team {
    pub(crate) fn start(config: TeamConfig) -> Result<Team, BackendStartError> {
        let shared = Arc::new(Shared {
            epoch: Signal::default(),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            barrier: Barrier { size: config.threads as u32, arrived: AtomicU32::new(0), generation: Signal::default() },
        });
        let mut team = Team { shared, members: Vec::new(), config };
        for index in 1..team.config.threads {
            let (shared, config) = (team.shared.clone(), team.config.clone());
            let member = std::thread::Builder::new()
                .name(format!("compute-{index}"))
                .spawn(move || {
                    settle(&config, index);
                    shared.serve(index);
                })
                .map_err(|source| BackendStartError::Thread { index, source })?;
            team.members.push(member);
        }
        Ok(team)
    }

    /// Pins and prioritises the calling thread as member 0.
    pub(crate) fn attach(&self) {
        settle(&self.config, 0);
    }

    /// Runs `job(member, barrier)` on all members, this thread as member 0, and returns when all are done. Inside, every
    /// member must wait at the barrier equally often.
    pub(super) fn run(&mut self, job: &(dyn Fn(usize, &Barrier) + Sync)) {
        if !self.members.is_empty() {
            // SAFETY: only the lifetime is erased. Every member finishes with the closure before it arrives at the
            // barrier below, and this function does not return (nor unwind: see `AbortOnPanic`) before that.
            let job = unsafe { std::mem::transmute::<*const (dyn Fn(usize, &Barrier) + Sync + '_), *const Job>(job) };
            // SAFETY: all other members wait for `epoch`, so nobody reads `job` now.
            unsafe { *self.shared.job.get() = Some(job) };
            self.shared.epoch.advance();
        }
        let guard = AbortOnPanic;
        job(0, &self.shared.barrier);
        self.shared.barrier.wait();
        std::mem::forget(guard);
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.epoch.advance();
        for member in self.members.drain(..) {
            // A member cannot panic without ending the process, so there is nothing to learn from the result.
            let _ = member.join();
        }
    }
}

impl Shared {
    fn serve(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.epoch.wait_past(seen);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            // SAFETY: `epoch` changed, so the owner has written the job and waits until this member arrives below.
            let job = unsafe { (*self.job.get()).expect("a job is set before the signal") };
            let guard = AbortOnPanic;
            // SAFETY: the closure lives until all members arrived at the barrier.
            unsafe { (*job)(index, &self.barrier) };
            self.barrier.wait();
            std::mem::forget(guard);
        }
    }
}

/// A member that unwinds would leave the others waiting for ever, with the step half computed. Its panic message has
/// been printed by then; ending the process lets the supervisor restart it from durable state.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// All members wait until the last arrives.
pub(super) struct Barrier {
    size: u32,
    arrived: AtomicU32,
    generation: Signal,
}

impl Barrier {
    pub(super) fn wait(&self) {
        if self.size == 1 {
            return;
        }
        let generation = self.generation.value.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.size {
            self.arrived.store(0, Ordering::Relaxed);
            self.generation.advance();
        } else {
            self.generation.wait_past(generation);
        }
    }
}

/// A counter to wait on: spin, yield, then sleep in the kernel.
#[derive(Default)]
#[repr(align(128))]
struct Signal {
    value: AtomicU32,
    sleepers: AtomicU32,
}

impl Signal {
    fn advance(&self) {
        // Sequentially consistent with `sleepers`: either the sleeper sees the new value, or we see the sleeper.
        self.value.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            // SAFETY: FUTEX_WAKE only uses the address of a live, aligned 32-bit word.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.value.as_ptr(),
                    libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
                    i32::MAX,
                );
            }
        }
    }

    /// Waits until the value differs from `seen`; returns it.
    fn wait_past(&self, seen: u32) -> u32 {
        for round in 0..SPINS + YIELDS {
            let value = self.value.load(Ordering::Acquire);
            if value != seen {
                return value;
            }
            if round < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let value = loop {
            let value = self.value.load(Ordering::SeqCst);
            if value != seen {
                break value;
            }
            // SAFETY: FUTEX_WAIT compares and sleeps on a live, aligned 32-bit word; no timeout is given. Every way
            // in which it returns (woken, changed, interrupted) leads to another look at the value.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    self.value.as_ptr(),
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    seen,
                    std::ptr::null::<libc::timespec>(),
                );
            }
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        value
    }
}

/// Pins the calling thread and sets its priority. Both only affect speed, so a refusal is logged, not an error.
fn settle(config: &TeamConfig, index: usize) {
    if let Some(&cpu) = config.cpus.as_ref().and_then(|cpus| cpus.get(index)) {
        // SAFETY: an all-zero `cpu_set_t` is valid, and CPU_SET is bounds-checked by the test before it.
        let refused = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            let known = cpu < libc::CPU_SETSIZE as usize;
            if known {
                libc::CPU_SET(cpu, &mut set);
            }
            !known || libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0
        };
        if refused {
            tracing::warn!(thread = index, cpu, "cannot pin a compute thread; check the list of cores");
        }
    }
    crate::priority::lower(config.nice);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn config(threads: usize) -> TeamConfig {
        TeamConfig { threads, cpus: None, nice: 0 }
    }

    #[test]
    fn every_member_runs_each_job_once_and_the_barrier_separates_phases() {
        for threads in [1, 2, 5] {
            let mut team = Team::start(config(threads)).expect("threads start");
            for _ in 0..50 {
                let (first, second) = (AtomicUsize::new(0), AtomicUsize::new(0));
                team.run(&|_, barrier| {
                    first.fetch_add(1, Ordering::Relaxed);
                    barrier.wait();
                    assert_eq!(first.load(Ordering::Relaxed), threads);
                    second.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(second.load(Ordering::Relaxed), threads);
            }
        }
    }

    #[test]
    fn a_sleeping_member_is_woken() {
        let mut team = Team::start(config(2)).expect("threads start");
        while team.shared.epoch.sleepers.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let ran = AtomicUsize::new(0);
        team.run(&|_, _| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.load(Ordering::Relaxed), 2);
    }
}
