//! Sealing of values: authenticated encryption bound to the place of the value.
//!
//! ```text
//! offset  width  field
//! 0       1      version of the envelope (2)
//! 1       1      algorithm (1 = AES-256-GCM, 2 = SM4-GCM)
//! 2       2      key epoch
//! 4       12     nonce
//! 16      16     owner: the user whose key seals it; zero = the tenant's own key
//! 32      n      ciphertext
//! 32+n    16     tag
//! ```
//! Associated data: column family 1 || version 1 || algorithm 1 || epoch 2 || owner 16 || the whole key. A
//! value that is moved to another key, family, tenant or user, or whose header is changed, does not open.
//! Envelopes of version 1 (no owner, ciphertext at 16, associated data: family || version || key) are
//! read and never written.

mod data_key;
mod find;
mod keyfile;
mod keyring;
mod measure;
mod slots;
mod source;
mod vault;

pub(crate) use data_key::{DataKey, Header, NonceSource, OpenFailure, Stamp, TAG_BYTES};
pub(crate) use find::{find_kek, no_random};
pub(crate) use keyfile::{Kek, next_of, publish_next, sync_folder};
pub(crate) use keyring::{KeyRing, NO_USER, NODE, Owner, TenantKeys, has_user_keys, users};
pub use measure::measure_seal;
pub(crate) use slots::{SLOT_BYTES, SLOTS_FILE, Slots, USED as SLOT_USED};
pub use source::KeySource;
pub use vault::{VAULT_FILE, VAULT_NAME_BYTES_MAX, VAULT_SECRET_BYTES_MAX, Vault, VaultError};
pub(crate) use vault::{admit_key, keep_key};

/// The algorithms that seal a tenant's data. Recorded with each key, so a change holds for new keys only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Suite {
    /// AES-256-GCM and HMAC-SHA-256.
    #[default]
    Intl,
    /// SM4-GCM and HMAC-SM3 (GM/T).
    Gm,
}

impl Suite {
    /// The name in settings and commands.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Intl => "intl",
            Self::Gm => "gm",
        }
    }

    /// The suite of a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Intl, Self::Gm].into_iter().find(|suite| suite.as_str() == name)
    }

    /// The number in envelopes and wrapped keys.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Intl => 1,
            Self::Gm => 2,
        }
    }

    pub(crate) fn of_number(number: u8) -> Option<Self> {
        [Self::Intl, Self::Gm].into_iter().find(|suite| suite.number() == number)
    }
}

#[cfg(test)]
mod tests;
