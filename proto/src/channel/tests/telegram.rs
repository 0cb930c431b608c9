//! Telegram: who is addressed in a group, and entity ranges that another system chose.

use super::*;

fn update(username: Option<&str>, update: &str) -> Result<Decoded, Reject> {
    let mut account = account(ChannelKind::Telegram, &["s3cret"]);
    account.bot_username = username.map(str::to_owned);
    post(&account, &[("X-Telegram-Bot-Api-Secret-Token", b"s3cret")], update.as_bytes())
}

/// A message in a group to `Corp_Bot`: the text that the agent reads, or why it reads nothing.
fn group(text: &str, entities: &str, extra: &str) -> Result<String, &'static str> {
    let body = format!(
        r#"{{"update_id":1,"message":{{"message_id":2,"from":{{"id":5}},"chat":{{"id":-9,"type":"group"}},"text":"{text}","entities":[{entities}]{extra}}}}}"#
    );
    match update(Some("Corp_Bot"), &body) {
        Ok(Decoded::Events { events, .. }) => {
            assert_eq!(events.len(), 1);
            if events[0].mentioned { Ok(events[0].text.clone()) } else { Err("not addressed to us") }
        }
        Ok(Decoded::Ignore { why, .. }) => Err(why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_group_message_needs_a_mention_of_us() {
    assert_eq!(group("hello", "", ""), Err("not addressed to us"));
    let mention = r#"{"type":"mention","offset":3,"length":9}"#;
    assert_eq!(group("🙂 @corp_bot hi", mention, ""), Ok("🙂  hi".into()));
    let other = r#"{"type":"mention","offset":0,"length":6}"#;
    assert_eq!(group("@other hi", other, ""), Err("not addressed to us"));
    let only = r#"{"type":"mention","offset":0,"length":9}"#;
    assert_eq!(group("@corp_bot", only, ""), Err("no text"));
    let by_name =
        r#"{"type":"text_mention","offset":0,"length":4,"user":{"id":1,"is_bot":true,"username":"corp_bot"}}"#;
    assert_eq!(group("Corp hi", by_name, ""), Ok("hi".into()));
}

#[test]
fn a_command_is_for_us_unless_it_names_another_bot() {
    let command = |length| format!(r#"{{"type":"bot_command","offset":0,"length":{length}}}"#);
    assert_eq!(group("/ask x", &command(4), ""), Ok("/ask x".into()));
    assert_eq!(group("/ask@corp_bot x", &command(13), ""), Ok("/ask x".into()));
    assert_eq!(group("/ask@other x", &command(10), ""), Err("not addressed to us"));
}

#[test]
fn a_reply_to_us_is_addressed_to_us() {
    let reply = |name: &str| format!(r#","reply_to_message":{{"from":{{"id":1,"is_bot":true,"username":"{name}"}}}}"#);
    assert_eq!(group("hello", "", &reply("corp_bot")), Ok("hello".into()));
    assert_eq!(group("hello", "", &reply("other_bot")), Err("not addressed to us"));
}

/// Ranges count UTF-16 units; one that does not lie on characters is skipped, not followed.
#[test]
fn ranges_that_do_not_lie_on_characters_mark_nothing() {
    for range in [
        r#""offset":99,"length":1"#,
        r#""offset":1,"length":18446744073709551615"#,
        r#""offset":0,"length":1"#,
        r#""offset":1,"length":1"#,
        r#""offset":2,"length":10"#,
    ] {
        let entity = format!(r#"{{"type":"mention",{range}}}"#);
        assert_eq!(group("🙂@corp_bot", &entity, ""), Err("not addressed to us"), "{range}");
    }
    let exact = r#"{"type":"mention","offset":2,"length":9}"#;
    assert_eq!(group("🙂@corp_bot", exact, ""), Ok("🙂".into()));
    // The same range twice takes the mention out once.
    assert_eq!(group("🙂@corp_bot", &format!("{exact},{exact}"), ""), Ok("🙂".into()));
}

proptest! {
    /// Updates of the right shape with any text and any entity range.
    #[test]
    fn random_updates_never_panic(text in ".{0,30}", offset in 0usize..40, length in 0usize..40, kind in "(mention|bot_command|text_mention)") {
        let text = Value::from(text).to_string();
        let body = format!(r#"{{"update_id":1,"message":{{"message_id":2,"chat":{{"id":1,"type":"private"}},"text":{text},"entities":[{{"type":"{kind}","offset":{offset},"length":{length}}}]}}}}"#);
        prop_assert!(update(Some("b"), &body).is_ok());
    }

    #[test]
    fn random_bodies_never_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = update(None, &String::from_utf8_lossy(&body));
    }
}
