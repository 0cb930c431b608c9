//! Who may call besides API keys: OAuth clients of this node, the access tokens that were made for them, and
//! tokens of other issuers that the configuration trusts.
//!
//! All shards share one [`Authority`]. Nothing in it is asked on the way of an ordinary request: a shard
//! remembers what a token stands for until the epoch of the keys advances (see `gateway::auth`).

mod attempts;
mod client;
pub mod issuers;
mod secrets;
mod signing;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use millrace_proto::digest::{base64url, constant_time_eq, sha256, unbase64url};
use millrace_proto::id::{TenantId, UserId};
use millrace_proto::oauth::jwt::{self, Algorithm, Claims, Expect, JwtError};
use millrace_proto::oauth::scopes_of;
use millrace_storage::{Batch, ReadError, Store};
use ring::hmac;
use ring::rand::SystemRandom;

pub use client::{Client, OpaqueToken, TokenKind};
pub use secrets::{Busy, SecretHash, Secrets};
pub use signing::{KeyFacts, Signing, SigningError};

use crate::control::Control;
use crate::gateway::Principal;
use attempts::Attempts;
use issuers::Issuers;

/// What an opaque access token starts with.
pub const TOKEN_PREFIX: &str = "mt-";
/// What a client's id starts with.
const CLIENT_PREFIX: &str = "mc-";
/// What a client's secret starts with.
const SECRET_PREFIX: &str = "ms-";

/// Shortest and longest life of an access token in seconds.
pub const LIFETIME_S_MIN: u64 = 30;
/// Longest life of an access token.
pub const LIFETIME_S_MAX: u64 = 86_400;
/// Life of an access token unless its client says otherwise.
pub const LIFETIME_S: u64 = 3_600;

/// How far clocks of other issuers may differ.
const LEEWAY_S: u64 = 60;

/// Clients of one node. They are all in memory, at about 500 bytes each.
pub const CLIENTS_MAX: usize = 10_000;

/// Revoked JWTs that are remembered until their own end. Beyond it a revocation is refused, never forgotten.
const REVOKED_MAX: usize = 100_000;

/// Names of the stored values.
const CLIENT_ROW: &str = "oauth/client/";
const TOKEN_ROW: &str = "oauth/token/";
const REVOKED_ROW: &str = "oauth/revoked/";
const SIGNING_ROW: &str = "oauth/signing";

/// SHA-256 of a key's or token's text.
pub type TokenHash = [u8; 32];

/// What a valid key or token stands for.
#[derive(Clone, Debug)]
pub struct Granted {
    /// Who calls.
    pub principal: Principal,
    /// Unix second of its end; `None` = it holds until it is revoked.
    pub expires_s: Option<u64>,
}

/// A token as introspection and revocation see it.
#[derive(Clone, Debug)]
pub struct TokenFacts {
    /// The client that it was given to.
    pub client: Arc<Client>,
    /// Its scopes, cut to what the client may have now.
    pub scopes: u32,
    /// Unix seconds of its making.
    pub iat: u64,
    /// Unix seconds of its end.
    pub exp: u64,
    /// It is a JWT, so its revocation must be remembered.
    pub signed: bool,
}

/// Settings of the authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The issuer identifier: the URL under which clients reach this node, without a slash at its end.
    pub issuer: String,
    /// Whom JWTs are for.
    pub audience: String,
    /// How JWTs are signed.
    pub algorithm: Algorithm,
    /// Answer clients on other machines over plain HTTP too.
    pub plain_http: bool,
}

/// The authority cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Stored rows cannot be read.
    #[error("the OAuth clients cannot be read. Next step: look at the store with `millrace doctor`")]
    Read(#[source] ReadError),
    /// A stored row is not what it should be.
    #[error("the stored value {name} is damaged: {why}. Next step: restore a backup")]
    Damaged {
        /// Its name.
        name: String,
        /// What the reader said.
        why: String,
    },
    /// The signing keys cannot be used.
    #[error("the token signing keys cannot be used. Next step: restore a backup")]
    Signing(#[source] SigningError),
    /// A new signing key was not stored.
    #[error("a new token signing key was not stored. Next step: look at the data volume")]
    Store(#[source] millrace_storage::CommitError),
    /// The thread for secrets cannot start.
    #[error("a thread cannot be started. Next step: look at `ulimit -u`")]
    Thread(#[source] std::io::Error),
}

/// Clients, their tokens, the signing keys and the trusted issuers of a node.
pub struct Authority {
    options: Options,
    store: Store,
    clients: RwLock<HashMap<String, Arc<Client>>>,
    signing: RwLock<Arc<Signing>>,
    /// Revoked JWTs and the Unix second of their own end.
    revoked: Arc<RwLock<HashMap<TokenHash, u64>>>,
    /// The last secret of each client that was proved, as a digest under a key of this process: a client that
    /// comes back does not cost a slow hash.
    proved: Mutex<HashMap<String, [u8; 32]>>,
    proof_key: hmac::Key,
    attempts: Attempts,
    secrets: Secrets,
    issuers: ArcSwap<Issuers>,
    started: Instant,
}

/// Whether a client has shown its secret.
#[derive(Debug)]
pub enum Proof {
    /// It has, lately.
    Proved(Arc<Client>),
    /// It must be checked against these, off the reactor. Nobody's when the client is unknown.
    Unproved(Option<Arc<Client>>, Vec<SecretHash>),
    /// Too many tries have failed; come back after so many seconds.
    Blocked(u32),
}

impl Authority {
    /// Reads what is stored. Call it before anything is served. `housekeeping` runs about once a minute on the
    /// thread for secrets, beside our own.
    pub fn open(
        store: Store,
        options: Options,
        issuers: Issuers,
        mut housekeeping: impl FnMut() + Send + 'static,
    ) -> Result<Self, StartError> {
        let mut clients = HashMap::new();
        for (name, value) in store.metas(CLIENT_ROW).map_err(StartError::Read)? {
            let client: Client =
                serde_json::from_slice(&value).map_err(|error| StartError::Damaged { name, why: error.to_string() })?;
            clients.insert(client.id.clone(), Arc::new(client));
        }
        let mut revoked = HashMap::new();
        for (name, value) in store.metas(REVOKED_ROW).map_err(StartError::Read)? {
            let hash = unbase64url(&name[REVOKED_ROW.len()..]).and_then(|hash| hash.try_into().ok());
            let end = value.as_slice().try_into().ok().map(u64::from_be_bytes);
            match hash.zip(end) {
                Some((hash, end)) => revoked.insert(hash, end),
                None => return Err(StartError::Damaged { name, why: "it is no token's end".into() }),
            };
        }
        let stored = store.meta(SIGNING_ROW).map_err(StartError::Read)?;
        let (signing, new) =
            Signing::open(stored.as_deref(), options.algorithm, now_s()).map_err(StartError::Signing)?;
        if new {
            let mut batch = Batch::new();
            batch.put_meta(SIGNING_ROW, &signing.to_bytes());
            store.commit(batch).map_err(StartError::Store)?;
        }
        let revoked = Arc::new(RwLock::new(revoked));
        let (swept, swept_revoked) = (store.clone(), Arc::clone(&revoked));
        let secrets = Secrets::start(move || {
            sweep(&swept, &swept_revoked);
            housekeeping();
        })
        .map_err(StartError::Thread)?;
        Ok(Self {
            options,
            store,
            clients: RwLock::new(clients),
            signing: RwLock::new(Arc::new(signing)),
            revoked,
            proved: Mutex::default(),
            proof_key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
                .map_err(|_| StartError::Signing(SigningError::Random))?,
            attempts: Attempts::default(),
            secrets,
            issuers: ArcSwap::from_pointee(issuers),
            started: Instant::now(),
        })
    }

    /// The settings.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The thread for slow hashes.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Other issuers that the configuration trusts.
    pub fn issuers(&self) -> Arc<Issuers> {
        self.issuers.load_full()
    }

    /// From here on these issuers are trusted; their keys are fetched at once.
    pub fn put_issuers(&self, issuers: Issuers, control: &Control) {
        issuers.prefetch(control);
        self.issuers.store(Arc::new(issuers));
    }

    /// A client.
    pub fn client(&self, id: &str) -> Option<Arc<Client>> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Every client.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        self.clients.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Takes over a client that was stored, in place of an older one of its id. What it had proved is
    /// forgotten afterwards: its secret may have changed.
    pub fn put_client(&self, client: Client) {
        let id = client.id.clone();
        self.clients.write().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), Arc::new(client));
        self.proved.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Forgets a client that was removed.
    pub fn remove_client(&self, id: &str) {
        self.clients.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.proved.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// The signing keys.
    pub fn signing(&self) -> Arc<Signing> {
        Arc::clone(&self.signing.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over signing keys that were stored.
    pub fn put_signing(&self, signing: Signing) {
        *self.signing.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(signing);
    }

    /// What is known about a client that names itself with this secret.
    pub fn proof(&self, id: &str, secret: &str, ip: IpAddr) -> Proof {
        let client = self.client(id);
        if let Some(client) = &client {
            let digest = self.digest(id, secret);
            let proved = self.proved.lock().unwrap_or_else(PoisonError::into_inner);
            if proved.get(id).is_some_and(|known| constant_time_eq(known, &digest)) {
                return Proof::Proved(Arc::clone(client));
            }
        }
        if let Some(wait_s) = self.attempts.blocked(id, ip, self.now_ns()) {
            return Proof::Blocked(wait_s);
        }
        let against = client.as_ref().map_or_else(Vec::new, |client| client.secrets(now_s()));
        Proof::Unproved(client, against)
    }

    /// The secret was right. It is remembered only when it was the client's sole one when it was looked up, and
    /// only while the client is still what it was then: a slow check must not outlive a rotation.
    pub fn proved(&self, client: &Arc<Client>, secret: &str, sole: bool) {
        let digest = self.digest(&client.id, secret);
        let mut proved = self.proved.lock().unwrap_or_else(PoisonError::into_inner);
        if sole && self.client(&client.id).is_some_and(|current| Arc::ptr_eq(&current, client)) {
            proved.insert(client.id.clone(), digest);
        }
    }

    /// The secret was wrong.
    pub fn refused(&self, id: &str, ip: IpAddr) {
        self.attempts.failed(id, ip, self.now_ns());
    }

    fn digest(&self, id: &str, secret: &str) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.proof_key);
        context.update(&(id.len() as u64).to_be_bytes());
        context.update(id.as_bytes());
        context.update(secret.as_bytes());
        context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// What a token of this node says, if it is valid now.
    pub fn token(&self, text: &str) -> Result<Option<TokenFacts>, ReadError> {
        let now_s = now_s();
        if is_opaque(text) {
            let Some(value) = self.store.meta(&token_row(&sha256(text.as_bytes())))? else { return Ok(None) };
            let Ok(token) = serde_json::from_slice::<OpaqueToken>(&value) else { return Ok(None) };
            return Ok(self
                .facts(&token.client, token.scopes, token.iat, token.exp, false)
                .filter(|_| now_s < token.exp));
        }
        let Ok(claims) = self.verify(text, now_s) else { return Ok(None) };
        let scopes = if claims.scope.is_empty() { 0 } else { scopes_of(&claims.scope).unwrap_or(0) };
        Ok(self.facts(&claims.client_id, scopes, claims.iat, claims.exp, true))
    }

    fn facts(&self, client: &str, scopes: u32, iat: u64, exp: u64, signed: bool) -> Option<TokenFacts> {
        let client = self.client(client)?;
        Some(TokenFacts { scopes: scopes & client.scopes, client, iat, exp, signed })
    }

    fn verify(&self, text: &str, now_s: u64) -> Result<Claims, JwtError> {
        let signing = self.signing();
        let Options { issuer, audience, .. } = &self.options;
        let claims = jwt::verify(text, signing.set(), &Expect { issuer, audience, now_s, leeway_s: 0, own: true })?;
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        if revoked.contains_key(&sha256(text.as_bytes())) { Err(JwtError::Expired) } else { Ok(claims) }
    }

    /// Whom an access token of this node speaks for.
    pub fn granted(&self, text: &str) -> Result<Option<Granted>, ReadError> {
        let facts = self.token(text)?;
        Ok(facts.map(|facts| Granted { principal: principal(&facts.client, facts.scopes), expires_s: Some(facts.exp) }))
    }

    /// Whether the token names this node as its issuer.
    pub fn is_own(&self, text: &str) -> bool {
        jwt::issuer_of(text).is_some_and(|issuer| issuer == self.options.issuer)
    }

    /// Makes an access token: its text, and what must be stored before it is handed out.
    pub fn make_token(&self, client: &Client, scopes: u32) -> Option<(String, Batch)> {
        let (iat, mut batch) = (now_s(), Batch::new());
        let exp = iat + client.lifetime_s;
        let text = match client.kind {
            TokenKind::Opaque => {
                let text = random_text(TOKEN_PREFIX, 32)?;
                let token = OpaqueToken { client: client.id.clone(), scopes, iat, exp };
                let value = serde_json::to_vec(&token).expect("a token is text and numbers");
                batch.put_meta(&token_row(&sha256(text.as_bytes())), &value);
                text
            }
            TokenKind::Jwt => {
                let claims = Claims {
                    iss: self.options.issuer.clone(),
                    sub: client.id.clone(),
                    aud: vec![self.options.audience.clone()],
                    client_id: client.id.clone(),
                    exp,
                    iat,
                    nbf: None,
                    jti: random_text("", 16)?,
                    scope: millrace_proto::oauth::scope_text(scopes),
                    tenant: Some(client.tenant),
                };
                jwt::sign(&claims, self.signing().current(), &SystemRandom::new()).ok()?
            }
        };
        Some((text, batch))
    }

    /// What must be stored to end a token before its time; `None` when no more revocations can be remembered.
    pub fn revocation(&self, text: &str, facts: &TokenFacts) -> Option<Batch> {
        let (hash, mut batch) = (sha256(text.as_bytes()), Batch::new());
        if !facts.signed {
            batch.remove_meta(&token_row(&hash));
            return Some(batch);
        }
        if self.revoked.read().unwrap_or_else(PoisonError::into_inner).len() >= REVOKED_MAX {
            return None;
        }
        batch.put_meta(&format!("{REVOKED_ROW}{}", base64url(&hash)), &facts.exp.to_be_bytes());
        Some(batch)
    }

    /// The revocation is stored.
    pub fn revoked(&self, text: &str, facts: &TokenFacts) {
        if facts.signed {
            let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
            revoked.insert(sha256(text.as_bytes()), facts.exp);
        }
    }

    /// The public keys.
    pub fn key_set_json(&self) -> Vec<u8> {
        self.signing().set().to_json()
    }
}

/// Whom a client's token speaks for.
fn principal(client: &Client, scopes: u32) -> Principal {
    let tenant = TenantId(client.tenant);
    Principal {
        tenant,
        user: UserId::of(tenant, &client.user),
        user_name: client.user.clone(),
        scopes,
        key_label: format!("client {}", client.id),
        subject: subject(client),
    }
}

/// Whose rate a client's requests and those with its tokens count for.
pub fn subject(client: &Client) -> [u8; 32] {
    sha256(format!("client {}", client.id).as_bytes())
}

/// The batch that stores a client.
pub fn client_batch(client: &Client) -> Batch {
    let mut batch = Batch::new();
    let value = serde_json::to_vec(client).expect("a client is text and numbers");
    batch.put_meta(&format!("{CLIENT_ROW}{}", client.id), &value);
    batch
}

/// The batch that removes a client. Its tokens end with it, since each names a client that must exist.
pub fn client_removal(id: &str) -> Batch {
    let mut batch = Batch::new();
    batch.remove_meta(&format!("{CLIENT_ROW}{id}"));
    batch
}

/// The batch that stores signing keys.
pub fn signing_batch(signing: &Signing) -> Batch {
    let mut batch = Batch::new();
    batch.put_meta(SIGNING_ROW, &signing.to_bytes());
    batch
}

/// A new client id and its secret. `None` when the system has no random numbers.
pub fn make_credentials() -> Option<(String, String)> {
    Some((random_text(CLIENT_PREFIX, 12)?, random_text(SECRET_PREFIX, 32)?))
}

fn random_text(prefix: &str, bytes: usize) -> Option<String> {
    let mut random = vec![0; bytes];
    getrandom::fill(&mut random).ok()?;
    Some(format!("{prefix}{}", base64url(&random)))
}

/// Whether a text has the form of an opaque access token.
pub fn is_opaque(text: &str) -> bool {
    text.strip_prefix(TOKEN_PREFIX).is_some_and(|rest| {
        rest.len() == 43 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    })
}

fn token_row(hash: &TokenHash) -> String {
    format!("{TOKEN_ROW}{}", base64url(hash))
}

/// Removes the rows of tokens that have ended.
fn sweep(store: &Store, revoked: &RwLock<HashMap<TokenHash, u64>>) {
    let now_s = now_s();
    let mut batch = Batch::new();
    let rows = |prefix| {
        store.metas(prefix).unwrap_or_else(|error| {
            tracing::warn!(%error, "ended tokens could not be listed");
            Vec::new()
        })
    };
    for (name, value) in rows(TOKEN_ROW) {
        if serde_json::from_slice::<OpaqueToken>(&value).is_ok_and(|token| token.exp <= now_s) {
            batch.remove_meta(&name);
        }
    }
    for (name, value) in rows(REVOKED_ROW) {
        if value.as_slice().try_into().is_ok_and(|end| u64::from_be_bytes(end) <= now_s) {
            batch.remove_meta(&name);
        }
    }
    revoked.write().unwrap_or_else(PoisonError::into_inner).retain(|_, end| *end > now_s);
    if !batch.is_empty()
        && let Err(error) = store.commit(batch)
    {
        tracing::warn!(%error, "the rows of ended tokens stay for now");
    }
}

/// Unix seconds.
pub fn now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
