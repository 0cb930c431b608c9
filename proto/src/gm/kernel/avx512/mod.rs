//! AVX-512 with GFNI and wide carry-less multiplication: Ice Lake, Zen 4 and newer.

mod ghash;
mod sm4;

use super::{Kernel, avx2};

pub(crate) static KERNEL: Kernel = Kernel {
    name: "avx512",
    substitute: sm4::substitute,
    blocks: sm4::blocks,
    powers: avx2::powers,
    ghash: ghash::ghash,
};

pub(crate) fn available() -> bool {
    avx2::available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("gfni")
        && is_x86_feature_detected!("vpclmulqdq")
}
