//! The HTTP client of the commands that talk to a running server.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::read_text;
use crate::config;
use crate::trouble::Trouble;

/// Which server, and with which key.
#[derive(Debug, Clone, Args)]
pub(super) struct ServerArgs {
    /// Address of the server, such as http://127.0.0.1:8080. Default: `listen` of the configuration
    #[arg(long, env = "MILLRACE_URL", value_name = "URL")]
    pub(super) url: Option<String>,
    /// File with the API key; without it the key is taken from the environment [env: MILLRACE_API_KEY]
    #[arg(long, value_name = "FILE")]
    pub(super) key_file: Option<PathBuf>,
}

/// Largest answer that a command reads.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// What a request carries.
enum Body<'a> {
    None,
    Json(&'a Value),
    Bytes(Vec<u8>),
}

/// A connection-less handle to one server.
pub(super) struct Client {
    pub(super) base: String,
    key: Option<String>,
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
}

impl Client {
    /// Settles address and key; sends nothing yet.
    pub(super) fn new(args: &ServerArgs) -> Result<Self, Trouble> {
        let base = match &args.url {
            Some(url) => url.trim_end_matches('/').to_owned(),
            None => {
                let listen = config::load(&config::Flags::default())?.config.listen;
                if listen.port() == 0 {
                    let why = "`listen` has port 0, so the real port is known only to the server's own output";
                    return Err(Trouble::new("the server's address is not known", why, "give it with --url"));
                }
                format!("http://{listen}")
            }
        };
        let from_environment = || std::env::var("MILLRACE_API_KEY").ok().filter(|key| !key.is_empty());
        let key = match &args.key_file {
            Some(path) => Some(read_text(path)?),
            None => from_environment(),
        };
        let internal = |error: String| Trouble::new("the HTTP client cannot start", error, "check `ulimit -n`");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| internal(error.to_string()))?;
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(5))
            .build()
            .map_err(|error| internal(error.to_string()))?;
        Ok(Self { base, key, runtime, http })
    }

    /// Is there a key to send?
    pub(super) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    /// The error that this command needs a key.
    pub(super) fn require_key(&self) -> Result<(), Trouble> {
        if self.has_key() {
            return Ok(());
        }
        let next = "set MILLRACE_API_KEY, or name a file with --key-file; the first start of the server printed a key";
        Err(Trouble::new("an API key is needed", "neither MILLRACE_API_KEY nor --key-file is given", next))
    }

    /// GET of a path that answers JSON.
    pub(super) fn get(&self, path: &str) -> Result<Value, Trouble> {
        self.json(reqwest::Method::GET, path, None)
    }

    /// POST of JSON that answers JSON.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value, Trouble> {
        self.json(reqwest::Method::POST, path, Some(body))
    }

    /// POST of a file that answers JSON.
    pub(super) fn upload(&self, path: &str, bytes: Vec<u8>) -> Result<Value, Trouble> {
        self.runtime.block_on(async {
            let response = self.send(reqwest::Method::POST, path, Body::Bytes(bytes)).await?;
            self.answer(path, response).await
        })
    }

    /// DELETE that answers JSON.
    pub(super) fn delete(&self, path: &str) -> Result<Value, Trouble> {
        self.json(reqwest::Method::DELETE, path, None)
    }

    /// GET of a plain page: status and text.
    pub(super) fn page(&self, path: &str) -> Result<(u16, String), Trouble> {
        self.runtime.block_on(async {
            let response = self.send(reqwest::Method::GET, path, Body::None).await?;
            let status = response.status().as_u16();
            Ok((status, String::from_utf8_lossy(&self.body(response).await?).into_owned()))
        })
    }

    /// A request as it stands, without the key: status and body of the answer.
    pub(super) fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<(u16, Vec<u8>), Trouble> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).expect("a method of a channel");
        self.runtime.block_on(async {
            let mut request = self.http.request(method, format!("{}{path}", self.base)).body(body);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = request.send().await.map_err(|error| self.broken(&error))?;
            let status = response.status().as_u16();
            Ok((status, self.body(response).await?))
        })
    }

    fn json(&self, method: reqwest::Method, path: &str, body: Option<&Value>) -> Result<Value, Trouble> {
        self.runtime.block_on(async {
            let response = self.send(method, path, body.map_or(Body::None, Body::Json)).await?;
            self.answer(path, response).await
        })
    }

    async fn answer(&self, path: &str, response: reqwest::Response) -> Result<Value, Trouble> {
        let status = response.status().as_u16();
        let bytes = self.body(response).await?;
        if !(200..300).contains(&status) {
            return Err(refusal(status, &bytes));
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|error| {
            let what = format!("{}{path} answered something that is not JSON", self.base);
            Trouble::new(what, error.to_string(), "is this address really a millrace server?")
        })
    }

    /// POST whose answer arrives as server-sent events; each event's data goes to `each` until it says stop.
    pub(super) fn stream(
        &self,
        path: &str,
        body: &Value,
        mut each: impl FnMut(&str) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        self.runtime.block_on(async {
            let mut response = self.send(reqwest::Method::POST, path, Body::Json(body)).await?;
            let status = response.status().as_u16();
            if status != 200 {
                return Err(refusal(status, &self.body(response).await?));
            }
            let mut lines = SseLines::default();
            while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(&error))? {
                lines.push(&chunk);
                while let Some(data) = lines.next_data() {
                    if data == "[DONE]" {
                        return Ok(());
                    }
                    each(&data)?;
                }
            }
            let why = "the connection closed before the end of the stream";
            Err(Trouble::new(
                "the answer is not complete",
                why,
                "ask again; `millrace status` shows the server's state",
            ))
        })
    }

    async fn send(&self, method: reqwest::Method, path: &str, body: Body<'_>) -> Result<reqwest::Response, Trouble> {
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        request = match body {
            Body::None => request,
            Body::Json(body) => request.header("content-type", "application/json").body(body.to_string()),
            Body::Bytes(bytes) => request.header("content-type", "application/octet-stream").body(bytes),
        };
        request.send().await.map_err(|error| self.broken(&error))
    }

    async fn body(&self, mut response: reqwest::Response) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(&error))? {
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                let why = format!("more than {ANSWER_BYTES_MAX} bytes came");
                return Err(Trouble::new("the answer is too large", why, "is this address really a millrace server?"));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn broken(&self, error: &reqwest::Error) -> Trouble {
        let mut why = String::new();
        let mut source: Option<&dyn std::error::Error> = Some(error);
        while let Some(cause) = source {
            // Only the innermost cause says something new; the outer ones repeat the URL.
            why = cause.to_string();
            source = cause.source();
        }
        let what = if error.is_connect() {
            format!("no server answers at {}", self.base)
        } else {
            format!("the exchange with {} failed", self.base)
        };
        Trouble::new(what, why, "start one with `millrace serve`, or give its address with --url")
    }
}

/// The trouble that an error answer of the API describes.
fn refusal(status: u16, body: &[u8]) -> Trouble {
    let json: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let text = |name: &str| json["error"][name].as_str().map(str::to_owned);
    let why = text("message").unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned());
    let next = text("next_step").unwrap_or_else(|| match status {
        401 | 403 => "check MILLRACE_API_KEY; `millrace key add` makes a key".into(),
        _ => "look at the server's log".into(),
    });
    Trouble::new(format!("the server refused the request with status {status}"), why, next)
}

/// Cuts a byte stream into the `data:` values of server-sent events.
#[derive(Default)]
struct SseLines {
    buffer: Vec<u8>,
}

impl SseLines {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next_data(&mut self) -> Option<String> {
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.trim_end().strip_prefix("data:") {
                return Some(data.trim_start().to_owned());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_the_bytes_are_cut() {
        let stream = b": hello\r\ndata: {\"a\":1}\r\n\r\ndata:two\n\ndata: [DONE]\n\n";
        for size in 1..stream.len() {
            let (mut lines, mut seen) = (SseLines::default(), Vec::new());
            for chunk in stream.chunks(size) {
                lines.push(chunk);
                while let Some(data) = lines.next_data() {
                    seen.push(data);
                }
            }
            assert_eq!(seen, ["{\"a\":1}", "two", "[DONE]"], "chunks of {size}");
        }
    }

    #[test]
    fn an_error_answer_becomes_what_why_next() {
        let trouble = refusal(429, br#"{"error":{"message":"too many","next_step":"wait 3 s"}}"#);
        assert!(trouble.what.contains("429") && trouble.why == "too many" && trouble.next == "wait 3 s");
        assert!(refusal(401, b"<html>").next.contains("MILLRACE_API_KEY"));
    }
}
