//! The block allocator.

/// Tokens in one block. 16 keeps little unused memory at the end of a sequence and equals one vector of attention
/// scores in the widest instruction set.
pub const BLOCK_TOKENS: usize = 16;

/// Number of one KV block; an index into every layer's block array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct BlockId(pub u32);

/// Blocks that hold `tokens` tokens.
pub fn blocks_for(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

/// Hands out blocks and counts their holders. Never grows; allocation order is deterministic.
#[derive(Debug)]
pub struct BlockAllocator {
    holders: Vec<u32>,
    /// Taken from the end. Blocks that were never used lie at the beginning, the lowest number last, so that memory
    /// which was touched before is used again first.
    free: Vec<BlockId>,
    /// Blocks that were handed out at least once: those below this number.
    touched: usize,
}

impl BlockAllocator {
    /// An allocator of `count` blocks, all free.
    pub fn new(count: usize) -> BlockAllocator {
        let count = u32::try_from(count).expect("block counts fit in 32 bits");
        BlockAllocator { holders: vec![0; count as usize], free: (0..count).rev().map(BlockId).collect(), touched: 0 }
    }

    /// All blocks, free or not.
    pub fn count(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that nobody holds.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Blocks that were handed out at least once, free or not: those whose memory the system had to provide.
    pub fn touched(&self) -> usize {
        self.touched
    }

    /// Whether the next block that is handed out is one whose memory nobody touched yet.
    pub fn next_is_fresh(&self) -> bool {
        self.free.last().is_some_and(|block| block.0 as usize >= self.touched)
    }

    /// A free block with one holder, or `None` when all are in use.
    pub fn alloc(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        let holders = &mut self.holders[block.0 as usize];
        assert_eq!(*holders, 0, "a block on the free list has no holder");
        *holders = 1;
        self.touched = self.touched.max(block.0 as usize + 1);
        Some(block)
    }

    /// Adds a holder to a block in use.
    pub fn retain(&mut self, block: BlockId) {
        let holders = &mut self.holders[block.0 as usize];
        assert!(*holders > 0, "only a block in use can be shared");
        *holders += 1;
    }

    /// Removes a holder; returns true when that was the last one and the block is free again.
    pub fn release(&mut self, block: BlockId) -> bool {
        let holders = &mut self.holders[block.0 as usize];
        assert!(*holders > 0, "a block is released once per holder");
        *holders -= 1;
        if *holders == 0 {
            self.free.push(block);
        }
        *holders == 0
    }

    /// Holders of a block.
    pub fn holders(&self, block: BlockId) -> u32 {
        self.holders[block.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_each_block_once_and_then_refuses() {
        let mut allocator = BlockAllocator::new(3);
        let mut got: Vec<BlockId> = std::iter::from_fn(|| allocator.alloc()).collect();
        got.sort_unstable();
        assert_eq!(got, [BlockId(0), BlockId(1), BlockId(2)]);
        assert_eq!((allocator.free_count(), allocator.alloc()), (0, None));
    }

    #[test]
    fn memory_that_was_used_is_used_again_before_more_is_touched() {
        let mut allocator = BlockAllocator::new(4);
        let got: Vec<BlockId> = (0..3).filter_map(|_| allocator.alloc()).collect();
        assert!(allocator.next_is_fresh());
        allocator.release(got[0]);
        allocator.release(got[2]);
        for _ in 0..2 {
            assert!(!allocator.next_is_fresh());
            allocator.alloc().expect("a block");
            assert_eq!(allocator.touched(), 3);
        }
        allocator.alloc().expect("a block");
        assert_eq!((allocator.touched(), allocator.next_is_fresh()), (4, false));
    }

    #[test]
    fn a_shared_block_is_free_only_after_its_last_holder() {
        let mut allocator = BlockAllocator::new(1);
        let block = allocator.alloc().expect("one block");
        allocator.retain(block);
        assert_eq!(allocator.holders(block), 2);
        assert!(!allocator.release(block));
        assert_eq!(allocator.alloc(), None);
        assert!(allocator.release(block));
        assert_eq!(allocator.alloc(), Some(block));
    }

    #[test]
    #[should_panic(expected = "released once per holder")]
    fn a_double_release_is_caught() {
        let mut allocator = BlockAllocator::new(1);
        let block = allocator.alloc().expect("one block");
        allocator.release(block);
        allocator.release(block);
    }

    #[test]
    fn blocks_for_rounds_up() {
        assert_eq!([0, 1, 16, 17].map(blocks_for), [0, 1, 1, 2]);
    }
}
