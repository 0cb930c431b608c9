//! SM2 (GB/T 32918-2016): signatures and public-key encryption on the curve sm2p256v1.
//!
//! Signatures are deterministic (RFC 6979), so none can be spoilt by a bad random number. The signer's name
//! takes part in the digest; [`DEFAULT_NAME`] is the one everybody uses when nothing was agreed.

use sm2::dsa::signature::hazmat::PrehashVerifier as _;
use sm2::dsa::signature::{Signer as _, Verifier as _};
use sm2::dsa::{Signature, SigningKey, VerifyingKey};
use sm2::elliptic_curve::rand_core::{TryCryptoRng, TryRng};
use sm2::elliptic_curve::sec1::ToSec1Point as _;
use sm2::pke::{DecryptingKey, EncryptingKey, Mode};
use sm2::{PublicKey, SecretKey};

/// The name that signers use when none was agreed (GM/T 0009-2012).
pub const DEFAULT_NAME: &str = "1234567812345678";

/// Why an SM2 operation gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Sm2Error {
    /// Not a number between 1 and the order of the curve.
    #[error("the SM2 private key is not a 32-byte number below the order of the curve")]
    PrivateKey,
    /// Not a point of the curve.
    #[error("the SM2 public key is not a point of the curve in SEC 1 form")]
    PublicKey,
    /// The signer's name is longer than its length field can say.
    #[error("the SM2 signer's name is longer than 8191 bytes")]
    Name,
    /// The signature does not fit.
    #[error("the SM2 signature does not belong to this message, name and key")]
    Signature,
    /// The text was changed or is for another key.
    #[error("the SM2 ciphertext was changed, is cut short, or belongs to another key")]
    Ciphertext,
    /// The caller's random bytes gave no usable number.
    #[error("the random bytes for SM2 encryption gave no usable number; draw new ones")]
    Random,
}

/// The order of the parts of a ciphertext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sm2Order {
    /// Point, digest, text: the standard since 2012.
    #[default]
    C1C3C2,
    /// Point, text, digest: what older libraries write.
    C1C2C3,
}

impl From<Sm2Order> for Mode {
    fn from(order: Sm2Order) -> Self {
        match order {
            Sm2Order::C1C3C2 => Self::C1C3C2,
            Sm2Order::C1C2C3 => Self::C1C2C3,
        }
    }
}

/// A public key.
#[derive(Debug, Clone)]
pub struct Sm2Public(PublicKey);

impl Sm2Public {
    /// Reads a point in SEC 1 form (65 bytes, or 33 compressed).
    pub fn from_sec1(point: &[u8]) -> Result<Self, Sm2Error> {
        PublicKey::from_sec1_bytes(point).map(Self).map_err(|_| Sm2Error::PublicKey)
    }

    /// The point in 65 bytes.
    #[must_use]
    pub fn to_sec1(&self) -> Vec<u8> {
        self.0.to_sec1_point(false).as_bytes().to_vec()
    }

    /// Checks a signature `r || s` of 64 bytes.
    pub fn verify(&self, name: &str, message: &[u8], signature: &[u8]) -> Result<(), Sm2Error> {
        let signature = Signature::try_from(signature).map_err(|_| Sm2Error::Signature)?;
        self.verify_parsed(name, message, &signature)
    }

    /// Checks a signature in DER.
    pub fn verify_der(&self, name: &str, message: &[u8], signature: &[u8]) -> Result<(), Sm2Error> {
        let signature = sm2::dsa::DerSignature::from_bytes(signature).map_err(|_| Sm2Error::Signature)?;
        let signature = Signature::try_from(signature).map_err(|_| Sm2Error::Signature)?;
        self.verify_parsed(name, message, &signature)
    }

    /// Checks a signature over a digest that somebody else made (of 32 bytes, name included).
    pub fn verify_digest(&self, digest: &[u8], signature: &[u8]) -> Result<(), Sm2Error> {
        let signature = Signature::try_from(signature).map_err(|_| Sm2Error::Signature)?;
        let key = VerifyingKey::new(DEFAULT_NAME, self.0).map_err(|_| Sm2Error::Name)?;
        key.verify_prehash(digest, &signature).map_err(|_| Sm2Error::Signature)
    }

    fn verify_parsed(&self, name: &str, message: &[u8], signature: &Signature) -> Result<(), Sm2Error> {
        let key = VerifyingKey::new(name, self.0).map_err(|_| Sm2Error::Name)?;
        key.verify(message, signature).map_err(|_| Sm2Error::Signature)
    }

    /// Encrypts a text. `random` are fresh random bytes, used for this text only.
    pub fn encrypt(&self, order: Sm2Order, random: &[u8; 32], text: &[u8]) -> Result<Vec<u8>, Sm2Error> {
        let key = EncryptingKey::new_with_mode(self.0, order.into());
        key.encrypt(&mut Once(Some(*random)), text).map_err(|_| Sm2Error::Random)
    }
}

/// A private key. Wiped when dropped.
pub struct Sm2Private(SecretKey);

impl Sm2Private {
    /// Reads 32 bytes, big-endian.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, Sm2Error> {
        SecretKey::from_slice(bytes).map(Self).map_err(|_| Sm2Error::PrivateKey)
    }

    /// The public key that belongs to it.
    #[must_use]
    pub fn public(&self) -> Sm2Public {
        Sm2Public(self.0.public_key())
    }

    /// Signs a message under a name; the signature is `r || s`.
    pub fn sign(&self, name: &str, message: &[u8]) -> Result<[u8; 64], Sm2Error> {
        let key = SigningKey::new(name, &self.0).map_err(|_| Sm2Error::Name)?;
        Ok(key.sign(message).to_bytes().into())
    }

    /// Decrypts a text.
    pub fn decrypt(&self, order: Sm2Order, text: &[u8]) -> Result<Vec<u8>, Sm2Error> {
        let key = DecryptingKey::new_with_mode(self.0.to_nonzero_scalar(), order.into());
        key.decrypt(text).map_err(|_| Sm2Error::Ciphertext)
    }

    /// Decrypts a text in the ASN.1 form of GM/T 0009.
    pub fn decrypt_der(&self, text: &[u8]) -> Result<Vec<u8>, Sm2Error> {
        let key = DecryptingKey::new(self.0.clone());
        key.decrypt_der(text).map_err(|_| Sm2Error::Ciphertext)
    }
}

impl std::fmt::Debug for Sm2Private {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sm2Private").finish_non_exhaustive()
    }
}

/// Random bytes that were drawn outside, given out once; a second draw fails instead of repeating.
struct Once(Option<[u8; 32]>);

/// The bytes are used up.
#[derive(Debug)]
struct UsedUp;

impl std::fmt::Display for UsedUp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the random bytes are used up")
    }
}

impl std::error::Error for UsedUp {}

impl TryRng for Once {
    type Error = UsedUp;

    fn try_next_u32(&mut self) -> Result<u32, UsedUp> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, UsedUp> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), UsedUp> {
        let bytes = self.0.take().ok_or(UsedUp)?;
        if out.len() > bytes.len() {
            return Err(UsedUp);
        }
        out.copy_from_slice(&bytes[..out.len()]);
        Ok(())
    }
}

impl TryCryptoRng for Once {}
