//! How much of a log of the database is used.
//!
//! Logs are recycled: a new one overwrites an old one in place and is as long as that was, so behind its last record lie
//! records of the old one. A backup copies what is before them: the rest is not the store's, and no two logs share it.
//!
//! ```text
//! block   32 KiB of records; at its end zeros where no header fits
//! record  CRC 4, length 2, type 1, number of the log 4 (all little-endian), payload
//! ```
//! The end is where the database's own recovery ends: at a record of another log, or at what is none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK_BYTES: u64 = 32 << 10;
const HEADER_BYTES: usize = 11;
/// Types of records that name their log: whole, first, middle, last, sizes of timestamps, the log before.
const TYPES: [u8; 6] = [5, 6, 7, 8, 11, 131];

/// The number of a log, from its name in a data folder; `None` for other files.
pub(crate) fn number(name: &str) -> Option<u64> {
    name.strip_prefix("db/")?.strip_suffix(".log")?.parse().ok()
}

/// Bytes of a log up to the end of its last record. A log of another kind counts whole.
pub(crate) fn used_bytes(path: &Path, number: u64) -> io::Result<u64> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    // Records have room for half of it.
    let number = (number as u32).to_le_bytes();
    let (mut at, mut used) = (0u64, 0u64);
    loop {
        let left = BLOCK_BYTES - at % BLOCK_BYTES;
        if left < HEADER_BYTES as u64 {
            at += left;
            continue;
        }
        if at + HEADER_BYTES as u64 > length {
            return Ok(used);
        }
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, at)?;
        let names_its_log = TYPES.contains(&header[6]);
        if at == 0 && !names_its_log && header != [0; HEADER_BYTES] {
            return Ok(length);
        }
        let record = HEADER_BYTES as u64 + u64::from(u16::from_le_bytes([header[4], header[5]]));
        if !names_its_log || header[7..] != number || record > left {
            return Ok(used);
        }
        at += record;
        // The last record may be cut off.
        used = at.min(length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, number: u32, payload: usize) -> Vec<u8> {
        let mut record = vec![9; 4];
        record.extend_from_slice(&(payload as u16).to_le_bytes());
        record.push(kind);
        record.extend_from_slice(&number.to_le_bytes());
        record.resize(HEADER_BYTES + payload, 5);
        record
    }

    fn used(bytes: &[u8]) -> u64 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("000007.log");
        std::fs::write(&path, bytes).unwrap();
        used_bytes(&path, 7).unwrap()
    }

    #[test]
    fn names_tell_logs() {
        assert_eq!(number("db/000123.log"), Some(123));
        for other in ["db/LOG", "db/000123.sst", "000123.log", "db/x.log"] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn what_an_older_log_left_is_not_used() {
        assert_eq!(used(&[]), 0);
        assert_eq!(used(&[0; 100]), 0);
        assert_eq!(used(&record(5, 3, 500)), 0, "nothing was written yet");
        let own = [record(5, 7, 100), record(5, 7, 0)].concat();
        for behind in [vec![], vec![0; 50], vec![5; 50_000], record(5, 3, 40), record(1, 7, 40), vec![9; 10]] {
            assert_eq!(used(&[own.clone(), behind.clone()].concat()), own.len() as u64, "{behind:?}");
        }
        assert_eq!(used(&own[..50]), 50, "cut off in a record");
        let other_kind = [record(1, 7, 100), record(5, 3, 100)].concat();
        assert_eq!(used(&other_kind), other_kind.len() as u64);
    }

    #[test]
    fn records_go_on_in_the_next_block() {
        let block = BLOCK_BYTES as usize;
        for rest in 0..HEADER_BYTES {
            let mut log = record(6, 7, block - HEADER_BYTES - rest);
            log.resize(block, 0);
            log.extend(record(8, 7, 200));
            let end = log.len() as u64;
            log.extend(record(8, 6, 200));
            assert_eq!(used(&log), end, "{rest}");
        }
        assert_eq!(used(&[record(5, 7, 9), record(5, 7, block)].concat()), 20, "no record is longer than its block");
    }
}
