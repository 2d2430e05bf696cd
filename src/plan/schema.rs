//! The JSON Schema of a plan file: for editors, and for our own first look at a file.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::plan::raw::{NOTIFIER_KEYS, REQUIRED_KEYS, RawFile, SOURCE_KEYS};

/// The JSON Schema (draft 2020-12) of a plan file.
#[must_use]
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<RawFile>().to_value();
    tidy(&mut schema);
    for (name, keys) in REQUIRED_KEYS {
        let place = if name.is_empty() { String::new() } else { format!("/$defs/{name}") };
        if let Some(definition) = schema.pointer_mut(&place).and_then(Value::as_object_mut) {
            definition.insert("required".to_owned(), json!(keys));
        }
    }
    if let Some(plan) = schema.pointer_mut("/$defs/Plan").and_then(Value::as_object_mut) {
        plan.insert("oneOf".to_owned(), json!([{ "required": ["source"] }, { "required": ["sources"] }]));
    }
    for (name, keys) in [("Source", SOURCE_KEYS.as_slice()), ("Notifier", NOTIFIER_KEYS.as_slice())] {
        if let Some(definition) = schema.pointer_mut(&format!("/$defs/{name}")).and_then(Value::as_object_mut) {
            add_kinds(definition, keys);
        }
    }
    schema
}

/// The schema as text, ending with a newline: what `lifeboat plan schema` prints.
#[must_use]
pub fn schema_text() -> String {
    format!("{:#}\n", schema())
}

/// TOML has no null: an optional key is left out. Defaults stand in the descriptions; those that serde would fill in are of the
/// reader's own making.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.remove("default");
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|kind| kind != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".to_owned(), only);
                }
            }
            let mut merged = None;
            if let Some(Value::Array(branches)) = object.get_mut("anyOf") {
                branches.retain(|branch| branch.get("type").is_none_or(|kind| kind != "null"));
                if branches.len() == 1 {
                    merged = branches.pop();
                }
            }
            if let Some(Value::Object(branch)) = merged {
                object.remove("anyOf");
                // The description of the key says more than that of its type.
                for (key, inner) in branch {
                    object.entry(key).or_insert(inner);
                }
            }
            if let Some(Value::Array(values)) = object.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// Says for each kind which keys it needs and which it does not have.
fn add_kinds(definition: &mut Map<String, Value>, kinds: &[(&str, &[&str], &[&str])]) {
    let all = definition.get("properties").and_then(Value::as_object).map(|p| p.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    let rules = kinds.iter().map(|(kind, required, optional)| {
        let foreign = all.iter().filter(|key| *key != "kind" && !required.contains(&key.as_str()) && !optional.contains(&key.as_str()));
        json!({
            "if": { "properties": { "kind": { "const": kind } }, "required": ["kind"] },
            "then": { "required": required, "properties": foreign.map(|key| (key.clone(), Value::Bool(false))).collect::<Map<_, _>>() },
        })
    });
    let rules = rules.collect();
    definition.insert("allOf".to_owned(), Value::Array(rules));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_described_and_every_table_is_closed() {
        let schema = schema();
        let mut tables = vec![("PlanFile".to_owned(), &schema)];
        tables.extend(schema["$defs"].as_object().unwrap().iter().map(|(name, table)| (name.clone(), table)));
        assert!(tables.len() > 10);
        for (name, table) in tables {
            assert_eq!(table["additionalProperties"], json!(false), "{name} is open");
            for (key, property) in table["properties"].as_object().unwrap() {
                assert!(property["description"].is_string(), "{name}.{key} has no description");
            }
        }
        let text = schema.to_string();
        assert!(!text.contains("\"null\"") && !text.contains(":null") && !text.contains(",null"), "TOML has no null");
    }

    #[test]
    fn kinds_name_only_keys_that_exist() {
        let schema = schema();
        for (name, kinds) in [("Source", SOURCE_KEYS.as_slice()), ("Notifier", NOTIFIER_KEYS.as_slice())] {
            for (kind, required, optional) in kinds {
                for key in required.iter().chain(*optional) {
                    assert!(schema["$defs"][name]["properties"][key].is_object(), "{kind}: {key}");
                }
            }
        }
    }
}
