//! The copy of the file of user keys in a target: one for each line, overwritten, never in a backup itself.
//!
//! Backups share it. A slot is never used again, so the newest copy serves every older backup of its line; and once a
//! user is forgotten and the copy is overwritten, no backup of that line opens anything of that user, whenever it was
//! made. What an object store keeps of overwritten objects (versions) is beyond reach: such a bucket needs a rule that
//! ends old versions soon.
//!
//! ```text
//! keys/LINE/NNNNN:  magic 8 "MRUKEY1\n", line 16, part 4, slots 4, slots x 128 bytes as in the file, SHA-256 32
//! ```
//! Each slot is sealed by a tenant's key already; the digest only tells damage.

use super::budget::Budget;
use super::target::{Target, TargetError};
use super::{ArchiveError, at, damaged};
use crate::seal::{SLOT_BYTES, SLOT_USED};
use millrace_proto::backup::LineId;
use millrace_proto::digest::{hex, sha256};
use std::ops::Range;

const MAGIC: &[u8; 8] = b"MRUKEY1\n";
const HEADER_BYTES: usize = 32;
const DIGEST_BYTES: usize = 32;
/// Slots of one object: 1 MiB.
const PART_SLOTS: usize = 8_192;
const PART_BYTES_MAX: u64 = (HEADER_BYTES + PART_SLOTS * SLOT_BYTES + DIGEST_BYTES) as u64;

/// Below it lie the copies of all lines.
const FOLDER: &str = "keys";

fn folder(line: &LineId) -> String {
    format!("{FOLDER}/{}", hex(line))
}

/// Whether a target holds copies at all. A folder whose disk is not mounted holds none.
pub(crate) fn any(target: &dyn Target) -> Result<bool, ArchiveError> {
    let found = target.list(FOLDER).map_err(at(target, "list", FOLDER))?;
    Ok(!found.is_empty())
}

fn name(line: &LineId, part: usize) -> String {
    format!("{}/{part:05}", folder(line))
}

fn encode(line: &LineId, part: usize, slots: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + slots.len() + DIGEST_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(line);
    bytes.extend_from_slice(&(part as u32).to_be_bytes());
    bytes.extend_from_slice(&((slots.len() / SLOT_BYTES) as u32).to_be_bytes());
    bytes.extend_from_slice(slots);
    let digest = sha256(&bytes);
    bytes.extend_from_slice(&digest);
    bytes
}

fn decode(line: &LineId, part: usize, bytes: &[u8]) -> Result<Range<usize>, &'static str> {
    let end = bytes.len().checked_sub(DIGEST_BYTES).filter(|end| *end >= HEADER_BYTES).ok_or("it was cut off")?;
    if bytes[..8] != *MAGIC {
        return Err("it is no copy of user keys");
    }
    if sha256(&bytes[..end]) != bytes[end..] {
        return Err("its digest does not fit: it was changed");
    }
    let count = u32::from_be_bytes([bytes[28], bytes[29], bytes[30], bytes[31]]) as usize;
    let own = bytes[8..24] == *line && bytes[24..28] == (part as u32).to_be_bytes();
    if !own || end - HEADER_BYTES != count * SLOT_BYTES {
        return Err("it is another part than its name says");
    }
    Ok(HEADER_BYTES..end)
}

/// Overwrites the copy with the whole file.
pub(crate) fn write(target: &dyn Target, line: &LineId, file: &[u8], budget: &Budget) -> Result<(), ArchiveError> {
    for (part, slots) in file.chunks(PART_SLOTS * SLOT_BYTES).enumerate() {
        let name = name(line, part);
        target.put(&name, encode(line, part, slots), budget).map_err(at(target, "write", &name))?;
    }
    Ok(())
}

/// The copy as a file, of `slots` slots at least.
pub(crate) fn read(target: &dyn Target, line: &LineId, slots: u64, budget: &Budget) -> Result<Vec<u8>, ArchiveError> {
    let mut file = Vec::new();
    for part in 0.. {
        let name = name(line, part);
        let Some(bytes) = get(target, &name, budget)? else { break };
        let range = decode(line, part, &bytes).map_err(damaged(target, &name))?;
        file.extend_from_slice(&bytes[range]);
        if file.len() % (PART_SLOTS * SLOT_BYTES) != 0 {
            break;
        }
    }
    if ((file.len() / SLOT_BYTES) as u64) < slots || file.is_empty() {
        return Err(ArchiveError::Missing {
            object: name(line, file.len() / (PART_SLOTS * SLOT_BYTES)),
            place: target.place(),
        });
    }
    Ok(file)
}

/// Erases in the copy of an older line what is erased in `file`, among the slots that both have in common.
pub(crate) fn erase(
    target: &dyn Target,
    line: &LineId,
    common: u64,
    file: &[u8],
    budget: &Budget,
) -> Result<(), ArchiveError> {
    let common = usize::try_from(common).unwrap_or(usize::MAX).saturating_mul(SLOT_BYTES).min(file.len());
    for (part, ours) in file[..common].chunks(PART_SLOTS * SLOT_BYTES).enumerate() {
        let name = name(line, part);
        // The older line may have been removed with its backups.
        let Some(mut bytes) = get(target, &name, budget)? else { return Ok(()) };
        let range = decode(line, part, &bytes).map_err(damaged(target, &name))?;
        let theirs = &mut bytes[range];
        let mut changed = false;
        for (slot, own) in theirs.chunks_mut(SLOT_BYTES).zip(ours.chunks(SLOT_BYTES)) {
            if slot[0] == SLOT_USED && own[0] != SLOT_USED {
                slot.fill(0);
                changed = true;
            }
        }
        if changed {
            let slots = theirs.to_vec();
            target.put(&name, encode(line, part, &slots), budget).map_err(at(target, "write", &name))?;
        }
    }
    Ok(())
}

fn get(target: &dyn Target, name: &str, budget: &Budget) -> Result<Option<Vec<u8>>, ArchiveError> {
    match target.get(name, PART_BYTES_MAX, budget) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(TargetError::NotFound) => Ok(None),
        Err(error) => Err(at(target, "read", name)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Folder;

    fn file(slots: usize, erased: &[usize]) -> Vec<u8> {
        let mut file = vec![0; SLOT_BYTES];
        for n in 1..slots {
            let mut slot = [n as u8; SLOT_BYTES];
            slot[0] = u8::from(!erased.contains(&n));
            file.extend(slot);
        }
        file
    }

    #[test]
    fn a_copy_reads_back_and_what_is_missing_or_changed_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let target = Folder::new(folder.path());
        let (line, budget) = ([4; 16], Budget::new(0));
        for slots in [1, 2, PART_SLOTS, PART_SLOTS + 1] {
            write(&target, &line, &file(slots, &[]), &budget).unwrap();
            assert_eq!(read(&target, &line, slots as u64, &budget).unwrap(), file(slots, &[]), "{slots}");
            let short = read(&target, &line, slots as u64 + 1, &budget);
            assert!(matches!(short, Err(ArchiveError::Missing { .. })));
        }
        target.remove(&name(&line, 1)).unwrap();
        let Err(ArchiveError::Missing { object, .. }) = read(&target, &line, PART_SLOTS as u64 + 1, &budget) else {
            panic!("a part is missing")
        };
        assert!(object.ends_with("/00001"), "{object}");
        let first = name(&line, 0);
        let mut bytes = target.get(&first, PART_BYTES_MAX, &budget).unwrap();
        bytes[100] ^= 1;
        target.put(&first, bytes, &budget).unwrap();
        assert!(matches!(read(&target, &line, 1, &budget), Err(ArchiveError::Damaged { .. })));
        assert!(matches!(read(&target, &[5; 16], 1, &budget), Err(ArchiveError::Missing { .. })));
    }

    #[test]
    fn only_what_both_have_in_common_is_erased_in_an_older_line() {
        let folder = tempfile::tempdir().unwrap();
        let target = Folder::new(folder.path());
        let (line, budget) = ([4; 16], Budget::new(0));
        write(&target, &line, &file(9, &[2]), &budget).unwrap();
        erase(&target, &line, 5, &file(9, &[3, 7]), &budget).unwrap();
        let after = read(&target, &line, 9, &budget).unwrap();
        let used: Vec<usize> = (1..9).filter(|n| after[n * SLOT_BYTES] == SLOT_USED).collect();
        assert_eq!(used, [1, 4, 5, 6, 7, 8], "slot 7 is another user's here");
        assert_eq!(after[3 * SLOT_BYTES..4 * SLOT_BYTES], [0; SLOT_BYTES]);
        erase(&target, &[9; 16], 5, &file(9, &[3]), &budget).unwrap();
    }
}
