//! Field sections without a dynamic table (RFC 9204 section 4.5).

use super::huffman;
use super::static_table::STATIC_TABLE;
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

/// What each field counts for beside its bytes (RFC 9114 section 4.2.2).
pub(super) const FIELD_OVERHEAD_BYTES: usize = 32;

/// Fields of most requests of programs.
const FIELDS_USUAL: usize = 16;

/// Longest decoded field section, counted as the RFC does.
pub(super) const SECTION_BYTES_MAX: usize = HEAD_BYTES_MAX + FIELD_OVERHEAD_BYTES * HEADERS_MAX;

/// A decoded field section: all bytes in one piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    bytes: Vec<u8>,
    /// End of the name and end of the value; the next name starts there.
    ends: Vec<(usize, usize)>,
}

/// Why a section was not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldsError {
    /// Not QPACK, or it refers to what does not exist. The connection is lost.
    #[error("the field section cannot be decompressed: {0}")]
    Malformed(&'static str),
    /// Longer than was announced.
    #[error("the field section is longer than announced")]
    TooLong,
}

use FieldsError::{Malformed, TooLong};

impl Fields {
    /// Decodes a section.
    pub fn decode(section: &[u8]) -> Result<Self, FieldsError> {
        let mut cursor = Cursor(section);
        if cursor.integer(8)? != 0 {
            return Err(Malformed("it needs dynamic entries"));
        }
        let negative = cursor.peek()? & 0x80 != 0;
        cursor.integer(7)?;
        if negative {
            return Err(Malformed("its base lies before the table"));
        }
        let mut fields = Self::default();
        fields.bytes.reserve(section.len() * 2);
        fields.ends.reserve(FIELDS_USUAL);
        while !cursor.0.is_empty() {
            fields.field(&mut cursor)?;
            if fields.ends.len() > HEADERS_MAX || fields.size() > SECTION_BYTES_MAX {
                return Err(TooLong);
            }
        }
        Ok(fields)
    }

    fn field(&mut self, cursor: &mut Cursor<'_>) -> Result<(), FieldsError> {
        let first = cursor.peek()?;
        let name_end;
        if first & 0x80 != 0 {
            let (name, value) = entry(first & 0x40 != 0, cursor.integer(6)?)?;
            self.bytes.extend_from_slice(name.as_bytes());
            name_end = self.bytes.len();
            self.bytes.extend_from_slice(value.as_bytes());
        } else {
            if first & 0x40 != 0 {
                let (name, _) = entry(first & 0x10 != 0, cursor.integer(4)?)?;
                self.bytes.extend_from_slice(name.as_bytes());
            } else if first & 0x20 != 0 {
                cursor.string(3, &mut self.bytes)?;
            } else {
                return Err(Malformed("it names a dynamic entry behind the base"));
            }
            name_end = self.bytes.len();
            cursor.string(7, &mut self.bytes)?;
        }
        self.ends.push((name_end, self.bytes.len()));
        Ok(())
    }

    /// Size as the RFC counts it.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.ends.len() * FIELD_OVERHEAD_BYTES
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(name_end, end)| {
            let field = (&self.bytes[start..name_end], &self.bytes[name_end..end]);
            start = end;
            field
        })
    }
}

fn entry(is_static: bool, index: u64) -> Result<(&'static str, &'static str), FieldsError> {
    if !is_static {
        return Err(Malformed("it names a dynamic entry"));
    }
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    STATIC_TABLE.get(index).copied().ok_or(Malformed("it names a static entry that does not exist"))
}

struct Cursor<'a>(&'a [u8]);

const CUT: FieldsError = Malformed("it ends inside a field");

impl<'a> Cursor<'a> {
    fn peek(&self) -> Result<u8, FieldsError> {
        self.0.first().copied().ok_or(CUT)
    }

    /// An integer with a prefix of `bits` (RFC 7541 section 5.1).
    fn integer(&mut self, bits: u8) -> Result<u64, FieldsError> {
        match prefixed(self.0, bits) {
            Prefixed::Value(value, used) => {
                self.0 = &self.0[used..];
                Ok(value)
            }
            Prefixed::Incomplete => Err(CUT),
            Prefixed::TooLarge => Err(Malformed("an integer has more than 62 bits")),
        }
    }

    /// Appends a string whose length has a prefix of `bits`, with the Huffman flag before it.
    fn string(&mut self, bits: u8, out: &mut Vec<u8>) -> Result<(), FieldsError> {
        let coded = self.peek()? >> bits & 1 == 1;
        let length = usize::try_from(self.integer(bits)?).unwrap_or(usize::MAX);
        if length > self.0.len() {
            return Err(CUT);
        }
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        if !coded {
            out.extend_from_slice(text);
        } else if !huffman::decode(text, out) {
            return Err(Malformed("a string is not of the Huffman code"));
        }
        // The code of a byte has at least five bits, so a string grows by 8/5 at most; still bounded at once.
        if out.len() > SECTION_BYTES_MAX { Err(TooLong) } else { Ok(()) }
    }
}

/// An integer with a prefix.
pub(super) enum Prefixed {
    /// The value and how many bytes it took.
    Value(u64, usize),
    /// More bytes are needed.
    Incomplete,
    /// More than 62 bits.
    TooLarge,
}

/// Reads an integer with a prefix of `bits`.
pub(super) fn prefixed(bytes: &[u8], bits: u8) -> Prefixed {
    let Some(&first) = bytes.first() else { return Prefixed::Incomplete };
    let full = (1u64 << bits) - 1;
    let mut value = u64::from(first) & full;
    if value < full {
        return Prefixed::Value(value, 1);
    }
    for (at, &byte) in bytes.iter().enumerate().skip(1) {
        let shift = (at - 1) * 7;
        if shift > 56 {
            return Prefixed::TooLarge;
        }
        value += u64::from(byte & 0x7f) << shift;
        if value >= 1 << 62 {
            return Prefixed::TooLarge;
        }
        if byte & 0x80 == 0 {
            return Prefixed::Value(value, at + 1);
        }
    }
    Prefixed::Incomplete
}

/// Appends an integer with a prefix of `bits` under the bits of `pattern`.
pub(super) fn put_prefixed(out: &mut Vec<u8>, pattern: u8, bits: u8, value: usize) {
    let full = (1usize << bits) - 1;
    if value < full {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | full as u8);
    let mut rest = value - full;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
