//! Which key of keys opens a store, and whether it has to be brought to another.

use super::keyfile::{self, Kek};
use super::keyring::check;
use crate::error::OpenError;
use crate::seal::KeySource;
use crate::store::{BackendKind, StoreOptions};

/// The keys of a start.
pub(crate) struct FoundKek {
    /// Opens the store as it is.
    pub opens: Kek,
    /// What it shall be brought to.
    pub rewrap_to: Option<Kek>,
}

/// Finds the key of keys for a store with this key check (`None` = the store is new).
pub(crate) fn find_kek(options: &StoreOptions, stored: Option<&[u8]>) -> Result<FoundKek, OpenError> {
    let key_file = &options.key_file;
    let (kek, other) = match (options.key_source.read(key_file)?, stored) {
        (Some(found), _) => found,
        (None, Some(_)) => {
            return Err(OpenError::KeyMissing { key_file: key_file.clone(), path: options.path.clone() });
        }
        (None, None) if options.backend == BackendKind::Memory => {
            (Kek::ephemeral().map_err(|error| no_random(options, error))?, None)
        }
        (None, None) => (Kek::create(key_file)?, None),
    };
    let opens = |kek: &Kek| stored.is_none_or(|stored| check(kek, stored));
    if opens(&kek) {
        let next = keyfile::next_of(key_file);
        if options.key_source == KeySource::File && next.exists() {
            // A rotation that was cut off before the store was brought to its key.
            std::fs::remove_file(&next).map_err(|source| OpenError::io("remove the unused new key", &next, source))?;
        }
        return Ok(FoundKek { opens: kek, rewrap_to: None });
    }
    match (other, &options.key_source) {
        (Some(next), KeySource::File) if opens(&next) => {
            // A rotation that was cut off after the store was brought to its key.
            keyfile::publish_next(key_file)
                .map_err(|source| OpenError::io("put the new key in the place of", key_file, source))?;
            Ok(FoundKek { opens: next, rewrap_to: None })
        }
        (Some(previous), KeySource::Environment(_)) if opens(&previous) => {
            Ok(FoundKek { opens: previous, rewrap_to: Some(kek) })
        }
        _ => Err(OpenError::WrongKey { key_file: options.key_source.describe(key_file), path: options.path.clone() }),
    }
}

pub(crate) fn no_random(options: &StoreOptions, error: getrandom::Error) -> OpenError {
    OpenError::Io {
        act: "get random numbers for",
        path: options.path.clone(),
        source: std::io::Error::other(error.to_string()),
    }
}
