//! Quantised block formats as they are stored in model files, with plain decoding.
//!
//! | type | elements | value of element i |
//! |---|---|---|
//! | Q4_0 | 32 | d × (q − 8), q 4 bits: element i < 16 in the low half of byte i, i ≥ 16 in the high half of byte i − 16 |
//! | Q4_1 | 32 | d × q + m, same order |
//! | Q5_0 | 32 | d × (q − 16), fifth bit of element i in bit i of `high` |
//! | Q5_1 | 32 | d × q + m, same order |
//! | Q8_0 | 32 | d × q, q 8 bits signed |
//! | Q6_K | 256 | d × scale of 16 × (q − 32), q 6 bits: see [`BlockQ6K::quant`] |
//!
//! The decoders here are the reference: kernels and packers are tested against them.

use bytemuck::{Pod, Zeroable};
use half::f16;

use crate::gguf::TensorType;

/// 32 elements of 4 bits with a scale.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale, half float.
    pub d: u16,
    /// Nibbles.
    pub q: [u8; 16],
}

/// 32 elements of 4 bits with a scale and a minimum.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// Scale, half float.
    pub d: u16,
    /// Minimum, half float.
    pub m: u16,
    /// Nibbles.
    pub q: [u8; 16],
}

/// 32 elements of 5 bits with a scale.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Scale, half float.
    pub d: u16,
    /// Fifth bits, little endian.
    pub high: [u8; 4],
    /// Nibbles.
    pub q: [u8; 16],
}

/// 32 elements of 5 bits with a scale and a minimum.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// Scale, half float.
    pub d: u16,
    /// Minimum, half float.
    pub m: u16,
    /// Fifth bits, little endian.
    pub high: [u8; 4],
    /// Nibbles.
    pub q: [u8; 16],
}

/// 32 elements of 8 bits with a scale.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale, half float.
    pub d: u16,
    /// Signed quants.
    pub q: [i8; 32],
}

/// 256 elements of 6 bits with a scale of 8 bits for every 16 and one scale for all.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low 4 bits.
    pub low: [u8; 128],
    /// High 2 bits.
    pub high: [u8; 64],
    /// Scale of each 16 elements.
    pub scales: [i8; 16],
    /// Scale of the block, half float.
    pub d: u16,
}

const _: () = assert!(size_of::<BlockQ4_0>() == 18);
const _: () = assert!(size_of::<BlockQ4_1>() == 20);
const _: () = assert!(size_of::<BlockQ5_0>() == 22);
const _: () = assert!(size_of::<BlockQ5_1>() == 24);
const _: () = assert!(size_of::<BlockQ8_0>() == 34);
const _: () = assert!(size_of::<BlockQ6K>() == 210);

fn nibble(q: &[u8; 16], i: usize) -> u8 {
    if i < 16 { q[i] & 15 } else { q[i - 16] >> 4 }
}

fn fifth_bit(high: [u8; 4], i: usize) -> u8 {
    ((u32::from_le_bytes(high) >> i) as u8 & 1) << 4
}

impl BlockQ4_0 {
    /// Quant of element `i`: 0 to 15.
    pub fn quant(&self, i: usize) -> u8 {
        nibble(&self.q, i)
    }
}

impl BlockQ4_1 {
    /// Quant of element `i`: 0 to 15.
    pub fn quant(&self, i: usize) -> u8 {
        nibble(&self.q, i)
    }
}

impl BlockQ5_0 {
    /// Quant of element `i`: 0 to 31.
    pub fn quant(&self, i: usize) -> u8 {
        nibble(&self.q, i) | fifth_bit(self.high, i)
    }
}

impl BlockQ5_1 {
    /// Quant of element `i`: 0 to 31.
    pub fn quant(&self, i: usize) -> u8 {
        nibble(&self.q, i) | fifth_bit(self.high, i)
    }
}

impl BlockQ6K {
    /// Quant of element `i`: 0 to 63. Each half of 128 elements uses 64 bytes of `low` and 32 of `high`; inside a half,
    /// element 32 × g + l has its low bits in byte l (g even) or l + 32 (g odd), low nibble for g < 2, and its high
    /// bits at bit 2 × g of byte l.
    pub fn quant(&self, i: usize) -> u8 {
        let (half, g, l) = (i / 128, i % 128 / 32, i % 32);
        let low = self.low[64 * half + l + 32 * (g % 2)];
        let low = if g < 2 { low & 15 } else { low >> 4 };
        let high = (self.high[32 * half + l] >> (2 * g)) & 3;
        low | high << 4
    }
}

/// Formats that [`dequantize`] and the kernels know, for error texts.
pub const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q6_K";

/// Decodes whole blocks of `kind` into `out`; false when the format is not supported.
///
/// `bytes` must hold exactly the blocks of `out.len()` elements.
pub fn dequantize(kind: TensorType, bytes: &[u8], out: &mut [f32]) -> bool {
    assert_eq!(bytes.len() / kind.block_bytes() * kind.block_elements(), out.len(), "blocks and elements agree");
    match kind {
        TensorType::F32 => {
            each(bytes, out, |word: &[u8; 4], out: &mut [f32; 1]| out[0] = f32::from_le_bytes(*word));
        }
        TensorType::F16 => each(bytes, out, |word: &[u8; 2], out: &mut [f32; 1]| {
            out[0] = f16::from_le_bytes(*word).to_f32();
        }),
        TensorType::BF16 => each(bytes, out, |word: &[u8; 2], out: &mut [f32; 1]| {
            out[0] = half::bf16::from_le_bytes(*word).to_f32();
        }),
        TensorType::Q4_0 => each(bytes, out, |block: &BlockQ4_0, out: &mut [f32; 32]| {
            fill(out, |i| half(block.d) * (f32::from(block.quant(i)) - 8.0));
        }),
        TensorType::Q4_1 => each(bytes, out, |block: &BlockQ4_1, out: &mut [f32; 32]| {
            fill(out, |i| half(block.d) * f32::from(block.quant(i)) + half(block.m));
        }),
        TensorType::Q5_0 => each(bytes, out, |block: &BlockQ5_0, out: &mut [f32; 32]| {
            fill(out, |i| half(block.d) * (f32::from(block.quant(i)) - 16.0));
        }),
        TensorType::Q5_1 => each(bytes, out, |block: &BlockQ5_1, out: &mut [f32; 32]| {
            fill(out, |i| half(block.d) * f32::from(block.quant(i)) + half(block.m));
        }),
        TensorType::Q8_0 => each(bytes, out, |block: &BlockQ8_0, out: &mut [f32; 32]| {
            fill(out, |i| half(block.d) * f32::from(block.q[i]));
        }),
        TensorType::Q6_K => each(bytes, out, |block: &BlockQ6K, out: &mut [f32; 256]| {
            fill(out, |i| half(block.d) * f32::from(block.scales[i / 16]) * (f32::from(block.quant(i)) - 32.0));
        }),
        _ => return false,
    }
    true
}

/// Dot product of a decoded row and a plain vector, in double precision: the yardstick for kernels.
pub fn dot_reference(kind: TensorType, row: &[u8], x: &[f32]) -> Option<f64> {
    let mut weights = vec![0.0; x.len()];
    dequantize(kind, row, &mut weights)
        .then(|| weights.iter().zip(x).map(|(&weight, &x)| f64::from(weight) * f64::from(x)).sum())
}

/// Value of a half float given by its bits.
pub(crate) fn half(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32()
}

fn each<B: Pod, const N: usize>(bytes: &[u8], out: &mut [f32], decode: impl Fn(&B, &mut [f32; N])) {
    for (block, out) in bytes.chunks_exact(size_of::<B>()).zip(out.chunks_exact_mut(N)) {
        decode(&bytemuck::pod_read_unaligned(block), out.try_into().expect("chunks have N elements"));
    }
}

fn fill<const N: usize>(out: &mut [f32; N], value: impl Fn(usize) -> f32) {
    for (i, out) in out.iter_mut().enumerate() {
        *out = value(i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_bit_elements_are_ordered_low_nibbles_first() {
        let mut q = [0u8; 16];
        q[0] = 0xA1;
        q[15] = 0x3F;
        let block = BlockQ4_1 { d: f16::from_f32(2.0).to_bits(), m: f16::from_f32(-1.0).to_bits(), q };
        let mut out = [0.0; 32];
        assert!(dequantize(TensorType::Q4_1, bytemuck::bytes_of(&block), &mut out));
        assert_eq!((out[0], out[15], out[16], out[31], out[1]), (1.0, 29.0, 19.0, 5.0, -1.0));
    }

    #[test]
    fn five_bit_elements_take_their_top_bit_from_the_mask() {
        let block = BlockQ5_0 { d: f16::ONE.to_bits(), high: (1u32 << 17 | 1).to_le_bytes(), q: [0x21; 16] };
        let mut out = [0.0; 32];
        assert!(dequantize(TensorType::Q5_0, bytemuck::bytes_of(&block), &mut out));
        assert_eq!((out[0], out[1], out[16], out[17]), (1.0, -15.0, -14.0, 2.0));
    }

    #[test]
    fn six_bit_elements_follow_the_documented_order() {
        let mut block = BlockQ6K { low: [0; 128], high: [0; 64], scales: [1; 16], d: f16::ONE.to_bits() };
        // Element 128 + 3 × 32 + 5 = 229: half 1, g = 3, l = 5.
        block.low[64 + 5 + 32] = 0x90;
        block.high[32 + 5] = 0b10 << 6;
        block.scales[229 / 16] = -3;
        let mut out = [0.0; 256];
        assert!(dequantize(TensorType::Q6_K, bytemuck::bytes_of(&block), &mut out));
        assert_eq!(out[229], -3.0 * (9.0 + 32.0 - 32.0));
        assert_eq!(out[0], -32.0);
    }

    #[test]
    fn an_unsupported_format_is_refused() {
        assert!(!dequantize(TensorType::I8, &[1, 2], &mut [0.0; 2]));
    }
}
