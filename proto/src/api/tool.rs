//! Tools: what the model may call, what it called, and what came back.

use super::{ApiError, ChatMessage, ChatRole};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashSet;

/// Most tools of one request, as the official API bounds them.
const TOOLS_MAX: usize = 128;
/// Longest name of a function.
const TOOL_NAME_BYTES_MAX: usize = 64;

/// Something the model may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// `function`; nothing else exists.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function.
    #[serde(default)]
    pub function: ToolFunction,
}

/// A function that the model may call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ToolFunction {
    /// Letters, digits, `_` and `-`.
    pub name: String,
    /// What it does, for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of its arguments; absent: any object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Value>,
    /// Whether arguments must follow the schema. Calls that `tool_choice` demands always do.
    #[serde(default, skip_serializing)]
    pub strict: Option<bool>,
}

/// A call in a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call; the message with its result repeats it.
    pub id: String,
    /// `function`.
    #[serde(rename = "type", default = "function_kind")]
    pub kind: String,
    /// What is called.
    pub function: CalledFunction,
}

/// Name and arguments of a call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CalledFunction {
    /// Name of the function.
    pub name: String,
    /// The arguments as JSON text.
    pub arguments: String,
}

fn function_kind() -> String {
    "function".to_owned()
}

/// Whether and what the model has to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// No call.
    None,
    /// The model decides.
    Auto,
    /// At least one call.
    Required,
    /// This function.
    Named(String),
}

/// The tools of a request, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolUse<'r> {
    /// At least one.
    pub tools: &'r [Tool],
    /// Never [`ToolChoice::None`].
    pub choice: ToolChoice,
    /// Whether one answer may call several.
    pub parallel: bool,
}

/// Reads `tool_choice`; without it the model decides.
pub(super) fn choice(value: Option<&Value>) -> Result<ToolChoice, ApiError> {
    let wrong = || {
        let message =
            "tool_choice must be none, auto, required or {\"type\": \"function\", \"function\": {\"name\": ...}}.";
        ApiError::invalid_param("tool_choice", message)
    };
    match value {
        None => Ok(ToolChoice::Auto),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" => Ok(ToolChoice::Required),
            _ => Err(wrong()),
        },
        Some(value) => match (value["type"].as_str(), value["function"]["name"].as_str()) {
            (Some("function"), Some(name)) => Ok(ToolChoice::Named(name.to_owned())),
            _ => Err(wrong()),
        },
    }
}

/// Checks tools and choice against each other.
pub(super) fn check(tools: &[Tool], choice: &ToolChoice, choice_given: bool) -> Result<(), ApiError> {
    if tools.is_empty() && choice_given && *choice != ToolChoice::None {
        return Err(ApiError::invalid_param("tool_choice", "tool_choice needs tools, and there are none."));
    }
    if tools.len() > TOOLS_MAX {
        let message = format!("{} tools; at most {TOOLS_MAX} are accepted.", tools.len());
        return Err(ApiError::invalid_param("tools", message));
    }
    let mut names = HashSet::new();
    for Tool { kind, function } in tools {
        let wrong = |message: String| Err(ApiError::invalid_param("tools", message));
        if kind != "function" {
            return Err(ApiError::unsupported("tools", format!("A tool has the type {kind:?}; possible is function.")));
        }
        let name = &function.name;
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > TOOL_NAME_BYTES_MAX || !name.bytes().all(known) {
            return wrong(format!(
                "The tool name {name:?} must be 1 to {TOOL_NAME_BYTES_MAX} letters, digits, underscores or hyphens."
            ));
        }
        if !names.insert(name.as_str()) {
            return wrong(format!("Two tools are called {name:?}."));
        }
        if function.parameters.as_ref().is_some_and(|parameters| !parameters.is_object()) {
            return wrong(format!("The parameters of the tool {name:?} must be a JSON Schema (an object)."));
        }
    }
    match choice {
        ToolChoice::Named(name) if !names.contains(name.as_str()) => {
            Err(ApiError::invalid_param("tool_choice", format!("tool_choice names {name:?}, which is not in tools.")))
        }
        _ => Ok(()),
    }
}

/// Checks calls and results in the messages: a result says which earlier call it belongs to.
pub(super) fn check_messages(messages: &[ChatMessage]) -> Result<(), ApiError> {
    let mut called = HashSet::new();
    for (index, message) in messages.iter().enumerate() {
        let wrong = |field: &str, text: String| Err(ApiError::invalid_param(format!("messages.{index}.{field}"), text));
        if !message.tool_calls.is_empty() && message.role != ChatRole::Assistant {
            return wrong("tool_calls", "Only an assistant message can have tool_calls.".to_owned());
        }
        for call in &message.tool_calls {
            if call.kind != "function" || call.function.name.is_empty() {
                return wrong("tool_calls", "A tool call needs the type function and a function name.".to_owned());
            }
            let arguments = serde_json::from_str::<serde_json::Map<String, Value>>(&call.function.arguments);
            if let Err(error) = arguments {
                let name = &call.function.name;
                return wrong(
                    "tool_calls",
                    format!("The arguments of the call of {name:?} are no JSON object: {error}."),
                );
            }
            called.insert(call.id.as_str());
        }
        match (&message.tool_call_id, message.role) {
            (Some(id), ChatRole::Tool) if called.contains(id.as_str()) => {}
            (Some(id), ChatRole::Tool) => {
                return wrong("tool_call_id", format!("No earlier message has a tool call with the id {id:?}."));
            }
            (None, ChatRole::Tool) => {
                return wrong("tool_call_id", "A message of the role tool needs a tool_call_id.".to_owned());
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::ChatRequest;
    use super::*;
    use serde_json::json;

    fn request(extra: Value) -> Result<ChatRequest, ApiError> {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        ChatRequest::parse(body.to_string().as_bytes())
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "description": "d", "parameters": {"type": "object"}}})
    }

    #[test]
    fn tools_and_choices_are_read() {
        let with =
            |choice: Value| request(json!({"tools": [tool("a"), tool("b")], "tool_choice": choice})).expect("valid");
        assert_eq!(with(Value::Null).tool_use().expect("tools").choice, ToolChoice::Auto);
        assert_eq!(with(json!("required")).tool_use().expect("tools").choice, ToolChoice::Required);
        let named = json!({"type": "function", "function": {"name": "b"}});
        assert_eq!(with(named).tool_use().expect("tools").choice, ToolChoice::Named("b".into()));
        assert!(with(json!("none")).tool_use().is_none(), "what must not be called is not shown");
        assert!(request(json!({"tools": []})).expect("valid").tool_use().is_none());
        let single = request(json!({"tools": [tool("a")], "parallel_tool_calls": false})).expect("valid");
        assert!(!single.tool_use().expect("tools").parallel);
    }

    #[test]
    fn mistakes_name_their_parameter() {
        let cases = [
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"tools": [tool("a")], "tool_choice": "always"}), "tool_choice"),
            (
                json!({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "c"}}}),
                "tool_choice",
            ),
            (json!({"tools": [tool("a b")]}), "tools"),
            (json!({"tools": [tool("a"), tool("a")]}), "tools"),
            (json!({"tools": [{"type": "web_search"}]}), "tools"),
            (json!({"tools": [{"type": "custom", "function": {"name": "a"}}]}), "tools"),
            (json!({"tools": "a"}), "tools"),
            (json!({"tools": [tool("a")], "response_format": {"type": "json_object"}}), "response_format"),
            (json!({"tools": [tool("a")], "session": "s"}), "tools"),
            (json!({"guided_regex": "a", "session": "s"}), "guided_regex"),
            (json!({"functions": [{"name": "a"}]}), "functions"),
        ];
        for (body, param) in cases {
            let error = request(body.clone()).expect_err(&body.to_string());
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{body}: {error}");
        }
    }

    #[test]
    fn a_result_belongs_to_a_call() {
        let call = json!({"id": "call_1", "type": "function", "function": {"name": "a", "arguments": "{\"x\": 1}"}});
        let messages = |id: Value| {
            json!({"messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": null, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": id, "content": "3"},
            ]})
        };
        let read = request(messages(json!("call_1"))).expect("valid");
        assert_eq!(read.messages[1].tool_calls[0].function.name, "a");
        assert_eq!(read.messages[2].tool_call_id.as_deref(), Some("call_1"));
        for wrong in [json!("call_2"), Value::Null] {
            let error = request(messages(wrong)).expect_err("no such call");
            assert_eq!(error.param.as_deref(), Some("messages.2.tool_call_id"), "{error}");
        }
        let broken = json!({"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "a", "arguments": "{"}}]}]});
        assert_eq!(request(broken).expect_err("no JSON").param.as_deref(), Some("messages.0.tool_calls"));
    }
}
