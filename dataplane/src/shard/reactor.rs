//! The runtime of one shard: io_uring with the best flags the kernel takes, else epoll.
//!
//! With COOP_TASKRUN the kernel does not interrupt the thread for what has completed, so the ladder below starts with
//! it and SINGLE_ISSUER and gives flags up one by one; with one reactor and one client a ring without flags was as
//! cheap (5.0 against 4.8 us a request, and 5.4 against 5.7).
//!
//! DEFER_TASKRUN is not among them: it runs at most 20 of the completions that had to be waited for in one turn,
//! while those that were ready at once are not counted. Of many clients the quick ones are then served again and
//! again before the others: with 1,000 connections the 99th percentile was 12 to 22 ms, with the cooperative flag 8,
//! and a request took 7.0 against 6.7 us. Reading while the answer is written made it fair, at 9.0 against 7.9 us.
//! With 64 connections all cost the same. Measured once, in turns; what lost is not kept.
//!
//! Container profiles that forbid io_uring answer EPERM to the first step and end at epoll.

use std::fmt;
use std::io;

use monoio::time::TimeDriver;
use monoio::{FusionRuntime, IoUringDriver, LegacyDriver, RuntimeBuilder};

/// Submission entries of a shard's ring. Each in-flight read, write or accept takes one
/// entry only until the next submit, so this bounds a burst, not the connections.
const RING_ENTRIES: u32 = 1024;

/// Which back end the operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Preference {
    /// io_uring when the kernel allows it, else epoll.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// epoll.
    Epoll,
}

/// Flags of a ring, from most to least wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFlags {
    /// SINGLE_ISSUER + COOP_TASKRUN (kernel 6.0).
    Cooperative,
    /// COOP_TASKRUN (kernel 5.19).
    CooperativeOnly,
    /// No flag (kernel 5.11 for the operations used).
    Plain,
}

const LADDER: [RingFlags; 3] = [RingFlags::Cooperative, RingFlags::CooperativeOnly, RingFlags::Plain];

/// What the shard ended up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// io_uring.
    Uring(RingFlags),
    /// epoll.
    Epoll,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uring(RingFlags::Cooperative) => "io_uring (SINGLE_ISSUER, COOP_TASKRUN)",
            Self::Uring(RingFlags::CooperativeOnly) => "io_uring (COOP_TASKRUN)",
            Self::Uring(RingFlags::Plain) => "io_uring (no flags)",
            Self::Epoll => "epoll",
        })
    }
}

/// What a probe of the kernel found: the back end, and what each refused step said.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The best back end that works here.
    pub backend: Backend,
    /// Each step of the ladder that was refused, with the reason.
    pub refused: Vec<(RingFlags, String)>,
}

/// No reactor of the wanted kind can run here.
#[derive(Debug, thiserror::Error)]
pub enum ReactorError {
    /// `--io uring` was asked for and the kernel refuses.
    #[error(
        "io_uring was asked for, but the kernel refuses it ({reason}). Why: a container's seccomp profile, \
         the sysctl kernel.io_uring_disabled, or a kernel older than 5.11. Next step: allow the three system calls \
         io_uring_setup, io_uring_enter and io_uring_register, or start with `--io auto`"
    )]
    UringRefused {
        /// What the kernel said to the plainest ring.
        reason: String,
    },
    /// The runtime could not be made.
    #[error("cannot start the {backend} reactor. Why: {source}. Next step: look at `ulimit -n` and `ulimit -l`")]
    Build {
        /// The back end tried.
        backend: Backend,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The runtime of a shard.
pub type Reactor = FusionRuntime<TimeDriver<IoUringDriver>, TimeDriver<LegacyDriver>>;

/// Tries the ladder with small rings that are closed again.
pub fn probe(preference: Preference) -> Result<Probe, ReactorError> {
    if preference == Preference::Epoll {
        return Ok(Probe { backend: Backend::Epoll, refused: Vec::new() });
    }
    let mut refused = Vec::new();
    for flags in LADDER {
        match try_ring(flags) {
            Ok(()) => return Ok(Probe { backend: Backend::Uring(flags), refused }),
            Err(error) => refused.push((flags, error.to_string())),
        }
    }
    match preference {
        Preference::Uring => {
            let reason = refused.last().map_or_else(String::new, |(_, reason)| reason.clone());
            Err(ReactorError::UringRefused { reason })
        }
        _ => Ok(Probe { backend: Backend::Epoll, refused }),
    }
}

/// Builds the runtime of the calling thread. The ring belongs to this thread from here on
/// (SINGLE_ISSUER holds the kernel to it).
pub fn build(backend: Backend) -> Result<Reactor, ReactorError> {
    let failed = |source| ReactorError::Build { backend, source };
    match backend {
        Backend::Uring(flags) => RuntimeBuilder::<IoUringDriver>::new()
            .with_entries(RING_ENTRIES)
            .uring_builder(ring_builder(flags))
            .enable_timer()
            .build()
            .map(Reactor::from)
            .map_err(failed),
        Backend::Epoll => {
            RuntimeBuilder::<LegacyDriver>::new().enable_timer().build().map(Reactor::from).map_err(failed)
        }
    }
}

fn ring_builder(flags: RingFlags) -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    match flags {
        RingFlags::Cooperative => {
            builder.setup_single_issuer().setup_coop_taskrun();
        }
        RingFlags::CooperativeOnly => {
            builder.setup_coop_taskrun();
        }
        RingFlags::Plain => {}
    }
    builder
}

/// One ring with these flags, and every operation that the runtime uses.
fn try_ring(flags: RingFlags) -> io::Result<()> {
    use io_uring::opcode;
    let ring = ring_builder(flags).build(8)?;
    let mut known = io_uring::Probe::new();
    ring.submitter().register_probe(&mut known)?;
    let wanted = [
        ("accept", opcode::Accept::CODE),
        ("recv", opcode::Recv::CODE),
        ("send", opcode::Send::CODE),
        ("read", opcode::Read::CODE),
        ("write", opcode::Write::CODE),
        ("writev", opcode::Writev::CODE),
        ("poll_add", opcode::PollAdd::CODE),
        ("async_cancel", opcode::AsyncCancel::CODE),
        ("close", opcode::Close::CODE),
    ];
    for (name, code) in wanted {
        if !known.is_supported(code) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("the kernel's ring lacks `{name}`")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epoll_is_always_there() {
        let probe = probe(Preference::Epoll).expect("epoll");
        assert_eq!(probe.backend, Backend::Epoll);
        let answer = build(probe.backend).expect("runtime").block_on(async {
            monoio::time::sleep(std::time::Duration::from_millis(1)).await;
            7
        });
        assert_eq!(answer, 7);
    }

    #[test]
    fn what_the_probe_promises_can_be_built() {
        let probe = probe(Preference::Auto).expect("a back end");
        let answer = std::thread::spawn(move || {
            build(probe.backend).expect("runtime").block_on(async {
                monoio::time::sleep(std::time::Duration::from_millis(1)).await;
                7
            })
        })
        .join()
        .expect("thread");
        assert_eq!(answer, 7);
    }

    #[test]
    fn a_refused_ring_says_what_why_and_what_next() {
        let text = ReactorError::UringRefused { reason: "Operation not permitted".into() }.to_string();
        for part in ["io_uring", "Operation not permitted", "seccomp", "--io auto"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
