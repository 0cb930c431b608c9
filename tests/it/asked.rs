//! Replies that a platform fetches while they are written (the smart robots of WeCom): the whole text so far each
//! time it asks, one end, and one delivery, whoever stops in between. WeCom's side is played with wechatpy.

use std::time::Duration;

use millrace_tests::platform::Answer;
use millrace_tests::tools::python;
use millrace_tests::{Platform, Server, eventually};
use serde_json::{Value, json};

use crate::channels::outbox;

const REPLY_WITHIN: Duration = Duration::from_secs(120);
const TOKEN: &str = "callback-token";
/// 43 characters, as the console of WeCom demands.
const AES_KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";
const TAKEN: &str = r#"{"errcode":0,"errmsg":"ok"}"#;

fn serve(wecom: &Platform, reply_tokens: &str) -> Server {
    let account = |name: &str| {
        format!(
            "[[channel]]\nkind = \"wecom_aibot\"\nname = \"{name}\"\nsecrets = [\"env:ROBOT_TOKEN\"]\nencryption_keys = [\"env:ROBOT_KEY\"]\napi_base = \"{}\"\n\n",
            wecom.url()
        )
    };
    Server::builder()
        .config(&(account("robot") + &account("other")))
        .env("ROBOT_TOKEN", TOKEN)
        .env("ROBOT_KEY", AES_KEY)
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", reply_tokens)
        .start()
}

fn robot(server: &Server, account: &str, more: Value) -> Value {
    let mut case =
        json!({"url": format!("{}/hooks/wecom_aibot/{account}", server.url()), "token": TOKEN, "key": AES_KEY});
    case.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), case.to_string()).expect("written");
    serde_json::from_str(&python("wecom_robot.py", &[&file.path().to_string_lossy()])).expect("JSON")
}

/// Says something and returns the stream that the answer promises.
fn say(server: &Server, wecom: &Platform, message: &str, text: &str) -> String {
    let response_url = format!("{}/respond?to={message}", wecom.url());
    let said =
        robot(server, "robot", json!({"do": "say", "message": message, "text": text, "response_url": response_url}));
    assert_eq!(said["status"], 200, "{said}");
    assert_eq!(said["reply"]["msgtype"], "stream", "{said}");
    assert_eq!(said["reply"]["stream"]["finish"], false, "{said}");
    said["reply"]["stream"]["id"].as_str().expect("an id").to_owned()
}

/// Asks until the reply is whole, or as often as it may.
fn ask(server: &Server, account: &str, stream: &str, questions_max: u32) -> Vec<(String, bool)> {
    let asked = robot(server, account, json!({"do": "ask", "stream": stream, "questions_max": questions_max}));
    let part = |part: &Value| (part[0].as_str().expect("text").to_owned(), part[1].as_bool().expect("finished"));
    asked["parts"].as_array().expect("parts").iter().map(part).collect()
}

fn assert_grows(parts: &[(String, bool)]) {
    for pair in parts.windows(2) {
        assert!(pair[1].0.starts_with(&pair[0].0), "the text only grows: {parts:#?}");
    }
    let (text, finished) = parts.last().expect("a part");
    assert!(*finished && text.len() > 20, "{parts:#?}");
}

fn settled(server: &Server) {
    eventually("the reply is settled", REPLY_WITHIN, || {
        let delivered = server.metric("millrace_channel_deliveries_total").unwrap_or(0.0) >= 1.0;
        (delivered && outbox(server, "pending").is_empty() && outbox(server, "sending").is_empty()).then_some(())
    });
    assert!(outbox(server, "dead").is_empty() && outbox(server, "unknown").is_empty());
}

const STORY: &str = "Tell me a long story about a lighthouse keeper and the sea.";

#[test]
fn a_reply_is_fetched_while_it_is_written_and_is_not_sent_as_well() {
    let wecom = Platform::start(|_, _| Answer::new(200, TAKEN));
    let server = serve(&wecom, "160");
    let stream = say(&server, &wecom, "m1", STORY);
    assert_eq!(say(&server, &wecom, "m1", STORY), stream, "a repetition names the same reply");
    let parts = ask(&server, "robot", &stream, 600);
    assert_grows(&parts);
    assert!(parts.iter().filter(|(text, _)| !text.is_empty()).count() > 2, "it was shown while it grew: {parts:#?}");
    settled(&server);
    let (text, _) = parts.last().expect("a part");
    let again = ask(&server, "robot", &stream, 1);
    assert_eq!(again, [(text.clone(), true)], "an answer that was lost is given again");
    let stranger = ask(&server, "other", &stream, 1);
    assert_eq!(stranger, [(String::new(), false)], "another account learns nothing");
    assert!(wecom.seen().is_empty(), "{:#?}", wecom.seen());
}

#[test]
fn a_platform_that_does_not_ask_gets_the_reply_once_by_a_call() {
    let wecom = Platform::start(|_, _| Answer::new(200, TAKEN));
    let server = serve(&wecom, "12");
    say(&server, &wecom, "m1", "Hello, who are you?");
    settled(&server);
    let seen = wecom.seen();
    assert_eq!(seen.len(), 1, "{seen:#?}");
    assert_eq!(seen[0].path, "/respond?to=m1");
    assert_eq!(seen[0].json()["msgtype"], "markdown");
}

#[test]
fn a_reply_whose_process_was_killed_is_fetched_from_the_next_one() {
    let wecom = Platform::start(|_, _| Answer::new(200, TAKEN));
    let mut server = serve(&wecom, "160");
    let stream = say(&server, &wecom, "m1", STORY);
    let before = ask(&server, "robot", &stream, 2);
    assert!(before.iter().all(|(_, finished)| !finished), "it was killed in the middle: {before:#?}");
    server.kill();
    server.restart();
    let parts = ask(&server, "robot", &stream, 600);
    assert!(parts.last().is_some_and(|(text, finished)| *finished && text.len() > 20), "{parts:#?}");
    settled(&server);
    assert!(wecom.seen().is_empty(), "{:#?}", wecom.seen());
}
