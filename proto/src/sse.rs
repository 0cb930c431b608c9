//! Server-sent events: written for streaming answers, and read back by our own client tools.

/// The event that ends an OpenAI stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";
/// A comment that keeps proxies and browsers from closing an idle stream.
pub const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";
/// Longest event that the decoder collects.
const EVENT_BYTES_MAX: usize = 1024 * 1024;

/// Appends one event. Line breaks in `data` become several `data:` lines, as the format demands.
pub fn write_event(out: &mut Vec<u8>, data: &str) {
    let mut rest = data;
    loop {
        let end = rest.find(['\n', '\r']).unwrap_or(rest.len());
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(&rest.as_bytes()[..end]);
        out.push(b'\n');
        if end == rest.len() {
            break;
        }
        let line_break = if rest[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = &rest[end + line_break..];
    }
    out.push(b'\n');
}

/// Appends one event whose data is JSON. JSON text has no line breaks, so it is written without a copy.
pub fn write_json<T: serde::Serialize>(out: &mut Vec<u8>, value: &T) -> Result<(), serde_json::Error> {
    let start = out.len();
    out.extend_from_slice(b"data: ");
    if let Err(error) = serde_json::to_writer(&mut *out, value) {
        out.truncate(start);
        return Err(error);
    }
    out.extend_from_slice(b"\n\n");
    Ok(())
}

/// The events in bytes that the functions here have written, each with the blank line that ends it.
pub fn events(mut written: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let end = written.windows(2).position(|two| two == b"\n\n")?;
        let (event, rest) = written.split_at(end + 2);
        written = rest;
        Some(event)
    })
}

/// An event grew beyond what the decoder collects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a server-sent event is longer than {EVENT_BYTES_MAX} bytes")]
pub struct EventTooLong;

/// Collects events from a byte stream. Only `data` is kept; other fields and comments are skipped.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    line: Vec<u8>,
    data: Option<Vec<u8>>,
    after_carriage_return: bool,
    started: bool,
}

impl Decoder {
    /// Reads bytes and calls `event` with the data of every event that they complete. Bytes that are not
    /// UTF-8 become replacement characters, as the format demands.
    pub fn feed(&mut self, bytes: &[u8], mut event: impl FnMut(&str)) -> Result<(), EventTooLong> {
        for byte in bytes {
            match byte {
                b'\n' if std::mem::take(&mut self.after_carriage_return) => {}
                b'\n' | b'\r' => {
                    self.after_carriage_return = *byte == b'\r';
                    self.end_line(&mut event);
                }
                _ => {
                    self.after_carriage_return = false;
                    self.line.push(*byte);
                    if self.line.len() + self.data.as_ref().map_or(0, Vec::len) > EVENT_BYTES_MAX {
                        return Err(EventTooLong);
                    }
                }
            }
        }
        Ok(())
    }

    fn end_line(&mut self, event: &mut impl FnMut(&str)) {
        let mut line = self.line.as_slice();
        if !std::mem::replace(&mut self.started, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            if let Some(data) = self.data.take() {
                event(&String::from_utf8_lossy(&data));
            }
        } else if let Some(value) = line.strip_prefix(b"data").and_then(field_value) {
            match &mut self.data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => self.data = Some(value.to_vec()),
            }
        }
        self.line.clear();
    }
}

fn field_value(rest: &[u8]) -> Option<&[u8]> {
    match rest {
        [] => Some(rest),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(wire: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        Decoder::default().feed(wire, |data| found.push(data.to_owned())).unwrap();
        found
    }

    #[test]
    fn events_are_framed_as_the_format_says() {
        let mut out = Vec::new();
        write_event(&mut out, "a\nb");
        write_json(&mut out, &serde_json::json!({"t": "x\ny"})).unwrap();
        out.extend_from_slice(KEEP_ALIVE);
        out.extend_from_slice(DONE);
        assert_eq!(out, b"data: a\ndata: b\n\ndata: {\"t\":\"x\\ny\"}\n\n: keep-alive\n\ndata: [DONE]\n\n");
        assert_eq!(events(&out), ["a\nb", "{\"t\":\"x\\ny\"}", "[DONE]"]);
        let parts: Vec<&[u8]> = super::events(&out).collect();
        assert_eq!((parts.len(), parts[0], parts[3]), (4, b"data: a\ndata: b\n\n".as_slice(), DONE));
    }

    #[test]
    fn the_decoder_follows_the_standard() {
        assert_eq!(events(b"\xef\xbb\xbfdata:x\r\n\r\n"), ["x"]);
        assert_eq!(events(b"event: e\nid: 5\ndata: x\n\n"), ["x"]);
        assert_eq!(events(b"data\n\ndata\ndata\n\n"), ["", "\n"]);
        assert_eq!(events(b"data: x\rdata: y\r\r"), ["x\ny"]);
        assert_eq!(events(b"dataset: x\n\ndata: unfinished\n"), [] as [&str; 0]);
        assert_eq!(Decoder::default().feed(&vec![b'x'; EVENT_BYTES_MAX + 1], |_| ()), Err(EventTooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = events(&bytes);
        }

        #[test]
        fn what_is_written_reads_back(texts in proptest::collection::vec("[^\r]{0,40}", 0..6), piece in 1usize..20) {
            let mut wire = Vec::new();
            for text in &texts {
                write_event(&mut wire, text);
            }
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for part in wire.chunks(piece) {
                decoder.feed(part, |data| found.push(data.to_owned())).unwrap();
            }
            prop_assert_eq!(found, texts);
        }
    }
}
