//! Any chat template is refused, or renders within its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use millrace_inference::{ChatTemplate, TemplateMessage};

fuzz_target!(|source: &str| {
    let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") else { return };
    let messages = [("system", "be brief"), ("user", "hi"), ("assistant", "hello"), ("user", "{{ bos }}")];
    let messages = messages.map(|(role, content)| TemplateMessage::new(role, content));
    let _ = (template.render(&messages, true), template.tool_format());
});
