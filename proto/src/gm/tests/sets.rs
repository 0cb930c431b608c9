//! Every instruction set of this processor against the scalar one, and the scalar one against RustCrypto.

use super::super::gcm::Sm4Gcm;
use super::super::kernel::{self, scalar};
use super::super::sm4::Sm4;
use proptest::prelude::*;
use sm4::cipher::{BlockCipherEncrypt as _, KeyInit as _};

#[test]
fn the_sets_of_this_processor_are_named() {
    let names: Vec<&str> = kernel::all().iter().map(|set| set.name).collect();
    println!("instruction sets: {names:?}, chosen {}", kernel::chosen().name);
    assert_eq!(names[0], "scalar");
    assert_eq!(kernel::chosen().name, *names.last().unwrap());
}

#[test]
fn a_key_shows_nothing_of_itself() {
    let shown = format!("{:?} {:?}", Sm4::new(&[0x5a; 16]), Sm4Gcm::new(&[0x5a; 16]));
    assert!(!shown.contains("90") && !shown.contains("5a") && shown.contains(".."), "{shown}");
}

proptest! {
    #[test]
    fn blocks_agree_with_an_independent_cipher(
        key: [u8; 16], data in proptest::collection::vec(any::<[u8; 16]>(), 0..70),
    ) {
        let oracle = sm4::Sm4::new(&key.into());
        let wanted: Vec<u8> = data.iter().flat_map(|block| {
            let mut block = (*block).into();
            oracle.encrypt_block(&mut block);
            block
        }).collect();
        for set in kernel::all() {
            let cipher = Sm4::on(set, &key);
            let mut out = data.concat();
            cipher.encrypt_blocks(&mut out);
            prop_assert_eq!(&out, &wanted, "{}", set.name);
            cipher.decrypt_blocks(&mut out);
            prop_assert_eq!(out, data.concat(), "{}", set.name);
        }
    }

    #[test]
    fn hashes_agree(key: [u8; 16], start: [u8; 16], data in proptest::collection::vec(any::<[u8; 16]>(), 0..70)) {
        let hash = |set: &kernel::Kernel| {
            let mut sum = start;
            (set.ghash)(&(set.powers)(&key), &mut sum, &data.concat());
            sum
        };
        for set in kernel::all() {
            prop_assert_eq!(hash(set), hash(&scalar::KERNEL), "{}", set.name);
        }
    }

    #[test]
    fn sealed_texts_agree_open_and_notice_every_change(
        key: [u8; 16], nonce in proptest::collection::vec(any::<u8>(), 1..40),
        aad in proptest::collection::vec(any::<u8>(), 0..100), len in 0usize..20_000, fill: u8, at: usize, flip in 1..=255u8,
    ) {
        let plain: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(31) ^ fill).collect();
        let mut wanted = None;
        // The scalar set is slow; long texts are compared between the fast ones.
        for set in kernel::all().into_iter().filter(|set| len < 2_000 || set.name != "scalar") {
            let sealer = Sm4Gcm::on(set, &key);
            let mut data = plain.clone();
            let tag = sealer.seal_in_place(&nonce, &aad, &mut data);
            let made = (data.clone(), tag);
            prop_assert_eq!(&made, wanted.get_or_insert(made.clone()), "{}", set.name);
            let mut changed = (data.clone(), tag, aad.clone());
            match at % (len + 16 + aad.len()) {
                place if place < len => changed.0[place] ^= flip,
                place if place < len + 16 => changed.1[place - len] ^= flip,
                place => changed.2[place - len - 16] ^= flip,
            }
            let before = changed.0.clone();
            prop_assert!(sealer.open_in_place(&nonce, &changed.2, &mut changed.0, &changed.1).is_err());
            prop_assert_eq!(&changed.0, &before, "a text that does not open is left as it was");
            prop_assert!(sealer.open_in_place(&nonce, &aad, &mut data, &tag[..15]).is_err(), "a short tag");
            prop_assert!(sealer.open_in_place(&nonce, &aad, &mut data, &tag).is_ok());
            prop_assert_eq!(&data, &plain);
        }
    }
}
