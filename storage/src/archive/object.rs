//! A sealed object: a header and chunks, each under authenticated encryption.
//!
//! ```text
//! offset  width  field
//! 0       8      magic "MRSEAL1\n"
//! 8       1      algorithm (1 = AES-256-GCM, 2 = SM4-GCM)
//! 9       1      kind (1 = part of a backup, 2 = archived messages)
//! 10      2      zero
//! 12      4      bytes of plain text (big-endian)
//! 16      16     id: keyed digest of kind and plain text
//! 32      ...    chunks: up to 64 KiB of ciphertext, tag 16
//! ```
//! Key: derived for the id. Nonce of chunk n: zero 8, n 4. Associated data: header 32, n 4, last 1. So no chunk can be
//! changed, reordered, left out or taken from another object, and a cut is noticed twice: by the length and by the mark
//! of the last chunk. A reader that knows kind, length and id can open any chunk alone.

use super::keys::LineKey;
use crate::seal::{Suite, TAG_BYTES};
use millrace_proto::backup::{OBJECT_BYTES_MAX, ObjectId};
use std::ops::Range;

const MAGIC: &[u8; 8] = b"MRSEAL1\n";
const HEADER_BYTES: usize = 32;
const CHUNK_BYTES: usize = 64 << 10;
const SEALED_CHUNK_BYTES: usize = CHUNK_BYTES + TAG_BYTES;

/// What an object holds. The number is sealed with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// Part of a file of a backup.
    Part = 1,
    /// Archived messages.
    Messages = 2,
}

/// Why an object did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Damaged(pub &'static str);

struct Header {
    suite: Suite,
    kind: u8,
    plain_bytes: u32,
    id: ObjectId,
}

impl Header {
    fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8] = self.suite.number();
        bytes[9] = self.kind;
        bytes[12..16].copy_from_slice(&self.plain_bytes.to_be_bytes());
        bytes[16..].copy_from_slice(&self.id);
        bytes
    }

    fn read(object: &[u8]) -> Result<Self, Damaged> {
        let Some((bytes, _)) = object.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Damaged("it is shorter than a header: it was cut off"));
        };
        if bytes[..8] != *MAGIC {
            return Err(Damaged("it is no sealed object"));
        }
        let suite = Suite::of_number(bytes[8]).ok_or(Damaged("its header names an unknown algorithm"))?;
        let plain_bytes = u32::from_be_bytes([bytes[12], bytes[13], bytes[14], bytes[15]]);
        if plain_bytes as usize > OBJECT_BYTES_MAX || bytes[10..12] != [0, 0] {
            return Err(Damaged("its header is out of range"));
        }
        let id = *bytes.last_chunk().expect("the header ends with the id");
        Ok(Self { suite, kind: bytes[9], plain_bytes, id })
    }
}

/// Size of the object that holds so many plain bytes.
pub(crate) fn sealed_bytes(plain_bytes: usize) -> u64 {
    (HEADER_BYTES + plain_bytes + chunks(plain_bytes) * TAG_BYTES) as u64
}

/// An empty object has one empty chunk, so that it is authenticated too.
fn chunks(plain_bytes: usize) -> usize {
    plain_bytes.div_ceil(CHUNK_BYTES).max(1)
}

fn nonce(chunk: u32) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[8..].copy_from_slice(&chunk.to_be_bytes());
    nonce
}

fn place(header: &[u8; HEADER_BYTES], chunk: u32, last: bool) -> [u8; HEADER_BYTES + 5] {
    let mut place = [0; HEADER_BYTES + 5];
    place[..HEADER_BYTES].copy_from_slice(header);
    place[HEADER_BYTES..HEADER_BYTES + 4].copy_from_slice(&chunk.to_be_bytes());
    place[HEADER_BYTES + 4] = u8::from(last);
    place
}

/// Seals bytes under the name that `key` gives them.
pub(crate) fn seal(key: &LineKey, suite: Suite, kind: Kind, id: &ObjectId, plain: &[u8]) -> Vec<u8> {
    assert!(plain.len() <= OBJECT_BYTES_MAX, "an object holds at most {OBJECT_BYTES_MAX} bytes");
    let header = Header { suite, kind: kind as u8, plain_bytes: plain.len() as u32, id: *id }.to_bytes();
    let data_key = key.object_key(suite, id);
    let mut object = Vec::with_capacity(sealed_bytes(plain.len()) as usize);
    object.extend_from_slice(&header);
    let last = chunks(plain.len()) - 1;
    for chunk in 0..=last {
        let piece = &plain[chunk * CHUNK_BYTES..plain.len().min((chunk + 1) * CHUNK_BYTES)];
        let start = object.len();
        object.extend_from_slice(piece);
        let at = chunk as u32;
        let tag = data_key.seal_piece(nonce(at), &place(&header, at, chunk == last), &mut object[start..]);
        object.extend_from_slice(&tag);
    }
    object
}

/// Opens a whole object, which must be the one that was asked for.
pub(crate) fn open(key: &LineKey, kind: Kind, id: &ObjectId, mut object: Vec<u8>) -> Result<Vec<u8>, Damaged> {
    let header = Header::read(&object)?;
    if header.kind != kind as u8 || header.id != *id {
        return Err(Damaged("it is another object than its name says"));
    }
    let plain_bytes = header.plain_bytes as usize;
    if object.len() as u64 != sealed_bytes(plain_bytes) {
        return Err(Damaged("it does not have the length that its header says: it was cut off"));
    }
    let data_key = key.object_key(header.suite, id);
    let header = header.to_bytes();
    let last = chunks(plain_bytes) - 1;
    let mut filled = 0;
    for chunk in 0..=last {
        let start = HEADER_BYTES + chunk * SEALED_CHUNK_BYTES;
        let end = object.len().min(start + SEALED_CHUNK_BYTES);
        let at = chunk as u32;
        let length = data_key
            .open_piece(nonce(at), &place(&header, at, chunk == last), &mut object[start..end])
            .ok_or(Damaged("its seal does not fit: it was changed"))?;
        object.copy_within(start..start + length, filled);
        filled += length;
    }
    object.truncate(filled);
    if filled != plain_bytes || key.object_id(kind as u8, &object) != *id {
        return Err(Damaged("it holds other bytes than its name says"));
    }
    Ok(object)
}

/// The part of an object that holds a range of its plain bytes, chunk by chunk.
pub(crate) fn sealed_range(plain: &Range<usize>, plain_bytes: usize) -> Range<u64> {
    let (first, last) = (plain.start / CHUNK_BYTES, plain.end.saturating_sub(1) / CHUNK_BYTES);
    let end = (HEADER_BYTES + (last + 1) * SEALED_CHUNK_BYTES) as u64;
    (HEADER_BYTES + first * SEALED_CHUNK_BYTES) as u64..end.min(sealed_bytes(plain_bytes))
}

/// Opens a range of an object's plain bytes from the part that [`sealed_range`] names.
pub(crate) fn open_range(
    key: &LineKey,
    (suite, kind, id): (Suite, Kind, &ObjectId),
    plain: &Range<usize>,
    plain_bytes: usize,
    mut part: Vec<u8>,
) -> Result<Vec<u8>, Damaged> {
    let whole = sealed_range(plain, plain_bytes);
    if plain.end > plain_bytes || plain.is_empty() || part.len() as u64 != whole.end - whole.start {
        return Err(Damaged("it is shorter than its index says"));
    }
    let data_key = key.object_key(suite, id);
    let header = Header { suite, kind: kind as u8, plain_bytes: plain_bytes as u32, id: *id }.to_bytes();
    let first = plain.start / CHUNK_BYTES;
    let last = chunks(plain_bytes) - 1;
    let mut opened = Vec::with_capacity(part.len());
    for (n, sealed) in part.chunks_mut(SEALED_CHUNK_BYTES).enumerate() {
        let at = (first + n) as u32;
        let length = data_key
            .open_piece(nonce(at), &place(&header, at, first + n == last), sealed)
            .ok_or(Damaged("its seal does not fit: it was changed"))?;
        opened.extend_from_slice(&sealed[..length]);
    }
    let start = plain.start - first * CHUNK_BYTES;
    opened.get(start..start + plain.len()).map(<[u8]>::to_vec).ok_or(Damaged("it is shorter than its index says"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SUITES: [Suite; 2] = [Suite::Intl, Suite::Gm];

    fn sealed(suite: Suite, plain: &[u8]) -> (LineKey, ObjectId, Vec<u8>) {
        let key = LineKey::new([7; 32]);
        let id = key.object_id(Kind::Part as u8, plain);
        let object = seal(&key, suite, Kind::Part, &id, plain);
        assert_eq!(object.len() as u64, sealed_bytes(plain.len()));
        (key, id, object)
    }

    #[test]
    fn every_length_around_a_chunk_reads_back_whole_and_in_parts() {
        for suite in SUITES {
            for length in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5] {
                let plain: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
                let (key, id, object) = sealed(suite, &plain);
                assert_eq!(open(&key, Kind::Part, &id, object.clone()).unwrap(), plain, "{length}");
                assert_eq!(
                    open(&key, Kind::Messages, &id, object.clone()),
                    Err(Damaged("it is another object than its name says"))
                );
                for range in [0..length.min(3), length / 2..length, length.saturating_sub(1)..length] {
                    if range.is_empty() {
                        continue;
                    }
                    let part = sealed_range(&range, length);
                    let part = object[part.start as usize..part.end as usize].to_vec();
                    let opened = open_range(&key, (suite, Kind::Part, &id), &range, length, part).unwrap();
                    assert_eq!(opened, plain[range]);
                }
            }
        }
    }

    #[test]
    fn a_cut_a_swap_or_another_key_is_noticed() {
        for suite in SUITES {
            let plain = vec![9; 3 * CHUNK_BYTES];
            let (key, id, object) = sealed(suite, &plain);
            for cut in [0, 31, 32, HEADER_BYTES + SEALED_CHUNK_BYTES, object.len() - 1] {
                assert!(open(&key, Kind::Part, &id, object[..cut].to_vec()).is_err(), "{cut}");
            }
            let mut swapped = object.clone();
            let (first, second) = swapped[HEADER_BYTES..].split_at_mut(SEALED_CHUNK_BYTES);
            first.swap_with_slice(&mut second[..SEALED_CHUNK_BYTES]);
            assert!(open(&key, Kind::Part, &id, swapped).is_err());
            assert!(open(&LineKey::new([8; 32]), Kind::Part, &id, object).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_flip_or_noise_is_an_error_and_never_a_panic(
            plain in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<usize>(), flip in 1..=255u8,
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for suite in SUITES {
                let (key, id, mut object) = sealed(suite, &plain);
                let at = at % object.len();
                object[at] ^= flip;
                prop_assert!(open(&key, Kind::Part, &id, object).is_err());
                prop_assert!(open(&key, Kind::Part, &id, noise.clone()).is_err());
            }
        }
    }
}
