//! One space in memory: sealed segments, the exact delta on top of them, and marks on rows that are gone.

use super::facts::{Bits, Group, Selected, SpaceFilter};
use super::row::Indexed;
use super::segment::{Index, Segment};
use super::{DEAD_SHARE_MAX, DELTA_MAX};
use crate::memory::faiss::FaissError;
use crate::memory::nsw::Scratch;
use crate::memory::vector::Block;
use millrace_proto::id::UserId;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// Rows that a walk keeps when nothing is filtered: recall at 10 above .95 on 1,000,000 rows.
const EFFORT: usize = 144;
/// Kept rows per wanted passage: a walk that keeps few finds few.
const EFFORT_PER_WANTED: usize = 3;
/// What expanding one kept row costs, in rows of a full comparison: its links, scattered in memory.
const ROWS_PER_EFFORT: usize = 24;
/// So few rows are always compared in full: some 0.3 ms at 384 numbers.
const COMPARED_ALWAYS: usize = 8_192;
/// Lists of an inverted file that are read when nothing is filtered.
const LISTS_READ: usize = 48;
/// Candidates per wanted passage that a segment may give to the comparison with the stored rows.
pub(super) const OVERSAMPLE: usize = 4;
/// Usual errors of a score by which a candidate may be behind the last wanted one and still be compared.
const ERRORS_APART: f32 = 3.0;
/// Like-sized segments that become one.
const MERGE_FROM: usize = 4;
/// A segment is of like size up to this many times what is newer than it.
const LIKE_SIZE: usize = 2;

/// A sealed segment and which of its rows still hold.
pub(super) struct Part {
    pub segment: Arc<Segment>,
    /// Set = neither replaced nor removed.
    alive: Bits,
    dead: usize,
    /// It covers everything up to this number that older parts do not.
    pub applied_seq: u64,
}

impl Part {
    fn new(segment: Segment, applied_seq: u64) -> Self {
        Self { alive: Bits::ones(segment.ids.len()), dead: 0, segment: Arc::new(segment), applied_seq }
    }

    fn mark_dead(&mut self, vid: u64) {
        if let Some(row) = self.segment.row(vid)
            && self.alive.clear(row)
        {
            self.dead += 1;
        }
    }

    fn rows(&self) -> usize {
        self.segment.ids.len()
    }

    /// The ids that hold, ascending.
    fn live_ids(&self) -> impl Iterator<Item = u64> {
        self.segment.ids.iter().enumerate().filter(|(row, _)| self.alive.get(*row)).map(|(_, vid)| *vid)
    }

    fn too_dead(&self) -> bool {
        self.rows() > 0 && self.dead as f32 > self.rows() as f32 * DEAD_SHARE_MAX
    }
}

/// A passage that may be among the best.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub vid: u64,
    pub score: f32,
    /// How far the score may be from the true one; infinite where nothing is known.
    pub error: f32,
}

/// What shall be built next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// A segment of every passage: there is none yet.
    Everything,
    /// A segment of what changed since the newest.
    Changes,
    /// One segment of these parts.
    Merge(Range<usize>),
}

/// Passages that are compared one by one.
#[derive(Default)]
struct Exact {
    /// By length of the vectors.
    blocks: BTreeMap<usize, Block<u64>>,
    facts: HashMap<u64, (u64, Arc<Group>)>,
    /// Each group once.
    groups: HashSet<Arc<Group>>,
}

impl Exact {
    fn put(&mut self, vid: u64, Indexed { vector, at_ms, group }: Indexed) {
        self.blocks.entry(vector.len()).or_insert_with(|| Block::new(vector.len())).put(vid, &vector);
        let group = match self.groups.get(&group) {
            Some(known) => Arc::clone(known),
            None => {
                let group = Arc::new(group);
                self.groups.insert(Arc::clone(&group));
                group
            }
        };
        self.facts.insert(vid, (at_ms, group));
    }

    fn remove(&mut self, vid: u64) {
        if self.facts.remove(&vid).is_some() {
            for block in self.blocks.values_mut() {
                block.remove(vid);
            }
        }
    }

    /// Gives memory back once nothing is left.
    fn shrink(&mut self) {
        if self.facts.is_empty() {
            *self = Self::default();
        }
    }

    fn bytes(&self) -> usize {
        self.blocks.values().map(Block::bytes).sum::<usize>() + self.facts.len() * 48
    }

    fn nearest(&self, query: &[f32], limit: usize, filter: &SpaceFilter, found: &mut Vec<Candidate>) {
        let Some(block) = self.blocks.get(&query.len()) else { return };
        let wanted =
            |vid: &u64| self.facts.get(vid).is_some_and(|(at_ms, group)| filter.in_time(*at_ms) && filter.lets(group));
        let near = block.nearest(query, limit, wanted);
        found.extend(near.into_iter().map(|(vid, score)| Candidate { vid, score, error: 0.0 }));
    }
}

/// One space in memory.
#[derive(Default)]
pub(super) struct SpaceIndex {
    /// Oldest first.
    pub parts: Vec<Part>,
    /// What nobody owns and no segment covers.
    delta: Exact,
    /// What a user owns; no segment ever holds it.
    owned: HashMap<UserId, Exact>,
    owner_of: HashMap<u64, UserId>,
    /// Everything changed since the segments, with the number of the group that changed it.
    pub changed: HashMap<u64, u64>,
    /// After a build that came to nothing: changes to wait for before the next one.
    pub hold_until: usize,
}

impl SpaceIndex {
    pub fn apply(&mut self, seq: u64, vid: u64, written: Option<Indexed>) {
        self.parts.iter_mut().for_each(|part| part.mark_dead(vid));
        self.delta.remove(vid);
        self.remove_owned(vid);
        if let Some(indexed) = written {
            match indexed.group.owner {
                Some(owner) => self.put_owned(owner, vid, indexed),
                None => self.delta.put(vid, indexed),
            }
        }
        self.changed.insert(vid, seq);
    }

    /// A passage of a user, which is not new.
    pub fn put_owned(&mut self, owner: UserId, vid: u64, indexed: Indexed) {
        self.owned.entry(owner).or_default().put(vid, indexed);
        self.owner_of.insert(vid, owner);
    }

    fn remove_owned(&mut self, vid: u64) {
        if let Some(owner) = self.owner_of.remove(&vid)
            && let Some(owned) = self.owned.get_mut(&owner)
        {
            owned.remove(vid);
            if owned.facts.is_empty() {
                self.owned.remove(&owner);
            }
        }
    }

    /// Drops all that a user owns.
    pub fn forget_user(&mut self, user: UserId) {
        if self.owned.remove(&user).is_some() {
            self.owner_of.retain(|_, owner| *owner != user);
        }
    }

    /// Takes a segment in the place of some parts (an empty range at the end: a new part). It covers everything
    /// up to `applied_seq` that the parts before it do not.
    pub fn install(&mut self, run: Range<usize>, segment: Segment, applied_seq: u64) {
        let at = run.start;
        self.parts.splice(run, [Part::new(segment, applied_seq)]);
        let (older, newer) = self.parts.split_at_mut(at + 1);
        let part = &mut older[at];
        for newer in newer.iter() {
            newer.segment.ids.iter().chain(&newer.segment.removed).for_each(|vid| part.mark_dead(*vid));
        }
        let segment = Arc::clone(&part.segment);
        for older in &mut older[..at] {
            segment.ids.iter().chain(&segment.removed).for_each(|vid| older.mark_dead(*vid));
        }
        let newest = self.parts.last().map_or(0, |part| part.applied_seq);
        let (later, covered): (HashMap<u64, u64>, HashMap<u64, u64>) =
            std::mem::take(&mut self.changed).into_iter().partition(|(_, seq)| *seq > newest);
        covered.into_keys().for_each(|vid| self.delta.remove(vid));
        for vid in later.keys() {
            self.parts[at].mark_dead(*vid);
        }
        self.changed = later;
        self.delta.shrink();
        self.hold_until = 0;
    }

    pub fn delta_len(&self) -> usize {
        self.delta.facts.len()
    }

    pub fn rows(&self) -> usize {
        self.delta_len() + self.owner_of.len() + self.parts.iter().map(|part| part.rows() - part.dead).sum::<usize>()
    }

    pub fn bytes(&self) -> usize {
        let parts = self.parts.iter().map(|part| part.segment.bytes() + part.alive.0.len() * 8).sum::<usize>();
        let exact = self.delta.bytes() + self.owned.values().map(Exact::bytes).sum::<usize>();
        parts + exact + self.changed.len() * 24 + self.owner_of.len() * 32
    }

    /// What should be built, if anything.
    pub fn plan(&self) -> Option<Plan> {
        if self.changed.len() < self.hold_until {
            return None;
        }
        if self.delta_len() >= DELTA_MAX || self.changed.len() >= 2 * DELTA_MAX {
            return Some(if self.parts.is_empty() { Plan::Everything } else { Plan::Changes });
        }
        if let Some(at) = self.parts.iter().position(Part::too_dead) {
            return Some(Plan::Merge(at..at + 1));
        }
        let (mut from, mut newer) = (self.parts.len(), 0);
        while from > 0 && (newer == 0 || self.parts[from - 1].rows() <= newer * LIKE_SIZE) {
            from -= 1;
            newer += self.parts[from].rows();
        }
        (self.parts.len() - from >= MERGE_FROM).then_some(Plan::Merge(from..self.parts.len()))
    }

    /// What a merge of some parts has to read, and what it has to tell older parts unless it reads it: the passages
    /// that hold, and with them those that the parts say are gone. A passage that is gone by the time it is read is
    /// in the change log, and told there too.
    pub fn merged(&self, run: &Range<usize>) -> (Vec<u64>, BTreeSet<u64>) {
        let parts = &self.parts[run.clone()];
        let mut vids: Vec<u64> = parts.iter().flat_map(Part::live_ids).collect();
        vids.sort_unstable();
        let mut gone: BTreeSet<u64> = parts.iter().flat_map(|part| part.segment.removed.iter().copied()).collect();
        gone.extend(&vids);
        (vids, gone)
    }

    /// The passages that may be among the `limit` best, with what is known of their scores.
    pub fn candidates(
        &self,
        query: &[f32],
        limit: usize,
        filter: &SpaceFilter,
        scratch: &mut Scratch,
    ) -> Result<Vec<Candidate>, FaissError> {
        let length = query.iter().map(|x| x * x).sum::<f32>().sqrt();
        let mut found = Vec::new();
        let own = filter.user.as_ref().and_then(|user| self.owned.get(user));
        for exact in own.into_iter().chain([&self.delta]) {
            exact.nearest(query, limit, filter, &mut found);
        }
        for part in &self.parts {
            if part.segment.index.dim() == Some(query.len()) {
                let error = part.segment.index.score_error() * length;
                for (row, score) in part.nearest(query, limit, filter, scratch)? {
                    found.push(Candidate { vid: part.segment.ids[row as usize], score, error });
                }
            }
        }
        Ok(worth_comparing(found, limit))
    }
}

/// Drops candidates that are too far behind the last wanted one to pass it.
fn worth_comparing(mut found: Vec<Candidate>, limit: usize) -> Vec<Candidate> {
    found.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.vid.cmp(&b.vid)));
    if let Some(last) = limit.checked_sub(1).and_then(|at| found.get(at)).copied() {
        let floor = last.score - ERRORS_APART * last.error;
        found.retain(|candidate| candidate.score + ERRORS_APART * candidate.error >= floor);
    }
    found
}

impl Part {
    /// The rows of the segment that may be among the best.
    fn nearest(
        &self,
        query: &[f32],
        limit: usize,
        filter: &SpaceFilter,
        scratch: &mut Scratch,
    ) -> Result<Vec<(u32, f32)>, FaissError> {
        let selected = self.segment.facts.select(filter);
        let (rows, count) = (self.rows(), limit * OVERSAMPLE);
        let wanted_rows = match &*selected {
            Selected::All => rows,
            Selected::Some(_, count) => *count,
        };
        if wanted_rows == 0 {
            return Ok(Vec::new());
        }
        match &self.segment.index {
            Index::Empty => Ok(Vec::new()),
            Index::Flat(index) => index.search(query, count.min(rows), &self.bytes_of(&selected), None),
            Index::Lists(index, lists) => {
                let read = (LISTS_READ * (rows / wanted_rows)).clamp(LISTS_READ.min(*lists), *lists);
                index.search(query, count.min(rows), &self.bytes_of(&selected), Some(read))
            }
            Index::Graph(graph) => {
                let alive = |row: usize| self.alive.get(row);
                let Selected::Some(bits, _) = &*selected else {
                    let effort = EFFORT.max(limit * EFFORT_PER_WANTED);
                    return Ok(graph.search(query, count, effort, scratch, |row| alive(row as usize)));
                };
                // A walk meets a wanted row only once in rows / wanted_rows.
                let effort = EFFORT.max(limit * EFFORT_PER_WANTED).saturating_mul(rows.div_ceil(wanted_rows));
                let wanted = |row: u32| bits.get(row as usize) && alive(row as usize);
                if wanted_rows > COMPARED_ALWAYS.max(effort.saturating_mul(ROWS_PER_EFFORT)) {
                    let found = graph.search(query, count, effort, scratch, wanted);
                    // What is wanted may lie elsewhere than what is near.
                    if found.len() >= limit {
                        return Ok(found);
                    }
                }
                let all = ones(&bits.0).filter(|row| alive(*row as usize));
                Ok(graph.search_among(query, count, all, scratch))
            }
        }
    }

    fn bytes_of(&self, selected: &Selected) -> Vec<u8> {
        let words: Vec<u64> = match selected {
            Selected::All => self.alive.0.clone(),
            Selected::Some(bits, _) => bits.0.iter().zip(&self.alive.0).map(|(a, b)| a & b).collect(),
        };
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// The places of the bits that are set.
fn ones(words: &[u64]) -> impl Iterator<Item = u32> {
    words.iter().enumerate().flat_map(|(at, word)| {
        let mut left = *word;
        std::iter::from_fn(move || {
            let bit = left.trailing_zeros();
            (left != 0).then(|| {
                left &= left - 1;
                at as u32 * 64 + bit
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::facts::FactsBuilder;
    use super::*;
    use crate::memory::nsw::{self, CodedRows};
    use crate::memory::vector::{VectorRow, to_f32};
    use proptest::prelude::*;

    const DIM: usize = 6;

    /// What a store would hold: the passages, and the log of what changed.
    #[derive(Default)]
    struct Truth {
        passages: BTreeMap<u64, (Vec<f32>, u64, Group)>,
        log: Vec<(u64, u64)>,
        seq: u64,
    }

    impl Truth {
        fn indexed(&self, vid: u64) -> Option<Indexed> {
            let (row, at_ms, group) = self.passages.get(&vid)?;
            let vector = VectorRow::new(0, 0, row).vector;
            Some(Indexed { vector, at_ms: *at_ms, group: group.clone() })
        }

        fn segment(&self, vids: impl Iterator<Item = u64>, mut gone: BTreeSet<u64>, oldest: bool) -> Segment {
            let (mut ids, mut facts, mut coded) = (Vec::new(), FactsBuilder::default(), CodedRows::new(DIM));
            for vid in vids {
                if let Some(indexed) = self.indexed(vid).filter(|indexed| indexed.group.owner.is_none()) {
                    gone.remove(&vid);
                    ids.push(vid);
                    facts.push(indexed.at_ms, indexed.group);
                    coded.push(&to_f32(&indexed.vector));
                }
            }
            let index = if ids.is_empty() {
                Index::Empty
            } else {
                Index::Graph(nsw::build(coded, &mut || true).expect("nobody ends it"))
            };
            let removed = if oldest { Vec::new() } else { gone.into_iter().collect() };
            Segment { index, ids, facts: facts.finish(), removed }
        }

        /// The index after a restart: the segments, then the log.
        fn restarted(&self, index: SpaceIndex) -> SpaceIndex {
            let mut again = SpaceIndex::default();
            let mut last = 0;
            for part in index.parts {
                let Ok(segment) = Arc::try_unwrap(part.segment) else { panic!("nobody else holds it") };
                let end = again.parts.len();
                again.install(end..end, segment, part.applied_seq);
                last = part.applied_seq;
            }
            for (seq, vid) in self.log.iter().filter(|(seq, _)| *seq > last) {
                again.apply(*seq, *vid, self.indexed(*vid));
            }
            for vid in self.passages.keys() {
                let indexed = self.indexed(*vid).expect("it is listed");
                if let Some(owner) = indexed.group.owner
                    && !again.changed.contains_key(vid)
                {
                    again.put_owned(owner, *vid, indexed);
                }
            }
            again
        }
    }

    #[derive(Debug, Clone)]
    enum Op {
        Put(u64, u64, u64, Option<u8>, Vec<String>),
        Remove(u64),
        Seal,
        /// Writes that commit while the segment is being built.
        SealLate(u64),
        Merge(usize, usize),
        Restart,
    }

    fn ops() -> impl Strategy<Value = Op> {
        let tags = || proptest::collection::vec("[a-b]", 0..3);
        prop_oneof![
            12 => (0u64..30, any::<u64>(), 0u64..8, proptest::option::of(0u8..2), tags())
                .prop_map(|(vid, seed, at, owner, tags)| Op::Put(vid, seed, at, owner, tags)),
            5 => (0u64..30).prop_map(Op::Remove),
            3 => Just(Op::Seal),
            2 => (0u64..30).prop_map(Op::SealLate),
            3 => (0usize..5, 1usize..4).prop_map(|(at, length)| Op::Merge(at, length)),
            1 => Just(Op::Restart),
        ]
    }

    fn row(mut seed: u64) -> Vec<f32> {
        (0..DIM)
            .map(|_| {
                seed = seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            })
            .collect()
    }

    fn put(truth: &mut Truth, index: &mut SpaceIndex, vid: u64, passage: Option<(Vec<f32>, u64, Group)>) {
        truth.seq += 1;
        truth.log.push((truth.seq, vid));
        match passage {
            Some(passage) => drop(truth.passages.insert(vid, passage)),
            None => drop(truth.passages.remove(&vid)),
        }
        index.apply(truth.seq, vid, truth.indexed(vid));
    }

    fn seal(truth: &mut Truth, index: &mut SpaceIndex, late: Option<u64>) {
        let last = index.parts.last().map_or(0, |part| part.applied_seq);
        let now = truth.seq;
        let changed: BTreeSet<u64> =
            truth.log.iter().filter(|(seq, _)| *seq > last && *seq <= now).map(|(_, vid)| *vid).collect();
        if changed.is_empty() {
            return;
        }
        if let Some(vid) = late {
            put(truth, index, vid, Some((row(vid + 1_000), 1, Group::default())));
            put(truth, index, (vid + 1) % 30, None);
        }
        let segment = truth.segment(changed.iter().copied(), changed.clone(), index.parts.is_empty());
        let end = index.parts.len();
        index.install(end..end, segment, now);
        truth.log.retain(|(seq, _)| *seq > now);
    }

    proptest! {
        /// Any mixture of writes, seals, merges and restarts, then every filter: what a full comparison of a plain map
        /// gives, no passage twice and none that is gone.
        #[test]
        fn an_index_answers_as_a_plain_map_does(
            ops in proptest::collection::vec(ops(), 1..70), question in any::<u64>(), asked in 0u8..3,
        ) {
            let (mut truth, mut index) = (Truth::default(), SpaceIndex::default());
            for op in ops {
                match op {
                    Op::Put(vid, seed, at_ms, owner, tags) => {
                        let group = Group::new(owner.map(|owner| millrace_proto::id::UserId([owner; 16])), tags);
                        put(&mut truth, &mut index, vid, Some((row(seed), at_ms, group)));
                    }
                    Op::Remove(vid) => put(&mut truth, &mut index, vid, None),
                    Op::Seal => seal(&mut truth, &mut index, None),
                    Op::SealLate(vid) => seal(&mut truth, &mut index, Some(vid)),
                    Op::Merge(at, length) if at < index.parts.len() => {
                        let run = at..(at + length).min(index.parts.len());
                        let (vids, gone) = index.merged(&run);
                        let applied = index.parts[run.end - 1].applied_seq;
                        let segment = truth.segment(vids.into_iter(), gone, at == 0);
                        index.install(run, segment, applied);
                    }
                    Op::Merge(..) => {}
                    Op::Restart => index = truth.restarted(index),
                }
                prop_assert_eq!(index.rows(), truth.passages.len());
            }
            let filter = SpaceFilter {
                user: (asked < 2).then_some(millrace_proto::id::UserId([asked; 16])),
                tags_any: if question % 2 == 0 { vec!["a".into()] } else { Vec::new() },
                from_ms: question % 5,
                ..SpaceFilter::default()
            };
            let question = row(question);
            let wanted: Vec<u64> = truth
                .passages
                .iter()
                .filter(|(_, (_, at_ms, group))| filter.in_time(*at_ms) && filter.lets(group))
                .map(|(vid, _)| *vid)
                .collect();
            let mut found: Vec<u64> = index
                .candidates(&question, 64, &filter, &mut Scratch::default())
                .unwrap()
                .into_iter()
                .map(|candidate| candidate.vid)
                .collect();
            found.sort_unstable();
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn candidates_that_cannot_pass_the_last_wanted_one_are_dropped() {
        let candidate = |vid, score, error| Candidate { vid, score, error };
        let found =
            vec![candidate(1, 0.9, 0.01), candidate(2, 0.8, 0.01), candidate(3, 0.77, 0.01), candidate(4, 0.5, 0.01)];
        let kept: Vec<u64> = worth_comparing(found.clone(), 2).iter().map(|candidate| candidate.vid).collect();
        assert_eq!(kept, [1, 2, 3]);
        assert_eq!(worth_comparing(found, 9).len(), 4);
        let unknown = vec![candidate(1, 0.9, f32::INFINITY), candidate(2, 0.1, f32::INFINITY)];
        assert_eq!(worth_comparing(unknown, 1).len(), 2);
    }
}
