//! Chinese commercial cryptography (GM/T): SM2, SM3 and SM4, behind one facade.
//!
//! Pure functions: keys, nonces and random numbers come from the caller. The cipher and its GCM mode are
//! our own, because table-driven SM4 is 30 times slower than AES and leaks through caches; curve and hash are
//! RustCrypto's.

mod gcm;
mod hash;
pub(crate) mod kernel;
mod sm2;
mod sm4;

pub use gcm::{NotAuthentic, Sm4Gcm};
pub use hash::{HmacSm3, Sm3, hmac_sm3, pbkdf2_hmac_sm3, sm3};
pub use sm2::{DEFAULT_NAME as SM2_DEFAULT_NAME, Sm2Error, Sm2Order, Sm2Private, Sm2Public};
pub use sm4::Sm4;

/// The name of the instruction set that SM4 runs on here.
pub fn instruction_set() -> &'static str {
    kernel::chosen().name
}

#[cfg(test)]
mod tests;
