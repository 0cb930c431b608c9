//! Channels that need something of their platform before they work: published keys to verify with, access
//! tokens to answer with; and the address of Matrix. All over real HTTP, with platforms that fail.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use millrace_tests::platform::Answer;
use millrace_tests::tools::{python, unix_seconds};
use millrace_tests::{Platform, Reply, Seen, Server, client, eventually};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};

const REPLY_WITHIN: Duration = Duration::from_secs(120);

/// One account that answers shortly and tries again quickly.
fn serve(account: &str, secrets: &[(&str, &str)]) -> Server {
    let mut builder = Server::builder().config(&format!("[[channel]]\n{account}\n"));
    for (name, value) in secrets {
        builder = builder.env(name, value);
    }
    builder.env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "6").env("RETRY_POLICY", "1s,1s,1s").start()
}

fn post(server: &Server, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    client::request(server.http, method, path, "", headers, body.as_bytes()).expect("an answer")
}

/// The value of a line of `/metrics` with these labels.
fn counter(server: &Server, line: &str) -> f64 {
    let page = client::request(server.metrics, "GET", "/metrics", "", &[], b"").expect("an answer").text();
    let found = page.lines().find_map(|one| one.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or(0.0)
}

// ---- Matrix ----------------------------------------------------------------------------------------------

/// What the home server proves itself with.
pub const HS_TOKEN: &str = "hs-token-of-the-registration";

/// A transaction with one message in a room.
pub fn matrix_message(room: &str, event: &str, text: &str) -> String {
    json!({"events": [{
        "type": "m.room.message", "event_id": event, "room_id": room, "sender": "@alice:example.org",
        "origin_server_ts": unix_seconds() * 1_000,
        "content": {"msgtype": "m.text", "body": format!("@bot:example.org: {text}"),
                    "m.mentions": {"user_ids": ["@bot:example.org"]}},
    }]})
    .to_string()
}

#[test]
fn a_matrix_server_puts_transactions_and_each_is_answered_once() {
    let home = Platform::start(|_, earlier| Answer::new(200, format!(r#"{{"event_id":"$sent{earlier}"}}"#)));
    let account = format!(
        "kind = \"matrix\"\nname = \"team\"\nsecrets = [\"env:HS\"]\nbot_token = \"env:AS\"\nbot_id = \"@bot:example.org\"\napi_base = \"{}\"\nstream = false",
        home.url()
    );
    let mut server = serve(&account, &[("HS", HS_TOKEN), ("AS", "as-token")]);
    let bearer = format!("Bearer {HS_TOKEN}");
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    let base = "/hooks/matrix/team/_matrix/app/v1";

    let ping = post(&server, "POST", &format!("{base}/ping"), &headers, r#"{"transaction_id":"p"}"#);
    assert_eq!((ping.status, ping.text().as_str()), (200, "{}"));
    let wrong = [("Authorization", "Bearer wrong"), ("Content-Type", "application/json")];
    let refused = post(
        &server,
        "PUT",
        &format!("{base}/transactions/t0"),
        &wrong,
        &matrix_message("!room:example.org", "$0", "Hello"),
    );
    assert_eq!((refused.status, refused.json()), (403, json!({"errcode": "M_FORBIDDEN"})));
    let unsigned = post(
        &server,
        "PUT",
        &format!("{base}/transactions/t0"),
        &[],
        &matrix_message("!room:example.org", "$0", "Hello"),
    );
    assert_eq!(unsigned.status, 401, "{}", unsigned.text());
    let unmanaged = post(&server, "GET", &format!("{base}/users/@x:example.org"), &headers, "");
    assert_eq!((unmanaged.status, unmanaged.json()), (404, json!({"errcode": "M_NOT_FOUND"})));
    let other = post(&server, "DELETE", &format!("{base}/transactions/t0"), &headers, "");
    assert_eq!(other.status, 405, "{}", other.text());
    // The longer address is Matrix' alone.
    let elsewhere = post(&server, "PUT", "/hooks/telegram/team/transactions/t0", &headers, "{}");
    assert_eq!(elsewhere.status, 404, "{}", elsewhere.text());

    let path = format!("{base}/transactions/t%2F1");
    let taken = post(&server, "PUT", &path, &headers, &matrix_message("!room:example.org", "$1", "Who are you?"));
    assert_eq!((taken.status, taken.text().as_str()), (200, "{}"));
    let sends = |seen: &Seen| seen.path.contains("/send/m.room.message/");
    let sent = home.wait("the reply", 1, REPLY_WITHIN, sends).remove(0);
    assert_eq!(sent.header("authorization"), "Bearer as-token");
    assert_eq!(sent.json()["msgtype"], "m.notice");

    // The home server has not seen our answer and repeats, also after we were restarted.
    assert_eq!(
        post(&server, "PUT", &path, &headers, &matrix_message("!room:example.org", "$1", "Who are you?")).status,
        200
    );
    eventually("the outbox is empty", REPLY_WITHIN, || {
        crate::channels::outbox(&server, "pending").is_empty().then_some(())
    });
    server.kill();
    server.restart();
    let legacy = "/hooks/matrix/team/transactions/t%2F1";
    assert_eq!(
        post(&server, "PUT", legacy, &headers, &matrix_message("!room:example.org", "$1", "Who are you?")).status,
        200
    );
    assert_eq!(counter(&server, "millrace_channel_events_total{channel=\"matrix\",outcome=\"duplicate\"}"), 1.0);
    assert_eq!(
        post(
            &server,
            "PUT",
            &format!("{base}/transactions/t2"),
            &headers,
            &matrix_message("!room:example.org", "$2", "Bye")
        )
        .status,
        200
    );
    let replies = |count: usize| {
        let seen = home.wait("replies", count, REPLY_WITHIN, sends);
        seen.iter()
            .map(|one| one.path.rsplit('/').next().unwrap_or_default().split('-').next().unwrap_or_default().to_owned())
            .collect::<std::collections::HashSet<_>>()
    };
    eventually("two replies", REPLY_WITHIN, || (replies(2).len() == 2).then_some(()));
    eventually("the outbox is empty", REPLY_WITHIN, || {
        crate::channels::outbox(&server, "pending").is_empty().then_some(())
    });
    assert_eq!(replies(2).len(), 2, "one reply for each event");
}

// ---- Access tokens: QQ -----------------------------------------------------------------------------------

/// The app secret of the bot (the documented example).
pub const QQ_SECRET: &str = "naOC0ocQE3shWLAfffVLB1rhYPG7";

fn qq_key() -> Ed25519KeyPair {
    let mut seed = [0; 32];
    for (byte, from) in seed.iter_mut().zip(QQ_SECRET.bytes().cycle()) {
        *byte = from;
    }
    Ed25519KeyPair::from_seed_unchecked(&seed).expect("a seed")
}

/// Delivers a message of a group as QQ does.
pub fn tell_qq(server: &Server, group: &str, id: &str, text: &str) -> anyhow::Result<Reply> {
    let body = json!({"op": 0, "id": id, "t": "GROUP_AT_MESSAGE_CREATE", "d": {
        "id": format!("m-{id}"), "group_openid": group, "content": text, "author": {"member_openid": "MEMBER"},
    }})
    .to_string();
    let now = unix_seconds().to_string();
    let signature = qq_key().sign(format!("{now}{body}").as_bytes());
    let hex: String = signature.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let headers = [
        ("Content-Type", "application/json"),
        ("X-Bot-Appid", "1024"),
        ("X-Signature-Ed25519", hex.as_str()),
        ("X-Signature-Timestamp", now.as_str()),
    ];
    client::request(server.http, "POST", "/hooks/qqbot/bot", "", &headers, body.as_bytes())
}

#[test]
fn tokens_are_fetched_once_renewed_when_refused_and_replies_wait_for_them() {
    assert_eq!(qq_key().public_key().as_ref().len(), 32);
    let fetches = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&fetches);
    let qq = Platform::start(move |request, _| {
        if request.path == "/app/getAppAccessToken" {
            assert_eq!(request.json()["clientSecret"], QQ_SECRET);
            return match counted.fetch_add(1, Ordering::SeqCst) {
                // The first two fetches fail: replies wait, and nothing is given up.
                0 => Answer::new(500, "{}"),
                1 => Answer::new(0, ""),
                number => Answer::new(200, format!(r#"{{"access_token":"token-{number}","expires_in":"7200"}}"#)),
            };
        }
        match request.header("authorization") {
            "QQBot token-2" => Answer::new(401, r#"{"code":11244,"message":"token not exist or expire"}"#),
            "QQBot token-3" => Answer::new(200, r#"{"id":"sent"}"#),
            other => Answer::new(401, format!(r#"{{"message":"unexpected {other:?}"}}"#)),
        }
    });
    let account = format!(
        "kind = \"qqbot\"\nname = \"bot\"\nsecrets = [\"env:QQ\"]\napp_secret = \"env:QQ\"\napp_id = \"1024\"\napi_base = \"{}\"",
        qq.url()
    );
    let server = serve(&account, &[("QQ", QQ_SECRET)]);
    for number in 0..4 {
        let reply = tell_qq(&server, "GROUP", &format!("event-{number}"), "Hello?").expect("an answer");
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let accepted = |seen: &Seen| seen.path == "/v2/groups/GROUP/messages" && seen.answered == 200;
    let sent = qq.wait("four replies", 4, REPLY_WITHIN, accepted);
    let mut answered: Vec<String> = sent.iter().map(|one| one.json()["msg_id"].to_string()).collect();
    answered.dedup();
    assert_eq!(answered.len(), 4, "each message once: {answered:?}");
    eventually("the outbox is empty", REPLY_WITHIN, || {
        crate::channels::outbox(&server, "pending").is_empty().then_some(())
    });
    assert_eq!(fetches.load(Ordering::SeqCst), 4, "two failures, the first token, its successor");
    assert!(!server.log().contains("token-2") && !server.log().contains(QQ_SECRET), "a token is in the log");
    let refused = tell_qq_forged(&server);
    assert_eq!(refused.status, 401);
    assert_eq!(counter(&server, "millrace_channel_reject_total{channel=\"qqbot\",reason=\"signature\"}"), 1.0);
}

fn tell_qq_forged(server: &Server) -> Reply {
    let now = unix_seconds().to_string();
    let headers = [
        ("Content-Type", "application/json"),
        ("X-Bot-Appid", "1024"),
        ("X-Signature-Ed25519", "00"),
        ("X-Signature-Timestamp", now.as_str()),
    ];
    post(server, "POST", "/hooks/qqbot/bot", &headers, "{}")
}

// ---- Published keys: Teams -------------------------------------------------------------------------------

struct Issuer {
    key: RsaKeyPair,
    jwk: Value,
    /// The key as files of service accounts hold it.
    pem: String,
}

impl Issuer {
    fn new() -> Self {
        let made: Value = serde_json::from_str(&python("rsa_key.py", &[])).expect("JSON");
        let text = made["pkcs8"].as_str().expect("a key");
        let der = STANDARD.decode(text).expect("base64");
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n");
        Self { key: RsaKeyPair::from_pkcs8(&der).expect("a key"), jwk: made["jwk"].clone(), pem }
    }

    fn token(&self, claims: &Value, key_id: &str) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "RS256", "typ": "JWT", "kid": key_id})), part(claims));
        let mut signature = vec![0; self.key.public().modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn tell_teams(server: &Server, issuer: &Issuer, service: &str, id: &str, key_id: &str) -> Reply {
    let body = json!({
        "type": "message", "id": id, "serviceUrl": service, "channelId": "msteams", "text": "Hello?",
        "from": {"id": "29:user", "name": "User"}, "recipient": {"id": "28:bot"},
        "conversation": {"id": format!("a:{id}"), "conversationType": "personal"},
    });
    let now = unix_seconds();
    let claims = json!({
        "iss": "https://api.botframework.com", "aud": "app-1", "serviceurl": service, "nbf": now - 10, "exp": now + 600,
    });
    let bearer = format!("Bearer {}", issuer.token(&claims, key_id));
    let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
    post(server, "POST", "/hooks/teams/bot", &headers, &body.to_string())
}

#[test]
fn published_keys_are_fetched_once_and_without_them_the_platform_is_told_to_come_back() {
    let issuer = Issuer::new();
    let up = Arc::new(AtomicBool::new(false));
    let (state, jwk) = (Arc::clone(&up), issuer.jwk.clone());
    let fetched: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&fetched);
    let keys = Platform::start(move |request, _| {
        if !state.load(Ordering::SeqCst) {
            return Answer::new(503, "{}");
        }
        seen.lock().expect("a lock").push(request.path.clone());
        match request.path.as_str() {
            // The public document names a public address; the server keeps to the configured base.
            "/v1/.well-known/openidconfiguration" => {
                Answer::new(200, r#"{"jwks_uri":"https://login.botframework.com/v1/.well-known/keys"}"#)
                    .after(Duration::from_millis(300))
            }
            "/v1/.well-known/keys" => Answer::new(200, json!({"keys": [jwk]}).to_string()),
            _ => Answer::new(404, "{}"),
        }
    });
    let teams = Platform::start(|request, _| {
        if request.path == "/botframework.com/oauth2/v2.0/token" {
            return Answer::new(200, r#"{"token_type":"Bearer","expires_in":3599,"access_token":"teams-token"}"#);
        }
        Answer::new(201, r#"{"id":"sent-1"}"#)
    });
    let account = format!(
        "kind = \"teams\"\nname = \"bot\"\napp_id = \"app-1\"\napp_secret = \"env:TEAMS\"\napi_base = \"{}\"\nkeys_base = \"{}\"",
        teams.url(),
        keys.url()
    );
    let server = serve(&account, &[("TEAMS", "teams-secret")]);

    let refused = tell_teams(&server, &issuer, &teams.url(), "early", "test-key");
    assert_eq!(refused.status, 503, "fails closed: {}", refused.text());
    assert!(refused.header("retry-after").is_some());
    assert!(counter(&server, "millrace_channel_reject_total{channel=\"teams\",reason=\"keys\"}") >= 1.0);

    up.store(true, Ordering::SeqCst);
    let accepted = eventually("the keys are there after the back-off", REPLY_WITHIN, || {
        let replies: Vec<u16> = std::thread::scope(|scope| {
            let one = |number: usize| {
                let (server, issuer, teams) = (&server, &issuer, &teams);
                scope.spawn(move || tell_teams(server, issuer, &teams.url(), &format!("m{number}"), "test-key").status)
            };
            let senders: Vec<_> = (0..8).map(one).collect();
            senders.into_iter().map(|sender| sender.join().expect("a sender")).collect()
        });
        replies.iter().all(|status| *status == 200).then_some(replies.len())
    });
    assert_eq!(accepted, 8);
    assert_eq!(
        *fetched.lock().expect("a lock"),
        ["/v1/.well-known/openidconfiguration", "/v1/.well-known/keys"],
        "eight requests share one fetch"
    );
    let reply = |seen: &Seen| {
        seen.path.contains("/activities") && seen.json()["type"] == "message" && seen.path.starts_with("/v3/")
    };
    let sent = teams.wait("replies", 8, REPLY_WITHIN, reply);
    assert!(sent.iter().all(|one| one.header("authorization") == "Bearer teams-token"));

    // A key that the set does not hold is refused, and does not cause a fetch within the hour.
    let unknown = tell_teams(&server, &issuer, &teams.url(), "unknown", "another-key");
    assert_eq!(unknown.status, 401, "{}", unknown.text());
    // A service address that the token does not name, and one that is neither HTTPS nor configured.
    let stranger = Issuer::new();
    assert_eq!(tell_teams(&server, &stranger, &teams.url(), "forged", "test-key").status, 401);
    assert_eq!(fetched.lock().expect("a lock").len(), 2);
}

// ---- A service account: Google Chat ----------------------------------------------------------------------

/// Google and a Chat space: publishes its key, exchanges assertions for tokens, takes messages.
fn google(jwk: Value, assertions: Arc<Mutex<Vec<String>>>) -> Platform {
    Platform::start(move |request, _| match request.path.split('?').next().unwrap_or_default() {
        "/service_accounts/v1/jwk/chat@system.gserviceaccount.com" => {
            Answer::new(200, json!({"keys": [jwk]}).to_string())
        }
        "/token" => {
            let form = request.text();
            let assertion = form.split('&').find_map(|field| field.strip_prefix("assertion=")).unwrap_or_default();
            assertions.lock().expect("a lock").push(assertion.to_owned());
            Answer::new(200, r#"{"access_token":"chat-token","expires_in":3599,"token_type":"Bearer"}"#)
        }
        "/v1/spaces/S1/messages" => Answer::new(200, r#"{"name":"spaces/S1/messages/m1"}"#),
        _ => Answer::new(404, "{}"),
    })
}

#[test]
fn a_google_chat_app_answers_with_the_token_of_its_service_account() {
    let (chat, service) = (Issuer::new(), Issuer::new());
    let assertions: Arc<Mutex<Vec<String>>> = Arc::default();
    let google = google(chat.jwk.clone(), Arc::clone(&assertions));
    let account = format!(
        "kind = \"googlechat\"\nname = \"bot\"\napp_id = \"1234567890\"\nmode = \"project_number\"\nstream = false\napp_secret = \"env:SERVICE\"\napi_base = \"{0}\"\nkeys_base = \"{0}\"",
        google.url()
    );
    let file = json!({"type": "service_account", "client_email": "bot@project.iam.gserviceaccount.com", "private_key": service.pem});
    let server = serve(&account, &[("SERVICE", &file.to_string())]);
    let tell = |audience: &str, number: u64| {
        let now = unix_seconds();
        let claims =
            json!({"iss": "chat@system.gserviceaccount.com", "aud": audience, "iat": now - 5, "exp": now + 3_600});
        let bearer = format!("Bearer {}", chat.token(&claims, "test-key"));
        let body = json!({
            "type": "MESSAGE", "eventTime": "2026-01-01T00:00:00Z",
            "message": {"name": format!("spaces/S1/messages/q{number}"), "text": "Hello?", "argumentText": "Hello?"},
            "user": {"name": "users/7", "type": "HUMAN"}, "space": {"name": "spaces/S1", "spaceType": "DIRECT_MESSAGE"},
        });
        let headers = [("Authorization", bearer.as_str()), ("Content-Type", "application/json")];
        post(&server, "POST", "/hooks/googlechat/bot", &headers, &body.to_string()).status
    };
    assert_eq!(tell("another-project", 1), 401);
    assert_eq!([tell("1234567890", 1), tell("1234567890", 1)], [200, 200], "a repetition is welcome");
    let replies = |seen: &Seen| seen.path.starts_with("/v1/spaces/S1/messages");
    let sent = google.wait("the reply", 1, REPLY_WITHIN, replies).remove(0);
    assert_eq!(sent.header("authorization"), "Bearer chat-token");
    assert!(sent.path.contains("requestId=") && !sent.json()["text"].as_str().unwrap_or_default().is_empty());
    eventually("it is delivered", REPLY_WITHIN, || {
        crate::channels::outbox(&server, "pending").is_empty().then_some(())
    });
    assert_eq!(google.seen().iter().filter(|one| replies(one)).count(), 1, "one effect");

    // What Google would check, by a library that is not ours.
    let assertions = assertions.lock().expect("a lock").clone();
    assert_eq!(assertions.len(), 1, "one token is enough");
    let case = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(case.path(), json!({"token": assertions[0], "jwk": service.jwk}).to_string()).expect("written");
    let claims: Value =
        serde_json::from_str(&python("jwt_claims.py", &[&case.path().to_string_lossy()])).expect("JSON");
    assert_eq!(claims["iss"], "bot@project.iam.gserviceaccount.com");
    assert_eq!(claims["aud"], "https://oauth2.googleapis.com/token");
    assert_eq!(claims["scope"], "https://www.googleapis.com/auth/chat.bot");
}

// ---- Caps ------------------------------------------------------------------------------------------------

#[test]
fn bodies_are_held_to_the_cap_of_their_channel() {
    let account = "kind = \"github\"\nname = \"repo\"\nsecrets = [\"env:HUB\"]\n\n[[channel]]\nkind = \"telegram\"\nname = \"bot\"\nsecrets = [\"env:HUB\"]\nbot_token = \"env:HUB\"";
    let server = serve(account, &[("HUB", "hub-secret")]);
    let body = json!({"action": "opened", "repository": {"full_name": "a/b"}, "sender": {"login": "c"}, "diff": "x".repeat(2 << 20)}).to_string();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, b"hub-secret");
    let tag = ring::hmac::sign(&key, body.as_bytes());
    let hex: String = tag.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let signature = format!("sha256={hex}");
    let headers = [
        ("Content-Type", "application/json"),
        ("X-GitHub-Event", "issues"),
        ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958"),
        ("X-Hub-Signature-256", signature.as_str()),
    ];
    let taken = post(&server, "POST", "/hooks/github/repo", &headers, &body);
    assert_eq!(taken.status, 200, "two megabytes are little for a repository: {}", taken.text());
    let telegram = [("X-Telegram-Bot-Api-Secret-Token", "hub-secret")];
    let mut line = client::Connection::open(server.http).expect("a connection");
    let head = format!("POST /hooks/telegram/bot HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
    line.send(head.as_bytes()).expect("sent");
    assert_eq!(line.reply().expect("an answer").status, 413, "and too much for a messenger");
    assert_eq!(counter(&server, "millrace_channel_reject_total{channel=\"telegram\",reason=\"too_large\"}"), 1.0);
    let unknown = post(&server, "POST", "/hooks/telegram/nobody", &telegram, &body);
    assert_eq!(unknown.status, 404, "nothing is read for an address that does not exist");
}
