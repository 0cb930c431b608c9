//! The reference: plain integer arithmetic, constant in time, on any processor.

mod ghash;
mod sm4;

use super::Kernel;

pub(crate) static KERNEL: Kernel = Kernel {
    name: "scalar",
    substitute: sm4::substitute,
    blocks: sm4::blocks,
    powers: ghash::powers,
    ghash: ghash::ghash,
};
