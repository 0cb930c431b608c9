//! A file of named secrets, sealed under the key file of the store.
//!
//! Secrets of channel accounts are needed before the store is opened, and commands add some while a server
//! holds it; so they lie in a small file of their own. One line each:
//!
//! ```text
//! NAME SP base64( nonce 12 ‖ AES-256-GCM ciphertext ‖ tag 16 )
//! !key SP base64( nonce 12 ‖ AES-256-GCM ciphertext of the vault's key ‖ tag 16 )
//! ```
//!
//! Associated data is the name, so that two secrets cannot change places. Secrets are sealed by a key of the vault,
//! which `!key` lines hold, each wrapped by a key derived from a key of keys: while the store is brought to a new one
//! there are two, so that whatever a crash leaves opens. Nonces are random, which is safe for far more writes than a
//! file of secrets sees.

use super::KeySource;
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
/// Name of the file in the store's folder.
pub use millrace_proto::backup::VAULT_FILE;
/// Starts a line with the vault's key; no secret can have this name.
const KEY_NAME: &str = "!key";
/// A rotation leaves two; one that is cut off and begun again, three.
const KEY_LINES_MAX: usize = 8;

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
    file: Sealed,
}

/// What the file holds.
#[derive(Default)]
struct Sealed {
    secrets: BTreeMap<String, Vec<u8>>,
    /// The vault's key, wrapped.
    keys: Vec<Vec<u8>>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let secrets = self.file.secrets.len();
        f.debug_struct("Vault").field("path", &self.path).field("secrets", &secrets).finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the vault of a store's folder with the store's key of keys. Neither needs to exist when `may_create` is
    /// set: a missing key file is then made. A caller who knows that a store exists leaves it unset, since a new key
    /// would not open that store.
    pub fn open(folder: &Path, source: &KeySource, key_file: &Path, may_create: bool) -> Result<Self, VaultError> {
        let path = folder.join(VAULT_FILE);
        let mut file = read(&path)?;
        let (kek, other) = match source.read(key_file)? {
            Some(found) => found,
            None if may_create && file.secrets.is_empty() => (Kek::create(key_file)?, None),
            None => return Err(VaultError::KeyMissing(key_file.to_owned())),
        };
        let opened = [Some(&kek), other.as_ref()].into_iter().flatten().find_map(|kek| unwrap_key(kek, &file.keys));
        let key = match opened {
            Some(key) => key,
            None if file.secrets.is_empty() => {
                let mut key = Zeroizing::new([0; 32]);
                getrandom::fill(&mut key[..]).map_err(|_| NO_RANDOM)?;
                file.keys = vec![wrap_key(&kek, &key)?];
                key
            }
            None => return Err(VaultError::NotAuthentic { name: KEY_NAME.into() }),
        };
        Ok(Self { path, key: cipher(&key), file })
    }

    /// The secret of a name; `None` when there is none.
    pub fn get(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let Some(sealed) = self.file.secrets.get(name) else { return Ok(None) };
        let broken = || VaultError::NotAuthentic { name: name.to_owned() };
        open(&self.key, name, sealed).map(Some).ok_or_else(broken)
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
        if self.file.secrets.len() >= SECRETS_MAX && !self.file.secrets.contains_key(name) {
            return Err(VaultError::Refused("the vault holds 4,096 secrets already"));
        }
        let sealed = seal(&self.key, name, secret)?;
        self.file.secrets.insert(name.to_owned(), sealed);
        write(&self.path, &self.file)
    }

    /// Forgets all names that start with `prefix`; says how many there were.
    pub fn remove_all(&mut self, prefix: &str) -> Result<usize, VaultError> {
        let before = self.file.secrets.len();
        self.file.secrets.retain(|name, _| !name.starts_with(prefix));
        let removed = before - self.file.secrets.len();
        if removed > 0 {
            write(&self.path, &self.file)?;
        }
        Ok(removed)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file.secrets.keys().map(String::as_str)
    }
}

/// Lets a new key of keys open the vault of a folder as well, before it takes the place of `old`.
pub(crate) fn admit_key(folder: &Path, old: &Kek, new: &Kek) -> Result<(), VaultError> {
    let path = folder.join(VAULT_FILE);
    let mut file = read(&path)?;
    let Some(key) = unwrap_key(old, &file.keys) else { return Ok(()) };
    file.keys.retain(|wrapped| unwrap_key(old, std::slice::from_ref(wrapped)).is_some());
    file.keys.truncate(1);
    file.keys.push(wrap_key(new, &key)?);
    write(&path, &file)
}

/// Takes the vault of a folder from every key of keys but this one.
pub(crate) fn keep_key(folder: &Path, kek: &Kek) -> Result<(), VaultError> {
    let path = folder.join(VAULT_FILE);
    let mut file = read(&path)?;
    let before = file.keys.len();
    file.keys.retain(|wrapped| unwrap_key(kek, std::slice::from_ref(wrapped)).is_some());
    // None left: the vault belongs to another key, and taking its last ones would lose it.
    if file.keys.is_empty() || file.keys.len() == before { Ok(()) } else { write(&path, &file) }
}

const NO_RANDOM: VaultError = VaultError::Refused("the system gives no random bytes");

fn cipher(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("AES-256 takes exactly 32 bytes"))
}

/// What wraps the vault's key: never the key of keys itself, which wraps the store's keys.
fn wrapping(kek: &Kek) -> LessSafeKey {
    cipher(&Zeroizing::new(digest::hkdf_sha256(b"millrace vault", kek.bytes(), b"sealed secrets 1")))
}

fn wrap_key(kek: &Kek, key: &[u8; 32]) -> Result<Vec<u8>, VaultError> {
    seal(&wrapping(kek), KEY_NAME, key)
}

fn unwrap_key(kek: &Kek, wrapped: &[Vec<u8>]) -> Option<Zeroizing<[u8; 32]>> {
    let by = wrapping(kek);
    let plain = wrapped.iter().find_map(|wrapped| open(&by, KEY_NAME, wrapped))?;
    Some(Zeroizing::new(plain.as_slice().try_into().ok()?))
}

fn open(key: &LessSafeKey, name: &str, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut plain = Zeroizing::new(rest.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let length = key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut plain).ok()?.len();
    plain.truncate(length);
    Some(plain)
}

fn seal(key: &LessSafeKey, name: &str, secret: &[u8]) -> Result<Vec<u8>, VaultError> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|_| NO_RANDOM)?;
    let mut sealed = Vec::with_capacity(NONCE_LEN + secret.len() + 16);
    sealed.extend_from_slice(&nonce);
    sealed.extend_from_slice(secret);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = key
        .seal_in_place_separate_tag(nonce, Aad::from(name.as_bytes()), &mut sealed[NONCE_LEN..])
        .expect("a secret is shorter than the bound of GCM");
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// Replaces the file as a whole: a crash leaves the old one or the new one.
fn write(path: &Path, file: &Sealed) -> Result<(), VaultError> {
    let io = |act, source| VaultError::Io { act, path: path.to_owned(), source };
    let keys = file.keys.iter().map(|key| (KEY_NAME, key));
    let secrets = file.secrets.iter().map(|(name, sealed)| (name.as_str(), sealed));
    let mut text = String::new();
    for (name, sealed) in keys.chain(secrets) {
        text.push_str(&format!("{name} {}\n", digest::base64(sealed)));
    }
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|error| io("make the folder of", error))?;
    }
    let fresh = path.with_extension("new");
    // What a crash left behind is ours, and worthless.
    let _ = fs::remove_file(&fresh);
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh);
    let mut new = opened.map_err(|error| io("write", error))?;
    new.write_all(text.as_bytes()).and_then(|()| new.sync_all()).map_err(|error| io("write", error))?;
    fs::rename(&fresh, path).map_err(|error| io("replace", error))?;
    sync_folder(path).map_err(|error| io("write the folder of", error))
}

fn read(path: &Path) -> Result<Sealed, VaultError> {
    let io = |source| VaultError::Io { act: "read", path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Sealed::default()),
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
fn parse(bytes: &[u8]) -> Result<Sealed, usize> {
    let text = std::str::from_utf8(bytes).map_err(|_| 1usize)?;
    let mut file = Sealed::default();
    for (index, line) in text.lines().enumerate() {
        let broken = index + 1;
        let (name, value) = line.split_once(' ').ok_or(broken)?;
        let value = digest::unbase64(value).filter(|value| value.len() > NONCE_LEN + 16).ok_or(broken)?;
        if name == KEY_NAME && file.keys.len() < KEY_LINES_MAX {
            file.keys.push(value);
            continue;
        }
        let full = file.secrets.len() == SECRETS_MAX;
        if name.is_empty() || name == KEY_NAME || full || file.secrets.insert(name.to_owned(), value).is_some() {
            return Err(broken);
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn secrets_survive_in_sealed_form_only() {
        let folder = tempfile::tempdir().unwrap();
        let (path, key) = (folder.path().join(VAULT_FILE), folder.path().join("master.key"));
        let vault_of = |key: &Path, may_create| Vault::open(folder.path(), &KeySource::File, key, may_create);
        assert!(matches!(vault_of(&key, false), Err(VaultError::KeyMissing(_))));
        let mut vault = vault_of(&key, true).unwrap();
        vault.put("telegram/bot/bot_token", b"110201543:AAHdqTcv").unwrap();
        vault.put("telegram/bot/secrets", b"word").unwrap();
        vault.put("telegram/bot/secrets", b"newer word").unwrap();
        vault.put("slack/team/secrets", b"other").unwrap();
        let file = fs::read(&path).unwrap();
        for secret in ["110201543", "AAHdqTcv", "word", "other"] {
            assert!(!file.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret}");
        }
        assert_eq!(fs::metadata(&path).unwrap().len(), file.len() as u64);
        let mut again = vault_of(&key, false).unwrap();
        assert_eq!(again.get("telegram/bot/secrets").unwrap().as_deref().map(Vec::as_slice), Some(&b"newer word"[..]));
        assert!(again.get("telegram/bot/nothing").unwrap().is_none());
        assert_eq!(again.remove_all("telegram/bot/").unwrap(), 2);
        assert_eq!(vault_of(&key, false).unwrap().names().collect::<Vec<_>>(), ["slack/team/secrets"]);
    }

    /// Secrets of channels outlive the key of keys under which they were sealed, wherever a rotation is cut off.
    #[test]
    fn a_new_key_of_keys_opens_the_vault_and_the_old_one_does_not_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let [old, new] = ["master.key", "master.key.next"].map(|name| folder.path().join(name));
        let vault_of = |key: &Path| Vault::open(folder.path(), &KeySource::File, key, true);
        let secret = |vault: Vault| vault.get("a").unwrap().map(|secret| secret.to_vec());
        vault_of(&old).unwrap().put("a", b"one").unwrap();
        let (old_kek, new_kek) = (Kek::read(&old).unwrap().unwrap(), Kek::create(&new).unwrap());
        for _ in 0..2 {
            admit_key(folder.path(), &old_kek, &new_kek).unwrap();
            assert_eq!(secret(vault_of(&old).unwrap()).as_deref(), Some(&b"one"[..]));
            assert_eq!(secret(vault_of(&new).unwrap()).as_deref(), Some(&b"one"[..]));
        }
        vault_of(&old).unwrap().put("b", b"two").unwrap();
        keep_key(folder.path(), &new_kek).unwrap();
        std::fs::rename(&new, folder.path().join("kept.key")).unwrap();
        let vault = vault_of(&folder.path().join("kept.key")).unwrap();
        assert_eq!(vault.names().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(secret(vault).as_deref(), Some(&b"one"[..]));
        assert!(matches!(vault_of(&old), Err(VaultError::NotAuthentic { .. })));
        keep_key(folder.path(), &old_kek).unwrap();
        assert!(vault_of(&folder.path().join("kept.key")).is_ok(), "a stranger's key takes nothing");
    }

    #[test]
    fn secrets_that_changed_places_or_keys_do_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let (path, key) = (folder.path().join(VAULT_FILE), folder.path().join("master.key"));
        let vault_of = |key: &Path, may_create| Vault::open(folder.path(), &KeySource::File, key, may_create);
        let mut vault = vault_of(&key, true).unwrap();
        vault.put("a", b"one").unwrap();
        vault.put("b", b"two").unwrap();
        let text = fs::read_to_string(&path).unwrap().replace("a ", "c ").replace("b ", "a ").replace("c ", "b ");
        fs::write(&path, text).unwrap();
        let swapped = vault_of(&key, false).unwrap();
        assert!(matches!(swapped.get("a"), Err(VaultError::NotAuthentic { .. })));
        let other = folder.path().join("other.key");
        Kek::create(&other).unwrap();
        assert!(matches!(vault_of(&other, false), Err(VaultError::NotAuthentic { .. })));
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
