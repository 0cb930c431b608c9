//! Reading the configuration again while the server runs.

use std::time::Duration;

use millrace_tests::{Platform, Server, client, eventually};
use serde_json::{Value, json};

use crate::channels::{BOT_TOKEN, TELEGRAM_SECRET, outbox, update};

fn rewrite(server: &Server, text: &str) {
    std::fs::write(server.config_file(), text).expect("written");
}

#[test]
fn a_reload_applies_what_can_change_and_names_what_needs_a_restart() {
    let server = Server::builder().config("[limits]\nrequests_per_minute = 1000").start();
    let nothing = server.post("/v1/admin/reload", &json!({})).expect(200);
    assert_eq!((&nothing["applied"], &nothing["restart_needed"]), (&json!([]), &json!([])));

    rewrite(
        &server,
        "log_level = \"debug\"\ncors_origins = \"https://page.example\"\n[limits]\nrequests_per_minute = 5\n[engine]\nqueue_max = 7\n",
    );
    let report = server.post("/v1/admin/reload", &json!({})).expect(200);
    assert_eq!(report["applied"], json!(["cors_origins", "limits.requests_per_minute", "log_level"]));
    assert_eq!(report["restart_needed"], json!(["engine.queue_max"]));
    let made = client::request(server.http, "GET", "/healthz", "", &[("Origin", "https://page.example")], b"");
    assert_eq!(made.expect("an answer").status, 200);
    let refused = (0..20).map(|_| server.get("/v1/models")).find(|reply| reply.status == 429).expect("five a minute");
    assert!(refused.header("retry-after").is_some(), "{:?}", refused.headers);
    let limits = refused.header("ratelimit-policy").expect("the limits");
    assert!(limits.contains("\"requests\";q=5;w=60"), "{limits}");
    assert!(
        refused.header("ratelimit").is_some_and(|state| state.contains("\"requests\";r=0;t=")),
        "{:?}",
        refused.headers
    );

    // By signal, and back: the key may call again.
    rewrite(&server, "[limits]\nrequests_per_minute = 100000\n[engine]\nqueue_max = 7\n");
    server.signal("HUP");
    eventually("the larger limit holds", Duration::from_secs(20), || {
        (server.get("/v1/models").status == 200).then_some(())
    });
    eventually("the log says what was done", Duration::from_secs(20), || {
        server.log().contains("restart_needed=\"engine.queue_max\"").then_some(())
    });

    // What cannot be used changes nothing, and says why.
    rewrite(&server, "[limits]\nrequests_per_minut = 3\n");
    let reply = server.post("/v1/admin/reload", &json!({}));
    assert_eq!(reply.status, 400, "{}", reply.text());
    assert!(reply.text().contains("requests_per_minute"), "the nearest key is named: {}", reply.text());
    assert!((0..30).all(|_| server.get("/v1/models").status == 200), "the limit in use stays");
}

fn reload(server: &Server) -> Value {
    server.post("/v1/admin/reload", &json!({})).expect(200)
}

/// The status that Telegram gets for a message to an account.
fn told(server: &Server, account: &str, secret: &str, number: u64) -> u16 {
    let headers = [("Content-Type", "application/json"), ("X-Telegram-Bot-Api-Secret-Token", secret)];
    let (path, body) = (format!("/hooks/telegram/{account}"), update(number, 4711, "Hello, who are you?"));
    client::request(server.http, "POST", &path, "", &headers, body.as_bytes()).expect("an answer").status
}

#[test]
fn channel_accounts_come_change_and_go_without_a_restart() {
    let telegram = Platform::telegram();
    let account = |name: &str, secrets: &str| {
        format!(
            "[[channel]]\nkind = \"telegram\"\nname = \"{name}\"\nsecrets = [{secrets}]\nbot_token = \"env:TELEGRAM_BOT_TOKEN\"\napi_base = \"{}\"\nstream = false\n\n",
            telegram.url()
        )
    };
    let server = Server::builder()
        .env("TELEGRAM_SECRET", TELEGRAM_SECRET)
        .env("NEXT_SECRET", "the-next-word")
        .env("TELEGRAM_BOT_TOKEN", BOT_TOKEN)
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "8")
        .start();
    assert_eq!(told(&server, "bot", TELEGRAM_SECRET, 1), 404);

    rewrite(&server, &account("bot", "\"env:TELEGRAM_SECRET\""));
    assert_eq!(reload(&server)["applied"], json!(["channel"]));
    assert_eq!(told(&server, "bot", TELEGRAM_SECRET, 1), 200);
    telegram
        .wait("the reply of the new account", 1, Duration::from_secs(120), |one| one.path.ends_with("/sendMessage"));
    assert_eq!(
        server.get("/v1/admin/status").expect(200)["channels"],
        json!([{"channel": "telegram", "account": "bot"}])
    );

    // A rotation: the next word beside the present one, then alone; and a second account.
    rewrite(&server, &account("bot", "\"env:NEXT_SECRET\", \"env:TELEGRAM_SECRET\""));
    assert_eq!(reload(&server)["restart_needed"], json!([]));
    assert_eq!([told(&server, "bot", TELEGRAM_SECRET, 2), told(&server, "bot", "the-next-word", 3)], [200, 200]);
    rewrite(&server, &(account("bot", "\"env:NEXT_SECRET\"") + &account("second", "\"env:TELEGRAM_SECRET\"")));
    reload(&server);
    assert_eq!([told(&server, "bot", TELEGRAM_SECRET, 4), told(&server, "bot", "the-next-word", 4)], [401, 200]);
    assert_eq!(told(&server, "second", TELEGRAM_SECRET, 1), 200);

    // An account whose secret is missing changes nothing.
    rewrite(&server, &account("bot", "\"env:NOBODY_SET_THIS\""));
    let refused = server.post("/v1/admin/reload", &json!({}));
    assert!(refused.status == 400 && refused.text().contains("NOBODY_SET_THIS"), "{}", refused.text());
    assert_eq!(told(&server, "bot", "the-next-word", 5), 200);

    eventually("everything is answered", Duration::from_secs(120), || {
        let open = outbox(&server, "pending").len() + outbox(&server, "sending").len();
        let delivered = server.metric("millrace_channel_deliveries_total").unwrap_or(0.0);
        (open == 0 && delivered >= 6.0).then_some(())
    });
    rewrite(&server, "");
    assert_eq!(reload(&server)["applied"], json!(["channel"]));
    assert_eq!(told(&server, "bot", "the-next-word", 6), 404);
}
