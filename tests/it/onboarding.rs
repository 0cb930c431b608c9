//! From nothing to a tested account by commands, and not one secret in clear on the way.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use millrace_tests::tools::{binary, printable, repository};
use millrace_tests::{Platform, Server, client, eventually};

use super::platforms::channel_test;

const REPLY_WITHIN: Duration = Duration::from_secs(120);

fn millrace(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Output {
    let mut child = Command::new(binary())
        .args(arguments)
        .envs(environment.iter().copied())
        .env_remove("MILLRACE_CONFIG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("it ends")
}

fn fine(output: Output) -> String {
    assert!(output.status.success(), "{}", printable(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Every file below a folder that holds a text; the folder of the key file and the store included.
fn holding(folder: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else if std::fs::read(&path).is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

#[test]
fn an_account_is_added_tried_served_and_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let telegram = Platform::telegram();
    let config = folder.path().join("millrace.toml");
    std::fs::write(&config, "# mine\nlog_level = \"info\"\n").expect("written");
    let (data, config_text) = (folder.path().join("data"), config.display().to_string());
    let data_text = data.display().to_string();
    let at = ["--config", &config_text, "--data", &data_text];
    let with = |first: &[&'static str]| -> Vec<String> {
        first.iter().map(|&word| word.to_owned()).chain(at.iter().map(|&word| word.to_owned())).collect()
    };
    let call = |first: &[&'static str], environment: &[(&str, &str)], input: &str| {
        let words = with(first);
        millrace(&words.iter().map(String::as_str).collect::<Vec<_>>(), environment, input)
    };
    // What is missing is named; what was given is kept.
    let missing = call(
        &["channel", "add", "telegram", "--name", "support", "--non-interactive", "--set", "secrets=new"],
        &[],
        "",
    );
    assert!(!missing.status.success() && printable(&missing).contains("bot_token"), "{}", printable(&missing));
    let literal =
        call(&["channel", "add", "telegram", "--non-interactive", "--set", "bot_token=12:hello-secret"], &[], "");
    assert!(!literal.status.success() && !printable(&literal).contains("hello-secret"), "{}", printable(&literal));

    // Questions, answered through a pipe: the address, then the token; the secret word is kept from before.
    let api = format!("api_base={}", telegram.url());
    let mut words = with(&["channel", "add", "telegram", "--name", "support"]);
    words.extend(["--set".to_owned(), api]);
    let output = millrace(
        &words.iter().map(String::as_str).collect::<Vec<_>>(),
        &[],
        "https://bot.example\n110201543:AAH-token-in-clear\n\n",
    );
    let asked = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(asked.contains("bot token of @BotFather") && asked.contains("kept from an earlier try"), "{asked}");
    assert!(asked.contains("a signed sample passes"), "{asked}");
    let steps = fine(output);
    assert!(steps.contains("Callback URL: https://bot.example/hooks/telegram/support"), "{steps}");
    assert!(steps.contains("setWebhook") && steps.contains("secret_token="), "{steps}");
    let word = steps.split("secret_token=").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a word");
    let text = std::fs::read_to_string(&config).expect("the file");
    assert!(text.starts_with("# mine\nlog_level") && text.contains("sealed:telegram/support/bot_token"), "{text}");
    for secret in ["AAH-token-in-clear", word] {
        assert_eq!(holding(folder.path(), secret), Vec::<String>::new());
    }
    let again = call(&["channel", "add", "telegram", "--name", "support", "--non-interactive"], &[], "");
    assert!(printable(&again).contains("already"), "{}", printable(&again));
    assert!(fine(call(&["channel", "ls"], &[], "")).contains("/hooks/telegram/support"));

    // The server opens the sealed secrets by itself, and the test goes through it to the platform.
    let server = Server::builder().data(&data).config(&text).env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "8").start();
    let told = channel_test(&server, &[], "telegram/support", &["--wait", "100"]);
    assert_eq!(told["reply"], "delivered", "{told}");
    let sent = telegram.wait("the reply", 1, REPLY_WITHIN, |one| one.path.ends_with("/sendMessage")).remove(0);
    assert_eq!(sent.path, "/bot110201543:AAH-token-in-clear/sendMessage");
    drop(server);

    fine(call(&["channel", "rm", "telegram/support"], &[], ""));
    let text = std::fs::read_to_string(&config).expect("the file");
    assert!(text.starts_with("# mine\nlog_level") && !text.contains("channel"), "{text}");
    let sealed = std::fs::read_to_string(data.join("channels.sealed")).expect("the file");
    assert!(sealed.lines().all(|line| line.starts_with("!key ")), "its secrets are forgotten: {sealed}");
}

#[test]
fn vectors_are_verified_by_the_program_and_their_failures_named() {
    let vectors = repository().join("tests/data/channel_vectors.json");
    let text = fine(millrace(&["channel", "verify", "--vectors", &vectors.display().to_string()], &[], ""));
    assert_eq!(text.lines().count(), 27, "{text}");
    assert!(text.lines().all(|line| line.ends_with(" passed, 0 failed")), "{text}");
    let folder = tempfile::tempdir().expect("a folder");
    let broken = folder.path().join("broken.json");
    let mut list: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&vectors).expect("the file")).expect("JSON");
    list[0]["body"] = "another body".into();
    for (content, expected) in [
        (serde_json::json!([list[0]]).to_string(), "official-slash-command"),
        ("[]".to_owned(), "holds no vectors"),
        ("{}".to_owned(), "holds no vectors"),
        ("nonsense".to_owned(), "holds no vectors"),
        (r#"[{"channel":"nothing","name":"x"}]"#.to_owned(), "unknown channel"),
    ] {
        std::fs::write(&broken, content).expect("written");
        let output = millrace(&["channel", "verify", "--vectors", &broken.display().to_string()], &[], "");
        assert!(!output.status.success() && printable(&output).contains(expected), "{}", printable(&output));
    }
    let costs = fine(millrace(
        &["channel", "verify", "--time", "--json", "--vectors", &vectors.display().to_string()],
        &[],
        "",
    ));
    assert_eq!(costs.lines().count(), 27, "{costs}");
}

/// A hundred secrets of all sorts of accounts are planted; they must stay where they were put.
#[test]
fn a_hundred_planted_secrets_show_nowhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let canary = |number: usize| format!("canary{number:03}zQ7pX9vL2mK4");
    let mut config = String::new();
    let mut environment: Vec<(String, String)> = Vec::new();
    // Twenty accounts with five secrets each: current and previous word, encryption key, token, app secret.
    for account in 0..20 {
        let names: Vec<String> = (0..5).map(|place| format!("CANARY_{account}_{place}")).collect();
        for (place, name) in names.iter().enumerate() {
            environment.push((name.clone(), canary(account * 5 + place)));
        }
        let kind = ["slack", "telegram", "line", "viber"][account % 4];
        config.push_str(&format!(
            "[[channel]]\nkind = \"{kind}\"\nname = \"a{account}\"\nsecrets = [\"env:{}\", \"env:{}\"]\nverify_token = \"env:{}\"\n\
             bot_token = \"env:{}\"\napp_secret = \"env:{}\"\nsender = \"Shop\"\napi_base = \"http://127.0.0.1:9\"\n\n",
            names[0], names[1], names[2], names[3], names[4]
        ));
    }
    let builder = Server::builder()
        .data(&data)
        .config(&config)
        .env("LOG_LEVEL", "debug")
        .env("RETRY_POLICY", "1s")
        .env("MILLRACE_AGENT_REPLY_TOKENS_MAX", "4");
    let server = environment.iter().fold(builder, |builder, (name, value)| builder.env(name, value)).start();
    let mut shown = String::new();
    for account in 0..20 {
        let kind = ["slack", "telegram", "line", "viber"][account % 4];
        // A good event, whose reply cannot be delivered, and bad ones that carry the right word in the wrong place.
        channel_test(&server, &environment, &format!("{kind}/a{account}"), &[]);
        let word = canary(account * 5);
        for headers in [[("X-Slack-Signature", word.as_str())], [("X-Telegram-Bot-Api-Secret-Token", "wrong")]] {
            let path = format!("/hooks/{kind}/a{account}?token={word}");
            let reply = client::request(server.http, "POST", &path, "", &headers, word.as_bytes()).expect("an answer");
            shown.push_str(&reply.text());
        }
    }
    // The deliveries fail at a port where nobody listens: their reasons are part of what is looked at.
    eventually("the replies are given up", REPLY_WITHIN, || {
        let dead = server.get("/v1/admin/outbox?limit=1000&state=dead").expect(200);
        (dead["data"].as_array().map_or(0, Vec::len) >= 20).then_some(())
    });
    for path in ["/v1/admin/outbox?limit=1000", "/v1/admin/status", "/v1/admin/keys", "/healthz", "/readyz"] {
        shown.push_str(&client::request(server.http, "GET", path, &server.key, &[], b"").expect("an answer").text());
    }
    shown.push_str(&client::request(server.metrics, "GET", "/metrics", "", &[], b"").expect("metrics").text());
    shown.push_str(&server.log());
    for command in [&["config", "explain"][..], &["channel", "ls"], &["doctor", "--json"]] {
        let config = server.config_file().display().to_string();
        let data = data.display().to_string();
        let words: Vec<&str> = command.iter().copied().chain(["--config", &config, "--data", &data]).collect();
        let variables: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        shown.push_str(&printable(&millrace(&words, &variables, "")));
    }
    drop(server);
    for number in 0..100 {
        let secret = canary(number);
        assert!(!shown.contains(&secret), "secret {number} is shown");
        let files = holding(&data, &secret);
        assert!(files.is_empty(), "secret {number} lies in {files:?}");
    }
}
