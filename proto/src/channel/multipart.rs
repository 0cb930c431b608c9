//! `multipart/form-data` (RFC 7578), as mail gateways post it.

use super::Reject;
use super::form::Form;
use encoding_rs::Encoding;

/// Parts of one body.
const PARTS_MAX: usize = 256;
/// Header lines of one part.
const PART_HEAD_BYTES_MAX: usize = 4 * 1024;

/// One part.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    pub name: String,
    pub file_name: Option<String>,
    pub content_type: Option<String>,
    pub bytes: &'a [u8],
}

/// Reads a body with the boundary of its content type.
pub(super) fn parse<'a>(content_type: &[u8], body: &'a [u8]) -> Result<Vec<Part<'a>>, Reject> {
    let malformed = Reject::Malformed("body is not multipart form data");
    let content_type = std::str::from_utf8(content_type).map_err(|_| malformed.clone())?;
    let boundary = parameter(content_type, "boundary").filter(|text| (1..=70).contains(&text.len()));
    let delimiter = format!("--{}", boundary.ok_or(malformed.clone())?);
    let delimiter = delimiter.as_bytes();
    // What precedes the first delimiter is no part.
    let mut rest = after(body, delimiter).ok_or(malformed.clone())?;
    let mut parts = Vec::new();
    loop {
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        rest = rest.strip_prefix(b"\r\n").ok_or(malformed.clone())?;
        let end = find_delimiter(rest, delimiter).ok_or(malformed.clone())?;
        if parts.len() == PARTS_MAX {
            return Err(Reject::TooLarge("multipart parts"));
        }
        parts.push(part(&rest[..end]).ok_or(malformed.clone())?);
        rest = &rest[end + 2 + delimiter.len()..];
    }
}

/// The text parts as a form. `charsets` names the encoding of a field that is not UTF-8.
pub(super) fn form(parts: &[Part<'_>], charset_of: impl Fn(&str) -> Option<String>) -> Form {
    let text = |part: &Part<'_>| {
        let encoding = charset_of(&part.name)
            .or_else(|| part.content_type.as_deref().and_then(|kind| parameter(kind, "charset")))
            .and_then(|label| Encoding::for_label(label.as_bytes()))
            .unwrap_or(encoding_rs::UTF_8);
        encoding.decode(part.bytes).0.into_owned()
    };
    let fields = parts.iter().filter(|part| part.file_name.is_none());
    Form::from_fields(fields.map(|part| (part.name.clone(), text(part))).collect())
}

fn after<'a>(body: &'a [u8], delimiter: &[u8]) -> Option<&'a [u8]> {
    if let Some(rest) = body.strip_prefix(delimiter) {
        return Some(rest);
    }
    find_delimiter(body, delimiter).map(|at| &body[at + 2 + delimiter.len()..])
}

/// The position of the line break before the next delimiter.
fn find_delimiter(bytes: &[u8], delimiter: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = bytes[from..].windows(2).position(|pair| pair == b"\r\n") {
        let at = from + at;
        if bytes[at + 2..].starts_with(delimiter) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

fn part(bytes: &[u8]) -> Option<Part<'_>> {
    let head_end = bytes.windows(4).take(PART_HEAD_BYTES_MAX).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..head_end]).ok()?;
    let mut disposition = None;
    let mut content_type = None;
    for line in head.split("\r\n") {
        let (name, value) = line.split_once(':')?;
        match name.trim() {
            name if name.eq_ignore_ascii_case("content-disposition") => disposition = Some(value.trim()),
            name if name.eq_ignore_ascii_case("content-type") => content_type = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let disposition = disposition.filter(|text| text.starts_with("form-data"))?;
    Some(Part {
        name: parameter(disposition, "name")?,
        file_name: parameter(disposition, "filename"),
        content_type,
        bytes: &bytes[head_end + 4..],
    })
}

/// A parameter of a header value: `key=value` or `key="value"`.
fn parameter(header: &str, key: &str) -> Option<String> {
    let mut rest = header;
    while let Some(at) = rest.find(';') {
        rest = rest[at + 1..].trim_start();
        let Some((name, value)) = rest.split_once('=') else { continue };
        let found = name.trim().eq_ignore_ascii_case(key);
        let value = value.trim_start();
        if let Some(quoted) = value.strip_prefix('"') {
            let end = quoted.find('"')?;
            if found {
                return Some(quoted[..end].to_owned());
            }
            rest = &quoted[end + 1..];
        } else {
            let end = value.find(';').unwrap_or(value.len());
            if found {
                return Some(value[..end].trim().to_owned());
            }
            rest = &value[end..];
        }
    }
    None
}
