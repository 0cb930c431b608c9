//! A safetensors file of any bytes is refused or can be read.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use millrace_inference::encoder::Safetensors;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut file) = Safetensors::new(Cursor::new(bytes)) else { return };
    for (name, shape) in [("a", &[1][..]), ("a", &[2, 3]), ("b", &[4]), ("embeddings.LayerNorm.weight", &[32])] {
        let _ = (file.contains(name), file.read(name, shape), file.read_half(name, shape));
    }
});
