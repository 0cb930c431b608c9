//! Reader of GGUF model files (versions 2 and 3, little endian).
//!
//! A model file comes from outside, so nothing in it is believed: every count has a cap that is checked before
//! anything is allocated, every offset is added with overflow checks and compared with the length of the file, names
//! are unique, and tensors neither overlap nor reach past the end. The reader keeps the file mapped and hands out
//! views into the mapping; it never copies metadata.
//!
//! Main types: [`Gguf`] (the file), [`Value`] and [`ArrayView`] (metadata), [`TensorView`] (weights).

mod cursor;
mod error;
mod map;
mod parse;
mod types;
mod value;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;

pub use error::GgufError;
pub use types::TensorType;
pub use value::{ArrayView, Value};

use map::FileBytes;
use parse::{Layout, TensorEntry};

/// An opened model file: metadata and tensors, all of them checked.
pub struct Gguf {
    bytes: FileBytes,
    version: u32,
    metadata: HashMap<String, value::Stored>,
    tensors: Vec<TensorEntry>,
    tensor_index: HashMap<String, usize>,
}

/// One tensor: its shape and the bytes that hold it.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Name as stored, for example `blk.0.attn_q.weight`.
    pub name: &'a str,
    /// Storage format.
    pub kind: TensorType,
    /// Elements per row: the fastest dimension.
    pub columns: usize,
    /// Product of all other dimensions.
    pub rows: usize,
    /// Raw blocks, row after row.
    pub bytes: &'a [u8],
}

impl Gguf {
    /// Maps a file and checks its structure.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        Self::from_file_bytes(FileBytes::map(path)?)
    }

    /// Reads a file that is already in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        Self::from_file_bytes(FileBytes::owned(bytes))
    }

    fn from_file_bytes(bytes: FileBytes) -> Result<Gguf, GgufError> {
        let Layout { version, metadata, tensors, tensor_index } = parse::parse(bytes.as_slice())?;
        Ok(Gguf { bytes, version, metadata, tensors, tensor_index })
    }

    /// GGUF version of the file: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes of the whole file.
    pub fn len_bytes(&self) -> usize {
        self.bytes.as_slice().len()
    }

    /// Metadata value of `key`.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.metadata.get(key).map(|stored| stored.view(self.bytes.as_slice()))
    }

    /// All metadata keys, in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys().map(String::as_str)
    }

    /// Metadata string of `key`.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        match self.require(key)? {
            Value::Str(text) => Ok(text),
            other => Err(GgufError::wrong_kind(key, "a string", other.kind_name())),
        }
    }

    /// Non-negative integer of `key`, whatever integer width the file used.
    pub fn u64(&self, key: &str) -> Result<u64, GgufError> {
        let value = self.require(key)?;
        value.as_u64().ok_or_else(|| GgufError::wrong_kind(key, "a non-negative integer", value.kind_name()))
    }

    /// Like [`Gguf::u64`], as `u32`.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        u32::try_from(self.u64(key)?)
            .map_err(|_| GgufError::wrong_kind(key, "an integer below 2^32", "a larger integer"))
    }

    /// Floating-point number of `key`.
    pub fn f64(&self, key: &str) -> Result<f64, GgufError> {
        let value = self.require(key)?;
        value.as_f64().ok_or_else(|| GgufError::wrong_kind(key, "a number", value.kind_name()))
    }

    /// Boolean of `key`.
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        match self.require(key)? {
            Value::Bool(flag) => Ok(flag),
            other => Err(GgufError::wrong_kind(key, "a boolean", other.kind_name())),
        }
    }

    /// Array of `key`.
    pub fn array(&self, key: &str) -> Result<ArrayView<'_>, GgufError> {
        match self.require(key)? {
            Value::Array(array) => Ok(array),
            other => Err(GgufError::wrong_kind(key, "an array", other.kind_name())),
        }
    }

    fn require(&self, key: &str) -> Result<Value<'_>, GgufError> {
        self.get(key).ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
    }

    /// Number of tensors.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Tensors in file order.
    pub fn tensors(&self) -> impl Iterator<Item = TensorView<'_>> {
        self.tensors.iter().map(|entry| self.view(entry))
    }

    /// The tensor called `name`.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.tensor_index.get(name).map(|&at| self.view(&self.tensors[at]))
    }

    /// The tensor called `name`, or an error that names it.
    pub fn require_tensor(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        self.tensor(name).ok_or_else(|| GgufError::MissingTensor { name: name.to_owned() })
    }

    /// Tells the system that the mapped pages are not needed now; they are read again on demand.
    pub fn release_pages(&self) {
        self.bytes.release_pages();
    }

    fn view<'a>(&'a self, entry: &'a TensorEntry) -> TensorView<'a> {
        TensorView {
            name: &entry.name,
            kind: entry.kind,
            columns: entry.columns,
            rows: entry.rows,
            bytes: &self.bytes.as_slice()[entry.range.clone()],
        }
    }
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("version", &self.version)
            .field("keys", &self.metadata.len())
            .field("tensors", &self.tensors.len())
            .finish_non_exhaustive()
    }
}
