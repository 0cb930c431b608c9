//! The key ring over the memory engine: whose key opens what.

use super::keyring::{check, tenants};
use super::*;
use crate::backend::memory::{Fault, MemoryBackend};
use crate::backend::{Cf, KvStore};
use crate::error::{CommitError, ReadError};
use millrace_proto::digest;
use millrace_proto::id::{TenantId, UserId};
use std::path::Path;
use std::sync::Arc;

const T5: TenantId = TenantId(5);
const ALICE: UserId = UserId([1; 16]);
const BOB: UserId = UserId([2; 16]);

fn kek(byte: u8) -> Kek {
    keyfile::parse(&digest::hex(&[byte; 32])).unwrap()
}

fn ring(folder: &Path, byte: u8, suite: Suite) -> KeyRing {
    KeyRing::new(kek(byte), Slots::open(&folder.join(SLOTS_FILE)).unwrap(), suite).unwrap()
}

#[test]
fn keys_survive_a_restart_and_are_their_owners_own() {
    for suite in [Suite::Intl, Suite::Gm] {
        let folder = tempfile::tempdir().unwrap();
        let kv = MemoryBackend::new();
        let first = ring(folder.path(), 1, suite);
        let tenant = first.find_or_make(&kv, T5).unwrap();
        let alice = first.find_or_make_user(&kv, T5, ALICE).unwrap();
        let bob = first.find_or_make_user(&kv, T5, BOB).unwrap();
        let sealed = alice.seal(Cf::Msg, b"k", b"secret");
        let of_tenant = tenant.seal(Cf::Msg, b"k", b"shared");
        let blind: [u8; 16] = alice.blind("d", &[b"x"]);
        assert_ne!(blind, bob.blind::<16>("d", &[b"x"]), "one word of two users is two ids");
        assert_ne!(blind, alice.blind::<16>("e", &[b"x"]));
        assert_ne!(blind, alice.blind::<16>("d", &[b"x", b""]));
        drop(first);

        // The suite of a start is for new tenants only.
        let again = ring(folder.path(), 1, Suite::Intl);
        assert!(again.opened((T5, ALICE)).is_none());
        let alice = again.find_user(&kv, T5, ALICE).unwrap().unwrap();
        assert_eq!(alice.suite(), suite);
        assert_eq!(alice.open(Cf::Msg, b"k", sealed.clone()).unwrap(), b"secret");
        assert_eq!(alice.open(Cf::Msg, b"k", of_tenant).unwrap(), b"shared", "what is the tenant's own opens too");
        assert_eq!(alice.blind::<16>("d", &[b"x"]), blind);
        for other in [again.find_user(&kv, T5, BOB).unwrap().unwrap(), again.find(&kv, T5).unwrap().unwrap()] {
            assert!(matches!(other.open(Cf::Msg, b"k", sealed.clone()), Err(ReadError::Corrupt { .. })));
        }
        assert!(again.find_user(&kv, T5, UserId([9; 16])).unwrap().is_none());
        assert!(format!("{alice:?}").ends_with(".. }"), "{alice:?}");
    }
}

#[test]
fn another_key_of_keys_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let kv = MemoryBackend::new();
    let right = ring(folder.path(), 1, Suite::Intl);
    let stored = right.check_value();
    right.find_or_make(&kv, T5).unwrap();
    assert!(check(&kek(1), &stored));
    assert!(!check(&kek(2), &stored));
    let wrong = ring(folder.path(), 2, Suite::Intl);
    assert!(matches!(wrong.find(&kv, T5), Err(ReadError::Corrupt { cf: "key", .. })));
}

#[test]
fn a_key_that_could_not_be_written_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let kv = MemoryBackend::new();
    let keys = ring(folder.path(), 1, Suite::Intl);
    kv.inject(Fault::NoSpace);
    assert!(matches!(keys.find_or_make(&kv, T5), Err(CommitError::NoSpace { .. })));
    assert!(keys.opened((T5, NO_USER)).is_none());
    kv.inject(Fault::None);
    kv.recover().unwrap();
    keys.find_or_make(&kv, T5).unwrap();
    kv.inject(Fault::NoSpace);
    assert!(matches!(keys.find_or_make_user(&kv, T5, ALICE), Err(CommitError::NoSpace { .. })));
    assert!(keys.opened((T5, ALICE)).is_none());
}

#[test]
fn a_new_epoch_seals_and_the_old_one_still_opens() {
    let folder = tempfile::tempdir().unwrap();
    let kv = MemoryBackend::new();
    let keys = ring(folder.path(), 1, Suite::Intl);
    let old = keys.find_or_make_user(&kv, T5, ALICE).unwrap();
    let sealed = old.seal(Cf::Msg, b"k", b"secret");
    let blind: [u8; 8] = old.blind("d", &[b"x"]);
    let new = keys.rotate(&kv, (T5, ALICE), Some(Suite::Gm)).unwrap();
    assert_eq!((new.stamp().epoch, new.suite()), (2, Suite::Gm));
    assert_eq!(new.open(Cf::Msg, b"k", sealed).unwrap(), b"secret");
    assert_eq!(new.blind::<8>("d", &[b"x"]), blind, "ids outlive a rotation");
    let sealed = new.seal(Cf::Msg, b"k", b"secret");
    assert!(matches!(old.open(Cf::Msg, b"k", sealed), Err(ReadError::KeyGone { tenant: 5, epoch: 2 })));
    assert!(matches!(keys.rotate(&kv, (T5, BOB), None), Err(CommitError::Invalid { .. })));
    assert_eq!(users(&kv, T5).unwrap(), [ALICE]);
    assert_eq!(tenants(&kv).unwrap(), [T5]);
    assert!(has_user_keys(&kv).unwrap());
}

#[test]
fn an_erased_user_has_no_keys_and_gets_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let kv = MemoryBackend::new();
    let keys = ring(folder.path(), 1, Suite::Intl);
    let old = keys.find_or_make_user(&kv, T5, ALICE).unwrap();
    keys.rotate(&kv, (T5, ALICE), None).unwrap();
    let sealed = old.seal(Cf::Msg, b"k", b"secret");
    let slots = keys.slots_of(&kv, (T5, ALICE)).unwrap();
    assert_eq!(slots.len(), 2, "one of each epoch");
    keys.erase(&slots).unwrap();
    keys.close_user((T5, ALICE));
    assert!(keys.find_user(&kv, T5, ALICE).unwrap().is_none());
    let rows: Vec<_> = kv.dump().into_iter().filter(|(cf, key, _)| *cf == Cf::Key && key[4..20] == ALICE.0).collect();
    for (cf, key, _) in rows {
        kv.apply(&[crate::backend::KvOp::Delete(cf, key)], true).unwrap();
    }
    let new = keys.find_or_make_user(&kv, T5, ALICE).unwrap();
    assert!(matches!(new.open(Cf::Msg, b"k", sealed), Err(ReadError::Corrupt { .. })), "the same epoch, another key");
}

#[test]
fn rewrapping_changes_the_key_of_keys_only() {
    let folder = tempfile::tempdir().unwrap();
    let kv = MemoryBackend::new();
    let keys = ring(folder.path(), 1, Suite::Gm);
    let sealed = keys.find_or_make_user(&kv, T5, ALICE).unwrap().seal(Cf::Msg, b"k", b"secret");
    keys.find_or_make(&kv, TenantId(u32::MAX)).unwrap();
    assert_eq!(keys.rewrap(&kv, kek(2)).unwrap(), 2);
    assert!(keys.is_master(&kek(2)) && !keys.is_master(&kek(1)));
    assert!(check(&kek(2), &kv.get(Cf::Ctl, b"key-check").unwrap().unwrap()));
    drop(keys);
    let again = ring(folder.path(), 2, Suite::Gm);
    let alice: Arc<TenantKeys> = again.find_user(&kv, T5, ALICE).unwrap().unwrap();
    assert_eq!(alice.open(Cf::Msg, b"k", sealed).unwrap(), b"secret");
    assert!(ring(folder.path(), 1, Suite::Gm).find(&kv, T5).is_err());
}
