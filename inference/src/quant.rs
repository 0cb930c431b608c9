//! Quantised block formats as they are stored in model files, with plain decoding.
//!
//! | type | elements | value of element i |
//! |---|---|---|
//! | Q4_0 | 32 | d × (q − 8), q 4 bits: element i < 16 in the low half of byte i, i ≥ 16 in the high half of byte i − 16 |
//! | Q4_1 | 32 | d × q + m, same order |
//! | Q5_0 | 32 | d × (q − 16), fifth bit of element i in bit i of `high` |
//! | Q5_1 | 32 | d × q + m, same order |
//! | Q8_0 | 32 | d × q, q 8 bits signed |
//! | IQ4_NL | 32 | d × [`IQ4_NL`]`[q]`, same order as Q4_0 |
//! | Q2_K | 256 | d × scale of 16 × q − min × minimum of 16, q 2 bits: see [`BlockQ2K`] |
//! | Q3_K | 256 | d × (scale of 16 − 32) × (q − 4), q 3 bits: see [`BlockQ3K`] |
//! | Q4_K | 256 | d × scale of 32 × q − min × minimum of 32, q 4 bits: see [`BlockQ4K`] |
//! | Q5_K | 256 | as Q4_K with a fifth bit: see [`BlockQ5K`] |
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

/// 256 elements of 2 bits; every 16 have a scale and a minimum of 4 bits each, and all share a scale for both.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    /// Scale of each 16 elements in the low nibble, minimum in the high one.
    pub scales: [u8; 16],
    /// Element 128 × n + 32 × g + l has bits 2 × g and above of byte 32 × n + l.
    pub q: [u8; 64],
    /// Scale of the scales, half float.
    pub d: u16,
    /// Scale of the minima, half float.
    pub min: u16,
}

/// 256 elements of 3 bits; every 16 have a scale of 6 bits.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    /// Third bit: element 128 × n + 32 × g + l has bit 4 × n + g of byte l.
    pub high: [u8; 32],
    /// Two low bits, in the order of [`BlockQ2K::q`].
    pub q: [u8; 64],
    /// 16 scales, packed: see [`BlockQ3K::scale`].
    pub scales: [u8; 12],
    /// Scale of the block, half float.
    pub d: u16,
}

/// 256 elements of 4 bits; every 32 have a scale and a minimum of 6 bits each.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, half float.
    pub d: u16,
    /// Scale of the minima, half float.
    pub min: u16,
    /// 8 scales and 8 minima, packed: the first four of each lie in the low 6 bits of bytes 0 to 3 and 4 to 7, the
    /// others have their low 4 bits in bytes 8 to 11 (scale low, minimum high) and their high 2 bits on top of the
    /// first four.
    pub scales: [u8; 12],
    /// Element 64 × n + l is the low nibble of byte 32 × n + l, element 64 × n + 32 + l its high nibble.
    pub q: [u8; 128],
}

/// As [`BlockQ4K`], with a fifth bit: element 32 × g + l has bit g of byte l of `high`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    /// Scale of the scales, half float.
    pub d: u16,
    /// Scale of the minima, half float.
    pub min: u16,
    /// 8 scales and 8 minima, packed as in [`BlockQ4K`].
    pub scales: [u8; 12],
    /// Fifth bits.
    pub high: [u8; 32],
    /// Nibbles, in the order of [`BlockQ4K::q`].
    pub q: [u8; 128],
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
const _: () = assert!(size_of::<BlockQ2K>() == 84);
const _: () = assert!(size_of::<BlockQ3K>() == 110);
const _: () = assert!(size_of::<BlockQ4K>() == 144);
const _: () = assert!(size_of::<BlockQ5K>() == 176);
const _: () = assert!(size_of::<BlockQ6K>() == 210);

/// What the 16 quants of IQ4_NL stand for: steps that are finer near zero, where most weights are.
pub const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

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

impl BlockQ2K {
    /// Quant of element `i`: 0 to 3.
    pub fn quant(&self, i: usize) -> u8 {
        two_bits(&self.q, i)
    }

    /// Scale and minimum of elements 16 × `group` to 16 × `group` + 15; the minimum is to be subtracted.
    pub fn scale(&self, group: usize) -> (f32, f32) {
        let packed = self.scales[group];
        (half(self.d) * f32::from(packed & 15), half(self.min) * f32::from(packed >> 4))
    }
}

impl BlockQ3K {
    /// Quant of element `i`: 0 to 7.
    pub fn quant(&self, i: usize) -> u8 {
        let third = self.high[i % 32] >> (i / 32) & 1;
        two_bits(&self.q, i) | third << 2
    }

    /// Scale of elements 16 × `group` to 16 × `group` + 15. The low 4 bits of 16 scales fill 8 bytes, low nibbles first;
    /// their high 2 bits fill the other 4, a pair of bits for each four scales.
    pub fn scale(&self, group: usize) -> f32 {
        let low = self.scales[group % 8] >> (4 * (group / 8)) & 15;
        let high = self.scales[8 + group % 4] >> (2 * (group / 4)) & 3;
        half(self.d) * (f32::from(low | high << 4) - 32.0)
    }
}

impl BlockQ4K {
    /// Quant of element `i`: 0 to 15.
    pub fn quant(&self, i: usize) -> u8 {
        paired_nibble(&self.q, i)
    }

    /// Scale and minimum of elements 32 × `group` to 32 × `group` + 31; the minimum is to be subtracted.
    pub fn scale(&self, group: usize) -> (f32, f32) {
        let (scale, min) = packed_scale(&self.scales, group);
        (half(self.d) * f32::from(scale), half(self.min) * f32::from(min))
    }
}

impl BlockQ5K {
    /// Quant of element `i`: 0 to 31.
    pub fn quant(&self, i: usize) -> u8 {
        paired_nibble(&self.q, i) | (self.high[i % 32] >> (i / 32) & 1) << 4
    }

    /// As [`BlockQ4K::scale`].
    pub fn scale(&self, group: usize) -> (f32, f32) {
        let (scale, min) = packed_scale(&self.scales, group);
        (half(self.d) * f32::from(scale), half(self.min) * f32::from(min))
    }
}

fn two_bits(q: &[u8; 64], i: usize) -> u8 {
    q[i / 128 * 32 + i % 32] >> (2 * (i % 128 / 32)) & 3
}

fn paired_nibble(q: &[u8; 128], i: usize) -> u8 {
    let byte = q[i / 64 * 32 + i % 32];
    if i % 64 < 32 { byte & 15 } else { byte >> 4 }
}

/// Scale and minimum `group` of 8: the first four lie in the low 6 bits of bytes 0 to 3 and 4 to 7; the others have
/// their low 4 bits in bytes 8 to 11 (scale low, minimum high) and their high 2 bits on top of the first four.
fn packed_scale(packed: &[u8; 12], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        (low & 15 | packed[group - 4] >> 6 << 4, low >> 4 | packed[group] >> 6 << 4)
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
pub const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K";

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
        TensorType::IQ4_NL => each(bytes, out, |block: &BlockQ4_0, out: &mut [f32; 32]| {
            fill(out, |i| half(block.d) * f32::from(IQ4_NL[usize::from(block.quant(i))]));
        }),
        TensorType::Q2_K => each(bytes, out, |block: &BlockQ2K, out: &mut [f32; 256]| {
            fill(out, |i| {
                let (scale, min) = block.scale(i / 16);
                scale * f32::from(block.quant(i)) - min
            });
        }),
        TensorType::Q3_K => each(bytes, out, |block: &BlockQ3K, out: &mut [f32; 256]| {
            fill(out, |i| block.scale(i / 16) * (f32::from(block.quant(i)) - 4.0));
        }),
        TensorType::Q4_K => each(bytes, out, |block: &BlockQ4K, out: &mut [f32; 256]| {
            fill(out, |i| {
                let (scale, min) = block.scale(i / 32);
                scale * f32::from(block.quant(i)) - min
            });
        }),
        TensorType::Q5_K => each(bytes, out, |block: &BlockQ5K, out: &mut [f32; 256]| {
            fill(out, |i| {
                let (scale, min) = block.scale(i / 32);
                scale * f32::from(block.quant(i)) - min
            });
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
