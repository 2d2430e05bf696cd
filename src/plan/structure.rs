//! The first look at a file: every key must be known and every value of the right type, by the dialect's own schema.
//!
//! What is wrong is reported and taken out, so that the rest can be deserialised and validated in the same go.

use std::sync::Arc;

use serde_json::Value as Schema;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::plan::findings::{File, Finding, suggest};

/// How a literal where a secret belongs is answered.
pub(super) const SECRET_HINT: &str =
    "write { env = \"NAME\" }, { file = \"/path\" }, { command = [\"program\", \"argument\"] } or { credential = \"name\" }";

/// Walks a whole file; afterwards it holds only what the schema allows.
pub(super) fn check(schema: &Schema, file: &Arc<File>, root: &mut DeTable<'_>, findings: &mut Vec<Finding>) {
    Walk { schema, file, findings }.table(schema, root);
}

struct Walk<'a> {
    schema: &'a Schema,
    file: &'a Arc<File>,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Walk<'a> {
    fn resolve(&self, schema: &'a Schema) -> &'a Schema {
        schema.get("$ref").and_then(Schema::as_str).and_then(|path| self.schema.pointer(path.trim_start_matches('#'))).unwrap_or(schema)
    }

    fn table(&mut self, schema: &'a Schema, table: &mut DeTable<'_>) {
        let known = schema.get("properties").and_then(Schema::as_object);
        // Names such as `[plan.crm]`: any key, one form of value.
        let named = schema.get("additionalProperties").filter(|inner| inner.is_object());
        for (key, mut value) in std::mem::take(table) {
            let name = key.get_ref();
            if let Some(inner) = known.and_then(|known| known.get(name.as_ref())).or(named) {
                if self.value(inner, &mut value) {
                    table.insert(key, value);
                }
                continue;
            }
            let hint = suggest(name, "keys here", known.into_iter().flatten().map(|(key, _)| key.as_str()));
            let finding = Finding::at(self.file, key.span(), format!("unknown key `{name}`")).hint(hint);
            // In a secret reference, what follows an unknown key may be the secret.
            self.findings.push(if schema.get("maxProperties").is_some() { finding.masked() } else { finding });
        }
    }

    /// Whether to keep the value.
    fn value(&mut self, schema: &'a Schema, value: &mut Spanned<DeValue<'_>>) -> bool {
        let is_secret = schema.get("$ref").is_some_and(|path| path == "#/$defs/SecretRef");
        let schema = self.resolve(schema);
        let span = value.span();
        if let Some(branches) = schema.get("anyOf").and_then(Schema::as_array) {
            if let Some(branch) = branches.iter().find(|branch| is_of_type(self.resolve(branch), value.get_ref())) {
                return self.value(branch, value);
            }
            let expected = branches.iter().map(|branch| described(self.resolve(branch))).collect::<Vec<_>>().join(" or ");
            return self.reject(Finding::at(self.file, span, format!("expected {expected}, found {}", kind_of(value.get_ref()))).masked());
        }
        if !is_of_type(schema, value.get_ref()) {
            let finding = if is_secret {
                Finding::at(self.file, span, "a secret never stands in a plan file").hint(SECRET_HINT).masked()
            } else {
                Finding::at(self.file, span, format!("expected {}, found {}", described(schema), kind_of(value.get_ref())))
            };
            return self.reject(finding);
        }
        match value.get_mut() {
            DeValue::Table(table) => {
                self.table(schema, table);
                true
            }
            DeValue::Array(items) => {
                let Some(inner) = schema.get("items") else { return true };
                // All items are looked at, so that all errors are told.
                let rejected = items.iter_mut().filter_map(|item| (!self.value(inner, item)).then_some(())).count();
                rejected == 0
            }
            DeValue::String(text) => self.choice(schema, text, span),
            DeValue::Integer(number) => {
                let parsed = i64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok();
                let bound = |name: &str| schema.get(name).and_then(Schema::as_f64);
                #[expect(clippy::cast_precision_loss, reason = "bounds are small; a huge number stays huge")]
                let fits = parsed.is_some_and(|n| {
                    bound("minimum").is_none_or(|min| n as f64 >= min) && bound("maximum").is_none_or(|max| n as f64 <= max)
                });
                let is_the_one = schema.get("const").is_none_or(|constant| constant.as_i64() == parsed);
                if fits && is_the_one {
                    return true;
                }
                let message = match (schema.get("const"), bound("minimum"), bound("maximum")) {
                    (Some(constant), ..) => format!("this must be {constant}"),
                    (None, Some(min), Some(max)) => format!("this must be from {min} to {max}"),
                    _ => "this number is out of range".to_owned(),
                };
                self.reject(Finding::at(self.file, span, message))
            }
            _ => true,
        }
    }

    fn choice(&mut self, schema: &Schema, text: &str, span: std::ops::Range<usize>) -> bool {
        let Some(choices) = schema.get("enum").and_then(Schema::as_array) else { return true };
        let choices = choices.iter().filter_map(Schema::as_str).collect::<Vec<_>>();
        if choices.contains(&text) {
            return true;
        }
        let hint = suggest(text, "it may be", choices);
        self.reject(Finding::at(self.file, span, format!("unknown value {text:?}")).hint(hint))
    }

    fn reject(&mut self, finding: Finding) -> bool {
        self.findings.push(finding);
        false
    }
}

fn is_of_type(schema: &Schema, value: &DeValue<'_>) -> bool {
    let expected = schema.get("type").and_then(Schema::as_str);
    match value {
        DeValue::Table(_) => expected == Some("object"),
        DeValue::Array(_) => expected == Some("array"),
        DeValue::String(_) => expected == Some("string"),
        DeValue::Integer(_) => expected == Some("integer"),
        DeValue::Boolean(_) => expected == Some("boolean"),
        DeValue::Float(_) | DeValue::Datetime(_) => false,
    }
}

fn described(schema: &Schema) -> &'static str {
    match schema.get("type").and_then(Schema::as_str) {
        Some("object") => "a table",
        Some("array") => "a list",
        Some("integer") => "a whole number",
        Some("boolean") => "true or false",
        _ => "a text in quotes",
    }
}

fn kind_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::Table(_) => "a table",
        DeValue::Array(_) => "a list",
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Boolean(_) => "a truth value",
        DeValue::Float(_) => "a decimal number",
        DeValue::Datetime(_) => "a date or time",
    }
}
