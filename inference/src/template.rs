//! Chat templates: the Jinja text inside a model file turns messages into one prompt.
//!
//! A template is outside data and it is a program, so it runs with a budget of instructions and of output and
//! without access to files or other templates.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::gguf::Gguf;

/// Largest template source in bytes; the longest in use are about 20 KiB.
const SOURCE_BYTES_MAX: usize = 256 << 10;
/// Instructions per rendering. A message costs a few dozen; this is enough for tens of thousands of messages.
const FUEL: u64 = 4_000_000;
/// Nesting of macros and blocks.
const DEPTH_MAX: usize = 64;
/// The prompt may be this much longer than its messages.
const EXPANSION_BYTES_MAX: usize = 1 << 20;
/// Each message may bring this many bytes of frame around its text.
const FRAME_BYTES_MAX: usize = 4 << 10;

/// The format used when a model file brings no template: the one most models have learned.
const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}\
                      {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TemplateMessage {
    /// `system`, `user`, `assistant` or whatever else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl TemplateMessage {
    /// A message with this role and text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// How a template writes tool calls; see `CallSyntax` of the API for the forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// `<tool_call>{...}</tool_call>` (Hermes, Qwen).
    Tagged,
    /// A JSON object with `name` and `parameters` (Llama 3).
    Bare,
    /// `[TOOL_CALLS]` and a list (Mistral).
    List,
}

/// Why a template cannot be loaded or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is not a template this engine can run.
    #[error("the chat template of the model cannot be used: {0}")]
    Source(String),
    /// The template refused the messages by `raise_exception`.
    #[error("the chat template refuses these messages: {0}")]
    Refused(String),
    /// The template ran into an error, its instruction budget or its output limit.
    #[error("the chat template failed: {0}")]
    Render(String),
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    tool_format: Option<ToolFormat>,
    bos: String,
    eos: String,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("bos", &self.bos).field("eos", &self.eos).finish_non_exhaustive()
    }
}

/// Marks an error of `raise_exception`, so that it can be told from a broken template.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatTemplate {
    /// Compiles a template source; `bos` and `eos` are the texts of the model's tokens.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::Source(format!(
                "it has {} bytes, allowed are {SOURCE_BYTES_MAX}",
                source.len()
            )));
        }
        let mut environment = Environment::new();
        // The reference renders with these two set, and templates rely on it.
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(DEPTH_MAX);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| strftime(format, now_seconds()));
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned("chat", source.to_owned())
            .map_err(|error| TemplateError::Source(describe(&error)))?;
        let tool_format = tool_format(&environment, source);
        Ok(Self { environment, tool_format, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The template of a model file, or ChatML when it has none.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TemplateError> {
        let token = |field: &str| {
            let id = usize::try_from(gguf.u64(field).ok()?).ok()?;
            gguf.array("tokenizer.ggml.tokens").ok()?.strings()?.nth(id)
        };
        match gguf.str("tokenizer.chat_template") {
            Ok(source) => {
                let bos = token("tokenizer.ggml.bos_token_id").unwrap_or_default();
                let eos = token("tokenizer.ggml.eos_token_id").unwrap_or_default();
                Self::new(source, bos, eos)
            }
            Err(_) => Ok(Self::chatml()),
        }
    }

    /// The ChatML format, for models without a template of their own.
    pub fn chatml() -> Self {
        Self::new(CHATML, "<|im_start|>", "<|im_end|>").expect("the built-in template compiles")
    }

    /// The prompt for these messages; with `add_generation_prompt` it ends where the reply begins.
    pub fn render(&self, messages: &[TemplateMessage], add_generation_prompt: bool) -> Result<String, TemplateError> {
        let text: usize = messages.iter().map(|m| m.content.len() + m.role.len() + FRAME_BYTES_MAX).sum();
        self.render_values(Value::from_serialize(messages), Value::UNDEFINED, text, add_generation_prompt)
    }

    /// The prompt for messages that may have more fields (`tool_calls`, `tool_call_id`, `name`), with the tools that a
    /// template with a [`Self::tool_format`] shows. Both are in the API's shape, except that the arguments of calls are
    /// objects, as templates expect them.
    pub fn render_with_tools(
        &self,
        messages: &[serde_json::Value],
        tools: Option<&[serde_json::Value]>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let bytes = |values: &[serde_json::Value]| values.iter().map(|v| v.to_string().len() + FRAME_BYTES_MAX).sum();
        let text: usize = bytes(messages) + tools.map_or(0, bytes);
        let tools = tools.map_or(Value::UNDEFINED, Value::from_serialize);
        self.render_values(Value::from_serialize(messages), tools, text, add_generation_prompt)
    }

    /// How the template writes tool calls; `None` when it knows no tools, or writes them in an unknown form.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        self.tool_format
    }

    /// `text`: bytes of everything that is rendered, with its frames.
    fn render_values(
        &self,
        messages: Value,
        tools: Value,
        text: usize,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let template = self.environment.get_template("chat").map_err(|e| TemplateError::Source(describe(&e)))?;
        let mut out = Bounded { bytes: Vec::with_capacity(text.min(64 << 10)), max: 4 * text + EXPANSION_BYTES_MAX };
        let values = context! {
            messages,
            tools,
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
        };
        match template.render_captured_to(values, &mut out) {
            Ok(_) => {
                String::from_utf8(out.bytes).map_err(|_| TemplateError::Render("its output is not UTF-8".to_owned()))
            }
            Err(error) => Err(self.explain(&error)),
        }
    }

    fn explain(&self, error: &Error) -> TemplateError {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(cause) = source {
            if let Some(Raised(text)) = cause.downcast_ref() {
                return TemplateError::Refused(text.clone());
            }
            source = cause.source();
        }
        TemplateError::Render(describe(error))
    }
}

/// The form in which a template that looks at `tools` writes calls, known by the marks in its source.
fn tool_format(environment: &Environment<'_>, source: &str) -> Option<ToolFormat> {
    let template = environment.get_template("chat").ok()?;
    if !template.undeclared_variables(false).contains("tools") {
        return None;
    }
    let marks = [
        ("[TOOL_CALLS]", ToolFormat::List),
        ("<tool_call>", ToolFormat::Tagged),
        ("<|python_tag|>", ToolFormat::Bare),
        ("\"parameters\"", ToolFormat::Bare),
    ];
    marks.into_iter().find(|(mark, _)| source.contains(mark)).map(|(_, format)| format)
}

/// JSON as the reference writes it: a space behind `,` and `:`, or indented lines, and no escapes for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let fault = |error: serde_json::Error| {
        Error::new(ErrorKind::BadSerialization, "a value cannot be written as JSON").with_source(error)
    };
    let indent: Option<usize> = options.get("indent")?;
    // Other options of the reference's function change nothing that matters to a model.
    let _: (Option<bool>, Option<bool>) = (options.get("ensure_ascii")?, options.get("sort_keys")?);
    let mut out = Vec::new();
    match indent {
        Some(width) => {
            let blanks = vec![b' '; width.min(INDENT_MAX)];
            let mut writer = Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(&blanks));
            value.serialize(&mut writer).map_err(fault)?;
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)).map_err(fault)?,
    }
    let text = String::from_utf8(out).map_err(|_| Error::new(ErrorKind::BadSerialization, "JSON is not UTF-8"))?;
    Ok(Value::from_safe_string(text))
}

/// Widest indentation of `tojson`.
const INDENT_MAX: usize = 16;

/// One line with a space behind `,` and `:`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

fn raise_exception(text: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(text)))
}

fn describe(error: &Error) -> String {
    match (error.detail(), error.line()) {
        (Some(detail), Some(line)) => format!("{}: {detail} (line {line})", error.kind()),
        (None, Some(line)) => format!("{} (line {line})", error.kind()),
        _ => error.to_string(),
    }
}

/// A sink that fails instead of growing without end.
struct Bounded {
    bytes: Vec<u8>,
    max: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.max {
            return Err(io::Error::other(format!("the prompt grew beyond {} bytes", self.max)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The directives of `strftime` that templates use, in UTC; others stay as they are.
fn strftime(format: &str, unix_seconds: u64) -> String {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('e') => out.push_str(&format!("{day:2}")),
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{:02}", seconds / 3600)),
            Some('M') => out.push_str(&format!("{:02}", seconds / 60 % 60)),
            Some('S') => out.push_str(&format!("{:02}", seconds % 60)),
            Some('%') | None => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
        }
    }
    out
}

/// Year, month and day of a day number since 1970 (proleptic Gregorian calendar, years begin in March inside).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn user(text: &str) -> Vec<TemplateMessage> {
        vec![TemplateMessage::new("user", text)]
    }

    #[test]
    fn chatml_frames_every_message() {
        let prompt = ChatTemplate::chatml().render(&user("Hi"), true).expect("renders");
        assert_eq!(prompt, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    }

    #[test]
    fn python_methods_and_token_variables_work() {
        let source = "{{ bos_token }}{% for m in messages %}{{ m.role.upper() }}: {{ m['content'].strip() }}{{ eos_token }}{% endfor %}";
        let template = ChatTemplate::new(source, "<s>", "</s>").expect("compiles");
        assert_eq!(template.render(&user("  a "), false).expect("renders"), "<s>USER: a</s>");
    }

    #[test]
    fn raise_exception_reaches_the_caller_in_its_own_words() {
        let template = ChatTemplate::new("{{ raise_exception('roles must alternate') }}", "", "").expect("compiles");
        match template.render(&user("x"), true) {
            Err(TemplateError::Refused(text)) => assert_eq!(text, "roles must alternate"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_hostile_template_ends_by_its_budget() {
        let begun = Instant::now();
        let nested = "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        let endless = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        let wide = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
        for source in [nested, endless, wide] {
            let template = ChatTemplate::new(source, "", "").expect("compiles");
            let text = "y".repeat(100_000);
            assert!(matches!(template.render(&user(&text), true), Err(TemplateError::Render(_))), "{source}");
        }
        assert!(begun.elapsed().as_secs() < 20, "took {:?}", begun.elapsed());
    }

    #[test]
    fn tools_are_rendered_by_templates_that_know_them() {
        let source = "{% if tools %}{% for t in tools %}{{ t | tojson }}\n{% endfor %}{% endif %}{% for m in messages %}\
                      {{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function.arguments | tojson }}{% endfor %}\n{% endfor %}";
        let template = ChatTemplate::new(source, "", "").expect("compiles");
        assert_eq!(template.tool_format(), Some(ToolFormat::Tagged));
        let tools = [serde_json::json!({"name": "add", "about": "a < b & 'c' \u{e9}"})];
        let messages = [
            serde_json::json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"arguments": {"a": [1, 2]}}}]}),
        ];
        let prompt = template.render_with_tools(&messages, Some(&tools), false).expect("renders");
        let wanted = "{\"name\": \"add\", \"about\": \"a < b & 'c' \u{e9}\"}\nassistant:<tool_call>{\"a\": [1, 2]}";
        assert_eq!(prompt, wanted);
        assert_eq!(template.render_with_tools(&messages[..0], None, false).expect("renders"), "");
        assert_eq!(ChatTemplate::chatml().tool_format(), None);
    }

    #[test]
    fn a_broken_template_names_the_line() {
        let error = ChatTemplate::new("line\n{% for %}", "", "").expect_err("is broken").to_string();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn dates_are_written_as_strftime_writes_them() {
        // 2024-02-29 12:34:56 UTC was a Thursday.
        assert_eq!(strftime("%d %b %Y %A %H:%M:%S %j%%", 1_709_210_096), "29 Feb 2024 Thursday 12:34:56 %j%");
        assert_eq!(strftime("%Y-%m-%d", 0), "1970-01-01");
    }
}
