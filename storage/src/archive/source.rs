//! Reading files of the database without pushing what the database reads out of the page cache.
//!
//! Direct reads: tables that a backup reads once stay out of the cache, and tables that are in it stay there (dropping
//! them afterwards would take them from the database as well). Where a file system takes no direct reads, plain ones do.

use super::budget::{Budget, PIECE_BYTES};
use super::{ArchiveError, Stopped};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Alignment that direct reads want of memory, offset and length, on every disk that is sold today.
const BLOCK_BYTES: usize = 4_096;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// A file that is read from its start to its end, or to one that was named.
pub(crate) struct Source {
    path: PathBuf,
    file: File,
    direct: bool,
    bytes: u64,
    at: u64,
    buffer: Vec<Block>,
}

impl Source {
    /// A file up to `end`, or whole.
    pub fn open(path: &Path, end: Option<u64>) -> Result<Self, ArchiveError> {
        let direct_flag = rustix::fs::OFlags::DIRECT.bits() as i32;
        let direct = OpenOptions::new().read(true).custom_flags(direct_flag).open(path);
        let (file, direct) = match direct {
            Ok(file) => (file, true),
            Err(_) => (File::open(path).map_err(ArchiveError::io("read", path))?, false),
        };
        let length = file.metadata().map_err(ArchiveError::io("read", path))?.len();
        let bytes = end.map_or(length, |end| end.min(length));
        let buffer = vec![bytemuck::Zeroable::zeroed(); PIECE_BYTES / BLOCK_BYTES];
        Ok(Self { path: path.to_owned(), file, direct, bytes, at: 0, buffer })
    }

    /// How much of it is read: its size when it was opened, or what was named.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next bytes, at most `bytes_max` (a multiple of a piece); empty at the end.
    pub fn next(&mut self, bytes_max: usize, budget: &Budget) -> Result<Vec<u8>, ArchiveError> {
        let left = usize::try_from(self.bytes - self.at).unwrap_or(usize::MAX);
        let wanted = left.min(bytes_max);
        let mut bytes = Vec::with_capacity(wanted);
        while bytes.len() < wanted {
            let piece = (wanted - bytes.len()).min(PIECE_BYTES);
            budget.spend(piece as u64).map_err(|Stopped| ArchiveError::Stopped)?;
            self.fill(piece).map_err(ArchiveError::io("read", &self.path))?;
            bytes.extend_from_slice(&bytemuck::cast_slice(&self.buffer)[..piece]);
            self.at += piece as u64;
        }
        Ok(bytes)
    }

    /// Reads `piece` bytes to the start of the buffer.
    fn fill(&mut self, piece: usize) -> io::Result<()> {
        let mut filled = 0;
        while filled < piece {
            let buffer: &mut [u8] = bytemuck::cast_slice_mut(&mut self.buffer);
            // A direct read has whole blocks, also where the file or its wanted part ends inside the last one.
            let end = if self.direct { piece.next_multiple_of(BLOCK_BYTES) } else { piece };
            match self.file.read_at(&mut buffer[filled..end], self.at + filled as u64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What is not aligned for this disk after all, or an odd rest after a short read.
                Err(error) if self.direct && error.kind() == io::ErrorKind::InvalidInput => {
                    self.file = File::open(&self.path)?;
                    self.direct = false;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        for length in [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 5_000] {
            let path = folder.path().join("file");
            let content: Vec<u8> = (0..length).map(|n| (n % 253) as u8).collect();
            std::fs::write(&path, &content).unwrap();
            let (mut source, budget) = (Source::open(&path, None).unwrap(), Budget::new(0));
            let mut read = Vec::new();
            loop {
                let bytes = source.next(2 * PIECE_BYTES, &budget).unwrap();
                if bytes.is_empty() {
                    break;
                }
                read.extend(bytes);
            }
            assert!(read == content, "{length}");
            assert_eq!(budget.spent(), length as u64);
        }
        let mut part = Source::open(&folder.path().join("file"), Some(5_000)).unwrap();
        let read = part.next(PIECE_BYTES, &Budget::new(0)).unwrap();
        assert_eq!(read, (0..5_000).map(|n| (n % 253) as u8).collect::<Vec<u8>>());
        assert!(part.next(PIECE_BYTES, &Budget::new(0)).unwrap().is_empty());
        assert!(Source::open(&folder.path().join("missing"), None).is_err());
    }
}
