//! The unidirectional streams of a client: control, QPACK encoder, QPACK decoder, and those nobody knows.

use super::qpack::{Prefixed, prefixed};
use super::varint::varint;
use super::{Code, Fault, frame};

/// Longest settings or single value on the control stream.
const CONTROL_FRAME_BYTES_MAX: u64 = 4 * 1024;

/// Settings in one frame that are compared for repetition.
const SETTINGS_MAX: usize = 64;

/// What the streams of one connection know together.
#[derive(Debug, Default)]
pub struct Peer {
    has_control: bool,
    has_encoder: bool,
    has_decoder: bool,
    max_push_id: Option<u64>,
    goaway: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Unknown,
    Control { settings_seen: bool },
    Encoder,
    Decoder,
}

/// Reads one unidirectional stream in any portions.
#[derive(Debug, Default)]
pub struct UniReader {
    role: Option<Role>,
    /// Bytes of a frame without meaning that are to come.
    skip: u64,
    input: Vec<u8>,
}

impl UniReader {
    /// Takes the next bytes. False = nothing on this stream is of interest: stop reading it.
    pub fn observe(&mut self, bytes: &[u8], peer: &mut Peer) -> Result<bool, Fault> {
        self.input.extend_from_slice(bytes);
        let role = match self.role {
            Some(role) => role,
            None => {
                let Some((kind, used)) = varint(&self.input) else { return Ok(true) };
                self.input.drain(..used);
                *self.role.insert(open(kind, peer)?)
            }
        };
        match role {
            Role::Unknown => Ok(false),
            Role::Control { settings_seen } => self.control(settings_seen, peer).map(|()| true),
            Role::Encoder => self.encoder().map(|()| true),
            Role::Decoder => self.decoder().map(|()| true),
        }
    }

    /// The stream has ended or was reset.
    pub fn closed(&self) -> Result<(), Fault> {
        match self.role {
            None | Some(Role::Unknown) => Ok(()),
            Some(_) => Err(Fault::connection(Code::ClosedCriticalStream, "a critical stream was closed")),
        }
    }

    fn control(&mut self, mut settings_seen: bool, peer: &mut Peer) -> Result<(), Fault> {
        let mut used = 0;
        loop {
            let rest = &self.input[used..];
            if self.skip > 0 {
                let part = rest.len().min(usize::try_from(self.skip).unwrap_or(usize::MAX));
                self.skip -= part as u64;
                used += part;
                if self.skip > 0 {
                    break;
                }
                continue;
            }
            let Some((kind, a)) = varint(rest) else { break };
            if !settings_seen && kind != frame::SETTINGS {
                return Err(Fault::connection(
                    Code::MissingSettings,
                    "the control stream does not start with SETTINGS",
                ));
            }
            let known = matches!(kind, frame::CANCEL_PUSH | frame::SETTINGS | frame::GOAWAY | frame::MAX_PUSH_ID);
            if frame::is_forbidden(kind) || matches!(kind, frame::DATA | frame::HEADERS | frame::PUSH_PROMISE) {
                return Err(Fault::connection(
                    Code::FrameUnexpected,
                    "a frame that does not belong on a control stream",
                ));
            }
            let Some((length, b)) = varint(&rest[a..]) else { break };
            if !known {
                self.skip = length;
                used += a + b;
                continue;
            }
            if length > CONTROL_FRAME_BYTES_MAX {
                return Err(Fault::connection(Code::ExcessiveLoad, "a frame of the control stream is too long"));
            }
            let Some(payload) = rest.get(a + b..a + b + length as usize) else { break };
            if kind == frame::SETTINGS {
                if settings_seen {
                    return Err(Fault::connection(Code::FrameUnexpected, "a second SETTINGS"));
                }
                settings(payload)?;
                settings_seen = true;
            } else {
                peer.control(kind, single(payload)?)?;
            }
            used += a + b + payload.len();
        }
        self.role = Some(Role::Control { settings_seen });
        self.input.drain(..used);
        Ok(())
    }

    /// The client's encoder may say that its table has no room; anything else needs the table that is not there.
    fn encoder(&mut self) -> Result<(), Fault> {
        const NO_TABLE: Fault = Fault::connection(Code::QpackEncoderStreamError, "there is no dynamic table");
        let mut used = 0;
        while let Some(first) = self.input.get(used) {
            if first >> 5 != 0b001 {
                return Err(NO_TABLE);
            }
            match prefixed(&self.input[used..], 5) {
                Prefixed::Value(0, bytes) => used += bytes,
                Prefixed::Incomplete => break,
                Prefixed::Value(..) | Prefixed::TooLarge => return Err(NO_TABLE),
            }
        }
        self.input.drain(..used);
        Ok(())
    }

    /// The client's decoder may cancel streams; there is nothing to acknowledge.
    fn decoder(&mut self) -> Result<(), Fault> {
        const NOTHING: Fault =
            Fault::connection(Code::QpackDecoderStreamError, "there is nothing that could be acknowledged");
        let mut used = 0;
        while let Some(first) = self.input.get(used) {
            if first >> 6 != 0b01 {
                return Err(NOTHING);
            }
            match prefixed(&self.input[used..], 6) {
                Prefixed::Value(_, bytes) => used += bytes,
                Prefixed::Incomplete => break,
                Prefixed::TooLarge => return Err(NOTHING),
            }
        }
        self.input.drain(..used);
        Ok(())
    }
}

impl Peer {
    fn control(&mut self, kind: u64, value: u64) -> Result<(), Fault> {
        const ID: Code = Code::IdError;
        match kind {
            frame::MAX_PUSH_ID if self.max_push_id.is_some_and(|before| value < before) => {
                Err(Fault::connection(ID, "MAX_PUSH_ID went down"))
            }
            frame::MAX_PUSH_ID => {
                self.max_push_id = Some(value);
                Ok(())
            }
            frame::GOAWAY if self.goaway.is_some_and(|before| value > before) => {
                Err(Fault::connection(ID, "GOAWAY went up"))
            }
            frame::GOAWAY => {
                self.goaway = Some(value);
                Ok(())
            }
            _ => Err(Fault::connection(ID, "CANCEL_PUSH of a push that was never promised")),
        }
    }
}

fn open(kind: u64, peer: &mut Peer) -> Result<Role, Fault> {
    let (seen, role) = match kind {
        0x0 => (&mut peer.has_control, Role::Control { settings_seen: false }),
        0x1 => return Err(Fault::connection(Code::StreamCreationError, "a client does not push")),
        0x2 => (&mut peer.has_encoder, Role::Encoder),
        0x3 => (&mut peer.has_decoder, Role::Decoder),
        _ => return Ok(Role::Unknown),
    };
    if std::mem::replace(seen, true) {
        return Err(Fault::connection(Code::StreamCreationError, "a second stream of its kind"));
    }
    Ok(role)
}

fn single(payload: &[u8]) -> Result<u64, Fault> {
    match varint(payload) {
        Some((value, used)) if used == payload.len() => Ok(value),
        _ => Err(Fault::connection(Code::FrameError, "a frame of one integer holds something else")),
    }
}

fn settings(mut payload: &[u8]) -> Result<(), Fault> {
    let mut seen = Vec::new();
    while !payload.is_empty() {
        let pair = varint(payload).and_then(|(id, a)| varint(&payload[a..]).map(|(_, b)| (id, a + b)));
        let Some((id, used)) = pair else {
            return Err(Fault::connection(Code::FrameError, "SETTINGS end inside a pair"));
        };
        payload = &payload[used..];
        if matches!(id, 0x0 | 0x2..=0x5) {
            return Err(Fault::connection(Code::SettingsError, "a setting of HTTP/2"));
        }
        if seen.contains(&id) {
            return Err(Fault::connection(Code::SettingsError, "a setting is repeated"));
        }
        if seen.len() == SETTINGS_MAX {
            return Err(Fault::connection(Code::ExcessiveLoad, "too many settings"));
        }
        seen.push(id);
    }
    Ok(())
}
