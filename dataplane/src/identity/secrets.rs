//! Hashes of client secrets, made and checked on a thread of their own.
//!
//! Argon2id takes 19 MiB and some 20 ms for each secret (RFC 9106, the smaller of the parameters that OWASP
//! names): far too long for a reactor. One thread does one at a time, so that guessing costs the guesser's
//! patience and not the node's memory; what does not fit into its queue is refused.

use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use millrace_proto::digest::{constant_time_eq, hex, unhex};
use serde::{Deserialize, Serialize};

/// Secrets that may wait for the thread: about a second of its work.
const QUEUE_MAX: usize = 48;

/// Memory of one hash in KiB.
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over that memory.
const PASSES: u32 = 2;
/// Largest parameters that are read back: a damaged row must not take the node's memory.
const MEMORY_KIB_MAX: u32 = 256 * 1024;
const PASSES_MAX: u32 = 16;

const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// How often the thread does the housekeeping when nothing else is to be done.
const HOUSEKEEPING: Duration = Duration::from_secs(60);

/// What is kept of a secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretHash {
    salt: String,
    hash: String,
    memory_kib: u32,
    passes: u32,
}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(..)")
    }
}

impl SecretHash {
    /// Hashes a secret with a fresh salt. Slow by intention. `None` when the system has no random numbers.
    pub fn of(secret: &str) -> Option<Self> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).ok()?;
        let hash = derive(secret, &salt, MEMORY_KIB, PASSES)?;
        Some(Self { salt: hex(&salt), hash: hex(&hash), memory_kib: MEMORY_KIB, passes: PASSES })
    }

    /// Whether this is the hash of `secret`. Slow by intention.
    pub fn matches(&self, secret: &str) -> bool {
        let (Some(salt), Some(hash)) = (unhex(&self.salt), unhex(&self.hash)) else { return false };
        if self.memory_kib > MEMORY_KIB_MAX || self.passes > PASSES_MAX {
            return false;
        }
        derive(secret, &salt, self.memory_kib, self.passes).is_some_and(|made| constant_time_eq(&made, &hash))
    }
}

fn derive(secret: &str, salt: &[u8], memory_kib: u32, passes: u32) -> Option<[u8; HASH_BYTES]> {
    let params = Params::new(memory_kib, passes, 1, Some(HASH_BYTES)).ok()?;
    let mut hash = [0; HASH_BYTES];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(secret.as_bytes(), salt, &mut hash)
        .ok()?;
    Some(hash)
}

enum Job {
    Make { secret: String, done: Box<dyn FnOnce(Option<SecretHash>) + Send> },
    Check { secret: String, against: Vec<SecretHash>, done: Box<dyn FnOnce(bool) + Send> },
}

/// The queue of the thread is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{QUEUE_MAX} client secrets are being checked already")]
pub struct Busy;

/// The thread's queue. The thread ends when the last handle is gone.
pub struct Secrets {
    jobs: SyncSender<Job>,
}

impl Secrets {
    /// Starts the thread; `housekeeping` runs on it about once a minute.
    pub fn start(housekeeping: impl FnMut() + Send + 'static) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("secrets".into())
            .stack_size(256 << 10)
            .spawn(move || work(&queue, housekeeping))?;
        Ok(Self { jobs })
    }

    /// Hashes `secret`; `done` runs on the thread.
    pub fn make(&self, secret: String, done: impl FnOnce(Option<SecretHash>) + Send + 'static) -> Result<(), Busy> {
        self.push(Job::Make { secret, done: Box::new(done) })
    }

    /// Compares `secret` with every hash, whether or not one matches early: the time says nothing about which.
    pub fn check(
        &self,
        secret: String,
        against: Vec<SecretHash>,
        done: impl FnOnce(bool) + Send + 'static,
    ) -> Result<(), Busy> {
        self.push(Job::Check { secret, against, done: Box::new(done) })
    }

    fn push(&self, job: Job) -> Result<(), Busy> {
        match self.jobs.try_send(job) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Busy),
        }
    }
}

fn work(queue: &Receiver<Job>, mut housekeeping: impl FnMut()) {
    // A client that does not exist costs as much time as one that does.
    let nobody = SecretHash::of("no client has this secret");
    let mut due = std::time::Instant::now() + HOUSEKEEPING;
    loop {
        match queue.recv_timeout(due.saturating_duration_since(std::time::Instant::now())) {
            Ok(Job::Make { secret, done }) => done(SecretHash::of(&secret)),
            Ok(Job::Check { secret, against, done }) => {
                let mut found = false;
                for hash in &against {
                    found |= hash.matches(&secret);
                }
                if against.is_empty() {
                    let _ = nobody.as_ref().map(|nobody| nobody.matches(&secret));
                }
                done(found);
            }
            Err(RecvTimeoutError::Timeout) => {
                housekeeping();
                due = std::time::Instant::now() + HOUSEKEEPING;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_secret_matches_its_own_hash_only_and_no_two_hashes_are_equal() {
        let (one, two) = (SecretHash::of("ms-a").expect("random"), SecretHash::of("ms-a").expect("random"));
        assert_ne!(one, two, "the salt differs");
        assert!(one.matches("ms-a") && two.matches("ms-a") && !one.matches("ms-b") && !one.matches(""));
        assert_eq!(format!("{one:?}"), "SecretHash(..)");
        let read: SecretHash = serde_json::from_str(&serde_json::to_string(&one).expect("JSON")).expect("a hash");
        assert_eq!(read, one);
    }

    #[test]
    fn a_damaged_hash_matches_nothing_and_takes_no_memory() {
        let mut hash = SecretHash::of("x").expect("random");
        hash.memory_kib = u32::MAX;
        assert!(!hash.matches("x"));
        hash = SecretHash { salt: "zz".into(), ..SecretHash::of("x").expect("random") };
        assert!(!hash.matches("x"));
    }

    #[test]
    fn the_thread_answers_and_refuses_what_does_not_fit() {
        let secrets = Secrets::start(|| {}).expect("a thread");
        let (told, heard) = mpsc::channel();
        let made = told.clone();
        secrets.make("s".into(), move |hash| made.send(hash.is_some()).expect("heard")).expect("room");
        assert!(heard.recv().expect("an answer"));
        let refused = (0..QUEUE_MAX * 4)
            .filter(|_| {
                let told = told.clone();
                secrets.check("s".into(), Vec::new(), move |found| told.send(found).expect("heard")).is_err()
            })
            .count();
        assert!(refused > 0, "the queue is bounded");
        drop(told);
        assert!(heard.iter().all(|found| !found), "nobody is known");
    }
}
