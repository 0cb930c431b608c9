//! `millrace channel test`: is the whole way open, from the signature to the reply?

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use millrace_proto::channel::sample::{self, Said, SampleRequest, Scene, Unsignable};
use millrace_proto::channel::{self, Account, Ambient, Decoded, Incoming, NoKeys};
use serde_json::{Value, json};

use crate::cli::client::{Client, ServerArgs};
use crate::cli::print::out;
use crate::trouble::Trouble;

/// What the sample says.
pub(super) struct Sample<'a> {
    pub text: &'a str,
    pub chat: u64,
    pub user: u64,
    /// Seconds to watch for the reply; 0 = not at all.
    pub wait_s: u64,
}

/// Pause between two looks at the outbox.
const LOOK_PAUSE: Duration = Duration::from_millis(300);

pub(super) fn path_of(account: &Account) -> String {
    format!("/hooks/{}/{}", account.kind, account.name)
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn make(account: &Account, sample: &Sample<'_>) -> Result<SampleRequest, Unsignable> {
    let mut entropy = [0; 16];
    getrandom::fill(&mut entropy).map_err(|_| Unsignable::Account("the system gives no random bytes"))?;
    let (number, _) = entropy.split_first_chunk::<8>().expect("16 bytes hold 8");
    // Telegram's ids are signed, JavaScript's numbers end at 2^53.
    let number = u64::from_le_bytes(*number) >> 12;
    let path = path_of(account);
    let said = Said { number, user: sample.user, chat: sample.chat, text: sample.text };
    sample::message(account, &said, &Scene { path: &path, now_s: now_s(), entropy })
}

/// Whether the account's settings fit together: a sample goes through its adapter, without a server. `None` when
/// only the platform can sign.
pub(super) fn rehearse(account: &Account) -> Option<Result<(), String>> {
    let sample = Sample { text: "Hello", chat: 1, user: 1, wait_s: 0 };
    let request = match make(account, &sample) {
        Ok(request) => request,
        Err(Unsignable::PlatformOnly(_)) => return None,
        Err(error) => return Some(Err(error.to_string())),
    };
    let headers: Vec<(&str, &[u8])> = request.headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    let path = format!("{}{}", path_of(account), request.path_tail);
    let incoming =
        Incoming { method: request.method, path: &path, query: &request.query, headers: &headers, body: &request.body };
    let ambient = Ambient { now_s: now_s(), keys: &NoKeys, entropy: [0; 16] };
    Some(match channel::decode(account, &incoming, &ambient) {
        Ok(Decoded::Events { .. }) => Ok(()),
        Ok(other) => Err(format!("the sample is not taken for a message: {other:?}")),
        Err(reject) => Err(reject.to_string()),
    })
}

pub(super) fn test(
    account: &Account,
    sample: &Sample<'_>,
    server: &ServerArgs,
    json: bool,
) -> Result<ExitCode, Trouble> {
    let client = Client::new(server)?;
    let id = format!("{}/{}", account.kind, account.name);
    let request = match make(account, sample) {
        Ok(request) => request,
        Err(Unsignable::PlatformOnly(_)) => return unsigned(account, &client, &id, json),
        Err(error) => {
            let next = "correct the account in millrace.toml";
            return Err(Trouble::new(format!("no sample for {id} can be signed"), error.to_string(), next));
        }
    };
    let mark = if request.query.is_empty() { "" } else { "?" };
    let target = format!("{}{}{mark}{}", path_of(account), request.path_tail, request.query);
    let before = if sample.wait_s == 0 { 0 } else { delivered(&client)? };
    let began = Instant::now();
    let headers: Vec<(&str, &str)> = request.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let (status, body) = client.raw(request.method, &target, &headers, request.body)?;
    let taken_ms = began.elapsed().as_secs_f64() * 1e3;
    if !(200..300).contains(&status) {
        return Err(refused(&id, status, account));
    }
    let said: String = String::from_utf8_lossy(&body).chars().filter(|c| !c.is_control()).take(200).collect();
    if json {
        out(&format!("{}\n", json!({"account": id, "status": status, "ack_ms": taken_ms, "body": said})));
    } else {
        out(&format!("{id}: accepted and durable: status {status} in {taken_ms:.1} ms, body {said:?}\n"));
    }
    if sample.wait_s == 0 { Ok(ExitCode::SUCCESS) } else { watch(&client, account, sample.wait_s, before, json) }
}

/// The sender of a refused event learns a status only; its owner may know what it stands for.
fn refused(id: &str, status: u16, account: &Account) -> Trouble {
    let (why, next) = match status {
        401 | 403 => (
            "the server does not know the secret that this configuration has, or its clock differs",
            "`millrace reload` makes it read the configuration; its log names the reason",
        ),
        404 => ("the server has no such account", "`millrace reload` makes it read the configuration"),
        503 => ("the server is overloaded, or cannot verify yet", "look at `millrace status` and the log"),
        _ => ("", "the server's log names the reason"),
    };
    Trouble::new(format!("{id}: the server answered {status} to {}", path_of(account)), why, next)
}

/// Only the platform can sign: what can be tested is that nobody else gets in.
fn unsigned(account: &Account, client: &Client, id: &str, json: bool) -> Result<ExitCode, Trouble> {
    let headers = [("content-type", "application/json")];
    let (status, _) = client.raw("POST", &path_of(account), &headers, b"{}".to_vec())?;
    let title = account.kind.spec().title;
    match status {
        401 | 403 => {
            let text = format!(
                "the route is there and refuses what is not signed ({status}); {title} signs with a private key that only \
                 it has, so send a message there to test the rest"
            );
            if json {
                out(&format!("{}\n", json!({"account": id, "status": status, "note": text})));
            } else {
                out(&format!("{id}: {text}\n"));
            }
            Ok(ExitCode::SUCCESS)
        }
        200..=299 => Err(Trouble::new(
            format!("{id}: the server took an unsigned event"),
            "it must refuse it",
            "stop the server and report this",
        )),
        _ => Err(refused(id, status, account)),
    }
}

/// Replies that the server has delivered since its start, all accounts together.
fn delivered(client: &Client) -> Result<u64, Trouble> {
    client.require_key()?;
    Ok(client.get("/v1/admin/status")?["outbox"]["delivered"].as_u64().unwrap_or(0))
}

/// Watches the outbox for the reply. A reply that is not there any more was delivered; one that came and went between
/// two looks shows in the number of those that were, of which there were `before`.
fn watch(client: &Client, account: &Account, wait_s: u64, before: u64, json: bool) -> Result<ExitCode, Trouble> {
    let ends = Instant::now() + Duration::from_secs(wait_s);
    let ours = |row: &&Value| row["channel"] == account.kind.as_str() && row["account"] == account.name.as_str();
    let id = format!("{}/{}", account.kind, account.name);
    let mut seen = false;
    loop {
        let list = client.get("/v1/admin/outbox?limit=1000")?;
        let rows: Vec<Value> = list["data"].as_array().into_iter().flatten().filter(ours).cloned().collect();
        let newest = rows.iter().max_by_key(|row| row["created_ms"].as_u64());
        seen |= newest.is_some() || delivered(client)? > before;
        let state = newest.and_then(|row| row["state"].as_str()).unwrap_or(if seen { "delivered" } else { "thinking" });
        match state {
            "delivered" | "dead" | "unknown" => {
                let detail = newest.and_then(|row| row["detail"].as_str()).unwrap_or_default();
                if json {
                    out(&format!("{}\n", json!({"account": id, "reply": state, "detail": detail})));
                } else {
                    out(&format!("{id}: the reply is {state}{}{detail}\n", if detail.is_empty() { "" } else { ": " }));
                }
                return Ok(if state == "delivered" { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            _ if Instant::now() >= ends => {
                let next = "wait longer with --wait, or look at `millrace outbox ls`";
                return Err(Trouble::new(format!("{id}: no reply within {wait_s} s"), format!("it is {state}"), next));
            }
            _ => std::thread::sleep(LOOK_PAUSE),
        }
    }
}
