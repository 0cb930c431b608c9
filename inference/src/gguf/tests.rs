//! Well-formed files read as written; damaged and hostile files are refused without a panic or a large allocation.

use proptest::prelude::*;

use super::testing::{Writer, string};
use super::*;

fn good() -> Writer {
    let strings = [&8u32.to_le_bytes()[..], &2u64.to_le_bytes(), &string("a"), &string("été")].concat();
    let floats = [&6u32.to_le_bytes()[..], &1u64.to_le_bytes(), &1.5f32.to_le_bytes()].concat();
    Writer::default()
        .entry("general.name", 8, &string("tiny"))
        .entry("count", 4, &7u32.to_le_bytes())
        .entry("negative", 5, &(-7i32).to_le_bytes())
        .entry("flag", 7, &[1])
        .entry("tokens", 9, &strings)
        .entry("scores", 9, &floats)
        .tensor("a", &[32, 2], 3, 0)
        .tensor("b", &[4], 0, 64)
        .data(64 + 16)
}

#[test]
fn a_good_file_reads_as_written() {
    for version in [2, 3] {
        let gguf = Writer { version: Some(version), ..good() }.read().expect("the file is good");
        assert_eq!((gguf.version(), gguf.tensor_count()), (version, 2));
        assert_eq!(gguf.str("general.name").expect("a name"), "tiny");
        assert_eq!(gguf.u32("count").expect("a count"), 7);
        assert_eq!(gguf.f64("negative").expect("a number"), -7.0);
        assert!(gguf.bool("flag").expect("a flag"));
        let tokens = gguf.array("tokens").expect("tokens");
        assert_eq!(tokens.strings().expect("strings").collect::<Vec<_>>(), ["a", "été"]);
        assert!(tokens.numbers().is_none());
        assert_eq!(gguf.array("scores").expect("scores").f32s(), Some(vec![1.5]));
        let a = gguf.tensor("a").expect("tensor a");
        assert_eq!((a.columns, a.rows, a.kind, a.bytes.len()), (32, 2, TensorType::Q4_1, 40));
        assert_eq!(gguf.tensor("b").expect("tensor b").bytes[0], 64);
    }
}

#[test]
fn a_missing_or_mistyped_key_is_named() {
    let gguf = good().read().expect("the file is good");
    assert!(gguf.str("absent").expect_err("no such key").to_string().contains("absent"));
    assert!(gguf.u32("negative").expect_err("negative").to_string().contains("non-negative"));
    assert!(matches!(gguf.str("count"), Err(GgufError::WrongKind { .. })));
    assert!(matches!(gguf.require_tensor("c"), Err(GgufError::MissingTensor { .. })));
}

#[test]
fn each_broken_rule_has_its_own_error() {
    type Check = fn(&GgufError) -> bool;
    let u64_max = u64::MAX.to_le_bytes();
    let huge_array = [&0u32.to_le_bytes()[..], &u64_max].concat();
    let nested = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    let cases: Vec<(&str, Writer, Check)> = vec![
        ("version 1", Writer { version: Some(1), ..good() }, |e| matches!(e, GgufError::Version { .. })),
        ("big endian", Writer { version: Some(3u32.swap_bytes()), ..good() }, |e| {
            matches!(e, GgufError::Version { big_endian: true, .. })
        }),
        ("huge counts", Writer { counts: Some((u64::MAX, 0)), ..good() }, |e| matches!(e, GgufError::TooLarge { .. })),
        ("more keys than bytes", Writer { counts: Some((0, 60_000)), ..good() }, |e| {
            matches!(e, GgufError::Truncated { .. })
        }),
        ("duplicate key", good().entry("count", 7, &[1]), |e| matches!(e, GgufError::Duplicate { .. })),
        ("duplicate tensor", good().tensor("a", &[1], 0, 0), |e| matches!(e, GgufError::Duplicate { .. })),
        ("unknown kind", good().entry("odd", 99, &[]), |e| matches!(e, GgufError::Malformed { .. })),
        ("huge string", good().entry("odd", 8, &u64_max), |e| matches!(e, GgufError::TooLarge { .. })),
        ("huge array", good().entry("odd", 9, &huge_array), |e| matches!(e, GgufError::TooLarge { .. })),
        ("nested array", good().entry("odd", 9, &nested), |e| matches!(e, GgufError::Malformed { .. })),
        ("not UTF-8", good().entry("odd", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF]), |e| {
            matches!(e, GgufError::Malformed { .. })
        }),
        ("bad alignment", good().entry("general.alignment", 4, &33u32.to_le_bytes()), |e| {
            matches!(e, GgufError::WrongKind { .. })
        }),
        ("no dimension", good().tensor("c", &[], 0, 0), |e| matches!(e, GgufError::Tensor { .. })),
        ("zero dimension", good().tensor("c", &[4, 0], 0, 0), |e| matches!(e, GgufError::Tensor { .. })),
        ("overflowing shape", good().tensor("c", &[1, u64::MAX, u64::MAX], 0, 0), |e| {
            matches!(e, GgufError::Tensor { .. })
        }),
        ("overflowing size", good().tensor("c", &[1 << 62, 2], 0, 0), |e| matches!(e, GgufError::Tensor { .. })),
        ("overflowing offset", good().tensor("c", &[1], 0, u64::MAX - 31), |e| matches!(e, GgufError::Tensor { .. })),
        ("unaligned offset", good().tensor("c", &[1], 0, 8), |e| matches!(e, GgufError::Tensor { .. })),
        ("beyond the end", good().tensor("c", &[1], 0, 96), |e| matches!(e, GgufError::Tensor { .. })),
        ("overlap", good().tensor("c", &[1], 0, 32), |e| matches!(e, GgufError::Tensor { .. })),
        ("unknown type", good().tensor("c", &[1], 4, 0), |e| matches!(e, GgufError::Tensor { .. })),
        ("split block", good().tensor("c", &[33], 3, 0), |e| matches!(e, GgufError::Tensor { .. })),
    ];
    for (name, writer, check) in cases {
        let error = writer.read().expect_err(name);
        assert!(check(&error), "{name}: {error}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = good().build();
    for len in 0..bytes.len() {
        assert!(Gguf::from_bytes(bytes[..len].to_vec()).is_err(), "{len} of {} bytes", bytes.len());
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = Gguf::open(Path::new("/nonexistent/model.gguf")).expect_err("no such file");
    assert!(error.to_string().contains("/nonexistent/model.gguf"), "{error}");
}

/// Touches everything a reader of the file could touch.
fn walk(gguf: &Gguf) {
    for key in gguf.keys() {
        if let Some(Value::Array(array)) = gguf.get(key) {
            let strings = array.strings().map_or(0, |strings| strings.map(str::len).count());
            assert_eq!(strings + array.numbers().map_or(0, Iterator::count), array.len());
        }
    }
    for tensor in gguf.tensors() {
        let blocks = tensor.columns / tensor.kind.block_elements() * tensor.rows;
        assert_eq!(tensor.bytes.len(), blocks * tensor.kind.block_bytes());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn flipped_bytes_give_a_file_or_an_error(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = good().build();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        if let Ok(gguf) = Gguf::from_bytes(bytes) {
            walk(&gguf);
        }
    }

    #[test]
    fn noise_after_the_magic_gives_a_file_or_an_error(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&b"GGUF\x03\0\0\0"[..], &noise].concat();
        if let Ok(gguf) = Gguf::from_bytes(bytes) {
            walk(&gguf);
        }
    }

    #[test]
    fn extreme_numbers_anywhere_give_a_file_or_an_error(
        at in any::<prop::sample::Index>(),
        value in prop_oneof![Just(u64::MAX), Just(1 << 63), Just(1 << 32), Just(0), Just(u64::from(u32::MAX))],
    ) {
        let mut bytes = good().build();
        let at = at.index(bytes.len() - 8);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        if let Ok(gguf) = Gguf::from_bytes(bytes) {
            walk(&gguf);
        }
    }
}
