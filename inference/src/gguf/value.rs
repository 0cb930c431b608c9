//! Metadata values: where they are stored, and views of them.

use std::ops::Range;

/// A metadata value, borrowed from the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// A 32-bit or 64-bit float.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// Text.
    Str(&'a str),
    /// A list of values of one kind.
    Array(ArrayView<'a>),
}

impl Value<'_> {
    pub(super) fn kind_name(&self) -> &'static str {
        match self {
            Value::Unsigned(_) => "an unsigned integer",
            Value::Signed(_) => "a signed integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::Str(_) => "a string",
            Value::Array(_) => "an array",
        }
    }

    /// The value as a non-negative integer.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::Unsigned(value) => Some(value),
            Value::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// The value as a number.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::Unsigned(value) => Some(value as f64),
            Value::Signed(value) => Some(value as f64),
            Value::Float(value) => Some(value),
            _ => None,
        }
    }
}

/// Kinds of one element, by their number in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Str = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Kind {
    pub(super) fn from_number(number: u32) -> Option<Kind> {
        use Kind::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, Str, Array, U64, I64, F64].into_iter().find(|&k| k as u32 == number)
    }

    /// Bytes of one value; `None` where the length varies.
    pub(super) fn width(self) -> Option<usize> {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => Some(1),
            Kind::U16 | Kind::I16 => Some(2),
            Kind::U32 | Kind::I32 | Kind::F32 => Some(4),
            Kind::U64 | Kind::I64 | Kind::F64 => Some(8),
            Kind::Str | Kind::Array => None,
        }
    }

    /// Reads a value of fixed width from exactly `width()` bytes.
    fn read(self, bytes: &[u8]) -> Value<'static> {
        let mut word = [0u8; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let raw = u64::from_le_bytes(word);
        match self {
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 => Value::Unsigned(raw),
            Kind::I8 => Value::Signed(i64::from(raw as u8 as i8)),
            Kind::I16 => Value::Signed(i64::from(raw as u16 as i16)),
            Kind::I32 => Value::Signed(i64::from(raw as u32 as i32)),
            Kind::I64 => Value::Signed(raw as i64),
            Kind::F32 => Value::Float(f64::from(f32::from_bits(raw as u32))),
            Kind::F64 => Value::Float(f64::from_bits(raw)),
            Kind::Bool => Value::Bool(raw != 0),
            Kind::Str | Kind::Array => unreachable!("only kinds of fixed width are read here"),
        }
    }
}

/// Where a checked value lies in the file.
#[derive(Clone, Debug)]
pub(super) enum Stored {
    Scalar { kind: Kind, range: Range<usize> },
    Str { range: Range<usize> },
    Array { kind: Kind, len: usize, range: Range<usize> },
}

impl Stored {
    pub(super) fn view<'a>(&self, file: &'a [u8]) -> Value<'a> {
        match self {
            Stored::Scalar { kind, range } => kind.read(&file[range.clone()]),
            Stored::Str { range } => Value::Str(text(&file[range.clone()])),
            Stored::Array { kind, len, range } => {
                Value::Array(ArrayView { kind: *kind, len: *len, bytes: &file[range.clone()] })
            }
        }
    }
}

/// Strings were checked when the file was parsed; a file that changed underneath reads as empty instead of panicking.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// A metadata array, borrowed from the file. Arrays of arrays are not kept (no model key uses them).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArrayView<'a> {
    kind: Kind,
    len: usize,
    bytes: &'a [u8],
}

impl<'a> ArrayView<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for an array without elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements as text; `None` when they are not strings.
    pub fn strings(&self) -> Option<impl Iterator<Item = &'a str> + use<'a>> {
        let mut rest = self.bytes;
        (self.kind == Kind::Str).then(|| {
            std::iter::from_fn(move || {
                let (prefix, tail) = rest.split_first_chunk::<8>()?;
                let len = usize::try_from(u64::from_le_bytes(*prefix)).ok()?;
                let (body, tail) = tail.split_at_checked(len)?;
                rest = tail;
                Some(text(body))
            })
        })
    }

    /// The elements as values; `None` when they are strings.
    pub fn numbers(&self) -> Option<impl Iterator<Item = Value<'static>> + use<'a>> {
        let (kind, bytes) = (self.kind, self.bytes);
        kind.width().map(|width| bytes.chunks_exact(width).map(move |chunk| kind.read(chunk)))
    }

    /// The elements as non-negative integers; `None` when one is not.
    pub fn u64s(&self) -> Option<Vec<u64>> {
        self.numbers()?.map(|value| value.as_u64()).collect()
    }

    /// The elements as flags; `None` when one is not.
    pub fn flags(&self) -> Option<Vec<bool>> {
        let flag = |value| if let Value::Bool(flag) = value { Some(flag) } else { None };
        self.numbers()?.map(flag).collect()
    }

    /// The elements as floats; `None` when one is not a number.
    pub fn f32s(&self) -> Option<Vec<f32>> {
        self.numbers()?.map(|value| value.as_f64().map(|number| number as f32)).collect()
    }
}
