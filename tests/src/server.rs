//! Starts, observes and ends a real Millrace server.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::client::{self, Reply, Stream};
use crate::tools;

/// A server is ready within this, also while the machine compiles something else.
pub const READY_WITHIN: Duration = Duration::from_secs(60);

/// How a server is to be started.
#[derive(Debug, Clone)]
pub struct ServerBuilder {
    config: String,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    launcher: Vec<String>,
    data: Option<PathBuf>,
    models: Option<PathBuf>,
    workers: usize,
}

impl Default for ServerBuilder {
    fn default() -> Self {
        // Two reactors on every machine, so that messages cross shards in every test.
        Self {
            config: String::new(),
            environment: Vec::new(),
            arguments: Vec::new(),
            launcher: Vec::new(),
            data: None,
            models: None,
            workers: 2,
        }
    }
}

impl ServerBuilder {
    /// Adds text to the configuration file.
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// Sets an environment variable of the server.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Adds a command-line argument.
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Starts the server through another program, which gets the server's path and arguments after its own.
    pub fn launcher(mut self, words: &[&str]) -> Self {
        self.launcher = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Uses this data folder instead of a temporary one.
    pub fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    /// Uses this models folder instead of the default one.
    pub fn models(mut self, folder: &Path) -> Self {
        self.models = Some(folder.to_owned());
        self
    }

    /// Sets the number of reactors.
    pub fn workers(mut self, count: usize) -> Self {
        self.workers = count;
        self
    }

    /// Starts the server and waits until it is ready.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start(self) -> Server {
        let server = self.start_with_key("");
        assert!(!server.key.is_empty(), "the first start prints an API key: {}", server.ready);
        server
    }

    /// Starts the server on a data folder that knows this API key already.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_with_key(self, key: &str) -> Server {
        let scratch = tempfile::Builder::new().prefix("millrace-test-").tempdir().expect("a temporary folder");
        let mut server = Server {
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics: SocketAddr::from(([127, 0, 0, 1], 0)),
            key: key.to_owned(),
            ready: Value::Null,
            started_in: Duration::ZERO,
            child: None,
            builder: self,
            scratch,
        };
        server.start().expect("the server starts");
        server
    }

    /// Starts a server that must refuse to run; returns its exit status and everything it printed.
    ///
    /// # Panics
    /// When it becomes ready or does not end in time.
    pub fn refuse(self) -> (ExitStatus, String) {
        let scratch = tempfile::Builder::new().prefix("millrace-test-").tempdir().expect("a temporary folder");
        let (mut child, lines) = self.spawn(scratch.path()).expect("the program runs");
        let status = tools::eventually("a refused start ends", READY_WITHIN, || {
            if let Ok(line) = lines.try_recv()
                && line.starts_with('{')
            {
                let _ = child.kill();
                panic!("the server became ready although it should have refused: {line}");
            }
            child.try_wait().expect("the child can be waited for")
        });
        let mut text: String = lines.iter().collect::<Vec<_>>().join("\n");
        text.push_str(&log_of(scratch.path()));
        (status, text)
    }

    fn spawn(&self, scratch: &Path) -> Result<(Child, Receiver<String>)> {
        let config = scratch.join("millrace.toml");
        std::fs::write(&config, &self.config)?;
        let log = File::options().create(true).append(true).open(scratch.join("log"))?;
        let data = self.data.clone().unwrap_or_else(|| scratch.join("data"));
        let models = self.models.clone().unwrap_or_else(tools::models);
        let mut command = match self.launcher.split_first() {
            None => Command::new(tools::binary()),
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(tools::binary());
                command
            }
        };
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--ready-json"])
            .arg("--config")
            .arg(config)
            .arg("--data")
            .arg(data)
            .arg("--models")
            .arg(models)
            .args(&self.arguments)
            .env("MAX_WORKERS", self.workers.to_string());
        // How often a test asks while it waits depends on the machine: only tests about rates meet one.
        if !self.config.contains("requests_per_minute") {
            command.env("MILLRACE_LIMITS_REQUESTS_PER_MINUTE", "100000");
        }
        command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().with_context(|| format!("start {}", tools::binary().display()))?;
        let stdout = child.stdout.take().context("the child's output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    // Nobody listens any more; keep reading so that the server never blocks on a full pipe.
                }
            }
        });
        Ok((child, lines))
    }
}

/// A running server. Dropping it kills the process and removes its data.
pub struct Server {
    /// The public address.
    pub http: SocketAddr,
    /// The address of metrics and health.
    pub metrics: SocketAddr,
    /// The admin key that the first start printed.
    pub key: String,
    /// The line that `--ready-json` printed.
    pub ready: Value,
    /// From the start of the process to that line.
    pub started_in: Duration,
    child: Option<Child>,
    builder: ServerBuilder,
    scratch: tempfile::TempDir,
}

impl Server {
    /// A builder with the defaults of a test.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::default()
    }

    /// A server with the default configuration.
    pub fn start_default() -> Self {
        ServerBuilder::default().start()
    }

    fn start(&mut self) -> Result<()> {
        let began = Instant::now();
        let (mut child, lines) = self.builder.spawn(self.scratch.path())?;
        let deadline = began + READY_WITHIN;
        let ready = loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.trim_start().starts_with('{') => break line,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    let _ = child.kill();
                    bail!("not ready within {READY_WITHIN:?}:\n{}", self.log());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = child.wait()?;
                    bail!("ended with {status} before it was ready:\n{}", self.log());
                }
            }
        };
        self.started_in = began.elapsed();
        self.child = Some(child);
        self.ready = serde_json::from_str(&ready).with_context(|| format!("the ready line is not JSON: {ready}"))?;
        self.http = address(&self.ready["http"])?;
        self.metrics = address(&self.ready["metrics"])?;
        if let Some(key) = self.ready["api_key"].as_str() {
            self.key = key.to_owned();
        }
        Ok(())
    }

    /// Starts the server again on the same data after it ended.
    ///
    /// # Panics
    /// When it runs, or does not become ready.
    pub fn restart(&mut self) {
        assert!(self.child.is_none(), "the server still runs");
        self.start().expect("the server starts again");
    }

    /// Replaces the start options for the next start.
    pub fn reconfigure(&mut self, change: impl FnOnce(ServerBuilder) -> ServerBuilder) {
        self.builder = change(self.builder.clone());
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        self.builder.data.clone().unwrap_or_else(|| self.scratch.path().join("data"))
    }

    /// The configuration file it was started with.
    pub fn config_file(&self) -> PathBuf {
        self.scratch.path().join("millrace.toml")
    }

    /// Everything it has logged.
    pub fn log(&self) -> String {
        log_of(self.scratch.path())
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the server runs").id()
    }

    /// Ends it as a crash does (SIGKILL), and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]).status();
        assert!(status.is_ok_and(|status| status.success()), "kill -{name}");
    }

    /// Waits for the process to end by itself.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().expect("the server runs");
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait().expect("the child can be waited for") {
                return status;
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the server did not end within {limit:?}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether the process still runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// GET with the admin key.
    ///
    /// # Panics
    /// When no answer comes.
    pub fn get(&self, path: &str) -> Reply {
        client::request(self.http, "GET", path, &self.key, &[], b"").expect("an answer")
    }

    /// POST of JSON with the admin key.
    ///
    /// # Panics
    /// When no answer comes.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_as(&self.key, path, body)
    }

    /// POST of JSON with any key.
    ///
    /// # Panics
    /// When no answer comes.
    pub fn post_as(&self, key: &str, path: &str, body: &Value) -> Reply {
        let headers = [("Content-Type", "application/json")];
        client::request(self.http, "POST", path, key, &headers, body.to_string().as_bytes()).expect("an answer")
    }

    /// Opens a stream with the admin key.
    ///
    /// # Panics
    /// When the answer is not a stream.
    pub fn stream(&self, path: &str, body: &Value) -> Stream {
        Stream::open(self.http, path, &self.key, body).expect("a stream")
    }

    /// The model's answer to one short chat, without a session.
    pub fn ask(&self, text: &str) -> Value {
        self.post("/v1/chat/completions", &chat(text, 8)).expect(200)
    }

    /// The sum over all series of a metric; `None` when there is none.
    ///
    /// # Panics
    /// When the metrics port does not answer.
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.try_metric(name).expect("metrics")
    }

    /// The same of a server that may be gone.
    pub fn try_metric(&self, name: &str) -> Result<Option<f64>> {
        let text = client::request(self.metrics, "GET", "/metrics", "", &[], b"")?.text();
        let of_this_name = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let values: Vec<f64> = of_this_name.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        Ok((!values.is_empty()).then(|| values.iter().sum()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the end of the server's log ---");
            for line in &lines[lines.len().saturating_sub(60)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// The body of a short greedy chat.
pub fn chat(text: &str, max_tokens: u32) -> Value {
    json!({"model": "default", "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "temperature": 0})
}

fn log_of(scratch: &Path) -> String {
    std::fs::read(scratch.join("log")).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// An address from the ready line: one text or a list of them.
fn address(value: &Value) -> Result<SocketAddr> {
    let text = value.as_str().or_else(|| value[0].as_str()).with_context(|| format!("no address in {value}"))?;
    text.trim_start_matches("http://").trim_end_matches('/').parse().with_context(|| format!("not an address: {text}"))
}
