//! AVX2 with the AES and carry-less multiply instructions: every server processor since 2013.

mod ghash;
mod sm4;

use super::Kernel;

pub(crate) use ghash::{multiply_blocks, powers};

pub(crate) static KERNEL: Kernel = Kernel {
    name: "avx2",
    substitute: sm4::substitute,
    blocks: sm4::blocks,
    powers: ghash::powers,
    ghash: ghash::ghash,
};

pub(crate) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("aes") && is_x86_feature_detected!("pclmulqdq")
}
