//! The rules of OAuth messages and tokens, told by example; published vectors first.

use proptest::prelude::*;
use ring::rand::SystemRandom;

use super::jwk::{KeySet, VerifyingKey};
use super::jwt::{self, Algorithm, Claims, Expect, JwtError, SigningKey};
use super::*;
use crate::digest::{base64, base64url, unbase64url};
use crate::record::{SCOPE_ADMIN, SCOPE_CHAT};

const FORM: Option<&str> = Some("application/x-www-form-urlencoded");
const NOW: u64 = 1_900_000_000;
const EXPECT: Expect<'_> =
    Expect { issuer: "https://a.example", audience: "https://a.example", now_s: NOW, leeway_s: 30, own: true };

fn form(body: &str) -> Form {
    Form::parse(FORM, body.as_bytes()).expect("a form")
}

fn code<T>(result: Result<T, OauthError>) -> ErrorCode {
    match result {
        Ok(_) => panic!("accepted"),
        Err(error) => error.code,
    }
}

#[test]
fn published_signatures_verify() {
    // RFC 8037 appendix A.4 (Ed25519) and RFC 7515 appendix A.3 (P-256).
    let keys = br#"{"keys":[
        {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
        {"kty":"oct","k":"AAAA"}]}"#;
    let keys = KeySet::parse(keys).expect("two usable keys");
    for (algorithm, signed, signature) in [
        (
            Algorithm::EdDsa,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
            "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
        (
            Algorithm::Es256,
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
            "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
    ] {
        let key = keys.candidates(algorithm, None).next().expect("a key");
        let mut signature = unbase64url(signature).expect("base64url");
        assert!(key.verifies(signed.as_bytes(), &signature));
        signature[5] ^= 1;
        assert!(!key.verifies(signed.as_bytes(), &signature));
    }
}

#[test]
fn a_form_has_no_name_twice_and_the_right_type() {
    let form = form("grant_type=client_credentials&scope=chat+admin&empty=&x=%26%3D");
    assert_eq!(form.get("scope"), Some("chat admin"));
    assert_eq!((form.get("x"), form.get("empty"), form.get("nothing")), (Some("&="), None, None));
    for (kind, body) in [
        (FORM, "a=1&a=2"),
        (FORM, "a=1&a="),
        (FORM, "a=%zz"),
        (FORM, "a=%ff"),
        (FORM, "a=%00"),
        (None, "a=1"),
        (Some("application/json"), "{}"),
        (Some("multipart/form-data"), "a=1"),
    ] {
        assert_eq!(code(Form::parse(kind, body.as_bytes())), ErrorCode::InvalidRequest, "{kind:?} {body}");
    }
    assert!(Form::parse(Some("Application/X-WWW-Form-urlencoded; charset=utf-8"), b"a=1").is_ok());
    let many = (0..40).map(|n| format!("p{n}=1&")).collect::<String>();
    assert!(Form::parse(FORM, many.as_bytes()).is_err());
    assert!(Form::parse(FORM, &vec![b'a'; 20_000]).is_err());
}

#[test]
fn a_client_names_itself_in_exactly_one_way() {
    let basic = |text: &str| format!("Basic {}", base64(text.as_bytes())).into_bytes();
    let with = |header: &[u8], body: &str| ClientAuth::of(Some(header), &form(body));
    let found = with(&basic("my%3Aclient:p%2Bw+d"), "").expect("read").expect("a client");
    assert_eq!((found.id.as_str(), found.secret.as_str(), found.basic), ("my:client", "p+w d", true));
    assert!(!format!("{found:?}").contains("p+w"), "secrets do not show");
    let posted = ClientAuth::of(None, &form("client_id=a&client_secret=b")).expect("read").expect("a client");
    assert_eq!((posted.id.as_str(), posted.secret.as_str(), posted.basic), ("a", "b", false));
    assert_eq!(ClientAuth::of(None, &form("client_id=a")), Ok(None));
    assert_eq!(with(b"Bearer abc", ""), Ok(None));
    assert_eq!(code(with(&basic("a:b"), "client_secret=b")), ErrorCode::InvalidRequest);
    assert_eq!(code(with(&basic("a:b"), "client_id=other")), ErrorCode::InvalidRequest);
    assert!(with(&basic("a:b"), "client_id=a").is_ok());
    assert_eq!(code(ClientAuth::of(None, &form("client_secret=b"))), ErrorCode::InvalidRequest);
    assert_eq!(code(ClientAuth::of(None, &form("client_assertion=x"))), ErrorCode::InvalidClient);
    for bad in [b"Basic".to_vec(), b"Basic !!!".to_vec(), basic("no colon"), basic(":secret"), b"\xff x".to_vec()] {
        assert_eq!(code(with(&bad, "")), ErrorCode::InvalidClient, "{bad:?}");
    }
}

#[test]
fn only_the_client_credentials_grant_is_offered_and_scopes_are_never_cut() {
    let read = |body: &str| TokenRequest::of(&form(body));
    let both = SCOPE_CHAT | SCOPE_ADMIN;
    let asked = read("grant_type=client_credentials&scope=chat").expect("read");
    assert_eq!(asked.grant(both), Ok(SCOPE_CHAT));
    assert_eq!(read("grant_type=client_credentials").expect("read").grant(both), Ok(both));
    let more = read("grant_type=client_credentials&scope=chat+admin").expect("read");
    assert_eq!(code(more.grant(SCOPE_CHAT)), ErrorCode::InvalidScope);
    assert_eq!(code(read("scope=chat")), ErrorCode::InvalidRequest);
    for grant in ["password", "authorization_code", "refresh_token", "implicit", "Client_credentials"] {
        assert_eq!(code(read(&format!("grant_type={grant}"))), ErrorCode::UnsupportedGrantType);
    }
    for scope in ["root", "chat++admin", "+chat", "chat%22", "CHAT"] {
        assert_eq!(code(read(&format!("grant_type=client_credentials&scope={scope}"))), ErrorCode::InvalidScope);
    }
}

#[test]
fn answers_have_the_shape_of_their_specifications() {
    let inactive = serde_json::to_string(&Introspection::default()).expect("JSON");
    assert_eq!(inactive, r#"{"active":false}"#, "nothing else is told of a token that opens nothing");
    let metadata = serde_json::to_value(Metadata::of("https://a.example")).expect("JSON");
    assert_eq!(metadata["issuer"], "https://a.example");
    assert_eq!(metadata["token_endpoint"], "https://a.example/oauth/token");
    let error = OauthError::new(ErrorCode::InvalidScope, "the \"scope\" \\ \u{e9}\n");
    assert_eq!(error.description, "the 'scope' ' ''", "only the characters that RFC 6749 allows");
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&error.to_json()).expect("JSON")["error"], "invalid_scope");
}

fn key(algorithm: Algorithm) -> SigningKey {
    let random = SystemRandom::new();
    let document = SigningKey::generate(algorithm, &random).expect("a key");
    SigningKey::from_pkcs8(algorithm, &document, &random).expect("readable")
}

fn claims() -> Claims {
    Claims {
        iss: "https://a.example".into(),
        sub: "client-1".into(),
        aud: vec!["https://a.example".into()],
        client_id: "client-1".into(),
        exp: NOW + 600,
        iat: NOW,
        nbf: None,
        jti: "t1".into(),
        scope: "chat".into(),
        tenant: Some(7),
    }
}

fn signed(claims: &Claims, key: &SigningKey) -> String {
    jwt::sign(claims, key, &SystemRandom::new()).expect("signed")
}

/// A token with any header and body, signed by nobody or by a key.
fn forged(header: &str, body: &str, signature: &[u8]) -> String {
    [header.as_bytes(), body.as_bytes(), signature].map(base64url).join(".")
}

#[test]
fn a_token_verifies_with_its_own_key_only() {
    for algorithm in [Algorithm::EdDsa, Algorithm::Es256] {
        let (own, other) = (key(algorithm), key(algorithm));
        let token = signed(&claims(), &own);
        let published = KeySet::parse(&KeySet::new(vec![other.verifying(), own.verifying()]).to_json()).expect("a set");
        assert_eq!(jwt::verify(&token, &published, &EXPECT), Ok(claims()));
        assert!(published.names(own.kid()) && jwt::kid_of(&token).as_deref() == Some(own.kid()));
        assert_eq!(jwt::issuer_of(&token).as_deref(), Some("https://a.example"));
        let foreign = KeySet::new(vec![other.verifying()]);
        assert_eq!(jwt::verify(&token, &foreign, &EXPECT), Err(JwtError::Key));
        // The same name with another key is a wrong signature, not a lucky hit.
        let mut renamed = other.verifying();
        renamed.kid = Some(own.kid().into());
        assert_eq!(jwt::verify(&token, &KeySet::new(vec![renamed]), &EXPECT), Err(JwtError::Signature));
    }
}

#[test]
fn a_header_chooses_neither_algorithm_nor_key() {
    let own = key(Algorithm::EdDsa);
    let keys = KeySet::new(vec![own.verifying()]);
    let body = serde_json::to_string(&claims()).expect("JSON");
    let random = SystemRandom::new();
    for (header, error) in [
        (r#"{"alg":"none","typ":"at+jwt"}"#, JwtError::Key),
        (r#"{"alg":"None","typ":"at+jwt"}"#, JwtError::Key),
        (r#"{"alg":"HS256","typ":"at+jwt"}"#, JwtError::Key),
        (r#"{"alg":"ES256","typ":"at+jwt"}"#, JwtError::Key),
        (r#"{"alg":"EdDSA","typ":"JWT"}"#, JwtError::Type),
        (r#"{"alg":"EdDSA"}"#, JwtError::Type),
        (r#"{"alg":"EdDSA","typ":"at+jwt","jwk":{}}"#, JwtError::Header),
        (r#"{"alg":"EdDSA","typ":"at+jwt","jku":"https://evil.example"}"#, JwtError::Header),
        (r#"{"alg":"EdDSA","typ":"at+jwt","x5u":"https://evil.example"}"#, JwtError::Header),
        (r#"{"alg":"EdDSA","typ":"at+jwt","crit":["exp"]}"#, JwtError::Header),
        (r#"{"alg":"EdDSA","typ":"at+jwt","b64":false}"#, JwtError::Header),
        (r#"{"alg":"EdDSA","alg":"none","typ":"at+jwt"}"#, JwtError::Header),
        (r#"["alg"]"#, JwtError::Header),
        (r#"{"alg":"EdDSA","typ":"at+jwt"}"#, JwtError::Signature),
    ] {
        assert_eq!(jwt::verify(&forged(header, &body, &[0; 64]), &keys, &EXPECT), Err(error), "{header}");
    }
    // A public key as the secret of a shared-key signature: the classic confusion.
    let public = own.verifying();
    assert!(SigningKey::generate(Algorithm::Rs256, &random).is_err() && public.algorithm == Algorithm::EdDsa);
}

#[test]
fn every_claim_is_checked() {
    let own = key(Algorithm::Es256);
    let keys = KeySet::new(vec![own.verifying()]);
    let refused = |change: fn(&mut Claims)| {
        let mut changed = claims();
        change(&mut changed);
        jwt::verify(&signed(&changed, &own), &keys, &EXPECT).expect_err("refused")
    };
    assert_eq!(refused(|c| c.iss = "https://a.example/".into()), JwtError::Issuer);
    assert_eq!(refused(|c| c.aud = vec!["https://b.example".into()]), JwtError::Audience);
    assert_eq!(refused(|c| c.aud.clear()), JwtError::Audience);
    assert_eq!(refused(|c| c.exp = NOW - 30), JwtError::Expired);
    assert_eq!(refused(|c| c.nbf = Some(NOW + 31)), JwtError::NotYet);
    assert_eq!(refused(|c| c.iat = NOW + 31), JwtError::NotYet);
    assert_eq!(refused(|c| c.sub.clear()), JwtError::Claims);
    assert_eq!(refused(|c| c.jti.clear()), JwtError::Claims);
    assert_eq!(refused(|c| c.client_id.clear()), JwtError::Claims);
    assert_eq!(refused(|c| c.aud = vec!["x".into(); 100]), JwtError::Claims);
    let mut late = claims();
    late.exp = NOW - 29;
    assert!(jwt::verify(&signed(&late, &own), &keys, &EXPECT).is_ok(), "clocks may differ a little");
}

#[test]
fn tokens_of_other_issuers_may_be_plainer() {
    let own = key(Algorithm::EdDsa);
    let keys = KeySet::new(vec![own.verifying()]);
    let body = format!(r#"{{"iss":"https://a.example","sub":"u","aud":"https://a.example","exp":{}}}"#, NOW + 5);
    let head = base64url(br#"{"alg":"EdDSA","typ":"JWT"}"#);
    let text = format!("{head}.{}", base64url(body.as_bytes()));
    // Only the library's own signer exists here, so the foreign token is signed by hand.
    let random = SystemRandom::new();
    let document = SigningKey::generate(Algorithm::EdDsa, &random).expect("a key");
    let pair = ring::signature::Ed25519KeyPair::from_pkcs8(&document).expect("a pair");
    let foreign = SigningKey::from_pkcs8(Algorithm::EdDsa, &document, &random).expect("readable");
    let token = format!("{text}.{}", base64url(pair.sign(text.as_bytes()).as_ref()));
    let theirs = KeySet::new(vec![foreign.verifying()]);
    let plain = Expect { own: false, ..EXPECT };
    assert_eq!(jwt::verify(&token, &theirs, &plain).expect("accepted").sub, "u");
    assert_eq!(jwt::verify(&token, &theirs, &EXPECT), Err(JwtError::Type));
    assert_eq!(jwt::verify(&token, &keys, &plain), Err(JwtError::Signature));
}

#[test]
fn key_sets_are_bounded_and_hold_signing_keys_only() {
    let bad = |json: &str| KeySet::parse(json.as_bytes()).expect_err(json);
    bad("{}");
    bad("[]");
    bad(r#"{"keys":[]}"#);
    bad(r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AAAA"}]}"#);
    bad(r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#);
    bad(r#"{"keys":[{"kty":"OKP","crv":"Ed25519","use":"enc","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#);
    bad(r#"{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"ES256","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#);
    let huge = format!("{{\"keys\":[]}}{}", " ".repeat(300_000));
    assert!(matches!(bad(&huge), jwk::KeySetError::TooLong { .. }));
}

proptest! {
    #[test]
    fn no_form_makes_the_readers_panic(body in proptest::collection::vec(any::<u8>(), 0..200), header in proptest::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(form) = Form::parse(FORM, &body) {
            let _ = ClientAuth::of(Some(&header), &form);
            let _ = TokenRequest::of(&form);
            let _ = TokenTypeHint::of(&form);
        }
    }

    #[test]
    fn no_token_makes_the_verifier_panic_and_none_is_accepted(parts in "[A-Za-z0-9_.=-]{0,200}", body in "\\PC{0,80}") {
        let own = VerifyingKey::ed25519("k", &[7; 32]).expect("a point");
        let keys = KeySet::new(vec![own]);
        prop_assert!(jwt::verify(&parts, &keys, &EXPECT).is_err());
        prop_assert!(jwt::verify(&forged(&body, &body, body.as_bytes()), &keys, &EXPECT).is_err());
        let _ = (jwt::issuer_of(&parts), jwt::kid_of(&parts));
    }

    #[test]
    fn a_flipped_bit_is_never_accepted(place in any::<usize>(), bit in 0u32..7) {
        let random = SystemRandom::new();
        let document = SigningKey::generate(Algorithm::EdDsa, &random).expect("a key");
        let own = SigningKey::from_pkcs8(Algorithm::EdDsa, &document, &random).expect("readable");
        let keys = KeySet::new(vec![own.verifying()]);
        let mut token = signed(&claims(), &own).into_bytes();
        let place = place % token.len();
        token[place] ^= 1 << bit;
        if let Ok(token) = String::from_utf8(token) {
            prop_assert!(jwt::verify(&token, &keys, &EXPECT).is_err());
        }
    }

    #[test]
    fn no_key_set_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = KeySet::parse(&bytes);
    }
}
