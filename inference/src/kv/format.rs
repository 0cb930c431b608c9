//! How keys and values lie in memory.
//!
//! The memory of one block, layer and head follows this table; tokens of a block are its slots 0 to 15. Keys are
//! turned over, so that the scores of all 16 slots fill one vector; bytes of keys lie in fours, as in the tiles of
//! weights. Scales belong to 32 elements (the blocks of Q8_0), each a half float.
//!
//! | format | keys | values | scales of keys, of values |
//! |---|---|---|---|
//! | `F16` | `[head_dim][16]` halves | `[16][head_dim]` halves | |
//! | `Q8_0` | `[head_dim / 4][16][4]` bytes | `[16][head_dim]` bytes | `[head_dim / 32][16]` halves each |

use std::fmt;
use std::str::FromStr;

use super::BLOCK_TOKENS;

/// Elements that share a scale.
pub(crate) const GROUP: usize = 32;

/// The format of keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// Half floats.
    #[default]
    F16,
    /// Signed bytes with a scale for each 32: 17/32 of the memory, and scores by integer products.
    Q8_0,
}

impl KvFormat {
    /// Bytes that so many keys and as many values take.
    pub const fn bytes(self, elements: usize) -> usize {
        match self {
            KvFormat::F16 => elements * 4,
            KvFormat::Q8_0 => elements * 2 + elements / GROUP * 4,
        }
    }

    /// Bytes of one block of one layer and head.
    pub(crate) const fn block_bytes(self, head_dim: usize) -> usize {
        self.bytes(BLOCK_TOKENS * head_dim)
    }

    /// True when heads of this width can be kept so.
    pub(crate) const fn fits(self, head_dim: usize) -> bool {
        matches!(self, KvFormat::F16) || head_dim.is_multiple_of(GROUP)
    }

    /// The format's name, as in settings.
    pub const fn name(self) -> &'static str {
        match self {
            KvFormat::F16 => "f16",
            KvFormat::Q8_0 => "q8_0",
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for KvFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [KvFormat::F16, KvFormat::Q8_0];
        all.into_iter().find(|format| format.name() == text).ok_or_else(|| "write `f16` or `q8_0`".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_table() {
        assert_eq!(KvFormat::F16.block_bytes(64), 2 * 16 * 64 * 2);
        assert_eq!(KvFormat::Q8_0.block_bytes(64), 2 * (16 * 64 + 16 * 2 * 2));
        assert!(!KvFormat::Q8_0.fits(80) && KvFormat::F16.fits(80));
    }

    #[test]
    fn names_are_read_back() {
        for format in [KvFormat::F16, KvFormat::Q8_0] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("q4_0".parse::<KvFormat>().unwrap_err().contains("f16"));
    }
}
