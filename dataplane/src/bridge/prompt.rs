//! Tokenizer and chat template of the loaded model, as the agent sees them.
//!
//! A rendered template is read with its control tokens (`<|im_end|>` and the like), and the same strings
//! inside a message must stay plain text: otherwise anybody could end their message and speak as the
//! system. So a message that contains such a string is rendered as a placeholder, and its real text is
//! put in without control tokens.

use std::sync::Arc;

use millrace_agent::{PromptMessage, Prompter};
use millrace_inference::{ChatTemplate, TemplateMessage, Tokenizer};

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
        let mut hidden: Vec<&str> = Vec::new();
        let mut shown = Vec::new();
        for (role, text) in messages {
            if self.is_suspicious(text) {
                shown.push(TemplateMessage::new(role, format!("{OPEN}{}{CLOSE}", hidden.len())));
                hidden.push(text);
            } else {
                shown.push(TemplateMessage::new(role, text));
            }
        }
        let rendered = self.template.render(&shown, true).map_err(|error| error.to_string())?;
        if hidden.is_empty() {
            return Ok(self.tokenizer.encode(&rendered, true));
        }
        let mut tokens = Vec::with_capacity(rendered.len() / 3);
        let mut rest = rendered.as_str();
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
