//! Access tokens of other issuers, accepted by configuration.
//!
//! Each `[[issuer]]` names its issuer URL, where its keys are, and what its tokens may do here at most. Keys
//! are fetched by the control thread, one fetch at a time for each issuer, from the configured address only
//! (a redirect to another host is not followed), and kept: a token names its issuer, but never an address.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millrace_proto::channel::OutboundCall;
use millrace_proto::digest::sha256;
use millrace_proto::id::{TenantId, UserId};
use millrace_proto::limits::NAME_BYTES_MAX;
use millrace_proto::oauth::jwk::KeySet;
use millrace_proto::oauth::jwt::{self, Claims, Expect, JwtError};
use millrace_proto::record::scope_bit;
use tokio::sync::oneshot;

use super::{Granted, LEEWAY_S, LIFETIME_S_MAX, now_s};
use crate::control::{CallError, Control, HttpReply};
use crate::gateway::Principal;

/// Longest time of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Age at which keys are fetched again while the old ones go on being used.
const REFRESH_AFTER: Duration = Duration::from_secs(300);
/// Age at which keys that could not be fetched again are used no more: a key that its issuer has withdrawn
/// must not open anything for ever.
const USE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Pause between two fetches that unknown keys or failures ask for.
const FETCH_PAUSE: Duration = Duration::from_secs(5);
/// Callers that wait for one fetch.
const WAITERS_MAX: usize = 1_024;
/// Issuers of one node.
pub const ISSUERS_MAX: usize = 32;

/// What the configuration says about an issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerOptions {
    /// Its `iss`, byte for byte.
    pub issuer: String,
    /// Where its key set is.
    pub jwks_url: String,
    /// What must stand in `aud`.
    pub audience: String,
    /// The tenant of its tokens.
    pub tenant: TenantId,
    /// What its tokens may do at most. A token does of it what its `scope` claim names.
    pub scopes: u32,
}

/// One issuer with its keys.
struct Issuer {
    options: IssuerOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: Option<(Arc<KeySet>, Instant)>,
    fetching: bool,
    last_fetch: Option<Instant>,
    waiters: Vec<oneshot::Sender<()>>,
}

/// The trusted issuers. Clones share their keys.
#[derive(Clone, Default)]
pub struct Issuers(Arc<Vec<Issuer>>);

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|issuer| &issuer.options.issuer)).finish()
    }
}

/// What a token of another issuer is.
#[derive(Debug)]
pub enum Foreign {
    /// It speaks for somebody.
    Granted(Box<Granted>),
    /// It cannot be judged before the issuer's keys have been fetched; wait for this, then ask again.
    Wait(oneshot::Receiver<()>),
    /// The keys are not there and cannot be fetched just now.
    NoKeys,
    /// It opens nothing.
    Refused(JwtError),
    /// Nobody here trusts its issuer.
    Stranger,
}

impl Issuers {
    /// The issuers of a configuration.
    pub fn new(options: Vec<IssuerOptions>) -> Self {
        let issuer = |options| Issuer { options, state: Mutex::default() };
        Self(Arc::new(options.into_iter().map(issuer).collect()))
    }

    /// Fetches every issuer's keys ahead of the first token.
    pub fn prefetch(&self, control: &Control) {
        for at in 0..self.0.len() {
            self.fetch(at, control, Instant::now());
        }
    }

    /// Judges a token by the keys of the issuer that it names.
    pub fn judge(&self, token: &str, control: &Control) -> Foreign {
        let Some(named) = jwt::issuer_of(token) else { return Foreign::Refused(JwtError::Form) };
        let Some(at) = self.0.iter().position(|issuer| issuer.options.issuer == named) else {
            return Foreign::Stranger;
        };
        let (now, options) = (Instant::now(), &self.0[at].options);
        let Some((keys, age)) = self.keys(at, now) else {
            return self.wait(at, control, now).map_or(Foreign::NoKeys, Foreign::Wait);
        };
        if age > REFRESH_AFTER {
            self.fetch(at, control, now);
        }
        let (issuer, audience) = (options.issuer.as_str(), options.audience.as_str());
        let expect = Expect { issuer, audience, now_s: now_s(), leeway_s: LEEWAY_S, own: false };
        match jwt::verify(token, &keys, &expect) {
            // The issuer may have a new key; whether it has is asked every few seconds at most.
            Err(JwtError::Key) => self.wait(at, control, now).map_or(Foreign::Refused(JwtError::Key), Foreign::Wait),
            Err(error) => Foreign::Refused(error),
            Ok(claims) => match grant(options, &claims) {
                Some(granted) => Foreign::Granted(Box::new(granted)),
                None => Foreign::Refused(JwtError::Claims),
            },
        }
    }

    fn keys(&self, at: usize, now: Instant) -> Option<(Arc<KeySet>, Duration)> {
        let state = self.lock(at);
        let (keys, fetched) = state.keys.as_ref()?;
        let age = now.saturating_duration_since(*fetched);
        (age < USE_MAX).then(|| (Arc::clone(keys), age))
    }

    fn lock(&self, at: usize) -> std::sync::MutexGuard<'_, State> {
        self.0[at].state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the fetch under way, or starts one unless the last one is too recent.
    fn wait(&self, at: usize, control: &Control, now: Instant) -> Option<oneshot::Receiver<()>> {
        let (told, heard) = oneshot::channel();
        {
            let mut state = self.lock(at);
            if state.waiters.len() >= WAITERS_MAX || (!state.fetching && !may_fetch(&state, now)) {
                return None;
            }
            state.waiters.push(told);
        }
        self.fetch(at, control, now);
        Some(heard)
    }

    /// Starts a fetch unless one is under way or the last one is too recent.
    fn fetch(&self, at: usize, control: &Control, now: Instant) {
        {
            let mut state = self.lock(at);
            if state.fetching || !may_fetch(&state, now) {
                return;
            }
            state.fetching = true;
            state.last_fetch = Some(now);
        }
        let options = &self.0[at].options;
        let call = OutboundCall {
            method: "GET",
            url: options.jwks_url.clone(),
            headers: vec![("accept".to_owned(), "application/jwk-set+json, application/json".to_owned())],
            body: Vec::new(),
            idempotent: true,
        };
        let shared = self.clone();
        let done = move |result: Result<HttpReply, CallError>| shared.fetched(at, result);
        if control.http(call, FETCH_TIMEOUT, Box::new(done)).is_err() {
            tracing::warn!(issuer = %options.issuer, "the issuer's keys are not fetched: too many calls wait");
            self.finish(at, None);
        }
    }

    fn fetched(&self, at: usize, result: Result<HttpReply, CallError>) {
        let issuer = &self.0[at].options.issuer;
        let read = result.map_err(|error| error.to_string()).and_then(|reply| {
            if reply.status != 200 {
                return Err(format!("the answer has status {}", reply.status));
            }
            KeySet::parse(&reply.body).map_err(|error| error.to_string())
        });
        match read {
            Ok(keys) => {
                tracing::debug!(issuer, "fetched the issuer's keys");
                self.finish(at, Some(keys));
            }
            Err(why) => {
                tracing::warn!(issuer, why, "the issuer's keys could not be fetched; known ones stay in use");
                self.finish(at, None);
            }
        }
    }

    fn finish(&self, at: usize, keys: Option<KeySet>) {
        let mut state = self.lock(at);
        state.fetching = false;
        if let Some(keys) = keys {
            state.keys = Some((Arc::new(keys), Instant::now()));
        }
        for waiter in state.waiters.drain(..) {
            // Who has left needs no answer.
            let _ = waiter.send(());
        }
    }
}

fn may_fetch(state: &State, now: Instant) -> bool {
    state.last_fetch.is_none_or(|last| now.saturating_duration_since(last) >= FETCH_PAUSE)
}

/// What a verified token stands for here. Users of an issuer are their own name space: what it says about user
/// names gives no access to anybody else's memory.
fn grant(options: &IssuerOptions, claims: &Claims) -> Option<Granted> {
    let user_name = format!("issuer:{}:{}:{}", options.issuer.len(), options.issuer, claims.sub);
    if user_name.len() > NAME_BYTES_MAX {
        return None;
    }
    let named = claims.scope.split(' ').filter_map(scope_bit).fold(0, |scopes, bit| scopes | bit);
    let principal = Principal {
        tenant: options.tenant,
        user: UserId::of(options.tenant, &user_name),
        scopes: named & options.scopes,
        key_label: format!("token of {}", options.issuer),
        subject: sha256(format!("{} {user_name}", options.tenant.0).as_bytes()),
        user_name,
    };
    let expires_s = claims.exp.saturating_add(LEEWAY_S).min(now_s() + LIFETIME_S_MAX);
    Some(Granted { principal, expires_s: Some(expires_s) })
}

#[cfg(test)]
mod tests {
    use millrace_proto::oauth::jwt::{Algorithm, SigningKey, sign};
    use millrace_proto::record::{SCOPE_ADMIN, SCOPE_CHAT};
    use ring::rand::SystemRandom;

    use super::*;

    fn key() -> SigningKey {
        let random = SystemRandom::new();
        let document = SigningKey::generate(Algorithm::Es256, &random).expect("a key");
        SigningKey::from_pkcs8(Algorithm::Es256, &document, &random).expect("the key")
    }

    fn options() -> IssuerOptions {
        IssuerOptions {
            issuer: "https://login.example".into(),
            // Discard port: nothing listens there.
            jwks_url: "http://127.0.0.1:9/keys".into(),
            audience: "millrace".into(),
            tenant: TenantId(4),
            scopes: SCOPE_CHAT,
        }
    }

    fn token(key: &SigningKey, issuer: &str, scope: &str) -> String {
        let claims = Claims {
            iss: issuer.into(),
            sub: "ada".into(),
            aud: vec!["millrace".into()],
            exp: now_s() + 60,
            scope: scope.into(),
            ..Claims::default()
        };
        sign(&claims, key, &SystemRandom::new()).expect("a token")
    }

    #[test]
    fn a_token_does_what_it_names_and_the_configuration_allows() {
        let (control, key, issuers) = (Control::start().expect("control"), key(), Issuers::new(vec![options()]));
        issuers.finish(0, Some(KeySet::new(vec![key.verifying()])));
        let judged = issuers.judge(&token(&key, "https://login.example", "openid chat admin"), &control);
        let Foreign::Granted(granted) = judged else { panic!("{judged:?}") };
        assert_eq!((granted.principal.tenant, granted.principal.scopes), (TenantId(4), SCOPE_CHAT));
        assert_eq!(granted.principal.user_name, "issuer:21:https://login.example:ada");
        let Foreign::Granted(bare) = issuers.judge(&token(&key, "https://login.example", ""), &control) else {
            panic!("valid")
        };
        assert_eq!(bare.principal.scopes & (SCOPE_ADMIN | SCOPE_CHAT), 0, "no scope claim, no scopes");
        let stranger = issuers.judge(&token(&key, "https://evil.example", "chat"), &control);
        assert!(matches!(stranger, Foreign::Stranger));
        control.shutdown();
    }

    #[test]
    fn unknown_keys_are_fetched_once_and_then_refused() {
        let (control, known, other) = (Control::start().expect("control"), key(), key());
        let issuers = Issuers::new(vec![options()]);
        let unknown = token(&other, "https://login.example", "chat");
        let Foreign::Wait(first) = issuers.judge(&unknown, &control) else { panic!("no keys yet") };
        // The second caller joins the fetch of the first, or comes after it and is not let fetch again.
        assert!(matches!(issuers.judge(&unknown, &control), Foreign::Wait(_) | Foreign::NoKeys));
        first.blocking_recv().expect("the fetch ends");
        assert!(matches!(issuers.judge(&unknown, &control), Foreign::NoKeys));
        issuers.finish(0, Some(KeySet::new(vec![known.verifying()])));
        // Its time of the last fetch is a moment ago, so the unknown key is refused at once.
        assert!(matches!(issuers.judge(&unknown, &control), Foreign::Refused(JwtError::Key)));
        control.shutdown();
    }
}
