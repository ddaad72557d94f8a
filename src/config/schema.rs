//! The JSON schema of the configuration, for editors and for the Helm chart.
//!
//! It is not written down anywhere: the keys and defaults are those of [`Config::default`], the
//! texts those of the shipped file, and the form of each key is found by what its parser accepts.
//! So no key can be missing. The schema is looser than the parser: `redis-proxy check` decides.

use config::{Value, ValueKind};
use serde_json::{Map, Value as Json, json};

use super::Config;
use super::key_rules;
use super::known_keys::KnownKeys;
use super::sample::descriptions;
use super::sources::{Layer, check, known_keys};
use crate::cache::{KeyRule, RuleMode};

/// Texts such as `250ms` and `1h 30m`.
const DURATION: &str = r"^[0-9.]+\s*([A-Za-zµ]+\s*([0-9]+\s*[A-Za-zµ]+\s*)*)?$";
/// Texts such as `64KiB`, `10MB` and `1.5 GiB`.
const SIZE: &str = r"^[0-9.]+\s*([KkMmGgTtPp][Ii]?)?[Bb]?$";
/// Texts such as `25%`.
const PERCENT: &str = r"^[0-9]+\s*%$";

/// Returns the JSON schema (draft 7) of a configuration file.
pub fn json_schema() -> Json {
    let known = known_keys();
    let texts = descriptions();
    let text = |name: &str| texts.get(name).cloned().unwrap_or_default();
    let mut sections = Map::new();
    for (key, default) in Layer::from_config(&Config::default()).into_values() {
        let Some((section, name)) = key.split_once('.') else { continue };
        let section = sections.entry(section).or_insert_with(|| {
            json!({
                "type": "object",
                "description": text(section),
                "additionalProperties": false,
                "properties": {},
            })
        });
        let mut schema = form(&known, &key, &default);
        schema["description"] = text(&key).into();
        schema["default"] = to_json(&default);
        section["properties"][name] = schema;
    }
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "redis-proxy.toml",
        "description": "The configuration of redis-proxy.",
        "type": "object",
        "additionalProperties": false,
        "properties": sections,
    })
}

/// Returns the schema of the values that a key accepts.
fn form(known: &KnownKeys, key: &str, default: &Value) -> Json {
    if key == key_rules::RULES {
        return form_of_rules();
    }
    match &default.kind {
        ValueKind::Boolean(_) => json!({ "type": "boolean" }),
        ValueKind::Float(_) => json!({ "type": "number", "minimum": 0, "maximum": 1 }),
        ValueKind::Array(_) => json!({ "type": "array", "items": { "type": "string" } }),
        ValueKind::String(default) => {
            form_of_text(default, &|kind: ValueKind| refusal(known, key, kind))
        }
        _ => json!({ "type": "integer", "minimum": 0 }),
    }
}

/// Returns the schema of `cache.rules`. Its texts are in the description of the whole.
fn form_of_rules() -> Json {
    let properties = key_rules::FIELDS.map(|name| {
        let refusal = |kind: ValueKind| key_rules::refusal(name, &Value::new(None, kind));
        let form = if refusal(ValueKind::Boolean(true)).is_none() {
            json!({ "type": "boolean" })
        } else {
            form_of_text(RuleMode::default().name(), &refusal)
        };
        (name.to_owned(), form)
    });
    json!({
        "type": "array",
        "maxItems": KeyRule::MOST,
        "items": {
            "type": "object",
            "additionalProperties": false,
            "required": ["keys"],
            "properties": Map::from_iter(properties),
        },
    })
}

/// Returns the schema of a key that is written as text. Each form is known by a text that no other
/// one accepts. `refusal` returns the error of the key for a value.
fn form_of_text(default: &str, refusal: &dyn Fn(ValueKind) -> Option<String>) -> Json {
    let accepts = |kind: ValueKind| refusal(kind).is_none();
    let text = |text: &str| ValueKind::String(text.to_owned());
    let words = words(refusal);
    if accepts(ValueKind::Array(vec![Value::new(None, text("redis://a:1"))])) {
        return json!({ "type": ["string", "array"], "items": { "type": "string" } });
    }
    if accepts(text("\u{1}")) {
        return json!({ "type": "string" });
    }
    let pattern = if accepts(text("1h 30m")) {
        DURATION
    } else if accepts(text("1KiB")) {
        SIZE
    } else if accepts(text("25%")) {
        PERCENT
    } else if words.iter().any(|word| word == default) {
        return json!({ "enum": words });
    } else {
        // The words are examples.
        return json!({ "type": "string" });
    };
    let mut forms = vec![
        json!({ "type": "number", "minimum": 0 }),
        json!({ "type": "string", "pattern": pattern }),
    ];
    if pattern == SIZE && accepts(text("25%")) {
        forms.push(json!({ "type": "string", "pattern": PERCENT }));
    }
    if !words.is_empty() {
        forms.push(json!({ "enum": words }));
    }
    json!({ "anyOf": forms })
}

/// Returns the words that a key accepts and names in its error, as in `expected "lru" or
/// "tinylfu"`.
fn words(refusal: &dyn Fn(ValueKind) -> Option<String>) -> Vec<String> {
    let error = refusal(ValueKind::String("\u{1}".to_owned())).unwrap_or_default();
    let expected = error.split_once(", expected ").map_or("", |(_, text)| text);
    let quoted = expected.split('"').skip(1).step_by(2);
    let is_word = |word: &&str| {
        word.starts_with(|letter: char| letter.is_ascii_lowercase())
            && refusal(ValueKind::String((*word).to_owned())).is_none()
    };
    quoted.filter(is_word).map(str::to_owned).collect()
}

/// Returns the error of a key for a value; `None` if it accepts it.
fn refusal(known: &KnownKeys, key: &str, kind: ValueKind) -> Option<String> {
    check(known, key, &Value::new(None, kind)).into_iter().next().map(|problem| problem.text)
}

fn to_json(value: &Value) -> Json {
    match &value.kind {
        ValueKind::Boolean(is) => json!(is),
        ValueKind::I64(number) => json!(number),
        ValueKind::U64(number) => json!(number),
        ValueKind::Float(number) => json!(number),
        ValueKind::String(text) => json!(text),
        ValueKind::Array(values) => values.iter().map(to_json).collect(),
        _ => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_those_of_the_types() {
        let schema = json_schema();
        let of = |section: &str, key: &str| &schema["properties"][section]["properties"][key];
        let list = json!(["string", "array"]);
        assert_eq!(of("http", "allow_unprotected")["type"], "boolean");
        assert_eq!(of("cache", "capacity")["type"], "integer");
        assert_eq!(of("telemetry", "traces_ratio")["maximum"], 1);
        assert_eq!(of("http", "allow_keys")["type"], list);
        assert_eq!(of("redis", "seeds")["type"], list);
        assert_eq!(of("redis", "url")["type"], "string");
        assert_eq!(of("telemetry", "traces_endpoint")["type"], "string");
        assert_eq!(of("http", "max_value")["anyOf"][1]["pattern"], SIZE);
        assert_eq!(of("cache", "max_memory")["anyOf"][1]["pattern"], SIZE);
        assert_eq!(of("cache", "max_memory")["anyOf"][2]["pattern"], PERCENT);
        assert_eq!(of("cache", "max_memory")["anyOf"][3]["enum"], json!(["auto"]));
        assert_eq!(of("cache", "reply_share")["anyOf"][1]["pattern"], PERCENT);
        assert_eq!(of("cache", "ttl")["anyOf"][1]["pattern"], DURATION);
        assert_eq!(of("cache", "negative_ttl")["anyOf"][2]["enum"], json!(["auto"]));
        assert_eq!(of("cache", "policy")["enum"], json!(["lru", "tinylfu"]));
        assert_eq!(of("cache", "ttl")["default"], "1m");
        let rule = &of("cache", "rules")["items"]["properties"];
        assert_eq!(rule["keys"], json!({ "type": "string" }));
        assert_eq!(rule["mode"]["enum"], json!(["cache", "observe", "off"]));
        assert_eq!(rule["ttl"]["anyOf"][1]["pattern"], DURATION);
        assert_eq!(rule["negative_ttl"]["anyOf"][2]["enum"], json!(["auto"]));
        assert_eq!(rule["max_value"]["anyOf"][1]["pattern"], SIZE);
        assert_eq!(rule["refresh"], json!({ "type": "boolean" }));
    }

    /// `make schema` writes the file.
    #[test]
    fn committed_schema_is_current() {
        let committed: Json =
            serde_json::from_str(include_str!("../../redis-proxy.schema.json")).unwrap();
        // The whole schema in the message would hide the reason.
        assert!(
            committed == json_schema(),
            "redis-proxy.schema.json is not current: run make schema"
        );
    }
}
