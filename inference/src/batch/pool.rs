//! KV blocks with a memory: full blocks stay findable by their content after their sequence is gone, until their
//! place is needed.
//!
//! The cache is a radix tree over token blocks, kept as a hash map from (salt, parent, 16 tokens) to a block. Keys
//! are compared in full, so a match is exact and never the luck of a hash. A salt separates tenants: under another
//! salt not even the first block matches.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

use crate::kv::{BLOCK_TOKENS, BlockAllocator, BlockId};

/// Identity of a cached block; 0 is the root of every salt.
type Serial = u64;

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    salt: u64,
    parent: Serial,
    tokens: [u32; BLOCK_TOKENS],
}

#[derive(Clone, Copy)]
struct Entry {
    serial: Serial,
    block: BlockId,
}

/// What is known of a cached block by its number.
struct Cached {
    key: Key,
    serial: Serial,
    depth: u32,
    /// When its last sequence let go; orders eviction.
    released: u64,
}

/// Blocks of one sequence in order, with their place in the tree as far as they are full and computed.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub blocks: Vec<BlockId>,
    chain: Vec<Serial>,
}

/// The allocator and the cache over it.
pub(crate) struct Pool {
    allocator: BlockAllocator,
    entries: HashMap<Key, Entry>,
    cached: Vec<Option<Box<Cached>>>,
    /// Cached blocks that no sequence holds: least recently released first, deepest first among equals, so that no
    /// block loses its parent.
    idle: BTreeSet<(u64, Reverse<u32>, BlockId)>,
    clock: u64,
    serials: Serial,
}

impl Pool {
    /// A pool of `count` blocks.
    pub fn new(count: usize) -> Self {
        let cached = std::iter::repeat_with(|| None).take(count).collect();
        let allocator = BlockAllocator::new(count);
        Self { allocator, entries: HashMap::new(), cached, idle: BTreeSet::new(), clock: 0, serials: 0 }
    }

    /// Blocks that can be taken now.
    pub fn available(&self) -> usize {
        self.allocator.free_count() + self.idle.len()
    }

    /// Blocks held by sequences.
    pub fn used(&self) -> usize {
        self.allocator.count() - self.available()
    }

    /// How many of the first `most` blocks of these tokens are cached, and how many of those a sequence holds.
    pub fn peek(&self, salt: u64, tokens: &[u32], most: usize) -> (usize, usize) {
        let (mut found, mut in_use, mut parent) = (0, 0, 0);
        for tokens in full_blocks(tokens).take(most) {
            let Some(entry) = self.entries.get(&Key { salt, parent, tokens: *tokens }) else { break };
            found += 1;
            in_use += usize::from(self.allocator.holders(entry.block) > 1);
            parent = entry.serial;
        }
        (found, in_use)
    }

    /// Gives an empty table the cached blocks of the beginning of these tokens, `most` at most; returns how many.
    pub fn adopt(&mut self, table: &mut Table, salt: u64, tokens: &[u32], most: usize) -> usize {
        assert!(table.blocks.is_empty() && table.chain.is_empty(), "only a sequence without blocks adopts");
        let mut parent = 0;
        for tokens in full_blocks(tokens).take(most) {
            let Some(entry) = self.entries.get(&Key { salt, parent, tokens: *tokens }).copied() else { break };
            self.hold(entry.block);
            table.blocks.push(entry.block);
            table.chain.push(entry.serial);
            parent = entry.serial;
        }
        table.blocks.len()
    }

    /// Makes room for `tokens` tokens; false when the pool is exhausted, with the table as far as it came.
    pub fn grow(&mut self, table: &mut Table, tokens: usize) -> bool {
        while table.blocks.len() * BLOCK_TOKENS < tokens {
            if self.allocator.free_count() == 0 && !self.evict() {
                return false;
            }
            let block = self.allocator.alloc().expect("a block was just free");
            table.blocks.push(block);
        }
        true
    }

    /// Makes the blocks of the first `computed` tokens findable. Where an equal block exists already the table takes
    /// that one, so that equal content is held once.
    pub fn publish(&mut self, table: &mut Table, salt: u64, tokens: &[u32], computed: usize) {
        for at in table.chain.len()..computed / BLOCK_TOKENS {
            let parent = table.chain.last().copied().unwrap_or(0);
            let block = table.blocks[at];
            let tokens = full_blocks(tokens).nth(at).expect("computed tokens are known");
            let key = Key { salt, parent, tokens: *tokens };
            let serial = match self.entries.get(&key).copied() {
                Some(twin) => {
                    self.hold(twin.block);
                    table.blocks[at] = twin.block;
                    self.let_go(block);
                    twin.serial
                }
                None => {
                    self.serials += 1;
                    let serial = self.serials;
                    self.allocator.retain(block);
                    let cached = Cached { key: key.clone(), serial, depth: at as u32, released: 0 };
                    self.cached[block.0 as usize] = Some(Box::new(cached));
                    self.entries.insert(key, Entry { serial, block });
                    serial
                }
            };
            table.chain.push(serial);
        }
    }

    /// Blocks that become available when this table is released.
    pub fn returns(&self, table: &Table) -> usize {
        let alone = |block: &&BlockId| {
            let cache = u32::from(self.cached[block.0 as usize].is_some());
            self.allocator.holders(**block) == 1 + cache
        };
        table.blocks.iter().filter(alone).count()
    }

    /// The sequence is over or preempted.
    pub fn release(&mut self, table: &mut Table) {
        self.clock += 1;
        table.chain.clear();
        for block in table.blocks.drain(..) {
            self.let_go(block);
        }
    }

    fn hold(&mut self, block: BlockId) {
        if let Some(cached) = &self.cached[block.0 as usize] {
            self.idle.remove(&(cached.released, Reverse(cached.depth), block));
        }
        self.allocator.retain(block);
    }

    fn let_go(&mut self, block: BlockId) {
        self.allocator.release(block);
        if self.allocator.holders(block) == 1
            && let Some(cached) = &mut self.cached[block.0 as usize]
        {
            cached.released = self.clock;
            self.idle.insert((self.clock, Reverse(cached.depth), block));
        }
    }

    /// Forgets the block that was unused for longest.
    fn evict(&mut self) -> bool {
        let Some((_, _, block)) = self.idle.pop_first() else { return false };
        let cached = self.cached[block.0 as usize].take().expect("idle blocks are cached");
        let entry = self.entries.remove(&cached.key);
        assert!(entry.is_some_and(|e| e.serial == cached.serial), "a cached block has its entry");
        let free = self.allocator.release(block);
        assert!(free, "an idle block is held by the cache only");
        true
    }
}

fn full_blocks(tokens: &[u32]) -> impl Iterator<Item = &[u32; BLOCK_TOKENS]> {
    tokens.as_chunks::<BLOCK_TOKENS>().0.iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(seed: u32, n: usize) -> Vec<u32> {
        (0..n as u32).map(|i| seed * 1000 + i).collect()
    }

    /// Runs a sequence to the end of its tokens and returns its table.
    fn compute(pool: &mut Pool, salt: u64, tokens: &[u32]) -> Table {
        let mut table = Table::default();
        pool.adopt(&mut table, salt, tokens, tokens.len().saturating_sub(1) / BLOCK_TOKENS);
        assert!(pool.grow(&mut table, tokens.len()));
        pool.publish(&mut table, salt, tokens, tokens.len());
        table
    }

    #[test]
    fn a_second_prompt_finds_the_common_beginning_under_the_same_salt_only() {
        let mut pool = Pool::new(16);
        let first = tokens(1, 40);
        let mut a = compute(&mut pool, 7, &first);
        let mut second = first.clone();
        second[35] = 5;
        assert_eq!(pool.peek(7, &second, 9), (2, 2));
        assert_eq!(pool.peek(8, &second, 9), (0, 0));
        let mut b = Table::default();
        assert_eq!(pool.adopt(&mut b, 7, &second, 9), 2);
        assert_eq!(b.blocks, a.blocks[..2]);
        pool.release(&mut a);
        pool.release(&mut b);
        assert_eq!((pool.available(), pool.used()), (16, 0));
        assert_eq!(pool.peek(7, &second, 9), (2, 0));
    }

    #[test]
    fn equal_blocks_computed_side_by_side_are_held_once() {
        let mut pool = Pool::new(8);
        let text = tokens(1, 32);
        let (mut a, mut b) = (Table::default(), Table::default());
        assert!(pool.grow(&mut a, 32) && pool.grow(&mut b, 32));
        pool.publish(&mut a, 0, &text, 32);
        pool.publish(&mut b, 0, &text, 32);
        assert_eq!(a.blocks, b.blocks);
        assert_eq!(pool.used(), 2);
        assert_eq!((pool.returns(&a), pool.returns(&b)), (0, 0));
        pool.release(&mut a);
        assert_eq!(pool.returns(&b), 2);
    }

    #[test]
    fn what_was_used_last_stays_longest_and_ends_go_before_beginnings() {
        let mut pool = Pool::new(4);
        let (old, new) = (tokens(1, 32), tokens(2, 32));
        let mut a = compute(&mut pool, 0, &old);
        pool.release(&mut a);
        let mut b = compute(&mut pool, 0, &new);
        pool.release(&mut b);
        let mut c = Table::default();
        assert!(pool.grow(&mut c, 16));
        assert_eq!((pool.peek(0, &old, 9).0, pool.peek(0, &new, 9).0), (1, 2));
        assert!(pool.grow(&mut c, 64));
        assert!(!pool.grow(&mut c, 65));
        assert_eq!((pool.peek(0, &new, 9).0, pool.available()), (0, 0));
    }

    proptest! {
        #[test]
        fn random_use_neither_leaks_nor_shares_wrongly(
            actions in proptest::collection::vec((0_usize..6, 0_u32..4, 1_usize..90), 1..80),
        ) {
            let mut pool = Pool::new(12);
            let mut live: Vec<(Vec<u32>, Table)> = Vec::new();
            for (slot, seed, length) in actions {
                if slot < live.len() {
                    let (_, mut table) = live.swap_remove(slot);
                    let (returns, before) = (pool.returns(&table), pool.available());
                    pool.release(&mut table);
                    prop_assert_eq!(pool.available(), before + returns);
                } else {
                    let text = tokens(seed, length);
                    let mut table = Table::default();
                    let found = pool.adopt(&mut table, 1, &text, (length - 1) / BLOCK_TOKENS);
                    // Whatever is found was published by somebody with exactly these tokens.
                    for (other, its) in &live {
                        let common = text.iter().zip(other).take_while(|(a, b)| a == b).count() / BLOCK_TOKENS;
                        for at in 0..found.min(its.blocks.len()) {
                            prop_assert_eq!(table.blocks[at] == its.blocks[at], at < common);
                        }
                    }
                    if pool.grow(&mut table, length) {
                        pool.publish(&mut table, 1, &text, length);
                        live.push((text, table));
                    } else {
                        pool.release(&mut table);
                    }
                }
                prop_assert!(pool.available() <= 12);
            }
            for (_, mut table) in live {
                pool.release(&mut table);
            }
            prop_assert_eq!(pool.available(), 12);
        }
    }
}
