//! One data key: sealing, opening and the envelope around it.

use super::Suite;
use crate::backend::Cf;
use millrace_proto::gm::Sm4Gcm;
use millrace_proto::id::UserId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes before the ciphertext.
pub(crate) const HEADER_BYTES: usize = 32;
/// Bytes after the ciphertext.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes that sealing adds to a value.
#[cfg(test)]
pub(crate) const OVERHEAD_BYTES: usize = HEADER_BYTES + TAG_BYTES;

const VERSION: u8 = 2;
/// Envelopes of schemas 1 to 3.
const OLD_VERSION: u8 = 1;
const OLD_HEADER_BYTES: usize = 16;
/// Longest key that sealed families use, with room; keys are ours, so a longer one is our mistake.
const KEY_BYTES_MAX: usize = 254;

/// Draws nonces that never repeat under one key.
///
/// Six random bytes are drawn once per opened store, six bytes count records. Random nonces alone
/// would reach the collision bound of GCM (2^32 records a key) within weeks on a busy node; a
/// counter that is kept on disk would repeat when a copy of the folder is started twice.
pub(crate) struct NonceSource {
    prefix: [u8; 6],
    next: AtomicU64,
}

impl NonceSource {
    pub fn new() -> Result<Self, getrandom::Error> {
        let mut prefix = [0; 6];
        getrandom::fill(&mut prefix)?;
        Ok(Self { prefix, next: AtomicU64::new(0) })
    }

    fn draw(&self) -> [u8; NONCE_LEN] {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        assert!(count < 1 << 48, "a store seals fewer than 2^48 records between two starts");
        let mut nonce = [0; NONCE_LEN];
        nonce[..6].copy_from_slice(&self.prefix);
        nonce[6..].copy_from_slice(&count.to_be_bytes()[2..]);
        nonce
    }
}

/// Why a sealed value did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenFailure {
    /// Too short, or of an unknown algorithm or version.
    Malformed(&'static str),
    /// The epoch's key is not known.
    NoKey(u16),
    /// It says another algorithm than its key was made for.
    OtherSuite(Suite),
    /// Wrong key, moved or changed bytes.
    NotAuthentic,
}

/// What a value says about the key that sealed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub epoch: u16,
    pub owner: UserId,
}

/// One data key. The schedule inside the AES library is not wiped when dropped; ours is.
pub(crate) enum DataKey {
    Intl(Box<LessSafeKey>),
    Gm(Box<Sm4Gcm>),
}

impl DataKey {
    /// SM4 takes 16 of the 32 bytes.
    pub fn new(suite: Suite, bytes: &[u8; 32]) -> Self {
        match suite {
            Suite::Intl => {
                let key = UnboundKey::new(&AES_256_GCM, bytes).expect("AES-256 takes exactly 32 bytes");
                Self::Intl(Box::new(LessSafeKey::new(key)))
            }
            Suite::Gm => {
                let (half, _) = bytes.split_first_chunk().expect("32 bytes hold 16");
                Self::Gm(Box::new(Sm4Gcm::new(half)))
            }
        }
    }

    pub fn suite(&self) -> Suite {
        match self {
            Self::Intl(_) => Suite::Intl,
            Self::Gm(_) => Suite::Gm,
        }
    }

    /// Seals a piece of a file in place and gives its tag. The caller uses no nonce twice under one key.
    pub fn seal_piece(&self, nonce: [u8; NONCE_LEN], place: &[u8], data: &mut [u8]) -> [u8; TAG_BYTES] {
        match self {
            Self::Intl(aes) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = aes
                    .seal_in_place_separate_tag(nonce, Aad::from(place), data)
                    .expect("a piece is shorter than the 64 GiB bound of GCM");
                tag.as_ref().try_into().expect("a tag has 16 bytes")
            }
            Self::Gm(sm4) => sm4.seal_in_place(&nonce, place, data),
        }
    }

    /// Opens a sealed piece (ciphertext and tag) in place and says how long the plain bytes at its start are.
    pub fn open_piece(&self, nonce: [u8; NONCE_LEN], place: &[u8], sealed: &mut [u8]) -> Option<usize> {
        match self {
            Self::Intl(aes) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                aes.open_in_place(nonce, Aad::from(place), sealed).ok().map(|plain| plain.len())
            }
            Self::Gm(sm4) => {
                let end = sealed.len().checked_sub(TAG_BYTES)?;
                let (data, tag) = sealed.split_at_mut(end);
                sm4.open_in_place(&nonce, place, data, tag).ok().map(|()| end)
            }
        }
    }

    /// Seals `plain` for its place.
    pub fn seal(&self, nonces: &NonceSource, stamp: Stamp, cf: Cf, key: &[u8], plain: &[u8]) -> Vec<u8> {
        let nonce = nonces.draw();
        let mut out = Vec::with_capacity(HEADER_BYTES + plain.len() + TAG_BYTES);
        out.extend_from_slice(&[VERSION, self.suite().number()]);
        out.extend_from_slice(&stamp.epoch.to_be_bytes());
        out.extend_from_slice(&nonce);
        out.extend_from_slice(&stamp.owner.0);
        out.extend_from_slice(plain);
        let place = Place::new(cf, VERSION, &out[..HEADER_BYTES], key);
        let data = &mut out[HEADER_BYTES..];
        match self {
            Self::Intl(aes) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = aes
                    .seal_in_place_separate_tag(nonce, Aad::from(place.as_slice()), data)
                    .expect("a record is shorter than the 64 GiB bound of GCM");
                out.extend_from_slice(tag.as_ref());
            }
            Self::Gm(sm4) => {
                let tag = sm4.seal_in_place(&nonce, place.as_slice(), data);
                out.extend_from_slice(&tag);
            }
        }
        out
    }

    /// Opens in place and returns the plain bytes.
    pub fn open(&self, cf: Cf, key: &[u8], mut sealed: Vec<u8>) -> Result<Vec<u8>, OpenFailure> {
        let header = Header::read(&sealed)?;
        if header.suite != self.suite() {
            return Err(OpenFailure::OtherSuite(header.suite));
        }
        let place = Place::new(cf, header.version, &sealed[..header.bytes], key);
        let plain = match self {
            Self::Intl(aes) => {
                let (nonce, aad) = (Nonce::assume_unique_for_key(header.nonce), Aad::from(place.as_slice()));
                let opened = aes.open_within(nonce, aad, &mut sealed, header.bytes..);
                opened.map_err(|_| OpenFailure::NotAuthentic)?.len()
            }
            Self::Gm(sm4) => {
                let end = sealed.len() - TAG_BYTES;
                let (data, tag) = sealed.split_at_mut(end);
                sm4.open_in_place(&header.nonce, place.as_slice(), &mut data[header.bytes..], tag)
                    .map_err(|_| OpenFailure::NotAuthentic)?;
                sealed.copy_within(header.bytes..end, 0);
                end - header.bytes
            }
        };
        sealed.truncate(plain);
        Ok(sealed)
    }
}

/// The clear part of a sealed value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub version: u8,
    pub suite: Suite,
    pub stamp: Stamp,
    nonce: [u8; NONCE_LEN],
    bytes: usize,
}

impl Header {
    pub fn read(sealed: &[u8]) -> Result<Self, OpenFailure> {
        let version = *sealed.first().ok_or(OpenFailure::Malformed("it is empty"))?;
        let bytes = match version {
            OLD_VERSION => OLD_HEADER_BYTES,
            VERSION => HEADER_BYTES,
            _ => return Err(OpenFailure::Malformed("its envelope has an unknown version")),
        };
        if sealed.len() < bytes + TAG_BYTES {
            return Err(OpenFailure::Malformed("it is shorter than an empty sealed record: it was cut off"));
        }
        let suite =
            Suite::of_number(sealed[1]).ok_or(OpenFailure::Malformed("its envelope names an unknown algorithm"))?;
        let mut owner = UserId([0; 16]);
        if version == VERSION {
            owner.0.copy_from_slice(&sealed[16..32]);
        } else if suite != Suite::Intl {
            return Err(OpenFailure::Malformed("its envelope names an algorithm that its version does not have"));
        }
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&sealed[4..16]);
        let epoch = u16::from_be_bytes([sealed[2], sealed[3]]);
        Ok(Self { version, suite, stamp: Stamp { epoch, owner }, nonce, bytes })
    }

    /// Whether a value sealed now under `suite` and `stamp` would look the same.
    pub fn is_current(&self, suite: Suite, stamp: Stamp) -> bool {
        self.version == VERSION && self.suite == suite && self.stamp == stamp
    }
}

/// The associated data, on the stack.
struct Place {
    bytes: [u8; PLACE_BYTES_MAX],
    len: usize,
}

/// Family, version, algorithm, epoch, owner, key.
const PLACE_BYTES_MAX: usize = 2 + 3 + 16 + KEY_BYTES_MAX;

impl Place {
    fn new(cf: Cf, version: u8, header: &[u8], key: &[u8]) -> Self {
        assert!(key.len() <= KEY_BYTES_MAX, "keys of sealed families are at most {KEY_BYTES_MAX} bytes");
        let mut place = Self { bytes: [0; PLACE_BYTES_MAX], len: 0 };
        place.add(&[cf as u8, version]);
        if version == VERSION {
            place.add(&header[1..4]);
            place.add(&header[16..32]);
        }
        place.add(key);
        place
    }

    fn add(&mut self, part: &[u8]) {
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SUITES: [Suite; 2] = [Suite::Intl, Suite::Gm];
    const STAMP: Stamp = Stamp { epoch: 3, owner: UserId([9; 16]) };

    fn key(suite: Suite) -> DataKey {
        DataKey::new(suite, &[7; 32])
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_at_its_place_only(
            plain in proptest::collection::vec(any::<u8>(), 0..300),
            place in proptest::collection::vec(any::<u8>(), 1..60),
            other in proptest::collection::vec(any::<u8>(), 1..60),
        ) {
            let nonces = NonceSource::new().unwrap();
            for suite in SUITES {
                let sealed = key(suite).seal(&nonces, STAMP, Cf::Msg, &place, &plain);
                prop_assert_eq!(sealed.len(), plain.len() + OVERHEAD_BYTES);
                prop_assert!(Header::read(&sealed).unwrap().is_current(suite, STAMP));
                prop_assert_eq!(key(suite).open(Cf::Msg, &place, sealed.clone()), Ok(plain.clone()));
                prop_assert_eq!(key(suite).open(Cf::Inbox, &place, sealed.clone()), Err(OpenFailure::NotAuthentic));
                if other != place {
                    prop_assert_eq!(key(suite).open(Cf::Msg, &other, sealed.clone()), Err(OpenFailure::NotAuthentic));
                }
                let wrong = DataKey::new(suite, &[8; 32]);
                prop_assert_eq!(wrong.open(Cf::Msg, &place, sealed), Err(OpenFailure::NotAuthentic));
            }
        }

        #[test]
        fn any_change_or_noise_is_an_error_and_never_a_panic(
            plain in proptest::collection::vec(any::<u8>(), 0..100),
            at in any::<usize>(), flip in 1..=255u8, cut in any::<usize>(),
            noise in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let nonces = NonceSource::new().unwrap();
            for suite in SUITES {
                let sealed = key(suite).seal(&nonces, STAMP, Cf::Msg, b"k", &plain);
                let mut flipped = sealed.clone();
                flipped[at % sealed.len()] ^= flip;
                prop_assert!(key(suite).open(Cf::Msg, b"k", flipped).is_err());
                prop_assert!(key(suite).open(Cf::Msg, b"k", sealed[..cut % sealed.len()].to_vec()).is_err());
                prop_assert!(key(suite).open(Cf::Msg, b"k", noise.clone()).is_err());
            }
        }
    }

    #[test]
    fn another_suite_version_or_a_cut_is_named() {
        let nonces = NonceSource::new().unwrap();
        let sealed = key(Suite::Gm).seal(&nonces, STAMP, Cf::Msg, b"k", b"text");
        assert_eq!(key(Suite::Intl).open(Cf::Msg, b"k", sealed.clone()), Err(OpenFailure::OtherSuite(Suite::Gm)));
        let with = |at: usize, byte: u8| {
            let mut changed = sealed.clone();
            changed[at] = byte;
            key(Suite::Gm).open(Cf::Msg, b"k", changed)
        };
        for (at, byte, word) in [(0, 3, "version"), (0, 1, "algorithm"), (1, 9, "algorithm")] {
            let Err(OpenFailure::Malformed(why)) = with(at, byte) else { panic!("{at} {byte}") };
            assert!(why.contains(word), "{why}");
        }
        for cut in 1..OVERHEAD_BYTES {
            let opened = key(Suite::Gm).open(Cf::Msg, b"k", sealed[..cut].to_vec());
            assert!(matches!(opened, Err(OpenFailure::Malformed(why)) if why.contains("cut off")), "{cut}");
        }
    }

    /// A value as schemas 1 to 3 wrote it.
    #[test]
    fn an_old_envelope_still_opens() {
        let aes = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[7; 32]).unwrap());
        let mut data = b"text".to_vec();
        let place = [&[Cf::Msg as u8, 1][..], b"k"].concat();
        let tag = aes
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key([5; 12]), Aad::from(&place), &mut data)
            .unwrap();
        let sealed = [&[1, 1, 0, 4][..], &[5; 12], &data, tag.as_ref()].concat();
        let header = Header::read(&sealed).unwrap();
        assert_eq!((header.version, header.stamp), (1, Stamp { epoch: 4, owner: UserId([0; 16]) }));
        assert_eq!(key(Suite::Intl).open(Cf::Msg, b"k", sealed), Ok(b"text".to_vec()));
    }

    #[test]
    fn nonces_never_repeat_within_a_store() {
        let nonces = NonceSource::new().unwrap();
        let drawn: std::collections::HashSet<_> = (0..10_000).map(|_| nonces.draw()).collect();
        assert_eq!(drawn.len(), 10_000);
    }
}
