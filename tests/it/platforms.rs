//! Fake platforms that behave as their documents say: busy first, with a pause to keep, then a success in their own
//! form. One row of a table for each; the events come from `millrace channel test`, which signs as the platform would.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use millrace_tests::platform::Answer;
use millrace_tests::tools::{binary, node, printable, python};
use millrace_tests::{Platform, Seen, Server, eventually};
use serde_json::{Value, json};

use super::channels::outbox;

/// A reply takes this long at most, with the model and all retries.
const REPLY_WITHIN: Duration = Duration::from_secs(120);
/// 43 characters, as the consoles of WeCom and WeChat demand.
const AES_KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

/// One platform.
struct Row {
    kind: &'static str,
    /// Lines of its account, besides `secrets`, `bot_token` and the address of the fake.
    settings: &'static str,
    secret: &'static str,
    /// What it answers when it is busy: status and body. All of them send `Retry-After: 1`.
    busy: (u16, &'static str),
    /// What it answers when it has taken a message.
    done: &'static str,
    /// Start of the path that is called.
    path: &'static str,
    /// A header that proves us, and its value.
    proof: (&'static str, &'static str),
}

const TOKEN: &str = "token-of-our-bot";
const REPLY_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

const ROWS: &[Row] = &[
    Row {
        kind: "slack",
        settings: "",
        secret: "8f742231b10e8888abcd99e1a2b3c4d5",
        busy: (429, r#"{"ok":false,"error":"ratelimited"}"#),
        done: r#"{"ok":true,"ts":"1503435956.000247"}"#,
        path: "/api/chat.postMessage",
        proof: ("authorization", "Bearer token-of-our-bot"),
    },
    Row {
        kind: "telegram",
        settings: "",
        secret: "AbC-123_word",
        busy: (
            429,
            r#"{"ok":false,"error_code":429,"description":"Too Many Requests","parameters":{"retry_after":1}}"#,
        ),
        done: r#"{"ok":true,"result":{"message_id":9,"date":1,"chat":{"id":1,"type":"private"},"text":"."}}"#,
        path: "/bottoken-of-our-bot/sendMessage",
        proof: ("content-type", "application/json; charset=utf-8"),
    },
    Row {
        kind: "whatsapp",
        settings: "verify_token = \"env:FAKE_SECRET\"\napp_id = \"1234\"\n",
        secret: "app-secret",
        busy: (429, r#"{"error":{"message":"(#130429) Rate limit hit","code":130429}}"#),
        done: r#"{"messaging_product":"whatsapp","messages":[{"id":"wamid.X"}]}"#,
        path: "/1234/messages",
        proof: ("authorization", "Bearer token-of-our-bot"),
    },
    Row {
        kind: "messenger",
        settings: "verify_token = \"env:FAKE_SECRET\"\n",
        secret: "app-secret",
        busy: (503, "{}"),
        done: r#"{"recipient_id":"1","message_id":"m_1"}"#,
        path: "/me/messages",
        proof: ("authorization", "Bearer token-of-our-bot"),
    },
    Row {
        kind: "line",
        settings: "",
        secret: "channel-secret",
        busy: (429, r#"{"message":"The API rate limit has been exceeded"}"#),
        done: r#"{"sentMessages":[{"id":"461230966842064897"}]}"#,
        path: "/v2/bot/message/push",
        proof: ("authorization", "Bearer token-of-our-bot"),
    },
    Row {
        kind: "viber",
        settings: "sender = \"Shop\"\n",
        secret: "4453b6ac1s345678-e02c5f12174805f9-daec9cbb5448c51r",
        busy: (429, r#"{"status":12,"status_message":"tooManyRequests"}"#),
        done: r#"{"status":0,"status_message":"ok","message_token":5098034272017990000}"#,
        path: "/pa/send_message",
        proof: ("x-viber-auth-token", TOKEN),
    },
    Row {
        kind: "twilio",
        settings: "app_id = \"AC01\"\nsender = \"+15550002\"\npublic_url = \"https://bot.example\"\n",
        secret: "auth-token",
        busy: (429, r#"{"code":20429,"message":"Too Many Requests","status":429}"#),
        done: r#"{"sid":"SM01","status":"queued"}"#,
        path: "/2010-04-01/Accounts/AC01/Messages.json",
        proof: ("content-type", "application/x-www-form-urlencoded"),
    },
    Row {
        kind: "mattermost",
        settings: "",
        secret: "webhook-token",
        busy: (429, r#"{"message":"limit exceeded"}"#),
        done: r#"{"id":"post1"}"#,
        path: "/api/v4/posts",
        proof: ("authorization", "Bearer token-of-our-bot"),
    },
    Row {
        kind: "rocketchat",
        settings: "bot_id = \"bot7\"\n",
        secret: "webhook-token",
        busy: (429, r#"{"success":false,"error":"error-too-many-requests"}"#),
        done: r#"{"success":true,"message":{"_id":"m1"}}"#,
        path: "/api/v1/chat.postMessage",
        proof: ("x-auth-token", TOKEN),
    },
    Row {
        kind: "zulip",
        settings: "app_id = \"bot@zulip.example\"\n",
        secret: "webhook-token",
        busy: (
            429,
            r#"{"result":"error","code":"RATE_LIMIT_HIT","msg":"API usage exceeded rate limit","retry-after":1}"#,
        ),
        done: r#"{"result":"success","msg":"","id":42}"#,
        path: "/api/v1/messages",
        proof: ("content-type", "application/x-www-form-urlencoded"),
    },
    Row {
        kind: "email_mailgun",
        settings: "app_id = \"mail.example\"\nsender = \"bot@mail.example\"\n",
        secret: "signing-key",
        busy: (500, "{}"),
        done: r#"{"id":"<1@mail.example>","message":"Queued. Thank you."}"#,
        path: "/v3/mail.example/messages",
        proof: ("content-type", "application/x-www-form-urlencoded"),
    },
    Row {
        kind: "wecom",
        settings: "encryption_keys = [\"env:FAKE_AES\"]\napp_id = \"ww1\"\napp_secret = \"env:FAKE_SECRET\"\nsender = \"1000002\"\n",
        secret: "callback-token",
        busy: (200, r#"{"errcode":45009,"errmsg":"reach max api daily quota limit"}"#),
        done: r#"{"errcode":0,"errmsg":"ok","msgid":"m1"}"#,
        path: "/cgi-bin/message/send?access_token=token-of-our-bot",
        proof: ("content-type", "application/json; charset=utf-8"),
    },
    Row {
        kind: "wechat_mp",
        settings: "encryption_keys = [\"env:FAKE_AES\"]\napp_id = \"wx1\"\napp_secret = \"env:FAKE_SECRET\"\n",
        secret: "callback-token",
        busy: (200, r#"{"errcode":-1,"errmsg":"system error"}"#),
        done: r#"{"errcode":0,"errmsg":"ok"}"#,
        path: "/cgi-bin/message/custom/send?access_token=token-of-our-bot",
        proof: ("content-type", "application/json; charset=utf-8"),
    },
    Row {
        kind: "feishu",
        settings: "verify_token = \"env:FAKE_SECRET\"\nencryption_keys = [\"env:FAKE_AES\"]\napp_id = \"cli_1\"\napp_secret = \"env:FAKE_SECRET\"\n",
        secret: "",
        busy: (400, r#"{"code":99991400,"msg":"request trigger frequency limit"}"#),
        done: r#"{"code":0,"msg":"success","data":{"message_id":"om_1"}}"#,
        path: "/open-apis/im/v1/messages/",
        proof: ("authorization", "Bearer token-of-our-bot"),
    },
    Row {
        kind: "qqbot",
        settings: "app_id = \"102\"\napp_secret = \"env:FAKE_SECRET\"\n",
        secret: "naOC0ocQE3shWLAfffVLB1rhYPG7",
        busy: (429, r#"{"code":22009,"message":"msg limit exceed"}"#),
        done: r#"{"id":"m1","timestamp":1}"#,
        path: "/v2/users/",
        proof: ("authorization", "QQBot token-of-our-bot"),
    },
    Row {
        kind: "dingtalk",
        settings: "app_id = \"ding1\"\napp_secret = \"env:FAKE_SECRET\"\nsender = \"robot1\"\n",
        secret: "app-secret",
        busy: (503, "{}"),
        done: r#"{"processQueryKey":"q1"}"#,
        path: "/v1.0/robot/oToMessages/batchSend",
        proof: ("x-acs-dingtalk-access-token", TOKEN),
    },
];

/// Typing signs come at the same address on some platforms.
fn says_something(one: &Seen) -> bool {
    !one.text().contains("typing")
}

/// The account of a row, whose secrets are variables named after its kind.
fn account(row: &Row, fake: &Platform) -> String {
    let name = row.kind.to_uppercase();
    let secrets = if row.secret.is_empty() { String::new() } else { format!("secrets = [\"env:{name}_SECRET\"]\n") };
    let settings = row.settings.replace("FAKE", &name);
    format!(
        "[[channel]]\nkind = \"{}\"\nname = \"main\"\n{secrets}stream = false\nbot_token = \"env:FAKE_TOKEN\"\napi_base = \"{}\"\n{settings}\n",
        row.kind,
        fake.url()
    )
}

fn environment(rows: &[Row]) -> Vec<(String, String)> {
    let mut all = vec![("FAKE_TOKEN".to_owned(), TOKEN.to_owned())];
    for row in rows {
        let name = row.kind.to_uppercase();
        let secret = if row.secret.is_empty() { "verification-word" } else { row.secret };
        all.push((format!("{name}_SECRET"), secret.to_owned()));
        all.push((format!("{name}_AES"), AES_KEY.to_owned()));
    }
    all
}

/// Runs `millrace channel test`, which signs an event with the secrets of the configuration.
pub fn channel_test(server: &Server, environment: &[(String, String)], id: &str, more: &[&str]) -> Value {
    let output = Command::new(binary())
        .args(["channel", "test", id, "--json", "--url", &server.url(), "--config"])
        .arg(server.config_file())
        .arg("--data")
        .arg(server.data())
        .args(more)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .env("MILLRACE_API_KEY", &server.key)
        .stdin(Stdio::null())
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{id}: {}", printable(&output));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

#[test]
fn busy_platforms_get_each_reply_once_after_the_pause_they_asked_for() {
    let fakes: Vec<Platform> = ROWS
        .iter()
        .map(|row| {
            let tries = AtomicUsize::new(0);
            Platform::start(move |one, _| match !says_something(one) || tries.fetch_add(1, Ordering::SeqCst) > 0 {
                false => Answer::new(row.busy.0, row.busy.1).header("Retry-After: 1"),
                true => Answer::new(200, row.done),
            })
        })
        .collect();
    let config: String = ROWS.iter().zip(&fakes).map(|(row, fake)| account(row, fake)).collect();
    let environment = environment(ROWS);
    let builder =
        Server::builder().config(&config).env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "8").env("RETRY_POLICY", "1s,1s");
    let server = environment.iter().fold(builder, |builder, (name, value)| builder.env(name, value)).start();
    for row in ROWS {
        let told = channel_test(&server, &environment, row.kind, &[]);
        assert_eq!(told["status"], 200, "{}: {told}", row.kind);
    }
    for (row, fake) in ROWS.iter().zip(&fakes) {
        let sent = fake.wait(row.kind, 2, REPLY_WITHIN, says_something);
        assert!(sent.iter().all(|one| one.path.starts_with(row.path)), "{}: {:?}", row.kind, sent[0].path);
        assert_eq!(sent[0].text(), sent[1].text(), "{}: a repetition says the same", row.kind);
        assert_eq!(sent[0].header(row.proof.0), row.proof.1, "{}", row.kind);
        assert!(sent[0].text().len() > 20, "{}: {}", row.kind, sent[0].text());
        let pause = sent[1].at - sent[0].at;
        assert!(pause >= Duration::from_millis(900), "{}: tried again after {pause:?}", row.kind);
    }
    eventually("all are delivered", REPLY_WITHIN, || outbox(&server, "pending").is_empty().then_some(()));
    assert!(outbox(&server, "dead").is_empty() && outbox(&server, "unknown").is_empty());
    for (row, fake) in ROWS.iter().zip(&fakes) {
        assert_eq!(
            fake.seen().iter().filter(|one| says_something(one)).count(),
            2,
            "{}: no try after the success",
            row.kind
        );
    }
}

/// An RSA key with a certificate, as openssl makes them, for the side of SNS.
struct Certificate(tempfile::TempDir);

impl Certificate {
    /// Where SNS would publish it.
    const URL: &str = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-test.pem";

    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=sns.amazonaws.com"])
            .args(["-keyout", "key.pem", "-out", "certificate.pem"])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("openssl runs");
        assert!(made.status.success(), "{}", printable(&made));
        Self(folder)
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn pem(&self) -> String {
        std::fs::read_to_string(self.file("certificate.pem")).expect("the certificate")
    }
}

/// A P-256 key: what signs, and what the account is given, both base64 of DER.
fn sendgrid_key() -> (String, String) {
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-outform", "DER"])
        .output()
        .expect("openssl runs");
    let mut public = Command::new("openssl")
        .args(["pkey", "-inform", "DER", "-pubout", "-outform", "DER"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl runs");
    public.stdin.take().expect("its input").write_all(&made.stdout).expect("written");
    let public = public.wait_with_output().expect("it ends");
    (BASE64.encode(&made.stdout), BASE64.encode(&public.stdout))
}

/// What the SDK of a platform needs to sign, and what the account has.
fn sdk_case(kind: &str, sns: &Certificate) -> (Value, &'static str) {
    match kind {
        "discord" => (
            // The pair of RFC 8032, test 1.
            json!({"seed": "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
                "secret": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"}),
            "app_id = \"77\"\n",
        ),
        "twilio" => (
            json!({"secret": "auth-token", "app_id": "AC01", "public_url": "https://bot.example"}),
            "app_id = \"AC01\"\nsender = \"+15550002\"\npublic_url = \"https://bot.example\"\n",
        ),
        "viber" => (json!({"secret": "4453b6ac1s345678-e02c5f12174805f9"}), "sender = \"Shop\"\n"),
        "wecom" => (
            json!({"secret": "callback-token", "encryption_key": AES_KEY, "app_id": "ww1"}),
            "encryption_keys = [\"env:SDK_AES\"]\napp_id = \"ww1\"\napp_secret = \"env:SDK_AES\"\nsender = \"1\"\n",
        ),
        "wechat_mp" => (
            json!({"secret": "callback-token", "encryption_key": AES_KEY, "app_id": "wx1"}),
            "encryption_keys = [\"env:SDK_AES\"]\napp_id = \"wx1\"\napp_secret = \"env:SDK_AES\"\n",
        ),
        "standard_webhooks" => (json!({"secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}), ""),
        "feishu" => (
            json!({"secret": "", "encryption_key": AES_KEY, "verify_token": AES_KEY, "app_id": "cli_1"}),
            "encryption_keys = [\"env:SDK_AES\"]\nverify_token = \"env:SDK_AES\"\napp_id = \"cli_1\"\napp_secret = \"env:SDK_AES\"\n",
        ),
        "email_sns" => (
            json!({"secret": "", "topic": "arn:aws:sns:eu-west-1:1:mail", "certificate_url": Certificate::URL,
                "key_file": sns.file("key.pem"), "certificate_file": sns.file("certificate.pem")}),
            "topics = [\"arn:aws:sns:eu-west-1:1:mail\"]\n",
        ),
        "email_sendgrid" => {
            let (key, public) = sendgrid_key();
            (json!({"secret": public, "key": key}), "sender = \"bot@mail.example\"\n")
        }
        _ => (json!({"secret": "8f742231b10e8888abcd99e1a2b3c4d5"}), ""),
    }
}

#[test]
fn events_signed_by_the_platforms_own_sdks_are_taken_and_answered() {
    let kinds = [
        "slack",
        "line",
        "twilio",
        "viber",
        "github",
        "discord",
        "wecom",
        "wechat_mp",
        "standard_webhooks",
        "email_sendgrid",
        "feishu",
        "email_sns",
    ];
    let sns = Certificate::new();
    let pem = sns.pem();
    let fake = Platform::start(move |one, _| match one.path.ends_with(".pem") {
        true => Answer::new(200, &pem),
        // A success in the words of all of them.
        false => Answer::new(200, r#"{"ok":true,"status":0,"errcode":0,"code":0,"id":"1","sid":"1"}"#),
    });
    let mut builder = Server::builder()
        .env("SDK_AES", AES_KEY)
        .env("SDK_TOKEN", TOKEN)
        .env("SDK_REPLIES", REPLY_SECRET)
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "8");
    let mut config = String::new();
    let cases: Vec<(&str, Value, &str)> = kinds
        .iter()
        .map(|kind| {
            let (secrets, settings) = sdk_case(kind, &sns);
            (*kind, secrets, settings)
        })
        .collect();
    for (kind, secrets, settings) in &cases {
        let variable = format!("SDK_{}", kind.to_uppercase());
        // What has no API of its own is answered by a Standard Webhook.
        let more = match *kind {
            "github" => String::new(),
            "standard_webhooks" => format!("reply_url = \"{}/replies\"\n", fake.url()),
            "email_sns" => format!(
                "reply_url = \"{0}/replies\"\nkeys_base = \"{0}\"\nbot_token = \"env:SDK_REPLIES\"\n",
                fake.url()
            ),
            _ => "bot_token = \"env:SDK_TOKEN\"\n".to_owned(),
        };
        let secret = secrets["secret"].as_str().expect("a secret");
        let proof = if secret.is_empty() { String::new() } else { format!("secrets = [\"env:{variable}\"]\n") };
        config.push_str(&format!(
            "[[channel]]\nkind = \"{kind}\"\nname = \"main\"\nstream = false\n{proof}api_base = \"{}\"\n{more}{settings}\n",
            fake.url()
        ));
        builder = builder.env(&variable, secret);
    }
    let server = builder.config(&config).start();
    let mut answered = 0;
    for (number, (kind, secrets, _)) in cases.iter().enumerate() {
        let case = json!({"kind": kind, "url": format!("{}/hooks/{kind}/main", server.url()), "secrets": secrets,
            "text": "Hello, who are you?", "number": number + 1});
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), case.to_string()).expect("written");
        let path = file.path().to_string_lossy().into_owned();
        let told = match *kind {
            "feishu" | "email_sns" => node("channel_sdks.cjs", &[&path]),
            _ => python("channel_sdks.py", &[&path]),
        };
        let told: Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!(told["status"], 200, "{kind}: {told}");
        // GitHub reports changes; nobody answers it.
        if *kind != "github" {
            answered += 1;
            fake.wait(kind, answered, REPLY_WITHIN, is_reply);
        }
    }
    eventually("all are delivered", REPLY_WITHIN, || outbox(&server, "pending").is_empty().then_some(()));
    assert!(outbox(&server, "dead").is_empty(), "{:?}", outbox(&server, "dead"));
    assert_eq!(fake.seen().iter().filter(|one| is_reply(one)).count(), answered);
}

/// Typing signs and the certificate are no replies.
fn is_reply(one: &Seen) -> bool {
    says_something(one) && !one.path.ends_with(".pem")
}
