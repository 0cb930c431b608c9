//! What is refused before a constraint reaches the compiler, whose own limits do not cover the depth of its recursion
//! and the cases that combined alternatives multiply to.

use std::collections::HashMap;

use serde_json::Value;

use super::{CHOICES_MAX, CONSTRAINT_BYTES_MAX, Constraint, ConstraintError};

/// Deepest nesting of schemas and grammars. Schemas in use stay below 30; the compiler's recursion at this depth needs
/// a part of the stack that `workshop.rs` gives it.
pub(super) const DEPTH_MAX: usize = 96;
/// Most cases that alternatives may multiply to, and most nodes of a schema with its references written out inside
/// combinations. The compiler forms them one by one.
pub(super) const CASES_MAX: u64 = 4_096;

/// Checks size and shape.
pub(super) fn check(constraint: &Constraint) -> Result<(), ConstraintError> {
    let bytes = constraint.bytes();
    if bytes > CONSTRAINT_BYTES_MAX {
        return Err(ConstraintError::TooLong { bytes, max: CONSTRAINT_BYTES_MAX });
    }
    if let Some(schema) = constraint.schema() {
        if is_deeper(schema, DEPTH_MAX) {
            return Err(ConstraintError::TooDeep { max: DEPTH_MAX });
        }
        let mut cases = Cases { root: schema, known: HashMap::new() };
        if cases.of(schema) > CASES_MAX {
            return Err(ConstraintError::TooManyCases { max: CASES_MAX });
        }
    }
    match constraint {
        Constraint::Regex(text) | Constraint::Grammar(text) if brackets(text) > DEPTH_MAX => {
            Err(ConstraintError::TooDeep { max: DEPTH_MAX })
        }
        Constraint::Grammar(text) if text.contains("%json") || text.contains("%lark") => {
            Err(ConstraintError::Invalid {
                why: "a grammar cannot hold %json or %lark; use a JSON schema, or write the rules out".to_owned(),
            })
        }
        Constraint::Choice(texts) if texts.is_empty() || texts.len() > CHOICES_MAX => {
            Err(ConstraintError::Invalid { why: format!("{} choices, allowed are 1 to {CHOICES_MAX}", texts.len()) })
        }
        Constraint::Choice(texts) if texts.iter().any(String::is_empty) => {
            Err(ConstraintError::Invalid { why: "a choice is empty".to_owned() })
        }
        _ => Ok(()),
    }
}

fn is_deeper(value: &Value, left: usize) -> bool {
    match value {
        Value::Array(items) => left == 0 || items.iter().any(|item| is_deeper(item, left - 1)),
        Value::Object(fields) => left == 0 || fields.values().any(|field| is_deeper(field, left - 1)),
        _ => false,
    }
}

/// Deepest nesting of brackets. Those in strings and classes count too: a bound need not be sharp.
fn brackets(text: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// An upper bound on the cases of a schema: alternatives add, combinations multiply, references stand for their target.
struct Cases<'s> {
    root: &'s Value,
    /// Cases of reference targets; those being counted are 1, since recursion is compiled as a rule of its own.
    known: HashMap<&'s str, u64>,
}

impl<'s> Cases<'s> {
    fn of(&mut self, schema: &'s Value) -> u64 {
        let Some(fields) = schema.as_object() else { return 1 };
        let mut product = 1_u64;
        // Parts that are rules of their own do not multiply with each other; the worst of them counts.
        let mut worst = 1_u64;
        for (name, value) in fields {
            match (name.as_str(), value) {
                ("anyOf" | "oneOf", Value::Array(items)) => {
                    let sum = items.iter().fold(0_u64, |sum, item| sum.saturating_add(self.of(item)));
                    product = product.saturating_mul(sum.max(1));
                }
                ("allOf", Value::Array(items)) => {
                    for item in items {
                        product = product.saturating_mul(self.of(item));
                    }
                    // Each part is merged into the others, so even plain ones cost something.
                    product = product.saturating_add(items.len() as u64);
                }
                ("$ref", Value::String(target)) => product = product.saturating_mul(self.of_reference(target)),
                ("$defs" | "definitions", _) => {}
                (_, Value::Object(parts)) => {
                    worst = worst.max(self.of(value));
                    for part in parts.values() {
                        worst = worst.max(self.of(part));
                    }
                }
                (_, Value::Array(parts)) => {
                    for part in parts {
                        worst = worst.max(self.of(part));
                    }
                }
                _ => {}
            }
        }
        product.max(worst)
    }

    fn of_reference(&mut self, target: &'s str) -> u64 {
        if let Some(cases) = self.known.get(target) {
            return *cases;
        }
        self.known.insert(target, 1);
        let found = target.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let cases = found.map_or(1, |schema| self.of(schema));
        self.known.insert(target, cases);
        cases
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(schema: Value) -> Result<(), ConstraintError> {
        check(&Constraint::JsonSchema(schema))
    }

    #[test]
    fn ordinary_schemas_pass() {
        let alternatives: Vec<Value> = (0..50).map(|n| json!({"const": n})).collect();
        schema(json!({"anyOf": alternatives})).expect("fifty cases");
        schema(json!({
            "type": "object",
            "properties": {"next": {"$ref": "#"}, "kind": {"enum": ["a", "b"]}, "x": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}]}},
            "$defs": {"x": {"type": "array", "items": {"$ref": "#"}}}
        }))
        .expect("a recursive schema");
    }

    #[test]
    fn combinations_that_multiply_are_refused() {
        let pair = json!({"anyOf": [{"type": "string"}, {"type": "number"}]});
        let all = json!({"allOf": vec![pair; 40]});
        assert_eq!(schema(all), Err(ConstraintError::TooManyCases { max: CASES_MAX }));
        // Each definition is the last one twice.
        let mut defs = serde_json::Map::new();
        defs.insert("d0".into(), json!({"type": "object"}));
        for n in 1..64 {
            let target = format!("#/$defs/d{}", n - 1);
            defs.insert(format!("d{n}"), json!({"allOf": [{"$ref": target}, {"$ref": target}]}));
        }
        let doubled = json!({"$ref": "#/$defs/d63", "$defs": defs});
        assert_eq!(schema(doubled), Err(ConstraintError::TooManyCases { max: CASES_MAX }));
    }

    #[test]
    fn depth_and_length_have_limits() {
        let deep = (0..200).fold(json!({}), |inner, _| json!({"not": inner}));
        assert_eq!(schema(deep), Err(ConstraintError::TooDeep { max: DEPTH_MAX }));
        let regex = "(".repeat(5_000) + &")".repeat(5_000);
        assert_eq!(check(&Constraint::Regex(regex)), Err(ConstraintError::TooDeep { max: DEPTH_MAX }));
        let long = "a".repeat(CONSTRAINT_BYTES_MAX + 1);
        assert!(matches!(check(&Constraint::Grammar(long)), Err(ConstraintError::TooLong { .. })));
        assert!(check(&Constraint::Choice(Vec::new())).is_err());
    }
}
