//! The command line as a person or a script uses it.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use millrace_tests::Server;
use millrace_tests::tools::{CHAT_MODEL_FILE, binary, models, printable};
use serde_json::Value;

/// Runs the program away from any configuration of this machine.
fn millrace(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the program runs")
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("MILLRACE_")
            || ["MAX_WORKERS", "MEMORY_LIMIT", "RETRY_POLICY", "LOG_LEVEL"].contains(&text.as_ref())
        {
            command.env_remove(&name);
        }
    }
    command.env("HOME", std::env::temp_dir()).env_remove("XDG_DATA_HOME");
    command
}

fn ok(arguments: &[&str]) -> String {
    let output = millrace(arguments);
    assert!(output.status.success(), "millrace {arguments:?}: {}", printable(&output));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn fails(arguments: &[&str]) -> String {
    let output = millrace(arguments);
    assert!(!output.status.success(), "millrace {arguments:?} worked: {}", printable(&output));
    assert!(output.status.code().is_some_and(|code| code != 101), "millrace {arguments:?} ended by {}", output.status);
    printable(&output)
}

#[test]
fn help_names_every_command_and_every_variable() {
    let help = ok(&["--help"]);
    for word in ["serve", "chat", "model", "doctor", "bench", "tune", "status", "config", "completion"] {
        assert!(help.contains(word), "{word}: {help}");
    }
    let help = ok(&["serve", "--help"]);
    for word in [
        "--data",
        "--models",
        "--listen",
        "--metrics",
        "--ready-json",
        "MAX_WORKERS",
        "MEMORY_LIMIT",
        "RETRY_POLICY",
        "LOG_LEVEL",
        "MODEL_ENDPOINT",
        "STORAGE_TYPE",
        "MODEL_LOAD_TIMEOUT",
    ] {
        assert!(help.contains(word), "{word}: {help}");
    }
    assert!(ok(&["--version"]).starts_with("millrace "));
}

#[test]
fn bench_prints_a_line_of_json_for_each_measurement() {
    let models = models();
    let base = ["bench", "engine", "--models", &*models.to_string_lossy(), "--repeats", "1", "--steps", "2"]
        .map(str::to_owned);
    let with = |more: &[&'static str]| -> Vec<String> {
        base.iter().cloned().chain(more.iter().map(|&word| word.to_owned())).collect()
    };
    let run = |arguments: Vec<String>| ok(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let lines = run(with(&["--json", "--prefill", "17", "--decode", "1,3"]));
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let rows: Vec<_> = lines.iter().map(|line| (line["test"].as_str().unwrap_or(""), line["size"].as_u64())).collect();
    assert_eq!(rows, [("prefill", Some(17)), ("decode", Some(1)), ("decode", Some(3)), ("memory", None)]);
    for line in &lines[..3] {
        assert!(line["tokens_s"].as_f64().is_some_and(|rate| rate > 0.0), "{line}");
    }
    let table = run(with(&["--prefill", "16", "--decode", "1"]));
    assert!(table.contains("prefill 16") && table.contains("decode 1") && table.contains("GB/s"), "{table}");
    assert!(fails(&["bench", "engine", "--decode", "0"]).contains("1..=1024"));
    assert!(fails(&["bench", "engine", "--models", "/nowhere"]).contains("/nowhere"));
    let mut large: Vec<&str> = base.iter().map(String::as_str).collect();
    large.extend(["--decode", "1024", "--context", "65536", "--memory-limit", "1GiB"]);
    assert!(fails(&large).contains("MEMORY_LIMIT"));
}

#[test]
fn tune_proposes_settings_that_the_server_accepts() {
    let folder = tempfile::tempdir().expect("a folder");
    let (data, models) = (folder.path().to_string_lossy().into_owned(), models().to_string_lossy().into_owned());
    let text = ok(&["tune", "--models", &models, "--data", &data, "--memory-limit", "2GiB"]);
    let (arithmetic, settings) = text.split_once("For millrace.toml:").expect("both parts");
    for word in ["threads", "prefill_chunk", "sequences_max", "kv_mib"] {
        assert!(arithmetic.contains(word) && settings.contains(word), "{word}: {text}");
    }
    fs::write(folder.path().join("millrace.toml"), format!("memory_limit = \"2GiB\"\n{settings}")).expect("written");
    let explained = ok(&["config", "explain", "engine.sequences_max", "--data", &data, "--models", &models]);
    assert!(explained.contains("millrace.toml"), "{explained}");
    // The proposal fits the memory that it was made for: a plan that does not is refused at the start.
    let json = ok(&["tune", "--json", "--models", &models, "--data", &data, "--memory-limit", "2GiB"]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    let setting = |name: &str| json["engine"][name].as_u64().expect("a number").to_string();
    let server = Server::builder()
        .env("MEMORY_LIMIT", "2GiB")
        .env("MILLRACE_ENGINE_THREADS", &setting("threads"))
        .env("MILLRACE_ENGINE_PREFILL_CHUNK", &setting("prefill_chunk"))
        .env("MILLRACE_ENGINE_KV_MIB", &setting("kv_mib"))
        .env("MILLRACE_ENGINE_SEQUENCES_MAX", &setting("sequences_max"))
        .start();
    server.ask("Does it run?");
}

#[test]
fn doctor_reports_findings_that_a_script_can_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    let arguments = ["doctor", "--json", "--data", &data.to_string_lossy(), "--models", &models().to_string_lossy()]
        .map(str::to_owned);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = millrace(&arguments);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", printable(&output)));
    let text = report.to_string().to_lowercase();
    for word in ["io_uring", "memlock", "cpu", "model", "port", "disk"] {
        assert!(text.contains(word), "no finding about {word}: {report:#}");
    }
    assert!(matches!(output.status.code(), Some(0..=2)), "{}", output.status);

    let missing = folder.path().join("nowhere");
    let output =
        millrace(&["doctor", "--json", "--data", &data.to_string_lossy(), "--models", &missing.to_string_lossy()]);
    assert!(!output.status.success(), "missing models are a failure: {}", printable(&output));
    assert!(printable(&output).contains("nowhere"), "{}", printable(&output));
}

#[test]
fn models_are_added_listed_shown_and_removed() {
    let folder = tempfile::tempdir().expect("a folder");
    let into = folder.path().join("models");
    let into = into.to_string_lossy();
    let source = models().join(CHAT_MODEL_FILE);
    ok(&["model", "add", &source.to_string_lossy(), "--models", &into]);
    let list = ok(&["model", "ls", "--models", &into]);
    assert!(list.contains("SmolLM2-135M-Instruct"), "{list}");
    let name = list.split_whitespace().find(|word| word.contains("SmolLM2-135M-Instruct")).expect("a name").to_owned();
    let shown = ok(&["model", "show", &name, "--models", &into]);
    for word in ["llama", "8192", "49152", "30"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    ok(&["model", "rm", &name, "--models", &into]);
    assert!(!ok(&["model", "ls", "--models", &into]).contains("SmolLM2-135M"), "it is gone");
    assert!(source.is_file(), "the source is untouched");

    let bad = folder.path().join("bad.gguf");
    fs::File::create(&bad).and_then(|mut file| file.write_all(b"GGUF but not really")).expect("written");
    let text = fails(&["model", "add", &bad.to_string_lossy(), "--models", &into]);
    assert!(text.contains("bad.gguf"), "{text}");
    assert!(fails(&["model", "show", "no-such", "--models", &into]).contains("no-such"));
    assert!(fails(&["model", "rm", "../../etc/passwd", "--models", &into]).contains("passwd"));
}

#[test]
fn config_explain_tells_the_value_and_its_source() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("millrace.toml");
    fs::write(&file, "[engine]\nsequences_max = 17\nqueue_max = 11\n").expect("written");
    let config = file.to_string_lossy();
    let explain = |key: &str, env: Option<(&str, &str)>| {
        let mut command = command(&["config", "explain", key, "--config", &config]);
        if let Some((name, value)) = env {
            command.env(name, value);
        }
        let output = command.output().expect("the program runs");
        assert!(output.status.success(), "{}", printable(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert!(explain("engine.prefill_chunk", None).contains("default"));
    let from_file = explain("engine.sequences_max", None);
    assert!(from_file.contains("17") && from_file.contains("millrace.toml"), "{from_file}");
    let from_env = explain("engine.sequences_max", Some(("MILLRACE_ENGINE_SEQUENCES_MAX", "23")));
    assert!(from_env.contains("23") && from_env.contains("MILLRACE_ENGINE_SEQUENCES_MAX"), "{from_env}");
    let text = fails(&["config", "explain", "engine.sequence_max", "--config", &config]);
    assert!(text.contains("engine.sequences_max"), "{text}");
}

#[test]
fn a_mistyped_command_or_flag_is_met_with_the_nearest_one() {
    assert!(fails(&["srve"]).contains("serve"));
    assert!(fails(&["serve", "--lisen", "127.0.0.1:0"]).contains("--listen"));
}

#[test]
fn completion_scripts_are_valid_for_their_shell() {
    let script = ok(&["completion", "bash"]);
    assert!(script.contains("millrace"), "{script}");
    let mut child =
        Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash runs");
    child.stdin.take().expect("a pipe").write_all(script.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("bash ends");
    assert!(output.status.success(), "{}", printable(&output));
    for shell in ["zsh", "fish"] {
        assert!(ok(&["completion", shell]).contains("millrace"), "{shell}");
    }
}

#[test]
fn status_and_chat_talk_to_a_running_server() {
    let server = Server::start_default();
    let url = server.url();
    let run = |arguments: &[&str], input: &str| {
        let mut command = command(arguments);
        command
            .env("MILLRACE_API_KEY", &server.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "millrace {arguments:?}: {}", printable(&output));
        printable(&output)
    };
    let status = run(&["status", "--url", &url], "");
    assert!(status.to_lowercase().contains("ready"), "{status}");
    let talk = run(&["chat", "--url", &url, "--session", "terminal"], "Say hello to me.\n");
    assert!(!talk.trim().is_empty());
    let history = server.get("/v1/sessions/terminal/messages").text();
    assert!(history.contains("Say hello to me."), "{history}");
}

#[test]
fn status_of_a_server_that_is_not_there_says_so() {
    let text = fails(&["status", "--url", "http://127.0.0.1:9"]);
    assert!(text.contains("127.0.0.1:9"), "{text}");
}
