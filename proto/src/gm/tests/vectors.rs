//! The known answers in `tests/data/gm_vectors.json`: from the standards, RFC 8998 and other implementations.

use super::super::kernel;
use super::super::*;
use super::{bytes, modes};
use serde_json::Value;

const VECTORS: &str = include_str!("../../../../tests/data/gm_vectors.json");

fn list(path: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(VECTORS).expect("the file is JSON");
    let found = all.pointer(path).unwrap_or_else(|| panic!("{path} is missing"));
    match found {
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    }
}

fn text<'a>(vector: &'a Value, field: &str) -> &'a str {
    vector[field].as_str().unwrap_or_else(|| panic!("{field} is missing in {vector}"))
}

fn hex_of(vector: &Value, field: &str) -> Vec<u8> {
    bytes(text(vector, field))
}

#[test]
fn sm3() {
    let vectors = list("/sm3");
    for vector in &vectors {
        let message = match &vector["msg_repeat"] {
            Value::Null => hex_of(vector, "msg"),
            repeat => vec![hex_of(repeat, "byte")[0]; repeat["count"].as_u64().unwrap() as usize],
        };
        assert_eq!(super::super::sm3(&message)[..], hex_of(vector, "digest"), "{vector}");
        let mut parts = Sm3::default();
        message.chunks(77).for_each(|part| parts.update(part));
        assert_eq!(parts.finish()[..], hex_of(vector, "digest"), "in parts: {vector}");
    }
    println!("SM3: {} of {}", vectors.len(), vectors.len());
}

#[test]
fn hmac_and_pbkdf2() {
    let macs = list("/hmac_sm3");
    for vector in &macs {
        let made = hmac_sm3(&hex_of(vector, "key"), &[&hex_of(vector, "msg")]);
        assert_eq!(made[..], hex_of(vector, "mac"), "{vector}");
    }
    let passwords = list("/pbkdf2_hmac_sm3");
    for vector in &passwords {
        let wanted = hex_of(vector, "dk");
        let mut made = vec![0; wanted.len()];
        let rounds = vector["iter"].as_u64().unwrap() as u32;
        pbkdf2_hmac_sm3(&hex_of(vector, "password"), &hex_of(vector, "salt"), rounds, &mut made);
        assert_eq!(made, wanted, "{vector}");
    }
    println!("HMAC-SM3: {0} of {0}; PBKDF2-HMAC-SM3: {1} of {1}", macs.len(), passwords.len());
}

#[test]
fn sm4_on_every_instruction_set() {
    let vectors = list("/sm4");
    for set in kernel::all() {
        for vector in &vectors {
            // A million blocks one after the other: seconds with the scalar box, so one fast set does it.
            if vector["iterations"].is_number() && set.name != kernel::chosen().name {
                continue;
            }
            check_sm4(set, vector);
        }
        println!("SM4 on {}: {} of {}", set.name, vectors.len(), vectors.len());
    }
}

fn check_sm4(set: &'static kernel::Kernel, vector: &Value) {
    let key: [u8; 16] = hex_of(vector, "key").try_into().unwrap();
    let cipher = super::super::sm4::Sm4::on(set, &key);
    let (plain, wanted) = (hex_of(vector, "pt"), hex_of(vector, "ct"));
    let iv = || -> modes::Block { hex_of(vector, "iv").try_into().unwrap() };
    let mut made = plain.clone();
    match text(vector, "mode") {
        "ecb" => {
            for _ in 0..vector["iterations"].as_u64().unwrap_or(1) {
                cipher.encrypt_blocks(&mut made);
            }
            if vector["iterations"].is_null() {
                let mut back = wanted.clone();
                cipher.decrypt_blocks(&mut back);
                assert_eq!(back, plain, "{}: {vector}", set.name);
            }
        }
        "cbc" => {
            made = modes::cbc_encrypt(&cipher, &iv(), &plain);
            assert_eq!(modes::cbc_decrypt(&cipher, &iv(), &wanted), plain, "{}: {vector}", set.name);
        }
        "cfb" => made = modes::feedback(&cipher, &iv(), &plain, true),
        "ofb" => made = modes::feedback(&cipher, &iv(), &plain, false),
        "ctr" => made = modes::ctr(&cipher, &iv(), &plain),
        "gcm" => {
            let sealer = super::super::gcm::Sm4Gcm::on(set, &key);
            let (nonce, aad) = (hex_of(vector, "iv"), hex_of(vector, "aad"));
            let tag = sealer.seal_in_place(&nonce, &aad, &mut made);
            assert_eq!(tag[..], hex_of(vector, "tag"), "{}: {vector}", set.name);
            let mut back = wanted.clone();
            sealer.open_in_place(&nonce, &aad, &mut back, &tag).unwrap();
            assert_eq!(back, plain);
        }
        "ccm" => {
            let (ct, tag) = modes::ccm(&cipher, &hex_of(vector, "iv"), &hex_of(vector, "aad"), &plain, 16).unwrap();
            assert_eq!(tag, hex_of(vector, "tag"), "{}: {vector}", set.name);
            made = ct;
        }
        other => panic!("no such mode: {other}"),
    }
    assert_eq!(made, wanted, "{}: {vector}", set.name);
}

fn name(vector: &Value) -> String {
    String::from_utf8(hex_of(vector, "id")).expect("names are text")
}

#[test]
fn sm2_signatures() {
    let signed = list("/sm2/sign");
    for vector in &signed {
        let private = Sm2Private::from_bytes(&hex_of(vector, "d").try_into().unwrap()).unwrap();
        let public = private.public();
        assert_eq!(public.to_sec1(), hex_of(vector, "pub_uncompressed"));
        let (name, message) = (name(vector), hex_of(vector, "msg"));
        // The number k of the vector cannot be handed in: ours follows from key and message (RFC 6979).
        public.verify(&name, &message, &[hex_of(vector, "r"), hex_of(vector, "s")].concat()).unwrap();
        public.verify_der(&name, &message, &hex_of(vector, "der")).unwrap();
        let ours = private.sign(&name, &message).unwrap();
        public.verify(&name, &message, &ours).unwrap();
        assert_eq!(ours, private.sign(&name, &message).unwrap(), "signatures are deterministic");
        assert!(!format!("{private:?}").contains("39"), "a private key shows nothing");
    }
    let verified = list("/sm2/verify");
    for vector in &verified {
        let public = Sm2Public::from_sec1(&hex_of(vector, "pub_uncompressed")).unwrap();
        let signature = [hex_of(vector, "r"), hex_of(vector, "s")].concat();
        let (plain, der) = if vector["prehashed"] == true {
            let digest = hex_of(vector, "e");
            let plain = public.verify_digest(&digest, &signature);
            (plain, plain)
        } else {
            let (name, message) = (name(vector), hex_of(vector, "msg"));
            let der = match &vector["der"] {
                Value::String(der) => public.verify_der(&name, &message, &bytes(der)),
                _ => public.verify(&name, &message, &signature),
            };
            (public.verify(&name, &message, &signature), der)
        };
        assert_eq!(plain.is_ok(), vector["valid"] == true, "{vector}");
        assert_eq!(der.is_ok(), vector["valid"] == true, "in DER: {vector}");
    }
    println!("SM2 sign: {0} of {0}; verify: {1} of {1}", signed.len(), verified.len());
}

#[test]
fn sm2_encryption() {
    let encrypted = list("/sm2/encrypt");
    for vector in &encrypted {
        let private = Sm2Private::from_bytes(&hex_of(vector, "d").try_into().unwrap()).unwrap();
        let public = Sm2Public::from_sec1(&hex_of(vector, "pub_uncompressed")).unwrap();
        let (plain, k) = (hex_of(vector, "pt"), hex_of(vector, "k").try_into().unwrap());
        for (order, field) in [(Sm2Order::C1C3C2, "c1c3c2"), (Sm2Order::C1C2C3, "c1c2c3_old_order")] {
            assert_eq!(public.encrypt(order, &k, &plain).unwrap(), hex_of(vector, field), "{field}");
            assert_eq!(private.decrypt(order, &hex_of(vector, field)).unwrap(), plain, "{field}");
        }
        assert_eq!(private.decrypt_der(&hex_of(vector, "der_gmt0009")).unwrap(), plain);
        assert_eq!(private.decrypt(Sm2Order::C1C2C3, &hex_of(vector, "c1c3c2")), Err(Sm2Error::Ciphertext));
    }
    let decrypted = list("/sm2/decrypt");
    for vector in &decrypted {
        let private = Sm2Private::from_bytes(&hex_of(vector, "d").try_into().unwrap()).unwrap();
        let made = match &vector["ct_der"] {
            Value::String(der) => private.decrypt_der(&bytes(der)),
            _ => private.decrypt(Sm2Order::C1C3C2, &hex_of(vector, "ct")),
        };
        match &vector["pt"] {
            Value::String(plain) => assert_eq!(made.unwrap(), bytes(plain), "{vector}"),
            _ => assert_eq!(made, Err(Sm2Error::Ciphertext), "{vector}"),
        }
    }
    println!("SM2 encrypt: {0} of {0}; decrypt: {1} of {1}", encrypted.len(), decrypted.len());
}

#[test]
fn keys_that_are_none_are_refused() {
    assert_eq!(Sm2Private::from_bytes(&[0; 32]).unwrap_err(), Sm2Error::PrivateKey);
    assert_eq!(Sm2Private::from_bytes(&[0xff; 32]).unwrap_err(), Sm2Error::PrivateKey);
    for point in [&[][..], &[0], &[4; 65], &[4; 64], &[2; 33]] {
        let made = Sm2Public::from_sec1(point);
        assert!(made.is_err() || point.len() == 33, "{point:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_sm2_panic(noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
        let private = Sm2Private::from_bytes(&[7; 32]).unwrap();
        let _ = Sm2Public::from_sec1(&noise);
        proptest::prop_assert!(private.public().verify("n", b"m", &noise).is_err());
        proptest::prop_assert!(private.public().verify_der("n", b"m", &noise).is_err());
        proptest::prop_assert!(private.decrypt(Sm2Order::C1C3C2, &noise).is_err());
        proptest::prop_assert!(private.decrypt_der(&noise).is_err());
    }
}
