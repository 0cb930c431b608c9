//! The file of wrapped user keys: fixed slots, overwritten in place when a user is forgotten.
//!
//! A log-structured database keeps a deleted row in its log, its older tables and every checkpoint, so a wrapped key in
//! it would outlive its deletion there for weeks. Here a key lies in one place, and forgetting is one overwrite and
//! one sync. The row of the family `key` only says which slot.
//!
//! ```text
//! slot 0: magic 8 "MRKEYS1\n", zeros
//! slot n: state 1 (1 = used, 0 = free or erased), sealed key, zeros up to 128 bytes
//! ```
//! Slots are never used twice, so erasing one again after a crash harms nobody. A slot lies inside one sector:
//! a torn write leaves the old or the new one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The file in the data folder.
pub(crate) const SLOTS_FILE: &str = "user-keys";
const MAGIC: &[u8; 8] = b"MRKEYS1\n";
pub(crate) const SLOT_BYTES: usize = 128;
/// First byte of a slot that holds a key.
pub(crate) const USED: u8 = 1;

type Slot = [u8; SLOT_BYTES];

enum Kept {
    /// The file and the number of the next slot.
    File(File, u64),
    Memory(Vec<Slot>),
}

pub(crate) struct Slots(Mutex<Kept>);

impl Slots {
    /// For a store without files.
    pub fn in_memory() -> Self {
        Self(Mutex::new(Kept::Memory(vec![[0; SLOT_BYTES]])))
    }

    /// Opens or makes the file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        if length < SLOT_BYTES as u64 {
            let mut head = [0; SLOT_BYTES];
            head[..MAGIC.len()].copy_from_slice(MAGIC);
            file.write_all_at(&head, 0)?;
            file.sync_all()?;
            super::sync_folder(path)?;
            return Ok(Self(Mutex::new(Kept::File(file, 1))));
        }
        let mut magic = [0; MAGIC.len()];
        file.read_exact_at(&mut magic, 0)?;
        if magic != *MAGIC {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a file of user keys"));
        }
        // A slot that was cut off by a crash was never named by a row; the next one is written over it.
        Ok(Self(Mutex::new(Kept::File(file, length / SLOT_BYTES as u64))))
    }

    /// Writes sealed keys durably into slots of their own, with one sync; answers the number of the first slot, which
    /// the others follow. `sealed` gets the place among these keys and the number of the slot.
    pub fn add(&self, count: usize, mut sealed: impl FnMut(usize, u64) -> Vec<u8>) -> io::Result<u64> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = match &*kept {
            Kept::File(_, next) => *next,
            Kept::Memory(slots) => slots.len() as u64,
        };
        let mut added: Vec<Slot> = Vec::with_capacity(count);
        for (place, number) in (0..count).zip(first..) {
            let sealed = sealed(place, number);
            assert!(sealed.len() < SLOT_BYTES, "a sealed key fits its slot");
            let mut slot = [0; SLOT_BYTES];
            slot[0] = USED;
            slot[1..=sealed.len()].copy_from_slice(&sealed);
            added.push(slot);
        }
        match &mut *kept {
            Kept::File(file, next) => {
                file.write_all_at(added.as_flattened(), first * SLOT_BYTES as u64)?;
                file.sync_data()?;
                *next = first + count as u64;
            }
            Kept::Memory(slots) => slots.extend(added),
        }
        Ok(first)
    }

    /// The sealed key of `bytes` length in a slot; `None` when it was erased or never written.
    pub fn read(&self, number: u64, bytes: usize) -> io::Result<Option<Vec<u8>>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slot = [0; SLOT_BYTES];
        match &*kept {
            Kept::File(_, next) if number == 0 || number >= *next => return Ok(None),
            Kept::File(file, _) => file.read_exact_at(&mut slot, number * SLOT_BYTES as u64)?,
            Kept::Memory(slots) => {
                slot = usize::try_from(number).ok().and_then(|at| slots.get(at)).copied().unwrap_or(slot);
            }
        }
        Ok((slot[0] == USED).then(|| slot[1..=bytes].to_vec()))
    }

    /// Overwrites slots with zeros, durably.
    pub fn erase(&self, numbers: &[u64]) -> io::Result<()> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *kept {
            Kept::File(file, next) => {
                for number in numbers.iter().filter(|number| (1..*next).contains(number)) {
                    file.write_all_at(&[0; SLOT_BYTES], number * SLOT_BYTES as u64)?;
                }
                file.sync_data()
            }
            Kept::Memory(slots) => {
                for number in numbers {
                    if let Some(slot) = usize::try_from(*number).ok().and_then(|at| slots.get_mut(at)) {
                        *slot = [0; SLOT_BYTES];
                    }
                }
                Ok(())
            }
        }
    }

    /// The whole file as it is now.
    pub fn snapshot(&self) -> io::Result<Vec<u8>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Kept::File(file, next) => {
                let length = usize::try_from(*next).ok().and_then(|slots| slots.checked_mul(SLOT_BYTES));
                let mut bytes = vec![0; length.ok_or(io::ErrorKind::FileTooLarge)?];
                file.read_exact_at(&mut bytes, 0)?;
                Ok(bytes)
            }
            Kept::Memory(slots) => Ok(slots.concat()),
        }
    }

    /// Copies the file beside a checkpoint. Taken after the checkpoint, so every row in that finds its slot.
    pub fn copy_to(&self, path: &Path) -> io::Result<()> {
        let copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        copy.write_all_at(&self.snapshot()?, 0)?;
        copy.sync_all()?;
        super::sync_folder(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_erased_key_is_nowhere_in_the_file_and_its_neighbours_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SLOTS_FILE);
        let slots = Slots::open(&path).unwrap();
        let add = |slots: &Slots, byte: u8| slots.add(1, |_, _| vec![byte; 100]).unwrap();
        let (first, second) = (add(&slots, 0xa1), add(&slots, 0xb2));
        assert_eq!((first, second), (1, 2));
        slots.erase(&[first]).unwrap();
        drop(slots);
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.contains(&0xa1) && bytes.contains(&0xb2));
        let slots = Slots::open(&path).unwrap();
        assert_eq!(slots.read(first, 100).unwrap(), None);
        assert_eq!(slots.read(second, 100).unwrap(), Some(vec![0xb2; 100]));
        assert_eq!(slots.read(99, 100).unwrap(), None);
        assert_eq!(add(&slots, 0xc3), 3, "a slot is never used again");
        slots.erase(&[first, 7_000]).unwrap();
    }

    #[test]
    fn a_slot_that_was_cut_off_is_written_over_and_another_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SLOTS_FILE);
        let slots = Slots::open(&path).unwrap();
        slots.add(1, |_, _| vec![7; 100]).unwrap();
        drop(slots);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(2 * SLOT_BYTES as u64 + 50).unwrap();
        let slots = Slots::open(&path).unwrap();
        let add_two = slots.add(2, |place, number| vec![10 * number as u8 + place as u8; 100]);
        assert_eq!(add_two.unwrap(), 2);
        assert_eq!(slots.read(2, 3).unwrap(), Some(vec![20; 3]));
        assert_eq!(slots.read(3, 3).unwrap(), Some(vec![31; 3]));
        std::fs::write(&path, [b'x'; 300]).unwrap();
        assert!(Slots::open(&path).is_err());
    }

    #[test]
    fn a_copy_holds_the_same_slots() {
        let folder = tempfile::tempdir().unwrap();
        let slots = Slots::open(&folder.path().join(SLOTS_FILE)).unwrap();
        slots.add(1, |_, _| vec![7; 100]).unwrap();
        let copy = folder.path().join("copy");
        slots.copy_to(&copy).unwrap();
        assert_eq!(Slots::open(&copy).unwrap().read(1, 2).unwrap(), Some(vec![7, 7]));
        let memory = Slots::in_memory();
        assert_eq!(memory.add(1, |_, _| vec![1]).unwrap(), 1);
        memory.erase(&[1]).unwrap();
        assert_eq!(memory.read(1, 1).unwrap(), None);
    }
}
