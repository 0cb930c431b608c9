//! GitHub webhooks: reports of changes, signed with HMAC-SHA-256 over the whole body.

use super::event::Request;
use super::form::Form;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::{
    Answer, Decoded, EncodeError, EventKind, InboundEvent, OutboundCall, Outgoing, Platform, Reject, proof,
    standard_webhooks, value,
};
use crate::split::Unit;
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("secrets", "secret of the webhook").ours(),
    option("reply_url", "where answers are posted as Standard Webhooks"),
    option("bot_token", "whsec_... secret that signs them"),
];
static SPEC: Spec = Spec {
    id: "github",
    title: "GitHub",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Bytes, 16_384),
    body_bytes_max: kind::BODY_25_MIB,
    retry_window_ms: kind::DAY_MS,
    recognises_repetition: true,
    streaming: Streaming::Final,
};

pub(super) struct Adapter;

impl Platform for Adapter {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn open<'a>(&self, request: &Request<'a>) -> Result<Cow<'a, [u8]>, Reject> {
        proof::hub_signature(request)?;
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let header = |name| -> Result<String, Reject> {
            let value = request.incoming.single(name)?.ok_or(Reject::Malformed("a header is missing"))?;
            String::from_utf8(value.to_vec()).map_err(|_| Reject::Malformed("a header is not text"))
        };
        let name = header("x-github-event")?;
        if name == "ping" {
            return Ok(Decoded::Handshake(Answer::ok()));
        }
        let form = if request.incoming.is_form() { Some(Form::parse(plain)?) } else { None };
        let payload = match &form {
            Some(form) => form.get("payload").ok_or(Reject::Malformed("no payload"))?.as_bytes(),
            None => plain,
        };
        let body = value::parse_object(payload)?;
        let source = value::id(&body, "/repository/full_name").or_else(|| value::id(&body, "/organization/login"));
        let source = source.unwrap_or_else(|| request.account.name.clone());
        let user = value::id(&body, "/sender/login").unwrap_or_else(|| "github".to_owned());
        let change = value::text(&body, "/action").map_or_else(|| name.clone(), |action| format!("{name}.{action}"));
        let mut event = InboundEvent::new(EventKind::DataChange, header("x-github-delivery")?, user, source.clone());
        event.text = format!("{change} in {source}");
        event.change = Some((source, change));
        Decoded::event(event, Answer::ok())
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        standard_webhooks::report(out)
    }
}
