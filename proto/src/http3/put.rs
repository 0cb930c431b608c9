//! What a server writes.

use super::frame;
use super::qpack::{SECTION_BYTES_MAX, put_prefixed};
use super::static_table::STATIC_TABLE;
use super::varint::put_varint;

/// Type of the control stream.
const CONTROL_STREAM: u64 = 0x0;

/// Settings of RFC 9114 section 7.2.4.1 and RFC 9204 section 5. The table capacity and blocked streams are zero,
/// which is the default and need not be said.
const MAX_FIELD_SECTION_SIZE: u64 = 0x6;

/// Appends what the server's control stream starts with: its type and the settings.
pub fn put_control_stream(out: &mut Vec<u8>) {
    let mut settings = Vec::new();
    put_varint(&mut settings, MAX_FIELD_SECTION_SIZE);
    put_varint(&mut settings, SECTION_BYTES_MAX as u64);
    put_varint(out, CONTROL_STREAM);
    put_varint(out, frame::SETTINGS);
    put_varint(out, settings.len() as u64);
    out.extend_from_slice(&settings);
}

/// Appends that requests on streams from `stream_id` on are not worked on.
pub fn put_goaway(out: &mut Vec<u8>, stream_id: u64) {
    let mut payload = Vec::new();
    put_varint(&mut payload, stream_id);
    put_varint(out, frame::GOAWAY);
    put_varint(out, payload.len() as u64);
    out.extend_from_slice(&payload);
}

/// Appends the header of a DATA frame of `bytes`.
pub fn put_data_header(out: &mut Vec<u8>, bytes: usize) {
    put_varint(out, frame::DATA);
    put_varint(out, bytes as u64);
}

/// Appends a HEADERS frame around an encoded section.
pub fn put_headers(out: &mut Vec<u8>, section: &[u8]) {
    put_varint(out, frame::HEADERS);
    put_varint(out, section.len() as u64);
    out.extend_from_slice(section);
}

/// Appends an encoded field. The first of a section must be preceded by its prefix, two zero bytes.
fn put_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    let mut known = None;
    for (index, entry) in STATIC_TABLE.iter().enumerate() {
        if entry.0 == name {
            if entry.1.as_bytes() == value {
                return put_prefixed(out, 0xc0, 6, index);
            }
            known = known.or(Some(index));
        }
    }
    match known {
        Some(index) => put_prefixed(out, 0x50, 4, index),
        None => {
            put_prefixed(out, 0x20, 3, name.len());
            out.extend_from_slice(name.as_bytes());
        }
    }
    put_prefixed(out, 0x00, 7, value.len());
    out.extend_from_slice(value);
}

/// Appends a whole section: prefix, then each field. Names are in lower case.
pub fn put_fields<'a>(out: &mut Vec<u8>, fields: impl IntoIterator<Item = (&'a str, &'a [u8])>) {
    if out.is_empty() {
        out.extend_from_slice(&[0, 0]);
    }
    for (name, value) in fields {
        put_field(out, name, value);
    }
}
