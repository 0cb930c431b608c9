//! Bytes of any kind on the streams of an HTTP/3 client are judged, and the same in any portions.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::http3::{Code, Peer, RequestReader, UniReader};

fn request(bytes: &[u8], portion: usize) -> Result<Vec<u8>, Code> {
    let mut reader = RequestReader::default();
    let (mut input, mut body) = (Vec::new(), Vec::new());
    for part in bytes.chunks(portion) {
        input.extend_from_slice(part);
        loop {
            let (event, used) = reader.next(&input, &mut body).map_err(|fault| fault.code)?;
            input.drain(..used);
            if event.is_none() {
                break;
            }
        }
    }
    reader.finish(input.len()).map(|()| body).map_err(|fault| fault.code)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = request(bytes, bytes.len().max(1));
    assert_eq!(whole, request(bytes, 1));
    assert_eq!(whole, request(bytes, 7));
    let (mut peer, mut one) = (Peer::default(), UniReader::default());
    for byte in bytes {
        if one.observe(std::slice::from_ref(byte), &mut peer).is_err() {
            break;
        }
    }
    let _ = UniReader::default().observe(bytes, &mut Peer::default());
});
