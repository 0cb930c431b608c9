use super::*;
use crate::api::ApiError;
use proptest::prelude::*;

fn chat() -> Chat {
    Chat {
        model: "m".into(),
        session: Some("monday".into()),
        messages: vec![Turn { role: "user".into(), text: "hello, wörld".into() }],
        max_tokens: Some(7),
        temperature: Some(0.5),
        seed: Some(-3),
        stop: vec!["END".into()],
        ..Chat::default()
    }
}

#[test]
fn a_request_is_read_where_it_lies_behind_any_other_frame() {
    let mut wire = Vec::new();
    Echo { id: 9, text: "odd".into() }.put(&mut wire);
    chat().put(&mut wire);
    let (first, used) = next_frame(&wire, Side::Client).unwrap().unwrap();
    let ClientFrame::Echo(echo) = ClientFrame::read(first).unwrap() else { panic!("an echo") };
    assert_eq!((echo.id.to_native(), echo.text.as_str()), (9, "odd"));
    // The second frame starts at an odd place: the archived form needs no alignment.
    let (second, rest) = next_frame(&wire[used..], Side::Client).unwrap().unwrap();
    assert_eq!(used + rest, wire.len());
    let ClientFrame::Chat(read) = ClientFrame::read(second).unwrap() else { panic!("a chat") };
    assert_eq!(read.messages[0].text.as_str(), "hello, wörld");
    assert_eq!(rkyv::deserialize::<Chat, rkyv::rancor::Error>(read).unwrap(), chat());
}

#[test]
fn an_echo_comes_back_as_it_was_sent() {
    let echo = Echo { id: u64::MAX, text: "\u{1f980} and \0".into() };
    let mut wire = Vec::new();
    echo.put(&mut wire);
    let (frame, _) = next_frame(&wire, Side::Client).unwrap().unwrap();
    ClientFrame::read(frame).unwrap();
    let mut answer = Vec::new();
    echoed(&mut answer, frame);
    let (frame, used) = next_frame(&answer, Side::Server).unwrap().unwrap();
    assert_eq!(used, answer.len());
    let ServerFrame::Echoed(back) = ServerFrame::read(frame).unwrap() else { panic!("an echo") };
    assert_eq!((back.id.to_native(), back.text.as_str()), (echo.id, echo.text.as_str()));
}

#[test]
fn a_fault_says_what_the_json_api_says() {
    let error = ApiError::overloaded("full", 3);
    let mut wire = Vec::new();
    Fault::from(&error).put(&mut wire);
    let (frame, _) = next_frame(&wire, Side::Server).unwrap().unwrap();
    let ServerFrame::Fault(read) = ServerFrame::read(frame).unwrap() else { panic!("a fault") };
    assert_eq!((read.status.to_native(), read.retryable, read.message.as_str()), (503, true, "full"));
    assert_eq!(read.retry_after_s.as_ref().map(|s| s.to_native()), Some(3));
}

#[test]
fn headers_are_judged_before_their_payload_is_there() {
    let header = |length: u32, kind: u8, flags: u8, reserved: u8| {
        let [a, b, c, d] = length.to_le_bytes();
        [a, b, c, d, kind, flags, 0, reserved]
    };
    for (bytes, from, expected) in [
        (header(0, 0x00, 0, 0), Side::Client, FrameError::UnknownKind(0)),
        (header(0, 0x05, 0, 0), Side::Client, FrameError::UnknownKind(5)),
        (header(0, 0xff, 0, 0), Side::Server, FrameError::UnknownKind(0xff)),
        (header(0, 0x81, 0, 0), Side::Client, FrameError::WrongSide(Kind::Welcome)),
        (header(0, 0x02, 0, 0), Side::Server, FrameError::WrongSide(Kind::Echo)),
        (header(0, 0x02, 1, 0), Side::Client, FrameError::Reserved),
        (header(0, 0x02, 0, 1), Side::Client, FrameError::Reserved),
        (
            header(u32::MAX, 0x01, 0, 0),
            Side::Client,
            FrameError::TooLong {
                kind: Kind::Hello,
                bytes: u32::MAX as usize,
                bytes_max: crate::limits::NATIVE_HELLO_BYTES_MAX,
            },
        ),
    ] {
        assert_eq!(next_frame(&bytes, from), Err(expected), "{bytes:?}");
    }
    assert_eq!(next_frame(&header(4, 0x02, 0, 0), Side::Client), Ok(None), "the payload is missing");
    assert_eq!(next_frame(&[1, 2, 3], Side::Client), Ok(None), "the header is missing");
}

#[test]
fn the_bytes_of_version_1_do_not_change() {
    // Other implementations read these bytes: a change of layout needs a new version of the protocol.
    let mut wire = Vec::new();
    Echo { id: 0x0102_0304_0506_0708, text: "a text that is not kept inline".into() }.put(&mut wire);
    let mut expected = b"\x2e\0\0\0\x02\0\0\0a text that is not kept inline".to_vec();
    expected.extend_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
    expected.extend_from_slice(&[0x9e, 0, 0, 0]);
    expected.extend_from_slice(&(-38i32).to_le_bytes());
    assert_eq!(wire, expected, "{wire:x?}");
}

proptest! {
    /// Random, cut and flipped bytes are an error, a wait or a valid frame, never a panic.
    #[test]
    fn damaged_frames_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..200), flip in any::<(usize, u8)>(), cut in any::<usize>()) {
        let mut wire = Vec::new();
        chat().put(&mut wire);
        let place = flip.0 % wire.len();
        wire[place] ^= flip.1;
        for bytes in [&wire[..], &wire[..cut % wire.len()], &noise[..]] {
            for side in [Side::Client, Side::Server] {
                if let Ok(Some((frame, used))) = next_frame(bytes, side) {
                    prop_assert!(used <= bytes.len());
                    if let Ok(ClientFrame::Chat(read)) = ClientFrame::read(frame) {
                        let _ = rkyv::deserialize::<Chat, rkyv::rancor::Error>(read);
                    }
                    let _ = ServerFrame::read(frame);
                }
            }
        }
    }

    #[test]
    fn requests_read_back(id in any::<u64>(), text in ".{0,300}", texts in proptest::collection::vec(".{0,40}", 0..6), dimensions in proptest::option::of(any::<u32>())) {
        let mut wire = Vec::new();
        Echo { id, text: text.clone() }.put(&mut wire);
        let embed = Embed { model: String::new(), texts, dimensions };
        embed.put(&mut wire);
        let (frame, used) = next_frame(&wire, Side::Client).unwrap().unwrap();
        let Ok(ClientFrame::Echo(echo)) = ClientFrame::read(frame) else { panic!("an echo") };
        prop_assert_eq!((echo.id.to_native(), echo.text.as_str()), (id, text.as_str()));
        let (frame, _) = next_frame(&wire[used..], Side::Client).unwrap().unwrap();
        let Ok(ClientFrame::Embed(read)) = ClientFrame::read(frame) else { panic!("an embed") };
        prop_assert_eq!(rkyv::deserialize::<Embed, rkyv::rancor::Error>(read).unwrap(), embed);
    }
}
