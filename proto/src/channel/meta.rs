//! What WhatsApp and Messenger share: the address check and the signature of Meta.

use super::event::Request;
use super::form::Form;
use super::{Answer, Answered, Decoded, Delivery, Reject, proof, value};
use std::borrow::Cow;

/// The Graph API with the version that the messages here are written for.
pub(super) const API: &str = "https://graph.facebook.com/v23.0";

/// The signature over the body, or the words of the address check.
pub(super) fn open<'a>(request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
    if request.incoming.method == "GET" {
        let query = Form::parse(request.incoming.query.as_bytes())?;
        let token = query.single("hub.verify_token")?.unwrap_or_default();
        let known = proof::this_word(request.account.verify_token.as_ref(), token.as_bytes());
        if !known || query.single("hub.mode")? != Some("subscribe") {
            return Err(Reject::Forbidden("the address check's word"));
        }
    } else {
        proof::hub_signature(request)?;
    }
    Ok(Cow::Borrowed(request.incoming.body))
}

/// The answer to the address check.
pub(super) fn challenge(request: &Request<'_>) -> Result<Decoded, Reject> {
    let query = Form::parse(request.incoming.query.as_bytes())?;
    let challenge = query.single("hub.challenge")?.ok_or(Reject::Malformed("no challenge"))?;
    Ok(Decoded::Handshake(Answer::text(challenge)))
}

/// Graph API errors carry a code: 190 is a bad token, the others here are rates.
pub(super) fn classify(answered: &Answered<'_>, receipt: &str) -> Delivery {
    let body = answered.json();
    let said = value::text(&body, "/error/message").unwrap_or_default();
    match value::at(&body, "/error/code").as_i64() {
        Some(4 | 80007 | 130_429 | 131_056 | 613) => {
            Delivery::Retry { after: answered.pause(None), why: format!("Meta limits our messages: {said}") }
        }
        // The token is the operator's to renew.
        Some(190) => Delivery::Dead { why: format!("Meta refused the token: {said}") },
        _ => answered.by_status(value::id(&body, receipt), said),
    }
}
