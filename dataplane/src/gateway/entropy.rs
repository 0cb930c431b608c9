//! Random bytes for sealed answers.

use std::cell::RefCell;

const DRAW: usize = 16;
const POOL: usize = 32 * DRAW;

/// Bytes of the system's generator, taken in larger pieces, since few events need any and all would pay for the
/// call. Of each shard; what was drawn is erased.
pub struct Entropy {
    /// The first `left` bytes were not drawn yet.
    pool: RefCell<(usize, [u8; POOL])>,
}

impl Default for Entropy {
    fn default() -> Self {
        Self { pool: RefCell::new((0, [0; POOL])) }
    }
}

impl Entropy {
    /// Fresh bytes; the system refuses them only when it has no generator.
    pub fn draw(&self) -> Option<[u8; DRAW]> {
        let (left, pool) = &mut *self.pool.borrow_mut();
        if *left == 0 {
            getrandom::fill(pool).ok()?;
            *left = POOL;
        }
        *left -= DRAW;
        let place = &mut pool[*left..*left + DRAW];
        let drawn = place.try_into().expect("as long as a draw");
        place.fill(0);
        Some(drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_bytes_are_drawn_twice() {
        let entropy = Entropy::default();
        let draws = 3 * POOL / DRAW + 1;
        let drawn: HashSet<_> = (0..draws).map(|_| entropy.draw().expect("a generator")).collect();
        assert_eq!(drawn.len(), draws);
        assert!(!drawn.contains(&[0; DRAW]));
    }
}
