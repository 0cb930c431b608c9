//! AVX2 with FMA and half-float conversion: 8 rows to a register.
#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use super::vector::Vector;

pub(super) struct Avx2;

/// Bodies of primitives: each is one or a few instructions of the set.
macro_rules! primitives {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $kind:ty),*) $(-> $result:ty)? $body:block)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            unsafe fn $name($($arg: $kind),*) $(-> $result)? {
                // SAFETY: the trait's callers have the instructions and keep pointers valid.
                unsafe { $body }
            }
        )*
    };
}
pub(super) use primitives;

impl Vector for Avx2 {
    const ROWS: usize = 8;
    const MANY_REGISTERS: bool = false;
    type F = __m256;
    type I = __m256i;
    type Sum = __m256i;
    type Block = [__m256; 4];

    primitives! {
        fn prefetch(from: *const u8) { _mm_prefetch::<_MM_HINT_T0>(from.cast()) }
        fn zero() -> __m256 { _mm256_setzero_ps() }
        fn splat(value: f32) -> __m256 { _mm256_set1_ps(value) }
        fn load(from: *const f32) -> __m256 { _mm256_loadu_ps(from) }
        fn store(to: *mut f32, value: __m256) { _mm256_storeu_ps(to, value) }
        fn load_half(from: *const u16) -> __m256 { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
        fn load_signed(from: *const i8) -> __m256 {
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())))
        }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn fmadd(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn total(a: __m256) -> f32 {
            let four = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn greatest(a: __m256) -> f32 {
            let four = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        fn first_lanes(count: usize, a: __m256, b: __m256) -> __m256 {
            let count = _mm256_set1_epi32(count.min(8) as i32);
            let mask = _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask))
        }
        fn round(a: __m256) -> __m256i { _mm256_cvtps_epi32(a) }
        fn float(a: __m256i) -> __m256 { _mm256_cvtepi32_ps(a) }
        fn power_of_two(a: __m256i) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(a, _mm256_set1_epi32(127))))
        }
        fn load_bytes(from: *const u8) -> __m256i { _mm256_loadu_si256(from.cast()) }
        fn low_nibbles(a: __m256i) -> __m256i { _mm256_and_si256(a, _mm256_set1_epi8(15)) }
        fn high_nibbles(a: __m256i) -> __m256i {
            _mm256_and_si256(_mm256_srli_epi16::<4>(a), _mm256_set1_epi8(15))
        }
        fn splat_bytes(from: *const i8) -> __m256i { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
        fn sum_zero() -> __m256i { _mm256_setzero_si256() }
        fn sum_nibbles(sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
            _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, a))
        }
        fn sum_finish(sum: __m256i) -> __m256i { _mm256_madd_epi16(sum, _mm256_set1_epi16(1)) }
        fn int_zero() -> __m256i { _mm256_setzero_si256() }
        fn sum_bytes(sum: __m256i, w: __m256i, a: __m256i) -> __m256i {
            // |w| × (a with the sign of w): 2 × 128 × 127 = 32,512 fits in 16 bits.
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
        fn block_load(from: *const f32) -> [__m256; 4] {
            [Self::load(from), Self::load(from.add(8)), Self::load(from.add(16)), Self::load(from.add(24))]
        }
        fn block_store(to: *mut f32, block: [__m256; 4]) {
            for (i, part) in block.into_iter().enumerate() {
                Self::store(to.add(8 * i), part);
            }
        }
        fn block_mul(a: [__m256; 4], b: [__m256; 4]) -> [__m256; 4] {
            [Self::mul(a[0], b[0]), Self::mul(a[1], b[1]), Self::mul(a[2], b[2]), Self::mul(a[3], b[3])]
        }
        fn block_scale(a: [__m256; 4], factor: f32) -> [__m256; 4] { Self::block_mul(a, [_mm256_set1_ps(factor); 4]) }
        fn block_magnitude(a: [__m256; 4]) -> f32 {
            let sign = _mm256_set1_ps(-0.0);
            let m01 = _mm256_max_ps(_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1]));
            let m23 = _mm256_max_ps(_mm256_andnot_ps(sign, a[2]), _mm256_andnot_ps(sign, a[3]));
            Self::greatest(_mm256_max_ps(m01, m23))
        }
        fn block_quantize(a: [__m256; 4], factor: f32, to: *mut i8) -> i32 {
            let q = Self::block_scale(a, factor);
            let [q0, q1, q2, q3] = [Self::round(q[0]), Self::round(q[1]), Self::round(q[2]), Self::round(q[3])];
            let sum = _mm256_add_epi32(_mm256_add_epi32(q0, q1), _mm256_add_epi32(q2, q3));
            // Packing works in each 128-bit half; the permutation puts the eight groups of four back in order.
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(q0, q1), _mm256_packs_epi32(q2, q3));
            let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm256_storeu_si256(to.cast(), bytes);
            let four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b00_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }
}

super::generic::functions!(Avx2, "avx2,fma,f16c", KERNELS, "avx2");
