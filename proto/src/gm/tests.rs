//! One body of tests for every instruction set, against the standards' own values and known traps.

mod modes;
mod sets;
mod vectors;
mod wycheproof;

use crate::digest::unhex;

/// Hexadecimal of a vector file.
fn bytes(text: &str) -> Vec<u8> {
    unhex(text).unwrap_or_else(|| panic!("{text:?} is not hexadecimal"))
}
