//! Tools of a request in the words of the model: which form its calls have, what it is told about the tools, and the
//! constraint that makes a demanded call valid by construction.
//!
//! A chat template that knows tools shows them itself. For all others the tools are described in the system message in
//! the form that Hermes models introduced and most small models have seen: signatures between `<tools>` tags, calls
//! between `<tool_call>` tags, results between `<tool_response>` tags in a user message.

use millrace_inference as engine;
use millrace_inference::tokenizer::TokenKind;
use millrace_inference::{Frame, Tokenizer, ToolFormat};
use millrace_proto::api::{AskedFormat, ChatMessage, ChatRole, OutputFormat, Tool, ToolCall, ToolChoice, ToolUse};
use millrace_proto::toolcall::CallSyntax;
use serde_json::{Map, Value, json};

/// Most calls of one answer under `tool_choice`: a small model would otherwise call until its reply is full.
const CALLS_MAX: usize = 8;

/// What a constraint comes from, for errors that show later.
#[derive(Clone)]
pub(super) struct Constrained {
    pub constraint: engine::Constraint,
    pub param: &'static str,
}

/// The asked format in the engine's words.
pub(super) fn constrained(asked: AskedFormat) -> Constrained {
    let constraint = match asked.format {
        OutputFormat::JsonSchema(schema) => engine::Constraint::JsonSchema(schema),
        OutputFormat::JsonObject => engine::Constraint::JsonObject,
        OutputFormat::Regex(regex) => engine::Constraint::Regex(regex),
        OutputFormat::Choice(texts) => engine::Constraint::Choice(texts),
        OutputFormat::Grammar(grammar) => engine::Constraint::Grammar(grammar),
    };
    Constrained { constraint, param: asked.param }
}

/// How the model writes calls.
pub(super) fn syntax(format: Option<ToolFormat>) -> CallSyntax {
    match format {
        Some(ToolFormat::Bare) => CallSyntax::Bare,
        Some(ToolFormat::List) => CallSyntax::List,
        Some(ToolFormat::Tagged) | None => CallSyntax::Tagged,
    }
}

/// The constraint of a call that the request demands; `None` when the model decides.
pub(super) fn demanded(used: &ToolUse<'_>, syntax: CallSyntax, tokenizer: &Tokenizer) -> Option<Constrained> {
    let (tools, most): (Vec<&Tool>, usize) = match &used.choice {
        ToolChoice::None | ToolChoice::Auto => return None,
        ToolChoice::Required => (used.tools.iter().collect(), if used.parallel { CALLS_MAX } else { 1 }),
        ToolChoice::Named(name) => (used.tools.iter().filter(|tool| tool.function.name == *name).collect(), 1),
    };
    let arguments = if syntax == CallSyntax::Bare { "parameters" } else { "arguments" };
    let frame = |before: &str, schema, after: &str, between: &str, documents_max| Frame {
        opening: None,
        before: before.to_owned(),
        schema,
        after: after.to_owned(),
        between: between.to_owned(),
        documents_max,
    };
    let schema = call_schema(&tools, arguments);
    let frame = match syntax {
        CallSyntax::Tagged => frame("<tool_call>\n", schema, "\n</tool_call>", "\n", most),
        CallSyntax::Bare => frame("", schema, "", "", 1),
        CallSyntax::List => {
            let mark = tokenizer.special_id("[TOOL_CALLS]").filter(|id| tokenizer.kind(*id) == TokenKind::Control);
            let before = if mark.is_some() { "" } else { "[TOOL_CALLS]" };
            Frame { opening: mark, ..frame(before, list_of(schema, most), "", "", 1) }
        }
    };
    Some(Constrained { constraint: engine::Constraint::Framed(frame), param: "tools" })
}

/// One object for each tool: its name, then arguments under its schema.
fn call_schema(tools: &[&Tool], arguments: &str) -> Value {
    let mut definitions = Map::new();
    let mut calls = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        let place = format!("tool{index}");
        let mut schema = tool.function.parameters.clone().unwrap_or_else(|| json!({"type": "object"}));
        // The schema moves below `$defs`, and so do the targets of its references.
        move_references(&mut schema, &format!("#/$defs/{place}"));
        if let Some(fields) = schema.as_object_mut() {
            // Arguments are always an object, whatever an empty schema would allow.
            fields.entry("type").or_insert_with(|| "object".into());
        }
        calls.push(json!({
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, arguments: {"$ref": format!("#/$defs/{place}")}},
            "required": ["name", arguments],
            "additionalProperties": false,
        }));
        definitions.insert(place, schema);
    }
    json!({"anyOf": calls, "$defs": definitions})
}

fn list_of(mut schema: Value, most: usize) -> Value {
    let definitions = schema.as_object_mut().and_then(|fields| fields.remove("$defs"));
    json!({"type": "array", "items": schema, "minItems": 1, "maxItems": most, "$defs": definitions})
}

fn move_references(schema: &mut Value, to: &str) {
    match schema {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(target) if name == "$ref" && target.starts_with('#') => {
                        *target = format!("{to}{}", &target[1..]);
                    }
                    other => move_references(other, to),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, to)),
        _ => {}
    }
}

/// A message with its calls in the shape that templates read: arguments are objects there.
pub(super) fn message_value(message: &ChatMessage) -> Value {
    let mut value = json!({"role": message.role.template_name(), "content": message.content});
    let fields = value.as_object_mut().expect("made as an object");
    if !message.tool_calls.is_empty() {
        let calls = message.tool_calls.iter().map(|call| {
            json!({"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments(call)}})
        });
        fields.insert("tool_calls".into(), calls.collect());
    }
    if let Some(id) = &message.tool_call_id {
        fields.insert("tool_call_id".into(), id.as_str().into());
    }
    if let Some(name) = &message.name {
        fields.insert("name".into(), name.as_str().into());
    }
    value
}

/// A validated call has an object here.
fn arguments(call: &ToolCall) -> Value {
    serde_json::from_str(&call.function.arguments).unwrap_or_else(|_| json!({}))
}

/// The messages in plain roles and texts, for a template that knows no tools.
pub(super) fn described(messages: &[ChatMessage], tools: &[Tool]) -> Vec<(&'static str, String)> {
    let mut plain: Vec<(&'static str, String)> = Vec::with_capacity(messages.len() + 1);
    let mut results_open = false;
    for message in messages {
        let is_result = message.role == ChatRole::Tool;
        if is_result {
            let result = format!("<tool_response>\n{}\n</tool_response>", message.content);
            match plain.last_mut() {
                // Results of one round are one message, since many templates want roles to alternate.
                Some((_, text)) if results_open => *text = format!("{text}\n{result}"),
                _ => plain.push(("user", result)),
            }
        } else {
            let mut text = message.content.clone();
            for call in &message.tool_calls {
                let written = json!({"name": call.function.name, "arguments": arguments(call)});
                let separator = if text.is_empty() { "" } else { "\n" };
                text = format!("{text}{separator}<tool_call>\n{written}\n</tool_call>");
            }
            plain.push((message.role.template_name(), text));
        }
        results_open = is_result;
    }
    if !tools.is_empty() {
        let description = description(tools);
        match plain.first_mut() {
            Some(("system", text)) => *text = format!("{text}\n\n{description}"),
            _ => plain.insert(0, ("system", description)),
        }
    }
    plain
}

fn description(tools: &[Tool]) -> String {
    let signatures: Vec<String> = tools.iter().map(|tool| json!(tool).to_string()).collect();
    format!(
        "# Tools\n\nYou can call functions to help the user. Their signatures stand between <tools> and </tools>:\n\
         <tools>\n{}\n</tools>\n\nTo call a function, write a JSON object with its name and arguments between \
         <tool_call> and </tool_call>:\n<tool_call>\n{{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n\
         </tool_call>",
        signatures.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_proto::api::ChatRequest;

    fn request(body: Value) -> ChatRequest {
        ChatRequest::parse(body.to_string().as_bytes()).expect("valid")
    }

    #[test]
    fn a_template_without_tools_gets_them_described() {
        let request = request(json!({
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "1 + 2?"},
                {"role": "assistant", "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": "{\"a\": 1}"}}]},
                {"role": "tool", "tool_call_id": "c1", "content": "3"},
                {"role": "tool", "tool_call_id": "c1", "content": "4"},
            ],
            "tools": [{"type": "function", "function": {"name": "add"}}],
        }));
        let plain = described(&request.messages, &request.tools);
        let roles: Vec<&str> = plain.iter().map(|(role, _)| *role).collect();
        assert_eq!(roles, ["system", "user", "assistant", "user"]);
        assert!(plain[0].1.starts_with("Be brief.\n\n# Tools"), "{}", plain[0].1);
        assert!(plain[0].1.contains("{\"type\":\"function\",\"function\":{\"name\":\"add\"}}"), "{}", plain[0].1);
        assert_eq!(plain[2].1, "<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":1}}\n</tool_call>");
        assert_eq!(
            plain[3].1, "<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>",
            "results of one round are one message"
        );
    }

    #[test]
    fn schemas_of_tools_keep_their_own_references() {
        let tool = |name: &str| Tool {
            kind: "function".into(),
            function: millrace_proto::api::ToolFunction {
                name: name.into(),
                parameters: Some(
                    json!({"properties": {"x": {"$ref": "#/$defs/x"}, "again": {"$ref": "#"}}, "$defs": {"x": {"type": "string"}}}),
                ),
                ..Default::default()
            },
        };
        let tools = [tool("a"), tool("b")];
        let schema = call_schema(&tools.iter().collect::<Vec<_>>(), "arguments");
        assert_eq!(schema["anyOf"][1]["properties"]["name"]["const"], "b");
        let reference = schema["anyOf"][1]["properties"]["arguments"]["$ref"].as_str().expect("a reference");
        let arguments = schema.pointer(&reference[1..]).expect("it has a target");
        assert_eq!(arguments["properties"]["again"]["$ref"], reference);
        let inner = arguments["properties"]["x"]["$ref"].as_str().expect("a reference");
        assert_eq!(schema.pointer(&inner[1..]), Some(&json!({"type": "string"})));
        let list = list_of(schema.clone(), 4);
        assert!(list.pointer(&inner[1..]).is_some(), "the targets stay at the root");
    }
}
