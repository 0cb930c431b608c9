//! The file of a sealed segment: written once, sealed in chunks, published whole or not at all.
//!
//! ```text
//! magic 8 "MRSEGM2\n" | file id 16 | chunk* ;  chunk = length 4 | sealed value
//! ```
//! Each chunk is sealed like a row whose key is `file id 16 || chunk number 8 || last 1`, so chunks
//! cannot be reordered, exchanged between files, or cut off at the end. The plain stream is
//! `rows 8 | id 8 * rows | time 8 * rows | group 4 * rows | groups | removed 8 | id 8 * removed | kind 1 |
//! index`. FAISS itself neither syncs nor checks what it writes and trusts every size it reads: it only
//! ever sees bytes that were authenticated here.

use super::facts::Facts;
use crate::backend::Cf;
use crate::memory::faiss::{FaissIndex, Kind};
use crate::memory::nsw::Graph;
use crate::seal::{TenantKeys, sync_folder};
use millrace_proto::digest;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: &[u8; 8] = b"MRSEGM2\n";
const CHUNK_BYTES: usize = 64 << 10;
/// A chunk with its seal; a longer length is not ours.
const SEALED_BYTES_MAX: usize = CHUNK_BYTES + 64;
/// Rows of one segment: bounds what a damaged count could ask for.
const ROWS_MAX: u64 = (1 << 31) - 1;

pub(crate) type FileId = [u8; 16];

/// How a segment is searched.
pub(crate) enum Index {
    /// It only tells what was removed.
    Empty,
    /// FAISS, eight bits a number, every row compared.
    Flat(FaissIndex),
    /// The graph over eight-bit rows.
    Graph(Graph),
    /// FAISS, an inverted file over eight-bit rows; the number of its lists.
    Lists(FaissIndex, usize),
}

const KIND_EMPTY: u8 = 0;
const KIND_FLAT: u8 = 1;
const KIND_GRAPH: u8 = 2;
const KIND_LISTS: u8 = 3;

impl Index {
    /// Length of the vectors.
    pub fn dim(&self) -> Option<usize> {
        match self {
            Self::Empty => None,
            Self::Flat(index) | Self::Lists(index, _) => Some(index.dim()),
            Self::Graph(graph) => Some(graph.dim()),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Empty => 0,
            Self::Flat(index) | Self::Lists(index, _) => index.len(),
            Self::Graph(graph) => graph.len(),
        }
    }

    /// How far a score is usually off for a query of length one; infinite where nothing is known.
    pub fn score_error(&self) -> f32 {
        match self {
            Self::Graph(graph) => graph.score_error(),
            _ => f32::INFINITY,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Empty => 0,
            // The library does not tell; these are the codes, and the number that each list keeps of a row.
            Self::Flat(index) => index.len() * index.dim(),
            Self::Lists(index, lists) => index.len() * (index.dim() + 8) + lists * index.dim() * 4,
            Self::Graph(graph) => graph.bytes(),
        }
    }
}

/// A segment in memory.
pub(crate) struct Segment {
    pub index: Index,
    /// Ascending; the place is the row in the index.
    pub ids: Vec<u64>,
    pub facts: Facts,
    /// Passages that older segments may hold and that are gone, ascending.
    pub removed: Vec<u64>,
}

impl Segment {
    /// The row of an id.
    pub fn row(&self, id: u64) -> Option<usize> {
        self.ids.binary_search(&id).ok()
    }

    pub fn bytes(&self) -> usize {
        self.index.bytes() + self.facts.bytes() + (self.ids.capacity() + self.removed.capacity()) * 8
    }
}

pub(crate) fn path_of(folder: &Path, file: &FileId) -> PathBuf {
    folder.join(format!("{}.seg", digest::hex(file)))
}

/// Writes a segment durably under its final name.
pub(crate) fn write(folder: &Path, file: &FileId, keys: &Arc<TenantKeys>, segment: &Segment) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let path = path_of(folder, file);
    let part = path.with_extension("part");
    let written = (|| {
        let out = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
        let mut sealed = Sealed::new(BufWriter::new(out), file, Arc::clone(keys))?;
        write_ids(&mut sealed, &segment.ids)?;
        segment.facts.write_to(&mut sealed)?;
        write_ids(&mut sealed, &segment.removed)?;
        let sealed = match &segment.index {
            Index::Empty => {
                sealed.write_all(&[KIND_EMPTY])?;
                sealed
            }
            Index::Flat(index) => {
                sealed.write_all(&[KIND_FLAT])?;
                index.write_to(sealed)?
            }
            Index::Graph(graph) => {
                sealed.write_all(&[KIND_GRAPH])?;
                graph.write_to(sealed)?
            }
            Index::Lists(index, lists) => {
                sealed.write_all(&[KIND_LISTS])?;
                sealed.write_all(&(*lists as u32).to_be_bytes())?;
                index.write_to(sealed)?
            }
        };
        let out = sealed.finish()?;
        out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&part, &path)?;
        sync_folder(&path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}

/// Reads and authenticates a segment.
pub(crate) fn read(folder: &Path, file: &FileId, keys: &Arc<TenantKeys>) -> io::Result<Segment> {
    let source = BufReader::new(File::open(path_of(folder, file))?);
    let mut opened = Opened::new(source, file, Arc::clone(keys))?;
    let ids = read_ids(&mut opened)?;
    let facts = Facts::read_from(&mut opened, ids.len())?;
    let removed = read_ids(&mut opened)?;
    let mut kind = [0; 1];
    opened.read_exact(&mut kind)?;
    let index = match kind[0] {
        KIND_EMPTY => Index::Empty,
        KIND_FLAT => Index::Flat(FaissIndex::read_from(opened)?),
        KIND_GRAPH => Index::Graph(Graph::read_from(opened, ids.len())?),
        KIND_LISTS => {
            let mut lists = [0; 4];
            opened.read_exact(&mut lists)?;
            let lists = u32::from_be_bytes(lists) as usize;
            let mut index = FaissIndex::read_from(opened)?;
            index.tune_search(Kind::IvfSq8(lists)).map_err(io::Error::other)?;
            Index::Lists(index, lists)
        }
        _ => return Err(damaged("its index is of an unknown kind")),
    };
    if index.len() != ids.len() {
        return Err(damaged("the index does not have one row for each id"));
    }
    Ok(Segment { index, ids, facts, removed })
}

fn write_ids(out: &mut impl Write, ids: &[u64]) -> io::Result<()> {
    out.write_all(&(ids.len() as u64).to_be_bytes())?;
    ids.iter().try_for_each(|id| out.write_all(&id.to_be_bytes()))
}

fn read_ids<R: Read>(opened: &mut Opened<R>) -> io::Result<Vec<u64>> {
    let count = opened.u64()?;
    if count > ROWS_MAX {
        return Err(damaged("the number of rows is out of range"));
    }
    let mut ids = Vec::new();
    for _ in 0..count {
        let id = opened.u64()?;
        if ids.last().is_some_and(|last| *last >= id) {
            return Err(damaged("the ids are not in order"));
        }
        ids.push(id);
    }
    Ok(ids)
}

/// A name that no other segment has. The space that a segment belongs to is bound by its manifest row and
/// by the tenant's key.
pub(crate) fn new_file_id() -> Result<FileId, getrandom::Error> {
    let mut file = FileId::default();
    getrandom::fill(&mut file)?;
    Ok(file)
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

fn chunk_key(file: &FileId, number: u64, last: bool) -> [u8; 25] {
    let mut key = [0; 25];
    key[..16].copy_from_slice(file);
    key[16..24].copy_from_slice(&number.to_be_bytes());
    key[24] = u8::from(last);
    key
}

struct Sealed<W: Write> {
    out: W,
    file: FileId,
    keys: Arc<TenantKeys>,
    plain: Vec<u8>,
    number: u64,
}

impl<W: Write> Sealed<W> {
    fn new(mut out: W, file: &FileId, keys: Arc<TenantKeys>) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        out.write_all(file)?;
        Ok(Self { out, file: *file, keys, plain: Vec::with_capacity(CHUNK_BYTES), number: 0 })
    }

    fn chunk(&mut self, last: bool) -> io::Result<()> {
        let key = chunk_key(&self.file, self.number, last);
        let sealed = self.keys.seal(Cf::Space, &key, &self.plain);
        let length = u32::try_from(sealed.len()).expect("a chunk is far below 4 GiB");
        self.out.write_all(&length.to_be_bytes())?;
        self.out.write_all(&sealed)?;
        self.plain.clear();
        self.number += 1;
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        self.chunk(true)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK_BYTES - self.plain.len());
        self.plain.extend_from_slice(&bytes[..taken]);
        if self.plain.len() == CHUNK_BYTES {
            self.chunk(false)?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Opened<R: Read> {
    source: R,
    file: FileId,
    keys: Arc<TenantKeys>,
    plain: Vec<u8>,
    at: usize,
    number: u64,
    last: bool,
}

impl<R: Read> Opened<R> {
    fn new(mut source: R, file: &FileId, keys: Arc<TenantKeys>) -> io::Result<Self> {
        let mut head = [0; 24];
        source.read_exact(&mut head)?;
        if head[..8] != MAGIC[..] || head[8..] != file[..] {
            return Err(damaged("it is not the segment that the manifest names"));
        }
        Ok(Self { source, file: *file, keys, plain: Vec::new(), at: 0, number: 0, last: false })
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        let mut length = [0; 4];
        self.source.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if length > SEALED_BYTES_MAX {
            return Err(damaged("a chunk is longer than any that is written"));
        }
        let mut sealed = vec![0; length];
        self.source.read_exact(&mut sealed)?;
        // Only the last chunk may be shorter than the rest, so its size tells which kind to expect first.
        let try_open =
            |last: bool| self.keys.open(Cf::Space, &chunk_key(&self.file, self.number, last), sealed.clone());
        (self.plain, self.last) = match try_open(false) {
            Ok(plain) => (plain, false),
            Err(_) => (try_open(true).map_err(|_| damaged("a chunk is not authentic"))?, true),
        };
        self.at = 0;
        self.number += 1;
        Ok(())
    }

    fn u64(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.read_exact(&mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.at == self.plain.len() {
            if self.last || out.is_empty() {
                return Ok(0);
            }
            self.next_chunk()?;
        }
        let taken = out.len().min(self.plain.len() - self.at);
        out[..taken].copy_from_slice(&self.plain[self.at..self.at + taken]);
        self.at += taken;
        Ok(taken)
    }
}
