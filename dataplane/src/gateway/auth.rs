//! Keys and tokens: who calls, and what they may do.
//!
//! A key is `mr-` and 43 characters of base64url (32 random bytes), an opaque access token `mt-` and as many;
//! anything with two dots may be a JWT. The node keeps only the SHA-256 of keys and tokens, so a look-up
//! compares digests and the time it takes says nothing about how much of a guess was right. Each shard caches
//! what it has looked up; a change of any key, client or token advances an epoch that all shards compare, so a
//! revocation holds from the next request on.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use millrace_proto::api::ApiError;
use millrace_proto::digest::{base64url, constant_time_eq, sha256};
use millrace_proto::id::{TenantId, UserId};
use millrace_proto::oauth::jwt;
use millrace_proto::record::{Credential, scope_names};

use super::later::Whole;
use super::meter::{Meter, Meters};
use super::resume::{Frame, Replies};
use crate::bridge::StreamEvent;
use crate::identity::{self, Granted};

/// What every key starts with.
pub const KEY_PREFIX: &str = "mr-";

/// Random bytes of a key.
const KEY_RANDOM_BYTES: usize = 32;

/// Length of a key's text.
pub const KEY_TEXT_BYTES: usize = KEY_PREFIX.len() + 43;

/// Keys that one shard remembers. An entry is some 200 bytes.
const CACHE_ENTRIES_MAX: usize = 4_096;

/// The end of what does not end.
const NEVER_S: u64 = u64::MAX;

/// SHA-256 of a key.
pub type KeyHash = [u8; 32];

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The tenant of the key.
    pub tenant: TenantId,
    /// The user of the key within the tenant.
    pub user: UserId,
    /// The user's name.
    pub user_name: String,
    /// What the key may do.
    pub scopes: u32,
    /// The key's label, for logs and lists.
    pub key_label: String,
    /// Whose rate is counted: the key, or the client whatever token it shows.
    pub subject: [u8; 32],
}

impl Principal {
    /// Who the credential with this hash speaks for.
    pub fn of(hash: &KeyHash, credential: &Credential) -> Self {
        Self {
            tenant: credential.tenant,
            user: UserId::of(credential.tenant, &credential.user_name),
            user_name: credential.user_name.clone(),
            scopes: credential.scopes,
            key_label: credential.label.clone(),
            subject: *hash,
        }
    }

    /// An error unless one of `scopes` is granted.
    pub fn require_any(&self, scopes: u32) -> Result<(), ApiError> {
        if self.scopes & scopes != 0 {
            return Ok(());
        }
        let wanted = scope_names(scopes).join(" or ");
        Err(ApiError::forbidden(format!("The key {:?} lacks the scope {wanted}.", self.key_label)))
    }

    /// An error unless all of `scopes` are granted.
    pub fn require(&self, scopes: u32) -> Result<(), ApiError> {
        if self.scopes & scopes == scopes {
            return Ok(());
        }
        let missing = scope_names(scopes & !self.scopes).join(", ");
        Err(ApiError::forbidden(format!("The key {:?} lacks the scope {missing}.", self.key_label)))
    }
}

/// What the shards' gateways share: the epoch of the keys, the rate meters, and replies that may be read again.
#[derive(Debug)]
pub struct Common {
    started: Instant,
    epoch: AtomicU64,
    /// Rates of keys, clients, tenants, addresses and channels.
    pub meters: Meters,
    /// Streamed completions that may be resumed.
    pub completions: Replies<Frame>,
    /// Whole answers that are made later.
    pub later: Replies<Whole>,
    /// Turns of chat sockets.
    pub turns: Replies<StreamEvent>,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            epoch: AtomicU64::new(0),
            meters: Meters::default(),
            completions: Replies::default(),
            later: Replies::default(),
            turns: Replies::default(),
        }
    }
}

impl Common {
    /// Nanoseconds since the start: the clock of all meters, the same on every shard.
    pub fn now_ns(&self) -> u64 {
        self.ns_at(Instant::now())
    }

    /// What that clock showed at an instant.
    pub fn ns_at(&self, at: Instant) -> u64 {
        // Meters begin at zero, which must lie in the past.
        u64::try_from(at.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// The same in milliseconds: the clock of what waits for a reader.
    pub fn now_ms(&self) -> u64 {
        self.now_ns() / 1_000_000
    }

    /// Keys have changed: every shard looks its keys up again.
    pub fn keys_changed(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}

/// What the text in an `Authorization` header may be, by its form alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An API key.
    Key,
    /// An opaque access token of this node.
    Opaque,
    /// A signed token of this node or another issuer.
    Jwt,
}

impl Form {
    /// The form of a text; an error when it has none of them.
    pub fn of(text: &str) -> Result<Self, ApiError> {
        if well_formed(text) {
            Ok(Self::Key)
        } else if identity::is_opaque(text) {
            Ok(Self::Opaque)
        } else if jwt::looks_like_one(text) {
            Ok(Self::Jwt)
        } else {
            Err(ApiError::unauthorized(
                "The API key has the wrong form: a key is `mr-` and 43 characters of A-Z, a-z, 0-9, `-`, `_`.",
            ))
        }
    }
}

/// Whom a text speaks for, and how long that may be believed without another look.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who it is.
    pub principal: Arc<Principal>,
    /// Where its requests are counted.
    pub meter: Arc<Meter>,
    expires_s: u64,
    epoch: u64,
}

/// The keys and tokens as one shard knows them.
pub struct Keys {
    common: Arc<Common>,
    epoch: Cell<u64>,
    known: RefCell<HashMap<KeyHash, Known>>,
}

/// A text that is not in the cache, and when it was looked for.
#[derive(Debug)]
pub struct Unknown {
    hash: KeyHash,
    epoch: u64,
}

impl Unknown {
    /// SHA-256 of the text.
    pub fn hash(&self) -> &KeyHash {
        &self.hash
    }
}

impl Keys {
    /// An empty cache.
    pub fn new(common: Arc<Common>) -> Self {
        Self { epoch: Cell::new(common.epoch()), common, known: RefCell::default() }
    }

    /// Whom the text speaks for, when this shard has seen it since the last change of any key.
    pub fn recall(&self, text: &str, now_s: u64) -> Result<Known, Unknown> {
        let hash = sha256(text.as_bytes());
        // Read before anything else is: a change in between makes the entry stale, never fresh.
        let epoch = self.common.epoch();
        if self.epoch.replace(epoch) != epoch {
            self.known.borrow_mut().clear();
        }
        match self.known.borrow().get_key_value(&hash) {
            Some((stored, known)) if constant_time_eq(stored, &hash) && now_s < known.expires_s => Ok(known.clone()),
            _ => Err(Unknown { hash, epoch }),
        }
    }

    /// Whether what was recalled for an equal text still holds. The clock is asked for tokens only: keys do not end.
    pub fn holds(&self, known: &Known, now_s: impl FnOnce() -> u64) -> bool {
        known.epoch == self.common.epoch() && (known.expires_s == NEVER_S || now_s() < known.expires_s)
    }

    /// Remembers what was found out about a text.
    pub fn remember(&self, unknown: &Unknown, granted: Granted) -> Known {
        let known = Known {
            meter: self.common.meters.of(&granted.principal.subject),
            principal: Arc::new(granted.principal),
            expires_s: granted.expires_s.unwrap_or(NEVER_S),
            epoch: unknown.epoch,
        };
        let mut cache = self.known.borrow_mut();
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.clear();
        }
        // Found out before a change of the keys: true for this request, but not to be kept.
        if self.epoch.get() == unknown.epoch {
            cache.insert(unknown.hash, known.clone());
        }
        known
    }
}

/// What an API key stands for, unless it is unknown or revoked.
pub fn granted(hash: &KeyHash, credential: Option<&Credential>) -> Result<Granted, ApiError> {
    match credential {
        Some(credential) if !credential.revoked => {
            Ok(Granted { principal: Principal::of(hash, credential), expires_s: None })
        }
        _ => Err(ApiError::unauthorized("The API key is not known here, or it was revoked.")),
    }
}

/// The key in an `Authorization` header.
pub fn bearer(header: Option<&[u8]>) -> Result<&str, ApiError> {
    let Some(header) = header else {
        return Err(ApiError::new(401, "authentication_error", "missing_api_key", "The request has no API key."));
    };
    let text =
        std::str::from_utf8(header).map_err(|_| ApiError::unauthorized("The header `Authorization` is not text."))?;
    match text.split_once(' ') {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case("bearer") => Ok(key.trim()),
        _ => Err(ApiError::unauthorized("The header `Authorization` does not start with `Bearer `.")),
    }
}

/// A new key: its text (shown once) and the hash to store.
pub fn make_key() -> Result<(String, KeyHash), ApiError> {
    let mut random = [0u8; KEY_RANDOM_BYTES];
    getrandom::fill(&mut random)
        .map_err(|error| ApiError::internal(format!("The system's random numbers are not available: {error}.")))?;
    let text = format!("{KEY_PREFIX}{}", base64url(&random));
    let hash = sha256(text.as_bytes());
    Ok((text, hash))
}

fn well_formed(key: &str) -> bool {
    key.len() == KEY_TEXT_BYTES
        && key.starts_with(KEY_PREFIX)
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::record::{SCOPE_ADMIN, SCOPE_CHAT};

    fn credential(scopes: u32) -> Credential {
        Credential {
            tenant: TenantId(7),
            user_name: "ada".into(),
            label: "laptop".into(),
            scopes,
            created_ms: 1,
            revoked: false,
        }
    }

    fn keys() -> (Arc<Common>, Keys) {
        let common = Arc::new(Common::default());
        (common.clone(), Keys::new(common))
    }

    #[test]
    fn a_made_key_is_well_formed_and_found_by_its_hash() {
        let (text, hash) = make_key().expect("random");
        assert_eq!((text.len(), Form::of(&text).expect("a key")), (KEY_TEXT_BYTES, Form::Key));
        let (_, keys) = keys();
        let unknown = keys.recall(&text, 0).expect_err("nobody has looked it up");
        assert_eq!(*unknown.hash(), hash);
        let known = keys.remember(&unknown, granted(&hash, Some(&credential(SCOPE_CHAT))).expect("known"));
        let principal = known.principal;
        assert_eq!((principal.tenant, principal.user_name.as_str()), (TenantId(7), "ada"));
        assert_eq!((principal.user, principal.subject), (UserId::of(TenantId(7), "ada"), hash));
    }

    #[test]
    fn what_is_remembered_holds_until_keys_change_or_a_token_ends() {
        let (common, keys) = keys();
        let (text, hash) = make_key().expect("random");
        let unknown = keys.recall(&text, 0).expect_err("new");
        let known = keys.remember(&unknown, granted(&hash, Some(&credential(SCOPE_CHAT))).expect("known"));
        keys.recall(&text, 5).expect("cached");
        assert!(keys.holds(&known, || 5));
        common.keys_changed();
        assert!(!keys.holds(&known, || 5));
        let unknown = keys.recall(&text, 5).expect_err("perhaps revoked");
        let ends = Granted { expires_s: Some(10), ..granted(&hash, Some(&credential(SCOPE_CHAT))).expect("known") };
        keys.remember(&unknown, ends);
        let known = keys.recall(&text, 9).expect("a second is left");
        assert!(keys.holds(&known, || 9) && !keys.holds(&known, || 10));
        let unknown = keys.recall(&text, 10).expect_err("over");
        // Keys change while the answer is on its way: it must not be kept.
        common.keys_changed();
        keys.recall("mr-other", 10).expect_err("the shard has seen the change");
        let stale = keys.remember(&unknown, granted(&hash, Some(&credential(SCOPE_CHAT))).expect("known"));
        keys.recall(&text, 10).expect_err("not kept");
        assert!(!keys.holds(&stale, || 10));
    }

    #[test]
    fn an_unknown_revoked_or_misshapen_key_is_unauthorized() {
        let revoked = Credential { revoked: true, ..credential(SCOPE_CHAT) };
        for nobody in [None, Some(&revoked)] {
            assert_eq!(granted(&[0; 32], nobody).expect_err("nobody").status, 401);
        }
        let (text, _) = make_key().expect("random");
        for bad in ["", "mr-", "sk-123", &text[..45], &format!("{text}x"), &text.replace("mr-", "mr_"), "mr-\0", "a.b"]
        {
            assert_eq!(Form::of(bad).expect_err("misshapen").status, 401, "{bad:?}");
        }
        assert_eq!(Form::of(&text.replace("mr-", "mt-")).expect("a token"), Form::Opaque);
        assert_eq!(Form::of("a.b.c").expect("perhaps a JWT"), Form::Jwt);
    }

    #[test]
    fn scopes_are_checked_by_name() {
        let principal = Principal::of(&[1; 32], &credential(SCOPE_CHAT));
        principal.require(SCOPE_CHAT).expect("granted");
        principal.require_any(SCOPE_CHAT | SCOPE_ADMIN).expect("one is enough");
        for error in [principal.require(SCOPE_ADMIN), principal.require_any(SCOPE_ADMIN)] {
            let error = error.expect_err("not granted");
            assert!(error.status == 403 && error.message.contains("admin"), "{error}");
        }
    }

    #[test]
    fn the_header_must_be_a_bearer() {
        assert_eq!(bearer(Some(b"Bearer abc")).expect("key"), "abc");
        assert_eq!(bearer(Some(b"bearer  abc ")).expect("key"), "abc");
        for bad in [None, Some(b"Basic abc".as_slice()), Some(b"Bearer"), Some(b"\xff\xfe x"), Some(b"")] {
            assert_eq!(bearer(bad).expect_err("refused").status, 401);
        }
    }
}
