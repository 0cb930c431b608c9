//! Digests, signatures and text encodings behind one facade, so that no other module names a crypto crate.
//!
//! Pure functions only: nothing here draws randomness; keys and nonces come from the caller.

use aes::cipher::{BlockModeDecrypt as _, BlockModeEncrypt as _, KeyIvInit as _};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};

/// Incremental SHA-256.
pub struct Sha256(ring::digest::Context);

impl Sha256 {
    /// An empty hash.
    pub fn new() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of everything added.
    pub fn finish(self) -> [u8; 32] {
        array(self.0.finish().as_ref())
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

/// SHA-256 of one slice.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    array(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// SHA-1, only for protocols that demand it (the WebSocket accept key). Never a security boundary.
pub fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref());
    out
}

/// HMAC-SHA-256 over the concatenation of `parts`.
pub fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key);
    let mut context = ring::hmac::Context::with_key(&key);
    for part in parts {
        context.update(part);
    }
    array(context.sign().as_ref())
}

/// HMAC-SHA-1 over the concatenation of `parts`, for the one platform that demands it (Twilio).
pub fn hmac_sha1(key: &[u8], parts: &[&[u8]]) -> [u8; 20] {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key);
    let mut context = ring::hmac::Context::with_key(&key);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 20];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// HKDF-SHA-256 (RFC 5869): 32 bytes of key material for one purpose.
pub fn hkdf_sha256(salt: &[u8], secret: &[u8], info: &[u8]) -> [u8; 32] {
    let pseudo_random_key = hmac_sha256(salt, &[secret]);
    hmac_sha256(&pseudo_random_key, &[info, &[1]])
}

/// Strict Ed25519 verification. A key or signature of the wrong length is simply not valid.
pub fn ed25519_verify(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&signature::ED25519, public_key).verify(message, signature).is_ok()
}

/// The Ed25519 signature under the key pair that grows from `seed`.
pub fn ed25519_sign(seed: &[u8; 32], message: &[u8]) -> [u8; 64] {
    let mut out = [0; 64];
    out.copy_from_slice(ed25519_pair(seed).sign(message).as_ref());
    out
}

/// The Ed25519 public key that belongs to `seed`.
pub fn ed25519_public(seed: &[u8; 32]) -> [u8; 32] {
    use ring::signature::KeyPair as _;
    array(ed25519_pair(seed).public_key().as_ref())
}

fn ed25519_pair(seed: &[u8; 32]) -> signature::Ed25519KeyPair {
    signature::Ed25519KeyPair::from_seed_unchecked(seed).expect("every 32 bytes are a seed")
}

/// ECDSA over P-256 with SHA-256, signature in DER, public key as an uncompressed point.
pub fn ecdsa_p256_verify(point: &[u8], message: &[u8], der_signature: &[u8]) -> bool {
    let algorithm: &dyn VerificationAlgorithm = &signature::ECDSA_P256_SHA256_ASN1;
    UnparsedPublicKey::new(algorithm, point).verify(message, der_signature).is_ok()
}

/// The hash of an RSA signature (PKCS #1 v1.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RsaHash {
    /// Only for Amazon SNS with signature version 1.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// RSA PKCS #1 v1.5 with 2,048 to 8,192 bits; `n` and `e` are big-endian.
pub fn rsa_verify(hash: RsaHash, n: &[u8], e: &[u8], message: &[u8], given: &[u8]) -> bool {
    let parameters = match hash {
        RsaHash::Sha1 => &signature::RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
        RsaHash::Sha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        RsaHash::Sha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        RsaHash::Sha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
    };
    fn stripped(number: &[u8]) -> &[u8] {
        &number[number.iter().take_while(|byte| **byte == 0).count()..]
    }
    let key = signature::RsaPublicKeyComponents { n: stripped(n), e: stripped(e) };
    key.verify(parameters, message, given).is_ok()
}

/// RSA PKCS #1 v1.5 with SHA-256 under a private key in PKCS #8; `None` when the key cannot be read. The
/// signature depends on key and message alone; random numbers only blind the computation.
pub fn rsa_sign_sha256(pkcs8: &[u8], message: &[u8], random: &dyn ring::rand::SecureRandom) -> Option<Vec<u8>> {
    let pair = signature::RsaKeyPair::from_pkcs8(pkcs8).ok()?;
    let mut out = vec![0; pair.public().modulus_len()];
    pair.sign(&signature::RSA_PKCS1_SHA256, random, message, &mut out).ok()?;
    Some(out)
}

/// AES-256-CBC without any padding rule; `None` unless the text is a whole number of blocks.
pub fn aes256_cbc_decrypt(key: &[u8; 32], iv: &[u8; 16], cipher_text: &[u8]) -> Option<Vec<u8>> {
    if cipher_text.is_empty() || !cipher_text.len().is_multiple_of(16) {
        return None;
    }
    let mut mode = cbc::Decryptor::<aes::Aes256>::new(&(*key).into(), &(*iv).into());
    let mut plain = Vec::with_capacity(cipher_text.len());
    for chunk in cipher_text.chunks_exact(16) {
        let mut block = aes::Block::default();
        block.copy_from_slice(chunk);
        mode.decrypt_block(&mut block);
        plain.extend_from_slice(&block);
    }
    Some(plain)
}

/// AES-256-CBC of whole blocks; `None` for anything else.
pub fn aes256_cbc_encrypt(key: &[u8; 32], iv: &[u8; 16], plain: &[u8]) -> Option<Vec<u8>> {
    if !plain.len().is_multiple_of(16) {
        return None;
    }
    let mut mode = cbc::Encryptor::<aes::Aes256>::new(&(*key).into(), &(*iv).into());
    let mut cipher_text = Vec::with_capacity(plain.len());
    for chunk in plain.chunks_exact(16) {
        let mut block = aes::Block::default();
        block.copy_from_slice(chunk);
        mode.encrypt_block(&mut block);
        cipher_text.extend_from_slice(&block);
    }
    Some(cipher_text)
}

/// Compares in time that depends on the lengths only. Different lengths are unequal at once: lengths of
/// signatures and tokens are not secret.
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0u8, |sum, (x, y)| std::hint::black_box(sum | (x ^ y)));
    std::hint::black_box(difference) == 0
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = vec![0; bytes.len() * 2];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    String::from_utf8(text).expect("hex digits are ASCII")
}

/// Reads hex of either case; `None` for an odd length or another character.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    fn nibble(digit: u8) -> Option<u8> {
        char::from(digit).to_digit(16).map(|value| value as u8)
    }
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks_exact(2).map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?)).collect()
}

/// Standard base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Reads standard base64, with or without padding.
pub fn unbase64(text: &str) -> Option<Vec<u8>> {
    STANDARD_NO_PAD.decode(text.trim_end_matches('=')).ok()
}

/// Reads standard base64 whose last character may carry stray bits: keys that platforms hand out do.
pub fn unbase64_lenient(text: &str) -> Option<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&base64::alphabet::STANDARD, CONFIG).decode(text).ok()
}

/// URL-safe base64 without padding.
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads URL-safe base64 without padding.
pub fn unbase64url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

fn array(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_vectors_hold() {
        assert_eq!(hex(&sha256(b"abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hex(&sha1(b"abc")), "a9993e364706816aba3e25717850c26c9cd0d89d");
        // RFC 4231 test case 2.
        assert_eq!(
            hex(&hmac_sha256(b"Jefe", &[b"what do ya want ", b"for nothing?"])),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        // RFC 5869 test case 1, first 32 bytes of the output.
        let okm = hkdf_sha256(
            &unhex("000102030405060708090a0b0c").unwrap(),
            &[0x0b; 22],
            &unhex("f0f1f2f3f4f5f6f7f8f9").unwrap(),
        );
        assert_eq!(hex(&okm), "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf");
        // RFC 8032 section 7.1, test 2.
        let key = unhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c").unwrap();
        let signature = unhex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
             085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        )
        .unwrap();
        assert!(ed25519_verify(&key, &[0x72], &signature));
        assert!(!ed25519_verify(&key, &[0x73], &signature));
        assert!(!ed25519_verify(&key[1..], &[0x72], &signature));
        assert!(!ed25519_verify(&key, &[0x72], &signature[..63]));
    }

    #[test]
    fn aes_cbc_is_that_of_the_standard() {
        // NIST SP 800-38A, F.2.5, first block.
        let key: [u8; 32] =
            unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4").unwrap().try_into().unwrap();
        let iv: [u8; 16] = unhex("000102030405060708090a0b0c0d0e0f").unwrap().try_into().unwrap();
        let plain = unhex("6bc1bee22e409f96e93d7e117393172a").unwrap();
        let sealed = aes256_cbc_encrypt(&key, &iv, &plain).unwrap();
        assert_eq!(hex(&sealed), "f58c4c04d6e5f1ba779eabfb5f7bfbd6");
        assert_eq!(aes256_cbc_decrypt(&key, &iv, &sealed), Some(plain));
        assert_eq!(aes256_cbc_decrypt(&key, &iv, &sealed[1..]), None);
        assert_eq!(aes256_cbc_decrypt(&key, &iv, b""), None);
    }

    #[test]
    fn comparison_and_encodings() {
        assert!(constant_time_eq(b"", b""));
        assert!(constant_time_eq(b"same", b"same"));
        assert!(!constant_time_eq(b"same", b"sama"));
        assert!(!constant_time_eq(b"same", b"same "));
        assert_eq!(unhex("0aFf"), Some(vec![0x0a, 0xff]));
        assert_eq!(unhex("0"), None);
        assert_eq!(unhex("+1"), None);
        assert_eq!(unbase64("aGk="), Some(b"hi".to_vec()));
        assert_eq!(unbase64("aGk"), Some(b"hi".to_vec()));
        assert_eq!(unbase64("a Gk"), None);
        assert_eq!(base64url(&[0xfb, 0xff]), "-_8");
        assert_eq!(unbase64url("-_8"), Some(vec![0xfb, 0xff]));
    }
}
