//! The key ring: key of keys, then tenant keys, then keys per user and epoch.
//!
//! A row of the family `key` is `tenant4 user16 epoch2`. User zero is the tenant's own key: the value is the key sealed
//! by the key of keys. For a user the value is the number of a slot ([`super::slots`]), which holds the key
//! sealed by the tenant's. Tenant zero is the node itself (credentials, named values).

use super::{DataKey, Header, Kek, NonceSource, OpenFailure, Slots, Stamp, Suite};
use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::error::{CommitError, ReadError};
use crate::layout;
use millrace_proto::digest;
use millrace_proto::gm::{self, HmacSm3};
use millrace_proto::id::{TenantId, UserId};
use ring::hmac;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use zeroize::Zeroizing;

/// Owner of what belongs to no tenant.
pub(crate) const NODE: TenantId = TenantId(0);
/// The tenant's own keys.
pub(crate) const NO_USER: UserId = UserId([0; 16]);
/// Opened owners kept in memory; each costs about 1.5 KiB. Beyond it the table starts afresh.
const OWNERS_OPEN_MAX: usize = 16_384;
const FIRST_EPOCH: u16 = 1;

type Secret = Zeroizing<[u8; 32]>;

/// A key before it is expanded.
struct RawEpoch {
    epoch: u16,
    suite: Suite,
    key: Secret,
}

/// What makes blind ids; it outlives rotations, because ids are in keys of rows.
#[derive(Clone)]
struct BlindSecret {
    suite: Suite,
    key: Secret,
}

impl BlindSecret {
    /// A tenant's follows from its first key.
    fn of_tenant(first: &RawEpoch) -> Self {
        let key = match first.suite {
            Suite::Intl => digest::hkdf_sha256(b"millrace", &first.key[..], b"blind ids"),
            Suite::Gm => gm::hmac_sm3(&first.key[..], &[b"millrace blind ids"]),
        };
        Self { suite: first.suite, key: Zeroizing::new(key) }
    }
}

enum Blind {
    Sha256(hmac::Key),
    Sm3(HmacSm3),
}

impl Blind {
    fn new(secret: &BlindSecret) -> Self {
        match secret.suite {
            Suite::Intl => Self::Sha256(hmac::Key::new(hmac::HMAC_SHA256, &secret.key[..])),
            Suite::Gm => Self::Sm3(HmacSm3::new(&secret.key[..])),
        }
    }

    fn digest(&self, parts: &mut dyn Iterator<Item = &[u8]>) -> [u8; 32] {
        match self {
            Self::Sha256(key) => {
                let mut mac = hmac::Context::with_key(key);
                for part in parts {
                    mac.update(&(part.len() as u64).to_be_bytes());
                    mac.update(part);
                }
                mac.sign().as_ref().try_into().expect("SHA-256 gives 32 bytes")
            }
            Self::Sm3(key) => {
                let mut mac = key.clone();
                for part in parts {
                    mac.update(&(part.len() as u64).to_be_bytes());
                    mac.update(part);
                }
                mac.finish()
            }
        }
    }
}

/// The opened keys of one owner: a tenant, or one user of it.
pub(crate) struct TenantKeys {
    tenant: TenantId,
    user: UserId,
    nonces: Arc<NonceSource>,
    /// Ascending by epoch; the last one seals.
    epochs: Vec<(u16, DataKey)>,
    blind: Blind,
    blind_secret: BlindSecret,
    /// For a user: the tenant's keys, which open what is the tenant's own.
    tenant_keys: Option<Arc<TenantKeys>>,
}

impl TenantKeys {
    fn new(owner: Owner, nonces: Arc<NonceSource>, epochs: &[RawEpoch], blind: BlindSecret) -> Self {
        assert!(!epochs.is_empty(), "an owner has at least one epoch");
        Self {
            tenant: owner.0,
            user: owner.1,
            nonces,
            epochs: epochs.iter().map(|raw| (raw.epoch, DataKey::new(raw.suite, &raw.key))).collect(),
            blind: Blind::new(&blind),
            blind_secret: blind,
            tenant_keys: None,
        }
    }

    /// Seals a value for its place under the newest epoch.
    pub fn seal(&self, cf: Cf, key: &[u8], plain: &[u8]) -> Vec<u8> {
        let (_, data_key) = self.newest();
        data_key.seal(&self.nonces, self.stamp(), cf, key, plain)
    }

    /// Whom these keys belong to.
    pub fn owner(&self) -> (TenantId, UserId) {
        (self.tenant, self.user)
    }

    /// What values sealed now say.
    pub fn stamp(&self) -> Stamp {
        Stamp { epoch: self.newest().0, owner: self.user }
    }

    /// What seals now.
    pub fn suite(&self) -> Suite {
        self.newest().1.suite()
    }

    fn newest(&self) -> &(u16, DataKey) {
        self.epochs.last().expect("an owner has at least one epoch")
    }

    /// Opens a value of this owner, or of the tenant itself.
    pub fn open(&self, cf: Cf, key: &[u8], sealed: Vec<u8>) -> Result<Vec<u8>, ReadError> {
        let corrupt = |why: &str| ReadError::Corrupt { cf: cf.name(), why: why.to_owned() };
        self.try_open(cf, key, sealed).map_err(|failure| match failure {
            OpenFailure::NoKey(epoch) => ReadError::KeyGone { tenant: self.tenant.0, epoch },
            OpenFailure::Malformed(why) => corrupt(why),
            OpenFailure::OtherSuite(suite) => {
                corrupt(&format!("it says that suite `{}` sealed it, which its key was not made for", suite.as_str()))
            }
            OpenFailure::NotAuthentic => corrupt("its seal does not fit its place"),
        })
    }

    fn try_open(&self, cf: Cf, key: &[u8], sealed: Vec<u8>) -> Result<Vec<u8>, OpenFailure> {
        let stamp = Header::read(&sealed)?.stamp;
        if stamp.owner != self.user {
            return match &self.tenant_keys {
                Some(tenant) if stamp.owner == NO_USER => tenant.try_open(cf, key, sealed),
                _ => Err(OpenFailure::Malformed("it is sealed for another user")),
            };
        }
        let (_, data_key) =
            self.epochs.iter().rev().find(|(known, _)| *known == stamp.epoch).ok_or(OpenFailure::NoKey(stamp.epoch))?;
        data_key.open(cf, key, sealed)
    }

    /// A keyed digest that hides `parts` in a key. `domain` separates uses.
    pub fn blind<const N: usize>(&self, domain: &str, parts: &[&[u8]]) -> [u8; N] {
        const { assert!(N <= 32, "a digest has 32 bytes") };
        let digest = self.blind.digest(&mut std::iter::once(domain.as_bytes()).chain(parts.iter().copied()));
        let mut id = [0; N];
        id.copy_from_slice(&digest[..N]);
        id
    }
}

impl std::fmt::Debug for TenantKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TenantKeys").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

/// Tenant and user; [`NO_USER`] = the tenant itself.
pub(crate) type Owner = (TenantId, UserId);

/// A key that is to be made.
struct NewKey {
    owner: Owner,
    suite: Suite,
    epoch: u16,
    /// A user's secret of its ids.
    blind: Option<BlindSecret>,
}

/// All owners' keys, opened on demand.
pub(crate) struct KeyRing {
    kek: RwLock<Kek>,
    nonces: Arc<NonceSource>,
    slots: Slots,
    /// For tenants that have no key yet.
    suite: Suite,
    open: RwLock<HashMap<Owner, Arc<TenantKeys>>>,
    /// One maker of keys at a time, so that an owner never gets two keys of one epoch.
    making: Mutex<()>,
    /// How many users were forgotten since the start: tells a waiting write that its key may be gone.
    forgotten: AtomicU64,
}

impl KeyRing {
    pub fn new(kek: Kek, slots: Slots, suite: Suite) -> Result<Self, getrandom::Error> {
        Ok(Self {
            kek: RwLock::new(kek),
            nonces: Arc::new(NonceSource::new()?),
            slots,
            suite,
            open: RwLock::new(HashMap::new()),
            making: Mutex::new(()),
            forgotten: AtomicU64::new(0),
        })
    }

    /// The keys of an owner if they are open already: never touches the disk.
    pub fn opened(&self, owner: Owner) -> Option<Arc<TenantKeys>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&owner).cloned()
    }

    /// The keys of a tenant, `None` when it never stored anything.
    pub fn find(&self, kv: &dyn KvStore, tenant: TenantId) -> Result<Option<Arc<TenantKeys>>, ReadError> {
        self.find_user(kv, tenant, NO_USER)
    }

    /// The keys of a user, `None` when it never stored anything, or was forgotten.
    pub fn find_user(
        &self,
        kv: &dyn KvStore,
        tenant: TenantId,
        user: UserId,
    ) -> Result<Option<Arc<TenantKeys>>, ReadError> {
        let owner = (tenant, user);
        if let Some(keys) = self.opened(owner) {
            return Ok(Some(keys));
        }
        let before = self.forgotten();
        let Some(keys) = self.load(kv, owner)? else { return Ok(None) };
        Ok(Some(self.keep(owner, keys, before)))
    }

    /// The keys of a tenant, made and written durably when it has none yet.
    pub fn find_or_make(&self, kv: &dyn KvStore, tenant: TenantId) -> Result<Arc<TenantKeys>, CommitError> {
        self.find_or_make_user(kv, tenant, NO_USER)
    }

    /// The keys of a user, made and written durably when it has none yet.
    pub fn find_or_make_user(
        &self,
        kv: &dyn KvStore,
        tenant: TenantId,
        user: UserId,
    ) -> Result<Arc<TenantKeys>, CommitError> {
        if let Some(keys) = self.find_user(kv, tenant, user).map_err(unreadable)? {
            return Ok(keys);
        }
        match user {
            NO_USER => self.make((tenant, user), kv, None),
            _ => Ok(self.find_or_make_all(kv, &[(tenant, user)])?.swap_remove(0)),
        }
    }

    /// The keys of several owners, in their order. Those that are missing are made and written durably together: a
    /// crowd of new users costs as many syncs as one.
    pub fn find_or_make_all(&self, kv: &dyn KvStore, owners: &[Owner]) -> Result<Vec<Arc<TenantKeys>>, CommitError> {
        // A tenant's key wraps those of its users.
        for (tenant, _) in owners {
            self.find_or_make(kv, *tenant)?;
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<NewKey> = Vec::new();
        for &owner in owners {
            if self.find_user(kv, owner.0, owner.1).map_err(unreadable)?.is_none() {
                let suite = self.find_or_make(kv, owner.0)?.suite();
                let blind = Some(BlindSecret { suite, key: fresh()? });
                new.push(NewKey { owner, suite, epoch: FIRST_EPOCH, blind });
            }
        }
        let made = self.add_keys(kv, &new)?;
        let mut made: HashMap<Owner, Arc<TenantKeys>> = new.iter().map(|new| new.owner).zip(made).collect();
        let mut found = Vec::with_capacity(owners.len());
        for owner in owners {
            found.push(match made.remove(owner) {
                Some(keys) => keys,
                None => self.find_user(kv, owner.0, owner.1).map_err(unreadable)?.ok_or(CommitError::Forgotten)?,
            });
        }
        Ok(found)
    }

    /// As [`KeyRing::find_or_make_user`], for a user whose ids were made with the tenant's secret (schemas 1 to 3).
    pub fn adopt_user(&self, kv: &dyn KvStore, tenant: TenantId, user: UserId) -> Result<Arc<TenantKeys>, CommitError> {
        if let Some(keys) = self.find_user(kv, tenant, user).map_err(unreadable)? {
            return Ok(keys);
        }
        let blind = self.find_or_make(kv, tenant)?.blind_secret.clone();
        self.make((tenant, user), kv, Some(blind))
    }

    fn make(&self, owner: Owner, kv: &dyn KvStore, blind: Option<BlindSecret>) -> Result<Arc<TenantKeys>, CommitError> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = self.find_user(kv, owner.0, owner.1).map_err(unreadable)? {
            return Ok(keys);
        }
        let suite = match owner.1 {
            NO_USER => self.suite,
            _ => self.find(kv, owner.0).map_err(unreadable)?.map_or(self.suite, |tenant| tenant.suite()),
        };
        let new = NewKey { owner, suite, epoch: FIRST_EPOCH, blind };
        Ok(self.add_keys(kv, &[new])?.swap_remove(0))
    }

    /// A new key for an owner that has one: what is written from now on is sealed by it.
    pub fn rotate(&self, kv: &dyn KvStore, owner: Owner, suite: Option<Suite>) -> Result<Arc<TenantKeys>, CommitError> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = self.find_user(kv, owner.0, owner.1).map_err(unreadable)? else {
            return Err(CommitError::Invalid { why: format!("tenant {} has no key that could be rotated", owner.0.0) });
        };
        let Some(epoch) = keys.stamp().epoch.checked_add(1) else {
            return Err(CommitError::Invalid { why: "the last of 65,535 key epochs is in use".into() });
        };
        let blind = Some(keys.blind_secret.clone());
        let new = NewKey { owner, suite: suite.unwrap_or(keys.suite()), epoch, blind };
        Ok(self.add_keys(kv, &[new])?.swap_remove(0))
    }

    /// Writes keys durably and opens them, in the order given: users' in one batch, after those of tenants. The caller
    /// holds `making`, and the tenants of users have their keys.
    fn add_keys(&self, kv: &dyn KvStore, new: &[NewKey]) -> Result<Vec<Arc<TenantKeys>>, CommitError> {
        let mut rows = Vec::with_capacity(new.len());
        let mut users = Vec::new();
        for NewKey { owner, suite, epoch, blind } in new {
            let (row, key) = (layout::data_key(owner.0, owner.1, *epoch), fresh()?);
            if owner.1 == NO_USER {
                let value = self.wrap_tenant_key(&row, *suite, &key);
                rows.push(KvOp::Put(Cf::Key, row, value));
            } else {
                let blind = blind.as_ref().expect("a user's ids have a secret of their own");
                users.push((self.find_or_make(kv, owner.0)?, row, user_plain(*suite, &key, blind)));
            }
        }
        if !users.is_empty() {
            let seal = |place: usize, number| {
                let (tenant_keys, row, plain) = &users[place];
                tenant_keys.seal(Cf::Key, &slot_place(row, number), plain)
            };
            let first = self.slots.add(users.len(), seal).map_err(slot_failure)?;
            let row = |((_, row, _), number): (_, u64)| KvOp::Put(Cf::Key, row, number.to_be_bytes().to_vec());
            rows.extend(users.into_iter().zip(first..).map(row));
        }
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        kv.apply(&rows, true)?;
        new.iter().map(|new| self.open_new(kv, new.owner)).collect()
    }

    /// Reads a new key back: what was written is what later starts will open.
    fn open_new(&self, kv: &dyn KvStore, owner: Owner) -> Result<Arc<TenantKeys>, CommitError> {
        let keys = self.load(kv, owner).map_err(unreadable)?;
        let keys = Arc::new(keys.ok_or_else(|| CommitError::Io { detail: "a new key cannot be read back".into() })?);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(owner, Arc::clone(&keys));
        if owner.1 == NO_USER {
            // Users hold their tenant's keys, to open what is the tenant's own.
            open.retain(|known, _| known.0 != owner.0 || known.1 == NO_USER);
        }
        Ok(keys)
    }

    fn wrap_tenant_key(&self, row: &[u8], suite: Suite, key: &Secret) -> Vec<u8> {
        let plain = Zeroizing::new([&[suite.number()][..], &key[..]].concat());
        let kek = self.kek.read().unwrap_or_else(PoisonError::into_inner);
        kek.wrapping(suite).seal(&self.nonces, Stamp { epoch: 0, owner: NO_USER }, Cf::Key, row, &plain)
    }

    /// A sealed constant under the key of keys, to recognise a wrong one.
    pub fn check_value(&self) -> Vec<u8> {
        check_value(&self.kek.read().unwrap_or_else(PoisonError::into_inner), &self.nonces)
    }

    /// Brings everything that the key of keys wraps to another one, in one durable batch. Answers how many keys.
    pub fn rewrap(&self, kv: &dyn KvStore, new: Kek) -> Result<usize, CommitError> {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ops = vec![KvOp::Put(Cf::Ctl, layout::ctl::KEY_CHECK.to_vec(), check_value(&new, &self.nonces))];
        for (row, wrapped) in tenant_rows(kv).map_err(unreadable)? {
            let (suite, plain) = self.unwrap_tenant_key(&row, wrapped).map_err(unreadable)?;
            let plain = Zeroizing::new([&[suite.number()][..], &plain[..]].concat());
            let stamp = Stamp { epoch: 0, owner: NO_USER };
            let wrapped = new.wrapping(suite).seal(&self.nonces, stamp, Cf::Key, &row, &plain);
            ops.push(KvOp::Put(Cf::Key, row, wrapped));
        }
        kv.apply(&ops, true)?;
        *self.kek.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(ops.len() - 1)
    }

    /// The key of keys that wraps now.
    pub fn master(&self) -> Kek {
        self.kek.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether this is the key of keys that wraps now.
    pub fn is_master(&self, kek: &Kek) -> bool {
        let now = self.kek.read().unwrap_or_else(PoisonError::into_inner);
        digest::constant_time_eq(now.bytes(), kek.bytes())
    }

    /// The slots of a user's keys.
    pub fn slots_of(&self, kv: &dyn KvStore, owner: Owner) -> Result<Vec<u64>, ReadError> {
        let rows = epoch_rows(kv, owner)?;
        rows.into_iter().map(|(_, value)| slot_number(&value)).collect()
    }

    /// Erases slots for good. The rows that name them are gone already, or go with a later batch.
    pub fn erase(&self, slots: &[u64]) -> std::io::Result<()> {
        self.slots.erase(slots)
    }

    /// Drops a user's opened keys. After this nobody gets them any more.
    pub fn close_user(&self, owner: Owner) {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        self.forgotten.fetch_add(1, SeqCst);
        open.remove(&owner);
    }

    /// How many users were forgotten since the start.
    pub fn forgotten(&self) -> u64 {
        self.forgotten.load(SeqCst)
    }

    /// Copies the wrapped user keys beside a checkpoint of the database.
    pub fn copy_slots(&self, path: &std::path::Path) -> std::io::Result<()> {
        self.slots.copy_to(path)
    }

    /// The file of wrapped user keys as it is now.
    pub fn slots_snapshot(&self) -> std::io::Result<Vec<u8>> {
        self.slots.snapshot()
    }

    fn keep(&self, owner: Owner, keys: TenantKeys, forgotten_before: u64) -> Arc<TenantKeys> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if self.forgotten() != forgotten_before {
            // Somebody was forgotten while these were read: use them once, keep nothing.
            return Arc::new(keys);
        }
        if open.len() >= OWNERS_OPEN_MAX {
            open.clear();
        }
        Arc::clone(open.entry(owner).or_insert_with(|| Arc::new(keys)))
    }

    fn load(&self, kv: &dyn KvStore, owner: Owner) -> Result<Option<TenantKeys>, ReadError> {
        let rows = epoch_rows(kv, owner)?;
        if rows.is_empty() {
            return Ok(None);
        }
        let mut epochs = Vec::with_capacity(rows.len());
        if owner.1 == NO_USER {
            for (row, wrapped) in rows {
                let epoch = epoch_of(&row)?;
                let (suite, key) = self.unwrap_tenant_key(&row, wrapped)?;
                epochs.push(RawEpoch { epoch, suite, key });
            }
            let blind = BlindSecret::of_tenant(&epochs[0]);
            return Ok(Some(TenantKeys::new(owner, Arc::clone(&self.nonces), &epochs, blind)));
        }
        let tenant_keys =
            self.find(kv, owner.0)?.ok_or(ReadError::KeyGone { tenant: owner.0.0, epoch: FIRST_EPOCH })?;
        let mut blind = None;
        for (row, value) in rows {
            let epoch = epoch_of(&row)?;
            let number = slot_number(&value)?;
            let slot = self.slots.read(number, USER_SEALED_BYTES);
            let slot = slot.map_err(|error| corrupt(&format!("the file of user keys cannot be read: {error}")))?;
            // An erased slot whose row is still there: the user is being forgotten.
            let Some(sealed) = slot else { continue };
            let plain = tenant_keys
                .open(Cf::Key, &slot_place(&row, number), sealed)
                .map_err(|_| corrupt("a wrapped user key does not open under its tenant's key"))?;
            let plain = Zeroizing::new(plain);
            let (raw, secret) =
                read_user_plain(epoch, &plain).ok_or_else(|| corrupt("a user key has the wrong layout"))?;
            epochs.push(raw);
            blind = Some(secret);
        }
        let Some(blind) = blind else { return Ok(None) };
        let mut keys = TenantKeys::new(owner, Arc::clone(&self.nonces), &epochs, blind);
        keys.tenant_keys = Some(tenant_keys);
        Ok(Some(keys))
    }

    /// Schemas 1 and 2 wrapped 32 bytes of AES; now a suite stands before them.
    fn unwrap_tenant_key(&self, row: &[u8], wrapped: Vec<u8>) -> Result<(Suite, Secret), ReadError> {
        let header = Header::read(&wrapped).map_err(|_| corrupt("a wrapped data key has the wrong layout"))?;
        let kek = self.kek.read().unwrap_or_else(PoisonError::into_inner);
        let plain = kek
            .wrapping(header.suite)
            .open(Cf::Key, row, wrapped)
            .map_err(|_| corrupt("a wrapped data key does not open under the key of keys"))?;
        let plain = Zeroizing::new(plain);
        let (suite, key) = match plain.as_slice() {
            old if old.len() == 32 => (Suite::Intl, old),
            [suite, key @ ..] => {
                (Suite::of_number(*suite).ok_or_else(|| corrupt("a data key is of an unknown suite"))?, key)
            }
            [] => (Suite::Intl, &[][..]),
        };
        let key: [u8; 32] = key.try_into().map_err(|_| corrupt("a data key does not have 32 bytes"))?;
        Ok((suite, Zeroizing::new(key)))
    }
}

/// Whether a stored check value was made with this key of keys.
pub(crate) fn check(kek: &Kek, stored: &[u8]) -> bool {
    kek.wrapping(Suite::Intl).open(Cf::Ctl, layout::ctl::KEY_CHECK, stored.to_vec()).is_ok()
}

fn check_value(kek: &Kek, nonces: &NonceSource) -> Vec<u8> {
    let stamp = Stamp { epoch: 0, owner: NO_USER };
    kek.wrapping(Suite::Intl).seal(nonces, stamp, Cf::Ctl, layout::ctl::KEY_CHECK, b"millrace")
}

/// The file of user keys could not be written.
fn slot_failure(error: std::io::Error) -> CommitError {
    let detail = format!("the file of user keys: {error}");
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => CommitError::NoSpace { detail },
        _ => CommitError::Io { detail },
    }
}

fn fresh() -> Result<Secret, CommitError> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut key[..])
        .map_err(|error| CommitError::Io { detail: format!("no random numbers from the system: {error}") })?;
    Ok(key)
}

fn unreadable(error: ReadError) -> CommitError {
    match error {
        ReadError::Backend(error) => CommitError::from(error),
        ReadError::Closed => CommitError::Closed,
        other => CommitError::Io { detail: other.to_string() },
    }
}

fn corrupt(why: &str) -> ReadError {
    ReadError::Corrupt { cf: Cf::Key.name(), why: why.to_owned() }
}

/// Plain user key: suite 1, suite of its blind ids 1, key 32, secret of its blind ids 32.
const USER_PLAIN_BYTES: usize = 66;
const USER_SEALED_BYTES: usize = USER_PLAIN_BYTES + 48;

fn user_plain(suite: Suite, key: &Secret, blind: &BlindSecret) -> Zeroizing<Vec<u8>> {
    Zeroizing::new([&[suite.number(), blind.suite.number()][..], &key[..], &blind.key[..]].concat())
}

fn read_user_plain(epoch: u16, plain: &[u8]) -> Option<(RawEpoch, BlindSecret)> {
    let plain: &[u8; USER_PLAIN_BYTES] = plain.try_into().ok()?;
    let key = Zeroizing::new(*plain[2..].first_chunk()?);
    let blind = Zeroizing::new(*plain.last_chunk()?);
    Some((
        RawEpoch { epoch, suite: Suite::of_number(plain[0])?, key },
        BlindSecret { suite: Suite::of_number(plain[1])?, key: blind },
    ))
}

/// What a slot is bound to: the key's row and the slot's number.
fn slot_place(row: &[u8], number: u64) -> Vec<u8> {
    [row, &number.to_be_bytes()].concat()
}

fn slot_number(value: &[u8]) -> Result<u64, ReadError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| corrupt("the number of a slot does not have eight bytes"))
}

fn epoch_of(row: &[u8]) -> Result<u16, ReadError> {
    row.last_chunk().map(|epoch| u16::from_be_bytes(*epoch)).ok_or_else(|| corrupt("a key row has a short key"))
}

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn rows_between(kv: &dyn KvStore, from: &[u8], to: &[u8]) -> Result<Rows, ReadError> {
    let mut rows = Vec::new();
    kv.scan(Cf::Key, ScanRange::forward(from, to), &mut |key, value| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

fn epoch_rows(kv: &dyn KvStore, (tenant, user): Owner) -> Result<Rows, ReadError> {
    let from = layout::data_key(tenant, user, 0);
    let mut to = layout::data_key(tenant, user, u16::MAX);
    to.push(0);
    rows_between(kv, &from, &to)
}

/// The rows of all tenants' own keys.
fn tenant_rows(kv: &dyn KvStore) -> Result<Rows, ReadError> {
    let mut rows = Vec::new();
    let mut from = Vec::new();
    let end = layout::prefix_end(&[u8::MAX]);
    loop {
        // One step per tenant: users, of whom there may be very many, are jumped over.
        let mut tenant = None;
        kv.scan(Cf::Key, ScanRange::forward(&from, &end), &mut |key, _| {
            tenant = key.first_chunk().map(|bytes| TenantId(u32::from_be_bytes(*bytes)));
            ControlFlow::Break(())
        })?;
        let Some(tenant) = tenant else { return Ok(rows) };
        rows.extend(epoch_rows(kv, (tenant, NO_USER))?);
        match tenant.0.checked_add(1) {
            Some(next) => from = next.to_be_bytes().to_vec(),
            None => return Ok(rows),
        }
    }
}

/// Tenants that have keys, and the users of one.
pub(crate) fn tenants(kv: &dyn KvStore) -> Result<Vec<TenantId>, ReadError> {
    let rows = tenant_rows(kv)?;
    let mut tenants: Vec<TenantId> =
        rows.iter().filter_map(|(row, _)| Some(TenantId(u32::from_be_bytes(*row.first_chunk()?)))).collect();
    tenants.dedup();
    Ok(tenants)
}

/// The users of a tenant that have keys.
pub(crate) fn users(kv: &dyn KvStore, tenant: TenantId) -> Result<Vec<UserId>, ReadError> {
    let from = layout::data_key(tenant, NO_USER, u16::MAX);
    let to = match tenant.0.checked_add(1) {
        Some(next) => next.to_be_bytes().to_vec(),
        None => layout::prefix_end(&[u8::MAX]),
    };
    let mut users: Vec<UserId> = Vec::new();
    kv.scan(Cf::Key, ScanRange::forward(&from, &to), &mut |key, _| {
        if let Some(user) = key.get(4..20).and_then(|bytes| bytes.try_into().ok()).map(UserId)
            && user != NO_USER
            && users.last() != Some(&user)
        {
            users.push(user);
        }
        ControlFlow::Continue(())
    })?;
    Ok(users)
}

/// Whether any row names a slot.
pub(crate) fn has_user_keys(kv: &dyn KvStore) -> Result<bool, ReadError> {
    for tenant in tenants(kv)? {
        if !users(kv, tenant)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}
