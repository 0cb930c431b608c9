//! The key ring: data keys per tenant and epoch, wrapped by the key of keys.
//!
//! A row of the family `key` is `tenant4 user16 epoch2` -> the sealed 32-byte data key. User zero
//! is the tenant's own key; the place for a key of each user is there, so that forgetting a user
//! can later be the deletion of one row. Tenant zero is the node itself (credentials, named values).

use super::{DataKey, Header, Kek, NonceSource, OpenFailure};
use crate::backend::{Cf, KvOp, KvStore, ScanRange};
use crate::error::{CommitError, KvError, ReadError};
use crate::layout;
use millrace_proto::digest;
use millrace_proto::id::{TenantId, UserId};
use ring::hmac;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use zeroize::Zeroizing;

/// Owner of what belongs to no tenant.
pub(crate) const NODE: TenantId = TenantId(0);
/// Opened tenants kept in memory; each costs about 1 KiB. Beyond it the table starts afresh.
const TENANTS_OPEN_MAX: usize = 4_096;
const FIRST_EPOCH: u16 = 1;
const NO_USER: UserId = UserId([0; 16]);

/// A key epoch and its opened data key.
type Epoch = (u16, Zeroizing<[u8; 32]>);

/// The opened keys of one tenant.
pub(crate) struct TenantKeys {
    tenant: TenantId,
    nonces: Arc<NonceSource>,
    /// Ascending by epoch; the last one seals.
    epochs: Vec<(u16, DataKey)>,
    /// Makes blind ids. Derived from the first epoch, because blind ids must outlive a rotation.
    blind: hmac::Key,
}

impl TenantKeys {
    fn new(tenant: TenantId, nonces: Arc<NonceSource>, epochs: &[Epoch]) -> Self {
        let (_, first) = epochs.first().expect("a tenant has at least one epoch");
        let blind = Zeroizing::new(digest::hkdf_sha256(b"millrace", &first[..], b"blind ids"));
        Self {
            tenant,
            nonces,
            epochs: epochs.iter().map(|(epoch, key)| (*epoch, DataKey::new(key))).collect(),
            blind: hmac::Key::new(hmac::HMAC_SHA256, &blind[..]),
        }
    }

    /// Seals a value for its place under the newest epoch.
    pub fn seal(&self, cf: Cf, key: &[u8], plain: &[u8]) -> Vec<u8> {
        let (epoch, data_key) = self.epochs.last().expect("a tenant has at least one epoch");
        data_key.seal(&self.nonces, *epoch, cf, key, plain)
    }

    /// Opens a value of this tenant.
    pub fn open(&self, cf: Cf, key: &[u8], sealed: Vec<u8>) -> Result<Vec<u8>, ReadError> {
        self.try_open(cf, key, sealed).map_err(|failure| match failure {
            OpenFailure::NoKey(epoch) => ReadError::KeyGone { tenant: self.tenant.0, epoch },
            OpenFailure::Malformed(why) => ReadError::Corrupt { cf: cf.name(), why: why.to_owned() },
            OpenFailure::NotAuthentic => {
                ReadError::Corrupt { cf: cf.name(), why: "its seal does not fit its place".to_owned() }
            }
        })
    }

    fn try_open(&self, cf: Cf, key: &[u8], sealed: Vec<u8>) -> Result<Vec<u8>, OpenFailure> {
        let epoch = Header::read(&sealed)?.epoch;
        let (_, data_key) =
            self.epochs.iter().rev().find(|(known, _)| *known == epoch).ok_or(OpenFailure::NoKey(epoch))?;
        data_key.open(cf, key, sealed)
    }

    /// A keyed digest that hides `parts` in a key. `domain` separates uses.
    pub fn blind<const N: usize>(&self, domain: &str, parts: &[&[u8]]) -> [u8; N] {
        const { assert!(N <= 32, "a digest has 32 bytes") };
        let mut mac = hmac::Context::with_key(&self.blind);
        for part in std::iter::once(&domain.as_bytes()).chain(parts) {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        let mut id = [0; N];
        id.copy_from_slice(&mac.sign().as_ref()[..N]);
        id
    }
}

/// All tenants' keys, opened on demand.
pub(crate) struct KeyRing {
    kek: Kek,
    nonces: Arc<NonceSource>,
    open: RwLock<HashMap<TenantId, Arc<TenantKeys>>>,
    /// One maker of keys at a time, so that a tenant never gets two first epochs.
    making: Mutex<()>,
}

impl KeyRing {
    pub fn new(kek: Kek) -> Result<Self, getrandom::Error> {
        Ok(Self {
            kek,
            nonces: Arc::new(NonceSource::new()?),
            open: RwLock::new(HashMap::new()),
            making: Mutex::new(()),
        })
    }

    /// The keys of a tenant if they are open already: never touches the disk.
    pub fn opened(&self, tenant: TenantId) -> Option<Arc<TenantKeys>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&tenant).cloned()
    }

    /// The keys of a tenant, `None` when it never stored anything.
    pub fn find(&self, kv: &dyn KvStore, tenant: TenantId) -> Result<Option<Arc<TenantKeys>>, ReadError> {
        if let Some(keys) = self.opened(tenant) {
            return Ok(Some(keys));
        }
        let epochs = self.load(kv, tenant)?;
        if epochs.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.keep(tenant, &epochs)))
    }

    /// The keys of a tenant, made and written durably when it has none yet.
    pub fn find_or_make(&self, kv: &dyn KvStore, tenant: TenantId) -> Result<Arc<TenantKeys>, CommitError> {
        let unreadable = |error: ReadError| match error {
            ReadError::Backend(error) => CommitError::from(error),
            ReadError::Closed => CommitError::Closed,
            other => CommitError::Io { detail: other.to_string() },
        };
        if let Some(keys) = self.find(kv, tenant).map_err(unreadable)? {
            return Ok(keys);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keys) = self.find(kv, tenant).map_err(unreadable)? {
            return Ok(keys);
        }
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut key[..])
            .map_err(|error| CommitError::Io { detail: format!("no random numbers from the system: {error}") })?;
        let row = layout::data_key(tenant, NO_USER, FIRST_EPOCH);
        let wrapped = DataKey::new(self.kek.bytes()).seal(&self.nonces, 0, Cf::Key, &row, &key[..]);
        kv.apply(&[KvOp::Put(Cf::Key, row, wrapped)], true)?;
        Ok(self.keep(tenant, &[(FIRST_EPOCH, key)]))
    }

    /// A sealed constant under the key of keys, to recognise a wrong key file.
    pub fn check_value(&self) -> Vec<u8> {
        DataKey::new(self.kek.bytes()).seal(&self.nonces, 0, Cf::Ctl, layout::ctl::KEY_CHECK, b"millrace")
    }

    /// Whether a stored check value was made with this key of keys.
    pub fn check(&self, stored: &[u8]) -> bool {
        DataKey::new(self.kek.bytes()).open(Cf::Ctl, layout::ctl::KEY_CHECK, stored.to_vec()).is_ok()
    }

    fn keep(&self, tenant: TenantId, epochs: &[Epoch]) -> Arc<TenantKeys> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= TENANTS_OPEN_MAX {
            open.clear();
        }
        let keys = || Arc::new(TenantKeys::new(tenant, Arc::clone(&self.nonces), epochs));
        Arc::clone(open.entry(tenant).or_insert_with(keys))
    }

    fn load(&self, kv: &dyn KvStore, tenant: TenantId) -> Result<Vec<Epoch>, ReadError> {
        let from = layout::data_key(tenant, NO_USER, 0);
        let to = layout::data_key(tenant, NO_USER, u16::MAX);
        let mut rows = Vec::new();
        kv.scan(Cf::Key, ScanRange::forward(&from, &to), &mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })
        .map_err(|error: KvError| ReadError::from(error))?;
        let kek = DataKey::new(self.kek.bytes());
        let mut epochs = Vec::with_capacity(rows.len());
        for (row, wrapped) in rows {
            let corrupt = |why: &str| ReadError::Corrupt { cf: Cf::Key.name(), why: why.to_owned() };
            let epoch = *row.last_chunk::<2>().ok_or_else(|| corrupt("a key row has a short key"))?;
            let plain = kek
                .open(Cf::Key, &row, wrapped)
                .map_err(|_| corrupt("a wrapped data key does not open under the key file"))?;
            let plain = Zeroizing::new(plain);
            let key: [u8; 32] =
                plain.as_slice().try_into().map_err(|_| corrupt("a data key does not have 32 bytes"))?;
            epochs.push((u16::from_be_bytes(epoch), Zeroizing::new(key)));
        }
        Ok(epochs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::memory::{Fault, MemoryBackend};

    fn ring(byte: u8) -> KeyRing {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        std::fs::write(&path, format!("millrace-key-1 {}\n", digest::hex(&[byte; 32]))).unwrap();
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        KeyRing::new(Kek::read(&path).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn a_tenants_key_survives_a_restart_and_is_its_own() {
        let kv = MemoryBackend::new();
        let first = ring(1);
        let sealed = first.find_or_make(&kv, TenantId(5)).unwrap().seal(Cf::Msg, b"k", b"secret");
        let blind: [u8; 16] = first.opened(TenantId(5)).unwrap().blind("d", &[b"x"]);

        let again = ring(1);
        assert!(again.opened(TenantId(5)).is_none());
        let keys = again.find(&kv, TenantId(5)).unwrap().unwrap();
        assert_eq!(keys.open(Cf::Msg, b"k", sealed.clone()).unwrap(), b"secret");
        assert_eq!(keys.blind::<16>("d", &[b"x"]), blind);
        assert_ne!(keys.blind::<16>("e", &[b"x"]), blind);
        assert_ne!(keys.blind::<16>("d", &[b"x", b""]), blind);

        let other = again.find_or_make(&kv, TenantId(6)).unwrap();
        assert!(matches!(other.open(Cf::Msg, b"k", sealed), Err(ReadError::Corrupt { .. })));
        assert_ne!(other.blind::<16>("d", &[b"x"]), blind);
    }

    #[test]
    fn another_key_file_opens_nothing() {
        let kv = MemoryBackend::new();
        let check = ring(1).check_value();
        ring(1).find_or_make(&kv, TenantId(5)).unwrap();
        assert!(ring(1).check(&check));
        assert!(!ring(2).check(&check));
        assert!(matches!(ring(2).find(&kv, TenantId(5)), Err(ReadError::Corrupt { cf: "key", .. })));
    }

    #[test]
    fn a_key_that_could_not_be_written_is_not_used() {
        let kv = MemoryBackend::new();
        let keys = ring(1);
        kv.inject(Fault::NoSpace);
        assert!(matches!(keys.find_or_make(&kv, TenantId(5)), Err(CommitError::NoSpace { .. })));
        assert!(keys.opened(TenantId(5)).is_none());
    }

    #[test]
    fn a_record_of_an_unknown_epoch_says_so() {
        let kv = MemoryBackend::new();
        let keys = ring(1).find_or_make(&kv, TenantId(5)).unwrap();
        let mut sealed = keys.seal(Cf::Msg, b"k", b"x");
        sealed[3] = 9;
        assert!(matches!(keys.open(Cf::Msg, b"k", sealed), Err(ReadError::KeyGone { tenant: 5, epoch: 9 })));
    }
}
