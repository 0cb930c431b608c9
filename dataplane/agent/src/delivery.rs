//! Brings outbox jobs to their peers: the second sans-IO machine of the crate.
//!
//! ```text
//! idempotent peer      Pending ──────────────────▶ call ─▶ Delivered | Pending (retry) | Dead
//! other peers          Pending ─▶ Sending, durable ─▶ call ─▶ Delivered | Pending | Dead | Unknown
//! found at a start     Pending, or Sending with an idempotent peer: as above
//!                      Sending with any other peer: Unknown, and it is not sent again
//! ```
//!
//! A peer that deduplicates by our key may get the same call twice without harm, so nothing is written
//! before it. For the others the state `Sending` is durable before the first byte leaves: what a crash
//! leaves in that state was perhaps delivered, and only a person or a reconciler may decide.
//!
//! Jobs of one chat go out one after the other in the order of their making: a job that waits for its
//! retry holds back those behind it, and only those. Before a call the shell is asked whether it may be made
//! now (access token, rate of the platform); waiting for that is no attempt and changes nothing on the disk.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use millrace_proto::id::EffectKey;
use millrace_proto::record::{DeliveryState, OutboxJob};
use millrace_proto::retry::RetryPolicy;

/// Bounds and policy of the deliveries of one shard.
#[derive(Clone, Debug)]
pub struct DeliveryConfig {
    /// Pauses between attempts; its end is the end of the attempts.
    pub policy: RetryPolicy,
    /// Jobs kept in memory. More stay in the store until there is room.
    pub jobs_max: usize,
    /// Calls under way at the same time.
    pub calls_max: usize,
    /// Pause before a failed batch is tried again.
    pub commit_retry_ms: u64,
}

/// What can happen to the deliveries.
#[derive(Debug)]
pub enum DeliveryEvent {
    /// A durable job: new, found at a start, or resubmitted.
    Job {
        /// As it stands in the store.
        job: Box<OutboxJob>,
        /// Whether the peer recognises the key of a job that it has seen.
        idempotent: bool,
    },
    /// The answer to [`DeliveryEffect::Ask`].
    Permit {
        /// Which job.
        key: EffectKey,
        /// Whether it may go out now.
        permit: Permit,
    },
    /// The answer to [`DeliveryEffect::Commit`].
    Committed {
        /// Which job.
        key: EffectKey,
        /// Whether it is durable.
        durable: bool,
    },
    /// The answer to [`DeliveryEffect::Call`].
    Called {
        /// Which job.
        key: EffectKey,
        /// What became of it.
        verdict: Verdict,
    },
    /// The answer to [`DeliveryEffect::Reload`]: every open job was given as an event before it.
    Reloaded,
    /// Time passed.
    Tick,
}

/// Whether a call may be made now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may.
    Now {
        /// Whether the peer recognises this very call when it comes twice.
        idempotent: bool,
    },
    /// Not before this many milliseconds have passed; then the question is asked again.
    Later {
        /// At least 1 is taken.
        after_ms: u64,
        /// For people; empty when there is nothing to say.
        why: String,
    },
    /// Never: the configuration does not allow it.
    Never {
        /// For people.
        why: String,
    },
}

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The peer confirmed it.
    Delivered {
        /// The peer's word for it.
        receipt: String,
    },
    /// Certainly not done; may be tried again.
    Retry {
        /// The peer's own wish.
        after_ms: Option<u64>,
        /// For people.
        why: String,
    },
    /// Certainly not done and never will be.
    Dead {
        /// For people.
        why: String,
    },
    /// The connection broke or timed out after the call had left.
    Ambiguous {
        /// For people.
        why: String,
    },
}

/// What the deliveries want done.
#[derive(Clone, Debug)]
pub enum DeliveryEffect {
    /// Write the job as it is here. `Delivered`, `Dead` and `Unknown` finish it.
    Commit {
        /// With the state to write.
        job: Box<OutboxJob>,
    },
    /// May the peer be called now? The answer comes as [`DeliveryEvent::Permit`].
    Ask {
        /// What would be sent.
        job: Box<OutboxJob>,
    },
    /// Call the peer.
    Call {
        /// What to send.
        job: Box<OutboxJob>,
    },
    /// Memory was full for a while: give every open job of this shard again.
    Reload,
}

/// The deliveries of one shard.
pub struct Delivery {
    config: DeliveryConfig,
    entries: HashMap<EffectKey, Entry>,
    lanes: HashMap<Lane, VecDeque<EffectKey>>,
    timers: BTreeSet<(u64, EffectKey)>,
    /// Heads of lanes that could call if fewer calls were under way.
    ready: VecDeque<EffectKey>,
    calls: usize,
    /// Jobs are in the store that are not in memory.
    overflow: bool,
    finished: u64,
}

type Lane = (u32, String, String, String);

struct Entry {
    job: OutboxJob,
    idempotent: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Behind another job of its chat, or not due.
    Waiting,
    /// In `ready`.
    Ready,
    /// The shell is asked whether the call may be made.
    Asking,
    /// Its state is on the way to the disk.
    Committing,
    /// Its state could not be written; tried again at its timer.
    Uncommitted,
    Calling,
}

impl Delivery {
    /// Deliveries without jobs.
    pub fn new(config: DeliveryConfig) -> Self {
        Self {
            config,
            entries: HashMap::new(),
            lanes: HashMap::new(),
            timers: BTreeSet::new(),
            ready: VecDeque::new(),
            calls: 0,
            overflow: false,
            finished: 0,
        }
    }

    /// Takes in what happened and says what is to be done.
    pub fn step(&mut self, event: DeliveryEvent, now_ms: u64, effects: &mut Vec<DeliveryEffect>) {
        match event {
            DeliveryEvent::Job { job, idempotent } => self.add(*job, idempotent, now_ms, effects),
            DeliveryEvent::Permit { key, permit } => self.permitted(key, permit, now_ms, effects),
            DeliveryEvent::Committed { key, durable } => self.committed(key, durable, now_ms, effects),
            DeliveryEvent::Called { key, verdict } => self.called(key, verdict, now_ms, effects),
            DeliveryEvent::Reloaded => {}
            DeliveryEvent::Tick => self.tick(now_ms, effects),
        }
        self.start_calls(effects);
        if self.overflow && self.entries.is_empty() {
            // Only when nothing is left, so that the order of a chat cannot turn around.
            self.overflow = false;
            effects.push(DeliveryEffect::Reload);
        }
    }

    /// When the next tick is of use.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Jobs in memory.
    pub fn open_jobs(&self) -> usize {
        self.entries.len()
    }

    /// Jobs whose call or write is under way: what a drain waits for.
    pub fn busy_jobs(&self) -> usize {
        self.entries.values().filter(|e| matches!(e.stage, Stage::Calling | Stage::Committing)).count()
    }

    /// Jobs that reached their end.
    pub fn finished_jobs(&self) -> u64 {
        self.finished
    }

    fn add(&mut self, job: OutboxJob, idempotent: bool, now_ms: u64, effects: &mut Vec<DeliveryEffect>) {
        if self.entries.contains_key(&job.key) {
            return;
        }
        if self.overflow || self.entries.len() >= self.config.jobs_max {
            self.overflow = true;
            return;
        }
        let (key, lane) = (job.key, lane_of(&job));
        self.entries.insert(key, Entry { job, idempotent, stage: Stage::Waiting });
        let lane = self.lanes.entry(lane).or_default();
        lane.push_back(key);
        if lane.len() == 1 {
            self.head(key, now_ms, effects);
        }
    }

    /// A job has come to the front of its chat.
    fn head(&mut self, key: EffectKey, now_ms: u64, effects: &mut Vec<DeliveryEffect>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.job.state == DeliveryState::Sending && !entry.idempotent {
            entry.job.state = DeliveryState::Unknown;
            entry.job.detail = "the process ended while the call was under way; the peer may have it".to_owned();
            return self.commit(key, effects);
        }
        if now_ms >= entry.job.expires_ms {
            let detail = format!("expired after {} attempts: {}", entry.job.attempt, entry.job.detail);
            entry.job.state = DeliveryState::Dead;
            entry.job.detail = detail;
            return self.commit(key, effects);
        }
        if entry.job.due_ms > now_ms {
            entry.stage = Stage::Waiting;
            let at = entry.job.due_ms;
            self.timers.insert((at, key));
            return;
        }
        entry.stage = Stage::Ready;
        self.ready.push_back(key);
    }

    fn start_calls(&mut self, effects: &mut Vec<DeliveryEffect>) {
        while self.calls < self.config.calls_max {
            let Some(key) = self.ready.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            self.calls += 1;
            entry.stage = Stage::Asking;
            effects.push(DeliveryEffect::Ask { job: Box::new(entry.job.clone()) });
        }
    }

    fn permitted(&mut self, key: EffectKey, permit: Permit, now_ms: u64, effects: &mut Vec<DeliveryEffect>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.stage != Stage::Asking {
            return;
        }
        match permit {
            Permit::Now { idempotent } => {
                entry.idempotent = idempotent;
                entry.job.attempt = entry.job.attempt.saturating_add(1);
                if entry.idempotent {
                    entry.stage = Stage::Calling;
                    effects.push(DeliveryEffect::Call { job: Box::new(entry.job.clone()) });
                } else {
                    entry.job.state = DeliveryState::Sending;
                    self.commit(key, effects);
                }
            }
            Permit::Later { after_ms, why } => {
                self.calls -= 1;
                entry.stage = Stage::Waiting;
                if !why.is_empty() {
                    entry.job.detail = why;
                }
                // At its end it must be looked at, whatever it waits for.
                let at = now_ms.saturating_add(after_ms.max(1)).min(entry.job.expires_ms.max(now_ms + 1));
                self.timers.insert((at, key));
            }
            Permit::Never { why } => {
                self.calls -= 1;
                finish(&mut entry.job, DeliveryState::Dead, why);
                self.commit(key, effects);
            }
        }
    }

    fn commit(&mut self, key: EffectKey, effects: &mut Vec<DeliveryEffect>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        entry.stage = Stage::Committing;
        effects.push(DeliveryEffect::Commit { job: Box::new(entry.job.clone()) });
    }

    fn committed(&mut self, key: EffectKey, durable: bool, now_ms: u64, effects: &mut Vec<DeliveryEffect>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.stage != Stage::Committing {
            return;
        }
        if !durable {
            entry.stage = Stage::Uncommitted;
            self.timers.insert((now_ms + self.config.commit_retry_ms, key));
            return;
        }
        match entry.job.state {
            DeliveryState::Sending => {
                entry.stage = Stage::Calling;
                effects.push(DeliveryEffect::Call { job: Box::new(entry.job.clone()) });
            }
            DeliveryState::Pending => self.head(key, now_ms, effects),
            DeliveryState::Delivered | DeliveryState::Unknown | DeliveryState::Dead => {
                self.remove(key, now_ms, effects);
            }
        }
    }

    fn called(&mut self, key: EffectKey, verdict: Verdict, now_ms: u64, effects: &mut Vec<DeliveryEffect>) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.stage != Stage::Calling {
            return;
        }
        self.calls -= 1;
        match verdict {
            Verdict::Delivered { receipt } => finish(&mut entry.job, DeliveryState::Delivered, receipt),
            Verdict::Dead { why } => finish(&mut entry.job, DeliveryState::Dead, why),
            Verdict::Ambiguous { why } if !entry.idempotent => finish(&mut entry.job, DeliveryState::Unknown, why),
            Verdict::Retry { why, after_ms } => retry(&mut entry.job, &self.config.policy, now_ms, after_ms, why),
            Verdict::Ambiguous { why } => retry(&mut entry.job, &self.config.policy, now_ms, None, why),
        }
        self.commit(key, effects);
    }

    fn remove(&mut self, key: EffectKey, now_ms: u64, effects: &mut Vec<DeliveryEffect>) {
        let Some(entry) = self.entries.remove(&key) else { return };
        self.finished += 1;
        let lane = lane_of(&entry.job);
        let Some(queue) = self.lanes.get_mut(&lane) else { return };
        debug_assert_eq!(queue.front(), Some(&key), "only the front of a chat is worked on");
        queue.pop_front();
        match queue.front().copied() {
            Some(next) => self.head(next, now_ms, effects),
            None => {
                self.lanes.remove(&lane);
            }
        }
    }

    fn tick(&mut self, now_ms: u64, effects: &mut Vec<DeliveryEffect>) {
        // A job that is made due again by this very tick must not keep the loop going.
        let mut seen = HashSet::new();
        while let Some(&(at, key)) = self.timers.first() {
            if at > now_ms || !seen.insert(key) {
                return;
            }
            self.timers.pop_first();
            match self.entries.get(&key).map(|entry| entry.stage) {
                Some(Stage::Uncommitted) => self.commit(key, effects),
                Some(Stage::Waiting) => self.head(key, now_ms, effects),
                _ => {}
            }
        }
    }
}

fn lane_of(job: &OutboxJob) -> Lane {
    (job.tenant.0, job.address.channel.clone(), job.address.account.clone(), job.address.chat.clone())
}

fn finish(job: &mut OutboxJob, state: DeliveryState, detail: String) {
    job.state = state;
    job.detail = detail;
}

/// The next attempt, or the end of them.
fn retry(job: &mut OutboxJob, policy: &RetryPolicy, now_ms: u64, after_ms: Option<u64>, why: String) {
    // The policy counts attempts from 0: the pause after the first attempt is number 0.
    let Some(delay) = policy.delay(job.attempt.saturating_sub(1), jitter01(&job.key, job.attempt)) else {
        return finish(job, DeliveryState::Dead, format!("given up after {} attempts: {why}", job.attempt));
    };
    let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).max(after_ms.unwrap_or(0));
    let due_ms = now_ms.saturating_add(delay_ms);
    if due_ms >= job.expires_ms {
        return finish(job, DeliveryState::Dead, format!("expires before attempt {}: {why}", job.attempt + 1));
    }
    job.state = DeliveryState::Pending;
    job.due_ms = due_ms;
    job.detail = why;
}

/// A number in 0..1 that differs between jobs and attempts, and is the same when a run is repeated: jobs
/// that failed together do not come back together, and a simulation stays a simulation.
fn jitter01(key: &EffectKey, attempt: u32) -> f64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in key.to_bytes().into_iter().chain(attempt.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // SplitMix64 finish: FNV alone leaves the upper bits of neighbours alike.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (hash >> 11) as f64 / (1u64 << 53) as f64
}
