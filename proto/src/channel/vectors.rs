//! Conformance vectors: recorded requests with what they must mean, as data.
//!
//! A vector names its channel, the account's secrets, the request, the clock, and what is expected. The same
//! runner serves the tests and `millrace channel verify`.

use super::keys::{self, Parsed};
use super::{Account, Ambient, Answer, ChannelKind, Decoded, InboundEvent, Incoming, KeySet, KeySource, Secret};
use super::{decode, envelope, verify};
use crate::id::TenantId;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::Arc;

/// Results of the vectors of one channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// The channel's id, as the vectors write it.
    pub channel: String,
    /// Vectors with the expected outcome.
    pub passed: usize,
    /// Name and reason of the others.
    pub failed: Vec<String>,
}

/// Runs every vector of a document (a JSON list). The error says why the document is none.
pub fn run(document: &str) -> Result<Vec<Tally>, String> {
    let vectors: Vec<Value> =
        serde_json::from_str(document).map_err(|error| format!("not a list of vectors: {error}"))?;
    let mut tallies: Vec<Tally> = Vec::new();
    for vector in &vectors {
        let channel = vector["channel"].as_str().unwrap_or("(no channel)").to_owned();
        let place = tallies.iter().position(|tally| tally.channel == channel).unwrap_or_else(|| {
            tallies.push(Tally { channel, passed: 0, failed: Vec::new() });
            tallies.len() - 1
        });
        match check(vector) {
            Ok(()) => tallies[place].passed += 1,
            Err(why) => {
                tallies[place].failed.push(format!("{}: {why}", vector["name"].as_str().unwrap_or("(no name)")))
            }
        }
    }
    Ok(tallies)
}

/// A vector as the parts of a request.
pub struct Case {
    /// The account with the vector's secrets.
    pub account: Account,
    /// Method, path and query.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query without question mark.
    pub query: String,
    /// Header fields.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Body.
    pub body: Vec<u8>,
    /// Clock.
    pub now_s: u64,
    keys: Given,
}

struct Given(HashMap<String, Arc<KeySet>>, Option<Arc<KeySet>>);

impl KeySource for Given {
    fn keys(&self, url: &str) -> Option<Arc<KeySet>> {
        self.0.get(url).cloned().or_else(|| self.1.clone())
    }
}

impl Case {
    /// Reads a vector.
    pub fn read(vector: &Value) -> Result<Self, String> {
        let text = |name: &str| vector[name].as_str().unwrap_or_default().to_owned();
        let kind = ChannelKind::parse(&text("channel")).ok_or("an unknown channel")?;
        let mut account = Account::new(kind, "vector", TenantId::DEFAULT);
        account.skew_s = Some(vector["skew_s"].as_u64().unwrap_or(u64::MAX));
        let mut given = Given(HashMap::new(), None);
        for (name, value) in vector["secrets"].as_object().ok_or("no secrets")? {
            secret(&mut account, &mut given, name, value)?;
        }
        let hint = |name: &str| vector[name].as_str().map(str::to_owned);
        account.bot_id = hint("bot_open_id").or_else(|| hint("bot_user_id"));
        account.bot_username = hint("bot_username").or_else(|| hint("bot_name"));
        let mut target = text("path");
        if let Some(url) = vector["url"].as_str() {
            let host = url.find("://").map_or(0, |at| at + 3);
            let path = url[host..].find(['/', '?']).map_or(url.len(), |at| host + at);
            account.public_url = Some(url[..path].to_owned());
            target = url[path..].to_owned();
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let headers = vector["headers"].as_object().into_iter().flatten();
        Ok(Self {
            account,
            method: text("method"),
            path: path.to_owned(),
            query: query.to_owned(),
            headers: headers.map(|(n, v)| (n.clone(), v.as_str().unwrap_or_default().as_bytes().to_vec())).collect(),
            body: text("body").into_bytes(),
            now_s: vector["now"].as_u64().unwrap_or(0),
            keys: given,
        })
    }

    /// Runs `act` on the request.
    pub fn with<T>(&self, act: impl FnOnce(&Account, &Incoming<'_>, &Ambient<'_>) -> T) -> T {
        let headers: Vec<(&str, &[u8])> = self.headers.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
        let incoming = Incoming {
            method: &self.method,
            path: &self.path,
            query: &self.query,
            headers: &headers,
            body: &self.body,
        };
        act(&self.account, &incoming, &Ambient { now_s: self.now_s, keys: &self.keys, entropy: [7; 16] })
    }
}

fn secret(account: &mut Account, given: &mut Given, name: &str, value: &Value) -> Result<(), String> {
    let text = || value.as_str().unwrap_or_default().to_owned();
    let list = || value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned));
    let set = |url: &str, body: &[u8]| match keys::parse(url, None, body) {
        Ok(Parsed::Keys(set)) => Ok(Arc::new(set)),
        Ok(Parsed::Next(_)) => Err("keys are elsewhere".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    match name {
        "verify_token" | "verification_token" => account.verify_token = Some(Secret::new(text())),
        "encoding_aes_key" | "aes_key" | "encrypt_key" => account.encryption_keys.push(Secret::new(text())),
        "app_id" | "receive_id" | "owner_key" | "audience" | "bot_email" => account.app_id = Some(text()),
        "mode" | "audience_type" => account.mode = Some(text()),
        "topic_arns" => account.topics = list().collect(),
        "tokens" => account.secrets = list().map(Secret::new).collect(),
        "jwks" => given.1 = Some(set("https://vector.invalid/", value.to_string().as_bytes())?),
        "certs" => {
            for (url, pem) in value.as_object().into_iter().flatten() {
                given.0.insert(url.clone(), set(url, pem.as_str().unwrap_or_default().as_bytes())?);
            }
        }
        _ => account.secrets.push(Secret::new(text())),
    }
    Ok(())
}

/// Runs one vector; the error says what was different.
pub fn check(vector: &Value) -> Result<(), String> {
    let case = Case::read(vector)?;
    let expected = vector["expect"].as_str().unwrap_or_default();
    if vector["layer"] == "decrypt" {
        let body: Value = serde_json::from_slice(&case.body).map_err(|error| error.to_string())?;
        let plain = envelope::open_feishu(&case.account, body["encrypt"].as_str().unwrap_or_default());
        return plaintext(vector, &plain.map_err(|reject| reject.to_string())?);
    }
    let opened =
        case.with(|account, incoming, ambient| verify(account, incoming, ambient).map(|plain| plain.into_owned()));
    if let Ok(plain) = &opened {
        plaintext(vector, plain)?;
    }
    if vector["layer"] == "signature" {
        return match (expected, opened) {
            ("accept", Ok(_)) | ("reject", Err(_)) => Ok(()),
            (_, result) => Err(format!("expected {expected}, got {:?}", result.map(|_| "accepted"))),
        };
    }
    match (expected, case.with(decode)) {
        ("reject", Err(_)) => Ok(()),
        ("accept", Ok(Decoded::Ignore { .. })) => match vector["event"]["kind"].as_str() {
            None | Some("none") => Ok(()),
            Some(_) => Err("the event was ignored".to_owned()),
        },
        ("accept", Ok(Decoded::Events { events, .. })) => compare(&vector["event"], &events[0]),
        ("challenge", Ok(Decoded::Handshake(answer))) => challenge(&vector["challenge_response"], &answer, &case),
        ("challenge", Ok(Decoded::Confirm { call, answer })) => {
            if vector["challenge_response"]["fetch"] != call.url.as_str() {
                return Err(format!("confirms at {}", call.url));
            }
            challenge(&vector["challenge_response"], &answer, &case)
        }
        (_, result) => Err(format!("expected {expected}, got {result:?}")),
    }
}

fn plaintext(vector: &Value, plain: &[u8]) -> Result<(), String> {
    match vector["decrypted"].as_str() {
        Some(expected) if expected.as_bytes() != plain => Err("another plaintext".to_owned()),
        _ => Ok(()),
    }
}

fn challenge(expected: &Value, answer: &Answer, case: &Case) -> Result<(), String> {
    let different = |what: &str| Err(format!("{what}: {} {}", answer.status, String::from_utf8_lossy(&answer.body)));
    let json = || serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    if expected["status"].as_u64().is_some_and(|status| status != u64::from(answer.status)) {
        return different("another status");
    }
    if expected["body"].as_str().is_some_and(|body| body.as_bytes() != answer.body) {
        return different("another body");
    }
    if expected.get("json").is_some_and(|wanted| *wanted != json()) {
        return different("another JSON");
    }
    if let Some(word) = expected["decrypts_to"].as_str() {
        let body = json();
        let owner = case.account.app_id.as_deref().unwrap_or_default();
        let field = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        let plain = envelope::open(&case.account, &field("encrypt"), owner).map_err(|reject| reject.to_string())?;
        let token = Account::usable(&case.account.secrets).next().unwrap_or_default();
        let sum = envelope::sorted_sha1(token, &field("timeStamp"), &field("nonce"), Some(&field("encrypt")));
        if plain != word.as_bytes() || sum != field("msg_signature") {
            return different("another envelope");
        }
    }
    Ok(())
}

fn compare(expected: &Value, event: &InboundEvent) -> Result<(), String> {
    for (key, value) in expected.as_object().into_iter().flatten() {
        let found = match key.as_str() {
            "kind" => Value::from(event.kind.as_str()),
            "user_id" => Value::from(event.user.as_str()),
            "chat_id" => Value::from(event.chat.as_str()),
            "thread_id" => Value::from(event.thread.clone()),
            "message_id" => Value::from(event.message_id.clone()),
            "text" => Value::from(event.text.as_str()),
            "dedup_key" => Value::from(event.event_key.as_str()),
            "mentioned" => Value::from(event.mentioned),
            "command" => Value::from(event.command.clone()),
            "reply_token" => Value::from(event.reply_handle.as_ref().and_then(|handle| handle.text())),
            "stream_id" => Value::from(event.stream.clone()),
            "source" => Value::from(event.change.as_ref().map(|(source, _)| source.clone())),
            "change" => Value::from(event.change.as_ref().map(|(_, change)| change.clone())),
            other => return Err(format!("the vector compares {other:?}, which no event has")),
        };
        if &found != value {
            return Err(format!("{key}: expected {value}, got {found}"));
        }
    }
    Ok(())
}
