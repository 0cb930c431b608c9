//! A bounds-checked reader over the file's bytes.

use super::GgufError;

/// Position in the file. Every read names what it reads, so that an error can say it.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Cursor { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let wanted = usize::try_from(count).ok().filter(|&wanted| wanted <= self.remaining());
        let Some(wanted) = wanted else {
            let (offset, len) = (self.at as u64, self.bytes.len() as u64);
            return Err(GgufError::Truncated { what, offset, needed: count, len });
        };
        let slice = &self.bytes[self.at..self.at + wanted];
        self.at += wanted;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let slice = self.take(N as u64, what)?;
        Ok(slice.try_into().expect("take returned N bytes"))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64_at_most(&mut self, what: &'static str, max: u64) -> Result<u64, GgufError> {
        let value = self.u64(what)?;
        if value > max { Err(GgufError::TooLarge { what, value, max }) } else { Ok(value) }
    }

    /// A length-prefixed string of at most `max` bytes; returns its place and its text.
    pub(super) fn string(&mut self, what: &'static str, max: u64) -> Result<(usize, &'a str), GgufError> {
        let len = self.u64_at_most(what, max)?;
        let at = self.at;
        let bytes = self.take(len, what)?;
        let text = std::str::from_utf8(bytes)
            .map_err(|_| GgufError::Malformed { what: "a string is not UTF-8", offset: at as u64 })?;
        Ok((at, text))
    }
}
