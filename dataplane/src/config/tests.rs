//! The rules of configuration, told by example.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use millrace_proto::channel::ChannelKind;

const MACHINE: Machine = Machine { memory_bytes: 16 << 30, cpus: 4 };

fn nothing(_: &str) -> Option<String> {
    None
}

fn with_file(text: &str, flags: &[(&'static str, &str)], env: &[(&str, &str)]) -> Result<Loaded, Trouble> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE_NAME);
    std::fs::write(&path, text).unwrap();
    let values = flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    let flags = Flags { config: Some(path), values };
    let lookup = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    load_from(&flags, &lookup, &MACHINE)
}

fn refused(text: &str) -> Trouble {
    with_file(text, &[], &[]).map(|loaded| loaded.config).expect_err(text)
}

#[test]
fn defaults_need_no_file_and_stay_on_loopback() {
    let flags = Flags { config: None, values: [("data", "/nowhere/at/all".to_owned())].into() };
    let loaded = load_from(&flags, &nothing, &MACHINE).unwrap();
    let config = &loaded.config;
    assert!(config.listen.ip().is_loopback() && config.metrics.ip().is_loopback());
    assert_eq!(config.models, Path::new("/nowhere/at/all/models"));
    assert_eq!((config.workers, config.engine.threads), (4, 4));
    assert_eq!(config.memory_limit, (16_u64 << 30) * 7 / 10);
    assert_eq!(config.engine.kv_mib as u64, ((16_u64 << 30) * 7 / 10 / 4) >> 20);
    assert!(config.channels.is_empty() && config.embeddings);
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let file = "workers = 3\nlog_level = \"debug\"\n[engine]\nqueue_max = 7\n";
    let loaded = with_file(file, &[("workers", "9")], &[("MAX_WORKERS", "5"), ("LOG_LEVEL", "warn")]).unwrap();
    assert_eq!(loaded.config.workers, 9);
    assert_eq!(loaded.config.log_level, "warn");
    assert_eq!(loaded.config.engine.queue_max, 7);
    let explained = |name| explain(&loaded, name).unwrap();
    assert!(explained("workers").contains("from:    flag --workers"), "{}", explained("workers"));
    assert!(explained("LOG_LEVEL").contains("from:    environment variable LOG_LEVEL"));
    assert!(explained("engine.queue_max").contains("millrace.toml line 4"), "{}", explained("engine.queue_max"));
    assert!(explained("io").contains("from:    default"));
    assert!(explained("engine.threads").starts_with("engine.threads = auto (4)\n"), "{}", explained("engine.threads"));
    assert_eq!(explain_all(&loaded).lines().count(), KEYS.len() + 1);
}

#[test]
fn an_empty_environment_variable_is_not_set() {
    assert_eq!(with_file("", &[], &[("MAX_WORKERS", "")]).unwrap().config.workers, 4);
}

#[test]
fn an_unknown_key_names_its_line_and_the_nearest_key() {
    let trouble = refused("io = \"auto\"\n\n[engine]\nkv_mb = 4\n");
    assert!(trouble.what.contains("`engine.kv_mb` in line 4"), "{trouble}");
    assert!(trouble.next.contains("engine.kv_mib"), "{trouble}");
    let loaded = with_file("", &[], &[]).unwrap();
    assert!(explain(&loaded, "engin.kv_mib").unwrap_err().next.contains("engine.kv_mib"));
}

#[test]
fn every_bad_value_names_itself_its_range_and_its_place() {
    for (file, part) in [
        ("workers = 0", "1 to 256"),
        ("workers = \"many\"", "1 to 256"),
        ("listen = \"example.org\"", "IP:PORT"),
        ("io = \"kqueue\"", "auto, uring, epoll"),
        ("memory_limit = \"1%\"\nmodel_load_timeout = \"0s\"", "from 1s to 3600s"),
        ("memory_limit = \"1MiB\"", "64 MiB"),
        ("retry_policy = \"often\"", "retry policy"),
        ("log_level = \"loud\"", "level"),
        ("storage_type = \"floppy\"", "rocksdb, memory"),
        ("model_endpoint = \"https://api.example.org\"", "own engine only"),
        ("cors_origins = [\"*\"]", "origin"),
        ("metrics = \"127.0.0.1:8080\"", "address of the API"),
        ("[engine]\ncontext_max = -5", "64 to 1048576"),
    ] {
        let trouble = refused(file);
        assert!(trouble.to_string().contains(part), "{file}: {trouble}");
        assert!(trouble.to_string().contains("line ") || trouble.what.contains("metrics"), "{file}: {trouble}");
    }
    assert!(refused("workers = [[1]]").what.contains("wrong kind"));
    assert!(refused("workers = = 1").what.contains("line 1 is not TOML"));
}

#[test]
fn the_first_file_says_what_the_defaults_say() {
    let text = first_file();
    let bare = with_file("", &[], &[]).unwrap().config;
    assert_eq!(format!("{:?}", with_file(&text, &[], &[]).unwrap().config), format!("{bare:?}"));
    // Every commented default, uncommented, is a valid line of the file with the same meaning.
    let live: String = text.lines().map(uncommented).collect();
    let live = live.split("[[channel]]").next().unwrap().to_owned();
    assert_eq!(format!("{:?}", with_file(&live, &[], &[]).unwrap().config), format!("{bare:?}"));
}

fn uncommented(line: &str) -> String {
    let setting = line.strip_prefix("# ").filter(|rest| {
        let name = rest.split(" = ").next().unwrap_or("");
        rest.starts_with("[[") || (rest.contains(" = ") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
    });
    format!("{}\n", setting.unwrap_or(line))
}

#[test]
fn channel_secrets_come_by_reference_and_never_show() {
    let file =
        "[[channel]]\nkind = \"telegram\"\nname = \"support\"\nsecrets = [\"env:HOOK\"]\nbot_token = \"env:BOT\"\n";
    let env = [("HOOK", "hook-secret-value"), ("BOT", "123:bot-secret-value")];
    let loaded = with_file(file, &[], &env).unwrap();
    assert_eq!(loaded.config.channels.len(), 1);
    let shown = format!("{:?} {}", loaded, explain_all(&loaded));
    assert!(!shown.contains("secret-value"), "{shown}");

    let literal = file.replace("env:BOT", "123:pasted-secret");
    let trouble = with_file(&literal, &[], &env).map(|loaded| loaded.config).unwrap_err();
    assert!(trouble.what.contains("literal secret") && trouble.what.contains("line 5"), "{trouble}");
    assert!(!trouble.to_string().contains("pasted"), "{trouble}");
    let missing = with_file(file, &[], &env[..1]).map(|loaded| loaded.config).unwrap_err();
    assert!(missing.why.contains("BOT is not set"), "{missing}");
}

#[test]
fn incomplete_doubled_and_misspelt_channels_are_refused() {
    let env = [("S", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
    let one = "[[channel]]\nkind = \"standard_webhooks\"\nname = \"a\"\nsecrets = [\"env:S\"]\nreply_url = \"http://127.0.0.1:1/r\"\n";
    assert!(with_file(one, &[], &env).is_ok());
    let refused = |text: &str| with_file(text, &[], &env).map(|loaded| loaded.config).expect_err(text).to_string();
    assert!(refused(&one.repeat(2)).contains("unique"));
    assert!(refused(&one.replace("standard_webhooks", "telegam")).contains("did you mean `telegram`"));
    assert!(refused(&one.replace("reply_url", "reply_ur")).contains("did you mean `reply_url`"));
    assert!(refused(&one.replace("reply_url = \"http://127.0.0.1:1/r\"", "")).contains("no `reply_url`"));
    assert!(refused(&one.replace("\"a\"", "\"../a\"")).contains("path"));
    assert!(refused(&one.replace("http://", "ftp://")).contains("http://"));
    assert!(refused("channel = 5").contains("[[channel]]"));
    assert!(refused(&format!("{one}keys_base = \"http://keys.example\"\n")).contains("plain HTTP"));
    assert!(refused(&format!("{one}keys_base = \"http://127.0.0.1.evil.example\"\n")).contains("plain HTTP"));
    assert!(with_file(&format!("{one}keys_base = \"http://127.0.0.1:9\"\n"), &[], &env).is_ok());
}

#[test]
fn every_kind_is_served_when_its_settings_are_there_and_refused_without_them() {
    let key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";
    let env = [("S", key)];
    for kind in ChannelKind::ALL {
        let mut text = format!("[[channel]]\nkind = \"{kind}\"\nname = \"a\"\n");
        for need in kind.spec().needs.iter().filter(|need| need.required) {
            let refused = with_file(&text, &[], &env).map(|loaded| loaded.config).expect_err(kind.as_str()).to_string();
            assert!(refused.contains("has no `"), "{kind}: {refused}");
            let value = match need.key {
                "secrets" | "encryption_keys" => "[\"env:S\"]",
                "verify_token" | "bot_token" | "app_secret" => "\"env:S\"",
                "topics" => "[\"arn:aws:sns:eu-west-1:1:t\"]",
                "public_url" | "api_base" | "reply_url" => "\"https://example.org\"",
                _ => "\"x\"",
            };
            text.push_str(&format!("{} = {value}\n", need.key));
        }
        assert_eq!(with_file(&text, &[], &env).map(|loaded| loaded.config.channels.len()).expect(&text), 1);
    }
}

#[test]
fn a_missing_file_that_was_asked_for_is_an_error() {
    let flags = Flags { config: Some("/nowhere/millrace.toml".into()), ..Flags::default() };
    let trouble = load_from(&flags, &nothing, &MACHINE).map(|loaded| loaded.config).unwrap_err();
    assert!(trouble.what.contains("/nowhere/millrace.toml"), "{trouble}");
}

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(text in "[\\PC\\n]{0,200}") {
        let _ = layers::parse(&text, Path::new("x.toml"));
    }

    #[test]
    fn no_value_of_a_known_key_makes_the_check_panic(index in 0..KEYS.len(), value in "\\PC{0,20}") {
        let flags = Flags { config: None, values: [(KEYS[index].name, value), ("io", "auto".into())].into() };
        let _ = load_from(&flags, &nothing, &MACHINE);
    }
}
