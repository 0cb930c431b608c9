//! Mail through Mailgun routes: HMAC-SHA-256 over time and token; the mail itself is not covered.

use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::mail::Mail;
use super::proof::Clock;
use super::{Decoded, EncodeError, OutboundCall, Outgoing, Platform, Reject, mail, multipart, proof, value};
use crate::digest;
use crate::split::Unit;
use std::borrow::Cow;

const API: &str = "https://api.mailgun.net";
const NEEDS: &[Need] = &[
    need("secrets", "HTTP webhook signing key"),
    need("bot_token", "API key, for answers"),
    need("app_id", "sending domain"),
    need("sender", "address from which answers come"),
    option("api_base", "https://api.eu.mailgun.net for the EU region"),
];
static SPEC: Spec = Spec {
    id: "email_mailgun",
    title: "Mail (Mailgun)",
    needs: NEEDS,
    covers_body: false,
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
        let form = fields(request)?;
        let (time, token, given) = (form.needed("timestamp")?, form.needed("token")?, form.needed("signature")?);
        proof::fresh(request, time.as_bytes(), Clock::Seconds)?;
        proof::with_any(super::Account::usable(&request.account.secrets), |key| {
            let mac = digest::hex(&digest::hmac_sha256(key, &[time.as_bytes(), token.as_bytes()]));
            digest::constant_time_eq(mac.as_bytes(), given.as_bytes())
        })?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, _plain: &[u8]) -> Result<Decoded, Reject> {
        let form = fields(request)?;
        let field = |name: &str| form.get(name).filter(|text| !text.is_empty()).map(str::to_owned);
        let mut mail = Mail {
            sender: field("sender").unwrap_or_default(),
            message_id: field("Message-Id"),
            in_reply_to: field("In-Reply-To"),
            references: field("References"),
            auto_submitted: field("Auto-Submitted"),
            precedence: field("Precedence"),
            subject: field("subject"),
            text: field("stripped-text").or_else(|| field("body-plain")).unwrap_or_default(),
            ..Mail::default()
        };
        let passed = |name: &str| form.get(name).map(|word| word.eq_ignore_ascii_case("pass"));
        mail.vouched = match (passed("X-Mailgun-Spf"), passed("X-Mailgun-Dkim-Check-Result")) {
            (None, None) => None,
            (spf, dkim) => Some(spf.unwrap_or(false) || dkim.unwrap_or(false)),
        };
        // The token is used once; it is what the signature covers.
        mail.event(field("token"))
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        let thread = mail::thread(out);
        let text = out.text_with_choices();
        let mut fields =
            vec![("from", out.sender()?), ("to", &out.address.chat), ("subject", &thread.subject), ("text", &text)];
        if let Some(id) = thread.in_reply_to {
            fields.push(("h:In-Reply-To", id));
        }
        if let Some(references) = &thread.references {
            fields.push(("h:References", references));
        }
        let url = format!("{}/v3/{}/messages", out.account.api(API), out.app_id()?);
        Ok(OutboundCall::form("POST", url, &fields).basic("api", out.bot_token()?))
    }

    fn classify(&self, answered: &super::Answered<'_>) -> super::Delivery {
        let body = answered.json();
        answered.by_status(value::id(&body, "/id"), value::text(&body, "/message").unwrap_or_default())
    }
}

/// The fields of a form, multipart or JSON body. JSON nests its proof in `signature`.
fn fields(request: &Request<'_>) -> Result<Form, Reject> {
    let kind = request.incoming.content_type().unwrap_or_default();
    if kind.starts_with(b"multipart/form-data") {
        return Ok(multipart::form(&multipart::parse(kind, request.incoming.body)?, |_| None));
    }
    if kind.starts_with(b"application/json") {
        let body = value::parse_object(request.incoming.body)?;
        let proof = ["timestamp", "token", "signature"]
            .map(|name| (name.to_owned(), value::id(&body, &format!("/signature/{name}")).unwrap_or_default()));
        return Ok(Form::from_fields(proof.to_vec()));
    }
    Form::parse(request.incoming.body)
}
