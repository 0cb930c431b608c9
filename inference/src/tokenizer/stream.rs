//! Whole characters out of token bytes: one character may be spread over several tokens.

/// Collects token bytes and gives back complete UTF-8 text.
///
/// Bytes that can never become UTF-8 turn into U+FFFD, exactly as `String::from_utf8_lossy` would do for the
/// whole reply; an unfinished character waits for its rest.
#[derive(Clone, Debug, Default)]
pub struct StreamDecoder {
    /// At most three bytes: the beginning of a character.
    pending: Vec<u8>,
}

impl StreamDecoder {
    /// A decoder with nothing pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes and appends every character that is complete now.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.pending.is_empty()
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            out.push_str(text);
            return;
        }
        self.pending.extend_from_slice(bytes);
        let mut rest: &[u8] = &self.pending;
        let kept = loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    break 0;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    out.push_str(std::str::from_utf8(good).expect("checked up to here"));
                    let Some(length) = error.error_len() else { break bad.len() };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &bad[length..];
                }
            }
        };
        let start = self.pending.len() - kept;
        self.pending.drain(..start);
    }

    /// Bytes that wait for the rest of their character.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The text is over: an unfinished character becomes one U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(chunks: &[&[u8]]) -> String {
        let (mut decoder, mut out) = (StreamDecoder::new(), String::new());
        for chunk in chunks {
            decoder.push(chunk, &mut out);
        }
        decoder.finish(&mut out);
        out
    }

    #[test]
    fn a_character_split_over_tokens_appears_once_and_whole() {
        let (mut decoder, mut out) = (StreamDecoder::new(), String::new());
        decoder.push(&"🦀".as_bytes()[..2], &mut out);
        assert_eq!((out.as_str(), decoder.pending()), ("", 2));
        decoder.push(&"🦀!".as_bytes()[2..], &mut out);
        assert_eq!((out.as_str(), decoder.pending()), ("🦀!", 0));
    }

    #[test]
    fn a_character_that_never_ends_becomes_one_replacement() {
        assert_eq!(decode(&[b"a", &[0xF0, 0x9F]]), "a\u{FFFD}");
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_chunks_equal_the_lossy_text(bytes in proptest::collection::vec(any::<u8>(), 0..40), cut in 1_usize..6) {
            let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(decode(&chunks), String::from_utf8_lossy(&bytes));
        }
    }
}
