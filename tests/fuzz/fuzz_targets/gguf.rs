//! A GGUF file of any bytes is refused or can be looked at.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_inference::gguf::Gguf;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Gguf::from_bytes(bytes.to_vec()) else { return };
    for key in file.keys() {
        let _ = (file.get(key), file.str(key), file.u64(key), file.f64(key), file.bool(key), file.array(key));
    }
    for tensor in file.tensors() {
        // Every byte that a tensor claims is there.
        let _ = tensor.bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    }
});
