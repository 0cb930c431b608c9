//! Mail through SendGrid Inbound Parse: ECDSA P-256 over time and body.

use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need};
use super::mail::Mail;
use super::proof::Clock;
use super::{Decoded, EncodeError, OutboundCall, Outgoing, Platform, Reject, mail, multipart, proof, value};
use crate::digest;
use crate::split::Unit;
use serde_json::json;
use std::borrow::Cow;

const API: &str = "https://api.sendgrid.com";
const NEEDS: &[Need] = &[
    need("secrets", "public key of the webhook security policy, base64"),
    need("bot_token", "API key SG...."),
    need("sender", "address from which answers come"),
];
/// What precedes the point in the SPKI of a P-256 key.
const SPKI_P256: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
static SPEC: Spec = Spec {
    id: "email_sendgrid",
    title: "Mail (SendGrid)",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Bytes, 1 << 20),
    body_bytes_max: kind::BODY_25_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: false,
    streaming: Streaming::Final,
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        let timestamp = request.incoming.needed("x-twilio-email-event-webhook-timestamp")?;
        let given = request.incoming.needed("x-twilio-email-event-webhook-signature")?;
        proof::fresh(request, timestamp, Clock::Seconds)?;
        let given = std::str::from_utf8(given).ok().and_then(digest::unbase64);
        let given = given.ok_or(Reject::Unauthorized("malformed signature"))?;
        let signed = [timestamp, request.incoming.body].concat();
        proof::with_any(super::Account::usable(&request.account.secrets), |key| {
            let spki = std::str::from_utf8(key).ok().and_then(digest::unbase64).unwrap_or_default();
            spki.strip_prefix(SPKI_P256).is_some_and(|point| digest::ecdsa_p256_verify(point, &signed, &given))
        })?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let kind = request.incoming.content_type().unwrap_or_default();
        if kind.starts_with(b"application/json") {
            return Decoded::ignore("a report about mail that we sent");
        }
        let parts = multipart::parse(kind, plain)?;
        let charsets = parts.iter().find(|part| part.name == "charsets");
        let charsets = charsets.and_then(|part| value::parse_object(part.bytes).ok()).unwrap_or_default();
        let form = multipart::form(&parts, |name| charsets.get(name)?.as_str().map(str::to_owned));
        event(&form, &parts)
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let thread = mail::thread(out);
        let mut headers = json!({});
        if let Some(id) = thread.in_reply_to {
            headers["In-Reply-To"] = json!(id);
            headers["References"] = json!(thread.references);
        }
        let body = json!({
            "personalizations": [{"to": [{"email": out.address.chat}]}], "from": {"email": out.sender()?},
            "subject": thread.subject, "headers": headers,
            "content": [{"type": "text/plain", "value": out.text_with_choices()}],
        });
        Ok(OutboundCall::json("POST", format!("{}/v3/mail/send", out.account.api(API)), &body).bearer(out.bot_token()?))
    }
}

fn event(form: &Form, parts: &[multipart::Part<'_>]) -> Result<Decoded, Reject> {
    let mut mail = Mail::default();
    match form.get("email") {
        Some(raw) => mail.read_message(raw.as_bytes()),
        None => {
            mail.read_headers(form.get("headers").unwrap_or_default().as_bytes());
            mail.text = form.get("text").unwrap_or_default().to_owned();
        }
    }
    let envelope = value::parse_object(form.get("envelope").unwrap_or("{}").as_bytes())?;
    mail.sender = value::text(&envelope, "/from").unwrap_or_default().to_owned();
    mail.subject = mail.subject.or_else(|| form.get("subject").map(str::to_owned));
    let passed = |field: &str| form.get(field).map(|word| word.to_ascii_lowercase().contains("pass"));
    mail.vouched = match (passed("SPF"), passed("dkim")) {
        (None, None) => None,
        (spf, dkim) => Some(spf.unwrap_or(false) || dkim.unwrap_or(false)),
    };
    for part in parts {
        if let Some(name) = &part.file_name {
            let kind = part.content_type.clone().unwrap_or_else(|| "file".to_owned());
            mail.attachments.push(super::Attachment { kind, reference: name.clone() });
        }
    }
    mail.event(None)
}
