//! Every storage format decodes to the values that the `gguf` Python package gives for the same bytes
//! (`data/quant_reference.json`, written by `tools/quant_reference.py`).

use millrace_inference::gguf::TensorType;
use millrace_inference::quant::dequantize;

/// The scale of a K-quant is a product that may be rounded in another order: a few units in the last place.
const TOLERANCE: f32 = 4.0 * f32::EPSILON;

#[test]
fn blocks_decode_to_the_reference_values() {
    let text = include_str!("data/quant_reference.json");
    let reference: serde_json::Value = serde_json::from_str(text).expect("the reference is JSON");
    for kind in [
        TensorType::F16,
        TensorType::BF16,
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q5_0,
        TensorType::Q5_1,
        TensorType::Q8_0,
        TensorType::IQ4_NL,
        TensorType::Q2_K,
        TensorType::Q3_K,
        TensorType::Q4_K,
        TensorType::Q5_K,
        TensorType::Q6_K,
    ] {
        let record = &reference[format!("{kind:?}")];
        let bytes = hex(record["bytes"].as_str().expect("bytes"));
        let expected: Vec<f32> = hex(record["values"].as_str().expect("values"))
            .as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let mut got = vec![0.0; expected.len()];
        assert!(dequantize(kind, &bytes, &mut got), "{kind:?} is supported");
        let size = expected.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
            assert!((got - expected).abs() <= TOLERANCE * size, "{kind:?} element {i}: {got}, expected {expected}");
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a hexadecimal digit") as u8;
    text.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}
