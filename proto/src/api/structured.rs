//! What an answer has to be: `response_format` as OpenAI defines it, and the parameters that vLLM adds
//! (`structured_outputs`, and its older names `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`).

use super::ApiError;
use serde_json::{Map, Value};

/// Longest regular expression or grammar; the engine's own bound is the same.
const TEXT_BYTES_MAX: usize = 256 * 1024;

/// What an answer has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum OutputFormat {
    /// A JSON document under a JSON Schema.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A text that a regular expression matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a grammar in Lark syntax.
    Grammar(String),
}

/// An [`OutputFormat`] and the parameter that asked for it, for errors that show later.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedFormat {
    /// The format.
    pub format: OutputFormat,
    /// Name of the parameter.
    pub param: &'static str,
}

/// The parameters of a request that may say it.
pub(super) struct FormatFields<'r> {
    pub response_format: Option<&'r Value>,
    pub structured_outputs: Option<&'r Value>,
    pub guided_json: Option<&'r Value>,
    pub guided_regex: Option<&'r Value>,
    pub guided_choice: Option<&'r Value>,
    pub guided_grammar: Option<&'r Value>,
}

impl FormatFields<'_> {
    /// The one format that is asked for, if any.
    pub fn read(&self) -> Result<Option<AskedFormat>, ApiError> {
        let asked = [
            ("response_format", self.response_format),
            ("structured_outputs", self.structured_outputs),
            ("guided_json", self.guided_json),
            ("guided_regex", self.guided_regex),
            ("guided_choice", self.guided_choice),
            ("guided_grammar", self.guided_grammar),
        ];
        let mut found: Option<AskedFormat> = None;
        for (param, value) in asked {
            let Some(value) = value else { continue };
            let format = match param {
                "response_format" => response_format(value)?,
                "structured_outputs" => structured_outputs(value)?,
                _ => constraint(param, param.trim_start_matches("guided_"), value)?,
            };
            let Some(format) = format else { continue };
            if let Some(other) = &found {
                let message = format!("{} and {param} both say what the answer has to be.", other.param);
                return Err(ApiError::invalid_param(param, message).with_next_step("Send one of them."));
            }
            found = Some(AskedFormat { format, param });
        }
        Ok(found)
    }
}

fn response_format(value: &Value) -> Result<Option<OutputFormat>, ApiError> {
    const PARAM: &str = "response_format";
    let fields = object(PARAM, value)?;
    match fields.get("type").and_then(Value::as_str) {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(OutputFormat::JsonObject)),
        Some("json_schema") => {
            let inner = fields.get("json_schema").and_then(Value::as_object);
            let schema = inner.and_then(|inner| inner.get("schema")).filter(|schema| is_schema(schema));
            let missing =
                "response_format.json_schema.schema is missing; with type json_schema it must be a JSON Schema.";
            let schema = schema.ok_or_else(|| ApiError::invalid_param("response_format.json_schema", missing))?;
            Ok(Some(OutputFormat::JsonSchema(schema.clone())))
        }
        Some(other) => Err(ApiError::unsupported(
            PARAM,
            format!("response_format.type is {other:?}; it must be text, json_object or json_schema."),
        )),
        None => Err(ApiError::invalid_param(PARAM, "response_format.type must be text, json_object or json_schema.")),
    }
}

fn structured_outputs(value: &Value) -> Result<Option<OutputFormat>, ApiError> {
    const PARAM: &str = "structured_outputs";
    let mut found = None;
    for (name, value) in object(PARAM, value)?.iter().filter(|(_, value)| !value.is_null()) {
        let format = match (name.as_str(), value) {
            ("json" | "regex" | "choice" | "grammar", _) => constraint(PARAM, name, value)?,
            ("json_object", Value::Bool(wanted)) => wanted.then_some(OutputFormat::JsonObject),
            // How the constraint is carried out, which is this server's own business.
            ("disable_fallback", Value::Bool(_)) => None,
            _ => {
                let message = format!(
                    "structured_outputs.{name} is not supported; possible are json, regex, choice, grammar and json_object."
                );
                return Err(ApiError::unsupported(PARAM, message));
            }
        };
        if format.is_some() && found.is_some() {
            return Err(ApiError::invalid_param(PARAM, "structured_outputs has more than one constraint.")
                .with_next_step("Send one of them."));
        }
        found = found.or(format);
    }
    match found {
        Some(format) => Ok(Some(format)),
        None => Err(ApiError::invalid_param(PARAM, "structured_outputs has no constraint.")),
    }
}

/// One of vLLM's constraints by the name of its kind.
fn constraint(param: &'static str, kind: &str, value: &Value) -> Result<Option<OutputFormat>, ApiError> {
    let wrong =
        |wanted: &str| ApiError::bad_request("invalid_type", format!("{param} must be {wanted}.")).with_param(param);
    let text = |wanted: &str| match value {
        Value::String(text) if text.is_empty() || text.len() > TEXT_BYTES_MAX => {
            let message = format!("{param} has {} bytes; it must have 1 to {TEXT_BYTES_MAX}.", text.len());
            Err(ApiError::invalid_param(param, message))
        }
        Value::String(text) => Ok(text.clone()),
        _ => Err(wrong(wanted)),
    };
    let format = match kind {
        "json" => {
            // A schema may come as its own text.
            let schema = match value {
                Value::String(text) => serde_json::from_str(text).map_err(|error| {
                    ApiError::invalid_param(param, format!("The JSON Schema in {param} is not valid JSON: {error}."))
                })?,
                other => other.clone(),
            };
            if !is_schema(&schema) {
                return Err(wrong("a JSON Schema"));
            }
            OutputFormat::JsonSchema(schema)
        }
        "regex" => OutputFormat::Regex(text("a regular expression")?),
        "grammar" => {
            let grammar = text("a grammar")?;
            if grammar.contains("::=") {
                return Err(ApiError::unsupported(param, format!("{param} is written in EBNF or GBNF (`::=`)."))
                    .with_next_step(
                        "Write it in Lark syntax: `start: ...`, rules with `:`, regular expressions in /.../.",
                    ));
            }
            OutputFormat::Grammar(grammar)
        }
        "choice" => {
            let texts = value.as_array().ok_or_else(|| wrong("a list of strings"))?;
            let texts: Option<Vec<String>> = texts.iter().map(|text| text.as_str().map(str::to_owned)).collect();
            let texts =
                texts.filter(|texts| !texts.is_empty()).ok_or_else(|| wrong("a list of strings, at least one"))?;
            OutputFormat::Choice(texts)
        }
        _ => return Err(ApiError::unsupported(param, format!("{param} is not supported."))),
    };
    Ok(Some(format))
}

fn object<'v>(param: &str, value: &'v Value) -> Result<&'v Map<String, Value>, ApiError> {
    value
        .as_object()
        .ok_or_else(|| ApiError::bad_request("invalid_type", format!("{param} must be an object.")).with_param(param))
}

fn is_schema(value: &Value) -> bool {
    value.is_object() || value.is_boolean()
}

#[cfg(test)]
mod tests {
    use super::super::{ChatRequest, CompletionRequest};
    use super::*;
    use serde_json::json;

    fn read(extra: &Value) -> Result<Option<AskedFormat>, ApiError> {
        let mut body = json!({"messages": [{"role": "user", "content": "x"}], "prompt": "x"});
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        let text = body.to_string();
        let chat = ChatRequest::parse(text.as_bytes()).map(|request| request.output_format());
        let plain = CompletionRequest::parse(text.as_bytes()).map(|request| request.output_format());
        assert_eq!(chat, plain, "both endpoints read the same");
        chat?
    }

    #[test]
    fn each_way_to_ask_for_a_format_is_read() {
        let schema = json!({"type": "object"});
        let json_schema = json!({"name": "n", "strict": true, "schema": schema});
        let cases = [
            (
                json!({"response_format": {"type": "json_schema", "json_schema": json_schema}}),
                OutputFormat::JsonSchema(schema.clone()),
            ),
            (json!({"response_format": {"type": "json_object"}}), OutputFormat::JsonObject),
            (json!({"guided_json": schema}), OutputFormat::JsonSchema(schema.clone())),
            (json!({"guided_json": "{\"type\": \"object\"}"}), OutputFormat::JsonSchema(schema.clone())),
            (json!({"guided_regex": "a+"}), OutputFormat::Regex("a+".into())),
            (json!({"guided_choice": ["a", "b"]}), OutputFormat::Choice(vec!["a".into(), "b".into()])),
            (json!({"guided_grammar": "start: \"a\""}), OutputFormat::Grammar("start: \"a\"".into())),
            (json!({"structured_outputs": {"regex": "a+", "json": null}}), OutputFormat::Regex("a+".into())),
            (json!({"structured_outputs": {"json_object": true}}), OutputFormat::JsonObject),
        ];
        for (body, format) in cases {
            let asked = read(&body).unwrap_or_else(|error| panic!("{body}: {error}")).expect("a format");
            assert_eq!(asked.format, format, "{body}");
            assert!(body.get(asked.param).is_some(), "{body}");
        }
        assert_eq!(read(&json!({"response_format": {"type": "text"}, "guided_json": null})).unwrap(), None);
        assert_eq!(read(&json!({})).unwrap(), None);
    }

    #[test]
    fn what_is_not_possible_names_the_parameter() {
        let cases = [
            (json!({"response_format": "json"}), "response_format"),
            (json!({"response_format": {}}), "response_format"),
            (json!({"response_format": {"type": "structural_tag"}}), "response_format"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
                "response_format.json_schema",
            ),
            (json!({"guided_regex": 5}), "guided_regex"),
            (json!({"guided_regex": ""}), "guided_regex"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_json": 7}), "guided_json"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": [1]}), "guided_choice"),
            (json!({"guided_grammar": "root ::= \"a\""}), "guided_grammar"),
            (json!({"structured_outputs": {}}), "structured_outputs"),
            (json!({"structured_outputs": {"structural_tag": "x"}}), "structured_outputs"),
            (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), "structured_outputs"),
            (json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), "guided_regex"),
        ];
        for (body, param) in cases {
            let error = read(&body).expect_err(&body.to_string());
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{body}: {error}");
        }
    }
}
