//! Reader of safetensors files: a length, a JSON table of tensors, raw numbers.
//!
//! The file is outside data. The table's size is bounded before it is read, and every tensor's range must lie in the
//! file, fit its shape and touch no other tensor before one number is used.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::Deserialize;

/// Largest table; the format itself allows 100 MB.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// Numbers that are read at a time.
const PART: usize = 16 << 10;

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SafetensorsError {
    /// The file cannot be read.
    #[error("cannot read the file")]
    Io(#[from] std::io::Error),
    /// The file is not what it claims to be.
    #[error("the file is damaged: {0}; fetch it again")]
    Damaged(String),
    /// A tensor that is needed is missing.
    #[error("the file has no tensor {0:?}; it belongs to another kind of model")]
    Missing(String),
    /// A tensor has another shape or type than the configuration says.
    #[error("tensor {name:?} is {found}, expected {expected}; configuration and weights do not belong together")]
    Shape {
        /// The tensor.
        name: String,
        /// What the file says.
        found: String,
        /// What was expected.
        expected: String,
    },
}

#[derive(Clone, Debug, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// An opened file.
#[derive(Debug)]
pub struct Safetensors<R> {
    source: R,
    data_start: u64,
    entries: HashMap<String, Entry>,
}

impl Safetensors<File> {
    /// Opens a file and checks its table.
    pub fn open(path: &Path) -> Result<Self, SafetensorsError> {
        Self::new(File::open(path)?)
    }
}

impl<R: Read + Seek> Safetensors<R> {
    /// Checks the table of a file.
    pub fn new(mut source: R) -> Result<Self, SafetensorsError> {
        let length = source.seek(SeekFrom::End(0))?;
        source.seek(SeekFrom::Start(0))?;
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(damaged(format!("it has {length} bytes")));
        }
        source.read_exact(&mut prefix)?;
        let header = u64::from_le_bytes(prefix);
        if header > HEADER_BYTES_MAX || header > length - 8 {
            return Err(damaged(format!("its table should have {header} bytes")));
        }
        let mut table = vec![0; header as usize];
        source.read_exact(&mut table)?;
        let raw: HashMap<String, serde_json::Value> =
            serde_json::from_slice(&table).map_err(|error| damaged(format!("its table is not JSON: {error}")))?;
        let mut entries = HashMap::with_capacity(raw.len());
        for (name, value) in raw {
            if name == "__metadata__" {
                continue;
            }
            let entry: Entry = serde_json::from_value(value).map_err(|e| damaged(format!("tensor {name:?}: {e}")))?;
            entries.insert(name, entry);
        }
        let data_start = 8 + header;
        check_ranges(&entries, length - data_start)?;
        Ok(Self { source, data_start, entries })
    }

    /// Whether the file has this tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The numbers of a tensor of exactly this shape, row after row.
    pub fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, SafetensorsError> {
        self.read_as(name, shape, 0.0, |to, from| to.copy_from_slice(from))
    }

    /// As [`Safetensors::read`], rounded to half precision without holding the tensor in full precision; what does not
    /// fit becomes infinite.
    pub fn read_half(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f16>, SafetensorsError> {
        self.read_as(name, shape, f16::ZERO, |to, from| to.convert_from_f32_slice(from))
    }

    fn read_as<T: Copy>(
        &mut self,
        name: &str,
        shape: &[usize],
        zero: T,
        put: impl Fn(&mut [T], &[f32]),
    ) -> Result<Vec<T>, SafetensorsError> {
        let tensor = self.locate(name, shape)?;
        let mut out = vec![zero; tensor.numbers];
        let mut rest = &mut out[..];
        self.read_parts(&tensor, |part| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(part.len());
            put(head, part);
            rest = tail;
        })?;
        Ok(out)
    }

    /// Finds a tensor of exactly this shape; what it says of its size was checked against the file.
    fn locate(&self, name: &str, shape: &[usize]) -> Result<Located, SafetensorsError> {
        let entry = self.entries.get(name).ok_or_else(|| SafetensorsError::Missing(name.to_owned()))?;
        let same = entry.shape.len() == shape.len() && entry.shape.iter().zip(shape).all(|(a, b)| *a == *b as u64);
        let decode: Option<Decode> = match entry.dtype.as_str() {
            "F32" => Some(|bytes, out| out.extend(bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)))),
            "F16" => Some(|bytes, out| {
                out.extend(bytes.as_chunks().0.iter().map(|chunk| f16::from_le_bytes(*chunk).to_f32()));
            }),
            "BF16" => Some(|bytes, out| {
                out.extend(bytes.as_chunks().0.iter().map(|chunk| bf16::from_le_bytes(*chunk).to_f32()));
            }),
            _ => None,
        };
        let (true, Some(decode), Some(width)) = (same, decode, width(&entry.dtype)) else {
            let found = format!("{} {:?}", entry.dtype, entry.shape);
            return Err(SafetensorsError::Shape { name: name.to_owned(), found, expected: format!("F32 {shape:?}") });
        };
        let [start, end] = entry.data_offsets;
        let (width, numbers) = (width as usize, ((end - start) / width) as usize);
        Ok(Located { start: self.data_start + start, numbers, width, decode })
    }

    /// Gives the numbers of a tensor to `take`, a part that fits the cache at a time.
    fn read_parts(&mut self, tensor: &Located, mut take: impl FnMut(&[f32])) -> Result<(), SafetensorsError> {
        self.source.seek(SeekFrom::Start(tensor.start))?;
        let (mut bytes, mut part) = (vec![0; PART * tensor.width], Vec::with_capacity(PART));
        for from in (0..tensor.numbers).step_by(PART) {
            let bytes = &mut bytes[..PART.min(tensor.numbers - from) * tensor.width];
            self.source.read_exact(bytes)?;
            part.clear();
            (tensor.decode)(bytes, &mut part);
            take(&part);
        }
        Ok(())
    }
}

/// A tensor whose type and shape are those that were asked for.
struct Located {
    /// First byte in the file.
    start: u64,
    numbers: usize,
    /// Bytes of a number.
    width: usize,
    decode: Decode,
}

/// Appends the numbers that some bytes hold.
type Decode = fn(&[u8], &mut Vec<f32>);

fn damaged(what: String) -> SafetensorsError {
    SafetensorsError::Damaged(what)
}

/// Bytes per number of the types whose size can be checked.
fn width(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F32" => 4,
        "F16" | "BF16" => 2,
        "F64" => 8,
        _ => return None,
    })
}

fn check_ranges(entries: &HashMap<String, Entry>, length: u64) -> Result<(), SafetensorsError> {
    let mut ranges = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        let [start, end] = entry.data_offsets;
        if start > end || end > length {
            return Err(damaged(format!("tensor {name:?} lies at {start}..{end} of {length} bytes")));
        }
        let numbers = entry.shape.iter().try_fold(1_u64, |n, side| n.checked_mul(*side));
        let Some(numbers) = numbers else {
            return Err(damaged(format!("tensor {name:?} has the impossible shape {:?}", entry.shape)));
        };
        if let Some(width) = width(&entry.dtype)
            && numbers.checked_mul(width) != Some(end - start)
        {
            return Err(damaged(format!("tensor {name:?} has {} bytes for shape {:?}", end - start, entry.shape)));
        }
        ranges.push((start, end, name));
    }
    ranges.sort_unstable();
    match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(damaged(format!("tensors {:?} and {:?} overlap", pair[0].2, pair[1].2))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn file(table: &str, data: &[u8]) -> Vec<u8> {
        [&(table.len() as u64).to_le_bytes(), table.as_bytes(), data].concat()
    }

    fn open(bytes: Vec<u8>) -> Result<Safetensors<Cursor<Vec<u8>>>, SafetensorsError> {
        Safetensors::new(Cursor::new(bytes))
    }

    #[test]
    fn reads_every_float_type() {
        let table = r#"{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[1],"data_offsets":[8,10]},
                       "c":{"dtype":"BF16","shape":[1],"data_offsets":[10,12]},"__metadata__":{"format":"pt"}}"#;
        let data = [
            &1.5_f32.to_le_bytes()[..],
            &(-2.0_f32).to_le_bytes(),
            &0x3E00_u16.to_le_bytes(),
            &0x4000_u16.to_le_bytes(),
        ];
        let mut file = open(file(table, &data.concat())).expect("valid");
        assert_eq!(file.read("a", &[1, 2]).expect("a"), [1.5, -2.0]);
        assert_eq!(file.read("b", &[1]).expect("b"), [1.5]);
        assert_eq!(file.read("c", &[1]).expect("c"), [2.0]);
        assert!(matches!(file.read("a", &[2, 1]), Err(SafetensorsError::Shape { .. })));
        assert!(matches!(file.read("z", &[1]), Err(SafetensorsError::Missing(_))));
    }

    #[test]
    fn refuses_every_kind_of_damage() {
        let bad = |table: &str| open(file(table, &[0; 8])).expect_err(table).to_string();
        assert!(bad(r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,12]}}"#).contains("of 8 bytes"));
        assert!(bad(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}"#).contains("8 bytes for shape"));
        assert!(bad(r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#).contains("4..0"));
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        assert!(bad(overlap).contains("overlap"));
        let huge = r#"{"a":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,8]}}"#;
        assert!(bad(huge).contains("impossible shape"));
        assert!(bad("{").contains("not JSON"));
        assert!(open(vec![1, 2]).is_err());
        assert!(open(u64::MAX.to_le_bytes().to_vec()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), header in 0_u64..200) {
            let _ = open(bytes.clone());
            if bytes.len() >= 8 {
                bytes[..8].copy_from_slice(&header.to_le_bytes());
                let _ = open(bytes);
            }
        }

        #[test]
        fn no_table_makes_it_panic(start in any::<u64>(), end in any::<u64>(), side in any::<u64>()) {
            let table = format!(r#"{{"a":{{"dtype":"F32","shape":[{side}],"data_offsets":[{start},{end}]}}}}"#);
            if let Ok(mut file) = open(file(&table, &[0; 16])) {
                let _ = file.read("a", &[side as usize]);
            }
        }
    }
}
