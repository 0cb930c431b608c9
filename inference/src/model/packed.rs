//! Packed weights kept on disk, so that the next start reads them instead of packing again.
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `MRPACKED` |
//! | 8 | [`LAYOUT`] |
//! | 16 | key of the weights |
//! | 8 | length of the body |
//! | 8 each | XXH3-64 of each [`CHUNK`] of the body |
//! | | zeros up to a multiple of 4096 |
//! | | body: the arena of weights |
//!
//! Numbers are little endian. A file that is missing, of another layout or damaged is packed anew: nothing depends on it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::weights::{LOAD_THREADS_MAX, Source};

/// To be raised with every change of the tiles or of their order.
const LAYOUT: u64 = 1;
const MAGIC: [u8; 8] = *b"MRPACKED";
const CHUNK: usize = 4 << 20;
const PAGE: usize = 4096;
const FIXED: usize = 40;
/// Files kept: those of models that were used last.
const FILES_MAX: usize = 4;
/// Bytes of each end of a tensor that go into the key.
const SAMPLE: usize = 64;

/// Where the packed weights of one model file lie.
pub(super) struct Packed {
    folder: PathBuf,
    key: u128,
}

/// What [`Packed::read`] found.
pub(super) enum Found {
    /// The arena was filled.
    Whole,
    Nothing,
    /// Why the file is of no use.
    Damaged(String),
}

impl Packed {
    /// `modified` is the time of the model file. Tensors are sampled, not read: whoever replaces a file by one of the
    /// same shapes keeps neither its time nor the ends of all its tensors.
    pub(super) fn new(folder: &Path, modified: SystemTime, sources: &[Source<'_>]) -> Packed {
        let mut hash = Xxh3::new();
        let since = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        hash.update(&since.as_nanos().to_le_bytes());
        for (matrix, tensor) in sources {
            for number in [u64::from(tensor.kind.number()), matrix.rows as u64, matrix.columns as u64] {
                hash.update(&number.to_le_bytes());
            }
            let bytes = tensor.bytes;
            hash.update(&bytes[..SAMPLE.min(bytes.len())]);
            hash.update(&bytes[bytes.len().saturating_sub(SAMPLE)..]);
        }
        Packed { folder: folder.to_owned(), key: hash.digest128() }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(format!("{:032x}.packed", self.key))
    }

    /// Fills `arena`, on several threads, and checks every byte of it.
    pub(super) fn read(&self, arena: &mut [u8]) -> Found {
        let file = match File::open(self.path()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
            Err(error) => return Found::Damaged(error.to_string()),
        };
        match self.fill(&file, arena) {
            Ok(()) => Found::Whole,
            Err(error) => Found::Damaged(error.to_string()),
        }
    }

    fn fill(&self, file: &File, arena: &mut [u8]) -> io::Result<()> {
        let mut header = vec![0; header_len(arena.len())];
        file.read_exact_at(&mut header, 0)?;
        let hashes = &header[FIXED..];
        if header[..FIXED] != self.fixed(arena.len()) {
            return Err(io::Error::other("it has another layout"));
        }
        let body = header.len();
        let jobs = Mutex::new(arena.chunks_mut(CHUNK).enumerate());
        let work = || -> io::Result<()> {
            loop {
                let Some((index, chunk)) = jobs.lock().map_err(|_| io::Error::other("a thread panicked"))?.next()
                else {
                    return Ok(());
                };
                file.read_exact_at(chunk, (body + index * CHUNK) as u64)?;
                if xxh3_64(chunk).to_le_bytes() != hashes[8 * index..][..8] {
                    return Err(io::Error::other(format!("the checksum of part {index} is wrong")));
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(LOAD_THREADS_MAX);
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut result = work();
            for other in others {
                let ended = other.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
                result = result.and(ended);
            }
            result
        })
    }

    /// Writes the file beside its place and moves it there, then removes the files that were unused for longest.
    pub(super) fn write(&self, arena: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let mut header = Vec::with_capacity(header_len(arena.len()));
        header.extend(self.fixed(arena.len()));
        for chunk in arena.chunks(CHUNK) {
            header.extend(xxh3_64(chunk).to_le_bytes());
        }
        header.resize(header_len(arena.len()), 0);
        // A crash may leave a file half written; its checksums tell.
        let temporary = self.path().with_extension(format!("{}.tmp", std::process::id()));
        let written = File::create(&temporary)
            .and_then(|mut file| file.write_all(&header).and_then(|()| file.write_all(arena)))
            .and_then(|()| fs::rename(&temporary, self.path()));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written?;
        self.remove_old()
    }

    fn remove_old(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let path = entry.path();
            let ends_in = |extension: &str| path.extension().is_some_and(|found| found == extension);
            if ends_in("tmp") {
                // One process owns the folder, and its own file has been moved: a crash left this one.
                fs::remove_file(&path)?;
            } else if ends_in("packed") && path != self.path() {
                let metadata = entry.metadata()?;
                files.push((metadata.accessed().or_else(|_| metadata.modified())?, path));
            }
        }
        files.sort();
        let surplus = (files.len() + 1).saturating_sub(FILES_MAX);
        files.into_iter().take(surplus).try_for_each(|(_, path)| fs::remove_file(path))
    }

    fn fixed(&self, body: usize) -> [u8; FIXED] {
        let mut out = [0; FIXED];
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&LAYOUT.to_le_bytes());
        out[16..32].copy_from_slice(&self.key.to_le_bytes());
        out[32..].copy_from_slice(&(body as u64).to_le_bytes());
        out
    }
}

fn header_len(body: usize) -> usize {
    (FIXED + 8 * body.div_ceil(CHUNK)).next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(folder: &Path, modified: u64) -> Packed {
        Packed::new(folder, SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(modified), &[])
    }

    fn arena() -> Vec<u8> {
        (0..CHUNK + 5000).map(|i| ((i * 31) >> 3) as u8).collect()
    }

    #[test]
    fn what_was_written_is_read_again_and_only_for_the_same_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, arena) = (packed(folder.path(), 1), arena());
        let mut got = vec![0; arena.len()];
        assert!(matches!(file.read(&mut got), Found::Nothing));
        file.write(&arena).expect("written");
        assert!(matches!(file.read(&mut got), Found::Whole));
        assert!(got == arena);
        assert!(matches!(packed(folder.path(), 2).read(&mut got), Found::Nothing));
        assert!(matches!(file.read(&mut got[..100]), Found::Damaged(_)), "another length is another layout");
    }

    #[test]
    fn any_flipped_byte_or_missing_end_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, arena) = (packed(folder.path(), 1), arena());
        file.write(&arena).expect("written");
        let whole = fs::read(file.path()).expect("the file");
        let body = header_len(arena.len());
        for at in [0, 9, 20, 39, 41, body, body + CHUNK, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(file.path(), bytes).expect("written");
            assert!(matches!(file.read(&mut vec![0; arena.len()]), Found::Damaged(_)), "byte {at}");
        }
        for len in [0, 30, body - 1, whole.len() - 1] {
            fs::write(file.path(), &whole[..len]).expect("written");
            assert!(matches!(file.read(&mut vec![0; arena.len()]), Found::Damaged(_)), "{len} bytes");
        }
    }

    #[test]
    fn only_the_last_few_files_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("left-by-a-crash.7.tmp"), b"half").expect("written");
        for modified in 0..FILES_MAX as u64 + 3 {
            packed(folder.path(), modified).write(b"weights").expect("written");
        }
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), FILES_MAX);
        let last = packed(folder.path(), FILES_MAX as u64 + 2);
        assert!(matches!(last.read(&mut [0; 7]), Found::Whole), "the file just written stays");
    }
}
