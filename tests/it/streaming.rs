//! Replies that are shown in a chat while they are written: the typing sign at once, one message that grows
//! as fast as the platform allows, and the finished text in it, whatever happens on the way.

use std::time::Duration;

use millrace_tests::platform::{Answer, telegram_sent};
use millrace_tests::{Platform, Seen, Server, eventually};

use crate::channels::{BOT_TOKEN, TELEGRAM_SECRET, outbox, tell_telegram, update};

const REPLY_WITHIN: Duration = Duration::from_secs(120);
/// Long enough for several edits, also on a machine that has nothing else to do.
const REPLY_TOKENS: &str = "240";

fn serve(telegram: &Platform, stream: bool, reply_tokens: &str) -> Server {
    let config = format!(
        "[[channel]]\nkind = \"telegram\"\nname = \"bot\"\nsecrets = [\"env:TELEGRAM_SECRET\"]\nbot_token = \"env:TELEGRAM_BOT_TOKEN\"\napi_base = \"{}\"\nstream = {stream}\n",
        telegram.url()
    );
    Server::builder()
        .config(&config)
        .env("TELEGRAM_SECRET", TELEGRAM_SECRET)
        .env("TELEGRAM_BOT_TOKEN", BOT_TOKEN)
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", reply_tokens)
        .env("RETRY_POLICY", "1s,1s,1s,1s,1s")
        .start()
}

fn ask(server: &Server, number: u64) {
    let question = "Tell me a long story about a lighthouse keeper and the sea.";
    assert_eq!(tell_telegram(server, &update(number, 4711, question)).expect("an answer").status, 200);
}

fn method(seen: &Seen) -> &str {
    seen.path.rsplit('/').next().unwrap_or_default()
}

fn text(seen: &Seen) -> String {
    seen.json()["text"].as_str().unwrap_or_default().to_owned()
}

/// Waits until the reply is settled and returns what the chat was told, in order.
fn settled(server: &Server, telegram: &Platform) -> Vec<Seen> {
    eventually("the reply is settled", REPLY_WITHIN, || {
        let delivered = server.metric("millrace_channel_deliveries_total").unwrap_or(0.0) >= 1.0;
        (delivered && outbox(server, "pending").is_empty() && outbox(server, "sending").is_empty()).then_some(())
    });
    assert!(outbox(server, "dead").is_empty() && outbox(server, "unknown").is_empty());
    telegram.seen()
}

#[test]
fn a_reply_grows_in_one_message_at_the_pace_of_the_platform() {
    let telegram = Platform::telegram();
    let server = serve(&telegram, true, REPLY_TOKENS);
    ask(&server, 1);
    let seen = settled(&server, &telegram);
    assert!(!telegram.typing().is_empty(), "the typing sign comes before anything is written");
    assert!(telegram.typing()[0].at <= seen[0].at);
    assert_eq!(method(&seen[0]), "sendMessage");
    assert!(seen[1..].iter().all(|one| method(one) == "editMessageText"), "one message: {seen:#?}");
    let id = seen[1].json()["message_id"].clone();
    assert!(seen[1..].iter().all(|one| one.json()["message_id"] == id), "and always the same");
    for pair in seen.windows(2) {
        assert!(text(&pair[1]).starts_with(&text(&pair[0])), "the text only grows");
    }
    // The last one is the finished reply, which waits for nobody.
    let drafts = &seen[..seen.len() - 1];
    for pair in drafts.windows(2) {
        let pause = pair[1].at - pair[0].at;
        assert!(pause >= Duration::from_millis(900), "edits keep the platform's pace: {pause:?}");
    }
    println!("streaming: {} calls for one reply of {} bytes", seen.len(), text(seen.last().expect("one")).len());
}

#[test]
fn an_account_that_does_not_want_it_gets_one_message() {
    let telegram = Platform::telegram();
    let server = serve(&telegram, false, "24");
    ask(&server, 1);
    let seen = settled(&server, &telegram);
    assert_eq!(seen.iter().map(method).collect::<Vec<_>>(), ["sendMessage"]);
    assert!(!telegram.typing().is_empty());
}

#[test]
fn edits_do_not_pile_up_behind_a_rate_limit_and_the_finished_reply_arrives() {
    let telegram = Platform::start(|request, earlier| {
        // Every second call is told to wait.
        if request.path.ends_with("editMessageText") && earlier % 2 == 1 {
            let body =
                r#"{"ok":false,"error_code":429,"description":"Too Many Requests","parameters":{"retry_after":2}}"#;
            return Answer::new(429, body);
        }
        Answer::new(200, telegram_sent(earlier))
    });
    let server = serve(&telegram, true, REPLY_TOKENS);
    ask(&server, 1);
    let seen = settled(&server, &telegram);
    assert_eq!(seen.iter().filter(|one| method(one) == "sendMessage").count(), 1);
    let last = seen.last().expect("the finished reply");
    assert_eq!((method(last), last.answered), ("editMessageText", 200));
    for pair in seen.windows(2).filter(|pair| pair[0].answered == 429) {
        let pause = pair[1].at - pair[0].at;
        assert!(pause >= Duration::from_millis(1_900), "retry_after is kept: {pause:?}");
    }
}

#[test]
fn a_reply_whose_message_was_deleted_goes_out_as_a_message_of_its_own() {
    let telegram = Platform::start(|request, earlier| {
        if request.path.ends_with("editMessageText") {
            let body = r#"{"ok":false,"error_code":400,"description":"Bad Request: message to edit not found"}"#;
            return Answer::new(400, body);
        }
        Answer::new(200, telegram_sent(earlier))
    });
    let server = serve(&telegram, true, REPLY_TOKENS);
    ask(&server, 1);
    let seen = settled(&server, &telegram);
    let sent: Vec<&Seen> = seen.iter().filter(|one| method(one) == "sendMessage").collect();
    assert_eq!(sent.len(), 2, "{seen:#?}");
    assert!(text(sent[1]).starts_with(&text(sent[0])) && text(sent[1]).len() > text(sent[0]).len());
}

#[test]
fn a_process_that_starts_again_goes_on_in_the_message_that_it_had_begun() {
    let telegram = Platform::telegram();
    let mut server = serve(&telegram, true, REPLY_TOKENS);
    ask(&server, 1);
    // An edit proves that the id of the message has come back.
    telegram.wait("a growing message", 1, REPLY_WITHIN, |seen| method(seen) == "editMessageText");
    server.kill();
    server.restart();
    let seen = settled(&server, &telegram);
    assert_eq!(seen.iter().filter(|one| method(one) == "sendMessage").count(), 1, "{seen:#?}");
    let last = text(seen.last().expect("the finished reply"));
    assert!(last.starts_with(&text(&seen[0])), "the same words, finished");
}
