//! Who may call what: every address of the server against every kind of caller, and tenants against each other.

use std::process::Command;

use millrace_tests::server::chat;
use millrace_tests::tools::binary;
use millrace_tests::{Server, client};
use serde_json::{Value, json};

/// Every address, as the program itself lists them.
fn routes() -> Vec<Value> {
    let output = Command::new(binary()).args(["routes", "--json"]).output().expect("the program runs");
    let rows: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    rows.as_array().expect("a list").clone()
}

fn key(server: &Server, maker: &str, body: Value) -> String {
    let made = server.post_as(maker, "/v1/admin/keys", &body).expect(201);
    made["key"].as_str().expect("a key").to_owned()
}

fn token(server: &Server, body: Value) -> String {
    let made = server.post("/v1/admin/clients", &body).expect(201);
    let form = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}",
        made["client_id"].as_str().expect("an id"),
        made["client_secret"].as_str().expect("a secret")
    );
    let headers = [("Content-Type", "application/x-www-form-urlencoded")];
    let reply = client::request(server.http, "POST", "/oauth/token", "", &headers, form.as_bytes()).expect("an answer");
    reply.expect(200)["access_token"].as_str().expect("a token").to_owned()
}

#[test]
fn every_address_is_closed_to_everybody_who_was_not_let_in() {
    let server = Server::builder().env("MILLRACE_LIMITS_REQUESTS_PER_MINUTE", "100000").start();
    let scoped = |scopes: &[&str]| json!({"user": "u", "label": "l", "scopes": scopes});
    // Caller, what it shows, and its scopes; `None` = it is nobody.
    let mut callers: Vec<(&str, String, Option<Vec<&str>>)> = vec![
        ("anonymous", String::new(), None),
        ("a wrong key", "mr-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into(), None),
        ("a wrong token", "mt-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into(), None),
        ("no JWT", "e30.e30.e30".into(), None),
        ("a JWT without a signature", "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwOi8vMTI3LjAuMC4xIn0.".into(), None),
        ("metrics alone", key(&server, &server.key, scoped(&["metrics"])), Some(vec!["metrics"])),
    ];
    let role = |role: &str| json!({"user": "u", "label": "l", "role": role});
    for (name, scopes) in [
        ("user", vec!["chat"]),
        ("operator", vec!["chat", "operate", "metrics"]),
        ("admin", vec!["chat", "operate", "metrics", "impersonate", "introspect", "admin"]),
    ] {
        callers.push((name, key(&server, &server.key, role(name)), Some(scopes.clone())));
        for kind in ["opaque", "jwt"] {
            let body = json!({"label": "l", "role": name, "token": kind});
            callers.push((name, token(&server, body), Some(scopes.clone())));
        }
    }
    let mut checked = 0;
    for row in routes() {
        let text = |name: &str| row[name].as_str().expect("text").to_owned();
        let (method, access) = (text("method"), text("access"));
        let path = text("path").replace("{*}", "x").replace("{}", "x");
        let wanted: Vec<&str> = row["scopes"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        for (name, shown, scopes) in &callers {
            let mut headers = vec![("Content-Type", "application/json")];
            if access == "first frame" {
                headers.clear();
            }
            let body: &[u8] = if method == "GET" { b"" } else { b"{}" };
            let reply = client::request(server.http, &method, &path, shown, &headers, body).expect("an answer");
            let status = reply.status;
            let what = format!("{method} {path} as {name}: {status} {}", reply.text());
            match (access.as_str(), scopes) {
                ("public", _) => assert!(![401, 403].contains(&status), "{what}"),
                // A body that is no form is refused before anything else; nobody gets a token.
                ("client", _) => assert!([400, 401].contains(&status), "{what}"),
                ("signed", _) => assert!([401, 403, 404].contains(&status), "{what}"),
                ("first frame", _) => assert_eq!(status, 426, "{what}"),
                (_, None) => {
                    assert_eq!(status, 401, "{what}");
                    let challenge = reply.header("www-authenticate").expect("a challenge");
                    assert_eq!(challenge.contains("error="), !shown.is_empty(), "{what}: {challenge}");
                }
                (_, Some(scopes)) if wanted.iter().any(|scope| scopes.contains(scope)) => {
                    assert!(![401, 403].contains(&status), "{what}");
                }
                (_, Some(_)) => {
                    assert_eq!(status, 403, "{what}");
                    let challenge = reply.header("www-authenticate").expect("a challenge");
                    assert!(challenge.contains("insufficient_scope"), "{what}: {challenge}");
                }
            }
            checked += 1;
        }
    }
    assert!(checked > 300, "{checked} combinations");
    let reply = client::request(server.http, "GET", &format!("/v1/models?access_token={}", server.key), "", &[], b"");
    assert_eq!(reply.expect("an answer").status, 400, "keys do not belong into addresses");
}

#[test]
fn tenants_and_users_do_not_see_each_other() {
    let server = Server::start_default();
    let made = |tenant: u32, user: &str, role: &str| {
        key(&server, &server.key, json!({"tenant": tenant, "user": user, "label": user, "role": role}))
    };
    let (ada, bob, eve, root) =
        (made(7, "ada", "user"), made(7, "bob", "user"), made(8, "ada", "user"), made(8, "root", "admin"));
    let mut said = chat("My secret word is heliotrope.", 2);
    said["session"] = json!("diary");
    server.post_as(&ada, "/v1/chat/completions", &said).expect(200);
    let get = |key: &str, path: &str| client::request(server.http, "GET", path, key, &[], b"").expect("an answer");
    assert!(get(&ada, "/v1/sessions/diary/messages").text().contains("heliotrope"));
    for stranger in [&bob, &eve, &root] {
        assert_eq!(get(stranger, "/v1/sessions/diary/messages").status, 404);
        assert!(!get(stranger, "/v1/sessions").text().contains("diary"));
        let context = get(stranger, "/v1/sessions/diary/context?text=secret").text();
        assert!(!context.contains("heliotrope"), "{context}");
    }
    assert_eq!(get(&bob, "/v1/sessions?user=ada").status, 403, "speaking for others needs a scope");
    // The admin of a tenant: its own keys and clients only, and nothing of the whole node.
    let post = |body: Value| server.post_as(&root, "/v1/admin/keys", &body).status;
    assert_eq!(post(json!({"tenant": 7, "user": "x", "label": "x"})), 403);
    assert_eq!(post(json!({"user": "x", "label": "x", "scopes": ["chat"]})), 201);
    let keys = get(&root, "/v1/admin/keys").expect(200).to_string();
    assert!(keys.contains("\"root\"") && !keys.contains("\"bob\"") && !keys.contains("first key"), "{keys}");
    let theirs = server.post("/v1/admin/clients", &json!({"label": "theirs", "tenant": 7})).expect(201);
    let id = theirs["client_id"].as_str().expect("an id");
    assert!(!get(&root, "/v1/admin/clients").text().contains(id));
    let path = format!("/v1/admin/clients?id={id}");
    assert_eq!(client::request(server.http, "DELETE", &path, &root, &[], b"").expect("an answer").status, 404);
    assert_eq!(server.post_as(&root, "/v1/admin/clients/rotate", &json!({"id": id})).status, 404);
    assert_eq!(server.post_as(&root, "/v1/admin/clients", &json!({"label": "x", "tenant": 7})).status, 403);
    assert_eq!(get(&root, "/v1/admin/signing-keys").status, 403);
    assert_eq!(server.post_as(&root, "/v1/admin/reload", &json!({})).status, 403);
    // Nobody makes a key that can do more than its maker.
    let operator = made(7, "op", "operator");
    assert_eq!(server.post_as(&operator, "/v1/admin/keys", &json!({"user": "x", "label": "x"})).status, 403);
    let narrow = key(&server, &server.key, json!({"user": "n", "label": "n", "scopes": ["admin"]}));
    for body in [json!({"user": "x", "label": "x"}), json!({"user": "x", "label": "x", "role": "admin"})] {
        assert_eq!(server.post_as(&narrow, "/v1/admin/keys", &body).status, 403, "{body}");
    }
    // Resource servers ask about the tokens of their own tenant only.
    let form = |id: &Value, secret: &Value, more: &str| {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        format!("client_id={}&client_secret={}&{more}", text(id), text(secret))
    };
    let ask = |path: &str, body: String| {
        let headers = [("Content-Type", "application/x-www-form-urlencoded")];
        client::request(server.http, "POST", path, "", &headers, body.as_bytes()).expect("an answer").expect(200)
    };
    let granted =
        ask("/oauth/token", form(&theirs["client_id"], &theirs["client_secret"], "grant_type=client_credentials"));
    let token = format!("token={}", granted["access_token"].as_str().expect("a token"));
    for (tenant, scopes, active) in
        [(7, json!(["introspect"]), true), (8, json!(["introspect"]), false), (7, json!(["chat"]), false)]
    {
        let asker = server
            .post("/v1/admin/clients", &json!({"label": "asker", "tenant": tenant, "scopes": scopes}))
            .expect(201);
        let answer = ask("/oauth/introspect", form(&asker["client_id"], &asker["client_secret"], &token));
        assert_eq!(answer["active"], active, "{tenant} {scopes}: {answer}");
        assert!(active || answer.as_object().is_some_and(|fields| fields.len() == 1), "{answer}");
    }
}
