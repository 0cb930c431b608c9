//! Queries and form bodies (`application/x-www-form-urlencoded`).

use super::Reject;

/// Fields of one form; platforms send a few dozen.
const FIELDS_MAX: usize = 512;

/// Decoded fields in the order of the form.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Reads a form. Text that is not UTF-8 after decoding is refused: two different bodies must not look the
    /// same to a signature check.
    pub fn parse(bytes: &[u8]) -> Result<Self, Reject> {
        let mut fields = Vec::new();
        for pair in bytes.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            if fields.len() == FIELDS_MAX {
                return Err(Reject::TooLarge("form fields"));
            }
            let at = pair.iter().position(|byte| *byte == b'=');
            let (name, value) = at.map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
            let decode = |part| percent_decode(part, true).ok_or(Reject::Malformed("form is not UTF-8"));
            fields.push((decode(name)?, decode(value)?));
        }
        Ok(Self(fields))
    }

    /// The first value of a field.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The only value of a field: a second one could be read by somebody else.
    pub fn single(&self, name: &str) -> Result<Option<&str>, Reject> {
        let mut values = self.0.iter().filter(|(known, _)| known == name);
        let first = values.next().map(|(_, value)| value.as_str());
        if values.next().is_some() { Err(Reject::Malformed("a field appears twice")) } else { Ok(first) }
    }

    /// A field that carries proof: once, and not empty.
    pub fn needed(&self, name: &str) -> Result<&str, Reject> {
        match self.single(name)? {
            Some(value) if !value.is_empty() => Ok(value),
            _ => Err(Reject::Unauthorized("a signature field is missing")),
        }
    }

    /// All fields.
    pub fn fields(&self) -> &[(String, String)] {
        &self.0
    }

    /// Fields that were read elsewhere (multipart).
    pub fn from_fields(fields: Vec<(String, String)>) -> Self {
        Self(fields)
    }
}

/// Decodes `%XX`, and `+` as a space where `plus` says so. A `%` without two hex digits stays as it is.
pub(super) fn percent_decode(bytes: &[u8], plus: bool) -> Option<String> {
    let hex = |at: usize| bytes.get(at).and_then(|digit| char::from(*digit).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let (byte, length) = match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => ((high * 16 + low) as u8, 3),
            (b'+', ..) if plus => (b' ', 1),
            (byte, ..) => (byte, 1),
        };
        out.push(byte);
        at += length;
    }
    String::from_utf8(out).ok()
}

/// Percent-encodes everything but unreserved characters (RFC 3986).
pub(super) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// A form body.
pub(super) fn encode(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<String> =
        fields.iter().map(|(name, value)| format!("{}={}", percent_encode(name), percent_encode(value))).collect();
    pairs.join("&")
}
