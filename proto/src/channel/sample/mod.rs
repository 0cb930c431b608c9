//! Requests as a platform would send them, signed with the account's own secrets.
//!
//! Where the platform proves itself with something that both sides hold (a shared secret, a token, an AES
//! key), a receiver can be its own platform: `millrace channel test` sends such a request through a running
//! server, and tests and fuzz targets get behind the verifiers with them. Where only the platform holds the
//! private key nobody else can sign, which [`Unsignable`] says.

mod body;

use super::envelope;
use super::proof::Clock;
use super::{Account, ChannelKind, qqbot, standard_webhooks};
use crate::digest;
use serde_json::json;

/// What the sample says, and by whom.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// Tells this event from every other: the dedup key grows from it.
    pub number: u64,
    /// Who says it. Platforms with numeric ids have this number as it is, the others as text.
    pub user: u64,
    /// Where it is said; the user's own chat where the platform has no other for one person.
    pub chat: u64,
    /// What is said.
    pub text: &'a str,
}

/// A request that is ready to be sent.
#[derive(Clone, PartialEq, Eq)]
pub struct SampleRequest {
    /// HTTP method.
    pub method: &'static str,
    /// What follows the path of the hook (Matrix writes the transaction there), with its slash.
    pub path_tail: String,
    /// Query without question mark.
    pub query: String,
    /// Header fields.
    pub headers: Vec<(&'static str, String)>,
    /// Body.
    pub body: Vec<u8>,
}

/// Why no sample can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsignable {
    /// Only the platform can sign.
    #[error("{0} signs with a private key that only it has")]
    PlatformOnly(&'static str),
    /// The account lacks what a signature needs, or has it in a form that cannot be used.
    #[error("the account cannot be used to sign: {0}")]
    Account(&'static str),
}

/// What surrounds a sample: the path of the hook, the clock and fresh random bytes.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// Path of the hook as it will be requested; part of some signatures.
    pub path: &'a str,
    /// Unix time in seconds.
    pub now_s: u64,
    /// Random bytes for envelopes.
    pub entropy: [u8; 16],
}

/// A signed message of a person.
pub fn message(account: &Account, said: &Said<'_>, scene: &Scene<'_>) -> Result<SampleRequest, Unsignable> {
    let plain = body::message(account, said, scene)?;
    prove(account, plain, said.number, scene)
}

/// Any bytes in place of the authenticated plaintext, with the proof of the platform around them: what its
/// readers would get from a sender that holds the secret.
pub fn signed(
    account: &Account,
    content_type: &str,
    plain: &[u8],
    number: u64,
    scene: &Scene<'_>,
) -> Result<SampleRequest, Unsignable> {
    let plain = Plain { content_type: content_type.to_owned(), body: plain.to_vec() };
    prove(account, plain, number, scene)
}

/// What the platform's proof will protect.
struct Plain {
    content_type: String,
    body: Vec<u8>,
}

/// The first usable secret.
fn secret(account: &Account) -> Result<&[u8], Unsignable> {
    Account::usable(&account.secrets).next().ok_or(Unsignable::Account("it has no usable secret"))
}

fn word(account: &Account) -> Result<&str, Unsignable> {
    std::str::from_utf8(secret(account)?).map_err(|_| Unsignable::Account("its secret is not text"))
}

fn prove(account: &Account, plain: Plain, number: u64, scene: &Scene<'_>) -> Result<SampleRequest, Unsignable> {
    use ChannelKind as Kind;
    let Plain { content_type, body } = plain;
    let mut request = SampleRequest {
        method: "POST",
        path_tail: String::new(),
        query: String::new(),
        headers: vec![("content-type", content_type)],
        body,
    };
    let (now, now_ms) = (scene.now_s.to_string(), scene.now_s.saturating_mul(1_000).to_string());
    match account.kind {
        Kind::Slack => {
            let mac = digest::hmac_sha256(secret(account)?, &[b"v0:", now.as_bytes(), b":", &request.body]);
            request.headers.push(("x-slack-signature", format!("v0={}", digest::hex(&mac))));
            request.headers.push(("x-slack-request-timestamp", now));
        }
        Kind::Telegram => request.headers.push(("x-telegram-bot-api-secret-token", word(account)?.to_owned())),
        Kind::WhatsApp | Kind::Messenger | Kind::GitHub => {
            let mac = digest::hmac_sha256(secret(account)?, &[&request.body]);
            request.headers.push(("x-hub-signature-256", format!("sha256={}", digest::hex(&mac))));
            if account.kind == Kind::GitHub {
                request.headers.push(("x-github-event", "issues".to_owned()));
                request.headers.push(("x-github-delivery", format!("{number:032x}")));
            }
        }
        Kind::Line => {
            let mac = digest::hmac_sha256(secret(account)?, &[&request.body]);
            request.headers.push(("x-line-signature", digest::base64(&mac)));
        }
        Kind::TeamsOutgoing => {
            let key = digest::unbase64(word(account)?).filter(|key| !key.is_empty());
            let key = key.ok_or(Unsignable::Account("its security token is not base64"))?;
            let mac = digest::hmac_sha256(&key, &[&request.body]);
            request.headers.push(("authorization", format!("HMAC {}", digest::base64(&mac))));
        }
        Kind::Viber => {
            let mac = digest::hmac_sha256(secret(account)?, &[&request.body]);
            request.headers.push(("x-viber-content-signature", digest::hex(&mac)));
        }
        Kind::Twilio => {
            let base = account.public_url.as_deref().ok_or(Unsignable::Account("it has no public_url"))?;
            let url = format!("{}{}", base.trim_end_matches('/'), scene.path);
            let fields = super::twilio::form_to_sign(&request.body).unwrap_or_default();
            let mac = digest::hmac_sha1(secret(account)?, &[url.as_bytes(), fields.as_bytes()]);
            request.headers.push(("x-twilio-signature", digest::base64(&mac)));
        }
        Kind::WeCom | Kind::WeComAibot | Kind::DingTalkCallback => {
            let clock = if account.kind == Kind::DingTalkCallback { Clock::Millis } else { Clock::Seconds };
            enclose(account, &mut request, clock, scene)?;
        }
        Kind::WeChatMp if account.mode.as_deref() != Some("plain") && !account.encryption_keys.is_empty() => {
            enclose(account, &mut request, Clock::Seconds, scene)?;
        }
        Kind::WeChatMp => {
            let signature = envelope::sorted_sha1(secret(account)?, &now, "sample", None);
            request.query = format!("signature={signature}&timestamp={now}&nonce=sample");
        }
        Kind::DingTalk => {
            let key = secret(account)?;
            let mac = digest::hmac_sha256(key, &[now_ms.as_bytes(), b"\n", key]);
            request.headers.push(("sign", digest::base64(&mac)));
            request.headers.push(("timestamp", now_ms));
        }
        Kind::Feishu => {
            let Some(key) = Account::usable(&account.encryption_keys).next() else { return Ok(request) };
            let sealed = envelope::seal_feishu(key, &scene.entropy, &request.body);
            request.body = json!({"encrypt": sealed}).to_string().into_bytes();
            let signed = [now.as_bytes(), b"sample", key, &request.body].concat();
            request.headers.push(("x-lark-signature", digest::hex(&digest::sha256(&signed))));
            request.headers.push(("x-lark-request-timestamp", now));
            request.headers.push(("x-lark-request-nonce", "sample".to_owned()));
        }
        Kind::QqBot => {
            let signed = [now.as_bytes(), &request.body].concat();
            let signature = digest::ed25519_sign(&qqbot::seed(secret(account)?), &signed);
            request.headers.push(("x-signature-ed25519", digest::hex(&signature)));
            request.headers.push(("x-signature-timestamp", now));
            request.headers.push(("x-bot-appid", account.app_id.clone().unwrap_or_default()));
        }
        Kind::Matrix => {
            request.method = "PUT";
            request.path_tail = format!("/_matrix/app/v1/transactions/sample-{number}");
            request.headers.push(("authorization", format!("Bearer {}", word(account)?)));
        }
        Kind::StandardWebhooks => {
            let id = format!("sample_{number}");
            let key =
                account.secrets.iter().find_map(|key| standard_webhooks::sign(key, &id, scene.now_s, &request.body));
            let signature =
                key.ok_or(Unsignable::Account("it has only public keys (whpk_...), which verify but do not sign"))?;
            request.headers.push(("webhook-id", id));
            request.headers.push(("webhook-timestamp", now));
            request.headers.push(("webhook-signature", signature));
        }
        // The proof is a word in the body.
        Kind::Mattermost | Kind::RocketChat | Kind::Zulip | Kind::EmailMailgun => {}
        Kind::Discord | Kind::Teams | Kind::GoogleChat | Kind::EmailSendGrid | Kind::EmailSns => {
            return Err(Unsignable::PlatformOnly(account.kind.spec().title));
        }
    }
    Ok(request)
}

/// Puts the plaintext into the shared AES envelope and signs it in the query.
fn enclose(account: &Account, request: &mut SampleRequest, clock: Clock, scene: &Scene<'_>) -> Result<(), Unsignable> {
    let receiver = account.app_id.as_deref().unwrap_or_default();
    let sealed = envelope::seal(account, scene.now_s, scene.entropy, &request.body, receiver, clock)
        .map_err(|_| Unsignable::Account("its Token or its EncodingAESKey cannot be used"))?;
    let xml = matches!(account.kind, ChannelKind::WeCom | ChannelKind::WeChatMp);
    request.body = if xml {
        format!("<xml><ToUserName><![CDATA[us]]></ToUserName><Encrypt><![CDATA[{}]]></Encrypt></xml>", sealed.envelope)
    } else {
        json!({"encrypt": sealed.envelope}).to_string()
    }
    .into_bytes();
    request.query = format!("msg_signature={}&timestamp={}&nonce={}", sealed.signature, sealed.timestamp, sealed.nonce);
    if account.kind == ChannelKind::WeChatMp {
        request.query.push_str("&encrypt_type=aes");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
