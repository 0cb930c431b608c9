//! One person on two channels, by their own word only; groups that want to be answered in their own way.

use std::time::Duration;

use millrace_tests::{Platform, Seen, Server, client, eventually};
use serde_json::{Value, json};

use super::channels::{BOT_TOKEN, TELEGRAM_SECRET, WEBHOOK_SECRET, tell_telegram, tell_webhook, update, with_channels};
use super::recall::context;

const REPLY_WITHIN: Duration = Duration::from_secs(120);
/// The name of the Telegram user 4711 in the memory, and that of the customer of the web shop.
const ON_TELEGRAM: &str = "channel%3Atelegram%3A3%3Abot%3A4711";
const IN_THE_SHOP: &str = "channel%3Astandard_webhooks%3A4%3Ashop%3Acustomer";

fn say_in_shop(server: &Server, id: &str, text: &str) {
    let body =
        json!({"type": "message", "conversation": "private-1", "user": "customer", "private": true, "text": text});
    assert_eq!(tell_webhook(server, id, &body.to_string()).expect("an answer").status, 200);
}

fn say_on_telegram(server: &Server, id: u64, text: &str) {
    assert_eq!(tell_telegram(server, &update(id, 4711, text)).expect("an answer").status, 200);
}

fn last_text(platform: &Platform, count: usize) -> String {
    let sent = platform.wait("a reply", count, REPLY_WITHIN, |_| true);
    sent[count - 1].json()["text"].as_str().unwrap_or_default().to_owned()
}

/// The code in a message.
fn code(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let mut codes = words.filter(|word| word.len() == 9 && word.as_bytes()[4] == b'-');
    codes.next().unwrap_or_else(|| panic!("no code in {text:?}")).to_owned()
}

fn remembers(server: &Server, user: &str, question: &str, fact: &str) -> bool {
    context(server, &server.key, user, "looking", question).contains(fact)
}

#[test]
fn a_code_from_one_channel_typed_in_another_joins_two_memories_until_it_is_undone() {
    let (telegram, webhook) = (Platform::telegram(), Platform::webhook());
    let mut server = with_channels(&telegram, &webhook).start();
    say_on_telegram(&server, 1, "My sister's dog is called Bartholomew and he is afraid of thunder.");
    last_text(&telegram, 1);
    say_in_shop(&server, "m1", "Hello, this is the shop.");
    webhook.wait("a reply", 1, REPLY_WITHIN, |_| true);
    let (question, fact) = ("What is the name of my sister's dog?", "Bartholomew");
    assert!(remembers(&server, ON_TELEGRAM, question, fact));
    assert!(!remembers(&server, IN_THE_SHOP, question, fact), "two channels are two people");

    say_on_telegram(&server, 2, "/link");
    let shown = code(&last_text(&telegram, 2));
    // The platform repeats the command: no second code.
    say_on_telegram(&server, 2, "/link");
    say_in_shop(&server, "m2", "/link AAAA-AAAA");
    assert!(webhook.wait("a refusal", 2, REPLY_WITHIN, |_| true)[1].text().contains("not valid"));
    say_in_shop(&server, "m3", &format!("/link {}", shown.to_lowercase()));
    assert!(webhook.wait("the link", 3, REPLY_WITHIN, |_| true)[2].text().contains("Linked"));
    say_in_shop(&server, "m4", &format!("/link {shown}"));
    assert!(webhook.wait("a refusal", 4, REPLY_WITHIN, |_| true)[3].text().contains("not valid"), "used up");

    // What is said in the shop from now on is known on Telegram, also after a crash.
    server.kill();
    server.restart();
    say_in_shop(&server, "m5", "The spare key of the boat lies under the blue flower pot.");
    let (key_question, key_fact) = ("Where is the spare key of the boat?", "blue flower pot");
    eventually("one memory", REPLY_WITHIN, || remembers(&server, ON_TELEGRAM, key_question, key_fact).then_some(()));
    assert!(!remembers(&server, IN_THE_SHOP, key_question, key_fact), "and not a copy");

    say_in_shop(&server, "m6", "/unlink");
    // After a crash the platform may get an earlier reply once more: replies are told apart by what they say.
    webhook.wait("the end", 1, REPLY_WITHIN, |one| one.text().contains("ended"));
    say_in_shop(&server, "m7", "The alarm code of the warehouse is seven three nine.");
    let (alarm_question, alarm_fact) = ("What is the alarm code of the warehouse?", "seven three nine");
    let known = || remembers(&server, IN_THE_SHOP, alarm_question, alarm_fact).then_some(());
    eventually("its own memory again", REPLY_WITHIN, known);
    assert!(!remembers(&server, ON_TELEGRAM, alarm_question, alarm_fact), "unlinked again");
    assert_eq!(telegram.seen().len(), 2, "{:#?}", telegram.seen());
    assert!(!server.log().contains(&shown[..4]), "the log holds no code");
}

/// A group message of a Telegram user, with what Telegram marks in it.
fn group(update_id: u64, user: u64, text: &str) -> String {
    let kind = if text.starts_with('/') { "bot_command" } else { "mention" };
    let length = text.find(' ').unwrap_or(text.len());
    let marked = text.starts_with(['@', '/']);
    let entities: Vec<Value> =
        marked.then(|| json!({"type": kind, "offset": 0, "length": length})).into_iter().collect();
    json!({
        "update_id": update_id,
        "message": {
            "message_id": update_id, "date": 1, "text": text, "chat": {"id": -100, "type": "group", "title": "Team"},
            "entities": entities,
            "from": {"id": user, "is_bot": false, "first_name": "Test"},
        }
    })
    .to_string()
}

fn said(one: &Seen) -> String {
    one.json()["text"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn groups_are_answered_as_their_operators_wish() {
    let telegram = Platform::telegram();
    let config = format!(
        "[[channel]]\nkind = \"telegram\"\nname = \"bot\"\nsecrets = [\"env:TELEGRAM_SECRET\"]\nbot_token = \"env:TELEGRAM_BOT_TOKEN\"\n\
         stream = false\napi_base = \"{}\"\nbot_username = \"our_bot\"\noperators = [\"7\"]\nusers = [\"7\", \"8\", \"4711\"]\n",
        telegram.url()
    );
    let server = Server::builder()
        .config(&config)
        .env("TELEGRAM_SECRET", TELEGRAM_SECRET)
        .env("TELEGRAM_BOT_TOKEN", BOT_TOKEN)
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "8")
        .start();
    let tell = |body: String| {
        let headers = [("Content-Type", "application/json"), ("X-Telegram-Bot-Api-Secret-Token", TELEGRAM_SECRET)];
        let reply = client::request(server.http, "POST", "/hooks/telegram/bot", "", &headers, body.as_bytes());
        assert_eq!(reply.expect("an answer").status, 200);
    };
    let mut count = 0;
    let mut answer = |what: &str, expected: &str| {
        count += 1;
        let sent = telegram.wait(what, count, REPLY_WITHIN, |_| true);
        assert!(said(&sent[count - 1]).contains(expected), "{what}: {:?}", said(&sent[count - 1]));
    };
    // Nobody asked us, a stranger asks, and the command of somebody who may not give it.
    tell(group(1, 8, "Nice weather today."));
    tell(group(2, 99, "@our_bot who are you?"));
    tell(group(3, 8, "@our_bot /listen all"));
    answer("only operators", "Only an operator");
    tell(group(4, 8, "@our_bot /link"));
    answer("no code in a group", "private chat");
    tell(group(5, 7, "/listen@our_bot all"));
    answer("the operator may", "all");
    tell(group(6, 8, "Nice weather today."));
    answer("everything is answered now", "");
    tell(group(7, 7, "/listen@our_bot off"));
    answer("the last word", "off");
    tell(group(8, 8, "@our_bot are you there?"));
    tell(group(9, 7, "/listen@our_bot mentions"));
    answer("the way back", "mentions");
    tell(group(10, 8, "Nice weather today."));
    tell(update(11, 4711, "/whoami"));
    answer("a private chat", "not linked");
    assert_eq!(telegram.seen().len(), count, "{:#?}", telegram.seen().iter().map(said).collect::<Vec<String>>());
    let _: Value = server.get("/v1/admin/outbox").expect(200);
    assert!(!server.log().contains(WEBHOOK_SECRET) && !server.log().contains(BOT_TOKEN));
}
