//! Frame writers.

use super::Opcode;

/// Longest reason in a close frame: a control frame's 125 bytes less the code.
pub const CLOSE_REASON_BYTES_MAX: usize = 123;

/// Appends a complete message in one unmasked frame (from server to client). A control payload must
/// not exceed 125 bytes: that is our own bookkeeping, so it is asserted.
pub fn encode(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    write_header(out, opcode, payload.len(), 0);
    out.extend_from_slice(payload);
}

/// Appends a complete message in one masked frame (from client to server).
pub fn encode_masked(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8], mask: [u8; 4]) {
    write_header(out, opcode, payload.len(), 0x80);
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// Appends a close frame (from server to client). The reason is cut at a character boundary if it is too long.
pub fn encode_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut payload = code.to_be_bytes().to_vec();
    let end = (0..=reason.len().min(CLOSE_REASON_BYTES_MAX)).rev().find(|end| reason.is_char_boundary(*end));
    payload.extend_from_slice(&reason.as_bytes()[..end.unwrap_or(0)]);
    encode(out, Opcode::Close, &payload);
}

fn write_header(out: &mut Vec<u8>, opcode: Opcode, length: usize, mask_bit: u8) {
    assert!(!opcode.is_control() || length <= crate::limits::WS_CONTROL_BYTES_MAX, "control frame of {length} bytes");
    out.push(0x80 | opcode.bits());
    match (u16::try_from(length), length) {
        (_, 0..=125) => out.push(mask_bit | length as u8),
        (Ok(length), _) => {
            out.push(mask_bit | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        (Err(_), _) => {
            out.push(mask_bit | 127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}
