//! Mail through Amazon SES and SNS: RSA over listed fields, with a certificate of SNS.

use super::event::Request;
use super::kind::{self, Need, Spec, Streaming, need, option};
use super::mail::Mail;
use super::{Answer, Decoded, EncodeError, OutboundCall, Outgoing, Platform, Reject, keys, standard_webhooks, value};
use crate::date;
use crate::digest::{self, RsaHash};
use crate::split::Unit;
use serde_json::Value;
use std::borrow::Cow;

const NEEDS: &[Need] = &[
    need("topics", "ARNs of the SNS topics that may deliver"),
    option("reply_url", "where answers are posted as Standard Webhooks, for your mailer"),
    option("bot_token", "whsec_... secret that signs them"),
];
/// Deliveries are repeated for an hour.
const SKEW_S: u64 = 3_600;
static SPEC: Spec = Spec {
    id: "email_sns",
    title: "Mail (Amazon SES)",
    needs: NEEDS,
    covers_body: true,
    text_max: (Unit::Bytes, 1 << 20),
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
        let body = value::parse_object(request.incoming.body)?;
        let field = |name: &'static str| body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let needed = |name| field(name).ok_or(Reject::Unauthorized("a signed field is missing"));
        let topic = needed("TopicArn")?;
        if request.account.topics.is_empty() {
            return Err(Reject::Misconfigured("no topics"));
        }
        if !request.account.topics.iter().any(|known| known == topic) {
            return Err(Reject::Unauthorized("another topic"));
        }
        let sent_s = date::parse_timestamp(needed("Timestamp")?).ok_or(Reject::Unauthorized("malformed timestamp"))?;
        let skew_s = sent_s.abs_diff(request.ambient.now_s);
        if skew_s > request.account.skew_s.unwrap_or(SKEW_S) {
            return Err(Reject::Stale { skew_s });
        }
        let hash = match needed("SignatureVersion")? {
            "1" => RsaHash::Sha1,
            "2" => RsaHash::Sha256,
            _ => return Err(Reject::Unauthorized("an unknown signature version")),
        };
        let url = needed("SigningCertURL")?;
        if !is_sns(url) || !url.split(['?', '#']).next().is_some_and(|path| path.ends_with(".pem")) {
            return Err(Reject::Unauthorized("a certificate of somebody else"));
        }
        let notification = needed("Type")? == "Notification";
        let names: &[&'static str] = if notification {
            &["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"]
        } else {
            &["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
        };
        let mut signed = String::new();
        for name in names {
            match body.get(name) {
                Some(Value::String(text)) => signed.push_str(&format!("{name}\n{text}\n")),
                None | Some(Value::Null) if *name == "Subject" => {}
                _ => return Err(Reject::Unauthorized("a signed field is missing")),
            }
        }
        let given = digest::unbase64(needed("Signature")?).ok_or(Reject::Unauthorized("malformed signature"))?;
        let set = request.ambient.keys.keys(url);
        let set = set.ok_or_else(|| Reject::KeysNeeded { url: url.to_owned(), unknown_key: false })?;
        let now_s = request.ambient.now_s;
        let valid = |key: &keys::RsaKey| {
            (key.valid_s.0..=key.valid_s.1).contains(&now_s) && key.verify(hash, signed.as_bytes(), &given)
        };
        if !set.keys.iter().any(valid) {
            return Err(Reject::Unauthorized("the signature"));
        }
        Ok(Cow::Borrowed(request.incoming.body))
    }

    fn read(&self, _request: &Request<'_>, plain: &[u8]) -> Result<Decoded, Reject> {
        let body = value::parse_object(plain)?;
        match value::text(&body, "/Type") {
            Some("Notification") => {}
            Some("SubscriptionConfirmation") => {
                let url = value::text(&body, "/SubscribeURL").filter(|url| is_sns(url));
                let url = url.ok_or(Reject::Unauthorized("an address of somebody else"))?;
                return Ok(Decoded::Confirm { call: OutboundCall::get(url.to_owned()), answer: Answer::ok() });
            }
            _ => return Decoded::ignore("a notice about the subscription"),
        }
        let report = value::text(&body, "/Message").unwrap_or_default();
        let Ok(report) = value::parse_object(report.as_bytes()) else { return Decoded::ignore("not a report of SES") };
        if value::text(&report, "/notificationType") != Some("Received") {
            return Decoded::ignore("a report of another kind");
        }
        let mut mail = Mail::default();
        if let Some(content) = value::text(&report, "/content") {
            mail.read_message(content.as_bytes());
        }
        mail.sender = value::text(&report, "/mail/source").unwrap_or_default().to_owned();
        mail.message_id = value::id(&report, "/mail/commonHeaders/messageId").or(mail.message_id);
        let passed = |pointer| value::text(&report, pointer) == Some("PASS");
        // SES always reports both; a mail without a verdict has nobody who vouches for it.
        mail.vouched = Some(passed("/receipt/spfVerdict/status") || passed("/receipt/dkimVerdict/status"));
        mail.event(Some(value::needed(&body, "/MessageId")?))
    }

    fn send(&self, out: &Outgoing<'_>) -> Result<OutboundCall, EncodeError> {
        standard_webhooks::report(out)
    }
}

/// An HTTPS address of SNS itself: `sns.REGION.amazonaws.com`, also in China.
fn is_sns(url: &str) -> bool {
    let region = keys::host(url).and_then(|host| {
        let host = host.strip_suffix(".cn").unwrap_or(host);
        host.strip_prefix("sns.")?.strip_suffix(".amazonaws.com")
    });
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    region.is_some_and(|region| region.len() >= 3 && region.bytes().all(plain))
}
