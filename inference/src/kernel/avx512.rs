//! AVX-512 (F, BW), alone or with VNNI: 16 rows to a register.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use super::avx2::primitives;
use super::vector::Vector;

pub(super) struct Avx512;
/// With VNNI the byte products are summed in 32 bits by one instruction; the integers, and so the results, are the same.
pub(super) struct Avx512Vnni;

/// Everything but the sums of products.
macro_rules! common {
    () => {
        const ROWS: usize = 16;
        const MANY_REGISTERS: bool = true;
        type F = __m512;
        type I = __m512i;
        type Sum = __m512i;
        type Block = [__m512; 2];

        primitives! {
            fn prefetch(from: *const u8) { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
            fn zero() -> __m512 { _mm512_setzero_ps() }
            fn splat(value: f32) -> __m512 { _mm512_set1_ps(value) }
            fn load(from: *const f32) -> __m512 { _mm512_loadu_ps(from) }
            fn store(to: *mut f32, value: __m512) { _mm512_storeu_ps(to, value) }
            fn load_half(from: *const u16) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
            fn load_signed(from: *const i8) -> __m512 {
                _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))
            }
            fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
            fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
            fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
            fn fmadd(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
            fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
            fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
            fn total(a: __m512) -> f32 { _mm512_reduce_add_ps(a) }
            fn greatest(a: __m512) -> f32 { _mm512_reduce_max_ps(a) }
            fn first_lanes(count: usize, a: __m512, b: __m512) -> __m512 {
                _mm512_mask_blend_ps(((1u32 << count.min(16)) - 1) as __mmask16, b, a)
            }
            fn round(a: __m512) -> __m512i { _mm512_cvtps_epi32(a) }
            fn float(a: __m512i) -> __m512 { _mm512_cvtepi32_ps(a) }
            fn power_of_two(a: __m512i) -> __m512 {
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(a, _mm512_set1_epi32(127))))
            }
            fn load_bytes(from: *const u8) -> __m512i { _mm512_loadu_si512(from.cast()) }
            fn low_nibbles(a: __m512i) -> __m512i { _mm512_and_si512(a, _mm512_set1_epi8(15)) }
            fn high_nibbles(a: __m512i) -> __m512i {
                _mm512_and_si512(_mm512_srli_epi16::<4>(a), _mm512_set1_epi8(15))
            }
            fn splat_bytes(from: *const i8) -> __m512i { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
            fn sum_zero() -> __m512i { _mm512_setzero_si512() }
            fn int_zero() -> __m512i { _mm512_setzero_si512() }
            fn block_load(from: *const f32) -> [__m512; 2] { [Self::load(from), Self::load(from.add(16))] }
            fn block_store(to: *mut f32, block: [__m512; 2]) {
                Self::store(to, block[0]);
                Self::store(to.add(16), block[1]);
            }
            fn block_mul(a: [__m512; 2], b: [__m512; 2]) -> [__m512; 2] {
                [Self::mul(a[0], b[0]), Self::mul(a[1], b[1])]
            }
            fn block_scale(a: [__m512; 2], factor: f32) -> [__m512; 2] {
                Self::block_mul(a, [_mm512_set1_ps(factor); 2])
            }
            fn block_magnitude(a: [__m512; 2]) -> f32 {
                Self::greatest(_mm512_max_ps(_mm512_abs_ps(a[0]), _mm512_abs_ps(a[1])))
            }
            fn block_quantize(a: [__m512; 2], factor: f32, to: *mut i8) -> i32 {
                let q = Self::block_scale(a, factor);
                let (q0, q1) = (Self::round(q[0]), Self::round(q[1]));
                _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(q0));
                _mm_storeu_si128(to.add(16).cast(), _mm512_cvtepi32_epi8(q1));
                _mm512_reduce_add_epi32(_mm512_add_epi32(q0, q1))
            }
        }
    };
}

/// |w|, and `a` negated where `w` is negative.
#[inline(always)]
unsafe fn move_sign(w: __m512i, a: __m512i) -> (__m512i, __m512i) {
    // SAFETY: the callers have the instructions.
    unsafe {
        let negated = _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
        (_mm512_abs_epi8(w), negated)
    }
}

impl Vector for Avx512 {
    common!();
    primitives! {
        fn sum_nibbles(sum: __m512i, w: __m512i, a: __m512i) -> __m512i {
            _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, a))
        }
        fn sum_finish(sum: __m512i) -> __m512i { _mm512_madd_epi16(sum, _mm512_set1_epi16(1)) }
        fn sum_bytes(sum: __m512i, w: __m512i, a: __m512i) -> __m512i {
            let (w, a) = move_sign(w, a);
            _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w, a), _mm512_set1_epi16(1)))
        }
    }
}

impl Vector for Avx512Vnni {
    common!();
    primitives! {
        fn sum_nibbles(sum: __m512i, w: __m512i, a: __m512i) -> __m512i { _mm512_dpbusd_epi32(sum, w, a) }
        fn sum_finish(sum: __m512i) -> __m512i { _mm512_or_si512(sum, _mm512_setzero_si512()) }
        fn sum_bytes(sum: __m512i, w: __m512i, a: __m512i) -> __m512i {
            let (w, a) = move_sign(w, a);
            _mm512_dpbusd_epi32(sum, w, a)
        }
    }
}

super::generic::functions!(Avx512, "avx512f,avx512bw,avx2,fma,f16c", KERNELS, "avx512");
super::generic::functions!(Avx512Vnni, "avx512f,avx512bw,avx512vnni,avx2,fma,f16c", KERNELS_VNNI, "avx512vnni");
