//! API keys: who calls, what they may do, and how often.
//!
//! A key is `mr-` and 43 characters of base64url (32 random bytes). The node keeps only its
//! SHA-256, so a look-up compares digests and the time it takes says nothing about how much
//! of a guess was right. Each shard caches what it has looked up; a change of any key
//! advances an epoch that all shards compare, so a revocation holds from the next request on.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use millrace_proto::api::ApiError;
use millrace_proto::digest::{base64url, constant_time_eq, sha256};
use millrace_proto::gcra;
use millrace_proto::id::{TenantId, UserId};
use millrace_proto::record::{Credential, scope_names};

/// What every key starts with.
pub const KEY_PREFIX: &str = "mr-";

/// Random bytes of a key.
const KEY_RANDOM_BYTES: usize = 32;

/// Length of a key's text.
pub const KEY_TEXT_BYTES: usize = KEY_PREFIX.len() + 43;

/// Keys that one shard remembers. An entry is some 200 bytes.
const CACHE_ENTRIES_MAX: usize = 4_096;

/// Keys with a rate meter. Beyond it the idle ones are dropped, then all: a dropped meter
/// only forgives its last burst.
const METERS_MAX: usize = 65_536;

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
}

impl Principal {
    /// Who a credential speaks for.
    pub fn of(credential: &Credential) -> Self {
        Self {
            tenant: credential.tenant,
            user: UserId::of(credential.tenant, &credential.user_name),
            user_name: credential.user_name.clone(),
            scopes: credential.scopes,
            key_label: credential.label.clone(),
        }
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

/// What the shards' gateways share: the epoch of the keys and the rate meters.
#[derive(Debug, Default)]
pub struct Common {
    epoch: AtomicU64,
    meters: Mutex<HashMap<KeyHash, Arc<Meter>>>,
}

/// The rate meter of one key, shared by all shards: the limit holds for the node.
#[derive(Debug, Default)]
pub struct Meter(Mutex<gcra::State>);

impl Meter {
    /// Admits one request at `now_ns`, or says after how many seconds to come back.
    pub fn admit(&self, now_ns: u64, limit: &gcra::Limit) -> Result<(), u32> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        gcra::check(&mut state, now_ns, 1, limit)
            .map_err(|wait_ns| u32::try_from(wait_ns.div_ceil(1_000_000_000)).unwrap_or(u32::MAX).max(1))
    }
}

impl Common {
    /// Keys have changed: every shard looks its keys up again.
    pub fn keys_changed(&self) {
        self.epoch.fetch_add(1, Ordering::Release);
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn meter(&self, hash: &KeyHash) -> Arc<Meter> {
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = meters.get(hash) {
            return meter.clone();
        }
        if meters.len() >= METERS_MAX {
            // A shard's cache holds the meters that are in use.
            meters.retain(|_, meter| Arc::strong_count(meter) > 1);
            if meters.len() >= METERS_MAX {
                meters.clear();
            }
        }
        meters.entry(*hash).or_default().clone()
    }
}

struct Known {
    principal: Arc<Principal>,
    meter: Arc<Meter>,
}

/// The keys as one shard knows them.
pub struct Keys {
    common: Arc<Common>,
    epoch: Cell<u64>,
    known: RefCell<HashMap<KeyHash, Known>>,
}

impl Keys {
    /// An empty cache in front of the store.
    pub fn new(common: Arc<Common>) -> Self {
        Self { epoch: Cell::new(common.epoch()), common, known: RefCell::default() }
    }

    /// Who the key text speaks for. `look_up` reads the store and is asked only for keys that
    /// this shard has not seen since the last change of any key.
    pub fn identify(
        &self,
        key: &str,
        look_up: impl FnOnce(&KeyHash) -> Result<Option<Credential>, ApiError>,
    ) -> Result<(Arc<Principal>, Arc<Meter>), ApiError> {
        if !well_formed(key) {
            return Err(ApiError::unauthorized(
                "The API key has the wrong form: a key is `mr-` and 43 characters of A-Z, a-z, 0-9, `-`, `_`.",
            ));
        }
        let hash = sha256(key.as_bytes());
        // Read before the store is: a change in between makes the entry stale, never fresh.
        let epoch = self.common.epoch();
        if self.epoch.replace(epoch) != epoch {
            self.known.borrow_mut().clear();
        }
        if let Some((stored, known)) = self.known.borrow().get_key_value(&hash)
            && constant_time_eq(stored, &hash)
        {
            return Ok((known.principal.clone(), known.meter.clone()));
        }
        let Some(credential) = look_up(&hash)?.filter(|credential| !credential.revoked) else {
            return Err(ApiError::unauthorized("The API key is not known here, or it was revoked."));
        };
        let known = Known { principal: Arc::new(Principal::of(&credential)), meter: self.common.meter(&hash) };
        let answer = (known.principal.clone(), known.meter.clone());
        let mut cache = self.known.borrow_mut();
        if cache.len() >= CACHE_ENTRIES_MAX {
            cache.clear();
        }
        cache.insert(hash, known);
        Ok(answer)
    }
}

/// The key in an `Authorization` header.
pub fn bearer(header: Option<&[u8]>) -> Result<&str, ApiError> {
    let Some(header) = header else {
        return Err(ApiError::unauthorized("The request has no API key."));
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
        assert_eq!(text.len(), KEY_TEXT_BYTES);
        let (_, keys) = keys();
        let (principal, _) = keys
            .identify(&text, |asked| {
                assert_eq!(*asked, hash);
                Ok(Some(credential(SCOPE_CHAT)))
            })
            .expect("known");
        assert_eq!((principal.tenant, principal.user_name.as_str()), (TenantId(7), "ada"));
        assert_eq!(principal.user, UserId::of(TenantId(7), "ada"));
    }

    #[test]
    fn the_store_is_asked_once_until_keys_change_and_a_revocation_holds_at_once() {
        let (common, keys) = keys();
        let (text, _) = make_key().expect("random");
        let asked = Cell::new(0);
        let mut revoked = credential(SCOPE_CHAT);
        let ask = |found: &Credential| {
            asked.set(asked.get() + 1);
            Ok(Some(found.clone()))
        };
        keys.identify(&text, |_| ask(&revoked)).expect("known");
        keys.identify(&text, |_| ask(&revoked)).expect("cached");
        assert_eq!(asked.get(), 1);
        revoked.revoked = true;
        common.keys_changed();
        let error = keys.identify(&text, |_| ask(&revoked)).expect_err("revoked");
        assert_eq!((error.status, asked.get()), (401, 2));
    }

    #[test]
    fn an_unknown_or_misshapen_key_is_unauthorized_and_not_cached() {
        let (_, keys) = keys();
        let (text, _) = make_key().expect("random");
        for _ in 0..2 {
            let asked = Cell::new(false);
            let answer = keys.identify(&text, |_| {
                asked.set(true);
                Ok(None)
            });
            assert_eq!(answer.expect_err("unknown").status, 401);
            assert!(asked.get());
        }
        for bad in ["", "mr-", "sk-123", &text[..45], &format!("{text}x"), &text.replace("mr-", "mr_"), "mr-\0"] {
            let answer = keys.identify(bad, |_| panic!("the store must not be asked for {bad:?}"));
            assert_eq!(answer.expect_err("misshapen").status, 401);
        }
    }

    #[test]
    fn scopes_are_checked_by_name() {
        let principal = Principal::of(&credential(SCOPE_CHAT));
        principal.require(SCOPE_CHAT).expect("granted");
        let error = principal.require(SCOPE_ADMIN).expect_err("not granted");
        assert!(error.status == 403 && error.message.contains("admin"), "{error}");
    }

    #[test]
    fn one_meter_counts_for_all_shards() {
        let common = Arc::new(Common::default());
        let shards = [Keys::new(common.clone()), Keys::new(common)];
        let (text, _) = make_key().expect("random");
        let limit = gcra::Limit::per_minute(60, 4);
        let mut admitted = 0;
        for turn in 0..8 {
            let (_, meter) = shards[turn % 2].identify(&text, |_| Ok(Some(credential(SCOPE_CHAT)))).expect("known");
            admitted += u32::from(meter.admit(1_000_000_000, &limit).is_ok());
        }
        assert_eq!(admitted, 4);
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
