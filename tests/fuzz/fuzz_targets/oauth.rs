//! What OAuth clients and other issuers send: forms, Basic credentials, JWTs and key sets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_proto::oauth::jwk::KeySet;
use millrace_proto::oauth::jwt::{self, Expect};
use millrace_proto::oauth::{ClientAuth, Form, TokenRequest, TokenTypeHint, scope_text, scopes_of};

fuzz_target!(|data: (&[u8], &[u8], &str)| {
    let (body, header, text) = data;
    if let Ok(form) = Form::parse(Some("application/x-www-form-urlencoded"), body) {
        let _ = ClientAuth::of(Some(header), &form);
        let _ = ClientAuth::of(None, &form);
        let _ = TokenTypeHint::of(&form);
        if let Ok(request) = TokenRequest::of(&form)
            && let Ok(scopes) = request.grant(0b101)
        {
            assert_eq!(scopes & !0b101, 0, "nothing beyond what is allowed is granted");
        }
    }
    if let Ok(scopes) = scopes_of(text) {
        assert_eq!(scopes_of(&scope_text(scopes)), Ok(scopes), "scopes read back");
    }
    let expect = Expect { issuer: "a", audience: "b", now_s: 1, leeway_s: 0, own: true };
    let _ = (jwt::issuer_of(text), jwt::kid_of(text));
    if let Ok(keys) = KeySet::parse(body) {
        // A key that nobody has signed with verifies nothing.
        assert!(jwt::verify(text, &keys, &expect).is_err());
    }
});
