//! Tokenizer and chat template of the loaded model, as the agent sees them.
//!
//! A rendered template is read with its control tokens (`<|im_end|>` and the like), and the same strings
//! inside a message must stay plain text: otherwise anybody could end their message and speak as the
//! system. So a message that contains such a string is rendered as a placeholder, and its real text is
//! put in without control tokens.

use std::sync::Arc;

use millrace_agent::{PromptMessage, Prompter};
use millrace_inference::{ChatTemplate, TemplateMessage, Tokenizer};
use millrace_proto::api::{ChatMessage, ChatRole, Tool};
use millrace_proto::toolcall::CallSyntax;
use serde_json::{Value, json};

use super::tools::{described, message_value, syntax};

/// Marks the place of a text. Private-use characters: a text that contains them is handled as suspicious too.
const OPEN: char = '\u{F8F1}';
const CLOSE: char = '\u{F8F2}';

/// Makes prompts for the loaded model.
pub struct ModelPrompter {
    tokenizer: Arc<Tokenizer>,
    template: Arc<ChatTemplate>,
}

impl ModelPrompter {
    /// A prompter for a model.
    pub fn new(tokenizer: Arc<Tokenizer>, template: Arc<ChatTemplate>) -> Self {
        Self { tokenizer, template }
    }

    /// The tokens of (role, text) pairs under the template, ready for the assistant to speak.
    pub fn encode_roles<'a>(&self, messages: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Vec<u32>, String> {
        let mut hidden: Vec<String> = Vec::new();
        let shown: Vec<TemplateMessage> =
            messages.map(|(role, text)| TemplateMessage::new(role, self.shown(text, &mut hidden, false))).collect();
        let rendered = self.template.render(&shown, true).map_err(|error| error.to_string())?;
        self.restored(&rendered, &hidden)
    }

    /// The tokens of a conversation with tools, ready for the assistant to speak or to call.
    pub fn encode_chat(&self, messages: &[ChatMessage], tools: &[Tool]) -> Result<Vec<u32>, String> {
        let plain = tools.is_empty() && messages.iter().all(|m| m.tool_calls.is_empty() && m.role != ChatRole::Tool);
        if plain {
            return self.encode_roles(messages.iter().map(|m| (m.role.template_name(), m.content.as_str())));
        }
        if self.template.tool_format().is_none() {
            let messages = described(messages, tools);
            return self.encode_roles(messages.iter().map(|(role, text)| (*role, text.as_str())));
        }
        let mut hidden = Vec::new();
        let mut hide = |mut value: Value, keep: &[&str]| {
            self.hide(&mut value, keep, &mut hidden);
            value
        };
        let messages: Vec<Value> = messages.iter().map(|m| hide(message_value(m), &["role"])).collect();
        let tools: Vec<Value> = tools.iter().map(|tool| hide(json!(tool), &["type"])).collect();
        let shown = (!tools.is_empty()).then_some(tools.as_slice());
        let rendered = self.template.render_with_tools(&messages, shown, true).map_err(|error| error.to_string())?;
        self.restored(&rendered, &hidden)
    }

    /// How the model writes calls.
    pub fn call_syntax(&self) -> CallSyntax {
        syntax(self.template.tool_format())
    }

    /// A text as the template gets it. `escaped`: it stands in a value that templates write as JSON.
    fn shown(&self, text: &str, hidden: &mut Vec<String>, escaped: bool) -> String {
        if !self.is_suspicious(text) {
            return text.to_owned();
        }
        let quoted = Value::from(text).to_string();
        hidden.push(if escaped { quoted[1..quoted.len() - 1].to_owned() } else { text.to_owned() });
        format!("{OPEN}{}{CLOSE}", hidden.len() - 1)
    }

    /// Replaces suspicious texts and names in a message or a tool. A message's own `content` is written as it is.
    fn hide(&self, value: &mut Value, keep: &[&str], hidden: &mut Vec<String>) {
        match value {
            Value::String(text) => *text = self.shown(text, hidden, true),
            Value::Array(items) => items.iter_mut().for_each(|item| self.hide(item, &[], hidden)),
            Value::Object(fields) => {
                let is_message = keep.contains(&"role");
                for (name, mut field) in std::mem::take(fields) {
                    match &mut field {
                        Value::String(text) if is_message && name == "content" => {
                            *text = self.shown(text, hidden, false)
                        }
                        _ if keep.contains(&name.as_str()) => {}
                        other => self.hide(other, &[], hidden),
                    }
                    fields.insert(self.shown(&name, hidden, true), field);
                }
            }
            _ => {}
        }
    }

    /// The tokens of a rendered prompt with the hidden texts put in, these without control tokens.
    fn restored(&self, rendered: &str, hidden: &[String]) -> Result<Vec<u32>, String> {
        if hidden.is_empty() {
            return Ok(self.tokenizer.encode(rendered, true));
        }
        let mut tokens = Vec::with_capacity(rendered.len() / 3);
        let mut rest = rendered;
        while let Some((before, after)) = rest.split_once(OPEN) {
            self.tokenizer.append(before, true, &mut tokens);
            let (number, after) = after.split_once(CLOSE).ok_or("the chat template broke a message apart")?;
            let text =
                number.parse().ok().and_then(|n: usize| hidden.get(n)).ok_or("the chat template changed a message")?;
            self.tokenizer.append(text, false, &mut tokens);
            rest = after;
        }
        self.tokenizer.append(rest, true, &mut tokens);
        Ok(tokens)
    }

    /// A plain prompt, as `/v1/completions` takes it.
    pub fn encode_plain(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        if self.tokenizer.adds_bos() {
            tokens.extend(self.tokenizer.bos());
        }
        self.tokenizer.append(text, false, &mut tokens);
        tokens
    }

    /// The bytes of a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        self.tokenizer.token_bytes(id).to_vec()
    }

    /// Control tokens are written with `<` or `[` in all vocabularies that are in use; only a text with one
    /// of these is worth the comparison.
    fn is_suspicious(&self, text: &str) -> bool {
        if text.contains([OPEN, CLOSE]) {
            return true;
        }
        text.contains(['<', '[']) && self.tokenizer.encode(text, true) != self.tokenizer.encode(text, false)
    }
}

impl Prompter for ModelPrompter {
    fn count(&self, text: &str) -> u32 {
        u32::try_from(self.tokenizer.encode(text, false).len()).unwrap_or(u32::MAX)
    }

    fn encode(&self, messages: &[PromptMessage]) -> Result<Vec<u32>, String> {
        self.encode_roles(messages.iter().map(|m| (m.role.as_str(), m.content.as_str())))
    }
}
