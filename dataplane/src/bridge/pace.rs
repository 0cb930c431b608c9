//! How fast each account and each chat may be written to.
//!
//! One set of buckets for the whole node: the chats of an account are spread over its shards, and the
//! platform counts them together. A bucket is a few bytes; those of quiet chats are thrown away, since a full
//! bucket is the same as none.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use millrace_proto::channel::{Account, ChannelKind, Delivery, rates};
use millrace_proto::gcra;
use millrace_proto::id::TenantId;

/// Chats of one account whose bucket is not full. A chat needs at most a minute to become quiet, so this is
/// far beyond what the account's own rate can reach.
const CHATS_MAX: usize = 16_384;
/// When the table of chats is full of busy ones, a new one waits this long.
const CROWDED: Duration = Duration::from_secs(1);

/// The buckets of a node.
#[derive(Debug)]
pub struct Pace {
    started: Instant,
    accounts: RwLock<Vec<(Key, Arc<Mutex<Buckets>>)>>,
}

type Key = (ChannelKind, TenantId, String);

#[derive(Debug, Default)]
struct Buckets {
    account: gcra::State,
    chats: HashMap<String, gcra::State>,
}

impl Buckets {
    /// Whether the table has a place for this chat; full buckets leave for it.
    fn make_room(&mut self, chat: &str, now_ns: u64) -> bool {
        if self.chats.len() >= CHATS_MAX && !self.chats.contains_key(chat) {
            self.chats.retain(|_, bucket| !bucket.is_idle(now_ns));
        }
        self.chats.len() < CHATS_MAX || self.chats.contains_key(chat)
    }
}

impl Pace {
    /// Full buckets for these accounts.
    pub fn new<'a>(accounts: impl IntoIterator<Item = &'a Account>) -> Self {
        let pace = Self { started: Instant::now(), accounts: RwLock::default() };
        pace.keep(accounts);
        pace
    }

    /// From here on these accounts have buckets; those that had some keep theirs as they are.
    pub fn keep<'a>(&self, accounts: impl IntoIterator<Item = &'a Account>) {
        let mut known = self.accounts.write().unwrap_or_else(PoisonError::into_inner);
        let buckets = |account: &Account| {
            let key = key(account);
            let kept = known.iter().find(|(name, _)| *name == key).map(|(_, buckets)| Arc::clone(buckets));
            (key, kept.unwrap_or_default())
        };
        *known = accounts.into_iter().map(buckets).collect();
    }

    /// Takes one message to a chat out of its buckets, or says how long to wait. A refusal takes nothing.
    pub fn admit(&self, account: &Account, chat: &str) -> Result<(), Duration> {
        self.admit_at(account, chat, 0, self.now_ns())
    }

    /// The same for something that is only a comfort: it leaves the last place of a bucket to messages.
    pub fn admit_extra(&self, account: &Account, chat: &str) -> Result<(), Duration> {
        self.admit_at(account, chat, 1, self.now_ns())
    }

    /// Notes what a platform answered in a chat: when it asked for a pause, that holds for whatever would be
    /// said there, replies that are being written as well as finished ones.
    pub fn heed(&self, account: &Account, chat: &str, answer: &Delivery) {
        if let Delivery::Retry { after: Some(pause), .. } = answer {
            let now_ns = self.now_ns();
            let until_ns = now_ns.saturating_add(u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX));
            self.hold_until(account, chat, now_ns, until_ns);
        }
    }

    fn hold_until(&self, account: &Account, chat: &str, now_ns: u64, until_ns: u64) {
        let Some(buckets) = self.buckets(account) else { return };
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        // Only a chat that was admitted is called, so there was room for it. If it has lost it since, what asks
        // next is told the same by the platform.
        if buckets.make_room(chat, now_ns) {
            let limit = rates::of(account.kind).of_chat(account.kind, chat);
            let bucket = buckets.chats.entry(chat.to_owned()).or_default();
            *bucket = bucket.held(until_ns, &limit);
        }
    }

    fn buckets(&self, account: &Account) -> Option<Arc<Mutex<Buckets>>> {
        let key = key(account);
        let accounts = self.accounts.read().unwrap_or_else(PoisonError::into_inner);
        accounts.iter().find(|(known, _)| *known == key).map(|(_, buckets)| Arc::clone(buckets))
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn admit_at(&self, account: &Account, chat: &str, spare: u32, now_ns: u64) -> Result<(), Duration> {
        let Some(buckets) = self.buckets(account) else { return Ok(()) };
        let rates = rates::of(account.kind);
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if !buckets.make_room(chat, now_ns) {
            return Err(CROWDED);
        }
        let mut chat_bucket = buckets.chats.get(chat).copied().unwrap_or_default();
        take(&mut chat_bucket, now_ns, spare, &rates.of_chat(account.kind, chat))?;
        take(&mut buckets.account, now_ns, spare, &rates.account)?;
        buckets.chats.insert(chat.to_owned(), chat_bucket);
        Ok(())
    }
}

/// Takes one out of a bucket that holds one and, if it can, `spare` more.
fn take(bucket: &mut gcra::State, now_ns: u64, spare: u32, limit: &gcra::Limit) -> Result<(), Duration> {
    let mut tried = *bucket;
    let wanted = (1 + spare).min(limit.burst);
    gcra::check(&mut tried, now_ns, wanted, limit).map_err(Duration::from_nanos)?;
    gcra::check(bucket, now_ns, 1, limit).map_err(Duration::from_nanos)
}

fn key(account: &Account) -> Key {
    (account.kind, account.tenant, account.name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_chat_keeps_its_own_rate_and_all_of_them_that_of_the_account() {
        let account = Account::new(ChannelKind::Slack, "a", TenantId(1));
        let rates = rates::of(account.kind);
        let pace = Pace::new(std::slice::from_ref(&account));
        let now = 10 * SECOND;
        for _ in 0..rates.chat.burst {
            pace.admit_at(&account, "C1", 0, now).expect("a burst");
        }
        let wait = pace.admit_at(&account, "C1", 0, now).expect_err("the chat has had its share");
        pace.admit_at(&account, "C1", 0, now + u64::try_from(wait.as_nanos()).expect("short")).expect("after the wait");
        let sent = (0..10_000).filter(|chat| pace.admit_at(&account, &format!("D{chat}"), 0, now).is_ok()).count();
        assert!(sent <= rates.account.burst as usize, "{sent}");
    }

    #[test]
    fn a_pause_that_the_platform_asked_for_holds_for_edits_and_messages() {
        let account = Account::new(ChannelKind::Telegram, "a", TenantId(1));
        let pace = Pace::new(std::slice::from_ref(&account));
        pace.admit_at(&account, "C1", 1, SECOND).expect("an edit");
        pace.hold_until(&account, "C1", SECOND, 9 * SECOND);
        for spare in [0, 1] {
            let wait = pace.admit_at(&account, "C1", spare, 2 * SECOND).expect_err("the platform said no");
            assert!(wait >= Duration::from_secs(7), "{wait:?}");
        }
        pace.admit_at(&account, "C2", 0, 2 * SECOND).expect("another chat");
        pace.admit_at(&account, "C1", 0, 9 * SECOND).expect("the finished reply");
    }

    #[test]
    fn edits_leave_the_last_place_to_messages() {
        let account = Account::new(ChannelKind::Telegram, "a", TenantId(1));
        let pace = Pace::new(std::slice::from_ref(&account));
        let edits = (0..1_000).filter(|_| pace.admit_at(&account, "C1", 1, SECOND).is_ok()).count();
        assert_eq!(edits, rates::of(account.kind).chat.burst as usize - 1);
        pace.admit_at(&account, "C1", 0, SECOND).expect("the finished reply");
        pace.admit_at(&account, "C1", 0, SECOND).expect_err("and no more");
    }

    #[test]
    fn quiet_chats_are_forgotten_and_the_table_is_bounded() {
        let account = Account::new(ChannelKind::WhatsApp, "a", TenantId(1));
        let pace = Pace::new(std::slice::from_ref(&account));
        let mut now = 0;
        for chat in 0..2 * CHATS_MAX {
            now += SECOND;
            pace.admit_at(&account, &chat.to_string(), 0, now).expect("slowly enough");
        }
        assert!(pace.accounts.read().expect("a lock")[0].1.lock().expect("a lock").chats.len() <= CHATS_MAX);
    }

    #[test]
    fn pauses_keep_the_table_bounded() {
        let account = Account::new(ChannelKind::Telegram, "a", TenantId(1));
        let pace = Pace::new(std::slice::from_ref(&account));
        for chat in 0..CHATS_MAX + 10 {
            pace.hold_until(&account, &chat.to_string(), 0, 60 * SECOND);
        }
        assert_eq!(pace.accounts.read().expect("a lock")[0].1.lock().expect("a lock").chats.len(), CHATS_MAX);
        pace.admit_at(&account, "0", 0, SECOND).expect_err("a held chat stays held");
        assert_eq!(pace.admit_at(&account, "new", 0, SECOND), Err(CROWDED));
        pace.admit_at(&account, "new", 0, 120 * SECOND).expect("the pauses are over");
    }

    #[test]
    fn an_account_that_stays_keeps_what_it_has_used() {
        let account = Account::new(ChannelKind::Slack, "a", TenantId(1));
        let other = Account::new(ChannelKind::Slack, "b", TenantId(1));
        let pace = Pace::new([&account]);
        while pace.admit_at(&account, "C1", 0, SECOND).is_ok() {}
        pace.keep([&other, &account]);
        pace.admit_at(&account, "C1", 0, SECOND).expect_err("its bucket is as empty as before");
        pace.admit_at(&other, "C1", 0, SECOND).expect("a full bucket");
    }

    #[test]
    fn an_account_that_is_not_configured_has_no_bucket() {
        let account = Account::new(ChannelKind::Slack, "other", TenantId(1));
        for _ in 0..1_000 {
            Pace::new([]).admit_at(&account, "C1", 0, 0).expect("the delivery itself refuses it");
        }
    }
}
