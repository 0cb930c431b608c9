//! SM3 (GB/T 32905-2016) and what is built on it.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sm3::Digest as _;

/// Incremental SM3.
#[derive(Default)]
pub struct Sm3(sm3::Sm3);

impl Sm3 {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything added.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// SM3 of one slice.
#[must_use]
pub fn sm3(bytes: &[u8]) -> [u8; 32] {
    sm3::Sm3::digest(bytes).into()
}

/// A key for HMAC-SM3, expanded once.
#[derive(Clone)]
pub struct HmacSm3(Hmac<sm3::Sm3>);

impl HmacSm3 {
    /// Prepares a key of any length.
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self(Hmac::new_from_slice(key).expect("HMAC takes keys of every length"))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything added.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finalize().into_bytes().into()
    }
}

impl std::fmt::Debug for HmacSm3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HmacSm3").finish_non_exhaustive()
    }
}

/// HMAC-SM3 over the concatenation of `parts`.
#[must_use]
pub fn hmac_sm3(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = HmacSm3::new(key);
    for part in parts {
        mac.update(part);
    }
    mac.finish()
}

/// PBKDF2 with HMAC-SM3: fills `out` from a password.
pub fn pbkdf2_hmac_sm3(password: &[u8], salt: &[u8], rounds: u32, out: &mut [u8]) {
    pbkdf2::pbkdf2::<Hmac<sm3::Sm3>>(password, salt, rounds, out).expect("HMAC takes keys of every length");
}
