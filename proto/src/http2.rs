//! What a server must watch beyond the HTTP/2 protocol itself (RFC 9113 section 10.5): frames that are legal
//! one by one and an attack in numbers.
//!
//! [`FrameMeter`] reads nothing but the nine-byte frame headers of what a peer sends and charges the frames
//! that make work without carrying any: resets (rapid reset, CVE-2023-44487), continuations (CVE-2024-27316),
//! pings, settings, priorities, window updates and empty data frames. Requests themselves are bounded
//! elsewhere, by the number of streams and by each key's rate.

use crate::gcra;

/// What a client sends first.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame header.
const HEADER_BYTES: usize = 9;

/// Charge of a frame that is rare in honest use.
const RARE: u32 = 10;

/// Charge of a window update: a client may answer every small data frame with two of them.
const COMMON: u32 = 1;

/// 1,000 rare frames at once and 500 a second, or ten times as many window updates. A browser that leaves a
/// page resets a hundred streams; load generators ping once a second.
const LIMIT: gcra::Limit = gcra::Limit { interval_ns: 1_000_000_000 / 5_000, burst: 10_000 };

/// The peer sends more frames without work in them than any honest one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many {0} frames")]
pub struct Flood(pub &'static str);

/// Watches the frames of one connection.
#[derive(Clone, Debug)]
pub struct FrameMeter {
    preface_left: usize,
    header: [u8; HEADER_BYTES],
    held: usize,
    payload_left: usize,
    state: gcra::State,
}

impl Default for FrameMeter {
    fn default() -> Self {
        let state = gcra::State::default();
        Self { preface_left: PREFACE.len(), header: [0; HEADER_BYTES], held: 0, payload_left: 0, state }
    }
}

impl FrameMeter {
    /// Takes the next bytes of the connection, in any portions, at `now_ns` of a monotonic clock.
    pub fn observe(&mut self, bytes: &[u8], now_ns: u64) -> Result<(), Flood> {
        let mut rest = &bytes[self.preface_left.min(bytes.len())..];
        self.preface_left -= bytes.len() - rest.len();
        while !rest.is_empty() {
            let skipped = self.payload_left.min(rest.len());
            self.payload_left -= skipped;
            rest = &rest[skipped..];
            let taken = (HEADER_BYTES - self.held).min(rest.len());
            self.header[self.held..self.held + taken].copy_from_slice(&rest[..taken]);
            self.held += taken;
            rest = &rest[taken..];
            if self.held == HEADER_BYTES {
                self.held = 0;
                self.frame(now_ns)?;
            }
        }
        Ok(())
    }

    fn frame(&mut self, now_ns: u64) -> Result<(), Flood> {
        const ACK_OR_END_STREAM: u8 = 1;
        let [a, b, c, kind, flags, ..] = self.header;
        self.payload_left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let flagged = flags & ACK_OR_END_STREAM != 0;
        let (charge, name) = match kind {
            0 if self.payload_left == 0 && !flagged => (RARE, "empty DATA"),
            0 | 1 => return Ok(()),
            2 => (RARE, "PRIORITY"),
            3 => (RARE, "RST_STREAM"),
            4 => (RARE, "SETTINGS"),
            6 => (RARE, "PING"),
            8 => (COMMON, "WINDOW_UPDATE"),
            9 => (RARE, "CONTINUATION"),
            _ => (RARE, "unknown"),
        };
        gcra::check(&mut self.state, now_ns, charge, &LIMIT).map_err(|_| Flood(name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0, (payload >> 8) as u8, payload as u8, kind, flags, 0, 0, 0, 1];
        bytes.resize(HEADER_BYTES + payload, 0xab);
        bytes
    }

    fn begun() -> FrameMeter {
        let mut meter = FrameMeter::default();
        meter.observe(PREFACE, 0).expect("the preface is no frame");
        meter
    }

    /// How many such frames pass at one moment, up to 50,000.
    fn passing(kind: u8, flags: u8, payload: usize) -> usize {
        let (mut meter, frame) = (begun(), frame(kind, flags, payload));
        (0..50_000).take_while(|_| meter.observe(&frame, 0).is_ok()).count()
    }

    #[test]
    fn floods_of_frames_without_work_are_cut_and_work_is_not() {
        for (kind, flags, payload) in
            [(0, 0, 0), (2, 0, 5), (3, 0, 4), (4, 0, 0), (4, 1, 0), (6, 0, 8), (9, 0, 1), (77, 0, 3)]
        {
            assert_eq!(passing(kind, flags, payload), 1_000, "kind {kind}");
        }
        assert_eq!(passing(8, 0, 4), 10_000);
        for (kind, flags, payload) in [(0, 0, 1), (0, 1, 0), (0, 0, 16_000), (1, 4, 30)] {
            assert_eq!(passing(kind, flags, payload), 50_000, "kind {kind}");
        }
    }

    #[test]
    fn the_allowance_comes_back_with_time() {
        let (mut meter, ping) = (begun(), frame(6, 0, 8));
        for second in 0..100u64 {
            for _ in 0..500 {
                meter.observe(&ping, second * 1_000_000_000).expect("500 a second are honest");
            }
        }
    }

    proptest! {
        #[test]
        fn portions_do_not_matter_and_noise_does_not_panic(
            kinds in proptest::collection::vec((0u8..12, any::<u8>(), 0usize..40), 0..60),
            cuts in proptest::collection::vec(1usize..30, 1..40),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut bytes = PREFACE.to_vec();
            for (kind, flags, payload) in kinds {
                bytes.extend(frame(kind, flags, payload));
            }
            let mut whole = FrameMeter::default();
            whole.observe(&bytes, 5).expect("few frames");
            let mut parts = FrameMeter::default();
            let mut rest = bytes.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, more) = rest.split_at((*cut).min(rest.len()));
                parts.observe(part, 5).expect("few frames");
                rest = more;
            }
            prop_assert_eq!(parts.state, whole.state);
            prop_assert_eq!((parts.held, parts.payload_left), (whole.held, whole.payload_left));
            let _ = FrameMeter::default().observe(&noise, 0);
        }
    }
}
