//! Which line of backups a data folder belongs to.
//!
//! The file `backup.line` in the data folder, in no backup:
//!
//! ```text
//! millrace-line 1
//! line 32 hex | restored
//! from 32 hex SLOTS PLACE        (any number) lines that this folder was restored from
//! ```
//! A restored folder begins a line of its own with its first backup, since the folder that it came from may live on:
//! two folders that wrote the same copy of user keys would each take away the keys of the other's new users. It sends
//! everything once. Whoever is forgotten in it is erased from the older lines' copies as well.

use super::keys::random;
use super::{ArchiveError, LineKey};
use crate::batch::Batch;
use crate::store::Inner;
use millrace_proto::backup::{ANCESTORS_MAX, Ancestor, LineId};
use millrace_proto::digest::{hex, unhex};
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

pub(crate) const LINE_FILE: &str = "backup.line";
const FIRST_LINE: &str = "millrace-line 1";
const RESTORED: &str = "restored";

/// What the file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LineFile {
    /// `None` until the first backup.
    pub line: Option<LineId>,
    pub ancestors: Vec<Ancestor>,
}

impl LineFile {
    /// The file of a data folder; an empty one when there is none.
    pub fn read(folder: &Path) -> Result<Self, ArchiveError> {
        let path = folder.join(LINE_FILE);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(ArchiveError::io("read", &path))?,
        };
        Self::parse(&text).map_err(|why| ArchiveError::io("read", path)(std::io::Error::other(why)))
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) {
            return Err("it is no file of this kind");
        }
        let line = match lines.next().and_then(|line| line.strip_prefix("line ")) {
            Some(RESTORED) => None,
            Some(digits) => {
                let id = unhex(digits).and_then(|bytes| bytes.try_into().ok());
                Some(id.ok_or("its line does not have 32 hexadecimal digits")?)
            }
            None => return Err("it names no line"),
        };
        let mut ancestors = Vec::new();
        for line in lines {
            ancestors.push(Ancestor::read(line.strip_prefix("from ").ok_or("a line is not known")?)?);
        }
        if ancestors.len() > ANCESTORS_MAX { Err("it names too many lines") } else { Ok(Self { line, ancestors }) }
    }

    fn text(&self) -> String {
        let own = self.line.as_ref().map_or_else(|| RESTORED.to_owned(), |line| hex(line));
        let mut text = format!("{FIRST_LINE}\nline {own}\n");
        for ancestor in &self.ancestors {
            text.push_str(&ancestor.to_line());
            text.push('\n');
        }
        text
    }

    /// Replaces the file durably.
    pub fn write(&self, folder: &Path) -> Result<(), ArchiveError> {
        let path = folder.join(LINE_FILE);
        let fresh = path.with_extension("new");
        let written = || -> std::io::Result<()> {
            let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh);
            let mut file = options?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            crate::seal::sync_folder(&path)
        };
        written().map_err(ArchiveError::io("write", &path))
    }
}

/// A data folder's own line, with its key.
pub(crate) struct Line {
    pub id: LineId,
    pub key: LineKey,
    pub ancestors: Vec<Ancestor>,
}

/// The named value that holds the key of a line.
fn key_name(line: &LineId) -> String {
    format!("backup/key/{}", hex(line))
}

impl Line {
    /// The line of a store, begun now if it has none. Waits for the store's disk.
    pub fn of(inner: &Inner) -> Result<Self, ArchiveError> {
        let folder = &inner.options.path;
        let mut file = LineFile::read(folder)?;
        let id = match file.line {
            Some(id) => id,
            None => {
                let id = random()?;
                file.line = Some(id);
                file.write(folder)?;
                id
            }
        };
        let key = match Self::key(inner, &id)? {
            Some(key) => key,
            None => {
                let key = LineKey::random()?;
                let mut batch = Batch::new();
                batch.put_meta(&key_name(&id), key.secret());
                inner.commit.commit(&inner.shared, batch)?;
                key
            }
        };
        Ok(Self { id, key, ancestors: file.ancestors })
    }

    /// The key of any line that this store knows.
    pub fn key(inner: &Inner, id: &LineId) -> Result<Option<LineKey>, ArchiveError> {
        let stored = inner.shared.meta(&key_name(id))?;
        let secret = stored.map(|bytes| {
            <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| {
                let why = "the key of a line of backups does not have 32 bytes".into();
                crate::ReadError::Corrupt { cf: crate::Cf::Ctl.name(), why }
            })
        });
        Ok(secret.transpose()?.map(LineKey::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_reads_back_and_another_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(LineFile::read(folder.path()).unwrap(), LineFile::default());
        let ancestor = Ancestor { line: [2; 16], slots: 9, place: "s3://bucket/a b".into() };
        for line in [None, Some([1; 16])] {
            let file = LineFile { line, ancestors: vec![ancestor.clone(), ancestor.clone()] };
            file.write(folder.path()).unwrap();
            assert_eq!(LineFile::read(folder.path()).unwrap(), file);
        }
        for text in ["", "millrace-line 2\n", "millrace-line 1\nline xyz\n", "millrace-line 1\nline restored\nelse\n"] {
            assert!(LineFile::parse(text).is_err(), "{text:?}");
        }
    }
}
