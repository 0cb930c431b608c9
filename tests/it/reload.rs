//! Reading the configuration again while the server runs.

use std::time::Duration;

use millrace_tests::{Server, client, eventually};
use serde_json::json;

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
