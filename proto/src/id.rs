//! Who and where: tenants, users, conversations, effects, and the shard that owns a conversation.
//!
//! Names that people choose become fixed-size ids by SHA-256 over length-prefixed parts, so that no
//! choice of names can make two different (tenant, name) pairs collide by concatenation.

use crate::digest;
use crate::limits::VIRTUAL_SHARDS;
use std::fmt;

/// A customer of the installation. Part of every storage key, cache salt and quota.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct TenantId(pub u32);

impl TenantId {
    /// The tenant of a fresh installation.
    pub const DEFAULT: TenantId = TenantId(1);
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An end user inside a tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct UserId(pub [u8; 16]);

/// One conversation inside a tenant: the unit of ordering and ownership.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct ConversationId(pub [u8; 16]);

macro_rules! name_id {
    ($type:ident, $domain:literal) => {
        impl $type {
            /// The id that a name has inside a tenant. Stable for ever: stored data depends on it.
            pub fn of(tenant: TenantId, name: &str) -> Self {
                Self(id_bytes($domain, tenant, name))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&digest::hex(&self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($type), "({})"), self)
            }
        }
    };
}

name_id!(UserId, "millrace/user");
name_id!(ConversationId, "millrace/conversation");

fn id_bytes(domain: &str, tenant: TenantId, name: &str) -> [u8; 16] {
    let mut hash = digest::Sha256::new();
    for part in [domain.as_bytes(), &tenant.0.to_be_bytes(), name.as_bytes()] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    let full = hash.finish();
    let mut id = [0; 16];
    id.copy_from_slice(&full[..16]);
    id
}

/// Names one effect (a reply, a tool call) of one turn. The same turn replayed after a crash produces the
/// same key, which is what makes a resent effect recognisable.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize,
)]
pub struct EffectKey {
    /// The conversation that caused the effect.
    pub conversation: ConversationId,
    /// The turn inside the conversation.
    pub turn: u64,
    /// The effect inside the turn, counted from 0.
    pub step: u32,
}

impl EffectKey {
    /// The step of a reply that is shown while it is written; no finished effect has it.
    pub const DRAFT_STEP: u32 = u32::MAX;

    /// Conversation, turn and step as big-endian bytes: sorts like the key itself.
    pub fn to_bytes(&self) -> [u8; 28] {
        let mut bytes = [0; 28];
        bytes[..16].copy_from_slice(&self.conversation.0);
        bytes[16..24].copy_from_slice(&self.turn.to_be_bytes());
        bytes[24..].copy_from_slice(&self.step.to_be_bytes());
        bytes
    }

    /// Reads what [`EffectKey::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8; 28]) -> Self {
        let mut conversation = [0; 16];
        let mut turn = [0; 8];
        let mut step = [0; 4];
        conversation.copy_from_slice(&bytes[..16]);
        turn.copy_from_slice(&bytes[16..24]);
        step.copy_from_slice(&bytes[24..]);
        Self {
            conversation: ConversationId(conversation),
            turn: u64::from_be_bytes(turn),
            step: u32::from_be_bytes(step),
        }
    }

    /// Reads the text form that `Display` writes (56 hex digits).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = digest::unhex(text)?;
        Some(Self::from_bytes(bytes.as_slice().try_into().ok()?))
    }
}

impl fmt::Display for EffectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&digest::hex(&self.to_bytes()))
    }
}

/// The virtual shard that owns a conversation, in `0..VIRTUAL_SHARDS`. A reactor owns every virtual shard
/// that is congruent to its index, so the number of reactors may change without moving stored keys.
pub fn virtual_shard(tenant: TenantId, conversation: ConversationId) -> u16 {
    // FNV-1a: the id is already a digest, only the tenant has to be stirred in. Stable for ever.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in tenant.0.to_le_bytes().into_iter().chain(conversation.0) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let folded = (hash ^ (hash >> 32)) as u32;
    ((folded ^ (folded >> 16)) as u16) & (VIRTUAL_SHARDS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_stable_and_separate_tenants_and_kinds() {
        let one = ConversationId::of(TenantId(1), "alpha");
        assert_eq!(one, ConversationId::of(TenantId(1), "alpha"));
        assert_ne!(one, ConversationId::of(TenantId(2), "alpha"));
        assert_ne!(one.0, UserId::of(TenantId(1), "alpha").0);
        // Stored data depends on these bytes: a change here is a data migration.
        assert_eq!(one.to_string(), FIXED_CONVERSATION);
        assert_eq!(virtual_shard(TenantId(1), one), FIXED_SHARD);
    }

    const FIXED_CONVERSATION: &str = "8d637b171cff84be5ab52a74fca69688";
    const FIXED_SHARD: u16 = 238;

    #[test]
    fn effect_key_text_reads_back_and_sorts_like_the_key() {
        let key = EffectKey { conversation: ConversationId([7; 16]), turn: 258, step: 3 };
        assert_eq!(EffectKey::parse(&key.to_string()), Some(key));
        let later = EffectKey { turn: 259, step: 0, ..key };
        assert!(key.to_bytes() < later.to_bytes());
        for bad in ["", "zz", "00", &"0".repeat(57), &"é".repeat(28)] {
            assert_eq!(EffectKey::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn virtual_shards_are_evenly_filled() {
        let mut counts = [0u32; VIRTUAL_SHARDS as usize];
        for i in 0..25_600 {
            let id = ConversationId::of(TenantId(i % 3), &format!("c{i}"));
            counts[usize::from(virtual_shard(TenantId(i % 3), id))] += 1;
        }
        let (min, max) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*min > 55 && *max < 150, "expected about 100 in each, got {min}..{max}");
    }
}
