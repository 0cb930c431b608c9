//! Replies that may be read again: the one who produces, the one who reads, and the table that finds them. The
//! reader's connection may live on another reactor than the work, so both meet under a lock, and each wakes the other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use millrace_proto::id::{TenantId, UserId};

use super::replay::{Missed, Progress, Replay};
use crate::gateway::meter::Subject;
use crate::gateway::{Common, Principal};

/// Pause between two looks for replies that nobody has come back for.
const SWEEP_MS: u64 = 200;

/// One reply.
#[derive(Debug)]
pub struct Kept<T> {
    state: Mutex<State<T>>,
    grace_ms: u64,
}

#[derive(Debug)]
struct State<T> {
    replay: Replay<T>,
    /// The table knows it, so that a reader can come back.
    listed: bool,
    /// Nobody reads and nobody will: the work on it is worth nothing any more.
    forsaken: bool,
    reader: Option<Waker>,
    producer: Option<Waker>,
}

impl<T> Kept<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the one who produces: ready with true when the next event is wanted, with false when none ever will be.
    pub fn poll_wanted(&self, context: &Context<'_>) -> Poll<bool> {
        let mut state = self.state();
        if state.forsaken {
            return Poll::Ready(false);
        }
        keep_waker(&mut state.producer, context);
        if state.replay.has_room() { Poll::Ready(true) } else { Poll::Pending }
    }

    /// Polls the work for as long as its outcome is wanted; `None` = it never will be again.
    pub fn poll_while_wanted<R>(
        &self,
        context: &mut Context<'_>,
        work: impl FnOnce(&mut Context<'_>) -> Poll<R>,
    ) -> Poll<Option<R>> {
        match self.poll_wanted(context) {
            Poll::Ready(true) => work(context).map(Some),
            Poll::Ready(false) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Adds an event.
    pub fn push(&self, event: T) {
        let mut state = self.state();
        state.replay.push(event);
        wake(state, |state| &mut state.reader);
    }

    /// No event follows.
    pub fn finish(&self) {
        let mut state = self.state();
        state.replay.finish();
        wake(state, |state| &mut state.reader);
    }

    /// The table forgets it; without a reader it has lost its last one.
    fn unlist(&self) {
        let mut state = self.state();
        state.listed = false;
        state.forsaken |= !state.replay.is_read();
        wake(state, |state| &mut state.producer);
    }

    fn may_be_dropped(&self, now_ms: u64, drain: bool) -> bool {
        self.state().replay.is_forsaken(now_ms, if drain { 0 } else { self.grace_ms })
    }
}

/// Reads a reply. Dropping it leaves the reply to whoever comes back within the grace time.
#[derive(Debug)]
pub struct Follower<T> {
    kept: Arc<Kept<T>>,
    ticket: u64,
    common: Arc<Common>,
}

impl<T> Follower<T> {
    /// A reader that has all events up to number `after`.
    pub fn new(kept: &Arc<Kept<T>>, after: u64, common: &Arc<Common>) -> Result<Self, Missed> {
        let mut state = kept.state();
        let ticket = state.replay.attach(after)?;
        // Whoever read before learns that it was replaced.
        wake(state, |state| &mut state.reader);
        Ok(Self { kept: Arc::clone(kept), ticket, common: Arc::clone(common) })
    }

    /// Shows events that are there, at most `limit`.
    pub fn read(&self, limit: usize, show: impl FnMut(u64, &T)) -> Progress {
        let mut state = self.kept.state();
        let progress = state.replay.read(self.ticket, limit, show);
        if progress == Progress::Events {
            wake(state, |state| &mut state.producer);
        }
        progress
    }

    /// The same, and waits while there is none.
    pub fn poll_read(&self, context: &Context<'_>, limit: usize, show: impl FnMut(u64, &T)) -> Poll<Progress> {
        let mut state = self.kept.state();
        match state.replay.read(self.ticket, limit, show) {
            Progress::Wait => {
                keep_waker(&mut state.reader, context);
                Poll::Pending
            }
            progress => {
                wake(state, |state| &mut state.producer);
                Poll::Ready(progress)
            }
        }
    }

    /// Leaves for good: the work on the reply ends.
    pub fn leave(self) {
        let mut state = self.kept.state();
        state.listed = false;
    }
}

impl<T> Drop for Follower<T> {
    fn drop(&mut self) {
        let mut state = self.kept.state();
        state.replay.detach(self.ticket, self.common.now_ms());
        state.forsaken |= !state.listed && !state.replay.is_read();
        wake(state, |state| &mut state.producer);
    }
}

/// Wakes after the lock is given back: the woken one will want it.
fn wake<T>(mut state: MutexGuard<'_, State<T>>, whom: impl FnOnce(&mut State<T>) -> &mut Option<Waker>) {
    let waker = whom(&mut state).take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

fn keep_waker(slot: &mut Option<Waker>, context: &Context<'_>) {
    if !slot.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
        *slot = Some(context.waker().clone());
    }
}

/// How much is kept of one reply, and of how many.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Events of a reply; with one token in an event, its tokens.
    pub events_max: usize,
    /// Replies of a tenant. Beyond it the oldest that nobody reads goes; when all are read, a new one cannot be resumed.
    pub replies_max: usize,
    /// How long a reply waits for its reader; zero = not at all.
    pub grace: Duration,
}

/// The replies of a node that may be read again.
#[derive(Debug)]
pub struct Replies<T> {
    tenants: Mutex<HashMap<TenantId, Vec<Entry<T>>>>,
    sweep_ms: AtomicU64,
}

#[derive(Debug)]
struct Entry<T> {
    subject: Subject,
    user: UserId,
    name: String,
    kept: Arc<Kept<T>>,
}

impl<T> Default for Replies<T> {
    fn default() -> Self {
        Self { tenants: Mutex::default(), sweep_ms: AtomicU64::new(0) }
    }
}

impl<T> Replies<T> {
    fn tenants(&self) -> MutexGuard<'_, HashMap<TenantId, Vec<Entry<T>>>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new reply of `principal`. One of the same name makes room for it.
    pub fn open(&self, principal: &Principal, name: &str, bounds: &Bounds, now_ms: u64) -> Arc<Kept<T>> {
        Self::add(&mut self.tenants(), principal, name, bounds, now_ms)
    }

    /// The same with a reader, so that nothing takes a reply for forsaken before it is read.
    pub fn begin(
        &self,
        principal: &Principal,
        name: &str,
        bounds: &Bounds,
        common: &Arc<Common>,
    ) -> (Arc<Kept<T>>, Follower<T>) {
        let mut tenants = self.tenants();
        let kept = Self::add(&mut tenants, principal, name, bounds, common.now_ms());
        let reader = Follower::new(&kept, 0, common).expect("a new reply has its beginning");
        (kept, reader)
    }

    fn add(
        tenants: &mut HashMap<TenantId, Vec<Entry<T>>>,
        principal: &Principal,
        name: &str,
        bounds: &Bounds,
        now_ms: u64,
    ) -> Arc<Kept<T>> {
        let entries = tenants.entry(principal.tenant).or_default();
        entries.retain(|entry| {
            let other = entry.subject != principal.subject || entry.name != name;
            if !other {
                entry.kept.unlist();
            }
            other
        });
        if entries.len() >= bounds.replies_max
            && let Some(oldest) = entries.iter().position(|entry| !entry.kept.state().replay.is_read())
        {
            entries.remove(oldest).kept.unlist();
        }
        let listed = entries.len() < bounds.replies_max && !bounds.grace.is_zero();
        let state = State {
            replay: Replay::new(bounds.events_max, now_ms),
            listed,
            forsaken: false,
            reader: None,
            producer: None,
        };
        let grace_ms = u64::try_from(bounds.grace.as_millis()).unwrap_or(u64::MAX);
        let kept = Arc::new(Kept { state: Mutex::new(state), grace_ms });
        if listed {
            entries.push(Entry {
                subject: principal.subject,
                user: principal.user,
                name: name.to_owned(),
                kept: Arc::clone(&kept),
            });
        }
        kept
    }

    /// The reply with this name that was begun with the same key of the same tenant. To everybody else there is none.
    pub fn find(&self, principal: &Principal, name: &str) -> Option<Arc<Kept<T>>> {
        Self::entry(&self.tenants(), principal, name).cloned()
    }

    /// A reader of the reply that [`Self::find`] finds, behind what it has. The table stays locked meanwhile, so that the
    /// reply is not given up after it was found: its reader would take what it has by then for the whole.
    pub fn follow(
        &self,
        principal: &Principal,
        name: &str,
        after: u64,
        common: &Arc<Common>,
    ) -> Option<Result<Follower<T>, Missed>> {
        let tenants = self.tenants();
        let kept = Self::entry(&tenants, principal, name)?;
        Some(Follower::new(kept, after, common))
    }

    fn entry<'a>(
        tenants: &'a HashMap<TenantId, Vec<Entry<T>>>,
        principal: &Principal,
        name: &str,
    ) -> Option<&'a Arc<Kept<T>>> {
        let entries = tenants.get(&principal.tenant)?;
        let found = entries.iter().find(|entry| entry.subject == principal.subject && entry.name == name)?;
        // Whoever left for good has ended the work: what is there is no whole reply.
        let forsaken = found.kept.state().forsaken;
        (!forsaken).then_some(&found.kept)
    }

    /// Gives up what was made for a user who is forgotten.
    pub fn forget(&self, tenant: TenantId, user: UserId) {
        let mut tenants = self.tenants();
        let Some(entries) = tenants.get_mut(&tenant) else { return };
        entries.retain(|entry| {
            let stays = entry.user != user;
            if !stays {
                entry.kept.unlist();
            }
            stays
        });
    }

    /// Forgets what nobody has come back for; `drain` = nobody can come back. Cheap: most calls do nothing.
    pub fn sweep(&self, now_ms: u64, drain: bool) {
        let due = self.sweep_ms.load(Ordering::Relaxed);
        let next = now_ms.saturating_add(SWEEP_MS);
        if now_ms < due || self.sweep_ms.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let mut tenants = self.tenants();
        for entries in tenants.values_mut() {
            entries.retain(|entry| {
                let stays = !entry.kept.may_be_dropped(now_ms, drain);
                if !stays {
                    entry.kept.unlist();
                }
                stays
            });
        }
        tenants.retain(|_, entries| !entries.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { events_max: 8, replies_max: 2, grace: Duration::from_secs(10) };

    fn principal(tenant: u32, subject: u8) -> Principal {
        Principal {
            tenant: TenantId(tenant),
            user: UserId::of(TenantId(tenant), "ada"),
            user_name: "ada".into(),
            scopes: 1,
            key_label: "laptop".into(),
            subject: [subject; 32],
        }
    }

    fn wanted(kept: &Kept<u32>) -> Poll<bool> {
        kept.poll_wanted(&Context::from_waker(Waker::noop()))
    }

    #[test]
    fn only_the_same_key_of_the_same_tenant_finds_a_reply() {
        let replies: Replies<u32> = Replies::default();
        replies.open(&principal(1, 1), "a", &BOUNDS, 0);
        assert!(replies.find(&principal(1, 1), "a").is_some());
        for (stranger, name) in [(principal(1, 2), "a"), (principal(2, 1), "a"), (principal(1, 1), "b")] {
            assert!(replies.find(&stranger, name).is_none());
        }
    }

    #[test]
    fn what_was_made_for_a_forgotten_user_is_found_no_more() {
        let replies: Replies<u32> = Replies::default();
        let (ada, other) = (principal(1, 1), Principal { user: UserId::of(TenantId(1), "bob"), ..principal(1, 1) });
        replies.open(&ada, "a", &BOUNDS, 0);
        replies.open(&other, "b", &BOUNDS, 0);
        replies.forget(TenantId(2), ada.user);
        assert!(replies.find(&ada, "a").is_some(), "another tenant's user of the same name");
        replies.forget(TenantId(1), ada.user);
        assert!(replies.find(&ada, "a").is_none() && replies.find(&ada, "b").is_some());
    }

    #[test]
    fn work_goes_on_for_the_grace_time_and_no_longer() {
        let (replies, common) = (Replies::default(), Arc::new(Common::default()));
        let kept = replies.open(&principal(1, 1), "a", &BOUNDS, 0);
        let reader = Follower::new(&kept, 0, &common).expect("the beginning");
        replies.sweep(60_000, false);
        assert_eq!(wanted(&kept), Poll::Ready(true), "it is read");
        drop(reader);
        let now_ms = common.now_ms();
        replies.sweep(now_ms + 70_000, false);
        assert!(replies.find(&principal(1, 1), "a").is_none());
        assert_eq!(wanted(&kept), Poll::Ready(false));
        let kept = replies.open(&principal(1, 1), "b", &BOUNDS, now_ms);
        replies.sweep(now_ms + 80_000, true);
        assert_eq!(wanted(&kept), Poll::Ready(false), "a drain waits for nobody");
    }

    #[test]
    fn whoever_leaves_for_good_ends_the_work_at_once() {
        let (replies, common) = (Replies::default(), Arc::new(Common::default()));
        let kept = replies.open(&principal(1, 1), "a", &BOUNDS, 0);
        Follower::new(&kept, 0, &common).expect("the beginning").leave();
        assert_eq!(wanted(&kept), Poll::Ready(false));
        assert!(replies.find(&principal(1, 1), "a").is_none(), "a part is not given for the whole");
        let off = replies.open(&principal(1, 1), "b", &Bounds { grace: Duration::ZERO, ..BOUNDS }, 0);
        let reader = Follower::new(&off, 0, &common).expect("the beginning");
        assert_eq!(wanted(&off), Poll::Ready(true));
        drop(reader);
        assert_eq!(wanted(&off), Poll::Ready(false), "without a grace time nobody can come back");
    }

    #[test]
    fn a_tenant_keeps_so_many_and_those_that_are_read_are_not_taken() {
        let (replies, common) = (Replies::default(), Arc::new(Common::default()));
        let ada = principal(1, 1);
        let first = replies.open(&ada, "1", &BOUNDS, 0);
        let read = Follower::new(&first, 0, &common).expect("the beginning");
        let second = replies.open(&ada, "2", &BOUNDS, 0);
        let third = replies.open(&ada, "3", &BOUNDS, 0);
        assert_eq!(wanted(&second), Poll::Ready(false), "the oldest that nobody reads went");
        let also = Follower::new(&third, 0, &common).expect("the beginning");
        let fourth = replies.open(&ada, "4", &BOUNDS, 0);
        assert!(replies.find(&ada, "4").is_none() && wanted(&fourth) == Poll::Ready(true), "it goes on unlisted");
        assert!(replies.find(&ada, "1").is_some() && replies.find(&ada, "3").is_some());
        drop((read, also));
        let again = replies.open(&ada, "1", &BOUNDS, 0);
        assert_eq!((wanted(&first), wanted(&again)), (Poll::Ready(false), Poll::Ready(true)), "a new one of its name");
        assert!(replies.open(&principal(2, 1), "1", &BOUNDS, 0).state().listed, "another tenant is not concerned");
    }

    #[test]
    fn a_reader_that_does_not_read_holds_the_producer_back() {
        let (replies, common) = (Replies::default(), Arc::new(Common::default()));
        let kept = replies.open(&principal(1, 1), "a", &BOUNDS, 0);
        let reader = Follower::new(&kept, 0, &common).expect("the beginning");
        (0..8).for_each(|event| kept.push(event));
        assert_eq!(wanted(&kept), Poll::Pending);
        assert_eq!(reader.read(3, |_, _| ()), Progress::Events);
        assert_eq!(wanted(&kept), Poll::Ready(true));
    }
}
