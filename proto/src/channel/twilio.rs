//! Twilio SMS and WhatsApp: HMAC over the public address and the sorted form fields.
//!
//! The address is the one that Twilio was given, so it is built from `public_url`, never from `Host`.

use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::{
    Account, Answer, Answered, Decoded, Delivery, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing,
    Platform, Reject, proof, value,
};
use crate::digest;
use crate::split::Unit;
use std::borrow::Cow;

const API: &str = "https://api.twilio.com";
const NEEDS: &[Need] = &[
    need("secrets", "auth token (or the shared webhook key)"),
    need("bot_token", "auth token, for replies"),
    need("app_id", "account SID AC..."),
    need("sender", "our number or messaging service SID MG..."),
    need("public_url", "scheme and host under which Twilio calls this server"),
    option("api_base", "another Twilio region"),
];
static SPEC: Spec = Spec {
    id: "twilio",
    title: "Twilio",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Utf16, 1_600),
    body_bytes_max: kind::BODY_1_MIB,
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
        let given = request.incoming.needed("x-twilio-signature")?;
        let sha256 = shared_key_algorithm(request)?;
        let base = request.account.public_url.as_deref().ok_or(Reject::Misconfigured("no public_url"))?;
        let incoming = &request.incoming;
        let mark = if incoming.query.is_empty() { "" } else { "?" };
        let url = format!("{}{}{mark}{}", base.trim_end_matches('/'), incoming.path, incoming.query);
        let fields = signed_fields(request)?;
        let urls = [without_port(&url), with_port(&url)];
        proof::with_any(Account::usable(&request.account.secrets), |secret| {
            let mut valid = false;
            for url in &urls {
                let parts = [url.as_bytes(), fields.as_bytes()];
                let mac = if sha256 {
                    digest::base64(&digest::hmac_sha256(secret, &parts))
                } else {
                    digest::base64(&digest::hmac_sha1(secret, &parts))
                };
                valid |= digest::constant_time_eq(mac.as_bytes(), given);
            }
            valid
        })?;
        Ok(Cow::Borrowed(incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let none = Answer::xml("<Response/>");
        let form =
            Form::parse(if request.incoming.method == "GET" { request.incoming.query.as_bytes() } else { plain });
        // Other products sign and send JSON or calls: authentic, not a message.
        let Some(form) = form.ok().filter(|form| form.get("MessageSid").is_some()) else {
            return Ok(Decoded::Ignore { why: "not a message", ack: none });
        };
        if let (Some(ours), Some(account)) = (&request.account.app_id, form.get("AccountSid"))
            && ours != account
        {
            return Err(Reject::Unauthorized("a message of another account"));
        }
        let field =
            |name| form.get(name).filter(|text| !text.is_empty()).ok_or(Reject::Malformed("a field is missing"));
        let (sid, from) = (field("MessageSid")?, field("From")?);
        let pressed = form.get("ButtonPayload").filter(|text| !text.is_empty());
        let event_kind = if pressed.is_some() { EventKind::Action } else { EventKind::Message };
        let mut event = InboundEvent::new(event_kind, sid, from, from);
        event.message_id = Some(sid.to_owned());
        event.private = true;
        event.text = pressed.map_or_else(|| form.get("Body").unwrap_or_default().trim().to_owned(), str::to_owned);
        for index in 0..10 {
            if let Some(url) = form.get(&format!("MediaUrl{index}")) {
                let kind = form.get(&format!("MediaContentType{index}")).unwrap_or("file").to_owned();
                event.attachments.push(super::Attachment { kind, reference: url.to_owned() });
            }
        }
        Decoded::event(event, none)
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let (account, sender, text) = (out.app_id()?, out.sender()?, out.text_with_choices());
        let from = if sender.starts_with("MG") { "MessagingServiceSid" } else { "From" };
        let url = format!("{}/2010-04-01/Accounts/{account}/Messages.json", out.account.api(API));
        let fields = [("To", out.address.chat.as_str()), (from, sender), ("Body", &text)];
        Ok(OutboundCall::form("POST", url, &fields).basic(account, out.bot_token()?))
    }

    fn classify(&self, answered: &Answered<'_>) -> Delivery {
        let body = answered.json();
        let said = value::text(&body, "/message").unwrap_or_default();
        match answered.status {
            401 => Delivery::Dead { why: format!("Twilio refused the token: {said}") },
            _ => answered.by_status(value::id(&body, "/sid"), said),
        }
    }
}

/// Whether the newer shared-key signature is used; an algorithm that is not known is refused.
fn shared_key_algorithm(request: &Request<'_>) -> Result<bool, Reject> {
    let Some(settings) = request.incoming.single("x-twilio-webhooks-signature-settings")? else { return Ok(false) };
    let settings = std::str::from_utf8(settings).map_err(|_| Reject::Unauthorized("malformed settings"))?;
    let algorithm = settings.split(',').find_map(|part| part.trim().strip_prefix("algorithm="));
    match algorithm {
        Some("HMAC_SHA256") => Ok(true),
        _ => Err(Reject::Unauthorized("an unknown algorithm")),
    }
}

/// What follows the address: sorted form fields, or nothing when the query holds the body's hash.
fn signed_fields(request: &Request<'_>) -> Result<String, Reject> {
    let incoming = &request.incoming;
    if incoming.is_form() {
        return form_to_sign(incoming.body);
    }
    let query = Form::parse(incoming.query.as_bytes())?;
    match query.single("bodySHA256")? {
        Some(hash) => {
            let found = digest::hex(&digest::sha256(incoming.body));
            let same = digest::constant_time_eq(found.as_bytes(), hash.as_bytes());
            if same { Ok(String::new()) } else { Err(Reject::Unauthorized("the hash of the body")) }
        }
        None if incoming.body.is_empty() => Ok(String::new()),
        None => Err(Reject::Unauthorized("the body is not signed")),
    }
}

/// What of a form is signed: names and values in their order, without separators.
pub(super) fn form_to_sign(body: &[u8]) -> Result<String, Reject> {
    let form = Form::parse(body)?;
    // Sorted by code point, which is the order of UTF-8 bytes; a repeated value counts once.
    let mut fields: Vec<&(String, String)> = form.fields().iter().collect();
    fields.sort_unstable();
    fields.dedup();
    Ok(fields.iter().map(|(name, value)| format!("{name}{value}")).collect())
}

/// Scheme, host with port, and the rest of an address.
fn parts(url: &str) -> (&str, &str, &str) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    (scheme, &rest[..end], &rest[end..])
}

fn without_port(url: &str) -> String {
    let (scheme, host, rest) = parts(url);
    format!("{scheme}://{}{rest}", host.split(':').next().unwrap_or_default())
}

fn with_port(url: &str) -> String {
    let (scheme, host, rest) = parts(url);
    let port = if scheme == "http" { 80 } else { 443 };
    if host.contains(':') { url.to_owned() } else { format!("{scheme}://{host}:{port}{rest}") }
}
