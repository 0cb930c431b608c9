//! Key documents and access tokens of platforms: JWKS, OpenID metadata, certificates and token answers of any bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::channel::{access, keys};

fuzz_target!(|bytes: &[u8]| {
    let [status, body @ ..] = bytes else { return };
    for url in ["https://keys.example/jwks", "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService.pem"] {
        let _ = keys::parse(url, None, body);
    }
    if let Err(why) = access::parse(u16::from(*status) + 200, body) {
        assert!(why.len() < 2_000, "an error does not repeat a whole answer");
    }
});
