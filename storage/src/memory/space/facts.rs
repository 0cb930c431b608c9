//! What passages may be filtered by: whose they are, their tags, their time.
//!
//! Passages of one document share owner and tags, so a segment keeps each such pair once (a group) and
//! a number per row. A filter is decided once per group; what remains per row is one look-up and, when
//! a time is asked for, one comparison: about a millisecond for a million rows, and the answer is kept
//! for the next question with the same filter.

use crate::error::ReadError;
use millrace_proto::id::UserId;
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Tags of one passage, and tags that one filter names.
pub const SPACE_TAGS_MAX: usize = 32;
/// Bytes of a tag.
pub const SPACE_TAG_BYTES_MAX: usize = 128;
/// Filters whose rows a segment remembers: an eighth of a byte per row each.
const REMEMBERED_MAX: usize = 16;

/// Which passages of a space a search may return. The default lets all of them through that belong
/// to nobody in particular.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SpaceFilter {
    /// Who asks. A passage that has an owner is only ever found by its owner.
    pub user: Option<UserId>,
    /// The passage has every one of these tags.
    pub tags_all: Vec<String>,
    /// The passage has at least one of these tags; empty = no such condition.
    pub tags_any: Vec<String>,
    /// Not older than this, in Unix milliseconds; 0 = any age.
    pub from_ms: u64,
    /// Older than this, in Unix milliseconds.
    pub until_ms: Option<u64>,
}

impl SpaceFilter {
    pub(crate) fn check(&self) -> Result<(), ReadError> {
        if self.tags_all.len() > SPACE_TAGS_MAX || self.tags_any.len() > SPACE_TAGS_MAX {
            return Err(ReadError::Invalid {
                why: format!("a filter names more than {SPACE_TAGS_MAX} tags; ask for fewer at a time"),
            });
        }
        Ok(())
    }

    pub(crate) fn in_time(&self, at_ms: u64) -> bool {
        at_ms >= self.from_ms && self.until_ms.is_none_or(|until| at_ms < until)
    }

    pub(crate) fn lets(&self, group: &Group) -> bool {
        let has = |tag: &String| group.tags.binary_search(tag).is_ok();
        group.owner.is_none_or(|owner| self.user == Some(owner))
            && self.tags_all.iter().all(has)
            && (self.tags_any.is_empty() || self.tags_any.iter().any(has))
    }
}

/// What passages of one document have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Group {
    pub owner: Option<UserId>,
    /// Ascending, each once.
    pub tags: Vec<String>,
}

impl Group {
    pub fn new(owner: Option<UserId>, mut tags: Vec<String>) -> Self {
        tags.sort_unstable();
        tags.dedup();
        Self { owner, tags }
    }

    /// owner flag 1 [owner 16], number of tags 2, and for each its length 2 and its bytes; big-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.owner.is_some())];
        bytes.extend(self.owner.iter().flat_map(|owner| owner.0));
        let short = |length: usize| u16::try_from(length).expect("tags are checked against their bounds").to_be_bytes();
        bytes.extend(short(self.tags.len()));
        for tag in &self.tags {
            bytes.extend(short(tag.len()));
            bytes.extend(tag.as_bytes());
        }
        bytes
    }

    pub fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let owner = match take::<1>(&mut bytes)? {
            [0] => None,
            [1] => Some(UserId(take(&mut bytes)?)),
            _ => return None,
        };
        let count = usize::from(u16::from_be_bytes(take(&mut bytes)?));
        let mut tags = Vec::with_capacity(count.min(SPACE_TAGS_MAX));
        for _ in 0..count {
            let length = usize::from(u16::from_be_bytes(take(&mut bytes)?));
            let (tag, rest) = bytes.split_at_checked(length)?;
            tags.push(std::str::from_utf8(tag).ok()?.to_owned());
            bytes = rest;
        }
        (bytes.is_empty() && tags.is_sorted()).then_some(Self { owner, tags })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// One bit a row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Bits(pub Vec<u64>);

impl Bits {
    pub fn ones(rows: usize) -> Self {
        Self(vec![u64::MAX; rows.div_ceil(64)])
    }

    pub fn zeroes(rows: usize) -> Self {
        Self(vec![0; rows.div_ceil(64)])
    }

    pub fn get(&self, row: usize) -> bool {
        self.0[row / 64] & (1 << (row % 64)) != 0
    }

    pub fn set(&mut self, row: usize) {
        self.0[row / 64] |= 1 << (row % 64);
    }

    /// True when it was set.
    pub fn clear(&mut self, row: usize) -> bool {
        let was = self.get(row);
        self.0[row / 64] &= !(1 << (row % 64));
        was
    }
}

/// What a filter leaves of a segment.
#[derive(Debug)]
pub(crate) enum Selected {
    /// Every row.
    All,
    /// Some rows, so many.
    Some(Bits, usize),
}

/// The facts of a segment's rows.
#[derive(Default)]
pub(crate) struct Facts {
    groups: Vec<Group>,
    /// Per row.
    group_of: Vec<u32>,
    at_ms: Vec<u64>,
    remembered: Mutex<VecDeque<(SpaceFilter, Arc<Selected>)>>,
}

impl Facts {
    pub fn bytes(&self) -> usize {
        self.group_of.capacity() * 4
            + self.at_ms.capacity() * 8
            + self.groups.iter().map(Self::group_bytes).sum::<usize>()
    }

    fn group_bytes(group: &Group) -> usize {
        size_of::<Group>() + group.tags.iter().map(|tag| tag.capacity() + size_of::<String>()).sum::<usize>()
    }

    /// The rows that a filter lets through.
    pub fn select(&self, filter: &SpaceFilter) -> Arc<Selected> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, selected)) = remembered.iter().find(|(known, _)| known == filter) {
            return Arc::clone(selected);
        }
        let selected = Arc::new(self.select_now(filter));
        if remembered.len() >= REMEMBERED_MAX {
            remembered.pop_front();
        }
        remembered.push_back((filter.clone(), Arc::clone(&selected)));
        selected
    }

    fn select_now(&self, filter: &SpaceFilter) -> Selected {
        let let_through: Vec<bool> = self.groups.iter().map(|group| filter.lets(group)).collect();
        let any_time = filter.from_ms == 0 && filter.until_ms.is_none();
        if any_time && let_through.iter().all(|lets| *lets) {
            return Selected::All;
        }
        let mut bits = Bits::zeroes(self.group_of.len());
        let mut count = 0;
        for (row, (group, at_ms)) in self.group_of.iter().zip(&self.at_ms).enumerate() {
            if let_through[*group as usize] && filter.in_time(*at_ms) {
                bits.set(row);
                count += 1;
            }
        }
        Selected::Some(bits, count)
    }

    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        for at_ms in &self.at_ms {
            out.write_all(&at_ms.to_be_bytes())?;
        }
        for group in &self.group_of {
            out.write_all(&group.to_be_bytes())?;
        }
        out.write_all(&(self.groups.len() as u32).to_be_bytes())?;
        for group in &self.groups {
            let bytes = group.to_bytes();
            out.write_all(&(bytes.len() as u32).to_be_bytes())?;
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Reads what [`Facts::write_to`] wrote for so many rows.
    pub fn read_from(source: &mut impl Read, rows: usize) -> io::Result<Self> {
        let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        let mut word = [0; 8];
        let mut half = [0; 4];
        let mut facts = Self::default();
        for _ in 0..rows {
            source.read_exact(&mut word)?;
            facts.at_ms.push(u64::from_be_bytes(word));
        }
        for _ in 0..rows {
            source.read_exact(&mut half)?;
            facts.group_of.push(u32::from_be_bytes(half));
        }
        source.read_exact(&mut half)?;
        let groups = u32::from_be_bytes(half);
        for _ in 0..groups {
            source.read_exact(&mut half)?;
            let length = u32::from_be_bytes(half) as usize;
            if length > 32 + SPACE_TAGS_MAX * (SPACE_TAG_BYTES_MAX + 2) {
                return Err(damaged("a group of passages is longer than any that is written"));
            }
            let mut bytes = vec![0; length];
            source.read_exact(&mut bytes)?;
            facts.groups.push(Group::from_bytes(&bytes).ok_or_else(|| damaged("a group of passages is malformed"))?);
        }
        if facts.group_of.iter().any(|group| *group >= groups) {
            return Err(damaged("a row names a group that is not there"));
        }
        Ok(facts)
    }
}

/// Gathers the facts of rows in order.
#[derive(Default)]
pub(crate) struct FactsBuilder {
    facts: Facts,
    known: HashMap<Group, u32>,
}

impl FactsBuilder {
    pub fn push(&mut self, at_ms: u64, group: Group) {
        let Self { facts, known } = self;
        let code = *known.entry(group).or_insert_with_key(|group| {
            facts.groups.push(group.clone());
            (facts.groups.len() - 1) as u32
        });
        facts.group_of.push(code);
        facts.at_ms.push(at_ms);
    }

    pub fn finish(self) -> Facts {
        self.facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn groups() -> impl Strategy<Value = Group> {
        (proptest::option::of(0u8..3), proptest::collection::vec("[a-c]{1,2}", 0..4))
            .prop_map(|(owner, tags)| Group::new(owner.map(|owner| UserId([owner; 16])), tags))
    }

    fn filters() -> impl Strategy<Value = SpaceFilter> {
        let tags = || proptest::collection::vec("[a-c]{1,2}", 0..3);
        (proptest::option::of(0u8..3), tags(), tags(), 0u64..6, proptest::option::of(0u64..9)).prop_map(
            |(user, tags_all, tags_any, from_ms, until_ms)| SpaceFilter {
                user: user.map(|user| UserId([user; 16])),
                tags_all,
                tags_any,
                from_ms,
                until_ms,
            },
        )
    }

    /// The meaning of a filter, written down again in the plainest way.
    fn lets(filter: &SpaceFilter, group: &Group, at_ms: u64) -> bool {
        let own = match group.owner {
            None => true,
            Some(owner) => filter.user == Some(owner),
        };
        own && filter.tags_all.iter().all(|tag| group.tags.contains(tag))
            && (filter.tags_any.is_empty() || filter.tags_any.iter().any(|tag| group.tags.contains(tag)))
            && at_ms >= filter.from_ms
            && at_ms < filter.until_ms.unwrap_or(u64::MAX)
    }

    proptest! {
        #[test]
        fn a_filter_lets_through_what_it_says(
            rows in proptest::collection::vec((groups(), 0u64..8), 0..150), filter in filters(),
        ) {
            let mut builder = FactsBuilder::default();
            rows.iter().for_each(|(group, at_ms)| builder.push(*at_ms, group.clone()));
            let facts = builder.finish();
            let mut stream = Vec::new();
            facts.write_to(&mut stream).unwrap();
            let again = Facts::read_from(&mut stream.as_slice(), rows.len()).unwrap();
            for facts in [&facts, &again] {
                for _ in 0..2 {
                    let selected = facts.select(&filter);
                    for (row, (group, at_ms)) in rows.iter().enumerate() {
                        let through = match &*selected {
                            Selected::All => true,
                            Selected::Some(bits, _) => bits.get(row),
                        };
                        prop_assert_eq!(through, lets(&filter, group, *at_ms), "row {}", row);
                    }
                    if let Selected::Some(bits, count) = &*selected {
                        prop_assert_eq!(bits.0.iter().map(|word| word.count_ones() as usize).sum::<usize>(), *count);
                    }
                }
            }
            if let Some(cut) = stream.len().checked_sub(1) {
                prop_assert!(Facts::read_from(&mut &stream[..cut], rows.len()).is_err());
            }
        }

        #[test]
        fn a_group_reads_back_and_noise_is_refused(group in groups(), noise in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(Group::from_bytes(&group.to_bytes()), Some(group));
            if let Some(read) = Group::from_bytes(&noise) {
                prop_assert_eq!(read.to_bytes(), noise);
            }
        }
    }
}
