//! KV blocks with a memory: blocks stay findable by their content after their sequence is gone, until their place is
//! needed.
//!
//! The cache is a radix tree over token blocks, kept as an ordered map from (salt, parent, 16 tokens) to a block. Keys
//! are compared in full, so a match is exact and never the luck of a hash. A salt separates tenants: under another
//! salt not even the first token matches.
//!
//! Full blocks are shared as they are, since nobody writes to them any more. A prefix that ends inside a block is
//! shared by copying that block (copy on write): in the map's order the block with the longest common beginning stands
//! next to the place where the wanted tokens would stand. The last, partly filled block of a sequence becomes findable
//! when the sequence is over.
//!
//! Memory is touched for what runs, and up to a bound for what is kept: beyond the bound a new block takes the place of
//! the one that was unused for longest, although there is memory that nobody has touched yet.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::kv::{BLOCK_TOKENS, BlockAllocator, BlockId, blocks_for};

/// Identity of a cached block; 0 is the root of every salt.
type Serial = u64;

/// What keeps texts apart: the caller's salt, and whether the sequence is stretched, since keys of an equal text are
/// turned otherwise then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Salt {
    pub caller: u64,
    pub stretched: bool,
}

/// Stands behind the tokens of a partly filled block; larger than any token.
const EMPTY: u32 = u32::MAX;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    salt: Salt,
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
    /// Block whose beginning is to be copied behind the adopted ones; held until then.
    source: Option<BlockId>,
}

/// What the cache has of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Full blocks.
    pub blocks: usize,
    /// How many of them a sequence holds now.
    pub in_use: usize,
    /// Tokens behind them that can be had by copying a block.
    pub part: usize,
}

impl Found {
    /// Tokens that need not be computed.
    pub fn tokens(&self) -> usize {
        self.blocks * BLOCK_TOKENS + self.part
    }
}

/// The allocator and the cache over it.
pub(crate) struct Pool {
    allocator: BlockAllocator,
    entries: BTreeMap<Key, Entry>,
    cached: Vec<Option<Box<Cached>>>,
    /// Cached blocks that no sequence holds: least recently released first, deepest first among equals, so that no
    /// block loses its parent.
    idle: BTreeSet<(u64, Reverse<u32>, BlockId)>,
    clock: u64,
    serials: Serial,
    /// Blocks that may be touched while others are kept only to be found.
    kept_max: usize,
}

impl Pool {
    /// A pool of `count` blocks. Once `kept_max` of them were used, more are touched only for what sequences hold at the
    /// same time.
    pub fn new(count: usize, kept_max: usize) -> Self {
        let cached = std::iter::repeat_with(|| None).take(count).collect();
        let allocator = BlockAllocator::new(count);
        Self { allocator, entries: BTreeMap::new(), cached, idle: BTreeSet::new(), clock: 0, serials: 0, kept_max }
    }

    /// Blocks that can be taken now.
    pub fn available(&self) -> usize {
        self.allocator.free_count() + self.idle.len()
    }

    /// Blocks held by sequences.
    pub fn used(&self) -> usize {
        self.allocator.count() - self.available()
    }

    /// Blocks whose memory was used at any time.
    pub fn touched(&self) -> usize {
        self.allocator.touched()
    }

    /// What is cached of the first `most` of these tokens.
    pub fn peek(&self, salt: Salt, tokens: &[u32], most: usize) -> Found {
        let (mut found, mut parent) = (Found::default(), 0);
        for tokens in full_blocks(tokens).take(most / BLOCK_TOKENS) {
            let Some(entry) = self.entries.get(&Key { salt, parent, tokens: *tokens }) else { break };
            found.blocks += 1;
            found.in_use += usize::from(self.allocator.holders(entry.block) > 1);
            parent = entry.serial;
        }
        let rest = &tokens[found.blocks * BLOCK_TOKENS..most];
        found.part = self.closest(salt, parent, rest).map_or(0, |(part, _)| part);
        found
    }

    /// Gives an empty table the cached blocks of the first `most` of these tokens, and, when `part` allows it, marks
    /// the block to copy for what follows; returns how many tokens that is. The copy is due with [`Pool::copy_due`].
    pub fn adopt(&mut self, table: &mut Table, salt: Salt, tokens: &[u32], most: usize, part: bool) -> usize {
        assert!(table.blocks.is_empty() && table.chain.is_empty(), "only a sequence without blocks adopts");
        let mut parent = 0;
        for tokens in full_blocks(tokens).take(most / BLOCK_TOKENS) {
            let Some(entry) = self.entries.get(&Key { salt, parent, tokens: *tokens }).copied() else { break };
            self.hold(entry.block);
            table.blocks.push(entry.block);
            table.chain.push(entry.serial);
            parent = entry.serial;
        }
        let whole = table.blocks.len() * BLOCK_TOKENS;
        let closest = if part { self.closest(salt, parent, &tokens[whole..most]) } else { None };
        let Some((part, block)) = closest else { return whole };
        self.hold(block);
        table.source = Some(block);
        whole + part
    }

    /// The copy that a table which has grown behind its adopted blocks needs before anything is computed for it. The
    /// source stays held until [`Pool::copied`].
    pub fn copy_due(&mut self, table: &mut Table) -> Option<(BlockId, BlockId)> {
        let from = table.source.take()?;
        Some((from, table.blocks[table.chain.len()]))
    }

    /// A copy from this block was made.
    pub fn copied(&mut self, from: BlockId) {
        self.let_go(from);
    }

    /// Among the blocks behind `parent`, the one that has the longest beginning in common with these tokens, and its
    /// length; at most a block's worth of tokens is looked at.
    fn closest(&self, salt: Salt, parent: Serial, tokens: &[u32]) -> Option<(usize, BlockId)> {
        let tokens = &tokens[..tokens.len().min(BLOCK_TOKENS)];
        let mut wanted = Key { salt, parent, tokens: [0; BLOCK_TOKENS] };
        wanted.tokens[..tokens.len()].copy_from_slice(tokens);
        let before = self.entries.range(..&wanted).next_back();
        let after = self.entries.range(&wanted..).next();
        let siblings = before.into_iter().chain(after).filter(|(key, _)| (key.salt, key.parent) == (salt, parent));
        let common = |key: &Key| key.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        siblings.map(|(key, entry)| (common(key), entry.block)).max_by_key(|(n, _)| *n).filter(|(n, _)| *n > 0)
    }

    /// Makes room for `tokens` tokens; false when the pool is exhausted, with the table as far as it came.
    pub fn grow(&mut self, table: &mut Table, tokens: usize) -> bool {
        while table.blocks.len() * BLOCK_TOKENS < tokens {
            let thrifty = self.allocator.touched() >= self.kept_max && self.allocator.next_is_fresh();
            let evicted = (thrifty || self.allocator.free_count() == 0) && self.evict();
            if !evicted && self.allocator.free_count() == 0 {
                return false;
            }
            let block = self.allocator.alloc().expect("a block was just free");
            table.blocks.push(block);
        }
        true
    }

    /// Takes back the blocks behind the first `tokens` tokens, which nothing was published of: guesses that were wrong.
    pub fn shrink(&mut self, table: &mut Table, tokens: usize) {
        let keep = blocks_for(tokens);
        assert!(table.chain.len() <= keep, "what others may read is never taken back");
        for block in table.blocks.drain(keep.min(table.blocks.len())..).rev() {
            self.let_go(block);
        }
    }

    /// Makes the blocks of the first `computed` tokens findable. Where an equal block exists already the table takes
    /// that one, so that equal content is held once.
    pub fn publish(&mut self, table: &mut Table, salt: Salt, tokens: &[u32], computed: usize) {
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
                None => self.remember(key, block, at),
            };
            table.chain.push(serial);
        }
    }

    fn remember(&mut self, key: Key, block: BlockId, depth: usize) -> Serial {
        self.serials += 1;
        let serial = self.serials;
        self.allocator.retain(block);
        let cached = Cached { key: key.clone(), serial, depth: depth as u32, released: 0 };
        self.cached[block.0 as usize] = Some(Box::new(cached));
        self.entries.insert(key, Entry { serial, block });
        serial
    }

    /// The sequence is over or preempted: what it computed stays findable, its last block included.
    pub fn retire(&mut self, table: &mut Table, salt: Salt, tokens: &[u32], computed: usize) {
        let (at, rest) = (computed / BLOCK_TOKENS, computed % BLOCK_TOKENS);
        if rest > 0 && table.chain.len() == at && table.source.is_none() {
            let parent = table.chain.last().copied().unwrap_or(0);
            let mut key = Key { salt, parent, tokens: [EMPTY; BLOCK_TOKENS] };
            key.tokens[..rest].copy_from_slice(&tokens[at * BLOCK_TOKENS..computed]);
            if !self.entries.contains_key(&key) {
                self.remember(key, table.blocks[at], at);
            }
        }
        self.release(table);
    }

    /// Blocks that become available when this table is released.
    pub fn returns(&self, table: &Table) -> usize {
        let alone = |block: &&BlockId| {
            let cache = u32::from(self.cached[block.0 as usize].is_some());
            self.allocator.holders(**block) == 1 + cache
        };
        table.blocks.iter().filter(alone).count()
    }

    fn release(&mut self, table: &mut Table) {
        self.clock += 1;
        table.chain.clear();
        if let Some(source) = table.source.take() {
            self.let_go(source);
        }
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
mod tests;
