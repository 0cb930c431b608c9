//! Keys, byte by byte. `DESIGN.md` shows the same tables with their reasons.
//!
//! All numbers are big-endian, so byte order is number order. Every key that belongs to a tenant
//! starts with a virtual shard and the tenant; timers start with their due time, because the one
//! question asked of them is "what is due", over all shards.

use millrace_proto::id::{ConversationId, EffectKey, TenantId, UserId, virtual_shard};

/// The layout this program writes. A store with a larger number is refused.
pub(crate) const SCHEMA: u32 = 5;

/// Names in the control family.
pub(crate) mod ctl {
    /// u32: the layout version.
    pub const SCHEMA: &[u8] = b"schema";
    /// u64: sequence number of the last durable group.
    pub const SEQ: &[u8] = b"seq";
    /// Sealed constant: tells whether the key file is the right one.
    pub const KEY_CHECK: &[u8] = b"key-check";
    /// Prefix of named values.
    pub const META: &[u8] = b"m/";
    /// Prefix of users who are being forgotten: the slots that a crash may have left to erase.
    pub const FORGET: &[u8] = b"f/";
    /// Prefix of tenants whose rows are being brought to new keys.
    pub const ROTATION: &[u8] = b"r/";
    /// Prefix of the manifests of sealed vector segments.
    pub const SEGMENT: &[u8] = b"s/";
}

/// Names a memory inside a user: conversation 16, sequence number 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DocId {
    pub conversation: ConversationId,
    pub seq: u64,
}

pub(crate) const DOC_BYTES: usize = 24;

impl DocId {
    pub fn to_bytes(self) -> [u8; DOC_BYTES] {
        let mut bytes = [0; DOC_BYTES];
        bytes[..16].copy_from_slice(&self.conversation.0);
        bytes[16..].copy_from_slice(&self.seq.to_be_bytes());
        bytes
    }

    /// Reads the last [`DOC_BYTES`] of a key.
    pub fn at_end_of(key: &[u8]) -> Option<Self> {
        let tail: &[u8; DOC_BYTES] = key.last_chunk()?;
        let (conversation, seq) = tail.split_at(16);
        Some(Self {
            conversation: ConversationId(conversation.try_into().ok()?),
            seq: u64::from_be_bytes(seq.try_into().ok()?),
        })
    }
}

/// Hashes ids that are digests already: mixing their words is enough, and an attacker would have to
/// find colliding digests to make a table slow. Tables of memories are probed once per posting.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        // A rotation between the multiplications carries high bits back down.
        self.0 = (self.0.rotate_left(26) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

/// A table of ids.
pub(crate) type IdMap<K, V> = std::collections::HashMap<K, V, std::hash::BuildHasherDefault<IdHasher>>;

/// Appends fixed-width parts; the capacity is the whole key, so a key costs one allocation.
struct Key(Vec<u8>);

impl Key {
    fn conversation(tenant: TenantId, conversation: ConversationId) -> Self {
        Self::sharded(virtual_shard(tenant, conversation), tenant).bytes(&conversation.0)
    }

    fn user(tenant: TenantId, user: UserId) -> Self {
        Self::sharded(user_shard(tenant, user), tenant).bytes(&user.0)
    }

    fn sharded(shard: u16, tenant: TenantId) -> Self {
        let mut key = Vec::with_capacity(72);
        key.extend_from_slice(&shard.to_be_bytes());
        key.extend_from_slice(&tenant.0.to_be_bytes());
        Self(key)
    }

    fn bytes(mut self, part: &[u8]) -> Self {
        self.0.extend_from_slice(part);
        self
    }

    fn u64(self, number: u64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    fn u32(self, number: u32) -> Self {
        self.bytes(&number.to_be_bytes())
    }
}

/// A user's data has its own shard: its memory spans conversations of many shards.
pub(crate) fn user_shard(tenant: TenantId, user: UserId) -> u16 {
    virtual_shard(tenant, ConversationId(user.0))
}

/// The smallest key that is greater than every key with this prefix.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // A prefix of only 0xff has no successor of its length; no key is this long.
    vec![u8::MAX; 128]
}

// sess: shard2 tenant4 conversation16
pub(crate) fn sess(tenant: TenantId, conversation: ConversationId) -> Vec<u8> {
    Key::conversation(tenant, conversation).0
}

// user_sess: shard2 tenant4 user16 conversation16
pub(crate) fn user_sess(tenant: TenantId, user: UserId, conversation: ConversationId) -> Vec<u8> {
    Key::user(tenant, user).bytes(&conversation.0).0
}

/// Tenant, user and conversation of a listing row.
pub(crate) fn user_sess_parts(key: &[u8]) -> Option<(TenantId, UserId, ConversationId)> {
    let key: &[u8; 38] = key.try_into().ok()?;
    let tenant = TenantId(u32::from_be_bytes(*key[2..].first_chunk()?));
    Some((tenant, UserId(*key[6..].first_chunk()?), ConversationId(*key[22..].first_chunk()?)))
}

/// The conversation that a row belongs to, in the families that are keyed by one.
pub(crate) fn conversation_of(cf: crate::backend::Cf, key: &[u8]) -> Option<ConversationId> {
    use crate::backend::Cf;
    let at = match cf {
        Cf::Sess | Cf::Msg | Cf::Inbox | Cf::Outbox | Cf::Receipt | Cf::Archive => 6,
        Cf::Timer => 12,
        _ => return None,
    };
    key.get(at..at + 16)?.try_into().ok().map(ConversationId)
}

// ctl: "f/" tenant4 user16
pub(crate) fn forget_note(tenant: TenantId, user: UserId) -> Vec<u8> {
    Key(ctl::FORGET.to_vec()).u32(tenant.0).bytes(&user.0).0
}

// ctl: "r/" tenant4
pub(crate) fn rotation_note(tenant: TenantId) -> Vec<u8> {
    Key(ctl::ROTATION.to_vec()).u32(tenant.0).0
}

/// The prefix of everything of a user, in every family keyed by user.
pub(crate) fn user_prefix(tenant: TenantId, user: UserId) -> Vec<u8> {
    Key::user(tenant, user).0
}

// msg: shard2 tenant4 conversation16 seq8
pub(crate) fn msg(tenant: TenantId, conversation: ConversationId, seq: u64) -> Vec<u8> {
    Key::conversation(tenant, conversation).u64(seq).0
}

// archive: shard2 tenant4 conversation16 first_seq8
pub(crate) fn archived(tenant: TenantId, conversation: ConversationId, first_seq: u64) -> Vec<u8> {
    msg(tenant, conversation, first_seq)
}

// inbox: shard2 tenant4 conversation16 number8
pub(crate) fn inbox(tenant: TenantId, conversation: ConversationId, number: u64) -> Vec<u8> {
    Key::conversation(tenant, conversation).u64(number).0
}

/// Tenant, conversation and number of an inbox row.
pub(crate) fn inbox_parts(key: &[u8]) -> Option<(TenantId, ConversationId, u64)> {
    let key: &[u8; 30] = key.try_into().ok()?;
    let tenant = TenantId(u32::from_be_bytes(*key[2..].first_chunk()?));
    Some((tenant, ConversationId(*key[6..].first_chunk()?), u64::from_be_bytes(*key.last_chunk()?)))
}

// idem: shard2 tenant4 blind16
pub(crate) fn idem(tenant: TenantId, blind: [u8; 16]) -> Vec<u8> {
    Key::sharded(virtual_shard(tenant, ConversationId(blind)), tenant).bytes(&blind).0
}

// outbox and receipt: shard2 tenant4 conversation16 turn8 step4
pub(crate) fn effect(tenant: TenantId, key: &EffectKey) -> Vec<u8> {
    Key::conversation(tenant, key.conversation).u64(key.turn).u32(key.step).0
}

// timer: due8 tenant4 conversation16 id8
pub(crate) fn timer(due_ms: u64, tenant: TenantId, conversation: ConversationId, id: u64) -> Vec<u8> {
    Key(Vec::with_capacity(36)).u64(due_ms).u32(tenant.0).bytes(&conversation.0).u64(id).0
}

// cred: hash32. The hash of a 256-bit random secret is all a request brings, before its tenant is known.
pub(crate) fn cred(hash: &[u8; 32]) -> Vec<u8> {
    hash.to_vec()
}

// ctl: "m/" name
pub(crate) fn meta(name: &str) -> Vec<u8> {
    [ctl::META, name.as_bytes()].concat()
}

// key: tenant4 user16 epoch2. User zero is the tenant's own key.
pub(crate) fn data_key(tenant: TenantId, user: UserId, epoch: u16) -> Vec<u8> {
    Key(Vec::with_capacity(22)).u32(tenant.0).bytes(&user.0).bytes(&epoch.to_be_bytes()).0
}

// mem and vec: shard2 tenant4 user16 conversation16 seq8
pub(crate) fn memory(tenant: TenantId, user: UserId, doc: DocId) -> Vec<u8> {
    Key::user(tenant, user).bytes(&doc.to_bytes()).0
}

/// Tenant, user and name of a memory, from its key.
pub(crate) fn memory_parts(key: &[u8]) -> Option<(TenantId, UserId, DocId)> {
    let key: &[u8; 2 + 4 + 16 + DOC_BYTES] = key.try_into().ok()?;
    let (tenant, user) = (key[2..].first_chunk()?, key[6..].first_chunk()?);
    Some((TenantId(u32::from_be_bytes(*tenant)), UserId(*user), DocId::at_end_of(key)?))
}

// pending: as mem
pub(crate) fn pending(tenant: TenantId, user: UserId, doc: DocId) -> Vec<u8> {
    memory(tenant, user, doc)
}

// post: shard2 tenant4 user16 term8 conversation16 seq8
pub(crate) fn post(tenant: TenantId, user: UserId, term: [u8; 8], doc: DocId) -> Vec<u8> {
    Key::user(tenant, user).bytes(&term).bytes(&doc.to_bytes()).0
}

pub(crate) fn post_prefix(tenant: TenantId, user: UserId, term: [u8; 8]) -> Vec<u8> {
    Key::user(tenant, user).bytes(&term).0
}

/// A vertex of a user's graph: an entity (blind id) or a memory.
pub(crate) type Vertex = [u8; DOC_BYTES];

// edge_out and edge_in: shard2 tenant4 user16 near24 relation2 inverted_valid_from8 far24
pub(crate) fn edge(
    tenant: TenantId,
    user: UserId,
    near: &Vertex,
    relation: u16,
    valid_from_ms: u64,
    far: &Vertex,
) -> Vec<u8> {
    Key::user(tenant, user).bytes(near).bytes(&relation.to_be_bytes()).u64(!valid_from_ms).bytes(far).0
}

/// Near vertex, relation, start of validity and far vertex of an edge key.
pub(crate) fn edge_parts(key: &[u8]) -> Option<(Vertex, u16, u64, Vertex)> {
    let parts: &[u8; 2 * DOC_BYTES + 10] = key.last_chunk()?;
    let (near, rest) = parts.split_first_chunk::<DOC_BYTES>()?;
    let (relation, rest) = rest.split_first_chunk()?;
    let (inverted, far) = rest.split_first_chunk()?;
    Some((*near, u16::from_be_bytes(*relation), !u64::from_be_bytes(*inverted), far.try_into().ok()?))
}

/// A shared space of a tenant, named by a blind id.
pub(crate) type SpaceKey = [u8; 16];

fn space_prefix_key(tenant: TenantId, space: SpaceKey) -> Key {
    Key::sharded(virtual_shard(tenant, ConversationId(space)), tenant).bytes(&space)
}

// space: shard2 tenant4 space16 vid8
pub(crate) fn space(tenant: TenantId, space: SpaceKey, vid: u64) -> Vec<u8> {
    space_prefix_key(tenant, space).u64(vid).0
}

// space_log: shard2 tenant4 space16 seq8 vid8
pub(crate) fn space_log(tenant: TenantId, space: SpaceKey, seq: u64, vid: u64) -> Vec<u8> {
    space_prefix_key(tenant, space).u64(seq).u64(vid).0
}

pub(crate) fn space_prefix(tenant: TenantId, space: SpaceKey) -> Vec<u8> {
    space_prefix_key(tenant, space).0
}

// owned: shard2 tenant4 user16 space16 id8. The shard is the user's: forgetting walks one prefix.
pub(crate) fn owned_by_user(tenant: TenantId, user: UserId, space: SpaceKey, id: u64) -> Vec<u8> {
    Key::user(tenant, user).bytes(&space).u64(id).0
}

// owned: shard2 tenant4 space16 user16 id8. The shard is the space's: a start walks one prefix.
pub(crate) fn owned_in_space(tenant: TenantId, space: SpaceKey, user: UserId, id: u64) -> Vec<u8> {
    space_prefix_key(tenant, space).bytes(&user.0).u64(id).0
}

/// The second digest of a key of `owned` and the passage: space or user, whichever the prefix does not name.
pub(crate) fn owned_parts(key: &[u8]) -> Option<([u8; 16], u64)> {
    let parts: &[u8; 24] = key.get(22..)?.try_into().ok()?;
    Some((*parts.first_chunk()?, tail_u64(parts)?))
}

/// Kinds of rows in the family `corpus`.
mod corpus_row {
    pub const HEAD: u8 = 0;
    pub const DOCUMENT: u8 = 1;
    pub const PASSAGE: u8 = 2;
    pub const NAME: u8 = 3;
    pub const LISTED: u8 = 4;
}

/// No space has this id: it is the place of a tenant's list of corpora.
const NO_SPACE: SpaceKey = [0; 16];

// corpus: shard2 tenant4 space16 0
pub(crate) fn corpus_head(tenant: TenantId, space: SpaceKey) -> Vec<u8> {
    space_prefix_key(tenant, space).bytes(&[corpus_row::HEAD]).0
}

// corpus: shard2 tenant4 space16 1 number4
pub(crate) fn corpus_document(tenant: TenantId, space: SpaceKey, number: u32) -> Vec<u8> {
    space_prefix_key(tenant, space).bytes(&[corpus_row::DOCUMENT]).u32(number).0
}

pub(crate) fn corpus_documents(tenant: TenantId, space: SpaceKey) -> Vec<u8> {
    space_prefix_key(tenant, space).bytes(&[corpus_row::DOCUMENT]).0
}

// corpus: shard2 tenant4 space16 2 document4 passage4
pub(crate) fn corpus_passage(tenant: TenantId, space: SpaceKey, vid: u64) -> Vec<u8> {
    space_prefix_key(tenant, space).bytes(&[corpus_row::PASSAGE]).u64(vid).0
}

// corpus: shard2 tenant4 space16 3 blind16
pub(crate) fn corpus_name(tenant: TenantId, space: SpaceKey, blind: [u8; 16]) -> Vec<u8> {
    space_prefix_key(tenant, space).bytes(&[corpus_row::NAME]).bytes(&blind).0
}

// corpus: shard2 tenant4 zero16 4 space16
pub(crate) fn corpus_listed(tenant: TenantId, space: SpaceKey) -> Vec<u8> {
    space_prefix_key(tenant, NO_SPACE).bytes(&[corpus_row::LISTED]).bytes(&space).0
}

pub(crate) fn corpus_names(tenant: TenantId) -> Vec<u8> {
    space_prefix_key(tenant, NO_SPACE).bytes(&[corpus_row::LISTED]).0
}

// ctl: "s/" tenant4 space16
pub(crate) fn segment_manifest(tenant: TenantId, space: SpaceKey) -> Vec<u8> {
    Key(ctl::SEGMENT.to_vec()).u32(tenant.0).bytes(&space).0
}

/// The tenant that a row of a sealed family belongs to. `None` for keys that are too short to be ours.
pub(crate) fn tenant_of(cf: crate::backend::Cf, key: &[u8]) -> Option<TenantId> {
    let at = if cf == crate::backend::Cf::Timer { 8 } else { 2 };
    let bytes = key.get(at..at + 4)?;
    Some(TenantId(u32::from_be_bytes(bytes.try_into().ok()?)))
}

/// The last eight bytes of a key as a number.
pub(crate) fn tail_u64(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: TenantId = TenantId(7);

    #[test]
    fn numbers_sort_as_numbers() {
        let c = ConversationId([9; 16]);
        assert!(msg(T, c, 255) < msg(T, c, 256));
        assert!(timer(1, T, c, 9) < timer(2, T, c, 0));
    }

    #[test]
    fn newer_facts_come_first_in_an_edge_scan() {
        let (user, near, far) = (UserId([1; 16]), [2; 24], [3; 24]);
        let older = edge(T, user, &near, 1, 100, &far);
        let newer = edge(T, user, &near, 1, 200, &far);
        assert!(newer < older);
        assert_eq!(edge_parts(&older), Some((near, 1, 100, far)));
        assert_eq!(edge_parts(&older[..40]), None);
    }

    #[test]
    fn a_prefix_ends_after_its_last_key() {
        assert_eq!(prefix_end(&[1, 2]), vec![1, 3]);
        assert_eq!(prefix_end(&[1, 0xff]), vec![2]);
        assert!(prefix_end(&[0xff, 0xff]) > vec![0xff, 0xff, 0xff]);
    }

    #[test]
    fn tenants_and_users_never_share_a_prefix() {
        let (a, b) = (UserId([1; 16]), UserId([2; 16]));
        assert!(!memory(T, b, DocId { conversation: ConversationId([0; 16]), seq: 0 }).starts_with(&user_prefix(T, a)));
        assert_ne!(user_prefix(T, a), user_prefix(TenantId(8), a));
    }

    #[test]
    fn widths_are_those_of_the_design_document() {
        let (c, u) = (ConversationId([1; 16]), UserId([2; 16]));
        let doc = DocId { conversation: c, seq: 3 };
        let effect_key = EffectKey { conversation: c, turn: 1, step: 2 };
        assert_eq!(sess(T, c).len(), 22);
        assert_eq!(user_sess(T, u, c).len(), 38);
        assert_eq!(msg(T, c, 1).len(), 30);
        assert_eq!(inbox_parts(&inbox(T, c, 9)), Some((T, c, 9)));
        assert_eq!(inbox_parts(&sess(T, c)), None);
        assert_eq!(idem(T, [0; 16]).len(), 22);
        assert_eq!(effect(T, &effect_key).len(), 34);
        assert_eq!(timer(1, T, c, 1).len(), 36);
        assert_eq!(data_key(T, u, 1).len(), 22);
        assert_eq!(memory(T, u, doc).len(), 46);
        assert_eq!(post(T, u, [0; 8], doc).len(), 54);
        assert_eq!(edge(T, u, &[0; 24], 1, 1, &[0; 24]).len(), 80);
        assert_eq!(space(T, [0; 16], 1).len(), 30);
        assert_eq!(space_log(T, [0; 16], 1, 1).len(), 38);
        assert_eq!(pending(T, u, doc).len(), 46);
        assert_eq!(owned_by_user(T, u, [3; 16], 1).len(), 46);
        assert_eq!(owned_parts(&owned_by_user(T, u, [3; 16], 9)), Some(([3; 16], 9)));
        assert_eq!(owned_parts(&owned_in_space(T, [3; 16], u, 9)), Some((u.0, 9)));
        assert_eq!(owned_parts(&[0; 45]), None);
        assert_eq!(corpus_head(T, [0; 16]).len(), 23);
        assert_eq!(corpus_document(T, [0; 16], 1).len(), 27);
        assert_eq!(corpus_passage(T, [0; 16], 1).len(), 31);
        assert_eq!(corpus_name(T, [0; 16], [0; 16]).len(), 39);
        assert_eq!(corpus_listed(T, [1; 16]).len(), 39);
        assert_eq!(tenant_of(crate::backend::Cf::Msg, &msg(T, c, 1)), Some(T));
        assert_eq!(tenant_of(crate::backend::Cf::Timer, &timer(1, T, c, 1)), Some(T));
        assert_eq!(tenant_of(crate::backend::Cf::Msg, &[1, 2, 3]), None);
        assert_eq!(DocId::at_end_of(&memory(T, u, doc)), Some(doc));
        assert_eq!(memory_parts(&memory(T, u, doc)), Some((T, u, doc)));
        assert_eq!(memory_parts(&[0; 45]), None);
        use crate::backend::Cf;
        assert_eq!(user_sess_parts(&user_sess(T, u, c)), Some((T, u, c)));
        assert_eq!(user_sess_parts(&[0; 37]), None);
        assert_eq!(conversation_of(Cf::Msg, &msg(T, c, 1)), Some(c));
        assert_eq!(conversation_of(Cf::Receipt, &effect(T, &effect_key)), Some(c));
        assert_eq!(conversation_of(Cf::Timer, &timer(1, T, c, 1)), Some(c));
        assert_eq!(conversation_of(Cf::Mem, &memory(T, u, doc)), None);
        assert_eq!(conversation_of(Cf::Msg, &[1, 2, 3]), None);
    }
}
