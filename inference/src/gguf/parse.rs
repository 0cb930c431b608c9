//! Structure of the file: header, metadata, tensor directory, data section.
//!
//! | part | content |
//! |---|---|
//! | header | magic `GGUF`, version u32, tensor count u64, metadata count u64 |
//! | metadata | key string, kind u32, value; strings are u64 length and bytes; arrays are kind u32, count u64, values |
//! | directory | name string, dimension count u32, dimensions u64 (fastest first), type u32, offset u64 |
//! | data | starts at the next multiple of `general.alignment` (default 32); offsets count from there |

use std::collections::HashMap;
use std::ops::Range;

use super::cursor::Cursor;
use super::value::{Kind, Stored};
use super::{GgufError, TensorType};

/// Bounds on what a file may state. The largest public models stay far below each of them.
const METADATA_MAX: u64 = 65_536;
const TENSORS_MAX: u64 = 65_536;
const KEY_BYTES_MAX: u64 = 65_535;
const STRING_BYTES_MAX: u64 = 16 << 20;
const ARRAY_ELEMENTS_MAX: u64 = 16 << 20;
const DIMENSIONS_MAX: u32 = 4;
const ALIGNMENT_DEFAULT: u64 = 32;
const ALIGNMENT_MAX: u64 = 1 << 20;
/// Smallest possible metadata entry (key length, one key byte, kind, one value byte): bounds counts by the file.
const METADATA_BYTES_MIN: u64 = 14;
/// Smallest possible directory entry (name length, one name byte, dimension count, one dimension, type, offset).
const TENSOR_BYTES_MIN: u64 = 33;

pub(super) struct TensorEntry {
    pub(super) name: String,
    pub(super) kind: TensorType,
    pub(super) columns: usize,
    pub(super) rows: usize,
    pub(super) range: Range<usize>,
}

pub(super) struct Layout {
    pub(super) version: u32,
    pub(super) metadata: HashMap<String, Stored>,
    pub(super) tensors: Vec<TensorEntry>,
    pub(super) tensor_index: HashMap<String, usize>,
}

pub(super) fn parse(bytes: &[u8]) -> Result<Layout, GgufError> {
    let mut cursor = Cursor::new(bytes);
    let magic = cursor.take(4, "the magic number")?;
    if magic != b"GGUF" {
        return Err(GgufError::BadMagic { found: magic.try_into().expect("four bytes were taken") });
    }
    let version = cursor.u32("the version")?;
    if !matches!(version, 2 | 3) {
        return Err(GgufError::Version { version, big_endian: matches!(version.swap_bytes(), 2 | 3) });
    }
    let tensor_count = cursor.u64_at_most("the number of tensors", TENSORS_MAX)?;
    let metadata_count = cursor.u64_at_most("the number of metadata keys", METADATA_MAX)?;
    fits(&cursor, metadata_count, METADATA_BYTES_MIN, "the metadata")?;
    let metadata = parse_metadata(&mut cursor, metadata_count)?;
    fits(&cursor, tensor_count, TENSOR_BYTES_MIN, "the tensor directory")?;
    let alignment = alignment(&metadata, bytes)?;
    let tensors = parse_tensors(&mut cursor, tensor_count, alignment, bytes.len())?;
    let tensor_index = tensors.iter().enumerate().map(|(at, tensor)| (tensor.name.clone(), at)).collect();
    Ok(Layout { version, metadata, tensors, tensor_index })
}

/// Refuses a count that the rest of the file cannot hold, before anything is reserved for it.
fn fits(cursor: &Cursor<'_>, count: u64, bytes_min: u64, what: &'static str) -> Result<(), GgufError> {
    let needed = count * bytes_min; // both factors are bounded by constants above
    if needed <= cursor.remaining() as u64 {
        return Ok(());
    }
    let offset = cursor.position() as u64;
    Err(GgufError::Truncated { what, offset, needed, len: offset + cursor.remaining() as u64 })
}

fn parse_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<HashMap<String, Stored>, GgufError> {
    let mut metadata = HashMap::with_capacity(count as usize);
    for _ in 0..count {
        let (_, key) = cursor.string("a metadata key", KEY_BYTES_MAX)?;
        let kind = kind(cursor)?;
        let stored = match kind {
            Kind::Str => {
                let (at, text) = cursor.string("a metadata string", STRING_BYTES_MAX)?;
                Stored::Str { range: at..at + text.len() }
            }
            Kind::Array => parse_array(cursor)?,
            _ => {
                let at = cursor.position();
                let width = kind.width().expect("scalars have a width");
                cursor.take(width as u64, "a metadata value")?;
                Stored::Scalar { kind, range: at..at + width }
            }
        };
        if metadata.insert(key.to_owned(), stored).is_some() {
            return Err(GgufError::Duplicate { name: key.to_owned() });
        }
    }
    Ok(metadata)
}

fn kind(cursor: &mut Cursor<'_>) -> Result<Kind, GgufError> {
    let offset = cursor.position() as u64;
    let number = cursor.u32("a metadata kind")?;
    Kind::from_number(number).ok_or(GgufError::Malformed { what: "an unknown kind of metadata value", offset })
}

fn parse_array(cursor: &mut Cursor<'_>) -> Result<Stored, GgufError> {
    let kind = kind(cursor)?;
    let len = cursor.u64_at_most("an array length", ARRAY_ELEMENTS_MAX)?;
    let start = cursor.position();
    match kind.width() {
        Some(width) => {
            cursor.take(len * width as u64, "an array")?;
        }
        None if kind == Kind::Str => {
            for _ in 0..len {
                cursor.string("a string of an array", STRING_BYTES_MAX)?;
            }
        }
        None => return Err(GgufError::Malformed { what: "an array of arrays", offset: start as u64 }),
    }
    Ok(Stored::Array { kind, len: len as usize, range: start..cursor.position() })
}

fn alignment(metadata: &HashMap<String, Stored>, bytes: &[u8]) -> Result<u64, GgufError> {
    const KEY: &str = "general.alignment";
    let Some(value) = metadata.get(KEY).map(|stored| stored.view(bytes)) else { return Ok(ALIGNMENT_DEFAULT) };
    let good = |&value: &u64| value.is_power_of_two() && (8..=ALIGNMENT_MAX).contains(&value);
    value.as_u64().filter(good).ok_or(GgufError::wrong_kind(KEY, "a power of two from 8 to 1048576", "another value"))
}

struct Header<'a> {
    name: &'a str,
    kind: TensorType,
    columns: u64,
    rows: u64,
    offset: u64,
    bytes: u64,
}

fn parse_tensors(
    cursor: &mut Cursor<'_>,
    count: u64,
    alignment: u64,
    file_len: usize,
) -> Result<Vec<TensorEntry>, GgufError> {
    let headers = (0..count).map(|_| parse_header(cursor, alignment)).collect::<Result<Vec<_>, _>>()?;
    // `position` fits in the file, so rounding it up to an alignment of at most 1 MiB cannot overflow.
    let data = (cursor.position() as u64).next_multiple_of(alignment);
    let mut tensors = Vec::with_capacity(headers.len());
    for header in headers {
        let bad = |what: String| GgufError::Tensor { name: header.name.to_owned(), what };
        let start = data.checked_add(header.offset).ok_or_else(|| bad("its offset overflows".into()))?;
        let end = start.checked_add(header.bytes).ok_or_else(|| bad("its size overflows".into()))?;
        if end > file_len as u64 {
            return Err(bad(format!("it ends at byte {end}, the file has {file_len}; download it again")));
        }
        tensors.push(TensorEntry {
            name: header.name.to_owned(),
            kind: header.kind,
            columns: header.columns as usize,
            rows: header.rows as usize,
            range: start as usize..end as usize,
        });
    }
    check_distinct(&tensors)?;
    Ok(tensors)
}

fn parse_header<'a>(cursor: &mut Cursor<'a>, alignment: u64) -> Result<Header<'a>, GgufError> {
    let (_, name) = cursor.string("a tensor name", KEY_BYTES_MAX)?;
    let bad = |what: String| GgufError::Tensor { name: name.to_owned(), what };
    let dimensions = cursor.u32("a dimension count")?;
    if !(1..=DIMENSIONS_MAX).contains(&dimensions) {
        return Err(bad(format!("it has {dimensions} dimensions, 1 to {DIMENSIONS_MAX} are possible")));
    }
    let columns = cursor.u64("a dimension")?;
    let mut rows = 1u64;
    for _ in 1..dimensions {
        let dimension = cursor.u64("a dimension")?;
        rows = rows.checked_mul(dimension).ok_or_else(|| bad("its shape overflows".into()))?;
    }
    if columns == 0 || rows == 0 {
        return Err(bad("a dimension is zero".into()));
    }
    let number = cursor.u32("a tensor type")?;
    let kind = TensorType::from_number(number).ok_or_else(|| bad(format!("its type number {number} is unknown")))?;
    if columns % kind.block_elements() as u64 != 0 {
        return Err(bad(format!("rows of {columns} do not divide into {kind:?} blocks of {}", kind.block_elements())));
    }
    let offset = cursor.u64("a tensor offset")?;
    if offset % alignment != 0 {
        return Err(bad(format!("its offset {offset} is not a multiple of the alignment {alignment}")));
    }
    let bytes = (columns / kind.block_elements() as u64)
        .checked_mul(rows)
        .and_then(|blocks| blocks.checked_mul(kind.block_bytes() as u64))
        .ok_or_else(|| bad("its size overflows".into()))?;
    Ok(Header { name, kind, columns, rows, offset, bytes })
}

/// No two tensors may share a name or a byte.
fn check_distinct(tensors: &[TensorEntry]) -> Result<(), GgufError> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(GgufError::Duplicate { name: pair[0].to_owned() });
    }
    let mut places: Vec<&TensorEntry> = tensors.iter().collect();
    places.sort_unstable_by_key(|tensor| tensor.range.start);
    match places.windows(2).find(|pair| pair[0].range.end > pair[1].range.start) {
        None => Ok(()),
        Some(pair) => {
            let what = format!("it overlaps tensor {:?}", pair[0].name);
            Err(GgufError::Tensor { name: pair[1].name.clone(), what })
        }
    }
}
