use super::*;
use proptest::prelude::*;

fn of(caller: u64) -> Salt {
    Salt { caller, stretched: false }
}

fn tokens(seed: u32, n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| seed * 1000 + i).collect()
}

/// Runs a sequence to the end of its tokens and returns its table.
fn compute(pool: &mut Pool, salt: u64, tokens: &[u32]) -> Table {
    let mut table = Table::default();
    pool.adopt(&mut table, of(salt), tokens, tokens.len() - 1, false);
    assert!(pool.grow(&mut table, tokens.len()));
    pool.publish(&mut table, of(salt), tokens, tokens.len());
    table
}

fn found(pool: &Pool, salt: u64, tokens: &[u32]) -> (usize, usize, usize) {
    let found = pool.peek(of(salt), tokens, tokens.len() - 1);
    (found.blocks, found.in_use, found.part)
}

#[test]
fn a_second_prompt_finds_the_common_beginning_under_the_same_salt_only() {
    let mut pool = Pool::new(16, usize::MAX);
    let first = tokens(1, 40);
    let mut a = compute(&mut pool, 7, &first);
    let mut second = first.clone();
    second[29] = 5;
    assert_eq!(found(&pool, 7, &second), (1, 1, 13));
    assert_eq!(found(&pool, 8, &second), (0, 0, 0));
    let mut b = Table::default();
    assert_eq!(pool.adopt(&mut b, of(7), &second, 39, true), 29);
    assert_eq!(b.blocks, a.blocks[..1]);
    assert!(pool.grow(&mut b, 40));
    let (from, to) = pool.copy_due(&mut b).expect("the second block has a common beginning");
    assert_eq!((from, to), (a.blocks[1], b.blocks[1]));
    pool.copied(from);
    pool.release(&mut a);
    pool.release(&mut b);
    assert_eq!((pool.available(), pool.used()), (16, 0));
    assert_eq!(found(&pool, 7, &first), (2, 0, 0));
    // Stretched, the same text has other keys.
    let stretched = Salt { caller: 7, stretched: true };
    assert_eq!(pool.peek(stretched, &first, 39), Found::default());
}

#[test]
fn a_finished_sequence_leaves_its_last_tokens_too() {
    let mut pool = Pool::new(8, usize::MAX);
    let text = tokens(1, 37);
    let mut a = compute(&mut pool, 0, &text);
    assert_eq!(found(&pool, 0, &tokens(1, 60)), (2, 2, 0));
    pool.retire(&mut a, of(0), &text, 37);
    assert_eq!((pool.available(), found(&pool, 0, &tokens(1, 60))), (8, (2, 0, 5)));
    // The last known token is always computed anew: its logits are wanted.
    assert_eq!(found(&pool, 0, &tokens(1, 37)), (2, 0, 4));
    assert_eq!(found(&pool, 1, &tokens(1, 60)), (0, 0, 0));
}

#[test]
fn blocks_behind_wrong_guesses_come_back_and_nothing_of_them_is_found() {
    let mut pool = Pool::new(8, usize::MAX);
    let text = tokens(1, 35);
    let mut a = compute(&mut pool, 0, &text);
    // Thirty guesses, of which five were right.
    assert!(pool.grow(&mut a, 65));
    assert_eq!(pool.used(), 5);
    let text = tokens(1, 40);
    pool.shrink(&mut a, 40);
    pool.publish(&mut a, of(0), &text, 40);
    assert_eq!((pool.used(), a.blocks.len()), (3, 3));
    assert_eq!(found(&pool, 0, &tokens(1, 65)), (2, 2, 0));
    pool.shrink(&mut a, 40);
    pool.retire(&mut a, of(0), &text, 40);
    assert_eq!((pool.available(), found(&pool, 0, &tokens(1, 65))), (8, (2, 0, 8)));
}

#[test]
fn the_longest_common_beginning_is_found_among_many() {
    let mut pool = Pool::new(64, usize::MAX);
    for last in 1..=15 {
        let mut text = tokens(3, 16);
        text[last] = 7 * last as u32;
        let mut table = compute(&mut pool, 0, &text);
        pool.release(&mut table);
    }
    for wanted in 1..=15 {
        let mut text = tokens(3, 17);
        text[wanted] = 1_000_000;
        assert_eq!(found(&pool, 0, &text), (0, 0, wanted), "{text:?}");
    }
}

#[test]
fn equal_blocks_computed_side_by_side_are_held_once() {
    let mut pool = Pool::new(8, usize::MAX);
    let text = tokens(1, 32);
    let (mut a, mut b) = (Table::default(), Table::default());
    assert!(pool.grow(&mut a, 32) && pool.grow(&mut b, 32));
    pool.publish(&mut a, of(0), &text, 32);
    pool.publish(&mut b, of(0), &text, 32);
    assert_eq!(a.blocks, b.blocks);
    assert_eq!(pool.used(), 2);
    assert_eq!((pool.returns(&a), pool.returns(&b)), (0, 0));
    pool.release(&mut a);
    assert_eq!(pool.returns(&b), 2);
}

#[test]
fn what_was_used_last_stays_longest_and_ends_go_before_beginnings() {
    let mut pool = Pool::new(4, usize::MAX);
    let (old, new) = (tokens(1, 33), tokens(2, 33));
    let mut a = compute(&mut pool, 0, &old[..32]);
    pool.release(&mut a);
    let mut b = compute(&mut pool, 0, &new[..32]);
    pool.release(&mut b);
    let mut c = Table::default();
    assert!(pool.grow(&mut c, 16));
    assert_eq!((found(&pool, 0, &old).0, found(&pool, 0, &new).0), (1, 2));
    assert!(pool.grow(&mut c, 64));
    assert!(!pool.grow(&mut c, 65));
    assert_eq!((found(&pool, 0, &new).0, pool.available()), (0, 0));
}

#[test]
fn beyond_the_bound_on_what_is_kept_a_new_text_takes_the_place_of_the_oldest() {
    let mut pool = Pool::new(16, 4);
    for seed in 1..=6 {
        let mut table = compute(&mut pool, 0, &tokens(seed, 32));
        pool.release(&mut table);
        assert!(pool.touched() <= 4);
    }
    let kept = [1, 2, 3, 4, 5, 6].map(|seed| pool.peek(of(0), &tokens(seed, 33), 32).blocks);
    assert_eq!(kept, [0, 0, 0, 0, 2, 2]);
    // What runs at the same time gets all that there is.
    let mut tables: Vec<Table> = (1..=8).map(|seed| compute(&mut pool, 0, &tokens(seed, 32))).collect();
    assert_eq!((pool.used(), pool.touched(), pool.available()), (16, 16, 0));
    tables.iter_mut().for_each(|table| pool.release(table));
    assert_eq!(pool.available(), 16);
}

/// A pool whose blocks have contents: what was written to them last.
struct Memory {
    pool: Pool,
    contents: Vec<[(u64, u32); BLOCK_TOKENS]>,
    /// Most blocks that sequences held at the same time.
    peak: usize,
}

impl Memory {
    /// Runs a sequence as far as there is room, as the scheduler does: adopt, grow, copy, write what is missing.
    fn run(&mut self, salt: u64, text: &[u32]) -> Option<Table> {
        let mut table = Table::default();
        let most = text.len() - 1;
        let promised = self.pool.peek(of(salt), text, most).tokens();
        let start = self.pool.adopt(&mut table, of(salt), text, most, true);
        assert_eq!(start, promised, "what was promised is there");
        let fits = self.pool.grow(&mut table, text.len());
        self.peak = self.peak.max(self.pool.used());
        if !fits {
            self.pool.release(&mut table);
            return None;
        }
        if let Some((from, to)) = self.pool.copy_due(&mut table) {
            self.contents[to.0 as usize] = self.contents[from.0 as usize];
            self.pool.copied(from);
        }
        for (at, token) in text.iter().enumerate().skip(start) {
            let block = table.blocks[at / BLOCK_TOKENS];
            assert_eq!(self.pool.allocator.holders(block), 1, "nobody else may read a block that is written");
            self.contents[block.0 as usize][at % BLOCK_TOKENS] = (salt, *token);
        }
        self.check(salt, text, &table);
        self.pool.publish(&mut table, of(salt), text, text.len());
        Some(table)
    }

    /// A sequence sees its own tokens, written under its own salt.
    fn check(&self, salt: u64, text: &[u32], table: &Table) {
        for (at, token) in text.iter().enumerate() {
            let block = table.blocks[at / BLOCK_TOKENS].0 as usize;
            assert_eq!(self.contents[block][at % BLOCK_TOKENS], (salt, *token), "token {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Two tenants with equal and similar texts in a pool so small that blocks are reused all the time: every sequence
    /// reads exactly its own text, and nothing that was written for the other tenant.
    #[test]
    fn sequences_read_their_own_text_and_nothing_leaks(
        kept in 0_usize..14,
        actions in proptest::collection::vec((0_usize..6, 0_u64..2, 0_u32..3, 1_usize..70, 0_usize..70), 1..80),
    ) {
        let (pool, contents) = (Pool::new(12, kept), vec![[(9, 9); BLOCK_TOKENS]; 12]);
        let mut memory = Memory { pool, contents, peak: 0 };
        let mut live: Vec<(u64, Vec<u32>, Table)> = Vec::new();
        for (slot, salt, seed, length, fork) in actions {
            if slot < live.len() {
                let (salt, text, mut table) = live.swap_remove(slot);
                let (returns, before) = (memory.pool.returns(&table), memory.pool.available());
                memory.pool.retire(&mut table, of(salt), &text, text.len());
                prop_assert_eq!(memory.pool.available(), before + returns);
            } else {
                let mut text = tokens(seed, length);
                text.iter_mut().skip(fork).for_each(|token| *token += 500);
                if let Some(table) = memory.run(salt, &text) {
                    live.push((salt, text, table));
                }
            }
            live.iter().for_each(|(salt, text, table)| memory.check(*salt, text, table));
            // What is kept of finished texts makes nobody touch memory beyond the bound.
            prop_assert!(memory.pool.touched() <= kept.max(memory.peak));
        }
        for (salt, text, mut table) in live {
            memory.pool.retire(&mut table, of(salt), &text, text.len());
        }
        prop_assert_eq!(memory.pool.available(), 12);
    }
}
