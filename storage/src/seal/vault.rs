//! A file of named secrets, sealed under the key file of the store.
//!
//! Secrets of channel accounts are needed before the store is opened, and commands add some while a server
//! holds it; so they lie in a small file of their own. One line each:
//!
//! ```text
//! NAME SP base64( nonce 12 ‖ AES-256-GCM ciphertext ‖ tag 16 )
//! ```
//!
//! Associated data is the name, so that two secrets cannot change places. The key is derived from the key
//! file; nonces are random, which is safe for far more writes than a file of secrets sees.

use super::keyfile::{Kek, sync_folder};
use crate::error::OpenError;
use millrace_proto::digest;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Longest secret.
pub const VAULT_SECRET_BYTES_MAX: usize = 4_096;
/// Longest name of a secret.
pub const VAULT_NAME_BYTES_MAX: usize = 200;
/// Secrets in one file: a few for each channel account.
const SECRETS_MAX: usize = 4_096;
const FILE_BYTES_MAX: u64 = 32 << 20;

/// Why a vault cannot do what was asked. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The key file is unusable.
    #[error(transparent)]
    Key(#[from] OpenError),
    /// The key file is missing although there is something to open with it.
    #[error("the key file {0} is missing; without it the sealed secrets cannot be opened")]
    KeyMissing(PathBuf),
    /// The file cannot be read or written.
    #[error("cannot {act} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not one of ours, or was damaged.
    #[error("line {line} of {path} is not a sealed secret", path = path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// Another key, or changed bytes.
    #[error("the secret {name} does not open: it was sealed under another key file, or changed")]
    NotAuthentic {
        /// Whose.
        name: String,
    },
    /// A name or a secret that is not stored.
    #[error("{0}")]
    Refused(&'static str),
}

/// The opened file. Values stay sealed in memory until they are asked for.
pub struct Vault {
    path: PathBuf,
    key: LessSafeKey,
    sealed: BTreeMap<String, Vec<u8>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("path", &self.path).field("secrets", &self.sealed.len()).finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the vault at `path` with the store's key file. Neither needs to exist when `may_create` is set: the
    /// key file is then made. A caller who knows that a store exists leaves it unset, since a new key would not
    /// open that store.
    pub fn open(path: &Path, key_file: &Path, may_create: bool) -> Result<Self, VaultError> {
        let sealed = read(path)?;
        let kek = match Kek::read(key_file)? {
            Some(kek) => kek,
            None if may_create && sealed.is_empty() => Kek::create(key_file)?,
            None => return Err(VaultError::KeyMissing(key_file.to_owned())),
        };
        let key = Zeroizing::new(digest::hkdf_sha256(b"millrace vault", kek.bytes(), b"sealed secrets 1"));
        let key = UnboundKey::new(&AES_256_GCM, &key[..]).expect("AES-256 takes exactly 32 bytes");
        Ok(Self { path: path.to_owned(), key: LessSafeKey::new(key), sealed })
    }

    /// The secret of a name; `None` when there is none.
    pub fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let Some(sealed) = self.sealed.get(name) else { return Ok(None) };
        let broken = || VaultError::NotAuthentic { name: name.to_owned() };
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(broken)?;
        let mut plain = Zeroizing::new(rest.to_vec());
        let length = self
            .key
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(name.as_bytes()), &mut plain)
            .map_err(|_| broken())?
            .len();
        plain.truncate(length);
        Ok(Some(plain))
    }

    /// Seals a secret under a name, in place of an earlier one. It is durable when this returns.
    pub fn put(&mut self, name: &str, secret: &[u8]) -> Result<(), VaultError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_.-".contains(&byte);
        if name.is_empty() || name.len() > VAULT_NAME_BYTES_MAX || !name.bytes().all(plain) {
            return Err(VaultError::Refused("a name of a secret has 1 to 200 letters, digits, `/`, `_`, `.` or `-`"));
        }
        if secret.is_empty() || secret.len() > VAULT_SECRET_BYTES_MAX {
            return Err(VaultError::Refused("a secret has 1 to 4,096 bytes"));
        }
        if self.sealed.len() >= SECRETS_MAX && !self.sealed.contains_key(name) {
            return Err(VaultError::Refused("the vault holds 4,096 secrets already"));
        }
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| VaultError::Refused("the system gives no random bytes"))?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + secret.len() + 16);
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(secret);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(name.as_bytes()),
                &mut sealed[NONCE_LEN..],
            )
            .expect("a secret is shorter than the bound of GCM");
        sealed.extend_from_slice(tag.as_ref());
        self.sealed.insert(name.to_owned(), sealed);
        self.write()
    }

    /// Forgets all names that start with `prefix`; says how many there were.
    pub fn remove_all(&mut self, prefix: &str) -> Result<usize, VaultError> {
        let before = self.sealed.len();
        self.sealed.retain(|name, _| !name.starts_with(prefix));
        let removed = before - self.sealed.len();
        if removed > 0 {
            self.write()?;
        }
        Ok(removed)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sealed.keys().map(String::as_str)
    }

    /// Replaces the file as a whole: a crash leaves the old one or the new one.
    fn write(&self) -> Result<(), VaultError> {
        let io = |act, source| VaultError::Io { act, path: self.path.clone(), source };
        let mut text = String::new();
        for (name, sealed) in &self.sealed {
            text.push_str(&format!("{name} {}\n", digest::base64(sealed)));
        }
        if let Some(folder) = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(|error| io("make the folder of", error))?;
        }
        let fresh = self.path.with_extension("new");
        // What a crash left behind is ours, and worthless.
        let _ = fs::remove_file(&fresh);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .map_err(|error| io("write", error))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(|error| io("write", error))?;
        fs::rename(&fresh, &self.path).map_err(|error| io("replace", error))?;
        sync_folder(&self.path).map_err(|error| io("write the folder of", error))
    }
}

fn read(path: &Path) -> Result<BTreeMap<String, Vec<u8>>, VaultError> {
    let io = |source| VaultError::Io { act: "read", path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(io(error)),
        Ok(facts) if facts.len() > FILE_BYTES_MAX => {
            return Err(VaultError::Refused("the file of secrets is larger than 32 MiB: it is another file"));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(path).map_err(io)?;
    parse(&bytes).map_err(|line| VaultError::Malformed { path: path.to_owned(), line })
}

/// The error is the line that cannot be read.
fn parse(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>, usize> {
    let text = std::str::from_utf8(bytes).map_err(|_| 1usize)?;
    let mut sealed = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let broken = index + 1;
        let (name, value) = line.split_once(' ').ok_or(broken)?;
        let value = digest::unbase64(value).filter(|value| value.len() > NONCE_LEN + 16).ok_or(broken)?;
        if name.is_empty() || sealed.len() == SECRETS_MAX || sealed.insert(name.to_owned(), value).is_some() {
            return Err(broken);
        }
    }
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_survive_in_sealed_form_only() {
        let folder = tempfile::tempdir().unwrap();
        let (path, key) = (folder.path().join("channels.sealed"), folder.path().join("master.key"));
        assert!(matches!(Vault::open(&path, &key, false), Err(VaultError::KeyMissing(_))));
        let mut vault = Vault::open(&path, &key, true).unwrap();
        vault.put("telegram/bot/bot_token", b"110201543:AAHdqTcv").unwrap();
        vault.put("telegram/bot/secrets", b"word").unwrap();
        vault.put("telegram/bot/secrets", b"newer word").unwrap();
        vault.put("slack/team/secrets", b"other").unwrap();
        let file = fs::read(&path).unwrap();
        for secret in ["110201543", "AAHdqTcv", "word", "other"] {
            assert!(!file.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret}");
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), file.len() as u64);
        let mut again = Vault::open(&path, &key, false).unwrap();
        assert_eq!(again.get("telegram/bot/secrets").unwrap().as_deref().map(Vec::as_slice), Some(&b"newer word"[..]));
        assert!(again.get("telegram/bot/nothing").unwrap().is_none());
        assert_eq!(again.remove_all("telegram/bot/").unwrap(), 2);
        assert_eq!(Vault::open(&path, &key, false).unwrap().names().collect::<Vec<_>>(), ["slack/team/secrets"]);
    }

    #[test]
    fn secrets_that_changed_places_or_keys_do_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let (path, key) = (folder.path().join("channels.sealed"), folder.path().join("master.key"));
        let mut vault = Vault::open(&path, &key, true).unwrap();
        vault.put("a", b"one").unwrap();
        vault.put("b", b"two").unwrap();
        let text = fs::read_to_string(&path).unwrap().replace("a ", "c ").replace("b ", "a ").replace("c ", "b ");
        fs::write(&path, text).unwrap();
        let swapped = Vault::open(&path, &key, false).unwrap();
        assert!(matches!(swapped.get("a"), Err(VaultError::NotAuthentic { .. })));
        let other = folder.path().join("other.key");
        Kek::create(&other).unwrap();
        assert!(matches!(Vault::open(&path, &other, false).unwrap().get("b"), Err(VaultError::NotAuthentic { .. })));
        for name in ["", "a b", "a\nb", "ä"] {
            assert!(matches!(vault.put(name, b"x"), Err(VaultError::Refused(_))), "{name:?}");
        }
        assert!(matches!(vault.put("a", b""), Err(VaultError::Refused(_))));
    }

    proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in "([a-z/]{1,9} [A-Za-z0-9+/]{0,60}={0,2}\n?){0,4}") {
            let _ = parse(&bytes);
            let _ = parse(text.as_bytes());
        }
    }
}
