//! The bytes of a model file: mapped, or owned for tests and small inputs.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use super::GgufError;

pub(super) enum FileBytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl FileBytes {
    pub(super) fn map(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() == 0 {
            return Ok(FileBytes::Owned(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only. Its bytes are only read as plain integers, for which every
        // bit pattern is valid; the operator must not shorten a model file while it is being loaded, as documented.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io)?;
        Ok(FileBytes::Mapped(map))
    }

    pub(super) fn owned(bytes: Vec<u8>) -> Self {
        FileBytes::Owned(bytes)
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Owned(bytes) => bytes,
        }
    }

    pub(super) fn release_pages(&self) {
        if let FileBytes::Mapped(map) = self {
            // SAFETY: dropping the pages of a private, never written file mapping loses nothing: the next read faults
            // them in again. A refusal only means that they stay, so the result is not needed.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}
