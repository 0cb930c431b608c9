//! The key file: one line of text that holds the key of keys.

use super::{DataKey, Suite};
use crate::error::OpenError;
use millrace_proto::digest;
use millrace_proto::gm;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const PREFIX: &str = "millrace-key-1 ";
/// A key line is 80 bytes; anything much longer is another file.
const FILE_BYTES_MAX: u64 = 256;

/// The key that wraps the data keys. It never leaves this crate and is wiped when dropped.
#[derive(Clone)]
pub(crate) struct Kek(Zeroizing<[u8; 32]>);

impl Kek {
    /// The key itself wraps under `intl`; for `gm` one is derived, so that no algorithm of the one suite protects data
    /// of the other.
    pub fn wrapping(&self, suite: Suite) -> DataKey {
        match suite {
            Suite::Intl => DataKey::new(suite, &self.0),
            Suite::Gm => {
                let derived = Zeroizing::new(gm::hmac_sm3(&self.0[..], &[b"millrace key of keys"]));
                DataKey::new(suite, &derived)
            }
        }
    }

    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A key for a store that lives in memory only.
    pub fn ephemeral() -> Result<Self, getrandom::Error> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut key[..])?;
        Ok(Self(key))
    }

    /// Reads the key file. `None` when there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>, OpenError> {
        let io = |source| OpenError::Io { act: "read the key file", path: path.to_owned(), source };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let mode = file.metadata().map_err(io)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(OpenError::KeyExposed { key_file: path.to_owned(), mode });
        }
        let mut text = Zeroizing::new(String::new());
        match file.take(FILE_BYTES_MAX).read_to_string(&mut text) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::InvalidData => return Err(malformed(path, "it is not text")),
            Err(error) => return Err(io(error)),
        }
        parse(&text).map(Some).map_err(|why| malformed(path, why))
    }

    /// Makes a new key file, readable by its owner only, durable before it is used.
    pub fn create(path: &Path) -> Result<Self, OpenError> {
        let io = |source| OpenError::io("create the key file", path, source);
        let key = Self::ephemeral().map_err(|error| io(std::io::Error::other(error.to_string())))?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            fs::create_dir_all(folder).map_err(io)?;
        }
        let line = Zeroizing::new(format!("{PREFIX}{}\n", digest::hex(key.bytes())));
        // `create_new` never overwrites: a second starter fails here instead of replacing a key in use.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_all());
        if let Err(error) = written {
            // A half-written key file would block every later start with a misleading error.
            let _ = fs::remove_file(path);
            return Err(io(error));
        }
        sync_folder(path).map_err(io)?;
        Ok(key)
    }
}

fn malformed(path: &Path, why: &str) -> OpenError {
    OpenError::KeyMalformed { key_file: path.to_owned(), why: why.to_owned() }
}

/// The file of a new key until the store is brought to it.
pub(crate) fn next_of(key_file: &Path) -> PathBuf {
    let mut name = key_file.as_os_str().to_owned();
    name.push(".next");
    PathBuf::from(name)
}

/// Puts the file of the new key in the place of the old one.
pub(crate) fn publish_next(key_file: &Path) -> std::io::Result<()> {
    fs::rename(next_of(key_file), key_file)?;
    sync_folder(key_file)
}

/// A key line, or its digits alone, as vaults keep them.
pub(crate) fn parse(text: &str) -> Result<Kek, &'static str> {
    let text = text.trim();
    let digits = match text.strip_prefix(PREFIX) {
        Some(digits) => digits,
        None if text.len() == 64 && !text.contains(' ') => text,
        None => return Err("it does not start with `millrace-key-1 `"),
    };
    let bytes = Zeroizing::new(digest::unhex(digits).ok_or("the key is not hexadecimal")?);
    let key: [u8; 32] = bytes.as_slice().try_into().map_err(|_| "the key does not have 64 hexadecimal digits")?;
    Ok(Kek(Zeroizing::new(key)))
}

/// Makes a new directory entry durable.
pub(crate) fn sync_folder(of: &Path) -> std::io::Result<()> {
    let folder = of.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_new_key_file_is_private_and_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/store.key");
        assert!(Kek::read(&path).unwrap().is_none());
        let made = Kek::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Kek::read(&path).unwrap().unwrap().bytes(), made.bytes());
        assert!(matches!(Kek::create(&path), Err(OpenError::Io { .. })), "an existing key is never replaced");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store.key");
        Kek::create(&path).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let Err(error) = Kek::read(&path) else { panic!("mode {mode:o} was accepted") };
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn other_files_are_named_as_such() {
        for text in ["", "hello", "millrace-key-1 ", "millrace-key-1 00ff", "millrace-key-1 zz", "millrace-key-2 00"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(millrace-key-1 )?.{0,80}") {
            let _ = parse(&text);
        }
    }
}
