//! The Huffman code of RFC 7541 Appendix B, which QPACK uses (RFC 9204 section 4.1.2).
//!
//! Plain version: walk a binary tree bit by bit. Departure: a table made once at first use walks four bits at a
//! time. The shortest code has five bits, so one step writes at most one byte.

use std::sync::LazyLock;

/// Code and length in bits of each byte; the last is the end of string, which must not be sent.
#[rustfmt::skip]
const CODES: [(u32, u8); 257] = [
    (0x1ff8, 13), (0x7fffd8, 23), (0xfffffe2, 28), (0xfffffe3, 28), (0xfffffe4, 28), (0xfffffe5, 28),
    (0xfffffe6, 28), (0xfffffe7, 28), (0xfffffe8, 28), (0xffffea, 24), (0x3ffffffc, 30), (0xfffffe9, 28),
    (0xfffffea, 28), (0x3ffffffd, 30), (0xfffffeb, 28), (0xfffffec, 28), (0xfffffed, 28), (0xfffffee, 28),
    (0xfffffef, 28), (0xffffff0, 28), (0xffffff1, 28), (0xffffff2, 28), (0x3ffffffe, 30), (0xffffff3, 28),
    (0xffffff4, 28), (0xffffff5, 28), (0xffffff6, 28), (0xffffff7, 28), (0xffffff8, 28), (0xffffff9, 28),
    (0xffffffa, 28), (0xffffffb, 28), (0x14, 6), (0x3f8, 10), (0x3f9, 10), (0xffa, 12), (0x1ff9, 13), (0x15, 6),
    (0xf8, 8), (0x7fa, 11), (0x3fa, 10), (0x3fb, 10), (0xf9, 8), (0x7fb, 11), (0xfa, 8), (0x16, 6), (0x17, 6),
    (0x18, 6), (0x0, 5), (0x1, 5), (0x2, 5), (0x19, 6), (0x1a, 6), (0x1b, 6), (0x1c, 6), (0x1d, 6), (0x1e, 6),
    (0x1f, 6), (0x5c, 7), (0xfb, 8), (0x7ffc, 15), (0x20, 6), (0xffb, 12), (0x3fc, 10), (0x1ffa, 13), (0x21, 6),
    (0x5d, 7), (0x5e, 7), (0x5f, 7), (0x60, 7), (0x61, 7), (0x62, 7), (0x63, 7), (0x64, 7), (0x65, 7), (0x66, 7),
    (0x67, 7), (0x68, 7), (0x69, 7), (0x6a, 7), (0x6b, 7), (0x6c, 7), (0x6d, 7), (0x6e, 7), (0x6f, 7), (0x70, 7),
    (0x71, 7), (0x72, 7), (0xfc, 8), (0x73, 7), (0xfd, 8), (0x1ffb, 13), (0x7fff0, 19), (0x1ffc, 13), (0x3ffc, 14),
    (0x22, 6), (0x7ffd, 15), (0x3, 5), (0x23, 6), (0x4, 5), (0x24, 6), (0x5, 5), (0x25, 6), (0x26, 6), (0x27, 6),
    (0x6, 5), (0x74, 7), (0x75, 7), (0x28, 6), (0x29, 6), (0x2a, 6), (0x7, 5), (0x2b, 6), (0x76, 7), (0x2c, 6),
    (0x8, 5), (0x9, 5), (0x2d, 6), (0x77, 7), (0x78, 7), (0x79, 7), (0x7a, 7), (0x7b, 7), (0x7ffe, 15), (0x7fc, 11),
    (0x3ffd, 14), (0x1ffd, 13), (0xffffffc, 28), (0xfffe6, 20), (0x3fffd2, 22), (0xfffe7, 20), (0xfffe8, 20),
    (0x3fffd3, 22), (0x3fffd4, 22), (0x3fffd5, 22), (0x7fffd9, 23), (0x3fffd6, 22), (0x7fffda, 23), (0x7fffdb, 23),
    (0x7fffdc, 23), (0x7fffdd, 23), (0x7fffde, 23), (0xffffeb, 24), (0x7fffdf, 23), (0xffffec, 24), (0xffffed, 24),
    (0x3fffd7, 22), (0x7fffe0, 23), (0xffffee, 24), (0x7fffe1, 23), (0x7fffe2, 23), (0x7fffe3, 23), (0x7fffe4, 23),
    (0x1fffdc, 21), (0x3fffd8, 22), (0x7fffe5, 23), (0x3fffd9, 22), (0x7fffe6, 23), (0x7fffe7, 23), (0xffffef, 24),
    (0x3fffda, 22), (0x1fffdd, 21), (0xfffe9, 20), (0x3fffdb, 22), (0x3fffdc, 22), (0x7fffe8, 23), (0x7fffe9, 23),
    (0x1fffde, 21), (0x7fffea, 23), (0x3fffdd, 22), (0x3fffde, 22), (0xfffff0, 24), (0x1fffdf, 21), (0x3fffdf, 22),
    (0x7fffeb, 23), (0x7fffec, 23), (0x1fffe0, 21), (0x1fffe1, 21), (0x3fffe0, 22), (0x1fffe2, 21), (0x7fffed, 23),
    (0x3fffe1, 22), (0x7fffee, 23), (0x7fffef, 23), (0xfffea, 20), (0x3fffe2, 22), (0x3fffe3, 22), (0x3fffe4, 22),
    (0x7ffff0, 23), (0x3fffe5, 22), (0x3fffe6, 22), (0x7ffff1, 23), (0x3ffffe0, 26), (0x3ffffe1, 26), (0xfffeb, 20),
    (0x7fff1, 19), (0x3fffe7, 22), (0x7ffff2, 23), (0x3fffe8, 22), (0x1ffffec, 25), (0x3ffffe2, 26), (0x3ffffe3, 26),
    (0x3ffffe4, 26), (0x7ffffde, 27), (0x7ffffdf, 27), (0x3ffffe5, 26), (0xfffff1, 24), (0x1ffffed, 25),
    (0x7fff2, 19), (0x1fffe3, 21), (0x3ffffe6, 26), (0x7ffffe0, 27), (0x7ffffe1, 27), (0x3ffffe7, 26),
    (0x7ffffe2, 27), (0xfffff2, 24), (0x1fffe4, 21), (0x1fffe5, 21), (0x3ffffe8, 26), (0x3ffffe9, 26),
    (0xffffffd, 28), (0x7ffffe3, 27), (0x7ffffe4, 27), (0x7ffffe5, 27), (0xfffec, 20), (0xfffff3, 24), (0xfffed, 20),
    (0x1fffe6, 21), (0x3fffe9, 22), (0x1fffe7, 21), (0x1fffe8, 21), (0x7ffff3, 23), (0x3fffea, 22), (0x3fffeb, 22),
    (0x1ffffee, 25), (0x1ffffef, 25), (0xfffff4, 24), (0xfffff5, 24), (0x3ffffea, 26), (0x7ffff4, 23),
    (0x3ffffeb, 26), (0x7ffffe6, 27), (0x3ffffec, 26), (0x3ffffed, 26), (0x7ffffe7, 27), (0x7ffffe8, 27),
    (0x7ffffe9, 27), (0x7ffffea, 27), (0x7ffffeb, 27), (0xffffffe, 28), (0x7ffffec, 27), (0x7ffffed, 27),
    (0x7ffffee, 27), (0x7ffffef, 27), (0x7fffff0, 27), (0x3ffffee, 26), (0x3fffffff, 30),
];

/// Leaf that stands for no byte.
const END_OF_STRING: usize = 256;

/// Bits of padding that a string may end with.
const PADDING_BITS_MAX: u8 = 7;

/// What four bits do from one inner node of the tree.
#[derive(Clone, Copy, Default)]
struct Step {
    next: u16,
    /// A byte is complete.
    byte: Option<u8>,
    /// The bits lead out of the code.
    fails: bool,
    /// A string may end here.
    may_end: bool,
}

static STEPS: LazyLock<Vec<[Step; 16]>> = LazyLock::new(steps);

/// A child of an inner node.
#[derive(Clone, Copy)]
enum Child {
    Absent,
    Inner(u16),
    Leaf(usize),
}

fn tree() -> Vec<[Child; 2]> {
    let mut nodes = vec![[Child::Absent; 2]];
    for (symbol, &(code, bits)) in CODES.iter().enumerate() {
        let mut node = 0usize;
        for at in (1..bits).rev() {
            let bit = (code >> at & 1) as usize;
            node = match nodes[node][bit] {
                Child::Inner(next) => usize::from(next),
                _ => {
                    let next = nodes.len();
                    nodes.push([Child::Absent; 2]);
                    nodes[node][bit] = Child::Inner(next as u16);
                    next
                }
            };
        }
        nodes[node][(code & 1) as usize] = Child::Leaf(symbol);
    }
    nodes
}

fn steps() -> Vec<[Step; 16]> {
    let nodes = tree();
    // Padding is the beginning of the end-of-string code: ones only, fewer than eight.
    let mut padding = vec![false; nodes.len()];
    let mut node = 0usize;
    for _ in 0..=PADDING_BITS_MAX {
        padding[node] = true;
        match nodes[node][1] {
            Child::Inner(next) => node = usize::from(next),
            _ => break,
        }
    }
    let walk = |start: usize, four: usize| {
        let mut step = Step::default();
        let mut node = start;
        for at in (0..4).rev() {
            match nodes[node][four >> at & 1] {
                Child::Inner(next) => node = usize::from(next),
                Child::Leaf(symbol) if symbol < END_OF_STRING => {
                    step.byte = Some(symbol as u8);
                    node = 0;
                }
                Child::Leaf(_) | Child::Absent => {
                    step.fails = true;
                    return step;
                }
            }
        }
        step.next = node as u16;
        step.may_end = padding[node];
        step
    };
    (0..nodes.len()).map(|node| std::array::from_fn(|four| walk(node, four))).collect()
}

/// Appends the decoded form of `coded` to `out`; false = it is not a string of this code.
#[must_use]
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> bool {
    let steps = &**STEPS;
    let mut state = 0;
    let mut may_end = true;
    for &byte in coded {
        for four in [byte >> 4, byte & 15] {
            let step = &steps[state][usize::from(four)];
            if step.fails {
                return false;
            }
            out.extend(step.byte);
            state = usize::from(step.next);
            may_end = step.may_end;
        }
    }
    may_end
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits: Vec<bool> = Vec::new();
        for &byte in text {
            let (code, length) = CODES[usize::from(byte)];
            bits.extend((0..length).rev().map(|at| code >> at & 1 == 1));
        }
        while !bits.len().is_multiple_of(8) {
            bits.push(true);
        }
        bits.chunks(8).map(|eight| eight.iter().fold(0, |byte, &bit| byte << 1 | u8::from(bit))).collect()
    }

    fn decoded(coded: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        decode(coded, &mut out).then_some(out)
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 7541 Appendix C.4.1 and C.4.2.
        let coded = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(decoded(&coded).as_deref(), Some(b"www.example.com".as_slice()));
        assert_eq!(decoded(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf]).as_deref(), Some(b"no-cache".as_slice()));
        assert_eq!(decoded(b""), Some(Vec::new()));
    }

    #[test]
    fn wrong_padding_and_the_end_of_string_are_refused() {
        assert_eq!(decoded(&[0xff]), None, "eight bits of padding");
        assert_eq!(decoded(&[0x1f, 0xff]), None, "more than seven bits of padding");
        assert_eq!(decoded(&[0x18]), None, "padding of zeros");
        assert_eq!(decoded(&[0xff, 0xff, 0xff, 0xff]), None, "end of string");
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decoded(&encode(&text)), Some(text));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(coded in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Some(text) = decoded(&coded) {
                prop_assert_eq!(encode(&text), coded);
            }
        }
    }
}
