//! Reading JSON of platforms: ids that are texts or numbers, and paths that may be missing.

use super::Reject;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;

/// Parses a body. `serde_json` bounds the depth, the size is bounded before.
pub(super) fn parse(body: &[u8]) -> Result<Value, Reject> {
    let text = std::str::from_utf8(body).map_err(|_| Reject::Malformed("body is not UTF-8"))?;
    serde_json::from_str(text).map_err(|_| Reject::Malformed("body is not JSON"))
}

/// Parses a body that must be an object.
pub(super) fn parse_object(body: &[u8]) -> Result<Value, Reject> {
    parse(body).and_then(|value| {
        if value.is_object() { Ok(value) } else { Err(Reject::Malformed("body is not a JSON object")) }
    })
}

/// Reads of a body that must be an object what `T` names and passes over the rest, without a tree of all of it.
pub(super) fn typed_object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Reject> {
    let text = std::str::from_utf8(body).map_err(|_| Reject::Malformed("body is not UTF-8"))?;
    // A list would be read as the fields of `T` in their order.
    if !text.trim_start().starts_with('{') {
        return Err(Reject::Malformed("body is not a JSON object"));
    }
    serde_json::from_str(text).map_err(|_| Reject::Malformed("body is not the JSON that its platform sends"))
}

/// One field of a typed body, whatever it holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// Missing, or null.
    #[default]
    Nothing,
    Text(Cow<'a, str>),
    /// A whole number, as its text.
    Whole(String),
    /// Something that is neither a text nor an id.
    Other,
}

impl Field<'_> {
    pub fn is_there(&self) -> bool {
        *self != Field::Nothing
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Field::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An id: a text, or a whole number as its text.
    pub fn id(&self) -> Option<String> {
        match self {
            Field::Text(text) if !text.is_empty() => Some(text.to_string()),
            Field::Whole(number) => Some(number.clone()),
            _ => None,
        }
    }

    /// An id without which an event means nothing.
    pub fn needed(&self) -> Result<String, Reject> {
        self.id().ok_or(Reject::Malformed("an id is missing"))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Field<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FieldVisitor)
    }
}

struct FieldVisitor;

impl<'de> Visitor<'de> for FieldVisitor {
    type Value = Field<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Field<'de>, E> {
        Ok(Field::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Field<'de>, E> {
        Ok(Field::Whole(number.to_string()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Field<'de>, E> {
        Ok(Field::Whole(number.to_string()))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Field<'de>, E> {
        Ok(Field::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Field<'de>, E> {
        Ok(Field::Other)
    }

    fn visit_unit<E>(self) -> Result<Field<'de>, E> {
        Ok(Field::Nothing)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Field<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Field<'de>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Field::Other)
    }
}

/// The value at a JSON pointer (`/event/user`).
pub(super) fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

/// The text at a JSON pointer.
pub(super) fn text<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    at(value, pointer).as_str()
}

/// A text that is not empty.
pub(super) fn filled<'v>(value: &'v Value, pointer: &str) -> Option<&'v str> {
    text(value, pointer).filter(|text| !text.is_empty())
}

/// An id at a JSON pointer: a text, or a whole number as its text.
pub(super) fn id(value: &Value, pointer: &str) -> Option<String> {
    match at(value, pointer) {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}

/// An id without which an event means nothing.
pub(super) fn needed(value: &Value, pointer: &str) -> Result<String, Reject> {
    id(value, pointer).ok_or(Reject::Malformed("an id is missing"))
}

/// The elements at a JSON pointer; none when there is no list.
pub(super) fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    at(value, pointer).as_array().map_or(&[], Vec::as_slice)
}

/// Removes ranges of UTF-16 units from a text and trims the rest. Ranges that do not lie on characters are
/// skipped, overlapping ones are cut once.
pub(super) fn without_ranges(text: &str, ranges: impl IntoIterator<Item = (usize, usize)>) -> String {
    let mut cuts: Vec<(usize, usize)> =
        ranges.into_iter().filter_map(|(offset, length)| utf16_range(text, offset, length)).collect();
    cuts.sort_unstable();
    let mut kept = String::with_capacity(text.len());
    let mut from = 0;
    for (start, end) in cuts {
        if start >= from {
            kept.push_str(&text[from..start]);
            from = end;
        }
    }
    kept.push_str(&text[from..]);
    kept.trim().to_owned()
}

/// The bytes of a range of UTF-16 units; `None` when it does not lie on characters of the text.
pub(super) fn utf16_range(text: &str, offset: usize, length: usize) -> Option<(usize, usize)> {
    let end = offset.checked_add(length)?;
    let mut units = 0;
    let mut start_byte = None;
    for (byte, unit_length) in text.char_indices().map(|(at, c)| (at, c.len_utf16())).chain([(text.len(), 1)]) {
        if units == offset {
            start_byte = Some(byte);
        }
        if units == end {
            return start_byte.map(|start| (start, byte));
        }
        units += unit_length;
    }
    None
}
