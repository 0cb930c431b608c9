//! The primitives that an instruction set provides.

/// One instruction set, seen as registers of [`Vector::ROWS`] 32-bit lanes.
///
/// # Safety
/// Every function may only be called, after inlining, from a function compiled for the set, on a processor that has it;
/// pointers must be valid for the lanes that are read or written. No alignment is required.
pub(super) trait Vector {
    /// 32-bit lanes of a register: output rows that one register covers.
    const ROWS: usize;
    /// Registers that cover the 16 rows of a tile.
    const PARTS: usize = super::TILE_ROWS / Self::ROWS;
    /// True when there are 32 registers instead of 16.
    const MANY_REGISTERS: bool;

    /// Floats.
    type F: Copy;
    /// Integers: 32-bit lanes, or 4 bytes in each lane.
    type I: Copy;
    /// Sum of one block's products of unsigned nibbles and signed bytes.
    type Sum: Copy;
    /// 32 floats.
    type Block: Copy;

    /// Asks for a cache line that will be read soon; any address is allowed.
    unsafe fn prefetch(from: *const u8);
    unsafe fn zero() -> Self::F;
    unsafe fn splat(value: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, value: Self::F);
    /// Loads half floats and widens them.
    unsafe fn load_half(from: *const u16) -> Self::F;
    /// Loads signed bytes and widens them.
    unsafe fn load_signed(from: *const i8) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// a × b + c, rounded once.
    unsafe fn fmadd(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Sum of the lanes.
    unsafe fn total(a: Self::F) -> f32;
    /// Greatest of the lanes.
    unsafe fn greatest(a: Self::F) -> f32;
    /// Lanes below `count` from `a`, the others from `b`; any count is allowed.
    unsafe fn first_lanes(count: usize, a: Self::F, b: Self::F) -> Self::F;
    /// Nearest integers.
    unsafe fn round(a: Self::F) -> Self::I;
    unsafe fn float(a: Self::I) -> Self::F;
    /// 2 to the power of each lane, for lanes from −126 to 127.
    unsafe fn power_of_two(a: Self::I) -> Self::F;

    /// Loads 4 bytes for each lane.
    unsafe fn load_bytes(from: *const u8) -> Self::I;
    unsafe fn low_nibbles(a: Self::I) -> Self::I;
    unsafe fn high_nibbles(a: Self::I) -> Self::I;
    /// The same 4 bytes in each lane.
    unsafe fn splat_bytes(from: *const i8) -> Self::I;
    unsafe fn sum_zero() -> Self::Sum;
    /// Adds, per lane, the products of 4 unsigned nibbles of `w` and 4 signed bytes (−127 to 127) of `a`.
    /// May be applied 8 times to one sum: 8 × 2 × 15 × 127 = 30,480 fits in 16 bits.
    unsafe fn sum_nibbles(sum: Self::Sum, w: Self::I, a: Self::I) -> Self::Sum;
    /// The sum as 32-bit integers.
    unsafe fn sum_finish(sum: Self::Sum) -> Self::I;
    unsafe fn int_zero() -> Self::I;
    /// Adds, per lane, the products of 4 signed bytes of `w` and 4 signed bytes (−127 to 127) of `a`.
    unsafe fn sum_bytes(sum: Self::I, w: Self::I, a: Self::I) -> Self::I;

    unsafe fn block_load(from: *const f32) -> Self::Block;
    unsafe fn block_store(to: *mut f32, block: Self::Block);
    unsafe fn block_mul(a: Self::Block, b: Self::Block) -> Self::Block;
    unsafe fn block_scale(a: Self::Block, factor: f32) -> Self::Block;
    /// Greatest magnitude of the block.
    unsafe fn block_magnitude(a: Self::Block) -> f32;
    /// Stores the block × `factor` as bytes, rounded to nearest; returns their sum. Results must fit in a byte.
    unsafe fn block_quantize(a: Self::Block, factor: f32, to: *mut i8) -> i32;
}
