//! Published keys and access tokens of platforms: fetched on the control thread, used by every shard.
//!
//! The rules (one fetch at a time, renewed at nine tenths of its life while the old one is in use, never used
//! beyond it, back-off after a failure, bounded) are the sans-IO machines [`KeyCache`] and [`Tokens`]; here
//! are the lock around them, the clock and the calls. Keys are only fetched from addresses that the adapters
//! pin to hosts of their platform, or from the account's own `keys_base`; redirects to another host are not
//! followed.
//!
//! A request that needs a set which is not at hand waits for the fetch, which ends in bounded time; when it
//! fails the request is refused with a status that makes platforms repeat it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millrace_proto::channel::access::{self, Fetched, Tokens};
use millrace_proto::channel::keycache::{KeyCache, max_age_s};
use millrace_proto::channel::keys::{self, KeySet, KeySource, Parsed};
use millrace_proto::channel::{Account, OutboundCall, Secret};
use ring::rand::SystemRandom;

use super::{CallError, Control, HttpReply};

/// Longest time of one fetch. Two follow each other at most (an OpenID configuration names the keys), which
/// is well within the 15 s that the platforms with such keys wait for an answer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(4);
/// Documents that may lead to one key set.
const HOPS_MAX: u32 = 2;
/// Requests that may wait for one key set; more are told to come back.
const WAITERS_MAX: usize = 256;
/// When a delivery looks again for a token that is being fetched.
const TOKEN_LOOK_MS: u64 = 50;

/// Called when a fetch has ended, on the control thread; must be quick.
pub type Wake = Box<dyn FnOnce() + Send>;

/// What there is to authorise a call with.
#[derive(Clone, Debug)]
pub enum Token {
    /// A token that is good now.
    Ready(Secret),
    /// None yet.
    Wait {
        /// When to look again.
        after_ms: u64,
        /// What the last failed fetch said; empty while the first one runs.
        why: String,
    },
    /// The account's configuration cannot get one.
    Impossible(String),
}

/// The door to keys and tokens; clones share it.
#[derive(Clone)]
pub struct Platforms(Arc<Inner>);

struct Inner {
    control: Control,
    started: Instant,
    random: SystemRandom,
    keys: Mutex<Keys>,
    tokens: Mutex<Tokens>,
}

#[derive(Default)]
struct Keys {
    cache: KeyCache,
    waiting: HashMap<String, Vec<Wake>>,
}

/// One account's view of the published keys.
pub struct AccountKeys<'a> {
    platforms: &'a Platforms,
    account: &'a Account,
}

impl KeySource for AccountKeys<'_> {
    fn keys(&self, url: &str) -> Option<Arc<KeySet>> {
        self.platforms.key_set(self.account, url)
    }
}

impl Platforms {
    /// Nothing is fetched yet.
    pub fn new(control: Control) -> Self {
        Self(Arc::new(Inner {
            control,
            started: Instant::now(),
            random: SystemRandom::new(),
            keys: Mutex::default(),
            tokens: Mutex::default(),
        }))
    }

    /// Fetches what the accounts are going to need, so that the first event does not wait for it.
    pub fn warm<'a>(&self, accounts: impl IntoIterator<Item = &'a Account>) {
        for account in accounts {
            if let Some(url) = keys::known_address(account) {
                self.key_set(account, url);
            }
            if needs_token(account) {
                let _ = self.token(account);
            }
        }
    }

    /// Forgets the tokens of accounts that are not served any more.
    pub fn keep<'a>(&self, accounts: impl IntoIterator<Item = &'a Account>) {
        self.tokens().keep(accounts);
    }

    /// The keys as an adapter asks for them.
    pub fn keys_of<'a>(&'a self, account: &'a Account) -> AccountKeys<'a> {
        AccountKeys { platforms: self, account }
    }

    fn key_set(&self, account: &Account, url: &str) -> Option<Arc<KeySet>> {
        let address = account.document_address(url);
        let lookup = self.keys().cache.get(&address, self.now_s());
        if lookup.fetch {
            self.fetch_keys(Fetch::new(address, url, account));
        }
        lookup.set
    }

    /// Calls `wake` when the fetch of a missing set has ended. False when none runs (the last one failed a
    /// moment ago, or an unknown key id does not justify another) or too many requests wait for it.
    pub fn when_keys_came(&self, account: &Account, url: &str, unknown_key: bool, wake: Wake) -> bool {
        let address = account.document_address(url);
        let mut keys = self.keys();
        let fetch = unknown_key && keys.cache.unknown_key(&address, self.now_s());
        if !keys.cache.fetching(&address) {
            return false;
        }
        let waiting = keys.waiting.entry(address.clone()).or_default();
        let room = waiting.len() < WAITERS_MAX;
        if room {
            waiting.push(wake);
        }
        drop(keys);
        if fetch {
            self.fetch_keys(Fetch::new(address, url, account));
        }
        room
    }

    fn fetch_keys(&self, fetch: Fetch) {
        let call = OutboundCall {
            method: "GET",
            url: fetch.next.clone(),
            headers: vec![("accept".to_owned(), "application/json".to_owned())],
            body: Vec::new(),
            idempotent: true,
        };
        let this = self.clone();
        let address = fetch.address.clone();
        let done = move |result: Result<HttpReply, CallError>| this.keys_answered(fetch, result);
        if self.0.control.http(call, FETCH_TIMEOUT, Box::new(done)).is_err() {
            self.keys_fetched(&address, Err("too many calls are waiting".to_owned()));
        }
    }

    fn keys_answered(&self, mut fetch: Fetch, result: Result<HttpReply, CallError>) {
        let outcome = match result {
            Err(error) => Err(error.to_string()),
            Ok(reply) if reply.status != 200 => Err(format!("it answered {}", reply.status)),
            Ok(reply) => match keys::parse(&fetch.public, fetch.base.as_deref(), &reply.body) {
                Err(error) => Err(error.to_string()),
                Ok(Parsed::Keys(set)) => Ok((set, header(&reply, "cache-control").and_then(max_age_s))),
                Ok(Parsed::Next(_)) if fetch.hops == HOPS_MAX => Err("its documents refer to each other".to_owned()),
                Ok(Parsed::Next(next)) => {
                    fetch.hops += 1;
                    fetch.next = fetch.account.document_address(&next);
                    fetch.public = next;
                    return self.fetch_keys(fetch);
                }
            },
        };
        self.keys_fetched(&fetch.address, outcome);
    }

    fn keys_fetched(&self, address: &str, outcome: Result<(KeySet, Option<u64>), String>) {
        let now_s = self.now_s();
        let waiting = {
            let mut keys = self.keys();
            let set = match outcome {
                Ok(found) => Some(found),
                Err(why) => {
                    tracing::warn!(
                        address,
                        why,
                        "published keys were not fetched; their channel refuses events when the old ones end"
                    );
                    None
                }
            };
            keys.cache.fetched(address, set, now_s);
            keys.waiting.remove(address).unwrap_or_default()
        };
        waiting.into_iter().for_each(|wake| wake());
    }

    /// The access token of an account whose platform demands a short-lived one.
    pub fn token(&self, account: &Account) -> Token {
        if let Some(fixed) = &account.bot_token {
            return Token::Ready(fixed.clone());
        }
        let lookup = self.tokens().get(account, self.now_s());
        if lookup.fetch
            && let Err(why) = self.fetch_token(account)
        {
            return Token::Impossible(why);
        }
        if let Some(token) = lookup.token {
            return Token::Ready(token);
        }
        let pause_s = lookup.retry_s.map_or(0, |retry_s| retry_s.saturating_sub(self.now_s()));
        let why = self.tokens().error(account).to_owned();
        Token::Wait { after_ms: (pause_s * 1_000).max(TOKEN_LOOK_MS), why }
    }

    /// The platform refused this token.
    pub fn token_refused(&self, account: &Account, token: &Secret) {
        self.tokens().refused(account, token);
    }

    fn fetch_token(&self, account: &Account) -> Result<(), String> {
        let refused = |why: String| {
            self.tokens().fetched(account, Err(why.clone()), self.now_s());
            why
        };
        let call = match access::request(account, unix_s(), &self.0.random) {
            Some(Ok(call)) => call,
            Some(Err(error)) => return Err(refused(error.to_string())),
            None => return Err(refused("this platform has no access tokens".to_owned())),
        };
        let (this, owner) = (self.clone(), account.clone());
        let done = move |result: Result<HttpReply, CallError>| {
            let outcome = match result {
                Ok(reply) => access::parse(reply.status, &reply.body),
                Err(error) => Err(error.to_string()),
            };
            this.token_fetched(&owner, outcome);
        };
        if self.0.control.http(call, FETCH_TIMEOUT, Box::new(done)).is_err() {
            self.token_fetched(account, Err("too many calls are waiting".to_owned()));
        }
        Ok(())
    }

    fn token_fetched(&self, account: &Account, outcome: Result<Fetched, String>) {
        if let Err(why) = &outcome {
            tracing::warn!(channel = %account.kind, account = %account.name, why, "no access token; replies wait");
        }
        self.tokens().fetched(account, outcome, self.now_s());
    }

    /// Seconds that no clock change moves; never 0, which the machines use for "at once".
    fn now_s(&self) -> u64 {
        self.0.started.elapsed().as_secs() + 1
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.0.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        self.0.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether replies of this account may wait for a token.
fn needs_token(account: &Account) -> bool {
    access::needed(account.kind) && account.bot_token.is_none()
}

/// One fetch of a key set on its way.
struct Fetch {
    /// Under which the set is kept.
    address: String,
    /// The public address of the document that is fetched now.
    public: String,
    /// Where it is fetched from.
    next: String,
    base: Option<String>,
    account: Account,
    hops: u32,
}

impl Fetch {
    fn new(address: String, url: &str, account: &Account) -> Self {
        let (next, base) = (address.clone(), account.keys_base.clone());
        Self { address, public: url.to_owned(), next, base, account: account.clone(), hops: 1 }
    }
}

fn header<'a>(reply: &'a HttpReply, name: &str) -> Option<&'a str> {
    reply.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
